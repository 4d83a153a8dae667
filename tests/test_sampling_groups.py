# pyright: reportArgumentType=false
"""Samplers that know groups: what they draw and weigh, and group DRO against the published loop."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairjax.data import Examples
from fairjax.models import logistic_regression
from fairjax.optimizers import make_optimizer
from fairjax.sampling import (
    arrange_rows,
    balance_weights,
    group_balanced,
    group_cvar,
    group_dro,
    reweighted,
    weighted,
)
from fairjax.train import fit, init_fit, init_train, make_step

LABELS = np.array([0, 1, 1, 0, 1, 0, 0, 1, 1, 0, 0, 0, 0])
GROUP = np.array([0, 1, 0, 1, 1, 0, 0, 0, 1, 1, 0, 1, 0])
IDS: dict[str, Any] = {"labels": LABELS, "group": GROUP, "num_classes": 2, "num_groups": 2}
FACTORIES = [group_balanced, reweighted, weighted, group_dro, group_cvar]


def shares_drawn(sampler, state, num_batches=3000, **options):
    rows, weights = jax.jit(sampler.sample_epoch, static_argnames="num_batches")(
        jax.random.key(0), state, num_batches=num_batches, **options
    )
    total = np.bincount(np.ravel(rows), np.ravel(weights), minlength=len(LABELS))
    return total / total.sum()


def cell_shares(drawn):
    return np.bincount(2 * LABELS + GROUP, drawn, minlength=4).reshape(2, 2)


@pytest.mark.parametrize("over", ["cells", "groups"])
def test_balanced_draws_make_cells_or_groups_alike_and_rows_of_a_cell_alike(over):
    sampler = group_balanced(**IDS, batch_size=10, over=over)
    drawn = shares_drawn(sampler, sampler.init())
    sizes = np.bincount(GROUP) if over == "groups" else np.bincount(2 * LABELS + GROUP)
    unit = GROUP if over == "groups" else 2 * LABELS + GROUP
    np.testing.assert_allclose(drawn, 1 / (len(sizes) * sizes[unit]), atol=0.01)


def test_reweighing_makes_label_and_group_independent_as_published():
    sampler = reweighted(**IDS, batch_size=13)
    rows, weights = sampler.sample_epoch(jax.random.key(0), sampler.init())
    n = len(LABELS)
    labels, group, cells = (np.bincount(ids)[ids] for ids in (LABELS, GROUP, 2 * LABELS + GROUP))
    by_hand = labels * group / (n * cells)
    np.testing.assert_allclose(weights[0], by_hand[rows[0]], rtol=1e-6)
    cells = cell_shares(shares_drawn(sampler, sampler.init(), 1))
    marginal = np.outer(np.bincount(LABELS), np.bincount(GROUP)) / n**2
    np.testing.assert_allclose(cells, marginal, rtol=1e-5)


def test_empty_cells_weigh_nothing_and_weights_are_one_on_average():
    counts = np.array([[6, 2], [0, 4]])
    for over, units in (("classes", 2), ("groups", 2), ("cells", 3)):
        weights = np.asarray(balance_weights(counts, over))
        assert np.isclose((weights * counts).sum(), 12) and weights[1, 0] == 0
        sums = {"classes": 1, "groups": 0}
        total = weights * counts if over == "cells" else (weights * counts).sum(sums[over])
        np.testing.assert_allclose(total[total > 0], 12 / units, rtol=1e-6)


def test_rows_that_a_first_training_gets_wrong_are_drawn_as_often_as_asked():
    sampler = weighted(**IDS, batch_size=10)
    wrong = np.arange(13) < 3
    state = sampler.init(example_weights=np.where(wrong, 5.0, 1.0))
    drawn = shares_drawn(sampler, state)
    np.testing.assert_allclose(drawn, np.where(wrong, 5, 1) / 25, atol=0.01)
    half = shares_drawn(sampler, state, example_weights=jnp.asarray(wrong, jnp.float32))
    np.testing.assert_allclose(half[:3], 1 / 3, atol=0.02)


@pytest.mark.parametrize("factory", FACTORIES)
def test_a_run_with_rows_of_its_own_balances_these(factory):
    part = np.array([0, 1, 2, 3, 4, 5, 6, 7])
    sampler = factory(**IDS, batch_size=4)
    drawn = shares_drawn(sampler, sampler.init(rows=arrange_rows(**IDS, rows=part)))
    assert drawn[8:].sum() == 0
    counts = arrange_rows(**IDS, rows=part).counts
    expected = {
        group_balanced: np.full((2, 2), 0.25),
        group_dro: np.full((2, 2), 0.25),
        weighted: counts / 8,
        group_cvar: counts / 8,
        reweighted: np.outer(counts.sum(1), counts.sum(0)) / 64,
    }[factory]
    np.testing.assert_allclose(cell_shares(drawn), expected, atol=0.01)


def published(inputs, labels, group, params, shares, *, step, rate, num_steps, over):
    """Sagawa et al., Algorithm 1, on all rows at once, in NumPy; q moves by the last step's."""
    kernel, bias = (np.asarray(params["head"][name], np.float64) for name in ("kernel", "bias"))
    unit = 2 * labels + group if over == "cells" else group
    q = np.array([shares[unit == u].sum() for u in range(unit.max() + 1)])
    last = np.zeros(len(q))
    for _ in range(num_steps):
        z = 2 * (inputs @ kernel[:, 0] + bias[0])  # logits [-z, z] of the model
        loss = np.logaddexp(0, np.where(labels == 1, -z, z))
        q = q * np.exp(step * last)
        q /= q.sum()
        last = np.array([loss[unit == u].mean() for u in range(len(q))])
        slope = (1 / (1 + np.exp(-z)) - labels) * 2 * (q / np.bincount(unit))[unit]
        kernel, bias = kernel - rate * (inputs.T @ slope)[:, None], bias - rate * slope.sum()
    return kernel, q


