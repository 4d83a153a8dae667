"""Generated data sets whose truth is known."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from fairjax.data.dataset import SPLITS, Dataset

# Per label: mean, and covariance of (x1, x2).
_MEANS = ((-2.0, -2.0), (2.0, 2.0))
_COVARIANCES = (((10.0, 1.0), (1.0, 3.0)), ((5.0, 1.0), (1.0, 5.0)))
_ANGLE = math.pi / 4


def synthetic_gaussians(
    key: PRNGKeyArray, n: int = 2000, *, num_val: int = 1000, num_test: int = 1000
) -> Dataset:
    """Two overlapping Gaussian classes whose group depends on where a point lies.

    Labels are fair coins. x given label 1 is N([2, 2], [[5, 1], [1, 5]]), given label 0 N([-2, -2],
    [[10, 1], [1, 3]]). The group is 1 with probability p(x' | 1) / (p(x' | 1) + p(x' | 0)), x'
    being x rotated clockwise by 45 degrees, so it correlates with the label without equalling it.
    The group is also the third feature.

    Args:
      key: a typed PRNG key.
      n: training rows, at least 1.
      num_val: validation rows, at least 1.
      num_test: test rows, at least 1.

    Returns:
      A `Dataset` with features (x1, x2, z) float32 as drawn (not standardised), labels and groups 0
      and 1; rows are drawn alike and split in order.

    Raises:
      ValueError: a size is below 1.

    Source: Zafar et al., AISTATS 2017, section 4.1, with the sizes of the FairBatch repository
    (2000 train, 1000 test); the validation rows are an addition.

    >>> data = synthetic_gaussians(jax.random.key(0), 200, num_val=50, num_test=50)
    >>> data.inputs.shape, data.feature_names, data.group_names
    ((300, 3), ('x1', 'x2', 'z'), ('z=0', 'z=1'))
    """
    sizes = (n, num_val, num_test)
    if min(sizes) < 1:
        raise ValueError(f"n, num_val and num_test must be at least 1, got {sizes}")
    label_key, noise_key, group_key = jax.random.split(key, 3)
    total = sum(sizes)
    labels = jax.random.bernoulli(label_key, 0.5, (total,)).astype(jnp.int32)
    noise = jax.random.normal(noise_key, (total, 2), jnp.float32)
    roots = jnp.asarray(np.linalg.cholesky(_COVARIANCES), jnp.float32)
    points = jnp.asarray(_MEANS, jnp.float32)[labels] + jnp.einsum(
        "nij,nj->ni", roots[labels], noise, precision="highest"
    )
    group = jax.random.bernoulli(group_key, _group_probability(points)).astype(jnp.int32)
    inputs = jnp.concatenate([points, group[:, None].astype(jnp.float32)], axis=1)
    bounds = np.cumsum((0, *sizes))
    return Dataset(
        name="synthetic_gaussians",
        inputs=np.asarray(inputs),
        labels=np.asarray(labels),
        group=np.asarray(group),
        label_names=("y=0", "y=1"),
        group_names=("z=0", "z=1"),
        splits={
            split: np.arange(bounds[s], bounds[s + 1], dtype=np.int32)
            for s, split in enumerate(SPLITS)
        },
        feature_names=("x1", "x2", "z"),
    )


def _group_probability(points: jax.Array) -> jax.Array:
    """P(z = 1 | x) of points `[N, 2]`, float32 `[N]`."""
    cos, sin = math.cos(_ANGLE), math.sin(_ANGLE)
    x1, x2 = points[:, 0], points[:, 1]
    rotated = jnp.stack([cos * x1 + sin * x2, -sin * x1 + cos * x2], axis=1)
    return jax.nn.sigmoid(_log_density(rotated, 1) - _log_density(rotated, 0))


def _log_density(points: jax.Array, label: int) -> jax.Array:
    """log p(x | label) of points `[N, 2]` up to a constant that labels share, float32 `[N]`."""
    precision = np.linalg.inv(_COVARIANCES[label])
    d1, d2 = points[:, 0] - _MEANS[label][0], points[:, 1] - _MEANS[label][1]
    distance = (
        float(precision[0, 0]) * d1 * d1
        + 2 * float(precision[0, 1]) * d1 * d2
        + float(precision[1, 1]) * d2 * d2
    )
    return -0.5 * (distance + math.log(np.linalg.det(_COVARIANCES[label])))


def shortcut_gaussians(
    key: PRNGKeyArray,
    n: int = 2000,
    *,
    minority: float = 0.2,
    strength: float = 1.0,
    label_noise: float = 0.0,
    num_val: int = 1000,
    num_test: int = 1000,
) -> Dataset:
    """A feature that tells the label, and one that tells it to the majority and misleads others.

    Labels are fair coins, s = 2 y - 1. x1 is N(s, 1) for everyone; x2 is N(strength s, 1) in the
    majority (group 0) and N(-strength s, 1) in the minority. A linear network that minimises the
    mean loss leans on x2 the more the smaller the minority is; at strength 0 nobody is misled.
    Every split holds the groups in the same shares, rounded.

    Args:
      key: a typed PRNG key.
      n: training rows, at least 4.
      minority: share of group 1, in (0, 1).
      strength: of the shortcut, at least 0.
      label_noise: chance in [0, 0.5) that a training or validation label is wrong; test is clean.
      num_val: validation rows, at least 4.
      num_test: test rows, at least 4.

    Returns:
      A `Dataset` with features (x1, x2) float32, split in order. The best linear scores for each
      group alone are x1 + strength x2 and x1 - strength x2.

    Raises:
      ValueError: a size or number out of range, or a group that would be empty.

    Source: the two-group Gaussian mixture of Sagawa et al., ICML 2020, section 4, in two features.

    >>> data = shortcut_gaussians(jax.random.key(0), 200, minority=0.1, num_val=50, num_test=50)
    >>> data.cell_counts("train").sum(0).tolist()
    [180, 20]
    """
    sizes = (n, num_val, num_test)
    if min(sizes) < 4:
        raise ValueError(f"n, num_val and num_test must be at least 4, got {sizes}")
    if not (0 < minority < 1 and strength >= 0 and 0 <= label_noise < 0.5):
        raise ValueError(
            "minority must be in (0, 1), strength at least 0 and label_noise in [0, 0.5), "
            f"got {minority}, {strength} and {label_noise}"
        )
    few = [round(minority * size) for size in sizes]
    if min(few) < 1 or any(small >= size for small, size in zip(few, sizes, strict=True)):
        raise ValueError(f"a group would be empty: minority {minority} of {sizes} rows")
    total, bounds = sum(sizes), np.cumsum((0, *sizes))
    group = np.concatenate([np.arange(size) < k for size, k in zip(sizes, few, strict=True)])
    label_key, noise_key, flip_key = jax.random.split(key, 3)
    labels = np.asarray(jax.random.bernoulli(label_key, 0.5, (total,)))
    noise = np.asarray(jax.random.normal(noise_key, (total, 2), jnp.float32))
    sign = 2.0 * labels - 1.0
    means = np.stack([sign, strength * np.where(group, -sign, sign)], axis=1)
    flipped = np.asarray(jax.random.bernoulli(flip_key, label_noise, (total,)))
    flipped = flipped & (np.arange(total) < bounds[2])
    return Dataset(
        name="shortcut_gaussians",
        inputs=(means + noise).astype(np.float32),
        labels=(labels != flipped).astype(np.int32),
        group=group.astype(np.int32),
        label_names=("y=0", "y=1"),
        group_names=("majority", "minority"),
        splits={
            split: np.arange(bounds[s], bounds[s + 1], dtype=np.int32)
            for s, split in enumerate(SPLITS)
        },
        feature_names=("x1", "x2"),
    )
