"""Seeded harm to images and weight files: read rightly, or refused in one line.

`FAIRJAX_FUZZ=1000` makes a thousand files of each kind instead of the few of every run.
"""

import collections
import io
import os
import warnings

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from fairjax.data.decode import FORMATS, decode_image
from fairjax.models import image_model, load_weights, save_weights
from tests.golden.filling import arrays_of
from tests.test_images_misread import SCANS
from tests.test_torch_files import Tensor, names_of_torch, write

COUNT = int(os.environ.get("FAIRJAX_FUZZ", 40))
assert names_of_torch  # a fixture, taken over


def harmed(rng, data):
    """Some bytes cut, overwritten, doubled, or none of it."""
    data = bytearray(data)
    for _ in range(int(rng.integers(0, 4))):
        place, way = int(rng.integers(0, max(len(data), 1))), rng.integers(0, 5)
        if way == 0:
            del data[place:]
        elif way == 1:
            data[place : place + 4] = rng.bytes(4)
        elif way == 2:
            data[place : place + 1] = bytes([int(rng.integers(0, 256))])
        elif way == 3:
            data[place:place] = data[place : place + int(rng.integers(1, 40))]
        else:
            del data[place : place + int(rng.integers(1, 40))]
    return bytes(data)


def refused(read, path):
    """What `read` gives, or None where it refuses; anything but one line of its own fails."""
    try:
        return read(path)
    except ValueError as error:
        text = str(error)
        assert str(path) in text and "\n" not in text and len(text) < 1000, text
        return None


def pictures():
    pixels = np.asarray(
        Image.fromarray(np.arange(75, dtype=np.uint8).reshape(5, 5, 3) * 3).resize((24, 24))
    )
    for kind in ("JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP", "PPM"):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format=kind)
        yield file.getvalue()
    yield from SCANS.values()
    for array in (pixels, pixels[..., 0].astype(np.float32)):
        file = io.BytesIO()
        np.save(file, array)
        yield file.getvalue()


def test_harmed_images_are_read_as_pillow_reads_them_or_refused(tmp_path):
    rng, sources = np.random.default_rng(0), list(pictures())
    outcomes = collections.Counter()
    for number in range(COUNT):
        data = harmed(rng, sources[number % len(sources)])
        is_array = data[:6] == b"\x93NUMPY"
        path = tmp_path / f"{number}{'.npy' if is_array else '.jpg'}"
        path.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on broken EXIF
            ours = refused(lambda path: decode_image(path, 24), path)
            outcomes["refused" if ours is None else "read"] += 1
            if ours is None or is_array:
                continue
            with Image.open(path, formats=FORMATS) as image:
                if image.size == (24, 24) and ";16" not in str(image.tile):
                    theirs = np.asarray(image.convert("RGB"))
                    np.testing.assert_array_equal(ours, theirs)
                    outcomes["compared"] += 1
    assert min(outcomes[each] for each in ("refused", "read", "compared")) > COUNT // 8, outcomes


def test_harmed_weights_hold_the_same_numbers_or_are_refused(tmp_path):
    model = image_model("resnet18", 3, image_size=32, width=2, depths=(1, 1, 1, 1))
    save_weights(tmp_path / "w.safetensors", model, *arrays_of(model))
    tensors, key = load_file(tmp_path / "w.safetensors"), jax.random.key(0)
    np.savez(tmp_path / "w.npz", **tensors)  # pyright: ignore[reportArgumentType]
    state = {name: Tensor(array, str(i)) for i, (name, array) in enumerate(tensors.items())}
    write(tmp_path / "w.pth", {"state_dict": state}, legacy=False)
    write(tmp_path / "w.pt", state, legacy=True)
    rng, outcomes = np.random.default_rng(1), collections.Counter()
    for number in range(COUNT):
        suffix = (".safetensors", ".npz", ".pth", ".pt")[number % 4]
        path = tmp_path / f"harmed{suffix}"
        data = harmed(rng, (tmp_path / f"w{suffix}").read_bytes())
        path.write_bytes(data)
        weights = refused(lambda path: load_weights(path, model, key), path)
        outcomes["refused" if weights is None else "read"] += 1
        if weights is None:
            continue
        leaves = [
            np.asarray(leaf) for leaf in jax.tree.leaves((weights.params, weights.batch_stats))
        ]
        assert all(np.isfinite(leaf).all() for leaf in leaves)
        if suffix == ".safetensors" and len(data) == (tmp_path / "w.safetensors").stat().st_size:
            theirs = load_file(path)
            kernel = theirs["conv1.weight"].transpose(2, 3, 1, 0)
            np.testing.assert_array_equal(weights.params["conv1"]["kernel"], kernel)
            outcomes["compared"] += 1
    assert min(outcomes["refused"], outcomes["read"]) > COUNT // 10, outcomes


@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICO"])
def test_formats_that_are_not_listed_are_refused_whatever_their_name(kind, tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (32, 32)).save(path, format=kind)
    with pytest.raises(ValueError, match="a.png: not readable as an image: none of JPEG, PNG"):
        decode_image(path, 8)
