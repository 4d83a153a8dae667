"""A set split in several ways of equal sizes: folds, and its own shares drawn anew."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from fairjax.data.dataset import SPLITS, Dataset
from fairjax.data.splits import deal, place_ids, seeded


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
        placed = place_ids(cells, id_of_row, len(distinct), equal, generator)
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
        ids = None if dataset.ids is None else dataset.ids[rows]
        part_of_row = deal(cells, ids, ratios, generator)
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
