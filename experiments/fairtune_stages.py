"""The stages of `experiments.fairtune`: pre-train, search, train every row, judge."""

import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import common
from fairjax.data import Dataset, Examples
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
    evolution,
    init_tune,
    mask_space,
    nsga2,
    random_search,
    tpe,
    tune,
)
from fairjax.models import Model, load_weights, save_weights
from fairjax.optimizers import make_optimizer
from fairjax.sharding import plan_chunk_size
from fairjax.train import fit, fit_population, init_fit, make_step, predict, start_train
from fairjax.trees import stack_blocks

COMPARED = ("accuracy", "auc", "worst_group_auc", "auc_gap", "equalized_odds_difference")


class Task(NamedTuple):
    """What stays the same over all trainings of a run."""

    config: Any
    """`experiments.fairtune.Config`"""
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

    def logits(self, params: Any, batch_stats: Any, inputs: jax.Array) -> jax.Array:
        """Of a whole split, `[N, K]`."""
        train = start_train(params, batch_stats, optax.identity())
        return predict(self.model, train, inputs, batch_size=64, preprocess=self.preprocess)

    def measure(self, params: Any, batch_stats: Any, val: Examples) -> jax.Array:
        """The objectives `[M]` of one network on the validation split."""
        logits = self.logits(params, batch_stats, val.inputs)
        return jnp.stack(
            [chosen.measure(logits, val.labels, group=val.group) for chosen in self.objectives]
        )


class Networks(NamedTuple):
    """Functions of whole networks, compiled once for all rows."""

    measure: Any
    logits: Any
    head: Any


def compile_networks(task: Task) -> Networks:
    head = jax.jit(lambda seed: task.model.init(jax.random.key(seed))[0]["head"])
    return Networks(jax.jit(task.measure), jax.jit(task.logits), head)


def prepared_params(config: Any, params: Any) -> Any:
    """Parameters with what the space adds to them."""
    if config.space != "lora":
        return params
    return add_lora(params, jax.random.key(config.data.seed), rank=config.lora_rank)


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
        run.rewrite_history(row for row in run.history() if row.get("round", np.inf) <= rounds)
    before = int(state.trials.epochs[state.trials.twins < 0].sum())
    began, bar = time.perf_counter(), common.progress(config.num_trials, "trials")

    def on_round(state: TuneState):
        nonlocal rounds
        rounds += 1
        run.save(rounds, state)
        trained = int(state.trials.epochs[state.trials.twins < 0].sum()) - before
        line = search_line(task, state, trained / (time.perf_counter() - began))
        bar.n = int((state.trials.status >= STATUS_NAMES.index("complete")).sum())
        bar.refresh()
        common.say(line)
        run.log({"round": rounds, "line": line})

    state = tune(
        search, state, start_fn, train_fn, rungs, maximize=task.maximize, on_round=on_round
    )
    bar.close()
    return state


def search_line(task: Task, state: TuneState, epochs_per_second: float) -> str:
    """Trials done and stopped, the best so far, and the speed."""
    trials = state.trials
    count = {name: int((trials.status == i).sum()) for i, name in enumerate(STATUS_NAMES)}
    values = trials.values[trials.status == STATUS_NAMES.index("complete"), 0]
    best = "none yet"
    if len(values):
        best = f"{values.max() if task.maximize[0] else values.min():.4f}"
    return (
        f"search: {count['complete']} complete, {count['stopped']} stopped, "
        f"{count['failed']} failed, {count['running']} running of {len(trials.status)}; best "
        f"{task.objectives[0].name} {best}; {epochs_per_second:.2f} candidate epochs/s"
    )


def train_rows(
    task: Task,
    nets: Networks,
    space: MaskSpace,
    mask: np.ndarray,
    rate: float,
    params,
    batch_stats,
    run: common.Run,
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
        train = make_refit(task, nets, row_space, row_mask, params, batch_stats)
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


def make_refit(task: Task, nets: Networks, space: MaskSpace, mask: np.ndarray, params, stats):
    """`train(rate, num_seeds)` with gradients only for what `mask` trains.

    Every seed has its own classifier and order of examples; they are trained one after another,
    by one compiled program.
    """
    config, optimizer = task.config, task.optimizer()
    trained, rest = space.split(params, mask)
    step = make_step(task.model, optimizer, bind=space.bind, label_smoothing=config.label_smoothing)

    @jax.jit
    def start(trained, batch_stats, head, rate, seed):
        train = start_train({**trained, "head": head}, batch_stats, optimizer, learning_rate=rate)
        return init_fit(train, task.sampler, jax.random.key(seed))

    @jax.jit
    def epoch(state, rest, data):
        one_step = functools.partial(step, frozen=rest)
        state, _ = fit(one_step, state, data, task.sampler, num_epochs=1, augment=task.augment)
        params = stack_blocks(space.bind(state.train.params, rest))
        return state, params, state.train.batch_stats

    def train(rate: float, num_seeds: int) -> dict[str, Any]:
        """Validation objective `[S]`, test logits `[S, N, K]`, the first seed's network."""
        sign = 1 if task.maximize[0] else -1
        inputs = jnp.asarray(task.dataset.examples("test").inputs)
        values, logits, networks = [], [], []
        for seed in range(num_seeds):
            state = start(trained, stats, nets.head(seed), rate, seed)
            value, kept = np.nan, []
            for _ in range(config.num_epochs):
                state, *network = epoch(state, rest, task.train)
                newest = float(nets.measure(*network, task.val)[0])
                # nan compares false, so a diverged epoch cannot replace a sound one
                better = np.isnan(value) or sign * newest > sign * value
                if not kept or better or config.select == "last":
                    value, kept = newest, network
            values.append(value)
            logits.append(np.asarray(nets.logits(*kept, inputs)))
            networks.append(kept)
        return {"value": np.array(values), "logits": np.stack(logits), "network": networks[0]}

    return train
