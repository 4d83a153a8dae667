"""Networks of one's own, written in flax.nnx or flax.linen, as `Model`s."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import flax.core
import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx
from jaxtyping import Array, Float

from fairjax import trees
from fairjax.models.channels import Channels
from fairjax.models.model import Model, Preprocess
from fairjax.models.own import own_model

Example = Float[Array | np.ndarray, "B ..."] | jax.ShapeDtypeStruct


def wrap_nnx(
    make: Callable[..., nnx.Module],
    *,
    num_classes: int,
    head: str,
    preprocess: Preprocess | None = None,
    channel_graph: Mapping[str, Channels] | None = None,
    example: Example | None = None,
) -> Model:
    """A flax.nnx network of one's own as a `Model`.

        >>> make = lambda rngs: nnx.Sequential(jnp.tanh, nnx.Linear(3, 2, rngs=rngs))
        >>> model = wrap_nnx(make, num_classes=2, head="layers/1")
        >>> model.apply(*model.init(jax.random.key(0)), jnp.ones((5, 3)))[0].shape
        (5, 2)

    The network is called with the inputs alone and gives logits `[B, K]`, or
    `(logits, {"name": intermediate})`; the intermediates that pruning scores are named as in
    `channel_graph`, and `pooled` is what the last linear layer reads, where a probe or a method
    trains one of its own. Training switches its layers with `.train()`, everything else with
    `.eval()`; where `__call__` has an argument `train`, `training`, `deterministic`,
    `use_running_average` or `rngs`, it is passed too. Dropout draws from `apply`'s `key` alone.

    Args:
      make: called as `make(rngs=nnx.Rngs(...))`: the class itself, or a lambda around it.
        Parameters are `nnx.Param`, batch statistics `nnx.BatchStat`, randomness comes from the
        `rngs`; variables of another kind are refused.
      num_classes: K, at least 2.
      head: where the last linear layer is in the parameters: attributes, and places in lists,
        joined by "/", such as `fc` or `net/layers/2`.
      preprocess: from the images of a data set to the network's inputs, such as
        `image_preprocess(64, mean, std)`; None where they are the same.
      channel_graph: which arrays hold the channels that pruning may remove, by layer.
      example: inputs `[B, ...]` as the network takes them, or their `jax.ShapeDtypeStruct`; checks
        the logits and intermediates at once instead of at the first use.

    Returns:
      A `Model` whose params are nested dicts with the attributes' names (`layers/2/kernel`), the
      places in lists as strings.

    Raises:
      ValueError: no such head, variables, logits or channels that do not fit; what only shows when
        the network is called is raised by `apply`, when it is traced.
    """
    if not _accepts(make, "rngs"):
        raise ValueError(
            "make must take the argument rngs, as in "
            "wrap_nnx(lambda rngs: MyNet(..., rngs=rngs), ...)"
        )
    module: Any = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(jax.random.key(0))))
    if not isinstance(module, nnx.Module):
        raise ValueError(f"make must return an nnx.Module, got {module}")
    graphs = {}
    for train in (True, False):
        module.train() if train else module.eval()
        graphs[train], *states = nnx.split(module, nnx.Param, nnx.BatchStat, nnx.RngState, ...)
    param_names, stat_names, _, others = (
        {"/".join(map(str, path)): path for path, _ in nnx.to_flat_state(state)} for state in states
    )
    random_state = dict(nnx.to_flat_state(states[2]))
    if others:
        raise ValueError(f"neither parameters nor batch statistics: {', '.join(others)}")
    call_fn = type(module).__call__

    def init(key):
        _, params, batch_stats, _ = nnx.split(
            make(rngs=nnx.Rngs(key)), nnx.Param, nnx.BatchStat, ...
        )
        return _named(params), _named(batch_stats)

    def call(params, batch_stats, inputs, train, key):
        options: dict[str, Any] = _mode(call_fn, train)
        if train and key is not None and _accepts(call_fn, "rngs"):
            options["rngs"] = nnx.Rngs(key)
        if train and key is None and random_state:
            raise ValueError("train=True needs a key: the network has random layers")
        network: Any = nnx.merge(
            graphs[train],
            _placed(params, param_names),
            _placed(batch_stats, stat_names),
            _nested(_draw(random_state, jax.random.key(0) if key is None else key)),
        )
        result = network(inputs, **options)
        return result, _named(nnx.state(network, nnx.BatchStat)) if train else batch_stats

    return own_model(
        init,
        call,
        num_classes=num_classes,
        head=head,
        preprocess=preprocess,
        channel_graph=channel_graph,
        example=example,
        fixed_shapes=False,
    )


def wrap_linen(
    module: linen.Module,
    example: Example,
    *,
    num_classes: int,
    head: str,
    preprocess: Preprocess | None = None,
    channel_graph: Mapping[str, Channels] | None = None,
) -> Model:
    """A flax.linen network of one's own as a `Model`.

        >>> module = linen.Sequential([linen.Dense(8), linen.relu, linen.Dense(2)])
        >>> model = wrap_linen(module, jnp.ones((1, 3)), num_classes=2, head="layers_2")
        >>> model.apply(*model.init(jax.random.key(0)), jnp.ones((5, 3)))[0].shape
        (5, 2)

    The network gives logits `[B, K]`, or `(logits, {"name": intermediate})`; the intermediates that
    pruning scores are named as in `channel_graph`. Where `__call__` has an argument `train`,
    `training`, `deterministic` or `use_running_average` it is passed. The `key` of `apply` becomes
    the rng `dropout`; other rngs are derived from it. linen checks the shapes of parameters, so
    channels that were removed are computed as zeros: the files get smaller, the network not faster
    (`wrap_nnx` networks do).

    Args:
      module: the `flax.linen.Module`. Its collections are `params` and, with batch norm,
        `batch_stats`; others are refused.
      example: inputs `[B, ...]` as the network takes them, or their `jax.ShapeDtypeStruct`.
      num_classes: K, at least 2.
      head: where the last `Dense` is in the parameters, such as `Dense_1` or `net/fc`.
      preprocess: see `wrap_nnx`.
      channel_graph: see `wrap_nnx`.

    Returns:
      A `Model` whose params and batch statistics are those of linen.

    Raises:
      ValueError: no such head, or collections, logits or channels that do not fit.
    """
    call_fn = type(module).__call__

    def init(key):
        inputs = jnp.zeros(example.shape, example.dtype)
        options: dict[str, Any] = _mode(call_fn, False)
        variables = module.init({"params": key}, inputs, **options)
        variables = flax.core.unfreeze(linen.meta.unbox(variables))
        params, batch_stats = variables.pop("params", {}), variables.pop("batch_stats", {})
        if variables:
            raise ValueError(f"neither params nor batch_stats: {', '.join(variables)}")
        return params, batch_stats

    def call(params, batch_stats, inputs, train, key):
        variables = {"params": params} | ({"batch_stats": batch_stats} if batch_stats else {})
        options: dict[str, Any] = _mode(call_fn, train)
        if key is not None:
            options["rngs"] = {"dropout": key, "params": jax.random.fold_in(key, 0)}
        try:
            if not train or not batch_stats:
                return module.apply(variables, inputs, **options), batch_stats
            result, new = module.apply(variables, inputs, mutable=["batch_stats"], **options)
        except flax.errors.InvalidRngError as error:
            if key is not None:
                raise
            raise ValueError("train=True needs a key: the network has random layers") from error
        return result, flax.core.unfreeze(new["batch_stats"])

    return own_model(
        init,
        call,
        num_classes=num_classes,
        head=head,
        preprocess=preprocess,
        channel_graph=channel_graph,
        example=example,
        fixed_shapes=True,
    )


_MODES = {"train": True, "training": True, "deterministic": False, "use_running_average": False}
"""Arguments by which networks are told how they are used, and their values in training."""


def _mode(call_fn: Callable[..., Any], train: bool) -> dict[str, bool]:
    """The arguments of `call_fn` that say whether it trains."""
    return {name: value == train for name, value in _MODES.items() if _accepts(call_fn, name)}


def _accepts(function: Callable[..., Any], name: str) -> bool:
    """Whether a function, or a class when it is made, has an argument of that name."""
    function = function.__init__ if inspect.isclass(function) else function
    return name in inspect.signature(function).parameters


Place = tuple[Any, ...]
"""Attributes, and places in lists, that lead to a variable of an nnx module."""


def _named(state: Any) -> dict[str, Any]:
    """An nnx state as nested dicts whose keys are all strings."""
    flat = nnx.to_flat_state(state)
    return trees.unflatten_named({"/".join(map(str, path)): leaf[...] for path, leaf in flat})


def _placed(tree: dict[str, Any], places: Mapping[str, Place]) -> dict[Any, Any]:
    """Undo `_named`."""
    leaves = trees.flatten_named(tree)
    if wrong := sorted(leaves.keys() ^ places.keys()):
        what = "unknown" if wrong[0] in leaves else "missing"
        raise ValueError(f"{what} parameter or statistic {wrong[0]!r}; known are {list(places)}")
    return _nested({places[name]: leaf for name, leaf in leaves.items()})


def _nested(leaves: Mapping[Place, Any]) -> dict[Any, Any]:
    tree: dict[Any, Any] = {}
    for (*parents, last), leaf in leaves.items():
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[last] = leaf
    return tree


def _draw(random_state: Mapping[Place, Any], key: jax.Array) -> dict[Place, jax.Array]:
    """New keys for all random layers, their counters at 0."""
    drawn = {}
    for i, (path, old) in enumerate(random_state.items()):
        if isinstance(old, nnx.RngKey):
            own = jax.random.fold_in(key, i)
            drawn[path] = jax.random.split(own, old.shape) if old.shape else own
        else:
            drawn[path] = jnp.zeros(old.shape, old.dtype)
    return drawn
