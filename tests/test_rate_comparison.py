"""Rows of predictions by their counts, against fairlearn and a loop over what is drawn."""

from typing import Any

import numpy as np
import pytest
from fairlearn import metrics as fairlearn
from sklearn.metrics import roc_auc_score

from fairjax.metrics.placements import group_auc_bounds
from fairjax.metrics.ranks import rank_methods
from fairjax.metrics.rate_comparison import compare_rates

RNG = np.random.default_rng(0)
LABELS, GROUP = RNG.integers(2, size=60), RNG.integers(3, size=60)
SPLITS = np.array([0, 0, 1, 1, 2, 2])
EXAMPLES = np.stack([RNG.permutation(60)[:40] for _ in range(3)])[SPLITS]
SHARED: dict[str, Any] = {
    "labels": LABELS,
    "group": GROUP,
    "num_groups": 3,
    "examples": EXAMPLES,
    "splits": SPLITS,
    "num_replicates": 50,
}
PREDS = RNG.integers(2, size=(3, 6, 40))


def test_metrics_are_those_of_fairlearn():
    found = compare_rates(PREDS, **SHARED).metrics
    for row in range(3):
        for run in range(6):
            labels, group = LABELS[EXAMPLES[run]], GROUP[EXAMPLES[run]]
            own = PREDS[row, run]
            rates = fairlearn.MetricFrame(
                metrics={"a": lambda y, p: (y == p).mean(), "r": fairlearn.true_positive_rate},
                y_true=labels,
                y_pred=own,
                sensitive_features=group,
            )
            named = {"y_true": labels, "y_pred": own, "sensitive_features": group}
            expected = {
                "accuracy": rates.overall["a"],
                "worst_group_accuracy": rates.by_group["a"].min(),
                "accuracy_gap": rates.by_group["a"].max() - rates.by_group["a"].min(),
                "worst_group_recall": rates.by_group["r"].min(),
                "recall/2": rates.by_group["r"][2],
                "equal_opportunity_difference": fairlearn.equal_opportunity_difference(**named),
                "equalized_odds_difference": fairlearn.equalized_odds_difference(**named),
                "demographic_parity_difference": fairlearn.demographic_parity_difference(**named),
            }
            for name, value in expected.items():
                assert np.isclose(found[name][row, run], value), name


def test_replicates_are_what_a_loop_over_the_drawn_examples_and_splits_gives():
    found = compare_rates(PREDS, **SHARED)
    generator = np.random.default_rng(0)
    examples = generator.integers(60, size=(50, 60))
    splits = generator.integers(3, size=(50, 3))
    for replicate in (0, 7):
        times = np.bincount(examples[replicate], minlength=60)
        share = np.bincount(splits[replicate], minlength=3)[SPLITS]
        accuracy, gap = np.zeros(6), np.zeros(6)
        for run in range(6):
            drawn = np.repeat(np.arange(40), times[EXAMPLES[run]])
            right = (PREDS[1, run] == LABELS[EXAMPLES[run]])[drawn]
            group = GROUP[EXAMPLES[run]][drawn]
            accuracy[run] = right.mean()
            by_group = [right[group == g].mean() for g in range(3)]
            gap[run] = max(by_group) - min(by_group)
        for name, values in (("accuracy", accuracy), ("accuracy_gap", gap)):
            plain = found.replicates[name][1, replicate, 0]
            assert np.isclose(plain, (values * share).sum() / share.sum())


def test_the_table_by_group_is_the_mean_over_runs_of_fairlearn_with_intervals_that_hold_it():
    table = compare_rates(PREDS, **SHARED).group_table(1, ["a", "b", "c"])
    assert table.groups == ("a", "b", "c", "everyone") and table.n[-1] == 40
    functions = {
        "selection_rate": fairlearn.selection_rate,
        "true_positive_rate": fairlearn.true_positive_rate,
        "false_positive_rate": fairlearn.false_positive_rate,
        "accuracy": lambda y, p: (y == p).mean(),
    }
    runs = []
    for run in range(6):
        given = {"y_true": LABELS[EXAMPLES[run]], "y_pred": PREDS[1, run]}
        given["sensitive_features"] = GROUP[EXAMPLES[run]]
        frame = fairlearn.MetricFrame(metrics=functions, **given)
        runs.append(np.vstack([frame.by_group, frame.overall]))
    for name, expected in zip(functions, np.mean(runs, axis=0).T, strict=True):
        rate = table.rates[name]
        np.testing.assert_allclose(rate.estimate, expected)
        assert (rate.lower < rate.estimate).all() and (rate.estimate < rate.upper).all()


