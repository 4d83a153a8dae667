"""From test logits to the table, the intervals and the page that every experiment shows."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.cli import phase, say, table
from experiments.files import load_arrays, replacing, save_arrays, write_atomically
from experiments.run import Run, data_summary, timed
from fairjax import metrics, report
from fairjax.data import Dataset, Splits
from fairjax.metrics import Comparison, group_cells


def judge(
    logits: Mapping[str, np.ndarray],
    data: Dataset,
    timing: dict[str, float],
    *,
    shown: Sequence[str],
    num_replicates: int,
    splits: Splits | None = None,
    table_fn: Callable[..., dict[str, jax.Array]] = metrics.tabulate,
) -> Comparison:
    """Compare rows by their test logits `[S, n, K]`; looked at once, when all are trained.

    With F splits those of every split and seed, `[F * S, n, K]`, on the test rows of the split.
    """
    phase("judging on the test split")
    rows, options = data.splits["test"], {}
    if splits is not None:
        rows, place = np.unique(splits.test, return_inverse=True)  # of the examples that any tests
        runs = len(next(iter(logits.values())))
        number = np.repeat(np.arange(len(splits.test)), runs // len(splits.test))
        place = place.reshape(splits.test.shape)
        options = {"examples": place[number], "splits": number}
    with timed(timing, "judge_s"):
        return metrics.compare_rows(
            np.stack(list(logits.values())),
            labels=data.labels[rows],
            group=data.group[rows],
            num_groups=data.num_groups,
            shown=shown,
            num_replicates=num_replicates,
            key=jax.random.key(0),
            table_fn=table_fn,
            **options,
        )


def gains(
    row: str,
    logits: Mapping[str, np.ndarray],
    data: Dataset,
    timing: dict[str, float],
    *,
    told_of: Sequence[str],
    **options: Any,
) -> dict[str, dict[str, list[float]]]:
    """What a row gains over every other: `{other: {metric: [mean, low, high]}}`, 95 %, paired.

    With the options that the rows were judged by, it runs the program that judged them.
    """
    ordered = {row: logits[row], **logits}
    change = judge(ordered, data, {} | timing, **options).change
    told: dict[str, dict[str, list[float]]] = {}
    for i, other in enumerate(ordered):
        of = {
            m: [-float(part[m][i]) for part in (change.estimate, change.upper, change.lower)]
            for m in told_of
        }
        if other != row:
            told[other] = of
    return told


def power(data: Dataset, num_seeds: int, splits: Splits | None = None) -> str:
    """How much stands behind a table: splits, seeds, test examples and those of the rarest group.

    Of several splits the one whose rarest group is smallest.
    """
    tested = data.splits["test"][None] if splits is None else splits.test
    counts = np.stack([np.bincount(data.group[rows], minlength=data.num_groups) for rows in tested])
    everywhere = np.bincount(data.group, minlength=data.num_groups)  # where test is balanced
    rarest = int(np.lexsort((everywhere, counts.min(0)))[0])
    times = "" if len(tested) == 1 else f"{len(tested)} splits x "
    return (
        f"{times}{num_seeds} seeds, {tested.shape[1]} test examples"
        f"{'' if len(tested) == 1 else ' each'}, {counts[:, rarest].min()} of them of the rarest "
        f"group ({data.group_names[rarest]})"
    )


def kept_row(
    run: Run, name: str, make: Callable[[], tuple[dict[str, Any], str]]
) -> dict[str, np.ndarray]:
    """The arrays of a row of the table, made now or read from the folder of a resumed run.

    `make() -> (arrays, line)`: the line says what came out.
    """
    path = run.folder / f"{name}.npz"
    if not path.exists():
        phase(f"training {name}")
        began = time.perf_counter()
        arrays, line = make()
        save_arrays(path, **arrays)
        line = f"{name}: {line}, {time.perf_counter() - began:.0f} s"
        say(line)
        run.log({"row": name, "line": line})
        run.may_stop()
    return load_arrays(path)


def page_facts(summary: Mapping[str, Any], data: str) -> dict[str, str]:
    """What a page says of where its numbers come from; `data` names the data sets."""
    return {
        "device": summary["device"],
        "versions": ", ".join(f"{k} {v}" for k, v in summary["versions"].items()),
        "data": data,
        "time": ", ".join(f"{k} {v:.3g}" for k, v in summary["timing"].items()),
    }


def show(
    run: Run,
    data: Dataset,
    by_row: Mapping[str, Any],
    *,
    timing: Mapping[str, float],
    notes: Sequence[str],
    title: str,
    question: str,
    answer: str,
    shown: Sequence[str],
    chosen: Sequence[str],
    logits: Mapping[str, np.ndarray],
    figures: dict[str, str],
    network: str,
    splits: Splits | None = None,
    legend: str = "",
) -> None:
    """Write summary, page and model card (`README.md`); print the table, notes and the answer.

    Args:
      run: the run.
      data: what it trained on.
      by_row: `report.summarise`'s results, and what else is known of each row.
      timing: seconds of what was measured.
      notes: what the reader should know.
      title: heading of the page.
      question: what was asked, one sentence.
      answer: what came out, one sentence.
      shown: metrics of the table.
      chosen: rows whose tables by group are shown, plain training first, then what matters most.
      logits: of the rows on test; curves are drawn of the first run of the first two chosen ones.
      figures: other ones, heading -> SVG.
      network: which files of the run hold networks, and how to open them; Markdown.
      splits: of the runs, where they have splits of their own.
      legend: what to know about the columns.
    """
    summary = run.finish(data=data_summary(data), results=by_row, timing=timing, notes=notes)
    columns, cells = report.table_cells(summary["results"], shown)
    print(table(columns, [[value for value, _ in line] for line in cells]))
    groups = {row: group_cells(summary["results"][row]["by_group"]) for row in chosen}
    for row, (heads, lines) in list(groups.items())[:2]:
        print(f"\n{row} by group")
        print(table(heads, [[" ".join(cell) for cell in line] for line in lines]))
    every_note = [*summary["data"]["notes"], *summary["notes"]]
    for note in every_note:
        print(f"note: {note}")
    config, page = summary["config"], run.folder / "report.html"
    behind = power(data, config["num_seeds"], splits)
    what = "seeds" if splits is None else "splits"
    caption = (
        f"Test, mean ± standard deviation over {behind}; below, 95 % bootstrap interval of the "
        f"mean ({config['num_replicates']} replicates resampling test examples and {what}). "
        f"{legend}"
    )
    told: dict[str, Any] = {"title": title, "answer": answer, "columns": columns, "rows": cells}
    told |= {"caption": caption, "groups": groups}
    tested = data.splits["test"] if splits is None else splits.test[0]
    first = {f"{row}, first run": logits[row][0] for row in chosen[:2]}
    with replacing(page) as partial:
        report.write_report(
            partial,
            **told,
            question=question,
            figures=figures | report.group_curves(first, data, tested),
            notes=every_note,
            command=summary["command"],
            facts=page_facts(
                summary,
                f"{summary['data']['name']}, fingerprint {summary['data']['fingerprint']}",
            ),
        )
    card = report.model_card(
        summary,
        **told,
        network=network,
        measured={row: {m: summary["results"][row].get(m) for m in shown} for row in chosen},
        task="image-classification" if data.inputs.ndim > 2 else "tabular-classification",
    )
    write_atomically(run.folder / "README.md", card)
    print(f"\n{answer}\nmeans over {behind}\nresults in {run.folder}, page {page}")
