"""Reading CSV files into columns, with the place of every row kept for error messages."""

import csv
import dataclasses
import gzip
import io
import math
import os
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fairjax.data.dataset import SPLITS
from fairjax.data.values import MISSING, key, strip


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
    """

    files: tuple[str, ...]
    columns: dict[str, Column]
    file_of_row: np.ndarray
    line_of_row: np.ndarray
    ambiguous: frozenset[str] = frozenset()

    def __len__(self):
        """Number of rows."""
        return len(self.line_of_row)

    def where(self, row: int) -> str:
        """The place of a row as messages give it: `file.csv, line 7`."""
        return f"{self.files[self.file_of_row[row]]}, line {self.line_of_row[row]}"

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


def read_csv(path, names: Sequence[str] | None = None) -> Table:
    """Reads a CSV file with a header line; `.gz`, and `.zip` with one file inside, are unpacked.

    Accepts UTF-8 with or without a byte-order mark, any line ends and quoted fields. Blank lines
    and unnamed columns (the index that pandas writes) are skipped.

    Args:
      path: the file.
      names: of the columns, for a file that has no header line.

    Returns:
      A `Table` of at least one row.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is empty or not readable as CSV, or a row is longer or shorter than the
        header.
    """
    path = Path(path)
    file = str(path)
    header, rows, lines = _parse(_read_text(path), file, names)
    names = [name.strip() for name in header]
    columns, ambiguous = {}, set()
    for name, cells in zip(names, zip(*rows, strict=True), strict=True):
        if name == "" or re.fullmatch(r"Unnamed: \d+", name):
            continue
        column = _encode(cells)
        if name not in columns:
            columns[name] = column
        elif column.values != columns[name].values or (column.codes != columns[name].codes).any():
            ambiguous.add(name)
    return Table(
        files=(file,),
        columns=columns,
        file_of_row=np.zeros(len(rows), np.int32),
        line_of_row=np.asarray(lines, np.int32),
        ambiguous=frozenset(ambiguous),
    )


def read_tables(path: str | Path | Mapping[str, str | Path]) -> list[Table]:
    """The table of one CSV, or the three that a mapping names "train", "val" and "test".

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the mapping has other keys, or a file is not readable; see `read_csv`.
    """
    if not isinstance(path, Mapping):
        return [read_csv(path)]
    if set(path) != set(SPLITS):
        raise ValueError(f"path must map each of {SPLITS} to a file, got {tuple(path)}")
    return [read_csv(path[name]) for name in SPLITS]


def set_name(files: Sequence[str]) -> str:
    """What a set is called: its file without suffixes, or the folder that holds all its files."""
    if len(files) == 1:
        return re.sub(r"(\.csv)?(\.gz|\.zip)?$", "", Path(files[0]).name)
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
    )


def number(text: str) -> float | None:
    """The cell as a number (possibly infinite), or None if it is not one."""
    try:
        value = float(text)
    except ValueError:
        return None
    # Python also reads "1_000" and "-nan"; neither is a number in a table.
    return None if "_" in text or math.isnan(value) else value


def show(value) -> str:
    """A cell or name as messages print it: quoted, on one line, not endless."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:56]}...{text[-1]}"


def _read_text(path: Path) -> str:
    """The decoded contents of a file, unpacked where its suffix says so."""
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
        elif path.suffix == ".zip":
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                members = archive.namelist()
                if len(members) != 1:
                    raise ValueError(f"{path}: a zip must hold one CSV, this holds {len(members)}")
                data = archive.read(members[0])
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ValueError(f"{path}: is a directory, expected a CSV file") from None
    except (OSError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: cannot be read: {reason}") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path}, line {line}: byte {data[error.start]:#04x} is not UTF-8; "
            "save the table as UTF-8"
        ) from None


def _parse(
    text: str, file: str, names: Sequence[str] | None
) -> tuple[list[str], list[list[str]], list[int]]:
    """Header, rows and the line on which each row starts."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None if names is None else list(names)
    known: dict[str, str] = {}  # equal cells share one string, which halves the memory
    rows, lines = [], []
    start = 1
    try:
        for row in reader:
            if header is None:
                header = row or None
            elif row:
                if len(row) != len(header):
                    raise ValueError(
                        f"{file}, line {start}: {len(row)} fields, but "
                        f"{'the header has' if names is None else 'expected are'} {len(header)}"
                    )
                rows.append([known.setdefault(cell, cell) for cell in row])
                lines.append(start)
            start = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{file}, line {start}: not readable as CSV: {error}") from None
    if header is None:
        raise ValueError(f"{file}: is empty, expected a header line and rows")
    if not rows:
        raise ValueError(f"{file}: has {'a header but ' if names is None else ''}no rows")
    return header, rows, lines


def _encode(cells) -> Column:
    """Distinct values in order of first appearance, and their codes."""
    code_of_value, code_of_cell = {}, {}
    for cell in dict.fromkeys(cells):
        value = strip(cell)
        missing = key(value) in MISSING
        code_of_cell[cell] = -1 if missing else code_of_value.setdefault(value, len(code_of_value))
    codes = np.fromiter(map(code_of_cell.__getitem__, cells), np.int32, len(cells))
    return Column(tuple(code_of_value), codes)
