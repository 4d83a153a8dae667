"""Logistic heads against scikit-learn's."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from fairjax.train.heads import fit_heads

RNG = np.random.default_rng(0)
FEATURES = (RNG.normal(size=(300, 8)) @ RNG.normal(size=(8, 8)) * 3 + 5).astype(np.float32)
FEATURES[:, 7] = 2.0  # a constant column
LABELS = (FEATURES[:, 0] - FEATURES[:, 1] + RNG.normal(size=300) * 4 > 0).astype(int)
WEIGHTS = (RNG.integers(4, size=(5, 300)) * (RNG.random((5, 300)) < 0.5)).astype(np.float32)
L2 = np.array([1e-3, 1e-2, 0.1, 1.0, 1e-2], np.float32)


def test_heads_are_those_of_scikit_learn_whatever_the_weights_penalty_and_chunks():
    heads = fit_heads(FEATURES, LABELS, example_weights=WEIGHTS, l2=L2, tolerance=1e-6)
    assert np.asarray(heads.slope).max() < 1e-6
    for head, (weights, l2) in enumerate(zip(WEIGHTS, L2, strict=True)):
        theirs = LogisticRegression(C=1 / (l2 * weights.sum()), tol=1e-10, max_iter=10_000)
        theirs.fit(FEATURES.astype(float), LABELS, sample_weight=weights)
        ours = heads.logits(FEATURES)[head]
        scores = ours[:, 1] - ours[:, 0]
        np.testing.assert_allclose(scores, theirs.decision_function(FEATURES), atol=5e-3)
        np.testing.assert_allclose(heads.kernel[head], theirs.coef_[0], atol=2e-3)
    chunked = fit_heads(
        FEATURES, LABELS, example_weights=WEIGHTS, l2=L2, tolerance=1e-6, chunk_size=2
    )
    np.testing.assert_allclose(chunked.kernel, heads.kernel, atol=1e-3)


def test_separable_labels_give_the_finite_head_that_the_penalty_asks_for():
    weights = np.ones((1, 300), np.float32)
    labels = (FEATURES[:, 0] > FEATURES[:, 0].mean()).astype(int)
    ours = fit_heads(FEATURES, labels, example_weights=weights, l2=1e-3, tolerance=1e-6)
    theirs = LogisticRegression(C=1 / 0.3, tol=1e-10, max_iter=10_000).fit(FEATURES, labels)
    np.testing.assert_allclose(ours.kernel[0], theirs.coef_[0], rtol=0.02, atol=0.01)


BAD = {
    "features must be": (FEATURES[0], LABELS, WEIGHTS, 1e-3),
    "example_weights must be": (FEATURES, LABELS, WEIGHTS[:, :9], 1e-3),
    "labels must be 0 or 1": (FEATURES, LABELS + 1, WEIGHTS, 1e-3),
    "not all 0 for a head": (FEATURES, LABELS, WEIGHTS * 0, 1e-3),
    "l2 must be positive": (FEATURES, LABELS, WEIGHTS, 0.0),
    "features must be finite": (FEATURES * np.nan, LABELS, WEIGHTS, 1e-3),
}


@pytest.mark.parametrize("message", BAD)
def test_mistakes_are_named(message):
    features, labels, weights, l2 = BAD[message]
    with pytest.raises(ValueError, match=message):
        fit_heads(features, labels, example_weights=weights, l2=l2)
