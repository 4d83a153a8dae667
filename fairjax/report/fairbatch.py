"""Figures of a FairBatch run, as SVG."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fairjax.data import Dataset, Splits
from fairjax.report.plots import lines, trade_off
from fairjax.report.tables import moved

MAX_CELLS = 12  # lines of one panel that can still be told apart


def fairbatch_figures(
    history: Sequence[Mapping[str, Any]],
    results: Mapping[str, Mapping[str, Any]],
    criteria: Sequence[str],
    data: Dataset,
) -> dict[str, str]:
    """Heading -> SVG: sampling shares and signals over epochs, accuracy against disparities.

    Args:
      history: one entry per epoch, `{"rows": {row: {"shares" [K, G], "cell_losses" [K, G]}}}`; nan
        or None where a cell has no signal.
      results: row -> metrics; the first row is plain training, whose shares never move, and those
        that the history lacks were not trained.
      criteria: whose disparities are drawn.
      data: names the cells; shares and signals of more than `MAX_CELLS` are not drawn.
    """
    trained = history[0]["rows"] if history else {}
    drawn, rows = {}, [row for row in list(results)[1:] if row in trained]
    if rows and data.num_classes * data.num_groups <= MAX_CELLS:
        drawn["Share of each label's draw, by group"] = _cells(history, rows, "shares", data)
        drawn["Signal per (label, group) cell before each epoch"] = _cells(
            history, rows, "cell_losses", data
        )
    for metric in dict.fromkeys(metric for each in criteria for metric in _disparities(each)):
        drawn[f"Accuracy against {metric}"] = trade_off(
            {row: (result[metric], result["accuracy"]) for row, result in results.items()},
            x_label=metric,
            y_label="test accuracy",
            title="",
        )
    return drawn


def _cells(history, rows: Sequence[str], key: str, data: Dataset) -> str:
    """A panel per row, a line per cell."""
    panels = {}
    for row in rows:
        values = np.asarray([epoch["rows"][row][key] for epoch in history], dtype=float)
        panels[row] = {
            f"{label} · {group}": values[:, k, g]
            for k, label in enumerate(data.label_names)
            for g, group in enumerate(data.group_names)
        }
    return lines(panels, x_label="epoch")


def _disparities(criterion: str) -> list[str]:
    """The metrics that a criterion, or two at once, is to make small."""
    return [f"{each}_difference" for each in criterion.split("_and_")]


def fairbatch_sentence(by_row: Mapping[str, Any], name: str) -> str:
    """What came out: what every row does to its own criterion's disparity, and at what accuracy.

    No row is picked by its test result, and only a change whose interval excludes 0 is called one.
    """
    plain, by_metric = by_row["plain"], {}
    for row in by_row:
        for metric in _disparities(row.split("@")[0]):
            if metric in plain and row != "plain":
                by_metric.setdefault(metric, []).append(row)
    told = []
    for metric, rows in by_metric.items():
        if not np.isfinite(plain[metric]):
            told.append(f"{metric} cannot be compared")
            continue
        by_verdict: dict[str, list[str]] = {}
        for row in rows:
            result, interval = by_row[row], by_row[row]["ci95_vs_plain"][metric]
            verdict = moved(interval)
            points = 100 * (result["accuracy"] - plain["accuracy"])
            change = (
                "" if "compared" in verdict else "; change {:+.3f} to {:+.3f}".format(*interval)
            )
            by_verdict.setdefault(verdict, []).append(
                f"{result[metric]:.3f} ({row}{change}; accuracy {points:+.1f} points)"
            )
        found = (
            f"{verdict}{' to' if verdict in ('falls', 'rises') else ':'} {', '.join(values)}"
            for verdict, values in by_verdict.items()
        )
        told.append(f"{metric}, {plain[metric]:.3f} with plain training, {'; it '.join(found)}")
    if not told:
        return f"On {name} no disparity was compared with plain training."
    return f"On {name}: {'. '.join(told)}. Changes are 95 % intervals."


def split_notes(
    data: Dataset, splits: Splits, seed: int, correlation: float | None = None
) -> list[str]:
    """How splits were drawn, by seeds from `seed` on, and why they leave rows out.

    `correlation` is that of label and group to which train was thinned, if it was.
    """
    notes = []
    if len(splits.train) > 1:
        what = "train and val (test was given)" if data.fixed_test else "train, val and test"
        notes = [
            f"{len(splits.train)} splits into {what}, seeds {seed} and up; in all of them numbers "
            "are standardised by the training rows of the split that was read."
        ]
    if left_out := splits.left_out(data):
        why = "all have equal sizes"
        if correlation is not None:
            why = f"label and group correlate by {correlation:g} in train"
        notes.append(f"A split leaves out up to {left_out} rows, so that {why}.")
    return notes


def loss_note(history: Sequence[Mapping[str, Any]]) -> list[str]:
    """Whether plain training was stopped before its loss was flat."""
    losses = np.array([epoch["rows"]["plain"]["loss"] for epoch in history])
    if len(losses) < 2:  # nothing to compare
        return []
    tail = max(1, len(losses) // 10)
    before, last = losses[-2 * tail : -tail].mean(), losses[-tail:].mean()
    if before - last <= 0.002 * before:
        return []
    return [
        f"The loss of plain training still falls, from {before:.4f} to {last:.4f} over the last "
        f"{2 * tail} of {len(losses)} epochs: train longer with --num-epochs."
    ]
