"""The whole comparison in one call."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from fairjax.compare.judging import (
    Select,
    add_thresholds,
    judge,
    margins,
    one_class,
    select_stage,
)
from fairjax.compare.methods import METHODS
from fairjax.compare.setting import Setting, Trained, check_setting
from fairjax.compare.training import train_methods
from fairjax.metrics.rate_comparison import RateComparison
from fairjax.timing import timed


class Compared(NamedTuple):
    """What came out; arrays, nothing on disk."""

    rows: tuple[str, ...]
    """`plain` (the last epoch), `plain@best`, the methods, and all of them `+thresholds`."""
    num_rivals: int
    """As many as rows, or 0 where thresholds could not be chosen."""
    judged: RateComparison
    """Of the rows, then of their rivals: thresholds on plain training that are as accurate on
    validation as the row."""
    preds: np.ndarray
    """int8 `[R, F * S, t]` of all these, on the test rows of each run's split."""
    scores: np.ndarray
    """float32 `[M, F * S, t]` of the rows without thresholds: class 1 over class 0."""
    networks: dict[str, Trained]
    """Of every row without thresholds, leaves `[F * S, ...]`; `val` are their validation logits."""
    left_out: dict[str, str]
    """Method -> why it did not apply, or failed."""
    notes: tuple[str, ...]
    """What is left out, and what was chosen where there was no choice."""
    seconds: dict[str, float]
    """Where the time went."""


def compare_methods(
    setting: Setting,
    methods: Sequence[str] = METHODS,
    *,
    select: Select = "dto",
    cost: float = 0.005,
    num_replicates: int = 500,
    on_trained: Callable[[tuple[str, ...]], None] = lambda names: None,
) -> Compared:
    """Train every method on every split and seed, select epochs, add thresholds, judge on test.

    Methods that can do so are trained by one program. Epochs and thresholds are chosen on
    validation; test is looked at once, when everything is chosen.

    Args:
      setting: data, splits, network and recipe, which all methods share.
      methods: of `ALL_METHODS`; plain training always runs beside them. Those that do not apply
        are left out and named in the notes.
      select: which epoch of a run is judged, see `select_stage`; `plain` is the last.
      cost: accuracy that thresholds may give up on validation, see `add_thresholds`.
      num_replicates: bootstrap replicates behind the intervals.
      on_trained: called with the names of methods that have been trained.

    Returns:
      Compared.

    Raises:
      ValueError: an unknown method or rule, or a setting as `check_setting` refuses it.

    >>> import jax
    >>> from fairjax.compare import make_recipe
    >>> from fairjax.data import resplits, synthetic_gaussians
    >>> from fairjax.models import logistic_regression
    >>> data = synthetic_gaussians(jax.random.key(0), 200, num_val=100, num_test=100)
    >>> recipe = make_recipe(20, num_rows=200, batch_size=50, learning_rate=0.05)
    >>> setting = Setting(data, resplits(data, 2), 1, logistic_regression(3), recipe)
    >>> found = compare_methods(setting, ["reweighted"], num_replicates=20)
    >>> found.rows[:3]
    ('plain', 'plain@best', 'reweighted')
    """
    check_setting(setting)
    seconds: dict[str, float] = {}
    notes: list[str] = []

    def keep(name: str, trained: Trained) -> dict[str, Trained]:
        chosen = select_stage(setting, trained, select)
        single, alone = one_class(trained.val), int(one_class(chosen.val).sum())
        if passed := int(single.any(0).sum()) - alone if select == "dto" else 0:
            notes.append(f"{name}: epochs that predict one class are passed over, in {passed} runs")
        if alone:
            notes.append(
                f"{name}: {alone} of {len(chosen.val)} runs predict one class on validation"
            )
        plain = {"plain": trained.at_stage(-1), "plain@best": chosen}
        return plain if name == "plain" else {name: chosen}

    found, left_out = train_methods(
        setting, methods, keep=keep, on_trained=on_trained, seconds=seconds
    )
    notes[:0] = [f"{name} left out: {reason}" for name, reason in left_out.items()]
    networks = {name: each for kept in found.values() for name, each in kept.items()}
    own = setting.splits.test[setting.split_of_run]
    with timed(seconds, "predict_s"):
        pairs = [(each.params, each.batch_stats) for each in networks.values()]
        params, stats = jax.tree.map(lambda *leaves: np.stack(leaves), *pairs)
        test = margins(setting.logits_of_all(params, stats, own))
    val = np.stack([margins(each.val) for each in networks.values()])
    rows, preds = list(networks), (test > 0).astype(np.int8)
    rivals = preds[:0]
    with timed(seconds, "thresholds_s"):
        try:
            shifted, *as_accurate = add_thresholds(setting, val, test, cost=cost)
        except ValueError as error:  # a group lacks what the criterion compares
            notes.append(f"rows +thresholds left out: {error}")
        else:
            rows += [f"{name}+thresholds" for name in rows]
            preds, rivals = np.concatenate([preds, shifted]), np.concatenate(as_accurate)
    preds = np.concatenate([preds, rivals])
    with timed(seconds, "judge_s"):
        judged = judge(setting, preds, test, num_replicates=num_replicates)
    told = left_out, tuple(notes), seconds
    return Compared(tuple(rows), len(rivals), judged, preds, test, networks, *told)
