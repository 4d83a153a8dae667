"""FairTune beside PyTorch: a search from JPEG files to the winning mask, and what refits cost.

    python -m experiments.benchmark fairtune

Both sides search masks of `norm_attn_mlp` (the authors' `auto_peft1`) for ViT-Ti/16 at 64 px from
equal weights and the same files. The searches take turns, one pair per seed. Half an hour on two
idle CPU cores (an estimate); `claims(num_timed=32)` from Python times all of the twin's trials
instead of scaling up a few, which takes hours.
"""

import functools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import fairtune, fairtune_stages
from experiments.timing import Paired, claim, compile_seconds, paired, seconds, step_flops
from fairjax.data import Dataset, Examples
from fairjax.data.augment import compose, eval_preprocess, normalize, random_resized_crop
from fairjax.data.cache import cached_images
from fairjax.data.lesion_files import write_lesions
from fairjax.data.lesions import (
    GROUP_NAMES,
    LABEL_NAMES,
    lesions_dataset,
    synthetic_lesions,
)
from fairjax.fairbatch import fairbatch
from fairjax.fairtune import (
    Candidates,
    MaskSpace,
    Rungs,
    Search,
    Trials,
    best_trial,
    init_tune,
    mask_space,
    successive_halving,
    tpe,
    tune,
)
from fairjax.models import Model, image_model, save_weights
from fairjax.optimizers import make_optimizer
from fairjax.train import fit, init_fit, make_step, start_train
from fairjax.trees import unstack_blocks

SPACE = "norm_attn_mlp"
LEARNING_RATES = (1e-5, 1e-3)
WEIGHT_DECAY = 0.01


class Sizes(NamedTuple):
    """How large everything is."""

    photo: tuple[int, int] = (450, 600)
    domain: str = "target"
    num_train: int = 640
    num_val: int = 256
    num_source: int = 1600
    image_size: int = 64
    stored: int = 128
    """side of the decoded images that ours keeps, so that random crops have pixels to choose"""
    num_trials: int = 32
    num_slots: int = 8
    num_epochs: int = 9
    batch_size: int = 32
    network: tuple[tuple[str, int], ...] = ()
    populations: tuple[int, ...] = (1, 4, 16, 64)


FULL = Sizes()
QUICK = Sizes(
    photo=(32, 32),
    domain="source",
    num_train=32,
    num_val=48,
    num_source=32,
    image_size=32,
    stored=40,
    num_trials=4,
    num_slots=2,
    num_epochs=3,
    batch_size=16,
    network=(("width", 12), ("depth", 2), ("num_heads", 3)),
    populations=(1,),
)


class Start(NamedTuple):
    """What both sides start from."""

    sizes: Sizes
    model: Model
    params: Any
    paths: list[Path]
    labels: np.ndarray
    group: np.ndarray
    folder: Path

    @property
    def space(self) -> MaskSpace:
        return mask_space(self.params, SPACE)

    def read(self, size: int, num_train: int, num_val: int = 0) -> Dataset:
        """The first files, decoded and shrunk to `size`, train; the next ones validate."""
        num_rows = num_train + num_val
        with tempfile.TemporaryDirectory(dir=self.folder) as cache:
            images = np.asarray(cached_images(self.paths[:num_rows], size, cache_dir=cache)[0])
        rows = np.arange(num_rows, dtype=np.int32)
        splits = {"train": rows[:num_train], "val": rows[num_train:], "test": rows[:0]}
        labels, group = self.labels[:num_rows], self.group[:num_rows]
        return Dataset("files", images, labels, group, LABEL_NAMES, GROUP_NAMES, splits)

    def task(self, dataset: Dataset, *, num_slots: int, seed: int = 0) -> fairtune_stages.Task:
        """What `experiments.fairtune` trains, with the settings of the comparison."""
        sizes = self.sizes
        config = fairtune.Config(
            data=fairtune.Data(seed=seed),
            image_size=sizes.image_size,
            num_slots=num_slots,
            num_epochs=sizes.num_epochs,
            warmup_epochs=0,
            batch_size=sizes.batch_size,
            weight_decay=WEIGHT_DECAY,
            chunk_size=1,
        )
        return fairtune.make_task(config, dataset, self.model)


