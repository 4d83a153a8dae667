"""Fair timing of two ways to do the same thing, taking turns in one run."""

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.cli import command
from experiments.run import device_name, versions
from fairjax.models import Model, Weights, compiler_options
from fairjax.train import predict


class Paired(NamedTuple):
    """Seconds of two callables that took turns; index i of both is one pair."""

    ours_s: list[float]
    theirs_s: list[float]

    @property
    def ratios(self) -> list[float]:
        return [theirs / ours for ours, theirs in zip(self.ours_s, self.theirs_s, strict=True)]


def seconds(run: Callable[[], Any]) -> float:
    """Wall seconds of one call, waiting for JAX arrays that it returns and PyTorch's GPU."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    if (torch := sys.modules.get("torch")) and torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def paired(
    ours: Callable[[], Any], theirs: Callable[[], Any], *, repeats: int, warmup: int = 1
) -> Paired:
    """Time both sides `repeats` times in turns, after `warmup` untimed calls of each."""
    for _ in range(warmup):
        seconds(ours)
        seconds(theirs)
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(repeats)]
    return Paired([a for a, _ in pairs], [b for _, b in pairs])


def compare_sizes(model: Model, image: Any, before: Weights, after: Weights) -> dict[str, tuple]:
    """Parameters and forward time of a network's weights and of smaller ones, before and after."""
    images = jax.device_put(image.repeat(64, axis=0))
    forward = lambda w, images: predict(model, w.params, w.batch_stats, images)
    run = jax.jit(forward, compiler_options=compiler_options(model))
    before, after = (jax.device_put(w._replace(notes=())) for w in (before, after))
    times = paired(lambda: run(after, images), lambda: run(before, images), repeats=5)
    after_ms, before_ms = (1e3 * statistics.median(side) for side in times)
    counts = [sum(leaf.size for leaf in jax.tree.leaves(w.params)) for w in (before, after)]
    return {"parameters": tuple(counts), "ms per 64 images": (before_ms, after_ms)}


def compile_seconds(jitted: Any, *args: Any) -> float:
    """Seconds to lower and compile a `jax.jit` function for `args`, without running it."""
    start = time.perf_counter()
    jitted.lower(*args).compile()
    return time.perf_counter() - start


def claim(
    name: str,
    times: Paired,
    *,
    compile_s: float | None = None,
    floor_s: float | None = None,
    unit: str = "s",
    quality: dict[str, dict[str, float]] | None = None,
    notes: str = "",
) -> dict[str, Any]:
    """One benchmark row: medians of both sides in `unit`, the ratio theirs / ours and its range.

    `floor_s` is what ours would take at the machine's matmul rate; `notes` say what was done.
    """
    return {
        "claim": name,
        "ours_s": statistics.median(times.ours_s),
        "theirs_s": statistics.median(times.theirs_s),
        "ratio": statistics.median(times.ratios),
        "ratio_min": min(times.ratios),
        "ratio_max": max(times.ratios),
        "compile_s": compile_s,
        "floor_s": floor_s,
        "unit": unit,
        "quality": quality or {},
        "notes": notes,
        "command": command(),
        "device": device_name(),
        "versions": versions("torch", "torchvision", "fairlearn"),
    }


def matmul_rate(dtype: str = "float32") -> float:
    """Best FLOP/s of a product of two square matrices: this machine's practical roof."""
    size = 1536 if jax.default_backend() == "cpu" else 8192
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)
    product = jax.jit(jnp.matmul)
    return 2 * size**3 / min(seconds(lambda: product(a, a)) for _ in range(6))


def step_flops(jitted: Any, *args: Any) -> float:
    """FLOPs of one call by XLA's count, uncompiled; the body of a loop counts once: one step."""
    return float(jitted.lower(*args).cost_analysis()["flops"])
