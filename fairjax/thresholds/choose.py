"""Thresholds per group by accuracy and by a criterion of fairness."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Float, Integer

from fairjax.data import Dataset
from fairjax.metrics.counts import Array, check_choice
from fairjax.thresholds.apply import shift_logits
from fairjax.thresholds.points import check, points_of
from fairjax.thresholds.search import CRITERIA, GroupThresholds, Search


def group_thresholds(
    scores: Float[Array, "*axes N"],
    *,
    labels: Integer[Array, " N"],
    group: Integer[Array, " N"],
    num_groups: int,
    criterion: str | Sequence[Any] | np.ndarray,
    max_gap: float | Array | None = None,
    min_accuracy: float | Array | None = None,
) -> GroupThresholds:
    """The most accurate thresholds within a gap, or the smallest gap at an accuracy.

    All combinations of thresholds are considered, so that no other choice is better: exact for
    "demographic_parity" (largest difference of selection rates), "equal_opportunity" (of
    true-positive rates) and "worst_group_recall" (1 - the lowest true-positive rate) with any
    number of groups, and for "equalized_odds" (the larger gap of true- and false-positive rates)
    with two. With more groups equalized odds is exact where the groups have `NUM_LEVELS` different
    rates together; otherwise its windows start at `NUM_LEVELS` x `NUM_LEVELS` of them: the gap
    holds, the accuracy may fall a little short of the best. Choose on validation, judge on test.

    Args:
      scores: float `[..., N]`, one row per candidate; higher means class 1.
      labels: int `[N]`, 0 or 1.
      group: int `[N]` in `[0, G)`, G >= 2.
      num_groups: G.
      criterion: one of `CRITERIA`, or a name for each candidate, `[...]`.
      max_gap: highest gap, in [0, 1], one for all or `[...]`; the accuracy is made as high as it
        allows. A gap is within it up to 1e-6, the rounding of float32. At 0 groups of different
        sizes may leave nothing but to select nobody or everybody; allow one example's share.
      min_accuracy: lowest accuracy, one for all or `[...]`, such as that at one common threshold
        less what fairness may cost; the gap is made as small as it allows, to 1e-4.

    Returns:
      GroupThresholds, `[..., G]` and `[...]`. Of equally good choices any one. Safe under jit and
      vmap, where what is undefined or cannot be reached is nan.

    Raises:
      ValueError: as `operating_points`; not exactly one of `max_gap` and `min_accuracy`; an
        unknown criterion; fewer than two groups; a group lacks the examples that the criterion
        needs; no thresholds reach `min_accuracy`.

    Source: Hardt et al. 2016, section 3.2, without randomisation.

    >>> labels, group = np.array([0, 1, 0, 1, 0, 1]), np.array([0, 0, 0, 1, 1, 1])
    >>> scores = np.array([0.1, 0.9, 0.2, 0.3, 0.6, 0.7], np.float32)
    >>> settings = {"labels": labels, "group": group, "num_groups": 2}
    >>> found = group_thresholds(scores, **settings, criterion="equal_opportunity", max_gap=0.0)
    >>> round(float(found.accuracy), 3), found.gap.item()
    (0.833, 0.0)
    """
    if (max_gap is None) == (min_accuracy is None):
        raise ValueError("give max_gap or min_accuracy, exactly one of them")
    axes, arrays = _prepare(scores, labels, group, num_groups, criterion)
    limit = jnp.broadcast_to(
        jnp.asarray(max_gap if min_accuracy is None else min_accuracy, jnp.float32), axes
    )
    found = _map_choices(*arrays, limit[..., None], by_gap=min_accuracy is None)
    found = jax.tree.map(lambda x: jnp.squeeze(x, axis=len(axes)), found)
    if not isinstance(found.gap, Tracer) and (short := np.isnan(found.gap)).any():
        raise ValueError(
            f"no thresholds reach min_accuracy {np.asarray(limit)[short].ravel()[0]:.4f}; "
            f"{short.sum()} of {short.size} candidates fall short, ask for less"
        )
    return found


def frontier(
    scores: Float[Array, "*axes N"],
    *,
    labels: Integer[Array, " N"],
    group: Integer[Array, " N"],
    num_groups: int,
    criterion: str | Sequence[Any] | np.ndarray,
    max_gaps: Float[Array, " B"],
) -> GroupThresholds:
    """Accuracy against a criterion's gap: the best thresholds at each of B bounds.

    Every point is a choice that no other one beats in both, as exactly as `group_thresholds`
    says; between the bounds there may be more of them. A bound that gains no accuracy repeats the
    choice of smallest gap that has this accuracy.

    Args:
      scores: float `[..., N]`, one row per candidate; higher means class 1.
      labels: int `[N]`, 0 or 1.
      group: int `[N]` in `[0, G)`, G >= 2.
      num_groups: G.
      criterion: one of `CRITERIA`, or a name for each candidate, `[...]`.
      max_gaps: float `[B]`, highest gaps in [0, 1], such as `np.linspace(0, 0.2, 21)`.

    Returns:
      GroupThresholds with `[..., B, G]` thresholds and `[..., B]` gaps and accuracies.

    Raises:
      ValueError: as `group_thresholds`.
    """
    axes, arrays = _prepare(scores, labels, group, num_groups, criterion)
    limits = jnp.broadcast_to(jnp.asarray(max_gaps, jnp.float32), (*axes, len(max_gaps)))
    found = _map_choices(*arrays, limits, by_gap=True)
    as_good = found.accuracy[..., None, :] >= found.accuracy[..., :, None]
    best = jnp.where(as_good, found.gap[..., None, :], jnp.inf).argmin(-1)
    return GroupThresholds(
        jnp.take_along_axis(found.thresholds, best[..., None], axis=-2),
        jnp.take_along_axis(found.gap, best, axis=-1),
        jnp.take_along_axis(found.accuracy, best, axis=-1),
    )


def match_accuracy(
    plain: Float[Array, "S N 2"],
    rival: Float[Array, "S N 2"],
    *,
    labels: Integer[Array, " N"],
    group: Integer[Array, " N"],
    num_groups: int,
    criterion: str,
) -> Float[Array, "S G"]:
    """Thresholds on one method's scores that are as accurate as another method.

    Of all that reach the rival's accuracy, or their own at one common threshold if that is lower,
    those of smallest gap: what the rival has to beat.

    Args:
      plain: logits `[S, N, 2]` of S networks on validation examples.
      rival: logits `[S, N, 2]` of the others on the same.
      labels: int `[N]`, 0 or 1.
      group: int `[N]` in `[0, G)`.
      num_groups: G.
      criterion: one of `CRITERIA`.

    Returns:
      float `[S, G]`, for `shift_logits` of the plain ones.

    Raises:
      ValueError: as `group_thresholds`.
    """
    accuracy = lambda logits: (np.asarray(logits).argmax(-1) == np.asarray(labels)).mean(-1)
    return group_thresholds(
        plain[..., 1] - plain[..., 0],
        labels=labels,
        group=group,
        num_groups=num_groups,
        criterion=criterion,
        min_accuracy=np.minimum(accuracy(plain), accuracy(rival)),
    ).thresholds


def thresholds_after(
    val: Float[Array, "S M 2"],
    test: Float[Array, "S N 2"],
    data: Dataset,
    *,
    criterion: str = "equalized_odds",
) -> np.ndarray:
    """Test logits of trained networks with thresholds per group, chosen on validation.

    The smallest gap at the accuracy that the networks have on validation without.

    Args:
      val: logits `[S, M, 2]` of S networks on the set's validation split.
      test: logits `[S, N, 2]` of the same on its test split.
      data: two classes.
      criterion: one of `CRITERIA`.

    Returns:
      float32 `[S, N, 2]`, as `shift_logits`.

    Raises:
      ValueError: as `group_thresholds`.

    >>> from fairjax.data import load_adult
    >>> data = load_adult("sex")
    >>> val, test = (np.eye(2)[data.examples(split).labels][None] for split in ("val", "test"))
    >>> bool((thresholds_after(val, test, data).argmax(-1) == test.argmax(-1)).all())
    True
    """
    val, test = np.asarray(val), np.asarray(test)
    rows, tested = data.splits["val"], data.splits["test"]
    ids = {"labels": data.labels[rows], "group": data.group[rows]}
    chosen = match_accuracy(val, val, **ids, num_groups=data.num_groups, criterion=criterion)
    return np.asarray(shift_logits(test, chosen, group=data.group[tested]), np.float32)


@functools.partial(jax.jit, static_argnames="by_gap")
def _map_choices(scores, labels, members, inside, criterion, limits, *, by_gap):
    """Choices for each candidate and each of its limits `[..., B]`, one candidate after another."""

    def one(candidate):
        row, criterion, limits = candidate
        points = points_of(row, labels, members, inside)
        search = Search(points)
        rule = search.most_accurate if by_gap else search.smallest_gap
        index, reached = jax.lax.map(lambda limit: rule(criterion, limit), limits)
        return jax.vmap(lambda each, ok: search.describe(each, criterion, ok))(index, reached)

    axes, size = scores.shape[:-1], scores.shape[-1]
    flat = (scores.reshape(-1, size), criterion.reshape(-1), limits.reshape(-1, limits.shape[-1]))
    found = jax.lax.map(one, flat)
    return jax.tree.map(lambda x: x.reshape(*axes, *x.shape[1:]), found)


def _prepare(scores, labels, group, num_groups, criterion):
    """The axes of the candidates, and all arguments of `_map_choices` but the last."""
    layout = check(scores, labels, group, num_groups)
    if num_groups < 2:
        raise ValueError(f"thresholds per group need at least two groups, got {num_groups}")
    names = np.asarray(criterion)
    for name in np.unique(names):
        check_choice("criterion", str(name), CRITERIA)
        _check_defined(str(name), labels, group, num_groups)
    axes = scores.shape[:-1]
    if names.ndim and names.shape != axes:
        raise ValueError(f"criterion must be one name or {axes} of them, got {names.shape}")
    index = sum(i * (names == name).astype(np.int32) for i, name in enumerate(CRITERIA))
    index = jnp.asarray(np.broadcast_to(index, axes))
    return axes, (jnp.asarray(scores, jnp.float32), jnp.asarray(labels), *layout, index)


def _check_defined(criterion: str, labels: Array, group: Array, num_groups: int) -> None:
    """Raise ValueError where a group lacks the examples that a criterion compares."""
    if isinstance(labels, Tracer) or isinstance(group, Tracer):
        return
    cells = np.bincount(2 * np.asarray(group) + np.asarray(labels), minlength=2 * num_groups)
    cells = cells.reshape(num_groups, 2)
    needs = {
        "demographic_parity": {"examples": cells.sum(1)},
        "equalized_odds": {"positives": cells[:, 1], "negatives": cells[:, 0]},
    }
    for what, counts in needs.get(criterion, {"positives": cells[:, 1]}).items():
        if (empty := np.flatnonzero(counts == 0)).size:
            raise ValueError(
                f"{criterion} is undefined: group {', '.join(map(str, empty))} has no {what}; "
                "merge groups or choose another criterion"
            )
