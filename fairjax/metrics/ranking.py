"""ROC AUC, exact and tie-aware: sort once, then weighted cumulative sums for any weights."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Real

from fairjax.metrics.counts import (
    Array,
    Column,
    Ids,
    Weights,
    check_examples,
    divide,
    example_weights,
    finite_sums,
    is_wide,
    mark,
    unmark,
)

Scores = Real[Array, " N"] | Real[Array, "N K"] | Sequence[float] | Column
"""Higher means class 1 `[N]`, or one column per class `[N, K]`."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RankedScores:
    """Examples in the order of (group, score), for each of C scored classes.

    Attributes:
      order: int32 `[C, N]`, example numbers by group, then by rising score.
      positive: bool `[C, N]`, whether the example at that place belongs to the class.
      is_nan: bool `[C, N]`, whether its score is nan.
      tie_start, tie_end: int32 `[C, N]`, the run of equal scores around that place.
      group: int32 `[N]`, the group at that place, the same for every class.
      group_start: int32 `[N]`, where that group begins.
      num_groups: G.
    """

    order: jax.Array
    positive: jax.Array
    is_nan: jax.Array
    tie_start: jax.Array
    tie_end: jax.Array
    group: jax.Array
    group_start: jax.Array
    num_groups: int = dataclasses.field(metadata={"static": True})


