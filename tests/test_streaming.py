# pyright: reportCallIssue=false, reportArgumentType=false, reportOptionalCall=false
"""Streaming gives what the device gives, and the choice between them is made before allocation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fairjax.data import Dataset
from fairjax.data.augment import compose, random_flip
from fairjax.data.streaming import (
    choose_placement,
    device_bytes,
    iterate,
    place_on_device,
)
from fairjax.fairbatch import fairbatch
from fairjax.models import mlp
from fairjax.train import Batch, init_train, make_step


def make(tmp_path, count=48):
    draw = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", draw.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8))
    rows = draw.permutation(count).astype(np.int32)
    return Dataset(
        name="toy",
        inputs=np.load(tmp_path / "x.npy", mmap_mode="r"),
        labels=draw.integers(0, 2, count).astype(np.int32),
        group=draw.integers(0, 3, count).astype(np.int32),
        label_names=("no", "yes"),
        group_names=("a", "b", "c"),
        splits={"train": rows[:32], "val": rows[32:40], "test": rows[40:]},
    )


def test_streamed_batches_equal_those_from_the_device(tmp_path):
    data = make(tmp_path)
    order = np.random.default_rng(1).integers(0, 32, (7, 5))
    device = list(iterate(data, "train", order, placement="device"))
    stream = list(iterate(data, "train", order, placement="stream", num_threads=2))
    assert len(device) == len(stream) == 7
    for one, two, rows in zip(device, stream, order, strict=True):
        expected = data.inputs[data.splits["train"][rows]]
        np.testing.assert_array_equal(one.inputs, expected)
        for a, b in zip(one, two, strict=True):
            assert isinstance(b, jax.Array) and a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


def test_a_loop_over_streamed_batches_trains_as_one_over_the_device(tmp_path):
    data = make(tmp_path)
    labels, group = (x[data.splits["train"]] for x in (data.labels, data.group))
    sampler = fairbatch(labels, group, num_classes=2, num_groups=3, batch_size=8, criterion="none")
    network, optimizer = mlp(6 * 6 * 3, 2, hidden=(8,)), optax.adam(0.01)
    flip = compose(random_flip())

    def augment(key, inputs):
        return flip(key, inputs).reshape(len(inputs), -1)

    def train(placement):
        step = jax.jit(make_step(network, optimizer), donate_argnums=0)
        state, shares = init_train(network, optimizer, jax.random.key(0)), sampler.init()
        for epoch in range(2):
            epoch_key = jax.random.fold_in(jax.random.key(1), epoch)
            order, weights = sampler.sample_epoch(epoch_key, shares)
            batches = iterate(data, "train", np.asarray(order), placement=placement)
            for i, batch in enumerate(batches):
                step_key = jax.random.fold_in(epoch_key, i)
                inputs = augment(step_key, batch.inputs)
                batch = Batch(inputs, batch.labels, batch.group, weights[i])
                state, _ = step(state, batch, step_key)
        return state

    streamed, kept = train("stream"), train("device")
    assert int(streamed.step) == 8
    jax.tree.map(np.testing.assert_array_equal, streamed, kept)


def test_bytes_are_those_that_placing_allocates_and_decide_where_data_goes(tmp_path, capsys):
    data = make(tmp_path)
    placed = place_on_device(data, "train")
    assert placed.inputs.dtype == jnp.uint8
    size = device_bytes(data, "train")
    assert size == sum(x.nbytes for x in placed) == 32 * (6 * 6 * 3 + 8)
    kept, why = choose_placement(data, "train", budget=size)
    assert kept == "device" and why.startswith("toy/train: 0.0 MiB") and "on the device" in why
    streamed, why = choose_placement(data, "train", budget=size - 1)
    assert streamed == "stream" and why.endswith("streamed.")
    assert choose_placement(data, "train", budget=size // 2, num_devices=2).placement == "device"
    assert capsys.readouterr() == ("", "")  # a library prints nothing
    with pytest.raises(ValueError, match="num_devices at least 1, got None and 0"):
        choose_placement(data, "train", num_devices=0)


def test_rows_can_be_sharded_over_devices(tmp_path):
    data = make(tmp_path)
    mesh = jax.make_mesh(
        (4, 2), ("data", "candidate"), axis_types=(jax.sharding.AxisType.Auto,) * 2
    )
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    placed = place_on_device(data, "train", sharding)
    assert placed.inputs.sharding.shard_shape(placed.inputs.shape)[0] == 8
    np.testing.assert_array_equal(placed.inputs, data.examples("train").inputs)
    odd = NamedSharding(jax.make_mesh((8,), ("data",)), PartitionSpec("data"))
    assert place_on_device(data, "val", odd).inputs.shape[0] == 8
    three = jax.make_mesh((3,), ("data",), devices=jax.devices()[:3])
    with pytest.raises(ValueError, match="8 rows cannot be divided over 3"):
        place_on_device(data, "val", NamedSharding(three, PartitionSpec("data")))


@pytest.mark.parametrize(
    ("order", "placement", "message"),
    [
        (np.zeros(3, int), "device", "order must be"),
        (np.full((1, 2), 32), "device", "order must be"),
        (np.zeros((1, 2), int), "disk", "placement must be"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(tmp_path, order, placement, message):
    with pytest.raises(ValueError, match=message):
        iterate(make(tmp_path), "train", order, placement=placement)
