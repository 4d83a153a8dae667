"""Sensitive attributes of a table: columns under their many names, sexes, age bands, groups."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal

import numpy as np
from jaxtyping import Int64

from fairjax.data.columns import merge_spellings
from fairjax.data.csvfile import Column, Table, number, show
from fairjax.data.values import UNKNOWN, key

ALIASES = {
    "image": ("image", "path", "image_path", "image_id", "hasher", "md5hash", "filename", "file"),
    "sex": ("sex", "gender"),
    "age": ("age", "age_years"),
}
"""Names that stand for the same column, compared without regard to case."""

AGE_CUTS = {"age_binary": (60.0,), "age_multi": (19.0, 39.0, 59.0, 79.0)}
"""Ages, in years, that end a band when a banded column is asked for and only ages are there."""

_SEXES: dict[str, str] = dict.fromkeys(("m", "male", "man"), "male")
_SEXES.update(dict.fromkeys(("f", "female", "woman"), "female"))
_UNKNOWN = UNKNOWN | {"-1"}

MAX_AGE = 130
_OPEN_AGE = re.compile(r"(\d{1,3}) ?\+|(>) ?(\d{1,3})")  # 90+ and >89, as privacy rules have it
_DICOM_AGE = re.compile(r"(\d{1,3})([YMWD])", re.IGNORECASE)
_YEARS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}
_AGES_ACCEPTED = (
    f"accepted are 0 to {MAX_AGE}, DICOM's 045Y or 006M, and above the last band 90+ or >89"
)


def find_column(table: Table, name: str) -> str:
    """The table's own name of a column, found by case and alias; ValueError if there is none."""
    if name in table.columns:
        table.require([name])
        return name
    wanted = name.casefold()
    lowered = {column.casefold(): column for column in reversed(table.columns)}
    for names in ((wanted,), next((n for n in ALIASES.values() if wanted in n), ())):
        for alias in names:
            if alias in lowered:
                table.require([lowered[alias]])
                return lowered[alias]
    table.require([name])
    return name


def cells(table: Table, name: str) -> list[str]:
    """All cells of a column; a missing one is an error that names its line."""
    values, codes = table.columns[name]
    if (codes < 0).any():
        row = int((codes < 0).argmax())
        raise ValueError(f"{table.where(row)}: column {show(name)} is empty")
    return [values[code] for code in codes]


def texts(table: Table, name: str) -> list[str]:
    """All cells of a column, "" for a missing one."""
    values, codes = table.columns[name]
    return [values[code] if code >= 0 else "" for code in codes]


def read_attribute(table: Table, name: str, age_cuts: Sequence[float] | None = None) -> Column:
    """A sensitive attribute with its group names in order; unknown values have code -1."""
    cuts = AGE_CUTS.get(name.casefold())
    try:
        column_name = find_column(table, name)
    except ValueError:
        if cuts is None:
            raise
        return age_bands(table, find_column(table, "age"), cuts)
    if name.casefold() in ALIASES["age"]:
        if age_cuts is None:
            raise ValueError(f"{table.files[0]}: {show(name)} is in years; give age_cuts=")
        return age_bands(table, column_name, age_cuts)
    (values, codes), _ = merge_spellings(table.columns[column_name], table.kept)
    is_sex = column_name.casefold() in ALIASES["sex"]
    named = []
    for value in values:
        shown = value if number(value) is None else f"{column_name}={value}"
        if is_sex:
            shown = _SEXES.get(key(value), shown)
        named.append("" if key(value) in _UNKNOWN - table.kept else shown)
    order = sorted(set(named) - {""}, key=lambda text: (_number_in(text), text))
    recode = np.array([*(order.index(text) if text else -1 for text in named), -1], np.int32)
    return Column(tuple(order), recode[codes])


def _number_in(text: str) -> Decimal:
    """What follows "=" in a group name, so that codes sort as numbers, long ones too."""
    code = text.rpartition("=")[2]
    return Decimal(0 if number(code) is None else code)


def age_bands(table: Table, name: str, cuts: Sequence[float]) -> Column:
    """Ages in years as bands; a cut ends its band, so 60 belongs to "age <= 60"."""
    if not len(cuts) or list(cuts) != sorted(set(cuts)) or not all(map(math.isfinite, cuts)):
        raise ValueError(f"age_cuts must be increasing ages, got {tuple(cuts)}")
    values, codes = table.columns[name]
    bands = [_band(value, cuts) for value in values]
    if None in bands:
        code = bands.index(None)
        row = int((codes == code).argmax())
        raise ValueError(
            f"{table.where(row)}: column {show(name)} holds {show(values[code])}, expected years: "
            f"{_AGES_ACCEPTED}"
        )
    marks = [f"{cut:g}" for cut in cuts]
    middle = [f"{low} < age <= {high}" for low, high in zip(marks, marks[1:], strict=False)]
    names = (f"age <= {marks[0]}", *middle, f"age > {marks[-1]}")
    return Column(names, np.array([*bands, -1], np.int32)[codes])