def test_areas_are_those_of_scikit_learn_and_their_replicates_nearly_those_of_what_is_drawn():
    rng, num_examples = np.random.default_rng(1), 900
    labels, group = rng.integers(2, size=num_examples), rng.integers(2, size=num_examples)
    scores = np.round(rng.normal(size=(2, 1, num_examples)) + labels * (1 + group), 1)  # ties
    given = {**SHARED, "labels": labels, "group": group, "num_groups": 2}
    given |= {"examples": np.arange(num_examples)[None], "splits": np.zeros(1, int)}
    preds = (np.concatenate([scores, scores[:1]]) > 0).astype(int)
    found = compare_rates(preds, scores=scores, **given)
    area = lambda row, drawn: [
        roc_auc_score(labels[own], scores[row, 0, own])
        for own in (drawn[group[drawn] == 0], drawn[group[drawn] == 1], drawn)
    ]
    draws = np.random.default_rng(0).integers(num_examples, size=(50, num_examples))
    for row in range(2):
        low, high, everyone = area(row, np.arange(num_examples))
        told = {"auc/0": low, "auc/1": high, "auc": everyone, "auc_gap": high - low}
        for name, value in {**told, "worst_group_auc": low}.items():
            assert np.isclose(found.metrics[name][row, 0], value), name
        drawn = np.array([area(row, each) for each in draws])
        for place, name in enumerate(("auc/0", "auc/1", "auc")):
            replicates = found.replicates[name][row, :, 0]
            np.testing.assert_allclose(replicates, drawn[:, place], atol=0.006)
            assert drawn[:, place].std() > 0.01
    assert np.isnan(found.metrics["auc"][2]).all() and np.isnan(found.mean("auc_gap", 2)).all()
    table = found.group_table(0, ["a", "b"]).rates["auc"]
    np.testing.assert_allclose(table.estimate, area(0, np.arange(num_examples)))
    areas, lower = group_auc_bounds(scores[:, 0], labels=labels, group=group, num_groups=2)
    np.testing.assert_allclose(areas[0], table.estimate[:2])
    spread = drawn[:, :2].std(0)
    np.testing.assert_allclose(areas[1] - lower[1], 1.645 * spread, rtol=0.35)


def test_changes_are_paired_and_the_group_that_loses_most_is_named():
    better = np.where(RNG.random((6, 40)) < 0.9, LABELS[EXAMPLES], 1 - LABELS[EXAMPLES])
    hurt = np.where(GROUP[EXAMPLES] == 1, 1 - LABELS[EXAMPLES], better)
    found = compare_rates(np.stack([better, better, hurt]), **SHARED)
    assert found.change("equalized_odds_difference", 1, 0) == (0.0, 0.0, 0.0)
    group, change, low, high = found.worst_change("accuracy", 2, 0)
    assert group == 1 and low < change < high < -0.5
    mean, low, high = found.mean("accuracy", 0)
    assert low < mean < high


def test_a_rate_that_no_example_defines_is_left_out_of_gaps():
    none = np.where(GROUP == 2, 0, LABELS)
    found = compare_rates(PREDS, **{**SHARED, "labels": none})
    assert np.isnan(found.metrics["recall/2"]).all()
    two = np.abs(found.metrics["recall/0"] - found.metrics["recall/1"])
    np.testing.assert_allclose(found.metrics["equal_opportunity_difference"], two)
    assert np.isfinite(found.mean("worst_group_recall", 0)).all()


BAD: dict[str, dict[str, Any]] = {
    "preds must be": {"examples": EXAMPLES[:5]},
    "scores must be": {"scores": np.zeros((3, 6, 39))},
    "splits must number": {"splits": SPLITS + 1},
    r"labels must be in \[0, 2\)": {"labels": LABELS + 1},
    "examples must be equal for the runs": {"examples": EXAMPLES[::-1].copy()[[0, 1, 2, 4, 3, 5]]},
    "num_replicates must be": {"num_replicates": 1},
}


@pytest.mark.parametrize("message", BAD)
def test_mistakes_are_named(message):
    change = dict(BAD[message])
    if message.startswith("examples"):
        change["splits"] = np.array([0, 1, 1, 0, 2, 2])
    with pytest.raises(ValueError, match=message):
        compare_rates(PREDS, **{**SHARED, **change})


def test_ranks_are_those_of_the_published_example():
    """Demsar 2006, table 6: C4.5 by AUC on 14 sets, with m, cf and both tuned."""
    scores = np.array(
        [
            [0.763, 0.768, 0.771, 0.798],
            [0.599, 0.591, 0.590, 0.569],
            [0.954, 0.971, 0.968, 0.967],
            [0.628, 0.661, 0.654, 0.657],
            [0.882, 0.888, 0.886, 0.898],
            [0.936, 0.931, 0.916, 0.931],
            [0.661, 0.668, 0.609, 0.685],
            [0.583, 0.583, 0.563, 0.625],
            [0.775, 0.838, 0.866, 0.875],
            [1.000, 1.000, 1.000, 1.000],
            [0.940, 0.962, 0.965, 0.962],
            [0.619, 0.666, 0.614, 0.669],
            [0.972, 0.981, 0.9751, 0.975],
            [0.957, 0.978, 0.946, 0.970],
        ]
    )
    ranks = rank_methods(scores)
    np.testing.assert_allclose(ranks.average, [3.143, 2.000, 2.893, 1.964], atol=1e-3)
    assert abs(ranks.critical_difference - 1.25) < 0.01 and 0.01 < ranks.p_value < 0.05
    assert ranks.cliques == [(3, 1, 2, 0)] or ranks.cliques == [(3, 1, 2), (1, 2, 0)]


@pytest.mark.parametrize("scores", [np.zeros((1, 3)), np.zeros((3, 1)), np.full((3, 3), np.nan)])
def test_ranks_need_several_settings_and_numbers(scores):
    with pytest.raises(ValueError, match="scores must be finite"):
        rank_methods(scores)
