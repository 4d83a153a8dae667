"""Features of a table: which columns are any, and how one becomes inputs."""

import dataclasses
import math
import shlex
from collections.abc import Sequence
from decimal import Decimal

import numpy as np
from jaxtyping import Int32

from fairjax.data.columns import MAX_CATEGORIES, categories, distinct_numbers, merge_spellings
from fairjax.data.csvfile import Column, Table, number, show
from fairjax.data.encoding import Categories, Numbers, read_numbers
from fairjax.data.numerals import looks_like, read_numerals
from fairjax.data.values import UNKNOWN, key

NEARLY_UNIQUE = 0.8
"""Texts that differ in this share of the rows are names or ids, not categories."""

MIN_UNIQUE = 20
"""In fewer rows, whole numbers that all differ may well be measurements."""

_REMEDY = (
    "mend it, or name the column in categorical= (--data.categorical) to read it as text, or in "
    "drop= (--data.drop) to leave it out"
)


def default_features(
    table: Table, names: Sequence[str], categorical: Sequence[str]
) -> tuple[tuple[str, ...], list[str]]:
    """The columns that can be features, of which nobody asked for one by name, and notes.

    Left out are columns without a value and whole numbers that differ in every row: a row number or
    the id of a record says nothing about the next one.
    """
    kept, empty, notes = [], [], []
    for name in names:
        values, codes = table.columns[name]
        if name in categorical:
            kept.append(name)
        elif not values:
            empty.append(show(name))
        elif _is_record_id(values, codes):
            notes.append(
                f"Column {show(name)} holds a whole number of its own in every row, as a record id "
                "does, and is left out of the features; name it in features= to use it."
            )
        else:
            kept.append(name)
    if empty:
        columns = "Column {} is" if len(empty) == 1 else "Columns {} are"
        notes.append(f"{columns.format(', '.join(empty))} empty and left out of the features.")
    return tuple(kept), notes


def _is_record_id(values: Sequence[str], codes: np.ndarray) -> bool:
    """Whether every known cell is another whole number, in enough rows to be no accident."""
    known = int((codes >= 0).sum())
    if known < MIN_UNIQUE or len(values) < known:
        return False
    numbers = [number(value) for value in values]
    if any(x is None or not math.isfinite(x) or x != math.floor(x) for x in numbers):
        return False
    return len({Decimal(value) for value in values}) == known


def unknown_numbers(
    table: Table, names: Sequence[str], categorical: Sequence[str]
) -> tuple[Table, list[str]]:
    """The table with words such as "unknown" among numbers as missing, and notes.

    Among texts they are a category; among numbers they can mean nothing else.
    """
    columns, notes = dict(table.columns), []
    for name in names:
        values, codes = table.columns[name]
        words = [key(value) in UNKNOWN - table.kept for value in values]
        if name in categorical or not any(words) or all(words):
            continue
        rest = [value for value, word in zip(values, words, strict=True) if not word]
        if read_numerals(rest, table.delimiter) is None:
            continue
        gone = np.array([*words, False])[codes]
        column = Column(values, np.where(gone, -1, codes).astype(np.int32))
        columns[name] = column.take(np.arange(len(codes)))
        counts = np.bincount(codes[gone], minlength=len(values))
        shown = ", ".join(f"{show(values[k])} ({counts[k]})" for k in np.flatnonzero(counts))
        notes.append(f"Column {show(name)}: {shown} read as missing.")
    return dataclasses.replace(table, columns=columns), notes


def check_features(table: Table, names: Sequence[str], categorical: Sequence[str]) -> None:
    """Raises ValueError, naming them all, for columns that are neither numbers nor categories."""
    wrong = {}
    for name in names:
        values, codes = table.columns[name]
        known = int((codes >= 0).sum())
        if name in categorical or any(number(value) is not None for value in values):
            continue  # numbers among text are refused with their line when they are read
        if not values or read_numerals(values, table.delimiter) is not None:
            continue
        example = f"such as {show(values[0])}"
        if (what := looks_like(values)) is not None:
            wrong[name] = f"holds {what} {example}, which are not read as numbers"
        elif len(values) > MAX_CATEGORIES:
            wrong[name] = (
                f"holds {len(values)} distinct texts {example}, at most {MAX_CATEGORIES} are "
                "accepted"
            )
        elif len(values) >= NEARLY_UNIQUE * known and known >= MIN_UNIQUE:
            wrong[name] = f"holds {len(values)} distinct texts in {known} rows, {example}"
    if wrong:
        (first, reason), *others = wrong.items()
        more = f", and other columns are no features either ({len(others)})" if others else ""
        flags = shlex.join(wrong)
        if len(flags) > 300:  # the others are found when these are left out
            flags = flags[:300].rpartition(" ")[0]
        raise ValueError(
            f"{table.files[0]}: column {show(first)} {reason}{more}. Leave out what is none by "
            f"drop= (--data.drop {flags}), or name categories in categorical= (--data.categorical)"
        )


