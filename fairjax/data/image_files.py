"""Where a table's images lie: files below a folder, or the pickles that MEDFAIR writes."""

import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int32, Int64, UInt8

from fairjax.data.csvfile import Table, show
from fairjax.data.dataset import SPLITS
from fairjax.data.decode import square
from fairjax.data.pickles import read_pickled_images
from fairjax.data.values import canonical

SUFFIXES = (
    *("", ".jpg", ".jpeg", ".png", ".npy", ".npz", ".tif", ".tiff", ".bmp", ".gif", ".webp"),
    *(".dcm",),
)
"""What may be left out of the name of an image, in the order in which it is tried."""

_ABSOLUTE = re.compile(r"/|[A-Za-z]:/|file:/")
_HIDDEN = ("__MACOSX", ".")


def path_below(root: Path, name: str, where: str) -> Path:
    """What a cell names as a path relative to the root; ValueError if it leads outside."""
    path = Path(name)
    if path.is_absolute() and path.is_relative_to(root):
        path = path.relative_to(root)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{where}: image path {show(name)} leads outside {root}")
    return path


def find_images(
    roots: Sequence[Path],
    names: Sequence[str],
    where: Sequence[str],
    *,
    absent: Literal["error", "keep"] = "error",
) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """The file that each cell of a table names, and notes on those that are named otherwise.

    Names are relative to one of the roots, whose order decides; a suffix may be left out. What is
    not found as it is written is sought with slashes for backslashes, without regard to case and
    to how accents are encoded, as a whole number for `0.0`, and, for an absolute path of another
    machine, by the longest tail that lies below a root.

    Args:
      roots: folders; those that do not exist hold nothing.
      names: N cells.
      where: N places of the cells, for messages.
      absent: "keep" gives a path where nothing is, for whoever skips and counts it.

    Returns:
      N files, and notes, one sentence each.

    Raises:
      FileNotFoundError: an image is absent; the message counts them and names the first.
      ValueError: a path leads outside, fits several files, or is taken for the file of another.
    """
    folders = [_Folder(root) for root in roots]
    found: list[Path] = []
    missing: list[str] = []
    ways: dict[str, list[tuple[str, Path]]] = {}
    owner: dict[Path, tuple[str, str]] = {}
    for name, place in zip(names, where, strict=True):
        path, way = _find(folders, name, place, absent)
        if path is None:
            missing.append(f"{place}: no image {name}")
            path = folders[0].root / (os.path.basename(name.replace("\\", "/")) or "_")
        else:
            _claim(owner, path, name, way, place)
            if way:
                ways.setdefault(way, []).append((name, path))
        found.append(path)
    if missing and absent == "error":
        places = " or ".join(map(str, roots))
        raise FileNotFoundError(f"{missing[0]} in {places} ({len(missing)} missing in all)")
    return tuple(found), tuple(
        f"{len(pairs)} images were found {way}, such as {show(pairs[0][0])} as "
        f"{_relative(pairs[0][1], roots)}."
        for way, pairs in ways.items()
    )


def note_repeated(
    image: Int64[np.ndarray, " N"],
    labels: Int32[np.ndarray, " N"],
    splits: Mapping[str, np.ndarray],
    where: Sequence[str],
) -> tuple[str, ...]:
    """A note on images that several rows name, with what is wrong about that.

    Args:
      image: number of the image of every row.
      labels: `[N]`.
      splits: rows of each split, empty where they are to be drawn.
      where: N places of the rows.
    """
    if not len(image):
        return ()  # arrays, not files
    part = np.full(len(image), -1)
    for number, rows in enumerate(splits.values()):
        part[rows] = number
    order = np.argsort(image, kind="stable")
    owners = np.split(order, np.flatnonzero(np.diff(image[order])) + 1)
    several = [own for own in owners if len(own) > 1]
    if not several:
        return ()
    differ, straddle = (
        sum(len(np.unique(values[own])) > 1 for own in several) for values in (labels, part)
    )
    more = f", {differ} of them with different labels" if differ else ""
    more += f", {straddle} of them in several splits" if straddle else ""
    first, second = several[0][:2]
    return (
        f"{len(several)} images are named by several rows ({where[first]} and {where[second]})"
        f"{more}.",
    )