def claims(quick: bool = False, num_timed: int = 4, num_seeds: int = 3) -> Iterator[dict[str, Any]]:
    """All rows.

    Args:
      quick: a small network on small photographs, one pair.
      num_timed: trials of a whole search without early stopping that are timed and scaled up.
      num_seeds: searches with their own data order, masks and pair of timings.
    """
    if quick:
        num_timed, num_seeds = 2, 1
    with tempfile.TemporaryDirectory() as folder:
        start = make_start(QUICK if quick else FULL, Path(folder))
        repeats = 1 if quick else 5
        yield from search_claims(start, num_timed=num_timed, num_seeds=num_seeds)
        yield from refit_claims(start, repeats)
        yield cost_claim(start, 1 if quick else 3)


def make_start(sizes: Sizes, folder: Path) -> Start:
    """Files of lesions, and a network pre-trained for a few epochs on the source."""
    num_images = sizes.num_train + sizes.num_val
    lesions = synthetic_lesions(jax.random.key(0), num_images, sizes.photo, sizes.domain)
    write_lesions(lesions, folder / "raw")
    paths = sorted((folder / "raw").glob("*/*.jpg"))
    model = image_model("vit_tiny_patch16_224", 2, image_size=sizes.image_size,
                        **dict(sizes.network))  # fmt: skip
    source = lesions_dataset(jax.random.key(1), sizes.num_source, sizes.image_size, "source")
    data = Examples(source.inputs, source.labels, source.group)
    sampler = fairbatch(data.labels, data.group, num_classes=2, num_groups=2,
                        batch_size=sizes.batch_size, criterion="none")  # fmt: skip
    num_epochs = 4
    optimizer = make_optimizer(
        "adamw",
        total_steps=num_epochs * sampler.batches_per_epoch,
        learning_rate=5e-4,
        weight_decay=0.05,
    )
    params, _ = jax.jit(model.init)(jax.random.key(0))
    state = init_fit(start_train(params, {}, optimizer), sampler, jax.random.key(0))
    step, scale = make_step(model, optimizer), normalize(model.config.mean, model.config.std)
    pretrain = jax.jit(
        lambda state, data: fit(step, state, data, sampler, num_epochs=num_epochs, augment=scale)
    )
    state, _ = pretrain(state, jax.tree.map(jnp.asarray, data))
    return Start(sizes, model, state.train.params, paths, lesions.labels, lesions.group, folder)


