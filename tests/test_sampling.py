# pyright: reportCallIssue=false, reportArgumentType=false
"""Which rows a run draws: those it always drew, each once an epoch, and only its own."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairjax.data import Examples
from fairjax.fairbatch import fairbatch
from fairjax.models import logistic_regression
from fairjax.optimizers import make_optimizer
from fairjax.sampling import Rows, arrange_rows, class_balanced, shuffled
from fairjax.train import (
    fit,
    fit_population,
    init_fit,
    init_population,
    init_train,
    make_step,
    measure_cells,
    replicate,
)

LABELS = np.array([0, 1, 1, 0, 1, 0, 0, 1, 1, 0, 2, 0, 2])
GROUP = np.array([0, 1, 0, 1, 1, 0, 0, 0, 1, 1, 0, 1, 1])
IDS: dict[str, Any] = {"labels": LABELS, "group": GROUP, "num_classes": 3, "num_groups": 2}


def draw_epoch(sampler, key, state, **options):
    """One compiled epoch of rows."""
    epoch = jax.jit(sampler.sample_epoch, static_argnames="num_batches")
    return epoch(key, state, **options)


plain_fairbatch = functools.partial(fairbatch, criterion="none")


@pytest.mark.parametrize("factory", [shuffled, plain_fairbatch])
def test_plain_batches_draw_the_same_rows_as_ever_since_they_are_dealt_by_16_bits(factory):
    sampler = factory(**IDS, batch_size=4)
    for seed, rows in (
        (5, [[6, 0, 8, 10], [1, 7, 11, 4], [9, 2, 12, 5]]),
        (6, [[9, 4, 3, 0], [5, 7, 8, 6], [1, 10, 12, 2]]),
    ):
        indices, weights = draw_epoch(sampler, jax.random.key(seed), sampler.init())
        assert indices.tolist() == rows and (np.asarray(weights) == 1).all()


def test_class_balanced_batches_draw_the_rows_that_they_drew_in_version_0_1():
    sampler = class_balanced(**IDS, batch_size=4)
    indices, weights = draw_epoch(sampler, jax.random.key(5), sampler.init())
    assert indices.tolist() == [[5, 9, 6, 9], [6, 7, 4, 1], [6, 5, 0, 1]]
    assert (np.asarray(weights) == 1).all()


@pytest.mark.parametrize(
    ("draw", "rows"),
    [
        ("exact", [[6, 3, 1, 8, 10, 12], [0, 9, 4, 1, 10, 12]]),
        ("iid", [[1, 10, 3, 10, 1, 2], [5, 5, 12, 0, 2, 5]]),
    ],
)
def test_fairbatch_draws_the_same_rows_as_ever(draw, rows):
    sampler = fairbatch(**IDS, batch_size=6, criterion="equalized_odds", draw=draw)
    state = sampler.init(step_size=0.3)
    if draw == "exact":
        state = sampler.update(jnp.array([[0.1, 0.2], [0.3, 0.9], [0.2, 0.1]]), state)
    assert draw_epoch(sampler, jax.random.key(5), state)[0].tolist() == rows


def test_every_order_of_the_rows_is_as_likely():
    sampler = shuffled(**{**IDS, "labels": LABELS[:4], "group": GROUP[:4]}, batch_size=1)
    keys = jax.random.split(jax.random.key(0), 12_000)
    epochs = jax.jit(jax.vmap(sampler.sample_epoch, (0, None)))(keys, sampler.init())[0]
    _, counts = np.unique(np.asarray(epochs)[:, :, 0], axis=0, return_counts=True)
    assert len(counts) == 24
    assert np.sum((counts - 500) ** 2 / 500) < 49.7  # chi-squared, 23 degrees: one in a thousand


@pytest.mark.parametrize(("num_rows", "word"), [(65_535, "16"), (65_536, "32")])
def test_rows_that_just_fit_16_bits_and_one_more_are_dealt_once(num_rows, word):
    ids = {"labels": np.zeros(num_rows, int), "group": np.zeros(num_rows, int)}
    sampler = shuffled(**ids, num_classes=1, num_groups=1, batch_size=num_rows)
    rows = draw_epoch(sampler, jax.random.key(0), sampler.init())[0][0]
    np.testing.assert_array_equal(np.sort(rows), np.arange(num_rows), err_msg=f"{word} bits")


def test_rows_are_shuffled_as_whole_vectors_of_16_bits_in_a_kernel_of_their_own():
    with jax.default_device(jax.devices("cpu")[0]):
        sampler = shuffled(**IDS, batch_size=4)
        epoch = jax.jit(sampler.sample_epoch).lower(jax.random.key(0), sampler.init())
    lines = (epoch.compile().as_text() or "").splitlines()
    shuffling = [line for line in lines if " fusion(" in line and "inlineable=" in line]
    assert len(shuffling) == 1 and "= u16[3,16]" in shuffling[0]  # 3 batches of 4 places


@pytest.mark.parametrize("batch_size", [1, 5, 13])
def test_a_shuffled_epoch_deals_every_row_at_most_once(batch_size):
    sampler = shuffled(**IDS, batch_size=batch_size)
    epochs = [
        np.ravel(draw_epoch(sampler, jax.random.key(seed), sampler.init())[0]) for seed in range(9)
    ]
    for rows in epochs:
        assert len(rows) == 13 // batch_size * batch_size == len(np.unique(rows))
    assert len({tuple(rows) for rows in epochs}) == 9


def test_class_balanced_draws_classes_alike_and_rows_of_a_class_alike():
    sampler = class_balanced(**IDS, batch_size=10)
    rows = np.ravel(draw_epoch(sampler, jax.random.key(0), sampler.init(), num_batches=3000)[0])
    share = np.bincount(rows, minlength=13) / len(rows)
    by_hand = (1 / 3) / np.bincount(LABELS)[LABELS]
    np.testing.assert_allclose(share, by_hand, atol=0.01)


def test_example_weights_multiply_those_of_the_classes():
    sampler = class_balanced(**IDS, batch_size=10)
    weights = jnp.where(jnp.arange(13) == 10, 3.0, 1.0)  # one of the two rows of class 2
    rows, _ = draw_epoch(
        sampler, jax.random.key(0), sampler.init(), example_weights=weights, num_batches=3000
    )
    counts = np.bincount(np.ravel(rows), minlength=13)
    np.testing.assert_allclose(counts[10] / counts[12], 3, rtol=0.05)


def folds(factory, **options):
    """Nine rows for each of three runs, and the sampler whose epochs are theirs."""
    parts = [
        np.delete(np.arange(13), drop) for drop in ([0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11])
    ]
    rows = [arrange_rows(**IDS, rows=part) for part in parts]
    sampler = factory(**IDS, batch_size=3, **options)
    return parts, rows, sampler._replace(batches_per_epoch=3)


FACTORIES = [
    shuffled,
    class_balanced,
    functools.partial(fairbatch, criterion="none"),
    functools.partial(fairbatch, criterion="none", draw="iid"),
]


@pytest.mark.parametrize("factory", FACTORIES)
def test_runs_with_rows_of_their_own_draw_these_alone_and_what_they_draw_alone(factory):
    parts, rows, sampler = folds(factory)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
    keys = jax.random.split(jax.random.key(1), 3)
    states = jax.vmap(lambda rows: sampler.init(rows=rows))(stacked)
    together, _ = jax.jit(jax.vmap(sampler.sample_epoch))(keys, states)
    for part, own, key, drawn in zip(parts, rows, keys, together, strict=True):
        assert np.isin(np.ravel(drawn), part).all()
        alone, _ = draw_epoch(sampler, key, sampler.init(rows=own), num_batches=4)
        np.testing.assert_array_equal(drawn, alone)


def test_a_run_with_rows_of_its_own_deals_each_once_as_a_sampler_of_these_rows_does():
    parts, rows, sampler = folds(shuffled)
    part = parts[1]
    small = shuffled(
        labels=LABELS[part], group=GROUP[part], num_classes=3, num_groups=2, batch_size=3
    )
    key = jax.random.key(3)
    drawn, _ = draw_epoch(sampler, key, sampler.init(rows=rows[1]), num_batches=3)
    np.testing.assert_array_equal(np.sort(np.ravel(drawn)), part)
    np.testing.assert_array_equal(drawn, part[draw_epoch(small, key, small.init())[0]])


def test_fairbatch_of_a_run_with_rows_of_its_own_starts_at_their_shares():
    ids = {"labels": np.repeat([0, 1], 20), "group": np.tile([0, 1], 20)}
    ids |= {"num_classes": 2, "num_groups": 2}
    own = arrange_rows(**ids, rows=np.r_[0:10, 20:40:2, 21])
    sampler = fairbatch(**ids, batch_size=4)
    np.testing.assert_allclose(
        sampler.init(rows=own).shares, [[0.5, 0.5], [10 / 11, 1 / 11]], rtol=1e-6
    )


DATA = Examples(
    jax.random.normal(jax.random.key(0), (13, 3)), jnp.asarray(LABELS), jnp.asarray(GROUP)
)


@pytest.mark.parametrize("name", ["shuffled", "fairbatch"])
def test_a_population_of_folds_trains_each_run_as_alone_on_its_rows(name):
    adapts = name == "fairbatch"
    _, rows, sampler = folds(shuffled)
    if adapts:
        sampler = fairbatch(**IDS, batch_size=6, criterion="equalized_odds")
    model, optimizer = logistic_regression(3, 3), make_optimizer("sgd", total_steps=9)
    step = make_step(model, optimizer)
    options: dict[str, Any] = {"num_epochs": 2}
    if adapts:
        options["measure_fn"] = functools.partial(measure_cells, model, sampler)
    keys = jax.random.split(jax.random.key(1), 3)
    params, batch_stats = model.init(jax.random.key(2))
    states = init_population(
        *replicate((params, batch_stats), 3),
        optimizer,
        sampler,
        keys=keys,
        choices={"rows": jax.tree.map(lambda *leaves: np.stack(leaves), *rows)},
    )
    train = jax.jit(
        lambda states, data, measured: fit_population(
            step, states, data, sampler, measure_data=measured, **options
        )
    )
    train_one = jax.jit(lambda state, data: fit(step, state, data, sampler, **options))
    together, history = train(states, DATA, DATA)
    for i, own in enumerate(rows):
        state = init_fit(
            init_train(model, optimizer, jax.random.key(2)), sampler, keys[i], rows=own
        )
        alone, by_itself = train_one(state, DATA)
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, atol=1e-5),
            (together.train.params, history),
            (alone.train.params, by_itself),
        )
    # rows outside the fold do not matter
    moved = DATA._replace(inputs=DATA.inputs.at[jnp.arange(4)].set(99.0))
    again, _ = train(states, moved, DATA)
    kernels = [s.train.params["head"]["kernel"] for s in (together, again)]
    np.testing.assert_allclose(kernels[0][0], kernels[1][0], atol=1e-5)
    assert np.abs(kernels[0][1] - kernels[1][1]).max() > 1e-3


BAD_ROWS = {
    r"rows must be in \[0, 13\), got -1 to 2": [-1, 2],
    r"rows must be in \[0, 13\), got 0 to 13": [0, 13],
    "rows must be integers": [0.0, 1.0],
    "rows must be a non-empty vector": [],
    "rows: 1 of them are repeated": [3, 4, 3],
}


@pytest.mark.parametrize("message", BAD_ROWS)
def test_rows_that_are_not_there_once_are_refused(message):
    with pytest.raises(ValueError, match=message):
        arrange_rows(**IDS, rows=np.array(BAD_ROWS[message]))


@pytest.mark.parametrize("factory", [shuffled, class_balanced, fairbatch])
def test_rows_of_several_runs_or_too_few_are_refused_by_init(factory):
    sampler = factory(**IDS, batch_size=6)
    own = arrange_rows(**IDS)
    with pytest.raises(ValueError, match="must be those of one run.*vmap init for several"):
        sampler.init(rows=jax.tree.map(lambda leaf: np.stack([leaf, leaf]), own))
    with pytest.raises(ValueError, match="must be those of one run"):
        sampler.init(rows=Rows(own.numbers, own.counts[:2]))
    with pytest.raises(ValueError, match="the number of examples, 5; got 6"):
        sampler.init(rows=arrange_rows(**IDS, rows=np.arange(5)))


@pytest.mark.parametrize("factory", [shuffled, class_balanced, fairbatch])
@pytest.mark.parametrize("batch_size", [0, -1, 14, 2.5, float("nan")])
def test_batches_that_are_not_a_number_of_rows_are_refused(factory, batch_size):
    with pytest.raises(ValueError, match="batch_size must be between 1 and"):
        factory(**IDS, batch_size=batch_size)


@pytest.mark.parametrize("factory", [shuffled, class_balanced, fairbatch])
def test_labels_and_group_cannot_be_swapped_by_position(factory):
    with pytest.raises(TypeError, match="positional"):
        factory(LABELS, GROUP, num_classes=3, num_groups=2, batch_size=6)


def test_a_class_that_cannot_be_drawn_is_named():
    with pytest.raises(ValueError, match="class 3 has no rows"):
        class_balanced(**IDS | {"num_classes": 4}, batch_size=4)


def test_small_integers_do_not_overflow_into_other_cells():
    labels = np.arange(200, dtype=np.uint8)
    own = arrange_rows(labels=labels, group=np.ones(200, np.uint8), num_classes=200, num_groups=2)
    np.testing.assert_array_equal(own.counts, np.tile([0, 1], (200, 1)))
    np.testing.assert_array_equal(own.numbers, np.arange(200))
