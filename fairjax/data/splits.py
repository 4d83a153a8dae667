"""Who trains and who tests: seeded splits that keep cells balanced and patients whole."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, Int64, Integer, Shaped

from fairjax.data.dataset import SPLITS, Dataset
from fairjax.data.values import merge_ids


def stratified_split(
    strata: Integer[np.ndarray, " N"],
    ratios: tuple[float, float, float] = (0.6, 0.2, 0.2),
    *,
    seed: int,
    groups: Shaped[np.ndarray, " ids"] | None = None,
) -> dict[str, Int32[np.ndarray, " _"]]:
    """Random train / val / test rows in which every stratum keeps its share.

    Without `groups` each stratum is dealt out exactly (largest remainder, and at least one row per
    split where it has three). With `groups` all rows of a group go together, so shares are only as
    near as whole groups allow: groups are placed from large to small, each where the strata it
    brings are furthest from their share.

    Args:
      strata: integers `[N]`, typically `label * num_groups + group`.
      ratios: shares of train, val and test, positive, summing to 1.
      seed: an int; the same seed gives the same rows on every machine.
      groups: ids `[N]` (of patients, say) that must not straddle splits, any sortable dtype; or
        None.

    Returns:
      For "train", "val" and "test" the int32 row numbers, ascending; together every row once.

    Raises:
      ValueError: ratios are not three positive shares of 1, lengths differ, or a split would be
        empty.

    Source: with groups, the idea of iterative stratification (Sechidis et al. 2011), here by least
    chi-square cost.

    >>> splits = stratified_split(np.repeat([0, 1], [80, 20]), (0.5, 0.25, 0.25), seed=0)
    >>> {name: len(rows) for name, rows in splits.items()}
    {'train': 50, 'val': 25, 'test': 25}
    """
    check_shares(ratios)
    strata = np.unique(strata, return_inverse=True)[1].reshape(-1)
    generator = seeded(seed)
    if groups is None:
        split_of_row = deal_rows(strata, ratios, generator)
    elif len(groups) != len(strata):
        raise ValueError(f"groups must have one id per row: {len(groups)} ids, {len(strata)} rows")
    else:
        members, group_of_row = np.unique(merge_ids(groups), return_inverse=True)
        split_of_row = _place_groups(
            strata, group_of_row.reshape(-1), len(members), ratios, generator
        )[group_of_row.reshape(-1)]
    splits = {
        split: np.flatnonzero(split_of_row == s).astype(np.int32) for s, split in enumerate(SPLITS)
    }
    for split, rows in splits.items():
        if not len(rows):
            what = "rows" if groups is None else "ids"
            raise ValueError(
                f"split {split!r} would be empty: too few {what} for the ratios {ratios}"
            )
    return splits


def seeded(seed: int) -> np.random.Generator:
    """A generator that gives the same numbers on every machine; ValueError for what is no seed."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"seed must be a whole number of at least 0, got {seed!r}")
    return np.random.Generator(np.random.PCG64(int(seed)))


def check_shares(ratios: tuple[float, float, float]) -> None:
    """Raises ValueError unless these are three positive shares of 1."""
    if len(ratios) != len(SPLITS) or not (min(ratios) > 0 and abs(math.fsum(ratios) - 1) <= 1e-6):
        raise ValueError(f"split ratios must be three positive numbers summing to 1, got {ratios}")


def deal_rows(
    strata: Integer[np.ndarray, " N"], ratios: Sequence[float], generator: np.random.Generator
) -> Int64[np.ndarray, " N"]:
    """Split number of every row: each stratum is shuffled and cut by the ratios."""
    split_of_row = np.empty(len(strata), np.int64)
    for stratum in np.unique(strata):
        rows = generator.permutation(np.flatnonzero(strata == stratum))
        sizes = _largest_remainder(len(rows), ratios)
        split_of_row[rows] = np.repeat(np.arange(len(ratios)), sizes)
    return split_of_row


