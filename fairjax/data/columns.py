"""From columns of cells to the arrays of a `Dataset`: labels, groups and features."""

import dataclasses
import math
from collections.abc import Sequence
from decimal import Decimal

import numpy as np
from jaxtyping import Float32, Int32

from fairjax.data.csvfile import Column, Table, number, show
from fairjax.data.dataset import SPLITS
from fairjax.data.values import MISSING, UNKNOWN, canonical, key, spellings

MAX_CATEGORIES = 100
"""More classes, groups or categories than this are taken for a mistake."""

_SPLIT_NAMES = {split: split for split in SPLITS} | {
    "training": "train",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "testing": "test",
}
"""What split columns hold, by `key`."""


def drop_missing(table: Table, needed: Sequence[str]) -> tuple[Table, np.ndarray, list[str]]:
    """The table without the rows that miss a needed cell, which rows stay, and a note."""
    absent = {name: table.columns[name].codes < 0 for name in needed}
    rows = np.flatnonzero(~np.any(list(absent.values()), axis=0))
    if len(rows) == len(table):
        return table, rows, []
    counts = ", ".join(f"{show(name)} {gap.sum()}" for name, gap in absent.items() if gap.any())
    if not len(rows):
        raise ValueError(f"{table.files[0]}: no row is complete; missing cells by column: {counts}")
    dropped = len(table) - len(rows)
    note = f"Dropped {dropped} of {len(table)} rows with missing values ({counts})."
    return table.take(rows), rows, [note]


def tidy(table: Table, names: Sequence[str]) -> tuple[Table, list[str]]:
    """The table with some columns in one spelling per value, and notes on what was merged.

    Cells that differ only in how a number or a text is written (see `canonical`) are one value,
    named by its most frequent spelling; what says that nothing is known counts as missing.
    """
    columns, notes = dict(table.columns), []
    for name in dict.fromkeys(names):
        columns[name], merged = merge_spellings(table.columns[name])
        notes += [f"Column {show(name)}: {text}." for text in merged]
    return dataclasses.replace(table, columns=columns), notes


def merge_spellings(column: Column) -> tuple[Column, list[str]]:
    """The column with one value per meaning, and which texts were merged."""
    values, codes = column
    counts = np.bincount(codes[codes >= 0], minlength=len(values)).tolist()
    name_of = spellings(values, counts)
    code_of: dict[str, int] = {}
    recode, others = [], {}
    for value, count in zip(values, counts, strict=True):
        name, unknown = name_of[value], key(value) in MISSING | UNKNOWN
        recode.append(-1 if unknown else code_of.setdefault(name, len(code_of)))
        if unknown or (value != name and number(name) is None):
            shown = "missing" if unknown else show(name)
            others.setdefault(shown, []).append(f"{show(value)} ({count})")
    notes = [f"{', '.join(texts)} read as {shown}" for shown, texts in others.items()]
    return Column(tuple(code_of), np.array([*recode, -1], np.int32)[codes]), notes


def categories(column: Column) -> Column:
    """The column with values in order: as numbers (equal ones merged) if all are, else as text."""
    numbers = [number(value) for value in column.values]
    if all(x is not None and math.isfinite(x) for x in numbers):
        names = [canonical(f"{Decimal(value):f}") for value in column.values]
        values = tuple(sorted(set(names), key=Decimal))
    else:
        names = column.values
        values = tuple(sorted(names))
    code_of = {value: code for code, value in enumerate(values)}
    recode = np.array([*(code_of[name] for name in names), -1], np.int32)
    return Column(values, recode[column.codes])


def _display(name: str, values: Sequence[str]) -> tuple[str, ...]:
    """Category names: text as it is, numbers with the column's name before them."""
    if all(number(value) is not None for value in values):
        return tuple(f"{name}={value}" for value in values)
    return tuple(values)


def _numbers(table: Table, name: str, remedy: str) -> list[float] | None:
    """The distinct values as numbers, or None for text; raises ValueError on a mixture of both."""
    values, codes = table.columns[name]
    numbers = [number(value) for value in values]
    text = np.array([value is None for value in numbers])
    if text.any() and not text.all():
        present = codes >= 0
        is_text = present & text[codes]
        rare = is_text.sum() <= present.sum() / 2
        row = int((is_text if rare else present & ~is_text).argmax())
        raise ValueError(
            f"{table.where(row)}: column {show(name)} holds {show(values[codes[row]])} "
            f"among {'numbers' if rare else 'text'}; {remedy}"
        )
    return None if text.all() else [value for value in numbers if value is not None]


