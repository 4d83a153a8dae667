"""Which trial to take: what all of them say together, not the luckiest value.

posterior = estimate(trials)            # mean [T] and sd [T] of the true values
corrected_value(trials, posterior)      # of the winner, as if it had not been chosen for it
"""

from typing import NamedTuple

import numpy as np

from fairjax.fairtune.trials import FAILED, Trials, completed_trials

_LENGTHS = (0.5, 1.0, 2.0, 4.0)
_SIGNALS = (0.03, 0.1, 0.3, 1.0)
_NOISES = (0.01, 0.1, 0.3, 1.0)


class Posterior(NamedTuple):
    """What T trials are worth, in units of the first objective; nan where nothing is known."""

    mean: np.ndarray
    """float64 `[T]`, after a training to the end."""
    sd: np.ndarray
    """float64 `[T]`."""
    smoother: np.ndarray
    """float64 `[T, T]`, which makes the mean of the values: `mean = smoother @ values`; 0 for
    trials of which nothing is known."""


def estimate(trials: Trials) -> Posterior:
    """Shrink the values of trials towards what trials like them have: a Gaussian process.

    Values are the truth plus noise. The truth of trials with similar masks and learning rates is
    similar. The noise has two parts: which validation examples there are, whose covariance between
    trials their shared bootstrap draws tell (what lifts all trials alike cancels), and training,
    independent. How smooth, how large and how noisy the truth is, is averaged over by marginal
    likelihood. Trials that stopped early are values at their age, of which each has a mean of
    its own.

    Args:
      trials: those that failed, repeat others or have no value yet are left out.

    Returns:
      Posterior. With fewer than four values, or values that are all equal, the values themselves.

    Source: Rasmussen and Williams 2006, equations 2.25, 2.26 and 2.45; the noise is ours.
    """
    num_trials = len(trials.status)
    values = trials.values[:, 0].astype(np.float64)
    rows = np.flatnonzero(np.isfinite(values) & (trials.same_as < 0) & (trials.status != FAILED))
    smoother, sd = np.zeros((num_trials, num_trials)), np.full(num_trials, np.nan)
    mean = np.full(num_trials, np.nan)
    y = values[rows]
    if len(rows) < 4 or np.ptp(y) == 0:
        smoother[rows, rows], sd[rows], mean[rows] = 1.0, 0.0, y
        return Posterior(mean, sd, smoother)
    noise, distance = _noise(trials, rows), _distances(trials, rows)
    ages, age_of = np.unique(trials.epochs[rows], return_inverse=True)
    design = np.eye(len(ages))[age_of]
    oldest = np.eye(len(ages))[np.full(len(rows), len(ages) - 1)]
    scale = np.var(y - design @ np.linalg.lstsq(design, y, rcond=None)[0]) + 1e-12
    evidence, smoothers, variances = [], [], []
    for length in _LENGTHS:
        shape = np.exp(-distance / (2 * length**2))
        # of the differences between trials, whatever the length: what they share is in the mean
        shape /= max(1 - shape.mean(), 1e-9)
        for signal in _SIGNALS:
            kernel = signal * scale * shape
            for training in _NOISES:
                total = kernel + noise + training * scale * np.eye(len(rows))
                found = _regress(y, total, kernel, design, oldest)
                for kept, one in zip((evidence, smoothers, variances), found, strict=True):
                    kept.append(one)
    weights = np.exp(np.array(evidence) - max(evidence))
    weights /= weights.sum()
    averaged = np.tensordot(weights, np.stack(smoothers), 1)
    smoother[np.ix_(rows, rows)] = averaged
    mean[rows] = averaged @ y
    spread = np.stack(smoothers) @ y - mean[rows]
    sd[rows] = np.sqrt(weights @ (np.stack(variances) + spread**2))
    return Posterior(mean, sd, smoother)


def ranked_trials(trials: Trials, posterior: Posterior) -> np.ndarray:
    """Completed trials, the best first by their posterior mean, int `[n]`.

    Raises:
      ValueError: no trial ran to the end; says how many failed.
    """
    rows = completed_trials(trials)
    sign = 1.0 if trials.maximize[0] else -1.0
    return rows[np.argsort(-sign * posterior.mean[rows], kind="stable")]


def corrected_value(trials: Trials, posterior: Posterior) -> float:
    """The winner's validation value, corrected for having been chosen by it.

    In every draw of validation examples a winner is chosen anew, and valued on the examples that
    the draw left out; the mean of these. nan where trials have no draws.

    Source: Tsamardinos et al., Machine Learning 2018 (bootstrap bias-corrected cross-validation).
    """
    if not trials.drawn.shape[-1]:
        return float("nan")
    rows = ranked_trials(trials, posterior)
    drawn, left_out = np.moveaxis(_means(trials.drawn.astype(np.float64)), 1, 0)  # [T, B] each
    # values that are unknown have no weight in the smoother
    chosen_by = posterior.smoother[rows] @ np.nan_to_num(drawn)
    sign = 1.0 if trials.maximize[0] else -1.0
    winner = rows[(sign * chosen_by).argmax(0)]
    values = left_out[winner, np.arange(len(winner))]
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def _means(drawn: np.ndarray) -> np.ndarray:
    """Over the replicates that were trained: `[T, R, 2, B] -> [T, 2, B]`, nan where none was."""
    known = np.isfinite(drawn)
    return np.where(known, drawn, 0.0).sum(1) / np.where(known.any(1), known.sum(1), np.nan)


def _noise(trials: Trials, rows: np.ndarray) -> np.ndarray:
    """Covariance `[n, n]` of the values over draws of validation examples."""
    if not trials.drawn.shape[-1]:
        return np.zeros((len(rows), len(rows)))
    drawn = _means(trials.drawn[rows].astype(np.float64))[:, 0]
    drawn = drawn[:, np.isfinite(drawn).all(0)]
    if drawn.shape[1] < 2:
        return np.zeros((len(rows), len(rows)))
    return np.cov(drawn)


def _distances(trials: Trials, rows: np.ndarray) -> np.ndarray:
    """Squared distances `[n, n]`: 4 for opposite masks, a decade of rate, no choice in common."""
    masks = trials.masks[rows].astype(np.float64)
    rates = np.log10(trials.learning_rates[rows].astype(np.float64))
    bits = np.abs(masks[:, None] - masks[None]).sum(-1) / max(1, masks.shape[1])
    squares = 4.0 * bits + 4.0 * (rates[:, None] - rates[None]) ** 2
    if trials.choices is not None:
        choices = trials.choices[rows]
        squares += 4.0 * (choices[:, None] != choices[None]).mean(-1)
    return squares


def _regress(y, total, kernel, design, oldest):
    """Log marginal likelihood, smoother `[n, n]` and variances `[n]` for one setting.

    The means of the ages have a flat prior (equations 2.41 to 2.45).
    """
    from scipy.linalg import cho_factor, cho_solve  # slow to import: only when needed

    factor = cho_factor(total, lower=True)
    inverse = cho_solve(factor, np.eye(len(y)))
    weighted = inverse @ design
    means = np.linalg.solve(design.T @ weighted, weighted.T)  # y -> the mean of every age
    rest = np.eye(len(y)) - design @ means
    smoother = oldest @ means + kernel @ inverse @ rest
    log_det = 2 * np.log(np.diag(factor[0])).sum() + np.linalg.slogdet(design.T @ weighted)[1]
    likelihood = -0.5 * (y @ inverse @ rest @ y + log_det)
    variance = np.diag(kernel) - np.einsum("ij,jk,ki->i", kernel, inverse, kernel)
    return likelihood, smoother, np.maximum(variance, 0.0)
