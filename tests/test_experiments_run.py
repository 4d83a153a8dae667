"""What every experiment shares: command line, numbers, result folder, signals, progress."""

import contextlib
import dataclasses
import json
import math
import os
import resource
import shlex
import signal
import subprocess
import sys
import typing
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from experiments import benchmark, cli, fairbatch, fairtune, plan, prepare, pretrain, pruning
from experiments.cli import Count, NonNegative, Range, Share, check_numbers, table
from experiments.files import load_arrays, replacing, save_arrays, write_atomically
from experiments.run import Run, Terminated, main, timed

ROOT = Path(__file__).parents[1]
EXPERIMENTS = {
    "fairbatch": (fairbatch.prepare_run, fairbatch.PRESETS),
    "fairtune": (fairtune.prepare_run, fairtune.PRESETS),
    "pruning": (pruning.prepare_run, pruning.PRESETS),
    "pretrain": (pretrain.prepare_run, pretrain.PRESETS),
    "plan": (plan.prepare_run, plan.PRESETS),
    "prepare": (prepare.prepare, prepare.PRESETS),
    "benchmark": (benchmark.prepare, benchmark.PRESETS),
}


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


# ---- the command line


def call(monkeypatch, *args, prepare=lambda config: lambda: None, presets=None):
    """Exit status of a toy experiment."""
    monkeypatch.setattr(sys, "argv", ["toy", *map(str, args)])
    try:
        main(prepare, presets or {"small": Config(), "large": Config()}, description="A toy.")
    except SystemExit as leave:
        return leave.code
    return 0


@pytest.mark.parametrize("args", [["images"], ["images", "--help"], ["images", "--num-epochs", 3]])
def test_an_unknown_preset_is_said_to_be_one(args, monkeypatch, capsys):
    assert call(monkeypatch, *args) == 2
    assert capsys.readouterr().err == "error: no preset 'images'; there are small, large\n"


def test_options_without_a_preset_are_those_of_the_first(monkeypatch):
    seen = []
    keep = lambda config: seen.append(config) or (lambda: None)
    presets = {"small": Config(num_epochs=3), "large": Config(num_epochs=9)}
    for args in ([], ["--anything", "1"], ["large", "--anything", "1"]):
        assert call(monkeypatch, *args, prepare=keep, presets=presets) == 0
    assert [config.num_epochs for config in seen] == [3, 3, 9]
    assert [config.anything for config in seen] == [0, 1, 1]


@pytest.mark.parametrize("args", [["--help"], ["small", "--help"], ["--num-epochs", "3", "--help"]])
def test_help_shows_the_program_as_typed_and_percent_signs_as_they_are(args, monkeypatch, capsys):
    monkeypatch.setattr(cli, "program", lambda: ["python", "-m", "experiments.toy"])
    assert call(monkeypatch, *args) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("usage: python -m experiments.toy ")
    assert "95 %" in printed and "%%" not in printed
    if args != ["--help"]:
        assert "part options" in printed and "--part.share" in printed


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_preset_has_a_line_of_its_own_in_the_help(name, monkeypatch, capsys):
    presets = EXPERIMENTS[name][1]
    assert call(monkeypatch, "--help", presets=presets) == 0
    printed = " ".join(capsys.readouterr().out.replace("│", "").split())
    lines = [cli.doc_line(config) for config in presets.values()]
    assert len(set(lines)) == len(lines)
    for preset, config in presets.items():
        assert f"• {preset} {cli.doc_line(config)[:20]}" in printed
        assert "%%" not in cli.doc_line(config)


def test_the_description_of_a_preset_is_no_option(monkeypatch, capsys):
    assert call(monkeypatch, "smoke", "--help", presets=fairbatch.PRESETS) == 0
    assert "--about" not in capsys.readouterr().out