def search_claims(start: Start, *, num_timed: int, num_seeds: int) -> list[dict[str, Any]]:
    """`fairtune_search_early_stopping` and `fairtune_search_full`."""
    theirs = _Twin(start)
    sizes, scale = start.sizes, start.sizes.num_trials / num_timed
    early, full, twin, rows = [], [], [], []
    for seed in range(num_seeds):
        began = time.perf_counter()
        trials = theirs.search(num_timed, seed)
        twin.append((time.perf_counter() - began) * scale)

        began = time.perf_counter()
        rungs = successive_halving(sizes.num_epochs)
        search = tpe(start.space, maximize=(True,), learning_rates=LEARNING_RATES)
        found, _ = search_files(start, search, rungs, sizes.num_trials, sizes.num_slots, seed)
        early.append(time.perf_counter() - began)

        began = time.perf_counter()
        rungs = successive_halving(sizes.num_epochs, first=sizes.num_epochs)
        same, train_s = search_files(start, replay(trials), rungs, num_timed, num_timed, seed)
        full.append(time.perf_counter() - began + train_s * (scale - 1))
        rows.append(
            {
                "found": found.values[best_trial(found, True), 0],
                "epochs": found.epochs[found.twins < 0].sum(),
                "same": same.values[:, 0].mean(),
                "same_best": same.values[:, 0].max(),
                "twin": np.mean([trial.value for trial in trials]),
                "twin_best": max(trial.value for trial in trials),
            }
        )
    mean = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    spread = {name: float(np.std([row[name] for row in rows])) for name in rows[0]}
    what = (
        f"{sizes.num_trials} masks, {sizes.num_epochs} epochs; means over {num_seeds} seeds; "
        f"theirs: time of {num_timed} trials x {scale:.3g}, {theirs.num_threads} training "
        f"thread(s) (the faster choice) and {theirs.num_workers} loader workers, started untimed"
    )
    return [
        claim(
            "fairtune_search_early_stopping",
            Paired(early, twin),
            quality={
                "ours": {
                    "best_val_worst_group_auc": mean["found"],
                    "std": spread["found"],
                    "candidate_epochs": mean["epochs"],
                },
                "theirs": {
                    f"best_of_{num_timed}_val_worst_group_auc": mean["twin_best"],
                    "std": spread["twin_best"],
                },
            },
            notes=f"{what}; ours: everything from the files on, compilation included",
        ),
        claim(
            "fairtune_search_full",
            Paired(full, twin),
            quality={
                side: {
                    "mean_val_worst_group_auc": mean[name],
                    "std": spread[name],
                    f"best_of_{num_timed}": mean[f"{name}_best"],
                }
                for side, name in (("ours", "same"), ("theirs", "twin"))
            },
            notes=f"{what}; ours: the same {num_timed} trials, whose training time is scaled "
            "likewise while decoding and compilation count once",
        ),
    ]


class _Twin:
    """The PyTorch search, with its loaders running and the faster number of threads chosen."""

    def __init__(self, start: Start):
        import os

        import torch
        from safetensors.torch import load_file

        from experiments.baselines import torch_fairtune as twin

        sizes = start.sizes
        cut = sizes.num_train
        files = [
            twin.Files(start.paths[rows], start.labels[rows], start.group[rows])
            for rows in (slice(cut), slice(cut, None))
        ]
        path = start.folder / "weights.safetensors"
        save_weights(path, start.model, start.params, {})
        self.twin, self.val, self.num_epochs = twin, files[1], sizes.num_epochs
        self.weights = load_file(path)
        self.network = twin.VisionTransformer(2, image_size=sizes.image_size, **dict(sizes.network))
        self.num_workers = min(2, os.cpu_count() or 1) if sizes is FULL else 0
        self.loaders = twin.Loaders.make(
            *files, image_size=sizes.image_size, batch_size=sizes.batch_size,
            num_workers=self.num_workers,
        )  # fmt: skip

        mask = np.arange(3 * len(self.network.blocks)) % 2 == 0

        def one_epoch(num_threads: int) -> float:
            torch.set_num_threads(num_threads)
            args = (self.network, self.weights, mask, 1e-4, self.loaders, self.val)
            return seconds(lambda: twin.train_trial(*args, num_epochs=1))

        one_epoch(1)  # starts the workers
        self.num_threads = min((1, 2), key=one_epoch)
        torch.set_num_threads(self.num_threads)

    def search(self, num_trials: int, seed: int) -> list[Any]:
        return self.twin.search(
            self.network, self.weights, self.loaders, self.val, num_trials=num_trials,
            num_epochs=self.num_epochs, learning_rates=LEARNING_RATES, seed=seed,
        )  # fmt: skip


def replay(trials: list[Any]) -> Search:
    """A search that proposes given trials."""
    masks = np.array([trial.mask for trial in trials])
    rates = np.array([trial.learning_rate for trial in trials], np.float32)

    def ask(asked: int, count: int):
        rows = np.arange(asked, asked + count, dtype=np.int32)
        return Candidates(rows, masks[rows], rates[rows]), asked + count

    return Search(lambda seed: 0, ask, lambda asked, *told: asked)


