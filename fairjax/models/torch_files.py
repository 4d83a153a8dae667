"""Tensors in the files of `torch.save`, read without torch; nothing in a file is executed.

Such a file is a pickle, which may name any function and have it called. Here it may name what
`_allowed` lists and nothing else; tensors come back as NumPy arrays. Training scripts keep settings
and scores beside them: what is known to be harmless is admitted, and nothing of it is made.
"""

import collections
import math
import pathlib
import pickle
import zipfile
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

_DTYPES = {
    "Float": np.dtype(np.float32),
    "Double": np.dtype(np.float64),
    "Half": np.dtype(np.float16),
    "BFloat16": np.dtype(jnp.bfloat16),
    "Long": np.dtype(np.int64),
    "Int": np.dtype(np.int32),
    "Short": np.dtype(np.int16),
    "Char": np.dtype(np.int8),
    "Byte": np.dtype(np.uint8),
    "Bool": np.dtype(np.bool_),
}
"""By the first part of the name of a storage."""


_BESIDE = (
    *(("argparse", "Namespace"), ("_codecs", "encode"), ("collections", "defaultdict")),
    *(("pathlib", name) for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath")),
    *(("pathlib._local", name) for name in ("Path", "PosixPath", "WindowsPath")),
    *(("datetime", name) for name in ("datetime", "date", "timedelta")),
    *(("builtins", name) for name in ("set", "frozenset", "complex", "bytearray", "slice")),
    *(("__builtin__", name) for name in ("set", "frozenset", "complex", "bytearray", "slice")),
    *(("numpy", name) for name in ("dtype", "ndarray")),
    *(
        (f"numpy.{core}.multiarray", name)
        for core in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    ),
    *(("torch", name) for name in ("device", "dtype", "float32", "float16", "bfloat16", "int64")),
    ("torch.torch_version", "TorchVersion"),
)
"""What lies beside tensors in checkpoints: admitted, and replaced by `Beside`."""


class Beside:
    """Stands for something harmless that is no tensor; whatever is done to it does nothing."""

    def __new__(cls, *args: Any, **settings: Any) -> "Beside":
        """Take any arguments."""
        return super().__new__(cls)

    def __init__(self, *args: Any, **settings: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """Nothing."""

    def extend(self, values: Any) -> None:
        """Nothing."""

    def add(self, value: Any) -> None:
        """Nothing."""


class _Tensor(NamedTuple):
    """Which numbers of a storage a tensor has."""

    storage: str
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def read_torch_file(path: pathlib.Path) -> Any:
    """What was saved, with NumPy arrays for tensors.

    Both kinds of file are read: the zip archives of today, and what torch wrote before 1.6.

    Raises:
      ValueError: a damaged file, or one that holds more than tensors, numbers, text and containers.
    """
    try:
        with path.open("rb") as file:
            is_zip = file.read(4) == b"PK\x03\x04"
            file.seek(0)
            tree, storages = _read_zip(file) if is_zip else _read_pickles(file)
        return _filled(tree, storages)
    except Exception as error:  # a damaged pickle raises whatever its first wrong byte leads to
        reason = str(error).strip() or type(error).__name__
        raise ValueError(
            f"{path}: damaged, or holds more than tensors, which is never executed ({reason})"
        ) from None


def _allowed() -> dict[tuple[str, str], Any]:
    """What a file may name, and what stands in for it.

    Made anew for every pickle: one that tampers with these functions spoils only its own.
    """
    return (
        dict.fromkeys(_BESIDE, Beside)
        | {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch", "Size"): tuple,
            ("torch._utils", "_rebuild_tensor_v2"): lambda storage, offset, size, stride, *_: (
                _Tensor(storage, offset, size, stride)
            ),
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
            ("torch._utils", "_rebuild_parameter_with_state"): lambda data, *_: data,
        }
        | {("torch", f"{name}Storage"): name for name in _DTYPES}
    )


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any):
        super().__init__(file)
        self.allowed, self.dtypes = _allowed(), {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return self.allowed[module, name]

    def persistent_load(self, pid: Any) -> str:
        """The key of a storage; its numbers are elsewhere in the file."""
        _, kind, key, *_ = pid
        self.dtypes[key] = _DTYPES[kind]
        return key


def _read_zip(file: BinaryIO) -> tuple[Any, dict[str, np.ndarray]]:
    with zipfile.ZipFile(file) as archive:
        names = {name.partition("/")[2]: name for name in archive.namelist()}
        if "byteorder" in names and archive.read(names["byteorder"]) != b"little":
            raise ValueError("its numbers are big-endian")
        with archive.open(names["data.pkl"]) as inside:
            unpickler = _Unpickler(inside)
            tree = unpickler.load()
        return tree, {
            key: np.frombuffer(archive.read(names[f"data/{key}"]), dtype)
            for key, dtype in unpickler.dtypes.items()
        }


def _read_pickles(file: BinaryIO) -> tuple[Any, dict[str, np.ndarray]]:
    """Magic number, version, machine, contents and storage keys are pickles; numbers follow."""
    if (_Unpickler(file).load(), _Unpickler(file).load()) != (0x1950A86A20F9469CFC6C, 1001):
        raise ValueError("not a file of torch.save")
    if not _Unpickler(file).load()["little_endian"]:
        raise ValueError("its numbers are big-endian")
    unpickler = _Unpickler(file)
    tree, storages = unpickler.load(), {}
    for key in _Unpickler(file).load():
        dtype, length = unpickler.dtypes[key], int.from_bytes(file.read(8), "little")
        storages[key] = np.frombuffer(file.read(length * dtype.itemsize), dtype)
        if len(storages[key]) != length:
            raise ValueError("it ends too early")
    return tree, storages


def _filled(tree: Any, storages: dict[str, np.ndarray]) -> Any:
    """`tree` with arrays for tensors."""
    if isinstance(tree, _Tensor):
        numbers = storages[tree.storage]
        if 0 in tree.size:
            return np.zeros(tree.size, numbers.dtype)
        last = tree.offset + sum((n - 1) * step for n, step in zip(*tree[2:], strict=True))
        too_many = math.prod(tree.size) > len(numbers)
        if too_many or last >= len(numbers) or min((tree.offset, *tree.size, *tree.stride)) < 0:
            raise ValueError(f"a tensor of shape {tuple(tree.size)} is not inside its storage")
        strides = [step * numbers.itemsize for step in tree.stride]
        view = np.lib.stride_tricks.as_strided(numbers[tree.offset :], tree.size, strides)
        return np.array(view)
    if isinstance(tree, dict):
        return {key: _filled(value, storages) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_filled(value, storages) for value in tree]
    return tree
