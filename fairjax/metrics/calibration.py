"""How honest the predicted probabilities are: expected calibration error and Brier score."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Integer

from fairjax.metrics.counts import (
    Array,
    Ids,
    Weights,
    check_examples,
    device_logits,
    divide,
    example_weights,
    finite_sums,
    group_sums,
    mark,
    unmark,
    weigh,
)
from fairjax.metrics.outputs import Logits, Probs, logits_of


def calibration_terms(
    logits: Float[jax.Array, "N K"], *, labels: Int[jax.Array, " N"], num_bins: int
) -> tuple[Float[jax.Array, " N"], Int[jax.Array, " N"]]:
    """Confidence minus correctness `[N]`, and the confidence bin int32 `[N]` of each example."""
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, got {num_bins}")
    confidence = jax.nn.softmax(logits).max(-1)
    correct = (logits.argmax(-1) == labels).astype(jnp.float32)
    bins = jnp.clip(jnp.ceil(confidence * num_bins) - 1, 0, num_bins - 1)
    return confidence - correct, bins.astype(jnp.int32)


def binned_errors(
    excess: Float[jax.Array, " N"],
    bins: Int[jax.Array, " N"],
    weights: Float[jax.Array, " N"],
    group: Integer[Array, " N"],
    num_groups: int,
    num_bins: int,
) -> tuple[Float[jax.Array, " G"], Float[jax.Array, ""]]:
    """ECE of each group `[G]` and of everyone, from `calibration_terms`: the sum over bins of
    |weighted excess|, over n."""
    excess = mark(weigh(excess, weights), jnp.isnan(excess) & (weights > 0))
    values = jax.nn.one_hot(bins, num_bins) * excess[:, None]
    values = jnp.concatenate([values, weights[:, None]], axis=1)
    sums = finite_sums(values, group=group, num_groups=num_groups)
    sums = jnp.concatenate([sums, sums.sum(0, keepdims=True)])
    errors = divide(unmark(jnp.abs(sums[:, :-1]).sum(-1)), sums[:, -1])
    return errors[:-1], errors[-1]


def group_calibration_error(
    logits: Logits | None = None,
    *,
    probs: Probs | None = None,
    labels: Ids,
    group: Ids,
    num_groups: int,
    num_bins: int = 15,
    weights: Weights | None = None,
) -> Float[jax.Array, " G"]:
    """Expected calibration error within each group, `[G]`; nan for an empty group
    and for one with a row of logits that holds nan, inf or nothing but -inf.

    In [0, 1], 0 is calibrated. The mean gap between confidence (largest softmax probability) and
    accuracy over equal-width bins `(low, high]`, each weighted by its examples. Small groups read
    high: with n examples even perfect probabilities give about sqrt(num_bins / n).

    Args:
      logits: float `[N, K]`; or instead of them
      probs: float `[N]`, the probability of class 1, or `[N, K]`, of every class.
      labels: int `[N]`.
      group: int `[N]` in `[0, G)`.
      num_groups: G.
      num_bins: number of bins; 10 and 15 are usual.
      weights: float `[N]`, 0 for padding; ones if None.

    Returns:
      float32 `[G]`. Safe under jit and vmap.

    Raises:
      ValueError: shapes or dtypes do not fit, lengths differ or are 0, an id that is not traced is
        out of range, `logits` are probabilities, or `num_bins` is below 1.

    Source: Guo et al. 2017, equation 3.
    """
    given = logits_of(logits, probs, num_classes=None, weights=weights)
    _, labels, group, weights = check_examples(
        num_groups=num_groups, logits=given, labels=labels, group=group, weights=weights
    )
    given, labels = device_logits(given), jnp.asarray(labels).astype(jnp.int32)
    weights = example_weights(weights, len(labels))
    excess, bins = calibration_terms(given, labels=labels, num_bins=num_bins)
    return binned_errors(excess, bins, weights, jnp.asarray(group), num_groups, num_bins)[0]


def expected_calibration_error(
    logits: Logits | None = None,
    *,
    probs: Probs | None = None,
    labels: Ids,
    num_bins: int = 15,
    weights: Weights | None = None,
) -> Float[jax.Array, ""]:
    """Expected calibration error of everyone, a scalar; see `group_calibration_error`."""
    group = np.zeros(len(labels), np.int32)
    options: dict[str, Any] = {"num_groups": 1, "num_bins": num_bins, "weights": weights}
    return group_calibration_error(logits, probs=probs, labels=labels, group=group, **options)[0]


def group_brier_score(
    logits: Logits | None = None,
    *,
    probs: Probs | None = None,
    labels: Ids,
    group: Ids,
    num_groups: int,
    weights: Weights | None = None,
) -> Float[jax.Array, " G"]:
    """Mean squared error of the probabilities within each group, `[G]`; nan for an empty group
    and for one with a row of logits that holds nan, inf or nothing but -inf.

    0 is perfect. For two classes (p - label)^2 in [0, 1]; for more the sum over classes, in
    [0, 2].

    Args:
      logits: float `[N, K]`; or instead of them
      probs: float `[N]`, the probability of class 1, or `[N, K]`, of every class.
      labels: int `[N]`.
      group: int `[N]` in `[0, G)`.
      num_groups: G.
      weights: float `[N]`, 0 for padding; ones if None.

    Returns:
      float32 `[G]`. Safe under jit and vmap.

    Raises:
      ValueError: shapes or dtypes do not fit, lengths differ or are 0, an id that is not traced is
        out of range, or `logits` are probabilities.

    Source: Brier 1950; same scale as `sklearn.metrics.brier_score_loss`.
    """
    given = logits_of(logits, probs, num_classes=None, weights=weights)
    _, labels, group, weights = check_examples(
        num_groups=num_groups, logits=given, labels=labels, group=group, weights=weights
    )
    given, labels = device_logits(given), jnp.asarray(labels).astype(jnp.int32)
    weights = example_weights(weights, len(labels))
    num_classes = given.shape[-1]
    error = jax.nn.softmax(given) - jax.nn.one_hot(labels, num_classes)
    squared = jnp.square(error).sum(-1) * (0.5 if num_classes == 2 else 1.0)
    total, n = group_sums(
        jnp.stack([weigh(squared, weights), weights], axis=1), group=group, num_groups=num_groups
    ).T
    return divide(total, n)


def brier_score(
    logits: Logits | None = None,
    *,
    probs: Probs | None = None,
    labels: Ids,
    weights: Weights | None = None,
) -> Float[jax.Array, ""]:
    """Brier score of everyone, a scalar; see `group_brier_score`."""
    group = np.zeros(len(labels), np.int32)
    options: dict[str, Any] = {"num_groups": 1, "weights": weights}
    return group_brier_score(logits, probs=probs, labels=labels, group=group, **options)[0]