def search_files(
    start: Start, search: Search, rungs: Rungs, num_trials: int, num_slots: int, seed: int
) -> tuple[Trials, float]:
    """From files to finished trials; also the seconds of training without compilation."""
    sizes, (mean, std) = start.sizes, (start.model.config.mean, start.model.config.std)
    dataset = start.read(sizes.stored, sizes.num_train, sizes.num_val)
    task = start.task(dataset, num_slots=num_slots, seed=seed)
    margin = round(sizes.image_size * 256 / 224)
    view = jax.jit(eval_preprocess(sizes.image_size, mean, std, resize=margin))
    task = task._replace(
        augment=compose(random_resized_crop(sizes.image_size, flip=0.5), normalize(mean, std)),
        val=task.everywhere(dataset.examples("val")._replace(inputs=view(task.val.inputs))),
        preprocess=None,
    )
    start_fn, make_train_fn = fairtune_stages.make_population(
        task, start.space, rungs, start.params, {}
    )
    state = init_tune(search, start_fn, rungs, num_trials=num_trials, num_slots=num_slots,
                      maximize=(True,), num_units=start.space.num_units, seed=seed)  # fmt: skip
    train_fn = make_train_fn(state.population)
    # an epoch of nobody compiles the program and costs next to nothing
    population, _ = train_fn(state.population, *nobody(num_slots, start.space))
    began = time.perf_counter()
    state = state._replace(population=population)
    state = tune(search, state, start_fn, train_fn, rungs, maximize=(True,))
    return state.trials, time.perf_counter() - began


def nobody(num_slots: int, space: MaskSpace) -> tuple[np.ndarray, np.ndarray]:
    """Masks and activity of a population in which no candidate trains."""
    return np.zeros((num_slots, space.num_units), bool), np.zeros(num_slots, bool)


def cost_claim(start: Start, repeats: int) -> dict[str, Any]:
    """`fairtune_cost_per_candidate`: many ("ours") against one ("theirs"), per candidate."""
    sizes, num_steps = start.sizes, 2
    dataset = start.read(sizes.image_size, num_steps * sizes.batch_size, 8)

    def step_seconds(count: int) -> Callable[[], float]:
        """Train and validate `count` candidates; seconds of a step of one of them."""
        task = start.task(dataset, num_slots=count)
        start_fn, make_train_fn = fairtune_stages.make_population(
            task, start.space, successive_halving(1), start.params, {}
        )
        masks = np.random.default_rng(0).random((count, start.space.num_units)) < 0.5
        states = start_fn(masks, np.full(count, 1e-4, np.float32))
        train_fn = make_train_fn(states)

        def run():
            nonlocal states
            states, values = train_fn(states, masks, np.ones(count, bool))
            return values

        seconds(run)  # compiles
        return lambda: seconds(run) / count / num_steps

    costs, pairs, alone = {}, Paired([], []), step_seconds(1)
    for count in sizes.populations:  # one at a time: 64 candidates fill several gigabytes
        many = step_seconds(count)
        turns = [(many(), alone()) for _ in range(repeats)]
        pairs = Paired([ours for ours, _ in turns], [theirs for _, theirs in turns])
        costs[f"step_s_at_{count}"] = float(np.median(pairs.ours_s))
    norm, bias = (memory_share(start.params, name) for name in ("norm", "bitfit"))
    return claim(
        "fairtune_cost_per_candidate",
        pairs,
        quality={"ours": costs, "theirs": {}},
        notes=f"a step of each of {sizes.populations[-1]} candidates (ours) and of one alone "
        f"(theirs), with 1/{num_steps} of a validation of 8 images; state of a candidate: "
        f"{norm:.2%} (norm) and {bias:.2%} (bitfit) of the backbone's bytes",
    )


