# pyright: reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false
"""Populations of masks: frozen units stay, results do not depend on company, batches are shared."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fairjax import trees
from fairjax.data import Examples
from fairjax.fairbatch import fairbatch
from fairjax.fairtune import add_lora, mask_space
from fairjax.losses import cross_entropy
from fairjax.memory import plan_chunk_size
from fairjax.models import image_model
from fairjax.optimizers import make_optimizer
from fairjax.sampling import shuffled
from fairjax.sharding import candidate_mesh
from fairjax.train import (
    Batch,
    fit,
    fit_population,
    init_fit,
    make_step,
    map_chunks,
    predict,
    start_train,
)

MODEL = image_model("vit_micro", 2, image_size=16, width=12, depth=2)
PARAMS = MODEL.init(jax.random.key(0))[0]
DATA = Examples(
    jax.random.normal(jax.random.key(1), (16, 16, 16, 3)),
    jnp.arange(16) % 2,
    jnp.arange(16) // 8,
)
IDS = {"labels": DATA.labels, "group": DATA.group, "num_classes": 2, "num_groups": 2}
SAMPLER = shuffled(**IDS, batch_size=8)
# Not Adam: keys' biases have no gradient but rounding, which Adam would scale up to full steps.
OPTIMIZER = make_optimizer("sgd_nesterov", total_steps=8, weight_decay=0.1)
BATCH = Batch(DATA.inputs[:8], DATA.labels[:8], DATA.group[:8], jnp.ones(8))


def close(a, b, tolerance=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=tolerance), a, b)


def one_bit(space, i):
    return jnp.arange(space.num_units) == i


@pytest.mark.parametrize("name", ["sgd_nesterov", "adamw"])
def test_a_step_moves_exactly_what_the_mask_trains_even_under_weight_decay(name):
    space = mask_space(PARAMS, "norm_attn_mlp")
    tunable, frozen = space.partition(PARAMS)
    optimizer = make_optimizer(
        name, total_steps=4, schedule="constant", learning_rate=0.1, weight_decay=0.5
    )
    step = jax.jit(make_step(MODEL, optimizer, bind=space.bind))
    state = start_train(tunable, {}, optimizer)
    mask = space.expand(one_bit(space, 5))  # mlp of block 1
    for _ in range(2):
        state, _ = step(state, BATCH, jax.random.key(0), mask, frozen)
    for leaf, now in trees.flatten_named(state.params).items():
        before = trees.flatten_named(tunable)[leaf]
        moved = np.asarray(now != before)
        if leaf.startswith("blocks/"):
            assert not moved[0].any()
            assert moved[1].any() == leaf.startswith("blocks/mlp")
        else:
            assert moved.any()


def test_gradients_reach_only_the_leaves_of_a_static_split():
    space = mask_space(PARAMS, "norm_attn_mlp")
    trained, rest = space.split(PARAMS, np.asarray(one_bit(space, 4)))
    step = jax.jit(make_step(MODEL, OPTIMIZER, bind=space.bind))
    static = step(start_train(trained, {}, OPTIMIZER), BATCH, jax.random.key(0), frozen=rest)[0]
    tunable, frozen = space.partition(PARAMS)
    mask = space.expand(one_bit(space, 4))
    masked = step(start_train(tunable, {}, OPTIMIZER), BATCH, jax.random.key(0), mask, frozen)[0]
    stacked = trees.stack_blocks(space.bind(static.params, rest))
    close(stacked, space.bind(masked.params, frozen))


def start(space, seed, rate, params=PARAMS):
    head = MODEL.init(jax.random.key(seed))[0]["head"]
    tunable = space.partition({**params, "head": head})[0]
    train = start_train(tunable, {}, OPTIMIZER, learning_rate=rate)
    return init_fit(train, SAMPLER, jax.random.key(7))


def test_a_candidate_trains_alike_in_any_company_order_chunk_and_on_any_device():
    space = mask_space(PARAMS, "norm_attn_mlp")
    frozen = space.partition(PARAMS)[1]
    step = make_step(MODEL, OPTIMIZER, bind=space.bind)
    masks = jax.random.bernoulli(jax.random.key(3), 0.5, (6, space.num_units))
    seeds, rates = jnp.array([0, 1, 2, 0, 1, 2]), jnp.array([1e-2, 0.1, 0.03, 1e-3, 1e-2, 0.2])

    def evaluate_fn(train, shared):
        data, frozen = shared
        logits = predict(MODEL, space.bind(train.params, frozen), {}, data.inputs)
        return cross_entropy(logits, data.labels).mean()

    @functools.partial(jax.jit, static_argnames=("chunk_size", "mesh", "shared_batches"))
    def run(seeds, rates, masks, data, frozen, shared_batches=True, **how):
        states = jax.vmap(functools.partial(start, space))(seeds, rates)
        options = {"shared_batches": shared_batches, "evaluate_fn": evaluate_fn, **how}
        return fit_population(
            step,
            states,
            data,
            SAMPLER,
            mask=jax.vmap(space.expand)(masks),
            frozen=frozen,
            num_epochs=2,
            evaluate_data=(data, frozen),
            **options,
        )

    together, history = run(seeds, rates, masks, DATA, frozen)
    assert history["evaluation"].shape == history["loss"].shape == (6, 2)
    one = candidate_mesh(jax.devices()[:1])
    for how in ({"chunk_size": 2}, {"mesh": one}, {"shared_batches": False}):
        states, again = run(seeds, rates, masks, DATA, frozen, **how)
        close(states.train.params, together.train.params)
        close(history["evaluation"], again["evaluation"])
        assert jax.tree.map(jnp.shape, states) == jax.tree.map(jnp.shape, together)
    some = jnp.array([True, True, True, False, False, False])
    states, again = run(seeds, rates, masks, DATA, frozen, active=some, chunk_size=1)
    close(*(jax.tree.map(lambda a: a[:3], s.train.params) for s in (states, together)))
    np.testing.assert_array_equal(again["evaluation"] != 0, jnp.stack([some, some], 1))
    turned, _ = run(seeds[::-1], rates[::-1], masks[::-1], DATA, frozen)
    close(jax.tree.map(lambda a: a[::-1], turned.train.params), together.train.params)
    alone, _ = run(seeds[2:3], rates[2:3], masks[2:3], DATA, frozen)
    close(alone.train.params, jax.tree.map(lambda a: a[2:3], together.train.params))
    first = jax.tree.map(lambda a: a[0], start(space, 0, 1e-3).train.params["blocks"]["norm1"])
    moved = jnp.abs(together.train.params["blocks"]["norm1"]["scale"][:, 0] - first["scale"][None])
    np.testing.assert_array_equal(moved.max(1) > 0, masks[:, 0])


def test_a_shared_batch_is_augmented_once_whatever_the_population():
    space = mask_space(PARAMS, "norm")
    frozen = space.partition(PARAMS)[1]
    step = make_step(MODEL, OPTIMIZER, bind=space.bind)
    states = jax.vmap(functools.partial(start, space))(jnp.arange(3), jnp.full(3, 1e-3))
    options = {"num_epochs": 1, "mesh": candidate_mesh(jax.devices()[:1])}

    def program(shared):
        fit_all = lambda states: fit_population(
            step,
            states,
            DATA,
            SAMPLER,
            frozen=frozen,
            shared_batches=shared,
            augment=lambda key, inputs: jnp.arcsinh(inputs),
            **options,
        )
        return str(jax.make_jaxpr(fit_all)(states))

    assert "f32[8,16,16,3] = asinh" in program(True)
    assert "f32[3,8,16,16,3] = asinh" in program(False)


def test_norm_candidates_need_a_fraction_of_a_network():
    network = image_model("vit_base_patch16_224", 2)
    params, _ = jax.eval_shape(network.init, jax.random.key(0))
    tunable, _ = mask_space(params, "norm").partition(params)
    state = jax.eval_shape(lambda p: start_train(p, {}, OPTIMIZER), tunable)
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    assert count(state) < 0.002 * count(params)


def test_lora_candidates_train_only_the_blocks_of_their_mask():
    params = add_lora(PARAMS, jax.random.key(5), rank=2)
    space = mask_space(params, "lora")
    tunable, frozen = space.partition(params)
    step = jax.jit(make_step(MODEL, OPTIMIZER, bind=space.bind))
    state = start_train(tunable, {}, OPTIMIZER)
    state, _ = step(state, BATCH, jax.random.key(0), space.expand(one_bit(space, 1)), frozen)
    b = state.params["blocks"]["lora"]["v"]["b"]
    assert not b[0].any() and b[1].any()


def test_the_average_follows_the_parameters_and_masks():
    optimizer = optax.sgd(0.1)
    step = make_step(MODEL, optimizer, ema_decay=0.75)
    state = start_train(PARAMS, {}, optimizer, ema=True)
    after, _ = jax.jit(step)(state, BATCH, jax.random.key(0))
    by_hand = jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, PARAMS, after.params)
    close(after.ema, by_hand, 1e-6)
    with pytest.raises(ValueError, match=r"ema_decay must be in \(0, 1\), got 1"):
        make_step(MODEL, optimizer, ema_decay=1.0)


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("constant", [1, 1, 1]),
        ("cosine", [1, 0.5, 0]),
        ("step", [1, 0.1, 0.01]),
        ("exponential", [1, 0.1, 0.01]),
    ],
)
def test_schedules_multiply_each_candidates_own_rate(schedule, factors):
    optimizer = make_optimizer(
        "sgd", total_steps=12, warmup_steps=2, schedule=schedule, momentum=0.0
    )
    params = {"w": jnp.zeros(())}
    state = start_train(params, {}, optimizer, learning_rate=2.0).opt_state
    seen = []
    for _ in range(13):
        with jax.numpy_dtype_promotion("standard"):
            update, state = optimizer.update({"w": jnp.ones(())}, state, params)
        seen.append(-float(jax.tree.leaves(update)[0]) / 2.0)
    np.testing.assert_allclose(seen[:2], [0.01, 0.505], rtol=1e-5)
    np.testing.assert_allclose([seen[2], seen[7], seen[12]], factors, atol=1e-6)


def test_unknown_optimizers_and_long_warm_ups_are_refused():
    with pytest.raises(ValueError, match="optimizer must be one of adamw, sgd, sgd_nesterov"):
        make_optimizer("adam", total_steps=1)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"got 5 of 5 steps"):
        make_optimizer("sgd", total_steps=5, warmup_steps=5)


def test_chunks_fit_the_memory_that_is_there():
    def lower(chunk):
        return jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x).T).lower(jnp.zeros((chunk, 64, 64))[0])

    class Program:
        def __init__(self, chunk):
            self.chunk = chunk

        def compile(self):
            return self

        def memory_analysis(self):
            sizes = {"argument": 100, "output": 20, "temp": 30 * self.chunk, "alias": 20}
            return type("Stats", (), {f"{k}_size_in_bytes": v for k, v in sizes.items()})

    plan = lambda n, free: plan_chunk_size(Program, n, available_bytes=free)
    assert plan(12, 130) == 1  # 100 + 30 each
    assert plan(12, 100 + 30 * 5) == 4  # 5 fit, 4 divides 12
    assert plan(12, 10_000) == 12
    assert plan(1, 130) == 1
    with pytest.raises(ValueError, match="one candidate needs"):
        plan(12, 129)
    assert plan_chunk_size(lower, 4) in (1, 2, 4)


def test_samplers_that_adapt_cannot_share_batches():
    sampler = fairbatch(**IDS, batch_size=8)
    with pytest.raises(ValueError, match="shared_batches does not go with"):
        fit_population(None, None, DATA, sampler, num_epochs=1, shared_batches=True)


def test_chunks_of_nothing_are_refused():
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        fit_population(None, None, DATA, SAMPLER, num_epochs=1, chunk_size=0)


def test_a_frozen_network_can_be_fitted_alone():
    space = mask_space(PARAMS, "linear")
    tunable, frozen = space.partition(PARAMS)
    step = make_step(MODEL, OPTIMIZER, bind=space.bind)
    train = start_train(tunable, {}, OPTIMIZER)
    run = jax.jit(lambda s, d, frozen: fit(step, s, d, SAMPLER, num_epochs=1, frozen=frozen))
    state, history = run(init_fit(train, SAMPLER, jax.random.key(0)), DATA, frozen)
    assert set(state.train.params) == {"head"}
    assert np.isfinite(history["loss"]).all()


def test_a_second_epoch_does_not_recompile_even_where_numbers_came_from_python():
    step = make_step(MODEL, OPTIMIZER)
    train = start_train(PARAMS, {}, OPTIMIZER, learning_rate=1e-3)
    state = init_fit(train, SAMPLER, jax.random.key(0))
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(state.train.opt_state))
    epoch: Any = jax.jit(lambda state: fit(step, state, DATA, SAMPLER, num_epochs=1)[0])
    epoch(epoch(state))
    assert epoch._cache_size() == 1


def test_what_runs_in_chunks_is_traced_once():
    traced = []

    def double(x):
        traced.append(x)
        return 2 * x

    active = jnp.array([True, False, True])
    assert map_chunks(double, jnp.arange(1, 4), 1, active).tolist() == [2, 0, 6]
    assert len(traced) == 1
