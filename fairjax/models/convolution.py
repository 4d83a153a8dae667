"""What networks of convolutions are made of: convolution, batch norm and maxima of windows."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fairjax.models.functional import Draws

NHWC = ("NHWC", "HWIO", "NHWC")


def _plain_conv(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """Convolve `[B, H, W, in]` with `[size, size, in, out]`, zeros around the image."""
    strides, pads = (stride, stride), [(padding, padding)] * 2
    return jax.lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=NHWC)


# The gradient is the usual one. On CPU it is written as two more convolutions in this very layout:
# XLA runs the layouts of its own gradient 20 to 50 times slower inside a loop (`scan`, `map`).
_window_conv = jax.custom_vjp(_plain_conv, nondiff_argnums=(2, 3))


def _conv_forward(x, kernel, stride, padding):
    return _plain_conv(x, kernel, stride, padding), (x, kernel)


def _conv_backward(stride, padding, saved, dy):
    def as_convolutions(x, kernel, dy):
        size = kernel.shape[0]
        # the part of each axis that the windows reach, once dy is spread out by the stride
        spans = [
            (n, (m - 1) * stride + 1) for n, m in zip(x.shape[1:3], dy.shape[1:3], strict=True)
        ]
        dx = jax.lax.conv_general_dilated(
            dy,
            kernel[::-1, ::-1].transpose(0, 1, 3, 2),
            window_strides=(1, 1),
            padding=[(size - 1 - padding, n - span + padding) for n, span in spans],
            lhs_dilation=(stride, stride),
            dimension_numbers=NHWC,
        )
        dkernel = jax.lax.conv_general_dilated(
            x.transpose(3, 1, 2, 0),
            dy.transpose(1, 2, 0, 3),
            window_strides=(1, 1),
            padding=[(padding, size - 1 - padding - n + span) for n, span in spans],
            rhs_dilation=(stride, stride),
            dimension_numbers=NHWC,
        )
        return dx, dkernel.transpose(1, 2, 0, 3)

    def as_xla_likes(x, kernel, dy):
        return jax.vjp(lambda x, kernel: _plain_conv(x, kernel, stride, padding), x, kernel)[1](dy)

    def by_themselves(x, kernel, dy):
        # What computes x and dy would be fused into their transposes, and then run once more and
        # against the order of memory; nothing is fused into a branch. The other one is no loss:
        # a gradient of nan or infinity makes nan of all that it reaches.
        unusable = lambda *arrays: tuple(jnp.full_like(array, jnp.nan) for array in arrays[:2])
        return jax.lax.cond(jnp.isfinite(dy[0, 0, 0, 0]), as_convolutions, unusable, x, kernel, dy)

    return jax.lax.platform_dependent(*saved, dy, cpu=by_themselves, default=as_xla_likes)


_window_conv.defvjp(_conv_forward, _conv_backward)


def conv(
    x: Float[Array, "B H W num_in"],
    kernel: Float[Array, "size size num_in num_out"],
    stride: int,
    padding: int,
) -> Float[Array, "B height width num_out"]:
    """Convolve `[B, H, W, in]` with `[size, size, in, out]`, zeros around the image.

    A window of one pixel is a matrix product: on CPU its weight gradient takes a third of the time
    that it takes as a convolution, and a population's kernels stay batched products.
    """
    if kernel.shape[:2] != (1, 1) or padding:
        return _window_conv(x, kernel, stride, padding)
    if stride > 1:
        # Taking every other pixel is kept apart: fused into the product it ends XLA's compiler for
        # GPUs, and the process with it (a failed check in jaxlib 0.11.2).
        x = jax.lax.optimization_barrier(x[:, ::stride, ::stride])
    return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:-1], -1)


class Conv(nnx.Module):
    """Convolution of `[B, H, W, C]` with a kernel `[height, width, in, out]`, padded like torch.

    `padding` is half the size unless given. The kernel starts with variance 2 / fan-out (He et al.
    2015).
    """

    def __init__(
        self,
        num_in: int,
        num_out: int,
        size: int,
        *,
        draws: Draws,
        stride: int = 1,
        padding: int | None = None,
        bias: bool = False,
    ):
        std = (2 / (size * size * num_out)) ** 0.5
        self.kernel = nnx.Param(draws.normal(std, size, size, num_in, num_out))
        if bias:
            self.bias = nnx.Param(draws.full(0.0, num_out))
        self.has_bias, self.stride = bias, stride
        self.padding = size // 2 if padding is None else padding

    def __call__(self, x: Float[Array, "B H W num_in"]) -> Float[Array, "B height width num_out"]:
        """Apply to `[B, H, W, num_in]` in the dtype of `x`."""
        y = conv(x, self.kernel[...].astype(x.dtype), self.stride, self.padding)
        return y + self.bias[...].astype(x.dtype)[None, None, None] if self.has_bias else y


class BatchNorm(nnx.Module):
    """Batch norm over `[B, H, W]` with torch's running statistics.

    Momentum is the weight of the new batch, and the running variance is the unbiased one while
    the batch is normalised by the biased one.
    """

    def __init__(self, width: int, *, draws: Draws, momentum: float = 0.1, eps: float = 1e-5):
        self.scale = nnx.Param(draws.full(1.0, width))
        self.bias = nnx.Param(draws.full(0.0, width))
        self.mean = nnx.BatchStat(draws.full(0.0, width))
        self.var = nnx.BatchStat(draws.full(1.0, width))
        self.momentum, self.eps = momentum, eps

    def __call__(
        self, x: Float[Array, "B H W width"], *, train: bool
    ) -> Float[Array, "B H W width"]:
        """Normalise `[B, H, W, width]`; `train` uses the batch and updates `mean` and `var`."""
        scale, bias = self.scale[...], self.bias[...]
        if not train:
            return _scaled(x, self.mean[...], self.var[...], scale, bias, self.eps)
        y, mean, var = _batch_norm(x, scale, bias, self.eps)
        count = x.size // x.shape[-1]
        unbiased = var * (count / max(count - 1, 1))
        old, new = 1 - self.momentum, self.momentum
        self.mean[...] = old * self.mean[...] + new * jax.lax.stop_gradient(mean)
        self.var[...] = old * self.var[...] + new * jax.lax.stop_gradient(unbiased)
        return y


def _scaled(
    x: jax.Array, mean: jax.Array, var: jax.Array, scale: jax.Array, bias: jax.Array, eps: float
) -> jax.Array:
    # one multiply and one add per pixel: the rest happens on [C] vectors
    scale = scale * jax.lax.rsqrt(var + eps)
    shift = bias - mean * scale
    return x * _per_pixel(scale.astype(x.dtype)) + _per_pixel(shift.astype(x.dtype))


def _per_pixel(values: jax.Array) -> jax.Array:
    return values[None, None, None]


def _normalise(
    x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`x` normalised by its own mean and variance, and these two, which pass no gradient on.

    The gradient is the usual one; by hand it needs two sums, by autodiff more.
    """
    x32, count = x.astype(jnp.float32), x.size // x.shape[-1]
    mean = _sum_pixels(x32) / count
    var = _sum_pixels(jnp.square(x32 - _per_pixel(mean))) / count
    return _scaled(x, mean, var, scale, bias, eps), mean, var