@pytest.mark.parametrize("over", ["cells", "groups"])
def test_group_dro_follows_the_published_algorithm(over):
    """Batches of all rows: three of each cell, so that both draw the same."""
    labels, group = np.repeat([0, 0, 1, 1], 3), np.repeat([0, 1, 0, 1], 3)
    inputs = np.random.default_rng(0).normal(size=(12, 4)) + group[:, None] * labels[:, None]
    ids: Any = {"labels": labels, "group": group, "num_classes": 2, "num_groups": 2}
    sampler = group_dro(**ids, batch_size=12, step_size=0.7, over=over)
    model = logistic_regression(4)
    optimizer = make_optimizer(
        "sgd", total_steps=6, learning_rate=0.3, momentum=0.0, schedule="constant"
    )
    train = init_train(model, optimizer, jax.random.key(0))
    state = init_fit(train, sampler, jax.random.key(1))
    data = Examples(jnp.asarray(inputs, jnp.float32), jnp.asarray(labels), jnp.asarray(group))
    run = jax.jit(
        lambda state, data: fit(
            make_step(model, optimizer), state, data, sampler, num_epochs=6, update_every=1
        )
    )
    state, history = run(state, data)
    start = np.full(12, 1 / 12)
    kernel, q = published(
        inputs, labels, group, train.params, start, step=0.7, rate=0.3, num_steps=6, over=over
    )
    np.testing.assert_allclose(state.train.params["head"]["kernel"], kernel, atol=1e-5)
    shares = np.asarray(state.sampler.shares)
    np.testing.assert_allclose(shares.ravel() if over == "cells" else shares.sum(0), q, atol=1e-5)
    np.testing.assert_allclose(history["shares"][-1], shares)


