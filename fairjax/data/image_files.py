"""Where a table's images lie: files below a folder, or the pickles that MEDFAIR writes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from fairjax.data.csvfile import Table, show
from fairjax.data.dataset import SPLITS
from fairjax.data.decode import square
from fairjax.data.pickles import read_pickled_images

SUFFIXES = ("", ".jpg", ".jpeg", ".png", ".npy", ".npz", ".tif", ".tiff", ".bmp")
"""What may be left out of the name of an image, in the order in which it is tried."""


def path_below(root: Path, name: str, where: str) -> Path:
    """What a cell names as a path relative to the root; ValueError if it leads outside."""
    path = Path(name)
    if path.is_absolute() and path.is_relative_to(root):
        path = path.relative_to(root)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{where}: image path {show(name)} leads outside {root}")
    return path


def locate(root: Path, name: str, where: str) -> Path:
    """The file a cell names, below the root, with its suffix found where it is left out."""
    relative = path_below(root, name, where)
    for suffix in SUFFIXES:
        candidate = root / f"{relative}{suffix}"
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"{where}: no image file {root / relative}")


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
