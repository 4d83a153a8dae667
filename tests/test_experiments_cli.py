"""The terminal of every experiment: presets, options, numbers, progress, tables."""

import dataclasses
import inspect
import math
import sys
import typing
from pathlib import Path

import pytest
from toy_experiment import Config, Part, call

from experiments import benchmark, cli, fairbatch, fairtune, plan, prepare, pretrain, pruning
from experiments.cli import check_numbers, table
from fairjax.models import load_weights

EXPERIMENTS = {
    "fairbatch": (fairbatch.prepare_run, fairbatch.PRESETS),
    "fairtune": (fairtune.prepare_run, fairtune.PRESETS),
    "pruning": (pruning.prepare_run, pruning.PRESETS),
    "pretrain": (pretrain.prepare_run, pretrain.PRESETS),
    "plan": (plan.prepare_run, plan.PRESETS),
    "prepare": (prepare.prepare, prepare.PRESETS),
    "benchmark": (benchmark.prepare, benchmark.PRESETS),
}


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
        (
            {"part": dataclasses.replace(Part(), seeds=(1, 0.5))},
            "--part.seeds must be a whole number, got 0.5",
        ),
    ],
)
def test_a_number_that_makes_no_sense_is_named_as_the_option_is_typed(change, message):
    with pytest.raises(ValueError) as caught:
        check_numbers(dataclasses.replace(Config(), **change))
    assert str(caught.value) == message


def test_numbers_that_make_sense_pass():
    check_numbers(Config(anything=-1e30, chunk_size=1, rates=(), part=Part(0.0, (-5,))))


# What is right although it looks like nonsense: experiment, option, value.
DATA = ("data.seed", "data.label_noise")
ALLOWED = {
    (experiment, option, 0)
    for experiment, options in {
        "fairbatch": (*DATA, "weight_decay", "data_ratio"),
        "fairtune": (*DATA, "worker", "warmup_epochs", "weight_decay", "label_smoothing"),
        "pruning": (*DATA, "trade_offs", "max_accuracy_drop", "weight_decay", "finetune_epochs"),
        "pretrain": ("weight_decay", "seeds.data"),
        "prepare": ("seed",),
    }.items()
    for option in (*options, *(() if experiment == "prepare" else ("seeds.start", "seeds.batches")))
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


def test_rows_that_come_one_at_a_time_stand_below_each_other():
    rows = [["a", "1.5"], ["longer", "22"]]
    both = table(["name", "n"], rows, widths=[8, 5]).splitlines()
    assert both == ["name          n", "-" * 15, "a           1.5", "longer       22"]
    assert [table(["name", "n"], [row], widths=[8, 5]).splitlines()[2] for row in rows] == both[2:]
    assert table(["name", "n"], []) == "name  n\n-------"


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


@pytest.mark.parametrize("experiment", ["fairtune", "fairbatch", "pruning"])
def test_options_of_a_weight_file_need_one(experiment, monkeypatch):
    presets = EXPERIMENTS[experiment][1]
    flags = ["--weights", "w.pth", "--weights-key", "state_dict", "--grey", "spread"]
    monkeypatch.setattr(sys, "argv", ["program", *flags, "--adapter", "a.bin"])
    config = cli.parse(presets, "")
    assert config.reading() == {
        "path": Path("w.pth"),
        "weights_key": "state_dict",
        "grey": "spread",
        "adapter": Path("a.bin"),
    }
    assert set(inspect.signature(load_weights).parameters) > config.reading().keys()
    for option, value in (("weights_key", "ema"), ("grey", "spread"), ("adapter", Path("a"))):
        alone = dataclasses.replace(next(iter(presets.values())), **{option: value})
        flag = option.replace("_", "-")
        with pytest.raises(ValueError, match=f"--{flag} needs --weights, a file to read so"):
            EXPERIMENTS[experiment][0](alone)
