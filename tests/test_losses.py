import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
from scipy.optimize import linprog

from fairjax.losses import (
    cross_entropy,
    focal_loss,
    log_priors,
    predictions,
    soft_nearest_neighbor_loss,
    worst_weights,
)
from fairjax.models import logistic_regression
from fairjax.train import Batch, init_train, make_step


@pytest.fixture(autouse=True)
def untyped():
    """Mistakes as a user makes them: without the type checks that the tests switch on."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_one_sigmoid_output_is_refused_and_the_remedy_gives_its_cross_entropy():
    z = jnp.array([[0.3], [-1.2], [2.0]])
    labels = jnp.array([0, 1, 1])
    for function in (lambda z: cross_entropy(z, labels), predictions):
        with pytest.raises(ValueError, match=r"concatenate\(\[zeros_like\(z\), z\], 1\)"):
            jax.jit(function)(z)
    right = jnp.where(labels == 1, z[:, 0], -z[:, 0])
    logits = jnp.concatenate([jnp.zeros_like(z), z], 1)
    expected = -jax.nn.log_sigmoid(right)
    np.testing.assert_allclose(cross_entropy(logits, labels), expected, rtol=1e-6)
    np.testing.assert_array_equal(predictions(logits), [1, 0, 1])


@pytest.mark.parametrize(
    "labels", [jnp.zeros(3), jnp.zeros(3, bool), jnp.zeros((3, 1), jnp.int32), jnp.zeros(2, int)]
)
def test_labels_that_do_not_fit_the_logits_are_refused(labels):
    with pytest.raises(ValueError, match=r"labels must be integer \[3\], one for each row"):
        cross_entropy(jnp.zeros((3, 2)), labels)


def test_integer_logits_and_float_classes_are_refused():
    with pytest.raises(ValueError, match="logits must be floating .* got int32"):
        predictions(jnp.zeros((3, 2), jnp.int32))  # pyright: ignore
    with pytest.raises(ValueError, match="classes must be integer ids, got float32"):
        soft_nearest_neighbor_loss(jnp.ones((3, 2)), jnp.zeros(3), num_classes=2)


def test_numpy_and_jax_arrays_give_the_same_loss():
    logits, labels = np.random.default_rng(0).normal(size=(20, 12)), np.arange(20) % 12
    weights = np.linspace(1, 2, 12, dtype=np.float32)
    ours = cross_entropy(jnp.asarray(logits), jnp.asarray(labels), class_weights=weights)
    np.testing.assert_allclose(cross_entropy(logits, labels, class_weights=weights), ours)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_is_the_published_formula_and_has_a_slope_everywhere(gamma):
    logits = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32) * 4
    logits[0] = [60, -60, 0]  # as sure as float32 can be
    labels = jnp.asarray(np.arange(30) % 3)
    p = np.exp(logits.astype(np.float64))
    p = (p / p.sum(1, keepdims=True))[np.arange(30), labels]
    found = focal_loss(jnp.asarray(logits), labels, gamma=gamma)
    np.testing.assert_allclose(found, (1 - p) ** gamma * -np.log(p), rtol=2e-5, atol=5e-7)
    slope = jax.grad(lambda x: focal_loss(x, labels, gamma=gamma).sum())(jnp.asarray(logits))
    assert np.isfinite(slope).all()
    several = jax.vmap(lambda g: focal_loss(jnp.asarray(logits), labels, gamma=g))
    np.testing.assert_allclose(several(jnp.array([gamma, 1.0]))[0], found, rtol=1e-6)


def test_focal_loss_refuses_powers_below_zero():
    with pytest.raises(ValueError, match="gamma must be a number of at least 0, got -1"):
        focal_loss(jnp.zeros((2, 2)), jnp.zeros(2, int), gamma=-1.0)


def test_a_step_takes_another_loss_and_no_smoothing_that_it_would_ignore():
    net, sgd = logistic_regression(3), optax.sgd(0.5)
    batch = Batch(jnp.eye(3), jnp.array([0, 1, 1]), jnp.zeros(3, int), jnp.array([1.0, 2.0, 0.0]))
    loss_fn = functools.partial(focal_loss, gamma=2.0)
    state = init_train(net, sgd, jax.random.key(0))
    step = make_step(net, sgd, loss_fn=loss_fn)
    logits = net.apply(state.params, {}, batch.inputs)[0]
    each = focal_loss(logits, batch.labels, gamma=2.0)
    np.testing.assert_allclose(step(state, batch, None)[1]["loss"], each @ batch.weights / 3)
    with pytest.raises(ValueError, match="are those of cross_entropy"):
        make_step(net, sgd, loss_fn=loss_fn, label_smoothing=0.1)


@pytest.mark.parametrize("share", [0.05, 0.37, 1.0])
def test_the_mean_of_the_worst_is_the_published_infimum_and_a_linear_programs_maximum(share):
    rng = np.random.default_rng(0)
    losses, mass = rng.exponential(size=12), rng.integers(0, 4, size=12).astype(float)
    p = mass / mass.sum()
    # Rockafellar and Uryasev: the infimum over eta is at one of the losses
    infimum = min(eta + p @ np.maximum(losses - eta, 0) / share for eta in losses)
    solved = linprog(-losses, A_eq=np.ones((1, 12)), b_eq=[1], bounds=[(0, x / share) for x in p])
    weights = np.asarray(worst_weights(jnp.asarray(losses, jnp.float32), jnp.asarray(mass), share))
    np.testing.assert_allclose(weights @ losses, infimum, rtol=1e-5)
    np.testing.assert_allclose(weights @ losses, -solved.fun, rtol=1e-5)
    assert (weights <= p / share + 1e-6).all() and not weights[mass == 0].any()
    assert not np.asarray(worst_weights(jnp.ones(3), jnp.zeros(3), share)).any()


def test_a_step_trains_on_the_worst_share_of_a_batch_and_on_adjusted_logits():
    net, sgd = logistic_regression(3), optax.sgd(0.5)
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)), jnp.float32)
    labels, group = jnp.array([0, 1, 1, 0, 1, 0]), jnp.array([0, 1, 0, 1, 0, 0])
    batch = Batch(inputs, labels, group, jnp.array([1.0, 1.0, 1.0, 1.0, 0.0, 1.0]))
    state = init_train(net, sgd, jax.random.key(0))
    logits = np.asarray(net.apply(state.params, {}, inputs)[0], np.float64)
    counts = np.array([[5, 1], [2, 4]])
    prior = np.asarray(log_priors(counts, tau=0.7))
    np.testing.assert_allclose(np.exp(prior / 0.7), counts / counts.sum(0), rtol=1e-6)
    # Menon et al., equation 10: log(1 + sum of (prior ratio)^tau exp(margin))
    other, own, g = 1 - labels, np.asarray(labels), np.asarray(group)
    ratio = (counts[other, g] / counts[own, g]) ** 0.7
    each = np.log1p(ratio * np.exp(logits[np.arange(6), other] - logits[np.arange(6), own]))
    found = make_step(net, sgd, log_prior=jnp.asarray(prior))(state, batch, None)[1]
    np.testing.assert_allclose(found["loss"], each[[0, 1, 2, 3, 5]].mean(), rtol=1e-5)
    np.testing.assert_allclose(found["logits"], logits, rtol=1e-5)
    plain = np.asarray(cross_entropy(jnp.asarray(logits, jnp.float32), labels))
    worst = np.sort(plain[[0, 1, 2, 3, 5]])[-2:].mean()
    step = make_step(net, sgd, worst_share=0.4)
    moved, told = step(state, batch, None)
    np.testing.assert_allclose(told["loss"], worst, rtol=1e-5)
    # only the two worst have moved the parameters, as if they were the batch
    two = np.argsort(np.where(batch.weights > 0, plain, -1))[-2:]
    alone = make_step(net, sgd)(state, Batch(*(leaf[two] for leaf in batch)), None)[0]
    np.testing.assert_allclose(moved.params["head"]["kernel"], alone.params["head"]["kernel"])


BAD = {
    "tau must be": lambda: log_priors(np.ones((2, 2)), tau=-1.0),
    "of must be classes or groups": lambda: log_priors(np.ones((2, 2)), of="cells"),  # pyright: ignore
    "rows of every group": lambda: log_priors(np.array([[1, 0], [1, 0]])),
    r"worst_share must be in \(0, 1\], got 0": lambda: make_step(
        logistic_regression(3), optax.sgd(0.1), worst_share=0.0
    ),
    r"worst_share must be in \(0, 1\], got 2": lambda: worst_weights(jnp.ones(2), jnp.ones(2), 2),
}


@pytest.mark.parametrize("message", BAD)
def test_mistakes_with_priors_and_shares_are_named(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()
