"""Decode every image once: a memory-mapped uint8 array on disk, found again by its fingerprint."""

import concurrent.futures
import contextlib
import functools
import hashlib
import json
import math
import os
import shutil
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8

from fairjax.data.decode import Decoded, Packed, read_image

# Raised when decoding changes what it returns, so that old caches are not taken for new ones.
_VERSION = 2
_CHECKED_ROWS = 512
_CHUNK = 32


def default_cache_dir() -> Path:
    """`fairjax` below `$XDG_CACHE_HOME`, or below `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fairjax"


class CachedImages(NamedTuple):
    """Decoded images, and what is to be said of them."""

    pixels: UInt8[np.ndarray, "N size size 3"]
    """A read-only memory map."""
    skipped: dict[int, str]
    """Rows that could not be read, and why."""
    notes: tuple[str, ...]
    """Where the images are kept, and what was done to those of more than 8 bits."""


def cached_images(
    paths: Sequence[str | Path | Packed],
    size: int,
    *,
    where: Sequence[str] | None = None,
    cache_dir: str | Path | None = None,
    window: tuple[float, float] | None = None,
    array_key: str | None = None,
    on_error: Literal["error", "skip"] = "error",
    num_workers: int | None = None,
    progress: bool | None = None,
) -> CachedImages:
    """Images at one size as a memory map, decoded now or taken from the cache.

    The cache is keyed by the path, length and modification time of every file and by the settings.
    It appears under its name only when it is whole, so an interrupted run leaves nothing that
    could be taken for a cache; one that was cut short or overwritten later is noticed by its
    length and the checksums of 512 rows spread over it, and built again. Building keeps as many
    images in memory as there are workers: they are threads, since Pillow works without the lock
    of the interpreter.

    Args:
      paths: N image files, as `decode_image` reads them, or pictures inside larger files.
      size: side of the stored images; a little more than the training crop leaves room for it.
      where: N places (file and line of a table) that errors name besides the path.
      cache_dir: folder of caches, created where absent; `default_cache_dir()` by default.
      window: see `decode_image`.
      array_key: see `decode_image`.
      on_error: "error" stops at the first image that is absent or cannot be read; "skip" leaves it
        black and reports it.
      num_workers: threads; one per processor by default.
      progress: show a bar on stderr; by default if that is a terminal.

    Returns:
      The read-only memory map, uint8 `[N, size, size, 3]`, the rows that were skipped with the
      reason for each, and notes.

    Raises:
      FileNotFoundError: an image is absent, or all of them (under either policy).
      ValueError: an image cannot be read, or there are none.
      OSError: the disk is full.
    """
    if on_error not in ("error", "skip"):
        raise ValueError(f'on_error must be "error" or "skip", got {on_error!r}')
    if not len(paths) or size < 1:
        raise ValueError(f"needs images and a size of at least 1, got {len(paths)} and {size}")
    if window is not None and not (
        all(map(math.isfinite, window)) and len(window) == 2 and window[0] < window[1]
    ):
        raise ValueError(f"window must be two increasing finite numbers, got {window}")
    paths = [path if isinstance(path, Packed) else Path(path) for path in paths]
    where = where if where is not None else [""] * len(paths)
    settings = {
        "version": _VERSION,
        "size": size,
        "window": window,
        "array_key": array_key,
        "on_error": on_error,
    }
    entries = [_identity(path) for path in paths]
    _check_absent(paths, where, entries, on_error)
    name = f"images-{_fingerprint(entries, settings)}"
    folder = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    shape = (len(paths), size, size, 3)
    found = _open_cache(folder / name, shape)
    if found is None:
        read = functools.partial(read_image, size=size, window=window, array_key=array_key)
        _build_cache(folder / name, paths, where, shape, read, on_error, num_workers, progress)
        found = _open_cache(folder / name, shape)
        if found is None:
            raise OSError(f"{folder / name}: the cache just written cannot be read back")
    pixels, skipped, num_deep = found
    notes = [_place_note(folder / name, pixels)]
    if num_deep:
        notes.insert(0, _window_note(num_deep, len(paths), window))
    return CachedImages(pixels, skipped, tuple(notes))


def _window_note(num_deep: int, count: int, window: tuple[float, float] | None) -> str:
    how = "each from its own smallest to its own largest value (DICOM: by the window in the file)"
    if window is not None:
        how = f"from {window[0]:g} to {window[1]:g}"
    return f"{num_deep} of {count} images are not of 8 bits: mapped to 0..255, {how}."


def _place_note(folder: Path, pixels: np.ndarray) -> str:
    """Decoded images of patients stay on the disk, which their owner should know."""
    place = str(folder)
    home = str(Path.home())
    if place.startswith(home + os.sep):
        place = "~" + place[len(home) :]  # notes are shown to others
    return f"Decoded images ({pixels.nbytes / 2**20:.1f} MiB) are kept in {place}."


def _identity(path: Path | Packed) -> str | None:
    """What identifies a picture's contents, or None where there is no file."""
    if isinstance(path, Packed):
        holder = _identity(path.file)
        return None if holder is None else f"{path.place}\0{holder}"
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # a name too long, a null in it
        raise ValueError(f"{path}: not a path of an image: {error}") from None
    return f"{os.path.abspath(path)}\0{status.st_size}\0{status.st_mtime_ns}\n"


