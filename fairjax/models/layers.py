"""Layers of all networks: flax.nnx modules that read their widths from their arrays."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer

LECUN_NORMAL = jax.nn.initializers.lecun_normal()


class Linear(nnx.Module):
    """`x @ kernel + bias` over the last axis, with all leading axes flattened into one.

    XLA's weight gradient of a three-dimensional product is up to twice as slow on CPU.
    """

    def __init__(
        self,
        num_in: int,
        num_out: int,
        *,
        rngs: nnx.Rngs,
        kernel_init: Initializer = LECUN_NORMAL,
    ):
        self.kernel = nnx.Param(kernel_init(rngs.params(), (num_in, num_out), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(num_out, jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply to `[..., num_in]` in the dtype of `x`."""
        kernel, bias = self.kernel[...].astype(x.dtype), self.bias[...].astype(x.dtype)
        y = x.reshape(-1, x.shape[-1]) @ kernel + bias[None]
        return y.reshape(*x.shape[:-1], y.shape[-1])
