"""Decoding any file to a square of uint8, and the cache that does it once."""

import os
import pickle
import subprocess
import sys
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from fairjax.data import cache, decode
from fairjax.data.cache import cached_images
from fairjax.data.decode import decode_image
from fairjax.data.pickles import read_pickled_images


def smooth(height, width, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def write_images(folder, count, size=(30, 40)):
    paths = [folder / f"{i}.png" for i in range(count)]
    for i, path in enumerate(paths):
        Image.fromarray(smooth(*size, seed=i)).save(path)
    return paths


def test_decoding_equals_resizing_the_shorter_side_and_cropping_the_centre(tmp_path):
    pixels = smooth(60, 80)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    whole = Image.fromarray(pixels).resize((40, 30), Image.Resampling.BILINEAR)
    expected = np.asarray(whole)[:, 5:35].astype(int)
    ours = decode_image(tmp_path / "a.png", 30)
    assert ours.shape == (30, 30, 3) and ours.dtype == np.uint8
    assert np.abs(ours - expected).max() <= 1


def test_a_large_jpeg_decoded_by_halves_is_close_to_the_full_resize(tmp_path):
    pixels = smooth(450, 600)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=95)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    by_halves, full = (
        decode_image(tmp_path / f"a.{kind}", 72).astype(int) for kind in ("jpg", "png")
    )
    assert np.abs(by_halves - full).mean() < 2


def test_exif_orientation_is_honoured(tmp_path):
    pixels = smooth(40, 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise by a quarter
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(decode_image(tmp_path / "a.png", 40), np.rot90(pixels, k=-1))


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK"])
def test_every_pillow_mode_becomes_rgb(tmp_path, mode):
    image = Image.fromarray(smooth(20, 20)).convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(path)
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(decode_image(path, 20), expected)


def test_sixteen_bit_and_float_pixels_are_scaled_and_never_wrapped(tmp_path):
    ramp = np.tile(np.linspace(0, 60000, 20), (20, 1))
    Image.fromarray(ramp.astype(np.uint16)).save(tmp_path / "a.png")
    np.save(tmp_path / "b.npy", ramp)
    np.savez(tmp_path / "c.npz", thickness=ramp, age=np.array(3))
    expected = np.round(255 * ramp / 60000)
    for name in ("a.png", "b.npy", "c.npz"):
        out = decode_image(tmp_path / name, 20, array_key="thickness" if name == "c.npz" else None)
        assert np.abs(out[..., 0] - expected).max() <= 1, name
    windowed = decode_image(tmp_path / "b.npy", 20, window=(0, 30000))
    assert (windowed[:, 10:] == 255).all() and windowed[0, 0, 0] == 0


@pytest.mark.parametrize("shape", [(8, 8, 2), (2, 8, 8), (8,)])
def test_arrays_that_are_no_images_are_refused_with_their_shape(tmp_path, shape):
    np.save(tmp_path / "a.npy", np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match=r"a\.npy: .*shape"):
        decode_image(tmp_path / "a.npy", 8)


def test_not_finite_and_object_arrays_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.full((8, 8), np.nan))
    with pytest.raises(ValueError, match="not finite"):
        decode_image(tmp_path / "a.npy", 8)
    np.save(tmp_path / "b.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"b\.npy"):
        decode_image(tmp_path / "b.npy", 8)


def test_bombs_are_refused_before_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "MAX_PIXELS", 100)
    Image.fromarray(smooth(20, 20)).save(tmp_path / "a.png")
    np.save(tmp_path / "b.npy", np.zeros((20, 20), np.uint8))
    np.savez_compressed(tmp_path / "c.npz", x=np.zeros((200, 200)))
    for name in ("a.png", "b.npy", "c.npz"):
        with pytest.raises(ValueError, match="at most 100"):
            decode_image(tmp_path / name, 8)


def test_a_pickle_is_read_only_on_request_and_only_if_it_holds_arrays(tmp_path):
    images = [smooth(10, 12), smooth(8, 8)]
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([image[..., ::-1] for image in images]))
    with pytest.raises(ValueError, match="can run code"):
        read_pickled_images(tmp_path / "a.pkl")
    read = read_pickled_images(tmp_path / "a.pkl", trust=True)
    for ours, expected in zip(read, images, strict=True):
        np.testing.assert_array_equal(ours, expected)

    class Evil:
        def __reduce__(self):
            return os.system, ("echo harm",)

    (tmp_path / "b.pkl").write_bytes(pickle.dumps([Evil()]))
    with pytest.raises(ValueError, match="system"):
        read_pickled_images(tmp_path / "b.pkl", trust=True)
    (tmp_path / "c.pkl").write_bytes(pickle.dumps([np.zeros((4, 4))]))
    with pytest.raises(ValueError, match="image 0: expected uint8"):
        read_pickled_images(tmp_path / "c.pkl", trust=True)


def test_the_cache_holds_what_decoding_gives_and_is_read_the_second_time(tmp_path, monkeypatch):
    paths = write_images(tmp_path, 70)
    first, skipped, _ = cached_images(paths, 16, cache_dir=tmp_path / "c", num_workers=3)
    assert skipped == {} and not first.flags.writeable
    for path, row in zip(paths, first, strict=True):
        np.testing.assert_array_equal(row, decode_image(path, 16))
    monkeypatch.setattr(cache, "read_image", None)
    second, _, _ = cached_images(paths, 16, cache_dir=tmp_path / "c")
    np.testing.assert_array_equal(first, second)


