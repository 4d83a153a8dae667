"""What each example adds to the AUC: areas of many networks, their errors, and cheap replicates.

An AUC is the mean over positives of the share of negatives that they outscore, and the mean over
negatives of the share of positives that outscore them. With these shares a replicate of a bootstrap
is a matrix product, not another sorting.
"""

import numpy as np
from jaxtyping import Float, Integer


def placements(
    scores: Float[np.ndarray, "*axes n"], labels: Integer[np.ndarray, " n"]
) -> Float[np.ndarray, "*axes n"]:
    """Of a positive the share of negatives below it, of a negative that of positives above it.

    Ties count half. In [0, 1]; the mean over either class is the AUC. nan where there are no
    examples of the other class, and for all where a score is nan.

    Args:
      scores: of any number of networks, higher for class 1.
      labels: 0 or 1.

    Source: DeLong, DeLong and Clarke-Pearson, Biometrics 1988.

    >>> placements(np.array([0.1, 0.4, 0.3, 0.9]), np.array([0, 0, 1, 1])).tolist()
    [1.0, 0.5, 0.5, 1.0]
    """
    from scipy.stats import rankdata  # a third of a second to import: only when needed

    found = np.empty(scores.shape)
    among_all = rankdata(scores, axis=-1)
    for label in (0, 1):
        own, others = labels == label, int((labels != label).sum())
        below = among_all[..., own] - rankdata(scores[..., own], axis=-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            found[..., own] = (below if label else others - below) / np.float64(others)
    return found


def group_auc_bounds(
    scores: Float[np.ndarray, "*axes n"],
    *,
    labels: Integer[np.ndarray, " n"],
    group: Integer[np.ndarray, " n"],
    num_groups: int,
) -> tuple[Float[np.ndarray, "*axes G"], Float[np.ndarray, "*axes G"]]:
    """AUC within each group, and the lower end of its one-sided 95 % interval.

    Args:
      scores: of any number of networks, higher for class 1.
      labels: 0 or 1.
      group: in `[0, G)`.
      num_groups: G.

    Returns:
      The areas, nan for a group that lacks a class; and what the true ones exceed in 95 % of
      samples, nan for a group with fewer than two of a class.

    Source: DeLong, DeLong and Clarke-Pearson, Biometrics 1988, with the normal distribution.

    >>> labels, group = np.array([0, 0, 1, 1]), np.zeros(4, int)
    >>> scores = np.array([0.1, 0.4, 0.3, 0.9])
    >>> areas, lower = group_auc_bounds(scores, labels=labels, group=group, num_groups=1)
    >>> areas.round(2).tolist(), lower.round(2).tolist()
    ([0.75], [0.17])
    """
    areas, lower = (np.full((*scores.shape[:-1], num_groups), np.nan) for _ in range(2))
    for g in range(num_groups):
        member = group == g
        own = labels[member]
        if len(np.unique(own)) < 2:
            continue
        shares = placements(scores[..., member], own)
        areas[..., g] = shares[..., own == 1].mean(-1)
        sizes = np.bincount(own, minlength=2)
        if sizes.min() > 1:
            of_class = (shares[..., own == k].var(-1, ddof=1) / sizes[k] for k in (0, 1))
            lower[..., g] = areas[..., g] - 1.6448536 * np.sqrt(sum(of_class))
    return areas, lower
