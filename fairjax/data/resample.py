"""Resizing and warping batches of images, each by its own box or angle, with static shapes."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32, UInt8

Images = UInt8[Array | np.ndarray, "B H W C"] | Float[Array | np.ndarray, "B H W C"]
"""uint8, or floating point in [0, 1]."""
PerImage = Float[Array | np.ndarray, " B"]


def to_float(
    images: UInt8[Array | np.ndarray, "..."] | Float[Array | np.ndarray, "..."],
) -> Float[Array, "..."]:
    """Pixels as float32 in [0, 1]: uint8 is divided by 255, float32 is returned as it is."""
    images = jnp.asarray(images)
    return images.astype(jnp.float32) / 255.0 if images.dtype == jnp.uint8 else images


def resized_crop(
    images: Images,
    top: Int32[Array, " B"],
    left: Int32[Array, " B"],
    height: Int32[Array, " B"],
    width: Int32[Array, " B"],
    *,
    size: int,
    mirror: Bool[Array, " B"] | None = None,
) -> Float[Array, "B size size C"]:
    """Resize one box of each image to `size` x `size` with an antialiased triangle filter.

    Resampling is separable: each output row is a weighted sum of a few input rows, and so are
    columns. On a CPU these few are gathered, which takes a quarter of the time of the matrix
    products that suit accelerators.

    Args:
      images: uint8 or float32 `[B, H, W, 3]`.
      top: first row of the box, int32 `[B]`; likewise `left`.
      left: first column.
      height: rows of the box, int32 `[B]`; likewise `width`.
      width: columns of the box.
      size: side of the result.
      mirror: bool `[B]`, which results to swap left to right; costs nothing.

    Returns:
      float32 `[B, size, size, 3]` in [0, 1].

    Source: the same values as Pillow's and torchvision's antialiased bilinear resize of the box.
    """
    if mirror is not None:
        left, width = jnp.where(mirror, left + width, left), jnp.where(mirror, -width, width)
    return jax.lax.platform_dependent(
        images,
        (top, height),
        (left, width),
        cpu=functools.partial(_resample_by_gather, size=size),
        default=functools.partial(_resample_by_matmul, size=size),
    )


_Span = tuple[jax.Array, jax.Array]
"""Start and length of the part of an axis that is resampled, int32 `[B]` each.

