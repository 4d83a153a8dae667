"""What trains and measures the candidates of a search: one program for all rounds."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fairjax import trees
from fairjax.data import Dataset, Examples, folds, given_split
from fairjax.fairtune.objectives import Objective
from fairjax.fairtune.options import (
    NO_OPTIONS,
    PLAN,
    Branches,
    Options,
    make_branches,
    planned_bind,
    stack_choices,
)
from fairjax.fairtune.rungs import Rungs
from fairjax.fairtune.spaces import MaskSpace
from fairjax.fairtune.tune import Measured
from fairjax.metrics import resampling_weights
from fairjax.models import Model, Weights, kernel_gate
from fairjax.sampling import BatchSampler, Rows, arrange_splits
from fairjax.sharding import shard_candidates
from fairjax.train import (
    Recipe,
    fit_population,
    fit_population_streamed,
    init_fit,
    map_chunks,
    predict,
    start_train,
    stream_map,
)

NUM_DRAWS = 100
"""Of the bootstrap by which trials are compared."""


class Replicates(NamedTuple):
    """The trainings that judge a trial: F folds, and S seeds on each."""

    pool: Dataset
    """Its "train" holds train and val of the data, from which the rows are taken."""
    train: np.ndarray
    """int32 `[F, n]`, places in the pool."""
    val: np.ndarray
    """int32 `[F, m]`, likewise."""
    num_seeds: int

    @property
    def count(self) -> int:
        """R = F * S."""
        return len(self.train) * self.num_seeds


class Program(NamedTuple):
    """What candidates start from and how they train; arrays are arguments of its functions."""

    space: MaskSpace
    objectives: tuple[Objective, ...]
    replicates: Replicates
    num_runs: int
    """W, runs of a trial at a time: all replicates, or in a race the seeds of a fold."""
    start_fn: Callable[..., Any]
    """`start_fn(mask [U], rate, rung, start_data) -> states [W]`; with options also choices."""
    advance: Any
    """`advance(states [P], masks [P, U], fold [P], active [P], due [P], pool, (val, frozen),`
    `chunk_size=, mesh=) -> (states, Measured)` for P runs, jitted; measures those that are due."""
    stream: Any
    """The same on the host, where examples are too many for a device:
    `stream(states, masks, fold, active, due, frozen, chunk_size=, mesh=)`; None where they
    are not."""
    start_data: Any
    frozen: Any
    options: Options

    def fold_of_runs(self, rungs: np.ndarray) -> np.ndarray:
        """The fold of every run, int32 `[P * W]`, of slots at these rungs of a race."""
        number = rungs[:, None] * self.num_runs + np.arange(self.num_runs)
        return (number // self.replicates.num_seeds).reshape(-1).astype(np.int32)


def make_replicates(data: Dataset, num_folds: int, num_seeds: int, seed: int) -> Replicates:
    """Folds of train and val, or the one split that there is.

    Raises:
      ValueError: a number below 1, or as `folds`.
    """
    for name, number in (("num_folds", num_folds), ("num_seeds", num_seeds)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {number!r}")
    drawn = given_split(data) if num_folds == 1 else folds(data, num_folds, seed)
    rows = np.concatenate([data.splits["train"], data.splits["val"]]).astype(np.int32)
    place = np.full(len(data.labels), -1, np.int32)
    place[rows] = np.arange(len(rows))
    none = np.zeros(0, np.int32)
    pool = dataclasses.replace(data, splits={"train": rows, "val": none, "test": none})
    return Replicates(pool, place[drawn.train], place[drawn.val], num_seeds)


def make_program(
    model: Model,
    weights: Weights,
    data: Dataset,
    recipe: Recipe,
    replicates: Replicates,
    *,
    space: MaskSpace,
    objectives: tuple[Objective, ...],
    rungs: Rungs,
    key: Any,
    options: Options = NO_OPTIONS,
) -> Program:
    """The program of a search; nothing is compiled yet."""
    pool, num_batches = replicates.pool, replicates.train.shape[1] // recipe.batch_size
    make_sampler = lambda recipe: recipe.make_sampler(pool)._replace(batches_per_epoch=num_batches)
    sampler, optimizer = make_sampler(recipe), recipe.make_optimizer(num_batches)
    network, bind = recipe.make_model(model), space.bind
    tunable, frozen = space.partition(weights.params)
    if PLAN in options:
        bind = planned_bind(space.bind, model)
        frozen = (frozen, stack_choices(options[PLAN], model, weights.params))
    make_step = lambda recipe: recipe.make_step(
        network, optimizer, data, bind=bind, gate=kernel_gate(network)
    )
    step, num_seeds = make_step(recipe), replicates.num_seeds
    num_epochs, one_split = int(rungs.epochs[0]), replicates.count == 1
    if options:
        branches = make_branches(recipe, options, make_sampler, make_step, num_epochs)
    else:
        branches = _one_branch(recipe, sampler, step, num_epochs, one_split)
    num_runs = num_seeds if rungs.races else replicates.count

    def start_fn(mask, rate, rung, shared, choices=None):
        del mask
        params, heads, batch_stats, rows, keys = shared
        number = jnp.arange(num_runs, dtype=jnp.int32) + rung * num_runs

        def one(number):
            seed, fold = number % num_seeds, number // num_seeds
            head, own_rows = _at(heads, seed), _at(rows, fold)
            whole, ema = trees.merge(params, head), recipe.ema_decay is not None
            train = start_train(whole, batch_stats, optimizer, ema=ema, learning_rate=rate)
            return branches.init(train, keys[seed], own_rows, choices)

        return jax.vmap(one)(number)

    measure = functools.partial(_measure_runs, network, bind, branches.own, objectives)

    @functools.partial(jax.jit, static_argnames=("chunk_size", "mesh"), donate_argnums=0)
    def advance(states, masks, fold, active, due, pool, shared, *, chunk_size, mesh):
        val, frozen = shared
        how = {"frozen": frozen, "active": active, "chunk_size": chunk_size, "mesh": mesh}
        states = branches.fit(states, pool, mask=jax.vmap(space.expand)(masks), **how)
        choices = states.sampler.choices if options else None
        measured = shard_candidates(measure, mesh, num_mapped=4)
        return states, measured(states.train, choices, fold, due, pool, val, frozen)

    # the first seed trains as the search is given it
    later = jax.vmap(lambda seed: jax.random.fold_in(key, seed))(jnp.arange(1, num_seeds))
    keys = jnp.concatenate([key[None], later]) if num_seeds > 1 else key[None]
    heads, others = _heads(model, tunable, keys) if num_seeds > 1 else ({}, tunable)
    start_data = (others, heads, weights.batch_stats, _arrange(replicates), keys)
    stream = None
    if recipe.streams(data):
        if options:
            raise ValueError("options need examples that lie on the device, see Recipe.data_bytes")
        how = (network, step, sampler, recipe, space, objectives, num_epochs, replicates)
        stream = _make_stream(*how, data)
    rest = (stream, start_data, frozen, options)
    return Program(space, objectives, replicates, num_runs, start_fn, advance, *rest)


def _one_branch(recipe, sampler, step, num_epochs, one_split) -> Branches:
    """The training of candidates that choose nothing but a mask and a rate."""

    def init(train, key, rows, choices):
        del choices
        return init_fit(train, sampler, key, rows=rows)

    def fit_all(states, data, *, chunk_size, **how):
        # where all draw the same batches, drawn once they need less memory, but one candidate
        # after another is faster where its whole epoch stays in the cache
        how["shared_batches"] = chunk_size > 1 and one_split and not sampler.adapts
        how |= {"num_epochs": num_epochs, "augment": recipe.augment, "chunk_size": chunk_size}
        return fit_population(step, states, data, sampler, **how)[0]

    return Branches(init, fit_all, lambda frozen, choices: frozen)


def _at(tree: Any, index: jax.Array) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def _arrange(replicates: Replicates) -> Rows:
    """What the folds train on, for the sampler; leaves `[F, ...]`."""
    pool = replicates.pool
    return arrange_splits(
        labels=pool.labels[pool.splits["train"]],
        group=pool.group[pool.splits["train"]],
        num_classes=pool.num_classes,
        num_groups=pool.num_groups,
        rows=replicates.train,
    )


def _heads(model: Model, tunable: Any, keys: Any) -> tuple[Any, Any]:
    """Classifiers of the seeds, leaves `[S, ...]`, the given one and fresh ones; and the rest."""
    is_head = lambda name: name.startswith(f"{model.head}/")
    given, others = trees.partition(tunable, is_head)
    if not given:
        return {}, tunable
    fresh = jax.jit(jax.vmap(lambda key: trees.partition(model.init(key)[0], is_head)[0]))(keys)
    heads = jax.tree.map(lambda one, all_: jnp.asarray(all_).at[0].set(one), given, fresh)
    return heads, others


def _measure_runs(
    network, bind, own, objectives, trains, choices, fold, due, pool, val, frozen
) -> Measured:
    """The objectives of P runs, each on the validation rows of its fold; `val [F, m]`."""

    def one(run):
        train, choices, fold = run
        rows = val[fold]
        params = bind(train.final_params, own(frozen, choices))
        logits = predict(network, params, train.batch_stats, pool.inputs, rows=rows)
        return _measure(objectives, logits, pool.labels[rows], pool.group[rows], fold)

    return map_chunks(one, (trains, choices, fold), 1, due)


def _measure(objectives, logits, labels, group, fold) -> Measured:
    """One run's objectives, and the first one under the draws of its fold."""
    ids = {"labels": labels, "group": group}
    values = jnp.stack([chosen.measure(logits, **ids) for chosen in objectives])
    cells = labels * (jnp.max(group) + 1) + group
    key = jax.random.fold_in(jax.random.key(0), fold)
    weights = resampling_weights(key, NUM_DRAWS, strata=cells.astype(jnp.int32))
    both = jnp.concatenate([weights, (weights == 0).astype(jnp.float32)])  # drawn, and left out
    drawn = objectives[0].resample(logits, **ids, weights=both)
    return Measured(values, drawn.reshape(2, NUM_DRAWS))