def memory_share(params: Any, name: str) -> float:
    """Bytes that one more candidate of a space adds to the training state, per backbone byte."""
    tunable = mask_space(params, name).partition(params)[0]
    optimizer = make_optimizer("adamw", total_steps=1)
    state = jax.eval_shape(lambda p: start_train(p, {}, optimizer), tunable)
    size = lambda tree: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))  # noqa: E731
    return size(state) / size(params)


def refit_claims(start: Start, repeats: int) -> list[dict[str, Any]]:
    """`fairtune_refit_last3` and `fairtune_prefix_cache`: epochs of training one mask for good."""
    space = start.space
    depth = space.num_units // 3
    num_last = min(3, depth - 1)
    trained, rest = space.split(start.params, np.arange(space.num_units) >= 3 * (depth - num_last))
    dense = unstack_blocks(start.params)
    task = start.task(
        start.read(start.sizes.image_size, start.sizes.num_train), num_slots=len(jax.devices())
    )
    data = jax.tree.map(jnp.asarray, task.dataset.examples("train"))
    scale = normalize(task.model.config.mean, task.model.config.std)
    dense_run, dense_flops, _ = _epochs(task, space, dense, {}, data, scale)
    last_run, last_flops, compile_s = _epochs(task, space, trained, rest, data, scale)

    upper = {name: leaf for name, leaf in rest.items() if name != "blocks"}
    below = {**dense, "blocks": rest["blocks"]}
    embed = jax.jit(
        lambda params, inputs: task.model.apply(params, {}, scale(jax.random.key(0), inputs))[1][
            "tokens"
        ]
    )
    tokens = data._replace(inputs=embed(below, data.inputs))
    prefix_s = seconds(lambda: embed(below, data.inputs))
    cached_run, _, cached_compile_s = _epochs(task, space, trained, upper, tokens, None)
    losses = {run: float(run()) for run in (dense_run, last_run, cached_run)}
    what = f"an epoch, the last {num_last} of {depth} blocks trained"
    return [
        claim(
            "fairtune_refit_last3",
            paired(last_run, dense_run, repeats=repeats),
            compile_s=compile_s,
            quality={
                "ours": {"gflop_per_step": last_flops / 1e9},
                "theirs": {"gflop_per_step": dense_flops / 1e9},
            },
            notes=f"{what}; theirs: ours with everything trained",
        ),
        claim(
            "fairtune_prefix_cache",
            paired(cached_run, last_run, repeats=repeats),
            compile_s=cached_compile_s,
            quality={
                "ours": {"first_loss": losses[cached_run], "prefix_once_s": prefix_s},
                "theirs": {"first_loss": losses[last_run]},
            },
            notes=f"{what}, no augmentation; ours: from activations below them, computed once; "
            "theirs: ours from the images",
        ),
    ]


def _epochs(
    task: fairtune_stages.Task,
    space: MaskSpace,
    trained: Any,
    rest: Any,
    data: Examples,
    augment: Any,
) -> tuple[Callable[[], jax.Array], float, float]:
    """A function that trains one more epoch and returns its loss, FLOPs of a step, compile time."""
    optimizer = task.optimizer(task.config.num_epochs)
    step = task.step(optimizer, space)
    params = jax.tree.map(jnp.copy, trained)  # what is donated must not be the task's
    state = init_fit(
        start_train(params, {}, optimizer, learning_rate=jnp.float32(1e-4)),
        task.sampler,
        jax.random.key(0),
    )

    @functools.partial(jax.jit, donate_argnums=0)
    def epoch(state, rest, data):
        one_step = functools.partial(step, frozen=rest)
        state, history = fit(one_step, state, data, task.sampler, num_epochs=1, augment=augment)
        return state, history["loss"][0]

    def run():
        nonlocal state
        state, loss = epoch(state, rest, data)
        return loss

    compile_s = compile_seconds(epoch, state, rest, data)
    return run, step_flops(epoch, state, rest, data), compile_s
