"""Tables as `Dataset`: any CSV, and the Adult and COMPAS benchmarks."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from fairjax.data.columns import (
    categories,
    drop_missing,
    merge_spellings,
    note_classes,
    read_groups,
    read_labels,
    read_splits,
    rows_of_splits,
    tidy,
)
from fairjax.data.csvfile import Table, join, read_tables, set_name, show
from fairjax.data.dataset import SPLITS, Dataset
from fairjax.data.encoding import Encoder
from fairjax.data.features import (
    check_features,
    default_features,
    fit_feature,
    note_perfect,
    unknown_numbers,
)
from fairjax.data.rawtable import short_errors
from fairjax.data.splits import complete_splits, stratified_split

Ratios = tuple[float, float, float]


@short_errors()
def load_csv(
    path: str | Path | Mapping[str, str | Path],
    *,
    label: str,
    sensitive: str | Sequence[str],
    features: Sequence[str] | None = None,
    positive: str | int | None = None,
    split: Ratios | str = (0.6, 0.2, 0.2),
    id_column: str | None = None,
    missing: Literal["drop", "impute"] = "drop",
    seed: int = 0,
    sensitive_as_feature: bool = True,
    categorical: Sequence[str] = (),
    drop: Sequence[str] = (),
    not_missing: Sequence[str] = (),
    encoding: str | None = None,
    allow_small_groups: bool = False,
) -> Dataset:
    """Reads a labelled table with a sensitive group.

    Numbers are standardised by the mean and standard deviation of train; text becomes one-hot over
    the values of train, all zero for a value that train lacks. Numbers with a decimal comma, commas
    between thousands or percent signs are read as numbers, by one rule for the column, with a note;
    what only looks like numbers (money, dates, units) and texts that differ in nearly every row are
    refused by name.

    Empty cells and the words `?`, `NA`, `N/A`, `#N/A`, `#NA`, `<NA>`, `NaN`, `null`, `None` and
    `missing` in any case (`fairjax.data.values.MISSING`) are missing; in labels, groups and ids so
    are `unknown`, `unk` and `not known` (`UNKNOWN`), which a feature of texts keeps as a category;
    `not_missing` takes words off these lists, for a region called NA. Rows without label or group
    are dropped. All that is dropped, filled, unseen or read as missing is counted in `notes`.

    Labels, groups, ids and categories that differ only in case, blanks, invisible characters, a
    closing stop or the way a number is written are one value, named by its most frequent spelling,
    with a note.

    Args:
      path: one CSV (also `.gz` or `.zip`), or a mapping with the files "train", "val" and "test".
      label: the column to predict. Classes are ordered as numbers or alphabetically.
      sensitive: the column of the group, or several, whose intersections read "Female & Black".
        Values that are numbers are named `column=value`.
      features: the input columns; by default all but label, id, split, those of `drop`, columns
        without a value, and whole numbers that differ in every row (a row number, a record id).
      positive: the label value that becomes class 1, in any spelling, all others class 0. Needed
        when the label is two texts or two numbers other than 0/1 and -1/1, where nothing says which
        outcome is meant.
      split: shares of train, val and test for one file, drawn by `seed` and stratified on
        (label, group); or the name of a column that holds "train", "val" and "test"
        (or "training", "valid", "validation", "dev", "testing", in any case, with a note).
      id_column: whose rows must stay together (a patient's). Drawn splits keep them together;
        given splits are checked.
      missing: "drop" rows with a missing feature, or "impute" the median or most frequent value
        of train.
      seed: of a drawn split.
      sensitive_as_feature: whether the default `features` include the sensitive columns.
      categorical: columns of numbers (codes), or of numbers mixed with text, to read as text; and
        columns that would be refused as features, if they are categories after all.
      drop: columns that are no features.
      not_missing: words that are values in this table ("NA" for Namibia), in any spelling.
      encoding: of the characters, as Python names it ("cp1252" for old Windows files); by default
        UTF-8, or UTF-16 by its mark.
      allow_small_groups: note, rather than refuse, a group that a split has no rows of or rows of
        one class only. Metrics then have undefined rates.

    Returns:
      A `Dataset` named after the file, or after the folder of three; rows in file order (train,
      val, test for three files).

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: anything in the file or the arguments that does not fit; the message gives file,
        line, column, what was found and what is accepted.
    """
    tables = read_tables(path, encoding=encoding, not_missing=not_missing)
    if len(tables) > 1 and isinstance(split, str):
        raise ValueError(f"give three files or the split column {split!r}, not both")
    return assemble(
        tables,
        set_name([table.files[0] for table in tables]),
        splits=SPLITS if isinstance(path, Mapping) else None,
        label=label,
        sensitive=sensitive,
        features=features,
        positive=positive,
        split=split,
        id_column=id_column,
        missing=missing,
        seed=seed,
        sensitive_as_feature=sensitive_as_feature,
        categorical=categorical,
        drop=drop,
        allow_small_groups=allow_small_groups,
    )


def assemble(
    tables: Sequence[Table],
    name: str,
    *,
    splits: Sequence[str] | None,
    label: str,
    sensitive: str | Sequence[str],
    features: Sequence[str] | None,
    positive: str | int | None,
    split: Ratios | str,
    id_column: str | None,
    missing: str,
    seed: int,
    sensitive_as_feature: bool,
    categorical: Sequence[str],
    drop: Sequence[str],
    allow_small_groups: bool,
) -> Dataset:
    """Tables as a set, each one of the `splits` where they are named; arguments as in `load_csv`.

    Splits that are not among the named ones are cut out of train, in the shares of `split`.
    """
    roles = assign_roles(
        tables[0], label, sensitive, features, id_column, split, sensitive_as_feature, drop
    )
    for table in tables:
        table.require((*roles.used, *categorical))
    table = join([table.select(roles.used) for table in tables])
    left_out = []
    if features is None:
        kept, left_out = default_features(table, roles.features, categorical)
        if not kept:
            raise ValueError(f"{table.files[0]}: no feature columns are left. {' '.join(left_out)}")
        roles = roles._replace(features=kept)
    given = np.array([SPLITS.index(each) for each in splits or ()], np.int32)
    data = to_dataset(
        table,
        roles,
        name=name,
        positive=positive,
        split=split if splits is None else given[table.file_of_row],
        shares=None if isinstance(split, str) or splits in (None, SPLITS) else split,
        missing=missing,
        seed=seed,
        categorical=categorical,
        allow_small_groups=allow_small_groups,
    )
    return dataclasses.replace(data, notes=(*data.notes, *left_out))


class Roles(NamedTuple):
    """Which column is what."""

    label: str
    sensitive: tuple[str, ...]
    features: tuple[str, ...]
    id_column: str | None
    split_column: str | None

    @property
    def used(self) -> tuple[str, ...]:
        """All columns that are read, each once."""
        others = [name for name in (self.id_column, self.split_column) if name is not None]
        return tuple(dict.fromkeys((self.label, *self.sensitive, *others, *self.features)))


def assign_roles(
    table, label, sensitive, features, id_column, split, sensitive_as_feature, drop=()
) -> Roles:
    """Checks that no column has two roles that exclude each other."""
    sensitive = (sensitive,) if isinstance(sensitive, str) else tuple(sensitive)
    if not sensitive:
        raise ValueError("sensitive must name at least one column")
    split_column = split if isinstance(split, str) else None
    reserved = [name for name in (label, id_column, split_column) if name is not None]
    if features is None:
        left_out = {*reserved, *drop, *(() if sensitive_as_feature else sensitive)}
        features = tuple(name for name in table.columns if name not in left_out)
    known = table.columns.keys() | table.ambiguous
    for role, names in (("sensitive", sensitive), ("features", tuple(features)), ("drop", drop)):
        for name in names:
            if role == "drop" and name not in known:
                table.require([name])
            if role == "drop" and name in features:
                raise ValueError(f"column {show(name)} cannot be in both features and drop")
            if names.count(name) > 1:
                raise ValueError(f"{role} names column {show(name)} twice")
            if name in reserved:
                raise ValueError(
                    f"column {show(name)} cannot be in {role}: it is the label, id or split column"
                )
    if len(set(reserved)) < len(reserved):
        raise ValueError(f"label, id and split must be different columns, got {reserved}")
    if not features:
        raise ValueError(f"{table.files[0]}: no feature columns are left")
    return Roles(label, sensitive, tuple(features), id_column, split_column)


def to_dataset(
    table: Table,
    roles: Roles,
    *,
    name: str,
    split: Ratios | str | np.ndarray,
    seed: int,
    positive: str | int | None = None,
    missing: str = "drop",
    categorical: Sequence[str] = (),
    allow_small_groups: bool = False,
    fixed_categories: bool = False,
    shares: Ratios | None = None,
) -> Dataset:
    """Turns columns into arrays; `split` may also be the split number of every row.

    Splits that then have no row are cut out of train where there are `shares` for them.
    """
    if missing not in ("drop", "impute"):
        raise ValueError(f'missing must be "drop" or "impute", got {missing!r}')
    needed = (roles.label, *roles.sensitive, *(roles.features if missing == "drop" else ()))
    table, merged = tidy(table, (roles.label, *roles.sensitive))
    others = [name for name in roles.features if name not in roles.sensitive]
    table, unknown = unknown_numbers(table, others, categorical)
    table, rows, notes = drop_missing(table, tuple(dict.fromkeys(needed)))
    notes = [*table.notes, *merged, *unknown, *notes]
    labels, label_names = read_labels(table, roles.label, positive)
    group, group_names = read_groups(table, roles.sensitive)
    strata = labels * len(group_names) + group
    splits, said = _split_rows(table, roles, split, rows, strata, seed, shares)
    notes += said
    if roles.id_column is not None:
        notes += tidy(table, (roles.id_column,))[1]
        _check_ids(table, roles.id_column, splits)
    check_features(table, roles.features, categorical)
    columns, blocks = [], []
    for feature in roles.features:
        column, read = fit_feature(
            table,
            feature,
            splits["train"],
            categorical=feature in categorical,
            fixed_categories=fixed_categories,
            impute=missing == "impute" and feature not in roles.sensitive,
            unknown=feature in roles.sensitive,
        )
        block, encoded = column.encode(table.columns[feature], table.where)
        columns.append(column)
        blocks.append(block)
        notes += [*read, *encoded]
    encoder = Encoder(tuple(columns), tuple(sorted(table.kept)))
    notes.append(note_classes(roles.label, label_names))
    notes += _note_sensitive(roles)
    notes += note_perfect(table, roles.features, labels, roles.label)
    data = Dataset(
        name=name,
        inputs=np.concatenate(blocks, axis=1),
        labels=labels,
        group=group,
        label_names=label_names,
        group_names=group_names,
        splits=splits,
        feature_names=encoder.input_names,
        ids=None if roles.id_column is None else _read_ids(table, roles.id_column),
        fixed_test=isinstance(split, str)
        or (isinstance(split, np.ndarray) and SPLITS.index("test") in split),
        encoder=encoder,
    )
    notes += _check_cells(data, table.files[0], allow_small_groups)
    return dataclasses.replace(data, notes=tuple(notes))


def _note_sensitive(roles: Roles) -> list[str]:
    """Which sensitive columns the network sees, and which it does not."""
    seen = [show(name) for name in roles.sensitive if name in roles.features]
    unseen = [show(name) for name in roles.sensitive if name not in roles.features]
    notes = []
    for names, verdict in ((seen, "among the features"), (unseen, "not among the features")):
        if names:
            kind = "column is" if len(names) == 1 else "columns are"
            notes.append(f"Sensitive {kind} {verdict}: {', '.join(names)}.")
    return notes


def _split_rows(
    table: Table,
    roles: Roles,
    split: Ratios | str | np.ndarray,
    kept: np.ndarray,
    strata: np.ndarray,
    seed: int,
    shares: Ratios | None,
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The rows of each split, given or drawn with the rows of an id together, and notes."""
    if isinstance(split, str):
        return read_splits(table, split)
    ids = None if roles.id_column is None else _read_ids(table, roles.id_column)
    try:
        if isinstance(split, np.ndarray):
            splits = rows_of_splits(split[kept])
            if shares is None:
                return splits, []
            given = {name: splits[name] for s, name in enumerate(SPLITS) if s in split}
            return complete_splits(given, strata, shares, seed=seed, groups=ids)
        splits = stratified_split(strata, split, seed=seed, groups=ids)
    except ValueError as error:
        raise ValueError(f"{table.files[0]}: {error}") from None
    ratios = "/".join(f"{ratio:g}" for ratio in split)
    whole = "" if roles.id_column is None else f", every {show(roles.id_column)} kept whole"
    return splits, [f"Split {ratios} drawn with seed {seed}, stratified on (label, group){whole}."]


def _read_ids(table, name) -> np.ndarray:
    """One number per distinct id; "7" and "7.0" are the same, see `canonical`."""
    ids = categories(merge_spellings(table.columns[name], table.kept)[0]).codes
    if (ids < 0).any():
        row = int(np.flatnonzero(ids < 0)[0])
        raise ValueError(f"{table.where(row)}: id column {show(name)} holds nothing")
    return ids


def _check_ids(table, name, splits) -> None:
    """Raises ValueError if an id occurs in two splits."""
    ids = _read_ids(table, name)
    first_row: dict[int, tuple[str, int]] = {}
    for split, rows in splits.items():
        distinct, first = np.unique(ids[rows], return_index=True)
        for id_, row in zip(distinct.tolist(), rows[first].tolist(), strict=True):
            if id_ in first_row:
                other, other_row = first_row[id_]
                column = table.columns[name]
                raise ValueError(
                    f"{table.where(row)}: {show(name)} {show(column.values[column.codes[row]])} is "
                    f"in {split!r}, but also in {other!r} ({table.where(other_row)})"
                )
            first_row[id_] = (split, row)


def _check_cells(data: Dataset, file: str, allow_small_groups: bool) -> list[str]:
    """Notes on groups too small for a split; raises ValueError unless they are allowed."""
    absent = data.cell_counts("train").sum(axis=1) == 0
    if absent.any():
        name = data.label_names[int(absent.argmax())]
        raise ValueError(f"{file}: split 'train' has no rows of class {show(name)}")
    gaps = []
    for split in SPLITS:
        classes_present = (data.cell_counts(split) > 0).sum(axis=0)
        for group, classes in zip(data.group_names, classes_present, strict=True):
            if classes < 2:
                found = "only one class" if classes else "no rows"
                gaps.append(f"group {show(group)} has {found} in split {split!r}")
    if gaps and not allow_small_groups:
        more = f" (and {len(gaps) - 1} more such gaps)" if len(gaps) > 1 else ""
        raise ValueError(
            f"{file}: {gaps[0]}{more}; merge groups, split otherwise, or pass "
            "allow_small_groups=True (--data.allow-small-groups) to have it noted instead"
        )
    return [f"{gap[0].upper()}{gap[1:]}." for gap in gaps]
