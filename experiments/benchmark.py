"""fairjax beside the PyTorch way, on this machine.

    python -m experiments.benchmark fairbatch --out claims.jsonl
    python -m experiments.benchmark all --write         every one, and the tables in BENCHMARKS.md

Prints one table row per claim as soon as it is measured: seconds of both sides (medians over paired
runs that take turns), their ratio with its range, compile time apart, and the quality that both
reached. `--out` appends one JSON object per claim to a file. `all` starts each benchmark in a
process of its own and goes on where one fails or lacks a package. Needs PyTorch, in the extra
`baselines`; `metrics` and `estimator` need fairlearn instead, `regret` and `splits` nothing.
"""

import ast
import dataclasses
import importlib
import importlib.util
import json
import os
import pkgutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import jax

from experiments import benchmarks
from experiments.cli import Hidden, say, table
from experiments.files import write_atomically
from experiments.run import main

MODULES = sorted(module.name for module in pkgutil.iter_modules(benchmarks.__path__))
NAMES = tuple(name for name in MODULES if not name.startswith("_"))  # others serve several rows
NEEDED = {
    "metrics": ("fairlearn",),
    "estimator": ("fairlearn",),
    "images": ("torch", "torchvision"),
    "regret": (),
    "splits": (),
}
"""Packages of the other side, where it is not PyTorch alone."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Time fairjax and its PyTorch counterparts in turns."""

    name: Hidden
    about: Hidden = ""
    out: Path | None = None
    """append one JSON object per claim to this file"""
    write: bool = False
    """put the rows into the table of this benchmark in experiments/BENCHMARKS.md"""
    quick: bool = False
    """small sizes and few repeats, to see that everything runs; its numbers mean nothing"""
    style: Literal["original", "vectorised", "both"] | None = None
    """fairbatch only: which PyTorch to time against, default both"""


def _first_line(name: str) -> str:
    """What a benchmark says of itself, read without importing it (and PyTorch)."""
    text = (Path(benchmarks.__path__[0]) / f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(text)) or "").splitlines()[0]


PRESETS = {name: Config(name, about=_first_line(name)) for name in NAMES}
PRESETS["all"] = Config("all", about="Every benchmark, one after another.")
PAGE = Path(__file__).with_name("BENCHMARKS.md")
COLUMNS = ["claim", "ours s", "theirs s", "ratio", "range", "compile s"]
WIDTHS = [34, 9, 9, 8, 15, 9]


def prepare(config: Config) -> Callable[[], None]:
    """Check everything; returns the function that measures.

    Raises:
      ValueError: a style where there is none, a package of the other side is not installed, or rows
        of `quick` to be written.
      OSError: `config.out` cannot be written.
    """
    if config.style is not None and config.name != "fairbatch":
        raise ValueError(f"--style is for fairbatch only; got it with {config.name}")
    if config.write and config.quick:
        raise ValueError("--write is for what was measured, not for --quick")
    absent = [] if config.name == "all" else lacking(config.name)
    if absent:
        raise ValueError(
            f"the benchmark {config.name} needs {' and '.join(absent)}: "
            f"pip install {' '.join(absent)}"
        )
    if config.out is not None:
        config.out.open("a").close()  # before minutes of measuring, not after
    if config.name == "all":
        return lambda: run_all(config)
    if config.write:
        between(PAGE.read_text(encoding="utf-8"), config.name)
    jax.config.update("jax_enable_compilation_cache", False)  # compile times are of compilations
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch is on the GPU, too
    return lambda: measure_and_show(config)


def lacking(name: str) -> list[str]:
    """Packages of the other side that are not installed."""
    needed = NEEDED.get(name, ("torch",))
    return [package for package in needed if importlib.util.find_spec(package) is None]


def run_all(config: Config) -> None:
    """Every benchmark in a process of its own, so that none shares threads or memory with others.

    Raises:
      ValueError: some could not run, after all others did.
    """
    failed = []
    options = ["--write"] * config.write + ["--quick"] * config.quick
    options += ["--out", str(config.out)] if config.out is not None else []
    for name in NAMES:
        absent = lacking(name)
        if absent:
            say(f"{name} left out: needs {' and '.join(absent)}")
            continue
        say(f"{name}: {_first_line(name)}")
        command = [sys.executable, "-m", "experiments.benchmark", name, *options]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    if failed:
        raise ValueError(f"failed: {', '.join(failed)}; what is wrong stands above")


