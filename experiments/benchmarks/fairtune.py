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
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from experiments.timing import Paired, claim, compile_seconds, paired, seconds, step_flops
from fairjax.data import Examples
from fairjax.data.augment import compose, eval_preprocess, normalize, random_resized_crop
from fairjax.data.cache import cached_images
from fairjax.data.lesions import lesions_dataset, synthetic_lesions, write_ham10000
from fairjax.fairbatch import BatchSampler, fairbatch
from fairjax.fairtune import (
    Candidates,
    Search,
    Trials,
    best_trial,
    init_tune,
    mask_space,
    objective,
    successive_halving,
    tpe,
    tune,
)
from fairjax.models import Model, gate_kernels, image_model, save_weights
from fairjax.optimizers import make_optimizer
from fairjax.sharding import AXIS, candidate_mesh, shard_candidates
from fairjax.train import fit, fit_population, init_fit, make_step, map_chunks, predict, start_train
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


class Task(NamedTuple):
    """What both sides start from."""

    sizes: Sizes
    model: Model
    params: Any
    paths: list[Path]
    labels: np.ndarray
    group: np.ndarray
    folder: Path

    def sampler(self, num_rows: int) -> BatchSampler:
        return fairbatch(
            self.labels[:num_rows],
            self.group[:num_rows],
            num_classes=2,
            num_groups=2,
            batch_size=self.sizes.batch_size,
            criterion="none",
        )

    def optimizer(self) -> Any:
        steps = self.sizes.num_train // self.sizes.batch_size * self.sizes.num_epochs
        return make_optimizer("adamw", total_steps=steps, weight_decay=WEIGHT_DECAY)


def claims(quick: bool = False, num_timed: int = 4, num_seeds: int = 3) -> list[dict[str, Any]]:
    """All rows.

    Args:
      quick: a small network on small photographs, one pair.
      num_timed: trials of a whole search without early stopping that are timed and scaled up.
      num_seeds: searches with their own data order, masks and pair of timings.
    """
    if quick:
        num_timed, num_seeds = 2, 1
    with tempfile.TemporaryDirectory() as folder:
        task = make_task(QUICK if quick else FULL, Path(folder))
        repeats = 1 if quick else 5
        return [
            *search_claims(task, num_timed=num_timed, num_seeds=num_seeds),
            *refit_claims(task, repeats),
            cost_claim(task, 1 if quick else 3),
        ]


def make_task(sizes: Sizes, folder: Path) -> Task:
    """Files in HAM10000's layout, and a network pre-trained for a few epochs on the source."""
    num_images = sizes.num_train + sizes.num_val
    lesions = synthetic_lesions(jax.random.key(0), num_images, sizes.photo, sizes.domain)
    write_ham10000(lesions, folder / "raw")
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
    return Task(sizes, model, state.train.params, paths, lesions.labels, lesions.group, folder)


