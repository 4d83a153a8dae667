"""When the trials of a search are compared, and which of them go on."""

from typing import Any, NamedTuple

import numpy as np

from fairjax.fairtune.trials import FAILED, Trials


class Rungs(NamedTuple):
    """When trials are compared, made by `successive_halving` or `racing`; a pytree of arrays."""

    epochs: Any
    """int32 `[R]`, ages at which trials are compared; the last is the whole budget."""
    factor: Any
    """int32: one in so many goes on."""
    num_brackets: Any
    """int32: trials take turns; those of bracket s are first compared at rung s."""
    races: Any
    """bool: every rung is a training on another fold, and evidence decides who goes on."""


def successive_halving(
    num_epochs: int, *, first: int = 1, factor: int = 3, num_brackets: int = 1
) -> Rungs:
    """Compare trials after `first`, `factor * first`, ... epochs; the best `1 / factor` go on.

    A trial is compared with all that reached the rung before it, so nobody waits. Several
    brackets (Hyperband) also try trials that are spared the earliest comparisons.
    `first = num_epochs` stops nobody.

    Args:
      num_epochs: of a trial that is never stopped.
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
    return Rungs(
        np.array(epochs, np.int32), np.int32(factor), np.int32(num_brackets), np.array(False)
    )


def racing(num_epochs: int, num_folds: int) -> Rungs:
    """Train trials on one fold after another; those that the best excludes go no further.

    After every fold a trial is compared with the trial of best mean over the folds so far, by
    their paired difference in a bootstrap of the validation examples that both share. It stops
    where the one-sided 95 % interval of the difference excludes 0.

    Args:
      num_epochs: of the training on each fold.
      num_folds: at least 2.

    Raises:
      ValueError: numbers out of range.

    Source: racing as of Maron and Moore, NeurIPS 1993, with a bootstrap in place of their bound.
    """
    if num_epochs < 1 or num_folds < 2:
        raise ValueError(
            f"racing needs at least 1 epoch and 2 folds, got {num_epochs} and {num_folds}"
        )
    ages = num_epochs * np.arange(1, num_folds + 1, dtype=np.int32)
    return Rungs(ages, np.int32(1), np.int32(1), np.array(True))


def goes_on(trials: Trials, rungs: Rungs, row: int, rung: int) -> bool:
    """Whether a trial that has reached a rung, which is not the last, trains on."""
    if rungs.races:
        return not _is_excluded(trials, row, (rung + 1) * int(trials.num_runs))
    bracket = row % rungs.num_brackets
    if rung < bracket:
        return True
    scores = trials.rung_values[:, rung] * (1 if trials.maximize[0] else -1)
    rivals = np.arange(len(trials.status)) % rungs.num_brackets == bracket
    rivals &= ~np.isnan(scores)
    earlier = np.arange(len(scores)) < row  # of equals the first counts as better
    better = rivals & ((scores > scores[row]) | ((scores == scores[row]) & earlier))
    return bool(better.sum() < max(1, rivals.sum() // rungs.factor))


def _is_excluded(trials: Trials, row: int, count: int) -> bool:
    """Whether the best mean of the first `count` replicates is better beyond doubt."""
    sign = 1.0 if trials.maximize[0] else -1.0
    means = sign * trials.replicates[:, :count].mean(1)
    rivals = np.isfinite(means) & (trials.same_as < 0) & (trials.status != FAILED)
    best = int(np.where(rivals, means, -np.inf).argmax())
    draws = sign * trials.drawn[:, :count, 0].mean(1)
    ahead = draws[best] - draws[row]
    ahead = ahead[~np.isnan(ahead)]
    return best != row and len(ahead) > 0 and bool(np.quantile(ahead, 0.05) > 0)
