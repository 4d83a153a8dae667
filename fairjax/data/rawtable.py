"""Files of rows as people have them: decoded, unpacked, cut at the delimiter that they use."""

import codecs
import contextlib
import csv
import gzip
import io
import itertools
import lzma
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

MAX_MESSAGE = 600
"""Longer error messages are cut in the middle: the place and the remedy stay."""

MAX_ROWS, MAX_COLUMNS = 1_048_576, 16_384
"""Of a spreadsheet, as Excel has it; a file that claims more is refused, not waited for."""

_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}

_OTHERS = (".xls", ".xlsb", ".ods", ".numbers", ".parquet", ".feather", ".sav", ".dta", ".rds")
"""Tables of other programs, of which nothing can be read as text."""


class RawTable(NamedTuple):
    """A header and the rows below it, all of its length, as text."""

    header: list[str]
    rows: list[list[str]]
    lines: list[int]
    """The 1-based line on which each row starts."""
    delimiter: str
    notes: tuple[str, ...]


@contextlib.contextmanager
def short_errors() -> Iterator[None]:
    """A ValueError longer than `MAX_MESSAGE` is cut; also a decorator.

    >>> with short_errors():
    ...     raise ValueError(" ".join(["t.csv, line 7:", *("many" for _ in range(200)), "mend it"]))
    Traceback (most recent call last):
    ValueError: t.csv, line 7: many ... many mend it
    """
    try:
        yield
    except ValueError as error:
        text = str(error)
        if len(text) <= MAX_MESSAGE:
            raise
        half = MAX_MESSAGE // 2
        raise ValueError(f"{text[: half - 3]} ... {text[2 - half :]}") from None


@contextlib.contextmanager
def blamed(path: Path) -> Iterator[None]:
    """Whatever a library raises on a user's file becomes one line that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ValueError(f"{path}: is a directory, expected a CSV file") from None
    except (
        *(OSError, EOFError, ArithmeticError, LookupError, RuntimeError, SyntaxError, TypeError),
        *(ValueError, AttributeError, MemoryError),
        *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, csv.Error),
    ) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, ValueError) and reason.startswith(str(path)):
            raise
        raise ValueError(f"{path}: cannot be read: {reason[:300]}") from None


def read_raw(
    path: Path, names: Sequence[str] | None = None, encoding: str | None = None
) -> RawTable:
    """The rows of a CSV, packed or not, or of the first sheet of an `.xlsx`; see `read_csv`."""
    with blamed(path):
        if path.suffix.lower() in _OTHERS:
            path.stat()  # an absent file is named as such
            raise ValueError(f"{path}: this kind of file is not read; save it as .csv or .xlsx")
        if path.suffix.lower() in (".xlsx", ".xlsm"):
            cells, notes = read_sheet(path)
            numbered = [(line, row) for line, row in enumerate(cells, 1) if any(row)]
            width = len(numbered[0][1]) if numbered and names is None else len(names or ())
            numbered = [(line, row + [""] * (width - len(row))) for line, row in numbered]
            return _below_header(numbered, str(path), names, ",", notes)
        text, notes = _read_text(path, encoding)
        lines, delimiter = 0, ","
        if (found := re.match(r'"?sep=(.)"?\r?\n', text, re.IGNORECASE)) is not None:
            text, lines, delimiter = text[found.end() :], 1, found[1]
        elif names is None:
            delimiter = _find_delimiter(text)
        if delimiter != ",":
            shown = _DELIMITERS.get(delimiter, repr(delimiter))
            notes.append(f"{path.name}: fields are separated by {shown}.")
        return _below_header(
            _records(text, delimiter, path, lines), str(path), names, delimiter, notes
        )


def _read_text(path: Path, encoding: str | None) -> tuple[str, list[str]]:
    """The decoded contents of a file, unpacked where its suffix says so, and notes."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    elif path.suffix == ".zip":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [name for name in archive.namelist() if _is_content(name)]
            if len(members) != 1:
                raise ValueError(f"{path}: a zip must hold one CSV, this holds {len(members)}")
            data = archive.read(members[0])
    notes = []
    if encoding is None and data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        encoding = "utf-16"
        notes.append(f"{path.name}: read as UTF-16, by its byte-order mark.")
    try:
        text = data.decode(encoding or "utf-8").lstrip("\ufeff")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path}, line {line}: byte {data[error.start]:#04x} is not {encoding or 'UTF-8'}; "
            "save the table as UTF-8, or name its encoding by encoding= (--data.encoding), such as "
            "cp1252 of older Windows programs"
        ) from None
    return text, notes


def _is_content(member: str) -> bool:
    """Not a folder, nor what macOS adds to archives."""
    parts = member.split("/")
    return not (parts[0] == "__MACOSX" or parts[-1] == "" or parts[-1].startswith("."))


def _find_delimiter(text: str) -> str:
    """The delimiter that cuts the header into most fields, and the rows into as many.

    `csv.Sniffer` goes by frequencies of characters and is fooled by short tables.
    """
    sample, best, most = text[:50_000], ",", 1
    for delimiter in _DELIMITERS:
        reader = csv.reader(io.StringIO(sample, newline=""), delimiter=delimiter)
        try:
            rows = list(itertools.islice(filter(None, reader), 30))
        except csv.Error:
            continue
        rows = rows[:-1] if len(rows) > 2 and len(text) > len(sample) else rows
        if not rows:
            continue
        width = len(rows[0])
        # a row may have one more: the names of R's rows, or nothing behind a last delimiter
        regular = sum(abs(len(row) - width) <= 1 and len(row) > 1 for row in rows[1:])
        if width > most and regular >= 0.8 * (len(rows) - 1):
            best, most = delimiter, width
    return best


