"""The loop: epochs of steps as one scan, for one run.

Nothing here is jitted; wrap `fit` (or the function of yours that calls it) in `jax.jit` with the
state donated and the data as an argument. All state is a pytree, so a run is also a scan carry, a
vmap axis and a checkpoint.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fairjax.data import Examples
from fairjax.fusions import compiled_apart
from fairjax.models import Model
from fairjax.sampling import BatchSampler, CellSums
from fairjax.train.predict import predict
from fairjax.train.step import Batch, Step, TrainState

MeasureFn = Callable[[TrainState, Any, Any], CellSums]
"""`measure_fn(train, sampler_state, measure_data) -> CellSums`."""
Augment = Callable[[Any, jax.Array], jax.Array]
"""`augment(key, inputs [B, ...]) -> inputs`."""


class FitState(NamedTuple):
    """A whole run: resume it by passing it to `fit` again."""

    train: TrainState
    sampler: Any
    running: Any
    """Cell sums of the batches since the last update; None unless the sampler adapts."""
    key: jax.Array
    """Never consumed: epoch e uses `fold_in(key, e)`, so a resumed run draws what it would have."""
    epoch: jax.Array
    """int32 scalar, epochs finished."""


class Draws(NamedTuple):
    """What T steps draw."""

    rows: jax.Array
    """int32 `[T, B]`, rows of the training data."""
    weights: jax.Array
    """float32 `[T, B]`, 0 = padding."""
    keys: jax.Array
    """PRNG keys `[T]`."""


def init_fit(train: TrainState, sampler: BatchSampler, key: Any, **choices: Any) -> FitState:
    """The `FitState` before the first epoch; `choices` go to `sampler.init`."""
    state = sampler.init(**choices)
    running = None
    if sampler.adapts:
        shape = state.rows.counts.shape  # three arrays: one could not be donated twice
        running = CellSums(*(jnp.zeros(shape, jnp.float32) for _ in range(3)))
    return FitState(train, state, running, key, jnp.zeros((), jnp.int32))


def fit(
    step: Step,
    state: FitState,
    data: Examples,
    sampler: BatchSampler,
    *,
    num_epochs: int,
    mask: Any = None,
    frozen: Any = None,
    augment: Augment | None = None,
    measure_fn: MeasureFn | None = None,
    measure_data: Any = None,
    update_every: int | None = None,
    evaluate_fn: Callable[[TrainState, Any], Any] | None = None,
    evaluate_data: Any = None,
    one_kernel: bool = False,
) -> tuple[FitState, dict[str, Any]]:
    """Train for `num_epochs`: a scan over epochs of a scan over steps.

    Args:
      step: from `make_step`.
      state: from `init_fit`, or what an earlier `fit` returned.
      data: training examples `[N, ...]`, the rows that `sampler` numbers, inputs as stored.
      sampler: such as `sampling.shuffled` (plain training) or `fairbatch`.
      num_epochs: epochs of `sampler.batches_per_epoch` steps.
      mask: what may change, a tree of bool arrays; see `Step`.
      frozen: parameters that do not train; see `make_step`.
      augment: applied to every batch as it is stored, before the model's `preprocess`.
      measure_fn: cell sums of the current model, taken once before every epoch (published
        cadence), such as `measure_cells` of a model and sampler.
      measure_data: its last argument; `data` if None.
      update_every: instead, update every that many steps from the losses of those steps' own
        batches, for networks whose full pass is dear. Must divide the batches of an epoch;
        dealing without replacement starts anew at every update. Where neither is given, the
        sampler's own number.
      evaluate_fn: recorded after every epoch, `evaluate_fn(train, evaluate_data)`.
      evaluate_data: any pytree.
      one_kernel: on CPU, compile the steps between two updates into one kernel, which runs on one
        core: logistic regression of two classes mostly trains in half to three quarters of the
        time, for its operations cost less than starting them; with augmentation or an update after
        every step it gains nothing. Not for what has products of matrices, convolutions, sorting
        or scattering: XLA refuses to compile that ("UNIMPLEMENTED"). Nothing changes elsewhere, and
        populations gain nothing.

    Returns:
      `(state, history)`; history has `loss [E]` (mean over the epoch's steps), `evaluation` (of
      `evaluate_fn`, stacked; absent without it) and, where the sampler adapts, `shares [E, K, G]`
      (the sampling shares used) and `cell_losses [E, K, G]` (what moved them).

    Raises:
      ValueError: a sampler that adapts without `measure_fn` or any `update_every`, one that does
        not with either, both given, `update_every` does not divide the epoch, or a sampler of more
        rows than `data` has.
    """
    num_steps = check_cadence(sampler, measure_fn is not None, update_every)
    check_rows(state, len(data.labels))
    measure_data = data if measure_data is None else measure_data

    def run(state: FitState, data: Examples, draws: Draws):
        options = {"mask": mask, "frozen": frozen, "augment": augment}
        running = sampler.adapts and measure_fn is None
        return run_steps(step, state, data, sampler, draws, running=running, **options)

    take_steps = _as_one_kernel(run) if one_kernel else run

    def one_round(state: FitState, keys: jax.Array):
        """One update of the sampler and the steps that use it."""
        sums = running_sums(state)
        if measure_fn is not None:
            sums = measure_fn(state.train, state.sampler, measure_data)
        state, record = update_sampler(sampler, state, sums)
        draws = draw_steps(sampler, state, keys, num_steps)
        state, losses = take_steps(state, data, draws)
        return state, record | {"loss": losses.mean(0)}

    def one_epoch(state: FitState, keys):
        state, records = jax.lax.scan(one_round, state, keys)
        state = state._replace(epoch=state.epoch + 1)
        record = {"loss": records.pop("loss").mean(0)}
        record |= jax.tree.map(lambda values: values[-1], records)
        if evaluate_fn is not None:
            record["evaluation"] = evaluate_fn(state.train, evaluate_data)
        return state, record

    # all keys at once: few random words at a time cost XLA:CPU more than the words themselves
    epochs = state.epoch + jnp.arange(num_epochs, dtype=jnp.int32)
    num_rounds = sampler.batches_per_epoch // num_steps
    keys = jax.vmap(lambda epoch: round_keys(state.key, epoch, num_rounds))(epochs)
    return jax.lax.scan(one_epoch, state, keys)


def _as_one_kernel(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn(*arrays)`, by XLA:CPU as one kernel.

    XLA:CPU hands the kernels of a loop's body, twenty for a step, from thread to thread, which
    takes longer than a small step itself. Loops over less than a kilobyte it compiles into one
    kernel: the attribute is its own mark for these.
    """
    return compiled_apart(fn, xla_cpu_small_call="true")


