"""Programs that are compiled once for equal settings."""

import functools
from collections.abc import Callable
from typing import Any

import jax


def compiled(fn: Callable[..., Any], *settings: Any) -> Callable[..., Any]:
    """`fn(*settings, ...)` jitted over the arguments that follow.

    The same program for equal settings. Settings that do not hash, such as a model whose
    configuration is a dict, give a new one, which compiles again.
    """
    try:
        return _cached(fn, *settings)
    except TypeError:  # only of hashing: nothing is traced before the program is called
        return jax.jit(functools.partial(fn, *settings))


@functools.lru_cache(maxsize=64)
def _cached(fn: Callable[..., Any], *settings: Any) -> Callable[..., Any]:
    return jax.jit(functools.partial(fn, *settings))
