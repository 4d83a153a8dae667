"""The toy set follows its recipe."""

import jax
import numpy as np
import pytest

from fairjax.data import shortcut_gaussians, synthetic_gaussians


def test_classes_have_the_means_and_covariances_of_the_recipe():
    data = synthetic_gaussians(jax.random.key(0), 200_000)
    assert data.inputs.dtype == np.float32 and data.inputs.shape == (202_000, 3)
    assert abs(data.labels.mean() - 0.5) < 0.005
    for label, mean, covariance in (
        (1, [2, 2], [[5, 1], [1, 5]]),
        (0, [-2, -2], [[10, 1], [1, 3]]),
    ):
        x = data.inputs[data.labels == label, :2]
        np.testing.assert_allclose(x.mean(0), mean, atol=0.05)
        np.testing.assert_allclose(np.cov(x.T), covariance, atol=0.15)


def density(x, mean, covariance):
    delta = x - np.array(mean)
    distance = np.einsum("ni,ij,nj->n", delta, np.linalg.inv(covariance), delta)
    return np.exp(-distance / 2) / (2 * np.pi * np.sqrt(np.linalg.det(covariance)))


def test_group_probability_is_the_density_ratio_at_the_rotated_point():
    data = synthetic_gaussians(jax.random.key(1), 200_000)
    # Row vector times R with R = [[cos, -sin], [sin, cos]] at 45 degrees.
    c = np.sqrt(0.5)
    rotated = data.inputs[:, :2].astype(np.float64) @ np.array([[c, -c], [c, c]])
    one = density(rotated, [2, 2], [[5, 1], [1, 5]])
    zero = density(rotated, [-2, -2], [[10, 1], [1, 3]])
    expected = one / (one + zero)
    for low in np.arange(0, 1, 0.1):
        rows = (expected >= low) & (expected < low + 0.1)
        tolerance = 5 * np.sqrt(0.25 / rows.sum())
        assert abs(data.group[rows].mean() - expected[rows].mean()) < tolerance
    # Sharp enough to tell the recipe's angle from the opposite rotation.
    log_likelihood = np.where(data.group == 1, np.log(expected), np.log1p(-expected)).mean()
    assert -0.44 < log_likelihood < -0.41


def test_cell_shares_match_the_published_arrays():
    data = synthetic_gaussians(jax.random.key(2), 100_000)
    shares = data.cell_counts("train") / 100_000
    # Published (y, z) of 2000: (0, 0) 726, (0, 1) 256, (1, 0) 392, (1, 1) 626; 4 sigma 0.043.
    np.testing.assert_allclose(shares, [[0.363, 0.128], [0.196, 0.313]], atol=0.043)


def test_group_is_the_third_feature_and_splits_have_the_asked_sizes():
    data = synthetic_gaussians(jax.random.key(3), 50, num_val=20, num_test=30)
    np.testing.assert_array_equal(data.inputs[:, 2], data.group)
    assert {split: len(rows) for split, rows in data.splits.items()} == {
        "train": 50,
        "val": 20,
        "test": 30,
    }


def test_same_key_same_data_other_key_other_data():
    first, again, other = (synthetic_gaussians(jax.random.key(k), 100) for k in (4, 4, 5))
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_empty_split_is_refused():
    with pytest.raises(ValueError, match="at least 1, got \\(100, 0, 1000\\)"):
        synthetic_gaussians(jax.random.key(0), 100, num_val=0)


def test_the_shortcut_helps_the_majority_misleads_the_minority_and_test_labels_are_clean():
    sizes = {"num_val": 4000, "num_test": 20_000}
    data = shortcut_gaussians(
        jax.random.key(1), 4000, minority=0.25, strength=1.5, label_noise=0.2, **sizes
    )
    for split, share in (("train", 0.2), ("test", 0.0)):
        x, labels, group = data.examples(split)
        assert np.isclose(group.mean(), 0.25)
        sign = np.where(group, -1, 1) * (2 * labels - 1)
        # a wrong label turns the sign of the mean
        assert np.isclose((x[:, 1] * sign).mean(), 1.5 * (1 - 2 * share), atol=0.06)
        assert np.isclose((x[:, 0] * (2 * labels - 1)).mean(), 1 - 2 * share, atol=0.06)
    x, labels, group = data.examples("test")
    right = (x[:, 0] + 1.5 * x[:, 1] > 0) == labels
    assert right[group == 0].mean() > 0.95 and right[group == 1].mean() < 0.3


@pytest.mark.parametrize("bad", [{"minority": 0.0}, {"strength": -1.0}, {"label_noise": 0.5}])
def test_shortcuts_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match="minority must be in"):
        shortcut_gaussians(jax.random.key(0), **bad)
    with pytest.raises(ValueError, match="a group would be empty"):
        shortcut_gaussians(jax.random.key(0), 10, minority=0.01)
