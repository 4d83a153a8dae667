"""What networks of one's own have in common: the protocol of `Model.apply`, and checks of it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fairjax import trees
from fairjax.models.channels import Channels
from fairjax.models.model import Model, Preprocess
from fairjax.models.preprocess import IMAGE_REMEDY, TABLE_REMEDY, as_floats


@dataclasses.dataclass(frozen=True)
class OwnConfig:
    """What is known of a network of one's own."""

    num_classes: int
    image_size: int | None = None
    """S, where the example inputs are `[B, S, S, 3]`."""
    channel_graph: Mapping[str, Channels] = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self):
        if self.num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {self.num_classes}")


def own_model(
    init: Callable[..., tuple[Any, Any]],
    call: Callable[..., tuple[Any, Any]],
    *,
    num_classes: int,
    head: str,
    preprocess: Preprocess | None,
    channel_graph: Mapping[str, Channels] | None,
    example: Any,
    fixed_shapes: bool,
) -> Model:
    """A `Model` from functions that know nothing of its rules.

    Args:
      init: as of `Model`.
      call: `call(params, batch_stats, inputs, train, key) -> (result, batch_stats)`, whose result
        is what the network returns.
      num_classes: K; this and what follows as for `wrap_nnx`.
      head: path of the classifier.
      preprocess: of `Model`.
      channel_graph: layers that can be pruned.
      example: inputs or their shape, or None.
      fixed_shapes: `call` takes arrays of the shapes that `init` makes only: removed channels are
        put back as zeros.
    """
    shape: Any = () if example is None else example.shape
    is_image = len(shape) == 4 and shape[1] == shape[2] and shape[3] == 3
    image_size = shape[1] if is_image else None
    graph = dict(channel_graph or {})
    config = OwnConfig(num_classes, image_size, graph)
    key = jax.random.key(0)
    params, batch_stats = jax.eval_shape(init, key)
    _check_head(params, head)
    # files and masks turn one form of blocks into the other
    to_own_blocks = trees.stack_blocks if _has_stacked_blocks(params) else trees.unstack_blocks
    remedy = TABLE_REMEDY if preprocess is None else IMAGE_REMEDY

    def apply(params, batch_stats, inputs, *, train=False, key=None):
        inputs = as_floats(inputs, remedy)
        params = to_own_blocks(params)
        left = _left(graph, params) if fixed_shapes else {}
        arrays = (_resized(tree, graph, left, full=True) for tree in (params, batch_stats))
        result, batch_stats = call(*arrays, inputs, train, key)
        pair: Any = result if isinstance(result, tuple) and len(result) == 2 else (result, {})
        logits, out = pair
        _check_logits(logits, out, inputs.shape[0], num_classes)
        batch_stats, out = _resized(batch_stats, graph, left, full=False), dict(out)
        for layer in left.keys() & out.keys():
            axis, size = out[layer].ndim - 1, graph[layer].size
            out[layer] = _resize(out[layer], axis, 1, size, left[layer])
        return logits.astype(jnp.float32), out, batch_stats

    out = None
    if example is not None:
        for train in (True, False):
            _, out, _ = jax.eval_shape(
                lambda *args, train=train: apply(*args[:-1], train=train, key=args[-1]),
                *(params, batch_stats, example, key),
            )
    _check_channels(graph, params, batch_stats, out)
    return Model(init, apply, config, preprocess, head)


def _check_head(params: dict[str, Any], head: str) -> None:
    try:
        layer = trees.get_path(params, head)
    except ValueError as error:
        raise ValueError(f"head {head!r} is not in the parameters: {error}") from None
    if not isinstance(layer, dict) or set(layer) != {"kernel", "bias"} or layer["kernel"].ndim != 2:
        found = ", ".join(layer) if isinstance(layer, dict) else "an array"
        raise ValueError(
            f"head {head!r} must be a linear layer with kernel [D, K] and bias, got {found}"
        )


