"""Images that were read wrongly without a word, or ran what they should not; files made here."""

import io
import os
import stat
import struct
import sys
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fairjax.data.cache import cached_images
from fairjax.data.decode import decode_image, upright_png

GREY, COLOUR, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 4, 6  # types of PNG


def png_of_16_bits(pixels, kind):
    """What Pillow cannot write: 16 bits a channel, no filter."""
    height, width = pixels.shape[:2]

    def chunk(name, data):
        whole = name + data
        return struct.pack(">I", len(data)) + whole + struct.pack(">I", zlib.crc32(whole))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def tiff_of_16_bits(pixels, order):
    """An uncompressed colour TIFF, in either byte order."""
    height, width, channels = pixels.shape
    data = pixels.astype(f"{order}u2").tobytes()
    start = 8 + 2 + 9 * 12 + 4
    tags = [(256, width), (257, height), (258, start), (259, 1), (262, 2)]
    tags += [(273, start + 2 * channels), (277, channels), (278, height), (279, len(data))]
    body = struct.pack(f"{order}2sHIH", b"II" if order == "<" else b"MM", 42, 8, len(tags))
    for tag, value in tags:
        kind, count = (3, channels) if tag == 258 else (4, 1)
        body += struct.pack(f"{order}HHII", tag, kind, count, value)
    return body + struct.pack(f"{order}I{channels}H", 0, *[16] * channels) + data


def scan(channels):
    """A 12-bit scan: 0 to 4095, every value with its low byte in use."""
    ramp = np.linspace(0, 4095, 20).round().astype(np.uint16)
    picture = np.repeat(np.repeat(ramp[None, :, None], 20, axis=0), channels, axis=2)
    if channels in (2, 4):
        picture[..., -1] = 65535
    return picture


SCANS = {
    "grey.png": png_of_16_bits(scan(1), GREY),
    "colour.png": png_of_16_bits(scan(3), COLOUR),
    "grey_alpha.png": png_of_16_bits(scan(2), GREY_ALPHA),
    "colour_alpha.png": png_of_16_bits(scan(4), COLOUR_ALPHA),
    "little.tif": tiff_of_16_bits(scan(3), "<"),
    "big.tif": tiff_of_16_bits(scan(3), ">"),
}


@pytest.mark.parametrize("name", SCANS)
@pytest.mark.parametrize("window", [None, (1000, 3000)], ids=["own range", "window"])
def test_a_scan_of_12_bits_looks_the_same_whatever_16_bit_file_holds_it(name, window, tmp_path):
    (tmp_path / name).write_bytes(SCANS[name])
    low, high = window or (0, 4095)
    expected = np.round(255 * np.clip((scan(1)[..., 0] - float(low)) / (high - low), 0, 1))
    pixels = decode_image(tmp_path / name, 20, window=window)
    for channel in range(3):
        np.testing.assert_array_equal(pixels[..., channel], expected)


def test_channels_of_a_deep_image_share_one_window(tmp_path):
    colours = np.zeros((8, 8, 3), np.uint16)
    colours[..., 0], colours[..., 1] = 1000, 4000
    (tmp_path / "a.png").write_bytes(png_of_16_bits(colours, COLOUR))
    assert decode_image(tmp_path / "a.png", 8)[0, 0].tolist() == [64, 255, 0]


def test_the_window_and_the_place_of_decoded_images_are_noted(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "b.png")
    (tmp_path / "colour.png").write_bytes(SCANS["colour.png"])
    paths = [tmp_path / "b.png", tmp_path / "colour.png"]
    for _ in range(2):  # decoded, then found
        notes = cached_images(paths, 100, cache_dir=tmp_path / "c").notes
        assert notes[0] == (
            "1 of 2 images are not of 8 bits: mapped to 0..255, each from its own smallest to its "
            "own largest value (DICOM: by the window in the file)."
        )
        assert notes[1].startswith(f"Decoded images (0.1 MiB) are kept in {tmp_path}/c/images-")
    windowed = cached_images(paths, 8, cache_dir=tmp_path / "c", window=(0, 4095)).notes
    assert "mapped to 0..255, from 0 to 4095." in windowed[0]
    assert len(cached_images(paths[:1], 8, cache_dir=tmp_path / "c").notes) == 1


