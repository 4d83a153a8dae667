"""Many networks at once: what one of them costs as the population grows, beside PyTorch's ways.

    python -m experiments.benchmark population

Every candidate fine-tunes all of its own network from its own start, with batches of its own. The
other side is the faster of PyTorch one candidate after another and, for small populations,
`torch.func`: stacked networks under `vmap`, each eager and compiled, with fused AdamW on its
device. On CPU a small ViT, on an accelerator ViT-Ti/16 at 64 px in bfloat16 and, for its share of
the machine's rate, ViT-B/16 at 224 px. "of the floor" is the share of the matmul rate that was
measured. Seven minutes on two CPU cores.
"""

import gc
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.cli import phase
from experiments.timing import Paired, claim, matmul_rate, paired, seconds, step_flops
from fairjax.data import Dataset
from fairjax.models import Model, compiler_options, image_model, save_weights
from fairjax.train import (
    Batch,
    Recipe,
    fit_population,
    init_population,
    replicate,
    seed_keys,
    start_train,
)
from fairjax.train.recipe import Dtype
from fairjax.trees import unstack_blocks

NUM_CLASSES, NUM_STEPS = 2, 2


class Setting(NamedTuple):
    """What is trained, and how many of it."""

    model: str
    image_size: int
    batch_size: int
    dtype: Dtype
    counts: tuple[int, ...]
    most_stacked: int
    """PyTorch holds the activations of all stacked networks at once"""
    chunk_size: int | None


QUICK = Setting("vit_micro", 64, 4, "float32", (1, 2), 2, 1)
CPU = Setting("vit_micro", 64, 16, "float32", (1, 4, 16, 64, 256), 16, 1)
ACCELERATOR = (
    Setting("vit_tiny_patch16_224", 64, 64, "bfloat16", (1, 4, 16, 64, 256), 64, None),
    Setting("vit_base_patch16_224", 224, 64, "bfloat16", (1,), 1, None),
)


def claims(quick: bool = False) -> Iterator[dict[str, Any]]:
    """A row per population."""
    on_cpu = jax.default_backend() == "cpu"
    settings = (QUICK,) if quick else (CPU,) if on_cpu else ACCELERATOR
    for setting in settings:
        rate = matmul_rate(1536 if on_cpu else 8192, dtype=setting.dtype)
        for count in setting.counts:
            phase(f"{count} x {setting.model}")
            yield _row(setting, count, rate=rate, quick=quick)


def _row(setting: Setting, count: int, *, rate: float, quick: bool) -> dict[str, Any]:
    size = setting.image_size
    model = image_model(setting.model, NUM_CLASSES, image_size=size)._replace(preprocess=None)
    recipe = Recipe(
        num_epochs=1,
        batch_size=setting.batch_size,
        learning_rate=1e-4,
        schedule="constant",
        dtype=setting.dtype,
    )
    data = _images(size, NUM_STEPS * setting.batch_size)
    ours, compiled, flops = _ours(recipe.make_model(model), recipe, data, count, setting.chunk_size)
    ways = _torch_ways(model, setting, data, count, compiled=not quick)
    losses = float(ours()), next(iter(ways.values()))()[0]
    fastest = {name: min(seconds(way) for _ in range(2)) for name, way in ways.items()}
    which = min(fastest, key=lambda name: fastest[name])
    times = paired(ours, ways[which], repeats=2 if quick else 3)
    times = Paired(*([turn / count / NUM_STEPS for turn in side] for side in times))
    temporaries = compiled.memory_analysis().temp_size_in_bytes / 2**20
    del ways
    gc.collect()  # stacked networks fill gigabytes
    return claim(
        f"population_step_{count}_{setting.model.split('_patch')[0]}",
        times,
        floor_s=flops / rate,
        quality={
            "ours": {"loss": losses[0], "temporaries_mib": temporaries},
            "theirs": {"loss": losses[1]},
        },
        notes=f"a step of each of {count} {setting.model}, {size} px, batch {setting.batch_size}, "
        f"{setting.dtype}, {flops / 1e9:.1f} GFLOP, per candidate; PyTorch's fastest of "
        f"{', '.join(fastest)}: {which}",
    )


