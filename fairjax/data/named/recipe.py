"""What a named data set is: where it comes from, and how its raw files become an `ImageTable`."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fairjax.data.attributes import cells, find_column, read_attribute
from fairjax.data.columns import tidy
from fairjax.data.csvfile import Column, Table, join, read_csv, show
from fairjax.data.dataset import SPLITS
from fairjax.data.image_files import SUFFIXES, path_below
from fairjax.data.image_tables import ImageTable
from fairjax.data.values import key

Seeds = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Columns of the `new_{train,val,test}.csv` that MEDFAIR's notebooks write for a set."""

    image: str
    label: str
    attributes: tuple[str, ...]
    roots: tuple[str, ...] = ("",)
    """Folders below the manual directory in which image paths may start."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A named data set.

    Attributes:
      name: as commands call it.
      title: what it is, one line.
      home: where to get it.
      licence: as far as known; to be checked by whoever downloads it.
      files: what the manual directory must hold, relative paths or patterns, for instructions.
      label_names: K class names.
      sensitive: the default attributes.
      read: makes the table from the raw distribution in a folder and the seeds of its two cuts.
      seeds: of the published split, see `split_by_id`; None where the split comes with the files
        or is drawn later, stratified, by `image_dataset`.
      prepared: columns of MEDFAIR's CSVs, which are used where they are present.
      window: see `decode_image`; likewise `array_key`.
      array_key: see `decode_image`.
    """

    name: str
    title: str
    home: str
    licence: str
    files: tuple[str, ...]
    label_names: tuple[str, ...]
    sensitive: tuple[str, ...]
    read: Callable[[Path, Seeds], ImageTable]
    seeds: Seeds | None = (0, 0)
    prepared: Prepared | None = None
    window: tuple[float, float] | None = None
    array_key: str | None = None


def require_files(folder: Path, files: Sequence[str]) -> None:
    """Raises FileNotFoundError that lists every pattern without a match below the folder."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    missing = [name for name in files if next(folder.glob(name), None) is None]
    if missing:
        raise FileNotFoundError(f"{folder}: missing {', '.join(missing)}")


def find_images(
    folders: Sequence[Path], names: Sequence[str], where: Sequence[str]
) -> tuple[Path, ...]:
    """The file of each name, with any usual suffix, in the first folder that has it.

    Raises:
      FileNotFoundError: some are absent; the message counts them and names the first.
    """
    listed = [
        {entry.name: entry for entry in sorted(folder.iterdir())} if folder.is_dir() else {}
        for folder in folders
    ]
    found, missing = [], []
    for name, place in zip(names, where, strict=True):
        hits = (files.get(name + suffix) for files in listed for suffix in SUFFIXES)
        path = next((hit for hit in hits if hit is not None), None)
        if path is None:
            missing.append(f"{place}: no image {name}")
        else:
            found.append(path)
    if missing:
        places = " or ".join(map(str, folders))
        raise FileNotFoundError(f"{missing[0]} in {places} ({len(missing)} missing in all)")
    return tuple(found)


def places(table: Table) -> tuple[str, ...]:
    """The place of every row, for messages."""
    return tuple(table.where(row) for row in range(len(table)))


def map_column(table: Table, name: str, groups: Mapping[str, str], order: Sequence[str]) -> Column:
    """A column whose values are renamed; what the mapping lacks is unknown (-1)."""
    values, codes = table.columns[find_column(table, name)]
    code_of = {key(value): order.index(group) for value, group in groups.items()}
    recode = [code_of.get(key(value), -1) for value in values]
    return Column(tuple(order), np.array([*recode, -1], np.int32)[codes])


def spelling_notes(table: Table, *names: str) -> list[str]:
    """Notes on the spellings that `read_attribute`, `map_column` and `labels_from` merge."""
    return tidy(table, [find_column(table, name) for name in names])[1]


def coded(names: Sequence[str], codes: Any) -> Column:
    """A column from codes into names."""
    return Column(tuple(names), np.asarray(codes, np.int32))


def labels_from(table: Table, name: str, classes: Mapping[str, int]) -> np.ndarray:
    """Class of every row; a value that the mapping lacks is an error with its line."""
    found = cells(table, find_column(table, name))
    class_of = {key(value): label for value, label in classes.items()}
    for row, value in enumerate(found):
        if key(value) not in class_of:
            raise ValueError(
                f"{table.where(row)}: column {show(name)} holds {show(value)}, accepted are "
                f"{', '.join(map(show, classes))}"
            )
    return np.array([class_of[key(value)] for value in found], np.int32)


def keep(table: Table, rows: np.ndarray, why: str, notes: list[str]) -> Table:
    """The rows where the mask is True; what is dropped is noted."""
    if rows.all():
        return table
    if not rows.any():
        raise ValueError(f"{table.files[0]}: no row is left: {why}")
    notes.append(f"Dropped {int((~rows).sum())} of {len(rows)} rows: {why}.")
    return table.take(np.flatnonzero(rows))


def present(table: Table, *names: str) -> np.ndarray:
    """Rows in which none of the columns is empty."""
    return np.all([table.columns[find_column(table, n)].codes >= 0 for n in names], axis=0)


def has_prepared(folder: Path) -> bool:
    """Whether the folder holds MEDFAIR's three CSVs."""
    return all((folder / f"new_{split}.csv").is_file() for split in SPLITS)


def read_prepared(recipe: Recipe, folder: Path) -> ImageTable:
    """The table of MEDFAIR's CSVs, with their split."""
    form = recipe.prepared
    if form is None:
        raise ValueError(f"{recipe.name}: no prepared form is known, give the raw files")
    tables = [read_csv(folder / f"new_{split}.csv") for split in SPLITS]
    shared = [name for name in tables[0].columns if all(name in t.columns for t in tables)]
    table = join([one.select(shared) for one in tables])
    where = places(table)
    classes = {}
    for label in range(len(recipe.label_names)):
        classes |= {str(label): label, f"{label}.0": label}
    attributes, told = {}, [form.label]
    for name in form.attributes:
        lowered = {column.casefold() for column in table.columns}
        if name in ("sex", "age_binary", "age_multi") or name in lowered:
            attributes[name] = read_attribute(table, name)
            told += [name] if name in lowered else []
    names = cells(table, find_column(table, form.image))
    paths, missing = [], []
    for name, place in zip(names, where, strict=True):
        relative = path_below(folder, name, place)
        hits = (folder / root / relative for root in form.roots)
        path = next((hit for hit in hits if hit.is_file()), None)
        if path is None:
            missing.append(f"{place}: no image {name}")
        else:
            paths.append(path)
    if missing:
        raise FileNotFoundError(f"{missing[0]} in {folder} ({len(missing)} missing in all)")
    return ImageTable(
        name=recipe.name,
        paths=tuple(paths),
        where=where,
        labels=labels_from(table, form.label, classes),
        label_names=recipe.label_names,
        attributes=attributes,
        splits={
            split: np.flatnonzero(table.file_of_row == i).astype(np.int32)
            for i, split in enumerate(SPLITS)
        },
        notes=("Read from prepared CSVs, with their split.", *spelling_notes(table, *told)),
    )
