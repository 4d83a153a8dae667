"""What every experiment shares: the command line, the result folder and its summary."""

import contextlib
import dataclasses
import importlib.metadata
import json
import math
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

BAD_INPUT, INTERRUPTED = 2, 130


def main(
    prepare: Callable[[Any], Callable[[], Any]],
    presets: Mapping[str, Any],
    *,
    description: str,
) -> None:
    """Run an experiment from the command line: `[PRESET] [--field value ...]`.

    `prepare(config)` reads and checks everything and returns the function that trains; what it
    raises as `ValueError` or `OSError` is the user's to mend: one line on stderr, exit status 2,
    nothing trained. The first preset is the default. Ctrl-C leaves with status 130.
    """
    import tyro

    use_all_cores()
    first = next(iter(presets))
    args = sys.argv[1:]
    if not args or (args[0] not in presets and args[0] not in ("-h", "--help")):
        args = [first, *args]
    config = tyro.extras.overridable_config_cli(
        {name: (doc_line(value), value) for name, value in presets.items()},
        args=args,
        description=description,
    )
    try:
        train = prepare(config)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    try:
        train()
    except KeyboardInterrupt:
        print("interrupted; run the same command with --resume to go on", file=sys.stderr)
        sys.exit(INTERRUPTED)


def use_all_cores() -> None:
    """One virtual CPU device per core, so that populations spread over cores as over TPUs."""
    with contextlib.suppress(RuntimeError):  # JAX has started already: keep what there is
        jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)


def doc_line(config: Any) -> str:
    """First line of a configuration's own description."""
    return (getattr(config, "about", "") or type(config).__doc__ or "").splitlines()[0]


class Run:
    """The result folder of one run.

    Holds `config.json`, `history.jsonl` (one row per epoch or trial, flushed as written),
    `summary.json` (written last, atomically) and `checkpoint/`. An existing folder is refused
    unless the run resumes it with an equal configuration.
    """

    def __init__(self, experiment: str, config: Any, *, out: Path | None, resume: bool):
        stamp = time.strftime("%Y%m%d-%H%M%S")
        self.experiment = experiment
        self.folder = Path(out) if out is not None else Path("runs") / f"{experiment}-{stamp}"
        self.config = _plain(
            {k: v for k, v in dataclasses.asdict(config).items() if k not in ("out", "resume")}
        )
        self.started = time.perf_counter()
        path = self.folder / "config.json"
        if resume:
            if out is None:
                raise ValueError("--resume needs --out, the folder of the run to go on with")
            if not path.exists():
                raise ValueError(f"--resume: no run in {self.folder} (config.json is missing)")
            self._check_same(json.loads(path.read_text()))
        elif path.exists():
            raise ValueError(
                f"{self.folder} holds a run already; add --resume to go on, or choose another --out"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(self.config, indent=2) + "\n")

    def _check_same(self, before: dict[str, Any]) -> None:
        changed = sorted(
            key for key in before | self.config if before.get(key) != self.config.get(key)
        )
        if changed:
            key = changed[0]
            raise ValueError(
                f"--resume: {key} was {before.get(key)!r} in {self.folder}, "
                f"now {self.config.get(key)!r}; resume with the same settings"
            )

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one row to `history.jsonl`."""
        with (self.folder / "history.jsonl").open("a") as file:
            file.write(json.dumps(_plain(row)) + "\n")

    def history(self) -> list[dict[str, Any]]:
        """All whole rows written so far; a line cut short by a kill is dropped."""
        path = self.folder / "history.jsonl"
        rows = []
        for line in path.read_text().splitlines() if path.exists() else []:
            with contextlib.suppress(json.JSONDecodeError):
                rows.append(json.loads(line))
        return rows

    def rewrite_history(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replace `history.jsonl`, dropping what a resumed run will do again."""
        text = "".join(json.dumps(_plain(row)) + "\n" for row in rows)
        write_atomically(self.folder / "history.jsonl", text)

    def save(self, step: int, state: Any) -> None:
        """Checkpoint a pytree (typed keys included), wait until it is on disk, keep only it."""
        with self._checkpoints() as manager:
            import orbax.checkpoint as ocp

            manager.save(step, args=ocp.args.StandardSave(_raw_keys(state)))
            manager.wait_until_finished()

    def restore(self, like: Any) -> tuple[int, Any] | None:
        """Step and state of the newest checkpoint, shaped as `like`; None if there is none."""
        with self._checkpoints() as manager:
            import orbax.checkpoint as ocp

            step = manager.latest_step()
            if step is None:
                return None
            target = jax.tree.map(np.asarray, _raw_keys(like))
            state = manager.restore(step, args=ocp.args.StandardRestore(target))
        return step, _typed_keys(state, like)

    @contextlib.contextmanager
    def _checkpoints(self) -> Iterator[Any]:
        import orbax.checkpoint as ocp

        options = ocp.CheckpointManagerOptions(max_to_keep=1)
        manager = ocp.CheckpointManager((self.folder / "checkpoint").resolve(), options=options)
        try:
            yield manager
        finally:
            manager.close()

    def finish(
        self,
        *,
        data: Mapping[str, Any],
        results: Mapping[str, Any],
        timing: Mapping[str, float],
        notes: Iterable[str] = (),
    ) -> dict[str, Any]:
        """Write `summary.json` and return it."""
        summary = _plain(
            {
                "experiment": self.experiment,
                "command": command(),
                "config": self.config,
                "versions": versions(),
                "device": device_name(),
                "data": data,
                "results": results,
                "timing": {**timing, "total_s": time.perf_counter() - self.started},
                "notes": list(notes),
            }
        )
        write_atomically(self.folder / "summary.json", json.dumps(summary, indent=2) + "\n")
        return summary


def progress(total: int, description: str, done: int = 0) -> Any:
    """A progress bar on a terminal; elsewhere `.update` prints nothing and rows speak instead."""
    import tqdm

    return tqdm.tqdm(
        total=total, initial=done, desc=description, disable=not sys.stderr.isatty(), leave=False
    )


def say(line: str) -> None:
    """One line of progress on stderr where there is no terminal to draw a bar on."""
    if not sys.stderr.isatty():
        print(line, file=sys.stderr, flush=True)


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


def table(columns: list[str], rows: Iterable[list[str]]) -> str:
    """Columns aligned for a terminal, the first to the left and the others to the right."""
    rows = [columns, *rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def command() -> str:
    """The command line that was run, ready to paste."""
    spec = sys.modules["__main__"].__spec__
    program = ["python", "-m", spec.name] if spec else ["python", sys.argv[0]]
    return shlex.join([*program, *sys.argv[1:]])


def versions(*others: str) -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers, and of installed `others`."""
    packages = ("fairjax", "jax", "jaxlib", "flax", "optax", "numpy", *others)
    found = {"python": platform.python_version()}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def device_name() -> str:
    """The accelerator as JAX names it, with how many; for a CPU its cores."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return f"cpu, {platform.machine()}, {os.cpu_count()} cores"
    return f"{device.device_kind} x {jax.device_count()}"


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader, or a kill, sees the old contents or the new."""
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(text)
    temporary.replace(path)


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


def _raw_keys(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, tree)


def _typed_keys(tree: Any, like: Any) -> Any:
    return jax.tree.map(lambda x, y: jax.random.wrap_key_data(x) if _is_key(y) else x, tree, like)


def _is_key(x: Any) -> bool:
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
