"""From test logits to the table, the intervals and the page that every experiment shows."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.cli import phase, say, table
from experiments.files import load_arrays, replacing, save_arrays
from experiments.run import Run, data_summary, timed
from fairjax import metrics, report
from fairjax.data import Dataset
from fairjax.metrics import Comparison


def judge(
    logits: Mapping[str, np.ndarray],
    data: Dataset,
    timing: dict[str, float],
    *,
    shown: Sequence[str],
    num_replicates: int,
    table_fn: Callable[..., dict[str, jax.Array]] = metrics.tabulate,
) -> Comparison:
    """Compare rows by their test logits `[S, N, K]`; looked at once, when all are trained."""
    phase("judging on the test split")
    test = data.examples("test")
    with timed(timing, "judge_s"):
        return metrics.compare_rows(
            np.stack(list(logits.values())),
            labels=test.labels,
            group=test.group,
            num_groups=data.num_groups,
            shown=shown,
            num_replicates=num_replicates,
            key=jax.random.key(0),
            table_fn=table_fn,
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
    figures: Mapping[str, str],
    legend: str = "",
) -> None:
    """Write `summary.json` and `report.html`, print the table, the notes and the answer.

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
      figures: heading -> SVG.
      legend: what to know about the columns.
    """
    summary = run.finish(data=data_summary(data), results=by_row, timing=timing, notes=notes)
    columns, cells = report.table_cells(summary["results"], shown)
    print(table(columns, [[value for value, _ in line] for line in cells]))
    every_note = [*summary["data"]["notes"], *summary["notes"]]
    for note in every_note:
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
            notes=every_note,
            command=summary["command"],
            facts={
                "device": summary["device"],
                "versions": ", ".join(f"{k} {v}" for k, v in summary["versions"].items()),
                "data": f"{summary['data']['name']}, fingerprint {summary['data']['fingerprint']}",
                "time": ", ".join(f"{k} {v:.3g}" for k, v in summary["timing"].items()),
            },
        )
    print(f"\n{answer}\nresults in {run.folder}, page {page}")
