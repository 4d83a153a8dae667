"""The synthetic lesions: deterministic, biased as documented, written as what they are."""

import csv
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from fairjax.data import balance_groups
from fairjax.data.lesion_files import IMAGES, MARKER, METADATA, has_lesions, write_lesions
from fairjax.data.lesions import (
    DOMAINS,
    GROUP_NAMES,
    LABEL_NAMES,
    lesions_dataset,
    synthetic_lesions,
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


def test_a_shortcut_is_in_train_and_val_and_not_in_test():
    data = lesions_dataset(KEY, 4000, 16, "shortcut", split=(0.3, 0.3, 0.4))
    assert data.name == "lesions-shortcut"
    assert data.notes[1] == (
        "shortcut: in train and val 75 % of the lesions on dark skin and 25 % on light skin are "
        "malignant, in test 50 % on either"
    )
    # 2 % of the recorded labels are wrong; 4 standard errors of a share of 450 lesions are 0.09.
    for split, shares in {"train": (0.26, 0.74), "val": (0.26, 0.74), "test": (0.5, 0.5)}.items():
        counts = data.cell_counts(split)
        np.testing.assert_allclose(counts[1] / counts.sum(axis=0), shares, atol=0.09)
        assert abs(counts[:, 1].sum() / counts.sum() - 0.5) < 0.06
    assert [len(rows) for rows in data.splits.values()] == [1200, 1200, 1600]
    strong = lesions_dataset(KEY, 2000, 16, "shortcut", strength=0.95)
    counts = strong.cell_counts("train")
    np.testing.assert_allclose(counts[1] / counts.sum(axis=0), (0.07, 0.93), atol=0.05)
    assert "95 % of the lesions on dark skin and 5 % on light" in strong.notes[1]


def test_a_shortcut_draws_train_and_val_as_biased_images_and_test_anew():
    data = lesions_dataset(KEY, 203, 16, "shortcut", split=(0.5, 0.2, 0.3))
    again = lesions_dataset(KEY, 203, 16, "shortcut", split=(0.5, 0.2, 0.3))
    assert data.fingerprint == again.fingerprint
    biased = synthetic_lesions(KEY, 203, 16, "shortcut")
    drawn = np.concatenate([data.splits["train"], data.splits["val"]])
    np.testing.assert_array_equal(data.inputs[drawn], biased.images[drawn])
    test = data.splits["test"]
    assert not np.array_equal(data.inputs[test], biased.images[test])
    np.testing.assert_array_equal(data.group, biased.group)  # skin is drawn before the diagnosis
    np.testing.assert_array_equal(np.sort(np.concatenate([drawn, test])), np.arange(203))
    # No second photograph lies in another split than the first.
    owners = [set(biased.lesion[rows]) for rows in data.splits.values()]
    assert not (owners[0] & owners[1] or owners[0] & owners[2] or owners[1] & owners[2])
    none = lesions_dataset(KEY, 203, 16, "shortcut", split=(0.5, 0.2, 0.3), strength=0.5)
    np.testing.assert_array_equal(none.inputs[test], data.inputs[test])


@pytest.mark.parametrize("domain", ["target", "shortcut"])
def test_of_balanced_splits_only_what_is_kept_is_drawn_and_it_is_the_same(domain):
    options: Any = {"split": (0.2, 0.3, 0.5)}
    everything = lesions_dataset(KEY, 200, 16, domain, **options)
    for split in ("val", "test"):
        everything = balance_groups(everything, split)
    kept = lesions_dataset(KEY, 200, 16, domain, balance=("val", "test"), **options)
    assert len(kept.inputs) == sum(map(len, everything.splits.values())) < 200
    assert kept.notes == everything.notes
    for split, rows in kept.splits.items():
        jax.tree.map(
            np.testing.assert_array_equal, kept.examples(split), everything.examples(split)
        )
        ids, of_all = np.asarray(kept.ids), np.asarray(everything.ids)
        np.testing.assert_array_equal(ids[rows], of_all[everything.splits[split]])
    with pytest.raises(ValueError, match="no rows in split 'val'"):
        lesions_dataset(KEY, 8, 16, balance=("val",))


@pytest.mark.parametrize("n", [1, 2, 3, 5, 30, 31, 32, 33, 100])
def test_every_image_is_in_one_split_whatever_their_number(n):
    data = lesions_dataset(KEY, n, 16)
    lesion = synthetic_lesions(KEY, n, 16).lesion
    share = lesion / (lesion.max() + 1)
    np.testing.assert_array_equal(data.splits["train"], np.flatnonzero(share < 0.6))
    np.testing.assert_array_equal(data.splits["test"], np.flatnonzero(share >= 0.8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": 0.7}, r"of the domain 'shortcut', got 0.7 of 'target'"),
        ({"domain": "shortcut", "strength": 1.0}, r"strength must be in \[0.5, 1\)"),
        ({"domain": "shortcut", "strength": 0.4}, r"strength must be in \[0.5, 1\)"),
        ({"domain": "shortcut", "strength": float("nan")}, r"strength must be in \[0.5, 1\)"),
        ({"domain": "elsewhere"}, "domain must be one of"),
        ({"split": (0.5, 0.5, 0.0)}, "three positive numbers summing to 1"),
    ],
)
def test_arguments_of_the_dataset_that_do_not_apply_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        lesions_dataset(KEY, 8, 16, **arguments)


def test_files_are_named_and_marked_as_synthetic_and_hold_the_lesions(tmp_path):
    lesions = synthetic_lesions(KEY, 9, size=32)
    path = write_lesions(lesions, tmp_path / "drawn")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["image_id"] for row in rows] == [f"synthetic_{i:07d}" for i in range(9)]
    images = sorted((tmp_path / "drawn" / IMAGES).iterdir())
    assert [image.stem for image in images] == [row["image_id"] for row in rows]
    assert [row["diagnosis"] for row in rows] == [LABEL_NAMES[k] for k in lesions.labels]
    tones = [GROUP_NAMES.index(row["skin_tone"] + " skin") for row in rows]
    np.testing.assert_array_equal(tones, lesions.group)
    assert rows[2]["lesion_id"] == rows[3]["lesion_id"] and rows[2]["sex"] == rows[3]["sex"]
    assert "show no\npatients" in (tmp_path / "drawn" / MARKER).read_text()
    names = [path.name for path in (tmp_path / "drawn").rglob("*") if path.name != MARKER]
    assert all("synthetic" in name for name in names)
    with Image.open(images[0]) as image:
        error = np.abs(np.asarray(image).astype(int) - lesions.images[0])
    assert image.size == (32, 32) and error.mean() < 6


