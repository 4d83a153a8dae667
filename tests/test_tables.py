"""Tables become the arrays a reader expects, and mistakes become one clear line."""

import csv
import gzip
import io
import zipfile
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from fairjax.data import SPLITS, load_adult, load_compas, load_csv, make_adult

ROWS = [
    # age, city, sex, outcome, part
    (20, "Bonn", "F", 0, "train"),
    (30, "Oslo", "F", 1, "train"),
    (40, "Bonn", "M", 0, "train"),
    (50, "Oslo", "M", 1, "train"),
    (35, "Bonn", "F", 0, "val"),
    (45, "Rome", "F", 1, "val"),
    (35, "Bonn", "M", 0, "val"),
    (55, "Oslo", "M", 1, "val"),
    (30, "Oslo", "F", 0, "test"),
    (25, "Bonn", "F", 1, "test"),
    (60, "Bonn", "M", 0, "test"),
    (35, "Oslo", "M", 1, "test"),
]
HEADER = ("age", "city", "sex", "outcome", "part")


def to_csv(rows, header=HEADER, **options):
    text = io.StringIO()
    writer = csv.writer(text, **options)
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def write(path, rows=ROWS, header=HEADER):
    path.write_text(to_csv(rows, header), encoding="utf-8")
    return path


def changed(row, column, value, rows=ROWS):
    cells = [list(r) for r in rows]
    cells[row][HEADER.index(column)] = value
    return cells


def load(path, **options):
    defaults: dict[str, Any] = {"label": "outcome", "sensitive": "sex", "split": "part"}
    return load_csv(path, **(defaults | options))


@pytest.fixture
def table(tmp_path):
    return write(tmp_path / "table.csv")


def many_rows(n, seed=0):
    generator = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        sex, label = generator.choice(["F", "M"]), int(generator.random() < 0.3)
        rows.append((int(generator.integers(18, 90)), generator.choice(["a", "b"]), sex, label, i))
    return rows


# What comes out


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
    assert data.fingerprint == load(table).fingerprint and data.name == "train"


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
    assert data.notes[0] == "Dropped 2 of 24 rows with missing values ('outcome' 1, 'sex' 1)."


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


# What is refused


def refuse(path, message, error: type[Exception] = ValueError, **options):
    with pytest.raises(error) as raised:
        load(path, **options)
    text = str(raised.value)
    assert message in text and len(text.splitlines()) == 1


def test_missing_file_and_directory(tmp_path):
    refuse(tmp_path / "no.csv", "no.csv: no such file", FileNotFoundError)
    refuse(tmp_path, "is a directory, expected a CSV file")


def test_missing_column_lists_those_there_are(table):
    columns = "the columns are 'age', 'city', 'sex', 'outcome', 'part'"
    refuse(table, f"table.csv: no column 'gender'; {columns}", sensitive="gender")
    refuse(table, f"no column 'y'; {columns}", label="y")
    refuse(table, f"no column 'fold'; {columns}", split="fold")
    refuse(table, f"no column 'zip'; {columns}", features=["zip"])
    refuse(table, f"no column 'zip'; {columns}", categorical=["zip"])


def test_column_missing_from_one_of_three_files(tmp_path):
    files = {split: write(tmp_path / f"{split}.csv") for split in SPLITS}
    write(files["val"], [row[1:] for row in ROWS], HEADER[1:])
    refuse(files, "val.csv: no column 'age'", split=(0.6, 0.2, 0.2), features=["age"])


def test_text_that_is_no_table(tmp_path):
    for content, message in (
        (b"", "t.csv: is empty"),
        (b"\n\n", "t.csv: is empty"),
        (b"age,sex\n", "t.csv: has a header but no rows"),
        (b"age,sex\n1,F\n2\n", "t.csv, line 3: 1 fields, but the header has 2"),
        (b"age,sex\n1,F\n2,M,3\n", "t.csv, line 3: 3 fields, but the header has 2"),
        (b"age,sex\n1,F\n2,\xe9\n", "t.csv, line 3: byte 0xe9 is not UTF-8"),
        (b'age,sex\n1,"F\n', "t.csv, line 2: not readable as CSV"),
    ):
        path = tmp_path / "t.csv"
        path.write_bytes(content)
        refuse(path, message)


