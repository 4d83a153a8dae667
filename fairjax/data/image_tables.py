"""Tables of images as `Dataset`: one contract for CSVs, named sets and MEDFAIR preparations."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from fairjax.data.cache import cached_images
from fairjax.data.columns import read_labels
from fairjax.data.csvfile import Column, Table, join, number, read_csv, show
from fairjax.data.dataset import SPLITS, Dataset
from fairjax.data.decode import read_pickled_images, square
from fairjax.data.splits import stratified_split

ALIASES = {
    "image": ("image", "path", "image_path", "image_id", "hasher", "md5hash", "filename", "file"),
    "sex": ("sex", "gender"),
    "age": ("age", "age_years"),
}
"""Names that stand for the same column, compared without regard to case."""

AGE_CUTS = {"age_binary": (60.0,), "age_multi": (19.0, 39.0, 59.0, 79.0)}
"""Ages, in years, that end a band when a banded column is asked for and only ages are there."""

SUFFIXES = ("", ".jpg", ".jpeg", ".png", ".npy", ".npz", ".tif", ".tiff", ".bmp")

_SEXES = {"m": "male", "male": "male", "f": "female", "female": "female"}
_UNKNOWN = frozenset({"unknown", "unk", "not known", "-1"})


@dataclasses.dataclass(frozen=True)
class ImageTable:
    """Where images are and what is known about them, before anything is decoded.

    Attributes:
      name: what reports call the set.
      paths: N files.
      where: N places of the rows, for messages.
      labels: int32 `[N]`, indices into `label_names`.
      label_names: K class names.
      attributes: sensitive attributes by name; the values of each are its group names in order,
        code -1 is unknown.
      ids: `[N]` of patients or lesions that must not straddle splits, or None.
      splits: rows of train, val and test, or None where they are to be drawn.
      notes: what reading did, one sentence each.
    """

    name: str
    paths: tuple[Path, ...]
    where: tuple[str, ...]
    labels: np.ndarray
    label_names: tuple[str, ...]
    attributes: Mapping[str, Column]
    ids: np.ndarray | None = None
    splits: Mapping[str, np.ndarray] | None = None
    notes: tuple[str, ...] = ()


def load_image_table(
    path: str | Path | Mapping[str, str | Path],
    image_root: str | Path | None = None,
    *,
    label: str | Mapping[str, Mapping[str, int]],
    sensitive: str | Sequence[str],
    size: int,
    image: str = "image",
    positive: str | int | None = None,
    id_column: str | None = None,
    split: tuple[float, float, float] = (0.6, 0.2, 0.2),
    seed: int = 0,
    unknown: Literal["drop", "group"] = "drop",
    age_cuts: Sequence[float] | None = None,
    window: tuple[float, float] | None = None,
    array_key: str | None = None,
    on_error: Literal["error", "skip"] = "error",
    cache_dir: str | Path | None = None,
    allow_small_groups: bool = False,
    pickles: Mapping[str, str | Path] | None = None,
    trust_pickle: bool = False,
) -> Dataset:
    """Reads a CSV (or three) that names image files, and decodes the images once.

    Column names are compared without regard to case, and `image`, `sex` and `age` stand for the
    names in `ALIASES`; unnamed index columns are skipped. Sex may be written M, F, male or female;
    other values are kept as they are ("sex=0"), since sources disagree on codes. `Age_binary` and
    `Age_multi` are made from an age in years where the table lacks them.

    Args:
      path: a CSV, or a mapping with the files "train", "val" and "test".
      image_root: folder that the image column is relative to, by default the CSV's. Suffixes may
        be left out. Paths that lead outside are refused.
      label: the column to predict; or `{column: {value: class}}` to merge or pick values, where
        values that are not listed are dropped and counted.
      sensitive: one attribute, or several, whose intersections read "female & age > 60".
      size: side of the decoded images; see `cached_images`.
      image: the column that names the files.
      positive: the label value that becomes class 1, all others class 0.
      id_column: whose rows must stay together; given splits are checked.
      split: shares of train, val and test for one file, stratified on (label, group).
      seed: of the split.
      unknown: "drop" rows whose attribute is missing or unknown, or keep them as a "group".
      age_cuts: ages that end a band, for an attribute in years.
      window: see `decode_image`; likewise `array_key`.
      array_key: see `decode_image`.
      on_error: what to do with an image that cannot be read; see `cached_images`.
      cache_dir: see `cached_images`.
      allow_small_groups: note, rather than refuse, a group that a split has no rows of.
      pickles: a MEDFAIR image pickle for each of "train", "val" and "test", instead of files.
      trust_pickle: allow reading them; see `read_pickled_images`.

    Returns:
      A `Dataset` named after the file, `inputs` uint8 `[N, size, size, 3]`.

    Raises:
      FileNotFoundError: a CSV or an image is absent.
      ValueError: anything in files or arguments that does not fit, with its place.
    """
    if isinstance(path, Mapping):
        if set(path) != set(SPLITS):
            raise ValueError(f"path must map each of {SPLITS} to a file, got {tuple(path)}")
        tables = [read_csv(path[name]) for name in SPLITS]
    else:
        tables = [read_csv(path)]
    names = (sensitive,) if isinstance(sensitive, str) else tuple(sensitive)
    shared = [name for name in tables[0].columns if all(name in t.columns for t in tables)]
    table = join([one.select(shared) for one in tables])
    notes = []
    label_name, classes = (label, None) if isinstance(label, str) else next(iter(label.items()))
    column = find_column(table, label_name)
    if classes is not None:
        table, note = _keep_listed(table, column, classes)
        notes += note
    table, note = _drop_missing(table, column)
    notes += note
    if classes is None:
        labels, label_names = read_labels(table, column, positive)
    else:
        labels, label_names = _map_labels(table, column, classes)
    root = Path(image_root) if image_root is not None else Path(table.files[0]).parent
    where = tuple(map(table.where, range(len(table))))
    files = cells(table, find_column(table, image))
    given = isinstance(path, Mapping)
    result = ImageTable(
        name=Path(table.files[0]).name.partition(".")[0],
        paths=() if pickles else tuple(map(_locate, [root] * len(files), files, where)),
        where=where,
        labels=labels,
        label_names=label_names,
        attributes={name: read_attribute(table, name, age_cuts) for name in names},
        ids=None if id_column is None else np.array(cells(table, find_column(table, id_column))),
        splits={
            s: np.flatnonzero(table.file_of_row == i).astype(np.int32) for i, s in enumerate(SPLITS)
        }
        if given
        else None,
        notes=tuple(notes),
    )
    inputs = None
    if pickles is not None:
        inputs = _pickled_inputs(pickles, tables, table, size, trust_pickle)
    return image_dataset(
        result,
        names,
        size=size,
        split=split,
        seed=seed,
        unknown=unknown,
        window=window,
        array_key=array_key,
        on_error=on_error,
        cache_dir=cache_dir,
        allow_small_groups=allow_small_groups,
        inputs=inputs,
    )


def image_dataset(
    table: ImageTable,
    sensitive: Sequence[str],
    *,
    size: int,
    split: tuple[float, float, float] = (0.6, 0.2, 0.2),
    seed: int = 0,
    unknown: Literal["drop", "group"] = "drop",
    window: tuple[float, float] | None = None,
    array_key: str | None = None,
    on_error: Literal["error", "skip"] = "error",
    cache_dir: str | Path | None = None,
    allow_small_groups: bool = False,
    inputs: np.ndarray | None = None,
) -> Dataset:
    """Groups, splits and decoded images of an `ImageTable`; arguments as in `load_image_table`.

    Rows without a group, or whose image was skipped, stay in the arrays and are in no split.
    """
    if unknown not in ("drop", "group"):
        raise ValueError(f'unknown must be "drop" or "group", got {unknown!r}')
    group, group_names, notes = combine_attributes(table, sensitive, unknown)
    usable = group >= 0
    if inputs is None:
        inputs, skipped = cached_images(
            table.paths,
            size,
            where=table.where,
            cache_dir=cache_dir,
            window=window,
            array_key=array_key,
            on_error=on_error,
        )
        usable[list(skipped)] = False
        notes += [f"Skipped {table.where[row]}: {why}" for row, why in sorted(skipped.items())]
        if skipped:
            notes.append(f"{len(skipped)} of {len(usable)} images could not be read.")
    group = np.maximum(group, 0).astype(np.int32)
    if table.splits is not None:
        splits = {s: rows[usable[rows]] for s, rows in table.splits.items()}
    else:
        rows = np.flatnonzero(usable)
        ids = None if table.ids is None else table.ids[rows]
        strata = (table.labels * len(group_names) + group)[rows]
        drawn = stratified_split(strata, split, seed=seed, groups=ids)
        splits = {s: rows[picked].astype(np.int32) for s, picked in drawn.items()}
        notes.append(f"Split {'/'.join(f'{r:g}' for r in split)} drawn with seed {seed}.")
    if table.ids is not None:
        _check_ids(table, table.ids, splits)
    data = Dataset(
        name=table.name,
        inputs=inputs,
        labels=table.labels,
        group=group,
        label_names=table.label_names,
        group_names=group_names,
        splits=splits,
    )
    for name in SPLITS:
        empty = np.flatnonzero(data.cell_counts(name).sum(axis=0) == 0)
        gaps = [f"Group {group_names[g]!r} has no rows in split {name!r}" for g in empty]
        if gaps and not allow_small_groups:
            raise ValueError(
                f"{table.name}: {gaps[0]}; choose another attribute, other bands or another split,"
                " or pass allow_small_groups"
            )
        notes += [f"{gap}." for gap in gaps]
    return dataclasses.replace(data, notes=(*table.notes, *notes))


def find_column(table: Table, name: str) -> str:
    """The table's own name of a column, found by case and alias; ValueError if there is none."""
    if name in table.columns:
        table.require([name])
        return name
    wanted = name.casefold()
    lowered = {column.casefold(): column for column in reversed(table.columns)}
    for names in ((wanted,), next((n for n in ALIASES.values() if wanted in n), ())):
        for alias in names:
            if alias in lowered:
                table.require([lowered[alias]])
                return lowered[alias]
    table.require([name])
    return name


