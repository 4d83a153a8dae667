"""How cells become the inputs of a network: fitted to a table once, the same for every row after.

`features.py` makes these from the rows of train; whoever keeps the `Encoder` beside the weights can
give a network rows as people have them.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Float64

from fairjax.data.csvfile import Column, encode, number, read_csv, show
from fairjax.data.numerals import plain_number
from fairjax.data.rawtable import short_errors
from fairjax.data.values import MISSING, UNKNOWN, canonical, key, strip

Where = Callable[[int], str]
"""The place of a row, as messages give it."""


class Numbers(NamedTuple):
    """A column of numbers, which becomes one standardised input."""

    name: str
    mean: float
    spread: float
    """What is divided by: the standard deviation of train, or 1 where it is 0."""
    rule: str = ""
    """How the cells are written, see `fairjax.data.numerals`."""
    fill: float | None = None
    """For missing cells; None where rows without the cell were dropped."""

    @property
    def input_names(self) -> tuple[str, ...]:
        """One name."""
        return (self.name,)

    @property
    def missing(self) -> frozenset[str]:
        """Words that say that nothing is known, by `key`."""
        return MISSING | UNKNOWN

    def encode(self, column: Column, where: Where) -> tuple[Float32[np.ndarray, "N 1"], list[str]]:
        """The input `[N, 1]`, and notes; ValueError with the place of a cell that is no number."""
        cells, notes = read_numbers(self.name, column, self.rule, where), []
        gaps = np.isnan(cells)
        if gaps.any():
            fill = _filled(self, gaps, where)
            cells = np.where(gaps, fill, cells)
            filled = f"Filled {gaps.sum()} missing {show(self.name)}"
            notes.append(f"{filled} with the train median {fill:g}.")
        with np.errstate(over="ignore"):
            inputs = ((cells - self.mean) / self.spread).astype(np.float32)
        if not np.isfinite(inputs).all():
            row = int((~np.isfinite(inputs)).argmax())
            raise ValueError(
                f"{where(row)}: column {show(self.name)} holds "
                f"{show(column.values[column.codes[row]])}, too far from the values of train to be "
                "standardised as float32"
            )
        return inputs[:, None], notes


class Categories(NamedTuple):
    """A column of texts or codes, which becomes one 0/1 input per value."""

    name: str
    values: tuple[str, ...]
    """Named by the most frequent spelling; a cell is the value whose meaning it has, see `key`."""
    fill: str | None = None
    """For missing cells; None where rows without the cell were dropped."""
    unknown: bool = False
    """Whether words such as "unknown" are missing, as in a column of the group, or a category."""

    @property
    def input_names(self) -> tuple[str, ...]:
        """A name per value."""
        return tuple(f"{self.name}={value}" for value in self.values)

    @property
    def missing(self) -> frozenset[str]:
        """Words that say that nothing is known, by `key`."""
        return MISSING | UNKNOWN if self.unknown else MISSING

    def encode(self, column: Column, where: Where) -> tuple[Float32[np.ndarray, "N V"], list[str]]:
        """Inputs `[N, V]`, all zero for a value that train lacks, and notes."""
        meaning = _as_number if all(_as_number(value) for value in self.values) else key
        code_of = {meaning(value): code for code, value in enumerate(self.values)}
        unseen = len(self.values)
        found = [code_of.get(meaning(value), unseen) for value in column.values]
        codes, notes = np.array([*found, -1], np.int32)[column.codes], []
        gaps = codes < 0
        if gaps.any():
            fill = _filled(self, gaps, where)
            codes = np.where(gaps, self.values.index(fill), codes)
            notes.append(
                f"Filled {gaps.sum()} missing {show(self.name)} with the most frequent train value "
                f"{show(fill)}."
            )
        if (lost := codes == unseen).any():
            example = show(column.values[column.codes[lost.argmax()]])
            notes.append(
                f"Rows with a {show(self.name)} that train lacks: {lost.sum()} (such as {example}),"
                " encoded as all zeros."
            )
        return (codes[:, None] == np.arange(unseen)).astype(np.float32), notes


_KINDS: dict[str, Any] = {"numbers": Numbers, "categories": Categories}


@dataclasses.dataclass(frozen=True)
class Encoder:
    """From rows of a table to the inputs of a network that was trained on another.

    Attributes:
      columns: what is read, in the order of the inputs.
      not_missing: words, by `fairjax.data.values.key`, that are values in these tables.

    >>> encoder = Encoder((Numbers("age", 40.0, 10.0), Categories("sex", ("F", "M"))))
    >>> encoder.encode({"age": [50, "20"], "sex": ["m", "F"]})[0].tolist()
    [[1.0, 0.0, 1.0], [-2.0, 1.0, 0.0]]
    """

    columns: tuple[Numbers | Categories, ...]
    not_missing: tuple[str, ...] = ()

    @property
    def input_names(self) -> tuple[str, ...]:
        """The D inputs."""
        return tuple(name for column in self.columns for name in column.input_names)

    @short_errors()
    def encode(self, rows: Any) -> tuple[Float32[np.ndarray, "N D"], list[str]]:
        """The inputs that rows become, as those of the table that this was fitted to.

        Texts are read as cells of a file: numbers in the form that the column had in training,
        words such as "NA" as missing, categories in any spelling. Cells that are numbers already
        are taken as they are.

        Args:
          rows: a DataFrame, a mapping from columns to as many cells each, or the path of a file
            that `load_csv` reads. Columns that are not needed are ignored.

        Returns:
          Float32 `[N, D]`, and notes: how many cells were filled, and how many rows hold a category
          that train lacks, which is all zeros.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: a column is absent, there twice, or shorter than the others; a cell is missing
            where training dropped such rows, is no number, or not in the form of its column.
        """
        columns, where = self._read(rows)
        blocks, notes = [], []
        for column in self.columns:
            cells, plain = _texts(columns[column.name])
            if plain and isinstance(column, Numbers):
                column = column._replace(rule="")
            coded = encode(cells, column.missing - set(self.not_missing))
            block, more = column.encode(coded, where)
            blocks.append(block)
            notes += more
        return np.concatenate(blocks, axis=1), notes

    def _read(self, rows: Any) -> tuple[dict[str, Any], Where]:
        """The cells of each column that is needed, and the place of a row."""
        needed = [column.name for column in self.columns]
        if isinstance(rows, (str, Path)):
            table = read_csv(rows, not_missing=self.not_missing)
            table.require(needed)
            found = {name: table.columns[name] for name in needed}
            return {n: [(*c.values, "")[i] for i in c.codes] for n, c in found.items()}, table.where
        if not isinstance(rows, Mapping) and not hasattr(rows, "columns"):
            raise ValueError(
                "rows must be a DataFrame, a mapping from columns to cells, or the path of a file, "
                f"got {type(rows).__name__}"
            )
        names: list[Any] = list(rows if isinstance(rows, Mapping) else rows.columns)
        given = [strip(str(name)) for name in names]
        absent = [show(name) for name in needed if name not in given]
        if absent:
            raise ValueError(
                f"the rows have no column {', '.join(absent)}; their columns are "
                f"{', '.join(map(show, given)) or 'none'}"
            )
        for name in needed:
            if given.count(name) > 1:
                raise ValueError(f"two columns of the rows are named {show(name)}; rename one")
        found = {name: rows[names[given.index(name)]] for name in needed}
        columns = {n: c.tolist() if hasattr(c, "tolist") else list(c) for n, c in found.items()}
        lengths = {name: len(cells) for name, cells in columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns must be of one length, got {lengths}")
        return columns, lambda row: f"row {row} (counted from 0)"

    def description(self) -> dict[str, Any]:
        """All of it as JSON's types; `described` is the inverse."""
        kinds = {kind: name for name, kind in _KINDS.items()}
        columns = [{"kind": kinds[type(column)], **column._asdict()} for column in self.columns]
        return {"columns": columns, "not_missing": list(self.not_missing)}


