"""The synthetic lesions: deterministic, biased as documented, written as HAM10000 is."""

import csv

import jax
import numpy as np
import pytest
from PIL import Image

from fairjax.data.lesions import (
    DOMAINS,
    GROUP_NAMES,
    lesions_dataset,
    synthetic_lesions,
    write_ham10000,
)

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def target():
    return synthetic_lesions(KEY, 1200, size=32)


@pytest.fixture(scope="module")
def source():
    return synthetic_lesions(KEY, 1200, size=32, domain="source")


def test_a_longer_set_begins_with_the_shorter_one(target):
    short = synthetic_lesions(KEY, 30, size=32)
    for name, values in short._asdict().items():
        np.testing.assert_array_equal(values, getattr(target, name)[:30], err_msg=name)
    other = synthetic_lesions(jax.random.key(1), 30, size=32)
    assert not np.array_equal(short.images, other.images)


def test_another_size_shows_the_same_lesions():
    small = synthetic_lesions(KEY, 8, size=32)
    large = synthetic_lesions(KEY, 8, size=(64, 96))
    assert large.images.shape == (8, 64, 96, 3) and large.images.dtype == np.uint8
    np.testing.assert_array_equal(small.labels, large.labels)
    middle = large.images[:, :, 16:80].reshape(8, 32, 2, 32, 2, 3).mean(axis=(2, 4))
    for one, two in zip(small.images, middle, strict=True):
        assert np.corrcoef(one.ravel().astype(float), two.ravel())[0, 1] > 0.6


def test_the_target_domain_is_imbalanced_and_noisy_and_the_source_is_not(target, source):
    dark = (target.group == 1).mean()
    assert abs(dark - DOMAINS["target"].dark) < 0.03
    for group, expected in enumerate(DOMAINS["target"].malignant):
        rows = target.group == group
        assert abs(target.diagnosis[rows].mean() - expected) < 0.1
    assert 0.005 < (target.labels != target.diagnosis).mean() < 0.04
    assert abs((source.group == 1).mean() - 0.5) < 0.05
    assert abs(source.labels.mean() - 0.5) < 0.05
    np.testing.assert_array_equal(source.labels, source.diagnosis)


def test_malignancy_shows_in_shape_border_and_colours(source):
    for sign, weakest in (("shape", 2), ("border", 2), ("colours", 2)):
        values = getattr(source, sign)
        high = source.diagnosis[values >= weakest].mean()
        low = source.diagnosis[values < weakest].mean()
        assert high - low > 0.25, sign


def test_dark_skin_is_darker_and_shows_less_contrast(source):
    brightness = source.images.mean(axis=(1, 2, 3))
    contrast = source.images.astype(float).std(axis=(1, 2)).mean(axis=-1)
    dark = source.group == 1
    assert brightness[dark].mean() < 0.8 * brightness[~dark].mean()
    assert contrast[dark].mean() < 0.8 * contrast[~dark].mean()
    assert source.ita[dark].max() <= 28.0 <= source.ita[~dark].min()


def test_second_photographs_share_the_lesion_but_not_the_picture(target):
    np.testing.assert_array_equal(target.lesion[:8], [0, 1, 2, 2, 3, 4, 5, 5])
    assert target.diagnosis[2] == target.diagnosis[3]
    assert not np.array_equal(target.images[2], target.images[3])


def test_the_dataset_keeps_each_lesion_in_one_split(target):
    data = lesions_dataset(KEY, 1200, size=32)
    np.testing.assert_array_equal(data.inputs, target.images)
    assert sum(map(len, data.splits.values())) == 1200
    owners = [set(target.lesion[rows]) for rows in data.splits.values()]
    assert not (owners[0] & owners[1] or owners[0] & owners[2] or owners[1] & owners[2])
    assert [round(len(data.splits[s]) / 1200, 1) for s in ("train", "val", "test")] == [
        0.6,
        0.2,
        0.2,
    ]
    assert all((data.cell_counts(split) > 0).all() for split in data.splits)


def test_writing_out_gives_the_raw_layout_of_ham10000(tmp_path):
    lesions = synthetic_lesions(KEY, 9, size=32)
    path = write_ham10000(lesions, tmp_path)
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["image_id"] for row in rows] == [f"ISIC_{i:07d}" for i in range(9)]
    assert len(list((tmp_path / "HAM10000_images_part_1").iterdir())) == 5
    assert len(list((tmp_path / "HAM10000_images_part_2").iterdir())) == 4
    malignant = [int(row["dx"] in ("mel", "akiec")) for row in rows]
    np.testing.assert_array_equal(malignant, lesions.labels)
    tones = [GROUP_NAMES.index(row["skin_tone"] + " skin") for row in rows]
    np.testing.assert_array_equal(tones, lesions.group)
    with Image.open(tmp_path / "HAM10000_images_part_1" / "ISIC_0000000.jpg") as image:
        error = np.abs(np.asarray(image).astype(int) - lesions.images[0])
    assert image.size == (32, 32) and error.mean() < 6


@pytest.mark.parametrize(
    "arguments", [{"n": 0}, {"n": 4, "size": 8}, {"n": 4, "domain": "elsewhere"}]
)
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match="must be"):
        synthetic_lesions(KEY, **arguments)
