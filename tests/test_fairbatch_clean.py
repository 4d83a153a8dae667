"""Fair and robust selection against its greedy loop, and what it does to wrong labels."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairjax.data import Examples, synthetic_gaussians
from fairjax.fairbatch import clean_examples, fairbatch, fairbatch_indices
from fairjax.metrics import fairness_metrics
from fairjax.models import logistic_regression
from fairjax.sampling import arrange_rows
from fairjax.train import (
    fit,
    fit_population,
    init_fit,
    init_population,
    init_train,
    make_step,
    measure_cells,
    predict,
)

RNG = np.random.default_rng(0)
LABELS, GROUP = RNG.integers(0, 2, 400), RNG.integers(0, 2, 400)
SIZES: Any = {"num_classes": 2, "num_groups": 2}


def greedy(losses, labels, group, shares, clean_share):
    """A knapsack with one dimension per cell, filled by the lowest losses until one is full."""
    num_classes, num_groups = shares.shape
    room, filled = round(clean_share * len(losses)), np.zeros(shares.shape)
    clean = np.zeros(len(losses))
    for row in np.argsort(losses, kind="stable"):
        if clean.sum() >= room or filled.max() >= room - 1e-4:
            break
        clean[row] = 1
        for y in range(num_classes):
            for z in range(num_groups):
                of_label, of_cell = y == labels[row], (y, z) == (labels[row], group[row])
                filled[y, z] += 1 + of_cell - shares[y, z] * of_label
    for y in range(num_classes):
        for z in range(num_groups):
            cell = (labels == y) & (group == z)
            if not clean[cell].any():
                clean[cell] = 1
    return clean


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([(2, 2), (3, 2), (2, 3)]),
    st.sampled_from([0.1, 0.5, 0.8, 0.9, 1.0]),
)
def test_what_is_clean_is_what_the_greedy_knapsack_takes(seed, sizes, clean_share):
    rng = np.random.default_rng(seed)
    labels, group = rng.integers(0, sizes[0], 60), rng.integers(0, sizes[1], 60)
    losses = rng.exponential(size=60).astype(np.float32) * (1 + labels)
    shares = np.round(rng.dirichlet(np.ones(sizes[1]), sizes[0]) * 64) / 64  # exact in float32
    found = JITTED(
        jnp.asarray(losses),
        labels=jnp.asarray(labels),
        group=jnp.asarray(group),
        shares=jnp.asarray(shares, jnp.float32),
        clean_share=jnp.float32(clean_share),
    )
    np.testing.assert_array_equal(found, greedy(losses, labels, group, shares, clean_share))


JITTED = jax.jit(clean_examples)


def test_clean_examples_by_hand():
    """One label, half of each group wanted, room for 6 of 8; group 0 has all low losses.

    Of group 0 come s: s + s - s / 2 = 1.5 s stays below 6 up to the fourth, and nothing fits then.
    Group 1, left with nothing, keeps all.
    """
    losses, ids = jnp.arange(8.0), {"labels": jnp.zeros(8, int)}
    group, shares = jnp.array([0] * 5 + [1] * 3), jnp.array([[0.5, 0.5]])
    clean = clean_examples(losses, **ids, group=group, shares=shares, clean_share=0.75)
    assert clean.tolist() == [1, 1, 1, 1, 0, 1, 1, 1]
    turns = jnp.array([0, 1] * 4)  # in turns all of the 6 places are filled
    clean = clean_examples(losses, **ids, group=turns, shares=shares, clean_share=0.75)
    assert clean.tolist() == [1] * 6 + [0] * 2


def test_losses_that_are_not_numbers_are_never_clean():
    ids = {"labels": jnp.zeros(4, int), "group": jnp.zeros(4, int)}
    losses = jnp.array([0.1, jnp.nan, 3.0, jnp.inf])
    clean = clean_examples(losses, **ids, shares=jnp.ones((1, 1)), clean_share=0.5)
    assert clean.tolist() == [1, 0, 1, 0]


def test_clean_examples_refuse_lengths_and_shares_that_do_not_fit():
    ids = {"labels": jnp.zeros(4, int), "group": jnp.zeros(4, int)}
    with pytest.raises(ValueError, match="one length, got shapes"):
        clean_examples(jnp.zeros(3), **ids, shares=jnp.ones((1, 1)), clean_share=0.5)
    with pytest.raises(ValueError, match=r"clean_share must be in \(0, 1\], got 0"):
        clean_examples(jnp.zeros(4), **ids, shares=jnp.ones((1, 1)), clean_share=0)


# In the sampler


def make(**options):
    options = {"batch_size": 50, "criterion": "equalized_odds", **SIZES, **options}
    return fairbatch(labels=LABELS, group=GROUP, **options)


def look(sampler, state, logits):
    return sampler.adapt(sampler.measure(logits, state, labels=LABELS, group=GROUP), state)[0]


def test_after_the_warm_up_only_clean_rows_are_drawn_and_measured():
    sampler = make(clean_share=0.8, warm_up=1)
    logits = 3.0 * jax.random.normal(jax.random.key(0), (400, 2))
    first = look(sampler, sampler.init(), logits)
    assert np.asarray(first.clean.weights).all()
    state = look(sampler, first, logits)
    losses = np.asarray(-jax.nn.log_softmax(logits)[np.arange(400), LABELS])
    chosen = greedy(losses, LABELS, GROUP, np.asarray(state.shares), 0.8)
    np.testing.assert_array_equal(state.clean.weights, chosen)
    cell = 2 * LABELS + GROUP
    np.testing.assert_array_equal(
        state.clean.counts.reshape(-1), np.bincount(cell, weights=chosen, minlength=4)
    )
    rows, weights = sampler.sample_epoch(jax.random.key(1), state)
    assert (chosen[rows] == 1).all() and (weights == 1).all()
    again = sampler.measure(logits, state, labels=LABELS, group=GROUP)
    np.testing.assert_array_equal(again.count, state.clean.counts)
    by_hand = np.bincount(cell, weights=chosen * losses, minlength=4)
    np.testing.assert_allclose(again.value.reshape(-1), by_hand, rtol=1e-5)
    # the labels' parts of a batch are those of the clean rows
    drawn = np.bincount(LABELS[np.ravel(rows)], minlength=2) / rows.size
    np.testing.assert_allclose(drawn, np.bincount(LABELS, weights=chosen) / chosen.sum(), atol=0.02)


def test_a_run_with_rows_of_its_own_chooses_among_these():
    sampler = make(clean_share=0.5, warm_up=0)
    own = np.arange(0, 400, 2)
    state = sampler.init(rows=arrange_rows(labels=LABELS, group=GROUP, **SIZES, rows=own))
    state = look(sampler, state, jax.random.normal(jax.random.key(0), (400, 2)))
    chosen = np.asarray(state.clean.weights)
    assert chosen[1::2].all() and 40 <= chosen[own].sum() <= 100
    assert float(state.clean.counts.sum()) == chosen[own].sum()


def test_clean_shares_are_an_array_axis():
    sampler = make(clean_share=0.5, warm_up=0)
    logits = jax.random.normal(jax.random.key(0), (400, 2))
    shares = jnp.array([0.3, 0.9])
    many = jax.vmap(lambda share: look(sampler, sampler.init(clean_share=share), logits))(shares)
    for i, share in enumerate(shares):
        alone = look(sampler, sampler.init(clean_share=share), logits)
        np.testing.assert_array_equal(many.clean.weights[i], alone.clean.weights)
    assert float(many.clean.weights[0].sum()) < float(many.clean.weights[1].sum())


def test_choosing_by_the_losses_of_batches_alone_is_refused():
    sampler, optimizer, model = make(clean_share=0.9), optax.adam(0.01), logistic_regression(2, 2)
    data = Examples(jnp.ones((400, 2)), jnp.asarray(LABELS), jnp.asarray(GROUP))
    state = init_fit(init_train(model, optimizer, jax.random.key(0)), sampler, jax.random.key(0))
    with pytest.raises(ValueError, match="among 400 training examples .* got 50: measure a full"):
        fit(make_step(model, optimizer), state, data, sampler, num_epochs=1, update_every=2)


def test_index_batches_choose_too():
    batches = fairbatch_indices(make(clean_share=0.5, warm_up=0))
    logits = np.random.default_rng(0).normal(size=(400, 2))
    batches.update(logits, labels=LABELS, group=GROUP)
    chosen = np.asarray(batches.state.clean.weights)
    assert chosen.sum() < 250 and all(chosen[row] for batch in batches for row in batch)


@pytest.mark.parametrize("who", ["anyone", "group 1"])
def test_wrong_labels_are_left_out_and_the_model_is_better_for_it(who):
    """A fifth of all labels is wrong, anywhere or in one group; the test labels are right."""
    data = synthetic_gaussians(jax.random.key(0), 2000, num_val=1, num_test=4000)
    train, test = (Examples(*map(jnp.asarray, data.examples(part))) for part in ("train", "test"))
    pool = np.flatnonzero(np.asarray(train.group) == 1) if who == "group 1" else np.arange(2000)
    wrong = np.zeros(2000, bool)
    wrong[np.random.default_rng(0).choice(pool, 400, replace=False)] = True
    noisy = train._replace(labels=jnp.where(wrong, 1 - train.labels, train.labels))
    model, optimizer = logistic_regression(3, 2), optax.adam(0.005)
    step = make_step(model, optimizer)

    def trained(clean_share):
        sampler = fairbatch(
            labels=np.asarray(noisy.labels),
            group=np.asarray(noisy.group),
            **SIZES,
            batch_size=100,
            criterion="equalized_odds",
            clean_share=clean_share,
        )
        keys = jax.random.split(jax.random.key(1), 3)
        params = jax.vmap(lambda key: model.init(key)[0])(keys)
        states = init_population(params, {}, optimizer, sampler, keys=keys)
        full_pass = functools.partial(measure_cells, model, sampler)
        run = functools.partial(fit_population, step, sampler=sampler, measure_fn=full_pass)
        states, _ = jax.jit(lambda states, data: run(states, data=data, num_epochs=60))(
            states, noisy
        )

        def judged(params):
            logits = predict(model, params, {}, test.inputs)
            return fairness_metrics(logits, labels=test.labels, group=test.group, num_groups=2)

        return states, jax.vmap(judged)(states.train.params)

    _, plain = trained(None)
    states, clean = trained(0.8)
    for kept in np.asarray(states.sampler.clean.weights) > 0:
        assert kept.sum() > 1000 and wrong[kept].mean() < 0.08  # 0.2 by chance
    better = np.asarray(clean["accuracy"] - plain["accuracy"])
    assert better.mean() > 0.015
    gap = "equalized_odds_difference"
    assert clean[gap].mean() < plain[gap].mean()
