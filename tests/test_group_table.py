"""The table by group: worked numbers, fairlearn, the library's own metrics, intervals."""

from typing import Any

import fairlearn.metrics
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.special
import sklearn.metrics as sk

from fairjax import metrics as m
from fairjax.metrics import group_table as module_function

RNG = np.random.default_rng(0)
N = 400
LABELS = RNG.integers(0, 2, N)
SCORES = np.round(RNG.normal(size=N) + LABELS, 1)  # with ties
PROBS = scipy.special.expit(SCORES)
FRAME = pd.DataFrame(
    {"sex": RNG.choice(["f", "m"], N), "age": RNG.choice(["<18", "65+", "18-64"], N)}
)


def close(ours, expected, tolerance=1e-6):
    np.testing.assert_allclose(np.asarray(ours, float), expected, rtol=tolerance, atol=tolerance)


def test_worked_numbers_of_two_groups():
    table = m.group_table(
        [1, 1, 0, 0, 1, 0],
        probs=[0.9, 0.4, 0.6, 0.1, 0.8, 0.2],
        sensitive_features=[1, 1, 1, 1, 0, 0],
    )
    assert table.groups == ("0", "1", "everyone")
    assert table.n.tolist() == [2, 4, 6] and np.asarray(table.positives).tolist() == [1, 2, 3]
    expected = {
        "selection_rate": [1 / 2, 2 / 4, 3 / 6],
        "true_positive_rate": [1, 1 / 2, 2 / 3],
        "false_positive_rate": [0, 1 / 2, 1 / 3],
        "accuracy": [1, 1 / 2, 4 / 6],
        "auc": [1, 3 / 4, 8 / 9],
    }
    for name, values in expected.items():
        close(table.rates[name].estimate, values)
    close(table.gaps["equalized_odds_difference"].estimate, 0.5)
    close(table.gaps["worst_group_auc"].estimate, 0.75)
    assert "| 1 | 4 | 2 | 0.500 [" in table.to_markdown()
    assert table.notes == (
        "Few positives: 1 of '0', 2 of '1'.",
        "Few negatives: 1 of '0', 2 of '1'.",
    )


@pytest.mark.parametrize("kind", ["probs", "logits", "preds"])
def test_intersections_have_the_values_of_fairlearn_and_of_fairness_metrics(kind):
    given = {
        "probs": PROBS,
        "logits": np.stack([-SCORES, 2 * SCORES], axis=1),
        "preds": (SCORES > 0).astype(int),
    }[kind]
    table = m.group_table(LABELS, **{kind: given}, sensitive_features=FRAME, num_replicates=2)
    order = ("f & <18", "f & 18-64", "f & 65+", "m & <18", "m & 18-64", "m & 65+")
    assert table.groups == (*order, "everyone")
    frame = fairlearn.metrics.MetricFrame(
        metrics={
            "selection_rate": fairlearn.metrics.selection_rate,
            "true_positive_rate": fairlearn.metrics.true_positive_rate,
            "false_positive_rate": fairlearn.metrics.false_positive_rate,
            "accuracy": sk.accuracy_score,
            "auc": sk.roc_auc_score,
        },
        y_true=LABELS,
        y_pred=SCORES > 0,
        sample_params={"auc": {}},
        sensitive_features=FRAME,
    )
    by_group: Any = frame.by_group
    names = [tuple(name.split(" & ")) for name in order]
    for name in set(table.rates) - {"auc", "ece"}:
        close(table.rates[name].estimate[:-1], [by_group[name][each] for each in names])
        close(table.rates[name].estimate[-1], frame.overall[name])
    named = m.name_groups(FRAME)
    own = m.fairness_metrics(**{kind: given}, labels=LABELS, group=named.ids, num_groups=6)
    for name, found in table.gaps.items():
        close(found.estimate, own[name], 1e-5)
    if kind == "preds":
        assert not {"auc", "ece"} & set(table.rates)
        return
    expected = [sk.roc_auc_score(LABELS[named.ids == g], SCORES[named.ids == g]) for g in range(6)]
    close(table.rates["auc"].estimate, [*expected, sk.roc_auc_score(LABELS, SCORES)])
    ids = {"group": named.ids, "num_groups": 6, "labels": LABELS}
    close(table.rates["ece"].estimate[:-1], m.group_calibration_error(**{kind: given}, **ids), 1e-5)
    close(table.rates["ece"].estimate[-1], own["ece"], 1e-5)


