"""Tables of images as `Dataset`: one contract for CSVs, named sets and MEDFAIR preparations."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int32, Integer, Shaped

from fairjax.data.attributes import (
    cells,
    check_ages,
    combine_attributes,
    find_column,
    read_attribute,
)
from fairjax.data.cache import CachedImages, cached_images
from fairjax.data.columns import note_classes, read_labels, read_splits, rows_of_splits, tidy
from fairjax.data.csvfile import Column, Table, join, read_tables, set_name, show
from fairjax.data.dataset import SPLITS, Dataset
from fairjax.data.image_files import find_images, note_repeated, pickled_inputs
from fairjax.data.rawtable import short_errors
from fairjax.data.splits import complete_splits, stratified_split
from fairjax.data.values import key, merge_ids

Ratios = tuple[float, float, float]
Classes = Mapping[str, Mapping[str, int]]
"""`{column: {value: class}}`, one column."""


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
      splits: rows of train, val and test, or None where they are to be drawn; val and test that
        are absent are cut out of train.
      notes: what reading did, one sentence each.
    """

    name: str
    paths: tuple[Path, ...]
    where: tuple[str, ...]
    labels: Int32[np.ndarray, " N"]
    label_names: tuple[str, ...]
    attributes: Mapping[str, Column]
    ids: Shaped[np.ndarray, " N"] | None = None
    splits: Mapping[str, Integer[np.ndarray, " _"]] | None = None
    notes: tuple[str, ...] = ()


@short_errors()
def load_image_table(
    path: str | Path | Mapping[str, str | Path],
    image_root: str | Path | None = None,
    *,
    label: str | Classes,
    sensitive: str | Sequence[str],
    size: int = 256,
    image: str = "image",
    positive: str | int | None = None,
    id_column: str | None = None,
    split: Ratios | str = (0.6, 0.2, 0.2),
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
    encoding: str | None = None,
    not_missing: Sequence[str] = (),
) -> Dataset:
    """Reads a CSV (or three) that names image files, and decodes the images once.

    Column names are compared without regard to case, and `image`, `sex` and `age` stand for the
    names in `fairjax.data.attributes.ALIASES`; unnamed index columns are skipped. Sex may be
    written M, F, male, female, man or woman; other values are kept as they are ("sex=0"), since
    sources disagree on codes. The words that `load_csv` reads as missing and a code of -1 are
    unknown, and counted in `notes`. `Age_binary` and `Age_multi` are made from an age in years
    where the table lacks them.

    Args:
      path: a CSV, or a mapping with the files "train", "val" and "test".
      image_root: folder that the image column is relative to, by default the CSV's. Suffixes may
        be left out; see `find_images` for what else may differ. Paths that lead outside are
        refused, unless they are of another machine and an end of them lies here.
      label: the column to predict; or `{column: {value: class}}` to merge or pick values, where
        values that are not listed are dropped and counted.
      sensitive: one attribute, or several, whose intersections read "female & age > 60".
      size: side of the decoded images in pixels; see `cached_images`. 256 leaves room for the
        usual training crop of 224; a byte per pixel and channel is kept, 192 KiB an image.
      image: the column that names the files.
      positive: the label value that becomes class 1, all others class 0.
      id_column: whose rows must stay together; given splits are checked. Without one, rows that
        name the same image stay together where splits are drawn.
      split: shares of train, val and test for one file, stratified on (label, group); or the name
        of a column that holds "train", "val" and "test", or as in `load_csv`.
      seed: of a drawn split.
      unknown: "drop" rows whose attribute is missing or unknown, or keep them as a "group".
      age_cuts: ages that end a band, for an attribute in years.
      window: see `decode_image`; likewise `array_key`.
      array_key: see `decode_image`.
      on_error: what to do with an image that is absent or cannot be read, see `cached_images`, and
        with an age that is none: "skip" counts it as unknown.
      cache_dir: see `cached_images`.
      allow_small_groups: note, rather than refuse, a group that a split has no rows of.
      pickles: a MEDFAIR image pickle for each of "train", "val" and "test", instead of files.
      trust_pickle: allow reading them; see `read_pickled_images`.
      encoding: of the characters of the CSV, and `not_missing`: see `load_csv`.
      not_missing: words that are values in this table.

    Returns:
      A `Dataset` named after the file, or after the folder of three; `inputs` uint8
      `[N, size, size, 3]`.

    Raises:
      FileNotFoundError: a CSV or an image is absent (with "skip", all images).
      ValueError: anything in files or arguments that does not fit, with its place.
    """
    tables = read_tables(path, encoding=encoding, not_missing=not_missing)
    if len(tables) > 1 and isinstance(split, str):
        raise ValueError(f"give three files or the split column {split!r}, not both")
    names = (sensitive,) if isinstance(sensitive, str) else tuple(sensitive)
    shared = [name for name in tables[0].columns if all(name in t.columns for t in tables)]
    table = join([one.select(shared) for one in tables])
    table, result = annotate(
        table,
        names,
        label=label,
        positive=positive,
        id_column=id_column,
        image=image,
        age_cuts=age_cuts,
        on_error=on_error,
    )
    splits, renamed = None, []
    if isinstance(path, Mapping):
        splits = rows_of_splits(table.file_of_row)
    elif isinstance(split, str):
        splits, renamed = read_splits(table, find_column(table, split))
    root = Path(image_root) if image_root is not None else Path(table.files[0]).parent
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder of images")
    paths, found, images = (), (), None
    if pickles:
        images = CachedImages(pickled_inputs(pickles, tables, table, size, trust_pickle), {}, ())
    else:
        names_of_files = cells(table, find_column(table, image))
        absent = "keep" if on_error == "skip" else "error"
        paths, found = find_images([root], names_of_files, result.where, absent=absent)
    own = np.unique(list(map(str, paths)), return_inverse=True)[1]
    repeated = note_repeated(own, result.labels, splits or {}, result.where)
    # an image is trained on or tested on, not both
    ids = own if repeated and result.ids is None and splits is None else result.ids
    notes = (*result.notes, *renamed, *found, *repeated)
    result = dataclasses.replace(result, paths=paths, ids=ids, splits=splits, notes=notes)
    return image_dataset(
        result,
        names,
        size=size,
        split=(0.6, 0.2, 0.2) if isinstance(split, str) else split,
        seed=seed,
        unknown=unknown,
        window=window,
        array_key=array_key,
        on_error=on_error,
        cache_dir=cache_dir,
        allow_small_groups=allow_small_groups,
        images=images,
    )