def test_broken_archives(tmp_path):
    for name in ("t.csv.gz", "t.zip"):
        (tmp_path / name).write_bytes(b"not compressed")
        refuse(tmp_path / name, f"{name}: cannot be read")
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("a.csv", "x")
        archive.writestr("b.csv", "x")
    refuse(tmp_path / "two.zip", "a zip must hold one CSV, this holds 2")


def test_labels_that_cannot_be_classes(tmp_path):
    path = tmp_path / "t.csv"
    text = [(*row[:3], "yes" if row[3] else "no", row[4]) for row in ROWS]
    refuse(write(path, text), "label column 'outcome' is not numeric; pass positive='no' or")
    refuse(path, "never holds positive='maybe'; it holds 'no', 'yes'", positive="maybe")
    refuse(
        write(path, changed(2, "outcome", "one")),
        "t.csv, line 4: column 'outcome' holds 'one' among numbers; a label must be",
    )
    same = [(*row[:3], 1, row[4]) for row in ROWS]
    refuse(write(path, same), "label column 'outcome' holds only '1'; at least two classes")
    amounts = [(*row[:3], i / 7, row[4]) for i, row in enumerate(many_rows(200))]
    refuse(
        write(path, amounts),
        "holds 200 distinct values, at most 100 classes",
        split=(0.6, 0.2, 0.2),
    )


def test_groups_that_cannot_be_groups(tmp_path):
    path = tmp_path / "t.csv"
    one = [(*row[:2], "F", *row[3:]) for row in ROWS]
    refuse(write(path, one), "'sex' make 1 group(s), accepted are 2 to 100")
    many = [(*row[:2], i, *row[3:]) for i, row in enumerate(many_rows(150))]
    refuse(write(path, many), "sensitive column 'sex' holds 150 distinct values")
    refuse(path, "sensitive must name at least one column", sensitive=())


def test_group_without_rows_or_with_one_class(tmp_path):
    path = tmp_path / "t.csv"
    options = "merge groups, split otherwise, or pass allow_small_groups=True"
    rows = [row for row in ROWS if row[2:5:2] != ("M", "val")]
    refuse(write(path, rows), f"t.csv: group 'M' has no rows in split 'val'; {options}")
    rows = changed(0, "outcome", 1, changed(8, "outcome", 1))
    refuse(
        write(path, rows), "group 'F' has only one class in split 'train' (and 1 more such gaps)"
    )
    assert load(path, allow_small_groups=True).notes[-2:] == (
        "Group 'F' has only one class in split 'train'.",
        "Group 'F' has only one class in split 'test'.",
    )


def test_class_that_train_lacks(tmp_path):
    path = write(tmp_path / "t.csv", changed(4, "outcome", 2))
    refuse(path, "split 'train' has no rows of class 'outcome=2'", allow_small_groups=True)


def test_features_that_cannot_be_numbers_or_categories(tmp_path):
    path = tmp_path / "t.csv"
    refuse(
        write(path, changed(3, "age", "4O")),
        "t.csv, line 5: column 'age' holds '4O' among numbers; mend it, or name the column in",
    )
    refuse(write(path, changed(3, "city", "7")), "line 5: column 'city' holds '7' among text; mend")
    for cell in ("inf", "-Infinity", "1e300"):
        refuse(
            write(path, changed(3, "age", cell)),
            f"t.csv, line 5: column 'age' holds '{cell}', only",
        )
    names = [(row[0], f"id{i}", *row[2:]) for i, row in enumerate(many_rows(150))]
    refuse(
        write(path, names),
        "column 'city' holds 150 distinct texts such as 'id0', at most 100 are accepted",
        split=(0.6, 0.2, 0.2),
    )
    rows = [(1e-30 * i if row[4] == "train" else 1e30, *row[1:]) for i, row in enumerate(ROWS)]
    refuse(write(path, rows), "t.csv, line 6: column 'age' holds '1e+30', too far from")
    rows = [("" if row[4] == "train" else 1, *row[1:]) for row in ROWS]
    refuse(write(path, rows), "column 'age' has no values in split 'train'", missing="impute")
    rows = [("", *row[1:]) for row in ROWS]
    refuse(write(path, rows), "no row is complete; missing cells by column: 'age' 12")


