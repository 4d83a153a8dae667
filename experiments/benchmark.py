"""fairjax beside the PyTorch way, on this machine.

    python -m experiments.benchmark fairbatch --out claims.jsonl

Prints one table row per claim as soon as it is measured: seconds of both sides (medians over paired
runs that take turns), their ratio with its range, compile time apart, and the quality that both
reached. `--out` appends one JSON object per claim to a file. Needs PyTorch, in the extra
`baselines`; `metrics` and `estimator` need fairlearn instead, `regret` and `splits` nothing.
"""

import ast
import dataclasses
import importlib
import importlib.util
import json
import pkgutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import jax

from experiments import benchmarks
from experiments.cli import Hidden, table
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
    quick: bool = False
    """small sizes and few repeats, to see that everything runs; its numbers mean nothing"""
    style: Literal["original", "vectorised", "both"] | None = None
    """fairbatch only: which PyTorch to time against, default both"""


def _first_line(name: str) -> str:
    """What a benchmark says of itself, read without importing it (and PyTorch)."""
    text = (Path(benchmarks.__path__[0]) / f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(text)) or "").splitlines()[0]


PRESETS = {name: Config(name, about=_first_line(name)) for name in NAMES}
COLUMNS = ["claim", "ours s", "theirs s", "ratio", "range", "compile s"]
WIDTHS = [34, 9, 9, 8, 15, 9]


def prepare(config: Config) -> Callable[[], None]:
    """Check everything; returns the function that measures.

    Raises:
      ValueError: a style where there is none, or a package of the other side is not installed.
      OSError: `config.out` cannot be written.
    """
    if config.style is not None and config.name != "fairbatch":
        raise ValueError(f"--style is for fairbatch only; got it with {config.name}")
    needed = NEEDED.get(config.name, ("torch",))
    absent = [package for package in needed if importlib.util.find_spec(package) is None]
    if absent:
        raise ValueError(
            f"the benchmark {config.name} needs {' and '.join(absent)}: "
            f"pip install {' '.join(absent)}"
        )
    if config.out is not None:
        config.out.open("a").close()  # before minutes of measuring, not after
    jax.config.update("jax_enable_compilation_cache", False)  # compile times are of compilations
    return lambda: show(measure(config))


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
    numbers = (f"{row[name]:.4g}" for name in ("ours_s", "theirs_s"))
    span = f"{row['ratio_min']:.3g} - {row['ratio_max']:.3g}"
    compile_s = "" if row["compile_s"] is None else f"{row['compile_s']:.2f}"
    return [row["claim"], *numbers, f"{row['ratio']:.3g}", span, compile_s]


def remarks(row: dict[str, Any]) -> list[str]:
    """What stands below a claim: the quality of both sides and notes."""
    text = []
    for side, values in row["quality"].items():
        shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        text.append(f"    {side}: {shown}")
    return [*text, f"    {row['notes']}"] if row["notes"] else text


if __name__ == "__main__":
    main(prepare, PRESETS, description=__doc__ or "")
