"""Logits of whole splits: in chunks as at once, under every transformation, without copies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairjax.models import image_model, mlp
from fairjax.train import evaluation_batch_size, predict

MODEL = mlp(3, 4, (8,))
PARAMS, _ = MODEL.init(jax.random.key(0))
INPUTS = jax.random.normal(jax.random.key(1), (23, 3))


@pytest.mark.parametrize("batch_size", [1, 5, 11, 22, 23, 100])
def test_prediction_in_chunks_equals_one_pass(batch_size):
    whole = MODEL.apply(PARAMS, {}, INPUTS)[0]
    chunked = jax.jit(lambda x: predict(MODEL, PARAMS, {}, x, batch_size=batch_size))(INPUTS)
    assert chunked.shape == (23, 4) and chunked.dtype == jnp.float32
    np.testing.assert_allclose(chunked, whole, atol=1e-5)


def test_every_chunk_goes_through_preprocess_as_it_is_stored():
    stored = jax.random.randint(jax.random.key(2), (23, 3), 0, 256).astype(jnp.uint8)
    halve = lambda x: x.astype(jnp.float32) / 255
    model = MODEL._replace(preprocess=halve)
    expected = MODEL.apply(PARAMS, {}, halve(stored))[0]
    for batch_size in (None, 5):
        logits = predict(model, PARAMS, {}, stored, batch_size=batch_size)
        np.testing.assert_allclose(logits, expected, atol=1e-5)
    np.testing.assert_allclose(
        predict(model, PARAMS, {}, np.asarray(stored), batch_size=5), expected, atol=1e-5
    )


def test_networks_and_inputs_may_be_mapped():
    several = jax.vmap(lambda key: MODEL.init(key)[0])(jax.random.split(jax.random.key(3), 2))
    many = jnp.stack([INPUTS, INPUTS + 1])
    logits = jax.jit(jax.vmap(lambda p, x: predict(MODEL, p, {}, x, batch_size=4)))(several, many)
    for i in range(2):
        params = jax.tree.map(lambda leaf, i=i: leaf[i], several)
        np.testing.assert_allclose(logits[i], MODEL.apply(params, {}, many[i])[0], atol=1e-5)


def test_a_split_that_chunks_do_not_divide_is_not_copied():
    program = jax.make_jaxpr(lambda x: predict(MODEL, PARAMS, {}, x, batch_size=5))(INPUTS)
    produced = [var.aval for eqn in program.eqns for var in eqn.outvars]
    assert "scan" in str(program)
    assert all(aval.shape[:1] != (23,) or aval.size <= 23 * 4 for aval in produced)
    assert "pad[" not in str(program)
    assert not any(aval.shape[1:] == (3,) for aval in produced)  # of inputs, outside the loop


def test_batches_are_sized_by_what_the_network_takes():
    assert evaluation_batch_size(MODEL, INPUTS) == (3 << 20) // 12
    model = image_model("vit_micro", 2)
    for size in (64, 512):  # resized to 64 either way
        stored = jax.ShapeDtypeStruct((9, size, size, 3), jnp.uint8)
        assert evaluation_batch_size(model, stored) == (3 << 20) // (4 * 64 * 64 * 3)


@pytest.mark.parametrize("batch_size", [0, -3])
def test_empty_batches_are_refused(batch_size):
    with pytest.raises(ValueError, match=f"batch_size must be at least 1, got {batch_size}"):
        predict(MODEL, PARAMS, {}, INPUTS, batch_size=batch_size)
