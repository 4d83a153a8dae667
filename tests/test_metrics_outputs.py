"""Logits, probabilities and predictions: whichever is given, and none for another."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.special
import sklearn.metrics as sk

from fairjax import metrics as m

RNG = np.random.default_rng(0)
N = 90
LABELS, GROUP = np.arange(N) % 2, np.arange(N) // 2 % 3
PROBS = np.round(scipy.special.expit(RNG.normal(size=N) + LABELS), 2)
IDS = {"labels": LABELS, "group": GROUP, "num_groups": 3}


def close(ours, expected):
    np.testing.assert_allclose(np.asarray(ours), expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["list", "series", "two columns", "jax", "traced"])
def test_probabilities_give_the_metrics_of_scikit_learn(kind):
    made = {
        "list": PROBS.tolist(),
        "series": pd.Series(PROBS),
        "two columns": np.stack([1 - PROBS, PROBS], axis=1),
    }
    probs = made.get(kind, jnp.asarray(PROBS, jnp.float32))

    def measured(probs):
        table = m.fairness_metrics(probs=probs, **IDS)
        return (
            table,
            m.group_brier_score(probs=probs, **IDS),
            m.brier_score(probs=probs, labels=LABELS),
        )

    table, by_group, brier = (jax.jit(measured) if kind == "traced" else measured)(probs)
    close(table["auc"], sk.roc_auc_score(LABELS, PROBS))
    close(table["accuracy"], sk.accuracy_score(LABELS, PROBS > 0.5))
    close(brier, sk.brier_score_loss(LABELS, PROBS))
    for g in range(3):
        own = g == GROUP
        close(table["group_auc"][g], sk.roc_auc_score(LABELS[own], PROBS[own]))
        close(table["group_loss"][g], sk.log_loss(LABELS[own], PROBS[own]))
        close(by_group[g], sk.brier_score_loss(LABELS[own], PROBS[own]))


def test_probabilities_of_three_classes_near_1_are_ranked_in_float64():
    labels = np.arange(N) % 3
    rest = 1e-9 * (1 + RNG.random(N))
    probs = np.stack([rest, 1 - 3 * rest, 2 * rest], axis=1)
    table = m.fairness_metrics(probs=probs, labels=labels, group=labels * 0, num_groups=1)
    close(table["auc"], sk.roc_auc_score(labels, probs, multi_class="ovr"))


@pytest.mark.parametrize("num_classes", [2, 4])
def test_predictions_alone_give_every_rate_and_leave_out_what_needs_scores(num_classes):
    labels, preds = RNG.integers(0, num_classes, (2, N))
    ids = {**IDS, "labels": labels, "num_classes": num_classes}
    table = m.fairness_metrics(preds=preds.tolist(), **ids)
    scores = 5.0 * np.eye(num_classes)[preds] + 1e-3 * RNG.normal(size=(N, num_classes))
    full = m.fairness_metrics(scores, **{**IDS, "labels": labels})
    lost = {"auc", "ece", "group_auc", "group_ece", "group_loss"}
    lost |= {"worst_group_auc", "auc_gap", "max_group_loss"}
    assert set(full) - set(table) == lost
    for name, value in table.items():
        close(value, full[name])
    jitted = jax.jit(lambda preds: m.fairness_metrics(preds=preds, **ids))(jnp.asarray(preds))
    jax.tree.map(close, jitted, jax.device_get(table))
    assert m.undefined(table, ["a", "b", "c"]) == []
    close(m.evaluate(m.prepare(preds=preds, **ids))["accuracy"], np.mean(labels == preds))


def test_exactly_one_of_logits_probabilities_and_predictions_is_taken():
    logits = np.stack([1 - PROBS, 4 * PROBS], axis=1)
    for given, found in (({}, "none"), ({"probs": PROBS, "preds": LABELS}, "probs= and preds=")):
        with pytest.raises(ValueError, match=f"exactly one of logits, probs, preds; got {found}"):
            m.fairness_metrics(**given, **IDS)
    with pytest.raises(ValueError, match="exactly one of .* got logits= and probs="):
        m.brier_score(logits, probs=PROBS, labels=LABELS)


@pytest.mark.parametrize("array_of", [np.asarray, jnp.asarray])
def test_probabilities_given_as_logits_are_refused_and_traced_ones_are_not_looked_at(array_of):
    for probs in (np.stack([1 - PROBS, PROBS], axis=1), np.eye(2)[LABELS]):
        wrong = array_of(probs.astype(np.float32))
        for function in (m.fairness_metrics, m.prepare, m.group_calibration_error):
            with pytest.raises(ValueError, match="logits are probabilities: .* as probs="):
                function(wrong, **IDS)
        failed = wrong + array_of(np.where(np.arange(N) == 4, np.nan, 0.0)[:, None].astype("f4"))
        with pytest.raises(ValueError, match="logits are probabilities"):
            m.group_brier_score(failed, **IDS)
        jax.jit(lambda wrong: m.group_brier_score(wrong, **IDS))(wrong)
    wrong = np.stack([1 - PROBS, PROBS], axis=1)
    wrong[-1] = [0.2, 1.3]  # these are logits
    m.group_brier_score(array_of(wrong.astype(np.float32)), **IDS)


def test_probabilities_that_are_none_are_refused():
    for wrong, message in (
        (PROBS * 3 - 1, r"lie in \[0, 1\], got -.*; give log-odds z as logits"),
        (np.stack([PROBS, PROBS], axis=1), r"rows of probs must sum to 1, got"),
        (LABELS, "probs must be floating .* give class numbers as preds="),
        (PROBS[:, None], "probs must be floating"),
        (PROBS[:-1], "need one value per example"),
    ):
        with pytest.raises(ValueError, match=message):
            m.fairness_metrics(probs=wrong, **IDS)
    failed = np.where(np.arange(N) == 0, np.nan, PROBS)
    assert m.fairness_metrics(probs=failed, **IDS)["n_diverged"].tolist() == [1, 0, 0]
    padded = np.where(np.arange(N) == 0, -7.0, PROBS)
    m.fairness_metrics(probs=padded, **IDS, weights=np.arange(N) > 0)
