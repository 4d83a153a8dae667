"""Logits of whole splits, without training."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from fairjax.models import Model

# float32 inputs that are evaluated at a time, in bytes; on CPU what stays in its caches: 64 images
# of 64 px, elsewhere 1,365 of them or 111 of 224 px
_EVALUATED_BYTES = {"cpu": 3 << 20}
_ELSEWHERE = 64 << 20


def predict(
    model: Model,
    params: Any,
    batch_stats: Any,
    inputs: Shaped[Array | np.ndarray, "N ..."],
    *,
    rows: Int[Array, " n"] | None = None,
    batch_size: int | None = None,
) -> Float[Array, "n K"]:
    """Logits float32 `[n, K]` of a whole split, or of some of its rows, in evaluation mode.

    Args:
      model: the network; its `preprocess` is applied to every chunk of inputs.
      params: its parameters.
      batch_stats: its batch statistics, `{}` without batch norm.
      inputs: `[N, ...]` as stored: uint8 images, float32 images in [0, 1], or features.
      rows: int `[n]`, which of the inputs and in which order; all by default.
      batch_size: examples whose activations are held at a time; None chooses by their size, see
        `evaluation_batch_size`.

    Returns:
      The logits. Not jitted; safe under jit and vmap.

    Raises:
      ValueError: `batch_size` below 1.
    """

    def forward(chunk):
        chunk = chunk if model.preprocess is None else model.preprocess(chunk)
        return model.apply(params, batch_stats, chunk, train=False)[0]

    num_rows = len(inputs) if rows is None else len(rows)
    batch_size = evaluation_batch_size(model, inputs) if batch_size is None else batch_size
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if batch_size >= num_rows:
        return forward(inputs if rows is None else jnp.asarray(inputs)[rows])
    inputs = jnp.asarray(inputs)
    num_chunks = -(-num_rows // batch_size)
    even = -(-num_rows // num_chunks)
    # rows by number, the last chunk filled up from the first: padding would copy the split
    places = (jnp.arange(num_chunks * even) % num_rows).reshape(num_chunks, even)
    chunks = places if rows is None else rows[places]
    logits = jax.lax.map(lambda chunk: forward(inputs[chunk]), chunks)
    return logits.reshape(-1, logits.shape[-1])[:num_rows]


def below_head(model: Model) -> Model:
    """The network up to its last linear layer: `predict` then gives what that one reads, `[n, D]`.

    It computes as `model` does when evaluated, whatever `train` says.

    Raises:
      ValueError: when it is called, and the network does not give its features.
    """

    def apply(params, batch_stats, inputs, *, train=False, key=None):
        _, out, _ = model.apply(params, batch_stats, inputs, train=False)
        if "pooled" not in out:
            raise ValueError(
                "a classifier of its own needs the network's features as out['pooled'], "
                f"found {', '.join(out) or 'nothing'}"
            )
        return out["pooled"], out, batch_stats

    return model._replace(apply=apply)


def evaluation_batch_size(model: Model, inputs: Any) -> int:
    """How many of `inputs [N, ...]` are evaluated at a time, by the bytes that a network takes."""
    one = jax.ShapeDtypeStruct((1, *inputs.shape[1:]), inputs.dtype)
    taken = one if model.preprocess is None else jax.eval_shape(model.preprocess, one)
    limit = _EVALUATED_BYTES.get(jax.default_backend(), _ELSEWHERE)
    return max(1, limit // max(1, 4 * taken.size))
