"""One image file, of any kind that medical sets come in, as a square uint8 RGB array."""

import contextlib
import dataclasses
import io
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from fairjax.data.deep_pixels import deep_pixels
from fairjax.data.dicom import read_dicom

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "PPM")
"""What Pillow may take a file for, whatever its name. For some others (EPS) it starts programs."""

MAX_PIXELS = 2**27
"""Images that claim more pixels than this (134 million) are refused before they are decoded."""

# How much larger than needed a JPEG may be after the decoder's own cheap halving; the rest is done
# by an antialiased resize.
_DRAFT_GAP = 1.5


@dataclasses.dataclass(frozen=True)
class Packed:
    """A picture that lies inside a larger file, such as a record of a TensorFlow data set.

    Attributes:
      file: what holds it; when that changes, so may the picture.
      place: where in it the picture lies.
      read: the picture's bytes, in one of `FORMATS`; called by several threads at once.
    """

    file: Path
    place: str
    read: Callable[[], bytes]

    def __str__(self):
        """The place, as messages give it."""
        return f"{self.file}, {self.place}"


class Decoded(NamedTuple):
    """An image as the cache keeps it."""

    pixels: UInt8[np.ndarray, "size size 3"]
    is_deep: bool
    """Whether the file's pixels were not 8 bits wide, so that a window was put over them."""


def decode_image(
    path: str | Path,
    size: int,
    *,
    window: tuple[float, float] | None = None,
    array_key: str | None = None,
) -> UInt8[np.ndarray, "size size 3"]:
    """Read an image, resize its shorter side to `size` with antialias and crop the centre.

    EXIF orientation is honoured, grey becomes RGB, transparency is dropped, CMYK is converted.
    Pixels that are not 8 bits (16-bit files, grey or in colour, float files, arrays) are mapped
    linearly to 0..255 and clipped, never wrapped: one window for all channels of an image.

    Args:
      path: an image of one of `FORMATS`, `.npy` / `.npz` holding `[H, W]`, `[H, W, 1]` or
        `[H, W, 3]`, or `.dcm` (with pydicom, the extra `dicom`).
      size: side of the result in pixels.
      window: the values that become 0 and 255, for pixels that are not 8 bits; None takes the
        smallest and the largest value of each image, of DICOM the window in the file.
      array_key: which array of an `.npz`; needed if it holds several.

    Returns:
      uint8 `[size, size, 3]`.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not readable as an image, not finite, or larger than `MAX_PIXELS`.
    """
    return read_image(path, size, window=window, array_key=array_key).pixels


def read_image(
    path: str | Path | Packed,
    size: int,
    *,
    window: tuple[float, float] | None = None,
    array_key: str | None = None,
) -> Decoded:
    """`decode_image`, and whether the window was needed; also of a picture inside a file."""
    path = path if isinstance(path, Packed) else Path(path)
    with _reading(path):
        if isinstance(path, Packed):
            image, is_deep = _decode_file(path, size, window)
        elif path.suffix.lower() in (".npy", ".npz"):
            pixels = _read_array(path, array_key)
            image, is_deep = _from_array(_to_uint8(pixels, window)), pixels.dtype != np.uint8
        elif path.suffix.lower() in (".dcm", ".dicom"):
            pixels, own, is_inverse = read_dicom(path, MAX_PIXELS)
            shown = _to_uint8(pixels, window if window is not None else own)
            image = _from_array(255 - shown if is_inverse else shown)
            is_deep = pixels.dtype != np.uint8
        else:
            image, is_deep = _decode_file(path, size, window)
        return Decoded(_fit(image, size), is_deep)


def upright_png(path: str | Path, window: tuple[float, float] | None = None) -> bytes | None:
    """A PNG of the whole picture where a copy of its file would not look as it is decoded here.

    Args:
      path: an image of one of `FORMATS`.
      window: as for `decode_image`.

    Returns:
      The bytes of a PNG of 8 bits a channel, for files that an EXIF orientation turns or that
      have more bits; None for all others, which can be copied.

    Raises:
      FileNotFoundError: no such file; ValueError: not readable as an image.
    """
    from PIL import Image

    with _reading(Path(path)):
        with _open(Path(path)) as image:
            turned = image.getexif().get(0x0112, 1) != 1
        picture, is_deep = _decode_file(Path(path), None, window)
        if not turned and not is_deep:
            return None
        file = io.BytesIO()
        clean = Image.fromarray(np.asarray(picture))  # without what the file says besides
        clean.save(file, format="PNG")
        return file.getvalue()


