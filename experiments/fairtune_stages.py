"""Stage 1 of `experiments.fairtune`: the search over masks and learning rates."""

import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.cli import progress, say
from experiments.files import load_arrays, save_arrays
from experiments.run import Run
from fairjax.data import Dataset, Examples
from fairjax.fairbatch import BatchSampler
from fairjax.fairtune import (
    STATUS_NAMES,
    MaskSpace,
    Objective,
    Rungs,
    Search,
    TuneState,
    evolution,
    guided_masks,
    init_tune,
    nsga2,
    random_search,
    tpe,
    tune,
)
from fairjax.models import Model, gate_kernels
from fairjax.optimizers import make_optimizer
from fairjax.sharding import AXIS, plan_chunk_size, shard_candidates
from fairjax.train import (
    Step,
    fit_population,
    init_fit,
    make_step,
    map_chunks,
    predict,
    start_train,
)


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
    class_weights: jax.Array | None
    mesh: Mesh

    @property
    def maximize(self) -> tuple[bool, ...]:
        return tuple(objective.maximize for objective in self.objectives)

    def optimizer(self, num_epochs: int) -> optax.GradientTransformation:
        config, steps = self.config, self.sampler.batches_per_epoch
        return make_optimizer(
            config.optimizer,
            total_steps=num_epochs * steps,
            schedule=config.schedule,
            warmup_steps=int(min(config.warmup_epochs, num_epochs / 2) * steps),
            weight_decay=config.weight_decay,
        )

    def step(self, optimizer: optax.GradientTransformation, space: MaskSpace) -> Step:
        return make_step(
            self.model,
            optimizer,
            bind=space.bind,
            gate=gate_kernels,
            label_smoothing=self.config.label_smoothing,
            class_weights=self.class_weights,
        )

    def logits(self, params: Any, batch_stats: Any, inputs: jax.Array) -> jax.Array:
        """Of a whole split, `[N, K]`."""
        train = start_train(params, batch_stats, optax.identity())
        return predict(self.model, train, inputs, batch_size=64, preprocess=self.preprocess)

    def measure(self, params: Any, batch_stats: Any, val: Examples) -> jax.Array:
        """The objectives `[M]` of one network on the validation split."""
        logits = self.logits(params, batch_stats, val.inputs)
        return jnp.stack(
            [
                chosen.measure(logits, labels=val.labels, group=val.group)
                for chosen in self.objectives
            ]
        )

    def spread(self, candidates: Any) -> Any:
        """Arrays `[P, ...]` put onto the devices that train them, so that no call recompiles."""
        return jax.device_put(candidates, NamedSharding(self.mesh, PartitionSpec(AXIS)))

    def everywhere(self, shared: Any) -> Any:
        """Arrays that all candidates need, one copy per device."""
        return jax.device_put(shared, NamedSharding(self.mesh, PartitionSpec()))


def make_search(
    task: Task, space: MaskSpace, run: Run, first: tuple[np.ndarray, ...] = ()
) -> Search:
    """The configured search; `first` masks are what it asks for first."""
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
        worker=config.worker,
        first_masks=first,
    )


def search_masks(
    task: Task, space: MaskSpace, rungs: Rungs, params, batch_stats, run: Run
) -> TuneState:
    """Train the candidates of the search, or those that an interrupted run left."""
    config = task.config
    start_fn, make_train_fn = make_population(task, space, rungs, params, batch_stats)
    first = guided_start(task, space, params, batch_stats, run) if config.guided_start else ()
    search = make_search(task, space, run, first)
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
    restored = run.restore(state) if config.resume else None
    rounds = 0
    if restored is not None:
        rounds, state = restored
        run.rewrite_history(row for row in run.history() if row.get("round", np.inf) <= rounds)
    before = int(state.trials.epochs[state.trials.twins < 0].sum())
    began, bar = time.perf_counter(), progress(config.num_trials, "trials")

    def on_round(state: TuneState):
        nonlocal rounds
        rounds += 1
        run.save(rounds, state)
        trained = int(state.trials.epochs[state.trials.twins < 0].sum()) - before
        line = search_line(task, state, trained / (time.perf_counter() - began))
        bar.n = int((state.trials.status >= STATUS_NAMES.index("complete")).sum())
        bar.refresh()
        say(line)
        run.log({"round": rounds, "line": line})

    train_fn = make_train_fn(state.population)
    state = tune(
        search, state, start_fn, train_fn, rungs, maximize=task.maximize, on_round=on_round
    )
    bar.close()
    return state


