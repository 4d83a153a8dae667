"""From the images of a data set to what an image network takes: resize, centre crop, normalise."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fairjax.models.model import Preprocess

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def image_preprocess(
    size: int, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> Preprocess:
    """What evaluation does to images before a network sees them; nothing random.

    Images of `size` x `size` are only normalised. Of all others the shorter side is first given
    round(size * 8 / 7) pixels (256 for 224; antialiased triangle filter) and the centre is cut out.
    An image that has this margin already, rounded either way, is only cut.

    Args:
      size: S, side of the result.
      mean: per channel, in units of [0, 1].
      std: per channel, positive.

    Returns:
      `preprocess(images) -> float32 [B, S, S, 3]`, pure, for uint8 images or float32 ones in [0, 1]
      of shape `[B, H, W, 3]`. It raises ValueError for another shape or dtype.

    Raises:
      ValueError: `size` is below 1, mean or std are not three numbers, or a std is not positive.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    if len(mean) != 3 or len(std) != 3 or not min(std) > 0:
        raise ValueError(f"mean and std must be 3 numbers, std positive, got {mean} and {std}")

    def preprocess(images: jax.Array | np.ndarray) -> jax.Array:
        images = _to_float(images)
        height, width = images.shape[1:3]
        if (height, width) != (size, size):
            if not size * 8 // 7 <= min(height, width) <= round(size * 8 / 7):
                images = _resize_shorter(images, round(size * 8 / 7))
            images = _center_crop(images, size)
        offset = jnp.asarray(mean, jnp.float32).reshape(1, 1, 1, 3)
        return (images - offset) / jnp.asarray(std, jnp.float32).reshape(1, 1, 1, 3)

    return preprocess


def as_floats(inputs: jax.Array | np.ndarray, remedy: str) -> jax.Array:
    """The inputs, unless they are integers: a network would take them for numbers near 1."""
    if not jnp.issubdtype(inputs.dtype, jnp.floating):
        raise ValueError(f"networks take float inputs, got {inputs.dtype}: {remedy}")
    return jnp.asarray(inputs)


IMAGE_REMEDY = "uint8 images go through model.preprocess, as train and predict do"
TABLE_REMEDY = "give columns as float32, scaled to about one"


def _to_float(images: jax.Array | np.ndarray) -> jax.Array:
    """Pixels `[B, H, W, 3]` as float32 in [0, 1]."""
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images must have shape [B, H, W, 3], got {images.shape}")
    if images.dtype == jnp.uint8:
        return jnp.asarray(images).astype(jnp.float32) / 255.0
    if images.dtype == jnp.float32:
        return jnp.asarray(images)
    raise ValueError(f"images must be uint8, or float32 in [0, 1], got {images.dtype}")


def _resize_shorter(images: jax.Array, size: int) -> jax.Array:
    """Give the shorter side `size` pixels with an antialiased triangle filter."""
    batch, height, width, channels = images.shape
    short = min(height, width)
    new = (size * height // short, size * width // short)
    return jax.image.resize(images, (batch, *new, channels), "linear", antialias=True)


def _center_crop(images: jax.Array, size: int) -> jax.Array:
    """The middle `size` x `size` pixels."""
    height, width = images.shape[1:3]
    top, left = round((height - size) / 2), round((width - size) / 2)
    return images[:, top : top + size, left : left + size]
