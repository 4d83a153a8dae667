"""The engine: one step by hand, runs that do not depend on how they are batched together."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fairjax.data import Examples, synthetic_gaussians
from fairjax.fairbatch import fairbatch
from fairjax.losses import cross_entropy
from fairjax.models import logistic_regression
from fairjax.sampling import shuffled
from fairjax.train import (
    Batch,
    fit,
    fit_population,
    init_fit,
    init_train,
    make_step,
    measure_cells,
    predict,
    start_train,
)

DATA = synthetic_gaussians(jax.random.key(0), 400, num_val=50, num_test=50)
TRAIN = Examples(*map(jnp.asarray, DATA.examples("train")))
IDS = {"labels": TRAIN.labels, "group": TRAIN.group, "num_classes": 2, "num_groups": 2}
MODEL = logistic_regression(3)


def sampler_of(**options):
    options = {"criterion": "equal_opportunity", "batch_size": 50, **options}
    return fairbatch(**IDS, **options)


def plain_sampler():
    return shuffled(**IDS, batch_size=50)


def start(sampler, optimizer, seed=0, **choices):
    train = init_train(MODEL, optimizer, jax.random.key(seed))
    return init_fit(train, sampler, jax.random.key(seed), **choices)


def batch_of(rows, weights):
    return Batch(rows.inputs, rows.labels, rows.group, weights)


def close(a, b, tolerance=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=tolerance), a, b)


def test_cross_entropy_by_hand():
    logits = jnp.log(jnp.array([[0.25, 0.75], [0.5, 0.5]]))
    labels = jnp.array([1, 0])
    np.testing.assert_allclose(cross_entropy(logits, labels), -np.log([0.75, 0.5]), rtol=1e-6)
    smooth = cross_entropy(logits, labels, label_smoothing=0.2)
    by_hand = -(0.9 * np.log([0.75, 0.5]) + 0.1 * np.log([0.25, 0.5]))
    np.testing.assert_allclose(smooth, by_hand, rtol=1e-6)
    weighted = cross_entropy(logits, labels, class_weights=jnp.array([3.0, 2.0]))
    np.testing.assert_allclose(weighted, -np.log([0.75, 0.5]) * [2, 3], rtol=1e-6)


def test_cross_entropy_agrees_with_optax_under_smoothing():
    key = jax.random.key(0)
    logits, labels = jax.random.normal(key, (20, 5)), jnp.arange(20) % 5
    targets = optax.smooth_labels(jax.nn.one_hot(labels, 5), 0.1)
    np.testing.assert_allclose(
        cross_entropy(logits, labels, label_smoothing=0.1),
        optax.softmax_cross_entropy(logits, targets),
        rtol=1e-5,
    )


def test_one_step_is_gradient_descent_on_the_weighted_mean():
    step = make_step(MODEL, optax.sgd(0.1))
    params = {"head": {"kernel": jnp.array([[0.5], [-0.2], [0.1]]), "bias": jnp.array([0.3])}}
    x = jnp.array([[1.0, 2.0, 3.0], [0.0, 1.0, 0.0], [9.0, 9.0, 9.0]])
    batch = Batch(x, jnp.array([1, 0, 1]), jnp.array([0, 1, 1]), jnp.array([1.0, 3.0, 0.0]))
    state, metrics = step(start_train(params, {}, optax.sgd(0.1)), batch, jax.random.key(0))
    z = x[:2] @ params["head"]["kernel"][:, 0] + 0.3
    p = jax.nn.sigmoid(2 * z)
    share = jnp.array([0.25, 0.75])
    losses = -jnp.log(jnp.array([p[0], 1 - p[1]]))
    np.testing.assert_allclose(metrics["loss"], jnp.sum(share * losses), rtol=1e-5)
    slope = 2 * share * (p - jnp.array([1.0, 0.0]))
    expected = params["head"]["kernel"][:, 0] - 0.1 * slope @ x[:2]
    np.testing.assert_allclose(state.params["head"]["kernel"][:, 0], expected, rtol=1e-5)
    assert int(state.step) == 1


def test_padding_cannot_change_a_step():
    step = make_step(MODEL, optax.adam(0.01))
    state = init_train(MODEL, optax.adam(0.01), jax.random.key(0))
    rows = jax.tree.map(lambda a: a[:8], TRAIN)
    short = batch_of(jax.tree.map(lambda a: a[:5], rows), jnp.ones(5))
    padded = batch_of(rows, jnp.array([1.0] * 5 + [0.0] * 3))
    key = jax.random.key(0)
    close(step(state, short, key)[0].params, step(state, padded, key)[0].params)


def test_training_on_two_gaussians_reaches_the_bayes_like_accuracy():
    sampler, optimizer = plain_sampler(), optax.adam(0.01)
    state, history = jax.jit(
        lambda s, d: fit(make_step(MODEL, optimizer), s, d, sampler, num_epochs=30)
    )(start(sampler, optimizer), TRAIN)
    preds = predict(MODEL, state.train.params, {}, TRAIN.inputs).argmax(1)
    assert float(jnp.mean(preds == TRAIN.labels)) > 0.84
    assert history["loss"].shape == (30,) and history["loss"][-1] < history["loss"][0]


@pytest.mark.parametrize("options", [{}, {"update_every": 4}, {"one_kernel": True}])
def test_stopping_and_going_on_equals_one_run(options):
    sampler, optimizer = sampler_of(), optax.adam(0.01)
    step = make_step(MODEL, optimizer)
    measure = None if "update_every" in options else partial(measure_cells, MODEL, sampler)

    @partial(jax.jit, static_argnums=2)
    def run(state, data, num_epochs):
        return fit(step, state, data, sampler, num_epochs=num_epochs, measure_fn=measure, **options)

    whole, _ = run(start(sampler, optimizer), TRAIN, 5)
    half, _ = run(start(sampler, optimizer), TRAIN, 2)
    resumed, _ = run(half, TRAIN, 3)
    close(whole.train.params, resumed.train.params)
    close(whole.sampler, resumed.sampler)
    assert int(resumed.epoch) == 5


@pytest.mark.parametrize("cadence", [None, 4])
def test_steps_as_one_kernel_train_as_many_kernels_do(cadence):
    sampler, optimizer = sampler_of(), optax.adam(0.01)
    step, state = make_step(MODEL, optimizer), start(sampler, optimizer)
    measure = partial(measure_cells, MODEL, sampler) if cadence is None else None
    how = {"num_epochs": 2, "measure_fn": measure, "update_every": cadence}

    def traced(one_kernel):
        run = lambda state, data: fit(step, state, data, sampler, one_kernel=one_kernel, **how)
        return jax.jit(run).trace(state, TRAIN)

    many, one = (traced(one_kernel).lower().compile() for one_kernel in (False, True))
    calls = [line for line in one.as_text().splitlines() if " call(" in line]
    assert any('inlineable="false",xla_cpu_small_call="true"' in line for line in calls)
    for a, b in zip(*(jax.tree.leaves(run(state, TRAIN)) for run in (many, one)), strict=True):
        if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            close(a, b)
    on_gpu = traced(True).lower(lowering_platforms=("cuda",)).as_text()
    assert "inlineable" not in on_gpu  # where it would be another kernel to start


def test_learning_rates_are_an_array_axis():
    sampler = plain_sampler()
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.0)
    step = make_step(MODEL, optimizer)

    def make(rate):
        train = init_train(MODEL, optimizer, jax.random.key(0), learning_rate=rate)
        return init_fit(train, sampler, jax.random.key(0))

    rates = jnp.array([0.0, 0.01, 0.1])
    states, _ = jax.jit(lambda s, d: fit_population(step, s, d, sampler, num_epochs=1))(
        jax.vmap(make)(rates), TRAIN
    )
    first = init_train(MODEL, optimizer, jax.random.key(0)).params
    moved = [
        float(jnp.abs(states.train.params["head"]["kernel"][i] - first["head"]["kernel"]).max())
        for i in range(3)
    ]
    assert moved[0] == 0 < moved[1] < moved[2]
    alone = start(sampler, optax.sgd(0.1))
    alone, _ = fit(make_step(MODEL, optax.sgd(0.1)), alone, TRAIN, sampler, num_epochs=1)
    close(jax.tree.map(lambda a: a[2], states.train.params), alone.train.params, 1e-5)


def test_running_losses_move_the_shares_without_a_full_pass():
    sampler, optimizer = sampler_of(step_size=0.01), optax.adam(0.01)
    step = make_step(MODEL, optimizer)
    state, history = fit(
        step, start(sampler, optimizer), TRAIN, sampler, num_epochs=3, update_every=2
    )
    before = sampler.init().shares
    moved = np.abs(np.asarray(history["shares"][:, 1, 1] - before[1, 1]))
    assert moved.max() > 0.01  # more than one update per epoch
    assert np.isfinite(history["cell_losses"]).all()
    np.testing.assert_allclose(float(state.running.count.sum()), 100)  # two batches of 50


def test_loss_based_importance_sampling_composes_with_fairbatch():
    """Draw within cells in proportion to the loss, keeping FairBatch's cell counts."""
    sampler, optimizer = sampler_of(), optax.adam(0.01)
    step = make_step(MODEL, optimizer)
    state = start(sampler, optimizer)

    @jax.jit
    def epoch(train, shares, key, data):
        logits = predict(MODEL, train.params, {}, data.inputs)
        sums = sampler.measure(logits, shares, labels=data.labels, group=data.group)
        shares = sampler.update(sampler.cell_losses(sums, shares), shares)
        importance = cross_entropy(logits, data.labels)
        indices, weights = sampler.sample_epoch(key, shares, example_weights=importance)

        def body(train, draw):
            batch = batch_of(jax.tree.map(lambda a: a[draw[0]], data), draw[1])
            return step(train, batch, key)[0], jnp.mean(importance[draw[0]])

        train, hardness = jax.lax.scan(body, train, (indices, weights))
        return train, shares, hardness.mean() / importance.mean(), indices

    train, shares = state.train, state.sampler
    for i in range(3):
        train, shares, hardness, indices = epoch(train, shares, jax.random.key(i), TRAIN)
        assert float(hardness) > 1.1  # 1 if drawn evenly; more where losses differ within a cell
        counts = np.zeros((2, 2))
        rows = np.ravel(indices)
        np.add.at(counts, (TRAIN.labels[rows], TRAIN.group[rows]), 1)
        natural = np.bincount(TRAIN.labels) / 400
        np.testing.assert_allclose(counts.sum(1) / len(rows), natural, atol=0.02)


