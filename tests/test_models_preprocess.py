"""What image networks do to images before they see them, and what they refuse to see."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairjax.models import image_model, image_preprocess, logistic_regression, mlp
from tests.golden.filling import arrays_of

GOLDEN = np.load(Path(__file__).parent / "golden" / "augment.npz")


def images(height, width, batch=2):
    return jnp.asarray(
        np.random.default_rng(0).integers(0, 256, (batch, height, width, 3), np.uint8)
    )


def tiny(name="vit_micro", **overrides):
    sizes = {"vit_micro": {"width": 12, "depth": 1}, "vgg_micro": {"classifier": (4, 4)}}
    return image_model(name, 2, **(sizes.get(name, {"width": 4, "depths": (1, 1)}) | overrides))


@pytest.mark.parametrize("name", ["vit_micro", "vgg_micro", "resnet18"])
def test_images_with_the_networks_side_or_its_margin_are_only_cut_and_normalised(name):
    # 36 is 32 * 8 // 7, which the customary margin of 8 / 7 would round up to 37
    for size, side in ((64, 64), (64, 73), (32, 36), (32, 37)):
        model, pixels = tiny(name, image_size=size), np.asarray(images(side, side))
        assert model.preprocess is not None
        top = round((side - size) / 2)
        cut = pixels[:, top : top + size, top : top + size].astype(np.float32) / 255
        expected = (cut - np.float32(model.config.mean)) / np.float32(model.config.std)
        ours = jax.jit(model.preprocess)(images(side, side))
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(40, 60), (64, 80), (200, 100), (20, 30), (74, 73), (74, 80)])
def test_images_of_another_size_come_out_with_the_side_of_the_network(shape):
    model = tiny(image_size=64)
    assert model.preprocess is not None
    assert jax.jit(model.preprocess)(images(*shape)).shape == (2, 64, 64, 3)


def test_resize_and_centre_crop_equal_torchvision():
    preprocess = image_preprocess(28, (0.0,) * 3, (1.0,) * 3)
    ours = preprocess(GOLDEN["image"][None])
    np.testing.assert_allclose(ours[0], GOLDEN["evaluated"], atol=2e-6)


def test_pixels_as_floats_give_the_same_as_bytes():
    model = tiny()
    assert model.preprocess is not None
    for side in (64, 90):
        bytes_ = images(side, side)
        np.testing.assert_allclose(
            model.preprocess(bytes_.astype(jnp.float32) / 255), model.preprocess(bytes_), atol=1e-6
        )


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (np.zeros((2, 8, 8, 3), np.int32), r"must be uint8, or float32 in \[0, 1\], got int32"),
        (np.zeros((2, 8, 8, 1), np.uint8), r"shape \[B, H, W, 3\], got \(2, 8, 8, 1\)"),
        (np.zeros((8, 8, 3), np.uint8), r"shape \[B, H, W, 3\], got \(8, 8, 3\)"),
    ],
)
def test_what_are_no_images_is_refused(inputs, message):
    with pytest.raises(ValueError, match=message):
        image_preprocess(8)(inputs)


@pytest.mark.parametrize(
    ("size", "mean", "std"),
    [(0, (0.0,) * 3, (1.0,) * 3), (8, (0.0,), (1.0,) * 3), (8, (0.0,) * 3, (1.0, 0.0, 1.0))],
)
def test_a_size_or_scale_that_cannot_work_is_refused(size, mean, std):
    with pytest.raises(ValueError, match="must be"):
        image_preprocess(size, mean, std)


@pytest.mark.parametrize("name", ["vit_micro", "vgg_micro", "resnet18"])
def test_raw_pixels_are_refused_by_the_network_when_it_is_traced(name):
    model = tiny(name)
    side = model.config.image_size
    params, batch_stats = arrays_of(model)
    with pytest.raises(ValueError, match=r"got uint8: uint8 images go through model\.preprocess"):
        jax.eval_shape(model.apply, params, batch_stats, images(side, side))


def test_integer_columns_are_refused_by_networks_for_tables():
    for model in (mlp(3, 2), logistic_regression(3)):
        with pytest.raises(ValueError, match="got int32: give columns as float32"):
            model.apply(*model.init(jax.random.key(0)), jnp.ones((4, 3), jnp.int32))
        assert model.preprocess is None
