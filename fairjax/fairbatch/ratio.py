"""The data-ratio step: fewer rows of some cells, so that label and group correlate as expected.

Roh, Lee, Whang, Suh: "Improving Fair Training under Correlation Shifts", ICML 2023.
"""

from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int32, Integer

from fairjax.sampling import check_ids


def data_ratio(
    *,
    labels: Integer[np.ndarray | Array, " N"],
    group: Integer[np.ndarray | Array, " N"],
    target_correlation: float = 0.0,
    gamma: float = 0.1,
) -> Float[np.ndarray, "2 2"]:
    """Shares of the four (label, group) cells, nearest to the data's, of another correlation.

    The correlation is P(label 1 | group 1) - P(label 1 | group 0). That expected at deployment is
    an assumption to state: 0 says that label and group have nothing to do with each other.

    Args:
      labels: training labels, 0 or 1.
      group: sensitive groups, 0 or 1.
      target_correlation: in (-1, 1).
      gamma: in [0, 2): P(label 1) and P(group 1) move by at most half of it each.

    Returns:
      float64 `[2, 2]` that sum to 1, `[label, group]`. Give them to `thin_rows`; or draw by
      `example_weights=(shares * N / counts)[labels, group]` from a sampler without cells, such as
      `sampling.shuffled`.

    Raises:
      ValueError: ids other than 0 and 1, an empty cell, numbers out of range, or no shares that
        have the correlation within `gamma`.

    Source: the paper's optimisation of the data ratio, by squared distance. The authors relax it to
    a semidefinite program; here P(label 1) has a closed form given P(group 1), which is searched.

    >>> labels, group = np.array([0, 0, 0, 1, 1, 1]), np.array([0, 0, 1, 0, 1, 1])
    >>> print(data_ratio(labels=labels, group=group).round(3).tolist())
    [[0.25, 0.25], [0.25, 0.25]]
    """
    from scipy.optimize import minimize_scalar

    counts = _cell_counts(labels, group)
    if not -1 < target_correlation < 1:
        raise ValueError(f"target_correlation must be in (-1, 1), got {target_correlation}")
    if not 0 <= gamma < 2:
        raise ValueError(f"gamma must be in [0, 2), got {gamma}")
    shares = counts / counts.sum()
    positive, member = shares[1].sum(), shares[:, 1].sum()

    def nearest(member):
        """Shares with this P(group 1), and their squared distance; inf if there are none."""
        # P(label 1) p gives [[1 - m, m] * (1 - p), [1 - m, m] * p] and the same swing on all four
        swing = target_correlation * member * (1 - member)
        sides = np.array([1 - member, member])
        base = np.array([sides, [0.0, 0.0]]) + swing * np.array([[1, -1], [-1, 1]])
        slope = np.array([-sides, sides])
        # where a cell is 0 as p moves, and the limits of P(label 1)
        low = max(*(-base[1] / sides), positive - gamma / 2)
        high = min(*(base[0] / sides), positive + gamma / 2)
        if low > high:
            return None, np.inf
        best = np.clip(np.sum(slope * (shares - base)) / np.sum(slope**2), low, high)
        found = np.maximum(base + best * slope, 0)
        return found, np.sum((found - shares) ** 2)

    low, high = max(member - gamma / 2, 1e-9), min(member + gamma / 2, 1 - 1e-9)
    grid = np.linspace(low, high, 201)
    start = grid[np.argmin([nearest(member)[1] for member in grid])]
    around = max(low, start - (high - low) / 200), min(high, start + (high - low) / 200)
    if around[0] < around[1]:
        closer: Any = minimize_scalar(
            lambda member: nearest(member)[1],
            bounds=around,
            method="bounded",
            options={"xatol": 1e-12},
        )
        start = min((start, closer.x), key=lambda member: nearest(member)[1])
    found, _ = nearest(start)
    if found is None:
        raise ValueError(
            f"no shares have a correlation of {target_correlation} with P(label 1) and P(group 1) "
            f"within {gamma / 2} of the data's {positive:.3f} and {member:.3f}: raise gamma"
        )
    return found


def thin_rows(
    shares: Float[np.ndarray, "2 2"],
    *,
    labels: Integer[np.ndarray | Array, " N"],
    group: Integer[np.ndarray | Array, " N"],
    seed: int = 0,
) -> Int32[np.ndarray, " n"]:
    """As many rows as there can be with these shares of the cells, none twice, in random order.

    Args:
      shares: `[2, 2]` as from `data_ratio`.
      labels: training labels, 0 or 1.
      group: sensitive groups, 0 or 1.
      seed: the same seed gives the same rows.

    Returns:
      int32 row numbers `[n]` for `arrange_rows(rows=...)`; at least one cell keeps all its rows.

    Raises:
      ValueError: ids other than 0 and 1, an empty cell, or shares that leave a cell without rows.

    Source: the sampling of the authors' code, which is without replacement and rounds down.

    >>> labels, group = np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 0, 1])
    >>> rows = thin_rows(np.full((2, 2), 0.25), labels=labels, group=group)
    >>> np.bincount(2 * labels[rows] + group[rows]).tolist()
    [1, 1, 1, 1]
    """
    counts = _cell_counts(labels, group)
    ratio = np.asarray(shares) / counts
    kept = np.floor(counts * ratio / ratio.max() + 1e-9).astype(int)
    if not (kept > 0).all():
        raise ValueError(f"these shares leave cells without rows: {kept.tolist()} by label, group")
    cell = 2 * np.asarray(labels).astype(int) + np.asarray(group)
    rows = np.random.Generator(np.random.PCG64(seed)).permutation(len(cell))
    place = np.empty(len(cell), int)  # of every row among those of its cell
    for number in range(4):
        mine = np.flatnonzero(cell[rows] == number)
        place[mine] = np.arange(len(mine))
    return rows[place < kept.reshape(-1)[cell[rows]]].astype(np.int32)


def _cell_counts(labels, group) -> np.ndarray:
    """Rows of the four cells `[2, 2]`; refuses other ids and empty cells."""
    labels, group = np.asarray(labels), np.asarray(group)
    check_ids("labels", labels, 2)
    check_ids("group", group, 2)
    if labels.shape != group.shape:
        raise ValueError(f"labels and group differ in length: {len(labels)} and {len(group)}")
    counts = np.bincount(2 * labels.astype(int) + group, minlength=4).reshape(2, 2)
    if not counts.all():
        empty = [f"label {y}, group {z}" for y, z in np.argwhere(counts == 0)]
        raise ValueError(f"no training rows with {' and '.join(empty)}")
    return counts
