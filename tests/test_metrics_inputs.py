"""What the metrics are given: numbers that fit by dtype only, float64, nan and inf."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.special
import sklearn.metrics as sk

from fairjax import metrics as m
from fairjax.fairbatch import fairbatch

RNG = np.random.default_rng(0)
N = 60
LABELS, GROUP = np.arange(N) % 2, np.arange(N) // 2 % 2
SCORES = RNG.normal(size=N) + LABELS
LOGITS = np.stack([np.zeros(N), SCORES], axis=1)
# Each function with arguments that it takes, of NumPy.
CALLS: dict[str, tuple[Any, dict[str, Any], int | None]] = {
    "fairness_metrics": (m.fairness_metrics, {"logits": LOGITS, "group": GROUP}, 2),
    "prepare": (m.prepare, {"logits": LOGITS, "group": GROUP}, 2),
    "group_auc": (m.group_auc, {"scores": SCORES, "group": GROUP}, 2),
    "rank_scores": (m.rank_scores, {"scores": SCORES, "group": GROUP}, 2),
    "roc_auc": (m.roc_auc, {"scores": SCORES}, None),
    "group_counts": (m.group_counts, {"preds": LABELS, "group": GROUP}, 2),
    "brier_score": (m.brier_score, {"logits": LOGITS}, None),
    "group_brier_score": (m.group_brier_score, {"logits": LOGITS, "group": GROUP}, 2),
    "expected_calibration_error": (m.expected_calibration_error, {"logits": LOGITS}, None),
    "group_calibration_error": (m.group_calibration_error, {"logits": LOGITS, "group": GROUP}, 2),
    "compare_rows": (
        functools.partial(
            m.compare_rows, shown=["accuracy"], num_replicates=3, key=jax.random.key(0)
        ),
        {"logits": LOGITS[None, None], "group": GROUP},
        2,
    ),
}


def call(name, **changed):
    function, given, num_groups = CALLS[name]
    arrays = {**given, "labels": LABELS, **changed}
    first = arrays.pop(next(iter(given)))
    more = {} if num_groups is None else {"num_groups": num_groups}
    return function(first, **arrays, **more)


def close(ours, expected):
    np.testing.assert_allclose(np.asarray(ours), expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("array_of", [np.asarray, jnp.asarray])
def test_numbers_that_fit_some_rows_only_are_refused_with_what_was_found(name, array_of):
    has_group = CALLS[name][2] is not None
    for wrong, found in ((LABELS * 2 - 1, "-1 to 1"), (LABELS + 1, "1 to 2")):
        with pytest.raises(ValueError, match=rf"labels must lie in \[0, 2\), got {found}; number"):
            call(name, labels=array_of(wrong))
        if has_group:
            with pytest.raises(ValueError, match=rf"group must lie in \[0, 2\), got {found}"):
                call(name, group=array_of(wrong))
    for wrong in (np.where(LABELS, np.nan, 0.0), LABELS * 0.5, LABELS * 1.0, LABELS == 1):
        with pytest.raises(ValueError, match="labels must be integer"):
            call(name, labels=array_of(wrong.astype(np.float32) if wrong.dtype != bool else wrong))
        if has_group:
            with pytest.raises(ValueError, match="group must be integer"):
                call(name, group=pd.Series(wrong))


def test_predictions_and_weights_that_are_none_are_refused():
    with pytest.raises(ValueError, match=r"preds must lie in \[0, 2\), got 1 to 2"):
        call("group_counts", preds=LABELS + 1)
    for wrong, found in ((np.nan, "nan"), (np.inf, "inf"), (-1.0, "-1.0")):
        with pytest.raises(ValueError, match=rf"weights must be .*not negative, got \[{found}\]"):
            call("fairness_metrics", weights=np.where(LABELS == 0, wrong, 1.0))
    with pytest.raises(ValueError, match=r"group must lie in \[0, 1\), got 0 to 1"):
        m.group_sums(jnp.ones((2, 1)), group=np.array([0, 1]), num_groups=1)
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 2\), got 0 to 2"):
        m.roc_auc(np.arange(3.0), labels=np.array([0, 1, 2]))  # as scikit-learn, too


def test_the_remedy_of_the_message_gives_the_numbers_of_scikit_learn():
    signs = LABELS * 2 - 1
    numbered = np.unique(signs, return_inverse=True)[1]
    close(m.roc_auc(SCORES, labels=numbered), sk.roc_auc_score(signs, SCORES))
    metrics = m.fairness_metrics(LOGITS, labels=numbered, group=GROUP, num_groups=2)
    close(metrics["accuracy"], sk.accuracy_score(signs, np.where(SCORES > 0, 1, -1)))
    for g in (0, 1):
        own = sk.roc_auc_score(signs[g == GROUP], SCORES[g == GROUP])
        close(metrics["group_auc"][g], own)


def test_rows_of_weight_0_may_hold_any_numbers():
    padded = functools.partial(np.concatenate, axis=0)
    weights = np.arange(N + 2) < N
    metrics = m.fairness_metrics(
        padded([LOGITS, [[np.nan, np.inf]] * 2]),
        labels=padded([LABELS, [-1, 7]]),
        group=padded([GROUP, [9, -1]]),
        num_groups=2,
        weights=weights,
    )
    jax.tree.map(close, metrics, jax.device_get(call("fairness_metrics")))


@pytest.mark.parametrize("name", sorted(set(CALLS) - {"compare_rows", "prepare", "rank_scores"}))
def test_lists_and_series_give_what_arrays_give_and_tracers_pass(name):
    ids = {"labels": LABELS} | ({"group": GROUP} if CALLS[name][2] else {})
    expected = jax.tree.leaves(call(name))
    for kind in (np.ndarray.tolist, pd.Series, lambda x: x.astype(np.uint8)):
        found = call(name, **{key: kind(array) for key, array in ids.items()})
        jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(found), expected)
    traced = jax.jit(lambda ids: jax.tree.leaves(call(name, **ids)))(ids)
    jax.tree.map(close, traced, expected)
    constants = jax.jit(lambda weights: jax.tree.leaves(call(name, weights=weights)))
    jax.tree.map(close, constants(jnp.ones(N)), expected)


# Numbers that float32 cannot tell apart.


def test_probabilities_near_1_and_large_log_odds_are_ranked_as_float64_is():
    labels = np.array([0, 1] * 8)
    near = 1 - 1e-12 * (20.0 - np.arange(16) - 4 * labels)
    large = 1e12 + np.arange(16) + 4 * labels
    whole = (2**40 + np.arange(16) + 4 * labels).astype(np.int64)
    group = np.arange(16) // 2 % 2
    for scores in (near, large, whole, -large):
        expected = sk.roc_auc_score(labels, scores)
        assert len(np.unique(scores.astype(np.float32))) < 3  # what float32 would see
        close(m.roc_auc(scores, labels=labels), expected)
        close(m.roc_auc(scores.tolist(), labels=labels), expected)
        own = m.group_auc(scores, labels=labels, group=group, num_groups=2)
        close(own, [sk.roc_auc_score(labels[g == group], scores[g == group]) for g in (0, 1)])
    logits = np.stack([np.zeros(16), large], axis=1)
    ids = {"labels": labels, "group": group, "num_groups": 2}
    close(m.fairness_metrics(logits, **ids)["auc"], sk.roc_auc_score(labels, large))
    close(m.evaluate(m.prepare(logits, **ids))["auc"], sk.roc_auc_score(labels, large))
    rows = m.compare_rows(
        logits[None, None], **ids, shown=["auc"], num_replicates=5, key=jax.random.key(0)
    )
    close(rows.metrics["auc"], [[sk.roc_auc_score(labels, large)]])


def test_large_logits_of_float64_are_predicted_and_scored_by_their_differences():
    shifted = LOGITS + 1e10
    truth = call("fairness_metrics")
    for name, value in call("fairness_metrics", logits=shifted).items():
        np.testing.assert_allclose(value, truth[name], rtol=1e-4, atol=1e-5, err_msg=name)
    probs = scipy.special.softmax(shifted, axis=1)
    np.testing.assert_allclose(
        call("brier_score", logits=shifted), sk.brier_score_loss(LABELS, probs[:, 1]), rtol=1e-4
    )


def test_three_classes_of_float64_are_ranked_as_scikit_learn_ranks_their_softmax():
    labels = np.arange(N) % 3
    logits = RNG.normal(size=(N, 3)) + 18.0 * np.eye(3)[labels]
    logits[:6] = logits[6:12]  # ties, some of them across classes
    probs = scipy.special.softmax(logits, axis=1)
    metrics = m.fairness_metrics(logits, labels=labels, group=labels * 0, num_groups=1)
    close(metrics["auc"], sk.roc_auc_score(labels, probs, multi_class="ovr"))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_probabilities_of_0_and_1_have_the_auc_and_accuracy_of_scikit_learn(dtype):
    probs = np.clip(np.round(SCORES * 2) / 4 + 0.5, 0, 1)
    assert {0.0, 1.0} < set(probs)
    with np.errstate(divide="ignore"):
        logits = np.log(np.stack([1 - probs, probs], axis=1)).astype(dtype)
    metrics = call("fairness_metrics", logits=logits)
    close(metrics["auc"], sk.roc_auc_score(LABELS, probs))
    close(metrics["accuracy"], sk.accuracy_score(LABELS, probs > 0.5))
    certain_and_wrong = (np.where(LABELS, probs, 1 - probs) == 0).any()
    assert certain_and_wrong and np.isposinf(metrics["max_group_loss"])
    close(call("brier_score", logits=logits), sk.brier_score_loss(LABELS, probs))


def test_infinite_scores_are_the_highest_and_the_lowest_and_nan_has_no_place():
    for infinite in (np.float32, np.float64):
        scores = np.where(SCORES > 1.5, np.inf, np.where(SCORES < -1, -np.inf, SCORES))
        finite = np.clip(scores, -1e3, 1e3)
        close(call("roc_auc", scores=scores.astype(infinite)), sk.roc_auc_score(LABELS, finite))
        scores[0] = np.nan
        own = call("group_auc", scores=scores.astype(infinite))
        assert np.isnan(own[0]) and np.isnan(call("roc_auc", scores=scores.astype(infinite)))
        rest = GROUP == 1
        close(own[1], sk.roc_auc_score(LABELS[rest], finite[rest]))


# One that failed.


@pytest.mark.parametrize("broken", [[np.nan, 0.0], [0.0, np.inf], [-np.inf, -np.inf]])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_failed_prediction_leaves_the_other_group_defined(broken, dtype):
    logits = LOGITS.astype(dtype)
    logits[3] = broken
    assert GROUP[3] == 1
    for name in ("group_brier_score", "group_calibration_error"):
        values, whole = call(name, logits=logits), call(name)
        assert np.isnan(values[1])
        close(values[0], whole[0])
    rest = GROUP == 0
    expected = sk.brier_score_loss(LABELS[rest], scipy.special.expit(SCORES[rest]))
    close(call("group_brier_score", logits=logits)[0], expected)
    metrics = call("fairness_metrics", logits=logits)
    cause = "the logits of 1 of 'men' (first: row 3) hold nan, inf or only -inf"
    sentences = m.undefined(metrics, ["women", "men"])
    assert f"accuracy undefined: {cause}" in sentences
    assert f"group_auc of 'women' undefined: {cause}" in sentences
    assert np.isnan(metrics["worst_group_auc"])  # a model that diverged wins no search
    without = call("fairness_metrics", logits=logits, weights=np.arange(N) != 3)
    assert m.undefined(without, ["women", "men"]) == []


def test_a_nan_or_inf_reaches_the_sum_of_its_own_group_and_column_only():
    values = RNG.normal(size=(300, 3)).astype(np.float32)
    group = RNG.integers(0, 4, 300)
    for row, column, wrong in ((5, 0, np.nan), (6, 1, np.inf), (7, 1, -np.inf), (8, 2, -np.inf)):
        values[row, column], group[row] = wrong, 2
    values[9, 1], group[9] = np.inf, 0
    with np.errstate(invalid="ignore"):
        expected = np.stack([values[group == g].sum(0) for g in range(4)])
    assert np.isnan(expected[2, :2]).all() and np.isinf(expected[2, 2]) and np.isinf(expected[0, 1])
    np.testing.assert_allclose(
        m.group_sums(values, group=group, num_groups=4), expected, rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize("signal", ["loss", "rate"])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_failed_prediction_leaves_fairbatch_the_other_cells_and_its_shares_move(signal, weighted):
    labels, group = np.arange(N) % 2, np.arange(N) // 2 % 3
    sampler = fairbatch(
        labels=labels,
        group=group,
        num_classes=2,
        num_groups=3,
        batch_size=12,
        criterion="equalized_odds",
        signal=signal,
    )
    logits = LOGITS.astype(np.float32)
    failed = logits.copy()
    failed[3] = np.nan
    cell = labels[3], group[3]
    state = sampler.init()
    weights = np.ones(N, np.float32) if weighted else None
    arrays = {"labels": jnp.asarray(labels), "group": jnp.asarray(group), "weights": weights}
    whole = sampler.measure(jnp.asarray(logits), state, **arrays)
    sums = sampler.measure(jnp.asarray(failed), state, **arrays)
    np.testing.assert_array_equal(sums.count, whole.count)
    for ours, expected in ((sums.value, whole.value), (sums.positive, whole.positive)):
        expected = np.array(expected)
        expected[cell] = np.nan
        np.testing.assert_array_equal(ours, expected)
    after, _ = sampler.adapt(sums, state)
    assert np.isfinite(after.shares).all() and (after.shares != state.shares).any()
