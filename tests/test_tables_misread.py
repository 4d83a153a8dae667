"""Cells that mean one thing and are written another way are read by what they mean."""

import csv
from collections import Counter
from typing import Any

import numpy as np
import pytest
from PIL import Image
from raw_sets import (
    make_chexpert,
    make_ham10000,
    make_isic2019,
    make_oasis1,
    make_papila,
    picture,
    write_xlsx,
)

from fairjax.data.dataset import Dataset
from fairjax.data.image_tables import load_image_table
from fairjax.data.named import read_named
from fairjax.data.splits import split_by_id, stratified_split
from fairjax.data.tables import load_csv


def write(folder, rows, **columns):
    """A CSV of `rows` rows; a column is a function of the row."""
    standard = {
        "image": lambda i: f"i{i}.png",
        "x": lambda i: i,
        "y": lambda i: i % 2,
        "sex": lambda i: "FM"[i // 2 % 2],
    } | columns
    path = folder / "t.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(standard)
        writer.writerows([make(i) for make in standard.values()] for i in range(rows))
    return path


def read_both(path, **arguments) -> tuple[Any, Any]:
    """The set by both readers; black pictures stand for the images."""
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            Image.new("RGB", (4, 4)).save(path.parent / row["image"])
    settings = {"label": "y", "sensitive": "sex", "split": (0.5, 0.25, 0.25)} | arguments
    cache = {"size": 4, "cache_dir": path.parent / "cache"}
    return (
        load_csv(path, features=("x",), **settings),
        load_image_table(path, **settings, **cache),
    )


def column(path, name):
    """What the standard library reads of a column, as text."""
    with path.open(newline="", encoding="utf-8") as file:
        return [row[name] for row in csv.DictReader(file)]


def partition(names):
    """Which rows are equal, whatever they are called."""
    first = {}
    return [first.setdefault(name, i) for i, name in enumerate(np.asarray(names).tolist())]


@pytest.mark.parametrize("start", [10**16, 10**17 + 1, 9_007_199_254_740_992, 10**25])
def test_long_ids_stay_as_many_as_they_are(tmp_path, start):
    path = write(tmp_path, 160, patient=lambda i: f"{start + i // 2}")
    patients = column(path, "patient")
    for data in read_both(path, id_column="patient"):
        assert len(np.unique(data.ids)) == len(set(patients)) == 80
        assert partition(data.ids) == partition(patients)
        owners = [{patients[row] for row in rows} for rows in data.splits.values()]
        assert sum(map(len, owners)) == 80  # nobody is in two splits


def test_an_id_is_one_however_its_number_is_written(tmp_path):
    ways = ("{}", "{}.0", " {} ", "\u200b{}", '="{}"', "+{}", "0{}", "{}.00")
    path = write(tmp_path, 160, patient=lambda i: ways[i % 8].format(10**17 + i // 8))
    for data in read_both(path, id_column="patient"):
        assert partition(data.ids) == [i // 8 * 8 for i in range(160)]


def test_a_leak_between_7_and_7_point_0_is_refused_by_both_readers(tmp_path):
    path = write(
        tmp_path,
        48,
        patient=lambda i: f"{i % 16}" if i < 16 else f"{i % 16}.0",
        part=lambda i: ("train", "val", "test")[i // 16],
    )
    with pytest.raises(ValueError, match=r"t\.csv, line 18: 'patient' '0.0' is in 'val'.*'train'"):
        load_csv(path, label="y", sensitive="sex", id_column="patient", split="part")
    for i in range(48):
        Image.new("RGB", (4, 4)).save(tmp_path / f"i{i}.png")
    with pytest.raises(ValueError, match=r"t\.csv, line 18: id '0' is in split 'val'.*'train'"):
        load_image_table(
            path,
            label="y",
            sensitive="sex",
            id_column="patient",
            split="part",
            size=4,
            cache_dir=tmp_path / "cache",
        )


def test_codes_of_seven_digits_stay_apart(tmp_path):
    path = write(tmp_path, 80, sex=lambda i: f"{4000011 + i // 2 % 4}")
    for data in read_both(path):
        assert data.group_names == tuple(f"sex={4000011 + k}" for k in range(4))
        np.testing.assert_array_equal(data.group, [i // 2 % 4 for i in range(80)])


def test_codes_of_twenty_digits_stay_apart_and_in_order(tmp_path):
    path = write(tmp_path, 80, sex=lambda i: f"{10**20 - 1 + i // 2 % 2}.0")
    for data in read_both(path):
        assert data.group_names == (f"sex={10**20 - 1}", f"sex={10**20}")


@pytest.mark.parametrize("minus", ["-1", "-1.0", " -1.00 "])
def test_minus_one_is_unknown_to_attributes_however_it_is_written(tmp_path, minus):
    path = write(tmp_path, 60, sex=lambda i: minus if i % 5 == 4 else i // 2 % 2)
    data = read_both(path)[1]
    assert data.group_names == ("sex=0", "sex=1")
    assert any("12 rows with unknown sex" in note for note in data.notes)


def dataset(ids) -> Any:
    """Six rows, two in each split, of which the second and the third may share an id."""
    return Dataset(
        name="six",
        inputs=np.zeros((6, 1), np.float32),
        labels=np.zeros(6, np.int32),
        group=np.zeros(6, np.int32),
        label_names=("a",),
        group_names=("b",),
        splits={s: np.arange(2 * k, 2 * k + 2) for k, s in enumerate(("train", "val", "test"))},
        ids=ids,
    )


@pytest.mark.parametrize("kind", [np.str_, object])
def test_a_dataset_takes_ids_of_text_by_the_same_rule(kind):
    with pytest.raises(ValueError, match="id '7' is in train and val"):
        dataset(np.array(["1", "7", "7.0", "2", "3", "4"], kind))
    exact = [str(10**17 + i) for i in range(6)]
    assert dataset(np.array(exact, kind)).ids.tolist() == exact
    widened = dataset(np.array(["1.e9", "+1.e9", *"abcd"], kind)).ids
    assert widened[:2].tolist() == ["1000000000"] * 2
    spelled = ["007", "8.0", *"abcd"]  # nothing to merge
    assert dataset(np.array(spelled, kind)).ids.tolist() == spelled
    ids = np.array([f"{i // 2}{'.0' * (i % 2)}" for i in range(80)], kind)
    drawn = split_by_id(ids, seeds=(0, 0))
    stratified = stratified_split(np.arange(80) % 2, (0.6, 0.2, 0.2), seed=0, groups=ids)
    for splits in (drawn, stratified):
        assert sum(len({int(row) // 2 for row in rows}) for rows in splits.values()) == 40


def test_a_dataset_refuses_ids_that_floats_have_rounded():
    with pytest.raises(ValueError, match="float64 are too long to be exact"):
        dataset(np.arange(6) + 1e17)
    assert dataset(np.arange(6.0)).ids[5] == 5
    assert dataset(np.arange(6) + 10**17).ids[5] == 10**17 + 5


WORDS = (
    "NA",
    "None",
    "<NA>",
    "#N/A",
    "missing",
    "Missing",
    "Unknown",
    "unk",
    "?",
    "NULL",
    " nan ",
    "",
)


def notes_of(data):
    return "\n".join(data.notes)


@pytest.mark.parametrize("word", WORDS)
def test_a_group_that_is_missing_by_another_word_is_no_group(tmp_path, word):
    path = write(tmp_path, 60, sex=lambda i: word if i % 5 == 4 else "FM"[i // 2 % 2])
    known = [i for i, sex in enumerate(column(path, "sex")) if sex in ("F", "M")]
    table, images = read_both(path)
    assert table.group_names == ("F", "M") and images.group_names == ("female", "male")
    assert len(table.group) == len(known) == 48
    np.testing.assert_array_equal(table.group, [i // 2 % 2 for i in known])
    assert sorted(np.concatenate(list(images.splits.values()))) == known
    assert "Dropped 12 of 60 rows with missing values ('sex' 12)" in notes_of(table)
    assert "12 rows with unknown sex" in notes_of(images)
    if word.casefold() in ("unknown", "unk"):
        assert all(f"'sex': '{word}' (12) read as missing." in notes_of(d) for d in (table, images))


@pytest.mark.parametrize("word", WORDS)
def test_a_label_that_is_missing_by_another_word_is_no_class(tmp_path, word):
    path = write(tmp_path, 60, y=lambda i: word if i % 5 == 4 else f"{i % 2}")
    known = [i % 2 for i, y in enumerate(column(path, "y")) if y in ("0", "1")]
    for data in read_both(path):
        assert data.num_classes == 2 and data.labels.tolist() == known
        assert "Dropped 12 " in notes_of(data)


@pytest.mark.parametrize("word", WORDS)
def test_rows_without_an_id_are_not_one_patient(tmp_path, word):
    path = write(tmp_path, 60, patient=lambda i: word if i == 7 else f"p{i}")
    with pytest.raises(ValueError, match=r"t\.csv, line 9: .*'patient'"):
        load_csv(path, label="y", sensitive="sex", id_column="patient")
    for i in range(60):
        Image.new("RGB", (4, 4)).save(tmp_path / f"i{i}.png")
    with pytest.raises(ValueError, match=r"t\.csv, line 9: .*'patient'"):
        load_image_table(path, label="y", sensitive="sex", id_column="patient", size=4)


def test_a_feature_keeps_the_category_unknown(tmp_path):
    path = write(tmp_path, 60, job=lambda i: ("clerk", "unknown", "None")[i % 3])
    data = load_csv(path, label="y", sensitive="sex", features=("job",))
    assert data.feature_names == ("job=clerk", "job=unknown") and len(data.labels) == 40


FEMALE = (
    "Female",
    "Female",
    "Female",
    "FEMALE",
    "female ",
    "Fe\u200bmale",
    "\ufefffemale",
    "Female.",
)


def test_spellings_of_a_group_are_one_group_named_by_the_most_frequent(tmp_path):
    def sex(i):
        return FEMALE[i // 4 % 8] if i // 2 % 2 else "Male"

    path = write(tmp_path, 128, sex=sex)
    truth = ["f" if "f" in cell.casefold() else "m" for cell in column(path, "sex")]
    assert len(Counter(column(path, "sex"))) == 7 and Counter(truth) == {"f": 64, "m": 64}
    table, images = read_both(path)
    assert table.group_names == ("Female", "Male") and images.group_names == ("female", "male")
    for data in (table, images):
        np.testing.assert_array_equal(data.group, [truth_of == "m" for truth_of in truth])
        note = notes_of(data)
        assert "'FEMALE' (8)" in note and "'Female.' (8)" in note and "read as 'Female'." in note


def test_spellings_of_a_label_are_one_class_and_positive_is_any_of_them(tmp_path):
    yes, no = ("True", "TRUE", "true", "True"), ("FALSE", "False", "FALSE", " false")
    path = write(tmp_path, 64, y=lambda i: (yes if i % 2 else no)[i // 4 % 4])
    truth = [cell.strip().casefold() == "true" for cell in column(path, "y")]
    for positive in ("TRUE", "True", "true", " true.", True):
        for data in read_both(path, positive=positive):
            assert data.label_names == ("FALSE", "True")
            np.testing.assert_array_equal(data.labels, truth)
            assert "'TRUE' (8), 'true' (8) read as 'True'." in notes_of(data)
    with pytest.raises(ValueError, match="never holds positive='yes'; it holds 'FALSE', 'True'"):
        load_csv(path, label="y", sensitive="sex", features=("x",), positive="yes")


def test_classes_of_a_mapping_go_by_any_spelling(tmp_path):
    classes = {"y": {"nv": 0, "MEL": 1}}
    read_both(write(tmp_path, 64))  # for its pictures
    path = write(
        tmp_path, 64, y=lambda i: "mel" if i % 2 else ("NV", "nv ", "Nv", "nv")[i // 4 % 4]
    )
    settings = {"sensitive": "sex", "size": 4, "cache_dir": tmp_path / "cache"}
    data = load_image_table(path, label=classes, **settings)
    assert data.label_names == ("nv", "MEL") and data.labels.tolist() == [0, 1] * 32
    with pytest.raises(ValueError, match="spellings of 'nv' different classes"):
        load_image_table(path, label={"y": {"nv": 0, "NV": 1}}, **settings)


def test_numbers_that_excel_wraps_and_numbers_with_invisible_marks_are_numbers(tmp_path):
    path = write(
        tmp_path, 64, y=lambda i: ("{}", '="{}"', "\u200b{}", "{}.0")[i // 4 % 4].format(i % 2)
    )
    for data in read_both(path):
        assert data.label_names == ("y=0", "y=1") and data.labels.tolist() == [0, 1] * 32
    plain = load_csv(write(tmp_path, 64), label="y", sensitive="sex", features=("x",)).inputs
    wrapped = write(tmp_path, 64, x=lambda i: f'="{i}"')
    data = load_csv(wrapped, label="y", sensitive="sex", features=("x",))
    assert data.feature_names == ("x",)
    np.testing.assert_array_equal(data.inputs, plain)


def test_split_names_are_read_however_they_are_written(tmp_path):
    ways = ("Train", "training", "valid", "validation", "dev", "VAL ", "test", "Testing")
    path = write(tmp_path, 64, part=lambda i: ways[i // 8])
    for data in read_both(path, split="part"):
        assert {s: rows.tolist() for s, rows in data.splits.items()} == {
            "train": list(range(16)),
            "val": list(range(16, 48)),
            "test": list(range(48, 64)),
        }
        assert "Column 'part': 'dev' (8) read as 'val'." in notes_of(data)
        assert "'test' (8)" not in notes_of(data)


def test_a_patient_is_one_in_any_case(tmp_path):
    path = write(
        tmp_path, 80, patient=lambda i: ("P{}", "p{}", "P{} ", "p{}.")[i % 4].format(i // 4)
    )
    for data in read_both(path, id_column="patient"):
        assert partition(data.ids) == [i // 4 * 4 for i in range(80)]
        assert "'p0' (1)" in notes_of(data)


def test_image_tables_take_what_tables_take(tmp_path):
    """Semicolons, an encoding, a word that is a value, words for sexes, and ages that are none."""
    path = write(
        tmp_path,
        64,
        sex=lambda i: ("woman", "Man")[i // 2 % 2],
        place=lambda i: ("NA", "Köln")[i // 4 % 2],
        age=lambda i: 300 if i == 5 else ("34", "90+", "045Y")[i % 3],
    )
    read_both(path)  # for the pictures
    text = path.read_text(encoding="utf-8").replace(",", ";")
    path.write_bytes(text.encode("cp1252"))
    settings: Any = {"label": "y", "size": 4, "cache_dir": tmp_path / "cache", "encoding": "cp1252"}
    data = load_image_table(path, sensitive="place", not_missing=["na"], **settings)
    assert data.group_names == ("Köln", "NA")
    assert data.group.tolist() == [1 - i // 4 % 2 for i in range(64)]
    assert "fields are separated by semicolons" in data.notes[0]
    assert "The positive class (1) of 'y' is 'y=1'." in data.notes
    sexes = load_image_table(path, sensitive="sex", **settings)
    assert sexes.group_names == ("female", "male") and sexes.group.tolist()[:4] == [0, 0, 1, 1]
    with pytest.raises(ValueError, match=r"t\.csv, line 7: column 'age' holds '300', expected"):
        load_image_table(path, sensitive="age", age_cuts=(60,), **settings)
    aged = load_image_table(path, sensitive="age", age_cuts=(60,), on_error="skip", **settings)
    assert sum(map(len, aged.splits.values())) == 63
    rows = np.concatenate(list(aged.splits.values()))
    assert aged.group[rows].tolist() == [int(row % 3 == 1) for row in rows]
    assert any("Skipped 1 ages that are none (the first at" in note for note in aged.notes)


def test_files_keep_their_names(tmp_path):
    """Paths are told apart by case and inner blanks, and a file called 007 is not 7."""
    names = {i: (f"00{i}.png", f"A  {i}.png", f"a  {i}.png")[i % 3] for i in range(60)}
    path = write(tmp_path, 60, image=names.get)
    data = read_both(path, id_column="image")[1]
    assert len(np.unique(data.ids)) == 60


def rewrite(path, change):
    """Changes the rows of a CSV below its header, in place."""
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *(change(i, row) for i, row in enumerate(rows))])


def papila(folder, name_of) -> Any:
    """PAPILA's table of thirty patients as CSVs, with ids by `name_of`."""
    (folder / "ClinicalData").mkdir(exist_ok=True)
    for eye in ("od", "os"):
        lines = [f"{name_of(i)},{40 + i},{i % 2},{i % 5 % 3}" for i in range(30)]
        text = "\n".join(["ID,Age,Gender,Diagnosis", *lines, ""])
        (folder / "ClinicalData" / f"patient_data_{eye}.csv").write_text(text)
        for i in range(30):
            picture(folder / "FundusImages" / f"RET{i:03d}{eye.upper()}.jpg", i)
    return read_named("papila", folder)[1]


def test_papila_reads_patients_without_a_hash_and_names_the_rows_it_cannot_read(tmp_path):
    whole = papila(tmp_path, lambda i: f"#{i:03d}")
    assert len(whole.labels) == 48 and len(whole.notes) == 1
    mixed = papila(tmp_path, lambda i: (f"#{i:03d}", f"{i:03d}", f"{i}", f"{i}.0")[i % 4])
    assert mixed.paths == whole.paths and mixed.notes == whole.notes
    np.testing.assert_array_equal(mixed.labels, whole.labels)
    assert mixed.ids.tolist() == whole.ids.tolist()
    some = papila(tmp_path, lambda i: f"patient {i}" if i % 10 == 3 else f"#{i:03d}")
    assert len(some.labels) == 48 - 6
    assert some.notes[1] == (
        "Dropped 6 rows without a patient's number (patient_data_od.csv, row 5: 'patient 3', "
        "patient_data_od.csv, row 15: 'patient 13', patient_data_od.csv, row 25: 'patient 23', "
        "patient_data_os.csv, row 5: 'patient 3', patient_data_os.csv, row 15: 'patient 13', ...)."
    )


def test_papila_names_unreadable_rows_of_spreadsheets_but_not_their_subtitles(tmp_path):
    make_papila(tmp_path)
    assert len(read_named("papila", tmp_path)[1].notes) == 1
    sheet = [["ID", "Age", "Gender", "Diagnosis"], ["", "", "", "", "d1"]]
    sheet += [[f"#{i:03d}" if i != 5 else "five", 50, i % 2, i % 2] for i in range(30)]
    write_xlsx(tmp_path / "ClinicalData" / "patient_data_od.xlsx", sheet)
    table = read_named("papila", tmp_path)[1]
    assert table.notes[1].endswith("(patient_data_od.xlsx, row 8: 'five').")
    sheet[0][3] = "Outcome"
    write_xlsx(tmp_path / "ClinicalData" / "patient_data_od.xlsx", sheet)
    with pytest.raises(ValueError, match=r"patient_data_od\.xlsx: no row of titles"):
        read_named("papila", tmp_path)


@pytest.mark.parametrize(
    ("make", "name", "file", "column_name"),
    [
        (make_oasis1, "oasis1", "oasis_cross-sectional.csv", "CDR"),
        (make_chexpert, "chexpert", "train.csv", "No Finding"),
    ],
)
def test_text_among_ratings_is_refused_and_not_taken_for_zero(
    tmp_path, make, name, file, column_name
):
    make(tmp_path)
    path = tmp_path / file
    with path.open(newline="") as opened:
        place = next(csv.reader(opened)).index(column_name)
    rewrite(
        path, lambda i, row: [*row[:place], "positive" if i == 8 else row[place], *row[place + 1 :]]
    )
    with pytest.raises(ValueError, match=rf"line 10: column '{column_name}' holds 'positive'"):
        read_named(name, tmp_path)


@pytest.mark.parametrize(
    ("make", "name", "file", "column_name"),
    [
        (make_ham10000, "ham10000", "HAM10000_metadata.csv", "sex"),
        (make_oasis1, "oasis1", "oasis_cross-sectional.csv", "M/F"),
        (make_chexpert, "chexpert", "train.csv", "Sex"),
        (make_isic2019, "isic2019", "ISIC_2019_Training_Metadata.csv", "sex"),
    ],
)
def test_named_sets_read_spellings_and_note_them(tmp_path, make, name, file, column_name):
    make(tmp_path)
    plain: Any = read_named(name, tmp_path)[1]
    with (tmp_path / file).open(newline="") as opened:
        place = next(csv.reader(opened)).index(column_name)

    def respell(i, row):
        sex = row[place]
        return [*row[:place], f" {sex.swapcase()}\u200b" if i % 5 == 0 else sex, *row[place + 1 :]]

    rewrite(tmp_path / file, respell)
    spelled: Any = read_named(name, tmp_path)[1]
    assert plain.paths == spelled.paths and plain.label_names == spelled.label_names
    assert plain.attributes["sex"].values == spelled.attributes["sex"].values
    np.testing.assert_array_equal(plain.attributes["sex"].codes, spelled.attributes["sex"].codes)
    notes = " ".join(spelled.notes)
    assert f"Column '{column_name}': " in notes and " read as " in notes
