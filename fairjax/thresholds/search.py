"""The best combination of points within a window of rates, for one candidate; no grid but one."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from fairjax.metrics.counts import divide
from fairjax.metrics.rates import group_min, rate_difference
from fairjax.thresholds.points import OperatingPoints

CRITERIA = ("demographic_parity", "equal_opportunity", "equalized_odds", "worst_group_recall")
NUM_LEVELS = 128
_ROUNDING = 1e-6  # of rates in float32: a gap counts as within its bound up to this
_SAME_GAP = 1e-4  # to this the smallest gap is found: a hundredth of what a split can show


class GroupThresholds(NamedTuple):
    """Chosen thresholds, and what they do on the examples that they were chosen on."""

    thresholds: Float[jax.Array, "*axes G"]
    """A group's examples are selected where score >= threshold."""
    gap: Float[jax.Array, "*axes"]
    """Of the criterion; for "worst_group_recall" 1 - the lowest recall."""
    accuracy: Float[jax.Array, "*axes"]


class Search:
    """One candidate's operating points, prepared for questions about runs of thresholds."""

    def __init__(self, points: OperatingPoints):
        self.points = points
        self.num_groups, self.num_points = points.valid.shape
        self.correct = jnp.where(points.valid, points.correct.astype(jnp.float32), -jnp.inf)
        self.table = _range_table(self.correct)
        true, false = points.true_positives, points.false_positives
        self.selected = _Rate(true + false, points.num_positives + points.num_negatives)
        self.true = _Rate(true, points.num_positives)
        self.false = _Rate(false, points.num_negatives)

    def most_accurate(self, criterion, max_gap):
        """Index `[G]` of the points of highest accuracy within the gap; always reached."""
        windows = [self._one_rate(self.selected), self._one_rate(self.true)]
        windows += [self._odds, lambda gap: self.true.runs(1.0 - gap[None], jnp.ones(1))]
        branches = [lambda gap, window=window: self._best(*window(gap)) for window in windows]
        return jax.lax.switch(criterion, branches, max_gap), jnp.bool_(True)

    def smallest_gap(self, criterion, min_accuracy):
        """Index `[G]` of the points of smallest gap that are accurate enough, and if there are."""
        total = (self.points.num_positives + self.points.num_negatives).sum().astype(jnp.float32)
        enough = (min_accuracy - _ROUNDING) * total

        def attempt(gap):
            index, _ = self.most_accurate(criterion, gap)
            return index, self._pick(self.correct, index).sum() >= enough

        def narrow(state):
            low, high, best = state
            # A gap of 0 is tried first: no half-way point ever gets there.
            middle = jnp.where(low < 0, 0.0, (low + high) / 2)
            index, reached = attempt(middle)
            own = jnp.minimum(self._gap(index, criterion), middle)
            low, high = jnp.where(reached, low, middle), jnp.where(reached, own, high)
            return low, high, jnp.where(reached, index, best)

        index, reached = attempt(jnp.float32(1.0))
        start = (jnp.float32(-1.0), self._gap(index, criterion), index)
        start = (jnp.where(reached, start[0], start[1]), *start[1:])
        _, _, index = jax.lax.while_loop(
            lambda state: (state[1] > 0) & (state[1] - state[0] > _SAME_GAP), narrow, start
        )
        return index, reached

    def describe(self, index, criterion, reached) -> GroupThresholds:
        """The thresholds of a choice `[G]`, its gap and its accuracy; nan unless reached."""
        points = self.points
        total = (points.num_positives + points.num_negatives).sum().astype(jnp.float32)
        found = GroupThresholds(
            self._pick(points.thresholds, index),
            self._gap(index, criterion),
            divide(self._pick(self.correct, index).sum(), total),
        )
        defined = reached & ~jnp.isnan(found.gap) & ~jnp.isnan(found.thresholds).any()
        return jax.tree.map(lambda x: jnp.where(defined, x, jnp.nan), found)

    def _pick(self, values, index):
        return jnp.take_along_axis(values, index[:, None], axis=1)[:, 0]

    def _gap(self, index, criterion):
        selected, true, false = (
            divide(self._pick(rate.counts, index).astype(jnp.float32), rate.total)
            for rate in (self.selected, self.true, self.false)
        )
        # Unlike in a metric, a group that cannot be compared is not left out.
        spread = [
            jnp.where(jnp.isnan(rates).any(), jnp.nan, rate_difference(rates))
            for rates in (selected, true, false)
        ]
        recall = jnp.where(jnp.isnan(true).any(), jnp.nan, 1.0 - group_min(true))
        gaps = [spread[0], spread[1], jnp.maximum(spread[1], spread[2]), recall]
        return jnp.stack(gaps)[criterion]

    def _best(self, first, last):
        """Of W windows, each a run `first..last [W, G]` per group, the best one's points."""
        window = _range_max(self.table, first, last).sum(1).argmax()
        place = jnp.arange(self.num_points)[None]
        inside = (place >= first[window][:, None]) & (place <= last[window][:, None])
        return jnp.where(inside, self.correct, -jnp.inf).argmax(1)

    def _one_rate(self, rate: "_Rate"):
        """Windows of one rate: they start at every rate that a group can have."""

        def windows(gap):
            low = rate.levels().ravel()
            return rate.runs(low, low + gap)

        return windows

    def _odds(self, gap):
        """Windows of both rates."""
        if self.num_groups == 2:  # around every point of the first group
            place = jnp.arange(self.num_points)
            sides = []
            for rate in (self.true, self.false):
                own = divide(rate.counts[0].astype(jnp.float32), rate.total[0])
                sides.append(rate.runs(own - gap, own + gap))
            first = jnp.maximum(sides[0][0], sides[1][0])
            last = jnp.minimum(sides[0][1], sides[1][1])
            return first.at[:, 0].set(place), last.at[:, 0].set(place)
        sides = []
        for rate in (self.true, self.false):
            low = rate.some_levels()
            sides.append(rate.runs(low, low + gap))
        first = jnp.maximum(sides[0][0][:, None], sides[1][0][None])
        last = jnp.minimum(sides[0][1][:, None], sides[1][1][None])
        return first.reshape(-1, self.num_groups), last.reshape(-1, self.num_groups)