def read_labels(
    table: Table, name: str, positive: str | int | None
) -> tuple[Int32[np.ndarray, " N"], tuple[str, ...]]:
    """Class of every row and the names of the classes."""
    _numbers(table, name, "a label must be all numbers or all text")
    values, codes = categories(table.columns[name])
    file = table.files[0]
    if len(values) < 2:
        raise ValueError(
            f"{file}: label column {show(name)} holds only {', '.join(map(show, values))}; "
            "at least two classes are needed"
        )
    if len(values) > MAX_CATEGORIES:
        raise ValueError(
            f"{file}: label column {show(name)} holds {len(values)} distinct values, at most "
            f"{MAX_CATEGORIES} classes are accepted; is it a quantity?"
        )
    names = _display(name, values)
    if positive is None:
        if len(values) == 2 and number(values[0]) is None:
            raise ValueError(
                f"{file}: label column {show(name)} is not numeric; pass positive={show(values[0])}"
                f" or positive={show(values[1])} to say which value is class 1"
            )
        return codes, names
    keys = [key(value) for value in values]
    if key(str(positive)) not in keys:
        listed = ", ".join(show(value) for value in values[:10])
        raise ValueError(
            f"{file}: label column {show(name)} never holds positive={show(positive)}; "
            f"it holds {listed}{', ...' if len(values) > 10 else ''}"
        )
    target = keys.index(key(str(positive)))
    other = names[1 - target] if len(values) == 2 else f"not {names[target]}"
    return (codes == target).astype(np.int32), (other, names[target])


