"""The result folder of every experiment: what is written when, damage, a full disk."""

import contextlib
import dataclasses
import os
import resource
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from toy_experiment import Config, Part, call

from experiments.files import load_arrays, replacing, save_arrays, write_atomically
from experiments.run import Run, Terminated, timed

ROOT = Path(__file__).parents[1]


@pytest.fixture
def settings(tmp_path):
    return Config(out=tmp_path / "run")


def make(config, resume=False):
    return Run("toy", config, out=config.out, resume=resume)


def test_a_run_writes_nothing_before_it_is_started(settings):
    run = make(settings)
    assert not settings.out.exists()
    run.start()
    assert [path.name for path in settings.out.iterdir()] == ["config.json"]
    with pytest.raises(ValueError, match="holds a run already; add --resume"):
        make(settings)


def test_of_two_runs_that_were_made_for_a_folder_only_one_starts(settings):
    first, second = make(settings), make(settings)
    first.start()
    with pytest.raises(ValueError, match="holds a run already"):
        second.start()


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_an_out_that_is_a_file_is_one_line_and_status_2(where, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("mine")
    check = lambda config: make(config).start
    assert call(monkeypatch, "--out", tmp_path / where, prepare=check) == 2
    error = capsys.readouterr().err
    assert "is a file, not a folder" in error and error.count("\n") == 1
    assert (tmp_path / "file").read_text() == "mine"


def test_an_out_where_nothing_can_be_written_is_one_line_and_status_2(monkeypatch, capsys):
    check = lambda config: make(config).start
    assert call(monkeypatch, "--out", "/proc/fairjax/run", prepare=check) == 2
    error = capsys.readouterr().err
    assert "--out /proc/fairjax/run: cannot write there" in error and error.count("\n") == 1


def test_resuming_names_the_nested_option_that_changed(settings):
    make(settings).start()
    changed = dataclasses.replace(settings, part=Part(share=0.25))
    with pytest.raises(ValueError, match=r"--part.share was 0.5 in .*, now 0.25"):
        make(changed, resume=True)


STATE = {
    "key": jax.random.key(3),
    "keys": jax.random.split(jax.random.key(1), 4),
    "other": jax.random.key(5, impl="rbg"),
    "x": jnp.arange(40_000.0),
    "step": 7,
    "mask": np.array([True, False]),
    "masks": np.zeros((3, 0), bool),  # of a space without bits
}


def restored(settings):
    found = make(settings, resume=True).start().restore(STATE)
    assert found is not None
    return found


def as_numbers(tree):
    def one(leaf):
        is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    return jax.tree.map(one, tree)


def test_a_checkpoint_comes_back_with_its_typed_keys(settings):
    run = make(settings).start()
    run.save(1, STATE)
    run.save(2, STATE | {"step": 8})
    step, state = restored(settings)
    assert (step, state["step"]) == (2, 8)
    jax.tree.map(
        np.testing.assert_array_equal, as_numbers(state), as_numbers(STATE | {"step": np.int64(8)})
    )
    assert {name: state[name].dtype for name in ("key", "keys", "other")} == {
        name: STATE[name].dtype for name in ("key", "keys", "other")
    }


DEVICES = """
import dataclasses, sys
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
from jax.sharding import NamedSharding, PartitionSpec
from experiments.run import Run
from fairjax.sharding import AXIS, candidate_mesh, shard_candidates
Config = dataclasses.make_dataclass("Config", [])
resume, out = sys.argv[2] == "resume", Path(sys.argv[3])
run = Run("toy", Config(), out=out, resume=resume).start()
mesh = candidate_mesh()
state = {"x": jnp.arange(4.0), "key": jax.vmap(jax.random.key)(jnp.arange(4))}
if resume:
    state = run.restore(state)[1]
draw = lambda state: state["x"] + jax.vmap(jax.random.uniform)(state["key"])
drawn = jax.jit(shard_candidates(draw, mesh))(state)
if not resume:
    run.save(1, jax.device_put(state, NamedSharding(mesh, PartitionSpec(AXIS))))
print(jax.device_count(), np.asarray(drawn).tolist())
"""


def in_process(count, what, out):
    return subprocess.run(
        [sys.executable, "-c", DEVICES, str(count), what, str(out)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def test_a_run_goes_on_with_another_number_of_devices(tmp_path):
    saved = in_process(4, "start", tmp_path / "run")
    other = in_process(2, "resume", tmp_path / "run")
    assert saved.returncode == 0, saved.stderr
    assert other.returncode == 0, other.stderr
    assert (saved.stdout[0], other.stdout[0]) == ("4", "2")
    assert saved.stdout[1:] == other.stdout[1:]


def test_a_damaged_checkpoint_is_one_line_and_status_2(settings, monkeypatch, capfd):
    make(settings).start().save(1, STATE)
    largest = max(
        (path for path in (settings.out / "checkpoint" / "1" / "default" / "d").iterdir()),
        key=lambda path: path.stat().st_size,
    )
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])

    def prepare(config):
        run = make(config, resume=True)
        return lambda: run.start().restore(STATE)

    assert call(monkeypatch, "--out", settings.out, "--resume", prepare=prepare) == 2
    error = capfd.readouterr().err
    assert f"error: cannot read the checkpoint in {settings.out}/checkpoint" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("text", ["", '{"num_epochs": 1', "[1, 2]", "null"])
def test_a_damaged_config_is_one_line_and_status_2(text, settings, monkeypatch, capsys):
    make(settings).start()
    (settings.out / "config.json").write_text(text)
    prepare = lambda config: make(config, resume=True).start
    assert call(monkeypatch, "--out", settings.out, "--resume", prepare=prepare) == 2
    error = capsys.readouterr().err
    assert "config.json is damaged" in error and error.count("\n") == 1


def test_only_the_last_line_of_a_history_may_be_cut_short(settings):
    run = make(settings).start()
    for step in (1, 2):
        run.log({"step": step})
    path = settings.out / "history.jsonl"
    with path.open("a") as file:
        file.write('{"step": 3')
    assert run.history() == [{"step": 1}, {"step": 2}]
    again = make(settings, resume=True).start()
    again.log({"step": 3})  # not glued to what the kill left
    assert again.history() == [{"step": 1}, {"step": 2}, {"step": 3}]
    path.write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
    with pytest.raises(OSError, match="history.jsonl, line 2 is damaged"):
        again.history()


@contextlib.contextmanager
def full_disk(num_bytes=20_000):
    """No file can grow beyond `num_bytes`: what a full disk looks like to a program."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


WRITERS = {
    "checkpoint": lambda run: run.save(1, STATE),
    "history.jsonl": lambda run: [run.log({"x": list(range(9000))}) for _ in range(2)],
    "summary.json": lambda run: run.finish(
        data={}, results={"x": np.arange(9000)}, timing={"train_s": 1.0}
    ),
    "rows.npz": lambda run: save_arrays(run.folder / "rows.npz", x=np.arange(9000.0)),
    "models.safetensors": lambda run: save_file(
        {"x": np.arange(9000.0)}, run.folder / "models.safetensors"
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_line_and_status_2_and_leaves_nothing_half(
    name, settings, monkeypatch, capfd
):
    def prepare(config):
        run = make(config)

        def train():
            run.start()
            with full_disk():
                WRITERS[name](run)

        return train

    assert call(monkeypatch, "--out", settings.out, prepare=prepare) == 2
    error = capfd.readouterr().err
    assert "File too large" in error and error.startswith("error: ")
    assert error.count("\n") == 1
    assert name in error or name == "models.safetensors"  # the library names no file
    left = {path.name for path in settings.out.iterdir()}
    assert left <= {"config.json", name}
    run = make(settings, resume=True).start()
    WRITERS[name](run)  # once there is room again
    if name == "checkpoint":
        assert restored(settings)[0] == 1


def test_files_are_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "rows.npz"
    save_arrays(path, x=np.arange(3))
    with pytest.raises(KeyboardInterrupt), replacing(path) as partial:
        partial.write_bytes(b"half")
        raise KeyboardInterrupt
    assert load_arrays(path)["x"].tolist() == [0, 1, 2]
    write_atomically(tmp_path / "text", "one\n")
    write_atomically(tmp_path / "text", "two\n")
    assert (tmp_path / "text").read_text() == "two\n"
    assert {path.name for path in tmp_path.iterdir()} == {"rows.npz", "text"}


@pytest.mark.parametrize("keep", [0, 10, 200, -30])
def test_damaged_arrays_are_an_error_that_names_the_file(keep, tmp_path):
    path = tmp_path / "rows.npz"
    save_arrays(path, x=np.arange(100))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(OSError, match="rows.npz is damaged .*; delete it to go on"):
        load_arrays(path)


def test_times_of_a_block_add_up_also_when_it_fails():
    timing = {"a_s": 1.0}
    with timed(timing, "a_s"):
        pass
    with pytest.raises(KeyError), timed(timing, "b_s"):
        raise KeyError
    assert timing["a_s"] > 1.0 and timing["b_s"] > 0


def test_a_run_that_was_not_asked_to_stop_goes_on_after_saving(settings):
    run = make(settings).start()
    run.save(1, STATE)
    run.may_stop()
    run.asked_to_stop = True
    with pytest.raises(Terminated):
        run.save(2, STATE)
    assert restored(settings)[0] == 2