def cells(table: Table, name: str) -> list[str]:
    """All cells of a column; a missing one is an error that names its line."""
    values, codes = table.columns[name]
    if (codes < 0).any():
        row = int((codes < 0).argmax())
        raise ValueError(f"{table.where(row)}: column {show(name)} is empty")
    return [values[code] for code in codes]


def read_attribute(table: Table, name: str, age_cuts: Sequence[float] | None = None) -> Column:
    """A sensitive attribute with its group names in order; unknown values have code -1."""
    cuts = AGE_CUTS.get(name.casefold())
    try:
        column_name = find_column(table, name)
    except ValueError:
        if cuts is None:
            raise
        return age_bands(table, find_column(table, "age"), cuts)
    if name.casefold() in ALIASES["age"]:
        if age_cuts is None:
            raise ValueError(f"{table.files[0]}: {show(name)} is in years; give age_cuts=")
        return age_bands(table, column_name, age_cuts)
    values, codes = table.columns[column_name]
    is_sex = column_name.casefold() in ALIASES["sex"]
    named = []
    for value in values:
        plain = number(value)
        shown = value if plain is None else f"{column_name}={plain:g}"
        if is_sex:
            shown = _SEXES.get(value.casefold(), shown)
        named.append("" if value.casefold() in _UNKNOWN else shown)
    order = sorted(set(named) - {""}, key=lambda text: (_number_in(text), text))
    recode = np.array([*(order.index(text) if text else -1 for text in named), -1], np.int32)
    return Column(tuple(order), recode[codes])


