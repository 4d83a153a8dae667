"""Image augmentation inside the training step: functions of a key and a uint8 batch.

Factories (`random_resized_crop(224)`, ...) return a `Transform`; `compose` chains them. What they
draw at random is handed to a plain function (`resized_crop`, `affine`, `adjust_*`) that can be
called on its own. Images are uint8, or float32 in [0, 1]; results are float32. Every shape is
static, so one compilation serves all batches.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, PRNGKeyArray

from fairjax.data.colors import adjust_brightness as adjust_brightness
from fairjax.data.colors import adjust_contrast as adjust_contrast
from fairjax.data.colors import adjust_hue as adjust_hue
from fairjax.data.colors import adjust_saturation as adjust_saturation
from fairjax.data.resample import (
    Images,
    affine,
    resized_crop,
    to_float,
)

Transform = Callable[[PRNGKeyArray, Images], Float[Array, "B h w 3"]]
"""`transform(key, images [B, H, W, 3]) -> float32 [B, H', W', 3]`, pure."""

_CROP_TRIES = 10


def compose(*transforms: Transform) -> Transform:
    """One transform that applies the given ones in order, each with a key of its own.

    >>> images = jnp.zeros((2, 32, 48, 3), jnp.uint8)
    >>> augment = compose(random_resized_crop(24), random_flip())
    >>> augment(jax.random.key(0), images).shape
    (2, 24, 24, 3)
    """

    def apply(key: PRNGKeyArray, images: Images) -> jax.Array:
        images = to_float(images)
        for step, transform in enumerate(transforms):
            images = transform(jax.random.fold_in(key, step), images)
        return images

    return apply


def random_resized_crop(
    size: int,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.0,
) -> Transform:
    """Cut a box of random area and shape and resize it to `size` x `size`, antialiased.

    Args:
      size: side of the result.
      scale: range of the box's share of the image area, within (0, 1].
      ratio: range of width / height, drawn log-uniformly.
      flip: probability of mirroring left to right; free here, where `random_flip` is a pass of
        its own over the pixels.

    Raises:
      ValueError: a range is empty or outside its bounds.

    Source: torchvision's `RandomResizedCrop`: ten tries, then the largest centre box whose shape
    is allowed.

    >>> crop = random_resized_crop(16, scale=(0.5, 1.0), flip=0.5)
    >>> crop(jax.random.key(0), jnp.zeros((2, 32, 32, 3), jnp.uint8)).shape
    (2, 16, 16, 3)
    """
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"scale must be an increasing range in (0, 1], got {scale}")
    if not 0 < ratio[0] <= ratio[1]:
        raise ValueError(f"ratio must be an increasing range of positive numbers, got {ratio}")
    _require_share("flip", flip)

    def apply(key: PRNGKeyArray, images: Images) -> jax.Array:
        box_key, flip_key = jax.random.split(key)
        boxes = crop_boxes(box_key, images.shape, scale, ratio)
        mirror = jax.random.bernoulli(flip_key, flip, images.shape[:1]) if flip else None
        return resized_crop(images, *boxes, size=size, mirror=mirror)

    return apply


def crop_boxes(
    key: PRNGKeyArray,
    shape: Sequence[int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[Int32[Array, " B"], Int32[Array, " B"], Int32[Array, " B"], Int32[Array, " B"]]:
    """Top, left, height and width of one random box per image, int32 `[B]` each."""
    batch, image_height, image_width = shape[:3]
    area_key, ratio_key, top_key, left_key = jax.random.split(key, 4)
    tries = (batch, _CROP_TRIES)
    area = (
        image_height
        * image_width
        * jax.random.uniform(area_key, tries, minval=scale[0], maxval=scale[1])
    )
    aspect = jnp.exp(
        jax.random.uniform(ratio_key, tries, minval=math.log(ratio[0]), maxval=math.log(ratio[1]))
    )
    width = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
    height = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
    fits = (width > 0) & (width <= image_width) & (height > 0) & (height <= image_height)
    first = jnp.argmax(fits, axis=1)[:, None]
    height = jnp.take_along_axis(height, first, axis=1)[:, 0]
    width = jnp.take_along_axis(width, first, axis=1)[:, 0]

    shape_now = image_width / image_height
    whole_height, whole_width = image_height, image_width
    if shape_now < ratio[0]:
        whole_height = round(image_width / ratio[0])
    elif shape_now > ratio[1]:
        whole_width = round(image_height * ratio[1])
    found = fits.any(axis=1)
    height = jnp.where(found, height, whole_height)
    width = jnp.where(found, width, whole_width)
    top = jax.random.randint(top_key, (batch,), 0, image_height - height + 1)
    left = jax.random.randint(left_key, (batch,), 0, image_width - width + 1)
    top = jnp.where(found, top, (image_height - whole_height) // 2)
    left = jnp.where(found, left, (image_width - whole_width) // 2)
    return top, left, height, width


def random_crop(size: int) -> Transform:
    """Cut a `size` x `size` window at a random place; no resizing.

    >>> random_crop(24)(jax.random.key(0), jnp.zeros((2, 32, 32, 3), jnp.uint8)).shape
    (2, 24, 24, 3)
    """

    def apply(key: PRNGKeyArray, images: Images) -> jax.Array:
        batch, height, width, channels = images.shape
        if size > min(height, width):
            raise ValueError(f"cannot crop {size} x {size} from images of {height} x {width}")
        top_key, left_key = jax.random.split(key)
        top = jax.random.randint(top_key, (batch,), 0, height - size + 1)
        left = jax.random.randint(left_key, (batch,), 0, width - size + 1)
        cut = jax.vmap(
            lambda image, i, j: jax.lax.dynamic_slice(image, (i, j, 0), (size, size, channels))
        )
        return to_float(cut(images, top, left))

    return apply


def random_flip(*, horizontal: float = 0.5, vertical: float = 0.0) -> Transform:
    """Mirror each image left to right and upside down with the given probabilities.

    >>> ramp = jnp.arange(3.0).reshape(1, 1, 3, 1)
    >>> random_flip(horizontal=1.0)(jax.random.key(0), ramp)[0, 0, :, 0].tolist()
    [2.0, 1.0, 0.0]
    """
    _require_share("horizontal", horizontal)
    _require_share("vertical", vertical)

    def apply(key: PRNGKeyArray, images: Images) -> jax.Array:
        images = to_float(images)
        for axis, probability, axis_key in zip(
            (2, 1), (horizontal, vertical), jax.random.split(key), strict=True
        ):
            if probability:
                flip = jax.random.bernoulli(axis_key, probability, (images.shape[0], 1, 1, 1))
                images = jnp.where(flip, jnp.flip(images, axis), images)
        return images

    return apply


def random_affine(
    degrees: float,
    *,
    translate: tuple[float, float] = (0.0, 0.0),
    scale: tuple[float, float] = (1.0, 1.0),
    shear: float = 0.0,
) -> Transform:
    """Turn, shift, zoom and shear each image about its centre; what comes from outside is 0.

    Args:
      degrees: the angle is uniform in [-degrees, degrees].
      translate: largest shift as a share of width and height, each in [0, 1].
      scale: range of the zoom factor, positive.
      shear: the horizontal shear angle is uniform in [-shear, shear] degrees.

    Raises:
      ValueError: a range is empty or outside its bounds.

    Source: torchvision's `RandomAffine`, always with bilinear interpolation.

    >>> turn = random_affine(10.0, translate=(0.1, 0.1), scale=(0.9, 1.1))
    >>> turn(jax.random.key(0), jnp.ones((2, 16, 16, 3))).shape
    (2, 16, 16, 3)
    """
    if degrees < 0 or not 0 <= shear < 90:
        raise ValueError(f"degrees and shear must be at least 0, got {degrees} and {shear}")
    if not (0 <= translate[0] <= 1 and 0 <= translate[1] <= 1):
        raise ValueError(f"translate must be two shares in [0, 1], got {translate}")
    if not 0 < scale[0] <= scale[1]:
        raise ValueError(f"scale must be an increasing range of positive numbers, got {scale}")

    def apply(key: PRNGKeyArray, images: Images) -> jax.Array:
        batch, height, width, _ = images.shape
        angle_key, x_key, y_key, scale_key, shear_key = jax.random.split(key, 5)
        most_x, most_y = translate[0] * width, translate[1] * height
        return affine(
            images,
            angle=jax.random.uniform(angle_key, (batch,), minval=-degrees, maxval=degrees),
            shift_x=jnp.round(jax.random.uniform(x_key, (batch,), minval=-most_x, maxval=most_x)),
            shift_y=jnp.round(jax.random.uniform(y_key, (batch,), minval=-most_y, maxval=most_y)),
            scale=jax.random.uniform(scale_key, (batch,), minval=scale[0], maxval=scale[1]),
            shear=jax.random.uniform(shear_key, (batch,), minval=-shear, maxval=shear),
        )

    return apply


def random_rotation(degrees: float) -> Transform:
    """Turn each image about its centre by an angle uniform in [-degrees, degrees]."""
    return random_affine(degrees)


def color_jitter(
    *, brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0, hue: float = 0.0
) -> Transform:
    """Vary the colours of each image.

    Args:
      brightness: the factor is uniform in [max(0, 1 - brightness), 1 + brightness]; likewise
        `contrast` and `saturation`.
      contrast: see `brightness`.
      saturation: see `brightness`.
      hue: the shift is uniform in [-hue, hue] turns of the colour wheel, at most 0.5.

    Raises:
      ValueError: a strength is negative or hue above 0.5.

    Source: torchvision's `ColorJitter`, in this order instead of a random one.

    >>> dim = color_jitter(brightness=0.4)(jax.random.key(0), jnp.ones((1, 8, 8, 3)))
    >>> bool((dim >= 0.6).all()), bool((dim <= 1).all())
    (True, True)
    """
    if min(brightness, contrast, saturation, hue) < 0 or hue > 0.5:
        raise ValueError(
            "brightness, contrast and saturation must be at least 0 and hue in [0, 0.5], got "
            f"{brightness}, {contrast}, {saturation}, {hue}"
        )
    factors = (
        (adjust_brightness, brightness),
        (adjust_contrast, contrast),
        (adjust_saturation, saturation),
    )

    def apply(key: PRNGKeyArray, images: Images) -> jax.Array:
        images = to_float(images)
        keys = jax.random.split(key, 4)
        for (adjust, strength), step_key in zip(factors, keys[:3], strict=True):
            if strength:
                factor = jax.random.uniform(
                    step_key, images.shape[:1], minval=max(0.0, 1 - strength), maxval=1 + strength
                )
                images = adjust(images, factor)
        if hue:
            shift = jax.random.uniform(keys[3], images.shape[:1], minval=-hue, maxval=hue)
            images = adjust_hue(images, shift)
        return images

    return apply


def cutout(size: int, *, count: int = 1) -> Transform:
    """Set `count` squares of side `size` to 0, centred anywhere in the image, cut at its edge.

    Source: DeVries and Taylor 2017.

    >>> int((cutout(4)(jax.random.key(0), jnp.ones((1, 32, 32, 3)))[..., 0] == 0).sum())
    16
    """
    if size < 1 or count < 1:
        raise ValueError(f"size and count must be at least 1, got {size} and {count}")

    def apply(key: PRNGKeyArray, images: Images) -> jax.Array:
        batch, height, width, _ = images.shape
        y_key, x_key = jax.random.split(key)
        y = jax.random.randint(y_key, (batch, count, 1), 0, height) - size // 2
        x = jax.random.randint(x_key, (batch, count, 1), 0, width) - size // 2
        row, column = jnp.arange(height)[None, None], jnp.arange(width)[None, None]
        in_row, in_column = (row >= y) & (row < y + size), (column >= x) & (column < x + size)
        hole = jnp.any(in_row[..., :, None] & in_column[..., None, :], axis=1)
        return jnp.where(hole[..., None], 0.0, to_float(images))

    return apply


def _require_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be a probability in [0, 1], got {value}")
