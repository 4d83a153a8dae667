"""From test logits to the table, the intervals and the page that every experiment shows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.cli import table
from experiments.files import replacing
from experiments.run import Run
from fairjax import report
from fairjax.metrics import Comparison, undefined

_SHORT = {
    "equal_opportunity": "EqOpp",
    "equalized_odds": "EqOdds",
    "demographic_parity": "DemPar",
    "_difference": " diff",
    "_deviation": " dev",
    "worst_group_": "worst ",
    "_": " ",
}


def summarise(
    rows: Sequence[str],
    comparison: Comparison,
    group_names: Sequence[str],
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The `results` of `summary.json` by row, and notes on what is undefined."""
    results, notes = {}, []
    for i, row in enumerate(rows):
        own = {name: values[i] for name, values in comparison.metrics.items()}
        scalars = [name for name, values in own.items() if values.ndim == 1]
        result: dict[str, Any] = {name: float(own[name].mean()) for name in scalars}
        for name in ("group_auc", "group_accuracy"):
            result[name] = dict(zip(group_names, own[name].mean(0), strict=True))
        result["std"] = {name: own[name].std(ddof=min(1, len(own[name]) - 1)) for name in scalars}
        result["per_seed"] = {name: own[name] for name in scalars}
        for key, part in (("ci95", comparison.mean), (f"ci95_vs_{rows[0]}", comparison.change)):
            result[key] = {name: [low[i], part.upper[name][i]] for name, low in part.lower.items()}
        results[row] = result
        per_seed = [
            undefined({name: np.asarray(x[seed]) for name, x in own.items()}, group_names)
            for seed in range(len(own["accuracy"]))
        ]
        notes += [f"{row}: {sentence}" for sentence in sorted(set().union(*per_seed))]
    return results, notes


def table_cells(
    results: Mapping[str, Any], shown: Sequence[str]
) -> tuple[list[str], list[list[tuple[str, str]]]]:
    """Columns, and per row the cells: "mean ± std" with the interval as second line, if any."""
    columns = ["row"]
    for name in shown:
        for long, brief in _SHORT.items():
            name = name.replace(long, brief)
        columns.append(name)
    cells = []
    for row, result in results.items():
        line = [(row, "")]
        for name in shown:
            low, high = result["ci95"].get(name, (None, None))
            span = "" if low is None else f"[{low:.4f}, {high:.4f}]"
            spread = f" ± {_number(result['std'][name])}" if name in result["std"] else ""
            line.append((f"{_number(result[name])}{spread}", span))
        cells.append(line)
    return columns, cells


def _number(value: float | None) -> str:
    return "undefined" if value is None or not np.isfinite(value) else f"{value:.4f}"


def show(
    run: Run,
    summary: Mapping[str, Any],
    *,
    title: str,
    question: str,
    answer: str,
    shown: Sequence[str],
    figures: Mapping[str, str],
    legend: str = "",
) -> None:
    """Print the table, the notes and the answer, and write `report.html`.

    Args:
      run: the run.
      summary: what `run.finish` returned.
      title: heading of the page.
      question: what was asked, one sentence.
      answer: what came out, one sentence.
      shown: metrics of the table.
      figures: heading -> SVG.
      legend: what to know about the columns.
    """
    columns, cells = table_cells(summary["results"], shown)
    print(table(columns, [[value for value, _ in line] for line in cells]))
    notes = [*summary["data"]["notes"], *summary["notes"]]
    for note in notes:
        print(f"note: {note}")
    config, page = summary["config"], run.folder / "report.html"
    caption = (
        f"Test split, mean ± standard deviation over {config['num_seeds']} seeds; below, 95 % "
        f"bootstrap interval of the mean ({config['num_replicates']} replicates resampling test "
        f"examples and seeds). {legend}"
    )
    with replacing(page) as partial:
        report.write_report(
            partial,
            title=title,
            question=question,
            answer=answer,
            columns=columns,
            rows=cells,
            caption=caption,
            figures=figures,
            notes=notes,
            command=summary["command"],
            facts={
                "device": summary["device"],
                "versions": ", ".join(f"{k} {v}" for k, v in summary["versions"].items()),
                "data": f"{summary['data']['name']}, fingerprint {summary['data']['fingerprint']}",
                "time": ", ".join(f"{k} {v:.3g}" for k, v in summary["timing"].items()),
            },
        )
    print(f"\n{answer}\nresults in {run.folder}, page {page}")