class _Rate:
    """A rate that rises from point to point: which points have it within given bounds?"""

    def __init__(self, counts: jax.Array, total: jax.Array):
        self.counts, self.total = counts, total.astype(jnp.float32)
        num_groups, num_points = counts.shape
        # reached[g, k]: the first point with at least k hits; num_points if there is none.
        place = jnp.broadcast_to(jnp.arange(num_points, dtype=jnp.int32)[None], counts.shape)
        new = jnp.diff(counts, axis=1, prepend=-1) > 0
        target = jnp.where(new, counts, num_points + 1)
        reached = jnp.full((num_groups, num_points + 1), num_points, jnp.int32)
        self.reached = jax.vmap(lambda a, k, j: a.at[k].set(j, mode="drop"))(reached, target, place)

    def levels(self) -> jax.Array:
        """Every value the rate can have, `[G, T]`; those beyond 1 repeat 1."""
        hits = jnp.arange(self.counts.shape[1], dtype=jnp.float32)[None]
        return divide(jnp.minimum(hits, self.total[:, None]), self.total[:, None])

    def some_levels(self) -> jax.Array:
        """At most `NUM_LEVELS` of the groups' values together, evenly through their order."""
        hits = jnp.arange(self.counts.shape[1], dtype=jnp.float32)[None]
        levels = jnp.where(hits <= self.total[:, None], self.levels(), jnp.inf).ravel()
        num_levels = min(NUM_LEVELS, levels.shape[0])
        share = jnp.linspace(0.0, 1.0, num_levels) * (self.total + 1).sum() - 0.5
        return jnp.sort(levels)[
            jnp.clip(jnp.round(share), 0, (self.total + 1).sum() - 1).astype(int)
        ]

    def runs(self, low: jax.Array, high: jax.Array) -> tuple[jax.Array, jax.Array]:
        """First and last point of each group with `low <= rate <= high [W]`; int32 `[W, G]`."""
        total, num_points = self.total[None], self.counts.shape[1]
        fewest = jnp.ceil((low[:, None] - _ROUNDING) * total)
        most = jnp.floor((high[:, None] + _ROUNDING) * total)
        group = jnp.arange(total.shape[1])[None]
        first = self.reached[group, jnp.clip(fewest, 0, num_points).astype(jnp.int32)]
        beyond = self.reached[group, jnp.clip(most + 1, 0, num_points).astype(jnp.int32)]
        return first, beyond - 1


def _range_table(values: jax.Array) -> jax.Array:
    """Maxima of all runs whose length is a power of two, `[L, G, T]`: the l-th has runs of 2^l."""
    rows, length = [values], 1
    while 2 * length <= values.shape[1]:
        shifted = jnp.pad(rows[-1][:, length:], ((0, 0), (0, length)), constant_values=-jnp.inf)
        rows.append(jnp.maximum(rows[-1], shifted))
        length *= 2
    return jnp.stack(rows)


def _range_max(table: jax.Array, first: jax.Array, last: jax.Array) -> jax.Array:
    """Maxima of the runs `first..last [W, G]` (both inclusive); -inf for empty ones."""
    length = last - first + 1
    level = 31 - jax.lax.clz(jnp.maximum(length, 1))
    group = jnp.arange(first.shape[1])[None]
    start = jnp.minimum(first, table.shape[2] - 1)
    end = jnp.maximum(last - (1 << level) + 1, 0)
    best = jnp.maximum(table[level, group, start], table[level, group, end])
    return jnp.where(length > 0, best, -jnp.inf)
