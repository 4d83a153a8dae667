"""ROC and calibration of groups with their bands, as SVG."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from fairjax.data import Dataset
from fairjax.metrics import calibration_curve, roc_curve
from fairjax.report.plots import figure, shown_name

MAX_GROUPS = 12  # lines that can still be told apart
_AXES = {
    "ROC by group": ("false-positive rate", "true-positive rate"),
    "Calibration by group": ("predicted probability", "share of positives"),
}


def group_curves(
    logits: Mapping[str, Float[np.ndarray, "n K"]], data: Dataset, rows: Int[np.ndarray, " n"]
) -> dict[str, str]:
    """Heading -> SVG: ROC and calibration of every group, a picture for each network.

    Args:
      logits: network -> its logits; none are drawn for more than two classes.
      data: whose rows these are.
      rows: of the examples that were judged.
    """
    if data.num_classes != 2:
        return {}
    labels, group, group_names = data.labels[rows], data.group[rows], data.group_names
    roc: dict[str, dict[str, np.ndarray]] = {}
    calibration: dict[str, dict[str, np.ndarray]] = {}
    for row, own in logits.items():
        scores = np.asarray(own, np.float64)
        scores = np.clip(scores[:, 1] - scores[:, 0], -1e3, 1e3)
        members = {name: group == g for g, name in enumerate(group_names)}
        members = {name: those & np.isfinite(scores) for name, those in members.items()}
        members = {name: those for name, those in members.items() if those.any()}
        roc[row] = {name: roc_curve(scores[m], labels=labels[m]) for name, m in members.items()}
        calibration[row] = {
            name: calibration_curve(scores[m], labels=labels[m]) for name, m in members.items()
        }
    sizes = dict(zip(group_names, np.bincount(group, minlength=len(group_names)), strict=True))
    return draw_curves(roc, calibration, sizes)


def score_curves(
    rows: Sequence[str],
    scores: Float[np.ndarray, "M n"],
    data: Dataset,
    tested: Int[np.ndarray, " n"],
) -> dict[str, str]:
    """`group_curves` of the rows that have scores of class 1 over class 0, the first M."""
    logits = np.stack([0 * scores, scores], -1)
    return group_curves(dict(zip(rows, logits, strict=False)), data, tested)


def draw_curves(
    roc: Mapping[str, Mapping[str, np.ndarray]],
    calibration: Mapping[str, Mapping[str, np.ndarray]],
    sizes: Mapping[str, Any],
) -> dict[str, str]:
    """Heading -> SVG, from panel -> group -> `roc_curve` and `calibration_curve`.

    Of more than `MAX_GROUPS` groups those with most examples in `sizes` are drawn.
    """
    largest = sorted(sizes, key=lambda name: -sizes[name])[:MAX_GROUPS]
    shown = {name: f"{name} (n = {sizes[name]:,})" for name in sizes if name in largest}
    drawn = {}
    for panels, (heading, axes) in zip((roc, calibration), _AXES.items(), strict=True):
        kept = {
            title: {label: own[name] for name, label in shown.items() if name in own}
            for title, own in panels.items()
        }
        drawn[f"{heading}, with 95 % bands"] = _draw(kept, *axes)
    return drawn


def _draw(panels: Mapping[str, Mapping[str, np.ndarray]], x_label: str, y_label: str) -> str:
    """A picture for each network, side by side where there is room; in each a line and a band for
    each group."""

    def draw(title: str, curves: Mapping[str, np.ndarray], canvas: Any) -> None:
        axis = canvas.subplots()
        axis.plot([0, 1], [0, 1], ":", color="#737373")
        for name, points in curves.items():
            points = points[~np.isnan(points).any(1)]
            marker = "." if len(points) <= 10 else None
            (line,) = axis.plot(
                *points[:, :2].T, marker=marker, linewidth=1.2, label=shown_name(name)
            )
            axis.fill_between(
                points[:, 0], *points[:, 2:4].T, color=line.get_color(), alpha=0.15, linewidth=0
            )
        axis.set(title=title, xlabel=x_label, ylabel=y_label)
        axis.legend(fontsize=8)

    size = (3.6, 3.6) if len(panels) > 1 else (5.0, 4.2)
    drawn = [figure(functools.partial(draw, *panel), size=size) for panel in panels.items()]
    return "\n".join(drawn)
