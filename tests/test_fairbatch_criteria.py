"""Two criteria at once, against a loop; and signals of batches against those of full passes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairjax.data import Examples, synthetic_gaussians
from fairjax.fairbatch import CRITERIA, SIGNALS, fairbatch
from fairjax.metrics import fairness_metrics
from fairjax.models import mlp
from fairjax.train import fit_population, init_population, make_step, measure_cells, predict

BOTH = "demographic_parity_and_equalized_odds"


def make(labels, group, **options):
    sizes = {"num_classes": int(labels.max()) + 1, "num_groups": int(group.max()) + 1}
    options = {"batch_size": 30, "criterion": BOTH, "step_size": 0.05, **options}
    return fairbatch(labels=labels, group=group, **sizes, **options)


def by_loop(logits, labels, group, signal, knob, shares, step, positive):
    """The largest of all gaps of both criteria moves its label's share, one pair of groups."""
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    preds = logits.argmax(1)
    gaps = []  # size, label, who gains, who gives, criterion
    for y in range(shares.shape[0]):
        odds, parity = [], []
        for z in range(shares.shape[1]):
            cell, of_group = (labels == y) & (group == z), group == z
            if signal == "loss":
                odds.append(-log_probs[cell, y].mean())
                parity.append(-log_probs[cell, positive].sum() / of_group.sum())
            else:
                odds.append((preds[cell] != y).mean())
                parity.append((preds[of_group] != positive).mean())
        for name, values, weight in (("parity", parity, 1.0), ("odds", odds, knob)):
            worst, best = int(np.argmax(values)), int(np.argmin(values))
            turned = name == "parity" and y != positive
            gain, give = (best, worst) if turned else (worst, best)
            gaps.append((weight * (values[worst] - values[best]), y, gain, give, name))
    largest = max(gap[0] for gap in gaps)
    moving = [gap for gap in gaps if np.isclose(gap[0], largest, rtol=1e-5)]
    if len(moving) > 1 and "odds" in {gap[-1] for gap in moving}:
        return None
    shares = shares.copy()
    for _, y, gain, give, _ in moving:
        moved = min(step, shares[y, give])
        shares[y, gain] += moved
        shares[y, give] -= moved
    return shares


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from(SIGNALS),
    st.sampled_from([0.2, 1.0, 3.0]),
    st.sampled_from([(2, 2), (3, 2), (2, 3)]),
)
def test_the_largest_gap_of_both_criteria_moves_with_its_own_sign(seed, signal, knob, sizes):
    rng = np.random.default_rng(seed)
    every_cell = np.divmod(np.arange(sizes[0] * sizes[1]), sizes[1])
    labels, group = (
        np.concatenate([ids, rng.integers(0, size, 40)])
        for ids, size in zip(every_cell, sizes, strict=True)
    )
    logits = rng.normal(size=(len(labels), sizes[0])).astype(np.float32)
    sampler = make(labels, group, signal=signal, odds_weight=knob)
    state = sampler.init()
    sums = sampler.measure(jnp.asarray(logits), state, labels=labels, group=group)
    after, _ = sampler.adapt(sums, state)
    expected = by_loop(logits, labels, group, signal, knob, np.asarray(state.shares), 0.05, 1)
    if expected is None:
        return  # an exact tie of odds with others, which rates have at times
    np.testing.assert_allclose(after.shares, expected, atol=1e-6)


def test_two_criteria_by_hand():
    """Means .6 and .4 of label 1 make a gap of .2; parity's sums .5 and .25 one of .25."""
    labels, group = np.array([1, 1, 0, 0] * 10), np.array([0, 1, 0, 1] * 10)
    sampler = make(labels, group)
    state, counts = sampler.init(), jnp.full((2, 2), 10.0)
    sums = sampler.measure(jnp.zeros((40, 2)), state, labels=labels, group=group)
    sums = sums._replace(
        value=counts * jnp.array([[0.5, 0.5], [0.6, 0.4]]),
        positive=counts * jnp.array([[1.0, 0.5], [0.6, 0.4]]),
    )
    for knob, label, move in ((3.0, 1, 0.05), (1.0, 0, -0.05)):  # .6 > .25, then .25 > .2
        after, losses = sampler.adapt(sums, state._replace(odds_weight=jnp.float32(knob)))
        moved = np.zeros((2, 2))
        moved[label] = [move, -move]
        np.testing.assert_allclose(after.shares - state.shares, moved, atol=1e-6)
        np.testing.assert_allclose(losses[1], knob * np.array([0.6, 0.4]), rtol=1e-6)
        np.testing.assert_allclose(losses[0], [-0.5, -0.25], rtol=1e-6)  # negated: parity


def test_weights_of_the_odds_are_an_array_axis():
    labels, group = np.array([1, 1, 0, 0] * 10), np.array([0, 1, 0, 1] * 10)
    logits = jax.random.normal(jax.random.key(0), (40, 2))
    sampler = make(labels, group)

    def one(knob):
        state = sampler.init(odds_weight=knob)
        return sampler.adapt(sampler.measure(logits, state, labels=labels, group=group), state)

    knobs = jnp.array([0.1, 3.0, 100.0])
    (states, losses) = jax.vmap(one)(knobs)
    for i, knob in enumerate(knobs):
        np.testing.assert_allclose(losses[i], one(knob)[1], rtol=1e-6)
        np.testing.assert_allclose(states.shares[i], one(knob)[0].shares, rtol=1e-6)