def _check_logits(logits: Any, out: Any, batch: int, num_classes: int) -> None:
    if not hasattr(logits, "shape") or not isinstance(out, Mapping):
        raise ValueError("the network must return logits, or (logits, dict of intermediates)")
    if logits.shape == (batch, num_classes):
        return
    remedy = ""
    if num_classes == 2 and logits.shape in ((batch,), (batch, 1)):
        remedy = (
            "; give a network with one output z for a sigmoid two logits: "
            "jnp.concatenate([jnp.zeros_like(z), z], axis=-1)"
        )
    raise ValueError(f"logits must have shape [B, {num_classes}], got {logits.shape}{remedy}")


def _has_stacked_blocks(params: dict[str, Any]) -> bool:
    """Whether `params["blocks"]` lie on a leading axis, which is what that name means here."""
    blocks = params.get("blocks", {})
    if not isinstance(blocks, dict) or not blocks or trees.is_unstacked(blocks):
        return False
    if len({leaf.shape[:1] for leaf in jax.tree.leaves(blocks)}) > 1:
        raise ValueError(
            'parameters named "blocks" must be a list of blocks, or blocks stacked on a leading '
            f"axis; this network has blocks/{next(iter(trees.flatten_named(blocks)))}: rename it"
        )
    return True


def _check_channels(
    graph: Mapping[str, Channels], params: Any, batch_stats: Any, out: Mapping[str, Any] | None
) -> None:
    """Every slot is there and as long as it says, and every layer among the intermediates."""
    arrays = trees.flatten_named(jax.eval_shape(trees.unstack_blocks, params))
    stats = trees.flatten_named(batch_stats)
    for layer, channels in graph.items():
        for slot in (*channels.outputs, *channels.inputs):
            found = (stats if slot.in_stats else arrays).get(slot.path)
            if found is None:
                raise ValueError(f"channel_graph[{layer!r}]: there is no array {slot.path!r}")
            length = slot.outer * channels.size * slot.inner
            if slot.axis >= found.ndim or found.shape[slot.axis] != length:
                raise ValueError(
                    f"channel_graph[{layer!r}]: axis {slot.axis} of {slot.path} should have length "
                    f"{length}, its shape is {found.shape}"
                )
        if out is not None and layer not in out:
            raise ValueError(
                f"channel_graph[{layer!r}]: the network must return this intermediate, as in "
                f"(logits, {{{layer!r}: x}}); it returns {', '.join(out) or 'none'}"
            )


def _left(graph: Mapping[str, Channels], params: Any) -> dict[str, int]:
    """How many channels each layer has that lost some."""
    leaves, left = trees.flatten_named(params), {}
    for layer, channels in graph.items():
        slot = channels.outputs[0]
        width = leaves[slot.path].shape[slot.axis] // (slot.outer * slot.inner)
        if width != channels.size:
            left[layer] = width
    return left


def _resized(
    tree: Any, graph: Mapping[str, Channels], left: Mapping[str, int], *, full: bool
) -> Any:
    """Arrays with zeros behind the channels that are left (`full`), or without those zeros.

    A channel of zeros changes no logit.
    """
    if not left:
        return tree
    leaves = trees.flatten_named(tree)
    for layer, width in left.items():
        sizes = (width, graph[layer].size) if full else (graph[layer].size, width)
        for slot in (*graph[layer].outputs, *graph[layer].inputs):
            if slot.path in leaves:
                leaves[slot.path] = _resize(leaves[slot.path], slot.axis, slot.outer, *sizes)
    return trees.unflatten_named(leaves)


def _resize(x: jax.Array, axis: int, outer: int, old: int, new: int) -> jax.Array:
    """Pad or cut the `old` channels of an axis seen as `[outer, old, inner]`."""
    inner = x.shape[axis] // (outer * old)
    x_shape, around = x.shape, (x.shape[:axis], x.shape[axis + 1 :])
    x = x.reshape(*around[0], outer, old, inner, *around[1])
    if new < old:
        x = jax.lax.slice_in_dim(x, 0, new, axis=axis + 1)
    else:
        x = jnp.pad(x, [(0, new - old if i == axis + 1 else 0) for i in range(x.ndim)])
    return x.reshape(*around[0], x_shape[axis] // old * new, *around[1])