def test_splits_that_cannot_be_made(tmp_path, table):
    refuse(table, "summing to 1, got (0.6, 0.3, 0.2)", split=(0.6, 0.3, 0.2))
    path = tmp_path / "t.csv"
    refuse(
        write(path, changed(1, "part", "valid")),
        "t.csv, line 3: split column 'part' holds 'valid', accepted are 'train', 'val', 'test'",
    )
    refuse(write(path, changed(1, "part", "")), "line 3: split column 'part' holds nothing")
    refuse({"train": table}, "path must map each of ('train', 'val', 'test') to a file")
    refuse(dict.fromkeys(SPLITS, table), "give three files or the split column 'part', not both")
    refuse(table, 'missing must be "drop" or "impute", got \'keep\'', missing="keep")


def test_id_in_two_given_splits(tmp_path):
    header = (*HEADER, "patient")
    rows: list[tuple] = [(*row, i) for i, row in enumerate(ROWS)]
    rows[6] = (*ROWS[6], "2.0")
    path = write(tmp_path / "t.csv", rows, header)
    refuse(
        path,
        "t.csv, line 8: 'patient' '2.0' is in 'val', but also in 'train' (",
        id_column="patient",
    )
    rows[6] = (*ROWS[6], "")
    path = write(tmp_path / "t.csv", rows, header)
    refuse(path, "t.csv, line 8: id column 'patient' holds nothing", id_column="patient")


def test_columns_with_two_roles(table):
    refuse(table, "column 'outcome' cannot be in sensitive", sensitive="outcome")
    refuse(table, "column 'part' cannot be in features", features=["age", "part"])
    refuse(table, "features names column 'age' twice", features=["age", "age"])
    refuse(table, "must be different columns", id_column="outcome")
    refuse(table, "no feature columns are left", features=[])


cells = st.one_of(
    st.sampled_from(
        ["", "?", "0", "1", "1.5", "inf", "1e999", "1_0", "train", "val", "F", "M", '"']
    ),
    st.text(max_size=5),
)
broken_tables = st.one_of(
    st.binary(max_size=80),
    st.text(max_size=80).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.lists(st.lists(cells, max_size=7), max_size=15).map(
        lambda rows: to_csv(rows).encode("utf-8", "surrogatepass")
    ),
    st.lists(
        st.tuples(st.integers(0, 11), st.sampled_from(HEADER), cells), min_size=1, max_size=6
    ).map(lambda edits: mutate(edits)),
    st.tuples(st.integers(0, 400), st.binary(max_size=3)).map(
        lambda cut: to_csv(ROWS).encode()[: cut[0]] + cut[1] + to_csv(ROWS).encode()[cut[0] :]
    ),
)


def mutate(edits):
    rows = ROWS
    for row, column, cell in edits:
        rows = changed(row, column, cell, rows)
    return to_csv(rows).encode("utf-8", "surrogatepass")


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    content=broken_tables,
    suffix=st.sampled_from(["csv", "csv", "csv", "gz", "zip"]),
    place=st.sampled_from([None, None, *SPLITS]),
    options=st.fixed_dictionaries(
        {
            "split": st.sampled_from(["part", (0.5, 0.25, 0.25)]),
            "missing": st.sampled_from(["drop", "impute"]),
            "positive": st.sampled_from([None, 1]),
            "id_column": st.sampled_from([None, "city"]),
            "allow_small_groups": st.booleans(),
        }
    ),
)
def test_broken_files_end_in_one_line_or_in_finite_data(tmp_path, content, suffix, place, options):
    path = tmp_path / f"fuzz.{suffix}"
    path.write_bytes(content)
    if place is not None:
        clean = write(tmp_path / "clean.csv")
        path = dict.fromkeys(SPLITS, clean) | {place: path}
        options = options | {"split": (0.6, 0.2, 0.2)}
    try:
        data = load(path, **options)
    except ValueError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert np.isfinite(data.inputs).all()


# The benchmarks


