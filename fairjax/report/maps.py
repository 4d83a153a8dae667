"""Where methods help: maps of paired changes over the axes of controlled data."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from fairjax.report.plots import figure


class Effects(NamedTuple):
    """What M methods change in each cell against plain training."""

    change: np.ndarray
    """float64 `[M, ...]`: the mean over draws."""
    half_width: np.ndarray
    """float64 `[M, ...]`: of its 95 % interval."""
    p_value: np.ndarray
    clear: np.ndarray
    """bool `[M, ...]`: below 5 % after Benjamini and Hochberg's correction for all of them."""

    def counts(self, methods: Sequence[str], good: int) -> Iterator[tuple[str, int, int, int]]:
        """Per method the cells where it clearly helps, clearly hurts, and all others."""
        for i, name in enumerate(methods):
            signed = np.where(self.clear[i], np.sign(self.change[i]) * good, 0)
            yield name, int((signed > 0).sum()), int((signed < 0).sum()), int((signed == 0).sum())


def paired_effects(values: Float[np.ndarray, "M *cells R"]) -> Effects:
    """Changes from the first of M + 1 methods, tested over R draws that all methods share.

    Args:
      values: a metric of every method, cell and draw, plain training first; R >= 2.

    Returns:
      Effects of the others. A change of exactly 0 in all draws has p-value 1.

    Raises:
      ValueError: one method, or fewer than 2 draws.

    Source: Student's paired t-test; Benjamini and Hochberg 1995.

    >>> values = np.array([[[0.5, 0.6, 0.7]], [[0.6, 0.71, 0.79]]])
    >>> effects = paired_effects(values)
    >>> effects.change.round(2).tolist(), effects.clear.tolist()
    ([[0.1]], [[True]])
    """
    from scipy import stats

    if len(values) < 2 or values.shape[-1] < 2:
        raise ValueError(f"need two methods and two draws at least, got shape {values.shape}")
    moved = values[1:] - values[:1]
    count = moved.shape[-1]
    change, error = moved.mean(-1), moved.std(-1, ddof=1) / np.sqrt(count)
    with np.errstate(divide="ignore", invalid="ignore"):
        p_value = 2 * stats.t.sf(np.abs(change / error), count - 1)
    p_value = np.where(np.isnan(p_value), 1.0, p_value)
    adjusted = stats.false_discovery_control(p_value.ravel()).reshape(p_value.shape)
    half_width = stats.t.ppf(0.975, count - 1) * error
    return Effects(change, half_width, p_value, adjusted < 0.05)


def effect_maps(
    effects: Effects,
    *,
    methods: Sequence[str],
    shares: Sequence[float],
    strengths: Sequence[float],
    sizes: Sequence[int],
    good: int,
) -> str:
    """SVG: a row per method, a panel per training size; blue helps, red hurts, a dot is clear.

    Args:
      effects: `[methods, shares, strengths, sizes]`.
      methods: names.
      shares: of the minority, from left to right.
      strengths: of the shortcut, upwards.
      sizes: of training sets.
      good: 1 where more is better, -1 where less is.
    """
    limit = max(float(np.abs(effects.change).max()), 1e-3)

    def draw(canvas):
        axes = canvas.subplots(len(methods), len(sizes), squeeze=False, sharex=True, sharey=True)
        for row, method in enumerate(methods):
            for column, size in enumerate(sizes):
                axis = axes[row, column]
                change = effects.change[row, :, :, column].T
                picture = axis.imshow(
                    good * change,
                    cmap="RdBu",
                    vmin=-limit,
                    vmax=limit,
                    origin="lower",
                    aspect="auto",
                )
                for (y, x), value in np.ndenumerate(change):
                    dot = " •" if effects.clear[row, x, y, column] else ""
                    dark = abs(value) > 0.6 * limit
                    axis.text(
                        x,
                        y,
                        f"{100 * value:+.1f}{dot}",
                        ha="center",
                        va="center",
                        fontsize=7,
                        color="white" if dark else "black",
                    )
                axis.set_xticks(range(len(shares)), [f"{share:g}" for share in shares])
                axis.set_yticks(range(len(strengths)), [f"{each:g}" for each in strengths])
                axis.tick_params(labelsize=7)
                if row == 0:
                    axis.set_title(f"{size} training rows", fontsize=9)
                if column == 0:
                    axis.set_ylabel(f"{method}\nshortcut", fontsize=8)
                if row == len(methods) - 1:
                    axis.set_xlabel("minority share", fontsize=8)
        bar = canvas.colorbar(picture, ax=axes, shrink=0.6, aspect=40)
        bar.set_label("better (blue), worse (red); numbers: change in points", fontsize=8)

    size = (1.6 + 2.6 * len(sizes), 0.8 + 0.55 * len(methods) * max(2, len(strengths)))
    return figure(draw, size=size)


def map_sentence(effects: Effects, methods: Sequence[str], metric: str, *, good: int) -> str:
    """How often each method clearly helps and hurts."""
    told = [
        f"{name} clearly helps in {helps} and hurts in {hurts}"
        for name, helps, hurts, _ in effects.counts(methods, good)
    ]
    total = effects.change[0].size
    return f"Of {total} cells, by {metric.replace('_', ' ')}: {'; '.join(told)}."


def as_csv(
    effects: Mapping[str, Effects],
    *,
    methods: Sequence[str],
    shares: Sequence[float],
    strengths: Sequence[float],
    sizes: Sequence[int],
) -> str:
    """One line per metric, method and cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["metric", "method", "share", "strength", "size", "change", "low", "high", "p", "clear"]
    )
    for metric, each in effects.items():
        for place, change in np.ndenumerate(each.change):
            method, share, strength, size = place
            width = each.half_width[place]
            writer.writerow(
                [metric, methods[method], shares[share], strengths[strength], sizes[size]]
                + [change, change - width, change + width, each.p_value[place]]
                + [bool(each.clear[place])]
            )
    return text.getvalue()