def measure_and_show(config: Config) -> None:
    """Print rows as they come, then put them into the page."""
    rows = []

    def kept() -> Iterator[dict[str, Any]]:
        for row in measure(config):
            rows.append(row)
            yield row

    show(kept())
    if config.write:
        text = PAGE.read_text(encoding="utf-8")
        start, end = between(text, config.name)
        write_atomically(PAGE, text[:start] + as_markdown(config.name, rows) + text[end:])


def between(text: str, name: str) -> tuple[int, int]:
    """Where the table of a benchmark begins and ends in the page.

    Raises:
      ValueError: the page has no marks for it.
    """
    marks = [f"<!-- rows of {name} -->\n", f"<!-- end of {name} -->"]
    if any(text.count(mark) != 1 for mark in marks):
        raise ValueError(f"{PAGE.name} must hold each of {' and '.join(marks)!r} once")
    start, end = text.index(marks[0]) + len(marks[0]), text.index(marks[1])
    return start, end


def as_markdown(name: str, rows: list[dict[str, Any]]) -> str:
    """What the page says of one benchmark: where it ran, a table, and the quality reached."""
    versions = ", ".join(f"{package} {number}" for package, number in rows[0]["versions"].items())
    lines = [
        f"`python -m experiments.benchmark {name}` on {rows[0]['device']} ({versions}):",
        "",
        "| claim | ours | theirs | ratio (range) | compile | of the floor |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        span = f"{row['ratio']:.3g} ({row['ratio_min']:.3g} to {row['ratio_max']:.3g})"
        compiled = "" if row["compile_s"] is None else duration(row["compile_s"])
        floor = "" if row["floor_s"] is None else f"{row['floor_s'] / row['ours_s']:.0%}"
        sides = [
            duration(value) if row["unit"] == "s" else f"{value:.3g} {row['unit']}"
            for value in (row["ours_s"], row["theirs_s"])
        ]
        what = f"`{row['claim']}`: {row['notes']}"
        lines.append("| " + " | ".join([what, *sides, span, compiled, floor]) + " |")
    reached = [
        f"- `{row['claim']}` {side}: {shown}"
        for row in rows
        for side, shown in qualities(row).items()
        if shown
    ]
    return "\n".join([*lines, "", *reached, ""] if reached else [*lines, ""])


def duration(seconds: float) -> str:
    """Three digits of seconds or milliseconds."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def measure(config: Config) -> Iterator[dict[str, Any]]:
    """Rows of one benchmark, each appended to `config.out` before the next one is measured."""
    options = {} if config.style is None else {"style": config.style}
    module = importlib.import_module(f"experiments.benchmarks.{config.name}")
    for row in module.claims(quick=config.quick, **options):
        if config.out is not None:
            with config.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
        yield row


def show(rows: Iterator[dict[str, Any]]) -> None:
    """Print each row as soon as it comes."""
    for i, row in enumerate(rows):
        header, rule, line = table(COLUMNS, [cells(row)], widths=WIDTHS).splitlines()
        if i == 0:
            print(f"device: {row['device']}\n{header}\n{rule}")
        print("\n".join([line, *remarks(row)]))
        sys.stdout.flush()


def cells(row: dict[str, Any]) -> list[str]:
    """One claim under `COLUMNS`."""
    unit = "" if row["unit"] == "s" else f" {row['unit']}"
    numbers = (f"{row[name]:.4g}{unit}" for name in ("ours_s", "theirs_s"))
    span = f"{row['ratio_min']:.3g} - {row['ratio_max']:.3g}"
    compile_s = "" if row["compile_s"] is None else f"{row['compile_s']:.2f}"
    return [row["claim"], *numbers, f"{row['ratio']:.3g}", span, compile_s]


def qualities(row: dict[str, Any]) -> dict[str, str]:
    """What each side of a claim reached, "" for nothing."""
    return {
        side: ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        for side, values in row["quality"].items()
    }


def remarks(row: dict[str, Any]) -> list[str]:
    """What stands below a claim: the quality of both sides and notes."""
    text = [f"    {side}: {shown}" for side, shown in qualities(row).items()]
    return [*text, f"    {row['notes']}"] if row["notes"] else text


if __name__ == "__main__":
    main(prepare, PRESETS, description=__doc__ or "")
