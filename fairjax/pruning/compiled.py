"""Programs that are compiled once for equal settings."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.core import Tracer

from fairjax.models import Model, compiler_options


def compiled(fn: Callable[..., Any], model: Model, *settings: Any) -> Callable[..., Any]:
    """`fn(model, *settings, ...)` jitted over the arguments that follow.

    The same program for equal settings. Settings that do not hash, such as a model whose
    configuration is a dict, give a new one, which compiles again. It has the network's
    `compiler_options`; within a program of the caller's those are the caller's to give.
    """
    try:
        return _cached(fn, model, *settings)
    except TypeError:  # of hashing: nothing of `fn` is traced before the program is called
        return _program(fn, model, *settings)


def _program(fn: Callable[..., Any], model: Model, *settings: Any) -> Callable[..., Any]:
    part = functools.partial(fn, model, *settings)
    inside, alone = jax.jit(part), jax.jit(part, compiler_options=compiler_options(model))

    def run(*args: Any) -> Any:
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(args)):
            return inside(*args)
        with jax.ensure_compile_time_eval():  # of constants also where a caller's jit is traced
            return alone(*args)

    return run


_cached = functools.lru_cache(maxsize=64)(_program)
