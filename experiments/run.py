"""What every experiment shares: how it is run and ended, its result folder, progress, tables."""

import contextlib
import dataclasses
import importlib.metadata
import json
import math
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from safetensors import SafetensorError

from experiments import checkpoint
from experiments.cli import command, fail, parse
from experiments.files import (
    FolderError,
    check_writable,
    named_errors,
    write_atomically,
)
from experiments.tracking import Write, check_trackers, flat_numbers, make_writer
from fairjax.data.cache import default_cache_dir
from fairjax.timing import timed as timed

INTERRUPTED, TERMINATED = 130, 143


class Terminated(BaseException):
    """SIGTERM came and what was to be saved is saved."""


def main(
    prepare: Callable[[Any], Callable[[], Any]],
    presets: Mapping[str, Any] | type,
    *,
    description: str,
) -> None:
    """Run an experiment from the command line: `[PRESET] [--field value ...]`.

    `prepare(config)` reads and checks everything and returns the function that trains. What it
    raises as `ValueError` or `OSError`, and files that training cannot read or write, are the
    user's to mend: one line on stderr, exit status 2. The first preset is the default.

    Ctrl-C leaves with status 130. SIGTERM, which a machine sends before it is taken away, lets a
    run go on to its next checkpoint and leaves with status 143. The second signal of either kind
    ends the process at once.
    """
    use_all_cores()
    keep_programs()
    Run.current = None
    config = parse(presets, description)
    try:
        with _signals():
            try:
                train = prepare(config)
            except ValueError as error:
                fail(error)
            train()
    except (OSError, SafetensorError) as error:
        fail(error)
    except KeyboardInterrupt:
        _leave("interrupted", INTERRUPTED)
    except Terminated:
        _leave("terminated", TERMINATED)


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Ctrl-C and SIGTERM as `main` says; what was installed before comes back afterwards."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets no other thread install handlers
        return

    def handle(number: int, _frame: Any) -> None:
        for kind in before:
            signal.signal(kind, signal.SIG_DFL)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        if Run.current is None:  # nothing yet that could be saved
            raise Terminated
        Run.current.asked_to_stop = True
        # not `say`: this may have come in the middle of a line
        os.write(2, b"SIGTERM: going on to the next checkpoint; a second signal ends at once\n")

    before = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}
    for kind in before:
        signal.signal(kind, handle)
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def _leave(what: str, status: int) -> None:
    """Say how to go on, and leave."""
    if Run.current is None:
        print(f"{what}; the same command begins again: {command()}", file=sys.stderr)
    else:
        print(f"{what}; go on with: {Run.current.resume_command()}", file=sys.stderr)
    sys.exit(status)