def check_cadence(sampler: BatchSampler, measured: bool, update_every: int | None) -> int:
    """Steps between two updates of the sampler; see `fit` for what is refused."""
    if measured and update_every is not None:
        raise ValueError("give measure_fn or update_every, not both")
    if sampler.adapts and not measured and update_every is None:
        update_every = _own_cadence(sampler)
    if sampler.adapts and not measured and update_every is None:
        raise ValueError(
            "the sampler adapts to the model's outputs: give measure_fn (a full pass before every "
            "epoch, see measure_cells) or update_every, or take sampling.shuffled for plain batches"
        )
    if not sampler.adapts and (measured or update_every is not None):
        raise ValueError("measure_fn and update_every are for samplers that adapt, as fairbatch")
    num_steps = sampler.batches_per_epoch if update_every is None else update_every
    if num_steps < 1 or sampler.batches_per_epoch % num_steps:
        raise ValueError(
            f"update_every must divide the {sampler.batches_per_epoch} batches of an epoch, "
            f"got {update_every}"
        )
    return num_steps


def _own_cadence(sampler: BatchSampler) -> int | None:
    """Of the sampler itself: the most batches up to its own number that divide an epoch."""
    num_batches, most = sampler.batches_per_epoch, sampler.update_every or 0
    return max((n for n in range(1, most + 1) if num_batches % n == 0), default=None)


def check_rows(state: FitState, num_rows: int) -> None:
    """Refuse a sampler that was made for more rows than there are, which would read others."""
    rows = getattr(state.sampler, "rows", None)
    if rows is not None and rows.numbers.shape[-1] > num_rows:
        raise ValueError(
            f"the sampler draws from {rows.numbers.shape[-1]} rows and data has {num_rows}: "
            "make it of the split that is trained on"
        )


