"""Everything a search knows of its trials, as arrays."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fairjax.metrics import pareto_front

UNUSED, RUNNING, REPEATED, COMPLETE, STOPPED, FAILED = range(6)
STATUS_NAMES = ("unused", "running", "repeated", "complete", "stopped", "failed")


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
    """int32 `[T]`, trained so far by each of the runs that a trial has side by side."""
    values: np.ndarray
    """float32 `[T, M]`, newest values of the objectives, at the last rung, means over replicates;
    nan before the first."""
    replicates: np.ndarray
    """float32 `[T, R]`, newest first objective of every replicate, fold after fold and seeds
    within; nan where it was not trained, or is undefined."""
    drawn: np.ndarray
    """float32 `[T, R, 2, B]`: the first objective on B draws with replacement of the replicate's
    validation examples, and on the examples that each draw left out. Trials share the draws, so
    that differences are paired."""
    rung_values: np.ndarray
    """float32 `[T, R]`, first objective at every rung; nan where it was not reached."""
    maximize: np.ndarray
    """bool `[M]`, direction of each objective."""
    num_runs: np.ndarray
    """int32 scalar W, runs of a trial that train side by side."""
    choices: np.ndarray | None = None
    """int32 `[T, C]`, see `Candidates.choices`; None where C = 0."""

    @property
    def scores(self) -> np.ndarray:
        """The values turned so that larger is better, float32 `[T, M]`."""
        return self.values * np.where(self.maximize, 1, -1).astype(np.float32)

    @property
    def epochs_trained(self) -> int:
        """Of all runs of all trials together."""
        return int(self.num_runs * self.epochs[self.same_as < 0].sum())

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


def best_trials(trials: Trials, count: int) -> np.ndarray:
    """The best trials in the first objective that ran to the end, best first, int `[<= count]`.

    A trial that repeats another is left out. The best of many noisy values is too good to be true:
    train some of the best again, with several seeds, before trusting their order.

    Raises:
      ValueError: no trial ran to the end; says how many failed.
    """
    rows = completed_trials(trials)
    return rows[np.argsort(-trials.scores[rows, 0], kind="stable")][:count]


def completed_trials(trials: Trials) -> np.ndarray:
    """Trials that ran to the end and repeat no other, in trial order, int `[n]`.

    Raises:
      ValueError: there is none; says how many failed.
    """
    complete = trials.status == COMPLETE
    if not complete.any():
        failed = int((trials.status == FAILED).sum())
        raise ValueError(f"no trial was completed: {failed} of {len(trials.status)} failed")
    return np.flatnonzero(complete & (trials.same_as < 0))


def best_trial(trials: Trials) -> int:
    """The first of `best_trials`."""
    return int(best_trials(trials, 1)[0])


def best_masks(trials: Trials) -> np.ndarray:
    """Completed trials that no other beats in all objectives, in trial order, int `[n]`."""
    rows = np.flatnonzero((trials.status == COMPLETE) & (trials.same_as < 0))
    return rows[pareto_front(trials.scores[rows])]


def no_trials(
    num_trials: int,
    num_units: int,
    maximize: Sequence[bool] | np.ndarray,
    num_rungs: int,
    *,
    num_replicates: int,
    num_draws: int,
    num_runs: int,
    num_options: int = 0,
) -> Trials:
    """Before the first is asked for."""
    integers = np.zeros(num_trials, np.int32)
    num_objectives = len(maximize)
    return Trials(
        numbers=integers - 1,
        masks=np.zeros((num_trials, num_units), bool),
        learning_rates=np.zeros(num_trials, np.float32),
        status=integers + UNUSED,
        same_as=integers - 1,
        epochs=integers.copy(),
        values=np.full((num_trials, num_objectives), np.nan, np.float32),
        replicates=np.full((num_trials, num_replicates), np.nan, np.float32),
        drawn=np.full((num_trials, num_replicates, 2, num_draws), np.nan, np.float32),
        rung_values=np.full((num_trials, num_rungs), np.nan, np.float32),
        maximize=np.array(maximize, bool),
        num_runs=np.array(num_runs, np.int32),
        choices=np.zeros((num_trials, num_options), np.int32) if num_options else None,
    )


def find_same(trials: Trials, row: int) -> int:
    """The first earlier trial with the same mask, choices and learning rate bin, or -1."""
    bins = np.round(10 * np.log10(np.maximum(trials.learning_rates[: row + 1], 1e-30)))
    same = (trials.masks[:row] == trials.masks[row]).all(1) & (bins[:row] == bins[row])
    same &= trials.same_as[:row] < 0
    if trials.choices is not None:
        same &= (trials.choices[:row] == trials.choices[row]).all(1)
    return int(same.argmax()) if same.any() else -1
