"""FairTune: search which parts of a pre-trained network to fine-tune, by validation fairness.

    python -m experiments.fairtune                       synthetic lesions by skin tone
    python -m experiments.fairtune smoke                 seconds, for tests
    python -m experiments.fairtune --space norm --objective auc_gap@bound --num-trials 64

Rows of the table, each trained with several seeds: `full` fine-tuning, the `linear` probe, `all_on`
(every unit of the space) and `fairtune` (the mask that the search found). All get a learning rate
chosen on the validation split by the same objective.
"""

import csv
import dataclasses
import functools
import json
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common, fairtune_report
from fairjax.data import Dataset, Examples
from fairjax.data.augment import compose, eval_preprocess, normalize, random_flip
from fairjax.data.lesions import lesions_dataset
from fairjax.fairbatch import BatchSampler, fairbatch
from fairjax.fairtune import (
    STATUS_NAMES,
    MaskSpace,
    Objective,
    Rungs,
    Search,
    TuneState,
    add_lora,
    best_trial,
    check_objectives,
    evolution,
    init_tune,
    mask_space,
    nsga2,
    objective,
    pareto_front,
    random_search,
    successive_halving,
    tpe,
    tune,
)
from fairjax.metrics import bootstrap, evaluate, prepare
from fairjax.models import Model, image_model, load_weights, save_weights
from fairjax.optimizers import Optimizer, Schedule, make_optimizer
from fairjax.sharding import plan_chunk_size
from fairjax.train import fit, fit_population, init_fit, make_step, predict, start_train


@dataclasses.dataclass(frozen=True)
class Data:
    """What to train on: synthetic lesions by skin tone."""

    num_train: int = 640
    """images of the target domain, a multiple of 4: photographs of one lesion stay together"""
    num_val: int = 600
    """dark skin is rare, so that a smaller split would hold too few malignant lesions on it"""
    num_test: int = 1600
    num_source: int = 1600
    """of the source domain, for pre-training"""
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Config:
    """FairTune on images."""

    about: str = ""
    data: Data = Data()
    model: str = "vit_micro"
    image_size: int = 64
    weights: Path | None = None
    """pre-trained weights; none pre-trains on the source domain first"""
    pretrain_epochs: int = 15
    space: str = "norm_attn_mlp"
    """mask space, by its readable or its published name"""
    lora_rank: int = 8
    """of the space `lora`"""
    objective: tuple[str, ...] = ("worst_group_auc",)
    """what the search optimises on validation; "@bound" takes the pessimistic 95 %% bound"""
    search: Literal["tpe", "random", "evolution", "nsga2"] = "tpe"
    num_trials: int = 32
    num_slots: int = 8
    """candidates trained as one population"""
    num_epochs: int = 9
    early_stopping: bool = True
    """successive halving: only the best third goes on after 1, 3, ... epochs"""
    num_brackets: int = 1
    """more than one is Hyperband"""
    optimizer: Optimizer = "adamw"
    schedule: Schedule = "cosine"
    warmup_epochs: int = 1
    batch_size: int = 32
    weight_decay: float = 0.01
    label_smoothing: float = 0.0
    learning_rates: tuple[float, float] = (1e-4, 1e-2)
    """range of the search, log-uniform"""
    num_rates: int = 4
    """learning rates tried for the other rows"""
    select: Literal["best", "last"] = "best"
    """epoch whose parameters are kept in the final training, by validation"""
    num_seeds: int = 3
    chunk_size: int | None = None
    """candidates trained at the same time; none asks the compiler what fits into memory"""
    num_replicates: int = 200
    """bootstrap replicates behind the 95 %% intervals"""
    storage: str | None = None
    """Optuna storage; default a journal in the run folder"""
    out: Path | None = None
    """result folder; default runs/fairtune-<time>"""
    resume: bool = False
    """go on with the interrupted run in --out"""


PRESETS = {
    "lesions": Config(about="synthetic skin lesions by skin tone, vit_micro"),
    "smoke": Config(
        about="seconds, for tests",
        data=Data(num_train=96, num_val=400, num_test=400, num_source=64),
        image_size=16,
        pretrain_epochs=1,
        space="norm",
        num_trials=4,
        num_slots=2,
        num_epochs=3,
        num_rates=1,
        num_seeds=2,
        batch_size=16,
        chunk_size=1,
        num_replicates=20,
    ),
}

COMPARED = ("accuracy", "auc", "worst_group_auc", "auc_gap", "equalized_odds_difference")


