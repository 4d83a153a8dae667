"""FairBatch beside PyTorch: one run, and a hundred seeds as one program.

    python -m experiments.benchmark fairbatch

Both sides train logistic regression on the same 2,000 two-Gaussian rows for 300 epochs of 20
batches, from arrays in memory to test logits, taking turns on the same machine, and are held to
the same test accuracy and disparity. Theirs are the styles of `baselines.torch_fairbatch`, on the
CPU, which starts operations on 100 rows sooner than a GPU does. An accelerator also trains 1,000
seeds as one program.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.timing import Paired, claim, compile_seconds, paired
from fairjax import metrics
from fairjax.data import Dataset, Examples
from fairjax.data.synthetic import synthetic_gaussians
from fairjax.fairbatch import fairbatch
from fairjax.models import logistic_regression
from fairjax.train import (
    fit,
    fit_population,
    init_fit,
    init_train,
    make_step,
    measure_cells,
    predict,
)

WHAT = {
    "fairbatch_single_vs_original": "one run against the published Python loop",
    "fairbatch_sweep100_vs_original": "one of 100 seeds in one program against one published loop",
    "fairbatch_sweep1000_vs_original": "one of 1,000 seeds in one program against the same",
    "fairbatch_single_vs_torch": "one run against vectorised PyTorch with autograd",
    "fairbatch_single_vs_torch_by_hand": "the same with this model's gradient by hand",
}
CRITERION = "equal_opportunity"
BATCH_SIZE, STEP_SIZE, LEARNING_RATE = 100, 0.005, 5e-4


def claims(
    quick: bool = False, style: Literal["original", "vectorised", "both"] = "both"
) -> Iterator[dict[str, Any]]:
    """The rows against the original loop, against PyTorch made fast, or both.

    `fairbatch_single_vs_torch` meets autograd, which trains any model, as fairjax does;
    `fairbatch_single_vs_torch_by_hand` meets a gradient derived by hand for this one model.
    """
    num_epochs, num_seeds, repeats = (10, 4, 2) if quick else (300, 100, 9)
    data = synthetic_gaussians(jax.random.key(0))
    train, test = (jax.device_put(data.examples(split)) for split in ("train", "test"))
    program = jax.jit(_program(data, num_epochs))

    larger = jax.default_backend() != "cpu" and not quick
    sweeps = (num_seeds, 1000)[: 1 + larger]
    runs, compile_s = {}, {}
    for count in (1, *sweeps):
        seeds = jnp.arange(count, dtype=jnp.int32)
        compile_s[count] = compile_seconds(program, seeds, train, test)
        runs[count] = functools.partial(program, seeds, train, test)
    ours = _quality(np.asarray(runs[num_seeds]()), test)

    def row(name: str, count: int, times: Paired, logits: list[np.ndarray]) -> dict[str, Any]:
        theirs = _quality(np.stack(logits), test)
        quality = {"ours": ours, "theirs": theirs}
        return claim(
            name,
            times,
            compile_s=compile_s[count],
            quality=quality,
            notes=f"{WHAT[name]}; {_agreement(ours, theirs)}",
        )

    if style != "vectorised":
        theirs, logits = _torch(data, num_epochs, "original")
        times = paired(runs[1], theirs, repeats=repeats)
        yield row("fairbatch_single_vs_original", 1, times, logits)
        for count in sweeps:
            per_sweep = paired(runs[count], theirs, repeats=min(repeats, 5))
            per_run = Paired([s / count for s in per_sweep.ours_s], per_sweep.theirs_s)
            name = f"fairbatch_sweep{100 if quick else count}_vs_original"
            yield row(name, count, per_run, logits)
    if style != "original":
        for name, twin in (("torch", "vectorised"), ("torch_by_hand", "by_hand")):
            theirs, logits = _torch(data, num_epochs, twin)
            times = paired(runs[1], theirs, repeats=repeats)
            yield row(f"fairbatch_single_vs_{name}", 1, times, logits)


def _program(data: Dataset, num_epochs: int) -> Callable[..., jax.Array]:
    """`(seeds [P], train, test) -> test logits [P, N, 2]`, spread over the devices."""
    train_rows = data.examples("train")
    sampler = fairbatch(
        labels=train_rows.labels,
        group=train_rows.group,
        num_classes=data.num_classes,
        num_groups=data.num_groups,
        batch_size=BATCH_SIZE,
        criterion=CRITERION,
        step_size=STEP_SIZE,
        rounding="published",
    )
    model = logistic_regression(data.inputs.shape[1])
    optimizer = optax.adam(LEARNING_RATE)

    def init(seed):
        key = jax.random.key(seed)
        return init_fit(init_train(model, optimizer, key), sampler, key)

    step = make_step(model, optimizer)
    options: dict[str, Any] = {
        "num_epochs": num_epochs,
        "measure_fn": functools.partial(measure_cells, model, sampler),
    }

    def run(seeds: jax.Array, train: Examples, test: Examples) -> jax.Array:
        if len(seeds) == 1:
            state, _ = fit(step, init(seeds[0]), train, sampler, one_kernel=True, **options)
            return predict(model, state.train.params, state.train.batch_stats, test.inputs)[None]
        states, _ = fit_population(step, jax.vmap(init)(seeds), train, sampler, **options)
        trained = states.train.params, states.train.batch_stats
        return jax.vmap(lambda params, stats: predict(model, params, stats, test.inputs))(*trained)

    return run


def _torch(
    data: Dataset, num_epochs: int, style: Any
) -> tuple[Callable[[], None], list[np.ndarray]]:
    """One PyTorch run, each call with the next seed, and the list its test logits go to."""
    from experiments.baselines import torch_fairbatch

    train, test = data.examples("train"), data.examples("test")
    logits: list[np.ndarray] = []

    def run() -> None:
        result = torch_fairbatch.run(
            train,
            test,
            criterion=CRITERION,
            num_epochs=num_epochs,
            batch_size=BATCH_SIZE,
            step_size=STEP_SIZE,
            learning_rate=LEARNING_RATE,
            seed=len(logits),
            style=style,
        )
        logits.append(result["logits"])

    return run, logits


def _quality(logits: np.ndarray, test: Examples) -> dict[str, float]:
    """Mean and standard deviation over seeds of test accuracy and disparity; logits `[P, N, 2]`."""

    def measure(preds):
        counts = metrics.group_counts(preds, labels=test.labels, group=test.group, num_groups=2)
        overall = metrics.accuracy(counts.pooled())
        return overall, metrics.equal_opportunity_deviation(counts)

    accuracy, deviation = jax.vmap(measure)(jnp.asarray(logits.argmax(-1), jnp.int32))
    return {
        "accuracy": float(accuracy.mean()),
        "accuracy_std": float(accuracy.std()),
        "equal_opportunity_deviation": float(deviation.mean()),
        "equal_opportunity_deviation_std": float(deviation.std()),
        "num_seeds": len(logits),
    }


def _agreement(ours: dict[str, float], theirs: dict[str, float]) -> str:
    """Whether mean +- standard deviation of both sides overlap, metric by metric, in words."""
    apart = [
        name
        for name in ("accuracy", "equal_opportunity_deviation")
        if abs(ours[name] - theirs[name]) > ours[f"{name}_std"] + theirs[f"{name}_std"]
    ]
    if apart:
        return f"{' and '.join(apart)} differ by more than the seed spread"
    return "quality agrees within the seed spread"
