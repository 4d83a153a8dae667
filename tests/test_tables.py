"""Tables become the arrays a reader expects."""

import csv
import gzip
import zipfile

import numpy as np
import pytest
from csv_rows import HEADER, ROWS, changed, load, many_rows, to_csv, write
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from fairjax.data import SPLITS, load_csv


@pytest.fixture
def table(tmp_path):
    return write(tmp_path / "table.csv")


def test_worked_example(table):
    data = load(table)
    assert data.name == "table"
    assert data.feature_names == ("age", "city=Bonn", "city=Oslo", "sex=F", "sex=M")
    assert data.label_names == ("outcome=0", "outcome=1")
    assert data.group_names == ("F", "M")
    assert {split: rows.tolist() for split, rows in data.splits.items()} == {
        "train": [0, 1, 2, 3],
        "val": [4, 5, 6, 7],
        "test": [8, 9, 10, 11],
    }
    # Train ages 20, 30, 40, 50: mean 35, variance 125.
    np.testing.assert_allclose(data.inputs[:4, 0], np.array([-15, -5, 5, 15]) / 125**0.5, rtol=1e-6)
    np.testing.assert_allclose(data.inputs[4, 0], 0)
    np.testing.assert_array_equal(data.inputs[0, 1:], [1, 0, 1, 0])
    # Rome is not in train.
    np.testing.assert_array_equal(data.inputs[5, 1:], [0, 0, 1, 0])
    assert data.notes == (
        "Rows with a 'city' that train lacks: 1 (such as 'Rome'), encoded as all zeros.",
        "The positive class (1) of 'outcome' is 'outcome=1'.",
        "Sensitive column is among the features: 'sex'.",
    )
    assert data.inputs.dtype == np.float32


def test_features_agree_with_scikit_learn(tmp_path):
    data = load_csv(
        write(tmp_path / "t.csv", many_rows(300)),
        label="outcome",
        sensitive="sex",
        features=["age", "city"],
    )
    rows = many_rows(300)
    train = data.splits["train"]
    age = np.array([[row[0]] for row in rows], float)
    city = np.array([[row[1]] for row in rows])
    scaled = StandardScaler().fit(age[train]).transform(age)
    one_hot = OneHotEncoder(sparse_output=False).fit(city[train]).transform(city)
    np.testing.assert_allclose(
        data.inputs, np.hstack([np.asarray(scaled), np.asarray(one_hot)]), atol=1e-6
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda rows: b"\xef\xbb\xbf" + to_csv(rows).encode(),
        lambda rows: to_csv(rows, lineterminator="\n").encode(),
        lambda rows: to_csv(rows, lineterminator="\r\n\r\n").encode(),
        lambda rows: to_csv(rows, quoting=csv.QUOTE_ALL).encode(),
        lambda rows: to_csv([[f" {cell} " for cell in row] for row in rows]).encode(),
        lambda rows: to_csv([(i, *r) for i, r in enumerate(rows)], ("", *HEADER)).encode(),
        lambda rows: to_csv(
            [(i, *r) for i, r in enumerate(rows)], ("Unnamed: 0", *HEADER)
        ).encode(),
    ],
    ids=["bom", "lf", "blank lines", "quoted", "padded", "pandas index", "index read back"],
)
def test_dialects_make_no_difference(tmp_path, table, make):
    other = tmp_path / "other.csv"
    other.write_bytes(make(ROWS))
    assert load(other).fingerprint == load(table).fingerprint


def test_compressed_files_read_like_plain_ones(tmp_path, table):
    with gzip.open(tmp_path / "t.csv.gz", "wb") as file:
        file.write(table.read_bytes())
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        archive.write(table, "inside.csv")
    for name in ("t.csv.gz", "t.zip"):
        data = load(tmp_path / name)
        assert data.fingerprint == load(table).fingerprint and data.name == "t"


def test_quoted_fields_keep_commas_and_line_breaks(tmp_path):
    path = write(tmp_path / "t.csv", changed(0, "city", "Bonn, on\nRhine"))
    assert "city=Bonn, on\nRhine" in load(path).feature_names
    path = write(tmp_path / "t.csv", changed(1, "age", "inf", changed(0, "city", "a\nb")))
    # The first record spans lines 2 and 3.
    with pytest.raises(ValueError, match=r"t\.csv, line 4: column 'age' holds 'inf'"):
        load(path)


def test_three_files_equal_one_file_with_a_split_column(tmp_path, table):
    files = {}
    for split in SPLITS:
        rows = [row[:4] for row in ROWS if row[4] == split]
        files[split] = write(tmp_path / f"{split}.csv", rows, HEADER[:4])
    data = load_csv(files, label="outcome", sensitive="sex")
    assert data.fingerprint == load(table).fingerprint
    assert data.name == tmp_path.name  # and not "train", the first of the files


def test_files_may_order_their_columns_differently(tmp_path, table):
    files = {}
    for split in SPLITS:
        rows = [row[:4] for row in ROWS if row[4] == split]
        header = HEADER[:4]
        if split == "test":
            rows, header = [row[::-1] for row in rows], header[::-1]
        files[split] = write(tmp_path / f"{split}.csv", rows, header)
    assert load_csv(files, label="outcome", sensitive="sex").fingerprint == load(table).fingerprint


