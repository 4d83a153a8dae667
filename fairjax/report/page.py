"""The one-file HTML page of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairjax.report.tables import Rows

_TEMPLATE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ title }}</title>
<style>
 :root { color-scheme: light dark; --text: #1b1f24; --page: #fff; --quiet: #57606a; --line: #d8dee4;
   --code: #f2f4f6; --mark: #2f6fb2; }
 @media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --page: #0d1117; --quiet: #9da7b3;
   --line: #30363d; --code: #161b22; --mark: #6ea8e0; } }
 body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem;
   color: var(--text); background: var(--page); }
 h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
 .answer { font-size: 1.1rem; border-left: 4px solid var(--mark); padding-left: 1rem; }
 .scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; }
 th, td { padding: .3rem .5rem; text-align: right; border-bottom: 1px solid var(--line);
   vertical-align: top; } td { white-space: nowrap; }
 th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
   background: var(--page); }
 @media (max-width: 40rem) { td:first-child { white-space: normal; overflow-wrap: anywhere;
   min-width: 8rem; }
  .cards, .cards tbody { display: block; } .cards thead { display: none; }
  .cards tr { display: grid; grid-template-columns: repeat(3, 1fr); padding: .3rem 0;
   border-bottom: 1px solid var(--line); }
  .cards td { border: 0; padding: .1rem; } .cards td:first-child { grid-column: 1 / -1;
   font-weight: 600; }
  .cards td:not(:first-child)::before { content: attr(data-head) " "; color: var(--quiet);
   font-size: .75rem; } }
 th button { all: unset; cursor: pointer; font-weight: 600; } th button:focus-visible { outline:
   2px solid var(--mark); } [aria-sort=ascending] button::after { content: " \\2191"; }
 [aria-sort=descending] button::after { content: " \\2193"; }
 summary { cursor: pointer; font-weight: 600; margin: .6rem 0 .2rem; }
 small { color: var(--quiet); display: block; } figure { margin: 1rem 0; display: flex;
   flex-wrap: wrap; gap: .5rem; } svg { max-width: 100%; height: auto; background: #fff;
   border-radius: 4px; }
 @media (max-width: 40rem) { figure { overflow-x: auto; } svg { max-width: none; flex: none; } }
 code, pre { background: var(--code); padding: .15rem .35rem; border-radius: 4px; }
 pre { overflow-x: auto; padding: .7rem; } dt { font-weight: 600; }
 dd, li, p { overflow-wrap: anywhere; }
</style>
{% macro table(columns, rows, kind="") %}<div class="scroll" tabindex="0"><table class="{{ kind
}}"><thead><tr>{% for column in
columns %}<th scope="col"><button>{{ column }}</button></th>{% endfor %}
</tr></thead><tbody>
{% for row in rows %}<tr>{% for cell in row %}{% set parts = cell[0].split(" ± ") if loop.index0
else [cell[0]] %}<td data-head="{{ columns[loop.index0] }}">{{ parts[0]
}}{% if parts[1] %}<small>± {{ parts[1] }}</small>{% endif %}{% if cell[1] %}
<small>{{ cell[1] }}</small>{% endif %}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>{% endmacro %}
<h1>{{ title }}</h1>
<p>{{ question }}</p>
<p class="answer">{{ answer }}</p>
<h2>Results</h2>
{{ table(columns, rows) }}
<p><small>{{ caption }}</small></p>
{% for name, (columns, rows) in tables %}<h2>{{ name }}</h2>{{ table(columns, rows) }}
{% endfor %}{% if groups %}<h2>By group</h2>
{% for name, (columns, rows) in groups %}<details{% if loop.index < 3 %} open{% endif %}>
<summary>{{ name }}</summary>{{ table(columns, rows, "cards") }}</details>
{% endfor %}<p><small>{{ group_caption }}</small></p>{% endif %}
{% for name, svg in figures %}<h2>{{ name }}</h2><figure>{{ svg | safe }}</figure>
{% endfor %}
{% if notes %}<h2>Notes</h2><ul>{% for note in notes %}<li>{{ note }}</li>{% endfor %}
</ul>{% endif %}
<h2>Run it again</h2><pre>{{ command }}</pre>
<dl>{% for name, value in facts %}<dt>{{ name }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>
<script>
document.querySelectorAll("th button").forEach((button) => button.addEventListener("click", () => {
  const head = button.parentElement, body = head.closest("table").tBodies[0];
  const rising = head.getAttribute("aria-sort") !== "ascending";
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", rising ? "ascending" : "descending");
  const text = (row) => row.cells[head.cellIndex].firstChild.textContent.trim();
  const order = (a, b) => text(a).localeCompare(text(b), undefined, { numeric: true });
  const number = (a, b) => parseFloat(text(a)) - parseFloat(text(b)) || order(a, b);
  const rows = [...body.rows].sort(head.cellIndex ? number : order);
  body.append(...(rising ? rows : rows.reverse()));
}));
</script>
</html>
"""


GROUP_CAPTION = (
    "Below each rate its 95 % interval, of the same replicates as above. Selected: predicted to be "
    "of class 1; TPR, FPR: of those that are and that are not of class 1; ECE: expected "
    "calibration error, 15 bins, which reads high for few examples. n and positives are of one "
    "test split."
)


def write_report(
    path: Path,
    *,
    title: str,
    question: str,
    answer: str,
    columns: Sequence[str],
    rows: Rows,
    caption: str,
    tables: Mapping[str, tuple[Sequence[str], Rows]] | None = None,
    groups: Mapping[str, tuple[Sequence[str], Rows]] | None = None,
    figures: Mapping[str, str],
    notes: Sequence[str],
    command: str,
    facts: Mapping[str, Any],
) -> None:
    """Write a self-contained HTML page: nothing loaded from elsewhere, light or dark as its reader
    has it; a click on a column's head sorts the table.

    Args:
      path: the file.
      title: heading.
      question: what was asked, one sentence.
      answer: what came out, one sentence.
      columns: heads of the result table.
      rows: its cells.
      caption: under the table: what the numbers are.
      tables: heading -> columns and cells of a further table.
      groups: row -> columns and cells of its table by group, as `metrics.group_cells` makes them;
        all but the first two are folded.
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
        tables=(tables or {}).items(),
        groups=(groups or {}).items(),
        group_caption=GROUP_CAPTION,
        figures=figures.items(),
        notes=notes,
        command=command,
        facts=facts.items(),
    )
    path.write_text(html, encoding="utf-8")