def running_sums(state: FitState) -> CellSums | None:
    """Those of the batches since the last update, as if cells had been drawn as often as they are.

    Otherwise the rate of a group, over all its labels, would move with the shares alone.
    """
    if state.running is None:
        return None
    return state.running.at_counts(state.sampler.rows.counts)


def update_sampler(
    sampler: BatchSampler, state: FitState, sums: CellSums | None
) -> tuple[FitState, dict[str, jax.Array]]:
    """Let a sampler that adapts move its shares and count anew; others stay as they are."""
    if sums is None or not sampler.adapts:
        return state, {}
    shares, cell_losses = sampler.adapt(sums, state.sampler)
    record = {"shares": shares.shares, "cell_losses": cell_losses}
    running = jax.tree.map(jnp.zeros_like, state.running)
    return state._replace(sampler=shares, running=running), record


def round_keys(key: Any, epoch: jax.Array, num_rounds: int) -> jax.Array:
    """Of an epoch's rounds between two updates, one for rows and one for steps: `[R, 2]`."""
    keys = jax.random.split(jax.random.fold_in(key, epoch), num_rounds)
    return jax.vmap(jax.random.split)(keys)


def draw_steps(sampler: BatchSampler, state: FitState, keys: Any, num_steps: int) -> Draws:
    """The rows, weights and keys of the next steps, by a round's keys."""
    key_draw, key_steps = keys
    rows, weights = sampler.sample_epoch(key_draw, state.sampler, num_batches=num_steps)
    return Draws(rows, weights, jax.random.split(key_steps, num_steps))


def run_steps(
    step: Step,
    state: FitState,
    data: Examples,
    sampler: BatchSampler,
    draws: Draws,
    *,
    mask: Any = None,
    frozen: Any = None,
    augment: Augment | None = None,
    running: bool = False,
) -> tuple[FitState, jax.Array]:
    """The steps of `draws` on `data`, which hold the rows that they name; losses `[T]`.

    With `running` the cell sums of these steps' own batches are added to the state's.
    """

    def train_batch(carry, draw: Draws):
        train, sums = carry
        inputs, labels, group = jax.tree.map(lambda array: jnp.asarray(array)[draw.rows], data)
        key_augment, key_step = jax.random.split(draw.keys)
        if augment is not None:
            inputs = augment(key_augment, inputs)
        batch = Batch(inputs, labels, group, draw.weights)
        train, metrics = step(train, batch, key_step, mask=mask, frozen=frozen)
        if running:
            sums += sampler.measure(
                metrics["logits"], state.sampler, labels=labels, group=group, weights=draw.weights
            )
        return (train, sums), metrics["loss"]

    carry = state.train, state.running
    (train, sums), losses = jax.lax.scan(train_batch, carry, draws)
    return state._replace(train=train, running=sums), losses


def measure_cells(
    model: Model,
    sampler: BatchSampler,
    state: TrainState,
    sampler_state: Any,
    data: Examples,
    *,
    batch_size: int | None = None,
) -> CellSums:
    """A full pass over `data` with the current model: the published cadence of FairBatch.

    `functools.partial(measure_cells, model, sampler)` is a `measure_fn` for `fit`. `data` may be
    the training split (published) or the validation split (the two-level reading of the paper).
    Of runs that share `data` and have rows of their own, each measures its own; see
    `FairBatchState.measured`, whose length must be that of `data`. See `predict` for `batch_size`.
    """
    measured = sampler_state.measured
    if measured is not None and measured.shape != data.labels.shape:
        raise ValueError(
            f"runs measure some of {measured.shape[0]} examples, but data has {len(data.labels)}: "
            "give sampler.init(measured=...) of these"
        )
    logits = predict(model, state.params, state.batch_stats, data.inputs, batch_size=batch_size)
    weights = None if measured is None else measured.astype(jnp.float32)
    return sampler.measure(
        logits, sampler_state, labels=data.labels, group=data.group, weights=weights
    )
