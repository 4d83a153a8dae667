"""Spreadsheets made at random are refused in one line or mean what pandas reads in them."""

import datetime
import re
import zipfile

import openpyxl
import pandas as pd
import pytest
from test_tables_fuzz import LABELS, UNSAID, Maker, fold, run

GROUPS = (("female", "male"), ("a", "b", "c"), (1, 2), (True, False), ("01", "02"))
KINDS = ("plain", "plain", "plain", "words", "percent", "text", "result", "decimal")
REFUSED = ("dates", "error", "unsaved")  # one of which refuses the file


class SheetMaker(Maker):
    """A table whose cells have types: numbers, texts, booleans, dates, formulas."""

    def fill(self):
        draw, self.path = self.random, self.path.with_suffix(".xlsx")
        self.rows = draw.choice((40, 60))
        self.separator, self.encoding, self.style = ",", "utf-8", "plain"
        yes, no = draw.choice((*LABELS, (1, 0), (True, False)))
        self.positive = str(yes) if draw.random() < 0.8 else None
        groups = draw.choice(GROUPS)
        self.columns["y"] = [self.missing(draw.choice((yes, no))) for _ in range(self.rows)]
        self.columns["g"] = [self.missing(draw.choice(groups)) for _ in range(self.rows)]
        if draw.random() < 0.5:
            names = ("train", "Training", "valid", "DEV", "test", "TEST ")
            self.columns["part"] = [draw.choice(names) for _ in range(self.rows)]
        elif draw.random() < 0.5:
            start = draw.choice((1, 10**14, 1.0))
            self.columns["id"] = [start + i // 2 for i in range(self.rows)]
        spoiled = {}
        for number in range(draw.randint(1, 4)):
            kind = draw.choice(KINDS * 4 + REFUSED)
            self.columns[f"x{number}"] = [self.missing(self.cell(kind)) for _ in range(self.rows)]
            if kind in ("error", "unsaved"):
                spoiled[f"x{number}"] = "#DIV/0!" if kind == "error" else "=A1+1"
            means = {"words": "words", "percent": "plain", "decimal": "decimal"}
            self.kinds[f"x{number}"] = "mixed" if kind in REFUSED else means.get(kind, "plain")
        if draw.random() < 0.3:
            self.kinds["row"] = "row"
            self.columns["row"] = list(range(self.rows))
        rows = list(zip(*self.columns.values(), strict=True))
        whole = [i for i, row in enumerate(rows) if not UNSAID.intersection(map(fold, row))]
        for name, cell in spoiled.items():  # where nothing else drops the row
            self.columns[name][draw.choice(whole)] = cell
        self.merged = not spoiled and draw.random() < 0.1

    def cell(self, kind):
        draw = self.random
        value = round(draw.gauss(20, 30), draw.choice((0, 1, 2)))
        if kind == "decimal":
            return f"{value:g}".replace(".", ",")
        if kind == "words":
            return draw.choice(("red", "Green", "blue ", "unknown", "two\nlines", 'a "b", c'))
        if kind == "dates":
            return datetime.datetime(2020, 1, 1) + datetime.timedelta(days=draw.randrange(900))
        if kind == "text":
            return draw.choice((value, f"{value:g}", int(value)))
        return f"={value!r}+0" if kind == "result" else value

    def write(self):
        draw, book = self.random, openpyxl.Workbook()
        sheet = book.worksheets[0]
        rows = [list(self.columns), *map(list, zip(*self.columns.values(), strict=True))]
        if draw.random() < 0.2:
            rows.insert(draw.randrange(1, len(rows)), [None] * len(rows[0]))
        for row in rows:
            sheet.append(row)
        for row in sheet.iter_rows(min_row=2):
            for cell in row:
                if isinstance(cell.value, float):
                    cell.number_format = draw.choice(("General", "0%", "0.0"))
        if self.merged:
            first = draw.randrange(2, self.rows - 2)
            sheet.merge_cells(f"B{first}:B{first + 2}")
        if draw.random() < 0.08:  # of a stray hand
            sheet.cell(draw.choice((1, 7, 30_000)), draw.choice((30, 16_384)), "x")
        if draw.random() < 0.3:
            book.create_sheet("notes", draw.choice((0, 1))).append(["what", "else"])
            if book.sheetnames[0] == "notes":
                book.move_sheet("notes", 1)
        book.save(self.path)
        self.compute()

    def compute(self):
        """The results of formulas, which Excel saves beside them and openpyxl does not."""
        with zipfile.ZipFile(self.path) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        for name in parts:
            if re.fullmatch(r"xl/worksheets/sheet\d+.xml", name):
                text = parts[name].decode()
                text = re.sub(
                    r"<f>(-?[\d.e+-]+?)\+0</f><v ?(/>|></v>)", r"<f>\1+0</f><v>\1</v>", text
                )
                parts[name] = text.encode()
        with zipfile.ZipFile(self.path, "w") as archive:
            for name, data in parts.items():
                archive.writestr(name, data)

    def truth(self):
        """The cells by pandas, every one as Excel shows it."""
        frame = pd.read_excel(self.path, dtype=object, keep_default_na=False, na_filter=False)
        return frame.map(lambda value: "" if value is None else str(value))


def test_forty_spreadsheets_are_refused_or_agree_with_pandas(tmp_path):
    accepted, refused = run(range(40), tmp_path, SheetMaker)
    assert accepted >= 15 and len(refused) >= 8


@pytest.mark.slow
def test_hundreds_of_spreadsheets_are_refused_or_agree_with_pandas(tmp_path):
    accepted, refused = run(range(40, 340), tmp_path, SheetMaker)
    assert accepted >= 120 and len(refused) >= 60
