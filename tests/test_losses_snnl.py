"""Soft nearest-neighbour loss against worked numbers and a slow oracle."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from fairjax.losses import soft_nearest_neighbor_loss


def oracle(features, classes, *, euclidean=False, temperature=1.0, weights=None, published=False):
    """One loss per channel by definition, float64."""
    batch = len(features)
    weights = np.ones(batch) if weights is None else weights
    losses = []
    for c in range(features.shape[-1]):
        x = features[..., c].reshape(batch, -1).astype(np.float64)
        total, mass = 0.0, 0.0
        for i in range(batch):
            near = np.zeros(batch)
            for j in range(batch):
                norms = np.linalg.norm(x[i]) * np.linalg.norm(x[j])
                cosine = x[i] @ x[j] / norms if norms else 0.0
                d = ((x[i] - x[j]) ** 2).sum() if euclidean else 1 - cosine
                near[j] = weights[j] * np.exp(-d / temperature)
            others = np.arange(batch) != i
            same = (classes == classes[i]) & (others | published)
            if weights[i] and near[same].sum() and near[others].sum():
                total += weights[i] * -np.log(near[same].sum() / near[others].sum())
                mass += weights[i]
        losses.append(total / mass)
    return np.array(losses)


@pytest.fixture(scope="module")
def batch():
    """12 examples of 3 classes, 2 x 3 maps of 5 channels; channel 1 is 0 for some, 2 shows it."""
    rng = np.random.default_rng(0)
    classes = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2], np.int32)
    features = rng.normal(size=(12, 2, 3, 5)).astype(np.float32)
    features[::3, :, :, 1] = 0
    features[..., 2] += 2 * np.eye(3)[classes][:, None]
    return features, classes


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"published": True},
        {"temperature": 0.5},
        {"euclidean": True, "temperature": 7.0},
        {"weights": np.array([1, 0, 2, 1, 1, 1, 0.5, 1, 1, 0, 1, 1])},
        {"weights": np.array([1, 0, 2, 1, 1, 1, 0.5, 1, 1, 0, 1, 1]), "published": True},
        {"weights": np.array([1, 0, 2, 1, 1, 1, 0.5, 1, 1, 0, 0, 1]), "euclidean": True},
    ],
    ids=str,
)
def test_every_variant_agrees_with_the_definition(batch, options):
    features, classes = batch
    ours = soft_nearest_neighbor_loss(
        jnp.asarray(features),
        jnp.asarray(classes),
        num_classes=3,
        distance="euclidean" if options.get("euclidean") else "cosine",
        temperature=options.get("temperature", 1.0),
        self_in_numerator=options.get("published", False),
        weights=None if "weights" not in options else jnp.asarray(options["weights"], jnp.float32),
        chunk_size=2,
    )
    np.testing.assert_allclose(ours, oracle(features, classes, **options), atol=1e-5)


@pytest.mark.parametrize(
    "chunk_size, dtype", [(None, "float32"), (48, "float32"), (None, "bfloat16_products")]
)
def test_many_channels_each_have_the_loss_they_have_alone(chunk_size, dtype):
    rng = np.random.default_rng(1)
    features = jnp.asarray(rng.normal(size=(8, 3, 74)).astype(np.float32))
    classes = jnp.arange(8) % 2
    loss = functools.partial(
        soft_nearest_neighbor_loss, classes=classes, num_classes=2, dtype=dtype
    )
    together = loss(features, chunk_size=chunk_size)
    for channel in (0, 31, 32, 36, 37, 42, 43, 63, 64, 73):
        alone = loss(features[..., channel : channel + 1])
        np.testing.assert_allclose(together[channel], alone[0], rtol=1e-6)


def test_identical_features_give_the_entropy_of_the_groups_and_the_published_offset():
    features, group = jnp.ones((128, 4, 1)), jnp.arange(128) % 2
    standard = soft_nearest_neighbor_loss(features, group, num_classes=2)
    published = soft_nearest_neighbor_loss(features, group, num_classes=2, self_in_numerator=True)
    np.testing.assert_allclose([standard[0], published[0]], [0.7011, 0.6853], atol=1e-4)
    np.testing.assert_allclose(standard[0], -np.log(63 / 127), atol=1e-5)


def test_a_batch_of_one_group_scores_zero_and_slightly_below_as_published():
    features = jnp.ones((128, 4, 1))
    group = jnp.zeros(128, jnp.int32)
    standard = soft_nearest_neighbor_loss(features, group, num_classes=2)
    published = soft_nearest_neighbor_loss(features, group, num_classes=2, self_in_numerator=True)
    np.testing.assert_allclose([standard[0], published[0]], [0.0, -np.log(128 / 127)], atol=1e-6)


def test_chunks_padding_and_the_order_of_examples_change_nothing(batch):
    features, classes = map(jnp.asarray, batch)
    expected = soft_nearest_neighbor_loss(features, classes, num_classes=3)
    order = np.random.default_rng(1).permutation(12)
    shuffled = soft_nearest_neighbor_loss(
        features[order], classes[order], num_classes=3, chunk_size=5
    )
    padded = soft_nearest_neighbor_loss(
        jnp.concatenate([features, 7 * features[:3]]),
        jnp.concatenate([classes, classes[:3]]),
        num_classes=4,
        weights=jnp.repeat(jnp.array([1.0, 0.0]), jnp.array([12, 3]), total_repeat_length=15),
    )
    np.testing.assert_allclose(shuffled, expected, atol=1e-6)
    np.testing.assert_allclose(padded, expected, atol=1e-6)


def test_products_of_bfloat16_are_the_losses_of_rounded_features_in_nearly_the_same_order():
    rng = np.random.default_rng(3)
    group = np.arange(64) % 2
    carried = np.linspace(0.0, 1.0, 40) * rng.choice([-1, 1], size=(64, 40))[group]
    features = (rng.normal(size=(64, 9, 40)) + carried[:, None]).astype(np.float32)
    loss = functools.partial(soft_nearest_neighbor_loss, classes=jnp.asarray(group), num_classes=2)
    exact, fast = (
        loss(jnp.asarray(features)),
        loss(jnp.asarray(features), dtype="bfloat16_products"),
    )
    rounded = jnp.asarray(features).astype(jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_allclose(fast, loss(rounded), atol=2e-6)
    assert 0 < np.abs(fast - exact).max() < 2e-4
    ranks: Any = scipy.stats.kendalltau(exact, fast)
    assert ranks.statistic > 0.98
    slope = jax.grad(lambda x: loss(x, dtype="bfloat16_products").sum())(jnp.asarray(features))
    of_rounded = jax.grad(lambda x: loss(x).sum())(rounded)
    assert np.abs(of_rounded).max() > 1e-3
    np.testing.assert_allclose(slope, of_rounded, atol=2e-2 * np.abs(of_rounded).max())


def test_far_apart_features_do_not_underflow():
    features = 100.0 * jnp.arange(6, dtype=jnp.float32)[:, None, None]
    group = jnp.array([0, 0, 0, 1, 1, 1])
    loss = soft_nearest_neighbor_loss(features, group, num_classes=2, distance="euclidean")
    # The ends have a neighbour of their own group alone; 2 and 3 have one of each group.
    np.testing.assert_allclose(loss, [2 * np.log(2) / 6], atol=1e-5)


def test_the_chosen_temperature_gives_a_loss_no_fixed_one_beats_by_much(batch):
    features, classes = map(jnp.asarray, batch)
    best = soft_nearest_neighbor_loss(features, classes, num_classes=3, temperature=None)
    fixed = jax.vmap(
        lambda t: soft_nearest_neighbor_loss(features, classes, num_classes=3, temperature=t)
    )(jnp.logspace(-2, 2, 50, dtype=jnp.float32))
    np.testing.assert_allclose(best, fixed.min(0), atol=0.01)
    assert np.ptp(np.asarray(fixed), axis=0).min() > 0.05


def test_the_gradient_is_finite_at_zero_vectors_and_singletons(batch):
    features, classes = batch
    classes = np.where(np.arange(12) == 11, 3, classes).astype(np.int32)

    def total(features, **options):
        return soft_nearest_neighbor_loss(
            features, jnp.asarray(classes), num_classes=4, **options
        ).sum()

    gradient = jax.jit(jax.grad(total))(jnp.asarray(features))
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 1e-3
    nudge = np.zeros_like(features)
    nudge[4, 0, 0, 0] = 1e-2
    slope = (total(jnp.asarray(features + nudge)) - total(jnp.asarray(features - nudge))) / 2e-2
    np.testing.assert_allclose(gradient[4, 0, 0, 0], slope, atol=1e-3)


def test_bad_arguments_say_what_is_accepted():
    features, group = jnp.ones((4, 2)), jnp.zeros(4, jnp.int32)
    for match, options in {
        "features must be": {"features": jnp.ones(4)},
        "got shapes": {"classes": jnp.zeros(3, jnp.int32)},
        "'cosine' or 'euclidean'": {"distance": "l1"},
        "temperature must be positive": {"temperature": 0.0},
        "float32, bfloat16_products": {"dtype": "bfloat16"},
        "chunk_size": {"chunk_size": 0},
    }.items():
        arguments: dict = {"features": features, "classes": group, "num_classes": 2} | options
        with pytest.raises(ValueError, match=match):
            soft_nearest_neighbor_loss(**arguments)
