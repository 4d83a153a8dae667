"""Figures of a FairBatch run, as SVG."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fairjax.data import Dataset
from fairjax.report.plots import lines, trade_off

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
      results: row -> metrics; the first row is plain training, whose shares never move.
      criteria: whose disparities are drawn.
      data: names the cells; shares and signals of more than `MAX_CELLS` are not drawn.
    """
    drawn, rows = {}, list(results)[1:]
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
    """What came out: the largest relative fall of a criterion's own disparity."""
    plain = by_row["plain"]
    falls = {
        (row, metric): by_row[row][metric] / plain[metric]
        for row in by_row
        if row != "plain"
        for metric in _disparities(row.split("@")[0])
        if plain[metric] > 0
    }
    falls = {which: ratio for which, ratio in falls.items() if np.isfinite(ratio)}
    if not falls:
        return f"On {name} no disparity could be compared with plain training."
    best, metric = min(falls, key=lambda which: falls[which])
    result = by_row[best]
    low, high = result["ci95_vs_plain"][metric]
    points = 100 * (result["accuracy"] - plain["accuracy"])
    verb = "falls" if falls[best, metric] < 1 else "rises"
    return (
        f"On {name}, {metric} {verb} from {plain[metric]:.3f} (plain) to "
        f"{result[metric]:.3f} ({best}; change {low:+.3f} to {high:+.3f} at 95 %), "
        f"accuracy {points:+.1f} points."
    )