_batch_norm = jax.custom_vjp(_normalise, nondiff_argnums=(3,))


def _batch_norm_forward(x, scale, bias, eps):
    y, mean, var = _normalise(x, scale, bias, eps)
    return (y, mean, var), (x, scale, mean, var)


def _batch_norm_backward(eps, saved, gradients):
    x, scale, mean, var = saved
    dy, count = gradients[0].astype(jnp.float32), x.size // x.shape[-1]
    centred, factor = x.astype(jnp.float32) - _per_pixel(mean), jax.lax.rsqrt(var + eps)
    dbias, dscale = _sum_pixels(dy), _sum_pixels(dy * centred) * factor
    dx = dy - _per_pixel(dbias / count) - centred * _per_pixel(factor * dscale / count)
    return (dx * _per_pixel(scale * factor)).astype(x.dtype), dscale, dbias


_batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


def _sum_pixels(x: jax.Array) -> jax.Array:
    """Sum `[B, H, W, C]` float32 over all but the channels.

    On CPU XLA sums one channel after the other, which reads the array many times and costs a
    network a third of its step. A sum of eight parts keeps to the order of memory, and a product
    with ones sums what is left.
    """

    def by_parts(x):
        x = x.reshape(-1, x.shape[-1])
        parts = next(n for n in range(8, 0, -1) if x.shape[0] % n == 0)
        x = functools.reduce(jnp.add, jnp.split(x, parts))
        return (jnp.ones((1, x.shape[0]), x.dtype) @ x)[0]

    return jax.lax.platform_dependent(x, cpu=by_parts, default=lambda x: jnp.sum(x, (0, 1, 2)))


def max_pool(
    x: Float[Array, "B H W C"], size: int, stride: int, padding: int = 0
) -> Float[Array, "B height width C"]:
    """Largest value of each window of `[B, H, W, C]`; equal values share the gradient.

    Rows, then columns, as maxima of shifted slices: the gradient of XLA's own window reduction
    takes three times as long on CPU.
    """
    for axis in (1, 2):
        last = (x.shape[axis] + 2 * padding - size) // stride * stride
        pads = [(0, 0, 0)] * 4
        pads[axis] = (padding, padding, 0)
        padded = jax.lax.pad(x, jnp.array(-jnp.inf, x.dtype), pads)
        x = jax.lax.slice_in_dim(padded, 0, last + 1, stride, axis)
        for i in range(1, size):
            x = jnp.maximum(x, jax.lax.slice_in_dim(padded, i, i + last + 1, stride, axis))
    return x
