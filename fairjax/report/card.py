"""The model card beside the networks of a run, in the format of model hubs."""

from collections.abc import Mapping, Sequence
from typing import Any

_LIMITS = """\
Numbers are of the test split of these data. They say nothing about people, devices or places that
are not in it, and little about groups with few examples. A small gap is no proof of fairness, and
whether a gap is harm depends on what the prediction is for. Not for clinical use."""


def model_card(
    summary: Mapping[str, Any],
    *,
    title: str,
    answer: str,
    network: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[tuple[str, str]]],
    caption: str,
) -> str:
    """Markdown: what the network is, its data and groups, its metrics with intervals, its limits.

    Args:
      summary: as a run writes it: `command`, `data`, `notes` and `versions` are shown.
      title: heading.
      answer: what came out, one sentence.
      network: which files hold networks, and how to open them; Markdown.
      columns: heads of the table of results.
      rows: its cells, each a value and an interval or "".
      caption: what the numbers are.
    """
    data = summary["data"]
    table = [columns, ["---"] * len(columns)]
    table += [[_cell(" ".join(filter(None, cell))) for cell in row] for row in rows]
    groups = ", ".join(f"{_cell(name)} {count}" for name, count in data["groups"].items())
    splits = ", ".join(f"{name} {count}" for name, count in data["n"].items())
    notes = "\n".join(f"- {_cell(note)}" for note in (*data["notes"], *summary["notes"]))
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    head = "---\nlibrary_name: fairjax\ntags:\n- fairness\n---\n\n"
    parts = {
        "The network": network,
        "Data": f"{_cell(data['name'])}, fingerprint {data['fingerprint']}. Examples: {splits}. "
        f"Groups: {groups}.",
        "Results": "\n".join(f"| {' | '.join(line)} |" for line in table) + f"\n\n{caption}",
        "Notes": notes or "- none",
        "Limits": _LIMITS,
        "Made by": f"```\n{summary['command']}\n```\n\n{versions}",
    }
    text = "\n\n".join(f"## {name}\n\n{part}" for name, part in parts.items())
    return f"{head}# {title}\n\n{_cell(answer)}\n\n{text}\n"


def _cell(text: str) -> str:
    """Names of the data as text: they neither end a cell nor begin markup."""
    for char in "\\`*_<>|[]#":
        text = text.replace(char, f"\\{char}")
    return " ".join(text.split())
