"""Tables, sentences and figures of many methods over several settings."""

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fairjax.metrics import group_cells
from fairjax.metrics.ranks import Ranks, rank_methods
from fairjax.metrics.rate_comparison import RateComparison
from fairjax.report.plots import figure
from fairjax.report.tables import moved

SHOWN = (
    "accuracy",
    "worst_group_accuracy",
    "worst_group_recall",
    "auc",
    "worst_group_auc",
    "auc_gap",
    "equalized_odds_difference",
    "equal_opportunity_difference",
    "demographic_parity_difference",
)
Results = Mapping[str, Mapping[str, Any]]


def file_name(name: str) -> str:
    """A name for a file, of letters, digits and dashes; others are told apart by their code."""
    return re.sub(r"[^A-Za-z0-9.-]", lambda found: f"_{ord(found[0]):x}", name)


def row_results(
    rows: Sequence[str],
    rivals: Sequence[str],
    judged: RateComparison,
    group_names: Sequence[str],
) -> dict[str, dict[str, Any]]:
    """The `results` of a setting by row; changes are from the first row and from each row's rival.

    Args:
      rows: names of the first rows of `judged`, plain training first.
      rivals: those of them whose rivals follow, in this order.
      judged: all of them.
      group_names: G names.

    Returns:
      `{row: {metric, "std", "per_seed", "ci95", "ci95_vs_plain", "change_vs_plain",
      "change_vs_rival", "ci95_vs_rival", "levelling_down", "by_group"}}`.
    """
    results = {}
    for i, row in enumerate(rows):
        values = {name: judged.metrics[name][i] for name in SHOWN}
        means = {name: judged.mean(name, i) for name in SHOWN}
        result: dict[str, Any] = {name: mean for name, (mean, *_) in means.items()}
        result["std"] = {
            name: float(each.std(ddof=min(1, len(each) - 1))) for name, each in values.items()
        }
        result["per_seed"] = {name: each.tolist() for name, each in values.items()}
        result["ci95"] = {name: list(ends) for name, (_, *ends) in means.items()}
        references = {f"vs_{rows[0]}": 0}
        if row in rivals:
            references["vs_rival"] = len(rows) + list(rivals).index(row)
        for key, reference in references.items():
            changes = {name: judged.change(name, i, reference) for name in SHOWN}
            result[f"change_{key}"] = {name: change for name, (change, *_) in changes.items()}
            result[f"ci95_{key}"] = {name: list(ends) for name, (_, *ends) in changes.items()}
        result["levelling_down"] = {}
        for kind in ("accuracy", "recall"):
            group, *change = judged.worst_change(kind, i, 0)
            result["levelling_down"][kind] = {"group": group_names[group], "change": change}
        result["by_group"] = judged.group_table(i, group_names).as_dict()
        results[row] = result
    return results


def comparison_cells(
    settings: Mapping[str, Results],
    criterion: str,
    left_out: Mapping[str, Mapping[str, str]] | None = None,
) -> tuple[list[str], list[list[tuple[str, str]]]]:
    """Columns and cells of the table, each a value and its 95 % interval, for `write_report`.

    What was `left_out` of a setting, method -> reason, has a row that says so.
    """
    gap = f"{criterion}_difference"
    columns = ["row", "accuracy", f"{criterion.replace('_', ' ')} gap", "worst group recall"]
    columns += [
        "worst group AUC",
        "gap vs plain",
        "accuracy vs plain",
        "gap vs equally accurate plain+thresholds",
    ]
    columns += ["worst change of a group's accuracy", "of a group's recall"]
    cells = []
    for setting, results in settings.items():
        for row, result in results.items():
            line = [(f"{setting}: {row}" if len(settings) > 1 else row, "")]
            for name in ("accuracy", gap, "worst_group_recall", "worst_group_auc"):
                scored = name != "worst_group_auc" or not row.endswith("+thresholds")
                cell = _cell(result[name], result["ci95"][name], ".4f")
                line.append(cell if scored else ("", ""))
            for key, name in (("plain", gap), ("plain", "accuracy"), ("rival", gap)):
                changes = result.get(f"change_vs_{key}")
                if changes is None or (key == "plain" and row == "plain"):
                    line.append(("", ""))
                else:
                    line.append(_cell(changes[name], result[f"ci95_vs_{key}"][name], "+.4f"))
            for kind in ("accuracy", "recall"):
                worst = result["levelling_down"][kind]
                change, *ends = worst["change"]
                value, interval = _cell(change, ends, "+.4f")
                line.append(
                    ("", "") if row == "plain" else (f"{value} ({worst['group']})", interval)
                )
            cells.append(line)
        for method, reason in (left_out or {}).get(setting, {}).items():
            name = f"{setting}: {method}" if len(settings) > 1 else method
            empty = [("", "")] * (len(columns) - 2)
            cells.append([(name, f"left out: {reason}"), ("left out", ""), *empty])
    return columns, cells


