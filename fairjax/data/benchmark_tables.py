"""The Adult and COMPAS benchmarks as `Dataset`."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from fairjax.data.csvfile import Column, Table, number, read_csv
from fairjax.data.dataset import Dataset
from fairjax.data.rawtable import short_errors
from fairjax.data.tables import Ratios, assign_roles, to_dataset


def load_adult(
    sensitive: str | Sequence[str] = "sex",
    *,
    split: Ratios = (0.6, 0.2, 0.2),
    seed: int = 0,
    sensitive_as_feature: bool = True,
    allow_small_groups: bool = False,
) -> Dataset:
    """UCI Adult (Census Income), carried in the package: who earns more than 50,000 dollars?

    45,222 rows without missing values; 6 standardised numbers and 98 one-hot categories as
    features, whatever the split. Class 1 is ">50K".
    Groups are in alphabetical order: by sex 0 Female, 1 Male; by race 0 Amer-Indian-Eskimo,
    1 Asian-Pac-Islander, 2 Black, 3 Other, 4 White.

    Args:
      sensitive: "sex", "race", another column, or several for their intersections.
      split: shares of train, val and test, stratified on (label, group).
      seed: of the split.
      sensitive_as_feature: whether the sensitive columns are features too.
      allow_small_groups: as in `load_csv`; needed for "native-country".

    Returns:
      A `Dataset` named "adult".

    Raises:
      ValueError: no such column, or ratios that do not sum to 1.

    Source: Becker and Kohavi 1996, https://doi.org/10.24432/C5XW20, CC BY 4.0; see adult.md. The
    split is not UCI's: its train and test files are joined and dealt anew.

    >>> data = load_adult("sex")
    >>> data.inputs.shape, data.group_names, len(data.splits["train"])
    ((45222, 104), ('Female', 'Male'), 27133)
    """
    with np.load(Path(__file__).with_name("adult.npz"), allow_pickle=False) as arrays:
        names = [name for name in arrays.files if not name.endswith("_values")]
        columns = {}
        for name in names:
            if f"{name}_values" in arrays.files:
                values, codes = arrays[f"{name}_values"].tolist(), arrays[name]
            else:
                values, codes = np.unique(arrays[name], return_inverse=True)
            columns[name] = Column(tuple(map(str, values)), codes.astype(np.int32))
    num_rows = len(columns["salary"].codes)
    table = Table(
        files=("adult",),
        columns=columns,
        file_of_row=np.zeros(num_rows, np.int32),
        line_of_row=np.arange(1, num_rows + 1, dtype=np.int32),
    )
    roles = assign_roles(table, "salary", sensitive, None, None, split, sensitive_as_feature)
    table.require(roles.used)
    return to_dataset(
        table,
        roles,
        name="adult",
        positive=">50K",
        split=split,
        seed=seed,
        allow_small_groups=allow_small_groups,
        fixed_categories=True,
    )


@short_errors()
def load_compas(
    path: str | Path,
    *,
    sensitive: str | Sequence[str] = "sex",
    split: Ratios = (0.6, 0.2, 0.2),
    seed: int = 0,
    allow_small_groups: bool = False,
) -> Dataset:
    """COMPAS, from ProPublica's `compas-scores-two-years.csv`: who reoffends within two years?

    Keeps the rows that ProPublica's analysis keeps (screened within 30 days of the arrest, a known
    outcome, no ordinary traffic offence, a score) of African-American and Caucasian defendants:
    5,278 of the published file. Features are age_cat, c_charge_degree, race, sex and priors_count.
    Class 1 is "two_year_recid=1", the unfavourable outcome.

    Args:
      path: the file, 53 columns as published.
      sensitive: "sex" (0 Female, 1 Male), "race" (0 African-American, 1 Caucasian), or both.
      split: shares of train, val and test, stratified on (label, group).
      seed: of the split.
      allow_small_groups: as in `load_csv`.

    Returns:
      A `Dataset` named "compas".

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file lacks a column, or no row passes.

    Source: Larson et al., ProPublica 2016 (filters); Zafar et al., WWW 2017 (races and features).
    """
    # The published file repeats decile_score and priors_count; the first of each is meant.
    table = dataclasses.replace(read_csv(path), ambiguous=frozenset())
    features = ("age_cat", "c_charge_degree", "race", "sex", "priors_count")
    roles = assign_roles(table, "two_year_recid", sensitive, features, None, split, True)
    filters: dict[str, Callable[[str], bool]] = {
        "days_b_screening_arrest": lambda cell: (
            (days := number(cell)) is not None and abs(days) <= 30
        ),
        "is_recid": lambda cell: number(cell) != -1,
        "c_charge_degree": lambda cell: cell != "O",
        "score_text": lambda cell: True,  # "N/A" counts as missing
        "race": lambda cell: cell in ("African-American", "Caucasian"),
    }
    table.require((*roles.used, *filters))
    keep = np.ones(len(table), bool)
    for name, accepts in filters.items():
        values, codes = table.columns[name]
        keep &= np.array([*map(accepts, values), False])[codes]
    if not keep.any():
        raise ValueError(f"{path}: none of {len(table)} rows passes ProPublica's filters")
    note = f"ProPublica's filters keep {keep.sum()} of {len(table)} rows."
    table = table.select(roles.used).take(np.flatnonzero(keep))
    data = to_dataset(
        table,
        roles,
        name="compas",
        split=split,
        seed=seed,
        allow_small_groups=allow_small_groups,
    )
    return dataclasses.replace(data, notes=(note, *data.notes))