# ---- numbers


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_decay": math.nan}, "--weight-decay must be at least 0, got nan"),
        ({"weight_decay": -0.1}, "--weight-decay must be at least 0, got -0.1"),
        ({"weight_decay": math.inf}, "--weight-decay must be finite, got inf"),
        ({"anything": -math.inf}, "--anything must be finite, got -inf"),
        ({"anything": math.nan}, "--anything must be a number, got nan"),
        ({"num_epochs": 0}, "--num-epochs must be at least 1, got 0"),
        ({"num_epochs": 2.5}, "--num-epochs must be a whole number, got 2.5"),
        ({"chunk_size": -1}, "--chunk-size must be at least 1, got -1"),
        ({"rates": (0.1, 0.0)}, "--rates must be above 0, got 0.0"),
        ({"part": Part(share=1.5)}, "--part.share must be at least 0 and at most 1, got 1.5"),
        ({"part": Part(seeds=(1, 0.5))}, "--part.seeds must be a whole number, got 0.5"),
    ],
)
def test_a_number_that_makes_no_sense_is_named_as_the_option_is_typed(change, message):
    with pytest.raises(ValueError) as caught:
        check_numbers(dataclasses.replace(Config(), **change))
    assert str(caught.value) == message


def test_numbers_that_make_sense_pass():
    check_numbers(Config(anything=-1e30, chunk_size=1, rates=(), part=Part(0.0, (-5,))))


# What is right although it looks like nonsense: experiment, option, value.
ALLOWED = {
    (experiment, option, 0)
    for experiment, options in {
        "fairbatch": ("data.seed",),
        "fairtune": ("data.seed", "worker", "warmup_epochs", "weight_decay", "label_smoothing"),
        "pruning": ("data.seed", "trade_offs", "max_accuracy_drop", "weight_decay"),
        "pretrain": ("seed", "weight_decay"),
        "prepare": ("seed",),
    }.items()
    for option in options
}


