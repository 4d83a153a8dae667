"""Numbers as people write them: a decimal comma, thousands, percent; and what only looks like one.

A column is read by one rule or not at all: a comma that means two things is refused, not guessed.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from fairjax.data.csvfile import number

_WHOLE = re.compile(r"[+-]?\d+")
_DECIMAL_COMMA = re.compile(r"[+-]?(?:\d*|\d{1,3}(?:\.\d{3})+),\d+")  # 20,5 and 1.234,5
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d*)?")  # 1,000 and 1,234.5
_POINTS = re.compile(r"[+-]?[1-9]\d{0,2}(?:\.\d{3})+")  # 1.234.567

_ANY = r"[+-]?(?:\d[\d.,'’ ]*|[.,]\d+)"
_CURRENCY = r"(?:[$€£¥₹₽₩฿]|USD|EUR|GBP|CHF|JPY|CNY|INR|Rs\.?)"
_MONEY = re.compile(rf"[+-]?{_CURRENCY}\s?{_ANY}\s?[kKmM]?|{_ANY}\s?{_CURRENCY}")
_UNIT = re.compile(rf"{_ANY}\s?((?!st\b|nd\b|rd\b|th\b)[^\W\d_°]*[°/µ²³]?[^\W\d_]+)\.?")
_CLOCK = r"\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?"
_DAY = r"\d{1,4}([-/.])\d{1,2}\1\d{1,4}|\d{1,2}[- ]?[A-Za-z]{3,9}\.?[-, ]+\d{2,4}"
_DAY += r"|[A-Za-z]{3,9}\.? \d{1,2},? \d{2,4}"
_DATE = re.compile(rf"(?:{_DAY})(?:[T ]+{_CLOCK}(?: ?[APap][Mm])?(?:Z|[+-]\d\d:?\d\d)?)?|{_CLOCK}")
_LOOKS_NUMERIC = re.compile(rf"{_ANY}\s?%?")


class Numerals(NamedTuple):
    """Distinct cells as numbers that Python reads, and by which rule."""

    texts: tuple[str, ...]
    rule: str
    """Empty where the cells are plain numbers."""


def read_numerals(values: Sequence[str], delimiter: str = ",") -> Numerals | None:
    """The distinct cells of a column as plain numbers by one rule, or None.

    A percent sign is left out where every cell has one. A comma is decimal or between thousands by
    what the other cells allow. Where both are possible and do not come to the same column, it is
    between thousands in a file of `delimiter` ",", whose writer uses decimal points, else None.

    Args:
      values: distinct cells, none missing.
      delimiter: what separates the fields of the file.

    Returns:
      `Numerals` of the same length, or None where no rule fits every cell.

    >>> read_numerals(["20,5", "3"]).texts, read_numerals(["1,000", "999"]).texts
    (('20.5', '3'), ('1000', '999'))
    >>> read_numerals(["20,5", "20.5"]) is None
    True
    """
    percent = [value.endswith("%") for value in values]
    rules = []
    if any(percent):
        if not all(percent):
            return None
        values = [value[:-1].rstrip() for value in values]
        rules.append("percent")
    texts = tuple(values)
    if any(number(text) is None for text in texts):
        found = _commas(texts, delimiter)
        if found is None:
            return None
        texts, rule = found
        rules.append(rule)
    return Numerals(texts, " and ".join(rules))


def _commas(texts: tuple[str, ...], delimiter: str) -> tuple[tuple[str, ...], str] | None:
    """Numbers with commas, or several points, as plain ones, and the rule; None if none fits."""
    several = any(text.count(".") > 1 or re.search(r"\..*,", text) for text in texts)
    decimal = all(
        _DECIMAL_COMMA.fullmatch(text)
        or _WHOLE.fullmatch(text)
        or (several and _POINTS.fullmatch(text))
        for text in texts
    )
    thousands = all(_THOUSANDS.fullmatch(text) or _below_thousand(text) for text in texts)
    if decimal and thousands:  # "1,234" everywhere is the same column but for a factor
        thousands = delimiter == "," or all("," in text for text in texts)
        decimal = False
    if thousands:
        return tuple(text.replace(",", "") for text in texts), "commas between thousands"
    if decimal:
        plain = tuple(text.replace(".", "").replace(",", ".") for text in texts)
        rule = "decimal comma" if any("," in text for text in texts) else "points between thousands"
        return plain, rule
    return None


def _below_thousand(text: str) -> bool:
    value = number(text)
    return value is not None and abs(value) < 1000


def looks_like(values: Sequence[str]) -> str | None:
    """What texts are that only look like numbers, or None: for refusing them by that name.

    >>> looks_like(["$5", "$7"]), looks_like(["18 mg", "20 mg"]), looks_like(["10th", "25-30"])
    ('amounts of money', 'quantities with a unit', None)
    """
    enough = 0.8 * len(values)  # a stray word among dates makes them no categories
    for pattern, what in (
        (_MONEY, "amounts of money"),
        (_DATE, "dates or times"),
        (_LOOKS_NUMERIC, "numbers written in more than one way"),
    ):
        if sum(pattern.fullmatch(value) is not None for value in values) >= enough:
            return what
    units = Counter(
        found[1].casefold().rstrip("s") for v in values if (found := _UNIT.fullmatch(v))
    )
    if len(values) > 1 and units and max(units.values()) >= enough:
        return "quantities with a unit"
    return None
