"""Soft nearest-neighbour loss of channels: how well each tells classes or groups apart."""

import functools
import math
from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Real

Array = jax.Array | np.ndarray

Distance = Literal["cosine", "euclidean"]
Products = Literal["float32", "bfloat16_products"]

_TEMPERATURES = (0.01, 100.0)
_LINE = 16  # channels brought in front at a time: a line of a CPU's cache, which stays
_PACKED = 64  # at most so many of bfloat16, two in a word: longer reads, and the words stay


def soft_nearest_neighbor_loss(
    features: Float[Array, "B *axes C"],
    classes: Int[Array, " B"],
    *,
    num_classes: int,
    distance: Distance = "cosine",
    temperature: float | Float[jax.Array, ""] | None = 1.0,
    self_in_numerator: bool = False,
    weights: Real[Array, " B"] | Bool[Array, " B"] | None = None,
    chunk_size: int | None = None,
    dtype: Products = "float32",
) -> Float[jax.Array, " C"]:
    """How far examples of one class lie from each other in each channel, in nats.

    Low means that neighbours share their class, so that the channel carries the class; features
    that know nothing of it give about the entropy of the classes. Never negative, unless
    `self_in_numerator`. An example whose class has no other example is left out; nan if that
    leaves none. Not finite where a channel holds nan or inf.

    Args:
      features: float `[B, ..., C]`; an example's vector in channel c is `features[b, ..., c]`
        flattened. Give `[B, D]` embeddings as one channel: `embeddings[..., None]`.
      classes: int `[B]` in `[0, num_classes)`: sensitive groups, or labels.
      num_classes: number of different classes.
      distance: "cosine" (a zero vector is at distance 1 from everything) or "euclidean", squared.
      temperature: positive; distances are divided by it. None takes, for each channel, the one in
        [0.01, 100] that makes its loss least.
      self_in_numerator: count an example as its own neighbour in the numerator, not in the
        denominator, as the pruning paper's published code does.
      weights: float `[B]`, 0 for padding; ones if None.
      chunk_size: channels in flight at a time, each `[B, B]`; results do not depend on it. None
        takes 1 on CPU, where one product after another stays in the cache, and 32 elsewhere.
      dtype: "bfloat16_products" rounds the features to 8 bits before they are multiplied and adds
        up in float32: faster on CPUs and GPUs that multiply it so. Losses move by about 1e-5 and
        channels that are as close change places; float32 where a channel's mean is many times its
        spread.

    Returns:
      float32 `[C]`. Safe under jit, vmap and grad.

    Raises:
      ValueError: fewer than 2 dimensions, lengths that differ, classes that are no integers,
        unknown distance or dtype, a temperature given as a number that is not positive, or
        `chunk_size` below 1.

    Source: Frosst et al., ICML 2019, equation 1; per channel as in Kong et al., MICCAI 2024.
    """
    if features.ndim < 2 or classes.shape != features.shape[:1]:
        raise ValueError(
            "features must be [B, ..., C] and classes [B], "
            f"got shapes {features.shape} and {classes.shape}"
        )
    if not jnp.issubdtype(classes.dtype, jnp.integer):
        raise ValueError(f"classes must be integer ids, got {classes.dtype}")
    if distance not in ("cosine", "euclidean"):
        raise ValueError(f"distance must be 'cosine' or 'euclidean', got {distance!r}")
    if dtype not in get_args(Products):
        raise ValueError(f"dtype must be one of {', '.join(get_args(Products))}, got {dtype!r}")
    if isinstance(temperature, (int, float)) and not temperature > 0:
        raise ValueError(f"temperature must be positive or None, got {temperature}")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    batch, num_channels = len(features), features.shape[-1]
    classes = jnp.asarray(classes)
    weights = jnp.ones(batch) if weights is None else jnp.asarray(weights).astype(jnp.float32)
    members = jax.nn.one_hot(classes, num_classes, axis=0) * weights[None]
    # A cosine distance is at most 2, so that exp(-distance / temperature) cannot underflow.
    bounded = distance == "cosine" and isinstance(temperature, (int, float)) and temperature >= 0.1

    def channel_loss(vectors: jax.Array) -> jax.Array:
        """Loss of one channel's vectors `[B, F]`."""
        distances = _pairwise_distances(vectors, distance)

        def loss_at(temperature):
            return _neighbor_loss(
                distances / temperature, classes, members, weights, self_in_numerator, bounded
            )

        return loss_at(_least_temperature(loss_at) if temperature is None else temperature)

    features = jnp.asarray(features).astype(jnp.float32).reshape(batch, -1, num_channels)

    losses = functools.partial(_losses_by_channel, channel_loss, dtype)
    if chunk_size is not None:
        return losses(features, chunk_size)
    return jax.lax.platform_dependent(
        features,
        cpu=functools.partial(losses, chunk_size=1),
        default=functools.partial(losses, chunk_size=32),
    )


