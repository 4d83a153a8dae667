"""What every threshold of every group does: selection, hits and false alarms."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Bool, Float, Int, Integer

from fairjax.metrics.counts import Array, check_examples, divide


class OperatingPoints(NamedTuple):
    """What each group's thresholds do; point t of a group selects its t highest scores.

    T is the size of the largest group + 1, or N + 1 where `group` is traced.
    """

    thresholds: Float[jax.Array, "*axes G T"]
    """Half way between two scores; inf selects nobody and -inf everybody."""
    true_positives: Int[jax.Array, "*axes G T"]
    false_positives: Int[jax.Array, "*axes G T"]
    valid: Bool[jax.Array, "*axes G T"]
    """False where a threshold would have to part equal scores, and beyond the group's size."""
    num_positives: Int[jax.Array, "*axes G"]
    num_negatives: Int[jax.Array, "*axes G"]

    @property
    def selection_rate(self) -> jax.Array:
        """Selected share of each group, `[..., G, T]`."""
        return _share(
            self.true_positives + self.false_positives, self.num_positives + self.num_negatives
        )

    @property
    def true_positive_rate(self) -> jax.Array:
        """Selected share of the positives, `[..., G, T]`; nan for a group without."""
        return _share(self.true_positives, self.num_positives)

    @property
    def false_positive_rate(self) -> jax.Array:
        """Selected share of the negatives, `[..., G, T]`; nan for a group without."""
        return _share(self.false_positives, self.num_negatives)

    @property
    def correct(self) -> jax.Array:
        """How many examples of the group are taken for what they are, int32 `[..., G, T]`."""
        return self.true_positives + self.num_negatives[..., None] - self.false_positives


def _share(counts: jax.Array, total: jax.Array) -> jax.Array:
    return divide(counts.astype(jnp.float32), total.astype(jnp.float32)[..., None])


def operating_points(
    scores: Float[Array, "*axes N"],
    *,
    labels: Integer[Array, " N"],
    group: Integer[Array, " N"],
    num_groups: int,
) -> OperatingPoints:
    """What every different threshold does in each group, for all candidates at once.

    Args:
      scores: float `[..., N]`, one row per candidate; higher means class 1.
      labels: int `[N]`, 0 or 1.
      group: int `[N]` in `[0, G)`.
      num_groups: G.

    Returns:
      OperatingPoints, exact: nothing is put on a grid. Safe under jit and vmap, where scores that
      are nan or inf give nan thresholds.

    Raises:
      ValueError: shapes or dtypes do not fit, labels are not 0 and 1, a group is outside
        `[0, G)`, or a score is nan or inf; values are looked at where they are not traced.

    >>> ids = np.array([0, 1, 0, 1])
    >>> scores = np.array([0.1, 0.4, 0.35, 0.8], np.float32)
    >>> points = operating_points(scores, labels=ids, group=ids * 0, num_groups=1)
    >>> points.correct.tolist(), points.thresholds[0, 2].item()
    ([[2, 3, 4, 3, 2]], 0.375)
    """
    layout = check(scores, labels, group, num_groups)
    return _map_points(jnp.asarray(scores, jnp.float32), jnp.asarray(labels), *layout)


@jax.jit
def _map_points(scores, labels, members, inside):
    flat = scores.reshape(-1, scores.shape[-1])
    points = jax.lax.map(lambda row: points_of(row, labels, members, inside), flat)
    return jax.tree.map(lambda x: x.reshape(*scores.shape[:-1], *x.shape[1:]), points)


def points_of(
    scores: jax.Array, labels: jax.Array, members: jax.Array, inside: jax.Array
) -> OperatingPoints:
    """The operating points of one candidate; `members`, `inside`: see `arrange`."""
    negated = jnp.where(inside, -scores[members], jnp.inf)
    positive = ((labels[members] == 1) & inside).astype(jnp.int32)
    negated, positive = jax.lax.sort((negated, positive), dimension=1, num_keys=1)
    falling = -negated
    size = inside.sum(1, dtype=jnp.int32)[:, None]
    place = jnp.arange(inside.shape[1] + 1, dtype=jnp.int32)[None]
    true_positives = jnp.pad(jnp.cumsum(positive, axis=1), ((0, 0), (1, 0)))
    upper = jnp.pad(falling, ((0, 0), (1, 0)), constant_values=jnp.inf)
    lower = jnp.pad(falling, ((0, 0), (0, 1)), constant_values=-jnp.inf)
    middle = upper / 2 + lower / 2
    middle = jnp.where(middle > lower, middle, upper)  # neighbours may have nothing between them
    thresholds = jnp.where(place >= size, -jnp.inf, middle)
    thresholds = jnp.where(place == 0, jnp.inf, thresholds)
    return OperatingPoints(
        thresholds=jnp.where(jnp.isfinite(scores).all(), thresholds, jnp.nan),
        true_positives=true_positives,
        false_positives=jnp.minimum(place, size) - true_positives,
        valid=(place == 0) | (place == size) | ((place < size) & (upper != lower)),
        num_positives=true_positives[:, -1],
        num_negatives=size[:, 0] - true_positives[:, -1],
    )


def arrange(group: Array, num_groups: int) -> tuple[jax.Array, jax.Array]:
    """Numbers of the examples of each group, int32 `[G, M]`, and which of these places exist."""
    if isinstance(group, Tracer):
        longest = group.shape[0]
    else:
        longest = int(np.bincount(np.asarray(group), minlength=num_groups).max())
    group = jnp.asarray(group)
    sizes = (group[None] == jnp.arange(num_groups, dtype=group.dtype)[:, None]).sum(1)
    order = jnp.argsort(jnp.where((group >= 0) & (group < num_groups), group, num_groups))
    place = jnp.arange(longest)[None]
    members = (jnp.cumsum(sizes) - sizes)[:, None] + place
    inside = place < sizes[:, None]
    return order[jnp.where(inside, members, 0)].astype(jnp.int32), inside


def check(
    scores: Array, labels: Array, group: Array, num_groups: int
) -> tuple[jax.Array, jax.Array]:
    """Refuse what has no operating points, else return `arrange(group)`.

    Raises:
      ValueError: see `operating_points`.
    """
    if scores.ndim < 1 or scores.size == 0:
        raise ValueError(f"scores must be [..., N] with no axis of length 0, got {scores.shape}")
    one = scores[(0,) * (scores.ndim - 1)]
    check_examples(num_groups=num_groups, scores=one, labels=labels, group=group)
    if not isinstance(scores, Tracer):
        wrong = int(np.sum(~np.isfinite(np.asarray(scores, np.float32)).all(-1)))
        if wrong:
            raise ValueError(
                f"scores must be finite, {wrong} of {scores[..., 0].size} candidates hold others"
            )
    return arrange(group, num_groups)


def check_ids(name: str, ids: Array, count: int) -> None:
    """Raise ValueError unless all ids lie in `[0, count)`; traced ones are not looked at."""
    if isinstance(ids, Tracer):
        return
    low, high = int(np.min(ids)), int(np.max(ids))
    if low < 0 or high >= count:
        raise ValueError(f"{name} must lie in [0, {count}), got {low} to {high}")