def annotate(
    table: Table,
    sensitive: Sequence[str],
    *,
    label: str | Classes,
    positive: str | int | None,
    id_column: str | None,
    image: str,
    age_cuts: Sequence[float] | None,
    on_error: str,
) -> tuple[Table, ImageTable]:
    """The rows that have a class, and what is known of them; arguments as in `load_image_table`.

    The caller adds the paths, and the splits where they are given. An `image` of "" is no column.
    """
    ids = () if id_column is None else (id_column,)
    table, merged = _tidy(table, (*sensitive, *ids), image)
    table, labels, label_names, notes = _read_classes(table, label, positive)
    notes.append(note_classes(label if isinstance(label, str) else next(iter(label)), label_names))
    table, aged = check_ages(table, sensitive, on_error, age_cuts)
    return table, ImageTable(
        name=set_name(table.files),
        paths=(),
        where=tuple(map(table.where, range(len(table)))),
        labels=labels,
        label_names=label_names,
        attributes={name: read_attribute(table, name, age_cuts) for name in sensitive},
        ids=None if id_column is None else np.array(cells(table, find_column(table, id_column))),
        notes=(*table.notes, *merged, *notes, *aged),
    )


def image_dataset(
    table: ImageTable,
    sensitive: Sequence[str],
    *,
    size: int = 256,
    split: Ratios = (0.6, 0.2, 0.2),
    seed: int = 0,
    unknown: Literal["drop", "group"] = "drop",
    window: tuple[float, float] | None = None,
    array_key: str | None = None,
    on_error: Literal["error", "skip"] = "error",
    cache_dir: str | Path | None = None,
    allow_small_groups: bool = False,
    images: CachedImages | None = None,
) -> Dataset:
    """Groups, splits and decoded images of an `ImageTable`; arguments as in `load_image_table`.

    Rows without a group, or whose image was skipped, stay in the arrays and are in no split.
    `split` and `seed` are of a table that lacks splits. `images` are decoded already, instead of
    those at the table's paths.
    """
    if table.ids is not None:
        table = dataclasses.replace(table, ids=merge_ids(table.ids))
    group, group_names, notes = combine_attributes(table.name, table.attributes, sensitive, unknown)
    usable = group >= 0
    if images is None:
        images = cached_images(
            table.paths,
            size,
            where=table.where,
            cache_dir=cache_dir,
            window=window,
            array_key=array_key,
            on_error=on_error,
        )
    inputs, skipped, said = images
    usable[list(skipped)] = False
    notes += said
    notes += [f"Skipped {table.where[row]}: {why}" for row, why in sorted(skipped.items())]
    if skipped:
        notes.append(f"{len(skipped)} of {len(usable)} images are absent or not readable.")
    group = np.maximum(group, 0).astype(np.int32)
    if table.splits is not None:
        given = {s: rows[usable[rows]] for s, rows in table.splits.items()}
        strata = table.labels * len(group_names) + group
        try:
            splits, cut = complete_splits(given, strata, split, seed=seed, groups=table.ids)
        except ValueError as error:
            raise ValueError(f"{table.name}: {error}") from None
        notes += cut
    else:
        splits = _draw_splits(table, group, usable, split, seed)
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
        ids=table.ids,
        fixed_test=table.splits is not None and "test" in table.splits,
    )
    notes += _check_groups(data, allow_small_groups)
    return dataclasses.replace(data, notes=(*table.notes, *notes))