def search_claims(task: Task, *, num_timed: int, num_seeds: int) -> list[dict[str, Any]]:
    """`fairtune_search_early_stopping` and `fairtune_search_full`."""
    theirs = _Twin(task)
    sizes, scale = task.sizes, task.sizes.num_trials / num_timed
    early, full, twin, rows = [], [], [], []
    for seed in range(num_seeds):
        began = time.perf_counter()
        trials = theirs.search(num_timed, seed)
        twin.append((time.perf_counter() - began) * scale)

        began = time.perf_counter()
        space = mask_space(task.params, SPACE)
        rungs = successive_halving(sizes.num_epochs)
        search = tpe(space, maximize=(True,), learning_rates=LEARNING_RATES)
        found, _ = search_files(task, search, rungs, sizes.num_trials, sizes.num_slots, seed)
        early.append(time.perf_counter() - began)

        began = time.perf_counter()
        rungs = successive_halving(sizes.num_epochs, first=sizes.num_epochs)
        same, train_s = search_files(task, replay(trials), rungs, num_timed, num_timed, seed)
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

    def __init__(self, task: Task):
        import os

        import torch
        from safetensors.torch import load_file

        from experiments.baselines import torch_fairtune as twin

        sizes = task.sizes
        cut = sizes.num_train
        files = [
            twin.Files(task.paths[rows], task.labels[rows], task.group[rows])
            for rows in (slice(cut), slice(cut, None))
        ]
        path = task.folder / "weights.safetensors"
        save_weights(path, task.model, task.params, {})
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
    task: Task, search: Search, rungs: Any, num_trials: int, num_slots: int, seed: int
) -> tuple[Trials, float]:
    """From files to finished trials; also the seconds of training without compilation."""
    sizes, cut = task.sizes, task.sizes.num_train
    with tempfile.TemporaryDirectory(dir=task.folder) as cache:
        pixels = jnp.asarray(cached_images(task.paths, sizes.stored, cache_dir=cache)[0])
    labels, group = jnp.asarray(task.labels), jnp.asarray(task.group)
    mean, std = task.model.config.mean, task.model.config.std
    margin = round(sizes.image_size * 256 / 224)
    view = jax.jit(eval_preprocess(sizes.image_size, mean, std, resize=margin))
    train = Examples(pixels[:cut], labels[:cut], group[:cut])
    val = Examples(view(pixels[cut:]), labels[cut:], group[cut:])
    augment = compose(random_resized_crop(sizes.image_size, flip=0.5), normalize(mean, std))
    population = Population(task, train, augment, val=val, seed=seed)
    args = (population.start_fn, rungs)
    state = init_tune(search, *args, num_trials=num_trials, num_slots=num_slots, maximize=(True,),
                      num_units=population.space.num_units, seed=seed)  # fmt: skip
    advance = population.advance(rungs.epochs[0])
    nobody = np.zeros((num_slots, population.space.num_units), bool)
    advance = advance.lower(
        population.place(state.population), nobody, nobody.any(1), *population.shared
    ).compile()
    began = time.perf_counter()

    def train_fn(states, masks, active):
        return advance(population.place(states), masks, active, *population.shared)

    state = tune(search, state, population.start_fn, train_fn, rungs, maximize=(True,))
    return state.trials, time.perf_counter() - began


class Population:
    """Candidates one after another on every core, each with gradients only where its bits are."""

    def __init__(
        self, task: Task, train: Examples, augment: Any, *, val: Any = None, seed: int = 0
    ):
        self.model, self.augment, self.seed = task.model, augment, seed
        self.space = mask_space(task.params, SPACE)
        self.tunable, frozen = self.space.partition(task.params)
        self.sampler, self.optimizer = task.sampler(len(train.labels)), task.optimizer()
        self.step = make_step(task.model, self.optimizer, bind=self.space.bind, gate=gate_kernels)
        self.mesh = candidate_mesh()
        self.shared = (train, val, frozen)
        self._start = jax.jit(self._start_all)

    def place(self, states: Any) -> Any:
        """Spread over the devices, where they share evenly."""
        if len(states.epoch) % self.mesh.size:
            return states
        return jax.device_put(states, NamedSharding(self.mesh, PartitionSpec(AXIS)))

    def start_fn(self, masks: np.ndarray, rates: np.ndarray) -> Any:
        del masks
        return self._start(self.tunable, jnp.asarray(rates))

    def _start_all(self, tunable: Any, rates: jax.Array) -> Any:
        def one(rate):
            train = start_train(tunable, {}, self.optimizer, learning_rate=rate)
            return init_fit(train, self.sampler, jax.random.key(self.seed))

        return jax.vmap(one)(rates)

    def advance(self, num_epochs: int) -> Any:
        """A jitted function that trains all candidates and measures them once, at the end."""
        metric = objective("worst_group_auc", num_groups=2)

        def measure(params, active, val, frozen):
            def one(tunable):
                train = start_train(self.space.bind(tunable, frozen), {}, self.optimizer)
                logits = predict(self.model, train, val.inputs, batch_size=64)
                return metric.measure(logits, val.labels, group=val.group)

            return map_chunks(one, params, 1, active)

        @functools.partial(jax.jit, donate_argnums=0)
        def advance(states, masks, active, train, val, frozen):
            states, _ = fit_population(
                self.step, states, train, self.sampler, masks=jax.vmap(self.space.expand)(masks),
                frozen=frozen, active=active, chunk_size=1, mesh=self.mesh,
                num_epochs=num_epochs, augment=self.augment,
            )  # fmt: skip
            if val is None:
                return states
            measure_all = shard_candidates(measure, self.mesh, num_mapped=2)
            return states, measure_all(states.train.params, active, val, frozen)[:, None]

        return advance


