"""Changing the colours of a batch of images, each by its own factor."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fairjax.data.resample import Images, PerImage, to_float

_GRAY = (0.2989, 0.587, 0.114)


def adjust_brightness(images: Images, factor: PerImage) -> Float[Array, "B H W C"]:
    """Multiply by `factor` `[B]` and clip; 0 is black, 1 changes nothing."""
    images = to_float(images)
    return _blend(images, jnp.zeros_like(images), factor)


def adjust_contrast(images: Images, factor: PerImage) -> Float[Array, "B H W C"]:
    """Stretch away from the image's mean grey by `factor` `[B]`; 0 is grey all over."""
    images = to_float(images)
    mean = jnp.mean(_to_gray(images), axis=(1, 2, 3), keepdims=True)
    return _blend(images, jnp.broadcast_to(mean, images.shape), factor)


def adjust_saturation(images: Images, factor: PerImage) -> Float[Array, "B H W C"]:
    """Stretch away from each pixel's own grey by `factor` `[B]`; 0 is a grey image."""
    images = to_float(images)
    return _blend(images, jnp.broadcast_to(_to_gray(images), images.shape), factor)


def adjust_hue(images: Images, shift: PerImage) -> Float[Array, "B H W 3"]:
    """Turn the colour wheel by `shift` `[B]`, in turns; saturation and value stay."""
    images = to_float(images)
    high, low = jnp.max(images, axis=-1), jnp.min(images, axis=-1)
    chroma = high - low
    red, green, blue = jnp.moveaxis(images, -1, 0)
    safe = jnp.where(chroma == 0, 1.0, chroma)
    sextant = jnp.where(
        high == red,
        (green - blue) / safe,
        jnp.where(high == green, 2.0 + (blue - red) / safe, 4.0 + (red - green) / safe),
    )
    sextant = sextant + 6.0 * jnp.asarray(shift)[:, None, None]

    def channel(offset: float) -> jax.Array:
        place = jnp.mod(offset + sextant, 6.0)
        return high - chroma * jnp.clip(jnp.minimum(place, 4.0 - place), 0.0, 1.0)

    return jnp.stack([channel(5.0), channel(3.0), channel(1.0)], axis=-1)


def _to_gray(images: jax.Array) -> jax.Array:
    """Luma `[B, H, W, 1]` with the weights of ITU-R 601."""
    weights = jnp.asarray(_GRAY, jnp.float32).reshape(1, 1, 1, 3)
    return jnp.sum(images * weights, axis=-1, keepdims=True)


def _blend(images: jax.Array, other: jax.Array, factor: PerImage) -> jax.Array:
    factor = jnp.asarray(factor)[:, None, None, None]
    return jnp.clip(factor * images + (1.0 - factor) * other, 0.0, 1.0)