def test_several_sensitive_columns_make_named_intersections(table):
    data = load(table, sensitive=("sex", "city"), allow_small_groups=True)
    assert data.group_names == ("F & Bonn", "F & Oslo", "F & Rome", "M & Bonn", "M & Oslo")
    assert [data.group_names[g] for g in data.group[:6]] == [
        "F & Bonn",
        "F & Oslo",
        "M & Bonn",
        "M & Oslo",
        "F & Bonn",
        "F & Rome",
    ]
    assert "Group 'F & Rome' has no rows in split 'train'." in data.notes


def test_sensitive_columns_can_be_kept_out_of_the_features(table):
    data = load(table, sensitive_as_feature=False)
    assert data.feature_names == ("age", "city=Bonn", "city=Oslo")
    assert load(table, features=["sex"]).feature_names == ("sex=F", "sex=M")


def test_numeric_groups_are_named_by_their_column_and_ordered_as_numbers(tmp_path):
    rows = [(*row[:2], {"F": "10", "M": "9.0"}[row[2]], *row[3:]) for row in ROWS]
    data = load(write(tmp_path / "t.csv", rows))
    assert data.group_names == ("sex=9", "sex=10")
    assert data.group.tolist() == [1, 1, 0, 0] * 3


def test_positive_value_becomes_class_one(tmp_path):
    rows = [(*row[:3], "bad" if row[3] else "good", row[4]) for row in ROWS]
    path = write(tmp_path / "t.csv", rows)
    data = load(path, positive="bad")
    assert data.label_names == ("good", "bad") and data.labels.tolist() == [0, 1] * 6
    assert load(path, positive="good").labels.tolist() == [1, 0] * 6
    assert load(write(tmp_path / "u.csv"), positive=0).label_names == ("outcome=1", "outcome=0")


def test_one_class_against_the_rest(tmp_path):
    rows = [(*row[:3], ["x", "y", "z"][i % 3], "train") for i, row in enumerate(ROWS)]
    path = write(tmp_path / "t.csv", rows * 3)
    data = load(path, split=(0.4, 0.3, 0.3))
    assert data.label_names == ("x", "y", "z")
    data = load(path, split=(0.4, 0.3, 0.3), positive="y")
    assert data.label_names == ("not y", "y") and data.labels[:3].tolist() == [0, 1, 0]


def test_codes_can_be_read_as_categories(table):
    data = load(table, features=["age"], categorical=["age"])
    assert data.feature_names == ("age=20", "age=30", "age=40", "age=50")


def test_missing_cells_are_dropped_and_counted(tmp_path):
    path = write(tmp_path / "t.csv", changed(0, "age", "?", changed(1, "city", "N/A") + ROWS))
    data = load(path)
    assert len(data.labels) == 22
    assert data.notes[0] == "Dropped 2 of 24 rows with missing values ('age' 1, 'city' 1)."


def test_missing_cells_are_filled_with_train_statistics(tmp_path):
    rows = changed(4, "age", "", changed(6, "city", "NA")) + [(50, "Oslo", "M", 1, "train")]
    data = load(write(tmp_path / "t.csv", rows), missing="impute")
    # Train ages 20, 30, 40, 50, 50: median 40, mean 38, variance 136; Oslo 3 times of 5.
    np.testing.assert_allclose(data.inputs[4, 0], 2 / 136**0.5, rtol=1e-6)
    np.testing.assert_array_equal(data.inputs[6, 1:3], [0, 1])
    assert "Filled 1 missing 'age' with the train median 40." in data.notes
    assert "Filled 1 missing 'city' with the most frequent train value 'Oslo'." in data.notes


def test_rows_without_label_or_group_are_dropped_even_when_imputing(tmp_path):
    path = write(tmp_path / "t.csv", changed(0, "sex", "", changed(1, "outcome", "nan") + ROWS))
    data = load(path, missing="impute")
    assert data.notes[:2] == (
        "Column 'outcome': 'nan' (1) read as missing.",
        "Dropped 2 of 24 rows with missing values ('outcome' 1, 'sex' 1).",
    )


def test_drawn_splits_are_stratified_and_repeat_by_seed(tmp_path):
    path = write(tmp_path / "t.csv", many_rows(400))
    options = {"label": "outcome", "sensitive": "sex", "features": ["age"]}
    data = load_csv(path, **options)
    total = sum(data.cell_counts(split) for split in SPLITS)
    for split, ratio in zip(SPLITS, (0.6, 0.2, 0.2), strict=True):
        assert np.abs(data.cell_counts(split) - ratio * total).max() <= 1
    assert load_csv(path, **options).fingerprint == data.fingerprint
    assert load_csv(path, seed=1, **options).fingerprint != data.fingerprint
    assert "drawn with seed 0" in data.notes[0]


def test_a_patient_never_straddles_drawn_splits(tmp_path):
    rows = [(*row[:4], f"P{i // 3}") for i, row in enumerate(many_rows(600))]
    data = load_csv(
        write(tmp_path / "t.csv", rows), label="outcome", sensitive="sex", id_column="part"
    )
    patients = [{rows[i][4] for i in data.splits[split]} for split in SPLITS]
    assert not (patients[0] & patients[1] or patients[0] & patients[2] or patients[1] & patients[2])
    assert "part" not in data.feature_names
    assert data.notes[0].endswith("stratified on (label, group), every 'part' kept whole.")


def test_unused_columns_may_be_named_twice_or_say_the_same(tmp_path):
    rows = [(*row, row[0], "x") for row in ROWS]
    path = write(tmp_path / "t.csv", rows, (*HEADER, "age", "city"))
    assert load(path, features=["age"]).feature_names == ("age",)
    with pytest.raises(ValueError, match="two columns are named 'city' and differ; rename one"):
        load(path)
