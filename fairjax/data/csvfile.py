"""Reading CSV files into columns, with the place of every row kept for error messages."""

import dataclasses
import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fairjax.data.dataset import SPLITS
from fairjax.data.rawtable import read_raw
from fairjax.data.values import MISSING, UNKNOWN, key, strip


class Column(NamedTuple):
    """A column as its distinct cells and, per row, which of them it holds."""

    values: tuple[str, ...]
    """Distinct cells, stripped, without missing ones."""
    codes: np.ndarray
    """int32 `[N]`, indices into `values`; -1 where the cell is missing."""

    def take(self, rows: np.ndarray) -> "Column":
        """The column at some rows, keeping only the values that occur there."""
        present, codes = np.unique(self.codes[rows], return_inverse=True)
        offset = 1 if len(present) and present[0] < 0 else 0
        values = tuple(self.values[code] for code in present[offset:])
        return Column(values, (codes.reshape(-1) - offset).astype(np.int32))


@dataclasses.dataclass(frozen=True)
class Table:
    """Columns of one or several CSV files, rows in file order.

    Attributes:
      files: names of the files, for messages.
      columns: the columns by name; of a name that occurs twice, the first.
      file_of_row: `[N]`, indices into `files`.
      line_of_row: `[N]`, the 1-based line on which the row starts in its file.
      ambiguous: names of columns that occur twice with different cells.
      delimiter: what separated the fields of the first file.
      kept: words, by `key`, that are values here although they usually say that nothing is known.
      notes: what was unusual about the files, one sentence each.
      unit: what `line_of_row` counts, as messages call it.
      words: of each column, the words read as missing and how often they are in the files.
    """

    files: tuple[str, ...]
    columns: dict[str, Column]
    file_of_row: np.ndarray
    line_of_row: np.ndarray
    ambiguous: frozenset[str] = frozenset()
    delimiter: str = ","
    kept: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    unit: str = "line"
    words: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)

    def __len__(self):
        """Number of rows."""
        return len(self.line_of_row)

    def where(self, row: int) -> str:
        """The place of a row as messages give it: `file.csv, line 7`."""
        return f"{self.files[self.file_of_row[row]]}, {self.unit} {self.line_of_row[row]}"

    def require(self, names) -> None:
        """Raises ValueError unless every name is a column, present once."""
        for name in names:
            if name not in self.columns:
                raise ValueError(
                    f"{self.files[0]}: no column {show(name)}; the columns are "
                    f"{', '.join(show(column) for column in self.columns)}"
                )
            if name in self.ambiguous:
                raise ValueError(
                    f"{self.files[0]}: two columns are named {show(name)} and differ; rename one"
                )

    def select(self, names) -> "Table":
        """The table with only some columns."""
        return dataclasses.replace(self, columns={name: self.columns[name] for name in names})

    def take(self, rows: np.ndarray) -> "Table":
        """The table at some rows."""
        return dataclasses.replace(
            self,
            columns={name: column.take(rows) for name, column in self.columns.items()},
            file_of_row=self.file_of_row[rows],
            line_of_row=self.line_of_row[rows],
        )


def read_csv(
    path,
    names: Sequence[str] | None = None,
    *,
    encoding: str | None = None,
    not_missing: Sequence[str] = (),
) -> Table:
    """Reads a table with a header line: a CSV, also in `.gz` or `.zip`, or an `.xlsx`.

    Accepts any line ends, quoted fields, and as delimiters commas, semicolons, tabs and vertical
    bars (noted), or what Excel's line `sep=;` says. Characters are UTF-8, or UTF-16 by its mark. Of
    an `.xlsx` the first sheet is read. Blank lines and unnamed columns (the index that pandas
    writes) are skipped, and so are R's names of rows, above which the header has no name, and a
    delimiter behind every row.

    Args:
      path: the file.
      names: of the columns, for a file with commas that has no header line.
      encoding: of the characters, as Python names it.
      not_missing: words of `MISSING` and `UNKNOWN` that are values in this file.

    Returns:
      A `Table` of at least one row.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is empty or not readable as CSV, or a row is longer or shorter than the
        header.
    """
    path = Path(path)
    raw = read_raw(path, names, encoding)
    kept = frozenset(map(key, not_missing))
    columns, ambiguous, words = {}, set(), {}
    for name, cells in zip(raw.header, zip(*raw.rows, strict=True), strict=True):
        name = strip(name)
        if name == "" or re.fullmatch(r"Unnamed: \d+", name):
            continue
        column = encode(cells, MISSING - kept)
        if name not in columns:
            columns[name] = column
            words[name] = missing_words(cells, kept)
        elif column.values != columns[name].values or (column.codes != columns[name].codes).any():
            ambiguous.add(name)
    return Table(
        files=(str(path),),
        columns=columns,
        file_of_row=np.zeros(len(raw.rows), np.int32),
        line_of_row=np.asarray(raw.lines, np.int32),
        ambiguous=frozenset(ambiguous),
        delimiter=raw.delimiter,
        kept=kept,
        notes=raw.notes,
        words=words,
    )


