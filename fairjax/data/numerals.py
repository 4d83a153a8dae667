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


_PERCENT, _DECIMAL = "percent", "decimal comma"
_BY_COMMAS, _BY_POINTS = "commas between thousands", "points between thousands"


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
    percent, rule = [value.endswith("%") for value in values], ""
    if any(percent):
        if not all(percent):
            return None
        rule = _PERCENT
    bare = [value[:-1].rstrip() if rule else value for value in values]
    if any(number(text) is None for text in bare):
        found = _commas(bare, delimiter)
        if found is None:
            return None
        rule = f"{rule} and {found}" if rule else found
    texts = [plain_number(value, rule) for value in values]
    return Numerals(tuple(text for text in texts if text is not None), rule)


def plain_number(text: str, rule: str) -> str | None:
    """A cell as a number that Python reads, by the rule of its column; None if it does not fit.

    >>> plain_number("1.234,5", "decimal comma"), plain_number("20.5", "decimal comma")
    ('1234.5', None)
    """
    if _PERCENT in rule:
        if not text.endswith("%"):
            return None
        text = text[:-1].rstrip()
    if _BY_COMMAS in rule:
        fits = _THOUSANDS.fullmatch(text) is not None or _below_thousand(text)
        return text.replace(",", "") if fits else None
    if _DECIMAL in rule or _BY_POINTS in rule:
        fits = _DECIMAL_COMMA.fullmatch(text) or _WHOLE.fullmatch(text)
        fits = fits or (_BY_POINTS in rule and _POINTS.fullmatch(text))
        return text.replace(".", "").replace(",", ".") if fits else None
    return text if number(text) is not None else None


def _commas(texts: Sequence[str], delimiter: str) -> str | None:
    """The rule by which all are numbers with commas, or several points; None if none fits."""
    several = any(text.count(".") > 1 or re.search(r"\..*,", text) for text in texts)
    with_comma = f"{_DECIMAL} and {_BY_POINTS}" if several else _DECIMAL
    decimal, thousands = (
        all(plain_number(text, rule) is not None for text in texts)
        for rule in (with_comma, _BY_COMMAS)
    )
    if decimal and thousands:  # "1,234" everywhere is the same column but for a factor
        thousands = delimiter == "," or all("," in text for text in texts)
        decimal = False
    if thousands:
        return _BY_COMMAS
    if decimal:
        return with_comma if any("," in text for text in texts) else _BY_POINTS
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
