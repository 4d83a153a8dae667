"""What a named data set is: where it comes from, and how its raw files become an `ImageTable`."""

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fairjax.data.attributes import cells, find_column, read_attribute
from fairjax.data.columns import tidy
from fairjax.data.csvfile import Column, Table, join, read_csv, show
from fairjax.data.dataset import SPLITS
from fairjax.data.image_files import SUFFIXES, find_images
from fairjax.data.image_tables import ImageTable
from fairjax.data.values import key, says_nothing

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
      read: makes the table from the raw distribution in a folder, the seeds of its two cuts and
        the encoding of its tables, see `read_csv`.
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
    read: Callable[[Path, Seeds, str | None], ImageTable]
    seeds: Seeds | None = (0, 0)
    prepared: Prepared | None = None
    window: tuple[float, float] | None = None
    array_key: str | None = None


_TABLES = (".csv", ".tab", ".tsv", ".csv.gz", ".csv.zip", ".xlsx", ".txt")
"""Suffixes under which the same table is given away."""


def require_files(folder: Path, files: Sequence[str]) -> None:
    """Raises FileNotFoundError that lists every pattern without a match below the folder."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    missing = [name for name in files if _match(folder, name) is None]
    if missing:
        raise FileNotFoundError(f"{folder}: missing {', '.join(missing)}")


def _match(folder: Path, pattern: str) -> Path | None:
    """A file of that pattern: in any case, of a kindred suffix, or images one folder deeper."""
    stem, suffix = os.path.splitext(pattern)
    kindred = next((kind for kind in (SUFFIXES, _TABLES) if suffix in kind), (suffix,))
    patterns = [pattern, *(f"{stem}{each}" for each in kindred if each)]
    if "/*" in stem and suffix in SUFFIXES:
        patterns += [f"{stem.rpartition('/')[0]}/*/{p.rpartition('/')[2]}" for p in patterns]
    for each in patterns:
        letters = (f"[{c.lower()}{c.upper()}]" if c.isascii() and c.isalpha() else c for c in each)
        if (found := next(folder.glob("".join(letters)), None)) is not None:
            return found
    return None


def table_file(folder: Path, name: str) -> Path:
    """The file of a table, under its name or a kindred one (`.tab`, another case)."""
    return folder / name if (folder / name).is_file() else _match(folder, name) or folder / name


def read_table(folder: Path, name: str, encoding: str | None) -> Table:
    """The table of that name, or of a kindred one."""
    return read_csv(table_file(folder, name), encoding=encoding)


def has_files(folder: Path, files: Sequence[str]) -> bool:
    """Whether every pattern has a match below the folder."""
    return all(_match(folder, name) is not None for name in files)


def named_images(
    folder: Path, below: Sequence[str], names: Sequence[str], where: Sequence[str]
) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """`find_images` in the folders of a set, or in the only folder inside one that holds no file.

    Absent ones stay in, for `read_named` or `cached_images` to name or to skip.
    """
    return find_images([_innermost(folder / each) for each in below], names, where, absent="keep")


def _innermost(folder: Path) -> Path:
    entries = [] if not folder.is_dir() else [e for e in folder.iterdir() if e.name[0] not in "._"]
    return entries[0] if len(entries) == 1 and entries[0].is_dir() else folder


def check_present(table: ImageTable) -> None:
    """Raises FileNotFoundError that counts the absent images and names the first."""
    absent = [row for row, path in enumerate(table.paths) if not path.is_file()]
    if absent:
        place, path = table.where[absent[0]], table.paths[absent[0]]
        raise FileNotFoundError(
            f"{place}: no image {path.name} in {path.parent} ({len(absent)} missing in all); "
            'on_error="skip" goes on without them'
        )


def places(table: Table) -> tuple[str, ...]:
    """The place of every row, for messages."""
    return tuple(table.where(row) for row in range(len(table)))


def map_column(
    table: Table, name: str, groups: Mapping[str, str], order: Sequence[str], notes: list[str]
) -> Column:
    """A column whose values are renamed; what the mapping lacks is unknown (-1), and noted."""
    values, codes = table.columns[find_column(table, name)]
    code_of = {key(value): order.index(group) for value, group in groups.items()}
    recode = [code_of.get(key(value), -1) for value in values]
    notes += spelling_notes(table, name)
    odd = [code < 0 and not says_nothing(v) for v, code in zip(values, recode, strict=True)]
    if (rows := np.array([*odd, False])[codes]).any():
        notes.append(
            f"Column {show(name)}: {counted(table, name, rows)} read as unknown; known are "
            f"{', '.join(map(show, groups))}."
        )
    return Column(tuple(order), np.array([*recode, -1], np.int32)[codes])


def counted(table: Table, name: str, rows: np.ndarray) -> str:
    """The values of a column in some rows, with how often each is there; the first five."""
    values, codes = table.columns[find_column(table, name)]
    counts = Counter("nothing" if code < 0 else show(values[code]) for code in codes[rows].tolist())
    more = ", ..." if len(counts) > 5 else ""
    return ", ".join(f"{value} ({count})" for value, count in counts.most_common(5)) + more


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
            more = ", ..." if len(classes) > 8 else ""
            raise ValueError(
                f"{table.where(row)}: column {show(name)} holds {show(value)}, accepted are "
                f"{', '.join(map(show, list(classes)[:8]))}{more}"
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


def read_prepared(recipe: Recipe, folder: Path, encoding: str | None) -> ImageTable:
    """The table of MEDFAIR's CSVs, with their split."""
    form = recipe.prepared
    if form is None:
        raise ValueError(f"{recipe.name}: no prepared form is known, give the raw files")
    tables = [read_csv(folder / f"new_{split}.csv", encoding=encoding) for split in SPLITS]
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
    paths, found = find_images([folder / r for r in form.roots], names, where, absent="keep")
    return ImageTable(
        name=recipe.name,
        paths=paths,
        where=where,
        labels=labels_from(table, form.label, classes),
        label_names=recipe.label_names,
        attributes=attributes,
        splits={
            split: np.flatnonzero(table.file_of_row == i).astype(np.int32)
            for i, split in enumerate(SPLITS)
        },
        notes=(
            "Read from prepared CSVs, with their split.",
            *found,
            *spelling_notes(table, *told),
        ),
    )
