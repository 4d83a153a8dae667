"""Trackers get what history gets: names, steps and values, and say which package they lack."""

import dataclasses
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboardX.proto import event_pb2

from experiments.run import Run
from experiments.tracking import Tracker, flat_numbers

EVENT = event_pb2.Event  # pyright: ignore[reportAttributeAccessIssue]


@dataclasses.dataclass(frozen=True)
class Config:
    """What a run needs to know."""

    track: tuple[Tracker, ...] = ("tensorboard",)


def events(folder: Path) -> dict[tuple[str, int], float]:
    """The scalars in a folder's event files: records of length, check sum, message, check sum."""
    found = {}
    for path in folder.glob("events*"):
        rest = path.read_bytes()
        while rest:
            (length,) = struct.unpack("<Q", rest[:8])
            event = EVENT.FromString(rest[12 : 12 + length])
            found |= {(v.tag, event.step): v.simple_value for v in event.summary.value}
            rest = rest[16 + length :]
    return found


def test_numbers_are_named_by_their_path_and_what_is_none_is_left_out():
    row = {"epoch": 3, "rows": {"plain": {"loss": 0.5, "shares": [[0.25, None]]}}, "line": "x"}
    assert flat_numbers(row) == {
        "epoch": 3.0,
        "rows/plain/loss": 0.5,
        "rows/plain/shares/0/0": 0.25,
    }


LOGS = """
from experiments.run import Run
from test_experiments_tracking import Config
run = Run("toy", Config(), out="run", resume=False).start()
run.log({"loss": 1.5})
run.log({"epoch": 7, "loss": float("nan")})
Run("toy", Config(), out="run", resume=True).start().log({"loss": 0.25})
"""


def test_tensorboard_gets_every_row_of_history_also_after_resuming(tmp_path):
    paths = {"PYTHONPATH": f"{Path(__file__).parents[1]}:{Path(__file__).parent}"}
    subprocess.run(
        [sys.executable, "-c", LOGS], cwd=tmp_path, env={**os.environ, **paths}, check=True
    )
    assert events(tmp_path / "run/tensorboard") == {
        ("loss", 1): 1.5,
        ("epoch", 7): 7.0,
        ("loss", 3): 0.25,
    }


def test_other_writers_get_steps_and_numbers(tmp_path):
    given = []
    run = Run("toy", Config(()), out=tmp_path / "run", resume=False).start()
    run.writers.append(lambda step, numbers: given.append((step, numbers)))
    run.log({"loss": 1.5})
    run.log({"epoch": 7, "loss": float("nan")})
    assert given == [(1, {"loss": 1.5}), (7, {"epoch": 7.0})]


def test_a_tracker_that_is_not_installed_is_named_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"--track mlflow needs the package mlflow: pip install"):
        Run("toy", Config(("mlflow",)), out=tmp_path / "run", resume=False)
    assert not (tmp_path / "run").exists()


def test_a_run_without_trackers_resumes_one_that_had_them(tmp_path):
    before = Run("toy", Config(()), out=tmp_path / "run", resume=False).start()
    after = Run("toy", Config(), out=tmp_path / "run", resume=True)  # not refused
    assert before.writers == after.writers == []
