"""Rules of the house: import levels, light imports, and a README that runs as printed."""

import ast
import subprocess
import sys
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[1]
LEVELS = {
    "trees": 0,
    "metrics": 0,
    "losses": 0,
    "models": 0,
    "data": 0,
    "sharding": 0,
    "fairbatch": 1,
    "fairtune": 1,
    "pruning": 1,
    "train": 2,
    "report": 3,
}
# Within level 0 these, and only these, may be imported from another package of the level.
FOUNDATIONS = {"trees": {"models"}, "losses": set(), "models": set()}


def imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("fairjax."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            for name in node.names:
                if name.name.startswith("fairjax."):
                    yield name.name.split(".")[1]


def test_modules_import_only_from_lower_levels():
    for path in sorted((ROOT / "fairjax").rglob("*.py")):
        room = path.relative_to(ROOT / "fairjax").parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        for other in imported_rooms(path):
            allowed = other == room or LEVELS[other] < LEVELS[room]
            allowed |= room in FOUNDATIONS.get(other, set())
            assert allowed, f"{path} imports fairjax.{other}"


def test_only_models_import_flax_and_nothing_imports_torch():
    for path in (ROOT / "fairjax").rglob("*.py"):
        text = path.read_text()
        if "models" not in path.parts:
            assert "flax" not in text, path


def test_importing_fairjax_is_light():
    code = (
        "import jax, sys, time; t = time.perf_counter(); import fairjax; "
        "print(time.perf_counter() - t); "
        "heavy = {'torch', 'optuna', 'tensorflow_datasets', 'matplotlib', 'PIL', 'tensorflow'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    seconds, heavy = output.stdout.splitlines()
    assert heavy == "[]"
    assert float(seconds) < 10  # under 1 s on an idle machine; a guard against heavy imports


def readme_blocks():
    text = (ROOT / "README.md").read_text()
    return [block.split("```")[0] for block in text.split("```python\n")[1:]]


@pytest.mark.parametrize("number", range(len(readme_blocks())))
def test_readme_examples_run_as_printed(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = compile(readme_blocks()[number], f"README.md example {number}", "exec")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(code, {})  # as outside the tests
