"""Pixels of more than 8 bits as the file has them, where Pillow would keep the high byte only.

A 12-bit scan in a 16-bit colour PNG has 0 to 15 in its high bytes: nearly black. Pillow unpacks
one byte of each pair, the first or the second by the byte order it is told; so a picture is read
twice, and the bytes are put together.
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

_COLOUR = ("RGB;16", "RGBA;16", "RGBX;16")
_OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_REMEDY = "save it as a PNG of 16 bits or as .npy"


def deep_pixels(image: Any, reopen: Callable[[], Any], upright: Callable[[Any], Any]) -> Any:
    """The pixels of an open Pillow image that are not 8 bits wide, or None where all are.

    Args:
      image: as opened, nothing decoded.
      reopen: opens the same file again.
      upright: turns an image as its EXIF orientation says.

    Returns:
      Integers or floats `[H, W]` or `[H, W, 3]`, without alpha, or None.

    Raises:
      ValueError: pixels of which Pillow keeps fewer bits than the file has, and no way round it.
    """
    raw = _raw_mode(image)
    if image.format == "JPEG2000" and (depth := _jpeg2000_depth(image)) > 8:
        if not image.mode.startswith("I"):
            raise ValueError(f"JPEG 2000 in colour of {depth} bits; {_REMEDY}")
        return np.asarray(upright(image)) >> (16 - depth)  # Pillow scales them up to 16
    if image.tile and image.tile[0].codec_name.startswith("ppm"):
        if image.tile[0].args[1] > 255:
            raise ValueError(f"a PNM file with values up to {image.tile[0].args[1]}; {_REMEDY}")
        return None
    if image.mode.startswith(("I", "F")):
        return np.asarray(upright(image))
    if ";16" not in raw or raw.startswith("BGR"):  # BGR;16 is 5 + 6 + 5 bits
        return None
    if raw == "LA;16B":  # four bytes: grey, alpha
        _set_raw_mode(image, lambda _: "RGBA")
        pairs = np.asarray(upright(image)).astype(np.uint16)
        return pairs[..., 0] * np.uint16(256) + pairs[..., 1]
    if not raw.startswith(_COLOUR):
        raise ValueError(f"16 bits in a form that is not known ({raw}); {_REMEDY}")
    high = np.asarray(upright(image))[..., :3].astype(np.uint16)
    with reopen() as again:
        _set_raw_mode(again, lambda mode: mode[:-1] + _OTHER_ORDER[mode[-1]])
        low = np.asarray(upright(again))[..., :3].astype(np.uint16)
    return high * np.uint16(256) + low


def _raw_mode(image: Any) -> str:
    """How the bytes of the file are laid out, in Pillow's words."""
    args = image.tile[0].args if image.tile else ""
    return str(args[0] if isinstance(args, tuple) and args else args)


def _set_raw_mode(image: Any, change: Callable[[str], str]) -> None:
    tiles = []
    for tile in image.tile:
        args = tile.args
        new = change(args) if isinstance(args, str) else (change(args[0]), *args[1:])
        tiles.append(tile._replace(args=new))
    image.tile = tiles


def _jpeg2000_depth(image: Any) -> int:
    """Bits of the first channel, from the codestream's SIZ marker; 8 if it is not found."""
    file = image.fp
    place = file.tell()
    file.seek(0)
    start = file.read(65536)
    file.seek(place)
    siz = start.find(b"\xff\x4f\xff\x51")
    return (start[siz + 42] & 0x7F) + 1 if 0 <= siz < len(start) - 42 else 8
