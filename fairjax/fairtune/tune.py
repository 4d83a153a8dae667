"""Running a search: a population of candidates, of which the hopeless stop early."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fairjax.fairtune.search import Candidates, Search
from fairjax.metrics import pareto_front
from fairjax.sharding import dealing_order

UNUSED, RUNNING, REPEATED, COMPLETE, STOPPED, FAILED = range(6)
STATUS_NAMES = ("unused", "running", "repeated", "complete", "stopped", "failed")


class Rungs(NamedTuple):
    """When candidates are compared, made by `successive_halving`; a pytree of int32 arrays."""

    epochs: Any
    """`[R]`, ages at which only the best go on; the last is the whole budget."""
    factor: Any
    """One in so many goes on."""
    num_brackets: Any
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
    same_as: np.ndarray
    """int32 `[T]`: the earlier trial whose result this one shares, else -1."""
    epochs: np.ndarray
    """int32 `[T]`, trained so far."""
    values: np.ndarray
    """float32 `[T, M]`, newest values of the objectives; nan before the first."""
    rung_values: np.ndarray
    """float32 `[T, R]`, first objective at every rung; nan where it was not reached."""
    maximize: np.ndarray
    """bool `[M]`, direction of each objective."""

    @property
    def scores(self) -> np.ndarray:
        """The values turned so that larger is better, float32 `[T, M]`."""
        return self.values * np.where(self.maximize, 1, -1).astype(np.float32)

    @property
    def epochs_trained(self) -> int:
        """Of all candidates together."""
        return int(self.epochs[self.same_as < 0].sum())

    @property
    def num_ended(self) -> int:
        """Trials that are complete, stopped or failed."""
        return int((self.status >= COMPLETE).sum())

    def summary(self, name: str) -> str:
        """How many trials are where, and the best value so far of the objective `name`."""
        count = {status: int((self.status == i).sum()) for i, status in enumerate(STATUS_NAMES)}
        best, complete = "none yet", self.status == COMPLETE
        if complete.any():
            best = f"{self.values[complete, 0][self.scores[complete, 0].argmax()]:.4f}"
        return (
            f"{count['complete']} complete, {count['stopped']} stopped, {count['failed']} failed, "
            f"{count['running']} running of {len(self.status)}; best {name} {best}"
        )


class TuneState(NamedTuple):
    """A search between two rounds: save it, and give it to `tune` to go on."""

    search: Any
    trials: Trials
    rungs: Rungs
    slots: np.ndarray
    """int32 `[P]`, which trial trains in each slot of the population; -1 = none."""
    population: Any
    """Training states with leading axis P. The next round takes them over: what is given to
    `on_round` is there until it returns."""


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
    return Rungs(np.array(epochs, np.int32), np.int32(factor), np.int32(num_brackets))


StartFn = Callable[[Any, Any, Any], Any]
"""`start_fn(mask [U], learning_rate, start_data) -> state`, a fresh training state; traced."""
TrainFn = Callable[[Any, np.ndarray, np.ndarray], tuple[Any, Any]]
"""`train_fn(states [P], masks [P, U], active [P]) -> (states, values [P, M])`."""


def init_tune(
    search: Search,
    start_fn: StartFn,
    rungs: Rungs,
    *,
    num_trials: int,
    num_slots: int,
    start_data: Any = None,
    seed: int = 0,
) -> TuneState:
    """The `TuneState` before the first round; also the shape of a saved one.

    Args:
      search: proposes candidates; opens its storage if it has one.
      start_fn: see `tune`.
      rungs: from `successive_halving`.
      num_trials: T.
      num_slots: P.
      start_data: see `tune`.
      seed: of the search.

    Raises:
      ValueError: early stopping with several objectives, or fewer than one trial or slot.
    """
    if len(search.maximize) > 1 and len(rungs.epochs) > 1:
        raise ValueError("early stopping needs a single objective; set first = num_epochs")
    if num_trials < 1 or num_slots < 1:
        raise ValueError(f"need at least one trial and slot, got {num_trials} and {num_slots}")
    trials = _no_trials(num_trials, search, len(rungs.epochs))
    masks = jnp.zeros((num_slots, search.num_units), bool)
    start = jax.jit(jax.vmap(start_fn, in_axes=(0, 0, None)))
    population = start(masks, jnp.ones(num_slots), start_data)
    return TuneState(search.init(seed), trials, rungs, np.full(num_slots, -1, np.int32), population)


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
    of the trained program never changes and no second population is held. A mask and learning rate
    (within a tenth of a decade) that were asked for before are not trained again but share the
    earlier result.

    Args:
      search: proposes candidates.
      state: from `init_tune`, or what `on_round` was given, to go on from there. Its population is
        taken over.
      start_fn: `start_fn(mask [U], learning_rate, start_data) -> state`, the fresh training state
        of one candidate; traced once.
      train_fn: `train_fn(states, masks [P, U], active [P]) -> (states, values [P, M])`: trains
        `rungs.epochs[0]` epochs and measures the objectives, nan where undefined. Slots that are
        not active hold nothing of interest.
      start_data: any pytree, such as pre-trained parameters: an argument of the compiled program,
        not a constant in it.
      on_round: called before every round and at the end, to save and to report.

    Returns:
      The final `TuneState`; `best_trial` and `pareto_front` read its trials.
    """

    @functools.partial(jax.jit, donate_argnums=0)
    def refill(population, slot, mask, rate, start_data):
        started = start_fn(mask, rate, start_data)
        return jax.tree.map(lambda leaf, new: leaf.at[slot].set(new), population, started)

    while True:
        # copies: what on_round was given stays as it was
        state = state._replace(trials=Trials(*map(np.array, state.trials)))
        state = _tell(search, state)
        state = _fill(search, state, functools.partial(refill, start_data=start_data))
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
        _record(state, np.asarray(values))


