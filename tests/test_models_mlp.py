"""Logistic regression and MLP against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairjax.models import logistic_regression, mlp


def test_binary_logistic_regression_has_the_tanh_link():
    model = logistic_regression(3)
    params, stats = model.init(jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == {"head": {"kernel": (3, 1), "bias": (1,)}}
    inputs = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    logits, out, stats = model.apply(params, stats, inputs)
    z = inputs @ np.asarray(params["head"]["kernel"])[:, 0]
    np.testing.assert_allclose(jax.nn.softmax(logits)[:, 1], (np.tanh(z) + 1) / 2, rtol=1e-5)
    assert list(out) == ["pooled"] and stats == {}
    np.testing.assert_array_equal(out["pooled"], inputs)


def test_logistic_regression_starts_with_standard_deviation_a_fifth_and_zero_bias():
    params, _ = logistic_regression(20_000).init(jax.random.key(0))
    assert abs(float(jnp.std(params["head"]["kernel"])) - 0.2) < 0.005
    assert float(params["head"]["bias"][0]) == 0.0


def test_logistic_regression_of_three_classes_has_a_column_each():
    model = logistic_regression(4, 3)
    params, _ = model.init(jax.random.key(1))
    inputs = jnp.ones((2, 4))
    logits, _, _ = model.apply(params, {}, inputs)
    np.testing.assert_allclose(logits[0], jnp.sum(params["head"]["kernel"], 0), rtol=1e-6)


def test_mlp_equals_its_matrix_products():
    model = mlp(4, 3, hidden=(5, 6))
    params, stats = model.init(jax.random.key(0))
    inputs = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    logits, out, _ = jax.jit(model.apply)(params, stats, inputs)
    x = inputs
    for i in "01":
        layer = params["hidden"][i]
        x = x @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])
        np.testing.assert_allclose(out[f"hidden/{i}"], x, atol=1e-5)
        x = np.maximum(x, 0)
    x = x @ np.asarray(params["head"]["kernel"]) + np.asarray(params["head"]["bias"])
    np.testing.assert_allclose(logits, x, atol=1e-5)


def test_a_population_shares_frozen_layers_under_vmap():
    model = mlp(4, 2, hidden=(5,))
    params, stats = model.init(jax.random.key(0))
    heads = jax.vmap(lambda key: model.init(key)[0]["head"])(jax.random.split(jax.random.key(1), 3))
    inputs = jax.random.normal(jax.random.key(2), (6, 4))

    def logits(head):
        return model.apply(params | {"head": head}, stats, inputs)[0]

    together = jax.vmap(logits)(heads)
    alone = jax.lax.map(logits, heads)
    np.testing.assert_allclose(together, alone, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: logistic_regression(0), "num_features"),
        (lambda: logistic_regression(3, 1), "num_classes must be at least 2, got 1"),
        (lambda: mlp(3, 2, hidden=(4, 0)), "hidden sizes"),
    ],
)
def test_sizes_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()