def test_augmentation_reaches_every_batch_and_evaluation_every_epoch():
    sampler, optimizer = plain_sampler(), optax.sgd(0.1)
    state, history = fit(
        make_step(MODEL, optimizer),
        start(sampler, optimizer),
        TRAIN,
        sampler,
        num_epochs=2,
        augment=lambda key, inputs: inputs * 0,
        evaluate_fn=lambda train, _: {"bias": train.params["head"]["bias"]},
    )
    first = init_train(MODEL, optimizer, jax.random.key(0)).params["head"]["kernel"]
    np.testing.assert_allclose(state.train.params["head"]["kernel"], first)  # inputs were zero
    assert history["evaluation"]["bias"].shape == (2, 1)


@pytest.mark.parametrize("name", ["shuffled", "fairbatch"])
def test_an_epoch_needs_nothing_from_the_host_and_the_next_call_no_compiler(name):
    sampler = sampler_of() if name == "fairbatch" else plain_sampler()
    measure_fn = partial(measure_cells, MODEL, sampler) if sampler.adapts else None
    optimizer = optax.adam(0.01)
    step = make_step(MODEL, optimizer)

    run: Any = jax.jit(
        lambda state, data: fit(step, state, data, sampler, num_epochs=1, measure_fn=measure_fn),
        donate_argnums=0,
    )

    state, _ = run(start(sampler, optimizer), TRAIN)
    with jax.transfer_guard("disallow"):
        state, history = run(state, TRAIN)
    assert run._cache_size() == 1
    assert int(state.epoch) == 2 and np.isfinite(history["loss"]).all()


