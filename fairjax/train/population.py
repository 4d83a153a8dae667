"""Many runs at once: seeds, criteria, hyper-parameters, masks and splits as an array axis."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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
      A `FitState` whose every leaf has a leading axis P, for `fit_population`. Safe under jit.

    Raises:
      ValueError: leading axes that differ.
      KeyError: a hyper-parameter that the optimiser has not.

    >>> from fairjax.sampling import shuffled
    >>> ids = dict(labels=jnp.arange(2), group=jnp.arange(2), num_classes=2, num_groups=2)
    >>> sampler, keys = shuffled(**ids, batch_size=1), jax.random.split(jax.random.key(0), 3)
    >>> init_population({"w": jnp.ones((3, 5))}, {}, optax.sgd(0.1), sampler, keys=keys).epoch.shape
    (3,)
    """

    def one(params, batch_stats, key, choices, hyperparams):
        train = start_train(params, batch_stats, optimizer, ema=ema, **hyperparams)
        return init_fit(train, sampler, key, **choices)

    hyperparams = {name: jnp.asarray(values) for name, values in hyperparams.items()}
    return jax.vmap(one)(params, batch_stats, keys, choices or {}, hyperparams)


def replicate(tree: Any, count: int) -> Any:
    """Every leaf `count` times along a new leading axis.

    >>> replicate({"w": jnp.ones(5)}, 3)["w"].shape
    (3, 5)
    """
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
    active: Bool[Array | np.ndarray, " P"] | None = None,
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
        batches; `chunk_size` below 1; or as `fit`.
    """
    if shared_batches and sampler.adapts:
        raise ValueError("shared_batches does not go with a sampler that adapts")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    num_runs = len(states.epoch)
    mesh = candidate_mesh(jax.devices()[:num_runs]) if mesh is None else mesh
    if shared_batches:  # also where devices hold the others
        states = replicate(_first_run(states), num_runs)._replace(train=states.train)
    fit_all = functools.partial(
        _fit_together if shared_batches else _fit_apart,
        step,
        chunk_size,
        sampler=sampler,
        num_epochs=num_epochs,
        measure_fn=measure_fn,
        evaluate_fn=evaluate_fn,
        **options,
    )
    shared = {
        "data": data,
        "frozen": frozen,
        "measure_data": data if measure_data is None else measure_data,
        "evaluate_data": evaluate_data,
    }
    active = None if active is None else jnp.asarray(active)
    return spread_runs(fit_all, mesh)(states, mask, active, shared)


def _fit_apart(step, chunk_size, states, mask, active, shared, **options):
    """Every run as `fit` alone, `chunk_size` at a time."""

    def one_run(run):
        state, mask = run
        return fit(step, state, mask=mask, **shared, **options)

    return train_chunks(one_run, states, mask, chunk_size, active)


def _fit_together(step, chunk_size, states, masks, active, shared, *, evaluate_fn, **options):
    """One `fit` whose every step is that of all runs on the same batch."""

    def step_all(state, batch, key, mask=None, frozen=None):
        one_run = lambda run: step(run[0], batch, key, mask=run[1], frozen=frozen)
        return train_chunks(one_run, state, masks, chunk_size, active)

    def evaluate_all(trains, data):
        return map_chunks(lambda train: evaluate_fn(train, data), trains, chunk_size, active)

    state = _first_run(states)._replace(train=states.train)
    state, history = fit(
        step_all, state, evaluate_fn=evaluate_fn and evaluate_all, **shared, **options
    )
    history = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), history)
    runs = replicate(state._replace(train=None), len(states.epoch))
    return runs._replace(train=state.train), history


def _first_run(states: FitState) -> FitState:
    """All but the training state of run 0."""
    return jax.tree.map(lambda leaf: leaf[0], states._replace(train=None))


def spread_runs(fn: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """`fn(states, mask, active, shared)` on every device's share of the P runs.

    Runs that fill up the devices are not active, so that they cost nothing where a chunk, or a
    device, holds nothing else.
    """
    if mesh.size == 1:
        return fn

    def spread(states, mask, active, shared):
        num_runs = len(states.epoch)
        missing = -num_runs % mesh.size
        if missing:
            rows = jnp.minimum(jnp.arange(num_runs + missing), num_runs - 1)
            states, mask = jax.tree.map(lambda leaf: leaf[rows], (states, mask))
            active = jnp.ones(num_runs, bool) if active is None else active
            active = jnp.concatenate([active, jnp.zeros(missing, bool)])
        results = shard_candidates(fn, mesh, num_mapped=3)(states, mask, active, shared)
        return jax.tree.map(lambda leaf: leaf[:num_runs], results) if missing else results

    return spread


def map_chunks(
    fn: Callable[[Any], Any], xs: Any, chunk_size: int | None, active: jax.Array | None = None
) -> Any:
    """`jax.vmap(fn)(xs)`, `chunk_size` at a time; chunks without an `active` entry give zeros.

    With `active` bool `[P]` chunks have the largest size up to `chunk_size` that divides P.
    """
    if active is None and chunk_size is None:
        return jax.vmap(fn)(xs)
    if active is None:
        return jax.lax.map(fn, xs, batch_size=None if chunk_size == 1 else chunk_size)
    size = _chunk_of(len(active), chunk_size)
    chunks = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), (xs, active))

    def one_chunk(chunk):
        return _run_chunk(fn, *chunk)

    results = jax.lax.map(one_chunk, chunks)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), results)


def train_chunks(
    fn: Callable[[Any], tuple[Any, Any]],
    states: Any,
    others: Any,
    chunk_size: int | None,
    active: jax.Array | None = None,
) -> tuple[Any, Any]:
    """`map_chunks(fn, (states, others), ...)` for `fn((state, other)) -> (state, record)`.

    The states of a chunk are replaced where they lie, so that where they are donated no second
    population is held. Those of chunks without an `active` entry are anything.
    """
    num_runs = len(jax.tree.leaves(states)[0])
    if active is None and (chunk_size is None or num_runs % chunk_size):
        return map_chunks(fn, (states, others), chunk_size)
    size = _chunk_of(num_runs, chunk_size)

    def one_chunk(states, start):
        take = lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, size)
        put = lambda leaf, new: jax.lax.dynamic_update_slice_in_dim(leaf, new, start, 0)
        *run, some = jax.tree.map(take, (states, others, active))
        results, record = _run_chunk(fn, tuple(run), some)
        return jax.tree.map(put, states, results), record

    states, records = jax.lax.scan(one_chunk, states, jnp.arange(0, num_runs, size))
    return states, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), records)


def _chunk_of(num_runs: int, chunk_size: int | None) -> int:
    """The largest chunk up to `chunk_size` that divides the runs."""
    most = min(chunk_size or num_runs, num_runs)
    return max(size for size in range(1, most + 1) if num_runs % size == 0)


def _run_chunk(fn: Callable[[Any], Any], xs: Any, active: jax.Array | None) -> Any:
    """`jax.vmap(fn)(xs)`, or zeros where no entry is active."""

    def alone(xs):  # without vmap, which would turn every cond of `fn` into both its branches
        return jax.tree.map(lambda x: x[None], fn(jax.tree.map(lambda x: x[0], xs)))

    run = alone if len(jax.tree.leaves(xs)[0]) == 1 else jax.vmap(fn)
    if active is None:
        return run(xs)
    run = jax.jit(run, inline=True)  # traced once for both
    shapes = jax.eval_shape(run, xs)
    nothing = lambda _: jax.tree.map(lambda x: jax.lax.full_like(x, 0), shapes)
    return jax.lax.cond(active.any(), run, nothing, xs)
