"""Logits of many networks: on one split, or each on rows of its own."""

import functools
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Integer, Shaped

from fairjax.data import Dataset
from fairjax.models import Model
from fairjax.sharding import candidate_mesh, shard_candidates
from fairjax.train.predict import predict
from fairjax.train.stream import stream_map


def population_logits(
    model: Model,
    params: Any,
    batch_stats: Any,
    data: Dataset,
    split: str,
    *,
    data_bytes: int | None = None,
) -> np.ndarray:
    """Logits float32 `[P, N, K]` of P networks, leaves `[P, ...]`, on a split of a data set.

    `data_bytes` of the split are put on the device at a time; see `Recipe`.
    """
    mesh = candidate_mesh(jax.devices()[: len(jax.tree.leaves(params)[0])])
    run = _compiled_logits(model, mesh)
    return stream_map(run, data, split, params, batch_stats, batch_bytes=data_bytes, axis=1)


@functools.partial(jax.jit, static_argnums=0)
def logits_of_rows(
    model: Model,
    params: Any,
    batch_stats: Any,
    inputs: Shaped[Array | np.ndarray, "N ..."],
    rows: Integer[Array | np.ndarray, "P n"],
) -> Float[Array, "P n K"]:
    """Logits of P networks, each on rows of its own, such as the test rows of its split.

    Args:
      model: shared.
      params: leaves `[P, ...]`.
      batch_stats: leaves `[P, ...]`.
      inputs: `[N, ...]` as stored, on the device.
      rows: int `[P, n]` in `[0, N)`.

    Returns:
      float32 `[P, n, K]`. Compiled once per shape.
    """
    one = lambda run: predict(model, run[0], run[1], inputs, rows=run[2])
    return jax.lax.map(one, (params, batch_stats, rows))


@functools.lru_cache(maxsize=16)
def _compiled_logits(model: Model, mesh: Any) -> Any:
    """`(inputs, params [P], batch_stats [P]) -> [P, N, K]`, compiled once for all trainings."""

    def logits(params, batch_stats, inputs):
        one = lambda network: predict(model, network[0], network[1], inputs)
        return jax.lax.map(one, (params, batch_stats))

    spread = shard_candidates(logits, mesh, num_mapped=2)
    return jax.jit(lambda inputs, params, batch_stats: spread(params, batch_stats, inputs))
