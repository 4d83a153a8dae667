"""Tables that cannot be read end in one clear line."""

import zipfile

import numpy as np
import pytest
from csv_rows import HEADER, ROWS, changed, load, many_rows, to_csv, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fairjax.data import SPLITS


@pytest.fixture
def table(tmp_path):
    return write(tmp_path / "table.csv")


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
    refuse(
        write(path, rows),
        "no row is complete; missing cells by column: 'age' 12; leave such columns out by drop=",
        features=["age"],
    )


def test_splits_that_cannot_be_made(tmp_path, table):
    refuse(table, "summing to 1, got (0.6, 0.3, 0.2)", split=(0.6, 0.3, 0.2))
    path = tmp_path / "t.csv"
    refuse(
        write(path, changed(1, "part", "holdout")),
        "t.csv, line 3: split column 'part' holds 'holdout', accepted are 'train', 'val', 'test'",
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
