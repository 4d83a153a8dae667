"""Command lines made at random end in the settings they name or in one line and status 2."""

import collections
import contextlib
import dataclasses
import io
import math
import random
import sys
import types
import typing
from pathlib import Path

import pytest

from experiments import audit, compare, fairbatch, fairtune, plan, prepare, pretrain, pruning
from experiments.run import main

# What is prepared, and what ends it before anything heavy begins.
PREPARED = {
    "fairbatch": (fairbatch.prepare_run, fairbatch.PRESETS),
    "fairtune": (fairtune.prepare_run, fairtune.PRESETS),
    "pruning": (pruning.prepare_run, pruning.PRESETS),
    "compare": (compare.prepare_run, compare.PRESETS),
    "pretrain": (pretrain.prepare_run, pretrain.PRESETS),
    "audit": (audit.prepare, audit.Config),
}
PARSED = {
    "plan": (lambda config: None, plan.PRESETS),
    "prepare": (lambda config: None, prepare.PRESETS),
}
WHOLE = ("0", "1", "2", "3", "7", "-1", "2147483648", "1.5", "nan", "abc", "", "None", "1e3")
REAL = ("0", "0.5", "1", "1e-3", "-0.1", "nan", "inf", "1e999", "1e300", "0,5", "x", "")
TEXT = ("sex", "", "a b", "é", "x" * 100, "vit_micro", "none", "0.5,0.3,0.2", "nan,1,1")
BOUNDLESS = ("num_splits", "num_seeds", "hidden", "num_replicates", "image_size", "num_images")
"""Where a large number is no mistake, and takes its time."""


def leaves(config, prefix=""):
    """Path, type and value of every option."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, path = getattr(config, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{path}.")
        elif field.name not in ("about", "out", "resume", "name", "track", "storage"):
            yield path, hints[field.name], value


def parts(hint):
    """Members of a union, of a tuple's items; the type itself otherwise."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return [each for arg in args for each in parts(arg)]
    return [hint]


def text_of(hint, draw, path):
    """A word for an option of this type, and what Python makes of it; `ValueError` if nothing."""
    kind = draw.choice(parts(hint))
    if kind is type(None):
        return ["None"], None
    if typing.get_origin(kind) is tuple:
        args = typing.get_args(kind)
        count = draw.choice((1, 2, 3)) if args[-1] is Ellipsis else len(args)
        found = [text_of(args[0], draw, path) for _ in range(count)]
        return [word for words, _ in found for word in words], tuple(value for _, value in found)
    if typing.get_origin(kind) is typing.Literal:
        word = draw.choice((*typing.get_args(kind), *typing.get_args(kind), "nothing"))
        return [word], word if word in typing.get_args(kind) else ValueError
    if kind is bool:
        return [word := draw.choice(("True", "False", "maybe"))], {
            "True": True,
            "False": False,
        }.get(word, ValueError)
    words = {int: WHOLE, float: REAL}.get(kind, TEXT)
    if any(name in path for name in BOUNDLESS):
        words = [word for word in words if len(word) < 4]
    word = draw.choice(words)
    if word == "None" and type(None) in parts(hint):
        return [word], None
    try:
        return [word], kind(word)
    except ValueError:
        return [word], ValueError


def command(name, presets, draw):
    """Arguments, and the value of every option that they name."""
    args, wanted = [], {}
    if isinstance(presets, dict):
        preset = draw.choice(tuple(presets))
        args.append(preset if draw.random() < 0.97 else f"{preset}x")
        config = presets[preset]
    else:
        config = presets(Path("absent.csv"), "y", ("g",), score="p")
        args = ["absent.csv", "--label", "y", "--sensitive", "g", "--score", "p"]
    options = list(leaves(config))
    for path, hint, _ in draw.sample(options, min(len(options), draw.choice((1, 1, 2, 3)))):
        if path == "predictions":
            continue
        words, value = text_of(hint, draw, path)
        if parts(hint) == [bool]:
            flag = f"--{path}" if value is True else "--no-".join(["", path])
            if value is ValueError:
                continue
            head, _, tail = path.rpartition(".")
            flag = f"--{head}.{'' if value else 'no-'}{tail}" if head else flag
            args += [flag.replace("_", "-")]
        else:
            args += [f"--{path.replace('_', '-')}", *words]
        wanted[path] = value
    if draw.random() < 0.05:
        args.append(draw.choice(("--nonsense", "-x", "--num-epochs", "stray", "\0", "=")))
        wanted = None
    return args, wanted, config


