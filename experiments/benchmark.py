"""fairjax beside the PyTorch way, on this machine.

    python -m experiments.benchmark fairbatch --out claims.jsonl

Prints one table row per claim: seconds of both sides (medians over paired runs that take turns),
their ratio with its range, compile time apart, and the quality that both reached. `--out` appends
one JSON object per claim to a file. Needs the extra `baselines` (PyTorch).
"""

import dataclasses
import importlib
import json
import pkgutil
import sys
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


def run(config: Config) -> list[dict[str, Any]]:
    """Measure one benchmark and append its rows to `config.out`.

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
    rows = module.claims(quick=config.quick, **options)
    if config.out is not None:
        with config.out.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The claims as text."""
    lines = [
        f"{'claim':34} {'ours s':>9} {'theirs s':>9} {'ratio':>8} {'range':>15} {'compile s':>9}"
    ]
    for row in rows:
        span = f"{row['ratio_min']:.3g} - {row['ratio_max']:.3g}"
        compile_s = "" if row["compile_s"] is None else f"{row['compile_s']:.2f}"
        lines.append(
            f"{row['claim']:34} {row['ours_s']:9.4g} {row['theirs_s']:9.4g} "
            f"{row['ratio']:8.3g} {span:>15} {compile_s:>9}"
        )
        for side, values in row["quality"].items():
            shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            lines.append(f"    {side}: {shown}")
        if row["notes"]:
            lines.append(f"    {row['notes']}")
    return "\n".join(lines)


def main() -> None:
    """Run from the command line."""
    config = tyro.cli(Config, description=__doc__)
    use_all_cores()
    try:
        rows = run(config)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        sys.exit(INTERRUPTED)
    print(table(rows))
    print(f"device: {rows[0]['device']}")


if __name__ == "__main__":
    main()