def test_a_changed_file_size_or_order_gives_another_cache(tmp_path):
    paths = write_images(tmp_path, 3)
    folder = tmp_path / "c"
    cached_images(paths, 16, cache_dir=folder)
    cached_images(paths, 17, cache_dir=folder)
    cached_images(paths[::-1], 16, cache_dir=folder)
    Image.fromarray(smooth(31, 41, seed=9)).save(paths[0])
    changed, _, _ = cached_images(paths, 16, cache_dir=folder)
    np.testing.assert_array_equal(changed[0], decode_image(paths[0], 16))
    assert len(list(folder.iterdir())) == 4


@pytest.mark.parametrize("harm", ["cut", "overwrite", "facts"])
def test_a_damaged_cache_is_noticed_and_built_again(tmp_path, harm):
    paths = write_images(tmp_path, 4)
    good = np.array(cached_images(paths, 16, cache_dir=tmp_path / "c")[0])
    (folder,) = (tmp_path / "c").iterdir()
    data = (folder / "pixels.npy").read_bytes()
    if harm == "cut":
        (folder / "pixels.npy").write_bytes(data[:-100])
    elif harm == "overwrite":
        (folder / "pixels.npy").write_bytes(data[:-100] + bytes(100))
    else:
        (folder / "facts.json").write_text("{")
    np.testing.assert_array_equal(cached_images(paths, 16, cache_dir=tmp_path / "c")[0], good)


def test_a_corrupt_image_is_named_with_its_row_or_skipped_and_leaves_no_partial_cache(tmp_path):
    paths = write_images(tmp_path, 5)
    paths[3].write_bytes(paths[3].read_bytes()[:200])
    where = [f"my.csv, line {i + 2}" for i in range(5)]
    with pytest.raises(ValueError, match=r"my\.csv, line 5: .*3\.png: not readable"):
        cached_images(paths, 16, where=where, cache_dir=tmp_path / "c")
    assert list((tmp_path / "c").iterdir()) == []
    for _ in range(2):  # built, then read back
        pixels, skipped, _ = cached_images(paths, 16, cache_dir=tmp_path / "c", on_error="skip")
        assert list(skipped) == [3] and "3.png" in skipped[3]
        assert (pixels[3] == 0).all() and pixels[4].any()


def test_a_missing_image_is_named_with_its_row(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"my\.csv, line 2: .*gone\.png: no such"):
        cached_images([tmp_path / "gone.png"], 16, where=["my.csv, line 2"], cache_dir=tmp_path)


def test_what_a_killed_run_left_is_swept_and_an_interrupt_leaves_nothing(tmp_path, monkeypatch):
    paths = write_images(tmp_path, 3)
    folder = tmp_path / "c"
    cached_images(paths, 16, cache_dir=folder)
    (done,) = folder.iterdir()
    name = done.name
    done.rename(folder / f"{name}.partial-{2**22 + 12345}")
    cached_images(paths, 16, cache_dir=folder)
    assert [path.name for path in folder.iterdir()] == [name]

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(cache, "read_image", interrupt)
    with pytest.raises(KeyboardInterrupt):
        cached_images(paths, 20, cache_dir=folder)
    assert [path.name for path in folder.iterdir()] == [name]


def test_a_full_disk_is_an_error_that_says_how_much_is_needed(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(OSError, match="no room for a cache of .* MiB"):
        cached_images(write_images(tmp_path, 2), 16, cache_dir=tmp_path / "c")
    assert list((tmp_path / "c").iterdir()) == []


def test_a_broken_zip_is_refused(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK not a zip")
    with pytest.raises(ValueError, match=r"a\.npz: not readable"):
        decode_image(tmp_path / "a.npz", 8)
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("x.npy", b"junk")
    with pytest.raises(ValueError, match=r"b\.npz: not readable"):
        decode_image(tmp_path / "b.npz", 8)


def test_building_keeps_no_decoded_image_in_memory(tmp_path):
    Image.new("RGB", (1500, 1500), (10, 200, 30)).save(tmp_path / "0.png")
    for i in range(1, 60):  # 400 MB once decoded
        os.link(tmp_path / "0.png", tmp_path / f"{i}.png")
    program = """
import resource, sys
from pathlib import Path
from fairjax.data.cache import cached_images
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
paths, before = sorted(Path(sys.argv[1]).glob("*.png")), peak()
cached_images(paths, 16, cache_dir=sys.argv[1], num_workers=2)
print(peak() - before)
"""
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert float(result.stdout) < 120  # MiB: two workers, an image and its copies each


def test_a_second_start_decodes_nothing_and_reads_few_rows(tmp_path, monkeypatch):
    Image.new("RGB", (20, 20), (10, 200, 30)).save(tmp_path / "0.png")
    for i in range(1, 2000):
        os.link(tmp_path / "0.png", tmp_path / f"{i}.png")
    paths = sorted(tmp_path.glob("*.png"))
    first, _, _ = cached_images(paths, 8, cache_dir=tmp_path / "cache")
    read = []
    crc32 = zlib.crc32
    monkeypatch.setattr(cache.zlib, "crc32", lambda data: read.append(len(data)) or crc32(data))
    monkeypatch.setattr(cache, "read_image", None)
    again, _, _ = cached_images(paths, 8, cache_dir=tmp_path / "cache")
    np.testing.assert_array_equal(again, first)
    assert len(read) < 600 < len(paths)