def _number_in(text: str) -> float:
    """What follows "=" in a group name, so that codes sort as numbers."""
    return number(text.rpartition("=")[2]) or 0.0


def age_bands(table: Table, name: str, cuts: Sequence[float]) -> Column:
    """Ages in years as bands; a cut ends its band, so 60 belongs to "age <= 60"."""
    if not len(cuts) or list(cuts) != sorted(set(cuts)):
        raise ValueError(f"age_cuts must be increasing ages, got {tuple(cuts)}")
    values, codes = table.columns[name]
    ages = [None if v.casefold() in _UNKNOWN else number(v) for v in values]
    for code, (value, age) in enumerate(zip(values, ages, strict=True)):
        known = value.casefold() not in _UNKNOWN
        if known and (age is None or not 0 <= age <= 130):
            row = int((codes == code).argmax())
            raise ValueError(
                f"{table.where(row)}: column {show(name)} holds {show(value)}, expected years"
            )
    bands = [-1 if age is None else int(np.searchsorted(cuts, age)) for age in ages]
    marks = [f"{cut:g}" for cut in cuts]
    middle = [f"{low} < age <= {high}" for low, high in zip(marks, marks[1:], strict=False)]
    names = (f"age <= {marks[0]}", *middle, f"age > {marks[-1]}")
    return Column(names, np.array([*bands, -1], np.int32)[codes])


