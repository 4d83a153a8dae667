"""The procedural pictures: deterministic, balanced, and showing what their fields say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fairjax.data import pictures as module
from fairjax.data.pictures import (
    COLOUR_NAMES,
    SHAPE_NAMES,
    TEXTURE_NAMES,
    Pictures,
    synthetic_pictures,
)

KEY = jax.random.key(0)
NAMES = {
    "shape": SHAPE_NAMES,
    "texture": TEXTURE_NAMES,
    "colour": COLOUR_NAMES,
    "backdrop": TEXTURE_NAMES,
}


@pytest.fixture(scope="module")
def drawn():
    return synthetic_pictures(KEY, 2400, size=32)


def test_a_longer_set_begins_with_the_shorter_one(drawn):
    short = synthetic_pictures(KEY, 70, size=32)
    for name, values in short._asdict().items():
        np.testing.assert_array_equal(values, getattr(drawn, name)[:70], err_msg=name)
    other = synthetic_pictures(jax.random.key(1), 70, size=32)
    assert not np.array_equal(short.images, other.images)
    assert not np.array_equal(short.shape, other.shape)


def test_images_are_pixels_and_fields_are_indices_into_their_names(drawn):
    assert drawn.images.shape == (2400, 32, 32, 3) and drawn.images.dtype == np.uint8
    assert Pictures._fields == ("images", *NAMES)
    for field in NAMES:
        values = getattr(drawn, field)
        assert values.shape == (2400,) and values.dtype == np.int32, field


def test_another_size_shows_the_same_pictures(drawn):
    large = synthetic_pictures(KEY, 12, size=(64, 96))
    assert large.images.shape == (12, 64, 96, 3)
    for field in NAMES:
        np.testing.assert_array_equal(getattr(large, field), getattr(drawn, field)[:12])
    middle = large.images[:, :, 16:80].reshape(12, 32, 2, 32, 2, 3).mean(axis=(2, 4))
    for one, two in zip(drawn.images, middle, strict=False):
        assert np.corrcoef(one.ravel().astype(float), two.ravel())[0, 1] > 0.7


def test_every_field_is_uniform_and_independent_of_the_others(drawn):
    for field, names in NAMES.items():
        counts = np.bincount(getattr(drawn, field), minlength=len(names))
        assert len(counts) == len(names)
        assert np.abs(counts / 2400 - 1 / len(names)).max() < 0.03, field
    pairs = [(a, b) for i, a in enumerate(NAMES) for b in list(NAMES)[i + 1 :]]
    for a, b in pairs:  # five standard errors of a share of about 1 / 64
        joint = np.zeros((len(NAMES[a]), len(NAMES[b])))
        np.add.at(joint, (getattr(drawn, a), getattr(drawn, b)), 1 / 2400)
        assert np.abs(joint - joint.sum(0) * joint.sum(1, keepdims=True)).max() < 0.013, (a, b)


def test_no_two_pictures_are_alike_and_none_is_blank(drawn):
    flat = drawn.images.reshape(2400, -1).astype(float)
    assert len(np.unique(flat, axis=0)) == 2400
    assert np.median(flat.std(axis=1)) > 30 and flat.std(axis=1).min() > 4


def middle_colour(images):
    """Mean and saturation of the middle, and which share of it is how dark."""
    middle = images[:, 10:22, 10:22].astype(float) / 255
    mean = middle.mean(axis=(1, 2))
    share = mean / mean.sum(axis=1, keepdims=True)
    products = np.einsum("ni,nj->nij", share, share).reshape(len(mean), -1)
    return np.concatenate([share, products, share**3], axis=1)


def spectra(patches):
    """How strong each frequency is, whatever its direction, and the shares of dark and light."""
    grey = patches.astype(float).mean(axis=-1)
    grey = (grey - grey.mean(axis=(1, 2), keepdims=True)) / (
        grey.std(axis=(1, 2), keepdims=True) + 1
    )
    power = np.log(np.abs(np.fft.rfft2(grey)) + 0.1)
    n = grey.shape[1]
    frequency = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n)[None]) * n
    rings = [power[:, np.round(frequency) == r].mean(axis=1) for r in range(n // 2 + 1)]
    peaks = [power[:, np.round(frequency) == r].max(axis=1) for r in range(1, n // 2 + 1)]
    levels = np.quantile(grey, np.linspace(0.05, 0.95, 9), axis=(1, 2))
    return np.stack([*rings, *peaks, *levels], axis=1)


def corners(images):
    """Spectra of the four corners, where little of the thing is seen."""
    parts = [images[:, i : i + 12, j : j + 12] for i in (0, 20) for j in (0, 20)]
    return np.mean([spectra(part) for part in parts], axis=0)


@pytest.mark.parametrize(
    ("field", "features", "least"),
    [
        ("colour", middle_colour, 2.5),
        ("texture", lambda images: spectra(images[:, 10:22, 10:22]), 1.5),
        ("backdrop", corners, 2.0),
    ],
)
def test_simple_features_tell_colours_and_textures_better_than_chance(
    drawn, field, features, least
):
    x, y = features(drawn.images), getattr(drawn, field)
    classify = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    accuracy = classify.fit(x[:1800], y[:1800]).score(x[1800:], y[1800:])
    assert accuracy > least / len(NAMES[field])


def depth(shape, turn=0, size=64):
    """Depth `[H, W]` inside one thing in the middle that reaches .7 of the way to the edge."""
    place = (2 * jnp.arange(size, dtype=jnp.float32) + 1 - size) / size
    x, y = jnp.meshgrid(place, place)
    draws = module.Draws(jax.random.fold_in(KEY, turn), 16)
    return module._depth(draws, jnp.int32(shape), jnp.float32(0.7), jnp.zeros(2), x, y)


def outline_distance(points, corners, closed):
    """Distances of points to a polygon's outline and whether they lie inside, one by one."""
    ends = np.roll(corners, -1, axis=0)
    if not closed:
        corners, ends = corners[:-1], ends[:-1]
    found = []
    for point in points:
        best, turns = np.inf, 0.0
        for a, b in zip(corners, ends, strict=True):
            length = ((b - a) ** 2).sum()
            t = 0.0 if length == 0 else np.clip((point - a) @ (b - a) / length, 0, 1)
            best = min(best, np.hypot(*(point - a - t * (b - a))))
            u, v = a - point, b - point
            turns += np.arctan2(u[0] * v[1] - u[1] * v[0], u @ v)
        found.append((best, abs(turns) > np.pi))
    return map(np.array, zip(*found, strict=True))