def described(description: Mapping[str, Any]) -> Encoder:
    """The encoder that `Encoder.description` describes; whatever else it is raises an error."""
    columns = []
    for entry in description["columns"]:
        fields = {name: value for name, value in entry.items() if name != "kind"}
        if "values" in fields:
            fields["values"] = tuple(fields["values"])
        columns.append(_KINDS[entry["kind"]](**fields))
    return Encoder(tuple(columns), tuple(description["not_missing"]))


def read_numbers(name: str, column: Column, rule: str, where: Where) -> Float64[np.ndarray, " N"]:
    """Cells as float64, nan where one is missing; ValueError with the place of what is none."""
    values, codes = column
    texts = [plain_number(value, rule) for value in values]
    numbers = [math.nan if text is None else float(text) for text in texts]
    largest = float(np.finfo(np.float32).max)
    wrong = np.array([not abs(x) <= largest for x in numbers] + [False])[codes]
    if wrong.any():
        row = int(wrong.argmax())
        accepted = "only finite float32 numbers are"
        if texts[codes[row]] is None:
            accepted = f"only numbers with {rule} are" if rule else "only plain numbers are"
        raise ValueError(
            f"{where(row)}: column {show(name)} holds {show(values[codes[row]])}, {accepted} "
            "accepted"
        )
    return np.array([*numbers, math.nan])[codes]


def _as_number(value: str) -> str | None:
    """Finite numbers in their one form, None for texts; as `columns.categories` compares them."""
    found = number(value)
    return canonical(f"{Decimal(value):f}") if found is not None and math.isfinite(found) else None


def _filled(column: Numbers | Categories, gaps: np.ndarray, where: Where) -> Any:
    """What missing cells become; ValueError if training had none."""
    if column.fill is None:
        raise ValueError(
            f"{where(int(gaps.argmax()))}: column {show(column.name)} is missing, and training "
            "dropped such rows; leave the row out"
        )
    return column.fill


def _texts(cells: Iterable[Any]) -> tuple[list[str], bool]:
    """Cells as a file would hold them, and whether all that are there are numbers."""
    texts, plain = [], True
    for cell in cells:
        if type(cell) is str:
            texts.append(cell)
            plain = plain and not cell.strip()
            continue
        if cell is None or type(cell).__name__ in ("NAType", "NaTType") or cell != cell:
            texts.append("")
            continue
        whole = isinstance(cell, (int, np.integer)) and not isinstance(cell, bool)
        real = isinstance(cell, (float, np.floating))
        plain &= whole or real
        texts.append(repr(float(cell)) if real else str(cell))
    return texts, plain
