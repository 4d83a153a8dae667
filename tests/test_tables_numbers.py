"""Numbers as people write them, what only looks like one, and columns that are no features."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from fairjax.data.numerals import looks_like, read_numerals
from fairjax.data.tables import load_csv
from fairjax.data.values import MISSING, UNKNOWN


def write(folder, rows=40, *, separator=",", **columns):
    """A CSV by pandas; a column is a function of the row."""
    standard = {"y": lambda i: i % 2, "sex": lambda i: "FM"[i // 2 % 2]} | columns
    frame = pd.DataFrame({name: [make(i) for i in range(rows)] for name, make in standard.items()})
    frame.to_csv(folder / "t.csv", index=False, sep=separator)
    return folder / "t.csv"


def load(path, **options: Any):
    roles: dict[str, Any] = {"label": "y", "sensitive": "sex"}
    return load_csv(path, **(roles | options))


def standardised(data, numbers):
    numbers = np.asarray(numbers, float)
    train = numbers[data.splits["train"]]
    return (numbers - train.mean()) / train.std()


LOCAL = {
    "decimal comma": (lambda i: f"{i},5" if i % 3 else f"{i}", {"decimal": ","}, ";"),
    "decimal comma in quotes": (lambda i: f"{i},25", {"decimal": ","}, ","),
    "decimal comma below one": (lambda i: f"0,{125 + i}", {"decimal": ","}, ","),
    "points between thousands": (
        lambda i: f"{1 + i}.234,5" if i % 3 else f"{i},5",
        {"decimal": ",", "thousands": "."},
        ";",
    ),
    "thousands": (lambda i: f"{i // 3},{100 + i}" if i > 5 else i, {"thousands": ","}, ","),
    "millions": (lambda i: f"{1 + i},000,{100 + i}.5", {"thousands": ","}, ";"),
}


@pytest.mark.parametrize("kind", LOCAL)
def test_numbers_in_a_clear_local_form_are_read_as_pandas_reads_them(tmp_path, kind):
    make, dialect, separator = LOCAL[kind]
    path = write(tmp_path, x=make, separator=separator)
    numbers = pd.read_csv(path, sep=separator, **dialect)["x"]
    assert numbers.dtype.kind in "if"
    data = load(path, features=("x",))
    assert data.feature_names == ("x",)
    np.testing.assert_allclose(data.inputs[:, 0], standardised(data, numbers), atol=1e-5)
    assert any(
        "Column 'x': numbers with " in note and " is read as " in note for note in data.notes
    )


@pytest.mark.parametrize("sign", ["%", " %"])
def test_percent_signs_are_left_out(tmp_path, sign):
    data = load(write(tmp_path, x=lambda i: f"{i % 7},5{sign}"), features=("x",))
    expected = standardised(data, [i % 7 + 0.5 for i in range(40)])
    np.testing.assert_allclose(data.inputs[:, 0], expected, atol=1e-6)
    note = f"Column 'x': numbers with percent and decimal comma; '0,5{sign}' is read as 0.5."
    assert note in data.notes


MIXED = {
    "points and commas": lambda i: ("20,5", "20.5")[i % 2],
    "percent and not": lambda i: ("12%", "0.12")[i % 2],
    "thousands with and without": lambda i: ("1,000", "2000", "2.5")[i % 3],
}


@pytest.mark.parametrize("kind", MIXED)
def test_two_rules_in_one_column_are_refused_with_the_line(tmp_path, kind):
    path = write(tmp_path, x=MIXED[kind])
    with pytest.raises(ValueError, match=r"line \d+: column 'x' holds .* among .*--data.drop"):
        load(path, features=("x",))
    assert len(load(path, features=("x",), categorical=("x",)).feature_names) in (2, 3)


def test_a_comma_that_could_be_both_is_not_guessed():
    assert read_numerals(["1,000", "12"], ",") == (("1000", "12"), "commas between thousands")
    assert read_numerals(["1,000", "12"], ";") is None  # 1 and 12, or 1000 and 12
    both = read_numerals(["1,000", "2,500"], ";")  # a factor, which standardising takes away
    assert both is not None and both.texts == ("1000", "2500")
    assert read_numerals(["1.234", "20,5"]) is None and read_numerals(["1.2.3"]) is None
    assert read_numerals(["1.234.567", "1.234"]) == (
        ("1234567", "1234"),
        "points between thousands",
    )


LOOKS = {
    "amounts of money": lambda i: f"${i % 9}.50",
    "quantities with a unit": lambda i: f"{18 + i % 9} mg",
    "dates or times": lambda i: f"2019-0{1 + i % 9}-11",
    "numbers written in more than one way": lambda i: f"{i % 9} 000 1,5",
    "40 distinct texts in 40 rows": lambda i: f"name {i}",
}


@pytest.mark.parametrize("what", LOOKS)
def test_what_is_neither_number_nor_category_is_refused_by_name_with_the_choice(tmp_path, what):
    path = write(tmp_path, x=LOOKS[what], z=lambda i: i % 5)
    with pytest.raises(ValueError, match=f"column 'x' holds {what}.*--data.drop x.*--data.categ"):
        load(path)
    assert load(path, drop=("x",), sensitive_as_feature=False).feature_names == ("z",)
    as_asked = load(path, categorical=("x",), features=("x",))
    assert len(as_asked.feature_names) == len(
        pd.read_csv(path)["x"].iloc[as_asked.splits["train"]].unique()
    )


def test_every_column_that_is_no_feature_is_named_at_once(tmp_path):
    path = write(
        tmp_path, name=lambda i: f"n{i}", born=lambda i: f"{1 + i % 28}.3.1970", z=lambda i: i % 5
    )
    with pytest.raises(
        ValueError, match=r"other columns are no features either .1..*--data.drop name born\)"
    ):
        load(path)
    assert load(path, drop=("name", "born")).feature_names == ("sex=F", "sex=M", "z")


@pytest.mark.parametrize(
    ("texts", "what"),
    [
        (["€ 5", "€ 1.200"], "amounts of money"),
        (["5 USD", "7 USD"], "amounts of money"),
        (["36.5°C", "38°C"], "quantities with a unit"),
        (["1 mg/dl", "2 mg/dl"], "quantities with a unit"),
        (["36 months", "1 month"], "quantities with a unit"),
        (["03/14/2013", "2013-08-14T10:05:00Z"], "dates or times"),
        (["12-Mar-2019", "March 3, 2019"], "dates or times"),
        (["10:15", "7:05:01"], "dates or times"),
        (["10th", "11th", "12th"], None),
        (["25 - 45", "Less than 25", "Greater than 45"], None),
        (["18-25", "26-35"], None),
        (["1a", "1b", "2a", "2b"], None),
        (["A11", "A12"], None),
        (["<=50K", ">50K"], None),
    ],
)
def test_categories_that_hold_digits_are_categories(texts, what):
    assert looks_like(texts) == what


ROW_IDS = {
    "row number": lambda i: i,
    "shuffled": lambda i: 37 * i % 40,
    "record": lambda i: 90_000_017 + i * i * 1001,
    "with points": lambda i: f"{i}.0",
}


@pytest.mark.parametrize("kind", ROW_IDS)
def test_a_record_id_is_left_out_unless_asked_for(tmp_path, kind):
    path = write(tmp_path, x=ROW_IDS[kind], z=lambda i: i % 5, kg=lambda i: i + 0.25)
    data = load(path, sensitive_as_feature=False)
    assert data.feature_names == ("z", "kg")  # kg differs in every row and is a measurement
    assert any("Column 'x' holds a whole number of its own" in note for note in data.notes)
    assert load(path, features=("x", "z")).feature_names == ("x", "z")
    with pytest.raises(ValueError, match="no feature columns are left. Column 'x' holds a whole"):
        load(path, drop=("z", "kg", "sex"))


def test_an_empty_column_is_left_out_with_a_note(tmp_path):
    path = write(tmp_path, x=lambda i: "", z=lambda i: i % 5)
    data = load(path, sensitive_as_feature=False)
    assert data.feature_names == ("z",)
    assert "Column 'x' is empty and left out of the features." in data.notes
    data = load(write(tmp_path, x=lambda i: "", w=lambda i: "NA", z=lambda i: i % 5))
    assert "Columns 'x', 'w' are empty and left out of the features." in data.notes


def test_the_note_says_whether_the_network_sees_the_group(tmp_path):
    path = write(tmp_path, z=lambda i: i % 5)
    assert "Sensitive column is among the features: 'sex'." in load(path).notes
    unseen = load(path, sensitive_as_feature=False)
    assert "Sensitive column is not among the features: 'sex'." in unseen.notes


def test_the_positive_class_is_named_and_two_other_numbers_ask_for_it(tmp_path):
    for values in ((0, 1), (-1, 1), ("0.0", "1")):
        path = write(tmp_path, y=lambda i, values=values: values[i % 2], z=lambda i: i % 5)
        data = load(path)
        assert "The positive class (1) of 'y' is 'y=1'." in data.notes
        np.testing.assert_array_equal(data.labels, np.arange(40) % 2)
    path = write(tmp_path, y=lambda i: 1 + i % 2, z=lambda i: i % 5)  # German credit: 2 is bad
    with pytest.raises(ValueError, match="holds 1 and 2, .* positive='2' .--data.positive. to say"):
        load(path)
    assert "The positive class (1) of 'y' is 'y=1'." in load(path, positive="1").notes
    path = write(tmp_path, y=lambda i: i % 3, z=lambda i: i % 5, rows=90)
    notes = load(path).notes
    assert "3 classes of 'y', none of them the positive: 0 'y=0', 1 'y=1', 2 'y=2'." in notes


LEAKS = {
    "complement": lambda i: 1 - i % 2,
    "quantity": lambda i: (i % 2) * 100 + i,
    "text": lambda i: ("dead", "alive")[i % 2],
}


@pytest.mark.parametrize("kind", LEAKS)
def test_a_feature_that_tells_the_label_is_named(tmp_path, kind):
    path = write(tmp_path, x=LEAKS[kind], z=lambda i: i % 5, w=lambda i: "ab"[i // 3 % 2])
    notes = load(path, features=("x", "z", "w")).notes
    assert [note for note in notes if "tells the label" in note] == [
        "'x' tells the label 'y' of every row; is it known beforehand? "
        "Leave it out by drop= if not."
    ]
    assert not any("tells" in note for note in load(path, features=("z", "w")).notes)


def test_categories_in_several_spellings_are_one(tmp_path):
    path = write(tmp_path, x=lambda i: ("Yes", "YES", "yes.", "No", "Yes")[i % 5])
    data = load(path, features=("x",))
    assert data.feature_names == ("x=No", "x=Yes")
    assert any("'YES' (8), 'yes.' (8) read as 'Yes'." in note for note in data.notes)


def test_unknown_among_numbers_is_missing_and_among_texts_a_category(tmp_path):
    path = write(
        tmp_path,
        x=lambda i: "Unknown" if i % 10 == 3 else f"{i % 7},5",
        w=lambda i: ("unknown", "a", "b")[i % 3],
    )
    data = load(path, features=("x", "w"))
    assert data.feature_names == ("x", "w=a", "w=b", "w=unknown") and len(data.labels) == 36
    assert "Column 'x': 'Unknown' (4) read as missing." in data.notes
    assert any("Dropped 4 of 40 rows with missing values ('x' 4)" in note for note in data.notes)
    with pytest.raises(ValueError, match="holds numbers written in more than one way"):
        load(path, features=("x",), not_missing=("unknown",))


def test_columns_to_drop_are_checked(tmp_path):
    path = write(tmp_path, z=lambda i: i % 5)
    with pytest.raises(ValueError, match="no column 'zip'; the columns are"):
        load(path, drop=("zip",))
    with pytest.raises(ValueError, match="'z' cannot be in both features and drop"):
        load(path, features=("z",), drop=("z",))
    with pytest.raises(ValueError, match="'y' cannot be in drop: it is the label"):
        load(path, drop=("y",))


def test_a_region_called_na_can_be_kept(tmp_path):
    def region(i):
        return ("NA", "EU", "na ", "unknown")[i % 4]

    path = write(tmp_path, region=region, z=lambda i: i % 5, y=lambda i: i // 4 % 2)
    frame = pd.read_csv(path, keep_default_na=False)
    truth = frame["region"].str.strip().str.upper()
    options = {"sensitive": "region", "allow_small_groups": True}
    assert load(path, not_missing=("NA", "unknown"), **options).group_names == (
        *("EU", "NA", "unknown"),
    )
    kept = load(path, not_missing=("na",), **options)
    assert kept.group_names == ("EU", "NA") and len(kept.group) == truth.isin(["NA", "EU"]).sum()
    assert any("'unknown' (10) read as missing" in note for note in kept.notes)
    dropped = load(path, **options | {"sensitive": "z", "drop": ("region",)}).notes
    assert not any("'NA'" in note for note in dropped)  # of columns that are not used
    with pytest.raises(ValueError, match="'region' make 1 group"):
        load(path, **options)
    both = write(tmp_path, region=lambda i: ("NA", "EU", "US", "")[i % 4], z=lambda i: i % 5)
    assert "Column 'region': 'NA' (10) read as missing." in load(both, **options).notes
    path = write(tmp_path, region=region, z=lambda i: i % 5, y=lambda i: i // 4 % 2)
    names = load(path, features=("region",), not_missing=("NA",)).feature_names
    assert names == ("region=EU", "region=NA", "region=unknown")
    with pytest.raises(ValueError, match="not_missing holds 'Namibia', which is no word of #n/a"):
        load(path, not_missing=("Namibia",))


def test_a_long_message_is_cut_and_keeps_the_place(tmp_path):
    columns: Any = {f"a rather long name of a column {i}": lambda i: i % 3 for i in range(300)}
    path = write(tmp_path, rows=8, **columns)
    with pytest.raises(
        ValueError, match=r"t\.csv: no column 'gender'; the columns are .* \.\.\. "
    ) as e:
        load(path, sensitive="gender")
    assert len(str(e.value)) <= 600


def test_numbers_too_small_to_write_out_are_no_numbers(tmp_path):
    path = write(tmp_path, x=lambda i: ("1e-999999999", "1")[i % 2])
    with pytest.raises(ValueError, match="holds '1e-999999999' among"):
        load(path, features=("x",))


def test_every_word_that_means_missing_is_in_the_documentation():
    written = " ".join((load_csv.__doc__ or "").split()).casefold()
    assert all(f"`{word}`" in written for word in (MISSING | UNKNOWN) - {""})
