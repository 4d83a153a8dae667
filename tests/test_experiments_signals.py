"""Ctrl-C and SIGTERM: what is saved, how a run ends and how it goes on."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from toy_experiment import call

from experiments import cli, fairbatch
from experiments.run import Run

ROOT = Path(__file__).parents[1]
TOY = '''
import dataclasses, pathlib, sys
from experiments.run import Run, main

@dataclasses.dataclass(frozen=True)
class Config:
    """Toy."""

    num_epochs: int = 1
    out: pathlib.Path | None = None
    resume: bool = False

def wait(what):
    print(what, flush=True)
    sys.stdin.readline()

def prepare(config):
    run = Run("toy", config, out=config.out, resume=config.resume)
    wait("prepare")
    return lambda: train(run.start())

def train(run):
    restored = run.restore({"x": 0})
    for step in range(1 if restored is None else restored[0] + 1, 4):
        wait(f"step {step}")
        run.save(step, {"x": step})
        run.log({"step": step})

main(prepare, {"toy": Config()}, description="")
'''


@contextlib.contextmanager
def toy(folder, *args) -> Iterator[Any]:
    """A toy that says on stdout what it begins and goes on for every line on stdin."""
    (folder / "toy.py").write_text(TOY)
    process = subprocess.Popen(
        [sys.executable, "toy.py", *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def go_on_until(process, what):
    """Let the toy go on until it begins `what`."""
    while (line := process.stdout.readline()) != what + "\n":
        assert line, process.stderr.read()
        process.stdin.write("\n")
        process.stdin.flush()


def test_sigterm_saves_at_the_next_boundary_and_the_printed_command_goes_on(tmp_path):
    with toy(tmp_path, "--num-epochs", "3") as process:
        go_on_until(process, "step 2")
        process.send_signal(signal.SIGTERM)
        assert process.stderr.readline().startswith("SIGTERM: going on to the next checkpoint")
        stderr = process.communicate("\n")[1]
        assert process.returncode == 143
    (folder,) = (tmp_path / "runs").iterdir()
    command = stderr.removeprefix("terminated; go on with: ")
    assert shlex.split(command) == [
        *("python", "toy.py", "--num-epochs", "3", "--out", f"runs/{folder.name}", "--resume")
    ]
    with toy(tmp_path, *shlex.split(command)[2:]) as process:
        go_on_until(process, "prepare")
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "step 3\n"
        process.communicate("\n")
        assert process.returncode == 0


def test_ctrl_c_leaves_at_once_with_status_130_and_quotes_the_folder(tmp_path):
    with toy(tmp_path, "--out", "my run") as process:
        go_on_until(process, "step 2")
        process.send_signal(signal.SIGINT)
        stderr = process.communicate()[1]
        assert process.returncode == 130
    assert stderr == "interrupted; go on with: python toy.py --out 'my run' --resume\n"


@pytest.mark.parametrize(
    ("number", "status", "what"),
    [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")],
)
def test_a_signal_before_anything_is_saved_leaves_at_once(number, status, what, tmp_path):
    with toy(tmp_path) as process:
        go_on_until(process, "prepare")
        process.send_signal(number)
        stderr = process.communicate()[1]
        assert process.returncode == status
    assert stderr == f"{what}; the same command begins again: python toy.py\n"
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(second, tmp_path):
    with toy(tmp_path) as process:
        go_on_until(process, "step 1")
        process.send_signal(signal.SIGTERM)
        assert process.stderr.readline().startswith("SIGTERM")
        process.send_signal(second)
        assert process.wait() == -second


def test_handlers_of_signals_are_put_back(monkeypatch):
    before = [signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)]
    inside = []
    prepare = lambda config: lambda: inside.append(signal.getsignal(signal.SIGTERM))
    assert call(monkeypatch, prepare=prepare) == 0
    assert [signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)] == before
    assert inside[0] not in before


def test_results_of_a_terminated_and_resumed_run_are_equal_to_the_byte(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(cli, "program", lambda: ["toy"])
    options = ["smoke", "--criteria", "equal_opportunity", "--signals", "loss"]

    def status(*args):
        return call(monkeypatch, *args, prepare=fairbatch.prepare_run, presets=fairbatch.PRESETS)

    assert status(*options, "--out", tmp_path / "whole") == 0
    log = Run.log

    def log_and_terminate(run, row):
        log(run, row)
        if row["epoch"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", log_and_terminate)
        assert status(*options, "--out", tmp_path / "cut") == 143
    assert not (tmp_path / "cut" / "summary.json").exists()
    last = capsys.readouterr().err.splitlines()[-1]
    arguments = shlex.split(last.partition("toy ")[2])
    assert arguments == [*options, "--out", str(tmp_path / "cut"), "--resume"]
    assert status(*arguments) == 0
    texts = [(tmp_path / run / "summary.json").read_text() for run in ("whole", "cut")]
    whole, cut = (json.dumps(json.loads(text)["results"]) for text in texts)
    assert whole == cut
    whole, cut = ((tmp_path / run / "history.jsonl").read_text() for run in ("whole", "cut"))
    assert whole == cut