def test_a_state_that_keeps_an_average_can_be_donated():
    sampler, optimizer = plain_sampler(), optax.sgd(0.1)
    step = make_step(MODEL, optimizer, ema_decay=0.9)
    train = init_train(MODEL, optimizer, jax.random.key(0), ema=True)
    run = jax.jit(lambda s, d: fit(step, s, d, sampler, num_epochs=1)[0], donate_argnums=0)
    state = run(init_fit(train, sampler, jax.random.key(0)), TRAIN)
    kernels = (tree["head"]["kernel"] for tree in (state.train.ema, state.train.params))
    assert float(jnp.abs(jnp.subtract(*kernels)).max()) > 0


def refuse(message, sampler, **options):
    optimizer = optax.adam(0.01)
    state = start(sampler, optimizer)
    with pytest.raises(ValueError, match=message):
        fit(make_step(MODEL, optimizer), state, TRAIN, sampler, num_epochs=1, **options)
    states = jax.tree.map(lambda leaf: leaf[None], state)
    with pytest.raises(ValueError, match=message):
        fit_population(make_step(MODEL, optimizer), states, TRAIN, sampler, num_epochs=1, **options)


@pytest.mark.parametrize("cadence", [3, 0, -1, 9])
def test_a_cadence_that_does_not_divide_the_epoch_is_refused(cadence):
    refuse("must divide the 8 batches", sampler_of(), update_every=cadence)