@contextlib.contextmanager
def _reading(path: Path | Packed) -> Iterator[None]:
    """Whatever a library raises over a file of the user becomes one line that names it."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such image file") from None
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        reason = reason if len(reason) <= 300 else f"{reason[:300]} ..."
        raise ValueError(f"{path}: not readable as an image: {reason}") from None


def square(pixels: UInt8[np.ndarray, "H W 3"], size: int) -> UInt8[np.ndarray, "size size 3"]:
    """uint8 `[H, W, 3]` resized and cropped as `decode_image` does."""
    return _fit(_from_array(pixels), size)


def _open(path: Path | Packed) -> Any:
    """The image as Pillow opens it: its size is checked, nothing is decoded."""
    from PIL import Image, UnidentifiedImageError

    with warnings.catch_warnings():
        # Our own limit is checked below, before anything is decoded.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        Image.init()  # all plugins; a build of Pillow may lack some
        try:
            source = io.BytesIO(path.read()) if isinstance(path, Packed) else path
            image = Image.open(source, formats=[name for name in FORMATS if name in Image.OPEN])
        except UnidentifiedImageError:
            raise ValueError(f"none of {', '.join(FORMATS)}") from None
    try:
        _check_pixels(image.width * image.height)
    except ValueError:
        image.close()
        raise
    return image


def _decode_file(
    path: Path | Packed, size: int | None, window: tuple[float, float] | None
) -> tuple[Any, bool]:
    """An upright RGB image, for a side of `size` or whole, and whether a window was needed."""
    from PIL import ImageOps

    with _open(path) as image:
        short = min(image.size)
        if image.format == "JPEG" and size is not None and short > size:
            scale = _DRAFT_GAP * size / short
            image.draft(None, (round(image.width * scale), round(image.height * scale)))
        deep = deep_pixels(image, lambda: _open(path), ImageOps.exif_transpose)
        if deep is not None:
            return _from_array(_to_uint8(deep, window)), True
        return ImageOps.exif_transpose(image).convert("RGB"), False


def _fit(image: Any, size: int) -> np.ndarray:
    """Centre square of a Pillow image at `size` pixels, resized and cropped in one pass."""
    from PIL import Image

    width, height = image.size
    short = min(width, height)
    left, top = (width - short) / 2, (height - short) / 2
    box = (left, top, left + short, top + short)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))


def _from_array(pixels: np.ndarray) -> Any:
    """A Pillow RGB image of uint8 `[H, W]`, `[H, W, 1]` or `[H, W, 3]`."""
    from PIL import Image

    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim != 2 and not (pixels.ndim == 3 and pixels.shape[-1] == 3):
        raise ValueError(f"shape {pixels.shape}, accepted are [H, W], [H, W, 1] and [H, W, 3]")
    return Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")


def _to_uint8(pixels: np.ndarray, window: tuple[float, float] | None) -> np.ndarray:
    """Map numbers to 0..255 by a window or by their own range; uint8 stays as it is."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind not in "biuf":
        raise ValueError(f"pixels of type {pixels.dtype}")
    values = pixels.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("pixels are not finite")
    low, high = window if window is not None else (values.min(), values.max())
    share = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return np.round(255 * np.clip(share, 0, 1)).astype(np.uint8)


def _read_array(path: Path, key: str | None) -> np.ndarray:
    """The array of a `.npy` or `.npz`, its size checked before it is read."""
    if path.suffix.lower() == ".npy":
        pixels = np.load(path, mmap_mode="r", allow_pickle=False)
        _check_pixels(pixels.size)
        return np.array(pixels)
    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        if key is None and len(names) == 1:
            key = names[0]
        if key not in names:
            raise ValueError(f"no array {key!r}, it holds {', '.join(names)}")
        _check_pixels(archive.getinfo(f"{key}.npy").file_size // 8)
        with archive.open(f"{key}.npy") as file:
            return np.lib.format.read_array(io.BytesIO(file.read()), allow_pickle=False)


def _check_pixels(count: int) -> None:
    if count > MAX_PIXELS:
        raise ValueError(f"{count} pixels, at most {MAX_PIXELS} are accepted")