def _losses_by_channel(
    channel_loss: Callable[[jax.Array], jax.Array],
    dtype: Products,
    features: jax.Array,
    chunk_size: int,
) -> jax.Array:
    """`channel_loss` of every channel of `[B, F, C]`, brought in front a few at a time."""
    num_channels = features.shape[-1]
    # a chunk of one is not a batch of one: XLA:CPU takes twice as long for its product
    batch_size = None if chunk_size == 1 else chunk_size
    packed = dtype != "float32" and chunk_size == 1 and num_channels % 2 == 0
    width = min(num_channels, max(chunk_size, _LINE))
    if packed:
        width = 2 * math.ceil(num_channels / math.ceil(num_channels / _PACKED) / 2)

    def turned(start: jax.Array) -> jax.Array:
        some = jax.lax.dynamic_slice_in_dim(features, start, width, axis=2)
        some = some if dtype == "float32" else some.astype(jnp.bfloat16)
        channels = some.transpose(2, 0, 1)
        if not packed:
            return jax.lax.map(channel_loss, channels, batch_size=batch_size)
        # XLA:CPU turns one number after another: two in a word of 32 bits are half as many
        pairs = some.reshape(*some.shape[:2], width // 2, 2)
        words = jax.lax.bitcast_convert_type(pairs, jnp.uint32).transpose(2, 0, 1)
        half_loss = lambda channel: channel_loss(_half(words, *channel))
        return jax.lax.map(half_loss, (jnp.arange(width), channels))

    # the last ones overlap those before where channels are no multiple of the width
    first = np.minimum(np.arange(0, num_channels, width), num_channels - width)
    channel = np.arange(num_channels)
    place = channel // width * width + channel - first[channel // width]
    return jax.lax.map(turned, jnp.asarray(first)).reshape(-1)[place]


@jax.custom_jvp
def _half(words: jax.Array, number: jax.Array, channel: jax.Array) -> jax.Array:
    """A channel `[B, F]` from words `[C / 2, B, F]`, where it is the given `number`.

    `channel` is the same and only there to differentiate: elsewhere the compiler drops it.
    """
    word = jax.lax.dynamic_index_in_dim(words, number // 2, keepdims=False)
    half = (word >> (number % 2 * 16).astype(jnp.uint32)).astype(jnp.uint16)
    return jax.lax.bitcast_convert_type(half, channel.dtype)


_half.defjvp(lambda values, tangents: (_half(*values), tangents[2]))


def _pairwise_distances(vectors: jax.Array, distance: Distance) -> jax.Array:
    """Cosine or squared Euclidean distances `[B, B]` of the rows of `[B, F]`."""
    # not with a transpose: XLA:CPU has no fast product of bfloat16 for that
    rows = (((1,), (1,)), ((), ()))
    products = jax.lax.dot_general(vectors, vectors, rows, preferred_element_type=jnp.float32)
    squares = jnp.diagonal(products)
    if distance == "cosine":
        scale = jax.lax.rsqrt(jnp.maximum(squares, 1e-24))
        return 1.0 - products * scale[:, None] * scale[None]
    return jnp.maximum(squares[:, None] + squares[None] - 2.0 * products, 0.0)


def _neighbor_loss(
    distances: jax.Array,
    classes: jax.Array,
    members: jax.Array,
    weights: jax.Array,
    self_in_numerator: bool,
    bounded: bool,
) -> jax.Array:
    """Soft nearest-neighbour loss from distances `[B, B]` in units of the temperature."""
    itself = jnp.eye(len(distances), dtype=bool)
    if not bounded:
        # The nearest neighbour moves to 0, which leaves the ratio alone and the sums away from 0.
        absent = (weights == 0)[:, None] | (itself & (not self_in_numerator))
        distances = jnp.where(absent, jnp.inf, distances)
        nearest = jax.lax.stop_gradient(jnp.min(distances, axis=0))
        distances = distances - jnp.where(jnp.isfinite(nearest), nearest, 0.0)[None]
    # The sum over neighbours runs down the columns, along which it vectorises.
    by_class = members @ jnp.where(itself, 0.0, jnp.exp(-distances))
    total = jnp.sum(by_class, axis=0)
    same = jnp.take_along_axis(by_class, classes[None], axis=0)[0]
    num_same = jnp.sum(members > 0, axis=1)[classes]
    if self_in_numerator:
        same = same + weights * jnp.exp(-jnp.diagonal(distances))
        num_same = num_same + 1
    counted = jnp.where((num_same >= 2) & (jnp.sum(weights > 0) >= 2), weights, 0.0)
    losses = jnp.log(jnp.maximum(total, 1e-30)) - jnp.log(jnp.maximum(same, 1e-30))
    return jnp.sum(counted * losses) / jnp.sum(counted)


def _least_temperature(loss_at: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """The temperature of least loss, to a few per cent: a grid in its logarithm, refined twice."""
    lowest, highest = (jnp.log(temperature) for temperature in _TEMPERATURES)
    low, high = lowest, highest
    for _ in range(3):
        grid = jnp.clip(jnp.linspace(low, high, 9), lowest, highest)
        best = grid[jnp.argmin(jax.lax.map(loss_at, jnp.exp(grid)))]
        width = (high - low) / 8
        low, high = best - width, best + width
    return jax.lax.stop_gradient(jnp.exp(best))
