"""The pickled lists of images that MEDFAIR writes, read without running what they name."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8


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
