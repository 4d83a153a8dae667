"""DICOM files of one grey or RGB frame, by the optional package pydicom."""

from pathlib import Path

import numpy as np


def read_dicom(path: Path, max_pixels: int) -> tuple[np.ndarray, tuple[float, float] | None, bool]:
    """Pixels as the modality means them (Hounsfield units in a CT), nothing windowed.

    Args:
      path: the file.
      max_pixels: larger images are refused before they are decoded.

    Returns:
      Numbers `[H, W]`, or uint8 `[H, W, 3]`; the first window in the file, None where it has none;
      and whether large values are dark (MONOCHROME1).

    Raises:
      ValueError: pydicom is not installed, or the file holds several frames or other colours.
    """
    try:
        import pydicom
        from pydicom.pixels.processing import apply_modality_lut
    except ImportError:
        raise ValueError(
            "DICOM is read by pydicom: pip install 'fairjax[dicom]', or convert it to a PNG of 16 "
            "bits or .npy"
        ) from None
    data = pydicom.dcmread(path)
    if int(data.get("NumberOfFrames") or 1) > 1:
        raise ValueError(f"DICOM of {data.NumberOfFrames} frames, one image is expected")
    if data.Rows * data.Columns > max_pixels:
        raise ValueError(f"{data.Rows * data.Columns} pixels, at most {max_pixels} are accepted")
    kind = data.PhotometricInterpretation
    if kind == "RGB" and data.BitsAllocated == 8:
        return data.pixel_array, None, False
    if kind not in ("MONOCHROME1", "MONOCHROME2"):
        raise ValueError(f"DICOM of {kind} with {data.BitsAllocated} bits; convert it to PNG")
    pixels = np.asarray(apply_modality_lut(data.pixel_array, data), np.float64)
    window = None
    if "WindowCenter" in data and "WindowWidth" in data:
        center, width = (
            float(np.ravel(np.asarray(data[name].value, np.float64))[0])
            for name in ("WindowCenter", "WindowWidth")
        )
        if width > 1:  # PS3.3 C.11.2.1.2.1: where the linear window begins and ends
            window = (center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2)
    return pixels, window, kind == "MONOCHROME1"
