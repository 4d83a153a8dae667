# pyright: reportCallIssue=false, reportArgumentType=false
"""Training on examples that are read in windows gives what training on the device gives."""

import threading
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairjax.data import Dataset, Examples
from fairjax.fairbatch import fairbatch
from fairjax.models import mlp
from fairjax.optimizers import make_optimizer
from fairjax.sampling import class_balanced, shuffled
from fairjax.sharding import candidate_mesh
from fairjax.train import (
    fit_population,
    fit_population_streamed,
    init_population,
    make_step,
    measure_cells,
    predict,
    replicate,
    stream_map,
)

ROW_BYTES = 4 * 4 * 3 + 8
WINDOW = 2 * 8 * 3 * ROW_BYTES  # three steps of two different orders
MODEL = mlp(48, 2, (5,))._replace(
    preprocess=lambda images: images.reshape(len(images), -1).astype(jnp.float32) / 255
)
OPTIMIZER = make_optimizer("sgd", total_steps=18)
STEP = make_step(MODEL, OPTIMIZER)


class Counted(np.ndarray):
    """Remembers which rows were read at a time, and in which thread."""

    log: list[tuple[np.ndarray, str]] = []

    def __getitem__(self, rows):
        if isinstance(rows, np.ndarray | slice):
            read = np.arange(len(self))[rows]
            self.log.append((read, threading.current_thread().name))
        return np.ndarray.__getitem__(self.view(np.ndarray), rows)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """96 images in a memory map, of which 72 train."""
    path = tmp_path_factory.mktemp("images") / "inputs.npy"
    draw = np.random.default_rng(0)
    inputs = draw.integers(0, 256, (96, 4, 4, 3), dtype=np.uint8)
    np.save(path, inputs)
    rows = draw.permutation(96).astype(np.int32)
    return Dataset(
        name="toy",
        inputs=np.load(path, mmap_mode="r").view(Counted),
        labels=draw.integers(0, 2, 96).astype(np.int32),
        group=(inputs.mean((1, 2, 3)) > 127).astype(np.int32),
        label_names=("no", "yes"),
        group_names=("dark", "light"),
        splits={"train": rows[:72], "val": rows[72:84], "test": rows[84:]},
    )


def on_device(data, split):
    rows = data.splits[split]
    arrays = np.array(data.inputs)[rows], data.labels[rows], data.group[rows]
    return Examples(*map(jnp.asarray, arrays))


def make_sampler(factory, data, **options):
    rows = data.splits["train"]
    ids = {"labels": data.labels[rows], "group": data.group[rows]}
    return factory(**ids, num_classes=2, num_groups=2, batch_size=8, **options)


def start(sampler, num_runs=3, **choices):
    """Runs of which the first two draw the same rows, with rates and masks of their own."""
    keys = jax.random.split(jax.random.key(1), num_runs)
    keys = keys.at[1].set(keys[0]) if num_runs > 1 else keys
    begin = lambda keys, choices, rates: init_population(
        *replicate(MODEL.init(jax.random.key(0)), num_runs),
        OPTIMIZER,
        sampler,
        keys=keys,
        choices=choices,
        learning_rate=rates,
    )
    states = jax.jit(begin)(keys, choices, jnp.linspace(0.1, 0.6, num_runs))
    mask = jax.tree.map(
        lambda leaf: jnp.ones((num_runs,) + (1,) * (leaf.ndim - 1), bool), states.train.params
    )
    mask["head"]["kernel"] = mask["head"]["kernel"].at[0].set(False)
    return states, mask


def train_both(data, sampler, states, mask, *, measure_split=None, window_bytes=WINDOW, **options):
    """What both ways give."""
    device = {name: value for name, value in options.items() if name != "on_epoch"}
    measured = None if measure_split is None else on_device(data, measure_split)
    program = jax.jit(
        lambda states, mask, train, measured: fit_population(
            STEP, states, train, sampler, num_epochs=2, mask=mask, measure_data=measured, **device
        )
    )
    kept = program(states, mask, on_device(data, "train"), measured)
    Counted.log.clear()
    streamed = fit_population_streamed(
        STEP,
        states,
        data,
        sampler,
        num_epochs=2,
        mask=mask,
        measure_split=measure_split,
        window_bytes=window_bytes,
        **options,
    )
    return kept, streamed


def same(a, b, rows=slice(None), tolerance=1e-6):
    (a, history), (b, other) = a, b
    plain = lambda state: state._replace(key=jax.random.key_data(state.key))
    pick = lambda tree: jax.tree.map(lambda leaf: leaf[rows], tree)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=tolerance),
        pick((plain(a), history)),
        pick((plain(b), other)),
    )