def keep_programs() -> None:
    """Compiled programs stay in the user's cache folder, where the next run finds them.

    JAX_COMPILATION_CACHE_DIR, JAX's own variable, names another folder, or none where it is empty.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = default_cache_dir() / "programs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # nowhere to keep them: every run compiles its own
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def use_all_cores() -> None:
    """One virtual CPU device per core, so that populations spread over cores as over TPUs."""
    with contextlib.suppress(RuntimeError):  # JAX has started already: keep what there is
        jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)


class Run:
    """The result folder of one run.

    Holds `config.json`, `history.jsonl` (one row per epoch or trial, flushed as written),
    `summary.json` (written last, atomically) and `checkpoint/`. An existing run is refused unless
    it is resumed with an equal configuration.

    Making a `Run` only checks; nothing is written before `start`, so make it first and read the
    data afterwards.

    Args:
      experiment: name, for the summary and for the default folder.
      config: dataclass; its fields `out`, `resume`, `about` and `track` do not count as settings.
      out: the folder; by default runs/<experiment>-<time>.
      resume: go on with the run in `out`.
      may_grow: numbers that may be larger than before where it goes on; `grown` has what they were.

    Raises:
      ValueError: no run to resume or other settings, a run that is there already, or an `out` that
        is no folder.
      OSError: nothing can be written there, or config.json is damaged.
    """

    current: ClassVar["Run | None"] = None
    """the run that was started last in this process"""

    def __init__(
        self,
        experiment: str,
        config: Any,
        *,
        out: Path | None,
        resume: bool,
        may_grow: tuple[str, ...] = (),
    ):
        stamp = time.strftime("%Y%m%d-%H%M%S")
        self.experiment = experiment
        self.folder = Path(out) if out is not None else Path("runs") / f"{experiment}-{stamp}"
        settings = dataclasses.asdict(config)
        self.config = _plain(
            {k: v for k, v in settings.items() if k not in ("out", "resume", "about", "track")}
        )
        self.writers: list[Write] = []
        self._track = getattr(config, "track", ())
        check_trackers(self._track)
        self.asked_to_stop = False
        self.grown: dict[str, Any] = {}
        self._may_grow = may_grow
        self._out_given, self._resume = out is not None, resume
        self._began = time.perf_counter()
        if resume and out is None:
            raise ValueError("--resume needs --out, the folder of the run to go on with")
        check_writable(self.folder)
        self._check_settings()

    def _check_settings(self) -> None:
        path = self.folder / "config.json"
        if not self._resume:
            if path.exists():
                raise ValueError(
                    f"{self.folder} holds a run already; add --resume to go on, or choose another "
                    "--out"
                )
            return
        if not path.exists():
            raise ValueError(f"--resume: no run in {self.folder} (config.json is missing)")
        try:
            before = dict(_flat(json.loads(path.read_text())))
        except (ValueError, AttributeError) as error:
            raise FolderError(f"--resume: {path} is damaged ({error})") from error
        now = dict(_flat(self.config))
        for name in before | now:
            if name in self._may_grow and before.get(name, np.inf) < now[name]:
                self.grown[name] = before[name]
            elif before.get(name) != now.get(name):
                raise ValueError(
                    f"--resume: --{name.replace('_', '-')} was {before.get(name)!r} in "
                    f"{self.folder}, now {now.get(name)!r}; resume with the same settings"
                )

    def start(self) -> "Run":
        """Make the folder and write `config.json`; from here on a signal can save first."""
        self._check_settings()  # again: reading data takes long enough for another run to begin
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FolderError(f"cannot make {self.folder}: {error.strerror}") from error
        if not self._resume or self.grown:
            write_atomically(self.folder / "config.json", json.dumps(self.config, indent=2) + "\n")
        if self._resume and (self.folder / "history.jsonl").exists():
            self.rewrite_history(self.history())  # without a last line that a kill cut short
        where = self.folder, self.experiment, dict(_flat(self.config))
        self.writers += [make_writer(name, *where) for name in self._track]
        self._logged = len(self.history())
        Run.current = self
        return self

    def may_stop(self) -> None:
        """Call where everything done so far is on disk: a run that was asked to stop does so here.

        `save` calls it. Raises `Terminated`, which `main` understands.
        """
        if self.asked_to_stop:
            raise Terminated

    def resume_command(self) -> str:
        """The command line that goes on with this run."""
        out = () if self._out_given else ("--out", str(self.folder))
        return command(*out, *(() if self._resume else ("--resume",)))

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one row to `history.jsonl`, and give its numbers to the `writers`."""
        path, row = self.folder / "history.jsonl", _plain(row)
        with named_errors("write", path), path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self._logged += 1
        for write in self.writers:
            write(int(row.get("epoch", self._logged)), flat_numbers(row))

    def history(self) -> list[dict[str, Any]]:
        """All whole rows written so far; a last line cut short by a kill is dropped.

        Raises:
          OSError: another line is damaged.
        """
        path = self.folder / "history.jsonl"
        if not path.exists():
            return []
        rows = []
        with named_errors("read", path):
            *lines, last = path.read_text(errors="replace").split("\n")
        for number, line in enumerate(lines, 1):  # `last` is "" or was cut short
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise FolderError(f"{path}, line {number} is damaged ({error})") from error
        return rows

    def rewrite_history(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replace `history.jsonl`, dropping what a resumed run will do again."""
        text = "".join(json.dumps(_plain(row)) + "\n" for row in rows)
        write_atomically(self.folder / "history.jsonl", text)

    def save(self, step: int, state: Any) -> None:
        """Checkpoint a pytree (typed keys included), wait until it is on disk, keep only it.

        A run that was asked to stop does so afterwards; see `may_stop`.
        """
        checkpoint.save(self.folder / "checkpoint", step, state)
        self.may_stop()

    def restore(self, like: Any) -> tuple[int, Any] | None:
        """Step and state of the newest checkpoint, shaped as `like`; None if there is none.

        Leaves are NumPy arrays and typed keys bound to no device, so that a run can go on with
        another number of devices.
        """
        return checkpoint.restore(self.folder / "checkpoint", like)

    def finish(
        self,
        *,
        data: Mapping[str, Any],
        results: Mapping[str, Any],
        timing: Mapping[str, float],
        notes: Iterable[str] = (),
    ) -> dict[str, Any]:
        """Write `summary.json` and return it.

        Whatever was measured in seconds belongs into `timing`: the `results` of a run that was
        resumed are equal to those of one that was not.
        """
        summary = _plain(
            {
                "experiment": self.experiment,
                "command": command(),
                "config": self.config,
                "versions": versions(),
                "device": device_name(),
                "data": data,
                "results": results,
                "timing": {**timing, "total_s": time.perf_counter() - self._began},
                "notes": list(notes),
            }
        )
        write_atomically(self.folder / "summary.json", json.dumps(summary, indent=2) + "\n")
        return summary


def add_seconds(timing: dict[str, float], more: Mapping[str, float]) -> None:
    """Add what a call of the library took."""
    for name, value in more.items():
        timing[name] = timing.get(name, 0.0) + value


def data_summary(dataset: Any) -> dict[str, Any]:
    """The `data` entry of a summary."""
    rows = np.concatenate(list(dataset.splits.values()))
    return {
        "name": dataset.name,
        "fingerprint": dataset.fingerprint,
        "n": {split: len(rows) for split, rows in dataset.splits.items()},
        "groups": {
            name: int((dataset.group[rows] == i).sum())
            for i, name in enumerate(dataset.group_names)
        },
        "notes": list(dataset.notes),
    }


def versions(*others: str) -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers, and of installed `others`."""
    packages = ("fairjax", "jax", "jaxlib", "flax", "optax", "numpy", *others)
    found = {"python": platform.python_version()}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def device_name() -> str:
    """The accelerator as JAX names it, with how many; for a CPU its model and cores."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        about = Path("/proc/cpuinfo")  # Linux; elsewhere the architecture has to do
        lines = about.read_text().splitlines() if about.exists() else []
        models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        return f"cpu, {(models or [platform.machine()])[0]}, {os.cpu_count()} cores"
    return f"{device.device_kind} x {jax.device_count()}"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as `("data.seed", 0)`."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _plain(value: Any) -> Any:
    """Plain JSON values: arrays become lists, nan and infinities null, paths strings."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (np.ndarray, jax.Array)):
        return _plain(np.asarray(value).tolist())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