class Task(NamedTuple):
    """What stays the same over all trainings of a run."""

    config: Config
    dataset: Dataset
    model: Model
    objectives: tuple[Objective, ...]
    sampler: BatchSampler
    train: Examples
    val: Examples
    augment: Any
    preprocess: Any

    @property
    def maximize(self) -> tuple[bool, ...]:
        return tuple(objective.maximize for objective in self.objectives)

    def optimizer(self) -> Any:
        config, steps = self.config, self.sampler.batches_per_epoch
        return make_optimizer(
            config.optimizer,
            total_steps=config.num_epochs * steps,
            schedule=config.schedule,
            warmup_steps=min(config.warmup_epochs, config.num_epochs - 1) * steps,
            weight_decay=config.weight_decay,
        )

    def measure(self, params: Any, batch_stats: Any, val: Examples) -> jax.Array:
        """The objectives `[M]` of one network on the validation split."""
        train = start_train(params, batch_stats, self.optimizer())
        logits = predict(self.model, train, val.inputs, batch_size=64, preprocess=self.preprocess)
        return jnp.stack(
            [chosen.measure(logits, val.labels, group=val.group) for chosen in self.objectives]
        )


def prepare_run(config: Config):
    """Read and check everything; returns the function that trains."""
    for name in ("num_epochs", "num_trials", "num_slots", "num_seeds", "num_rates"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
    if config.num_replicates < 2:
        raise ValueError(f"num_replicates must be at least 2, got {config.num_replicates}")
    if len(config.objective) > 1 and config.search == "evolution":
        raise ValueError("search evolution takes one objective; use nsga2 or tpe for several")
    dataset = load_data(config.data, config.image_size)
    model = image_model(config.model, dataset.num_classes, image_size=config.image_size)
    task = make_task(config, dataset, model)
    val = dataset.examples("val")
    check_objectives(
        task.objectives,
        val.labels,
        group=val.group,
        group_names=dataset.group_names,
        num_classes=dataset.num_classes,
    )
    shapes = jax.eval_shape(
        lambda key: prepared_params(config, model.init(key)[0]), jax.random.key(0)
    )
    space = mask_space(shapes, config.space)
    rungs = make_rungs(config)
    weights = None
    if config.weights is not None:
        weights = load_weights(config.weights, model, jax.random.key(config.data.seed))
    run = common.Run("fairtune", config, out=config.out, resume=config.resume)
    return lambda: run_all(task, space, rungs, weights, run)


def load_data(data: Data, image_size: int) -> Dataset:
    """Lesions of the target domain, cut into the configured splits."""
    sizes = {"train": data.num_train, "val": data.num_val, "test": data.num_test}
    for name, size in sizes.items():
        if size < 4 or size % 4:
            raise ValueError(f"num_{name} must be a positive multiple of 4, got {size}")
    dataset = lesions_dataset(jax.random.key(data.seed), sum(sizes.values()), image_size)
    ends = np.cumsum(list(sizes.values()))
    splits = {
        name: np.arange(end - size, end, dtype=np.int32)
        for (name, size), end in zip(sizes.items(), ends, strict=True)
    }
    return dataclasses.replace(dataset, splits=splits)


def make_task(config: Config, dataset: Dataset, model: Model) -> Task:
    train = dataset.examples("train")
    mean, std = model.config.mean, model.config.std
    return Task(
        config=config,
        dataset=dataset,
        model=model,
        objectives=tuple(
            objective(name, num_groups=dataset.num_groups) for name in config.objective
        ),
        sampler=fairbatch(
            train.labels,
            train.group,
            num_classes=dataset.num_classes,
            num_groups=dataset.num_groups,
            batch_size=config.batch_size,
            criterion="none",
        ),
        train=jax.tree.map(jnp.asarray, train),
        val=jax.tree.map(jnp.asarray, dataset.examples("val")),
        augment=compose(random_flip(horizontal=0.5, vertical=0.5), normalize(mean, std)),
        preprocess=eval_preprocess(config.image_size, mean, std),
    )


def make_rungs(config: Config) -> Rungs:
    first = 1 if config.early_stopping else config.num_epochs
    return successive_halving(config.num_epochs, first=first, num_brackets=config.num_brackets)


def prepared_params(config: Config, params: Any) -> Any:
    """Parameters with what the space adds to them."""
    if config.space != "lora":
        return params
    return add_lora(params, jax.random.key(config.data.seed), rank=config.lora_rank)


def run_all(task: Task, space: MaskSpace, rungs: Rungs, weights: Any, run: common.Run):
    """Pre-train, search, train all rows, judge them on the test split, write the folder."""
    timing: dict[str, float] = {}
    with timed(timing, "pretrain_s"):
        params, batch_stats = weights[:2] if weights else pretrained(task, run)
    params = prepared_params(task.config, params)
    params = {**params, "head": fresh_head(task.model, task.config.data.seed)}
    with timed(timing, "search_s"):
        state = search_masks(task, space, rungs, params, batch_stats, run)
    winner = best_trial(state.trials, task.maximize[0])
    mask = state.trials.masks[winner]
    with timed(timing, "train_s"):
        rows = train_rows(
            task, space, mask, float(state.trials.learning_rates[winner]), params, batch_stats, run
        )
    names = list(rows)
    logits = np.stack([rows[name]["logits"] for name in names])
    test = jax.tree.map(jnp.asarray, task.dataset.examples("test"))
    metrics, intervals = judge(task, jnp.asarray(logits), test)
    results = summarise(task, names, rows, metrics, intervals)
    description = space.describe(mask)
    write_mask(run, task, space, state, winner)
    write_trials(run, task, space, state)
    save_weights(run.folder / "fairtune.safetensors", task.model, *rows["fairtune"]["network"])
    summary = run.finish(
        data=common.data_summary(task.dataset),
        results=results,
        timing=timing,
        notes=[f"mask: {description.text}", *trial_notes(state)],
    )
    columns, cells = fairtune_report.result_table(results, COMPARED)
    print(common.table(columns, [[value for value, _ in row] for row in cells]))
    print(f"\nmask: {description.text}")
    answer = fairtune_report.one_sentence(results, task.dataset.name)
    fairtune_report.write_page(
        run, summary, columns, cells, answer, space, state.trials, task.objectives,
        {name: logits[i] for i, name in enumerate(names)}, test, task.dataset,
    )  # fmt: skip
    print(f"\n{answer}\nresults in {run.folder}, page {run.folder / 'report.html'}")


class timed:
    """Add the seconds of a block to `timing[name]`."""

    def __init__(self, timing: dict[str, float], name: str):
        self.timing, self.name = timing, name

    def __enter__(self):
        self.began = time.perf_counter()

    def __exit__(self, *_):
        self.timing[self.name] = time.perf_counter() - self.began


def pretrained(task: Task, run: common.Run) -> tuple[Any, Any]:
    """The network trained on the source domain; kept in the run folder."""
    config, path = task.config, run.folder / "pretrained.safetensors"
    if path.exists():
        return load_weights(path, task.model, jax.random.key(config.data.seed))[:2]
    source = lesions_dataset(
        jax.random.key(config.data.seed + 1), config.data.num_source, config.image_size, "source"
    )
    data = Examples(source.inputs, source.labels, source.group)
    sampler = fairbatch(
        data.labels, data.group, num_classes=2, num_groups=2, batch_size=config.batch_size,
        criterion="none",
    )  # fmt: skip
    optimizer = make_optimizer(
        "adamw",
        total_steps=config.pretrain_epochs * sampler.batches_per_epoch,
        warmup_steps=sampler.batches_per_epoch // 2,
        weight_decay=0.05,
    )
    step = make_step(task.model, optimizer)
    params, batch_stats = jax.jit(task.model.init)(jax.random.key(config.data.seed))
    state = init_fit(start_train(params, batch_stats, optimizer), sampler, jax.random.key(0))
    epoch = jax.jit(
        lambda state, data: fit(step, state, data, sampler, num_epochs=1, augment=task.augment)
    )
    data = jax.tree.map(jnp.asarray, data)
    with common.progress(config.pretrain_epochs, "pre-training") as bar:
        for number in range(config.pretrain_epochs):
            state, history = epoch(state, data)
            common.say(f"pre-training, epoch {number + 1}: loss {float(history['loss'][0]):.4f}")
            bar.update(1)
    params, batch_stats = state.train.params, state.train.batch_stats
    partial = path.with_name("pretrained.partial.safetensors")
    save_weights(partial, task.model, params, batch_stats)
    partial.replace(path)
    return params, batch_stats


def make_search(task: Task, space: MaskSpace, run: common.Run) -> Search:
    config = task.config
    if config.search == "random":
        return random_search(space, learning_rates=config.learning_rates)
    if config.search == "evolution":
        return evolution(space, maximize=task.maximize[0], learning_rates=config.learning_rates)
    return {"tpe": tpe, "nsga2": nsga2}[config.search](
        space,
        maximize=task.maximize,
        learning_rates=config.learning_rates,
        storage=config.storage or str(run.folder / "study.journal"),
        fingerprint={"data": task.dataset.fingerprint, "objective": ", ".join(config.objective)},
    )


def search_masks(
    task: Task, space: MaskSpace, rungs: Rungs, params, batch_stats, run: common.Run
) -> TuneState:
    """Stage 1: the search over masks and learning rates."""
    config, optimizer = task.config, task.optimizer()
    tunable, frozen = space.partition(params)
    step = make_step(task.model, optimizer, bind=space.bind, label_smoothing=config.label_smoothing)

    @jax.jit
    def start(tunable, batch_stats, rates):
        def one(rate):
            train = start_train(tunable, batch_stats, optimizer, learning_rate=rate)
            return init_fit(train, task.sampler, jax.random.key(config.data.seed))

        return jax.vmap(one)(rates)

    def evaluate_fn(train, shared):
        val, frozen = shared
        return task.measure(space.bind(train.params, frozen), train.batch_stats, val)

    @functools.partial(jax.jit, static_argnums=5, donate_argnums=0)
    def advance(states, masks, active, data, shared, chunk_size):
        states, history = fit_population(
            step,
            states,
            data,
            task.sampler,
            masks=jax.vmap(space.expand)(masks),
            frozen=shared[1],
            active=active,
            shared_batches=True,
            chunk_size=chunk_size,
            num_epochs=rungs.epochs[0],
            augment=task.augment,
            evaluate_fn=evaluate_fn,
            evaluate_data=shared,
        )
        return states, history["evaluation"][:, -1]

    def start_fn(masks, rates):
        return start(tunable, batch_stats, jnp.asarray(rates))

    shared = (task.val, frozen)
    search = make_search(task, space, run)
    state = init_tune(
        search,
        start_fn,
        rungs,
        num_trials=config.num_trials,
        num_slots=config.num_slots,
        num_units=space.num_units,
        maximize=task.maximize,
        seed=config.data.seed,
    )
    chunk_size = config.chunk_size
    if chunk_size is None:
        nobody = np.zeros((config.num_slots, space.num_units), bool)
        chunk_size = plan_chunk_size(
            lambda size: advance.lower(
                state.population, nobody, nobody.any(1), task.train, shared, size
            ),
            config.num_slots,
        )

    def train_fn(population, masks, active):
        return advance(population, masks, active, task.train, shared, chunk_size)

    restored = run.restore(state) if config.resume else None
    rounds = 0
    if restored is not None:
        rounds, state = restored
    began, bar = time.perf_counter(), common.progress(config.num_trials, "trials")

    def on_round(state: TuneState):
        nonlocal rounds
        rounds += 1
        run.save(rounds, state)
        line = search_line(task, state, time.perf_counter() - began)
        bar.n = int((state.trials.status >= STATUS_NAMES.index("complete")).sum())
        bar.refresh()
        common.say(line)
        run.log({"round": rounds, "line": line})

    state = tune(
        search, state, start_fn, train_fn, rungs, maximize=task.maximize, on_round=on_round
    )
    bar.close()
    return state


def search_line(task: Task, state: TuneState, seconds: float) -> str:
    """Trials done and stopped, the best so far, epochs per second."""
    trials = state.trials
    count = {name: int((trials.status == i).sum()) for i, name in enumerate(STATUS_NAMES)}
    values = trials.values[trials.status == STATUS_NAMES.index("complete"), 0]
    best = "none yet"
    if len(values):
        best = f"{values.max() if task.maximize[0] else values.min():.4f}"
    trained = trials.epochs[trials.twins < 0].sum()
    return (
        f"search: {count['complete']} complete, {count['stopped']} stopped, "
        f"{count['failed']} failed, {count['running']} running of {len(trials.status)}; best "
        f"{task.objectives[0].name} {best}; {trained / max(seconds, 1e-9):.2f} candidate epochs/s"
    )


def train_rows(
    task: Task, space: MaskSpace, mask: np.ndarray, rate: float, params, batch_stats, run
) -> dict[str, dict[str, Any]]:
    """Stage 2: every row of the table with all seeds; learning rates chosen on validation."""
    full, linear = mask_space(params, "full"), mask_space(params, "linear")
    none = np.zeros(0, bool)
    plan = {
        "full": (full, none),
        "linear": (linear, none),
        "all_on": (space, np.ones(space.num_units, bool)),
        "fairtune": (space, mask),
    }
    low, high = task.config.learning_rates
    rates = np.geomspace(low, high, task.config.num_rates + 2)[1:-1]
    rows = {}
    for name, (row_space, row_mask) in plan.items():
        began = time.perf_counter()
        train = make_refit(task, row_space, row_mask, params, batch_stats)
        best_rate = rate
        if name != "fairtune" and len(rates) > 1:
            values = [train(float(each), 1)["value"][0] for each in rates]
            scores = np.array(values) * (1 if task.maximize[0] else -1)
            best_rate = float(rates[int(np.nanargmax(scores))])
        elif name != "fairtune":
            best_rate = float(rates[0])
        rows[name] = train(best_rate, task.config.num_seeds)
        rows[name]["learning_rate"] = best_rate
        rows[name]["percent_trained"] = row_space.describe(row_mask).percent
        seconds = time.perf_counter() - began
        line = f"{name}: learning rate {best_rate:.1e}, validation {rows[name]['value'].mean():.4f}"
        common.say(f"{line}, {seconds:.0f} s")
        run.log({"row": name, "learning_rate": best_rate, "line": line})
    return rows


def make_refit(task: Task, space: MaskSpace, mask: np.ndarray, params, batch_stats):
    """`train(rate, num_seeds)` with gradients only for what `mask` trains.

    Every seed has its own classifier and order of examples; they are trained one after another,
    by one compiled program.
    """
    config, optimizer = task.config, task.optimizer()
    trained, rest = space.split(params, mask)
    step = make_step(task.model, optimizer, bind=space.bind, label_smoothing=config.label_smoothing)

    @jax.jit
    def start(trained, batch_stats, rate, seed):
        trained = {**trained, "head": fresh_head(task.model, seed)}
        train = start_train(trained, batch_stats, optimizer, learning_rate=rate)
        return init_fit(train, task.sampler, jax.random.key(seed))

    @jax.jit
    def epoch(state, rest, data, val):
        one_step = functools.partial(step, frozen=rest)
        state, _ = fit(one_step, state, data, task.sampler, num_epochs=1, augment=task.augment)
        params = space.bind(state.train.params, rest)
        return state, task.measure(params, state.train.batch_stats, val)[0]

    @jax.jit
    def test_logits(params, batch_stats, inputs):
        train = start_train(params, batch_stats, optimizer)
        return predict(task.model, train, inputs, batch_size=64, preprocess=task.preprocess)

    def train(rate: float, num_seeds: int) -> dict[str, Any]:
        """Validation objective `[S]`, test logits `[S, N, K]`, the first seed's network."""
        sign = 1 if task.maximize[0] else -1
        values, logits, networks = [], [], []
        inputs = jnp.asarray(task.dataset.examples("test").inputs)
        for seed in range(num_seeds):
            state = start(trained, batch_stats, rate, seed)
            value, kept = np.nan, state.train
            for _ in range(config.num_epochs):
                state, newest = epoch(state, rest, task.train, task.val)
                newest = float(newest)
                if config.select == "last" or not sign * newest <= sign * value:
                    value, kept = newest, state.train
            network = space.bind(kept.params, rest), kept.batch_stats
            values.append(value)
            logits.append(np.asarray(test_logits(*network, inputs)))
            networks.append(network)
        return {"value": np.array(values), "logits": np.stack(logits), "network": networks[0]}

    return train


def fresh_head(model: Model, seed: Any) -> Any:
    """A newly initialised classifier."""
    return model.init(jax.random.key(seed))[0]["head"]


def judge(task: Task, logits: jax.Array, test: Examples):
    """Test metrics `[R, S]` and intervals of the means over seeds, and of their change from full.

    A replicate resamples test examples, the same ones for all networks, and seeds.
    """
    num_rows, num_seeds, num_test, num_classes = logits.shape
    num_groups = task.dataset.num_groups

    @jax.jit
    def measure(logits, test):
        flat = logits.reshape(-1, num_test, num_classes)
        prepared = jax.vmap(
            lambda one: prepare(one, test.labels, group=test.group, num_groups=num_groups)
        )(flat)
        return prepared, jax.vmap(evaluate)(prepared)

    @jax.jit
    def intervals(prepared, key):
        def metric_fn(weights):
            examples, seeds = weights[:num_test], weights[num_test:]
            metrics = jax.vmap(lambda one: evaluate(one, examples))(prepared)
            share = (seeds / seeds.sum())[None]
            means = {
                name: jnp.sum(metrics[name].reshape(num_rows, num_seeds) * share, axis=1)
                for name in COMPARED
            }
            return {"mean": means, "vs_full": {k: v - v[:1] for k, v in means.items()}}

        strata = jnp.concatenate([jnp.zeros(num_test, jnp.int32), jnp.ones(num_seeds, jnp.int32)])
        return bootstrap(metric_fn, len(strata), key=key, strata=strata, batch_size=1,
                         num_replicates=task.config.num_replicates)  # fmt: skip

    prepared, metrics = measure(logits, test)
    metrics = {
        name: np.asarray(value).reshape(num_rows, num_seeds, *value.shape[1:])
        for name, value in metrics.items()
    }
    return metrics, jax.device_get(intervals(prepared, jax.random.key(0)))


def summarise(task: Task, names: list[str], rows, metrics, intervals) -> dict[str, Any]:
    """The `results` of `summary.json`."""
    results = {}
    for i, name in enumerate(names):
        own = {metric: values[i] for metric, values in metrics.items()}
        scalars = [metric for metric, values in own.items() if values.ndim == 1]
        result: dict[str, Any] = {metric: own[metric].mean() for metric in scalars}
        for metric in ("group_auc", "group_accuracy"):
            result[metric] = dict(zip(task.dataset.group_names, own[metric].mean(0), strict=True))
        result["std"] = {m: own[m].std(ddof=min(1, len(own[m]) - 1)) for m in scalars}
        result["per_seed"] = {metric: own[metric] for metric in scalars}
        for key, part in (("ci95", "mean"), ("ci95_vs_full", "vs_full")):
            lower, upper = intervals.lower[part], intervals.upper[part]
            result[key] = {metric: [lower[metric][i], upper[metric][i]] for metric in lower}
        for key in ("learning_rate", "percent_trained"):
            result[key] = rows[name][key]
        result["val_objective"] = rows[name]["value"].mean()
        results[name] = result
    return results


def write_mask(
    run: common.Run, task: Task, space: MaskSpace, state: TuneState, winner: int
) -> None:
    """`mask.json`: everything that training with the found mask again needs."""
    mask, description = state.trials.masks[winner], space.describe(state.trials.masks[winner])
    found = {
        "space": space.name,
        "mask": [int(bit) for bit in mask],
        "units": list(description.units),
        "learning_rate": float(state.trials.learning_rates[winner]),
        "trained_parameters": description.num_trained,
        "percent_trained": description.percent,
        "objective": task.objectives[0].name,
        "val_objective": float(state.trials.values[winner, 0]),
        "model": task.config.model,
        "data": {"name": task.dataset.name, "fingerprint": task.dataset.fingerprint},
    }
    if len(task.objectives) > 1:
        front = pareto_front(state.trials, task.maximize)
        found["pareto_front"] = [
            {
                "mask": [int(bit) for bit in state.trials.masks[row]],
                "learning_rate": float(state.trials.learning_rates[row]),
                "val_objectives": [float(value) for value in state.trials.values[row]],
            }
            for row in front
        ]
    common.write_atomically(run.folder / "mask.json", json.dumps(found, indent=2) + "\n")


def write_trials(run: common.Run, task: Task, space: MaskSpace, state: TuneState) -> None:
    """`trials.csv`: one row per trial; values are of the validation split."""
    trials = state.trials
    with (run.folder / "trials.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        values = [f"val_{objective.name}" for objective in task.objectives]
        writer.writerow(
            ["trial", "status", "epochs", "same_as", "learning_rate", *values, *space.units]
        )
        for i, status in enumerate(trials.status):
            writer.writerow(
                [
                    i,
                    STATUS_NAMES[status],
                    trials.epochs[i],
                    trials.twins[i] if trials.twins[i] >= 0 else "",
                    trials.learning_rates[i],
                    *trials.values[i],
                    *trials.masks[i].astype(int),
                ]
            )


def trial_notes(state: TuneState) -> list[str]:
    """How many trials failed, and why that can be."""
    failed = int((state.trials.status == STATUS_NAMES.index("failed")).sum())
    if not failed:
        return []
    return [f"{failed} trials failed: the objective was undefined or the training diverged"]


if __name__ == "__main__":
    common.main(prepare_run, PRESETS, description=__doc__ or "")
