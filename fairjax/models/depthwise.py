"""Depthwise convolution, one kernel per channel, in the form that is fast where it runs."""

import functools
import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fairjax.models.convolution import NHWC
from fairjax.models.functional import Draws


def pad_same(
    x: Float[Array, "B H W C"], size: int, stride: int
) -> Float[Array, "B height width C"]:
    """Zeros around `[B, H, W, C]` for windows of `size`, as TensorFlow's "SAME" has them.

    There are then ceil(n / stride) windows along an axis; an odd zero comes last, unlike in torch.
    """
    pads = [(0, 0)] * 4
    for axis in (1, 2):
        n = x.shape[axis]
        missing = max((-(-n // stride) - 1) * stride + size - n, 0)
        pads[axis] = (missing // 2, missing - missing // 2)
    return jnp.pad(x, pads)


def _as_convolution(x: jax.Array, kernel: jax.Array, *, stride: int) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "VALID",
        dimension_numbers=NHWC,
        feature_group_count=x.shape[-1],
    )


def _as_products(x: jax.Array, kernel: jax.Array, *, stride: int) -> jax.Array:
    """The sum of shifted images times a number per channel, which XLA makes one loop of."""
    size = kernel.shape[0]
    height, width = ((n - size) // stride * stride + 1 for n in x.shape[1:3])
    y = jnp.zeros((), x.dtype)
    for i, j in itertools.product(range(size), repeat=2):
        y += x[:, i : i + height : stride, j : j + width : stride] * kernel[i, j][None, None]
    return y


def _input_gradient(
    dy: jax.Array, kernel: jax.Array, *, stride: int, shape: tuple[int, ...]
) -> jax.Array:
    """`[B, H, W, C]`: pixels whose row and column leave the same rests meet the same weights."""
    size, (batch, height, width, channels) = kernel.shape[0], shape
    rows, columns, margin = -(-height // stride), -(-width // stride), (size - 1) // stride
    ends = [(margin, rows - dy.shape[1]), (margin, columns - dy.shape[2])]
    dy = jnp.pad(dy, [(0, 0), *ends, (0, 0)])

    def same_rests(a: int, b: int) -> jax.Array:
        dx = jnp.zeros((batch, rows, columns, channels), dy.dtype)
        for i, j in itertools.product(range(a, size, stride), range(b, size, stride)):
            top, left = margin - i // stride, margin - j // stride
            dx += dy[:, top : top + rows, left : left + columns] * kernel[i, j][None, None]
        return dx

    pieces = [jnp.stack([same_rests(a, b) for b in range(stride)], 3) for a in range(stride)]
    dx = jnp.stack(pieces, 2).reshape(batch, rows * stride, columns * stride, channels)
    return dx[:, :height, :width]


def _kernel_gradient(x: jax.Array, dy: jax.Array, *, size: int, stride: int) -> jax.Array:
    """`[size, size, 1, C]`, row by row of `dy`.

    Sums over images and rows of an elementwise product keep to the order of memory; a sum over all
    pixels at once reads one channel after another, which takes ten times as long.
    """
    width = (dy.shape[2] - 1) * stride + 1

    def add_row(sums: list[jax.Array], h: jax.Array) -> tuple[list[jax.Array], None]:
        row = jax.lax.dynamic_slice_in_dim(dy, h, 1, axis=1)
        rows = jax.lax.dynamic_slice_in_dim(x, h * stride, size, axis=1)
        shifted = (rows[:, :, j : j + width : stride] for j in range(size))
        return [old + jnp.sum(x * row, 0) for old, x in zip(sums, shifted, strict=True)], None

    zeros = jnp.zeros((size, *dy.shape[2:]), dy.dtype)
    sums, _ = jax.lax.scan(add_row, [zeros] * size, jnp.arange(dy.shape[1]))
    return jnp.stack([jnp.sum(each, 1) for each in sums], 1)[:, :, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise(
    x: Float[Array, "B H W C"], kernel: Float[Array, "size size 1 C"], stride: int
) -> Float[Array, "B height width C"]:
    """Convolve each channel of `[B, H, W, C]` with its own kernel `[size, size, 1, C]`; no padding.

    On CPU XLA's grouped convolution takes 10 to 30 times as long as sums of products, its gradient
    up to a thousand times as long inside a loop (`scan`, `map`).
    """
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_as_products, stride=stride),
        default=functools.partial(_as_convolution, stride=stride),
    )


def _forward(x, kernel, stride):
    return depthwise(x, kernel, stride), (x, kernel)


def _backward(stride, saved, dy):
    def by_hand(x, kernel, dy):
        dx = _input_gradient(dy, kernel, stride=stride, shape=x.shape)
        return dx, _kernel_gradient(x, dy, size=kernel.shape[0], stride=stride)

    def as_xla_likes(x, kernel, dy):
        return jax.vjp(functools.partial(_as_convolution, stride=stride), x, kernel)[1](dy)

    return jax.lax.platform_dependent(*saved, dy, cpu=by_hand, default=as_xla_likes)


depthwise.defvjp(_forward, _backward)


class DepthwiseConv(nnx.Module):
    """Depthwise convolution of `[B, H, W, C]`, padded as "SAME"; see `pad_same`.

    The kernel `[size, size, 1, C]` starts with variance 2 / fan-out (He et al. 2015).
    """

    def __init__(self, width: int, size: int, *, draws: Draws, stride: int = 1):
        self.kernel = nnx.Param(draws.normal((2 / size**2) ** 0.5, size, size, 1, width))
        self.size, self.stride = size, stride

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B height width C"]:
        """Apply to `[B, H, W, C]` in the dtype of `x`."""
        padded = pad_same(x, self.size, self.stride)
        return depthwise(padded, self.kernel[...].astype(x.dtype), self.stride)
