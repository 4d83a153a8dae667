"""Predictions, and logits for every metric, from thresholds per group."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Float, Int, Integer

from fairjax.metrics.counts import Array
from fairjax.thresholds.points import check_ids


def apply_thresholds(
    scores: Float[Array, "*axes N"],
    thresholds: Float[Array, "*axes G"],
    *,
    group: Integer[Array, " N"],
) -> Int[jax.Array, "*axes N"]:
    """Predict 1 where an example's score reaches its group's threshold.

    Args:
      scores: float `[..., N]`, such as the difference of two logits.
      thresholds: float `[..., G]`, as from `group_thresholds`; inf selects nobody.
      group: int `[N]` in `[0, G)`.

    Returns:
      int32 `[..., N]`, 1 where score >= threshold, for `metrics.group_counts`. Safe under jit and
      vmap.

    Raises:
      ValueError: a threshold is nan or a group outside `[0, G)`, where they are not traced.

    >>> scores, group = np.array([0.3, 0.5, 0.5], np.float32), np.array([0, 0, 1])
    >>> apply_thresholds(scores, np.array([0.5, 0.6], np.float32), group=group).tolist()
    [0, 1, 0]
    """
    return (jnp.asarray(scores) >= _of_examples(thresholds, group)).astype(jnp.int32)


def shift_logits(
    logits: Float[Array, "*axes N 2"],
    thresholds: Float[Array, "*axes G"],
    *,
    group: Integer[Array, " N"],
) -> Float[jax.Array, "*axes N 2"]:
    """Logits whose argmax is what the thresholds predict, for `metrics` and `compare_rows`.

    The score, logit 1 - logit 0, is moved by the threshold of the example's group. Within a group
    the order of scores and hence `group_auc`, `worst_group_auc` and `auc_gap` stay as they were;
    what compares scores across groups or reads them as probabilities changes: `auc`, `ece`,
    `group_loss`.

    Args:
      logits: float `[..., N, 2]`; scores are taken in their dtype.
      thresholds: float `[..., G]` of the scores. An infinite one moves the scores of all its
        group just beyond 0, so that logits stay finite.
      group: int `[N]` in `[0, G)`.

    Returns:
      float `[..., N, 2]`: 0, and the moved score, positive exactly where score >= threshold.

    Raises:
      ValueError: as `apply_thresholds`.

    >>> logits, group = np.array([[0.0, 0.3], [0.0, 0.5]], np.float32), np.array([0, 0])
    >>> shift_logits(logits, np.array([0.5], np.float32), group=group).argmax(-1).tolist()
    [0, 1]
    """
    scores = jnp.asarray(logits)[..., 1] - jnp.asarray(logits)[..., 0]
    limits = _of_examples(thresholds, group).astype(scores.dtype)
    beyond = jnp.abs(scores).max(-1, keepdims=True) + 1.0
    moved = scores - jnp.where(jnp.isinf(limits), jnp.sign(limits) * beyond, limits)
    tiny = jnp.finfo(scores.dtype).tiny  # argmax takes class 0 where logits are equal
    moved = jnp.where(scores >= limits, jnp.maximum(moved, tiny), moved)
    return jnp.stack([jnp.zeros_like(moved), moved], axis=-1)


def _of_examples(thresholds: Array, group: Array) -> jax.Array:
    """The threshold of each example's group, `[..., N]`."""
    check_ids("group", group, thresholds.shape[-1])
    if not isinstance(thresholds, Tracer) and (gone := np.isnan(thresholds)).any():
        raise ValueError(f"thresholds must be numbers or inf, {gone.sum()} of {gone.size} are nan")
    return jnp.take(jnp.asarray(thresholds), jnp.asarray(group), axis=-1)