def effect_results(
    weights: Mapping[str, np.ndarray], judged: RateComparison
) -> dict[str, dict[str, list[float]]]:
    """Main effects and pairs of `compare.effects`: `{effect: {metric: [change, low, high]}}`."""
    num_rows = len(judged.metrics["accuracy"])
    return {
        effect: {
            name: list(judged.contrast(name, np.pad(each, (0, num_rows - len(each)))))
            for name in SHOWN
            if "auc" not in name
        }
        for effect, each in weights.items()
    }


def effect_tables(
    settings: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]], gap: str
) -> dict[str, tuple[list[str], list[list[tuple[str, str]]]]]:
    """Tables of main effects and pairs for `write_report`, of the settings that have some."""
    names = [gap, "accuracy", "worst_group_accuracy", "worst_group_recall"]
    columns = ["effect", *(name.replace("_", " ") for name in names)]
    return {
        f"{setting}: main effects and pairs": (
            columns,
            [
                [(effect, ""), *(_cell(each[name][0], each[name][1:], "+.4f") for name in names)]
                for effect, each in effects.items()
            ],
        )
        for setting, effects in settings.items()
        if effects
    }


def groups_of_settings(
    settings: Mapping[str, Results], rows: Sequence[str]
) -> dict[str, tuple[list[str], list[list[tuple[str, str]]]]]:
    """The tables by group of some rows, for `write_report`; rates of predictions, without AUC."""
    return {
        f"{setting}: {row}" if len(settings) > 1 else row: group_cells(results[row]["by_group"])
        for setting, results in settings.items()
        for row in dict.fromkeys(rows)
        if row in results
    }


def _cell(value: float | None, interval: Sequence[float | None], form: str) -> tuple[str, str]:
    if value is None or not math.isfinite(value):
        return "undefined", ""
    low, high = interval
    known = low is not None and high is not None and math.isfinite(low + high)
    return format(value, form), f"[{low:{form}}, {high:{form}}]" if known else ""


def comparison_sentence(settings: Mapping[str, Results], criterion: str) -> str:
    """What came out: which rows are clearly better than plain training, and than its rivals.

    Of up to two settings by name, of more by the number of settings. Only changes whose interval
    excludes 0 count. No row is picked by its test result.
    """
    gap, what = f"{criterion}_difference", criterion.replace("_", " ")
    clear = {name: _clear(results, gap) for name, results in settings.items()}
    if len(settings) > 2:
        parts = {
            f"smaller {what} gap than plain training": "gap",
            "higher accuracy of the worst group": "worst",
            "smaller gap than thresholds on plain training at the same accuracy": "rival",
            "a group whose recall falls": "down",
        }
        told = [
            f"{text}, in {_counted([each[key] for each in clear.values()])}"
            for text, key in parts.items()
        ]
        return f"Clear in how many of {len(settings)} settings: {'. '.join(told)}. {_ONE_BY_ONE}"
    told = []
    for setting, found in clear.items():
        others = [row for row in settings[setting] if row != "plain"]
        names = {key: _listed(rows, others) for key, rows in found.items()}
        both = [row for row in found["gap"] if row in found["down"]]
        told.append(
            f"On {setting} the {what} gap of plain training, "
            f"{_number(settings[setting]['plain'][gap])}, clearly falls with {names['gap']}; "
            "clearly below thresholds on plain training at the same accuracy: "
            f"{names['rival']}. The accuracy of the worst group clearly rises with "
            f"{names['worst']}"
            + (
                f". Levelling down: recall of a group clearly falls with {_listed(both, others)}"
                if both
                else ""
            )
        )
    return f"{'. '.join(told)}. {_ONE_BY_ONE}"