def _records(
    text: str, delimiter: str, path: Path, lines_before: int
) -> Iterator[tuple[int, list[str]]]:
    """The line on which each record starts, and its fields; blank lines are left out."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    known: dict[str, str] = {}  # equal cells share one string, which halves the memory
    start = lines_before + 1
    try:
        for row in reader:
            if row:
                yield start, [known.setdefault(cell, cell) for cell in row]
            start = lines_before + reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}, line {start}: not readable as CSV: {error}") from None


def _below_header(records, file: str, names, delimiter: str, notes: list[str]) -> RawTable:
    """Header and rows, made equally long where every row shows the same way how."""
    numbered = list(records)
    if names is None and not numbered:
        raise ValueError(f"{file}: is empty, expected a header line and rows")
    header = list(names) if names is not None else numbered.pop(0)[1]
    if not numbered:
        raise ValueError(f"{file}: has {'a header but ' if names is None else ''}no rows")
    lines, rows = [line for line, _ in numbered], [row for _, row in numbered]
    if names is None:
        longer = {len(row) - len(header) for row in rows}
        name = Path(file).name
        if longer == {-1} and not header[-1].strip():
            header.pop()
        elif longer == {1} and not any(row[-1].strip() for row in rows):
            rows = [row[:-1] for row in rows]
            notes = [*notes, f"{name}: every row ends in a delimiter, which is left out."]
        elif longer == {1} and _are_row_names([row[0] for row in rows]):
            rows = [row[1:] for row in rows]
            notes = [
                *notes,
                f"{name}: the header has a name less than rows have fields, as R writes tables; "
                "the first field, the name of the row, is left out.",
            ]
    for line, row in zip(lines, rows, strict=True):
        if len(row) != len(header):
            raise ValueError(
                f"{file}, line {line}: {len(row)} fields, but "
                f"{'the header has' if names is None else 'expected are'} {len(header)}"
            )
    return RawTable(header, rows, lines, delimiter, tuple(notes))


def _are_row_names(cells: list[str]) -> bool:
    """Whether cells can be R's names of rows: all different, and rising if they are numbers."""
    if len(set(cells)) < len(cells) or len(cells) < 2 or not all(map(str.strip, cells)):
        return False
    if not any(cell.strip().isdecimal() for cell in cells):
        return True
    if not all(cell.strip().isdecimal() for cell in cells):
        return False
    numbers = list(map(int, cells))
    return numbers == sorted(numbers) and numbers[-1] - numbers[0] < 2 * len(cells)


def read_sheet(path: Path) -> tuple[list[list[str]], list[str]]:
    """The first sheet of a spreadsheet as text, rows from the first on, and notes.

    Cells are what Excel showed when it saved: the results of formulas. Empty cells are "", and
    there are none at the end of a row.

    Args:
      path: an `.xlsx` file.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no spreadsheet, or claims more rows or columns than Excel has.
    """
    with blamed(path), path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on styles and charts, which are not read
        book, sheet = _open_sheet(file, results=True)
        rows, empty = [], set()
        for row in sheet.iter_rows(values_only=True):
            if len(rows) == MAX_ROWS or len(row) > MAX_COLUMNS:
                raise ValueError(
                    f"{path}: claims more than {MAX_ROWS} rows or {MAX_COLUMNS} columns"
                )
            cells = [_cell_text(value) for value in row]
            if not all(cells):
                empty.add(len(rows))
            while cells and not cells[-1]:
                cells.pop()
            rows.append(cells)
        if empty:
            _check_formulas(path, file, rows, empty)
        titles = book.sheetnames
        book.close()
    notes = [f"{path.name}: sheet {sheet.title!r} of {len(titles)} is read."] if titles[1:] else []
    while rows and not rows[-1]:
        rows.pop()
    return rows, notes


def _open_sheet(file: IO[bytes], *, results: bool) -> tuple[Any, Any]:
    """A workbook and its first sheet; formulas as their results, or as they are."""
    from openpyxl import load_workbook  # half a second to import: only when needed

    book = load_workbook(file, read_only=True, data_only=results, keep_links=False)
    sheet = book.worksheets[0]
    sheet.reset_dimensions()  # what the file says of its size may be wrong
    return book, sheet


def _check_formulas(path: Path, file: IO[bytes], rows: list[list[str]], empty: set[int]) -> None:
    """Raises ValueError for a formula without the result that Excel saves beside it.

    Read as an empty cell it would be a missing value that is not missing.
    """
    _, sheet = _open_sheet(file, results=False)
    for number, row in enumerate(itertools.islice(sheet.iter_rows(values_only=True), len(rows))):
        for place, value in enumerate(row if number in empty else ()):
            if value is not None and not "".join(rows[number][place : place + 1]):
                if not str(value).startswith("="):
                    continue
                raise ValueError(
                    f"{path}, line {number + 1}: field {place + 1} is a formula without its "
                    "result; open and save the file in Excel or LibreOffice"
                )


def _cell_text(value: Any) -> str:
    """A value of a spreadsheet as a CSV would hold it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value)
