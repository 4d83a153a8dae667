"""The published COMPAS table through `csv`: every error says the option that mends it."""

import re
import shlex

import numpy as np
import pandas as pd
import pytest
import tyro
from test_table_benchmarks import COMPAS_HEADER

from experiments.data import Data, load_data


def raw_rows(count=240):
    """Rows as in the published file: names, dates, times, empty columns, free text."""
    draw = np.random.default_rng(0)
    for i in range(count):
        day = f"201{3 + i % 2}-0{1 + i % 9}-{10 + i % 19}"
        values = {
            "id": i + 1,
            "name": f"first{i} last{i}",
            "first": f"first{i}",
            "last": f"last{i}",
            "compas_screening_date": day,
            "sex": ("Male", "Female")[i % 2],
            "dob": f"19{60 + i % 39}-0{1 + i % 9}-11",
            "age": 18 + int(draw.integers(50)),
            "age_cat": ("25 - 45", "Less than 25", "Greater than 45")[i % 3],
            "race": ("African-American", "Caucasian", "Hispanic")[i // 2 % 3],
            **dict.fromkeys(("juv_fel_count", "juv_misd_count", "juv_other_count"), i % 4),
            **dict.fromkeys(("decile_score", "v_decile_score"), 1 + i % 10),
            "priors_count": int(draw.integers(0, 30)),
            "days_b_screening_arrest": int(draw.integers(-30, 31)),
            **dict.fromkeys(("c_jail_in", "c_jail_out"), f"{day} 06:03:42"),
            "c_case_number": f"13{i:06d}CF10A",
            **dict.fromkeys(("c_offense_date", "screening_date", "v_screening_date"), day),
            **dict.fromkeys(("in_custody", "out_custody", "c_arrest_date"), day),
            "r_case_number": f"14{i:06d}MM10A" if i % 2 else "",
            **dict.fromkeys(("r_offense_date", "r_jail_in", "r_jail_out"), day if i % 2 else ""),
            "c_charge_degree": ("F", "M")[i // 3 % 2],
            "c_charge_desc": ("Battery", 'Theft, "petit"')[i // 5 % 2],
            "r_charge_degree": ("(F3)", "", "(M1)")[i % 3],
            "score_text": ("Low", "Medium", "High")[i % 3],
            "two_year_recid": int(draw.integers(2)),
        }
        yield [values.get(name, "") for name in COMPAS_HEADER]


def arguments(path, *more):
    words = ("--source", "csv", "--csv", str(path), "--label", "two_year_recid", *more)
    return tyro.cli(Data, args=words, prog="x", use_underscores=False)


def test_raw_compas_runs_through_csv_by_following_the_advice(tmp_path):
    path = tmp_path / "compas-scores-two-years.csv"
    pd.DataFrame(raw_rows(), columns=COMPAS_HEADER).to_csv(path, index=False)
    with pytest.raises(ValueError, match=r"column 'name' holds 240 .*--data.drop") as error:
        load_data(arguments(path, "--missing", "impute"))
    advised = re.search(r"--data(\.drop [^)]*)\)", str(error.value))
    assert advised is not None
    flags = shlex.split(f"--{advised[1][1:]}")
    assert {"name", "first", "last", "dob", "c_jail_in", "c_case_number"} < set(flags)
    data = load_data(arguments(path, "--missing", "impute", *flags))
    frame = pd.read_csv(path)
    assert data.labels.tolist() == frame["two_year_recid"].tolist()
    assert [data.group_names[g] for g in data.group] == frame["sex"].tolist()
    inputs = {name.split("=")[0] for name in data.feature_names}
    assert {"age", "race", "sex", "priors_count", "c_charge_desc"} <= inputs
    assert not inputs & {*flags, "id", "violent_recid"}
    notes = " ".join(data.notes)
    assert "Column 'id' holds a whole number of its own in every row" in notes
    assert "'violent_recid'" in notes and "are empty and left out of the features." in notes
