"""From flax.nnx modules to the pure functions over plain dicts that everyone else uses."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from fairjax.models.model import Model

Make = Callable[[nnx.Rngs], nnx.Module]


def structure_of(make: Make) -> nnx.GraphDef:
    """The structure of a module without its arrays or their shapes; nothing is allocated."""
    return nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))), nnx.Param, nnx.BatchStat)[0]


def init_arrays(make: Make, key: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fresh `(params, batch_stats)` of a module as plain nested dicts."""
    _, params, batch_stats = nnx.split(make(nnx.Rngs(key)), nnx.Param, nnx.BatchStat)
    return nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)


def as_model(make: Make, config: Any) -> Model:
    """A `Model` from a module called as `module(inputs, train=..., key=...) -> (logits, out)`.

    The module is split once, so a call costs only the merge, and widths come from the arrays:
    `apply` also runs parameters from which channels were sliced.
    """
    structure = structure_of(make)

    def apply(params, batch_stats, inputs, *, train=False, key=None):
        module: Any = nnx.merge(structure, params, batch_stats)
        logits, out = module(inputs, train=train, key=key)
        return logits, out, nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))

    return Model(lambda key: init_arrays(make, key), apply, config)
