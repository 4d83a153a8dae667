"""Figures of an audit, as SVG."""

from typing import Any

import numpy as np

from fairjax.audit import Audit
from fairjax.report.curves import draw_curves
from fairjax.report.plots import figure


def audit_figures(found: Audit) -> dict[str, str]:
    """Heading -> SVG: sizes and rates of the groups, ROC, calibration, the thresholds' frontier."""
    drawn = {"Rates by group": _rates(found)}
    if found.roc:
        sizes = dict(zip(found.table.groups[:-1], found.table.n.tolist(), strict=False))
        drawn |= draw_curves({"": found.roc}, {"": found.calibration}, sizes)
    if found.frontier:
        drawn["Accuracy against disparity with a threshold per group"] = _frontier(found)
    return drawn


def _rates(found: Audit) -> str:
    """The size of every group and its rates with intervals."""
    table = found.table

    def draw(canvas: Any) -> None:
        shown = ["selection_rate", "true_positive_rate", "false_positive_rate", "accuracy"]
        axes = canvas.subplots(1, len(shown) + 1, sharey=True)
        place = np.arange(len(table.groups))[::-1]
        axes[0].barh(place, table.n, color="#9aa7b3")
        axes[0].set_yticks(place, table.groups, fontsize=8)
        axes[0].set_title("n", fontsize=9)
        for axis, name in zip(axes[1:], shown, strict=True):
            rate = table.rates[name]
            axis.hlines(place, rate.lower, rate.upper, color="#2f6fb2")
            axis.plot(rate.estimate, place, "o", color="#2f6fb2", markersize=4)
            axis.set_xlim(-0.02, 1.02)
            axis.set_title(name.replace("_", " "), fontsize=9)

    return figure(draw, size=(11.0, 1.2 + 0.3 * len(table.groups)))


def _frontier(found: Audit) -> str:
    def draw(canvas: Any) -> None:
        axis = canvas.subplots()
        for criterion, choice in found.frontier.items():
            axis.plot(choice.gap, choice.accuracy, marker=".", label=criterion)
        axis.set(xlabel="gap of the criterion", ylabel="accuracy")
        axis.legend(fontsize=7)

    return figure(draw, size=(7.0, 3.6))
