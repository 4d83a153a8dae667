"""Plots as SVG and the one-file HTML report of a run."""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

_TEMPLATE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ title }}</title>
<style>
 body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
   color: #1b1f24; background: #fff; }
 h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
 .answer { font-size: 1.1rem; border-left: 4px solid #2f6fb2; padding-left: 1rem; }
 .scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
 th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #d8dee4;
   white-space: nowrap; vertical-align: top; }
 th:first-child, td:first-child { text-align: left; }
 small { color: #57606a; display: block; } figure { margin: 1rem 0; } svg { max-width: 100%;
   height: auto; } code, pre { background: #f2f4f6; padding: .15rem .35rem; border-radius: 4px; }
 pre { overflow-x: auto; padding: .7rem; } dt { font-weight: 600; }
</style>
<h1>{{ title }}</h1>
<p>{{ question }}</p>
<p class="answer">{{ answer }}</p>
<h2>Results</h2>
<div class="scroll"><table><thead><tr>{% for column in columns %}<th>{{ column }}</th>{% endfor %}
</tr></thead><tbody>
{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell[0] }}{% if cell[1] %}
<small>{{ cell[1] }}</small>{% endif %}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
<p><small>{{ caption }}</small></p>
{% for name, svg in figures %}<h2>{{ name }}</h2><figure>{{ svg | safe }}</figure>
{% endfor %}
{% if notes %}<h2>Notes</h2><ul>{% for note in notes %}<li>{{ note }}</li>{% endfor %}
</ul>{% endif %}
<h2>Run it again</h2><pre>{{ command }}</pre>
<dl>{% for name, value in facts %}<dt>{{ name }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>
</html>
"""


def write_report(
    path: Path,
    *,
    title: str,
    question: str,
    answer: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[tuple[str, str]]],
    caption: str,
    figures: Mapping[str, str],
    notes: Sequence[str],
    command: str,
    facts: Mapping[str, Any],
) -> None:
    """Write a self-contained HTML page: no scripts, nothing loaded from elsewhere.

    Args:
      path: the file.
      title: heading.
      question: what was asked, one sentence.
      answer: what came out, one sentence.
      columns: heads of the result table.
      rows: its cells, each a value and a smaller second line (an interval) or "".
      caption: under the table: what the numbers are.
      figures: heading -> SVG text, from `figure`.
      notes: undefined metrics, dropped rows and the like.
      command: the command line that repeats the run.
      facts: device, versions, times.
    """
    import jinja2

    template = jinja2.Environment(autoescape=True).from_string(_TEMPLATE)
    html = template.render(
        title=title,
        question=question,
        answer=answer,
        columns=columns,
        rows=rows,
        caption=caption,
        figures=figures.items(),
        notes=notes,
        command=command,
        facts=facts.items(),
    )
    path.write_text(html, encoding="utf-8")


def figure(draw: Callable[[Any], None], *, size: tuple[float, float] = (8.0, 3.2)) -> str:
    """SVG text of what `draw(figure)` draws on a Matplotlib figure of `size` inches.

    Equal drawings give equal text: no dates, no random ids.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "fairjax", "svg.fonttype": "none"}):
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
    """Scatter of named models in two metrics, such as accuracy against disparity."""

    def draw(canvas):
        axis = canvas.subplots()
        for name, (x, y) in points.items():
            if math.isfinite(x) and math.isfinite(y):
                axis.scatter([x], [y], s=28, marker="s" if "@" in name else "o", label=name)
        axis.set(xlabel=x_label, ylabel=y_label, title=title)
        axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))

    return figure(draw, size=(7.0, 3.6))