def _check_absent(
    paths: Sequence[Path | Packed],
    where: Sequence[str],
    entries: Sequence[str | None],
    on_error: str,
) -> None:
    """Raises FileNotFoundError for absent images, unless they are to be skipped and some remain."""
    absent = [row for row, entry in enumerate(entries) if entry is None]
    if absent and (on_error == "error" or len(absent) == len(paths)):
        raise FileNotFoundError(
            f"{_at(where[absent[0]])}{paths[absent[0]]}: no such image file "
            f"({len(absent)} missing in all)"
        )


def _fingerprint(entries: Sequence[str | None], settings: dict) -> str:
    """Short hash of the settings and of what identifies each file's contents."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for entry in entries:
        digest.update((entry or "absent\n").encode(errors="surrogateescape"))
    return digest.hexdigest()[:24]


def _at(place: str) -> str:
    return f"{place}: " if place else ""


def _checked_rows(count: int) -> np.ndarray:
    """Rows whose checksums are kept: all of a small set, else evenly spaced with both ends."""
    return np.unique(np.linspace(0, count - 1, min(count, _CHECKED_ROWS)).astype(np.int64))


def _checksum(pixels: np.ndarray) -> int:
    sums = [zlib.crc32(pixels[row].tobytes()) for row in _checked_rows(len(pixels))]
    return zlib.crc32(np.asarray(sums, np.uint32).tobytes())


def _open_cache(
    folder: Path, shape: tuple[int, ...]
) -> tuple[np.ndarray, dict[int, str], int] | None:
    """A cache that is whole, or None."""
    try:
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        pixels = np.load(folder / "pixels.npy", mmap_mode="r", allow_pickle=False)
        if pixels.shape != shape or pixels.dtype != np.uint8:
            return None
        if _checksum(pixels) != facts["checksum"]:
            return None
        skipped = {int(row): reason for row, reason in facts["skipped"].items()}
        return pixels, skipped, int(facts["deep"])
    except (OSError, ValueError, KeyError, EOFError):
        return None


def _build_cache(
    folder: Path,
    paths: Sequence[Path | Packed],
    where: Sequence[str],
    shape: tuple[int, ...],
    read: Callable[[Path | Packed], Decoded],
    on_error: str,
    num_workers: int | None,
    progress: bool | None,
) -> None:
    """Decode into a folder beside the final one and rename it when it is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        pixels = _allocate(partial / "pixels.npy", shape)
        skipped, num_deep = _fill(pixels, paths, where, read, on_error, num_workers, progress)
        pixels.flush()
        facts = {"checksum": _checksum(pixels), "skipped": skipped, "deep": num_deep}
        (partial / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
        del pixels
        shutil.rmtree(folder, ignore_errors=True)  # only a damaged one can be there
        with contextlib.suppress(OSError):  # another process was faster: equal contents
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Remove what killed processes left of this cache."""
    for partial in folder.parent.glob(f"{folder.name}.partial-*"):
        with contextlib.suppress(OSError, ValueError):
            try:
                os.kill(int(partial.name.rpartition("-")[2]), 0)
            except ProcessLookupError:
                shutil.rmtree(partial, ignore_errors=True)


def _allocate(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """A writable `.npy` whose blocks are reserved, so a full disk is an error and not a crash."""
    pixels = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    reserve = getattr(os, "posix_fallocate", None)
    if reserve is not None:
        with path.open("r+b") as file:
            try:
                reserve(file.fileno(), 0, path.stat().st_size)
            except OSError as error:
                needed = path.stat().st_size / 2**20
                raise OSError(
                    f"{path.parent.parent}: no room for a cache of {needed:.0f} MiB: "
                    f"{error.strerror}"
                ) from None
    return pixels


def _fill(
    pixels: np.ndarray,
    paths: Sequence[Path | Packed],
    where: Sequence[str],
    read: Callable[[Path | Packed], Decoded],
    on_error: str,
    num_workers: int | None,
    progress: bool | None,
) -> tuple[dict[int, str], int]:
    """Decode all images in place; returns the rows skipped and why, and how many are deep."""
    import tqdm

    skipped, deep = {}, set()

    def work(start: int) -> int:
        stop = min(start + _CHUNK, len(paths))
        for row in range(start, stop):
            try:
                pixels[row], is_deep = read(paths[row])
                if is_deep:
                    deep.add(row)
            except (ValueError, FileNotFoundError) as error:
                if on_error == "error":
                    raise type(error)(f"{_at(where[row])}{error}") from None
                skipped[row] = str(error)
        return stop - start

    hide = not (sys.stderr.isatty() if progress is None else progress)
    workers = num_workers or os.cpu_count() or 1
    bar = tqdm.tqdm(total=len(paths), desc="decoding", unit="img", disable=hide, leave=False)
    with bar, concurrent.futures.ThreadPoolExecutor(workers) as pool:
        starts = range(0, len(paths), _CHUNK)
        futures = [pool.submit(work, start) for start in starts]
        try:
            for future in concurrent.futures.as_completed(futures):
                bar.update(future.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return skipped, len(deep)
