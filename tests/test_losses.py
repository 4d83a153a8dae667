import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from fairjax.losses import cross_entropy, predictions, soft_nearest_neighbor_loss


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