def _largest_remainder(count: int, ratios) -> np.ndarray:
    """`count` in whole parts near the ratios; no part is empty if there are enough."""
    exact = count * np.asarray(ratios)
    sizes = np.floor(exact + 1e-9).astype(np.int64)
    for part in np.argsort(sizes - exact, kind="stable")[: count - sizes.sum()]:
        sizes[part] += 1
    while count >= len(ratios) and sizes.min() == 0:
        sizes[sizes.argmax()] -= 1
        sizes[sizes.argmin()] += 1
    return sizes


def _place_groups(strata, group_of_row, num_groups, ratios, generator):
    """Split number of every group: the largest first, each where it costs least in chi-square."""
    num_strata = int(strata.max(initial=-1)) + 1
    share = np.outer(ratios, np.bincount(strata, minlength=num_strata))
    placed = np.zeros_like(share)
    order = generator.permutation(num_groups)
    size = np.bincount(group_of_row, minlength=num_groups)
    order = order[np.argsort(-size[order], kind="stable")]
    by_group = np.split(strata[np.argsort(group_of_row, kind="stable")], np.cumsum(size)[:-1])
    split_of_group = np.empty(num_groups, np.int64)
    for group in order:
        present, rows = np.unique(by_group[group], return_counts=True)
        cost = (rows * (2 * (placed[:, present] - share[:, present]) + rows)) / share[:, present]
        split = int(cost.sum(axis=1).argmin())
        placed[split, present] += rows
        split_of_group[group] = split
    return split_of_group


def split_by_id(
    ids: Shaped[np.ndarray, " N"],
    *,
    held_out: float = 0.2,
    test_share: float = 0.5,
    seeds: tuple[int, int] = (0, 0),
) -> dict[str, Int32[np.ndarray, " _"]]:
    """Train / val / test rows by two seeded cuts through the sorted distinct ids, as MEDFAIR does.

    All rows of an id (a patient, a lesion) stay together; labels and groups are not balanced.
    HAM10000 is split 8/1/1 by `lesion_id` with the defaults; Fitzpatrick17k by `md5hash` with seeds
    (5, 6); PAPILA 7/1/2 by `ID` with held_out=0.3, test_share=0.66 and seeds (5, 15).

    Args:
      ids: `[N]`, any sortable dtype.
      held_out: share of the ids that leave training, in (0, 1).
      test_share: share of the held-out ids that go to test, in (0, 1); the others are val.
      seeds: `random_state` of the first and of the second cut.

    Returns:
      For "train", "val" and "test" the int32 row numbers, ascending; together every row once.

    Raises:
      ValueError: a share is outside (0, 1) or there are too few ids for three splits.

    Source: Zong et al., ICLR 2023 (MEDFAIR), preparation of the data sets; scikit-learn's
    `train_test_split`.

    >>> splits = split_by_id(np.repeat(np.arange(50), 2))  # two photographs of each patient
    >>> [len(rows) for rows in splits.values()]
    [80, 10, 10]
    """
    from sklearn.model_selection import train_test_split  # a second to import: only when needed

    for name, value in (("held_out", held_out), ("test_share", test_share)):
        if not 0 < value < 1:
            raise ValueError(f"{name} must be in (0, 1), got {value}")
    distinct, id_of_row = np.unique(merge_ids(ids), return_inverse=True)
    if len(distinct) < len(SPLITS):
        raise ValueError(f"three splits need at least three distinct ids, got {len(distinct)}")
    train, rest = train_test_split(
        np.arange(len(distinct)), test_size=held_out, random_state=seeds[0]
    )
    if len(rest) < 2:
        raise ValueError(
            f"held_out={held_out} leaves {len(rest)} of {len(distinct)} ids for val and test"
        )
    val, test = train_test_split(rest, test_size=test_share, random_state=seeds[1])
    id_of_row = id_of_row.reshape(-1)
    return {
        split: np.flatnonzero(np.isin(id_of_row, members)).astype(np.int32)
        for split, members in zip(SPLITS, (train, val, test), strict=True)
    }