def make_population(task: Task, space: MaskSpace, rungs: Rungs, params, batch_stats):
    """`start_fn` and a maker of `train_fn` for `fairjax.fairtune.tune`."""
    config, optimizer = task.config, task.optimizer(task.config.num_epochs)
    tunable, frozen = space.partition(params)
    step, shared = task.step(optimizer, space), task.everywhere((task.val, frozen))

    @jax.jit
    def start(tunable, batch_stats, rates):
        def one(rate):
            train = start_train(tunable, batch_stats, optimizer, learning_rate=rate)
            return init_fit(train, task.sampler, jax.random.key(config.data.seed))

        return jax.vmap(one)(rates)

    def measure_one(train, shared):
        val, frozen = shared
        return task.measure(space.bind(train.params, frozen), train.batch_stats, val)

    def measure_all(trains, active, shared):
        return map_chunks(lambda train: measure_one(train, shared), trains, 1, active)

    @functools.partial(jax.jit, static_argnums=5, donate_argnums=0)
    def advance(states, masks, active, data, shared, chunk_size):
        states, _ = fit_population(
            step,
            states,
            data,
            task.sampler,
            masks=jax.vmap(space.expand)(masks),
            frozen=shared[1],
            active=active,
            chunk_size=chunk_size,
            mesh=task.mesh,
            num_epochs=rungs.epochs[0],
            augment=task.augment,
        )
        measured = shard_candidates(measure_all, task.mesh, num_mapped=2)
        return states, measured(states.train, active, shared)

    def start_fn(masks, rates):
        return start(tunable, batch_stats, jnp.asarray(rates))

    def make_train_fn(population):
        num_slots, num_devices = config.num_slots, task.mesh.size
        chunk_size = config.chunk_size
        if chunk_size is None:
            nobody = np.zeros((num_slots, space.num_units), bool)
            chunk_size = plan_chunk_size(
                lambda size: advance.lower(
                    population, nobody, nobody.any(1), task.train, shared, size
                ),
                -(-num_slots // num_devices),
            )
        order = np.argsort(np.arange(num_slots) % num_devices, kind="stable")
        back = np.argsort(order)

        def train_fn(population, masks, active):
            # live candidates come first: deal them out, so that every device has its share of them
            dealt = not active.all()  # else each has, and copies of the population are spared
            if dealt:
                population, masks, active = _take(population, order), masks[order], active[order]
            population, masks, active = task.spread((population, masks, active))
            # wait for all devices: whoever is first at a collective waits only so long for the rest
            population, values = jax.block_until_ready(
                advance(population, masks, active, task.train, shared, chunk_size)
            )
            values = np.asarray(values)
            return (_take(population, back), values[back]) if dealt else (population, values)

        return train_fn

    return start_fn, make_train_fn


@jax.jit
def _take(tree: Any, rows: np.ndarray) -> Any:
    return jax.tree.map(lambda leaf: leaf[rows], tree)


def guided_start(task: Task, space: MaskSpace, params, batch_stats, run: Run):
    """The first masks of the search, from gates trained by gradients; kept in the run folder."""
    path = run.folder / "guided.npz"
    if not path.exists():
        masks, gates = guided_masks(
            task.model,
            space,
            params,
            batch_stats,
            task.train,
            task.val,
            key=jax.random.key(task.config.data.seed),
            num_masks=task.config.num_slots,
            num_groups=task.dataset.num_groups,
            preprocess=task.preprocess,
        )
        save_arrays(path, masks=masks, gates=gates)
    return tuple(load_arrays(path)["masks"])


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
