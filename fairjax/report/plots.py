"""Plots as SVG text, equal for equal data."""

import html
import io
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

COLORS = (
    *("#1f6fb2", "#c2410c", "#2e7d32", "#b91c1c", "#6d28d9"),
    *("#7c4a2d", "#be185d", "#525252", "#737300", "#0e7490"),
)
"""Of lines and points; each stands out from white by 4.5 to 1."""
_MARKERS = "osD^vP*X"


def figure(draw: Callable[[Any], None], *, size: tuple[float, float] = (8.0, 3.2)) -> str:
    """SVG text of what `draw(figure)` draws on a Matplotlib figure of `size` inches.

    Equal drawings give equal text: no dates, no random ids. Names are shown as they are.
    """
    import matplotlib
    from cycler import cycler
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # no formulas: a group may be called "$5 to $10"
    settings: Any = {"svg.hashsalt": "fairjax", "svg.fonttype": "none", "text.parse_math": False}
    settings["axes.prop_cycle"] = cycler(color=COLORS)
    with matplotlib.rc_context(settings):
        canvas = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(canvas)
        draw(canvas)
        text = io.StringIO()
        canvas.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def lines(panels: Mapping[str, Mapping[str, Any]], *, x_label: str) -> str:
    """Line charts, three to a row: panel title -> line name -> values `[E]` or runs `[S, E]`.

    Several runs are drawn as their mean with the range between the lowest and the highest.
    """
    import numpy as np

    def draw(canvas):
        axes = canvas.subplots(num_rows, num_columns, squeeze=False).ravel()
        for axis in axes[len(panels) :]:
            axis.remove()
        for axis, (title, series) in zip(axes, panels.items(), strict=False):
            for name, values in series.items():
                name = shown_name(name)
                values = np.atleast_2d(np.asarray(values))
                steps = np.arange(1, values.shape[1] + 1)
                (line,) = axis.plot(steps, values.mean(0), label=name, linewidth=1.2)
                if len(values) > 1:
                    axis.fill_between(
                        steps, values.min(0), values.max(0), color=line.get_color(), alpha=0.2
                    )
            axis.set_title(title, fontsize=10)
            axis.set_xlabel(x_label)
            axis.legend(fontsize=7)

    num_columns = min(3, len(panels))
    num_rows = -(-len(panels) // num_columns)
    return figure(draw, size=(3.8 * max(2, num_columns), 2.9 * num_rows))


def trade_off(
    points: Mapping[str, tuple[float, float]], *, x_label: str, y_label: str, title: str
) -> str:
    """Scatter of named models in two metrics, such as accuracy against disparity.

    Each point has a colour and a mark of its own, and says its name and values under the pointer;
    a model whose metrics are undefined has none, which the legend says.
    """
    known = {name for name, (x, y) in points.items() if math.isfinite(x) and math.isfinite(y)}
    looks = zip(itertools.cycle(COLORS), itertools.cycle(_MARKERS), strict=False)

    def draw(canvas):
        axis = canvas.subplots()
        for number, (name, (x, y)) in enumerate(points.items()):
            color, marker = next(looks)
            label = shown_name(name) if name in known else f"{name} (undefined)"
            shown = axis.scatter(
                *([x], [y]) if name in known else ([], []),
                s=28,
                color=color,
                marker=marker,
                label=label,
            )
            shown.set_gid(f"point{number}")
        axis.set(xlabel=x_label, ylabel=y_label, title=title)
        axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))

    svg = figure(draw, size=(7.0, max(3.6, 0.8 + 0.16 * len(points))))
    for number, (name, (x, y)) in enumerate(points.items()):
        if name not in known:
            continue
        told = html.escape(f"{name}: {x_label} {x:.4f}, {y_label} {y:.4f}")
        start = f'<g id="point{number}">'
        svg = svg.replace(start, f"{start}<title>{told}</title>", 1)
    return svg


def trade_offs(settings: Mapping[str, Mapping[str, Any]], gap: str) -> dict[str, str]:
    """Heading -> SVG: accuracy against a gap of every row, a picture for each setting."""
    points = {
        setting: {row: (result[gap], result["accuracy"]) for row, result in results.items()}
        for setting, results in settings.items()
    }
    return {
        f"{setting}: accuracy against {gap}": trade_off(
            own, x_label=gap, y_label="test accuracy", title=""
        )
        for setting, own in points.items()
    }


def shown_name(name: str) -> str:
    """A name as Matplotlib's legends show it: one that begins with "_" would be left out."""
    return f" {name}" if name.startswith("_") else name