def balance_groups(dataset: Dataset, split: str) -> Dataset:
    """The set with as many rows of each group in one split as its smallest group has there.

    A metric within groups gains little from more rows of the others. Kept are the first rows of
    every group in split order, noted in `notes`; the arrays are shared, not copied.

    Args:
      dataset: the set.
      split: "train", "val" or "test".

    Returns:
      A `Dataset` in which only `splits[split]` (ascending) and `notes` differ.

    Raises:
      ValueError: no such split, or a group has no rows in it.

    >>> from fairjax.data import load_adult
    >>> balance_groups(load_adult("sex"), "val").cell_counts("val").sum(axis=0).tolist()
    [2939, 2939]
    """
    rows = dataset.split_rows(split)
    group = dataset.group[rows]
    counts = np.bincount(group, minlength=dataset.num_groups)
    if not counts.min():
        name = dataset.group_names[int(counts.argmin())]
        raise ValueError(
            f"{dataset.name}: group {name!r} has no rows in split {split!r}, which therefore "
            "cannot be balanced"
        )
    kept = np.concatenate([rows[group == g][: counts.min()] for g in range(dataset.num_groups)])
    note = f"Kept {counts.min()} of each group in {split}, {len(kept)} of {len(rows)} rows."
    return dataclasses.replace(
        dataset,
        splits={**dataset.splits, split: np.sort(kept)},
        notes=(*dataset.notes, note),
    )


class Splits(NamedTuple):
    """Several ways to split a set, all of the same sizes; int32 row numbers of the set."""

    train: Int32[np.ndarray, "F n"]
    val: Int32[np.ndarray, "F m"]
    test: Int32[np.ndarray, "F t"]

    def left_out(self, dataset: Dataset) -> int:
        """Most rows of the set's splits that one of these leaves out to make their sizes equal."""
        whole = sum(len(dataset.splits[split]) for split in SPLITS)
        return whole - sum(part.shape[1] for part in self)


def given_split(dataset: Dataset) -> Splits:
    """The set's own split as the only one, F = 1."""
    return Splits(*(np.asarray(dataset.splits[split], np.int32)[None] for split in SPLITS))


def folds(dataset: Dataset, num_folds: int, seed: int = 0) -> Splits:
    """Train and val cut into folds anew: each is validated on once, by a run trained on the others.

    Folds are stratified on (label, group) and keep the rows of an id together. The test split is
    never folded. To make sizes equal, rows of the larger folds are left out at random: one or two
    per cell, or as many as whole ids demand.

    Args:
      dataset: the set.
      num_folds: F, at least 2.
      seed: an int; the same seed gives the same rows on every machine.

    Returns:
      `Splits`; `val` of fold f is the fold, `train` the other folds, `test` the set's own.

    Raises:
      ValueError: fewer rows or ids than folds, or a fold without a (label, group) cell that train
        and val have.

    >>> from fairjax.data import load_adult
    >>> [part.shape for part in folds(load_adult("sex"), 3)]
    [(3, 24118), (3, 12059), (3, 9044)]
    """
    if isinstance(num_folds, bool) or not isinstance(num_folds, int) or num_folds < 2:
        raise ValueError(f"num_folds must be a whole number of at least 2, got {num_folds!r}")
    rows = np.concatenate([dataset.splits["train"], dataset.splits["val"]])
    cells = _cells(dataset, rows)
    generator = seeded(seed)
    ids = np.arange(len(rows)) if dataset.ids is None else dataset.ids[rows]
    distinct, id_of_row = np.unique(ids, return_inverse=True)
    if len(distinct) < num_folds:
        what = "rows" if dataset.ids is None else "ids"
        raise ValueError(
            f"{dataset.name}: train and val hold {len(distinct)} {what}, "
            f"too few for {num_folds} folds"
        )
    if dataset.ids is None:
        # dealt in turn, cell after cell, so that folds differ by one row
        order = generator.permutation(len(rows))
        order = order[np.argsort(cells[order], kind="stable")]
        fold_of_row = np.empty(len(rows), np.int64)
        fold_of_row[order] = np.arange(len(rows)) % num_folds
    else:
        equal = np.full(num_folds, 1 / num_folds)
        placed = _place_groups(cells, id_of_row, len(distinct), equal, generator)
        fold_of_row = placed[id_of_row]
    parts = [rows[fold_of_row == fold] for fold in range(num_folds)]
    size = min(map(len, parts))
    parts = [np.sort(generator.permutation(part)[:size]) for part in parts]
    _check_parts(dataset, parts, np.unique(cells))
    others = [np.sort(np.concatenate([*parts[:f], *parts[f + 1 :]])) for f in range(num_folds)]
    test = np.broadcast_to(dataset.splits["test"], (num_folds, len(dataset.splits["test"])))
    return Splits(*(np.asarray(part, np.int32) for part in (others, parts, test)))


