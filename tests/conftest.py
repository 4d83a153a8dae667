"""Strict settings for every test: types checked, no silent promotion, eight virtual CPU devices."""

import os
import tempfile
import types
from pathlib import Path

import jaxtyping
import pytest

# Shapes in signatures are checked by beartype; the hook sees only what is imported after it.
jaxtyping.install_import_hook("fairjax", "type_checks.check")

# Programs are compiled once, also for the commands that tests start.
_PROGRAMS = Path(tempfile.gettempdir()) / f"fairjax-tests-{os.getuid()}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_PROGRAMS))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

# Most of the time goes into compiling small programs. `.ci/run` repeats some as users have them.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import fairjax  # noqa: E402, F401, I001  (before JAX starts, for the guard in it)
import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def optimised():
    """Programs as users have them: sums that are not vectorised are less exact."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


collect_ignore = ["golden"]  # scripts that made the golden files, with libraries of their own


def expects_an_error(test):
    """Does a test, or a helper of its file that it names, use `pytest.raises`?"""
    named = (test.__globals__.get(name) for name in test.__code__.co_names)
    helpers = [each for each in named if isinstance(each, types.FunctionType)]
    return any("raises" in each.__code__.co_names for each in [test, *helpers])


class Calls:
    """Where a test or an example is run under other rules than the strict ones above."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        if isinstance(item, pytest.DoctestItem):  # as a user runs it
            with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
                return (yield)
        if not expects_an_error(item.function):
            return (yield)
        # What is handed over is wrong on purpose: the library's own errors are to be seen.
        jaxtyping.config.update("jaxtyping_disable", True)
        try:
            return (yield)
        finally:
            jaxtyping.config.update("jaxtyping_disable", False)

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_teardown(self, item, nextitem):
        # Linux lets a process map 65,530 pieces of memory, a program takes about three, and who
        # asks for one more is killed: files leave room for those that come after them.
        if nextitem is not None and nextitem.path == item.path:
            return
        maps = Path("/proc/self/maps")
        if maps.exists() and maps.read_bytes().count(b"\n") > 25_000:
            jax.clear_caches()


def pytest_configure(config):
    # Registered, because hooks written into this file would see only what lies under tests/.
    config.pluginmanager.register(Calls())
