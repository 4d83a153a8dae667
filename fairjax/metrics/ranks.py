"""Which of several methods is better across data sets: average ranks, Friedman, then Nemenyi."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Ranks(NamedTuple):
    """M methods over D settings."""

    average: np.ndarray
    """float64 `[M]`, 1 is best."""
    p_value: float
    """Of the Friedman test that all methods are alike; nan with fewer than 3 methods."""
    critical_difference: float
    """Average ranks closer than that are not told apart (Nemenyi, 5 %)."""

    @property
    def cliques(self) -> list[tuple[int, ...]]:
        """Largest sets of methods that are not told apart, by average rank; for a diagram."""
        order = [int(i) for i in np.argsort(self.average, kind="stable")]
        found: list[tuple[int, ...]] = []
        for start in range(len(order)):
            limit = self.average[order[start]] + self.critical_difference
            members = tuple(i for i in order[start:] if self.average[i] <= limit)
            if len(members) > 1 and not (found and set(members) <= set(found[-1])):
                found.append(members)
        return found


def rank_methods(scores: Float[np.ndarray, "D M"], *, level: float = 0.05) -> Ranks:
    """Average ranks of M methods over D data sets, and what of them is more than chance.

    Args:
      scores: higher is better; negate what should be small. Equal ones share their mean rank.
      level: chance, in (0, 1), of calling two of M equal methods different.

    Returns:
      Ranks. With few settings little can be told: the test is conservative below about 10.

    Raises:
      ValueError: `scores` are not finite `[D, M]` with D, M >= 2, or `level` is out of range.

    Source: Demsar, JMLR 2006, sections 3.2.2 and 3.2.3.

    >>> ranks = rank_methods(np.array([[0.9, 0.8, 0.7], [0.8, 0.7, 0.7], [0.9, 0.7, 0.6]]))
    >>> ranks.average.round(2).tolist(), round(ranks.critical_difference, 2)
    ([1.0, 2.17, 2.83], 1.91)
    """
    from scipy import stats  # a third of a second to import: only when needed

    if scores.ndim != 2 or min(scores.shape) < 2 or not np.isfinite(scores).all():
        raise ValueError(
            "scores must be finite [D, M] with at least 2 settings and 2 methods, "
            f"got shape {scores.shape}, {np.sum(~np.isfinite(scores))} of them not finite"
        )
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}")
    num_settings, num_methods = scores.shape
    average = stats.rankdata(-scores, axis=1).mean(0)
    p_value = float("nan")
    if num_methods > 2 and np.ptp(scores, axis=1).any():
        p_value = float(stats.friedmanchisquare(*scores.T).pvalue)
    spread = stats.studentized_range.ppf(1 - level, num_methods, np.inf) / np.sqrt(2)
    error = np.sqrt(num_methods * (num_methods + 1) / (6 * num_settings))
    return Ranks(average, p_value, float(spread * error))