def test_group_dro_leaves_cells_without_a_loss_and_empty_ones_alone():
    ids: Any = {"labels": np.array([0, 0, 1]), "group": np.array([0, 1, 0])}
    sampler = group_dro(**ids, num_classes=2, num_groups=2, batch_size=3, step_size=1.0)
    state = sampler.init()
    moved = sampler.update(jnp.array([[1000.0, jnp.nan], [1000.0, jnp.nan]]), state)
    assert np.isfinite(moved.shares).all() and moved.shares[1, 1] == 0
    moved = sampler.update(jnp.array([[jnp.nan, jnp.nan], [jnp.log(2.0), jnp.nan]]), state)
    np.testing.assert_allclose(moved.shares, [[0.25, 0.25], [0.5, 0]], rtol=1e-6)


@pytest.mark.parametrize("over", ["cells", "groups"])
def test_group_cvar_trains_on_the_worst_share_by_moving_averages(over):
    """Against a loop in NumPy: averages, then mass from the worst cell down."""
    sampler = group_cvar(**IDS, batch_size=8, worst_share=0.4, memory=0.5, over=over)
    state, averages = sampler.init(), np.zeros((2, 2))
    mass = np.bincount(2 * LABELS + GROUP).reshape(2, 2) / 13
    np.testing.assert_allclose(state.shares, mass, rtol=1e-6)
    for losses in np.random.default_rng(0).exponential(size=(4, 2, 2)):
        if over == "groups":  # as `cell_losses` gives them
            losses = np.broadcast_to(losses[:1], (2, 2)).copy()
        losses[1, 1] = losses[1, 1] if over == "groups" else np.nan
        state = sampler.update(jnp.asarray(losses, jnp.float32), state)
        seen = np.isfinite(losses)
        averages[seen] = 0.5 * averages[seen] + 0.5 * losses[seen]
        left, taken = 0.4, np.zeros((2, 2))
        units = [(averages[0, g], [(0, g), (1, g)]) for g in range(2)]
        if over == "cells":
            units = [(averages[k, g], [(k, g)]) for k in range(2) for g in range(2)]
        for _, cells in sorted(units, key=lambda unit: -unit[0]):
            whole = sum(mass[cell] for cell in cells)
            for cell in cells:
                taken[cell] = min(left, whole) * mass[cell] / whole
            left -= min(left, whole)
        np.testing.assert_allclose(state.shares, taken / 0.4, atol=1e-5)
    rows, weights = sampler.sample_epoch(jax.random.key(0), state, num_batches=2000)
    drawn = np.bincount(np.ravel(rows), np.ravel(weights), minlength=13)
    np.testing.assert_allclose(cell_shares(drawn / drawn.sum()), state.shares, atol=0.01)
    assert (np.asarray(weights) > 0).all()  # what weighs nothing is looked at, too


BAD: dict[str, Any] = {
    "worst_share must be": lambda: group_cvar(**IDS, batch_size=4, worst_share=0.0),
    "memory must be": lambda: group_cvar(**IDS, batch_size=4, memory=1.0),
    "over must be cells or groups": lambda: group_balanced(**IDS, batch_size=4, over="sex"),
    "over must be one of cells": lambda: group_dro(**IDS, batch_size=4, over="classes"),
    "by must be one of draws": lambda: weighted(**IDS, batch_size=4, by="rows"),
    "step_size must be positive": lambda: group_dro(**IDS, batch_size=4, step_size=0.0),
    "batch_size must be at least 4 for a row": lambda: group_dro(**IDS, batch_size=3),
    "group 2 has no rows": lambda: group_balanced(**{**IDS, "num_groups": 3}, batch_size=4),
    r"example_weights must be \[N\]": lambda: weighted(**IDS, batch_size=4).init(
        example_weights=np.ones(3)
    ),
    "example_weights must be finite": lambda: weighted(**IDS, batch_size=4).init(
        example_weights=np.full(13, -1.0)
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_mistakes_are_named(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()