def _make_stream(
    network: Model,
    step: Any,
    sampler: BatchSampler,
    recipe: Recipe,
    space: MaskSpace,
    objectives: tuple[Objective, ...],
    num_epochs: int,
    replicates: Replicates,
    data: Dataset,
):
    """`advance` on examples that are read while candidates train and validate."""
    expand = jax.jit(jax.vmap(space.expand))
    window = None if recipe.data_bytes is None else recipe.data_bytes // 2
    one_split = len(replicates.val) == 1

    @functools.partial(jax.jit, static_argnames="mesh")
    def logits_of(inputs, trains, active, frozen, mesh):
        def one(train, frozen, inputs):
            params = space.bind(train.final_params, frozen)
            return predict(network, params, train.batch_stats, inputs)

        def every(trains, active, frozen, inputs):
            return map_chunks(lambda train: one(train, frozen, inputs), trains, 1, active)

        return shard_candidates(every, mesh, num_mapped=2)(trains, active, frozen, inputs)

    measure = jax.jit(jax.vmap(functools.partial(_measure, objectives)))

    def advance(states, masks, fold, active, due, frozen, *, chunk_size, mesh):
        states, _ = fit_population_streamed(
            step,
            states,
            replicates.pool,
            sampler,
            num_epochs=num_epochs,
            mask=expand(masks),
            frozen=frozen,
            active=active,
            chunk_size=chunk_size,
            mesh=mesh,
            augment=recipe.augment,
            window_bytes=window,
        )
        if not np.any(due):  # spares reading the examples
            nothing = np.zeros((len(fold), len(objectives)), np.float32)
            return states, Measured(nothing, np.zeros((len(fold), 2, NUM_DRAWS), np.float32))
        on_mesh = functools.partial(logits_of, mesh=mesh)
        arguments = (states.train, due, frozen)
        how = {"batch_bytes": recipe.data_bytes, "axis": 1}
        rows = replicates.val[fold]  # [P, m]
        if one_split:
            logits = stream_map(on_mesh, data, "val", *arguments, **how)
        else:  # the folds cover the pool, so that all of it is somebody's to validate on
            logits = stream_map(on_mesh, replicates.pool, "train", *arguments, **how)
            logits = np.take_along_axis(np.asarray(logits), rows[..., None], axis=1)
        numbers = replicates.pool.splits["train"][rows]
        return states, measure(logits, data.labels[numbers], data.group[numbers], fold)

    return advance


def pool_shapes(pool: Dataset) -> Examples:
    """The shapes of what lies on the device, without its data."""
    count = len(pool.splits["train"])
    fields = (pool.inputs, pool.labels, pool.group)
    return Examples(*(jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype) for x in fields))
