"""The model card of a run or an audit, in the format of model hubs."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fairjax.report.page import GROUP_CAPTION
from fairjax.report.tables import Rows, as_markdown, plain_text

_LIMITS = """\
Numbers are of the examples that were judged. They say nothing about people, devices or places that
are not among them, and little about groups with few examples. A small gap is no proof of fairness,
and whether a gap is harm depends on what the prediction is for. Not for clinical use."""


def model_card(
    summary: Mapping[str, Any],
    *,
    title: str,
    answer: str,
    network: str,
    columns: Sequence[str],
    rows: Rows,
    caption: str,
    groups: Mapping[str, tuple[Sequence[str], Rows]],
    measured: Mapping[str, Mapping[str, float | None]],
    task: str = "other",
) -> str:
    """Markdown under a head of YAML, as hubs read it: what the network is, its data and groups, its
    metrics with intervals, its limits.

    Args:
      summary: as a run writes it: `command`, `data`, `notes` and `versions` are shown.
      title: heading.
      answer: what came out, one sentence.
      network: which files hold networks, and how to open them; Markdown.
      columns: heads of the table of results.
      rows: its cells, each a value and an interval or "".
      caption: what the numbers are.
      groups: row -> heads and cells of its table by group.
      measured: model -> its metrics for the head, such as `{"accuracy": 0.9}`; undefined ones,
        nan or None, are left out.
      task: the hub's name of it, such as "image-classification".
    """
    data = summary["data"]
    counts = ", ".join(f"{plain_text(name)} {count}" for name, count in data["groups"].items())
    splits = ", ".join(f"{name} {count}" for name, count in data["n"].items())
    every_note = (*data.get("notes", ()), *summary["notes"])
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    tables = [f"{plain_text(row)}:\n\n{as_markdown(*cells)}" for row, cells in groups.items()]
    parts = {
        "The network": network,
        "Data": f"{plain_text(data['name'])}, fingerprint {data['fingerprint']}. "
        f"Examples: {splits}. Groups: {counts}.",
        "Results": f"{as_markdown(columns, rows)}\n\n{caption}",
        "By group": "\n\n".join([*tables, GROUP_CAPTION]) if tables else "",
        "Notes": "\n".join(f"- {plain_text(note)}" for note in every_note) or "- none",
        "Limits": _LIMITS,
        "Made by": f"```\n{summary['command']}\n```\n\n{versions}",
    }
    text = "\n\n".join(f"## {name}\n\n{part}" for name, part in parts.items() if part)
    head = _head(data, measured, task)
    return f"{head}# {plain_text(title)}\n\n{plain_text(answer)}\n\n{text}\n"


def _head(data: Mapping[str, Any], measured: Mapping[str, Any], task: str) -> str:
    """The YAML that hubs index; its values are written as JSON, which YAML includes."""
    told = lambda value: json.dumps(value, ensure_ascii=False)
    lines = ["library_name: fairjax", "tags:", "- fairness", "model-index:"]
    for name, values in measured.items():
        lines += [f"- name: {told(name)}", "  results:"]
        lines += ["  - task:", f"      type: {told(task)}", "    dataset:"]
        lines += [f"      name: {told(data['name'])}", f"      type: {told(data['name'])}"]
        lines += ["      split: test", f"      revision: {told(data['fingerprint'])}"]
        known = {k: v for k, v in values.items() if v is not None and math.isfinite(v)}
        lines.append("    metrics:" if known else "    metrics: []")
        for metric, value in known.items():
            lines += [f"    - type: {told(metric)}", f"      value: {value:.6g}"]
    return "---\n" + "\n".join(lines) + "\n---\n\n"