def test_the_users_home_is_not_written_out(tmp_path, monkeypatch):
    Image.new("RGB", (9, 9)).save(tmp_path / "b.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert "kept in ~/.cache/fairjax/images-" in cached_images([tmp_path / "b.png"], 8).notes[0]


@pytest.mark.parametrize("depth", [12, 16])
def test_what_pillow_would_cut_to_8_bits_is_refused_with_a_way_on(depth, tmp_path):
    path = tmp_path / "a.ppm"
    path.write_bytes(b"P6 4 4 %d\n" % (2**depth - 1) + bytes(96))
    with pytest.raises(ValueError, match=r"a\.ppm: .* values up to \d+; save it as a PNG of 16"):
        decode_image(path, 4)
    path.write_bytes(b"P6 4 4 255\n" + bytes(range(48)))
    np.testing.assert_array_equal(decode_image(path, 4), np.arange(48).reshape(4, 4, 3))


EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 20 20
%%EndComments
0 0 20 20 rectfill
showpage
%%EOF
"""


@pytest.mark.parametrize("name", ["a.jpg", "a.eps", "a.png"])
def test_an_image_never_starts_a_program(name, tmp_path, monkeypatch):
    trace, tools = tmp_path / "started", tmp_path / "tools"
    tools.mkdir()
    for tool in ("gs", "gswin64c"):
        (tools / tool).write_text(f"#!/bin/sh\ntouch {trace}\n")
        (tools / tool).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / name).write_bytes(EPS)
    for read in (lambda path: decode_image(path, 8), upright_png):
        with pytest.raises(ValueError, match=rf"{name}: not readable as an image: none of JPEG, P"):
            read(tmp_path / name)
    assert not trace.exists()


@pytest.mark.parametrize(
    "error", [zlib.error("bad"), EOFError(), NotImplementedError("no"), OverflowError("big")]
)
def test_whatever_a_library_raises_over_an_image_is_one_line_that_names_it(
    error, tmp_path, monkeypatch
):
    def fail(*args, **kwargs):
        raise error

    Image.new("RGB", (9, 9)).save(tmp_path / "b.png")
    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(ValueError, match=r"b\.png: not readable as an image: \w+$"):
        decode_image(tmp_path / "b.png", 8)


def test_absent_images_are_counted_and_skipped_on_request(tmp_path):
    Image.new("RGB", (9, 9), (200, 0, 0)).save(tmp_path / "a.png")
    paths = [tmp_path / name for name in ("gone.png", "a.png", "gone too.png")]
    with pytest.raises(FileNotFoundError, match=r"gone\.png: no such .* \(2 missing in all\)"):
        cached_images(paths, 8, cache_dir=tmp_path / "c")
    pixels, skipped, _ = cached_images(paths, 8, cache_dir=tmp_path / "c", on_error="skip")
    assert list(skipped) == [0, 2] and "no such image file" in skipped[2]
    assert pixels[1, 0, 0].tolist() == [200, 0, 0] and not pixels[0].any()
    with pytest.raises(FileNotFoundError, match="2 missing in all"):
        cached_images(paths[::2], 8, cache_dir=tmp_path / "c", on_error="skip")


def turned(path, pixels, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_copy_for_others_is_upright_as_our_own_reading(orientation, tmp_path):
    corner = np.zeros((16, 16, 3), np.uint8)
    corner[:8, :8] = (255, 0, 0)
    corner[:8, 8:] = (0, 255, 0)
    path = turned(tmp_path / "a.png", corner, orientation)
    png = upright_png(path)
    assert (png is None) == (orientation == 1)
    with Image.open(path if png is None else io.BytesIO(png)) as copy:
        assert copy.getexif().get(0x0112, 1) == 1
        np.testing.assert_array_equal(np.asarray(copy), decode_image(path, 16))


def test_a_set_written_for_tensorflow_holds_upright_pictures_of_8_bits(tmp_path):
    import tensorflow_datasets as tfds
    from raw_sets import make_ham10000

    from fairjax.data.named import read_named
    from fairjax.data.named.builder import write_tfds

    raw = tmp_path / "raw"
    make_ham10000(raw)
    recipe, table = read_named("ham10000", raw)
    assert table.splits is not None
    row, other = map(int, table.splits["val"][:2])
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[:16] = 250
    turned(table.paths[row], picture, 3)  # upside down
    table.paths[other].write_bytes(SCANS["colour.png"])
    folder = write_tfds(recipe, table, tmp_path / "tfds")
    source = tfds.builder_from_directory(str(folder)).as_data_source(split="val")  # pyright: ignore
    images = {example["image"].shape: example["image"].astype(int) for example in source}
    assert images[32, 32, 3][20:].mean() > 240 and images[32, 32, 3][:12].mean() < 10
    np.testing.assert_array_equal(images[20, 20, 3], decode_image(table.paths[other], 20))
    assert "tensorflow" not in sys.modules


def dicom(path, pixels, kind="MONOCHROME2", **facts):
    """A CT slice as pydicom writes it."""
    pydicom = pytest.importorskip("pydicom")
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    data = pydicom.dataset.FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = pydicom.uid.CTImageStorage, "1.2.3"
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, kind
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.PixelData = pixels.astype("<u2").tobytes()
    for name, value in facts.items():
        setattr(data, name, value)
    data.save_as(path)
    return path


def test_dicom_is_shown_by_its_own_window_in_its_own_units(tmp_path):
    ramp = np.tile(np.linspace(0, 4000, 20).round(), (20, 1))
    facts: dict[str, Any] = {
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        "WindowCenter": 40,
        "WindowWidth": 401,
    }
    path = dicom(tmp_path / "a.dcm", ramp, **facts)
    low, high = 40 - 0.5 - 200, 40 - 0.5 + 200  # C.11.2.1.2.1
    expected = np.round(255 * np.clip((ramp - 1024 - low) / (high - low), 0, 1))
    np.testing.assert_array_equal(decode_image(path, 20)[..., 0], expected)
    inverse = dicom(tmp_path / "b.dcm", ramp, "MONOCHROME1", **facts)
    np.testing.assert_array_equal(decode_image(inverse, 20)[..., 0], 255 - expected)
    given = np.round(255 * np.clip((ramp - 1024) / 1000, 0, 1))
    np.testing.assert_array_equal(decode_image(path, 20, window=(0, 1000))[..., 0], given)
    several = dicom(tmp_path / "c.dcm", ramp, NumberOfFrames=2)
    with pytest.raises(ValueError, match=r"c\.dcm: .*DICOM of 2 frames"):
        decode_image(several, 20)


def test_dicom_without_its_reader_says_how(tmp_path, monkeypatch):
    (tmp_path / "a.dcm").write_bytes(b"\0" * 128 + b"DICM")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ValueError, match=r"a\.dcm: .* pip install 'fairjax\[dicom\]'"):
        decode_image(tmp_path / "a.dcm", 8)
