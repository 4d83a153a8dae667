"""Named sets as people have them: other suffixes, places, encodings, absent and odd rows."""

import re
from typing import Any

import pytest
from raw_sets import (
    PEOPLE,
    make_chexpert,
    make_fitzpatrick,
    make_ham10000,
    make_isic2019,
    make_oasis1,
    make_papila,
    make_utkface,
    picture,
    rows,
)

from experiments.data import Data, load_data
from fairjax.data.named import load_named, read_named


def table(name, folder, **options) -> Any:
    return read_named(name, folder, **options)[1]


def renamed(folder, pattern, suffix):
    """Files of another suffix; a `.tab` is cut at tabs."""
    for path in list(folder.rglob(pattern)):
        if suffix == ".tab":
            path.write_text(path.read_text().replace(",", "\t"))
        path.rename(path.with_suffix(suffix))


def moved(folder, below):
    """The folder below one more that holds nothing else."""
    (folder / below).rename(folder / "aside")
    (folder / below).mkdir()
    (folder / "aside").rename(folder / below / below)


@pytest.mark.parametrize(
    ("make", "name", "change"),
    [
        (make_ham10000, "ham10000", lambda folder: renamed(folder, "*.jpg", ".JPG")),
        (make_ham10000, "ham10000", lambda folder: renamed(folder, "*.csv", ".tab")),
        (make_ham10000, "ham10000", lambda folder: moved(folder, "HAM10000_images_part_1")),
        (make_ham10000, "ham10000", lambda folder: renamed(folder, "*.csv", ".CSV")),
        (make_isic2019, "isic2019", lambda folder: moved(folder, "ISIC_2019_Training_Input")),
        (make_oasis1, "oasis1", lambda folder: renamed(folder, "*.gif", ".GIF")),
        (make_papila, "papila", lambda folder: renamed(folder, "*.xlsx", ".XLSX")),
        (make_papila, "papila", lambda folder: moved(folder, "FundusImages")),
        (make_chexpert, "chexpert", lambda folder: renamed(folder, "*.jpg", ".JPG")),
        (make_fitzpatrick, "fitzpatrick17k", lambda folder: renamed(folder, "*.jpg", ".jpeg")),
        (make_utkface, "utkface", lambda folder: renamed(folder, "*.jpg", ".JPG")),
    ],
)
def test_files_of_another_suffix_or_one_folder_deeper_are_found(make, name, change, tmp_path):
    make(tmp_path / "set")
    plain = table(name, tmp_path / "set")
    change(tmp_path / "set")
    for folder in (tmp_path / "set", tmp_path):  # and the whole set one folder deeper
        changed = table(name, folder)
        assert changed.labels.tolist() == plain.labels.tolist()
        assert all(path.is_file() for path in changed.paths)
        assert [path.stem for path in changed.paths] == [path.stem for path in plain.paths]
    found_anywhere = name == "utkface"
    assert found_anywhere or changed.notes[0] == "The files lie one folder deeper, in set."


@pytest.mark.parametrize("load", ["library", "command"])
def test_a_table_of_another_encoding_is_read_when_it_is_named(load, tmp_path):
    make_ham10000(tmp_path)
    path = tmp_path / "HAM10000_metadata.csv"
    path.write_bytes(path.read_text().replace(",back,", ",R\u00fccken,").encode("cp1252"))
    with pytest.raises(ValueError, match=r"line 2: byte 0xfc is not UTF-8.*--data.encoding"):
        read_named("ham10000", tmp_path)
    options: Any = {"encoding": "cp1252", "cache_dir": tmp_path, "allow_small_groups": True}
    if load == "library":
        data = load_named("ham10000", tmp_path, size=8, **options)
    else:
        data = load_data(Data("ham10000", tmp_path, **options), image_size=8)
    assert len(data.labels) == 2 * PEOPLE - 2