def resplits(dataset: Dataset, num_splits: int, seed: int = 0) -> Splits:
    """The set split anew several times, in the shares of its own splits.

    Every split is stratified on (label, group) and keeps the rows of an id together. A test split
    that was given (`fixed_test`) stays, and only train and val are drawn anew. Where sizes differ
    by whole ids, rows are left out at random to make them equal.

    Args:
      dataset: the set; rows that are in none of its splits stay out.
      num_splits: F, at least 1.
      seed: of the first split; the others count on.

    Returns:
      `Splits`.

    Raises:
      ValueError: `num_splits` below 1, too few rows or ids, or a split without a (label, group)
        cell that the set has.

    >>> from fairjax.data import load_adult
    >>> [part.shape for part in resplits(load_adult("sex"), 10)]
    [(10, 27133), (10, 9045), (10, 9044)]
    """
    if isinstance(num_splits, bool) or not isinstance(num_splits, int) or num_splits < 1:
        raise ValueError(f"num_splits must be a whole number of at least 1, got {num_splits!r}")
    drawn = SPLITS[:2] if dataset.fixed_test else SPLITS
    rows = np.concatenate([dataset.splits[split] for split in drawn])
    sizes = np.array([len(dataset.splits[split]) for split in drawn])
    if not sizes.min():
        raise ValueError(f"{dataset.name}: split {drawn[int(sizes.argmin())]!r} is empty")
    cells, ratios = _cells(dataset, rows), (sizes / sizes.sum()).tolist()
    parts: list[list[np.ndarray]] = []
    for number in range(num_splits):
        generator = seeded(seed + number)
        if dataset.ids is None:
            part_of_row = deal_rows(cells, ratios, generator)
        else:
            distinct, id_of_row = np.unique(dataset.ids[rows], return_inverse=True)
            placed = _place_groups(cells, id_of_row, len(distinct), ratios, generator)
            part_of_row = placed[id_of_row]
        own = [rows[part_of_row == part] for part in range(len(drawn))]
        parts.append([generator.permutation(part) for part in own])
    whole = [min(len(own[i]) for own in parts) for i in range(len(drawn))]
    for own in parts:
        _check_parts(dataset, [own[i][:size] for i, size in enumerate(whole)], np.unique(cells))
    stacked = [
        np.stack([np.sort(own[i][:size]) for own in parts]).astype(np.int32)
        for i, size in enumerate(whole)
    ]
    if dataset.fixed_test:
        test = np.asarray(dataset.splits["test"], np.int32)
        stacked.append(np.broadcast_to(test, (num_splits, len(test))))
    return Splits(*stacked)


def _cells(dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    """The (label, group) cell of every row, as one number."""
    return dataset.labels[rows].astype(np.int64) * dataset.num_groups + dataset.group[rows]


def _check_parts(dataset: Dataset, parts: Sequence[np.ndarray], present: np.ndarray) -> None:
    """Raises ValueError, naming the cell, if a part lacks one that others have."""
    for number, part in enumerate(parts):
        if len(absent := np.setdiff1d(present, _cells(dataset, part))):
            label, group = divmod(int(absent[0]), dataset.num_groups)
            raise ValueError(
                f"{dataset.name}: part {number + 1} of {len(parts)} has no rows of class "
                f"{dataset.label_names[label]!r} in group {dataset.group_names[group]!r}; "
                "take fewer parts, or merge groups"
            )
