"""The engine: one step by hand, runs that do not depend on how they are batched together."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fairjax.data import Examples, synthetic_gaussians
from fairjax.fairbatch import fairbatch
from fairjax.losses import cross_entropy
from fairjax.models import logistic_regression, mlp
from fairjax.sharding import candidate_mesh
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
MODEL = logistic_regression(3)


def sampler_of(**options):
    options = {"criterion": "equal_opportunity", "batch_size": 50, **options}
    return fairbatch(TRAIN.labels, TRAIN.group, num_classes=2, num_groups=2, **options)


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
    sampler, optimizer = sampler_of(criterion="none"), optax.adam(0.01)
    state, history = jax.jit(
        lambda s, d: fit(make_step(MODEL, optimizer), s, d, sampler, num_epochs=30)
    )(start(sampler, optimizer), TRAIN)
    preds = predict(MODEL, state.train, TRAIN.inputs).argmax(1)
    assert float(jnp.mean(preds == TRAIN.labels)) > 0.84
    assert history["loss"].shape == (30,) and history["loss"][-1] < history["loss"][0]


@pytest.mark.parametrize("options", [{}, {"update_every": 4}, {"unroll": 2}])
def test_stopping_and_going_on_equals_one_run(options):
    sampler, optimizer = sampler_of(), optax.adam(0.01)
    step = make_step(MODEL, optimizer)
    measure = (
        None
        if "update_every" in options
        else (lambda train, shares: measure_cells(MODEL, sampler, train, shares, TRAIN))
    )
    run = lambda state, n: fit(  # noqa: E731
        step, state, TRAIN, sampler, num_epochs=n, measure_fn=measure, **options
    )
    whole, _ = run(start(sampler, optimizer), 5)
    half, _ = run(start(sampler, optimizer), 2)
    resumed, _ = run(half, 3)
    close(whole.train.params, resumed.train.params)
    close(whole.sampler, resumed.sampler)
    assert int(resumed.epoch) == 5


def test_a_population_equals_its_members_alone_in_any_chunk_and_on_any_device():
    sampler, optimizer = sampler_of(), optax.adam(0.01)
    step = make_step(MODEL, optimizer)
    criteria = jnp.array([0, 1, 2, 3, 1])
    make = lambda seed, c: start(sampler, optimizer, seed, criterion=c)  # noqa: E731
    seeds = jnp.arange(5)
    options = {"num_epochs": 4, "measure_fn": functools.partial(measure_cells, MODEL, sampler)}

    def run(states, **how):
        return jax.jit(lambda s, d: fit_population(step, s, d, sampler, **how, **options))(
            states, TRAIN
        )

    states = jax.vmap(make)(seeds, criteria)
    together, history = run(states)
    for how in ({"chunk_size": 1}, {"chunk_size": 2}, {"mesh": candidate_mesh()}):
        close(together.train.params, run(states, **how)[0].train.params, 1e-5)
    for i in range(5):
        alone, _ = fit(
            step,
            make(seeds[i], criteria[i]),
            TRAIN,
            sampler,
            num_epochs=4,
            measure_fn=lambda s, b: measure_cells(MODEL, sampler, s, b, TRAIN),
        )
        close(jax.tree.map(lambda a, i=i: a[i], together.train.params), alone.train.params, 1e-5)
    assert history["loss"].shape == (5, 4)
    np.testing.assert_allclose(history["weights"][0, 0], history["weights"][0, -1])  # plain
    assert float(jnp.abs(history["weights"][1, 0] - history["weights"][1, -1]).max()) > 0


def test_learning_rates_are_an_array_axis():
    sampler = sampler_of(criterion="none")
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.0)
    step = make_step(MODEL, optimizer)

    def make(rate):
        train = init_train(MODEL, optimizer, jax.random.key(0), learning_rate=rate)
        return init_fit(train, sampler, jax.random.key(0))

    rates = jnp.array([0.0, 0.01, 0.1])
    states, _ = fit_population(step, jax.vmap(make)(rates), TRAIN, sampler, num_epochs=1)
    first = init_train(MODEL, optimizer, jax.random.key(0)).params
    moved = [
        float(jnp.abs(states.train.params["head"]["kernel"][i] - first["head"]["kernel"]).max())
        for i in range(3)
    ]
    assert moved[0] == 0 < moved[1] < moved[2]
    alone, _ = fit(make_step(MODEL, optax.sgd(0.1)), start(sampler, optax.sgd(0.1)), TRAIN, sampler,
                   num_epochs=1)  # fmt: skip
    close(jax.tree.map(lambda a: a[2], states.train.params), alone.train.params, 1e-5)


def test_running_losses_move_the_shares_without_a_full_pass():
    sampler, optimizer = sampler_of(step_size=0.01), optax.adam(0.01)
    step = make_step(MODEL, optimizer)
    state, history = fit(
        step, start(sampler, optimizer), TRAIN, sampler, num_epochs=3, update_every=2
    )
    before = sampler.init().weights
    moved = np.abs(np.asarray(history["weights"][:, 1, 1] - before[1, 1]))
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
        logits = predict(MODEL, train, data.inputs)
        sums = sampler.measure(logits, data.labels, shares, group=data.group)
        shares = sampler.update(sampler.cell_losses(sums, shares), shares)
        importance = cross_entropy(logits, data.labels)
        indices, weights = sampler.sample_epoch(key, shares, importance)

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
        np.testing.assert_allclose(counts.sum(1) / len(rows), np.bincount(TRAIN.labels) / 400,
                                   atol=0.02)  # fmt: skip


def test_chunked_prediction_equals_one_pass_and_runs_each_chunk_through_preprocess():
    model = mlp(3, 4, (8,))
    train = start_train(*model.init(jax.random.key(0)), optax.sgd(0.1))
    inputs = jax.random.normal(jax.random.key(1), (23, 3))
    whole = predict(model, train, inputs)
    close(whole, predict(model, train, inputs, batch_size=5), 1e-5)
    doubled = predict(model, train, inputs, batch_size=5, preprocess=lambda x: x * 2)
    close(doubled, predict(model, train, inputs * 2), 1e-5)


def test_augmentation_reaches_every_batch_and_evaluation_every_epoch():
    sampler, optimizer = sampler_of(criterion="none"), optax.sgd(0.1)
    state, history = fit(
        make_step(MODEL, optimizer),
        start(sampler, optimizer),
        TRAIN,
        sampler,
        num_epochs=2,
        augment=lambda key, inputs: inputs * 0,
        evaluate_fn=lambda train: {"bias": train.params["head"]["bias"]},
    )
    first = init_train(MODEL, optimizer, jax.random.key(0)).params["head"]["kernel"]
    np.testing.assert_allclose(state.train.params["head"]["kernel"], first)  # inputs were zero
    assert history["evaluation"]["bias"].shape == (2, 1)


def test_a_second_call_does_not_recompile():
    sampler, optimizer = sampler_of(), optax.adam(0.01)
    step, traces = make_step(MODEL, optimizer), []

    @jax.jit
    def run(state, data):
        traces.append(1)
        return fit(step, state, data, sampler, num_epochs=1)[0]

    state = run(start(sampler, optimizer), TRAIN)
    run(state, TRAIN)
    assert len(traces) == 1


@pytest.mark.parametrize("cadence", [3, 0, 9])
def test_a_cadence_that_does_not_divide_the_epoch_is_refused(cadence):
    sampler, optimizer = sampler_of(), optax.adam(0.01)
    with pytest.raises(ValueError, match="must divide the 8 batches"):
        fit(make_step(MODEL, optimizer), start(sampler, optimizer), TRAIN, sampler, num_epochs=1,
            update_every=cadence)  # fmt: skip


def test_two_cadences_at_once_and_wild_smoothing_are_refused():
    sampler, optimizer = sampler_of(), optax.adam(0.01)
    with pytest.raises(ValueError, match="not both"):
        fit(make_step(MODEL, optimizer), start(sampler, optimizer), TRAIN, sampler, num_epochs=1,
            update_every=2, measure_fn=lambda s, b: sampler.measure(s, s, b, group=s))  # fmt: skip
    with pytest.raises(ValueError, match="label_smoothing must be in"):
        make_step(MODEL, optimizer, label_smoothing=1.0)