@pytest.mark.parametrize("factory", [shuffled, class_balanced])
def test_a_streamed_population_ends_where_one_on_the_device_does(data, factory):
    sampler = make_sampler(factory, data)
    kept, streamed = train_both(data, sampler, *start(sampler))
    same(kept, streamed)
    first = MODEL.init(jax.random.key(0))[0]["head"]["kernel"]
    moved = streamed[0].train.params["head"]["kernel"] - first[None]
    assert not moved[0].any() and moved[1:].any((1, 2)).all()
    assert streamed[0].epoch.tolist() == [2, 2, 2]
    assert streamed[0].train.step.tolist() == [18, 18, 18]
    assert len(Counted.log) == 2 * 3  # windows


CADENCES = {
    "the training split": {"measure_split": "train"},
    "the validation split": {"measure_split": "val"},
    "running losses": {"update_every": 3},
}


@pytest.mark.parametrize("cadence", CADENCES)
def test_fairbatch_adapts_from_streamed_examples_as_on_the_device(data, cadence):
    sampler = make_sampler(fairbatch, data, step_size=0.1)
    options = dict(CADENCES[cadence])
    if "update_every" not in options:
        options["measure_fn"] = partial(measure_cells, MODEL, sampler)
    states, mask = start(sampler, criterion=jnp.array([1, 2, 3]))
    kept, streamed = train_both(
        data, sampler, states, mask, window_bytes=3 * 8 * 4 * ROW_BYTES, **options
    )
    same(kept, streamed, tolerance=2e-6)
    assert np.ptp(np.asarray(streamed[1]["shares"]), axis=1).max() > 0.05
    updates = 6 if "update_every" in options else 2
    assert streamed[0].sampler.num_updates.tolist() == [updates] * 3


@pytest.mark.parametrize("chunk_size", [None, 1])
def test_idle_runs_and_uneven_devices_change_nothing(data, chunk_size):
    sampler = make_sampler(shuffled, data)
    states, mask = start(sampler, 5)
    active = np.array([True, False, True, True, False])
    options = {
        "active": active,
        "mesh": candidate_mesh(jax.devices()[:4]),
        "chunk_size": chunk_size,
    }
    kept, streamed = train_both(data, sampler, states, mask, window_bytes=2 * WINDOW, **options)
    same(kept, streamed, rows=np.flatnonzero(active))
    assert streamed[0].epoch.shape == (5,) and streamed[1]["loss"].shape == (5, 2)


def test_only_the_rows_of_a_window_are_read_each_once_and_in_another_thread(data):
    sampler = make_sampler(shuffled, data)
    states, mask = start(sampler)
    fit_population_streamed(
        STEP, states, data, sampler, num_epochs=1, mask=mask, window_bytes=WINDOW
    )
    Counted.log.clear()
    fit_population_streamed(
        STEP, states, data, sampler, num_epochs=1, mask=mask, window_bytes=WINDOW
    )
    assert len(Counted.log) == 3
    keys = jax.random.split(jax.random.fold_in(states.key[0], 0), 1)
    first, _ = sampler.sample_epoch(jax.random.split(keys[0])[0], sampler.init())
    for window, (rows, thread) in enumerate(Counted.log):
        assert thread != threading.main_thread().name
        assert len(np.unique(rows)) == len(rows) <= 2 * 8 * 3
        drawn = data.splits["train"][np.ravel(first[3 * window : 3 * window + 3])]
        assert np.isin(drawn, rows).all()
    assert not np.isin(np.concatenate([rows for rows, _ in Counted.log]), data.splits["test"]).any()
    alone = jax.tree.map(lambda leaf: leaf[:2], states)
    Counted.log.clear()
    fit_population_streamed(STEP, alone, data, sampler, num_epochs=1, window_bytes=WINDOW // 2)
    assert [len(rows) for rows, _ in Counted.log] == [24] * 3  # both runs share what they draw


def test_inputs_reach_the_device_as_they_are_stored_and_are_augmented_there(data):
    kinds = []

    def augment(key, inputs):
        kinds.append(inputs.dtype)
        noise = jax.random.randint(key, inputs.shape, 0, 9).astype(jnp.uint8)
        return inputs // 2 + noise

    sampler = make_sampler(shuffled, data)
    same(*train_both(data, sampler, *start(sampler), augment=augment))
    assert set(kinds) == {jnp.dtype("uint8")}


def test_stopping_and_going_on_equals_one_call_and_leaves_the_given_states_alone(data):
    sampler = make_sampler(shuffled, data)
    states, mask = start(sampler)
    before = jax.device_get(states.train.params)
    run = partial(fit_population_streamed, STEP, data=data, sampler=sampler, mask=mask)
    whole, history = run(states=states, num_epochs=2, window_bytes=WINDOW)
    half, first = run(states=states, num_epochs=1, window_bytes=WINDOW)
    resumed, second = run(states=half, num_epochs=1, window_bytes=2 * WINDOW)
    losses = np.concatenate([first["loss"], second["loss"]], 1)
    same((whole, history), (resumed, {"loss": losses}))
    jax.tree.map(np.testing.assert_array_equal, states.train.params, before)


def test_donated_states_give_the_same_and_are_used_up(data):
    sampler = make_sampler(shuffled, data)
    states, mask = start(sampler)
    run = partial(fit_population_streamed, STEP, data=data, sampler=sampler, mask=mask)
    kept = run(states=states, num_epochs=2, window_bytes=WINDOW)
    half, first = run(states=states, num_epochs=1, window_bytes=WINDOW)
    whole, second = run(states=half, num_epochs=1, window_bytes=WINDOW, donate=True)
    losses = np.concatenate([first["loss"], second["loss"]], 1)
    same(kept, (whole, {"loss": losses}))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(half.train.params))


