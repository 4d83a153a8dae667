"""From columns of cells to the arrays of a `Dataset`: labels, groups and features."""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Sequence, Set
from decimal import Decimal

import numpy as np
from jaxtyping import Int32

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

_LEADING_ZERO = re.compile(r"[+-]?0+[1-9]")


def split_called(name: str) -> str | None:
    """Our name of a split that may be called by another, or None for one that is none of ours."""
    return _SPLIT_NAMES.get(key(name))


def drop_missing(table: Table, needed: Sequence[str]) -> tuple[Table, np.ndarray, list[str]]:
    """The table without the rows that miss a needed cell, which rows stay, and a note."""
    absent = {name: table.columns[name].codes < 0 for name in needed}
    rows = np.flatnonzero(~np.any(list(absent.values()), axis=0))
    if len(rows) == len(table):
        return table, rows, []
    gaps = {name: int(gap.sum()) for name, gap in absent.items() if gap.any()}
    counts = ", ".join(f"{show(name)} {gap}" for name, gap in gaps.items())
    if not len(rows):
        worst = sorted(gaps.items(), key=lambda pair: -pair[1])
        shown = ", ".join(f"{show(name)} {gap}" for name, gap in worst[:8])
        raise ValueError(
            f"{table.files[0]}: no row is complete; missing cells by column: {shown}"
            f"{', ...' if worst[8:] else ''}; leave such columns out by drop= (--data.drop), or "
            'fill them by missing="impute" (--data.missing impute)'
        )
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
        columns[name], merged = merge_spellings(table.columns[name], table.kept)
        if words := table.words.get(name):
            told = ", ".join(f"{show(word)} ({count})" for word, count in words.items())
            merged = [*merged, f"{told} read as missing"]
        notes += [f"Column {show(name)}: {text}." for text in merged]
    return dataclasses.replace(table, columns=columns), notes


def merge_spellings(
    column: Column, kept: Set[str] = frozenset(), *, feature: bool = False
) -> tuple[Column, list[str]]:
    """The column with one value per meaning, and which texts were merged.

    Words that say that nothing is known, but for those `kept` (by `key`), count as missing. Ways to
    write a number are noted where zeros before it differ: "01" and "1" may be two codes. As a
    `feature` they are a category, and what is written in one way only keeps its name.
    """
    values, codes = column
    counts = np.bincount(codes[codes >= 0], minlength=len(values)).tolist()
    name_of = spellings(values, counts)
    ways = Counter(name_of.values())
    if feature:
        name_of = {v: name if ways[name] > 1 else v for v, name in name_of.items()}
    nothing = (MISSING if feature else MISSING | UNKNOWN) - kept
    code_of: dict[str, int] = {}
    recode, others = [], {}
    for value, count in zip(values, counts, strict=True):
        name, unknown = name_of[value], key(value) in nothing
        recode.append(-1 if unknown else code_of.setdefault(name, len(code_of)))
        as_code = ways[name] > 1 and _LEADING_ZERO.match(value)
        if unknown or as_code or (value != name and number(name) is None):
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


def distinct_numbers(table: Table, name: str, remedy: str) -> list[float] | None:
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
    distinct_numbers(table, name, "a label must be all numbers or all text")
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
        if len(values) == 2 and values not in (("0", "1"), ("-1", "1")):
            found = "is not numeric"
            if number(values[0]) is not None:
                found = f"holds {values[0]} and {values[1]}, of which neither says yes or no"
            raise ValueError(
                f"{file}: label column {show(name)} {found}; pass positive={show(values[0])}"
                f" or positive={show(values[1])} (--data.positive) to say which value is class 1"
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


def note_classes(name: str, label_names: Sequence[str]) -> str:
    """A note on which class is what rates and gaps are of."""
    if len(label_names) == 2:
        return f"The positive class (1) of {show(name)} is {show(label_names[1])}."
    listed = ", ".join(f"{k} {show(text)}" for k, text in enumerate(label_names[:10]))
    more = ", ..." if len(label_names) > 10 else ""
    return f"{len(label_names)} classes of {show(name)}, none of them the positive: {listed}{more}."


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
    named = [split_called(value) for value in values]
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
