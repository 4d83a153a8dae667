"""The terminal of an experiment: presets, options and their numbers; progress and tables.

A configuration is a frozen dataclass. Its fields are options; a field that is a dataclass itself
is a group of options of its own in the help (`--data.seed`). The type of a number says its range:

    num_epochs: Count = 10                            whole, at least 1
    weight_decay: NonNegative = 0.0
    drop: Annotated[float, Range(0, 1)] = 0.5         another range

Every number must be finite. `check_numbers` finds what does not fit before anything is read.
"""

import dataclasses
import math
import shlex
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

BAD_INPUT = 2
Hidden = tyro.conf.Suppress[str]
"""Type of a field that is no option, such as the line that describes a preset."""


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers that an option takes."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    """`low` itself is not taken"""
    below: bool = False
    """`high` itself is not taken"""

    def __contains__(self, value: float) -> bool:
        high_enough = value > self.low if self.above else value >= self.low
        return high_enough and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        sides = []
        if self.low > -math.inf:
            sides.append(f"{'above' if self.above else 'at least'} {self.low:g}")
        if self.high < math.inf:
            sides.append(f"{'below' if self.below else 'at most'} {self.high:.10g}")
        return " and ".join(sides) or "a number"


Count = Annotated[int, Range(1)]
Whole = Annotated[int, Range(0)]
Seed = Annotated[int, Range(0, 2**32 - 1)]
Replicates = Annotated[int, Range(2)]
Positive = Annotated[float, Range(0, above=True)]
NonNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
Smoothing = Annotated[float, Range(0, 1, below=True)]
Inside = Annotated[float, Range(0, 1, above=True, below=True)]


@dataclasses.dataclass(frozen=True)
class Seeds:
    """What is drawn at random, apart from the data (--data.seed)."""

    start: Seed = 0
    """of initial parameters and classifiers; rows and seeds take this one and those that follow"""
    batches: Seed = 0
    """of the orders of examples, likewise, and of searches and scores"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightFile:
    """Options of a configuration that has a `weights` file; what `load_weights` takes."""

    weights_key: str | None = None
    """which state dict of a .pth with several, such as state_dict; by default an average (ema)"""
    grey: Literal["error", "spread"] = "error"
    """spread: the first kernel of a network of one channel, a third of it on each colour"""
    adapter: Path | None = None
    """PEFT's adapter_model.safetensors (LoRA) to merge into the weights"""

    def reading(self) -> dict[str, Any]:
        """How the file is read; ValueError where there is none to be read that way."""
        how = settings(self, ("weights", "weights_key", "grey", "adapter"))
        path = how.pop("weights")
        for name, value in how.items() if path is None else ():
            if value != getattr(WeightFile, name):
                raise ValueError(f"--{name.replace('_', '-')} needs --weights, a file to read so")
        return {"path": path, **how}


def check_numbers(config: Any) -> None:
    """Check every number of a configuration, nested ones and those in tuples too.

    Raises:
      ValueError: a number that is not finite, not whole where whole is meant or outside the range
        of its type. Names the option as typed: "--weight-decay must be at least 0, got nan".
    """
    for option, value, kind, bounds in _numbers(config):
        if isinstance(value, float) and math.isinf(value):
            raise ValueError(f"{option} must be finite, got {value}")
        if kind is int and not isinstance(value, int) and not math.isnan(value):
            raise ValueError(f"{option} must be a whole number, got {value}")
        if value not in bounds:
            raise ValueError(f"{option} must be {bounds}, got {value}")


def settings(config: Any, names: Iterable[str]) -> dict[str, Any]:
    """The options of a configuration that something else knows by the same names."""
    return {name: getattr(config, name) for name in names if hasattr(config, name)}


def _numbers(config: Any, prefix: str = "--") -> Iterator[tuple[str, float, type, Range]]:
    hints = typing.get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        value, option = getattr(config, field.name), prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            yield from _numbers(value, f"{option}.")
            continue
        kind, bounds = _meant(hints[field.name])
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, (int, float)) and not isinstance(item, bool):
                yield option, item, kind, bounds


def _meant(hint: Any) -> tuple[type, Range]:
    """The kind of number and the range in a type such as `tuple[Count, ...]` or `Count | None`."""
    if typing.get_origin(hint) is Annotated:
        kind, bounds = _meant(typing.get_args(hint)[0])
        given = [extra for extra in hint.__metadata__ if isinstance(extra, Range)]
        return kind, given[0] if given else bounds
    if typing.get_origin(hint) in (tuple, list, typing.Union, types.UnionType):
        found = [_meant(part) for part in typing.get_args(hint)]
        return next((one for one in found if one[0] in (int, float)), (object, Range()))
    return hint if isinstance(hint, type) else object, Range()


def parse(presets: Mapping[str, Any] | type, description: str) -> Any:
    """The configuration that `[PRESET] [--option value ...]` asks for; the first is the default.

    Of a configuration's type instead of presets: the one that `[--option value ...]` asks for.

    Leaves with status 0 after --help, and with status 2 and a message on stderr for an unknown
    preset or option.
    """
    if isinstance(presets, type):
        return tyro.cli(presets, prog=shlex.join(program()), description=description)
    args, default = sys.argv[1:], next(iter(presets))
    if not args or (args[0].startswith("-") and args[0] not in ("-h", "--help")):
        args = [default, *args]
    elif args[0] not in (*presets, "-h", "--help"):
        fail(f"no preset {args[0]!r}; there are {', '.join(presets)}")
    return tyro.extras.overridable_config_cli(
        {name: (doc_line(value), value) for name, value in presets.items()},
        prog=shlex.join(program()),
        args=args,
        description=f"{description.rstrip()}\n\nWithout a preset, {default} is taken.",
    )


def doc_line(config: Any) -> str:
    """First line of a configuration's own description."""
    return (getattr(config, "about", "") or type(config).__doc__ or "").splitlines()[0]


def program() -> list[str]:
    """How this program is started, such as `python -m experiments.fairtune`."""
    spec = sys.modules["__main__"].__spec__
    return ["python", "-m", spec.name] if spec else ["python", sys.argv[0]]


def command(*more: str) -> str:
    """The command line that was run, and `more` arguments, ready to paste."""
    return shlex.join([*program(), *sys.argv[1:], *more])


def fail(error: object) -> typing.NoReturn:
    """Leave with one line on stderr and the status of bad input."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(BAD_INPUT)


def phase(line: str) -> None:
    """Say on a terminal what begins now, such as "drawing images"; elsewhere only `say` speaks."""
    if sys.stderr.isatty():
        say(line)


def say(line: str) -> None:
    """One line on stderr, of an epoch or a round that is done. Bars go on below it."""
    import tqdm

    tqdm.tqdm.write(line, file=sys.stderr)
    sys.stderr.flush()


def progress(total: int, description: str, done: int = 0) -> Any:
    """A bar on a terminal, for what takes more than two seconds; elsewhere only `say` speaks.

    Use it as context manager and call `.update(count)`.
    """
    import tqdm

    return tqdm.tqdm(
        total=total, initial=done, desc=description, disable=not sys.stderr.isatty(), leave=False
    )


def table(
    columns: list[str], rows: Iterable[list[str]], *, widths: Iterable[int] | None = None
) -> str:
    """Columns aligned for a terminal, the first to the left and the others to the right.

    `widths` are the least ones, for rows that come one at a time.
    """
    rows = [columns, *rows]
    least = list(widths) if widths is not None else [0] * len(columns)
    widths = [max(least[i], *(len(row[i]) for row in rows)) for i in range(len(columns))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