def test_every_epoch_is_told_and_a_second_call_is_not_traced_again(data):
    sampler, told, traces = make_sampler(shuffled, data), [], []
    states, mask = start(sampler)

    def step(*args, **options):
        traces.append(1)
        return STEP(*args, **options)

    def on_epoch(states, record):
        told.append((states.epoch.tolist(), np.asarray(record["loss"])))

    def run():
        return fit_population_streamed(
            step,
            states,
            data,
            sampler,
            num_epochs=2,
            mask=mask,
            window_bytes=WINDOW,
            on_epoch=on_epoch,
        )

    _, history = run()
    count = len(traces)
    assert [epoch for epoch, _ in told] == [[1, 1, 1], [2, 2, 2]]
    np.testing.assert_array_equal(np.stack([loss for _, loss in told], 1), history["loss"])
    run()
    assert len(traces) == count > 0


def test_logits_of_a_streamed_split_are_those_of_the_whole(data):
    params, _ = jax.vmap(MODEL.init)(jax.random.split(jax.random.key(0), 3))

    def logits(inputs, params):
        return jax.vmap(lambda params: predict(MODEL, params, {}, inputs))(params)

    for split, size in (("val", 5), ("test", 12), ("train", 1000)):
        Counted.log.clear()
        streamed = stream_map(logits, data, split, params, batch_bytes=size * ROW_BYTES, axis=1)
        expected = logits(on_device(data, split).inputs, params)
        np.testing.assert_allclose(streamed, expected, atol=1e-6)
        assert max(len(rows) for rows, _ in Counted.log) <= size
    Counted.log.clear()
    rows = stream_map(lambda x: x[:, 0, 0], data, "val", batch_bytes=5 * ROW_BYTES)
    np.testing.assert_array_equal(rows, on_device(data, "val").inputs[:, 0, 0])
    assert [len(rows) for rows, _ in Counted.log] == [4, 4, 4]  # of one size, one program


def test_windows_that_hold_no_batch_and_other_nonsense_are_refused(data):
    sampler = make_sampler(shuffled, data)
    states, mask = start(sampler)
    run = partial(fit_population_streamed, STEP, states, data, mask=mask)
    with pytest.raises(ValueError, match="one batch of all runs, 2 x 8 examples of 56 bytes"):
        run(sampler, num_epochs=1, window_bytes=16 * ROW_BYTES - 1)
    with pytest.raises(ValueError, match="num_epochs must be at least 1, got 0"):
        run(sampler, num_epochs=0)
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        run(sampler, num_epochs=1, chunk_size=0)
    with pytest.raises(ValueError, match="draws from 72 rows and data has 12"):
        run(sampler, num_epochs=1, split="val")
    with pytest.raises(ValueError, match="for samplers that adapt"):
        run(sampler, num_epochs=1, update_every=3)
    with pytest.raises(ValueError, match="the sampler adapts"):
        run(make_sampler(fairbatch, data), num_epochs=1)
    with pytest.raises(ValueError, match="split must be one of .* got 'validation'"):
        run(sampler, num_epochs=1, split="validation")
    with pytest.raises(ValueError, match="the split has no rows"):
        empty = {**data.splits, "val": np.zeros(0, np.int32)}
        stream_map(lambda x: x, Dataset(**{**vars(data), "splits": empty}), "val")
