"""Strict settings for every test: types checked, no silent promotion, eight virtual CPU devices."""

import jaxtyping
import pytest

# Shapes in signatures are checked by beartype; the hook sees only what is imported after it.
jaxtyping.install_import_hook("fairjax", "beartype.beartype")

import fairjax  # noqa: E402, F401, I001  (before JAX starts, for the guard in it)
import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

collect_ignore = ["golden"]  # scripts that made the golden files, with libraries of their own


class Examples:
    """The `>>>` lines in fairjax run as a user runs them, with JAX's own promotion rules."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        if not isinstance(item, pytest.DoctestItem):
            return (yield)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return (yield)


def pytest_configure(config):
    # Registered, because hooks written into this file would see only what lies under tests/.
    config.pluginmanager.register(Examples())