@pytest.mark.parametrize("name", SHAPE_NAMES)
def test_depth_is_the_signed_distance_to_the_outline(name):
    """Against winding numbers and a loop over edges, for the outline as the table has it."""

    class Still(module.Draws):
        """Nothing bent, stretched or turned."""

        def normal(self, *shape):
            return jnp.zeros(shape, jnp.float32)

        def uniform(self, *shape):
            return jnp.zeros(shape, jnp.float32)

    shape = SHAPE_NAMES.index(name)
    points = np.random.default_rng(0).uniform(-1, 1, (60, 2)).astype(np.float32)
    place = np.array([0.1, -0.2], np.float32)
    x, y = (jnp.asarray(points[None, :, i]) for i in range(2))
    got = module._depth(
        Still(KEY, 1), jnp.int32(shape), jnp.float32(0.7), jnp.asarray(place), x, y
    )[0]
    corners, closed, stroke = (table[shape] for table in module._OUTLINES)
    distance, inside = outline_distance(points, 0.7 * corners.astype(float) + place, closed)
    expected = 0.7 * stroke - distance if stroke else np.where(inside, distance, -distance)
    np.testing.assert_allclose(got, expected, atol=2e-6)


def test_a_ring_has_a_hole_and_no_two_things_are_bent_alike():
    ring, other = (depth(SHAPE_NAMES.index("ring"), turn) for turn in (0, 1))
    assert ring[32, 32] < 0 < ring.max() and other[32, 32] < 0 < other.max()
    assert not np.allclose(ring, other, atol=0.01)


@pytest.mark.parametrize("arguments", [{"n": 0}, {"n": 4, "size": 8}, {"n": 4, "size": (64, 15)}])
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match="must be at least"):
        synthetic_pictures(KEY, **arguments)