def best_trials(trials: Trials, count: int) -> np.ndarray:
    """The best trials in the first objective that ran to the end, best first, int `[<= count]`.

    A trial that repeats another is left out. The best of many noisy values is too good to be true:
    train some of the best again, with several seeds, before trusting their order.

    Raises:
      ValueError: no trial ran to the end; says how many failed.
    """
    complete = trials.status == COMPLETE
    if not complete.any():
        failed = int((trials.status == FAILED).sum())
        raise ValueError(f"no trial was completed: {failed} of {len(trials.status)} failed")
    rows = np.flatnonzero(complete & (trials.same_as < 0))
    return rows[np.argsort(-trials.scores[rows, 0], kind="stable")][:count]


def best_trial(trials: Trials) -> int:
    """The first of `best_trials`."""
    return int(best_trials(trials, 1)[0])


def best_masks(trials: Trials) -> np.ndarray:
    """Completed trials that no other beats in all objectives, in trial order, int `[n]`."""
    rows = np.flatnonzero((trials.status == COMPLETE) & (trials.same_as < 0))
    return rows[pareto_front(trials.scores[rows])]


def _no_trials(num_trials: int, search: Search, num_rungs: int) -> Trials:
    integers = np.zeros(num_trials, np.int32)
    num_objectives = len(search.maximize)
    return Trials(
        numbers=integers - 1,
        masks=np.zeros((num_trials, search.num_units), bool),
        learning_rates=np.zeros(num_trials, np.float32),
        status=integers + UNUSED,
        same_as=integers - 1,
        epochs=integers.copy(),
        values=np.full((num_trials, num_objectives), np.nan, np.float32),
        rung_values=np.full((num_trials, num_rungs), np.nan, np.float32),
        maximize=np.array(search.maximize, bool),
    )


