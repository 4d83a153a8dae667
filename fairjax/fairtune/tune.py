"""Running a search: a population of candidates, of which the hopeless stop early."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fairjax.fairtune.rungs import Rungs, goes_on
from fairjax.fairtune.search import Candidates, Search
from fairjax.fairtune.trials import (
    COMPLETE,
    FAILED,
    REPEATED,
    RUNNING,
    STOPPED,
    UNUSED,
    Trials,
    find_same,
    no_trials,
)
from fairjax.sharding import dealing_order


class TuneState(NamedTuple):
    """A search between two rounds: save it, and give it to `tune` to go on."""

    search: Any
    trials: Trials
    rungs: Rungs
    slots: np.ndarray
    """int32 `[P]`, which trial trains in each slot of the population; -1 = none."""
    population: Any
    """Training states with leading axis P * W, slot by slot. The next round takes them over: what
    is given to `on_round` is there until it returns."""


class Measured(NamedTuple):
    """What a round says of the runs in the slots, one entry per run."""

    values: Any
    """float32 `[P * W, M]`, the objectives; nan where undefined."""
    drawn: Any
    """float32 `[P * W, 2, B]`, see `Trials.drawn`."""


StartFn = Callable[..., Any]
"""`start_fn(mask [U], learning_rate, rung, start_data) -> states`, fresh training states of the W
runs that a trial has side by side, leaves `[W, ...]`; traced. In a search with options it is given
`choices [C]` last."""
TrainFn = Callable[[Any, np.ndarray, np.ndarray, np.ndarray, np.ndarray], tuple[Any, Measured]]
"""`train_fn(states [P * W], masks [P, U], rungs [P], active [P], due [P])` gives
`(states, Measured)`; see `tune`."""


def init_tune(
    search: Search,
    start_fn: StartFn,
    rungs: Rungs,
    *,
    num_trials: int,
    num_slots: int,
    num_replicates: int = 1,
    num_draws: int = 0,
    start_data: Any = None,
    seed: int = 0,
) -> TuneState:
    """The `TuneState` before the first round; also the shape of a saved one.

    Args:
      search: proposes candidates; opens its storage if it has one.
      start_fn: see `tune`.
      rungs: from `successive_halving` or `racing`.
      num_trials: T.
      num_slots: P.
      num_replicates: R, trainings that a trial is judged by; a race has one W-th of them at a time.
      num_draws: B, of the bootstrap in `Measured.drawn`; a race needs some.
      start_data: see `tune`.
      seed: of the search.

    Raises:
      ValueError: early stopping with several objectives, or fewer than one trial or slot.
    """
    if len(search.maximize) > 1 and len(rungs.epochs) > 1:
        raise ValueError("early stopping needs a single objective; set first = num_epochs")
    if num_trials < 1 or num_slots < 1:
        raise ValueError(f"need at least one trial and slot, got {num_trials} and {num_slots}")
    masks = jnp.zeros((num_slots, search.num_units), bool)
    num_options = len(search.num_values)
    choices = [jnp.zeros((num_slots, num_options), jnp.int32)] if num_options else []

    @jax.jit
    def start(masks, rates, rung, start_data, *choices):
        each = jax.vmap(start_fn, in_axes=(0, 0, None, None, *(0 for _ in choices)))
        runs = each(masks, rates, rung, start_data, *choices)
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), runs)

    population = start(masks, jnp.ones(num_slots), 0, start_data, *choices)
    num_runs = len(jax.tree.leaves(population)[0]) // num_slots
    num_rungs = len(rungs.epochs)
    if num_replicates != num_runs * (num_rungs if rungs.races else 1):
        raise ValueError(
            f"{num_runs} runs of a trial at a time do not make {num_replicates} replicates"
        )
    if rungs.races and not num_draws:
        raise ValueError("a race needs num_draws, got 0")
    sizes = {"num_replicates": num_replicates, "num_draws": num_draws, "num_runs": num_runs}
    sizes["num_options"] = num_options
    trials = no_trials(num_trials, search.num_units, search.maximize, num_rungs, **sizes)
    return TuneState(search.init(seed), trials, rungs, np.full(num_slots, -1, np.int32), population)


def more_trials(state: TuneState, num_trials: int) -> TuneState:
    """A search that goes on to more trials in all, finished or not; the given state stays as it is.

    Raises:
      ValueError: fewer trials than it has.
    """
    have = len(state.trials.status)
    if num_trials < have:
        raise ValueError(f"num_trials must be at least the {have} that there are, got {num_trials}")
    fresh = no_trials(
        num_trials - have,
        len(state.trials.masks[0]),
        state.trials.maximize,
        len(state.trials.rung_values[0]),
        num_replicates=state.trials.drawn.shape[1],
        num_draws=state.trials.drawn.shape[3],
        num_runs=int(state.trials.num_runs),
        num_options=0 if state.trials.choices is None else state.trials.choices.shape[1],
    )
    joined = {
        name: old if name in ("maximize", "num_runs") else np.concatenate([old, new])
        for name, old, new in zip(Trials._fields, state.trials, fresh, strict=True)
        if old is not None and new is not None  # choices, in a search without options
    }
    return state._replace(trials=Trials(**joined))


def tune(
    search: Search,
    state: TuneState,
    start_fn: StartFn,
    train_fn: TrainFn,
    *,
    start_data: Any = None,
    on_round: Callable[[TuneState], None] | None = None,
) -> TuneState:
    """Train candidates, P at a time, until all T trials are done.

    Slots of candidates that end, stop or diverge are refilled in place with new ones, so the shape
    of the trained program never changes and no second population is held. A mask, choices and
    learning rate (within a tenth of a decade) that were asked for before are not trained again but
    share the earlier result. In a race every round trains on another fold, from the start.

    Args:
      search: proposes candidates.
      state: from `init_tune`, or what `on_round` was given, to go on from there. Its population is
        taken over.
      start_fn: `start_fn(mask [U], learning_rate, rung, start_data) -> states [W]`, the fresh
        training states of a trial's runs; traced once. `rung` is the fold of a race, else 0.
      train_fn: `train_fn(states, masks [P, U], rungs [P], active [P], due [P])` gives
        `(states, Measured)`: trains `rungs.epochs[0]` epochs and measures the objectives of slots
        that are due, which then are at a rung; what is measured of others is not read. Slots that
        are not active hold nothing of interest.
      start_data: any pytree, such as pre-trained parameters: an argument of the compiled program,
        not a constant in it.
      on_round: called before every round and at the end, to save and to report.

    Returns:
      The final `TuneState`; `best_trial` and `pareto_front` read its trials.
    """

    @functools.partial(jax.jit, donate_argnums=0)
    def refill(population, slot, mask, rate, rung, *choices, start_data):
        return _put(population, start_fn(mask, rate, rung, start_data, *choices), slot)

    while True:
        # copies: what on_round was given stays as it was
        state = state._replace(trials=jax.tree.map(np.array, state.trials))
        state = _tell(search, state)
        state = _fill(search, state, functools.partial(refill, start_data=start_data))
        active = state.slots >= 0
        if not active.any() and (state.trials.status == REPEATED).any():
            continue
        if on_round is not None:
            on_round(state)
        if not active.any():
            return state
        state = state._replace(trials=jax.tree.map(np.array, state.trials))
        rows = np.maximum(state.slots, 0)
        masks, rungs = state.trials.masks[rows], _rung_of(state, rows)
        # between rungs nothing depends on what a trial is worth
        due = active & np.isin(
            state.trials.epochs[rows] + state.rungs.epochs[0], state.rungs.epochs
        )
        population, measured = train_fn(state.population, masks, rungs, active, due)
        state = state._replace(population=population)
        _record(state, Measured(*map(np.asarray, measured)), due)


def _tell(search: Search, state: TuneState) -> TuneState:
    """Settle trials that repeat others, free slots, and tell the search what ended."""
    trials, slots = state.trials, np.array(state.slots)
    ended = lambda rows: np.isin(trials.status[rows], (COMPLETE, STOPPED, FAILED))
    repeated = np.flatnonzero(trials.status == REPEATED)
    repeated = repeated[ended(trials.same_as[repeated])]
    for field in (trials.status, trials.epochs, trials.values, trials.replicates, trials.drawn):
        field[repeated] = field[trials.same_as[repeated]]
    in_slots = np.unique(slots[slots >= 0])
    rows = np.sort(np.concatenate([in_slots[ended(in_slots)], repeated])).astype(int)
    if len(rows):
        stopped = np.where(trials.status[rows] == STOPPED, trials.epochs[rows], 0)
        values = np.where((trials.status[rows] == FAILED)[:, None], np.nan, trials.values[rows])
        told = Candidates(
            trials.numbers[rows],
            trials.masks[rows],
            trials.learning_rates[rows],
            *_choices(trials, rows),
        )
        state = state._replace(search=search.tell(state.search, told, values, stopped))
    slots[np.isin(slots, rows)] = -1
    return state._replace(slots=slots)


def _fill(search: Search, state: TuneState, refill: Callable[..., Any]) -> TuneState:
    """Put new candidates into free slots, and deal those that are left out to all devices."""
    trials = state.trials
    order = dealing_order(len(state.slots), len(jax.devices()))
    slots, population = _move_up(np.array(state.slots), state.population, order)
    if state.rungs.races:
        for slot in np.flatnonzero(slots >= 0):
            row = slots[slot]
            rung = _rung_of(state, row)
            place = np.int32(slot), trials.masks[row], trials.learning_rates[row]
            population = refill(population, *place, np.int32(rung), *_choices(trials, row))
    while (asked := int((trials.status != UNUSED).sum())) < len(trials.status):
        free = order[slots[order] < 0][: len(trials.status) - asked]
        if not len(free):
            break
        candidates, search_state = search.ask(state.search, len(free))
        state = state._replace(search=search_state)
        rows = asked + np.arange(len(free))
        for field, asked_for in zip(Candidates._fields, candidates, strict=True):
            if asked_for is not None:
                getattr(trials, field)[rows] = asked_for
        for row in rows.tolist():
            trials.same_as[row] = find_same(trials, row)
            trials.status[row] = RUNNING if trials.same_as[row] < 0 else REPEATED
        new = rows[trials.status[rows] == RUNNING]
        for slot, row in zip(free, new, strict=False):
            slots[slot] = row
            population = refill(
                population,
                np.int32(slot),
                trials.masks[row],
                trials.learning_rates[row],
                np.int32(0),
                *_choices(trials, row),
            )
    return state._replace(slots=slots, population=population)


def _choices(trials: Trials, rows: Any) -> tuple[np.ndarray, ...]:
    """Those of some trials, or nothing in a search without options."""
    return () if trials.choices is None else (trials.choices[rows],)


def _move_up(slots: np.ndarray, population: Any, order: np.ndarray) -> tuple[np.ndarray, Any]:
    """Let live candidates fill the first slots of `order`: every device its share, in whole chunks.

    One candidate at a time and in place, so that no second population is held.
    """
    live = order[slots[order] >= 0]
    wanted = order[: len(live)]
    empty = wanted[slots[wanted] < 0]
    late = np.setdiff1d(live, wanted)
    num_runs = len(jax.tree.leaves(population)[0]) // len(slots)
    for to, source in zip(empty, late, strict=True):
        population = _copy_slot(population, np.int32(source), np.int32(to), num_runs)
        slots[to], slots[source] = slots[source], -1
    return slots, population


@functools.partial(jax.jit, donate_argnums=0, static_argnums=3)
def _copy_slot(population: Any, source: jax.Array, to: jax.Array, num_runs: int) -> Any:
    take = lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, source * num_runs, num_runs)
    return _put(population, jax.tree.map(take, population), to)


def _put(population: Any, runs: Any, slot: jax.Array) -> Any:
    """The population `[P * W]` with the runs `[W]` in one slot."""

    def put(leaf, new):
        return jax.lax.dynamic_update_slice_in_dim(leaf, new, slot * len(new), 0)

    return jax.tree.map(put, population, runs)


def _rung_of(state: TuneState, rows: Any) -> np.ndarray:
    """Rungs that trials have behind them in a race, else 0: what they are trained on next."""
    passed = state.trials.epochs[rows] // state.rungs.epochs[0]
    return np.where(state.rungs.races, passed, 0).astype(np.int32)


def _record(state: TuneState, measured: Measured, due: np.ndarray) -> None:
    """Write what a round measured into the trials and decide who goes on."""
    trials, rungs, num_runs = state.trials, state.rungs, int(state.trials.num_runs)
    rows, first = state.slots[due], _rung_of(state, state.slots[due]) * num_runs
    shape = len(state.slots), num_runs
    by_slot = [values.reshape(*shape, *values.shape[1:]) for values in measured]
    values, drawn = (one[due] for one in by_slot)
    trials.values[rows] = values.mean(1)
    for row, start, own, draws in zip(rows, first, values, drawn, strict=True):
        trials.replicates[row, start : start + num_runs] = own[:, 0]
        trials.drawn[row, start : start + num_runs] = draws
        if rungs.races:
            trials.values[row, 0] = trials.replicates[row, : start + num_runs].mean()
    trials.epochs[state.slots[state.slots >= 0]] += rungs.epochs[0]
    trials.status[rows[np.isnan(trials.values[rows]).any(1)]] = FAILED
    for rung, age in enumerate(rungs.epochs):
        here = rows[(trials.epochs[rows] == age) & (trials.status[rows] == RUNNING)]
        trials.rung_values[here, rung] = trials.values[here, 0]
        if age == rungs.epochs[-1]:
            trials.status[here] = COMPLETE
            continue
        for row in here:
            if not goes_on(trials, rungs, int(row), rung):
                trials.status[row] = STOPPED
