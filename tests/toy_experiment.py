"""A configuration and a call for the tests of what every experiment shares."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

from experiments.cli import Count, NonNegative, Range, Share
from experiments.run import main


@dataclasses.dataclass(frozen=True)
class Part:
    """A group of options."""

    share: Share = 0.5
    seeds: tuple[int, ...] = (0, 1)


@dataclasses.dataclass(frozen=True)
class Config:
    """A toy; it makes 95 % sense."""

    part: Part = Part()
    num_epochs: Count = 1
    """how often, in 95 % of cases"""
    weight_decay: NonNegative = 0.0
    rates: tuple[Annotated[float, Range(0, above=True)], ...] = (0.1, 0.2)
    chunk_size: Count | None = None
    anything: float = 0.0
    really: bool = True
    out: Path | None = None
    resume: bool = False


def call(monkeypatch, *args, prepare=lambda config: lambda: None, presets=None):
    """Exit status of a toy experiment."""
    monkeypatch.setattr(sys, "argv", ["toy", *map(str, args)])
    try:
        main(prepare, presets or {"small": Config(), "large": Config()}, description="A toy.")
    except SystemExit as leave:
        return leave.code
    return 0
