# pyright: reportArgumentType=false
"""Populations over devices: the same numbers anywhere, and what only fills up costs nothing."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fairjax.data import Examples
from fairjax.fairbatch import fairbatch
from fairjax.models import logistic_regression
from fairjax.sampling import shuffled
from fairjax.sharding import candidate_mesh
from fairjax.train import (
    fit,
    fit_population,
    init_fit,
    init_population,
    init_train,
    make_step,
    map_chunks,
    measure_cells,
    replicate,
    start_train,
)

RNG = np.random.default_rng(0)
DATA = Examples(
    jnp.asarray(RNG.normal(size=(40, 3)), jnp.float32),
    jnp.asarray(RNG.integers(0, 2, 40), jnp.int32),
    jnp.asarray(RNG.integers(0, 2, 40), jnp.int32),
)
IDS = {"labels": DATA.labels, "group": DATA.group, "num_classes": 2, "num_groups": 2}
MODEL = logistic_regression(3)
OPTIMIZER = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
STEP = make_step(MODEL, OPTIMIZER)
SAMPLER = fairbatch(**IDS, batch_size=10, step_size=0.1)
ONE = candidate_mesh(jax.devices()[:1])


def close(a, b, tolerance=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=tolerance), a, b)


def start(num_runs):
    rates = jnp.linspace(0.1, 0.5, num_runs)
    keys = jax.random.split(jax.random.key(1), num_runs)
    choices = {"criterion": jnp.arange(num_runs) % 4}
    begin = lambda keys, choices, rates: init_population(
        *jax.vmap(MODEL.init)(keys),
        OPTIMIZER,
        SAMPLER,
        keys=keys,
        choices=choices,
        learning_rate=rates,
    )
    return jax.jit(begin)(keys, choices, rates)


def run(states, active=None, **how):
    options = {"num_epochs": 2, **how}
    if "update_every" not in how:
        options["measure_fn"] = partial(measure_cells, MODEL, SAMPLER)
    program = jax.jit(
        lambda states, active, data: fit_population(
            STEP, states, data, SAMPLER, active=active, **options
        )
    )
    return program(states, active, DATA)


@pytest.mark.parametrize("update_every", [None, 2])
def test_a_population_equals_its_members_alone(update_every):
    if update_every is None:
        cadence = {"measure_fn": partial(measure_cells, MODEL, SAMPLER)}
    else:
        cadence = {"update_every": update_every}
    states = start(5)
    together, history = run(states, **cadence)
    alone = jax.jit(lambda s, d: fit(STEP, s, d, SAMPLER, num_epochs=2, **cadence))
    for i in range(5):
        state, by_itself = alone(jax.tree.map(lambda leaf, i=i: leaf[i], states), DATA)
        mine = jax.tree.map(lambda leaf, i=i: leaf[i], (together, history))
        close((mine[0].train.params, mine[0].sampler), (state.train.params, state.sampler))
        close(mine[1], by_itself)
    moved = np.abs(np.asarray(history["shares"]) - np.asarray(SAMPLER.init().shares)).max((1, 2, 3))
    assert moved[0] == 0 and (moved[1:4] > 0.05).all()  # the first has the criterion "none"


@pytest.mark.parametrize("num_runs", [1, 3, 8, 11])
def test_runs_are_spread_over_devices_by_default_with_the_result_of_one(num_runs):
    states = start(num_runs)
    (spread, history), (single, same) = run(states), run(states, mesh=ONE)
    kernel = spread.train.params["head"]["kernel"]
    if num_runs == 8:
        assert len(kernel.sharding.device_set) == 8
    assert kernel.shape[0] == history["loss"].shape[0] == num_runs
    close(
        (spread.train.params, spread.sampler, history), (single.train.params, single.sampler, same)
    )


@pytest.mark.parametrize("chunk_size", [None, 1, 2, 3])
def test_eleven_runs_of_which_some_are_active_train_alike_in_any_chunk_on_eight_devices(chunk_size):
    states, active = start(11), jnp.arange(11) % 3 != 1
    everyone, _ = run(states, mesh=ONE)
    some, history = run(states, active, chunk_size=chunk_size)
    keep = np.flatnonzero(active)
    pick = lambda tree: jax.tree.map(lambda leaf: leaf[keep], tree)
    close(pick(some.train.params), pick(everyone.train.params))
    assert history["loss"].shape == (11, 2)
    if chunk_size == 1:  # nothing was done for the others
        np.testing.assert_array_equal(np.asarray(history["loss"]).any(1), active)


def test_runs_that_fill_up_the_devices_are_not_trained():
    mesh, seen = candidate_mesh(jax.devices()[:4]), []

    def evaluate_fn(train, _):
        jax.debug.callback(lambda step: seen.append(int(step)), train.step)
        return train.step

    run(start(5), evaluate_fn=evaluate_fn, mesh=mesh, chunk_size=1)
    jax.effects_barrier()
    assert len(seen) == 5 * 2


def test_shared_batches_over_devices_equal_those_of_one():
    sampler = shuffled(**IDS, batch_size=10)
    params, batch_stats = jax.vmap(MODEL.init)(jax.random.split(jax.random.key(0), 6))
    keys = replicate(jax.random.key(3), 6)
    states = init_population(
        params, batch_stats, OPTIMIZER, sampler, keys=keys, learning_rate=jnp.linspace(0.1, 1, 6)
    )

    def train(**how):
        return jax.jit(lambda s, d: fit_population(STEP, s, d, sampler, num_epochs=2, **how))(
            states, DATA
        )

    apart, losses = train(mesh=ONE)
    for mesh in (None, ONE, candidate_mesh(jax.devices()[:4])):
        shared, same = train(mesh=mesh, shared_batches=True)
        close((apart.train.params, losses), (shared.train.params, same))


def test_a_population_starts_as_its_members_would_by_hand():
    states = start(3)
    keys = jax.random.split(jax.random.key(1), 3)

    def one(key, criterion, rate):
        train = init_train(MODEL, OPTIMIZER, key, learning_rate=rate)
        return init_fit(train, SAMPLER, key, criterion=criterion)

    by_hand = jax.vmap(one)(keys, jnp.arange(3), jnp.linspace(0.1, 0.5, 3))
    plain = lambda state: state._replace(key=jax.random.key_data(state.key))
    close(plain(states), plain(by_hand), 1e-6)
    assert jax.tree.structure(states) == jax.tree.structure(by_hand)
    averaged = init_population(*jax.vmap(MODEL.init)(keys), OPTIMIZER, SAMPLER, keys=keys, ema=True)
    close(averaged.train.ema, averaged.train.params, 0)
    assert states.train.ema is None


def test_a_population_of_unequal_length_or_with_unknown_numbers_is_refused():
    params, batch_stats = replicate(MODEL.init(jax.random.key(0)), 3)
    keys = jax.random.split(jax.random.key(1), 3)
    with pytest.raises(ValueError, match="inconsistent sizes"):
        init_population(params, batch_stats, OPTIMIZER, SAMPLER, keys=keys[:2])
    with pytest.raises(KeyError, match="momentum"):
        init_population(params, batch_stats, OPTIMIZER, SAMPLER, keys=keys, momentum=jnp.zeros(3))


def test_chunks_with_idle_entries_have_the_largest_size_that_divides():
    sizes = []

    def fn(x):
        sizes.append(x)
        return x + 1

    for chunk_size, expected in ((4, 3), (5, 3), (9, 9), (None, 9), (1, 1)):
        program = str(
            jax.make_jaxpr(lambda xs, c=chunk_size: map_chunks(fn, xs, c, xs > 0))(jnp.arange(9.0))
        )
        assert f"f32[{9 // expected},{expected}]" in program
    np.testing.assert_array_equal(
        map_chunks(fn, jnp.arange(6.0), 4, jnp.arange(6) > 2), [0, 0, 0, 4, 5, 6]
    )


@pytest.mark.parametrize("shared_batches", [False, True])
@pytest.mark.parametrize("idle", [False, True])
def test_more_runs_in_equal_chunks_are_no_more_temporary_memory(shared_batches, idle):
    model, sampler = logistic_regression(500), shuffled(**IDS, batch_size=10)
    data = DATA._replace(inputs=jnp.zeros((40, 500)))

    def compile_for(num_runs):
        states = jax.eval_shape(
            lambda keys: init_population(
                *jax.vmap(model.init)(keys), OPTIMIZER, sampler, keys=keys
            ),
            jax.random.split(jax.random.key(0), num_runs),
        )
        train = jax.jit(
            lambda states, active, data: fit_population(
                make_step(model, OPTIMIZER),
                states,
                data,
                sampler,
                num_epochs=2,
                active=active if idle else None,
                chunk_size=4,
                shared_batches=shared_batches,
                mesh=ONE,
            ),
            donate_argnums=0,
        )
        memory = train.lower(states, jnp.ones(num_runs, bool), data).compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes, memory.alias_size_in_bytes

    (few, small), (many, large) = compile_for(16), compile_for(64)
    assert large - small >= 48 * 500 * 4  # the parameters of 48 more
    assert many - few < 0.1 * (large - small)


def test_runs_train_alike_where_their_number_is_no_multiple_of_the_chunk():
    everyone, history = run(start(7), mesh=ONE)
    chunks, same = run(start(7), mesh=ONE, chunk_size=3)
    close((everyone.train.params, history), (chunks.train.params, same))


def test_all_state_of_a_run_keeps_its_shapes_and_types_when_trained():
    before = start(2)
    after, _ = run(before)
    kinds = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
    assert kinds(before) == kinds(after)
    assert start_train({"w": jnp.ones(2)}, {}, OPTIMIZER).ema is None
