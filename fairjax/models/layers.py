"""Layers of all networks: flax.nnx modules that read their widths from their arrays."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from fairjax import trees
from fairjax.models.functional import Draws

# XLA:CPU fuses a sum over so few into what follows, but not a product: least of all a population's
_FEW_FEATURES = 8


class Linear(nnx.Module):
    """`x @ kernel + bias` over the last axis, with all leading axes flattened into one.

    XLA's weight gradient of a three-dimensional product is up to twice as slow on CPU. The kernel
    starts as N(0, std^2), with variance 1 / num_in (LeCun et al. 1998) unless `std` says otherwise.
    `rounded` factors are of bfloat16 in the product and its gradients, which are summed in float32.
    """

    def __init__(
        self,
        num_in: int,
        num_out: int,
        *,
        draws: Draws,
        std: float | None = None,
        rounded: bool = False,
    ):
        self.rounded = rounded
        std = 1 / math.sqrt(num_in) if std is None else std
        self.kernel = nnx.Param(draws.normal(std, num_in, num_out))
        self.bias = nnx.Param(draws.full(0.0, num_out))

    def __call__(self, x: Float[Array, "*B num_in"]) -> Float[Array, "*B num_out"]:
        """Apply to `[..., num_in]` in the dtype of `x`."""
        kernel, bias = self.kernel[...].astype(x.dtype), self.bias[...].astype(x.dtype)
        flat = x.reshape(-1, x.shape[-1])
        gated = isinstance(kernel, GatedKernel)
        kernel, trained = (kernel.kernel, kernel.trained) if gated else (kernel, None)
        y: Any
        if gated or self.rounded:
            y = _ruled(flat, kernel, bias, trained, self.rounded)
        elif kernel.shape[1] == 1 and kernel.shape[0] <= _FEW_FEATURES:
            y = jnp.sum(flat * kernel.T, axis=1, keepdims=True) + bias[None]
        else:
            y = flat @ kernel + bias[None]
        return y.reshape(*x.shape[:-1], y.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _ruled(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, trained: jax.Array | None, rounded: bool
) -> jax.Array:
    """`x @ kernel + bias` of two matrices, with rules of its own for the gradient.

    Without the kernel's gradient where `trained` is False, and rounded there, too: XLA:CPU
    multiplies bfloat16 several times as fast as float32, if it sums in float32 and nothing is
    transposed on the way. Autodiff would mix the types and transpose.
    """
    return (_rounded_product(x, kernel) if rounded else x @ kernel) + bias[None]


def _ruled_forward(x, kernel, bias, trained, rounded):
    return _ruled(x, kernel, bias, trained, rounded), (x, kernel, trained)


def _ruled_backward(rounded, saved, dy):
    x, kernel, trained = saved
    product = _rounded_gradients if rounded else lambda x, dy: (x.T @ dy, jnp.sum(dy, 0))
    if trained is None:
        dkernel, dbias = product(x, dy)
    else:
        alone = lambda x, dy: (jnp.zeros_like(kernel), jnp.sum(dy, 0))
        dkernel, dbias = jax.lax.cond(trained, product, alone, x, dy)
    dx = _rounded_product(dy, kernel, axis=1) if rounded else dy @ kernel.T
    return dx, dkernel, dbias, None


_ruled.defvjp(_ruled_forward, _ruled_backward)


def _rounded_product(a: jax.Array, b: jax.Array, axis: int = 0) -> jax.Array:
    """Sum over the last axis of `a` and an axis of `b`, rounded, in float32."""
    a, b = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
    return jax.lax.dot_general(
        a, b, (((1,), (axis,)), ((), ())), preferred_element_type=jnp.float32
    )


def _rounded_gradients(x: jax.Array, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`x.T @ dy`, rounded, and the sum of the rows of `dy`; turns the narrower one.

    A row of ones keeps XLA from taking the transpose into the product, for which it has no kernel,
    and sums the other one's rows on the way.
    """

    def turned(a, b):
        ones = jnp.pad(a.T, ((0, 1), (0, 0)), constant_values=1)
        return jnp.split(_rounded_product(ones, b), [a.shape[1]])

    if x.shape[1] > dy.shape[1]:
        return turned(dy, x)[0].T, jnp.sum(dy, 0)
    dkernel, dbias = turned(x, dy)
    return dkernel, dbias[0]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GatedKernel:
    """Stands in for the kernel of a `Linear`; see `gate_kernels`."""

    kernel: jax.Array
    trained: jax.Array
    """bool scalar, or `[L]` for stacked blocks."""

    def __getitem__(self, index: Any) -> "GatedKernel":
        """All of it: what reading a variable asks for."""
        return self

    def astype(self, dtype: Any) -> "GatedKernel":
        """The kernel in another type."""
        return GatedKernel(self.kernel.astype(dtype), self.trained)


def gate_kernels(params: dict[str, Any], mask: dict[str, Any]) -> dict[str, Any]:
    """Compute gradients of `Linear` kernels only where a traced mask is True.

    Half the weight gradients of a half-empty mask are then skipped, in one program for all masks.
    Under vmap over masks both branches run, so this pays one candidate at a time.

    Args:
      params: of a network whose matrices named `kernel` all belong to `Linear`, as in `vit`.
      mask: tree of bool arrays for some of the leaves, one bit per matrix, as from
        `MaskSpace.expand`.

    Returns:
      `params` with gated kernels, for `Model.apply`.
    """
    masks = trees.flatten_named(mask)

    def gate(name: str, leaf: jax.Array) -> Any:
        trained = masks.get(name)
        if trained is None or not name.endswith("kernel") or leaf.ndim > 3:
            return leaf
        return GatedKernel(leaf, trained.reshape(leaf.shape[:-2]))

    return trees.map_named(gate, params)


