"""One image file, of any kind that medical sets come in, as a square uint8 RGB array."""

import io
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

MAX_PIXELS = 2**27
"""Images that claim more pixels than this (134 million) are refused before they are decoded."""

# How much larger than needed a JPEG may be after the decoder's own cheap halving; the rest is done
# by an antialiased resize.
_DRAFT_GAP = 1.5


def decode_image(
    path: str | Path,
    size: int,
    *,
    window: tuple[float, float] | None = None,
    array_key: str | None = None,
) -> UInt8[np.ndarray, "size size 3"]:
    """Read an image, resize its shorter side to `size` with antialias and crop the centre.

    EXIF orientation is honoured, grey becomes RGB, transparency is dropped, CMYK is converted.
    Pixels that are not 8 bits (16-bit and float files, arrays) are mapped linearly to 0..255 and
    clipped, never wrapped.

    Args:
      path: an image that Pillow reads, or `.npy` / `.npz` holding `[H, W]`, `[H, W, 1]` or
        `[H, W, 3]`.
      size: side of the result in pixels.
      window: the values that become 0 and 255, for pixels that are not 8 bits; None takes the
        smallest and the largest value of each image.
      array_key: which array of an `.npz`; needed if it holds several.

    Returns:
      uint8 `[size, size, 3]`.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not readable as an image, not finite, or larger than `MAX_PIXELS`.
    """
    path = Path(path)
    try:
        if path.suffix.lower() in (".npy", ".npz"):
            pixels = _read_array(path, array_key)
            return _fit(_from_array(_to_uint8(pixels, window)), size)
        return _decode_file(path, size, window)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such image file") from None
    except (OSError, SyntaxError, EOFError, zipfile.BadZipFile, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: not readable as an image: {reason}") from None


def square(pixels: UInt8[np.ndarray, "H W 3"], size: int) -> UInt8[np.ndarray, "size size 3"]:
    """uint8 `[H, W, 3]` resized and cropped as `decode_image` does."""
    return _fit(_from_array(pixels), size)


def _decode_file(path: Path, size: int, window: tuple[float, float] | None) -> np.ndarray:
    """The Pillow branch of `decode_image`."""
    from PIL import Image, ImageOps

    with warnings.catch_warnings():
        # Our own limit is checked below, before anything is decoded.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            image = Image.open(path)
        except Image.DecompressionBombError as error:
            raise ValueError(str(error)) from None
    with image:
        _check_pixels(image.width * image.height)
        short = min(image.size)
        if image.format == "JPEG" and short > size:
            scale = _DRAFT_GAP * size / short
            image.draft(None, (round(image.width * scale), round(image.height * scale)))
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith(("I", "F")):
            return _fit(_from_array(_to_uint8(np.asarray(upright), window)), size)
        return _fit(upright.convert("RGB"), size)


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


class _ArrayUnpickler(pickle.Unpickler):
    """Admits what a list of NumPy arrays is made of, and nothing else."""

    admitted = {
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy._core.numeric", "_frombuffer"),
        ("numpy.core.numeric", "_frombuffer"),
        ("_codecs", "encode"),
    }

    def find_class(self, module: str, name: str) -> Any:
        """The named object if it is admitted."""
        if (module, name) not in self.admitted:
            raise ValueError(f"it asks for {module}.{name}; only lists of arrays are accepted")
        return super().find_class(module, name)


def read_pickled_images(
    path: str | Path, *, trust: bool = False, bgr: bool = True
) -> list[UInt8[np.ndarray, "_ _ 3"]]:
    """The images of a MEDFAIR `*_images.pkl`: a pickled list of uint8 `[H, W, 3]` arrays.

    Unpickling can run code, so it must be asked for, and then only arrays are admitted.

    Args:
      path: the pickle.
      trust: must be True.
      bgr: whether channels are blue, green, red, as MEDFAIR writes them; they are swapped.

    Returns:
      List of uint8 `[H, W, 3]` arrays, RGB.

    Raises:
      FileNotFoundError: no such file.
      ValueError: `trust` is False, or the file holds anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if not trust:
        raise ValueError(
            f"{path}: a pickle can run code when it is read; allow it with trust_pickle=True "
            "if you made it yourself, or give the image files instead"
        )
    try:
        with path.open("rb") as file:
            images = _ArrayUnpickler(file).load()
    except (ValueError, EOFError, pickle.UnpicklingError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: not a MEDFAIR image pickle: {error}") from None
    if not isinstance(images, list):
        raise ValueError(f"{path}: expected a list of images, found {type(images).__name__}")
    for row, image in enumerate(images):
        good = isinstance(image, np.ndarray) and image.dtype == np.uint8
        if not good or image.ndim != 3 or image.shape[-1] != 3:
            raise ValueError(f"{path}, image {row}: expected uint8 [H, W, 3]")
    return [image[..., ::-1] for image in images] if bgr else images
