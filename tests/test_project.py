"""Rules of the house: import levels, light imports, sizes, and a README that runs as printed."""

import ast
import dataclasses
import importlib
import re
import shlex
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import jax
import pytest
import tyro

import fairjax

ROOT = Path(__file__).parents[1]
LEVELS = {
    "trees": 0,
    "losses": 0,
    "optimizers": 0,
    "sharding": 0,
    "memory": 0,
    "fusions": 0,
    "timing": 0,
    "threads": 0,
    "metrics": 0,
    "models": 0,
    "data": 0,
    "sampling": 1,
    "fairbatch": 1,
    "thresholds": 1,
    "table_model": 1,
    "train": 2,
    "fairtune": 3,
    "pruning": 3,
    "audit": 3,
    "estimator": 3,
    "compare": 4,
    "report": 4,
}
# What may be imported from a room of the same level, by which rooms.
SAME_LEVEL = {
    "trees": {"models"},
    "threads": {"metrics"},
    "fusions": {"models"},
    "data": {"metrics"},
    "sampling": {"fairbatch"},
    "pruning": {"fairtune"},
}

MAX_FILE, MAX_BODY, MAX_EXPERIMENTS = 400, 60, 4_720  # lines
LONGER_FILES: dict[str, str] = {
    "experiments/data.py": "one configuration, with the options of every source",
    "experiments/fairbatch.py": "one script, with the options of every criterion and split",
    "experiments/fairtune.py": "one script, with the presets of eight medical sets",
}
LONGER_FUNCTIONS: dict[str, str] = {}  # "fairjax/room/file.py::function": "the reason"

# What benchmarks and tests may use of experiments/; everything else there is a script.
SHARED = {"timing", "run", "cli", "results", "baselines", "benchmarks"}


def sources(*folders):
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    assert paths
    return {str(path.relative_to(ROOT)): path.read_text() for path in paths}


def imported(text):
    """Dotted names that a file imports; `from a import b` gives a.b."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def inside(text, package):
    """First names below a package that a file imports."""
    names = (name.split(".") for name in imported(text))
    return {name[1] for name in names if name[0] == package and len(name) > 1}


def roots(text):
    return {name.split(".")[0] for name in imported(text)}


def test_both_ways_to_import_a_room_are_seen():
    text = "from fairjax import trees, metrics as m\nimport fairjax.data.csvfile\n"
    assert inside(text, "fairjax") == {"trees", "metrics", "data"}
    assert inside("def f():\n    from fairjax.train import fit", "fairjax") == {"train"}


def test_modules_import_only_from_lower_levels():
    wrong = []
    for path, text in sources("fairjax").items():
        room = Path(path).parts[1].removesuffix(".py")
        if room == "__init__":
            continue
        assert room in LEVELS, f"{path}: give {room} a level"
        for other in inside(text, "fairjax") - {room}:
            lower = other in LEVELS and LEVELS[other] < LEVELS[room]
            if not lower and room not in SAME_LEVEL.get(other, ()):
                wrong.append(f"{path} imports fairjax.{other}")
    assert not wrong


def test_only_models_import_flax():
    users = {path for path, text in sources("fairjax").items() if "flax" in roots(text)}
    assert users and all(path.startswith("fairjax/models/") for path in users)


def test_the_library_never_imports_torch():
    users = {path: roots(text) for path, text in sources("fairjax").items()}
    assert not [path for path, names in users.items() if {"torch", "torchvision", "timm"} & names]


def test_importing_every_room_is_light_and_does_not_start_jax():
    code = """
import importlib, pkgutil, sys
import fairjax
rooms = [module.name for module in pkgutil.iter_modules(fairjax.__path__)]
rooms.remove("estimator")  # the face that scikit-learn sees
for room in rooms:
    importlib.import_module("fairjax." + room)
heavy = "torch optuna tensorflow_datasets matplotlib PIL tensorflow orbax sklearn pandas"
print(len(rooms), sorted(set(heavy.split()) & set(sys.modules)))
print(sys.modules["jax._src.xla_bridge"].backends_are_initialized())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    rooms, rest = done.stdout.split(" ", 1)
    assert int(rooms) >= 12 and rest == "[]\nFalse\n"


def test_files_are_short():
    long = {
        path: text.count("\n")
        for path, text in sources("fairjax", "experiments").items()
        if text.count("\n") > MAX_FILE and path not in LONGER_FILES
    }
    assert not long


def body_lines(function):
    """Lines of a function without its signature and docstring."""
    first = function.body[0]
    if ast.get_docstring(function) is not None:
        if len(function.body) == 1:
            return 0
        first = function.body[1]
    return function.end_lineno - first.lineno + 1


def test_functions_are_short():
    long = {}
    for path, text in sources("fairjax", "experiments").items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                name = f"{path}::{node.name}"
                if body_lines(node) > MAX_BODY and name not in LONGER_FUNCTIONS:
                    long[name] = body_lines(node)
    assert not long


def test_a_body_is_counted_without_signature_and_docstring():
    text = 'def f(\n    x,\n):\n    """One.\n\n    Two.\n    """\n    y = x\n\n    return y\n'
    assert body_lines(ast.parse(text).body[0]) == 3
    assert body_lines(ast.parse('def f():\n    """One."""\n').body[0]) == 0