def test_adult_is_complete_and_its_groups_are_in_order():
    data = load_adult()
    assert data.inputs.shape == (45_222, 104)
    assert data.label_names == ("<=50K", ">50K") and data.group_names == ("Female", "Male")
    counts = sum(data.cell_counts(split) for split in SPLITS)
    np.testing.assert_array_equal(counts, [[13026, 20988], [1669, 9539]])
    for split, ratio in zip(SPLITS, (0.6, 0.2, 0.2), strict=True):
        assert np.abs(data.cell_counts(split) - ratio * counts).max() < 1
    train = data.inputs[data.splits["train"]].astype(np.float64)
    np.testing.assert_allclose(train[:, :6].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(train[:, :6].std(0), 1, atol=1e-5)
    assert set(np.unique(train[:, 6:])) == {0, 1}
    np.testing.assert_array_equal(data.inputs[:, 6:].sum(1), 8)


def test_adult_first_row_is_the_published_one():
    data = load_adult()
    age, ones = data.inputs[0, 0], data.inputs[0, 6:]
    assert [name for name, one in zip(data.feature_names[6:], ones, strict=True) if one] == [
        "workclass=Private",
        "education=Some-college",
        "marital-status=Married-civ-spouse",
        "occupation=Craft-repair",
        "relationship=Husband",
        "race=White",
        "sex=Male",
        "native-country=United-States",
    ]
    # It is 37 years old, the third 38: one year is 1 / std.
    np.testing.assert_allclose(data.inputs[2, 0] - age, 1 / 13.2, rtol=0.01)


def test_adult_loads_for_every_usual_sensitive_attribute():
    assert load_adult("race").group_names == (
        "Amer-Indian-Eskimo",
        "Asian-Pac-Islander",
        "Black",
        "Other",
        "White",
    )
    data = load_adult(("sex", "race"), sensitive_as_feature=False)
    assert data.num_groups == 10 and data.group_names[2] == "Female & Black"
    assert not [name for name in data.feature_names if name.startswith(("sex=", "race="))]
    assert min(data.cell_counts(split).min() for split in SPLITS) >= 1
    with pytest.raises(ValueError, match="adult: no column 'gender'; the columns are 'age'"):
        load_adult("gender")


def test_adult_seed_changes_only_the_split():
    first, other = load_adult(), load_adult(seed=1)
    np.testing.assert_array_equal(first.labels, other.labels)
    assert not np.array_equal(first.splits["test"], other.splits["test"])
    assert first.feature_names == other.feature_names


def test_adult_by_a_column_with_tiny_groups_needs_permission():
    with pytest.raises(ValueError, match="pass allow_small_groups=True"):
        load_adult("native-country")
    assert load_adult("native-country", allow_small_groups=True).num_groups == 41


def test_compact_copy_holds_what_the_one_hot_table_says(tmp_path):
    header = ("age", "sex_Female", "sex_Male", "salary_<=50K", "salary_>50K")
    rows = [(30, 0, 1, 1, 0), (41, 1, 0, 0, 1), (52, 0, 1, 0, 1)]
    make_adult.main(write(tmp_path / "a.csv", rows, header), tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays["age"].tolist() == [30, 41, 52]
        assert arrays["sex_values"][arrays["sex"]].tolist() == ["Male", "Female", "Male"]
        assert arrays["salary_values"][arrays["salary"]].tolist() == ["<=50K", ">50K", ">50K"]
    broken = write(tmp_path / "b.csv", [(30, 1, 1, 1, 0)], header)
    with pytest.raises(ValueError, match="columns sex_\\* do not hold exactly one 1 per row"):
        make_adult.main(broken, tmp_path / "b.npz")


def test_a_linear_model_learns_adult_as_everywhere():
    from sklearn.linear_model import LogisticRegression

    data = load_adult()
    train, test = data.examples("train"), data.examples("test")
    keep, _ = train_test_split(np.arange(len(train.labels)), train_size=8000, random_state=0)
    model = LogisticRegression(max_iter=300).fit(train.inputs[keep], train.labels[keep])
    assert 0.84 < model.score(test.inputs, test.labels) < 0.86


COMPAS_LINE = (
    "id,name,first,last,compas_screening_date,sex,dob,age,age_cat,race,juv_fel_count,decile_score,"
    "juv_misd_count,juv_other_count,priors_count,days_b_screening_arrest,c_jail_in,c_jail_out,"
    "c_case_number,c_offense_date,c_arrest_date,c_days_from_compas,c_charge_degree,c_charge_desc,"
    "is_recid,r_case_number,r_charge_degree,r_days_from_arrest,r_offense_date,r_charge_desc,"
    "r_jail_in,r_jail_out,violent_recid,is_violent_recid,vr_case_number,vr_charge_degree,"
    "vr_offense_date,vr_charge_desc,type_of_assessment,decile_score,score_text,screening_date,"
    "v_type_of_assessment,v_decile_score,v_score_text,v_screening_date,in_custody,out_custody,"
    "priors_count,start,end,event,two_year_recid"
)
COMPAS_HEADER = COMPAS_LINE.split(",")


def compas_row(i, **cells):
    generator = np.random.default_rng(i)
    values = {
        "id": i,
        "name": f"person {i}",
        "sex": ("Male", "Female")[i % 2],
        "age_cat": ("25 - 45", "Less than 25", "Greater than 45")[generator.integers(3)],
        "race": ("African-American", "Caucasian")[i // 2 % 2],
        "priors_count": generator.integers(0, 30),
        "days_b_screening_arrest": generator.integers(-30, 31),
        "c_charge_degree": ("F", "M")[generator.integers(2)],
        "c_charge_desc": 'Battery, "simple"',
        "is_recid": i // 4 % 2,
        "score_text": "Low",
        "two_year_recid": i // 4 % 2,
    } | cells
    return [values.get(name, "") for name in COMPAS_HEADER]


def test_compas_keeps_the_rows_of_the_published_analysis(tmp_path):
    rows = [compas_row(i) for i in range(80)]
    dropped = [
        compas_row(100, days_b_screening_arrest=31),
        compas_row(101, days_b_screening_arrest=-31),
        compas_row(102, days_b_screening_arrest=""),
        compas_row(103, is_recid=-1),
        compas_row(104, c_charge_degree="O"),
        compas_row(105, score_text="N/A"),
        compas_row(106, race="Hispanic"),
    ]
    path = write(tmp_path / "compas-scores-two-years.csv", dropped + rows, COMPAS_HEADER)
    data = load_compas(path)
    assert data.notes[0] == "ProPublica's filters keep 80 of 87 rows."
    assert len(data.labels) == 80
    assert data.group_names == ("Female", "Male")
    assert data.label_names == ("two_year_recid=0", "two_year_recid=1")
    assert data.labels.tolist() == [i // 4 % 2 for i in range(80)]
    assert data.feature_names == (
        "age_cat=25 - 45",
        "age_cat=Greater than 45",
        "age_cat=Less than 25",
        "c_charge_degree=F",
        "c_charge_degree=M",
        "race=African-American",
        "race=Caucasian",
        "sex=Female",
        "sex=Male",
        "priors_count",
    )
    assert (
        load_compas(path, sensitive=("sex", "race")).group_names[0] == "Female & African-American"
    )


def test_compas_that_is_another_file_or_keeps_nothing(tmp_path, table):
    with pytest.raises(ValueError, match="no column 'two_year_recid'; the columns are"):
        load_compas(table)
    path = write(tmp_path / "c.csv", [compas_row(0, is_recid=-1)], COMPAS_HEADER)
    with pytest.raises(ValueError, match="none of 1 rows passes ProPublica's filters"):
        load_compas(path)


def test_an_adult_sized_csv_loads_whole(tmp_path):
    generator = np.random.default_rng(0)
    n = 45_000
    numbers = generator.integers(0, 100_000, (n, 6)).astype(str)
    texts = generator.choice([f"value {i}" for i in range(40)], (n, 7))
    tail = np.stack([generator.choice(["F", "M"], n), generator.choice(["0", "1"], n)], axis=1)
    rows = np.concatenate([numbers, texts, tail], axis=1).tolist()
    path = write(tmp_path / "big.csv", rows, [*(f"c{i}" for i in range(13)), "sex", "outcome"])
    data = load_csv(path, label="outcome", sensitive="sex")
    assert data.inputs.shape == (n, 6 + 7 * 40 + 2)