def _images(size: int, count: int) -> Dataset:
    """Noise with labels."""
    rng = np.random.default_rng(0)
    rows = np.arange(count, dtype=np.int32)
    return Dataset(
        name="noise",
        inputs=rng.standard_normal((count, size, size, 3), np.float32),
        labels=rows % NUM_CLASSES,
        group=rows // NUM_CLASSES % 2,
        label_names=("0", "1"),
        group_names=("a", "b"),
        splits={"train": rows, "val": rows[:0], "test": rows[:0]},
    )


def _ours(
    model: Model, recipe: Recipe, data: Dataset, count: int, chunk_size: int | None
) -> tuple[Callable[[], jax.Array], Any, float]:
    """An epoch of all candidates, its compiled program and the FLOPs of one candidate's step."""
    sampler = recipe.make_sampler(data)
    optimizer = recipe.make_optimizer(sampler.batches_per_epoch)
    step = recipe.make_step(model, optimizer, data)
    params, batch_stats = model.init(jax.random.key(0))
    stacked = replicate(params, count), replicate(batch_stats, count)
    init = jax.jit(
        lambda params, stats, keys: init_population(params, stats, optimizer, sampler, keys=keys)
    )
    states = init(*stacked, seed_keys(count))
    examples = jax.tree.map(jnp.asarray, data.examples("train"))

    def epoch(states, examples):
        how = {"num_epochs": 1, "chunk_size": chunk_size}
        states, history = fit_population(step, states, examples, sampler, **how)
        return states, history["loss"].mean()

    options = {"donate_argnums": 0, "compiler_options": compiler_options(model)}
    compiled = jax.jit(epoch, **options).lower(states, examples).compile()

    def run() -> jax.Array:
        nonlocal states
        states, loss = compiled(states, examples)
        return loss

    # blocks one by one, for the count: a loop's body is counted once however often it runs
    alone = start_train(unstack_blocks(params), batch_stats, optimizer)
    first = jax.tree.map(lambda x: x[: recipe.batch_size], examples)
    batch = Batch(first.inputs, first.labels, first.group, jnp.ones(recipe.batch_size))
    flops = step_flops(jax.jit(step), alone, batch, jax.random.key(0))
    return run, compiled, flops


def _torch_ways(
    model: Model, setting: Setting, data: Dataset, count: int, *, compiled: bool
) -> dict[str, Callable[[], list[float]]]:
    """The same epoch in every way of PyTorch that may be the fastest."""
    import torch
    from safetensors.torch import load_file

    from experiments.baselines.torch_models import VisionTransformer
    from experiments.baselines.torch_population import one_after_another, stacked

    device = "cpu" if jax.default_backend() == "cpu" or not torch.cuda.is_available() else "cuda"
    images = torch.from_numpy(data.inputs.copy()).permute(0, 3, 1, 2).contiguous().to(device)
    labels = torch.from_numpy(data.labels.copy()).long().to(device)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "weights.safetensors"
        save_weights(path, model, *model.init(jax.random.key(0)))
        weights = load_file(path)

    def way(train: Any, compiled: bool) -> Callable[[], list[float]]:
        twin = VisionTransformer.of(model.config)
        twin.load_state_dict(weights)
        how = {"count": count, "batch_size": setting.batch_size, "learning_rate": 1e-4}
        how |= {"mixed": setting.dtype != "float32", "compiled": compiled}
        return train(twin.to(device), images, labels, how=how)

    makers = {"one by one": one_after_another}
    if 1 < count <= setting.most_stacked:
        makers["stacked"] = stacked
    ways = {f"{name}, eager": way(train, False) for name, train in makers.items()}
    if compiled:
        ways |= {f"{name}, torch.compile": way(train, True) for name, train in makers.items()}
    return ways
