"""Splits keep their shares, cover every row once and never cut a patient in two."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from fairjax.data import SPLITS, Dataset, folds, resplits, split_by_id, stratified_split

NAMES = ("train", "val", "test")


def assert_partition(splits, n):
    assert tuple(splits) == NAMES
    rows = np.concatenate([splits[name] for name in NAMES])
    assert rows.dtype == np.int32
    np.testing.assert_array_equal(np.sort(rows), np.arange(n))


def test_every_stratum_is_dealt_out_exactly():
    strata = np.repeat([0, 1, 2], [100, 50, 10])
    splits = stratified_split(strata, (0.6, 0.2, 0.2), seed=0)
    assert_partition(splits, 160)
    counts = [np.bincount(strata[splits[name]]).tolist() for name in NAMES]
    assert counts == [[60, 30, 6], [20, 10, 2], [20, 10, 2]]


def test_a_stratum_of_three_reaches_every_split():
    strata = np.repeat([0, 7], [100, 3])
    splits = stratified_split(strata, (0.9, 0.05, 0.05), seed=0)
    assert [int((strata[splits[name]] == 7).sum()) for name in NAMES] == [1, 1, 1]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=30, max_size=200), st.integers(0, 99))
def test_shares_are_within_one_row_per_stratum(strata, seed):
    strata = np.array(strata)
    ratios = (0.5, 0.25, 0.25)
    splits = stratified_split(strata, ratios, seed=seed)
    assert_partition(splits, len(strata))
    for name, ratio in zip(NAMES, ratios, strict=True):
        for stratum, count in zip(*np.unique(strata, return_counts=True), strict=True):
            assert abs((strata[splits[name]] == stratum).sum() - ratio * count) <= 1


def test_seed_decides_the_rows():
    strata = np.zeros(100, np.int32)
    first, again, other = (stratified_split(strata, seed=s)["train"] for s in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_rows_drawn_do_not_change_between_releases():
    splits = stratified_split(np.array([0] * 6 + [1] * 4), (0.5, 0.3, 0.2), seed=0)
    assert {name: rows.tolist() for name, rows in splits.items()} == {
        "train": [2, 3, 5, 7, 9],
        "val": [0, 4, 6],
        "test": [1, 8],
    }


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_patients_never_straddle_splits_and_cells_stay_near_their_share(seed):
    generator = np.random.default_rng(seed)
    patients = generator.integers(0, 150, 400)
    strata = generator.choice(4, 400, p=[0.5, 0.3, 0.15, 0.05])
    ratios = (0.6, 0.2, 0.2)
    splits = stratified_split(strata, ratios, seed=seed, groups=patients)
    assert_partition(splits, 400)
    members = [set(patients[splits[name]]) for name in NAMES]
    assert not (members[0] & members[1] or members[0] & members[2] or members[1] & members[2])
    for name, ratio in zip(NAMES, ratios, strict=True):
        assert abs(len(splits[name]) / 400 - ratio) < 0.03
        share = np.bincount(strata[splits[name]], minlength=4) / np.bincount(strata, minlength=4)
        assert np.abs(share - ratio).max() < 0.15


def test_whole_patients_beat_a_blind_cut_on_balance():
    # One stratum lives in few patients: placing them well keeps 0.6 / 0.2 / 0.2 to the row.
    patients = np.repeat(np.arange(100), 2)
    strata = (patients < 10).astype(int)
    splits = stratified_split(strata, (0.6, 0.2, 0.2), seed=0, groups=patients.astype(str))
    assert [int(strata[splits[name]].sum()) for name in NAMES] == [12, 4, 4]


@pytest.mark.parametrize(
    "ratios",
    [(0.6, 0.2, 0.3), (0.8, 0.2), (1.0, 0.2, -0.2), (0.5, 0.5, 0.0), (float("nan"), 0.5, 0.5)],
)
def test_bad_ratios_are_refused(ratios):
    with pytest.raises(ValueError, match="three positive numbers summing to 1"):
        stratified_split(np.zeros(10, int), ratios, seed=0)


def test_too_few_rows_or_patients_are_refused():
    with pytest.raises(ValueError, match="split 'test' would be empty: too few rows"):
        stratified_split(np.zeros(2, int), seed=0)
    with pytest.raises(ValueError, match="split 'test' would be empty: too few ids"):
        stratified_split(np.zeros(8, int), seed=0, groups=np.repeat([0, 1], 4))
    with pytest.raises(ValueError, match="3 ids, 8 rows"):
        stratified_split(np.zeros(8, int), seed=0, groups=np.arange(3))


def test_split_by_id_makes_the_two_published_cuts():
    ids = np.random.default_rng(0).permutation(np.repeat([f"HAM_{i:04d}" for i in range(60)], 3))
    splits = split_by_id(ids, held_out=0.3, test_share=0.66, seeds=(5, 15))
    train, rest = train_test_split(np.unique(ids), test_size=0.3, random_state=5)
    val, test = train_test_split(rest, test_size=0.66, random_state=15)
    assert_partition(splits, 180)
    for name, members in zip(NAMES, (train, val, test), strict=True):
        assert set(ids[splits[name]]) == set(members)


def test_split_by_id_refuses_shares_and_sizes_that_cannot_work():
    with pytest.raises(ValueError, match="held_out must be in \\(0, 1\\), got 1.5"):
        split_by_id(np.arange(10), held_out=1.5)
    with pytest.raises(ValueError, match="at least three distinct ids, got 2"):
        split_by_id(np.array([1, 1, 2, 2]))
    with pytest.raises(ValueError, match="leaves 1 of 3 ids"):
        split_by_id(np.arange(3))


def drawn_anew(ids=None, fixed_test=False, count=120):
    """Two classes and two groups, one of them rare; an eighth of the rows are in no split."""
    draw = np.random.default_rng(0)
    order = draw.permutation(count).astype(np.int32)
    if ids is not None:  # whole ids in every split
        order = np.argsort(ids, kind="stable").astype(np.int32)
    cuts = np.split(order, [count // 2, 5 * count // 8, 7 * count // 8])
    return Dataset(
        name="toy",
        inputs=draw.random((count, 2)).astype(np.float32),
        labels=draw.integers(0, 2, count).astype(np.int32),
        group=(draw.random(count) < 0.3).astype(np.int32),
        label_names=("no", "yes"),
        group_names=("a", "b"),
        splits=dict(zip(SPLITS, cuts[:3], strict=True)),
        ids=ids,
        fixed_test=fixed_test,
    )


def test_folds_cut_train_and_val_and_never_touch_test():
    data = drawn_anew()
    pool = np.concatenate([data.splits["train"], data.splits["val"]])
    drawn = folds(data, 5)
    assert drawn.left_out(data) == 0
    np.testing.assert_array_equal(np.sort(drawn.val.reshape(-1)), np.sort(pool))
    for train, val, test in zip(*drawn, strict=True):
        np.testing.assert_array_equal(np.sort(np.concatenate([train, val])), np.sort(pool))
        np.testing.assert_array_equal(test, data.splits["test"])
    again, other = folds(data, 5), folds(data, 5, seed=1)
    assert (again.val == drawn.val).all() and (other.val != drawn.val).any()


def test_every_fold_and_split_has_its_share_of_every_cell():
    data = drawn_anew(count=480)
    cells = data.labels * 2 + data.group
    for drawn in (folds(data, 4), resplits(data, 3)):
        for part in drawn:
            counts = np.stack([np.bincount(cells[rows], minlength=4) for rows in part])
            assert np.ptp(counts, axis=0).max() <= 1 or part is drawn.test


def test_rows_of_an_id_stay_in_one_fold_and_in_one_part_of_a_split():
    ids = np.arange(480) // 3
    data = drawn_anew(ids, count=480)
    for train, val, _ in zip(*folds(data, 4), strict=True):
        assert not np.intersect1d(ids[train], ids[val]).size
    drawn = resplits(data, 4)
    assert 0 <= drawn.left_out(data) < 30
    for parts in zip(*drawn, strict=True):
        of_part = [np.unique(ids[rows]) for rows in parts]
        assert len(np.unique(np.concatenate(of_part))) == sum(map(len, of_part))


def test_resplits_keep_sizes_shares_and_a_test_split_that_was_given():
    data = drawn_anew()
    drawn = resplits(data, 6)
    used = np.sort(np.concatenate([data.splits[split] for split in SPLITS]))
    for parts in zip(*drawn, strict=True):
        np.testing.assert_array_equal(np.sort(np.concatenate(parts)), used)
    assert len(np.unique(drawn.test, axis=0)) == 6
    given = resplits(drawn_anew(fixed_test=True), 6)
    assert (given.test == data.splits["test"]).all() and len(np.unique(given.train, axis=0)) == 6


def test_too_many_folds_or_a_cell_that_a_fold_lacks_are_refused():
    data = drawn_anew(np.searchsorted([60, 75, 105], np.arange(120), side="right"))
    with pytest.raises(ValueError, match="hold 2 ids, too few for 3 folds"):
        folds(data, 3)
    rare = drawn_anew()
    labels = np.zeros(120, np.int32)
    labels[rare.splits["train"][:3]] = 1
    rare = dataclasses.replace(rare, labels=labels)
    with pytest.raises(ValueError, match="part . of 4 has no rows of class 'yes' in group"):
        folds(rare, 4)
    for wrong in (1, True, 2.0):
        with pytest.raises(ValueError, match="at least 2, got"):
            folds(data, wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="at least 1, got 0"):
        resplits(data, 0)


def test_a_dataset_refuses_an_id_in_two_splits():
    with pytest.raises(ValueError, match="toy: id '0' is in train and"):
        dataclasses.replace(drawn_anew(), ids=np.zeros(120, int))
    with pytest.raises(ValueError, match=r"ids must be one per row, \(120,\), got \(3,\)"):
        dataclasses.replace(drawn_anew(), ids=np.arange(3))
