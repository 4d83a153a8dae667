"""Attention of all tokens to all, in float32 or with products of bfloat16 factors."""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

SAVED = "attention"
"""Name of what `attend` keeps for the backward pass, for policies of `jax.checkpoint`."""
_MANY = 64
"""Tokens from which the products of bfloat16 factors are faster; with fewer, turning q, k, v and
their gradients round costs more than the products save. A step of ViT-Ti/16 takes 8 % less with 101
tokens, 13 % with 145 and 18 % with 197."""


def attend(
    qkv: Float[Array, "B T threefold"], head_width: int, *, rounded: bool = False
) -> Float[Array, "B T width"]:
    """Every token's mean of values, weighted by softmax of its products with all keys.

    Args:
      qkv: queries, keys and values side by side, each `[B, T, H * D]`, float32 or bfloat16.
      head_width: D, channels of each head.
      rounded: with 64 tokens or more, factors of the products and of the gradient's products are
        rounded to bfloat16 and summed in float32; of float32 arrays.

    Returns:
      The heads side by side, `[B, T, H * D]`, in the dtype of `qkv`; softmax is float32.

    >>> attend(jnp.ones((1, 3, 24)), 4).shape
    (1, 3, 8)

    Source: Vaswani et al. 2017, equation 1.
    """
    if rounded and qkv.shape[1] >= _MANY:
        return _rounded_attend(qkv, head_width)
    batch, tokens, _ = qkv.shape
    # heads first: on CPU batched products over [B, H] beat the einsum that leaves heads inside
    q, k, v = qkv.reshape(batch, tokens, 3, -1, head_width).transpose(2, 0, 3, 1, 4)
    q = q * head_width**-0.5
    if tokens >= _MANY and qkv.dtype == jnp.float32 and jax.default_backend() == "cpu":
        return _heads_on_cpu(q, k, v).transpose(0, 2, 1, 3).reshape(batch, tokens, -1)
    scores = jnp.einsum("bhnd,bhmd->bhnm", q, k)
    scores = scores.astype(jnp.float32)
    weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, -1, keepdims=True)))
    heads = jnp.einsum(
        "bhnm,bhmd->bhnd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    # softmax's division after the product: once per head's channel, not once per token
    heads = (heads / jnp.sum(weights, -1, keepdims=True)).astype(v.dtype)
    return heads.transpose(0, 2, 1, 3).reshape(batch, tokens, -1)


def _heads_on_cpu(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """`attend` from scaled queries, keys and values `[B, H, T, D]`, faster on CPU.

    Taken on hosts without an accelerator, also by programs that they lower for one, with equal
    results: under `platform_dependent` the backward pass would keep what both forms need.
    Scores are `[keys, queries]`, so that maxima and sums go over rows, and what is small is kept
    for the backward pass, which then computes only scores and their exponentials anew.
    """
    scores = jnp.einsum("bhmd,bhnd->bhmn", k, q)
    largest = checkpoint_name(jax.lax.stop_gradient(jnp.max(scores, 2, keepdims=True)), SAVED)
    weights = jnp.exp(scores - largest)
    sums = checkpoint_name(jnp.sum(weights, 2), SAVED)
    heads = checkpoint_name(jnp.einsum("bhmn,bhmd->bhnd", weights, v), SAVED)
    return heads / sums[..., None]


def _by_head(qkv: jax.Array, head_width: int) -> tuple[jax.Array, ...]:
    """Scaled queries, keys and values, each `[B * H, T, D]`."""
    q, k, v = jnp.split(qkv, 3, axis=2)
    return tuple(_heads_first(x, head_width) for x in (q * head_width**-0.5, k, v))


def _heads_first(x: jax.Array, head_width: int) -> jax.Array:
    """`[B, T, H * D]` as `[B * H, T, D]`."""
    batch, tokens, _ = x.shape
    x = x.reshape(batch, tokens, -1, head_width).swapaxes(1, 2)
    return x.reshape(-1, tokens, head_width)


def _side_by_side(heads: jax.Array, batch: int) -> jax.Array:
    """`[B * H, T, D]` as `[B, T, H * D]`."""
    _, tokens, width = heads.shape
    return heads.reshape(batch, -1, tokens, width).swapaxes(1, 2).reshape(batch, tokens, -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _rounded_attend(qkv: jax.Array, head_width: int) -> jax.Array:
    """`attend` with rounded factors.

    Scores are `[keys, queries]`, so that maxima go over rows, which is faster; and only arrays of
    D channels are ever turned round, never weights, as XLA:CPU has no fast product for a left
    factor that is.
    """
    return _rounded_forward(qkv, head_width)[0]


def _rounded_forward(qkv, head_width):
    q, k, v = (x.astype(jnp.bfloat16) for x in _by_head(qkv, head_width))
    scores = _product(k, q, axis=2)
    weights = jnp.exp(scores - jnp.max(scores, 1, keepdims=True)).astype(jnp.bfloat16)
    heads = _product(_turned(v), weights)
    heads, sums = heads[:, :-1], heads[:, -1:]
    heads = _side_by_side((heads / sums).swapaxes(1, 2), len(qkv))
    # as integers: XLA:CPU would turn the whole stack of all blocks' bfloat16 weights into float32
    weights = jax.lax.bitcast_convert_type(weights, jnp.uint16)
    weights, sums, heads = (checkpoint_name(x, SAVED) for x in (weights, sums, heads))
    return heads, (qkv, weights, sums, heads)


def _rounded_backward(head_width, saved, dheads):
    qkv, weights, sums, heads = saved
    weights = jax.lax.bitcast_convert_type(weights, jnp.bfloat16)
    q, k, v = (x.astype(jnp.bfloat16) for x in _by_head(qkv, head_width))
    batch, tokens, _ = qkv.shape
    shift = jnp.sum((dheads * heads).reshape(batch, tokens, -1, head_width), -1)
    shift = shift.swapaxes(1, 2).reshape(sums.shape) / sums
    dheads = (_heads_first(dheads, head_width) / sums.swapaxes(1, 2)).astype(jnp.bfloat16)
    dv = _product(weights, dheads)
    dscores = (weights.astype(jnp.float32) * (_product(v, dheads, axis=2) - shift)).astype(
        jnp.bfloat16
    )
    dq = _product(_turned(k), dscores)[:, :-1].swapaxes(1, 2) * head_width**-0.5
    gradients = dq, _product(dscores, q), dv
    return (jnp.concatenate([_side_by_side(x, batch) for x in gradients], 2),)


_rounded_attend.defvjp(_rounded_forward, _rounded_backward)


def _product(a: jax.Array, b: jax.Array, axis: int = 1) -> jax.Array:
    """Sums over the last axis of `a` and an axis of `b`, `[H, ., .]`, in float32."""
    axes = (((2,), (axis,)), ((0,), (0,)))
    return jax.lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)


def _turned(x: jax.Array) -> jax.Array:
    """`[H, T, D]` as `[H, D + 1, T]`, with ones in the last row.

    The ones sum the other factor, and keep XLA from taking the transpose into the product.
    """
    return jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 1), (0, 0)), constant_values=1)