def cost_claim(task: Task, repeats: int) -> dict[str, Any]:
    """`fairtune_cost_per_candidate`: many ("ours") against one ("theirs"), per candidate."""
    sizes = task.sizes
    train = _pixels(task, 2 * sizes.batch_size)
    population = Population(task, train, _scale(task))
    advance = population.advance(num_epochs=1)
    rng = np.random.default_rng(0)
    runs, states = {}, {}
    for count in sizes.populations:
        masks = rng.random((count, population.space.num_units)) < 0.5
        rates = np.full(count, 1e-4, np.float32)
        states[count] = population.place(population.start_fn(masks, rates))

        def run(count=count, masks=masks):
            states[count] = advance(states[count], masks, np.ones(count, bool), *population.shared)
            return states[count]

        runs[count] = run
        seconds(run)  # compiles
    times = {count: [] for count in runs}
    for _ in range(repeats):
        for count, run in runs.items():
            times[count].append(seconds(run) / count / 2)
    costs = {f"step_s_at_{count}": float(np.median(times[count])) for count in runs}
    count = sizes.populations[-1]
    return claim(
        "fairtune_cost_per_candidate",
        Paired(times[count], times[1]),
        quality={"ours": costs, "theirs": {}},
        notes=f"a step of each of {count} candidates (ours) and of one alone (theirs); state of a "
        + " and ".join(
            f"{name} candidate: {_memory_share(task, name):.2%}" for name in ("norm", "bitfit")
        )  # fmt: skip
        + " of the backbone's bytes",
    )


def _memory_share(task: Task, name: str) -> float:
    """Bytes that one more candidate of a space adds to the training state, per backbone byte."""
    tunable = mask_space(task.params, name).partition(task.params)[0]
    state = jax.eval_shape(lambda p: start_train(p, {}, task.optimizer()), tunable)
    size = lambda tree: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))  # noqa: E731
    return size(state) / size(task.params)


def refit_claims(task: Task, repeats: int) -> list[dict[str, Any]]:
    """`fairtune_refit_last3` and `fairtune_prefix_cache`: epochs of training one mask for good."""
    space = mask_space(task.params, SPACE)
    depth = space.num_units // 3
    num_last = min(3, depth - 1)
    trained, rest = space.split(task.params, np.arange(space.num_units) >= 3 * (depth - num_last))
    dense = unstack_blocks(task.params)
    data, scale = _pixels(task, task.sizes.num_train), _scale(task)
    dense_run, dense_flops, _ = _epochs(task, dense, {}, data, scale)
    last_run, last_flops, compile_s = _epochs(task, trained, rest, data, scale)

    upper = {name: leaf for name, leaf in rest.items() if name != "blocks"}
    below = {**dense, "blocks": rest["blocks"]}
    embed = jax.jit(
        lambda params, inputs: task.model.apply(params, {}, scale(jax.random.key(0), inputs))[1][
            "tokens"
        ]
    )
    tokens = data._replace(inputs=embed(below, data.inputs))
    prefix_s = seconds(lambda: embed(below, data.inputs))
    cached_run, _, cached_compile_s = _epochs(task, trained, upper, tokens, None)
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
    task: Task, trained: Any, rest: Any, data: Examples, augment: Any
) -> tuple[Callable[[], jax.Array], float, float]:
    """A function that trains one more epoch and returns its loss, FLOPs of a step, compile time."""
    space = mask_space(task.params, SPACE)
    sampler, optimizer = task.sampler(len(data.labels)), task.optimizer()
    step = make_step(task.model, optimizer, bind=space.bind)
    params = jax.tree.map(jnp.copy, trained)  # what is donated must not be the task's
    state = init_fit(
        start_train(params, {}, optimizer, learning_rate=jnp.float32(1e-4)),
        sampler,
        jax.random.key(0),
    )

    @functools.partial(jax.jit, donate_argnums=0)
    def epoch(state, rest, data):
        one_step = functools.partial(step, frozen=rest)
        state, history = fit(one_step, state, data, sampler, num_epochs=1, augment=augment)
        return state, history["loss"][0]

    def run():
        nonlocal state
        state, loss = epoch(state, rest, data)
        return loss

    compile_s = compile_seconds(epoch, state, rest, data)
    return run, step_flops(epoch, state, rest, data), compile_s


def _pixels(task: Task, num_rows: int) -> Examples:
    paths = task.paths[:num_rows]
    pixels = cached_images(paths, task.sizes.image_size, cache_dir=task.folder / "cache")[0]
    labels, group = task.labels[:num_rows], task.group[:num_rows]
    return Examples(*map(jnp.asarray, (pixels, labels, group)))


def _scale(task: Task) -> Any:
    return normalize(task.model.config.mean, task.model.config.std)