def read_groups(
    table: Table, sensitive: Sequence[str]
) -> tuple[Int32[np.ndarray, " N"], tuple[str, ...]]:
    """Group of every row and the names of the groups, intersections of the columns that occur."""
    combined = np.zeros(len(table), np.int64)
    names = ("",)
    for column_name in sensitive:
        values, codes = categories(table.columns[column_name])
        if len(values) > MAX_CATEGORIES:
            raise ValueError(
                f"{table.files[0]}: sensitive column {show(column_name)} holds {len(values)} "
                f"distinct values, at most {MAX_CATEGORIES} groups are accepted; band it first"
            )
        combined = combined * len(values) + codes
        present, combined = np.unique(combined, return_inverse=True)
        shown = _display(column_name, values)
        names = tuple(
            " & ".join(filter(None, (names[code // len(values)], shown[code % len(values)])))
            for code in present
        )
    if not 2 <= len(names) <= MAX_CATEGORIES:
        raise ValueError(
            f"{table.files[0]}: {' and '.join(map(show, sensitive))} make {len(names)} group(s), "
            f"accepted are 2 to {MAX_CATEGORIES}"
        )
    return combined.reshape(-1).astype(np.int32), names


def read_splits(table: Table, name: str) -> tuple[dict[str, Int32[np.ndarray, " _"]], list[str]]:
    """The rows of each split, as a column names it, and notes on names that are not ours."""
    values, codes = table.columns[name]
    named = [_SPLIT_NAMES.get(key(value)) for value in values]
    known = np.array([*(split is not None for split in named), False])
    if not known[codes].all():
        row = int(np.flatnonzero(~known[codes])[0])
        found = show(values[codes[row]]) if codes[row] >= 0 else "nothing"
        raise ValueError(
            f"{table.where(row)}: split column {show(name)} holds {found}, accepted are "
            f"{', '.join(map(show, SPLITS))}"
        )
    notes = [
        f"Column {show(name)}: {show(value)} ({(codes == code).sum()}) read as {show(split)}."
        for code, (value, split) in enumerate(zip(values, named, strict=True))
        if value != split
    ]
    split_of_value = np.array([SPLITS.index(split) for split in named if split is not None])
    return rows_of_splits(split_of_value[codes]), notes


def rows_of_splits(split_of_row: np.ndarray) -> dict[str, np.ndarray]:
    """The rows of each split from every row's number of a split."""
    return {
        split: np.flatnonzero(split_of_row == s).astype(np.int32) for s, split in enumerate(SPLITS)
    }


def read_feature(
    table: Table,
    name: str,
    train: Int32[np.ndarray, " _"],
    *,
    categorical: bool,
    fixed_categories: bool,
) -> tuple[Float32[np.ndarray, "N D"], tuple[str, ...], list[str]]:
    """Input columns `[N, D]` float32 made of one feature, their names, and notes.

    Statistics and categories come from the rows `train` alone; but with `fixed_categories` every
    value of the table has its place, so that the width is the same for every split.
    """
    values, codes = table.columns[name]
    if not (codes[train] >= 0).any():
        raise ValueError(f"{table.files[0]}: column {show(name)} has no values in split 'train'")
    if categorical:
        return _read_categories(table, name, train, fixed_categories)
    numbers = _numbers(
        table, name, "mend it, or name the column in categorical= to read it as text"
    )
    if numbers is not None:
        return _read_numbers(table, name, numbers, train)
    if len(values) > MAX_CATEGORIES:
        raise ValueError(
            f"{table.files[0]}: column {show(name)} holds {len(values)} distinct texts such as "
            f"{show(values[0])}, at most {MAX_CATEGORIES} are accepted; leave it out with "
            "features=, or name it in categorical= if they are categories"
        )
    return _read_categories(table, name, train, fixed_categories)


def _read_numbers(table, name, numbers, train) -> tuple[np.ndarray, tuple[str, ...], list[str]]:
    """One standardised column; missing cells get the median of train."""
    values, codes = table.columns[name]
    column = np.array([*numbers, math.nan])[codes]
    outside = np.abs(column) > np.finfo(np.float32).max
    if outside.any():
        row = int(outside.argmax())
        raise ValueError(
            f"{table.where(row)}: column {show(name)} holds {show(values[codes[row]])}, "
            "only finite float32 numbers are accepted"
        )
    notes = []
    gaps = codes < 0
    if gaps.any():
        fill = float(np.nanmedian(column[train]))
        column[gaps] = fill
        notes.append(f"Filled {gaps.sum()} missing {show(name)} with the train median {fill:g}.")
    # Exactly rounded sums, so that the same file gives the same bits on any machine.
    cells = column[train].tolist()
    mean = math.fsum(cells) / len(cells)
    spread = math.sqrt(math.fsum((cell - mean) ** 2 for cell in cells) / len(cells))
    if spread == 0:
        notes.append(f"Column {show(name)} is constant in train.")
    with np.errstate(over="ignore"):
        standardised = ((column - mean) / (spread or 1.0)).astype(np.float32)
    if not np.isfinite(standardised).all():
        row = int((~np.isfinite(standardised)).argmax())
        raise ValueError(
            f"{table.where(row)}: column {show(name)} holds {show(values[codes[row]])}, "
            "too far from the values of train to be standardised as float32"
        )
    return standardised[:, None], (name,), notes


def _read_categories(
    table, name, train, fixed_categories
) -> tuple[np.ndarray, tuple[str, ...], list[str]]:
    """One 0/1 column per known value; missing cells get train's most frequent value."""
    values, codes = categories(table.columns[name])
    counts = np.bincount(codes[train][codes[train] >= 0], minlength=len(values))
    notes = []
    gaps = codes < 0
    if gaps.any():
        codes = np.where(gaps, counts.argmax(), codes)
        notes.append(
            f"Filled {gaps.sum()} missing {show(name)} with the most frequent train value "
            f"{show(values[counts.argmax()])}."
        )
    kept = np.arange(len(values)) if fixed_categories else np.flatnonzero(counts)
    unseen = ~np.isin(codes, kept)
    if unseen.any():
        example = show(values[codes[unseen][0]])
        notes.append(
            f"Rows with a {show(name)} that train lacks: {unseen.sum()} (such as {example}), "
            "encoded as all zeros."
        )
    one_hot = (codes[:, None] == kept).astype(np.float32)
    return one_hot, tuple(f"{name}={values[code]}" for code in kept), notes
