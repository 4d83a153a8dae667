"""fairjax beside the PyTorch way, on this machine.

    python -m experiments.benchmark fairbatch --out claims.jsonl

Prints one table row per claim as soon as it is measured: seconds of both sides (medians over paired
runs that take turns), their ratio with its range, compile time apart, and the quality that both
reached. `--out` appends one JSON object per claim to a file. Needs the extra `baselines` (PyTorch).
"""

import dataclasses
import importlib
import json
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from experiments import benchmarks
from experiments.common import BAD_INPUT, INTERRUPTED, use_all_cores

NAMES = tuple(sorted(module.name for module in pkgutil.iter_modules(benchmarks.__path__)))


@dataclasses.dataclass(frozen=True)
class Config:
    """Time fairjax and its PyTorch counterparts in turns."""

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(help=f"one of: {', '.join(NAMES)}")]
    out: Path | None = None
    """append one JSON object per claim to this file"""
    quick: bool = False
    """small sizes and few repeats, to see that everything runs; its numbers mean nothing"""
    style: Literal["original", "vectorised", "both"] | None = None
    """fairbatch only: which PyTorch to time against, default both"""


def run(config: Config) -> Iterator[dict[str, Any]]:
    """Measure one benchmark and append each row to `config.out` before the next one is measured.

    Raises:
      ValueError: unknown name, or a style where there is none.
      OSError: `config.out` cannot be written.
    """
    if config.name not in NAMES:
        raise ValueError(f"NAME must be one of {', '.join(NAMES)}; got {config.name!r}")
    if config.style is not None and config.name != "fairbatch":
        raise ValueError(f"--style is for fairbatch only; got it with {config.name}")
    if config.out is not None:
        config.out.open("a").close()  # before minutes of measuring, not after
    options = {} if config.style is None else {"style": config.style}
    module = importlib.import_module(f"experiments.benchmarks.{config.name}")
    for row in module.claims(quick=config.quick, **options):
        if config.out is not None:
            with config.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
        yield row


HEADER = f"{'claim':34} {'ours s':>9} {'theirs s':>9} {'ratio':>8} {'range':>15} {'compile s':>9}"


def lines(row: dict[str, Any]) -> str:
    """One claim as text under `HEADER`."""
    span = f"{row['ratio_min']:.3g} - {row['ratio_max']:.3g}"
    compile_s = "" if row["compile_s"] is None else f"{row['compile_s']:.2f}"
    text = [
        f"{row['claim']:34} {row['ours_s']:9.4g} {row['theirs_s']:9.4g} "
        f"{row['ratio']:8.3g} {span:>15} {compile_s:>9}"
    ]
    for side, values in row["quality"].items():
        shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        text.append(f"    {side}: {shown}")
    if row["notes"]:
        text.append(f"    {row['notes']}")
    return "\n".join(text)


def main() -> None:
    """Run from the command line."""
    config = tyro.cli(Config, description=__doc__)
    use_all_cores()
    try:
        for i, row in enumerate(run(config)):
            print(lines(row) if i else f"device: {row['device']}\n{HEADER}\n{lines(row)}")
            sys.stdout.flush()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt:
        print("interrupted; the rows above were measured", file=sys.stderr)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
