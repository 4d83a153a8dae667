"""Sums are right on CPU wherever fairjax is imported first, and the user hears where it was not.

Each test is a process of its own, because JAX reads `XLA_FLAGS` once. The programs are right or
wrong by the jaxlib installed; with fairjax they are right on every one.
"""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import fairjax

ROOT = Path(__file__).parents[1]
FLAG = "--xla_cpu_experimental_ynn_fusion_type"

LARGE_SUM = """
import jax, jax.numpy as jnp
rows = jnp.zeros((32_769, 3)).at[:, 0].set(jnp.arange(32_769.0))
squares = jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2))
print(int(squares(rows)[-1]), int(jax.jit(squares)(rows)[-1]))
"""  # 32,768 ** 2 twice; jaxlib 0.10.2 alone gives 1065369600 under jit

RANK_SEVEN = """
import jax, jax.numpy as jnp, numpy as np
a, b = np.random.default_rng(0).normal(size=(2, 3, 1, 2, 2, 8, 8, 8)).astype(np.float32)
sums = jax.jit(lambda a, b: jnp.sum(a * b, axis=3))(a, b)
print(np.allclose(sums, (a * b).sum(3), atol=1e-5))
"""  # jaxlib 0.10.2 alone crashes or hangs


def run(code, flags=""):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "0"  # it is they that are wrong
    environment["XLA_FLAGS"] = flags  # not what the tests' own process was given
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return done


def affected(jaxlib="0.10.2"):
    return (
        "import importlib.metadata as m; real = m.version\n"
        f"m.version = lambda name: {jaxlib!r} if name == 'jaxlib' else real(name)\n"
    )


def test_large_sums_under_jit_are_right():
    assert run("import fairjax\n" + LARGE_SUM).stdout == "1073741824 1073741824\n"


def test_large_sums_are_right_through_any_room_and_after_jax_is_imported():
    code = "import jax, jax.numpy\nfrom fairjax.trees import flatten_named\n" + LARGE_SUM
    assert run(code).stdout == "1073741824 1073741824\n"


def test_sums_are_right_with_the_options_of_convolution_networks():
    code = LARGE_SUM.replace("jax.jit(squares)", "jax.jit(squares, compiler_options=options)")
    options = (
        "import fairjax\nfrom fairjax.models import compiler_options, image_model\n"
        "options = compiler_options(image_model('vgg_micro', 2))\n"
        "import jaxlib\nassert jaxlib.__version__ != '0.10.2' or options\n"
    )
    assert run(options + code).stdout == "1073741824 1073741824\n"


def test_sums_of_rank_seven_are_right():
    assert run("import fairjax\n" + RANK_SEVEN).stdout == "True\n"


SHOW = "import fairjax, os; print(os.environ['XLA_FLAGS'])"


@pytest.mark.parametrize("jaxlib", ["0.10.2", "0.11.0"])
def test_affected_versions_get_the_flag_beside_the_users_own(jaxlib):
    flags = run(affected(jaxlib) + SHOW, "--xla_cpu_enable_fast_math=false").stdout.split()
    assert flags == ["--xla_cpu_enable_fast_math=false", f"{FLAG}=-reduce"]


@pytest.mark.parametrize("jaxlib", ["0.9.2", "0.10.0", "0.10.1", "0.11.1", "0.12.0.1"])
def test_other_versions_are_left_alone(jaxlib):
    assert run(affected(jaxlib) + SHOW).stdout == "\n"


def test_what_the_user_decided_stands_and_is_not_warned_of():
    started = "import jax; jax.devices()\n"
    for code in (SHOW, started + SHOW):
        done = run(affected() + code, f"{FLAG}=-dot")
        assert done.stdout == f"{FLAG}=-dot\n" and "RuntimeWarning" not in done.stderr


def test_a_jax_that_has_started_is_warned_of_once_with_what_to_do():
    code = "import jax; jax.devices()\nimport fairjax, fairjax.train, fairjax.metrics\n" + SHOW
    done = run(affected() + code)
    assert done.stderr.count("RuntimeWarning") == 1
    assert "<string>:4: RuntimeWarning: jaxlib 0.10.2 may compute wrong sums on CPU" in done.stderr
    assert f"import fairjax before using JAX, or set XLA_FLAGS={FLAG}=-reduce" in done.stderr
    assert done.stdout == "\n"  # too late: nothing is changed


def test_a_process_that_computes_on_an_accelerator_is_not_warned(monkeypatch):
    import jax

    jax.devices()
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fairjax._guard_sums("0.10.2")
        assert len(caught) == 1  # on the CPU, where these tests run
        monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
        fairjax._guard_sums("0.10.2")
        assert len(caught) == 1
    assert "XLA_FLAGS" not in os.environ


@pytest.mark.parametrize(
    "line",
    [
        "from fairjax import fairbatch",
        "import fairjax; fairbatch = fairjax.fairbatch",
        "import fairjax.train; fairbatch = fairjax.fairbatch",
        "from fairjax.fairbatch import fairbatch, fairbatch_indices",
        "from fairjax.fairbatch import CRITERIA; from fairjax import fairbatch",
    ],
)
def test_the_natural_lines_give_the_function(line):
    code = "; assert callable(fairbatch) and fairbatch.__module__ == 'fairjax.fairbatch.sampler'"
    assert run(line + code).stdout == ""
