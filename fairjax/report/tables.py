"""From a comparison of rows to plain values and to the cells of a table."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fairjax.metrics import Comparison, group_tables, small_cells, undefined

Rows = Sequence[Sequence[tuple[str, str]]]
"""Cells of a table: a value and a smaller second line, such as its interval, or ""."""

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
    """The `results` of `summary.json` by row; notes on what is undefined or rests on little.

    Each row has `by_group`, its table by group as of `GroupTable.as_dict`.
    """
    results, tables = {}, group_tables(rows, comparison, group_names)
    first = {name: np.asarray(values[0, 0]) for name, values in comparison.metrics.items()}
    notes = small_cells(first, group_names)
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
        result["by_group"] = tables[row].as_dict()
        results[row] = result
        per_seed = [
            undefined({name: np.asarray(x[seed]) for name, x in own.items()}, group_names)
            for seed in range(len(own["accuracy"]))
        ]
        notes += [f"{row}: {sentence}" for sentence in sorted(set().union(*per_seed))]
    return results, notes


def moved(interval: Sequence[Any]) -> str:
    """What an interval of a change shows, in words: a change that may be 0 is none."""
    low, high = (np.nan if bound is None else bound for bound in interval)
    if np.isnan([low, high]).any():
        return "cannot be compared"
    return "falls" if high < 0 else "rises" if low > 0 else "does not clearly change"


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


def as_markdown(columns: Sequence[str], rows: Rows) -> str:
    """A table in Markdown, a line per row.

    >>> print(as_markdown(["row", "a_b"], [[("x|y", ""), ("0.5", "[0.4, 0.6]")]]))
    | row | a\\_b |
    | --- | ---: |
    | x\\|y | 0.5 \\[0.4, 0.6\\] |
    """
    lines = [[plain_text(column) for column in columns], ["---", *["---:"] * (len(columns) - 1)]]
    lines += [[plain_text(" ".join(filter(None, cell))) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain_text(text: str) -> str:
    """Text for Markdown as it is: names of the data neither end a cell nor begin markup."""
    for char in "\\`*_<>|[]#":
        text = text.replace(char, f"\\{char}")
    return " ".join(text.split())
