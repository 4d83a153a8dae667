"""The one form in which data reaches training: arrays, names and split indices."""

import dataclasses
import functools
import hashlib
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, Int64, Integer, Shaped

from fairjax.data.values import merge_ids

SPLITS = ("train", "val", "test")

_CHUNK = 1024  # rows of a memory map that are read at a time


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

    Its arrays are read-only views of what was given: `examples` and `rows` may share them.

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
      ids: `[N]`, any sortable dtype: rows of equal ids (a patient's) never straddle splits; None
        where every row stands alone. Of text, "7" and "7.0" are equal; see `merge_ids`.
      fixed_test: whether the test split was given (a published one, or drawn from elsewhere) and
        must stay as it is when splits are drawn anew.
      encoder: the `fairjax.data.encoding.Encoder` that made `inputs` of the columns of a table, and
        makes those of other rows; None for images and for what had no columns.

    Raises:
      ValueError: lengths disagree, an id is outside its names, splits are absent or overlap,
        rows of one id are in several, or ids are floats too large to be exact.
    """

    name: str
    inputs: Shaped[np.ndarray, "N ..."]
    labels: Int32[np.ndarray, " N"]
    group: Int32[np.ndarray, " N"]
    label_names: tuple[str, ...]
    group_names: tuple[str, ...]
    splits: dict[str, Integer[np.ndarray, " _"]]
    feature_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    ids: Shaped[np.ndarray, " N"] | None = None
    fixed_test: bool = False
    encoder: Any = None

    def __post_init__(self):
        for field in ("inputs", "labels", "group"):
            object.__setattr__(self, field, _read_only(getattr(self, field)))
        splits = {split: _read_only(rows) for split, rows in self.splits.items()}
        object.__setattr__(self, "splits", splits)
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
        for split in SPLITS:
            self._check_rows(self.splits[split], f"split {split!r}")
        rows = np.concatenate([self.splits[split] for split in SPLITS])
        if len(np.unique(rows)) != len(rows):
            raise ValueError(f"{self.name}: splits share rows")
        if self.ids is not None:
            object.__setattr__(self, "ids", merge_ids(self.ids))
            self._check_ids(self.ids)

    def _check_ids(self, ids: np.ndarray) -> None:
        """Raises ValueError unless there is an id per row and none is in two splits."""
        if ids.shape != (len(self.inputs),):
            raise ValueError(
                f"{self.name}: ids must be one per row, ({len(self.inputs)},), got {ids.shape}"
            )
        if ids.dtype.kind == "f" and (np.abs(ids) >= 2.0 ** (np.finfo(ids.dtype).nmant + 1)).any():
            raise ValueError(
                f"{self.name}: ids of {ids.dtype} are too long to be exact; "
                "give whole numbers or text"
            )
        owners = [np.unique(ids[self.splits[split]]) for split in SPLITS]
        values, counts = np.unique(np.concatenate(owners), return_counts=True)
        if (counts > 1).any():
            first = values[counts > 1][0]
            where = [s for s, own in zip(SPLITS, owners, strict=True) if first in own]
            raise ValueError(f"{self.name}: id {str(first)!r} is in {' and '.join(where)}")

    def _check_rows(self, rows: np.ndarray, what: str) -> None:
        """Raises ValueError unless `rows` are whole numbers in [0, N)."""
        if rows.ndim != 1 or rows.dtype.kind not in "iu":
            raise ValueError(
                f"{self.name}: {what} must be row numbers [n], got {rows.dtype} {rows.shape}"
            )
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self.inputs):
            raise ValueError(
                f"{self.name}: rows of {what} must be in [0, {len(self.inputs)}), "
                f"got {rows.min()} to {rows.max()}"
            )

    @property
    def num_classes(self) -> int:
        """K, the number of classes."""
        return len(self.label_names)

    @property
    def num_groups(self) -> int:
        """G, the number of sensitive groups."""
        return len(self.group_names)

    def split_rows(self, split: str) -> Integer[np.ndarray, " n"]:
        """Row numbers of a split; ValueError if there is no such split."""
        if split not in self.splits:
            raise ValueError(f"{self.name}: split must be one of {SPLITS}, got {split!r}")
        return self.splits[split]

    def examples(self, split: str) -> Examples:
        """The rows of one split, as NumPy arrays in split order; see `rows` for when it copies."""
        return self.rows(self.split_rows(split))

    def rows(self, rows: Integer[np.ndarray, " n"]) -> Examples:
        """Any rows of the set, in the order given, on the host.

        Rows that follow one another (as in a split that is a range) are read-only views, which
        read nothing from a memory map; all others are copied, a memory map in the order of its
        file, so that the disk is read once from front to back. Never holds more than the rows.

        Args:
          rows: row numbers in `[0, N)`, repeats allowed; `data.splits["train"][positions]` turns
            positions within a split into them.

        Returns:
          `Examples` of NumPy arrays with n rows.

        Raises:
          ValueError: `rows` are not whole numbers in `[0, N)`.
        """
        self._check_rows(rows, "rows")
        if len(rows) and (np.diff(rows) == 1).all():
            piece = slice(int(rows[0]), int(rows[-1]) + 1)
            return Examples(self.inputs[piece], self.labels[piece], self.group[piece])
        return Examples(_gather(self.inputs, rows), self.labels[rows], self.group[rows])

    def cell_counts(self, split: str) -> Int64[np.ndarray, "K G"]:
        """Rows per (label, group) cell of a split, int64 `[K, G]`."""
        rows = self.split_rows(split)
        counts = np.zeros((self.num_classes, self.num_groups), np.int64)
        np.add.at(counts, (self.labels[rows], self.group[rows]), 1)
        return counts

    @functools.cached_property
    def fingerprint(self) -> str:
        """Short hash of contents and split, computed once; equal data gives equal fingerprints."""
        digest = hashlib.sha256()
        for array in (self.inputs, self.labels, self.group, *(self.splits[s] for s in SPLITS)):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        digest.update(repr((self.label_names, self.group_names)).encode())
        return digest.hexdigest()[:16]


def _read_only(array: np.ndarray) -> np.ndarray:
    """A view through which nothing can be changed."""
    view = np.asanyarray(array).view()
    view.flags.writeable = False
    return view


def _gather(inputs: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """A copy of some rows; of a memory map they are read in the order of the file."""
    if not isinstance(inputs, np.memmap):
        return inputs[rows]
    order = np.argsort(rows, kind="stable")
    taken = np.empty((len(rows), *inputs.shape[1:]), inputs.dtype)
    for start in range(0, len(order), _CHUNK):
        part = order[start : start + _CHUNK]
        taken[part] = inputs[rows[part]]
    return taken
