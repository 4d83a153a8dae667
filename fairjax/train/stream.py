"""Training and evaluation where the examples do not fit on the device; results as if they did.

    states, history = fit_population_streamed(step, states, data, sampler, num_epochs=3)
    logits = stream_map(fn, data, "test", states.train, axis=1)     # fn(inputs, trains) [P, B, K]

Labels and groups always fit, so the rows of a whole epoch are drawn first. Its steps are then cut
into windows, and the examples of a window are read from the `Dataset`, such as a memory map, while
the device trains on those of the window before.
"""

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool

from fairjax.data import Dataset, Examples
from fairjax.data.streaming import device_budget
from fairjax.sampling import BatchSampler, CellSums
from fairjax.sharding import candidate_mesh, everywhere, spread
from fairjax.train.loop import (
    Augment,
    Draws,
    FitState,
    MeasureFn,
    check_cadence,
    check_rows,
    draw_steps,
    round_keys,
    run_steps,
    running_sums,
    update_sampler,
)
from fairjax.train.population import map_chunks, spread_runs, train_chunks
from fairjax.train.step import Step


class _How(NamedTuple):
    """What the compiled programs depend on beside shapes."""

    step: Step
    sampler: BatchSampler
    num_steps: int
    augment: Augment | None
    measure_fn: MeasureFn | None
    chunk_size: int | None
    mesh: Mesh


