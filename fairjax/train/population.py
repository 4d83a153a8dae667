"""Many runs at once: seeds, criteria, hyper-parameters, masks and splits as an array axis."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool

from fairjax.data import Examples
from fairjax.sampling import BatchSampler
from fairjax.sharding import candidate_mesh, shard_candidates
from fairjax.train.loop import FitState, MeasureFn, fit, init_fit
from fairjax.train.step import Step, TrainState, start_train


def init_population(
    params: Any,
    batch_stats: Any,
    optimizer: optax.GradientTransformation,
    sampler: BatchSampler,
    *,
    keys: Any,
    choices: dict[str, Any] | None = None,
    ema: bool = False,
    **hyperparams: Any,
) -> FitState:
    """P runs before their first epoch.

    Args:
      params: of every run, leaves `[P, ...]`; `replicate` makes them from one network's.
      batch_stats: likewise.
      optimizer: shared.
      sampler: shared.
      keys: PRNG keys `[P]`; equal keys draw equal batches.
      choices: arguments of `sampler.init`, leaves `[P, ...]`, such as FairBatch's criterion.
      ema: see `start_train`.
      **hyperparams: arrays `[P]` that replace injected ones, such as `learning_rate`.

    Returns:
      A `FitState` whose every leaf has a leading axis P, for `fit_population`.
    """

    def one(params, batch_stats, key, choices, hyperparams):
        train = start_train(params, batch_stats, optimizer, ema=ema, **hyperparams)
        return init_fit(train, sampler, key, **choices)

    hyperparams = {name: jnp.asarray(values) for name, values in hyperparams.items()}
    return jax.vmap(one)(params, batch_stats, keys, choices or {}, hyperparams)


def replicate(tree: Any, count: int) -> Any:
    """Every leaf `count` times along a new leading axis."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *jnp.shape(leaf))), tree)


def fit_population(
    step: Step,
    states: FitState,
    data: Examples,
    sampler: BatchSampler,
    *,
    num_epochs: int,
    mask: Any = None,
    frozen: Any = None,
    measure_fn: MeasureFn | None = None,
    measure_data: Any = None,
    evaluate_fn: Callable[[TrainState, Any], Any] | None = None,
    evaluate_data: Any = None,
    shared_batches: bool = False,
    active: Bool[Array, " P"] | None = None,
    chunk_size: int | None = None,
    mesh: Mesh | None = None,
    **options: Any,
) -> tuple[FitState, dict[str, Any]]:
    """`fit` for P runs at once, spread over all devices.

    Args:
      step: from `make_step`.
      states: from `init_population`, or what an earlier call returned.
      data: shared by all runs.
      sampler: shared; what differs between runs is in their states.
      num_epochs: see `fit`.
      mask: of every run, a tree of bool arrays with leading axis P; see `Step`.
      frozen: parameters that all runs share, one copy; see `make_step`.
      measure_fn: see `fit`, for one run.
      measure_data: shared by all runs; `data` if None.
      evaluate_fn: see `fit`, for one run.
      evaluate_data: shared by all runs, such as the validation split and the frozen parameters.
      shared_batches: draw and augment each batch once for all runs, from the sampler's state and
        key of the first; each run still has its own parameters and hyper-parameters.
      active: bool `[P]`; what runs that are False return is undefined, and chunks of nothing else
        cost nothing.
      chunk_size: runs that each device trains at the same time; None is all. Fewer need less
        memory; 1 is a plain loop, right for convolutions. See `sharding.plan_chunk_size`.
      mesh: devices, from `sharding.candidate_mesh`; all of them by default.
      **options: others of `fit`.

    Returns:
      `(states, history)` with a leading axis P. A run's result does not depend on the others, nor
      on the number of devices.

    Raises:
      ValueError: `shared_batches` with a sampler that adapts, which chooses each run's own
        batches; or as `fit`.
    """
    if shared_batches and sampler.adapts:
        raise ValueError("shared_batches does not go with a sampler that adapts")
    num_runs = len(states.epoch)
    if mesh is None:
        mesh = candidate_mesh(jax.devices()[:num_runs])
    if num_runs % mesh.size and active is None and chunk_size is not None:
        active = jnp.ones(num_runs, bool)  # so that what fills up the devices costs nothing
    fit_one = functools.partial(
        fit,
        sampler=sampler,
        num_epochs=num_epochs,
        measure_fn=measure_fn,
        evaluate_fn=evaluate_fn,
        **options,
    )

    def train(states, mask, active, data, frozen, measure_data, evaluate_data):
        shared = {
            "data": data,
            "frozen": frozen,
            "measure_data": measure_data,
            "evaluate_data": evaluate_data,
        }

        def one_run(run):
            state, mask = run
            return fit_one(step, state, mask=mask, **shared)

        if not shared_batches:
            return map_chunks(one_run, (states, mask), chunk_size, active)

        def map_runs(fn, trains):
            return map_chunks(fn, (trains, mask), chunk_size, active)

        def step_all(trains, batch, key, mask=None, frozen=None):
            one = lambda run: step(run[0], batch, key, mask=run[1], frozen=frozen)
            return map_runs(one, trains)

        def evaluate_all(trains, data):
            return map_runs(lambda run: evaluate_fn(run[0], data), trains)  # pyright: ignore

        whole = functools.partial(fit_one, evaluate_fn=evaluate_fn and evaluate_all)
        first = _first_run(states)
        state, history = whole(step_all, first._replace(train=states.train), **shared)
        history = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), history)
        runs = replicate(state._replace(train=None), len(states.epoch))
        return runs._replace(train=state.train), history

    if shared_batches:  # also where devices hold the others
        states = replicate(_first_run(states), num_runs)._replace(train=states.train)
    if mesh.size > 1:
        train = shard_candidates(train, mesh, num_mapped=3)
    measure_data = data if measure_data is None else measure_data
    return train(states, mask, active, data, frozen, measure_data, evaluate_data)


def _first_run(states: FitState) -> FitState:
    """All but the training state of run 0."""
    return jax.tree.map(lambda leaf: leaf[0], states._replace(train=None))


def map_chunks(
    fn: Callable[[Any], Any], xs: Any, chunk_size: int | None, active: jax.Array | None = None
) -> Any:
    """`jax.vmap(fn)(xs)`, `chunk_size` at a time; chunks without an `active` entry give zeros."""
    if active is None and chunk_size is None:
        return jax.vmap(fn)(xs)
    if active is None:
        return jax.lax.map(fn, xs, batch_size=None if chunk_size == 1 else chunk_size)
    size = math.gcd(len(active), chunk_size or len(active))
    chunks = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), (xs, active))
    shapes = jax.eval_shape(jax.vmap(fn), jax.tree.map(lambda x: x[0], chunks[0]))

    def alone(xs):  # without vmap, which would turn every cond of `fn` into both its branches
        return jax.tree.map(lambda x: x[None], fn(jax.tree.map(lambda x: x[0], xs)))

    def one_chunk(chunk):
        xs, active = chunk
        nothing = lambda _: jax.tree.map(lambda x: jax.lax.full_like(x, 0), shapes)
        return jax.lax.cond(active.any(), alone if size == 1 else jax.vmap(fn), nothing, xs)

    results = jax.lax.map(one_chunk, chunks)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), results)
