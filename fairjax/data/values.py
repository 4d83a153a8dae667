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
    text = text.strip()
    while text and (_invisible(text[0]) or _invisible(text[-1])):
        text = text[_invisible(text[0]) : len(text) - _invisible(text[-1])].strip()
    return strip(text[2:-1]) if len(text) > 2 and text[:2] == '="' and text[-1] == '"' else text


def _invisible(char: str) -> bool:
    """Soft hyphens, zero-width spaces, marks of direction and of byte order."""
    return not char.isascii() and unicodedata.category(char) == "Cf"


def key(text: str) -> str:
    """What cells that mean the same share: the canonical form without case and closing stops.

    >>> key("Female") == key(" FEMALE ") == key("female.")
    True
    """
    return _fold(canonical(text))


def says_nothing(text: str) -> bool:
    """Whether a cell says that nothing is known: a word of `MISSING` or `UNKNOWN`."""
    return key(text) in MISSING | UNKNOWN


def _fold(name: str) -> str:
    """A canonical form without case and closing stops."""
    name = name.casefold()
    return name.rstrip(" .") or name


def spellings(values: Sequence[str], counts: Sequence[int]) -> dict[str, str]:
    """The name of each value: of those with one key, the most frequent spelling's."""
    names = [canonical(value) for value in values]
    keys = [_fold(name) for name in names]
    best: dict[str, tuple[int, str]] = {}
    for name, shared, count in zip(names, keys, counts, strict=True):
        best[shared] = min(best.get(shared, (1, "")), (-int(count), name))
    return {value: best[shared][1] for value, shared in zip(values, keys, strict=True)}


def merge_ids(ids: Shaped[np.ndarray, " N"]) -> Shaped[np.ndarray, " N"]:
    """Ids `[N]` of text, where some mean the same by their names: "7" and "7.0" become equal.

    Other ids stay as they are, so that what is drawn by their order does not change.

    >>> merge_ids(np.array(["7", "7.0", "008"])).tolist(), merge_ids(np.array(["007"])).tolist()
    (['7', '7', '8'], ['007'])
    """
    if ids.dtype.kind not in "UO" or not all(isinstance(value, str) for value in ids.tolist()):
        return ids
    values, codes, counts = np.unique(ids, return_inverse=True, return_counts=True)
    name_of = spellings(values.tolist(), counts.tolist())
    names = [name_of[value] for value in values.tolist()]
    if len(set(names)) == len(names):
        return ids
    return np.array(names, object if ids.dtype.kind == "O" else np.str_)[codes.reshape(-1)]
