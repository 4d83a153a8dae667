"""From flax.nnx modules to the pure functions over plain dicts that everyone else uses."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fairjax.models.model import Model, Preprocess
from fairjax.models.preprocess import IMAGE_REMEDY, TABLE_REMEDY, as_floats


class Draws:
    """What the arrays of a module start as: pieces of one vector of normal numbers, or constants.

    A network has up to a hundred kernels, and a random draw of each shape takes a fifth of a second
    to compile; this needs one draw. `values` is `[..., n]`, whose leading axes all arrays get too;
    None gives arrays without meaning and only counts what is taken.
    """

    def __init__(self, values: Any = None):
        self.values, self.taken = values, 0

    def normal(self, std: float, *shape: int) -> Any:
        """The next numbers, N(0, std^2)."""
        start, self.taken = self.taken, self.taken + math.prod(shape)
        if self.values is None:
            return jnp.zeros(shape, jnp.float32)
        piece = std * self.values[..., start : self.taken]
        return piece.reshape(*piece.shape[:-1], *shape)

    def full(self, value: float, *shape: int) -> Any:
        """One number throughout."""
        lead = () if self.values is None else self.values.shape[:-1]
        return np.full((*lead, *shape), value, np.float32)


Make = Callable[[Draws], nnx.Module]


def structure_of(make: Make) -> tuple[nnx.GraphDef, int]:
    """The structure of a module and how many numbers it draws; nothing is allocated."""
    draws = Draws()
    module = nnx.eval_shape(lambda: make(draws))
    return nnx.split(module, nnx.Param, nnx.BatchStat)[0], draws.taken


def init_arrays(
    make: Make, num_draws: int, key: jax.Array, *, stack: tuple[int, ...] = ()
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fresh `(params, batch_stats)` as plain nested dicts, of `stack` modules at once."""
    values = jax.random.normal(key, (*stack, num_draws), jnp.float32)
    if not isinstance(values, jax.core.Tracer):
        values = np.asarray(values)  # cut up without compiling a program for every shape
    _, params, batch_stats = nnx.split(make(Draws(values)), nnx.Param, nnx.BatchStat)
    return jax.tree.map(jnp.array, (nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)))


def as_model(make: Make, config: Any, preprocess: Preprocess | None = None) -> Model:
    """A `Model` from a module called as `module(inputs, train=..., key=...) -> (logits, out)`.

    The module is split once, so a call costs only the merge, and widths come from the arrays:
    `apply` also runs parameters from which channels were sliced.
    """
    structure, num_draws = structure_of(make)

    remedy = IMAGE_REMEDY if preprocess else TABLE_REMEDY

    def apply(params, batch_stats, inputs, *, train=False, key=None):
        inputs = as_floats(inputs, remedy)
        module: Any = nnx.merge(structure, params, batch_stats)
        logits, out = module(inputs, train=train, key=key)
        return logits, out, nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))

    return Model(lambda key: init_arrays(make, num_draws, key), apply, config, preprocess)