def test_equal_lesions_give_equal_files(tmp_path):
    lesions = synthetic_lesions(jax.random.key(3), 4, 32)
    for folder in ("a", "b"):
        write_lesions(lesions, tmp_path / folder)
    files = sorted((tmp_path / "a").rglob("*.*"))
    assert len(files) == 6
    for path in files:
        twin = tmp_path / "b" / path.relative_to(tmp_path / "a")
        assert path.read_bytes() == twin.read_bytes()


def test_nothing_is_written_into_a_folder_with_other_files(tmp_path):
    lesions = synthetic_lesions(KEY, 4, size=16)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds files already \(thesis.txt\)"):
        write_lesions(lesions, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(ValueError, match="thesis.txt: is a file"):
        write_lesions(lesions, tmp_path / "thesis.txt")
    write_lesions(lesions, tmp_path / "drawn")
    with pytest.raises(ValueError, match="holds other synthetic images"):
        write_lesions(lesions, tmp_path / "drawn", quality=50)
    with pytest.raises(ValueError, match="holds other synthetic images"):
        write_lesions(synthetic_lesions(jax.random.key(1), 4, size=16), tmp_path / "drawn")


def test_the_same_lesions_are_left_as_they_are_and_completed_after_an_interruption(tmp_path):
    lesions = synthetic_lesions(KEY, 4, size=16)
    (tmp_path / "drawn").mkdir()
    path = write_lesions(lesions, tmp_path / "drawn")
    image = tmp_path / "drawn" / IMAGES / "synthetic_0000001.jpg"
    content, written = image.read_bytes(), image.stat().st_mtime_ns
    assert write_lesions(lesions, tmp_path / "drawn") == path
    assert image.stat().st_mtime_ns == written
    image.unlink()
    path.unlink()  # it is written last, so an interruption leaves none
    assert not has_lesions(tmp_path / "drawn")
    assert write_lesions(lesions, tmp_path / "drawn").name == METADATA
    assert image.read_bytes() == content and has_lesions(tmp_path / "drawn")


@pytest.mark.parametrize(
    "arguments", [{"n": 0}, {"n": 4, "size": 8}, {"n": 4, "domain": "elsewhere"}]
)
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match="must be"):
        synthetic_lesions(KEY, **arguments)
