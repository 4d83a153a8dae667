"""Tables made at random are refused in one line or mean what pandas, told how, reads in them.

The maker knows how it wrote each column. Truth is pandas' reading of the file by that knowledge,
folded with rules written here again: nothing of the reader under test takes part.
"""

import csv
import io
import random
from typing import Any

import numpy as np
import openpyxl
import pandas as pd
import pytest

from fairjax.data.tables import load_csv

# of pandas, about the delimiter behind every row
pytestmark = pytest.mark.filterwarnings("ignore:Length of header")

NOTHING = {"", "?", "na", "n/a", "nan", "null", "none", "<na>", "#n/a", "missing"}
UNSAID = NOTHING | {"unknown", "unk"}
LABELS = (("yes", "no"), ("1", "0"), ("2", "1"), ("True", "False"), ("1", "-1"))
GROUPS = (("female", "male"), ("a", "b", "c"), ("1", "2"), ("4000011", "4000012"))
READ = ("plain", "decimal", "thousands", "percent", "words")
REFUSED = ("mixed", "money")
PARTS = {"train": "train", "training": "train", "valid": "val", "dev": "val", "test": "test"}


def fold(text):
    """A cell by its meaning, for texts that the maker varies."""
    return str(text).replace("\u200b", "").strip().strip('="').casefold().rstrip(".").strip()