def _claim(owner: dict[Path, tuple[str, str]], path: Path, name: str, way: str, where: str) -> None:
    """Raises ValueError if a file that is not named exactly would stand for two names."""
    first, first_way = owner.setdefault(path, (name, way))
    if first != name and (way or first_way):
        raise ValueError(
            f"{where}: {show(name)} and {show(first)} would both be {path}; "
            "give paths below the folder of images"
        )


def _find(
    folders: Sequence["_Folder"], name: str, where: str, absent: str
) -> tuple[Path | None, str]:
    """The file, and by which liberty it was found ("" for none)."""
    plain = name.replace("\\", "/")
    is_absolute = bool(_ABSOLUTE.match(plain))
    if ".." in plain.split("/"):
        raise ValueError(f"{where}: image path {show(name)} leads outside {folders[0].root}")
    for folder in folders:
        if path := folder.exact(name):
            return path, ""
    forms = [] if is_absolute else [(plain, "by other letters or slashes")]
    if not is_absolute and canonical(plain) != plain:
        forms.append((canonical(plain), "as whole numbers"))
    if is_absolute:
        parts = [part for part in plain.split("/")[1:] if part]
        tails = ["/".join(parts[i:]) for i in range(len(parts))]
        forms = [(tail, "by the end of a path of another machine") for tail in tails]
    for form, way in forms:
        for folder in folders:
            if path := folder.similar(form, where, name):
                return path, way
    is_below = any(folder.below(name) for folder in folders)
    if is_absolute and not is_below and absent == "error":
        raise ValueError(
            f"{where}: image path {show(name)} leads outside {folders[0].root}, "
            "and no end of it lies there"
        )
    return None, ""


class _Folder:
    """The files below a root, listed when a name is not found as it is written."""

    def __init__(self, root: Path):
        self.root = root
        self._files: dict[str, list[Path]] | None = None

    def below(self, name: str) -> bool:
        """Whether a name is an absolute path that lies in here."""
        return Path(name).is_absolute() and Path(name).is_relative_to(self.root)

    def exact(self, name: str) -> Path | None:
        """The file of that very name, with a suffix if it is left out."""
        path = Path(name)
        if path.is_absolute() and not self.below(name):
            return None
        for suffix in SUFFIXES:
            candidate = self.root / f"{path}{suffix}"
            try:
                if candidate.is_file():
                    return candidate
            except (OSError, ValueError):  # a name that no file can have
                return None
        return None

    def similar(self, name: str, where: str, written: str) -> Path | None:
        """The one file whose name differs in nothing that counts; ValueError for several."""
        for suffix in SUFFIXES:
            hits = self.files.get(_form(f"{name}{suffix}"), [])
            if len(hits) > 1:
                raise ValueError(
                    f"{where}: image path {show(written)} may be {hits[0]} or {hits[1]}"
                )
            if hits:
                return hits[0]
        return None

    @property
    def files(self) -> dict[str, list[Path]]:
        """Files below the root by the form of their relative path."""
        if self._files is None:
            self._files = {}
            for folder, folders, files in os.walk(self.root):
                folders[:] = [each for each in folders if not each.startswith(_HIDDEN)]
                below = os.path.relpath(folder, self.root)
                for file in files:
                    relative = file if below == "." else f"{below}/{file}"
                    path = self.root / relative
                    self._files.setdefault(_form(relative), []).append(path)
        return self._files


def _form(path: str) -> str:
    """What is compared: slashes, one encoding of accents, no difference of case."""
    path = "/".join(part for part in path.replace("\\", "/").split("/") if part not in ("", "."))
    return unicodedata.normalize("NFC", path).casefold()


def _relative(path: Path, roots: Sequence[Path]) -> str:
    root = next((root for root in roots if path.is_relative_to(root)), None)
    return show(str(path if root is None else path.relative_to(root)))


def pickled_inputs(
    pickles: Mapping[str, str | Path],
    tables: Sequence[Table],
    table: Table,
    size: int,
    trust: bool,
) -> UInt8[np.ndarray, "N size size 3"]:
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
