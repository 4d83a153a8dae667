"""Curves of one group's scores with 95 % bands, on the host: ROC and calibration."""

import numpy as np
from jaxtyping import Float, Integer

NUM_BINS = 10
_POINTS = 200  # of a ROC curve that are kept
_DRAWS = 500
_Z = 1.959964  # of a normal: 95 %


def roc_curve(
    scores: Float[np.ndarray, " n"], *, labels: Integer[np.ndarray, " n"], seed: int = 0
) -> Float[np.ndarray, "points 4"]:
    """False- and true-positive rate as the threshold falls, and the band of the second.

    The band is of a bootstrap over examples, at each false-positive rate by itself.

    Args:
      scores: higher for class 1.
      labels: 0 or 1.
      seed: of the bootstrap.

    Returns:
      float64 `[points, 4]`: false-positive rate, true-positive rate, its lower and upper bound; up
      to 200 points. nan without examples of both classes.

    >>> roc_curve(np.array([0.1, 0.4, 0.3, 0.9]), labels=np.array([0, 0, 1, 1]))[:, :2].tolist()
    [[0.0, 0.0], [0.0, 0.5], [0.5, 0.5], [0.5, 1.0], [1.0, 1.0]]
    """
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    hits = np.cumsum(labels[order])[last]
    counts = np.stack([last + 1 - hits, hits])
    counts = np.concatenate([np.zeros((2, 1), int), counts], axis=1)
    counts = counts[:, np.unique(np.linspace(0, counts.shape[1] - 1, _POINTS).astype(int))]
    with np.errstate(invalid="ignore"):
        rates = counts / counts[:, -1:]
    # Between two thresholds that are kept a bootstrap's counts are Poisson.
    drawn = np.random.default_rng(seed).poisson(np.diff(counts), (_DRAWS, 2, counts.shape[1] - 1))
    drawn = np.cumsum(np.pad(drawn, ((0, 0), (0, 0), (1, 0))), axis=2)
    drawn = drawn[(drawn[:, :, -1] > 0).all(1)]
    if np.isnan(rates).any() or not len(drawn):
        return np.full((counts.shape[1], 4), np.nan)
    drawn = drawn / drawn[:, :, -1:]
    # A step up at one false-positive rate is drawn as one: there the band is of its upper end.
    heights = [np.interp(rates[0], false, true) for false, true in drawn]
    low, high = np.quantile(heights, [0.025, 0.975], axis=0)
    return np.stack([*rates, np.minimum(low, rates[1]), np.maximum(high, rates[1])], axis=1)


def calibration_curve(
    scores: Float[np.ndarray, " n"], *, labels: Integer[np.ndarray, " n"]
) -> Float[np.ndarray, "bins 5"]:
    """How often class 1 is right when it is said to be so likely, in ten equal bins.

    Args:
      scores: log-odds of class 1.
      labels: 0 or 1.

    Returns:
      float64 `[10, 5]`: mean probability of class 1, share of positives, its lower and upper bound
      (Wilson's 95 %), n; nan where a bin is empty.

    Source: Wilson 1927 for the bounds.

    >>> calibration_curve(np.array([-0.2, 0.2, 0.2]), labels=np.array([0, 0, 1]))[4:6, 1].tolist()
    [0.0, 0.5]
    """
    probs = 1 / (1 + np.exp(-np.clip(scores, -700, 700)))
    bins = np.minimum((probs * NUM_BINS).astype(int), NUM_BINS - 1)
    n = np.bincount(bins, minlength=NUM_BINS)
    sums = [np.bincount(bins, values, NUM_BINS) for values in (probs, labels)]
    with np.errstate(invalid="ignore", divide="ignore"):
        mean, share = (each / n for each in sums)
        scale = 1 + _Z**2 / n
        middle = (share + _Z**2 / (2 * n)) / scale
        reach = _Z * np.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2)) / scale
    bounds = np.where(n > 0, np.stack([middle - reach, middle + reach]), np.nan)
    return np.stack([mean, share, *np.clip(bounds, 0.0, 1.0), n], axis=1)