def fit_feature(
    table: Table,
    name: str,
    train: Int32[np.ndarray, " _"],
    *,
    categorical: bool,
    fixed_categories: bool,
    impute: bool,
    unknown: bool,
) -> tuple[Numbers | Categories, list[str]]:
    """What makes inputs of one feature, and notes on how its cells are read.

    Statistics and categories come from the rows `train` alone; but with `fixed_categories` every
    value of the table has its place, so that the width is the same for every split. Missing cells
    are filled, or with `impute=False` refused; `unknown` as of `Categories`.
    """
    values, codes = table.columns[name]
    if not (codes[train] >= 0).any():
        raise ValueError(f"{table.files[0]}: column {show(name)} has no values in split 'train'")
    if not categorical:
        numerals = read_numerals(values, table.delimiter)
        if numerals is not None:
            column, notes = _fit_numbers(table, name, numerals.rule, train, impute)
            return column, [*_note_rule(name, values, numerals), *notes]
        distinct_numbers(table, name, _REMEDY)
    column, merged = merge_spellings(table.columns[name], table.kept, feature=True)
    values, codes = categories(column)
    counts = np.bincount(codes[train][codes[train] >= 0], minlength=len(values))
    kept = np.arange(len(values)) if fixed_categories else np.flatnonzero(counts)
    fill = values[counts.argmax()] if impute else None
    column = Categories(name, tuple(values[code] for code in kept), fill, unknown)
    return column, [f"Column {show(name)}: {text}." for text in merged]


def note_perfect(
    table: Table, names: Sequence[str], labels: Int32[np.ndarray, " N"], label: str
) -> list[str]:
    """A note on features that tell the label of every row: numbers by cuts, texts by value."""
    found = []
    for name in names if len(labels) >= MIN_UNIQUE else ():  # fewer rows part by accident
        values, codes = table.columns[name]
        if (codes < 0).any():
            continue
        low, high = np.full(len(values), labels.max()), np.zeros(len(values), labels.dtype)
        np.minimum.at(low, codes, labels)
        np.maximum.at(high, codes, labels)
        if (low != high).any():
            continue
        numerals = read_numerals(values, table.delimiter)
        if numerals is None:
            perfect = 10 * len(values) <= len(codes)
        else:
            ordered = low[np.argsort([float(text) for text in numerals.texts], kind="stable")]
            perfect = (np.diff(ordered) != 0).sum() < len(np.unique(labels))
        if perfect:
            found.append(show(name))
    if not found:
        return []
    verb = "tells" if len(found) == 1 else "each tell"
    return [
        f"{', '.join(found)} {verb} the label {show(label)} of every row; is it known beforehand? "
        "Leave it out by drop= if not."
    ]


def _note_rule(name: str, values: Sequence[str], numerals) -> list[str]:
    """A note on numbers in a local form, with the longest as the example."""
    if not numerals.rule:
        return []
    pairs = zip(values, numerals.texts, strict=True)
    text, plain = max((pair for pair in pairs if pair[0] != pair[1]), key=lambda p: len(p[0]))
    return [f"Column {show(name)}: numbers with {numerals.rule}; {show(text)} is read as {plain}."]


def _fit_numbers(
    table: Table, name: str, rule: str, train: np.ndarray, impute: bool
) -> tuple[Numbers, list[str]]:
    """Mean and deviation of train, whose missing cells count as its median."""
    cells = read_numbers(name, table.columns[name], rule, table.where)[train]
    median = float(np.nanmedian(cells))
    # Exactly rounded sums, so that the same file gives the same bits on any machine.
    cells = np.where(np.isnan(cells), median, cells).tolist()
    mean = math.fsum(cells) / len(cells)
    spread = math.sqrt(math.fsum((cell - mean) ** 2 for cell in cells) / len(cells))
    notes = [] if spread else [f"Column {show(name)} is constant in train."]
    return Numbers(name, mean, spread or 1.0, rule, median if impute else None), notes
