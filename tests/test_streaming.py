"""How much of a device's memory a split takes, asked before anything is read."""

import os

import jax
import numpy as np
import pytest

from fairjax.data import Dataset
from fairjax.data.streaming import device_budget, device_bytes


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


def test_a_split_takes_its_pixels_and_two_integers_a_row(tmp_path):
    data = make(tmp_path)
    assert device_bytes(data, "train") == 32 * (6 * 6 * 3 + 8)
    placed = jax.device_put(data.examples("train"))
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(placed)) == device_bytes(data, "train")
    with pytest.raises(ValueError, match="split"):
        device_bytes(data, "training")


def test_half_of_the_machine_is_for_examples():
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert device_budget() == machine // 2