def _draw_splits(
    table: ImageTable, group: np.ndarray, usable: np.ndarray, ratios: Ratios, seed: int
) -> dict[str, np.ndarray]:
    """Random splits of the usable rows, with the rows of an id together."""
    rows = np.flatnonzero(usable)
    ids = None if table.ids is None else table.ids[rows]
    strata = (table.labels * (group.max() + 1) + group)[rows]
    try:
        drawn = stratified_split(strata, ratios, seed=seed, groups=ids)
    except ValueError as error:
        raise ValueError(f"{table.name}: {error}") from None
    return {s: rows[picked].astype(np.int32) for s, picked in drawn.items()}


def _check_groups(data: Dataset, allow_small_groups: bool) -> list[str]:
    """Notes on groups without rows in a split; raises ValueError unless they are allowed."""
    gaps = []
    for split in SPLITS:
        empty = np.flatnonzero(data.cell_counts(split).sum(axis=0) == 0)
        gaps += [f"Group {data.group_names[g]!r} has no rows in split {split!r}" for g in empty]
    if gaps and not allow_small_groups:
        raise ValueError(
            f"{data.name}: {gaps[0]}; choose another attribute, other bands or another split,"
            " or pass allow_small_groups"
        )
    return [f"{gap}." for gap in gaps]


def _tidy(table: Table, names: Sequence[str], image: str) -> tuple[Table, list[str]]:
    """`tidy` for attributes and ids; not for paths, nor for bands that no column holds."""
    found = []
    for name in (image, *names):
        try:
            found.append(find_column(table, name))
        except ValueError:
            found.append("")  # whoever reads it refuses what is absent and cannot be made
    return tidy(table, [name for name in found[1:] if name not in ("", found[0])])


def _read_classes(
    table: Table, label: str | Classes, positive: str | int | None
) -> tuple[Table, np.ndarray, tuple[str, ...], list[str]]:
    """The rows that have a class, the class of each, the names of the classes, and notes."""
    if isinstance(label, str):
        name = find_column(table, label)
        table, merged = tidy(table, [name])
        table, notes = _drop_missing(table, name)
        return table, *read_labels(table, name, positive), [*merged, *notes]
    if len(label) != 1:
        raise ValueError(f"label must map one column to its classes, got {len(label)} columns")
    if positive is not None:
        raise ValueError(
            f"positive={positive!r} does not go with a label that maps values to classes"
        )
    (column, classes), *_ = label.items()
    name = find_column(table, column)
    table, merged = tidy(table, [name])
    table, notes = _keep_listed(table, name, classes)
    return table, *_map_labels(table, name, classes), [*merged, *notes]


def _keep_listed(table: Table, name: str, classes: Mapping[str, int]) -> tuple[Table, list[str]]:
    """The rows whose label the mapping lists."""
    values, codes = table.columns[name]
    if sorted(set(classes.values())) != list(range(len(set(classes.values())))):
        raise ValueError(f"label classes must be 0, 1, ... without gaps, got {dict(classes)}")
    listed = {key(value): label for value, label in classes.items()}
    for value, label in classes.items():
        if listed[key(value)] != label:
            raise ValueError(f"label gives spellings of {show(value)} different classes")
    keep = np.array([*(key(value) in listed for value in values), False])[codes]
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
    class_of = {key(value): label for value, label in classes.items()}
    labels = np.array([class_of[key(value)] for value in values], np.int32)[codes]
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
