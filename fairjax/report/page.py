"""The one-file HTML page of a run."""

from collections.abc import Mapping, Sequence
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