def fit_population_streamed(
    step: Step,
    states: FitState,
    data: Dataset,
    sampler: BatchSampler,
    *,
    num_epochs: int,
    split: str = "train",
    mask: Any = None,
    frozen: Any = None,
    active: Bool[Array | np.ndarray, " P"] | None = None,
    chunk_size: int | None = None,
    mesh: Mesh | None = None,
    augment: Augment | None = None,
    measure_fn: MeasureFn | None = None,
    measure_split: str | None = None,
    update_every: int | None = None,
    window_bytes: int | None = None,
    on_epoch: Callable[[FitState, dict[str, Any]], None] | None = None,
    donate: bool = False,
) -> tuple[FitState, dict[str, Any]]:
    """`fit_population` on examples that are read while it trains; runs on the host.

    The steps, the draws and the states are those of `fit_population`, to rounding. A device holds
    at most two windows of examples, as they are stored. Programs are compiled once for the same
    `step`, `sampler`, `augment` and `measure_fn`.

    Args:
      step: from `make_step`.
      states: from `init_population`, or what an earlier call returned; see `donate`.
      data: only the rows that are drawn are read.
      sampler: of the split, such as `Recipe.make_sampler` makes.
      num_epochs: at least 1.
      split: what to train on.
      mask: see `fit_population`.
      frozen: see `fit_population`.
      active: see `fit_population`; what other runs would draw is not read.
      chunk_size: see `fit_population`.
      mesh: see `fit_population`.
      augment: see `fit`.
      measure_fn: see `fit`; it is given the split in pieces, whose sums are added.
      measure_split: what is measured, `split` by default.
      update_every: see `fit`.
      window_bytes: of the examples that are read at a time; a quarter of `device_budget()` by
        default. Runs with equal keys share the rows that they draw.
      on_epoch: `on_epoch(states, record)` after every epoch, with this epoch's history `[P, ...]`.
        Training goes on in the memory of `states.train`: copy what is kept.
      donate: train in the memory of `states`, which cannot be used any more; else in a copy.

    Returns:
      `(states, history)` as of `fit_population`.

    Raises:
      ValueError: `window_bytes` that do not hold one batch of all runs, `num_epochs` below 1, or
        as `fit_population`.
    """
    num_steps = check_cadence(sampler, measure_fn is not None, update_every)
    for name, value in (("num_epochs", num_epochs), ("chunk_size", chunk_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    numbers, measured = data.split_rows(split), data.split_rows(measure_split or split)
    check_rows(states, len(numbers))
    num_runs = len(states.epoch)
    mesh = candidate_mesh(jax.devices()[:num_runs]) if mesh is None else mesh
    window_bytes = device_budget() // 4 if window_bytes is None else window_bytes
    how = _How(step, sampler, num_steps, augment, measure_fn, chunk_size, mesh)
    states, mask, active = _settle(states, mask, active, mesh, donate)
    frozen = everywhere(frozen, mesh)
    mine = functools.partial(_first, num_runs)
    records = []
    for _ in range(num_epochs):
        losses, record = [], {}
        for number in range(sampler.batches_per_epoch // num_steps):
            sums = running_sums(states)
            if measure_fn is not None:
                sums = _measure(how, states, active, data, measured, window_bytes)
            states, record, draws = _begin_round(states, sums, number, how)
            windows = _read_windows(how, draws, active, data, numbers, window_bytes)
            states, loss = _train_round(how, states, mask, active, frozen, draws, windows)
            losses.append(loss)
        records.append(mine(record | {"loss": jnp.stack(losses).mean(0)}))
        if on_epoch is not None:
            on_epoch(mine(states), records[-1])
    return mine(states), jax.tree.map(lambda *epochs: jnp.stack(epochs, 1), *records)


def stream_map(
    fn: Callable[..., Any],
    data: Dataset,
    split: str,
    *args: Any,
    batch_bytes: int | None = None,
    axis: int = 0,
) -> Any:
    """`fn(inputs of the whole split, *args)`, piece by piece.

    Args:
      fn: `fn(inputs [B, ...], *args)` gives arrays with the examples along `axis`, each on its own;
        compiled, once for the same function.
      data: inputs reach `fn` as they are stored; see `predict`.
      split: "train", "val" or "test".
      *args: any pytrees, such as parameters.
      batch_bytes: of the inputs that are read at a time; a quarter of `device_budget()` by default.
      axis: of the examples in the results, such as 1 for logits `[P, B, K]`.

    Returns:
      The results of `fn` as NumPy arrays, rows in the order of the split.

    Raises:
      ValueError: a split without rows.
    """
    jitted: Any = jax.jit(fn)
    batch_bytes = device_budget() // 4 if batch_bytes is None else batch_bytes
    numbers = data.split_rows(split)
    read = lambda piece: jax.device_put(data.rows(numbers[slice(*piece)]).inputs)
    pieces = _pieces(data, numbers, batch_bytes)
    results = [jax.device_get(jitted(inputs, *args)) for inputs in _ahead(read, pieces)]
    return jax.tree.map(lambda *parts: np.concatenate(parts, axis), *results)


def _settle(
    states: FitState, mask: Any, active: Any, mesh: Mesh, donate: bool
) -> tuple[FitState, Any, Any]:
    """On the devices that train them, filled up with idle runs to a multiple of these."""
    num_runs = len(states.epoch)
    missing = -num_runs % mesh.size
    rows = np.minimum(np.arange(num_runs + missing), num_runs - 1)
    if missing or active is not None:
        active = np.ones(num_runs, bool) if active is None else np.asarray(active)
        active = np.pad(active, (0, missing))
    if missing or not donate:
        states = _take(states, rows)
    if missing:
        mask = _take(mask, rows)
    place = lambda tree: None if tree is None else spread(tree, mesh)
    return spread(states, mesh), place(mask), place(active)


@jax.jit
def _take(tree: Any, rows: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[rows], tree)


def _first(num_runs: int, tree: Any) -> Any:
    """Without the runs that fill up the devices."""
    if len(jax.tree.leaves(tree)[0]) == num_runs:
        return tree
    return jax.tree.map(lambda leaf: leaf[:num_runs], tree)


@functools.partial(jax.jit, static_argnames="how")
def _begin(runs: FitState, sums: CellSums | None, number: jax.Array, how: _How):
    num_rounds = how.sampler.batches_per_epoch // how.num_steps

    def one_run(run: FitState, sums: CellSums | None):
        keys = round_keys(run.key, run.epoch, num_rounds)
        run, record = update_sampler(how.sampler, run, sums)
        draws = draw_steps(how.sampler, run, keys[number], how.num_steps)
        ends = (number == num_rounds - 1).astype(jnp.int32)
        return run._replace(epoch=run.epoch + ends), record, draws

    return jax.vmap(one_run)(runs, sums)


def _begin_round(
    states: FitState, sums: CellSums | None, number: int, how: _How
) -> tuple[FitState, dict[str, jax.Array], Draws]:
    """One round of the epoch as in `fit`: the shares move, and all runs draw `[P, T, ...]`."""
    runs, record, draws = _begin(states._replace(train=None), sums, jnp.int32(number), how)
    return runs._replace(train=states.train), record, draws


def _train_round(
    how: _How,
    states: FitState,
    mask: Any,
    active: Any,
    frozen: Any,
    draws: Draws,
    windows: Iterator[tuple[int, jax.Array, Examples]],
) -> tuple[FitState, jax.Array]:
    """The steps of a round, window by window; the mean losses `[P]`."""
    losses = []
    for start, rows, examples in windows:
        shared = {"data": examples, "frozen": frozen, "start": jnp.int32(start)}
        train, running, loss = _run_window(
            states.train, states._replace(train=None), mask, active, draws, rows, shared, how
        )
        states = states._replace(train=train, running=running)
        losses.append(loss)
        jax.block_until_ready(loss)  # before another window is read
        del examples, shared
    return states, jnp.concatenate(losses, axis=1).mean(1)


@functools.partial(jax.jit, static_argnames="how", donate_argnums=0)
def _run_window(train, rest: FitState, mask, active, draws: Draws, rows, shared, how: _How):
    def one_run(run, shared):
        state, (mask, draws, rows) = run
        part = lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, shared["start"], len(rows))
        return run_steps(
            how.step,
            state,
            shared["data"],
            how.sampler,
            Draws(rows, part(draws.weights), part(draws.keys)),
            mask=mask,
            frozen=shared["frozen"],
            augment=how.augment,
            running=how.sampler.adapts and how.measure_fn is None,
        )

    def all_runs(states, extra, active, shared):
        run = functools.partial(one_run, shared=shared)
        return train_chunks(run, states, extra, how.chunk_size, active)

    states, extra = rest._replace(train=train), (mask, draws, rows)
    states, losses = spread_runs(all_runs, how.mesh)(states, extra, active, shared)
    return states.train, states.running, losses


def _measure(
    how: _How,
    states: FitState,
    active: Any,
    data: Dataset,
    numbers: np.ndarray,
    batch_bytes: int,
) -> CellSums:
    """Cell sums of all runs over a whole split."""
    sums = jax.tree.map(jnp.zeros_like, states.running)
    read = lambda piece: everywhere(data.rows(numbers[slice(*piece)]), how.mesh)
    for examples in _ahead(read, _pieces(data, numbers, batch_bytes)):
        sums = jax.block_until_ready(_add_cells(states, sums, active, examples, how))
    return sums


@functools.partial(jax.jit, static_argnames="how")
def _add_cells(states: FitState, sums: CellSums, active, examples: Examples, how: _How):
    def all_runs(states, sums, active, examples):
        def one_run(run):
            state, sums = run
            return sums + measure_fn(state.train, state.sampler, examples)

        return map_chunks(one_run, (states, sums), how.chunk_size, active)

    measure_fn: Any = how.measure_fn
    return spread_runs(all_runs, how.mesh)(states, sums, active, examples)


def _read_windows(
    how: _How,
    draws: Draws,
    active: Any,
    data: Dataset,
    numbers: np.ndarray,
    window_bytes: int,
) -> Iterator[tuple[int, jax.Array, Examples]]:
    """First step, draws int32 `[P, W, B]` and examples of every window; the draws number these."""
    rows = numbers[np.asarray(draws.rows)]
    wanted = rows if active is None else rows[np.asarray(active)]
    windows, capacity = _plan(data, wanted, len(numbers), window_bytes)

    def read(window):
        steps = slice(*window)
        names = np.unique(wanted[:, steps])
        places = np.minimum(np.searchsorted(names, rows[:, steps]), max(len(names) - 1, 0))
        places = spread(places.astype(np.int32), how.mesh)
        return window[0], places, everywhere(_rows(data, names, capacity), how.mesh)

    return _ahead(read, windows)


def _plan(
    data: Dataset, rows: np.ndarray, num_rows: int, window_bytes: int
) -> tuple[list[tuple[int, int]], int]:
    """Windows of the steps that draw `rows [P, T, B]`, and how many examples each may need."""
    num_steps, batch_size = rows.shape[1:]
    orders = max(1, len({run.tobytes() for run in rows}))
    # to a power of two, so that runs that part ways one by one are not compiled for every time
    orders = max(1, min(1 << (orders - 1).bit_length(), len(rows)))
    held = window_bytes // _row_bytes(data)
    if held < min(orders * batch_size, num_rows):
        raise ValueError(
            f"window_bytes must hold one batch of all runs, {orders} x {batch_size} examples of "
            f"{_row_bytes(data)} bytes, got {window_bytes}; runs with equal keys share theirs"
        )
    most = num_steps if held >= num_rows else held // (orders * batch_size)
    windows = _cut(num_steps, most)
    return windows, min(orders * batch_size * (windows[0][1] - windows[0][0]), num_rows)


def _pieces(data: Dataset, numbers: np.ndarray, batch_bytes: int) -> list[tuple[int, int]]:
    """The rows of a split cut into pieces of `batch_bytes`."""
    if not len(numbers):
        raise ValueError(f"{data.name}: the split has no rows")
    return _cut(len(numbers), max(1, batch_bytes // _row_bytes(data)))


def _cut(total: int, most: int) -> list[tuple[int, int]]:
    """`range(total)` in pieces of at most `most`, of one size where twice as many allow it."""
    least = -(-total // most)
    counts = range(least, min(2 * least, total) + 1)
    count = next((count for count in counts if total % count == 0), least)
    size = -(-total // count)
    return [(start, min(start + size, total)) for start in range(0, total, size)]


def _row_bytes(data: Dataset) -> int:
    """Of one example on the device, with its int32 label and group."""
    return int(np.prod(data.inputs.shape[1:])) * data.inputs.dtype.itemsize + 8


def _rows(data: Dataset, numbers: np.ndarray, size: int) -> Examples:
    """The examples `numbers` of a data set, filled up to `size` with zeros."""

    def fill(values: np.ndarray) -> np.ndarray:
        if len(values) == size:
            return values
        filled = np.zeros((size, *values.shape[1:]), values.dtype)
        filled[: len(values)] = values
        return filled

    return jax.tree.map(fill, data.rows(numbers))


def _ahead(read: Callable[[Any], Any], pieces: list[Any]) -> Iterator[Any]:
    """What `read` makes of each piece, in a thread while the piece before is used."""
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(read, pieces[0])
        for following in pieces[1:]:
            ready, pending = pending.result(), pool.submit(read, following)
            yield ready
            del ready
        yield pending.result()
