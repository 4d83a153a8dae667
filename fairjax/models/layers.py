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
            y = flat @ kernel + _in_rows(bias, flat.shape[0])
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
    # the call, not its products: hidden in it, a policy of `jax.checkpoint` that keeps products has
    # them computed anew, and on CPU that is faster than to keep and read them (of bfloat16 factors)
    return _ruled(x, kernel, bias, trained, rounded), (x, kernel, trained)


def _ruled_backward(rounded, saved, dy):
    x, kernel, trained = saved
    product = _rounded_gradients if rounded else lambda x, dy: (x.T @ dy, _sum_rows(dy))
    if trained is None:
        dkernel, dbias = product(x, dy)
    else:
        alone = lambda x, dy: (jnp.zeros_like(kernel), _sum_rows(dy))
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
        return turned(dy, x)[0].T, _sum_rows(dy)
    dkernel, dbias = turned(x, dy)
    return dkernel, dbias[0]


def _in_rows(vector: jax.Array, rows: Any) -> jax.Array:
    """`[D]` as `[rows, D]`, of which `rows` may be symbolic.

    On CPU as a product with ones, which costs nothing, as its gradient is a product, too: XLA's own
    sum of rows goes against the order of memory, after it computed what it sums once more.
    """

    def by_ones(vector):
        # ones made from the vector: under vmap each candidate has its own, and rows stay in order
        one = (jnp.isnan(vector[:1]) | True).astype(vector.dtype)
        ones = jnp.broadcast_to(one[None, None], (1, rows, 1))
        # with a batch of one, so that no policy of `jax.checkpoint` takes it for a large product
        axes = (((2,), (1,)), ((0,), (0,)))
        return jax.lax.dot_general(ones, vector[None, None], axes)[0]

    repeated = lambda vector: jnp.broadcast_to(vector[None], (rows, *vector.shape))
    return jax.lax.platform_dependent(vector, cpu=by_ones, default=repeated)


def _sum_rows(x: jax.Array) -> jax.Array:
    """Sum of the rows of `[rows, D]`, on CPU as a product with ones; see `_in_rows`."""

    def by_ones(x):
        return (jnp.ones((1, x.shape[0]), x.dtype) @ x)[0]

    return jax.lax.platform_dependent(x, cpu=by_ones, default=lambda x: jnp.sum(x, 0))


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
        """Apply to `[..., width]`; of bfloat16 arrays there is no forward-mode derivative."""
        if x.dtype == jnp.bfloat16:
            return _short_norm(x, self.scale[...], self.bias[...], self.eps)
        x32, rows = x.astype(jnp.float32), math.prod(x.shape[:-1])
        centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        scale, bias = (_in_rows(p[...], rows).reshape(x.shape) for p in (self.scale, self.bias))
        return (centred * jax.lax.rsqrt(variance + self.eps) * scale + bias).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _short_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
    """Layer norm that reads `x` once for its statistics, and once more in the gradient.

    Both are of differences to the first channel: of a row that hardly varies a mean of squares
    less a squared mean would leave rounding errors.
    """
    return _short_norm_forward(x, scale, bias, eps)[0]


def _short_norm_forward(x, scale, bias, eps):
    x32 = x.astype(jnp.float32)
    apart = x32 - x32[..., :1]
    mean = jnp.mean(apart, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(apart), axis=-1, keepdims=True) - jnp.square(mean)
    factor = jax.lax.rsqrt(jnp.maximum(variance, 0.0) + eps)
    mean = mean + x32[..., :1]
    scale, bias = (jax.lax.expand_dims(p, range(x.ndim - 1)) for p in (scale, bias))
    return ((x32 - mean) * factor * scale + bias).astype(x.dtype), (x, mean, factor, scale)


def _short_norm_backward(eps, saved, dy):
    x, mean, factor, scale = saved
    dy, normal = dy.astype(jnp.float32), (x.astype(jnp.float32) - mean) * factor
    dnormal, leading = dy * scale, tuple(range(x.ndim - 1))
    shift = jnp.mean(dnormal, axis=-1, keepdims=True)
    slope = jnp.mean(dnormal * normal, axis=-1, keepdims=True)
    dx = (factor * (dnormal - shift - normal * slope)).astype(x.dtype)
    dscale, dbias = jnp.sum(dy * normal, leading), jnp.sum(dy, leading)
    return dx, dscale.astype(scale.dtype), dbias.astype(scale.dtype)


_short_norm.defvjp(_short_norm_forward, _short_norm_backward)


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


def check_images(images: jax.Array | np.ndarray, image_size: int) -> None:
    """Reject anything but `[B, image_size, image_size, 3]`."""
    if images.ndim != 4 or images.shape[1:] != (image_size, image_size, 3):
        raise ValueError(
            f"images must have shape [B, {image_size}, {image_size}, 3], got {images.shape}"
        )
