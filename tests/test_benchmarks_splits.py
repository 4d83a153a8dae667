"""Benchmarks that need no PyTorch: rows that ran, a race cut short rightly, the page of rows."""

import numpy as np
import pytest

from experiments import benchmark, timing
from experiments.benchmarks import regret, splits
from fairjax.fairtune import STATUS_NAMES, Trials

COMPLETE, STOPPED, FAILED = (STATUS_NAMES.index(name) for name in ("complete", "stopped", "failed"))


def test_runs_on_splits_of_their_own_are_timed_beside_runs_that_share_one():
    (row,) = splits.claims(quick=True)
    assert row["ours_s"] > 0 and row["theirs_s"] > 0 and row["claim"] == "splits_as_an_axis"


def folded(values):
    """Trials with all of their folds trained, whose draws are sharp."""
    values = np.asarray(values, np.float32)
    count, num_folds = values.shape
    integers = np.zeros(count, np.int32)
    return Trials(
        numbers=np.arange(count, dtype=np.int32),
        masks=np.eye(count, 6, dtype=bool),
        learning_rates=np.full(count, 1e-3, np.float32),
        status=integers + COMPLETE,
        same_as=integers - 1,
        epochs=integers + 2,
        values=values.mean(1, keepdims=True),
        replicates=values,
        drawn=np.repeat(values[:, :, None, None], 2, axis=2).repeat(20, axis=3),
        rung_values=values.mean(1, keepdims=True),
        maximize=np.array([True]),
        num_runs=np.array(num_folds, np.int32),
    )


def test_a_race_replayed_from_all_folds_stops_losers_and_keeps_to_its_budget():
    trials = folded([[0.8, 0.8, 0.8], [0.5, 0.9, 0.9], [0.9, 0.9, 0.9], [0.95, 0.95, 0.95]])
    raced = regret._race(trials, budget=7.5)
    assert raced.status.tolist() == [COMPLETE, STOPPED, COMPLETE, FAILED]
    assert np.isfinite(raced.replicates).sum(1).tolist() == [3, 1, 3, 0]
    np.testing.assert_allclose(raced.values[:3, 0], [0.8, 0.5, 0.9], rtol=1e-6)


@pytest.mark.parametrize("name", benchmark.NAMES)
def test_the_page_of_benchmarks_has_a_place_for_every_one(name):
    start, end = benchmark.between(benchmark.PAGE.read_text(), name)
    assert start <= end


def test_a_page_without_a_place_is_refused():
    with pytest.raises(ValueError, match=r"BENCHMARKS\.md must hold each of .*rows of pruning"):
        benchmark.between("# Benchmarks", "pruning")


def test_rows_become_a_table_with_their_floor_and_the_quality_below():
    times = timing.Paired([0.02, 0.04, 0.03], [0.06, 0.06, 0.06])
    quality = {"ours": {"auc": 0.75}, "theirs": {}}
    row = timing.claim("fast", times, floor_s=0.015, quality=quality, notes="of 3 pairs")
    lines = benchmark.as_markdown("splits", [row]).splitlines()
    assert lines[0].startswith("`python -m experiments.benchmark splits` on ")
    assert lines[-3] == "| `fast`: of 3 pairs | 30 ms | 60 ms | 2 (1.5 to 3) |  | 50% |"
    assert lines[-1] == "- `fast` ours: auc 0.75"
