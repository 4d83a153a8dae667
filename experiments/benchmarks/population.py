"""Many networks at once: what one of them costs as the population grows, beside PyTorch's ways.

    python -m experiments.benchmark population

Every candidate fine-tunes all of its own network from its own start, with batches of its own. The
other side is the faster of PyTorch one candidate after another and, for small populations,
`torch.func`: stacked networks under `vmap`, with fused AdamW: on CPU each eager and compiled, on a
GPU compiled with CUDA graphs. On CPU a small ViT, on an accelerator ViT-Ti/16 at 64 px
in bfloat16. "of the floor" is the share of the matmul rate that was measured. Seven minutes on two
CPU cores.
"""

import functools
import gc
import pathlib
import tempfile
import time
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

NUM_CLASSES = 2


class Setting(NamedTuple):
    """What is trained, and how many of it."""

    model: str
    batch_size: int
    num_steps: int
    dtype: Dtype
    counts: tuple[int, ...]
    most_stacked: int
    """PyTorch holds the activations of all stacked networks at once"""
    chunk_size: int | None
    image_size: int = 64


QUICK = Setting("vit_micro", 4, 2, "float32", (1, 2), 2, 1)
CPU = Setting("vit_micro", 16, 2, "float32", (1, 4, 16, 64, 256), 16, 1)
ACCELERATOR = Setting("vit_tiny_patch16_224", 64, 8, "bfloat16", (1, 16, 64, 256), 64, None)

Way = Callable[[int], list[float]]
"""An epoch of so many candidates in PyTorch, and the mean loss of each."""


def claims(quick: bool = False) -> Iterator[dict[str, Any]]:
    """A row per population."""
    setting = QUICK if quick else CPU if jax.default_backend() == "cpu" else ACCELERATOR
    size = setting.image_size
    model = image_model(setting.model, NUM_CLASSES, image_size=size)._replace(preprocess=None)
    data = _images(size, setting.num_steps * setting.batch_size)
    twins = _Twins(model, setting, data, compiled=not quick)
    ours = _Ours(model, setting, data)
    rate = matmul_rate(setting.dtype)
    for count in setting.counts:
        phase(f"{count} x {setting.model}")
        yield _row(setting, count, ours, twins, rate=rate, repeats=2 if quick else 3)


def _row(
    setting: Setting, count: int, ours: "_Ours", twins: "_Twins", *, rate: float, repeats: int
) -> dict[str, Any]:
    run, compiled, compile_s = ours.epoch(count)
    ways = {name: functools.partial(way, count) for name, way in twins.ways(count).items()}
    losses = float(run()), next(iter(ways.values()))()[0]
    fastest = {name: min(seconds(way) for _ in range(2)) for name, way in ways.items()}
    which = min(fastest, key=lambda name: fastest[name])
    times = paired(run, ways[which], repeats=repeats)
    times = Paired(*([turn / count / setting.num_steps for turn in side] for side in times))
    temporaries = compiled.memory_analysis().temp_size_in_bytes / 2**20
    del ways
    gc.collect()  # stacked networks fill gigabytes
    return claim(
        f"population_step_{count}_{setting.model.split('_patch')[0]}",
        times,
        compile_s=compile_s,
        floor_s=ours.flops / rate,
        quality={
            "ours": {"loss": losses[0], "temporaries_mib": temporaries},
            "theirs": {"loss": losses[1]},
        },
        notes=f"a step of each of {count} {setting.model}, {setting.image_size} px, batch "
        f"{setting.batch_size}, {setting.dtype}, {ours.flops / 1e9:.1f} GFLOP, per candidate; "
        f"PyTorch's fastest of {', '.join(fastest)}: {which}",
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


class _Ours:
    """Populations of one network on one set of images."""

    def __init__(self, model: Model, setting: Setting, data: Dataset):
        recipe = Recipe(
            num_epochs=1,
            batch_size=setting.batch_size,
            learning_rate=1e-4,
            schedule="constant",
            dtype=setting.dtype,
        )
        self.model, self.chunk_size = recipe.make_model(model), setting.chunk_size
        self.sampler = recipe.make_sampler(data)
        self.optimizer = recipe.make_optimizer(self.sampler.batches_per_epoch)
        self.step = recipe.make_step(self.model, self.optimizer, data)
        self.examples = jax.tree.map(jnp.asarray, data.examples("train"))
        self.start = self.model.init(jax.random.key(0))
        # blocks one by one, for the count: a loop's body is counted once however often it runs
        params, batch_stats = self.start
        alone = start_train(unstack_blocks(params), batch_stats, self.optimizer)
        first = jax.tree.map(lambda x: x[: setting.batch_size], self.examples)
        batch = Batch(first.inputs, first.labels, first.group, jnp.ones(setting.batch_size))
        self.flops = step_flops(jax.jit(self.step), alone, batch, jax.random.key(0))
        """of one candidate's step"""

    def epoch(self, count: int) -> tuple[Callable[[], jax.Array], Any, float]:
        """An epoch of so many candidates, its compiled program and the seconds it took."""
        begin = functools.partial(init_population, optimizer=self.optimizer, sampler=self.sampler)
        states = jax.jit(begin)(
            *(replicate(tree, count) for tree in self.start), keys=seed_keys(count)
        )

        def epoch(states, examples):
            how = {"num_epochs": 1, "chunk_size": self.chunk_size}
            states, history = fit_population(self.step, states, examples, self.sampler, **how)
            return states, history["loss"].mean()

        options = {"donate_argnums": 0, "compiler_options": compiler_options(self.model)}
        began = time.perf_counter()
        compiled = jax.jit(epoch, **options).lower(states, self.examples).compile()
        compile_s = time.perf_counter() - began

        def run() -> jax.Array:
            nonlocal states
            states, loss = compiled(states, self.examples)
            return loss

        return run, compiled, compile_s


class _Twins:
    """The same epochs in every way of PyTorch that may be the fastest."""

    def __init__(self, model: Model, setting: Setting, data: Dataset, *, compiled: bool):
        import torch
        from safetensors.torch import load_file

        from experiments.baselines import torch_models, torch_population

        self.module, self.most_stacked = torch_population, setting.most_stacked
        device = torch_models.twins_device(jax.default_backend())
        images = torch.from_numpy(data.inputs.copy()).permute(0, 3, 1, 2).contiguous()
        self.arrays = images.to(device), torch.from_numpy(data.labels.copy()).long().to(device)
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "weights.safetensors"
            save_weights(path, model, *model.init(jax.random.key(0)))
            weights = load_file(path)

        def make() -> Any:
            twin = torch_models.VisionTransformer.of(model.config)
            twin.load_state_dict(weights)
            return twin.to(device)

        self.make = make
        how = {"batch_size": setting.batch_size, "learning_rate": 1e-4}
        how |= {"mixed": setting.dtype != "float32"}
        styles = torch_models.styles(device, compile=compiled)
        self.styles = {name: how | {"style": style} for name, style in styles.items()}
        self.alone = {
            f"one by one, {style}": torch_population.one_after_another(
                make(), *self.arrays, how=how
            )
            for style, how in self.styles.items()
        }

    def ways(self, count: int) -> dict[str, Way]:
        """By name, stacked ones for populations that they are to hold."""
        if not 1 < count <= self.most_stacked:
            return dict(self.alone)
        return self.alone | {
            f"stacked, {style}": self.module.stacked(
                self.make(), *self.arrays, count=count, how=how
            )
            for style, how in self.styles.items()
        }