_ONE_BY_ONE = "Intervals are 95 %, one comparison at a time."


def _clear(results: Results, gap: str) -> dict[str, list[str]]:
    """Rows by what their intervals show: a smaller gap than plain training's and than the rival's,
    a better worst group, and a group that is worse off."""

    def rows(key: str, name: str, how: str) -> list[str]:
        intervals = {row: each.get(f"ci95_vs_{key}", {}) for row, each in results.items()}
        return [row for row, each in intervals.items() if moved(each.get(name, (None,) * 2)) == how]

    down = [
        row
        for row, each in results.items()
        if moved(each["levelling_down"]["recall"]["change"][1:]) == "falls"
    ]
    return {
        "gap": rows("plain", gap, "falls"),
        "rival": rows("rival", gap, "falls"),
        "worst": rows("plain", "worst_group_accuracy", "rises"),
        "down": down,
    }


def _counted(found: Sequence[Sequence[str]]) -> str:
    """ "3: a, b; 1: c": the names by how many of the lists hold them."""
    times = {name: sum(name in names for names in found) for names in found for name in names}
    by_count = {count: [n for n in times if times[n] == count] for count in set(times.values())}
    told = [f"{count}: {', '.join(by_count[count])}" for count in sorted(by_count, reverse=True)]
    return "; ".join(told) or "none: no row"


def _listed(names: Sequence[str], others: Sequence[str]) -> str:
    """The names, or those that are missing where these are fewer."""
    missing = [name for name in others if name not in names]
    if not missing:
        return "every other row"
    if len(missing) < len(others) / 2:
        return f"every other row but {', '.join(missing)}"
    return ", ".join(name for name in others if name in names) or "no row"


def _number(value: float | None) -> str:
    return "undefined" if value is None or not math.isfinite(value) else f"{value:.3f}"


def chance_note(settings: Mapping[str, Results], left_out: Mapping[str, Mapping[str, str]]) -> str:
    """How many comparisons there are, and how many of them chance alone would make clear."""
    compared = sum(len(rows) - 1 for rows in settings.values())
    return (
        f"{compared} rows are compared with plain, at 95 % each: of {compared} that change nothing "
        f"about {compared / 20:.1f} would be told apart by chance. "
        f"Methods left out: {sum(map(len, left_out.values()))}."
    )


