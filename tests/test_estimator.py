"""The scikit-learn face: its own checks, pandas, routing, grid search, and what is fairer."""

from typing import Any

import fairlearn.metrics
import numpy as np
import pandas as pd
import pytest
import sklearn
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.utils.estimator_checks import parametrize_with_checks

from fairjax.estimator import FairBatchClassifier, GroupThresholds

RNG = np.random.default_rng(0)
N = 1200
SEX = RNG.choice(["f", "m"], N)
Y = np.where(RNG.random(N) < np.where(SEX == "m", 0.6, 0.3), "yes", "no")
X = pd.DataFrame(
    {"x": RNG.normal(size=N) + 1.5 * (Y == "yes"), "z": RNG.normal(size=N) + (SEX == "m") * 2.0}
)
GAP = fairlearn.metrics.demographic_parity_difference


@parametrize_with_checks([GroupThresholds(LogisticRegression())])
def test_scikit_learn_s_own_checks_of_thresholds(estimator, check):
    check(estimator)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks([FairBatchClassifier(random_state=0)])
def test_scikit_learn_s_own_checks_of_fairbatch(estimator, check):
    check(estimator)


def gap(preds):
    return GAP(Y == "yes", preds == "yes", sensitive_features=SEX)


def test_both_classifiers_are_fairer_than_plain_and_take_frames():
    plain = LogisticRegression().fit(X, Y)
    shifted = GroupThresholds(LogisticRegression(), "demographic_parity", max_gap=0.02)
    shifted.fit(X, Y, sensitive_features=SEX)
    batches = FairBatchClassifier("demographic_parity", random_state=0)
    batches.fit(X, Y, sensitive_features=pd.Series(SEX))
    assert [list(vars(each)["feature_names_in_"]) for each in (batches, shifted)] == [
        ["x", "z"]
    ] * 2
    assert batches.group_names_ == tuple(shifted.thresholds_) == ("f", "m")
    before = gap(plain.predict(X))
    assert before > 0.25
    assert gap(shifted.predict(X, sensitive_features=SEX)) < 0.06
    assert gap(batches.predict(X)) < 0.6 * before
    probs = batches.predict_proba(X)
    np.testing.assert_allclose(probs.sum(1), 1)
    np.testing.assert_array_equal(batches.classes_[probs.argmax(1)], batches.predict(X))
    np.testing.assert_allclose(np.log(probs[:, 1] / probs[:, 0]), batches.decision_function(X))
    assert shifted.score(X, Y, sensitive_features=SEX) > 0.6


def test_without_a_criterion_it_is_logistic_regression():
    ours = FairBatchClassifier("none", random_state=0).fit(X, Y, sensitive_features=SEX)
    theirs = LogisticRegression(C=np.inf).fit(X, Y)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=0.03)


def test_folds_get_their_own_groups_in_cross_validation_and_grid_search():
    with sklearn.config_context(enable_metadata_routing=True):
        model: Any = GroupThresholds(LogisticRegression(), "demographic_parity")
        model.set_fit_request(sensitive_features=True).set_score_request(sensitive_features=True)
        groups = {"sensitive_features": SEX}
        scores = cross_validate(model, X, Y, cv=3, params=groups)["test_score"]
        assert (scores > 0.6).all()
        search = GridSearchCV(model, {"max_gap": [0.05, 0.3]}, cv=2)
        search.fit(X, Y, **groups)
        assert search.best_params_["max_gap"] == 0.3  # less fair, more accurate


def test_what_does_not_fit_is_refused():
    model = GroupThresholds(LogisticRegression()).fit(X, Y, sensitive_features=SEX)
    with pytest.raises(ValueError, match="give sensitive_features to predict"):
        model.predict(X)
    with pytest.raises(ValueError, match=r"groups \['q'\] were not seen"):
        model.predict(X, sensitive_features=["q"] * N)
    for estimator in (GroupThresholds(LogisticRegression()), FairBatchClassifier()):
        with pytest.raises(ValueError, match=f"of 2 rows, X of {N}"):
            estimator.fit(X, Y, sensitive_features=["f", "m"])
        with pytest.raises(ValueError, match=f"missing in 1 of {N} rows"):
            estimator.fit(X, Y, sensitive_features=[None, *SEX[1:]])
        with pytest.raises(ValueError, match="criterion must be one of"):
            estimator.set_params(criterion="fair").fit(X, Y)
    with pytest.raises(ValueError, match="one class"):
        FairBatchClassifier().fit(X, ["yes"] * N)
