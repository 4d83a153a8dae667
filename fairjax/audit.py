"""An audit of predictions, whoever made them: rates by group, calibration, ROC, thresholds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fairjax import thresholds
from fairjax.data.csvfile import number, read_csv, show
from fairjax.data.values import canonical
from fairjax.metrics import (
    GroupTable,
    calibration_curve,
    group_table,
    name_groups,
    roc_curve,
)
from fairjax.metrics.counts import Ids
from fairjax.metrics.group_table import number_and_span
from fairjax.metrics.outputs import Logits, Probs, logits_of

CRITERIA = ("demographic_parity", "equal_opportunity", "equalized_odds")
FRONTIER_ROWS = 10_000  # that thresholds are chosen on; more cost seconds and change little


class Audit(NamedTuple):
    """What was found, as arrays of NumPy."""

    table: GroupTable
    calibration: dict[str, np.ndarray]
    """Group -> `metrics.calibration_curve`. Empty for predictions without scores, as the next."""
    roc: dict[str, np.ndarray]
    """Group -> `metrics.roc_curve`."""
    frontier: dict[str, thresholds.GroupThresholds]
    """Criterion -> the best accuracy at each bound of its gap, with a threshold for each group's
    log-odds; chosen and judged on the same examples."""
    notes: tuple[str, ...]


def audit(
    labels: Ids,
    *,
    preds: Ids | None = None,
    probs: Probs | None = None,
    logits: Logits | None = None,
    sensitive_features: Any,
    num_replicates: int = 2000,
    max_gaps: Sequence[float] = tuple(np.linspace(0.0, 0.2, 11)),
    seed: int = 0,
) -> Audit:
    """Everything that can be said of predictions by group, for a model trained anywhere.

    Args:
      labels: int `[N]`, 0 or 1, on examples that the model was not trained on.
      preds: int `[N]`, 0 or 1; or
      probs: float `[N]` or `[N, 2]`; or
      logits: float `[N, 2]`: exactly one of the three.
      sensitive_features: values `[N]`, or columns of them whose intersections are the groups, such
        as `frame[["sex", "age_band"]]`; see `metrics.name_groups`.
      num_replicates: of the bootstrap.
      max_gaps: bounds in [0, 1] of the frontier.
      seed: of the bootstrap, and of the rows that the frontier is drawn on.

    Returns:
      Audit.

    Raises:
      ValueError: as `metrics.group_table`; fewer than two groups.

    >>> found = audit([1, 0, 1, 0], preds=[1, 0, 0, 0], sensitive_features=list("aabb"))
    >>> print(found.table.gaps["accuracy_gap"].estimate)
    0.5
    """
    table = group_table(
        labels,
        preds=preds,
        probs=probs,
        logits=logits,
        sensitive_features=sensitive_features,
        num_replicates=num_replicates,
        seed=seed,
    )
    first, *others = table.groups
    if len(others) < 2:
        raise ValueError(f"an audit compares groups, all examples are {first!r}")
    if preds is not None:
        note = "Predictions alone have no AUC, calibration, ROC and thresholds: give scores."
        return Audit(table, {}, {}, {}, (*table.notes, note))
    values = np.asarray(logits_of(logits, probs, num_classes=2, weights=None), np.float64)
    labels, group = np.asarray(labels), name_groups(sensitive_features).ids
    scores = np.clip(values[:, 1] - values[:, 0], -1e3, 1e3)  # thresholds need finite ones
    by_group = {name: group == g for g, name in enumerate(table.groups[:-1])}
    frontier, notes = _frontier(scores, labels, group, table, np.asarray(max_gaps), seed)
    return Audit(
        table,
        {name: calibration_curve(scores[o], labels=labels[o]) for name, o in by_group.items()},
        {name: roc_curve(scores[o], labels=labels[o], seed=seed) for name, o in by_group.items()},
        frontier,
        (*table.notes, *notes),
    )


def _frontier(scores, labels, group, table: GroupTable, max_gaps, seed):
    """The frontier of each criterion, and notes on what it leaves out."""
    rows, notes = np.arange(len(labels)), ["Thresholds were chosen and judged on the same rows."]
    if len(rows) > FRONTIER_ROWS:
        rows = np.sort(np.random.default_rng(seed).choice(rows, FRONTIER_ROWS, replace=False))
        notes.append(f"Thresholds were chosen on {FRONTIER_ROWS:,} of {len(labels):,} rows.")
    num_groups = len(table.groups) - 1
    cells = np.bincount(group[rows] * 2 + labels[rows], minlength=2 * num_groups).reshape(-1, 2)
    usable = np.flatnonzero(cells.min(1) > 0)
    if len(usable) < num_groups:
        lost = ", ".join(repr(table.groups[g]) for g in np.flatnonzero(cells.min(1) == 0))
        notes.append(f"Thresholds leave out groups that lack a class: {lost}.")
        rows = rows[np.isin(group[rows], usable)]
    if len(usable) < 2:
        return {}, notes[1:]
    found = {
        criterion: thresholds.frontier(
            scores[rows].astype(np.float32),
            labels=labels[rows].astype(np.int32),
            group=np.searchsorted(usable, group[rows]).astype(np.int32),
            num_groups=len(usable),
            criterion=criterion,
            max_gaps=max_gaps.astype(np.float32),
        )
        for criterion in CRITERIA
    }
    found = jax.device_get(found)
    return found, notes


class Predictions(NamedTuple):
    """What a file of predictions holds, as arguments of `audit`."""

    arguments: dict[str, Any]
    notes: tuple[str, ...]


def read_predictions(
    path: str | Path,
    *,
    label: str,
    sensitive: Sequence[str],
    score: str | None = None,
    pred: str | None = None,
    positive: str | None = None,
    log_odds: bool = False,
) -> Predictions:
    """Read predictions for `audit` from a CSV file; rows that lack a value are left out and noted.

    Args:
      path: the file, with a header.
      label: column of the truth, 0 and 1 (or -1 and 1), or two values of which `positive` is one.
      sensitive: columns of groups.
      score: column of probabilities of the positive class; or
      pred: column of predictions, written as the labels are.
      positive: the value of `label` that is class 1.
      log_odds: the scores are log-odds.

    Returns:
      Predictions.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a column is absent, holds something else or has two roles, or not exactly one of
        `score` and `pred` is given.
    """
    if (score is None) == (pred is None):
        raise ValueError("give a column of scores or of predictions, exactly one of them")
    if not sensitive:
        raise ValueError("name at least one sensitive column")
    table = read_csv(path)
    given = score if pred is None else pred
    needed = dict.fromkeys([label, str(given), *sensitive])
    table.require(needed)
    kept = np.flatnonzero(np.all([table.columns[name].codes >= 0 for name in needed], axis=0))
    if not len(kept):
        raise ValueError(f"{path}: no row has all of {', '.join(needed)}")
    notes = []
    if lost := len(table) - len(kept):
        counts = {name: int((table.columns[name].codes < 0).sum()) for name in needed}
        told = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
        notes = [f"Left out {lost} of {len(table)} rows with missing values ({told})."]
    text = {
        name: np.array(table.columns[name].values, object)[table.columns[name].codes[kept]]
        for name in needed
    }
    labels, positive = _binary(text[label], label, positive, path)
    notes.append(f"Class 1 is {label} = {positive}.")
    arguments: dict[str, Any] = {"labels": labels}
    if pred is not None:
        arguments["preds"] = _binary(text[pred], pred, positive, path)[0]
    else:
        numbers = _numbers(text[str(score)], str(score), path)
        if log_odds:
            arguments["logits"] = np.stack([np.zeros_like(numbers), numbers], axis=1)
        elif numbers.min() >= 0 and numbers.max() <= 1:
            arguments["probs"] = numbers
        else:
            raise ValueError(
                f"{path}: {score} holds {numbers.min():g} to {numbers.max():g}, expected "
                "probabilities; say so if these are log-odds (--log-odds), or give predictions"
            )
    if len(needed) < 2 + len(sensitive):
        raise ValueError(
            f"label, {'scores' if pred is None else 'predictions'} and groups must be different "
            f"columns, got {', '.join(map(show, [label, given, *sensitive]))}"
        )
    arguments["sensitive_features"] = {name: text[name] for name in sensitive}
    return Predictions(arguments, tuple(notes))


def _binary(cells: np.ndarray, name: str, positive: str | None, path) -> tuple[np.ndarray, str]:
    """0 and 1 for a column of two values, and which of them is 1."""
    values = {value: canonical(value) for value in dict.fromkeys(cells)}
    found = sorted(set(values.values()))
    if positive is None and set(found) <= {"0", "1"} or set(found) <= {"-1", "1"}:
        positive = "1" if positive is None else positive
    shown = ", ".join(map(repr, found[:6])) + (", ..." if len(found) > 6 else "")
    if positive is None:
        raise ValueError(f"{path}: {name} holds {shown}; say which value is class 1 (--positive)")
    positive = canonical(positive)
    if len(found) > 2 or (len(found) == 2 and positive not in found):
        raise ValueError(
            f"{path}: {name} must hold {positive!r} and one other value, found {shown}"
        )
    return np.array([values[cell] == positive for cell in cells]).astype(np.int64), positive


def _numbers(cells: np.ndarray, name: str, path) -> np.ndarray:
    """A column of finite numbers."""
    value_of = {cell: number(cell) for cell in dict.fromkeys(cells)}
    for cell, value in value_of.items():
        if value is None:
            raise ValueError(f"{path}: {name} must hold numbers such as 0.25, got {show(cell)}")
    numbers = np.array([value_of[cell] for cell in cells], np.float64)
    if not np.isfinite(numbers).all():
        raise ValueError(
            f"{path}: {name} must hold finite numbers, got {cells[~np.isfinite(numbers)][0]!r}"
        )
    return numbers


def answer(found: Audit) -> str:
    """What came out, one sentence: the largest gaps with their intervals."""
    told = []
    for name in ("demographic_parity_difference", "equalized_odds_difference", "worst_group_auc"):
        if name in found.table.gaps:
            told.append(f"{name} {' '.join(number_and_span(*found.table.gaps[name]))}")
    everyone = found.table.rates["accuracy"]
    accuracy = " ".join(number_and_span(*(values[-1] for values in everyone)))
    return f"Accuracy {accuracy}; {'; '.join(told)} (95 % intervals)."
