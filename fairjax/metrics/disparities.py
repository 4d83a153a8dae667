"""Gaps and worst groups from rates on the host, and what a bootstrap makes of them."""

import functools
from collections.abc import Callable, Mapping

import numpy as np

STEP = 0.1  # share of a replicate's deviation at which a slope is taken; see compare_rows
Rates = Mapping[str, np.ndarray]


def disparities(rates: Rates) -> dict[str, np.ndarray]:
    """Gaps and worst groups `[...]` from rates `[..., G]`, by the names of `fairness_metrics`.

    Groups where a rate is undefined (nan) are left out; a gap needs two that define it.

    Args:
      rates: selection_rate, true_positive_rate, false_positive_rate, accuracy, and auc or not.

    >>> by_name = {"accuracy": np.array([0.7, 0.9, np.nan])}
    >>> names = ("selection_rate", "true_positive_rate", "false_positive_rate")
    >>> found = disparities(by_name | {name: np.array([0.1, 0.4, 0.2]) for name in names})
    >>> float(found["worst_group_accuracy"]), round(float(found["accuracy_gap"]), 6)
    (0.7, 0.2)
    """
    true, false = _gap(rates["true_positive_rate"]), _gap(rates["false_positive_rate"])
    found = {
        "demographic_parity_difference": _gap(rates["selection_rate"]),
        "equal_opportunity_difference": true,
        "equalized_odds_difference": np.fmax(true, false),
        "accuracy_gap": _gap(rates["accuracy"]),
        "worst_group_accuracy": worst(rates["accuracy"]),
    }
    if "auc" in rates:
        found["auc_gap"] = _gap(rates["auc"])
        found["worst_group_auc"] = worst(rates["auc"])
    return found


def worst(rates: np.ndarray) -> np.ndarray:
    """The lowest defined rate, nan if no group defines one."""
    return np.asarray(functools.reduce(np.fmin, _columns(rates)))


def _gap(rates: np.ndarray) -> np.ndarray:
    defined = functools.reduce(np.add, (~np.isnan(each) for each in _columns(rates)), 0)
    wide = functools.reduce(np.fmax, _columns(rates)) - worst(rates)
    return np.where(defined > 1, wide, np.nan)


def _columns(rates: np.ndarray) -> np.ndarray:
    """Group by group `[G, ...]`: NumPy reduces a short last axis many times slower."""
    return np.moveaxis(np.asarray(rates), -1, 0)


def deviations(drawn: Rates, whole: Rates) -> dict[str, np.ndarray]:
    """What replicates add to rates; nothing where they have no examples of a group."""
    moved = {name: values - whole[name] for name, values in drawn.items()}
    return {
        name: np.where(np.isnan(whole[name]), np.nan, np.where(np.isnan(x), 0.0, x))
        for name, x in moved.items()
    }


def bounds(
    table_fn: Callable[[Rates], dict[str, np.ndarray]], whole: Rates, deviation: Rates
) -> dict[str, np.ndarray]:
    """`{name: [..., 3]}`: plain, reflected and slope of every metric; see `compare_rows`.

    Args:
      table_fn: metrics from rates, which scale with them.
      whole: the rates of all examples.
      deviation: what each replicate adds to them.
    """
    at = lambda share: table_fn({name: whole[name] + share * deviation[name] for name in whole})
    value, usual, near = at(0.0), at(1.0), at(STEP)
    start, mirrored = (
        table_fn({name: share * each for name, each in deviation.items()}) for share in (0.0, -1.0)
    )
    found = {}
    for name, plain in usual.items():
        reflected = value[name] + start[name] - mirrored[name]
        # No further than to the whole numbers around: gaps and rates stay within 0 and 1.
        least, most = np.floor(np.fmin(plain, 0.5)), np.ceil(np.fmax(plain, 0.5))
        slope = value[name] + (near[name] - value[name]) / STEP
        found[name] = np.stack([plain, np.clip(reflected, least, most), slope], -1)
    return found