class Maker:
    """A table of random size, content and dialect, and what its columns are."""

    def __init__(self, seed, path):
        self.random = random.Random(seed)
        self.rows = self.random.choice((40, 90, 160))
        self.kinds, self.columns = {}, {}
        self.separator = self.random.choice(",,,;;\t|")
        self.path = path / self.random.choice(("t.csv", "t.csv", "t.csv", "t.csv", "t.xlsx"))
        self.encoding = self.random.choice(("utf-8", "utf-8-sig", "utf-16", "cp1252"))
        self.style = self.random.choice(("plain", "plain", "sep", "trailing", "R", "quoted"))
        if self.path.suffix == ".xlsx":
            self.separator, self.encoding, self.style = ",", "utf-8", "plain"
        self.fill()
        self.write()

    def vary(self, word):
        """Another way to write a word, or a number."""
        ways = [word, word, word, word.upper(), f" {word}", f"{word} ", f"{word}."]
        if self.encoding != "cp1252":
            ways.append(f"{word[:1]}\u200b{word[1:]}")
        return self.random.choice(ways)

    def missing(self, cell):
        if self.random.random() < 0.03:
            return self.random.choice(("", "NA", "?", "None", "n/a", "Missing"))
        return cell

    def fill(self):
        draw = self.random
        yes, no = draw.choice(LABELS)
        self.positive = yes if draw.random() < 0.8 else None
        groups = draw.choice(GROUPS)
        labels = [draw.choice((yes, no)) for _ in range(self.rows)]
        varied = self.vary if yes.isalpha() else self.renumber
        self.columns["y"] = [self.missing(varied(label)) for label in labels]
        varied = self.vary if groups[0].isalpha() else self.renumber
        self.columns["g"] = [self.missing(varied(draw.choice(groups))) for _ in range(self.rows)]
        if draw.random() < 0.5:
            names = ("train", "Training", "valid", "DEV", "test", "TEST ")
            self.columns["part"] = [draw.choice(names) for _ in range(self.rows)]
        elif draw.random() < 0.5:
            start = draw.choice((1, 10**17))
            ids = [start + i // draw.choice((2, 3)) for i in range(self.rows)]
            self.columns["id"] = [self.renumber(str(number)) for number in ids]
        for number in range(draw.randint(1, 4)):
            kind = draw.choice(READ * 5 + REFUSED)
            self.kinds[f"x{number}"] = kind
            cells = [self.cell(kind) for _ in range(self.rows)]
            self.columns[f"x{number}"] = [self.missing(cell) for cell in cells]
        if draw.random() < 0.3:
            self.kinds["row"] = "row"
            self.columns["row"] = [str(i) for i in range(self.rows)]

    def renumber(self, text):
        ways = [text, text, text, f"{text}.0", f" {text} "]
        if self.path.suffix == ".csv":  # in a spreadsheet it is a formula
            ways.append(f'="{text}"')
        return self.random.choice(ways)

    def cell(self, kind):
        draw = self.random
        value = round(draw.gauss(20, 30), draw.choice((0, 1, 2)))
        if kind == "plain":
            return f"{value:g}"
        if kind == "decimal":
            return f"{value:g}".replace(".", ",")
        if kind == "thousands":
            return f"{draw.randint(0, 3_000_000):,}"
        if kind == "percent":
            return f"{value:g} %"
        if kind == "mixed":
            return draw.choice((f"{value + 0.25:.2f}", f"{value + 0.5:.1f}".replace(".", ",")))
        if kind == "money":
            return f"${abs(value):.2f}"
        return self.vary(draw.choice(("red", "green", "blue", "unknown")))

    def write(self):
        header = list(self.columns)
        rows = [list(row) for row in zip(*self.columns.values(), strict=True)]
        if self.random.random() < 0.12 and self.path.suffix == ".csv":  # a damaged row
            row = rows[self.random.randrange(len(rows))]
            self.random.choice((row.pop, lambda: row.append("x")))()
        if self.path.suffix == ".xlsx":
            book = openpyxl.Workbook(write_only=True)
            sheet = book.create_sheet()
            for row in [header, *rows]:
                sheet.append([cell or None for cell in row])
            book.save(self.path)
            return
        if self.style == "R":
            rows = [[f"r{i}", *row] for i, row in enumerate(rows)]
        if self.style == "trailing":
            rows = [[*row, ""] for row in rows]
        text = io.StringIO()
        quoting = csv.QUOTE_ALL if self.style == "quoted" else csv.QUOTE_MINIMAL
        end = self.random.choice(("\n", "\r\n"))
        writer = csv.writer(text, delimiter=self.separator, quoting=quoting, lineterminator=end)
        writer.writerows([header, *rows])
        sep = f"sep={self.separator}\n" if self.style == "sep" else ""
        self.path.write_bytes((sep + text.getvalue()).encode(self.encoding))

    def truth(self):
        """The cells by pandas, told the dialect."""
        if self.path.suffix == ".xlsx":
            return pd.read_excel(self.path, dtype=str, keep_default_na=False)
        frame = pd.read_csv(
            self.path,
            sep=self.separator,
            encoding=self.encoding,
            dtype=str,
            keep_default_na=False,
            skiprows=int(self.style == "sep"),
            index_col=0 if self.style == "R" else False,
        )
        return frame.reset_index(drop=True)

    def load(self):
        options: Any = {"encoding": self.encoding} if self.encoding == "cp1252" else {}
        return load_csv(
            self.path,
            label="y",
            sensitive="g",
            positive=self.positive,
            split="part" if "part" in self.columns else (0.5, 0.25, 0.25),
            id_column="id" if "id" in self.columns else None,
            sensitive_as_feature=False,
            allow_small_groups=True,
            **options,
        )


def plain_number(text):
    text = fold(text).removesuffix(".0")
    return text.lstrip("0") or "0" if text.isdecimal() else text


def numbers(cells, kind):
    """A column as pandas reads numbers of a kind."""
    text = "x\n" + "\n".join(f'"{fold(cell).removesuffix("%").strip()}"' for cell in cells)
    kinds: Any = {"decimal": {"decimal": ","}, "thousands": {"thousands": ","}}
    return pd.read_csv(io.StringIO(text), **kinds.get(kind, {}))["x"].to_numpy(float)


def check(maker, data):
    """Asserts that the set says what pandas reads."""
    frame = maker.truth()
    used = [name for name, kind in maker.kinds.items() if kind != "row"]
    assert not {"mixed", "money"} & set(maker.kinds.values())  # to be refused, never categories
    gone = frame["y"].map(fold).isin(UNSAID) | frame["g"].map(fold).isin(UNSAID)
    for name in used:
        gone |= frame[name].map(fold).isin(NOTHING)
    frame = frame[~gone].reset_index(drop=True)
    assert len(data.labels) == len(frame)
    y, g = frame["y"].map(plain_number), frame["g"].map(plain_number)
    named = [fold(name).removeprefix("y=") for name in data.label_names]
    if maker.positive is None:
        assert set(named) in ({"0", "1"}, {"-1", "1"})
    else:
        assert named[1] == fold(maker.positive)
    assert [named[k] for k in data.labels] == y.tolist()
    assert f"is {data.label_names[1]!r}." in " ".join(data.notes)
    assert [fold(data.group_names[k]).removeprefix("g=") for k in data.group] == g.tolist()
    rows = np.concatenate(list(data.splits.values()))
    assert sorted(rows) == list(range(len(frame)))
    if "part" in frame:
        parts = frame["part"].map(fold).map(PARTS)
        for split, own in data.splits.items():
            assert own.tolist() == np.flatnonzero(parts == split).tolist()
    if "id" in frame:
        patients = frame["id"].map(plain_number)
        owners = [set(patients[own]) for own in data.splits.values()]
        assert sum(map(len, owners)) == patients.nunique() == len(np.unique(data.ids))
    position = {name: i for i, name in enumerate(data.feature_names)}
    seen = set()
    for name in used:
        if maker.kinds[name] == "words":
            words = frame[name].map(fold)
            for value in set(words[data.splits["train"]]):
                (spelled,) = (n for n in position if fold(n.removeprefix(f"{name}=")) == value)
                np.testing.assert_array_equal(data.inputs[:, position[spelled]], words == value)
                seen.add(spelled)
        else:
            column = numbers(frame[name], maker.kinds[name])
            train = column[data.splits["train"]]
            expected = (column - train.mean()) / (train.std() or 1)
            np.testing.assert_allclose(data.inputs[:, position[name]], expected, atol=2e-5)
            seen.add(name)
    assert seen == set(position)  # nothing else is an input, a number of the row least of all


def run(seeds, folder, make=Maker):
    accepted, refused = 0, []
    for seed in seeds:
        place = folder / str(seed)
        place.mkdir()
        maker = make(seed, place)
        try:
            data = maker.load()
        except ValueError as error:
            assert len(str(error).splitlines()) == 1 and len(str(error)) <= 600, seed
            refused.append((seed, str(error).replace(str(place), "")))
            continue
        accepted += 1
        try:
            check(maker, data)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {maker.__dict__}") from error
    return accepted, refused


def test_sixty_tables_are_refused_or_agree_with_pandas(tmp_path):
    accepted, refused = run(range(60), tmp_path)
    assert accepted >= 30 and len(refused) >= 10


@pytest.mark.slow
def test_a_thousand_tables_are_refused_or_agree_with_pandas(tmp_path):
    accepted, refused = run(range(60, 1060), tmp_path)
    assert accepted >= 500 and len(refused) >= 200
