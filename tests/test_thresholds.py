"""Thresholds per group, beside all combinations in NumPy and beside fairlearn."""

import itertools
from typing import Any

import fairlearn.postprocessing
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.base

from fairjax import metrics, thresholds

CRITERIA = thresholds.CRITERIA


def make_case(seed, n, num_groups, num_candidates=3, levels=None):
    """Scores that tell labels apart and favour a group; every group has both labels."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.4).astype(np.int32)
    group = rng.integers(0, num_groups, n).astype(np.int32)
    labels[: 2 * num_groups] = np.arange(2 * num_groups) % 2
    group[: 2 * num_groups] = np.arange(2 * num_groups) // 2
    scores = rng.normal(size=(num_candidates, n)) + 1.5 * labels - 0.4 * group
    if levels:
        scores = np.round(scores * levels) / levels  # so that scores tie
    settings = {"labels": labels, "group": group, "num_groups": num_groups}
    return scores.astype(np.float32), settings


def rates_of(preds, labels, group, num_groups):
    """Selection, true- and false-positive rate of each group by definition."""
    members = [group == g for g in range(num_groups)]
    bases = (labels >= 0, labels == 1, labels == 0)
    return [np.array([preds[m & base].mean() for m in members]) for base in bases]


def gap_of(criterion, preds, labels, group, num_groups):
    selected, true, false = rates_of(preds, labels, group, num_groups)
    return {
        "demographic_parity": np.ptp(selected),
        "equal_opportunity": np.ptp(true),
        "equalized_odds": max(np.ptp(true), np.ptp(false)),
        "worst_group_recall": 1 - true.min(),
    }[criterion]


def every_choice(scores, labels, group, num_groups, criterion):
    """Gap and accuracy of every combination of thresholds, `[C, 2]`."""
    options = [np.append(np.unique(scores[group == g]), np.inf) for g in range(num_groups)]
    found = []
    for chosen in itertools.product(*options):
        preds = scores >= np.array(chosen)[group]
        found.append(
            (gap_of(criterion, preds, labels, group, num_groups), (preds == labels).mean())
        )
    return np.array(found)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize(("n", "num_groups", "levels"), [(50, 2, None), (50, 2, 3), (33, 3, 4)])
def test_no_combination_of_thresholds_does_better(criterion, n, num_groups, levels):
    scores, settings = make_case(n + num_groups, n, num_groups, levels=levels)
    bounds = np.array([0.0, 0.03, 0.1, 0.25, 0.6, 1.0], np.float32)
    line = thresholds.frontier(scores, **settings, criterion=criterion, max_gaps=bounds)
    for p, row in enumerate(scores):
        gaps, accuracies = every_choice(row, criterion=criterion, **settings).T
        best = [accuracies[gaps <= bound + 1e-6].max() for bound in bounds]
        np.testing.assert_allclose(line.accuracy[p], best, atol=1e-6)
        # And each choice is what it says, on predictions made with it.
        for chosen, gap, accuracy in zip(*(np.asarray(x[p]) for x in line), strict=True):
            preds = np.asarray(thresholds.apply_thresholds(row, chosen, group=settings["group"]))
            np.testing.assert_allclose(gap, gap_of(criterion, preds, **settings), atol=1e-6)
            np.testing.assert_allclose(accuracy, (preds == settings["labels"]).mean(), atol=1e-6)
        # Nothing is as accurate with a smaller gap among the choices of the line.
        assert (np.diff(line.gap[p]) >= 0).all() and (np.diff(line.accuracy[p]) >= 0).all()
        same = np.diff(line.accuracy[p]) == 0
        assert (np.diff(line.gap[p])[same] == 0).all()
    floors = np.asarray(line.accuracy[:, -1]) - np.array([0.0, 0.04, 0.1], np.float32)
    found = thresholds.group_thresholds(
        scores, **settings, criterion=criterion, min_accuracy=floors
    )
    for p, row in enumerate(scores):
        gaps, accuracies = every_choice(row, criterion=criterion, **settings).T
        smallest = gaps[accuracies >= floors[p] - 1e-6].min()
        assert smallest - 1e-6 <= found.gap[p] <= smallest + 1.1e-4
        assert found.accuracy[p] >= floors[p] - 1e-6


def test_operating_points_are_what_each_threshold_selects():
    scores, settings = make_case(0, 60, 3, levels=2)
    labels, group = settings["labels"], settings["group"]
    points = thresholds.operating_points(scores, **settings)
    for p, g in np.ndindex(len(scores), 3):
        valid = np.asarray(points.valid[p, g])
        own = group == g
        assert valid.sum() == len(np.unique(scores[p, own])) + 1
        for t in np.flatnonzero(valid):
            preds = scores[p, own] >= float(points.thresholds[p, g, t])
            assert preds.sum() == t
            assert points.correct[p, g, t] == (preds == labels[own]).sum()
            rates = [x[p, g, t] for x in (points.true_positive_rate, points.false_positive_rate)]
            expected = [preds[labels[own] == y].mean() for y in (1, 0)]
            np.testing.assert_allclose(rates, expected, atol=1e-6)
            np.testing.assert_allclose(points.selection_rate[p, g, t], preds.mean(), atol=1e-6)


def test_a_threshold_between_neighbouring_floats_still_parts_them():
    low = np.float32(1.0)
    scores = np.array([low, np.nextafter(low, np.float32(2))], np.float32)
    ids = np.array([0, 1], np.int32)
    points = thresholds.operating_points(scores, labels=ids, group=ids * 0, num_groups=1)
    assert (scores >= points.thresholds[0, 1]).tolist() == [False, True]


def test_fairlearns_randomised_thresholds_without_a_gap_are_a_little_better_and_no_more():
    scores, settings = make_case(3, 400, 2, num_candidates=1)
    labels, group = settings["labels"], settings["group"]
    row = scores[0]
    features = row[:, None].astype(np.float64)  # which fairlearn mixes with chances

    class Scores(sklearn.base.BaseEstimator):
        """A fitted classifier whose score is its input."""

        def __sklearn_is_fitted__(self):
            return True

        def fit(self, features, target):
            return self

        def predict(self, features):
            return features[:, 0]

    for criterion, theirs in (
        ("demographic_parity", "demographic_parity"),
        ("equal_opportunity", "true_positive_rate_parity"),
        ("equalized_odds", "equalized_odds"),
    ):
        optimizer = fairlearn.postprocessing.ThresholdOptimizer(
            estimator=Scores(),
            constraints=theirs,  # pyright: ignore[reportArgumentType]
            prefit=True,
            predict_method="predict",
        )
        optimizer.fit(features, labels, sensitive_features=group)
        chance = optimizer._pmf_predict(features, sensitive_features=group)[:, 1]
        randomised = np.where(labels == 1, chance, 1 - chance).mean()
        exact = thresholds.group_thresholds(row, **settings, criterion=criterion, max_gap=0.0)
        loose = thresholds.group_thresholds(row, **settings, criterion=criterion, max_gap=0.05)
        assert exact.accuracy <= randomised + 0.005  # they look for it on a grid of rates
        assert loose.accuracy >= randomised - 0.005
        if criterion != "equalized_odds":  # where equal rates need a lottery
            near = thresholds.group_thresholds(row, **settings, criterion=criterion, max_gap=0.01)
            assert abs(near.accuracy - randomised) < 0.01


def test_a_coarse_grid_of_windows_keeps_the_gap_and_nearly_the_accuracy(monkeypatch):
    scores, settings = make_case(5, 60, 3, num_candidates=2)
    ask = {"criterion": "equalized_odds", "max_gap": 0.2}
    exact = thresholds.group_thresholds(scores, **settings, **ask)
    monkeypatch.setattr("fairjax.thresholds.search.NUM_LEVELS", 16)
    jax.clear_caches()
    coarse = thresholds.group_thresholds(scores, **settings, **ask)
    jax.clear_caches()
    assert (coarse.gap <= 0.2 + 1e-6).all()
    assert (coarse.accuracy <= exact.accuracy).all()
    assert (coarse.accuracy >= exact.accuracy - 0.05).all()


def test_criterion_and_bound_may_differ_between_candidates_and_axes_are_free():
    scores, settings = make_case(7, 80, 2, num_candidates=4)
    bounds = np.array([0.0, 0.1, 0.2, 0.9], np.float32)
    together = thresholds.group_thresholds(scores, **settings, criterion=CRITERIA, max_gap=bounds)
    for p, criterion in enumerate(CRITERIA):
        alone = thresholds.group_thresholds(
            scores[p], **settings, criterion=criterion, max_gap=float(bounds[p])
        )
        jax.tree.map(lambda a, b, p=p: np.testing.assert_array_equal(a, b[p]), alone, together)
    square = thresholds.group_thresholds(
        scores.reshape(2, 2, -1),
        **settings,
        criterion=np.reshape(CRITERIA, (2, 2)),
        max_gap=bounds.reshape(2, 2),
    )
    np.testing.assert_array_equal(square.thresholds.reshape(4, 2), together.thresholds)


def test_renaming_the_groups_renames_the_thresholds():
    scores, settings = make_case(9, 200, 3, num_candidates=2)
    names = np.array([2, 0, 1], np.int32)
    renamed = {**settings, "group": names[settings["group"]]}
    for criterion in CRITERIA:
        ask = {"criterion": criterion, "max_gap": 0.05}
        first = thresholds.group_thresholds(scores, **settings, **ask)
        second = thresholds.group_thresholds(scores, **renamed, **ask)
        np.testing.assert_allclose(first.accuracy, second.accuracy, atol=1e-6)


def test_shifted_logits_give_metrics_of_the_thresholded_predictions():
    scores, settings = make_case(11, 300, 2, num_candidates=2, levels=4)
    rng = np.random.default_rng(0)
    base = rng.integers(-8, 8, scores.shape).astype(np.float32)  # sums of these are exact
    logits = np.stack([base, base + scores], axis=-1)
    ask = {"criterion": "equalized_odds", "max_gap": 0.05}
    found = thresholds.group_thresholds(scores, **settings, **ask)
    shifted = thresholds.shift_logits(logits, found.thresholds, group=settings["group"])
    preds = thresholds.apply_thresholds(scores, found.thresholds, group=settings["group"])
    np.testing.assert_array_equal(shifted.argmax(-1), preds)
    for p in range(2):
        after = metrics.fairness_metrics(shifted[p], **settings)
        before = metrics.fairness_metrics(jnp.asarray(logits[p]), **settings)
        np.testing.assert_allclose(after["accuracy"], found.accuracy[p], atol=1e-6)
        np.testing.assert_allclose(after["equalized_odds_difference"], found.gap[p], atol=1e-6)
        np.testing.assert_allclose(after["group_auc"], before["group_auc"], atol=1e-6)


@pytest.mark.parametrize("limit", [np.inf, -np.inf, 0.5])
def test_a_tie_with_the_threshold_and_an_infinite_one_survive_the_shift(limit):
    scores = np.array([0.5, 0.2, -0.7, 0.5], np.float32)
    logits = np.stack([0 * scores, scores], axis=-1)
    chosen, group = np.array([0.5, limit], np.float32), np.array([0, 0, 1, 1], np.int32)
    shifted = thresholds.shift_logits(logits, chosen, group=group)
    assert np.isfinite(shifted).all()
    expected = (scores >= chosen[group]).astype(int)
    np.testing.assert_array_equal(shifted.argmax(-1), expected)
    np.testing.assert_array_equal(
        thresholds.apply_thresholds(scores, chosen, group=group), expected
    )


def test_the_same_comes_out_where_labels_and_groups_are_traced_and_undefined_is_nan():
    scores, settings = make_case(13, 70, 2, num_candidates=2)

    @jax.jit
    def inside(scores, labels, group):
        return thresholds.group_thresholds(
            scores,
            labels=labels,
            group=group,
            num_groups=2,
            criterion="equal_opportunity",
            max_gap=0.1,
        )

    labels, group = jnp.asarray(settings["labels"]), jnp.asarray(settings["group"])
    outside = thresholds.group_thresholds(
        scores, **settings, criterion="equal_opportunity", max_gap=0.1
    )
    found = inside(jnp.asarray(scores), labels, group)
    jax.tree.map(np.testing.assert_array_equal, found, outside)
    without = inside(jnp.asarray(scores), jnp.where(group == 1, 0, labels), group)
    assert all(np.isnan(x).all() for x in without)
    broken = inside(jnp.asarray(scores).at[0, 3].set(jnp.nan), labels, group)
    assert np.isnan(broken.thresholds[0]).all() and np.isfinite(broken.thresholds[1]).all()


def test_a_second_call_compiles_nothing():
    scores, settings = make_case(15, 90, 2)
    ask = {"criterion": "equal_opportunity", "min_accuracy": 0.5}
    thresholds.group_thresholds(scores, **settings, **ask)
    with jax.no_tracing():
        thresholds.group_thresholds(scores + 1, **settings, **{**ask, "min_accuracy": 0.6})


def test_mistakes_are_named():
    scores, settings = make_case(17, 40, 2)
    labels, group = settings["labels"], settings["group"]

    def choose(scores=scores, criterion: Any = "equal_opportunity", **changes):
        bound = {} if "min_accuracy" in changes else {"max_gap": 0.1}
        return thresholds.group_thresholds(
            scores, **{**settings, **bound, "criterion": criterion, **changes}
        )

    with pytest.raises(ValueError, match="exactly one"):
        choose(max_gap=None)
    with pytest.raises(ValueError, match=r"criterion must be one of .*'parity'"):
        choose(criterion="parity")
    with pytest.raises(ValueError, match=r"one name or \(3,\) of them, got \(2,\)"):
        choose(criterion=["equalized_odds", "equalized_odds"])
    with pytest.raises(
        ValueError, match="equal_opportunity is undefined: group 1 has no positives"
    ):
        choose(labels=np.where(group == 1, 0, labels))
    with pytest.raises(ValueError, match="equalized_odds is undefined: group 0 has no negatives"):
        choose(criterion="equalized_odds", labels=np.where(group == 0, 1, labels))
    with pytest.raises(
        ValueError, match="demographic_parity is undefined: group 2 has no examples"
    ):
        choose(criterion="demographic_parity", num_groups=3)
    with pytest.raises(ValueError, match="at least two groups"):
        choose(group=group * 0, num_groups=1)
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 2\), got 0 to 2"):
        choose(labels=labels * 2)
    with pytest.raises(ValueError, match=r"group must lie in \[0, 2\), got 0 to 2"):
        choose(group=group * 2)
    with pytest.raises(ValueError, match="must be finite, 1 of 3 candidates"):
        choose(scores=np.where(np.arange(3)[:, None] == 1, np.inf, scores))
    with pytest.raises(ValueError, match="no thresholds reach min_accuracy 1.0"):
        choose(min_accuracy=1.0)
    with pytest.raises(ValueError, match="1 of 2 are nan"):
        thresholds.apply_thresholds(scores[0], np.array([np.nan, 0], np.float32), group=group)
    with pytest.raises(ValueError, match=r"group must lie in \[0, 1\)"):
        thresholds.shift_logits(
            np.stack([scores, scores], -1), np.zeros((3, 1), np.float32), group=group
        )
