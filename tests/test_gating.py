"""Gated kernels: the same steps, without the weight gradients that a mask throws away."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairjax import trees
from fairjax.fairtune import add_lora, mask_space
from fairjax.models import gate_kernels, image_model, reconfigure
from fairjax.optimizers import make_optimizer
from fairjax.train import Batch, make_step, map_chunks, start_train

MODEL = image_model("vit_micro", 2, image_size=16, width=12, depth=2)
STACKED = MODEL.init(jax.random.key(0))[0]
OPTIMIZER = make_optimizer("sgd_nesterov", total_steps=8, weight_decay=0.1, learning_rate=0.1)
BATCH = Batch(
    jax.random.normal(jax.random.key(1), (8, 16, 16, 3)),
    jnp.arange(8) % 2,
    jnp.arange(8) // 4,
    jnp.ones(8),
)


@pytest.mark.parametrize(
    "name, params, dtype",
    [
        ("norm_attn_mlp", STACKED, "float32"),
        ("norm_attn_mlp", STACKED, "bfloat16_products"),
        ("norm_attn_mlp", trees.unstack_blocks(STACKED), "float32"),
        ("lora", add_lora(STACKED, jax.random.key(2), rank=2), "float32"),
    ],
)
def test_a_gated_step_moves_parameters_as_an_ungated_one_does(name, params, dtype):
    model = reconfigure(MODEL, dtype=dtype)
    space = mask_space(params, name)
    tunable, frozen = space.partition(params)
    mask = space.expand(np.arange(space.num_units) % 2 == 0)

    def after(gate):
        step = jax.jit(make_step(model, OPTIMIZER, bind=space.bind, gate=gate))
        state = start_train(tunable, {}, OPTIMIZER)
        for _ in range(2):
            state, _ = step(state, BATCH, jax.random.key(0), mask, frozen)
        return state.params

    gated, plain = after(gate_kernels), after(None)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gated, plain)


def test_what_is_switched_off_gets_no_gradient_and_the_rest_its_own():
    space = mask_space(STACKED, "norm_attn_mlp")
    mask = space.expand(jnp.array([False, True, False] + [False] * 3))  # attn of block 0

    def loss(params, gate):
        params = gate_kernels(params, mask) if gate else params
        return jnp.square(MODEL.apply(params, {}, BATCH.inputs)[0]).sum()

    gated, plain = (trees.flatten_named(jax.grad(loss)(STACKED, gate)) for gate in (True, False))
    for name in ("blocks/attn/qkv/kernel", "blocks/attn/proj/kernel"):
        np.testing.assert_allclose(gated[name][0], plain[name][0], rtol=1e-4, atol=1e-6)
        assert not gated[name][1].any() and plain[name][1].any()
    assert not gated["blocks/mlp/fc1/kernel"].any()
    for name in ("blocks/attn/qkv/bias", "patch_embed/proj/kernel"):
        np.testing.assert_allclose(gated[name], plain[name], rtol=1e-4, atol=1e-6)


def test_a_candidate_alone_in_its_chunk_keeps_its_conditions():
    def fn(x):
        return jax.lax.cond(x > 0, jnp.sin, jnp.cos, x)

    xs, active = jnp.array([1.0, -1.0, 2.0]), jnp.array([True, True, False])
    program = str(
        jax.make_jaxpr(functools.partial(map_chunks, fn, chunk_size=1))(xs, active=active)
    )
    assert program.count("cond[") == 2  # is the chunk active, and the function's own
    alone = map_chunks(fn, xs, 1, active)
    np.testing.assert_allclose(alone, [np.sin(1.0), np.cos(1.0), 0.0], rtol=1e-6)
