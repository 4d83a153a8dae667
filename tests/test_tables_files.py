"""Files of tables as programs write them: delimiters, encodings, archives, spreadsheets, ages."""

import csv
import datetime
import io
import random
import zipfile
import zlib
from pathlib import Path
from typing import Any

import openpyxl
import pandas as pd
import pytest
from csv_rows import HEADER, ROWS, load, to_csv, write

from fairjax.data.attributes import age_bands, check_ages
from fairjax.data.csvfile import Table, read_csv
from fairjax.data.rawtable import read_sheet

PLAIN = to_csv(ROWS)


def cells(table: Table) -> dict[str, list[str]]:
    """The columns of a table as text, missing cells as ""."""
    return {
        name: [column.values[code] if code >= 0 else "" for code in column.codes]
        for name, column in table.columns.items()
    }


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return read_csv(write(tmp_path_factory.mktemp("plain") / "t.csv"))


R_STYLE = to_csv([(f"p{i}", *row) for i, row in enumerate(ROWS)], HEADER)
FILES = {
    "semicolons": (to_csv(ROWS, delimiter=";"), ["fields are separated by semicolons"]),
    "tabs": (to_csv(ROWS, delimiter="\t"), ["fields are separated by tabs"]),
    "bars": (to_csv(ROWS, delimiter="|"), ["fields are separated by vertical bars"]),
    "sep line": ("sep=;\r\n" + to_csv(ROWS, delimiter=";"), ["separated by semicolons"]),
    "odd sep line": ("SEP=^\n" + to_csv(ROWS, delimiter="^"), [r"separated by '^'"]),
    "sep line of commas": ("sep=,\n" + PLAIN, []),
    "delimiter behind all": (PLAIN.replace("\r\n", ",\r\n"), []),
    "delimiter behind rows": (
        PLAIN.replace("\r\n", ",\r\n").replace("part,", "part"),
        ["every row ends in a delimiter"],
    ),
    "delimiter behind the header": (PLAIN.replace("part", "part,"), []),
    "R": (R_STYLE, ["as R writes tables"]),
    "R by numbers": (
        to_csv([(i + 1, *row) for i, row in enumerate(ROWS)], HEADER, quoting=csv.QUOTE_ALL),
        ["as R writes tables"],
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_delimiters_are_found_and_noted_and_lines_stay(tmp_path, plain, kind):
    text, notes = FILES[kind]
    path = tmp_path / "t.csv"
    path.write_text(text, newline="")
    table = read_csv(path)
    assert cells(table) == cells(plain)
    assert len(table.notes) == len(notes)
    assert all(part in note for part, note in zip(notes, table.notes, strict=True))
    assert table.where(0).endswith(f"t.csv, line {3 if 'sep' in kind else 2}")
    lines = text.splitlines(keepends=True)
    path.write_text("".join([*lines[:7], f'"{lines[7]}', *lines[8:]]), newline="")
    with pytest.raises(ValueError, match=r"t\.csv, line 8: "):
        read_csv(path)


def test_delimiters_inside_cells_do_not_fool_the_reader(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("x;y,sex\n" + "".join(f"{i};1,F\n" for i in range(5)))
    assert list(read_csv(path).columns) == ["x;y", "sex"]  # as many fields: commas
    path.write_text("x;y;sex\n" + "".join(f"{i},5;{i % 2};F\n" for i in range(5)))
    assert list(read_csv(path).columns) == ["x", "y", "sex"]
    path.write_text("sex\nF\nM\n")
    assert cells(read_csv(path)) == {"sex": ["F", "M"]}
    path.write_text("a;b\n1;2\n3;4;5;6\n" + "1;2\n" * 5)
    with pytest.raises(ValueError, match=r"line 3: 4 fields, but the header has 2"):
        read_csv(path)


def test_a_row_too_long_is_no_name_of_a_row(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("age,sex\n20,5,F\n30,5,M\n25,5,F\n")  # decimal commas without quotes
    with pytest.raises(ValueError, match=r"line 2: 3 fields, but the header has 2"):
        read_csv(path)


@pytest.mark.parametrize(
    ("data", "options", "notes"),
    [
        (PLAIN.replace("Bonn", "Köln").encode("utf-16"), {}, 1),
        (b"\xfe\xff" + PLAIN.replace("Bonn", "Köln").encode("utf-16-be"), {}, 1),
        (PLAIN.replace("Bonn", "Köln").encode("cp1252"), {"encoding": "cp1252"}, 0),
        (b"\xef\xbb\xbf\xef\xbb\xbf" + PLAIN.replace("Bonn", "Köln").encode(), {}, 0),
        (b"\xef\xbb\xbfsep=,\n" + PLAIN.replace("Bonn", "Köln").encode(), {}, 0),
    ],
    ids=["utf-16", "utf-16 big-endian", "cp1252", "two marks", "mark and sep"],
)
def test_encodings(tmp_path, plain, data, options, notes):
    path = tmp_path / "t.csv"
    path.write_bytes(data)
    table = read_csv(path, **options)
    expected = cells(plain)
    expected["city"] = [city.replace("Bonn", "Köln") for city in expected["city"]]
    assert cells(table) == expected and len(table.notes) == notes
    assert "city=Köln" in load(path, **options).feature_names


def test_an_encoding_that_does_not_fit_is_named(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(PLAIN.replace("Rome", "Köln").encode("cp1252"))
    with pytest.raises(
        ValueError, match=r"line 7: byte 0xf6 is not UTF-8; .*--data.encoding.*cp12"
    ):
        read_csv(path)
    with pytest.raises(ValueError, match=r"line 7: byte 0xf6 is not ascii"):
        read_csv(path, encoding="ascii")
    for name in ("no such", "rot13"):
        with pytest.raises(ValueError, match=r"t\.csv: cannot be read: .*encoding"):
            read_csv(path, encoding=name)


def test_a_zip_made_by_macos(tmp_path, plain):
    path = tmp_path / "t.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("folder/", "")
        archive.writestr("folder/table.csv", PLAIN)
        archive.writestr("folder/.DS_Store", b"\0")
        archive.writestr("__MACOSX/folder/._table.csv", b"\0\5\x16\7")
    assert cells(read_csv(path)) == cells(plain)


def workbook(path: Path, rows: Any, *, sheets=("Data",)) -> Path:
    book = openpyxl.Workbook()
    book.active.title = sheets[0]  # type: ignore[union-attr]
    for row in rows:
        book.active.append(row)  # type: ignore[union-attr]
    for title in sheets[1:]:
        book.create_sheet(title)
    book.save(path)
    return path


def test_a_spreadsheet_is_read_as_its_csv(tmp_path, plain):
    path = workbook(tmp_path / "t.xlsx", [HEADER, *ROWS[:4], (), *ROWS[4:]], sheets=("Data", "Old"))
    table = read_csv(path)
    assert cells(table) == cells(plain) and table.where(4).endswith("t.xlsx, line 7")
    assert table.notes == ("t.xlsx: sheet 'Data' of 2 is read.",)
    data = load(path)
    assert data.name == "t" and data.fingerprint == load(write(tmp_path / "t.csv")).fingerprint


def test_kinds_of_cells_of_a_spreadsheet(tmp_path):
    day = datetime.date(2019, 3, 1)
    path = workbook(
        tmp_path / "t.xlsx",
        [("n", "f", "flag", "text", "day", "none"), (7, 7.0, True, " a ", day, None), (8, 0.1)],
    )
    assert cells(read_csv(path)) == {
        "n": ["7", "8"],
        "f": ["7", "0.1"],
        "flag": ["TRUE", ""],
        "text": ["a", ""],
        "day": ["2019-03-01 00:00:00", ""],
        "none": ["", ""],
    }
    frame = pd.read_excel(path)
    assert frame["n"].tolist() == [7, 8] and frame["f"].tolist() == [7, 0.1]


def test_a_formula_that_was_never_computed_is_no_empty_cell(tmp_path):
    path = workbook(tmp_path / "t.xlsx", [("a", "b"), (1, None), (2, "=A2*2"), (3, "x")])
    with pytest.raises(ValueError, match=r"t\.xlsx, line 3: field 2 is a formula without its res"):
        read_csv(path)


def parts(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def repack(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'r="A2"', b'r="A99999999999"'),
        (b'<row r="2"', b'<row r="99999999999"'),
        (b'r="B2"', b'r="ZZZZZZ2"'),
        (b'r="B2"', b'r="-2"'),
        (b"<v>0</v>", b"<v>7777</v>"),
        (b"<sheetData>", b"<sheetData><"),
        (b"</worksheet>", b""),
        (b"<v>", b"<v>x"),
    ],
)
def test_a_damaged_spreadsheet_ends_in_one_line(tmp_path, old, new):
    path = workbook(tmp_path / "t.xlsx", [HEADER, *ROWS])
    members = parts(path)
    sheet = members["xl/worksheets/sheet1.xml"]
    assert old in sheet
    repack(path, members | {"xl/worksheets/sheet1.xml": sheet.replace(old, new, 1)})
    try:
        rows, _ = read_sheet(path)
    except ValueError as error:
        assert str(error).startswith(str(path)) and len(str(error).splitlines()) == 1
        assert len(str(error)) < 500
    else:  # what the reader can still make sense of
        assert len(rows) <= len(ROWS) + 2


def test_bytes_changed_at_random_end_in_one_line(tmp_path):
    whole = workbook(tmp_path / "t.xlsx", [HEADER, *ROWS]).read_bytes()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("t.csv", PLAIN)
    import gzip

    samples = {
        "x.xlsx": whole,
        "x.zip": packed.getvalue(),
        "x.csv.gz": gzip.compress(PLAIN.encode()),
    }
    generator = random.Random(0)
    refused = 0
    for name, data in samples.items():
        for _ in range(25):
            broken = bytearray(data)
            for _ in range(generator.randint(1, 12)):
                broken[generator.randrange(len(data))] = generator.randrange(256)
            if generator.random() < 0.3:
                del broken[generator.randrange(len(data)) :]
            (tmp_path / name).write_bytes(broken)
            try:
                read_csv(tmp_path / name)
            except ValueError as error:
                refused += 1
                assert str(tmp_path / name) in str(error) and len(str(error).splitlines()) == 1
    assert refused > 30


@pytest.mark.parametrize("error", [EOFError(), zlib.error("bad"), IndexError("x"), OverflowError()])
def test_whatever_a_library_raises_names_the_file(tmp_path, monkeypatch, error):
    path = write(tmp_path / "t.csv")

    def fail(self):
        raise error

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(ValueError, match=r"t\.csv: cannot be read: "):
        read_csv(path)


AGES = {
    "years": (("34", "60", "61", "95"), (0, 0, 1, 1)),
    "open above": (("34", "90+", "> 89", "60.5"), (0, 1, 1, 1)),
    "DICOM": (("045Y", "006M", "003W", "061y"), (0, 0, 0, 1)),
    "open at the cut": ((">60", "61+", "0", "130"), (1, 1, 0, 1)),
}


@pytest.mark.parametrize("kind", AGES)
def test_ages_as_registries_write_them(tmp_path, kind):
    texts, bands = AGES[kind]
    path = tmp_path / "t.csv"
    path.write_text("age\n" + "\n".join(texts) + "\nunknown\n")
    column = age_bands(read_csv(path), "age", (60.0,))
    assert column.codes.tolist() == [*bands, -1]


@pytest.mark.parametrize("age", ["300", "-3", "60+", "old", ">59", "1e2Y", "131+"])
def test_an_age_that_is_none_names_the_row_and_the_range_or_is_counted(tmp_path, age):
    path = tmp_path / "t.csv"
    path.write_text(f"age\n34\n{age}\n70\n{age}\n")
    table = read_csv(path)
    with pytest.raises(
        ValueError, match=r"t\.csv, line 3: .*expected years: accepted are 0 to 130"
    ):
        age_bands(table, "age", (60.0,))
    for name, cuts in (("age", (60.0,)), ("Age_binary", None)):
        skipped, notes = check_ages(table, (name,), "skip", cuts)
        assert age_bands(skipped, "age", (60.0,)).codes.tolist() == [0, -1, 1, -1]
        assert notes[0].startswith("Skipped 2 ages that are none (the first at ")
        assert f"line 3: '{age}')" in notes[0]
    assert check_ages(table, ("age",), "error", (60.0,))[0].columns == table.columns


def test_notes_of_the_reader_reach_the_data(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(to_csv(ROWS, delimiter=";"), newline="")
    data = load(path)
    assert data.notes[0] == "t.csv: fields are separated by semicolons."
    assert data.fingerprint == load(write(tmp_path / "u.csv")).fingerprint
