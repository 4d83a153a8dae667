"""Adult and COMPAS are the published tables, and a table of their size loads whole."""

import numpy as np
import pytest
from csv_rows import write
from sklearn.model_selection import train_test_split

from fairjax.data import SPLITS, load_adult, load_compas, load_csv, make_adult


@pytest.fixture
def table(tmp_path):
    return write(tmp_path / "table.csv")


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
