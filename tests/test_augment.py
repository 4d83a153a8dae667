"""Augmentations against torchvision's own results and a slow oracle."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairjax.data import augment, resample

GOLDEN = np.load(Path(__file__).parent / "golden" / "augment.npz")


def copies(count):
    return jnp.asarray(np.repeat(GOLDEN["image"][None], count, axis=0))


def gradient_images(batch, height, width):
    """Every pixel tells its place: red is the row, green the column, blue the image."""
    b, y, x = np.meshgrid(np.arange(batch), np.arange(height), np.arange(width), indexing="ij")
    return jnp.asarray(np.stack([y, x, b], axis=-1).astype(np.uint8))


def test_resized_crop_equals_torchvision():
    boxes = [jnp.asarray(column) for column in GOLDEN["boxes"].T]
    ours = resample.resized_crop(copies(len(GOLDEN["boxes"])), *boxes, size=24)
    np.testing.assert_allclose(ours, GOLDEN["crops"], atol=2e-6)


@pytest.mark.parametrize("size", [7, 24, 60])
def test_both_ways_to_resample_agree_with_a_slow_oracle(size):
    draw = np.random.default_rng(size)
    images = draw.uniform(size=(12, 40, 30, 3)).astype(np.float32)
    height, width = draw.integers(1, 41, 12), draw.integers(1, 31, 12)
    top, left = draw.integers(0, 41 - height), draw.integers(0, 31 - width)

    def weights(length):
        step = length / size
        centres = (np.arange(size)[:, None] + 0.5) * step
        distance = np.abs(np.arange(length)[None] + 0.5 - centres) / max(step, 1.0)
        raw = np.maximum(0.0, 1.0 - distance)
        return raw / raw.sum(axis=1, keepdims=True)

    expected = [
        np.einsum("sh,tw,hwc->stc", weights(h), weights(w), image[i : i + h, j : j + w])
        for image, i, j, h, w in zip(images, top, left, height, width, strict=True)
    ]
    row_span = (jnp.asarray(top, jnp.int32), jnp.asarray(height, jnp.int32))
    column_span = (jnp.asarray(left, jnp.int32), jnp.asarray(width, jnp.int32))
    for way in (resample._resample_by_matmul, resample._resample_by_gather):
        ours = way(jnp.asarray(images), row_span, column_span, size=size)
        np.testing.assert_allclose(ours, np.stack(expected), atol=1e-5)


def test_mirrored_crops_are_the_crops_swapped_left_to_right():
    boxes = [jnp.asarray(column) for column in GOLDEN["boxes"].T]
    mirror = jnp.asarray([True, False, True, True])
    ours = np.asarray(resample.resized_crop(copies(4), *boxes, size=24, mirror=mirror))
    expected = np.where(mirror[:, None, None, None], GOLDEN["crops"][:, :, ::-1], GOLDEN["crops"])
    np.testing.assert_allclose(ours, expected, atol=2e-6)
    flip = augment.random_resized_crop(24, scale=(1.0, 1.0), ratio=(1.4, 1.4), flip=0.5)
    out = np.asarray(flip(jax.random.key(0), copies(40)))
    flipped = np.abs(out - out[0]).max(axis=(1, 2, 3)) > 1e-4
    assert 8 < flipped.sum() < 32
    np.testing.assert_allclose(out[flipped][0], out[0][:, ::-1], atol=2e-6)


def test_affine_equals_torchvision():
    names = ("angle", "shift_x", "shift_y", "scale", "shear")
    values = dict(zip(names, map(jnp.asarray, GOLDEN["affines"].T), strict=True))
    ours = resample.affine(copies(len(GOLDEN["affines"])), **values)
    # torchvision blends with its fill mask, which differs from ours where the border is cut.
    np.testing.assert_allclose(ours, GOLDEN["warped"], atol=2e-4)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colour_adjustment_equals_torchvision(name):
    factors = jnp.asarray(GOLDEN["factors"])
    ours = getattr(augment, f"adjust_{name}")(copies(len(factors)), factors)
    np.testing.assert_allclose(ours, GOLDEN[name], atol=2e-6)


def test_hue_adjustment_equals_torchvision():
    hues = jnp.asarray(GOLDEN["hues"])
    ours = augment.adjust_hue(copies(len(hues)), hues)
    np.testing.assert_allclose(ours, GOLDEN["hue"], atol=2e-5)


def test_crop_boxes_lie_inside_the_image_and_obey_scale_and_ratio():
    key = jax.random.key(0)
    shape = (4000, 60, 90, 3)
    top, left, height, width = map(
        np.asarray, augment.crop_boxes(key, shape, (0.2, 0.5), (0.5, 2.0))
    )
    assert (top >= 0).all() and (top + height <= 60).all()
    assert (left >= 0).all() and (left + width <= 90).all()
    area = height * width / (60 * 90)
    # Sides are rounded to whole pixels.
    assert 0.19 < area.min() < 0.22 and 0.48 < area.max() < 0.52
    assert abs(area.mean() - 0.35) < 0.01
    assert 0.48 < (width / height).min() < 0.55 and 1.8 < (width / height).max() < 2.1


def test_an_image_that_no_box_fits_gives_the_largest_allowed_centre_box():
    top, left, height, width = augment.crop_boxes(
        jax.random.key(0), (3, 10, 100, 3), (0.9, 1.0), (3 / 4, 4 / 3)
    )
    assert [int(v[0]) for v in (top, left, height, width)] == [0, 43, 10, 13]


def test_random_crop_and_flip_move_pixels_without_changing_them():
    images = gradient_images(50, 12, 15)
    cut = np.round(np.asarray(augment.random_crop(9)(jax.random.key(1), images)) * 255)
    for b in range(50):
        top, left = cut[b, 0, 0, :2].astype(int)
        np.testing.assert_array_equal(cut[b], images[b, top : top + 9, left : left + 9])
    assert len({tuple(pixel) for pixel in cut[:, 0, 0, :2]}) > 10

    flip = augment.random_flip(horizontal=0.5, vertical=0.5)
    flipped = np.round(np.asarray(flip(jax.random.key(2), images)) * 255)
    seen = set()
    for b in range(50):
        image = np.asarray(images[b])
        variants = [image, image[:, ::-1], image[::-1], image[::-1, ::-1]]
        (which,) = [v for v in range(4) if (variants[v] == flipped[b]).all()]
        seen.add(which)
    assert seen == {0, 1, 2, 3}


def test_a_quarter_turn_of_a_square_image_equals_rot90():
    images = gradient_images(1, 8, 8)
    still = {"shift_x": jnp.zeros(1), "shift_y": jnp.zeros(1), "shear": jnp.zeros(1)}
    turned = resample.affine(images, angle=jnp.full(1, 90.0), scale=jnp.ones(1), **still)
    expected = np.rot90(np.asarray(images[0]), k=-1)
    np.testing.assert_allclose(np.asarray(turned[0]) * 255, expected, atol=1e-3)


def test_cutout_blanks_one_square_cut_at_the_edge():
    images = jnp.ones((200, 10, 12, 3))
    out = np.asarray(augment.cutout(4)(jax.random.key(0), images))
    holes = (out == 0).all(axis=-1)
    areas = holes.sum(axis=(1, 2))
    assert areas.max() == 16 and 4 <= areas.min() < 16
    for hole in holes:
        rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
        assert hole.sum() == len(rows) * len(columns)


def test_colour_jitter_draws_factors_within_its_strengths():
    images = jnp.full((500, 1, 1, 3), 0.5)
    out = np.asarray(augment.color_jitter(brightness=0.4)(jax.random.key(0), images))[:, 0, 0, 0]
    assert 0.3 <= out.min() < 0.32 and 0.68 < out.max() <= 0.7


def test_compose_runs_under_jit_and_repeats_with_its_key():
    transform = augment.compose(
        augment.random_resized_crop(16),
        augment.random_flip(),
        augment.color_jitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.1),
        augment.random_rotation(15),
        augment.cutout(4),
    )
    images = copies(3)
    run: Any = jax.jit(transform)
    first = run(jax.random.key(0), images)
    assert first.shape == (3, 16, 16, 3) and first.dtype == jnp.float32
    np.testing.assert_array_equal(first, run(jax.random.key(0), images))
    assert not np.array_equal(first, run(jax.random.key(1), images))
    assert not np.array_equal(first[0], first[1])
    assert run._cache_size() == 1


def test_the_dense_resized_crop_costs_under_a_tenth_of_a_vit_base_step():
    images = jax.ShapeDtypeStruct((8, 256, 256, 3), jnp.uint8)
    span = (jax.ShapeDtypeStruct((8,), jnp.int32),) * 2
    crop = jax.jit(functools.partial(resample._resample_by_matmul, size=224))
    analysis: Any = crop.lower(images, span, span).compile().cost_analysis()
    # Forward and backward of ViT-B/16 take about 3 x 35 GFLOP per image of 224 x 224.
    assert 0 < analysis["flops"] / 8 < 0.1 * 105e9


@pytest.mark.parametrize(
    "make",
    [
        lambda: augment.random_resized_crop(8, scale=(0.0, 1.0)),
        lambda: augment.random_resized_crop(8, ratio=(2.0, 1.0)),
        lambda: augment.random_resized_crop(8, flip=2.0),
        lambda: augment.random_flip(horizontal=1.5),
        lambda: augment.random_affine(-1),
        lambda: augment.random_affine(0, scale=(0.0, 1.0)),
        lambda: augment.color_jitter(hue=0.6),
        lambda: augment.cutout(0),
        lambda: augment.random_crop(41)(jax.random.key(0), copies(1)),
    ],
)
def test_arguments_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match="got|cannot crop"):
        make()
