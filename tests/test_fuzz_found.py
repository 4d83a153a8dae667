"""What was read wrongly without a word, or refused without a name; each found by odd files."""

import numpy as np
import openpyxl
import pytest
from openpyxl.chart import BarChart
from PIL import Image

from fairjax.audit import read_predictions
from fairjax.data import load_csv, load_image_table, stratified_split
from fairjax.metrics import fairness_metrics, undefined

ROWS = range(48)


def table(folder, header, row):
    path = folder / "t.csv"
    path.write_text("\n".join([header, *(row(i) for i in ROWS)]) + "\n")
    return path


def load(path, **options):
    return load_csv(path, label="y", sensitive="g", **options)


def test_codes_that_differ_in_leading_zeros_are_merged_with_a_note(tmp_path):
    row = lambda i: f"{i % 7},{('01', '1', '2')[i % 3]},{i // 2 % 2},{('01234', '1234')[i % 2]}"
    path = table(tmp_path, "x,g,y,zip", row)
    notes = load(path, categorical=("zip",)).notes
    assert "Column 'g': '01' (16) read as '1'." in notes
    assert "Column 'zip': '01234' (24) read as '1234'." in notes
    alike = table(tmp_path, "x,g,y", lambda i: f"{i % 7},0{1 + i % 2},{i // 2 % 2}")
    assert not any("read as" in note for note in load(alike).notes)


def pictures(folder, row):
    for i in ROWS:
        Image.new("RGB", (9, 9), (5 * i, 0, 0)).save(folder / f"{i}.png")
    return table(folder, "image,sex,y,part", row)


def test_rows_that_name_one_image_stay_together_and_are_noted(tmp_path):
    path = pictures(tmp_path, lambda i: f"{i // 2 * 2}.png,{'MF'[i // 2 % 2]},{i % 2},x")
    options = {"label": "y", "sensitive": "sex", "size": 8, "cache_dir": tmp_path / "c"}
    data = load_image_table(path, **options)
    said = f"24 images are named by several rows ({path}, line 2 and {path}, line 3)"
    assert f"{said}, 24 of them with different labels." in data.notes
    owners = [set((rows // 2).tolist()) for rows in data.splits.values()]
    assert sum(map(len, owners)) == len(set.union(*owners)) == 24


def test_an_image_in_two_given_splits_is_noted(tmp_path):
    parts = ("train", "train", "train", "train", "val", "val", "test", "test")
    row = lambda i: f"{i % 47}.png,{'MF'[i % 2]},{i // 2 % 2},{parts[i // 6]}"
    options = {"label": "y", "sensitive": "sex", "size": 8, "cache_dir": tmp_path / "c"}
    path = pictures(tmp_path, row)
    notes = load_image_table(path, split="part", **options).notes
    said = f"1 images are named by several rows ({path}, line 2 and {path}, line 49)"
    assert f"{said}, 1 of them with different labels, 1 of them in several splits." in notes


@pytest.mark.parametrize("seed", [-1, 1.5, None, True])
def test_a_seed_that_is_none_is_refused_by_name(seed, tmp_path):
    path = table(tmp_path, "x,g,y", lambda i: f"{i % 7},{'ab'[i % 2]},{i // 2 % 2}")
    with pytest.raises(ValueError, match="seed must be a whole number of at least 0, got"):
        load(path, seed=seed)
    with pytest.raises(ValueError, match="^seed must be"):
        stratified_split(np.zeros(40, int), (0.5, 0.25, 0.25), seed=seed)


@pytest.mark.parametrize("suffix", [".xls", ".ods", ".parquet", ".dta"])
def test_files_of_other_programs_are_refused_with_what_to_save(suffix, tmp_path):
    path = tmp_path / f"t{suffix}"
    with pytest.raises(FileNotFoundError, match="no such file"):
        load(path)
    path.write_bytes(b"PAR1\0rubbish")
    with pytest.raises(ValueError, match="this kind of file is not read; save it as .csv or .xlsx"):
        load(path)


def test_the_sheet_that_is_read_is_named_although_a_chart_comes_first(tmp_path):
    book = openpyxl.Workbook()
    for row in [("x", "g", "y"), *((i % 7, "ab"[i % 2], i // 2 % 2) for i in ROWS)]:
        book.worksheets[0].append(row)
    book.create_chartsheet("Chart", 0).add_chart(BarChart())
    book.save(tmp_path / "t.xlsx")
    assert load(tmp_path / "t.xlsx").notes[0] == "t.xlsx: sheet 'Sheet' of 2 is read."


@pytest.mark.parametrize("cell", ["0.1_1", "50%", "0,5", "1e99999"])
def test_scores_that_are_no_plain_numbers_are_refused(cell, tmp_path):
    row = lambda i: f'{i // 2 % 2},{"ab"[i % 2]},"{cell if i == 9 else i / 48}"'
    path = table(tmp_path, "y,g,p", row)
    with pytest.raises(ValueError, match="p must hold numbers such as 0.25, got '"):
        read_predictions(path, label="y", sensitive=("g",), score="p")


def test_a_column_of_predictions_is_not_audited_against_itself(tmp_path):
    path = table(tmp_path, "y,g,p", lambda i: f"{i // 2 % 2},{'ab'[i % 2]},{i / 48}")
    for score, sensitive in (("y", ("g",)), ("p", ("g", "g")), ("p", ("y",))):
        with pytest.raises(ValueError, match="must be different columns, got 'y', "):
            read_predictions(path, label="y", sensitive=sensitive, score=score)


def test_the_first_row_without_a_prediction_is_named(tmp_path):
    logits = np.array([[0.0, 2.0], [2.0, 0.0], [np.nan, 1.0], [np.inf, 1.0]], np.float32)
    ids = {"labels": np.array([1, 0, 0, 1]), "group": np.array([0, 0, 1, 1]), "num_groups": 2}
    metrics = fairness_metrics(logits, **ids)
    assert metrics["first_diverged"].tolist() == [-1, 2]
    said = "the logits of 2 of 'b' (first: row 2) hold nan, inf or only -inf"
    assert undefined(metrics, ["a", "b"])[0] == f"accuracy undefined: {said}"
    padded = fairness_metrics(logits, **ids, weights=np.array([1, 1, 0, 1]))
    assert padded["first_diverged"].tolist() == [-1, 3]
