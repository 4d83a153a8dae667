"""Groups by name: from columns of values, and intersections of several, to group numbers."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32

from fairjax.data.values import MISSING, key, spellings


class NamedGroups(NamedTuple):
    """Which group every example is in."""

    ids: Int32[np.ndarray, " N"]
    """-1 where a value is missing."""
    names: tuple[str, ...]
    """G names in order; of intersections "Female & 30-39"."""
    notes: tuple[str, ...]
    """Which spellings were merged, one sentence each."""


def name_groups(sensitive_features: Any) -> NamedGroups:
    """Number the groups that one sensitive feature makes, or the intersections of several.

    Names that differ only in case, spacing or invisible characters are one group. Numbers and
    bands of numbers ("<18", "18-29", "65+") are ordered by their numbers, other names by
    alphabet, and a categorical column of pandas keeps its own order. Missing are None, nan, NaT
    and the words of `fairjax.data.values.MISSING`.

    Args:
      sensitive_features: values `[N]` of any kind: a list, an array or a Series; or several
        columns of them: a frame, a mapping of names to columns, or an array `[N, A]`.

    Returns:
      NamedGroups; only groups that occur are numbered.

    Raises:
      ValueError: there is no column or no value, lengths differ, or no example has all values.

    >>> found = name_groups({"sex": ["f", "m", "f", None], "age": ["65+", "9-17", "65+", "65+"]})
    >>> found.ids.tolist(), found.names
    ([0, 1, 0, -1], ('f & 65+', 'm & 9-17'))
    """
    columns = _columns(sensitive_features)
    lengths = {name: len(column) for name, column in columns.items()}
    if not columns or len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(f"sensitive_features must be columns of one length, got {lengths}")
    combined, names, notes = np.zeros(1, np.int64), [""], []
    for name, column in columns.items():
        codes, values, merged = _codes(column)
        notes += [f"{name or 'groups'}: {note}" for note in merged]
        combined = np.where(
            (combined < 0) | (codes < 0), -1, combined * max(1, len(values)) + codes
        )
        names = [" & ".join(filter(None, (a, b))) for a in names for b in values]
    present = np.unique(combined[combined >= 0])
    if not len(present):
        raise ValueError("sensitive_features: no example has all values")
    ids = np.where(combined >= 0, np.searchsorted(present, combined), -1).astype(np.int32)
    return NamedGroups(ids, tuple(names[code] for code in present), tuple(notes))


def _columns(given: Any) -> dict[str, Any]:
    """Columns by name; one that has none is called ""."""
    if isinstance(given, Mapping):
        return {str(name): column for name, column in given.items()}
    if hasattr(given, "columns"):  # a frame
        return {str(name): given.iloc[:, i] for i, name in enumerate(given.columns)}
    if np.ndim(given) == 2 and isinstance(given, np.ndarray):
        return {f"feature {i}": given[:, i] for i in range(given.shape[1])}
    name = getattr(given, "name", None)
    return {"" if name is None else str(name): given}


def _codes(column: Any) -> tuple[np.ndarray, list[str], list[str]]:
    """Number of every value, -1 where it is missing; their names in order; what was merged."""
    order: dict[str, int] | None = None
    if hasattr(column, "cat"):
        order = {str(value): i for i, value in enumerate(column.cat.categories)}
    if hasattr(column, "to_numpy"):
        column = column.to_numpy()
    cells = column.tolist() if hasattr(column, "tolist") else list(column)
    code_of = {value: i for i, value in enumerate(dict.fromkeys(cells))}
    codes = np.fromiter(map(code_of.__getitem__, cells), np.int64, len(cells))
    texts = ["" if _is_missing(value) else _text(value) for value in code_of]
    counts = np.bincount(codes, minlength=len(texts))
    name_of = spellings(texts, counts.tolist())
    named = ["" if key(text) in MISSING else name_of[text] for text in texts]
    rank = _by_number if order is None else lambda name: (order.get(name, len(order)), name)
    names = sorted(set(named) - {""}, key=rank)
    merged = [
        f"{', '.join(map(repr, same))} are one group"
        for name in names
        if len(same := sorted({t for t, n in zip(texts, named, strict=True) if n == name})) > 1
    ]
    recode = np.array([names.index(name) if name else -1 for name in named])
    return recode[codes], names, merged


def _is_missing(value: Any) -> bool:
    """None, and whatever does not equal itself: nan, NaT and pandas' NA."""
    return value is None or (value != value) is not False


def _text(value: Any) -> str:
    """The name of a value; whole numbers without their point."""
    whole = isinstance(value, float) and value.is_integer()
    return str(int(value)) if whole else str(value)


def _by_number(name: str) -> tuple[float, str]:
    """Bands by the mean of their numbers: "<18", "18-29", "65+"; after these what has none."""
    numbers = [float(found) for found in re.findall(r"\d+(?:\.\d+)?", name)]
    if numbers and re.fullmatch(r"-\d+(\.\d+)?", name):
        numbers = [-numbers[0]]
    return (sum(numbers) / len(numbers) if numbers else np.inf), name