def test_no_experiment_is_a_library():
    modules = {Path(path).stem for path in sources("fairjax")}
    wrong = []
    for path, text in sources("fairjax", "experiments/benchmarks", "tests").items():
        used = inside(text, "experiments")
        if not path.startswith("fairjax/"):
            used -= SHARED
        if path.startswith("tests/"):
            about = Path(path).stem.removeprefix("test_").split("_")
            heads = {"_".join(about[:end]) for end in range(1, len(about) + 1)}
            if not heads & modules or "experiment" in about:
                continue  # the test of an experiment, or of the house
        wrong += [f"{path} imports experiments.{name}" for name in sorted(used)]
    assert not wrong


def test_nothing_is_kept_from_the_formatter():
    mark = "fmt: " + "skip"
    texts = sources("fairjax", "experiments", "tests")
    assert not [path for path, text in texts.items() if mark in text]


def test_experiments_stay_small():
    lines = sum(
        text.count("\n")
        for path, text in sources("experiments").items()
        if Path(path).parts[1] not in ("benchmarks", "baselines")
    )
    assert lines <= MAX_EXPERIMENTS


def test_what_fairjax_exports_is_what_its_rooms_define():
    own = {name: value for name, value in vars(fairjax).items() if not name.startswith("_")}
    own = {name: each for name, each in own.items() if not isinstance(each, types.ModuleType)}
    del own["version"]  # of importlib
    assert {"fairbatch", "fairness_metrics", "load_csv", "load_pretrained"} <= own.keys()
    for name, value in own.items():
        assert value.__module__.startswith("fairjax.")
        assert getattr(importlib.import_module(value.__module__), name) is value


# README and the descriptions of experiments, as a reader takes them


README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
EXAMPLES = [text for language, text in BLOCKS if language == "python"]


def test_every_block_of_the_readme_is_run_or_parsed_or_is_output():
    assert {language for language, _ in BLOCKS} <= {"python", "bash", ""}
    assert README.count("```") == 2 * len(BLOCKS)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_readme_examples_run_as_printed(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = compile(EXAMPLES[number], f"README.md example {number}", "exec")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(code, {})  # as outside the tests


def commands(text):
    """Command lines in a text: indented, in a shell block, or between single backticks."""
    text = re.sub(r"\\\n\s*", "", text)
    spans = [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]
    lines = [line for line in text.splitlines() if "`" not in line]
    for line in [*lines, *spans]:
        for part in re.split(r"\s{2,}|\s#|&&", line.strip()):  # two spaces: a comment follows
            if re.match(r"(python -m experiments\.\w+( |$)|pip install )", part.strip()):
                yield part.strip()


def described():
    """Every command line that is promised somewhere, and where."""
    outside = re.sub(r"^```\w*\n.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
    shell = "\n".join(text for language, text in BLOCKS if language == "bash")
    found = {("README.md", line) for line in [*commands(outside), *commands(shell)]}
    for path, text in sources("experiments").items():
        tree = ast.parse(text)
        promises = [ast.get_docstring(tree, clean=False) or ""]
        for node in ast.walk(tree):  # what presets say about themselves
            if isinstance(node, ast.keyword) and node.arg == "about":
                promises.append(ast.unparse(node.value))
        found |= {(path, line) for promise in promises for line in commands(promise)}
    return sorted(found)


def test_command_lines_are_found_however_they_are_written():
    text = "    python -m experiments.a x --y 1     what it does\n"
    text += "    python -m experiments.b \\\n  z\n"
    text += "or `python -m experiments.c NAME\n--out OUT` (`pip install libtpu`); `python -m other`"
    assert list(commands(text)) == [
        "python -m experiments.a x --y 1",
        "python -m experiments.b z",
        "python -m experiments.c NAME --out OUT",
        "pip install libtpu",
    ]


def configuration(module, args, monkeypatch):
    """What an experiment makes of a command line; nothing is run."""
    monkeypatch.setattr(sys, "argv", [module.__name__, *args])
    if not hasattr(module, "PRESETS"):
        return tyro.cli(module.Config, args=args)
    return importlib.import_module("experiments.cli").parse(module.PRESETS, "")


@pytest.mark.parametrize(("where", "line"), described())
def test_every_command_line_that_is_promised_is_accepted(where, line, monkeypatch):
    program, *args = shlex.split(line)
    if program == "pip":
        extras = re.findall(r"\.\[(\w+)\]", line)
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        assert set(extras) <= set(project["optional-dependencies"])
        return
    module = importlib.import_module(args[1])
    if not hasattr(module, "PRESETS") and not hasattr(module, "Config"):
        assert len(args) == 2  # takes no options
        return
    names = getattr(module, "PRESETS", None) or getattr(module, "NAMES", ())
    args = [list(names)[-1] if word == "NAME" else word for word in args[2:]]
    config = configuration(module, args, monkeypatch)
    assert dataclasses.is_dataclass(config)


def test_an_unknown_option_is_not_accepted(monkeypatch):
    module = importlib.import_module("experiments.fairbatch")
    with pytest.raises(SystemExit):
        configuration(module, ["--learning-rat", "0.1"], monkeypatch)