A negative length runs backwards from the start, which mirrors without a pass of its own."""


def _resample_by_matmul(
    images: jax.Array, row_span: _Span, column_span: _Span, *, size: int
) -> jax.Array:
    """`resized_crop` as two dense products per image, without gathers."""
    batch, height, width, channels = images.shape
    every_row = jnp.broadcast_to(jnp.arange(height), (batch, size, height))
    every_column = jnp.broadcast_to(jnp.arange(width), (batch, size, width))
    rows = _triangle(every_row, *row_span)
    columns = _triangle(every_column, *column_span)
    # 255 levels times weights: full float32 products, also where bfloat16 is the default.
    flat = to_float(images).reshape(batch, height, width * channels)
    out = jnp.einsum("bsh,bhx->bsx", rows, flat, precision="highest")
    out = out.reshape(batch, size, width, channels)
    return jnp.einsum("btw,bswc->bstc", columns, out, precision="highest")


def _resample_by_gather(
    images: jax.Array, row_span: _Span, column_span: _Span, *, size: int
) -> jax.Array:
    """`resized_crop` by the few rows and columns whose weights are not 0."""
    _, height, width, channels = images.shape
    rows, row_weights = _taps(*row_span, height, size)
    columns, column_weights = _taps(*column_span, width, size)

    def resample(image, rows, row_weights, columns, column_weights):
        out = _weighted_rows(image.reshape(height, width * channels), rows, row_weights)
        # Columns become rows, so that both passes read long contiguous pieces.
        out = out.reshape(size, width, channels).transpose(1, 0, 2)
        out = _weighted_rows(out.reshape(width, size * channels), columns, column_weights)
        return out.reshape(size, size, channels).transpose(1, 0, 2)

    return jax.vmap(resample)(images, rows, row_weights, columns, column_weights)


def _weighted_rows(image: jax.Array, rows: jax.Array, weights: jax.Array) -> jax.Array:
    """Sums of rows of `image [H, X]`: `rows` and `weights` are `[size, taps]`."""
    taps = range(rows.shape[1])
    return sum(
        (weights[:, t, None] * to_float(image[rows[:, t]]) for t in taps), start=jnp.zeros(())
    )


def _taps(
    start: jax.Array, length: jax.Array, extent: int, size: int
) -> tuple[jax.Array, jax.Array]:
    """Indices and weights `[B, size, taps]` of the pixels that make each output pixel."""
    step = (length.astype(jnp.float32) / size)[:, None]
    target = jnp.arange(size, dtype=jnp.float32)[None, :] + 0.5
    centre = start.astype(jnp.float32)[:, None] + target * step
    first = jnp.ceil(centre - jnp.maximum(jnp.abs(step), 1.0) - 0.5).astype(jnp.int32)
    count = math.floor(2 * max(1.0, extent / size)) + 1
    pixels = first[:, :, None] + jnp.arange(count)[None, None, :]
    weights = _triangle(pixels, start, length)
    return jnp.clip(pixels, 0, extent - 1), weights


def _triangle(pixels: jax.Array, start: jax.Array, length: jax.Array) -> jax.Array:
    """Weights of `pixels [B, size, taps]` that resample a span; they sum to 1."""
    size = pixels.shape[1]
    start, length = start[:, None, None], length[:, None, None]
    step = length.astype(jnp.float32) / size
    target = jnp.arange(size, dtype=jnp.float32)[None, :, None] + 0.5
    distance = pixels.astype(jnp.float32) + 0.5 - start.astype(jnp.float32) - target * step
    weights = jnp.maximum(0.0, 1.0 - jnp.abs(distance) / jnp.maximum(jnp.abs(step), 1.0))
    low, high = jnp.minimum(start, start + length), jnp.maximum(start, start + length)
    weights = jnp.where((pixels >= low) & (pixels < high), weights, 0.0)
    return weights / jnp.sum(weights, axis=-1, keepdims=True)


def affine(
    images: Images,
    *,
    angle: PerImage,
    shift_x: PerImage,
    shift_y: PerImage,
    scale: PerImage,
    shear: PerImage,
) -> Float[Array, "B H W C"]:
    """Affine map of each image about its centre, bilinear, 0 outside; parameters float32 `[B]`.

    `angle` and `shear` are in degrees, clockwise; shifts in pixels, right and down. Same values as
    torchvision's `affine` on float tensors.
    """
    batch, height, width, channels = images.shape
    turn, slant = jnp.deg2rad(angle), jnp.deg2rad(shear)
    # Inverse of shift * rotate * shear * scale, from the place in the result to that in the image.
    cos, sin, tan = jnp.cos(turn), jnp.sin(turn), jnp.tan(slant)
    a, b = (cos - sin * tan) / scale, (cos * tan + sin) / scale
    c, d = -sin / scale, cos / scale
    y, x = jnp.meshgrid(
        jnp.arange(height, dtype=jnp.float32) - (height - 1) / 2,
        jnp.arange(width, dtype=jnp.float32) - (width - 1) / 2,
        indexing="ij",
    )
    x, y = x[None] - shift_x[:, None, None], y[None] - shift_y[:, None, None]
    a, b, c, d = (value[:, None, None] for value in (a, b, c, d))
    source_x = a * x + b * y + (width - 1) / 2
    source_y = c * x + d * y + (height - 1) / 2

    flat = to_float(images).reshape(batch, height * width, channels)
    left, top = jnp.floor(source_x), jnp.floor(source_y)
    right_share, low_share = source_x - left, source_y - top
    out = jnp.zeros((batch, height * width, channels), jnp.float32)
    for dy, share_y in ((0, 1.0 - low_share), (1, low_share)):
        for dx, share_x in ((0, 1.0 - right_share), (1, right_share)):
            i, j = top.astype(jnp.int32) + dy, left.astype(jnp.int32) + dx
            inside = (i >= 0) & (i < height) & (j >= 0) & (j < width)
            index = jnp.clip(i, 0, height - 1) * width + jnp.clip(j, 0, width - 1)
            weight = jnp.where(inside, share_y * share_x, 0.0).reshape(batch, -1, 1)
            out += weight * jnp.take_along_axis(flat, index.reshape(batch, -1, 1), axis=1)
    return out.reshape(batch, height, width, channels)