def numeric_fields(config, prefix=""):
    """Paths of the fields that hold numbers, or may."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from numeric_fields(value, f"{prefix}{field.name}.")
        elif {int, float} & {hints[field.name], *typing.get_args(hints[field.name])}:
            yield prefix + field.name


def with_value(config, path, bad):
    """The configuration with one number replaced, within a tuple the last."""
    name, _, rest = path.partition(".")
    value = getattr(config, name)
    if rest:
        return dataclasses.replace(config, **{name: with_value(value, rest, bad)})
    changed = (*value[:-1], bad) if isinstance(value, tuple) else bad
    return dataclasses.replace(config, **{name: changed})


NONSENSE = [
    (name, preset, path, bad)
    for name, (_, presets) in EXPERIMENTS.items()
    for preset in (list(presets)[0], list(presets)[-1])
    for path in numeric_fields(presets[preset])
    for bad in (math.nan, math.inf, -math.inf, -1, 0)
    if (name, path, bad) not in ALLOWED
]


def test_no_experiment_reads_anything_before_it_has_refused_every_number_of_nonsense(tmp_path):
    assert len(NONSENSE) > 500
    wrong = []
    for name, preset, path, bad in NONSENSE:
        prepare_run, presets = EXPERIMENTS[name]
        config = with_value(presets[preset], path, bad)
        option = "--" + path.replace("_", "-")
        try:
            prepare_run(config)
        except ValueError as error:
            if not str(error).startswith(f"{option} must be "):
                wrong.append((name, preset, path, bad, str(error)))
        else:
            wrong.append((name, preset, path, bad, "accepted"))
    assert wrong == []


def test_what_is_allowed_is_accepted_by_the_check():
    for name, path, value in ALLOWED:
        preset = next(iter(EXPERIMENTS[name][1].values()))
        check_numbers(with_value(preset, path, value))


# ---- the result folder


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
}


def as_numbers(tree):
    def one(leaf):
        is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    return jax.tree.map(one, tree)


def test_a_checkpoint_comes_back_with_its_typed_keys(settings):
    run = make(settings).start()
    run.save(1, STATE)
    run.save(2, STATE | {"step": 8})
    step, state = make(settings, resume=True).start().restore(STATE)
    assert (step, state["step"]) == (2, 8)
    jax.tree.map(
        np.testing.assert_array_equal, as_numbers(state), as_numbers(STATE | {"step": np.int64(8)})
    )
    assert {name: state[name].dtype for name in ("key", "keys", "other")} == {
        name: STATE[name].dtype for name in ("key", "keys", "other")
    }


DEVICES = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
from jax.sharding import NamedSharding, PartitionSpec
from experiments.run import Run
from fairjax.sharding import AXIS, candidate_mesh, shard_candidates
from test_experiments_run import Config
resume, out = sys.argv[2] == "resume", Path(sys.argv[3])
run = Run("toy", Config(out=out), out=out, resume=resume).start()
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


def python(*args, **options):
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    return subprocess.run(
        [sys.executable, *map(str, args)], capture_output=True, text=True, env=env, **options
    )


def test_a_run_goes_on_with_another_number_of_devices(tmp_path):
    saved, other = (
        python("-c", DEVICES, count, what, tmp_path / "run")
        for count, what in ((4, "start"), (2, "resume"))
    )
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
        assert run.restore(STATE)[0] == 1


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


def test_rows_that_come_one_at_a_time_stand_below_each_other():
    rows = [["a", "1.5"], ["longer", "22"]]
    both = table(["name", "n"], rows, widths=[8, 5]).splitlines()
    assert both == ["name          n", "-" * 15, "a           1.5", "longer       22"]
    assert [table(["name", "n"], [row], widths=[8, 5]).splitlines()[2] for row in rows] == both[2:]
    assert table(["name", "n"], []) == "name  n\n-------"


# ---- signals

TOY = """
import sys
from experiments.run import Run, main
from test_experiments_run import Config

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
"""


@contextlib.contextmanager
def toy(folder, *args):
    """A toy that says on stdout what it begins and goes on for every line on stdin."""
    (folder / "toy.py").write_text(TOY)
    process = subprocess.Popen(
        [sys.executable, "toy.py", *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
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


def test_a_run_that_was_not_asked_to_stop_goes_on_after_saving(settings):
    run = make(settings).start()
    run.save(1, STATE)
    run.may_stop()
    run.asked_to_stop = True
    with pytest.raises(Terminated):
        run.save(2, STATE)
    assert make(settings, resume=True).start().restore(STATE)[0] == 2


FAIRBATCH = ("-m", "experiments.fairbatch", "smoke", "--criteria", "equal_opportunity")
LONG = (*FAIRBATCH, "--signals", "loss", "--num-epochs", "600")


def test_results_of_a_terminated_and_resumed_run_are_equal_to_the_byte(tmp_path):
    whole = python(*LONG, "--out", tmp_path / "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    process = subprocess.Popen(
        [sys.executable, *LONG, "--out", "cut"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith("epoch 60 of 600")
    process.send_signal(signal.SIGTERM)
    last = process.communicate()[1].splitlines()[-1]
    assert process.returncode == 143
    assert not (tmp_path / "cut" / "summary.json").exists()
    assert last.endswith("--num-epochs 600 --out cut --resume")
    again = python(*shlex.split(last.removeprefix("terminated; go on with: python ")), cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    texts = [(tmp_path / run / "summary.json").read_text() for run in ("whole", "cut")]
    whole_results, cut_results = (json.dumps(json.loads(text)["results"]) for text in texts)
    assert whole_results == cut_results
    histories = [(tmp_path / run / "history.jsonl").read_text() for run in ("whole", "cut")]
    assert histories[0] == histories[1]


# ---- progress


def test_a_terminal_shows_phases_and_a_bar_and_a_file_only_what_is_done(monkeypatch, capsys):
    def speak():
        cli.phase("drawing images")
        with cli.progress(2, "epochs") as bar:
            for epoch in (1, 2):
                cli.say(f"epoch {epoch}")
                bar.update()
        return capsys.readouterr().err

    assert speak() == "epoch 1\nepoch 2\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    shown = speak().replace("\r", "\n").split("\n")
    lines = [line.strip() for line in shown if line.strip()]
    assert [line for line in lines if "epochs:" not in line] == [
        *("drawing images", "epoch 1", "epoch 2")
    ]
    assert any("epochs:" in line and "1/2" in line for line in lines)