def runs(values: jax.Array, *more: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Start and end (exclusive) of the run of equal neighbours around each place, `[N]` each."""
    n = values.shape[0]
    place = jnp.arange(n, dtype=jnp.int32)
    changes = values[1:] != values[:-1]
    for other in more:
        changes |= other[1:] != other[:-1]
    edge = jnp.ones(1, bool)
    first = jnp.concatenate([edge, changes])
    last = jnp.concatenate([changes, edge])
    start = jax.lax.cummax(jnp.where(first, place, 0))
    end = jax.lax.cummin(jnp.where(last, place + 1, n), reverse=True)
    return start, end


def ordered(scores: Any, axis: int) -> jax.Array:
    """Scores on the device in the order that they have, of their column along `axis`.

    Wide numbers of NumPy, float64 and int64, come as float32 ranks (exact for 2^24 different
    scores): cast to float32, scores near 1 or of large size would tie. nan stays nan.
    """
    if not is_wide(scores):
        return jnp.asarray(scores)
    columns = np.moveaxis(scores, axis, -1)
    ranks = np.empty(columns.shape, np.float32)
    for column in np.ndindex(columns.shape[:-1]):
        ranks[column] = np.unique(columns[column], return_inverse=True)[1]
    ranks[np.isnan(columns)] = np.nan
    return jnp.asarray(np.moveaxis(ranks, -1, axis))


def rank_scores(
    scores: Scores,
    *,
    labels: Ids,
    group: Ids | None = None,
    num_groups: int = 1,
) -> RankedScores:
    """Sort scores once, so that `ranked_auc` needs no sort for each set of weights.

    Args:
      scores: float `[N]`, higher means class 1, or `[N, K]`, one column per class. NumPy's float64
        is ranked as such; inf is the highest score, -inf the lowest.
      labels: int `[N]`, 0 or 1 for `[N]` scores; in `[0, K)` for `[N, K]`, class k is positive for
        column k.
      group: int `[N]` in `[0, G)`; everyone in one group if None.
      num_groups: G.

    Returns:
      RankedScores with C = 1 or K. One sort per class, however many groups.

    Raises:
      ValueError: shapes or dtypes do not fit, lengths differ or are 0, or labels or groups that
        are not traced are out of range.
    """
    scores, labels, group = check_examples(
        num_groups=num_groups, scores=scores, labels=labels, group=group
    )
    return rank_checked(ordered(scores, axis=0), labels, group, num_groups)


def rank_checked(scores: jax.Array, labels: Any, group: Any, num_groups: int) -> RankedScores:
    """`rank_scores` of what is known to fit."""
    labels = jnp.asarray(labels)
    group = jnp.zeros(labels.shape, jnp.int32) if group is None else jnp.asarray(group)
    columns = scores[None] if scores.ndim == 1 else scores.T
    classes = jnp.arange(1, 2) if scores.ndim == 1 else jnp.arange(scores.shape[1])
    # An id outside [0, G) goes to an extra last group that no sum looks at.
    group = jnp.where((group >= 0) & (group < num_groups), group, num_groups).astype(jnp.int32)
    sorted_group = jnp.sort(group)
    group_start, _ = runs(sorted_group)

    def rank(column, positive):
        order = jnp.argsort(column).astype(jnp.int32)
        if num_groups > 1:
            order = _stable_partition(order, group[order], num_groups + 1)
        column = column[order]
        tie_start, tie_end = runs(column, sorted_group)
        return order, positive[order], jnp.isnan(column), tie_start, tie_end

    ranked = jax.vmap(rank)(columns, labels.astype(jnp.int32)[None] == classes[:, None])
    return RankedScores(*ranked, sorted_group, group_start, num_groups)


def _stable_partition(order: jax.Array, group: jax.Array, num_groups: int) -> jax.Array:
    """Bring `order [N]` into rising `group [N]`, stable inside a group, without a second sort."""
    one_hot = jax.nn.one_hot(group, num_groups, dtype=jnp.int32)
    before = jnp.cumsum(one_hot, axis=0) - 1
    sizes = before[-1] + 1
    place = jnp.cumsum(sizes) - sizes
    target = (one_hot * (before + place[None, :])).sum(1)
    return jnp.zeros_like(order).at[target].set(order, unique_indices=True)


def ranked_auc(ranked: RankedScores, weights: Weights | None = None) -> Float[jax.Array, " G"]:
    """Area under the ROC curve per group, from scores that are already sorted.

    In [0, 1], 0.5 is chance; ties count half. nan for a group that lacks positives or negatives
    and for one that holds a score that is nan and has weight. For several classes the mean over
    the classes that have both sides in the group (one-vs-rest macro).

    Args:
      ranked: see `rank_scores`.
      weights: float `[N]`, multiplicities in the original example order; ones if None.

    Returns:
      float32 `[G]`, within about 1e-7 for whole-number weights with a sum below 2^24. Fractional
      weights lose accuracy in proportion to the total weight over the group's.
    """
    # as `scores`, for their groups were looked at, and may hold G where they are traced
    _, weights = check_examples(scores=ranked.group, weights=weights)
    weights = example_weights(weights, len(ranked.group))

    def one_class(order, positive, is_nan, tie_start, tie_end):
        w = weights.at[order].get(mode="promise_in_bounds", unique_indices=True)
        w_pos, w_neg = jnp.where(positive, w, 0.0), jnp.where(positive, 0.0, w)
        below = jnp.concatenate([jnp.zeros(1, jnp.float32), jnp.cumsum(w_neg)])
        at_start = below.at[tie_start].get(mode="promise_in_bounds")
        at_end = below.at[tie_end].get(mode="promise_in_bounds")
        at_group = below.at[ranked.group_start].get(mode="promise_in_bounds")
        # Differences of whole numbers are exact; only the products below are rounded.
        beaten = (at_start - at_group) + 0.5 * (at_end - at_start)
        wins = mark(w_pos * beaten, is_nan & (w > 0))
        values = jnp.stack([wins, w_pos, w_neg], axis=1)
        wins, num_pos, num_neg = finite_sums(
            values, group=ranked.group, num_groups=ranked.num_groups
        ).T
        return divide(divide(wins, num_pos), num_neg), jnp.isnan(unmark(wins))

    auc, unknown = jax.vmap(one_class)(
        ranked.order, ranked.positive, ranked.is_nan, ranked.tie_start, ranked.tie_end
    )
    defined = ~jnp.isnan(auc)
    mean = divide(jnp.where(defined, auc, 0.0).sum(0), defined.sum(0).astype(jnp.float32))
    return jnp.where(unknown.any(0), jnp.nan, mean)


def roc_auc(scores: Scores, *, labels: Ids, weights: Weights | None = None) -> Float[jax.Array, ""]:
    """Area under the ROC curve: how often a positive outscores a negative, ties counting half.

    In [0, 1], 0.5 is chance; nan if there are no positives or no negatives, or a score is nan.
    With `[N, K]` scores the one-vs-rest mean over the classes that have both sides.

    Args:
      scores: as `rank_scores`.
      labels: as `rank_scores`.
      weights: float `[N]`, 0 for padding; ones if None.

    Returns:
      Scalar float32. Safe under jit and vmap.

    Raises:
      ValueError: as `rank_scores`, or `weights` do not fit.

    Source: Mann and Whitney 1947; same value as `sklearn.metrics.roc_auc_score` (macro "ovr").

    >>> round(float(roc_auc(jnp.array([0.1, 0.4, 0.35, 0.8]), labels=jnp.array([0, 0, 1, 1]))), 2)
    0.75
    """
    scores, labels, weights = check_examples(scores=scores, labels=labels, weights=weights)
    return ranked_auc(rank_checked(ordered(scores, axis=0), labels, None, 1), weights)[0]


def group_auc(
    scores: Scores,
    *,
    labels: Ids,
    group: Ids,
    num_groups: int,
    weights: Weights | None = None,
) -> Float[jax.Array, " G"]:
    """ROC AUC within each group, `[G]`; nan for a group that lacks positives or negatives.

    Args:
      scores: as `rank_scores`.
      labels: as `rank_scores`.
      group: int `[N]` in `[0, G)`.
      num_groups: G.
      weights: float `[N]`, 0 for padding; ones if None.

    Returns:
      float32 `[G]` in [0, 1]; see `roc_auc`. Worst group: `group_min`; gap: `rate_difference`.

    Raises:
      ValueError: as `rank_scores`, or `weights` do not fit.

    >>> scores, ids = [0.1, 0.4, 0.8, 0.3], {"labels": [0, 1, 0, 1], "group": [0, 0, 1, 1]}
    >>> group_auc(scores, **ids, num_groups=2).tolist()
    [1.0, 0.0]
    """
    scores, labels, group, weights = check_examples(
        num_groups=num_groups, scores=scores, labels=labels, group=group, weights=weights
    )
    ranked = rank_checked(ordered(scores, axis=0), labels, group, num_groups)
    return ranked_auc(ranked, weights)