def test_an_empty_cell_is_left_alone_by_both_criteria():
    labels, group = np.array([0] * 20 + [1] * 10), np.array([0, 1] * 10 + [0] * 10)
    sampler = make(labels, group, batch_size=10)
    state = sampler.init()
    logits = jax.random.normal(jax.random.key(1), (30, 2))
    after, losses = sampler.adapt(sampler.measure(logits, state, labels=labels, group=group), state)
    assert np.isnan(losses[1, 1]) and np.isfinite(np.asarray(losses)[[0, 0, 1], [0, 1, 0]]).all()
    np.testing.assert_allclose(after.shares[1], [1, 0])
    assert abs(float(after.shares[0, 0]) - 0.5) > 0.04


# Signals of the batches themselves


def test_sums_of_batches_drawn_by_shares_give_the_signal_of_the_data():
    """Group 1 is drawn with nine positives in ten, and holds five: its rate is that of five."""
    labels, group = np.tile([0, 0, 1, 1], 100), np.tile([0, 1], 200)
    sampler = make(labels, group, criterion="demographic_parity", signal="rate", batch_size=100)
    state = sampler.init()._replace(shares=jnp.array([[0.9, 0.1], [0.1, 0.9]]))
    preds = np.where(group == 1, labels, 0)  # group 0: never positive
    logits = 10.0 * jax.nn.one_hot(preds, 2)
    rows, weights = sampler.sample_epoch(jax.random.key(0), state)
    ids = {"labels": jnp.asarray(labels)[rows[0]], "group": jnp.asarray(group)[rows[0]]}
    sums = sampler.measure(logits[rows[0]], state, **ids, weights=weights[0])
    whole = sampler.measure(logits, state, labels=labels, group=group)
    drawn = sampler.cell_losses(sums, state)
    np.testing.assert_allclose(drawn, [[1, 0.1], [1, 0.1]], atol=1e-6)
    np.testing.assert_allclose(
        sampler.cell_losses(sums.at_counts(state.rows.counts), state),
        sampler.cell_losses(whole, state),
        atol=1e-6,
    )


def test_sums_at_other_counts_leave_what_was_not_seen_alone():
    labels, group = np.array([0, 0, 1, 1] * 5), np.array([0, 1] * 10)
    sampler = make(labels, group, batch_size=4)
    state = sampler.init()
    ids = {"labels": jnp.array([0, 0, 1]), "group": jnp.array([0, 1, 0])}
    sums = sampler.measure(jnp.zeros((3, 2)), state, **ids).at_counts(state.rows.counts)
    np.testing.assert_allclose(sums.count, [[5, 5], [5, 0]])
    np.testing.assert_allclose(sums.value, np.log(2) * np.array([[5, 5], [5, 0]]), rtol=1e-6)


@pytest.mark.parametrize("criterion", ["demographic_parity", "equalized_odds"])
def test_updates_by_the_batches_end_where_those_by_full_passes_end(criterion):
    """A small network, five seeds: mean gaps of both cadences differ by no more than chance."""
    data, num_seeds = synthetic_gaussians(jax.random.key(0), 1000, num_val=1, num_test=4000), 5
    train, test = (Examples(*map(jnp.asarray, data.examples(part))) for part in ("train", "test"))
    model, optimizer = mlp(3, 2, (16,)), optax.adam(0.01)
    step = make_step(model, optimizer)
    sampler = make(
        np.asarray(train.labels),
        np.asarray(train.group),
        signal="rate",
        batch_size=100,
        decay=0.5,
    )
    full_pass = functools.partial(measure_cells, model, sampler)

    def gaps(criterion, **cadence):
        keys = jax.random.split(jax.random.key(1), num_seeds)
        params = jax.vmap(lambda key: model.init(key)[0])(keys)
        choices = {"criterion": np.full(num_seeds, CRITERIA.index(criterion))}
        states = init_population(params, {}, optimizer, sampler, keys=keys, choices=choices)
        train_all = functools.partial(fit_population, step, sampler=sampler, num_epochs=30)
        states, _ = jax.jit(lambda states, data: train_all(states, data=data, **cadence))(
            states, train
        )

        def judged(params):
            logits = predict(model, params, {}, test.inputs)
            return fairness_metrics(logits, labels=test.labels, group=test.group, num_groups=2)

        return np.asarray(jax.vmap(judged)(states.train.params)[metric])

    metric = f"{criterion}_difference"
    plain = gaps("none", measure_fn=full_pass)
    full, running = gaps(criterion, measure_fn=full_pass), gaps(criterion, update_every=5)
    error = np.sqrt((full.var(ddof=1) + running.var(ddof=1)) / num_seeds)
    assert abs(full.mean() - running.mean()) < max(3 * error, 0.02)
    assert max(full.mean(), running.mean()) < 0.6 * plain.mean()
