"""Per-example losses."""

import functools

import jax
import jax.numpy as jnp

_FEW_CLASSES = 8


def cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    label_smoothing: float | jax.Array = 0.0,
    class_weights: jax.Array | None = None,
) -> jax.Array:
    """Softmax cross-entropy of each example, in nats.

    Args:
      logits: float32 `[B, K]`.
      labels: int32 `[B]` in `[0, K)`.
      label_smoothing: mass in [0, 1) spread evenly over all K classes.
      class_weights: float32 `[K]`; the loss of an example is multiplied by its class's weight. Take
        the plain mean over examples afterwards for the sum(w * loss) / N of FairTune, or divide by
        the summed weights for the convention of `torch.nn.CrossEntropyLoss`.

    Returns:
      float32 `[B]`. Safe under jit, vmap and grad.
    """
    if logits.shape[-1] > _FEW_CLASSES:
        log_total = jax.nn.logsumexp(logits, axis=-1)
        own = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    else:
        # Class by class: XLA:CPU fuses this into one loop over examples, but not a reduction over
        # a short axis, which made small models three times slower.
        columns = [logits[..., k] for k in range(logits.shape[-1])]
        highest = jax.lax.stop_gradient(functools.reduce(jnp.maximum, columns))
        log_total = jnp.log(sum(jnp.exp(column - highest) for column in columns)) + highest
        own = sum(jnp.where(labels == k, column, 0.0) for k, column in enumerate(columns))
    loss = log_total - own
    if not isinstance(label_smoothing, float) or label_smoothing:
        uniform = log_total - jnp.mean(logits, axis=-1)
        loss = (1 - label_smoothing) * loss + label_smoothing * uniform
    if class_weights is not None:
        loss = loss * class_weights[labels]
    return loss


def predictions(logits: jax.Array) -> jax.Array:
    """Arg-max class int32 `[B]` of logits `[B, K]`, the first of equals."""
    if logits.shape[-1] > _FEW_CLASSES:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    highest, preds = logits[..., 0], jnp.zeros(logits.shape[:-1], jnp.int32)
    for k in range(1, logits.shape[-1]):
        preds = jnp.where(logits[..., k] > highest, k, preds)
        highest = jnp.maximum(logits[..., k], highest)
    return preds