def read_tables(
    path: str | Path | Mapping[str, str | Path],
    *,
    encoding: str | None = None,
    not_missing: Sequence[str] = (),
) -> list[Table]:
    """The table of one CSV, or the three that a mapping names "train", "val" and "test".

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the mapping has other keys, a word of `not_missing` never means missing, or a file
        is not readable; see `read_csv`.
    """
    kept_words(not_missing)
    options: Any = {"encoding": encoding, "not_missing": not_missing}
    if not isinstance(path, Mapping):
        return [read_csv(path, **options)]
    if set(path) != set(SPLITS):
        raise ValueError(f"path must map each of {SPLITS} to a file, got {tuple(path)}")
    return [read_csv(path[name], **options) for name in SPLITS]


def kept_words(not_missing: Sequence[str]) -> frozenset[str]:
    """Words, by `key`, that are values although they usually say that nothing is known."""
    for word in not_missing:
        if key(word) not in MISSING | UNKNOWN:
            listed = ", ".join(sorted(filter(None, MISSING | UNKNOWN)))
            raise ValueError(f"not_missing holds {show(word)}, which is no word of {listed}")
    return frozenset(map(key, not_missing))


def set_name(files: Sequence[str]) -> str:
    """What a set is called: its file without suffixes, or the folder that holds all its files."""
    if len(files) == 1:
        return re.sub(r"(\.csv|\.tsv|\.txt|\.xlsx)?(\.gz|\.zip)?$", "", Path(files[0]).name)
    folder = os.path.commonpath([Path(file).resolve().parent for file in files])
    return Path(folder).name or "data"


def join(tables: list[Table]) -> Table:
    """Stacks tables on top of each other; every one must have the columns of the first."""
    if len(tables) == 1:
        return tables[0]
    columns = {}
    for name in tables[0].columns:
        parts = [table.columns[name] for table in tables]
        values = tuple(dict.fromkeys(value for part in parts for value in part.values))
        code_of = {value: code for code, value in enumerate(values)}
        codes = [
            np.asarray([*(code_of[value] for value in part.values), -1], np.int32)[part.codes]
            for part in parts
        ]
        columns[name] = Column(values, np.concatenate(codes))
    return Table(
        files=tuple(file for table in tables for file in table.files),
        columns=columns,
        file_of_row=np.repeat(
            np.arange(len(tables), dtype=np.int32), [len(table) for table in tables]
        ),
        line_of_row=np.concatenate([table.line_of_row for table in tables]),
        ambiguous=frozenset().union(*(table.ambiguous for table in tables)),
        delimiter=tables[0].delimiter,
        kept=tables[0].kept,
        notes=tuple(dict.fromkeys(note for table in tables for note in table.notes)),
        unit=tables[0].unit,
        words={
            name: sum((Counter(table.words.get(name, {})) for table in tables), Counter())
            for name in columns
        },
    )


def number(text: str) -> float | None:
    """The cell as a number (possibly infinite), or None if it is not one."""
    try:
        value = float(text)
    except ValueError:
        return None
    # Python also reads "1_000" and "-nan"; neither is a number in a table. Nor is "1e-99999", whose
    # digits would fill the memory.
    if "_" in text or math.isnan(value) or re.search(r"e[+-]?\d{4}", text, re.IGNORECASE):
        return None
    return value


def show(value) -> str:
    """A cell or name as messages print it: quoted, on one line, not endless."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:56]}...{text[-1]}"


def encode(cells: Sequence[str], missing: Set[str] = MISSING) -> Column:
    """Cells as a column, values in order of first appearance; `missing` are words by key."""
    code_of_value, code_of_cell = {}, {}
    for cell in dict.fromkeys(cells):
        value = strip(cell)
        code = -1 if key(value) in missing else code_of_value.setdefault(value, len(code_of_value))
        code_of_cell[cell] = code
    codes = np.fromiter(map(code_of_cell.__getitem__, cells), np.int32, len(cells))
    return Column(tuple(code_of_value), codes)


def missing_words(cells: Sequence[str], kept: frozenset[str] = frozenset()) -> Counter[str]:
    """Words, not blanks, that `encode` reads as missing, and how often each is there."""
    found: Counter[str] = Counter()
    for cell, count in Counter(cells).items():
        word = strip(cell)
        if word and key(word) in MISSING - kept:
            found[word] += count
    return found
