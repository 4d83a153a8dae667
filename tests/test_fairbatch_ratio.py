"""The data-ratio step against a general solver, and by hand."""

from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from fairjax.fairbatch import data_ratio, thin_rows
from fairjax.sampling import arrange_rows, shuffled


def ids_of(counts) -> dict[str, Any]:
    """Labels and groups with these counts of the cells `[2, 2]`, in random order."""
    cell = np.random.default_rng(0).permutation(np.repeat(np.arange(4), np.ravel(counts)))
    return {"labels": cell // 2, "group": cell % 2}


def correlation(shares):
    return shares[1, 1] / shares[:, 1].sum() - shares[1, 0] / shares[:, 0].sum()


def by_solver(shares, target, gamma):
    """Four unknowns, sequential quadratic programming, the best of several starts."""
    w = shares.reshape(-1)
    constraints = [
        {"type": "eq", "fun": lambda v: v.sum() - 1},
        {"type": "eq", "fun": lambda v: correlation(v.reshape(2, 2)) - target},
        {"type": "ineq", "fun": lambda v: gamma / 2 - (v[2] + v[3] - w[2] - w[3])},
        {"type": "ineq", "fun": lambda v: gamma / 2 + (v[2] + v[3] - w[2] - w[3])},
        {"type": "ineq", "fun": lambda v: gamma / 2 - (v[1] + v[3] - w[1] - w[3])},
        {"type": "ineq", "fun": lambda v: gamma / 2 + (v[1] + v[3] - w[1] - w[3])},
    ]
    starts = [w, *np.random.default_rng(0).dirichlet(np.ones(4), 4)]
    found = [
        minimize(
            lambda v: 100 * np.sum((v - w) ** 2),
            start,
            bounds=[(1e-9, 1)] * 4,
            constraints=constraints,
            method="SLSQP",
            options={"ftol": 1e-12, "maxiter": 500},
        )
        for start in starts
    ]
    solved = [each for each in found if each.success]
    return min(each.fun for each in solved) / 100 if solved else None


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(20, 400), min_size=4, max_size=4),
    st.sampled_from([-0.3, 0.0, 0.18, 0.5]),
    st.sampled_from([0.02, 0.1, 0.4]),
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the solver, at its bounds
def test_the_nearest_shares_are_those_of_a_general_solver(counts, target, gamma):
    ids, counts = ids_of(counts), np.reshape(counts, (2, 2))
    shares = counts / counts.sum()
    expected = by_solver(shares, target, gamma)
    try:
        found = data_ratio(**ids, target_correlation=target, gamma=gamma)
    except ValueError:
        assert expected is None
        return
    assert found.min() >= 0 and np.isclose(found.sum(), 1)
    np.testing.assert_allclose(correlation(found), target, atol=1e-6)
    for axis in (0, 1):  # marginals
        assert np.abs(found.sum(axis) - shares.sum(axis)).max() <= gamma / 2 + 1e-9
    if expected is not None:
        np.testing.assert_allclose(np.sum((found - shares) ** 2), expected, atol=2e-6)


def test_shares_by_hand():
    """Halves on both sides and the correlation .6: without it, a quarter everywhere."""
    ids = ids_of([[40, 10], [10, 40]])
    np.testing.assert_allclose(data_ratio(**ids), np.full((2, 2), 0.25), atol=1e-6)
    # c of both halves: P(y | z) = .5 +- c / 2
    np.testing.assert_allclose(
        data_ratio(**ids, target_correlation=0.2), [[0.3, 0.2], [0.2, 0.3]], atol=1e-6
    )
    same = data_ratio(**ids, target_correlation=0.6, gamma=0.0)
    np.testing.assert_allclose(same, [[0.4, 0.1], [0.1, 0.4]], atol=1e-9)


def test_thinned_rows_have_the_shares_and_none_comes_twice():
    counts = np.array([[726, 256], [392, 626]])
    ids = ids_of(counts)
    shares = data_ratio(**ids, target_correlation=0.18)
    rows = thin_rows(shares, **ids, seed=3)
    assert len(np.unique(rows)) == len(rows)
    kept = np.zeros((2, 2))
    np.add.at(kept, (ids["labels"][rows], ids["group"][rows]), 1)
    assert (kept == counts).any() and (kept <= counts).all()
    np.testing.assert_allclose(kept / len(rows), shares, atol=2 / len(rows))
    np.testing.assert_array_equal(rows, thin_rows(shares, **ids, seed=3))
    assert (rows != thin_rows(shares, **ids, seed=4)).any()
    arranged = arrange_rows(**ids, num_classes=2, num_groups=2, rows=rows)
    np.testing.assert_array_equal(arranged.counts, kept)
    np.testing.assert_array_equal(thin_rows(counts / 2000, **ids).sum(), np.arange(2000).sum())


def test_as_example_weights_the_shares_hold_without_leaving_rows_out():
    counts = np.array([[60, 20], [30, 90]])
    ids = ids_of(counts)
    shares = data_ratio(**ids)
    weights = (shares * 200 / counts)[ids["labels"], ids["group"]]
    sampler = shuffled(**ids, num_classes=2, num_groups=2, batch_size=100)
    rows, _ = sampler.sample_epoch(
        jax.random.key(0),
        sampler.init(),
        example_weights=jax.numpy.asarray(weights, "float32"),
        num_batches=400,
    )
    drawn = np.zeros((2, 2))
    np.add.at(drawn, (ids["labels"][rows], ids["group"][rows]), 1)
    np.testing.assert_allclose(drawn / rows.size, shares, atol=0.01)


BAD = {
    r"target_correlation must be in \(-1, 1\), got 1": {"target_correlation": 1},
    r"gamma must be in \[0, 2\), got -0.1": {"gamma": -0.1},
    r"no shares have a correlation of 0.9 .* within 0.05": {"target_correlation": 0.9},
}


@pytest.mark.parametrize("message", BAD)
def test_correlations_that_cannot_be_had_are_refused(message):
    with pytest.raises(ValueError, match=message):
        data_ratio(**ids_of([[10, 60], [10, 20]]), **BAD[message])


def test_other_ids_and_empty_cells_are_refused():
    with pytest.raises(ValueError, match=r"labels must be in \[0, 2\), got 0 to 2"):
        data_ratio(labels=np.array([0, 1, 2]), group=np.array([0, 1, 1]))
    with pytest.raises(ValueError, match="no training rows with label 1, group 0"):
        data_ratio(labels=np.array([0, 0, 1]), group=np.array([0, 1, 1]))
    with pytest.raises(ValueError, match="leave cells without rows"):
        thin_rows(np.array([[0.97, 0.01], [0.01, 0.01]]), **ids_of([[5, 5], [5, 5]]))