def same(ours, theirs):
    if isinstance(theirs, tuple):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    both_nan = isinstance(theirs, float) and math.isnan(theirs) and math.isnan(ours)
    return both_nan or ours == theirs


def check(config, wanted, preset):
    """Asserts that a configuration holds what was typed, and the preset's values elsewhere."""
    for path, _, value in leaves(preset):
        theirs = wanted.get(path, value)
        holder = config
        for part in path.split("."):
            holder = getattr(holder, part)
        assert same(holder, theirs), (path, holder, theirs)


def failed(value):
    return value is ValueError or (isinstance(value, tuple) and any(map(failed, value)))


def started(name, args, folder, forced):
    """Exit status, the configuration if there was one, and what was said on stderr."""
    act, presets = (PREPARED | PARSED)[name]
    seen, said = [], io.StringIO()

    def prepare_only(config):
        seen.append(config)
        act(config)
        return lambda: None

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said):
        patch.setattr(sys, "argv", [name, *args, *forced])
        patch.chdir(folder)
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                main(prepare_only, presets, description="Anything.")
            except SystemExit as leave:
                return leave.code, seen, said.getvalue()
    return 0, seen, said.getvalue()


def table(folder):
    """A table that every option of a csv can be tried on."""
    rows = ["age,job,sex,label"]
    rows += [f"{20 + i % 37},{'abc'[i % 3]},{'fm'[i % 2]},{i // 2 % 2}" for i in range(80)]
    (folder / "t.csv").write_text("\n".join(rows) + "\n")


def run(seeds, folder):
    table(folder)
    names, outcomes = tuple(PREPARED | PARSED), collections.Counter()
    for seed in seeds:
        draw = random.Random(seed)
        name = draw.choice((*names, "fairbatch", "fairbatch"))
        args, wanted, preset = command(name, (PREPARED | PARSED)[name][1], draw)
        forced = []
        if name in ("fairbatch", "fairtune", "pruning"):
            file = "t.csv" if name == "fairbatch" else "absent.csv"
            forced = ["--data.source", "csv", "--data.csv", file]
            wanted = (
                None
                if wanted is None
                else {**wanted, "data.source": "csv", "data.csv": (Path(file),)}
            )
        status, seen, said = started(name, args, folder, forced)
        story = f"seed {seed}: {name} {args}: {status} {said}"
        # a set of several whose package is not installed is no error
        said = "".join(line for line in said.splitlines(True) if " left out: " not in line)
        assert status in (0, 2), story
        assert (status == 2) == bool(said.strip()) and "Traceback" not in said, story
        if seen and wanted is not None:
            try:
                check(seen[0], wanted, preset)
            except Exception as error:
                raise AssertionError(story) from error
        elif wanted is not None and not args[0].endswith("x"):
            assert any(map(failed, wanted.values())), story  # nothing right is refused
        if seen and status == 2:
            assert said.startswith("error: ") and said.count("\n") == 1 and len(said) < 900, story
        outcomes[f"{name} {'done' if status == 0 else 'refused' if seen else 'unread'}"] += 1
        assert sorted(path.name for path in folder.iterdir()) == ["t.csv"], story
    return outcomes


def test_sixty_command_lines_end_in_their_settings_or_in_status_2(tmp_path):
    outcomes = run(range(60), tmp_path)
    assert len(outcomes) >= 10, outcomes


@pytest.mark.slow
def test_a_thousand_command_lines_end_in_their_settings_or_in_status_2(tmp_path):
    outcomes = run(range(60, 1060), tmp_path)
    assert len(outcomes) >= 15, outcomes
