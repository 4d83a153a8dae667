"""Files of a result folder: written whole or not at all, and errors that name them."""

import contextlib
import io
import os
import re
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError


class FolderError(OSError):
    """A file of a result folder that cannot be read or written; one line that names it."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, whose file takes the place of `path` once the block has succeeded.

    A reader, or a kill, sees the old contents or the new, which are on disk by then.

    Raises:
      OSError: `path` cannot be written.
    """
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    try:
        with named_errors("write", path):
            yield partial
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            partial.replace(path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def write_atomically(path: Path, text: str) -> None:
    """Write a text file; see `replacing`."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def save_arrays(path: Path, **arrays: Any) -> None:
    """Write an `.npz`; see `replacing`."""
    with replacing(path) as partial:
        np.savez(partial, **arrays)


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """What `save_arrays` wrote.

    Raises:
      OSError: the file is damaged or missing.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes())) as stored:
            return dict(stored)
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error, AttributeError) as error:
        raise FolderError(f"{path} is damaged ({reason(error)}); delete it to go on") from error


@contextlib.contextmanager
def named_errors(what: str, path: Path) -> Iterator[None]:
    """Errors of reading and writing, which may lack it, with the path."""
    try:
        yield
    except FolderError:
        raise
    except (OSError, SafetensorError) as error:
        raise FolderError(f"cannot {what} {path}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """What went wrong, without what orbax and tensorstore wrap around it."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    text = re.sub(r" \[(tensorstore_spec|os_error_code).*", "", text.splitlines()[0])
    return text.rsplit(": ", 1)[-1]


def check_writable(folder: Path) -> None:
    """Raises ValueError or OSError where `folder` is none or cannot be made; leaves nothing."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        raise ValueError(f"--out {folder}: {there} is a file, not a folder")
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise FolderError(f"--out {folder}: cannot write there ({error.strerror})") from error
