"""The one form in which data reaches training: arrays, names and split indices."""

import dataclasses
import hashlib
from typing import Any, NamedTuple

import numpy as np

SPLITS = ("train", "val", "test")


class Examples(NamedTuple):
    """A batch or a whole split as a pytree of arrays, passed to jitted functions as an argument."""

    inputs: Any
    """float32 `[N, D]` features or uint8 `[N, H, W, 3]` images."""
    labels: Any
    """int32 `[N]` in `[0, K)`."""
    group: Any
    """int32 `[N]` in `[0, G)`."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Labelled examples with a sensitive group and a fixed train / val / test split.

    Attributes:
      name: what reports call it.
      inputs: float32 `[N, D]` features or uint8 `[N, H, W, 3]` images (an array or a memory map).
      labels: int32 `[N]`, indices into `label_names`.
      group: int32 `[N]`, indices into `group_names`.
      label_names: K class names.
      group_names: G group names; intersections read `"Female & Black"`.
      splits: for each of "train", "val", "test" the int32 row numbers, disjoint.
      feature_names: D column names, empty for images.
      notes: what reading did to the data (rows dropped, values imputed), one sentence each.

    Raises:
      ValueError: lengths disagree, an id is outside its names, or splits are absent or overlap.
    """

    name: str
    inputs: np.ndarray
    labels: np.ndarray
    group: np.ndarray
    label_names: tuple[str, ...]
    group_names: tuple[str, ...]
    splits: dict[str, np.ndarray]
    feature_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        n = len(self.inputs)
        for field, names in (("labels", self.label_names), ("group", self.group_names)):
            values = getattr(self, field)
            if values.shape != (n,) or values.dtype != np.int32:
                raise ValueError(
                    f"{self.name}: {field} must be int32 of shape ({n},), "
                    f"got {values.dtype} {values.shape}"
                )
            if n and not 0 <= values.min() <= values.max() < len(names):
                raise ValueError(
                    f"{self.name}: {field} must be in [0, {len(names)}), "
                    f"got {values.min()} to {values.max()}"
                )
        if set(self.splits) != set(SPLITS):
            raise ValueError(f"{self.name}: splits must be {SPLITS}, got {tuple(self.splits)}")
        rows = np.concatenate([self.splits[split] for split in SPLITS])
        if len(np.unique(rows)) != len(rows):
            raise ValueError(f"{self.name}: splits share rows")
        if len(rows) and not 0 <= rows.min() <= rows.max() < n:
            raise ValueError(f"{self.name}: split rows must be in [0, {n})")

    @property
    def num_classes(self) -> int:
        """K, the number of classes."""
        return len(self.label_names)

    @property
    def num_groups(self) -> int:
        """G, the number of sensitive groups."""
        return len(self.group_names)

    def examples(self, split: str) -> Examples:
        """The rows of one split, as NumPy arrays in split order."""
        rows = self.splits[split]
        return Examples(self.inputs[rows], self.labels[rows], self.group[rows])

    def cell_counts(self, split: str) -> np.ndarray:
        """Rows per (label, group) cell of a split, int64 `[K, G]`."""
        rows = self.splits[split]
        counts = np.zeros((self.num_classes, self.num_groups), np.int64)
        np.add.at(counts, (self.labels[rows], self.group[rows]), 1)
        return counts

    @property
    def fingerprint(self) -> str:
        """Short hash of contents and split; equal data gives equal fingerprints on any machine."""
        digest = hashlib.sha256()
        for array in (self.inputs, self.labels, self.group, *(self.splits[s] for s in SPLITS)):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        digest.update(repr((self.label_names, self.group_names)).encode())
        return digest.hexdigest()[:16]
