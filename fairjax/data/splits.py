"""Who trains and who tests: seeded splits that keep cells balanced and patients whole."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

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
    split_of_row = deal(strata, groups, ratios, seeded(seed))
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


def complete_splits(
    splits: Mapping[str, Integer[np.ndarray, " _"]],
    strata: Integer[np.ndarray, " N"],
    ratios: tuple[float, float, float],
    *,
    seed: int,
    groups: Shaped[np.ndarray, " N"] | None = None,
) -> tuple[dict[str, Integer[np.ndarray, " _"]], list[str]]:
    """Splits as they are given, with those that are absent cut out of train.

    Args:
      splits: row numbers by split, of which "val" and "test" may be absent.
      strata: integers `[N]`, typically `label * num_groups + group`.
      ratios: shares of train, val and test, between train and what is cut out of it.
      seed: an int; the same seed gives the same rows on every machine.
      groups: ids `[N]` that must not straddle splits, or None.

    Returns:
      All three splits, and a note on what was cut.

    Raises:
      ValueError: there is no train, shares are wrong, or a split would be empty.

    >>> given = {"train": np.arange(80), "test": np.arange(80, 90)}
    >>> splits, notes = complete_splits(given, np.zeros(90, int), (0.6, 0.2, 0.2), seed=0)
    >>> [len(rows) for rows in splits.values()], notes
    ([60, 20, 10], ['No val split is given: 20 of 80 rows of train are cut out for it, seed 0.'])
    """
    check_shares(ratios)
    if "train" not in splits:
        raise ValueError(f"there is no split 'train', only {', '.join(splits) or 'none'}")
    absent = [split for split in SPLITS if split not in splits]
    if not absent:
        return {split: splits[split] for split in SPLITS}, []
    train = splits["train"]
    parts = ["train", *absent]
    shares = np.array([ratios[SPLITS.index(part)] for part in parts])
    ids = None if groups is None else groups[train]
    part_of_row = deal(strata[train], ids, (shares / shares.sum()).tolist(), seeded(seed))
    cut = {part: train[part_of_row == p].astype(np.int32) for p, part in enumerate(parts)}
    for part, rows in cut.items():
        if not len(rows):
            raise ValueError(
                f"split {part!r}, cut out of the {len(train)} of train, would be empty"
            )
    notes = [
        f"No {part} split is given: {len(cut[part])} of {len(train)} rows of train are cut out for "
        f"it, seed {seed}."
        for part in absent
    ]
    whole = {**splits, **cut}
    return {split: whole[split] for split in SPLITS}, notes


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


def deal(
    strata: np.ndarray,
    ids: np.ndarray | None,
    ratios: Sequence[float],
    generator: np.random.Generator,
) -> np.ndarray:
    """Part of every row, with the rows of an id together where there are ids."""
    if ids is None:
        return deal_rows(strata, ratios, generator)
    if len(ids) != len(strata):
        raise ValueError(f"groups must have one id per row: {len(ids)} ids, {len(strata)} rows")
    members, id_of_row = np.unique(merge_ids(ids), return_inverse=True)
    id_of_row = id_of_row.reshape(-1)
    return place_ids(strata, id_of_row, len(members), ratios, generator)[id_of_row]


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


def place_ids(strata, group_of_row, num_groups, ratios, generator):
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