def as_csv(settings: Mapping[str, Results]) -> str:
    """One line per setting, row and metric."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    ends = ("low", "high")
    columns = ["mean", "std", *ends]
    for key in ("plain", "rival"):
        columns += [f"change_vs_{key}", *(f"{end}_vs_{key}" for end in ends)]
    writer.writerow(["setting", "row", "metric", *columns])
    for setting, results in settings.items():
        for row, result in results.items():
            for name in SHOWN:
                line = [result[name], result["std"][name], *result["ci95"][name]]
                for key in ("plain", "rival"):
                    change = result.get(f"change_vs_{key}", {}).get(name, "")
                    line += [change, *result.get(f"ci95_vs_{key}", {}).get(name, ("", ""))]
                writer.writerow([setting, row, name, *line])
    return text.getvalue()


def as_latex(columns: Sequence[str], cells: Sequence[Sequence[tuple[str, str]]]) -> str:
    """The table for a paper, with the packages booktabs and makecell."""

    def escape(text: str) -> str:
        text = text.replace("\\", "\\textbackslash ")
        text = re.sub(r"([&%$#_{}])", r"\\\1", text)
        return text.replace("~", "\\textasciitilde ").replace("^", "\\textasciicircum ")

    def cell(value: str, interval: str) -> str:
        small = f"\\\\ \\scriptsize {escape(interval)}" if interval else ""
        return f"\\makecell[r]{{{escape(value)}{small}}}" if small else escape(value)

    body = [" & ".join(cell(*each) for each in row) for row in cells]
    head = " & ".join(f"\\makecell{{{escape(column)}}}" for column in columns)
    rows = "".join(f"{line} \\\\\n" for line in body)
    return (
        f"\\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}\n\\toprule\n{head} \\\\\n\\midrule\n"
        f"{rows}\\bottomrule\n\\end{{tabular}}\n"
    )


def rank_diagram(names: Sequence[str], ranks: Ranks) -> str:
    """Critical-difference diagram as SVG: average ranks, and bars over what is not told apart."""

    def draw(canvas):
        axis = canvas.subplots()
        count, bars = len(names), ranks.cliques
        order = np.argsort(ranks.average, kind="stable")
        axis.set(xlim=(0.5, count + 0.5), ylim=(-0.6 * count - 0.5, 1.4 + 0.3 * len(bars)))
        axis.spines[["left", "right", "bottom"]].set_visible(False)
        axis.xaxis.tick_top()
        axis.set_xticks(range(1, count + 1))
        axis.set_yticks([])
        top = axis.get_ylim()[1]
        for place, method in enumerate(order):
            rank, level = ranks.average[method], -0.6 * (place + 1)
            axis.plot([rank, rank, count + 0.4], [top, level, level], color="0.5", linewidth=0.8)
            axis.text(count + 0.45, level, f"{names[method]} {rank:.2f}", va="center", fontsize=8)
        for number, members in enumerate(bars):
            ends = ranks.average[list(members)]
            height = 0.3 * (number + 0.5)
            axis.plot([ends.min(), ends.max()], [height, height], color="#b2452f", linewidth=4)
        axis.set_title(
            f"average rank, 1 is best; critical difference {ranks.critical_difference:.2f}, "
            f"Friedman p = {ranks.p_value:.2g}",
            fontsize=9,
        )

    return figure(draw, size=(9.0, 1.6 + 0.26 * len(names)))


def rank_settings(
    settings: Mapping[str, Results], criterion: str
) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """Average ranks over the settings of the rows that all of them have.

    Returns:
      By measure the ranks and tests, the diagrams, and notes; all empty where fewer than two
      settings or rows can be ranked. A setting where a row's gap is undefined is left out.
    """
    gap = f"{criterion}_difference"
    names = [
        row
        for row in next(iter(settings.values()))
        if all(row in results for results in settings.values())
    ]
    of = lambda name, own: np.array([[each[row][name] for row in names] for each in own], float)
    known = [each for each in settings.values() if np.isfinite(of(gap, [each])).all()]
    if len(known) < 2 or len(names) < 2:
        return {}, {}, []
    found, figures = {}, {}
    accuracy, gaps = of("accuracy", known), of(gap, known)
    distance = np.hypot(accuracy.max(1, keepdims=True) - accuracy, gaps)
    measures = {"distance to the best accuracy without a gap": -distance, gap: -gaps}
    for what, scores in {**measures, "accuracy": accuracy}.items():
        ranks = rank_methods(scores)
        found[what] = {
            "average_rank": dict(zip(names, ranks.average.tolist(), strict=True)),
            "friedman_p": ranks.p_value,
            "critical_difference": ranks.critical_difference,
        }
        figures[f"Ranks over {len(known)} settings by {what}"] = rank_diagram(names, ranks)
    notes = [
        f"Ranks are over {len(known)} settings; settings of one data set are not independent, "
        "and below about ten the tests seldom find anything."
    ]
    if lost := [name for name, each in settings.items() if each not in known]:
        notes.append(f"Ranks leave out {', '.join(lost)}: the gap of a row is undefined there.")
    return found, figures, notes
