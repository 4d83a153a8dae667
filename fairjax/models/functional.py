"""From a flax.nnx module to the two pure functions everyone else uses."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from fairjax.models.model import Model


def as_model(make: Callable[[nnx.Rngs], nnx.Module], config: Any) -> Model:
    """Split a module once into its structure and plain dicts, and close `apply` over the structure.

    The structure holds no shapes, so `apply` also runs parameters whose widths were sliced.
    `make(rngs)` builds a module called as `module(inputs, train=..., key=...) -> (logits, out)`.
    """
    structure, _, _ = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))), nnx.Param, nnx.BatchStat)

    def init(key: jax.Array) -> tuple[Any, Any]:
        _, params, batch_stats = nnx.split(make(nnx.Rngs(key)), nnx.Param, nnx.BatchStat)
        return nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)

    def apply(params, batch_stats, inputs, *, train=False, key=None):
        module: Any = nnx.merge(structure, params, batch_stats)
        logits, out = module(inputs, train=train, key=key)
        return logits, out, nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))

    return Model(init, apply, config)