def test_absent_images_are_skipped_and_counted(tmp_path):
    make_fitzpatrick(tmp_path)
    for i in (10, 20, 30):
        (tmp_path / "images" / f"hash{i}.jpg").unlink()
    options: Any = {"size": 8, "cache_dir": tmp_path / "cache", "allow_small_groups": True}
    with pytest.raises(FileNotFoundError, match=r"3 missing in all\); on_error=.skip. goes on"):
        load_named("fitzpatrick17k", tmp_path, **options)
    data = load_named("fitzpatrick17k", tmp_path, on_error="skip", **options)
    assert "3 of 57 images are absent or not readable." in data.notes
    assert sum(map(len, data.splits.values())) == 54


def edit(path, pattern, text, count=1):
    path.write_text(re.sub(pattern, text, path.read_text(), count=count))


def test_what_a_pattern_does_not_match_is_counted_and_named(tmp_path):
    make_fitzpatrick(tmp_path / "skin")
    edit(tmp_path / "skin" / "fitzpatrick17k.csv", r"hash08,\d", "hash08,III")
    notes = table("fitzpatrick17k", tmp_path / "skin").notes
    assert "Dropped 4 of 60 rows: skin type unknown, '-1' (3), 'III' (1)." in notes
    make_oasis1(tmp_path / "brain")
    edit(tmp_path / "brain" / "oasis_cross-sectional.csv", r"_0010_MR1,.", "_0010_MR1,woman")
    found = table("oasis1", tmp_path / "brain")
    assert "Column 'M/F': 'woman' (1) read as unknown; known are 'F', 'M'." in found.notes
    assert (found.attributes["sex"].codes < 0).sum() == 1
    make_utkface(tmp_path / "faces")
    picture(tmp_path / "faces" / "someone.jpg")
    first = table("utkface", tmp_path / "faces").notes[0]
    assert first.startswith("Dropped 2 files whose names lack age, gender or race: ")
    assert "'someone.jpg'" in first
    make_isic2019(tmp_path / "isic")
    with (tmp_path / "isic" / "ISIC_2019_Training_Metadata.csv").open("a") as file:
        file.write("ISIC_other,50,back,L0,male\n")
    notes = table("isic2019", tmp_path / "isic").notes
    assert "1 rows of metadata are of no image of the truth." in notes


def test_papila_without_any_readable_patient_says_so(tmp_path):
    make_papila(tmp_path)
    for eye in ("od", "os"):
        (tmp_path / "ClinicalData" / f"patient_data_{eye}.xlsx").unlink()
        lines = [(f"P-{i}", 40, 0, 1) for i in range(4)]
        rows(
            tmp_path / "ClinicalData" / f"patient_data_{eye}.csv", "ID,Age,Gender,Diagnosis", lines
        )
    with pytest.raises(ValueError, match=r"no eye is left. Dropped 8 rows without a patient's num"):
        read_named("papila", tmp_path)


@pytest.mark.parametrize(
    ("make", "name", "file", "pattern", "text", "place"),
    [
        (make_ham10000, "ham10000", "HAM10000_metadata.csv", ",akiec,", ",wart,", "line 5: column"),
        (make_ham10000, "ham10000", "HAM10000_metadata.csv", ",28.0,", ",old,", "line 10: column"),
        (make_ham10000, "ham10000", "HAM10000_metadata.csv", "ISIC_4", "../x", "line 6: image"),
        (make_ham10000, "ham10000", "HAM10000_metadata.csv", "lesion_id", "id", "no column"),
        (make_ham10000, "ham10000", "HAM10000_metadata.csv", "HAM_2,", "HAM_2,,", "line 6: "),
        (make_chexpert, "chexpert", "train.csv", "patient00003", "x" * 900, "line 8: "),
    ],
)
def test_errors_are_short_and_name_the_file_and_the_row(
    make, name, file, pattern, text, place, tmp_path
):
    make(tmp_path)
    edit(tmp_path / file, pattern, text)
    with pytest.raises(ValueError) as caught:
        read_named(name, tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / file}") and place in message, message
    assert len(message.replace(str(tmp_path), "")) <= 300 and "\n" not in message
