"""A Dataset shares what it can, copies what it must, and is hashed once."""

import dataclasses

import jax
import numpy as np
import pytest

from fairjax.data import Dataset, balance_groups, lesions_dataset
from fairjax.data import dataset as module

COUNT = 60


def make(inputs=None, **changes):
    draw = np.random.default_rng(0)
    order = draw.permutation(20).astype(np.int32)
    fields = {
        "name": "toy",
        "inputs": draw.random((COUNT, 4)).astype(np.float32) if inputs is None else inputs,
        "labels": draw.integers(0, 2, COUNT).astype(np.int32),
        "group": draw.integers(0, 3, COUNT).astype(np.int32),
        "label_names": ("no", "yes"),
        "group_names": ("a", "b", "c"),
        "splits": {
            "train": np.arange(20, 50, dtype=np.int32),
            "val": order[:10],
            "test": order[10:],
        },
    }
    return Dataset(**(fields | changes))


@pytest.fixture
def mapped(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (COUNT, 5, 5, 3), dtype=np.uint8)
    np.save(tmp_path / "x.npy", pixels)
    return make(np.load(tmp_path / "x.npy", mmap_mode="r")), pixels


def test_a_split_that_is_a_range_is_a_view_and_any_other_a_copy():
    data = make()
    train, val = data.examples("train"), data.examples("val")
    for whole, kept, copied in zip((data.inputs, data.labels, data.group), train, val, strict=True):
        assert np.shares_memory(whole, kept) and not kept.flags.writeable
        assert not np.shares_memory(whole, copied)
        np.testing.assert_array_equal(kept, whole[20:50])
        np.testing.assert_array_equal(copied, whole[data.splits["val"]])


def test_nothing_can_be_changed_through_a_dataset():
    labels = np.zeros(COUNT, np.int32)
    data = make(labels=labels)
    for array in (data.inputs, data.labels, data.group, *data.splits.values()):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    labels[0] = 1  # the caller's own array stays the caller's
    assert labels.flags.writeable


def test_any_rows_come_in_the_order_asked_for_with_repeats(mapped):
    data, pixels = mapped
    rows = np.array([7, 3, 3, 59, 0])
    taken = data.rows(rows)
    np.testing.assert_array_equal(taken.inputs, pixels[rows])
    np.testing.assert_array_equal(taken.labels, data.labels[rows])
    np.testing.assert_array_equal(taken.group, data.group[rows])
    assert type(taken.inputs) is np.ndarray  # read, no map any more
    assert data.rows(np.array([], np.int32)).inputs.shape == (0, 5, 5, 3)
    assert isinstance(data.examples("train").inputs, np.memmap)  # nothing is read yet


def test_a_memory_map_is_read_in_the_order_of_its_file_a_piece_at_a_time(mapped, monkeypatch):
    data, pixels = mapped
    monkeypatch.setattr(module, "_CHUNK", 8)
    read = []

    class Watched(np.memmap):
        def __getitem__(self, rows):
            read.append(rows)
            return super().__getitem__(rows)

    watched = dataclasses.replace(data, inputs=data.inputs.view(Watched))
    rows = np.random.default_rng(2).permutation(COUNT)[:30]
    np.testing.assert_array_equal(watched.rows(rows).inputs, pixels[rows])
    assert [len(part) for part in read] == [8, 8, 8, 6]
    np.testing.assert_array_equal(np.concatenate(read), np.sort(rows))


def test_the_fingerprint_is_computed_once_and_follows_contents_and_split(monkeypatch):
    data, hashed = make(), []
    sha256 = module.hashlib.sha256
    monkeypatch.setattr(module.hashlib, "sha256", lambda: hashed.append(1) or sha256())
    assert data.fingerprint == data.fingerprint == make().fingerprint
    assert len(hashed) == 2  # one for each of the two sets
    inputs = np.array(data.inputs)
    inputs[0, 0] += 1
    assert make(inputs).fingerprint != data.fingerprint
    swapped = {**data.splits, "val": data.splits["test"], "test": data.splits["val"]}
    assert dataclasses.replace(data, splits=swapped).fingerprint != data.fingerprint
    assert dataclasses.replace(data, name="other").fingerprint == data.fingerprint


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.array([60]), r"rows must be in \[0, 60\), got 60 to 60"),
        (np.array([-1, 3]), "got -1 to 3"),
        (np.array([0.0, 1.0]), "must be row numbers"),
        (np.zeros(COUNT, bool), "must be row numbers"),
        (np.zeros((2, 2), int), r"must be row numbers \[n\]"),
    ],
)
def test_rows_that_are_none_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        make().rows(rows)


def test_an_unknown_split_lists_those_there_are():
    for call in ("examples", "cell_counts"):
        with pytest.raises(ValueError, match="toy: split must be one of .*'test'.* got 'dev'"):
            getattr(make(), call)("dev")


def test_splits_must_be_disjoint_row_numbers():
    part = make().splits
    for splits, message in (
        ({**part, "val": part["train"]}, "splits share rows"),
        ({**part, "val": np.array([60])}, "rows of split 'val' must be in"),
        ({**part, "val": np.array([0.5])}, "split 'val' must be row numbers"),
        ({"train": part["train"]}, "splits must be"),
    ):
        with pytest.raises(ValueError, match=message):
            make(splits=splits)


def test_a_balanced_split_keeps_as_many_of_every_group():
    data = lesions_dataset(jax.random.key(0), 400, 16)
    even = balance_groups(data, "val")
    rows = even.splits["val"]
    assert set(rows) <= set(data.splits["val"]) and (np.diff(rows) > 0).all()
    counts = np.bincount(data.group[data.splits["val"]])
    assert (np.bincount(data.group[rows]) == counts.min()).all() and counts.min() > 0
    np.testing.assert_array_equal(even.splits["test"], data.splits["test"])
    assert even.notes[-1].startswith(f"Kept {counts.min()} of each group in val")
    assert np.shares_memory(even.inputs, data.inputs)


def test_a_split_that_lacks_a_group_cannot_be_balanced():
    data = make(group=np.zeros(COUNT, np.int32))
    with pytest.raises(ValueError, match="toy: group 'b' has no rows in split 'val'"):
        balance_groups(data, "val")
    with pytest.raises(ValueError, match="split must be one of"):
        balance_groups(data, "dev")