def _tell(search: Search, state: TuneState) -> TuneState:
    """Settle trials that repeat others, free slots, and tell the search what ended."""
    trials, slots = state.trials, np.array(state.slots)
    ended = lambda rows: np.isin(trials.status[rows], (COMPLETE, STOPPED, FAILED))
    repeated = np.flatnonzero(trials.status == REPEATED)
    repeated = repeated[ended(trials.same_as[repeated])]
    for field in (trials.status, trials.epochs, trials.values):
        field[repeated] = field[trials.same_as[repeated]]
    in_slots = np.unique(slots[slots >= 0])
    rows = np.sort(np.concatenate([in_slots[ended(in_slots)], repeated])).astype(int)
    if len(rows):
        stopped = np.where(trials.status[rows] == STOPPED, trials.epochs[rows], 0)
        values = np.where((trials.status[rows] == FAILED)[:, None], np.nan, trials.values[rows])
        told = Candidates(trials.numbers[rows], trials.masks[rows], trials.learning_rates[rows])
        state = state._replace(search=search.tell(state.search, told, values, stopped))
    slots[np.isin(slots, rows)] = -1
    return state._replace(slots=slots)


def _fill(search: Search, state: TuneState, refill: Callable[..., Any]) -> TuneState:
    """Put new candidates into free slots, and deal those that are left out to all devices."""
    trials = state.trials
    order = dealing_order(len(state.slots), len(jax.devices()))
    slots, population = _move_up(np.array(state.slots), state.population, order)
    while (asked := int((trials.status != UNUSED).sum())) < len(trials.status):
        free = order[slots[order] < 0][: len(trials.status) - asked]
        if not len(free):
            break
        candidates, search_state = search.ask(state.search, len(free))
        state = state._replace(search=search_state)
        rows = asked + np.arange(len(free))
        for field in ("numbers", "masks", "learning_rates"):
            getattr(trials, field)[rows] = getattr(candidates, field)
        for row in rows.tolist():
            trials.same_as[row] = _find_same(trials, row)
            trials.status[row] = RUNNING if trials.same_as[row] < 0 else REPEATED
        new = rows[trials.status[rows] == RUNNING]
        for slot, row in zip(free, new, strict=False):
            slots[slot] = row
            population = refill(
                population, np.int32(slot), trials.masks[row], trials.learning_rates[row]
            )
    return state._replace(slots=slots, population=population)


def _move_up(slots: np.ndarray, population: Any, order: np.ndarray) -> tuple[np.ndarray, Any]:
    """Let live candidates fill the first slots of `order`: every device its share, in whole chunks.

    One candidate at a time and in place, so that no second population is held.
    """
    live = order[slots[order] >= 0]
    wanted = order[: len(live)]
    empty = wanted[slots[wanted] < 0]
    late = np.setdiff1d(live, wanted)
    for to, source in zip(empty, late, strict=True):
        population = _copy_slot(population, np.int32(source), np.int32(to))
        slots[to], slots[source] = slots[source], -1
    return slots, population


@functools.partial(jax.jit, donate_argnums=0)
def _copy_slot(population: Any, source: jax.Array, to: jax.Array) -> Any:
    return jax.tree.map(lambda leaf: leaf.at[to].set(leaf[source]), population)


def _find_same(trials: Trials, row: int) -> int:
    """The first earlier trial with the same mask and learning rate bin, or -1."""
    bins = np.round(10 * np.log10(np.maximum(trials.learning_rates[: row + 1], 1e-30)))
    same = (trials.masks[:row] == trials.masks[row]).all(1) & (bins[:row] == bins[row])
    same &= trials.same_as[:row] < 0
    return int(same.argmax()) if same.any() else -1


def _record(state: TuneState, values: np.ndarray) -> None:
    """Write a round's values into the trials and decide who goes on."""
    trials, rungs = state.trials, state.rungs
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
        scores = trials.rung_values[:, rung] * (1 if trials.maximize[0] else -1)
        for row in here:
            bracket = row % rungs.num_brackets
            if rung < bracket:
                continue
            rivals = np.arange(len(trials.status)) % rungs.num_brackets == bracket
            rivals &= ~np.isnan(scores)
            earlier = np.arange(len(scores)) < row  # of equals the first counts as better
            better = rivals & ((scores > scores[row]) | ((scores == scores[row]) & earlier))
            if better.sum() >= max(1, rivals.sum() // rungs.factor):
                trials.status[row] = STOPPED
