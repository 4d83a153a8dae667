"""Predictions by group, whoever made them: rates with intervals, calibration, ROC, thresholds.

    python -m experiments.audit predictions.csv --label y --score p --sensitive sex age
    python -m experiments.audit predictions.csv --label y --pred guess --sensitive sex --out DIR

A file of 100,000 rows takes seconds. The folder holds `report.html`, `README.md` (a model card) and
`summary.json`.
"""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import tyro

from experiments import cli
from experiments.files import replacing, write_atomically
from experiments.run import Run, main, timed
from fairjax import report
from fairjax.audit import answer, audit, read_predictions
from fairjax.metrics.group_table import number_and_span
from fairjax.report.audit import audit_figures


@dataclasses.dataclass(frozen=True)
class Config:
    """What the columns of a file of predictions are."""

    predictions: tyro.conf.Positional[Path]
    """CSV file with a header"""
    label: str
    """column of the truth"""
    sensitive: tuple[str, ...]
    """columns of groups; of several the intersections are compared"""
    score: str | None = None
    """column of the probabilities of class 1"""
    pred: str | None = None
    """column of predictions, written as the labels are, where there are no scores"""
    positive: str | None = None
    """value of the label that is class 1, where they are not 0 and 1"""
    log_odds: bool = False
    """the scores are log-odds"""
    num_replicates: cli.Replicates = 2000
    """bootstrap replicates behind the 95 % intervals"""
    out: Path | None = None
    """result folder; default runs/audit-<time>"""


def prepare(config: Config):
    """Read and check everything; returns the function that audits."""
    cli.check_numbers(config)
    run = Run("audit", config, out=config.out, resume=False)
    columns = cli.settings(config, ("label", "sensitive", "score", "pred", "positive", "log_odds"))
    read = read_predictions(config.predictions, **columns)
    timing: dict[str, float] = {}
    with timed(timing, "audit_s"):
        found = audit(**read.arguments, num_replicates=config.num_replicates)
    found = found._replace(notes=(*read.notes, *found.notes))
    return lambda: show(config, run.start(), found, timing)


def show(config: Config, run: Run, found, timing: dict[str, float]) -> None:
    """Write the folder, print the table, the gaps and the notes."""
    table, name = found.table, config.predictions.stem
    digest = hashlib.sha256(config.predictions.read_bytes()).hexdigest()[:16]
    groups = dict(zip(table.groups[:-1], table.n.tolist(), strict=False))
    by_name = lambda values: dict(zip(("estimate", "lower", "upper"), values, strict=True))
    summary = run.finish(
        data={"name": name, "fingerprint": digest, "n": {"test": table.n[-1]}, "groups": groups},
        results={
            "gaps": {gap: by_name(values) for gap, values in table.gaps.items()},
            "by_group": table.as_dict(),
            "frontier": {each: choice._asdict() for each, choice in found.frontier.items()},
        },
        timing=timing,
        notes=found.notes,
    )
    columns, rows = table.cells()
    print(cli.table(columns, [[" ".join(filter(None, cell)) for cell in row] for row in rows]))
    gaps = {gap: number_and_span(*values) for gap, values in table.gaps.items()}
    print("\n".join(f"{gap}: {value} {span}" for gap, (value, span) in gaps.items()))
    print("\n".join(f"note: {note}" for note in found.notes))
    caption = f"Below each rate its 95 % interval ({config.num_replicates} replicates). "
    told: dict[str, Any] = {"title": f"Audit of {name}", "answer": answer(found)}
    told |= {"columns": columns, "rows": rows, "groups": {}}
    told["caption"] = caption + "; ".join(f"{gap} {' '.join(pair)}" for gap, pair in gaps.items())
    page = run.folder / "report.html"
    with replacing(page) as partial:
        report.write_report(
            partial,
            **told,
            question="Do these predictions treat groups alike?",
            figures=audit_figures(found),
            notes=found.notes,
            command=summary["command"],
            facts={"data": f"{name}, fingerprint {digest}", "device": summary["device"]},
        )
    card = report.model_card(
        summary,
        **told,
        network=f"Whatever made the predictions in `{config.predictions.name}`; it was not seen.",
        measured={name: {gap: float(values.estimate) for gap, values in table.gaps.items()}},
    )
    write_atomically(run.folder / "README.md", card)
    print(f"\n{answer(found)}\nresults in {run.folder}, page {page}")


if __name__ == "__main__":
    main(prepare, Config, description=__doc__ or "")