def combine_attributes(
    table: ImageTable, sensitive: Sequence[str], unknown: str
) -> tuple[np.ndarray, tuple[str, ...], list[str]]:
    """Group of every row (-1 dropped), names of the groups that occur, and notes."""
    combined = np.zeros(len(table.labels), np.int64)
    names: tuple[str, ...] = ("",)
    notes = []
    for attribute in sensitive:
        if attribute not in table.attributes:
            raise ValueError(
                f"{table.name}: no attribute {attribute!r}, it has "
                f"{', '.join(map(repr, table.attributes))}"
            )
        values, codes = table.attributes[attribute]
        lost = int((codes < 0).sum())
        if lost and unknown == "group":
            codes = np.where(codes < 0, len(values), codes)
            values = (*values, f"{attribute} unknown")
        elif lost:
            notes.append(f"{lost} rows with unknown {attribute} are in no split.")
        combined = np.where((combined < 0) | (codes < 0), -1, combined * len(values) + codes)
        names = tuple(" & ".join(filter(None, (a, b))) for a in names for b in values)
    present = np.unique(combined[combined >= 0])
    if len(present) < 2:
        raise ValueError(
            f"{table.name}: {' and '.join(sensitive)} make {len(present)} group(s), "
            "at least two are needed"
        )
    group = np.where(combined >= 0, np.searchsorted(present, combined), -1)
    return group, tuple(names[code] for code in present), notes


def _keep_listed(table: Table, name: str, classes: Mapping[str, int]) -> tuple[Table, list[str]]:
    """The rows whose label the mapping lists."""
    values, codes = table.columns[name]
    if sorted(set(classes.values())) != list(range(len(set(classes.values())))):
        raise ValueError(f"label classes must be 0, 1, ... without gaps, got {dict(classes)}")
    keep = np.array([*(value in classes for value in values), False])[codes]
    if not keep.any():
        raise ValueError(
            f"{table.files[0]}: column {show(name)} never holds {', '.join(map(show, classes))}"
        )
    dropped = int((~keep).sum())
    note = f"Dropped {dropped} rows whose {name} is not one of {', '.join(classes)}."
    return (table.take(np.flatnonzero(keep)), [note]) if dropped else (table, [])


def _map_labels(
    table: Table, name: str, classes: Mapping[str, int]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Class of every row by a mapping; a class is named after its values."""
    values, codes = table.columns[name]
    labels = np.array([classes[value] for value in values], np.int32)[codes]
    count = max(classes.values()) + 1
    names = tuple("/".join(v for v, c in classes.items() if c == k) for k in range(count))
    return labels, names


def _drop_missing(table: Table, name: str) -> tuple[Table, list[str]]:
    """The rows that have a label."""
    keep = np.flatnonzero(table.columns[name].codes >= 0)
    if len(keep) == len(table):
        return table, []
    if not len(keep):
        raise ValueError(f"{table.files[0]}: column {show(name)} is empty")
    return table.take(keep), [f"Dropped {len(table) - len(keep)} rows without {name}."]


def path_below(root: Path, name: str, where: str) -> Path:
    """What a cell names as a path relative to the root; ValueError if it leads outside."""
    path = Path(name)
    if path.is_absolute() and path.is_relative_to(root):
        path = path.relative_to(root)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{where}: image path {show(name)} leads outside {root}")
    return path


def _locate(root: Path, name: str, where: str) -> Path:
    """The file a cell names, below the root, with its suffix found where it is left out."""
    relative = path_below(root, name, where)
    for suffix in SUFFIXES:
        candidate = root / f"{relative}{suffix}"
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"{where}: no image file {root / relative}")


def _check_ids(table: ImageTable, ids: np.ndarray, splits: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError if an id has rows in two splits."""
    owner: dict[str, tuple[str, int]] = {}
    for split, rows in splits.items():
        for row in rows:
            first, other = owner.setdefault(str(ids[row]), (split, row))
            if first != split:
                raise ValueError(
                    f"{table.where[row]}: id {str(ids[row])!r} is in split {split!r} and, at "
                    f"{table.where[other]}, in {first!r}"
                )


def _pickled_inputs(
    pickles: Mapping[str, str | Path],
    tables: Sequence[Table],
    table: Table,
    size: int,
    trust: bool,
) -> np.ndarray:
    """Images of MEDFAIR's pickles, in row order, for the rows that were kept."""
    if set(pickles) != set(SPLITS) or len(tables) != len(SPLITS):
        raise ValueError(f"pickles need a file and a CSV for each of {SPLITS}, got {set(pickles)}")
    kept = set(zip(table.file_of_row.tolist(), table.line_of_row.tolist(), strict=True))
    inputs = []
    for file, (name, one) in enumerate(zip(SPLITS, tables, strict=True)):
        images = read_pickled_images(pickles[name], trust=trust)
        if len(images) != len(one):
            raise ValueError(
                f"{pickles[name]}: {len(images)} images, but {one.files[0]} has {len(one)} rows"
            )
        lines = one.line_of_row.tolist()
        inputs += [
            square(image, size)
            for image, line in zip(images, lines, strict=True)
            if (file, line) in kept
        ]
    return np.stack(inputs)
