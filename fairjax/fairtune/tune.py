"""Running a search: a population of candidates, of which the hopeless stop early."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fairjax.fairtune.search import Candidates, Search

UNUSED, RUNNING, REPEATED, COMPLETE, STOPPED, FAILED = range(6)
STATUS_NAMES = ("unused", "running", "repeated", "complete", "stopped", "failed")


class Rungs(NamedTuple):
    """When candidates are compared, made by `successive_halving`."""

    epochs: tuple[int, ...]
    """Ages at which only the best go on; the last is the whole budget."""
    factor: int
    """One in so many goes on."""
    num_brackets: int
    """Candidates take turns; those of bracket s are first compared at rung s."""


class Trials(NamedTuple):
    """Everything known about T trials, as arrays; rows of trials not yet begun are `UNUSED`."""

    numbers: np.ndarray
    """int32 `[T]`, what the search calls them."""
    masks: np.ndarray
    """bool `[T, U]`."""
    learning_rates: np.ndarray
    """float32 `[T]`."""
    status: np.ndarray
    """int32 `[T]`, index into `STATUS_NAMES`."""
    twins: np.ndarray
    """int32 `[T]`: the earlier trial whose result this one shares, else -1."""
    epochs: np.ndarray
    """int32 `[T]`, trained so far."""
    values: np.ndarray
    """float32 `[T, M]`, newest values of the objectives; nan before the first."""
    rung_values: np.ndarray
    """float32 `[T, R]`, first objective at every rung; nan where it was not reached."""


class TuneState(NamedTuple):
    """A search between two rounds: save it, and give it to `tune` to go on."""

    search: Any
    trials: Trials
    slots: np.ndarray
    """int32 `[P]`, which trial trains in each slot of the population; -1 = none."""
    population: Any
    """Training states with leading axis P."""


def successive_halving(
    num_epochs: int, *, first: int = 1, factor: int = 3, num_brackets: int = 1
) -> Rungs:
    """Compare candidates after `first`, `factor * first`, ... epochs; the best `1 / factor` go on.

    A candidate is compared with all that reached the rung before it, so nobody waits. Several
    brackets (Hyperband) also try candidates that are spared the earliest comparisons.
    `first = num_epochs` stops nobody.

    Args:
      num_epochs: of a candidate that is never stopped.
      first: epochs before the first comparison; divides the others.
      factor: at least 2.
      num_brackets: 1 is plain successive halving; at most the number of rungs.

    Raises:
      ValueError: numbers out of range, or `num_epochs` is not a multiple of `first`.

    Source: Li et al., MLSys 2020 (asynchronous successive halving) and JMLR 2018 (Hyperband).
    """
    if factor < 2 or not 1 <= first <= num_epochs:
        raise ValueError(
            f"need factor >= 2 and 1 <= first <= {num_epochs} epochs, got {factor} and {first}"
        )
    if num_epochs % first:
        raise ValueError(f"the {num_epochs} epochs must be a multiple of first, got {first}")
    epochs = [first]
    while epochs[-1] * factor < num_epochs:
        epochs.append(epochs[-1] * factor)
    if epochs[-1] != num_epochs:
        epochs.append(num_epochs)
    if not 1 <= num_brackets <= len(epochs):
        raise ValueError(f"num_brackets must be in [1, {len(epochs)}], got {num_brackets}")
    return Rungs(tuple(epochs), factor, num_brackets)


def init_tune(
    search: Search,
    start_fn: Callable[[np.ndarray, np.ndarray], Any],
    rungs: Rungs,
    *,
    num_trials: int,
    num_slots: int,
    num_units: int,
    maximize: tuple[bool, ...],
    seed: int = 0,
) -> TuneState:
    """The `TuneState` before the first round; also the shape of a saved one.

    Args:
      search: proposes candidates; opens its storage if it has one.
      start_fn: see `tune`.
      rungs: from `successive_halving`.
      num_trials: T.
      num_slots: P.
      num_units: U.
      maximize: direction of each of the M objectives.
      seed: of the search.

    Raises:
      ValueError: early stopping with several objectives, or fewer than one trial or slot.
    """
    if len(maximize) > 1 and len(rungs.epochs) > 1:
        raise ValueError("early stopping needs a single objective; set first = num_epochs")
    if num_trials < 1 or num_slots < 1:
        raise ValueError(f"need at least one trial and slot, got {num_trials} and {num_slots}")
    trials = _no_trials(num_trials, num_units, len(maximize), len(rungs.epochs))
    population = start_fn(np.zeros((num_slots, num_units), bool), np.ones(num_slots, np.float32))
    return TuneState(search.init(seed), trials, np.full(num_slots, -1, np.int32), population)


def tune(
    search: Search,
    state: TuneState,
    start_fn: Callable[[np.ndarray, np.ndarray], Any],
    train_fn: Callable[[Any, np.ndarray, np.ndarray], tuple[Any, np.ndarray]],
    rungs: Rungs,
    *,
    maximize: tuple[bool, ...],
    on_round: Callable[[TuneState], None] | None = None,
) -> TuneState:
    """Train candidates, P at a time, until all T trials are done.

    Slots of candidates that end, stop or diverge are refilled with new ones, so the shape of the
    trained program never changes. A mask and learning rate (within a tenth of a decade) that were
    asked for before are not trained again but share the earlier result.

    Args:
      search: proposes candidates.
      state: from `init_tune`, or what `on_round` was given, to go on from there.
      start_fn: `start_fn(masks [P, U], learning_rates [P]) -> states`, fresh training states with
        leading axis P.
      train_fn: `train_fn(states, masks [P, U], active [P]) -> (states, values [P, M])`: trains
        `rungs.epochs[0]` epochs and measures the objectives, nan where undefined. Slots that are
        not active hold nothing of interest.
      rungs: as in `init_tune`.
      maximize: as in `init_tune`.
      on_round: called before every round and at the end, to save and to report.

    Returns:
      The final `TuneState`; `best_trial` and `pareto_front` read its trials.
    """
    while True:
        # copies: what on_round was given stays as it was
        state = state._replace(trials=Trials(*map(np.array, state.trials)))
        state = _tell(search, state)
        state = _fill(search, state, start_fn)
        active = state.slots >= 0
        if not active.any() and (state.trials.status == REPEATED).any():
            continue
        if on_round is not None:
            on_round(state)
        if not active.any():
            return state
        state = state._replace(trials=Trials(*map(np.array, state.trials)))
        rows = np.maximum(state.slots, 0)
        population, values = train_fn(state.population, state.trials.masks[rows], active)
        state = state._replace(population=population)
        _record(state, np.asarray(values), rungs, maximize)


def best_trials(trials: Trials, maximize: bool, count: int) -> np.ndarray:
    """Indices of the best trials that ran to the end, best first, int `[n]` with n <= `count`.

    A trial that repeats another is left out. The best of many noisy values is too good to be true:
    train some of the best again, with several seeds, before trusting their order.

    Raises:
      ValueError: no trial ran to the end; says how many failed.
    """
    complete = trials.status == COMPLETE
    if not complete.any():
        failed = int((trials.status == FAILED).sum())
        raise ValueError(f"no trial was completed: {failed} of {len(trials.status)} failed")
    rows = np.flatnonzero(complete & (trials.twins < 0))
    scores = trials.values[rows, 0] * (-1 if maximize else 1)
    return rows[np.argsort(scores, kind="stable")][:count]


def best_trial(trials: Trials, maximize: bool) -> int:
    """The first of `best_trials`."""
    return int(best_trials(trials, maximize, 1)[0])


def pareto_front(trials: Trials, maximize: tuple[bool, ...]) -> np.ndarray:
    """Indices of the completed trials that no other beats in all objectives, in trial order."""
    scores = trials.values * np.where(maximize, 1, -1)
    rows = np.flatnonzero((trials.status == COMPLETE) & (trials.twins < 0))
    beaten = [
        bool(((scores[rows] >= scores[i]).all(1) & (scores[rows] > scores[i]).any(1)).any())
        for i in rows
    ]
    return rows[~np.array(beaten, bool)]


def _no_trials(num_trials: int, num_units: int, num_objectives: int, num_rungs: int) -> Trials:
    integers = np.zeros(num_trials, np.int32)
    return Trials(
        numbers=integers - 1,
        masks=np.zeros((num_trials, num_units), bool),
        learning_rates=np.zeros(num_trials, np.float32),
        status=integers + UNUSED,
        twins=integers - 1,
        epochs=integers.copy(),
        values=np.full((num_trials, num_objectives), np.nan, np.float32),
        rung_values=np.full((num_trials, num_rungs), np.nan, np.float32),
    )


def _tell(search: Search, state: TuneState) -> TuneState:
    """Settle trials that repeat others, free slots, and tell the search what ended."""
    trials, slots = state.trials, np.array(state.slots)
    ended = lambda rows: np.isin(trials.status[rows], (COMPLETE, STOPPED, FAILED))  # noqa: E731
    repeated = np.flatnonzero(trials.status == REPEATED)
    repeated = repeated[ended(trials.twins[repeated])]
    for field in (trials.status, trials.epochs, trials.values):
        field[repeated] = field[trials.twins[repeated]]
    in_slots = np.unique(slots[slots >= 0])
    rows = np.sort(np.concatenate([in_slots[ended(in_slots)], repeated])).astype(int)
    if len(rows):
        stopped = np.where(trials.status[rows] == STOPPED, trials.epochs[rows], 0)
        values = np.where((trials.status[rows] == FAILED)[:, None], np.nan, trials.values[rows])
        told = Candidates(trials.numbers[rows], trials.masks[rows], trials.learning_rates[rows])
        state = state._replace(search=search.tell(state.search, told, values, stopped))
    slots[np.isin(slots, rows)] = -1
    return state._replace(slots=slots)


def _fill(search: Search, state: TuneState, start_fn: Callable[..., Any]) -> TuneState:
    """Put new candidates into free slots; live ones come first, so that idle chunks are whole."""
    trials = state.trials
    order = np.argsort(state.slots < 0, kind="stable")
    slots, fresh = state.slots[order], np.zeros(len(order), bool)
    while (asked := int((trials.status != UNUSED).sum())) < len(trials.status):
        free = np.flatnonzero(slots < 0)[: len(trials.status) - asked]
        if not len(free):
            break
        candidates, search_state = search.ask(state.search, len(free))
        state = state._replace(search=search_state)
        for i in range(len(free)):
            row = asked + i
            trials.numbers[row] = candidates.numbers[i]
            trials.masks[row] = candidates.masks[i]
            trials.learning_rates[row] = candidates.learning_rates[i]
            trials.twins[row] = _find_twin(trials, row)
            trials.status[row] = RUNNING if trials.twins[row] < 0 else REPEATED
        new = asked + np.flatnonzero(trials.status[asked : asked + len(free)] == RUNNING)
        slots[free[: len(new)]] = new
        fresh[free[: len(new)]] = True
    if not fresh.any() and (order == np.arange(len(order))).all():
        return state._replace(slots=slots)
    rows = np.maximum(slots, 0)
    started = start_fn(trials.masks[rows], trials.learning_rates[rows])
    rows = np.where(fresh, np.arange(len(order)) + len(order), order)
    return state._replace(slots=slots, population=_gather(state.population, started, rows))


@jax.jit
def _gather(population: Any, started: Any, rows: np.ndarray) -> Any:
    """Rows of the two populations, one after the other."""
    return jax.tree.map(lambda old, new: jnp.concatenate([old, new])[rows], population, started)


def _find_twin(trials: Trials, row: int) -> int:
    """The first earlier trial with the same mask and learning rate bin, or -1."""
    bins = np.round(10 * np.log10(np.maximum(trials.learning_rates[: row + 1], 1e-30)))
    same = (trials.masks[:row] == trials.masks[row]).all(1) & (bins[:row] == bins[row])
    same &= trials.twins[:row] < 0
    return int(same.argmax()) if same.any() else -1


def _record(state: TuneState, values: np.ndarray, rungs: Rungs, maximize: tuple[bool, ...]) -> None:
    """Write a round's values into the trials and decide who goes on."""
    trials, sign = state.trials, 1 if maximize[0] else -1
    active = np.flatnonzero(state.slots >= 0)
    rows = state.slots[active]
    trials.epochs[rows] += rungs.epochs[0]
    trials.values[rows] = values[active]
    trials.status[rows[np.isnan(values[active]).any(1)]] = FAILED
    for rung, age in enumerate(rungs.epochs):
        here = rows[(trials.epochs[rows] == age) & (trials.status[rows] == RUNNING)]
        trials.rung_values[here, rung] = trials.values[here, 0]
        if age == rungs.epochs[-1]:
            trials.status[here] = COMPLETE
            continue
        for row in here:
            bracket = row % rungs.num_brackets
            if rung < bracket:
                continue
            rivals = np.arange(len(trials.status)) % rungs.num_brackets == bracket
            rivals &= ~np.isnan(trials.rung_values[:, rung])
            scores, own = sign * trials.rung_values[:, rung], sign * trials.values[row, 0]
            earlier = np.arange(len(scores)) < row  # of equals the first counts as better
            better = rivals & ((scores > own) | ((scores == own) & earlier))
            if better.sum() >= max(1, rivals.sum() // rungs.factor):
                trials.status[row] = STOPPED