def gelu(x: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """Exact GELU, x times the normal distribution function, from `erf` as torch has it.

    `jax.nn.gelu` takes `erfc`, whose gradient is dearer; the two differ by a rounding error of x.
    """
    return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))


class LayerNorm(nnx.Module):
    """Normalise the last axis in float32, return the dtype of the input."""

    def __init__(self, width: int, *, draws: Draws, eps: float):
        self.scale = nnx.Param(draws.full(1.0, width))
        self.bias = nnx.Param(draws.full(0.0, width))
        self.eps = eps

    def __call__(self, x: Float[Array, "*B width"]) -> Float[Array, "*B width"]:
        """Apply to `[..., width]`."""
        x32 = x.astype(jnp.float32)
        centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        shape = (1,) * (x.ndim - 1) + (-1,)
        scale, bias = self.scale[...].reshape(shape), self.bias[...].reshape(shape)
        return (centred * jax.lax.rsqrt(variance + self.eps) * scale + bias).astype(x.dtype)


def dropout(x: Float[Array, "*B"], rate: float, key: Key[Array, ""] | None) -> Float[Array, "*B"]:
    """Zero entries with probability `rate` and rescale the rest; nothing without a key."""
    if not rate or key is None:
        return x
    return _keep(x, jnp.float32(rate), key, x.shape)


def drop_path(
    x: Float[Array, "*B"], rate: Float[Array, ""], key: Key[Array, ""] | None
) -> Float[Array, "*B"]:
    """Zero whole examples `[B, ...]` with probability `rate` (stochastic depth); see `dropout`."""
    return x if key is None else _keep(x, rate, key, (x.shape[0],) + (1,) * (x.ndim - 1))


def _keep(x: jax.Array, rate: jax.Array, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    keep = jax.random.bernoulli(key, 1 - rate, shape)
    return jnp.where(keep, x / (1 - rate).astype(x.dtype), jnp.zeros((), x.dtype))


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

    return jax.lax.platform_dependent(*saved, dy, cpu=as_convolutions, default=as_xla_likes)


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
    x = x[:, ::stride, ::stride]
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
        mean, var = self.mean[...], self.var[...]
        if train:
            y, mean, var = _batch_norm(x, self.scale[...], self.bias[...], self.eps)
            count = x.size // x.shape[-1]
            unbiased = var * (count / max(count - 1, 1))
            old, new = 1 - self.momentum, self.momentum
            self.mean[...] = old * self.mean[...] + new * jax.lax.stop_gradient(mean)
            self.var[...] = old * self.var[...] + new * jax.lax.stop_gradient(unbiased)
            return y
        return _scaled(x, mean, var, self.scale[...], self.bias[...], self.eps)


def _scaled(x, mean, var, scale, bias, eps):
    # one multiply and one add per pixel: the rest happens on [C] vectors
    scale = scale * jax.lax.rsqrt(var + eps)
    shift = bias - mean * scale
    return x * scale.astype(x.dtype)[None, None, None] + shift.astype(x.dtype)[None, None, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _batch_norm(x, scale, bias, eps):
    """`x` normalised by its own mean and variance, and these two, whose gradient is not taken."""
    x32 = x.astype(jnp.float32)
    count = x.size // x.shape[-1]
    mean = _pixel_sums(x32) / count
    var = _pixel_sums(jnp.square(x32 - mean[None, None, None])) / count
    return _scaled(x, mean, var, scale, bias, eps), mean, var


def _batch_norm_forward(x, scale, bias, eps):
    y, mean, var = _batch_norm(x, scale, bias, eps)
    return (y, mean, var), (x, scale, mean, var)


def _batch_norm_backward(eps, saved, cotangents):
    x, scale, mean, var = saved
    dy = cotangents[0].astype(jnp.float32)
    count = x.size // x.shape[-1]
    inverse = jax.lax.rsqrt(var + eps)
    centred = x.astype(jnp.float32) - mean[None, None, None]
    dbias = _pixel_sums(dy)
    dscale = _pixel_sums(dy * centred) * inverse
    factor = scale * inverse
    slope, level = inverse * dscale / count, dbias / count
    dx = factor[None,None,None] * (dy - level[None, None, None] - centred * slope[None, None, None])
    return dx.astype(x.dtype), dscale, dbias


_batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


def _pixel_sums(x):
    """Sums over all but the last axis."""

    def by_product(x):
        x = x.reshape(-1, x.shape[-1])
        parts = next(n for n in range(8, 0, -1) if x.shape[0] % n == 0)
        x = sum(jnp.split(x, parts))
        return (jnp.ones((1, x.shape[0])) @ x)[0]

    return jax.lax.platform_dependent(x, cpu=by_product, default=lambda x: jnp.sum(x, (0, 1, 2)))


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


def check_images(images: jax.Array | np.ndarray, image_size: int) -> None:
    """Reject anything but `[B, image_size, image_size, 3]`."""
    if images.ndim != 4 or images.shape[1:] != (image_size, image_size, 3):
        raise ValueError(
            f"images must have shape [B, {image_size}, {image_size}, 3], got {images.shape}"
        )
