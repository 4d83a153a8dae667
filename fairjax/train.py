"""The training engine: one step function, one loop, one population wrapper.

Nothing here is jitted; wrap `fit` (or the function of yours that calls it) in `jax.jit` with the
state donated and the data as an argument. All state is a pytree, so a run is also a scan carry, a
vmap axis and a checkpoint.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from fairjax.data import Examples
from fairjax.fairbatch import BatchSampler, BatchState, CellSums
from fairjax.losses import cross_entropy
from fairjax.models import Model
from fairjax.sharding import shard_candidates


class TrainState(NamedTuple):
    """What one gradient step changes."""

    params: Any
    batch_stats: Any
    opt_state: Any
    step: jax.Array
    """int32 scalar, gradient steps taken."""
    ema: Any = None
    """Exponential moving average of `params`, where `make_step` keeps one."""


class FitState(NamedTuple):
    """A whole run: resume it by passing it to `fit` again."""

    train: TrainState
    sampler: BatchState
    running: CellSums
    """Cell sums of the batches since the last update; zeros unless `update_every` is set."""
    key: jax.Array
    """Never consumed: epoch e uses `fold_in(key, e)`, so a resumed run draws what it would have."""
    epoch: jax.Array
    """int32 scalar, epochs finished."""


class Batch(NamedTuple):
    """One training batch."""

    inputs: jax.Array
    labels: jax.Array
    group: jax.Array
    weights: jax.Array
    """float32 `[B]`; 0 marks padding, other values weigh the loss."""


Step = Callable[..., tuple[TrainState, dict[str, jax.Array]]]


def make_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    label_smoothing: float = 0.0,
    class_weights: jax.Array | None = None,
    bind: Callable[[Any, Any], Any] | None = None,
    gate: Callable[[Any, Any], Any] | None = None,
    ema_decay: float | None = None,
) -> Step:
    """One gradient step as a pure function.

    Args:
      model: `apply` gives logits `[B, K]`.
      optimizer: any optax transformation; wrap it in `optax.inject_hyperparams` to make its
        numbers arrays that differ between candidates.
      label_smoothing: in [0, 1).
      class_weights: float32 `[K]`; the loss is sum(w * loss) / sum(batch weights).
      bind: `bind(params, frozen)` makes what `model.apply` takes, such as `MaskSpace.bind`; only
        `params` is differentiated and in the state. None trains all parameters.
      gate: `gate(params, mask)` makes of bound parameters those that skip the gradients of what
        the mask freezes, such as `models.gate_kernels`; for steps that are given a mask.
      ema_decay: in (0, 1), keeps `state.ema`; begin with `start_train(..., ema=True)`.

    Returns:
      `step(state, batch, key, mask=None, frozen=None) -> (state, metrics)` with `metrics =
      {"loss": scalar, "logits": [B, K]}`; logits are those before the step. XLA drops what the
      caller does not use. `mask` is a tree of bool arrays that broadcast to the parameters: where
      False, parameters stay exactly as they are, whatever the optimiser does.

    Raises:
      ValueError: `label_smoothing` outside [0, 1), or `ema_decay` outside (0, 1).
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
    if ema_decay is not None and not 0 < ema_decay < 1:
        raise ValueError(f"ema_decay must be in (0, 1), got {ema_decay}")

    def loss_fn(params, mask, frozen, batch_stats, batch: Batch, key):
        params = params if bind is None else bind(params, frozen)
        params = params if gate is None or mask is None else gate(params, mask)
        logits, _, batch_stats = model.apply(params, batch_stats, batch.inputs, train=True, key=key)
        losses = cross_entropy(
            logits, batch.labels, label_smoothing=label_smoothing, class_weights=class_weights
        )
        loss = jnp.sum(losses * batch.weights) / jnp.maximum(jnp.sum(batch.weights), 1e-12)
        return loss, (logits, batch_stats)

    def step(state: TrainState, batch: Batch, key: jax.Array, mask=None, frozen=None):
        (loss, (logits, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params, mask, frozen, state.batch_stats, batch, key
        )
        with jax.numpy_dtype_promotion("standard"):  # optax mixes integer counts and floats
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        if mask is not None:  # after the optimiser, so that weight decay cannot move what is frozen
            updates = jax.tree.map(lambda keep, u: jnp.where(keep, u, 0.0), mask, updates)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema_decay is not None:
            rate = 1 - ema_decay
            ema = jax.tree.map(lambda a, p: a + rate * (p - a), ema, params)
        state = TrainState(params, batch_stats, opt_state, state.step + 1, ema)
        return state, {"loss": loss, "logits": logits}

    return step


def init_train(
    model: Model, optimizer: optax.GradientTransformation, key: jax.Array, **hyperparams: Any
) -> TrainState:
    """A fresh `TrainState`; `hyperparams` replace injected ones, such as `learning_rate`.

    Safe under vmap over `key` and the hyper-parameters, which makes a population.
    """
    params, batch_stats = model.init(key)
    return start_train(params, batch_stats, optimizer, **hyperparams)


def start_train(
    params: Any,
    batch_stats: Any,
    optimizer: optax.GradientTransformation,
    *,
    ema: bool = False,
    **hyperparams: Any,
) -> TrainState:
    """A `TrainState` that starts from given parameters; see `init_train`.

    With `ema` the state also carries the parameters' moving average.
    """
    opt_state = optimizer.init(params)
    if hyperparams:
        opt_state = optax.tree_utils.tree_set(opt_state, **hyperparams)
    # optax starts from Python numbers; training returns arrays: without this, a second compile
    opt_state = jax.tree.map(jnp.asarray, opt_state)
    opt_state = jax.tree.map(lambda x: x.astype(x.dtype) if x.weak_type else x, opt_state)
    average = params if ema else None
    return TrainState(params, batch_stats, opt_state, jnp.zeros((), jnp.int32), average)


def init_fit(train: TrainState, sampler: BatchSampler, key: jax.Array, **choices: Any) -> FitState:
    """The `FitState` before the first epoch; `choices` go to `sampler.init`."""
    state = sampler.init(**choices)
    zeros = CellSums(jnp.zeros_like(state.weights), jnp.zeros_like(state.weights))
    return FitState(train, state, zeros, key, jnp.zeros((), jnp.int32))


def fit(
    step: Step,
    state: FitState,
    data: Examples,
    sampler: BatchSampler,
    *,
    num_epochs: int,
    measure_fn: Callable[[TrainState, BatchState], CellSums] | None = None,
    update_every: int | None = None,
    augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    evaluate_fn: Callable[[TrainState], Any] | None = None,
    unroll: int = 1,
) -> tuple[FitState, dict[str, Any]]:
    """Train for `num_epochs`: a scan over epochs of a scan over steps.

    Args:
      step: from `make_step`.
      state: from `init_fit`, or what an earlier `fit` returned.
      data: training examples `[N, ...]`, the rows that `sampler` numbers.
      sampler: from `fairbatch`; criterion "none" is plain shuffling.
      num_epochs: epochs of `sampler.batches_per_epoch` steps.
      measure_fn: cell sums of the current model, taken once before every epoch (published
        cadence); see `measure_cells`. None leaves the sampling probabilities alone.
      update_every: instead, update every that many steps from the losses of those steps' own
        batches, for networks whose full pass is dear. Must divide the batches of an epoch;
        dealing without replacement starts anew at every update.
      augment: `augment(key, inputs [B, ...]) -> inputs`, applied to every batch.
      evaluate_fn: recorded after every epoch.
      unroll: steps per iteration of the compiled loop; more compile time, fewer loop overheads.

    Returns:
      `(state, history)`; history has `loss [E]` (mean over the epoch's steps), `weights
      [E, K, G]` (the sampling shares used), `cell_losses [E, K, G]` (what moved them; nan where
      nothing was measured) and `evaluation` (of `evaluate_fn`, stacked; absent without it).

    Raises:
      ValueError: both cadences given, or `update_every` does not divide the epoch.
    """
    if measure_fn is not None and update_every is not None:
        raise ValueError("give measure_fn or update_every, not both")
    num_steps = sampler.batches_per_epoch if update_every is None else update_every
    if num_steps < 1 or sampler.batches_per_epoch % num_steps:
        raise ValueError(
            f"update_every must divide the {sampler.batches_per_epoch} batches of an epoch, "
            f"got {update_every}"
        )
    running_cadence = update_every is not None

    def train_batch(shares: BatchState, carry, draw):
        train, running = carry
        indices, weights, key = draw
        inputs, labels, group = jax.tree.map(lambda array: array[indices], data)
        key_augment, key_step = jax.random.split(key)
        if augment is not None:
            inputs = augment(key_augment, inputs)
        train, metrics = step(train, Batch(inputs, labels, group, weights), key_step)
        if running_cadence:
            running += sampler.measure(
                metrics["logits"], labels, shares, group=group, weights=weights
            )
        return (train, running), metrics["loss"]

    def one_round(state: FitState, key: jax.Array):
        """One update of the sampler and the steps that use it."""
        sums = state.running if measure_fn is None else measure_fn(state.train, state.sampler)
        cell_losses = sampler.cell_losses(sums, state.sampler)
        shares = sampler.update(cell_losses, state.sampler)
        key_draw, key_steps = jax.random.split(key)
        indices, weights = sampler.sample_epoch(key_draw, shares, num_batches=num_steps)
        keys = jax.random.split(key_steps, num_steps)
        running = jax.tree.map(jnp.zeros_like, state.running)
        (train, running), losses = jax.lax.scan(
            functools.partial(train_batch, shares),
            (state.train, running),
            (indices, weights, keys),
            unroll=unroll,
        )
        state = state._replace(train=train, sampler=shares, running=running)
        return state, (losses.mean(0), cell_losses, shares.weights)

    def one_epoch(state: FitState, _):
        keys = jax.random.split(
            jax.random.fold_in(state.key, state.epoch), sampler.batches_per_epoch // num_steps
        )
        state, (losses, cell_losses, shares) = jax.lax.scan(one_round, state, keys)
        state = state._replace(epoch=state.epoch + 1)
        record = {"loss": losses.mean(0), "weights": shares[-1], "cell_losses": cell_losses[-1]}
        if evaluate_fn is not None:
            record["evaluation"] = evaluate_fn(state.train)
        return state, record

    return jax.lax.scan(one_epoch, state, length=num_epochs)


def measure_cells(
    model: Model,
    sampler: BatchSampler,
    state: TrainState,
    shares: BatchState,
    data: Examples,
    *,
    batch_size: int | None = None,
    preprocess: Callable[[jax.Array], jax.Array] | None = None,
) -> CellSums:
    """A full pass over `data` with the current model: the `measure_fn` of the published cadence.

    `data` may be the training split (published) or the validation split (the two-level reading of
    the paper). See `predict` for `batch_size` and `preprocess`.
    """
    logits = predict(model, state, data.inputs, batch_size=batch_size, preprocess=preprocess)
    return sampler.measure(logits, data.labels, shares, group=data.group)


def predict(
    model: Model,
    state: TrainState,
    inputs: jax.Array,
    *,
    batch_size: int | None = None,
    preprocess: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """Logits float32 `[N, K]` of a whole split in evaluation mode.

    Args:
      model: the network.
      state: its parameters and batch statistics.
      inputs: `[N, ...]`.
      batch_size: activations of that many examples are held at a time; None does all at once.
      preprocess: applied to every chunk of inputs, such as normalising uint8 images.
    """

    def forward(chunk):
        chunk = chunk if preprocess is None else preprocess(chunk)
        return model.apply(state.params, state.batch_stats, chunk, train=False)[0]

    num_rows = len(inputs)
    if batch_size is None or batch_size >= num_rows:
        return forward(inputs)
    num_chunks = -(-num_rows // batch_size)
    padding = [(0, num_chunks * batch_size - num_rows)] + [(0, 0)] * (inputs.ndim - 1)
    chunks = jnp.pad(inputs, padding).reshape(num_chunks, batch_size, *inputs.shape[1:])
    logits = jax.lax.map(forward, chunks)
    return logits.reshape(-1, logits.shape[-1])[:num_rows]


def fit_population(
    step: Step,
    states: FitState,
    data: Examples,
    sampler: BatchSampler,
    *,
    masks: Any = None,
    frozen: Any = None,
    shared_batches: bool = False,
    active: jax.Array | None = None,
    chunk_size: int | None = None,
    mesh: Mesh | None = None,
    measure_fn: Callable[..., CellSums] | None = None,
    measure_data: Examples | None = None,
    evaluate_fn: Callable[[TrainState, Any], Any] | None = None,
    evaluate_data: Any = None,
    **options: Any,
) -> tuple[FitState, dict[str, Any]]:
    """`fit` for P runs at once: seeds, criteria, hyper-parameters, masks as an array axis.

    Args:
      step: from `make_step`.
      states: a `FitState` whose every leaf has a leading axis P (vmap `init_train` and `init_fit`).
      data: shared by all runs.
      sampler: shared; what differs between runs is in their states.
      masks: of every run, a tree of bool arrays with leading axis P; see `make_step`.
      frozen: parameters that all runs share, one copy; see `make_step`.
      shared_batches: draw and augment each batch once for all runs, from the sampler's state and
        key of the first; each run still has its own parameters and hyper-parameters.
      active: bool `[P]`; what runs that are False return is undefined, and chunks of nothing else
        cost nothing.
      chunk_size: runs that each device trains at the same time; None is all. Fewer need less
        memory; 1 is a plain loop, right for convolutions. See `sharding.plan_chunk_size`.
      mesh: from `sharding.candidate_mesh`, spreads the runs over devices.
      measure_fn: as in `fit`, but with the examples to measure as last argument.
      measure_data: those examples; default `data`.
      evaluate_fn: as in `fit`, for one run, but with `evaluate_data` as second argument.
      evaluate_data: any pytree, such as the validation split and the frozen parameters.
      **options: of `fit`.

    Returns:
      `(states, history)` with a leading axis P. A run's result does not depend on the others.

    Raises:
      ValueError: `shared_batches` together with a fairness cadence, which chooses each run's own
        batches; or as `fit`.
    """
    if shared_batches and (measure_fn is not None or options.get("update_every") is not None):
        raise ValueError("shared_batches does not go with measure_fn or update_every")

    def train(states, masks, active, data, frozen, measure_data, evaluate_data):
        measure = _with_data(measure_fn, measure_data)
        evaluate = _with_data(evaluate_fn, evaluate_data)

        def map_runs(fn, states):
            return map_chunks(fn, (states, masks), chunk_size, active)

        def one_run(run):
            state, mask = run
            one_step = functools.partial(step, mask=mask, frozen=frozen)
            return fit(one_step, state, data, sampler, measure_fn=measure, evaluate_fn=evaluate,
                       **options)  # fmt: skip

        def step_all(states, batch, key):
            return map_runs(
                lambda run: step(run[0], batch, key, mask=run[1], frozen=frozen), states
            )

        if not shared_batches:
            return map_runs(one_run, states)
        num_runs = len(states.epoch)
        first = jax.tree.map(lambda leaf: leaf[0], states._replace(train=None))
        evaluate_all = evaluate and (lambda train: map_runs(lambda run: evaluate(run[0]), train))
        state, history = fit(step_all, first._replace(train=states.train), data, sampler,
                             evaluate_fn=evaluate_all, **options)  # fmt: skip
        repeated = {
            name: _repeat(history.pop(name), num_runs) for name in ("weights", "cell_losses")
        }
        history = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), history) | repeated
        state = _repeat(state._replace(train=None), num_runs)._replace(train=state.train)
        return state, history

    if shared_batches:  # also where devices hold the others
        first = jax.tree.map(lambda leaf: leaf[0], states._replace(train=None))
        states = _repeat(first, len(states.epoch))._replace(train=states.train)
    if mesh is not None and mesh.size > 1:
        train = shard_candidates(train, mesh, num_mapped=3)
    measure_data = data if measure_data is None else measure_data
    return train(states, masks, active, data, frozen, measure_data, evaluate_data)


def _with_data(fn: Callable[..., Any] | None, data: Any) -> Any:
    """`fn` with `data` as its last argument; None for None."""
    return None if fn is None else lambda *state: fn(*state, data)


def _repeat(tree: Any, count: int) -> Any:
    """Every leaf `count` times along a new leading axis."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), tree)


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
        nothing = lambda _: jax.tree.map(lambda x: jax.lax.full_like(x, 0), shapes)  # noqa: E731
        return jax.lax.cond(active.any(), alone if size == 1 else jax.vmap(fn), nothing, xs)

    results = jax.lax.map(one_chunk, chunks)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), results)
