"""What a cell says, whatever way it is written: one rule for labels, groups, ids and splits."""

import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal

import numpy as np
from jaxtyping import Shaped

MISSING = frozenset({"", "?", "na", "n/a", "nan", "null", "none", "<na>", "#n/a", "#na", "missing"})
"""Cells that count as missing in every column, by `key`: nothing, and what programs write for it.

A place called NA is among them, as everywhere else: rename it.
"""

UNKNOWN = frozenset({"unknown", "unk", "not known"})
"""Words by which a label, a group or an id is missing too; a feature keeps them as a category."""

_NUMBER = re.compile(r"([+-]?)(?=\.?\d)(\d*)(?:\.(\d*))?")
# Printed exponents have a sign or a point; "1e5" may as well be a piece of a hexadecimal id.
_EXPONENT = re.compile(r"[+-]?(\d+\.\d*[eE][+-]?\d{1,3}|\d+[eE][+-]\d{1,3})")


def canonical(text: str) -> str:
    """The text of a cell in its one form; numbers by their digits, so that none is rounded.

    Invisible characters go, blanks become single spaces, Excel's `="1"` is its content. Numbers
    lose what does not change them: a plus, leading zeros, zeros after the point. Case stays.

    >>> canonical(" 7.0 "), canonical("12345678901234567.0"), canonical('="1"'), canonical("-0")
    ('7', '12345678901234567', '1', '0')
    """
    text = clean(text)
    if text.isascii() and _EXPONENT.fullmatch(text):
        text = f"{Decimal(text):f}"
    found = _NUMBER.fullmatch(text)
    if found is None:
        return text
    sign, whole, part = found[1], found[2].lstrip("0") or "0", (found[3] or "").rstrip("0")
    digits = f"{whole}.{part}" if part else whole
    return f"-{digits}" if sign == "-" and digits != "0" else digits


def clean(text: str) -> str:
    """The text without invisible characters, with single spaces, out of Excel's `="..."`."""
    if not (text.isascii() and text.isprintable()):
        text = unicodedata.normalize("NFC", "".join(c for c in text if not _invisible(c)))
    return strip(" ".join(text.split()))


def strip(text: str) -> str:
    """The text without blanks and invisible characters around it, out of Excel's `="..."`.

    Unlike `clean` it leaves the middle alone, so that it is safe for the names of files.
    """
    start, stop = 0, len(text)
    while start < stop and (text[start].isspace() or _invisible(text[start])):
        start += 1
    while start < stop and (text[stop - 1].isspace() or _invisible(text[stop - 1])):
        stop -= 1
    text = text[start:stop]
    return strip(text[2:-1]) if len(text) > 2 and text[:2] == '="' and text[-1] == '"' else text


def _invisible(char: str) -> bool:
    """Soft hyphens, zero-width spaces, marks of direction and of byte order."""
    return not char.isascii() and unicodedata.category(char) == "Cf"


def key(text: str) -> str:
    """What cells that mean the same share: the canonical form without case and closing stops.

    >>> key("Female") == key(" FEMALE ") == key("female.")
    True
    """
    text = canonical(text).casefold()
    return text.rstrip(" .") or text


def spellings(values: Sequence[str], counts: Sequence[int]) -> dict[str, str]:
    """The name of each value: of those with one key, the most frequent spelling's."""
    best: dict[str, tuple[int, str]] = {}
    for value, count in zip(values, counts, strict=True):
        name = canonical(value)
        best[key(value)] = min(best.get(key(value), (1, "")), (-int(count), name))
    return {value: best[key(value)][1] for value in values}


def merge_ids(ids: Shaped[np.ndarray, " N"]) -> Shaped[np.ndarray, " N"]:
    """Ids `[N]` of text by their name, so that "7" and "7.0" are equal; other ids as they are."""
    if ids.dtype.kind not in "UO" or not all(isinstance(value, str) for value in ids.tolist()):
        return ids
    values, codes, counts = np.unique(ids, return_inverse=True, return_counts=True)
    name_of = spellings(values.tolist(), counts.tolist())
    names = [name_of[value] for value in values.tolist()]
    return np.array(names, object if ids.dtype.kind == "O" else np.str_)[codes.reshape(-1)]