def test_intervals_are_those_of_the_bootstrap_over_examples():
    group = RNG.integers(0, 2, N)
    table = m.group_table(LABELS, probs=PROBS, sensitive_features=group, num_replicates=4000)
    draws = RNG.integers(0, N, (600, N))
    by_hand = {"accuracy": [], "auc": []}
    for rows in draws:
        own = rows[group[rows] == 1]
        by_hand["accuracy"].append(np.mean((SCORES[own] > 0) == LABELS[own]))
        by_hand["auc"].append(sk.roc_auc_score(LABELS[own], SCORES[own]))
    for name, values in by_hand.items():
        found = table.rates[name]
        low, high = np.quantile(values, [0.025, 0.975])
        width = high - low
        assert (
            abs(found.lower[1] - low) < 0.15 * width and abs(found.upper[1] - high) < 0.15 * width
        )
    again = m.group_table(LABELS, probs=PROBS, sensitive_features=group, num_replicates=4000)
    assert again.to_markdown() == table.to_markdown()  # the same seed


def test_a_gap_of_nothing_is_not_missed_by_its_interval():
    group = np.repeat(np.arange(8), N // 8)
    gap = m.group_table(LABELS, probs=PROBS, sensitive_features=group, num_replicates=300).gaps[
        "demographic_parity_difference"
    ]
    assert gap.estimate > 0.1 and gap.lower < 0.05 and gap.lower <= gap.estimate <= gap.upper <= 1


def test_what_a_group_cannot_define_is_undefined_and_left_out_of_gaps():
    labels, group = np.array([0, 1, 0, 1, 1, 1]), ["a", "a", "b", "b", "c", "c"]
    table = m.group_table(labels, preds=labels, sensitive_features=group)
    assert np.isnan(table.rates["false_positive_rate"].estimate[2])
    assert "undefined" in str(table).splitlines()[4]
    assert table.gaps["equalized_odds_difference"].estimate == 0


def test_names_are_merged_ordered_and_kept_as_a_category_is():
    named = m.name_groups(["Female", "male", "FEMALE ", "female", None, "n/a", float("nan")])
    assert named.names == ("FEMALE", "male")  # of equally frequent spellings the first
    assert named.ids.tolist() == [0, 1, 0, 0, -1, -1, -1]
    assert "are one group" in named.notes[0]
    bands = pd.Categorical(["old", "young", "old"], categories=["young", "mid", "old"])
    assert m.name_groups(pd.Series(bands)).names == ("young", "old")
    assert m.name_groups(np.array([10.0, 9.0, np.nan])).names == ("9", "10")
    assert m.name_groups(pd.Series([1, None, 2], dtype="Int64")).ids.tolist() == [0, -1, 1]
    ages = ["age > 79", "age <= 19", "59 < age <= 79", "19 < age <= 39"]
    assert [each[-2:] for each in m.name_groups(ages).names] == ["19", "39", "79", "79"]
    wide = m.name_groups(np.array([["a", "x"], ["b", "x"]]))
    assert wide.names == ("a & x", "b & x")


def test_what_cannot_be_tabled_is_refused():
    given = {"preds": LABELS, "sensitive_features": FRAME}
    for changed, message in (
        ({"sensitive_features": FRAME["sex"].where(np.arange(N) != 7)}, "in 1 of 400 .*row 7"),
        ({"sensitive_features": FRAME[:-1]}, "are of 399 rows, labels 400"),
        ({"sensitive_features": {}}, "columns of one length"),
        ({"sensitive_features": [None] * N}, "no example has all values"),
        ({"num_replicates": 1}, "at least 2"),
        ({"probs": PROBS}, "exactly one"),
        ({"preds": None, "logits": np.zeros((N, 3))}, "two classes, got 3"),
        ({"preds": None, "probs": np.where(np.arange(N) == 5, np.nan, PROBS)}, "first: row 5"),
    ):
        with pytest.raises(ValueError, match=message):
            m.group_table(LABELS, **{**given, **changed})
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 2\), got 1 to 2"):
        m.group_table(jnp.asarray(LABELS + 1), **given)
    assert module_function is m.group_table