def _band(text: str, cuts: Sequence[float]) -> int | None:
    """The band of an age, -1 where it is unknown, None where it is no age or in two bands."""
    if key(text) in _UNKNOWN:
        return -1
    if (found := _OPEN_AGE.fullmatch(text)) is not None:  # all ages from here, or above here
        start = float(found[1] or found[3])
        inside = cuts[-1] < start or (found[2] is not None and cuts[-1] == start)
        return len(cuts) if inside and start <= MAX_AGE else None
    age = number(text)
    if (found := _DICOM_AGE.fullmatch(text)) is not None:
        age = int(found[1]) * _YEARS[found[2].upper()]
    return None if age is None or not 0 <= age <= MAX_AGE else int(np.searchsorted(cuts, age))


def check_ages(
    table: Table, names: Sequence[str], on_error: str, age_cuts: Sequence[float] | None = None
) -> tuple[Table, list[str]]:
    """The table with ages that are none as missing where `on_error` is "skip", and notes.

    Args:
      table: any.
      names: sensitive attributes, of which some may be ages or bands made of them.
      on_error: "skip" or "error", which leaves them to `age_bands`.
      age_cuts: of an attribute in years.
    """
    columns, notes = dict(table.columns), []
    for name in names:
        column_name, cuts = _ages_of(table, name, age_cuts)
        if column_name is None or not cuts or on_error != "skip":
            continue
        values, codes = columns[column_name]
        wrong = np.array([*(_band(value, cuts) is None for value in values), False])[codes]
        if wrong.any():
            row = int(wrong.argmax())
            notes.append(
                f"Skipped {wrong.sum()} ages that are none (the first at {table.where(row)}: "
                f"{show(values[codes[row]])}); {_AGES_ACCEPTED}."
            )
            kept = Column(values, np.where(wrong, -1, codes).astype(np.int32))
            columns[column_name] = kept.take(np.arange(len(codes)))
    return dataclasses.replace(table, columns=columns), notes


def _ages_of(
    table: Table, name: str, age_cuts: Sequence[float] | None
) -> tuple[str | None, Sequence[float] | None]:
    """The column of years that an attribute is read from, and where bands end; None if none is."""
    lowered = name.casefold()
    try:
        if lowered in ALIASES["age"]:
            return find_column(table, name), age_cuts
        if lowered in AGE_CUTS and lowered not in map(str.casefold, table.columns):
            return find_column(table, "age"), AGE_CUTS[lowered]
    except ValueError:
        pass  # the reader of the attribute says what is missing
    return None, None


def combine_attributes(
    name: str, attributes: Mapping[str, Column], sensitive: Sequence[str], unknown: str
) -> tuple[Int64[np.ndarray, " N"], tuple[str, ...], list[str]]:
    """Group of every row (-1 dropped), names of the groups that occur, and notes.

    Args:
      name: of the set, for messages.
      attributes: columns by name; code -1 is unknown.
      sensitive: which of them, at least one.
      unknown: "drop" rows with an unknown value, or keep them as a "group".
    """
    if unknown not in ("drop", "group"):
        raise ValueError(f'unknown must be "drop" or "group", got {unknown!r}')
    if not sensitive or len(set(sensitive)) < len(sensitive):
        raise ValueError(f"sensitive must name attributes, each once, got {tuple(sensitive)}")
    combined = np.zeros((), np.int64)
    names: tuple[str, ...] = ("",)
    notes = []
    for attribute in sensitive:
        if attribute not in attributes:
            raise ValueError(
                f"{name}: no attribute {attribute!r}, it has {', '.join(map(repr, attributes))}"
            )
        values, codes = attributes[attribute]
        lost = int((codes < 0).sum())
        if lost and unknown == "group":
            codes = np.where(codes < 0, len(values), codes)
            values = (*values, f"{attribute} unknown")
        elif lost:
            notes.append(f"{lost} rows with unknown {attribute} are in no split.")
        combined = np.where((combined < 0) | (codes < 0), -1, combined * len(values) + codes)
        names = tuple(" & ".join(filter(None, (a, b))) for a in names for b in values)
    present = np.unique(combined[combined >= 0])
    if len(present) < 2:
        raise ValueError(
            f"{name}: {' and '.join(sensitive)} make {len(present)} group(s), "
            "at least two are needed"
        )
    group = np.where(combined >= 0, np.searchsorted(present, combined), -1)
    return group, tuple(names[code] for code in present), notes