def test_two_cadences_at_once_and_none_for_a_sampler_that_adapts_are_refused():
    sampler = sampler_of()
    measure_fn = partial(measure_cells, MODEL, sampler)
    refuse("not both", sampler, measure_fn=measure_fn, update_every=2)
    refuse("give measure_fn .* or update_every, or take sampling.shuffled", sampler)


def test_a_cadence_for_a_sampler_that_does_not_adapt_is_refused():
    refuse("for samplers that adapt", plain_sampler(), update_every=2)
    refuse("for samplers that adapt", plain_sampler(), measure_fn=lambda *_: None)


def test_a_sampler_of_more_rows_than_there_are_is_refused():
    sampler, optimizer = plain_sampler(), optax.adam(0.01)
    fewer = jax.tree.map(lambda leaf: leaf[:399], TRAIN)
    with pytest.raises(ValueError, match="draws from 400 rows and data has 399"):
        fit(make_step(MODEL, optimizer), start(sampler, optimizer), fewer, sampler, num_epochs=1)


def test_plain_runs_record_losses_alone():
    sampler, optimizer = plain_sampler(), optax.adam(0.01)
    step = make_step(MODEL, optimizer)
    state, history = fit(step, start(sampler, optimizer), TRAIN, sampler, num_epochs=1)
    assert set(history) == {"loss"} and state.running is None


@pytest.mark.parametrize("bad", [1.0, -0.1, float("nan")])
def test_wild_smoothing_and_averages_are_refused(bad):
    with pytest.raises(ValueError, match="label_smoothing must be in"):
        make_step(MODEL, optax.sgd(0.1), label_smoothing=bad)
    with pytest.raises(ValueError, match="ema_decay must be in"):
        make_step(MODEL, optax.sgd(0.1), ema_decay=bad)


def test_a_step_and_a_state_that_disagree_on_the_average_are_refused():
    optimizer, batch = optax.sgd(0.1), batch_of(TRAIN, jnp.ones(400))
    params = MODEL.init(jax.random.key(0))[0]
    for decay, ema in ((0.9, False), (None, True)):
        state = start_train(params, {}, optimizer, ema=ema)
        with pytest.raises(ValueError, match="must agree on the average"):
            make_step(MODEL, optimizer, ema_decay=decay)(state, batch, jax.random.key(0))


def test_class_weights_of_another_length_are_refused():
    optimizer = optax.sgd(0.1)
    step = make_step(MODEL, optimizer, class_weights=jnp.ones(3))
    state = init_train(MODEL, optimizer, jax.random.key(0))
    with pytest.raises(ValueError, match=r"one per class, \(2,\), got shape \(3,\)"):
        step(state, batch_of(TRAIN, jnp.ones(400)), jax.random.key(0))
