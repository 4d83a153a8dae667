"""Rows for the places of an epoch's batches, dealt or drawn from decks."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from fairjax.fusions import compiled_apart
from fairjax.sampling.protocol import Rows

_FEW_DECKS = 16


class Decks(NamedTuple):
    """Rows in C decks that are dealt apart: cells, or everything as the first of them."""

    numbers: jax.Array
    """int32 `[n]`, deck after deck."""
    counts: jax.Array
    """int32 `[C]`."""

    @property
    def starts(self) -> jax.Array:
        """First place of every deck, int32 `[C]`."""
        return jnp.cumsum(self.counts) - self.counts


class Slots(NamedTuple):
    """Which deck fills each place of the batches of an epoch."""

    deck: jax.Array
    """int32 `[B]` (the same for every batch) or `[T, B]`."""
    start: jax.Array
    """int32 `[T, C]`: how many a deck has dealt before each batch, modulo its size."""
    offset: jax.Array
    """int32 `[B]`: and in the batch before each place."""
    weights: jax.Array
    """float32 `[T, B]`, 0 = padding."""


def one_deck(rows: Rows) -> Decks:
    """All rows in one deck; the others are empty, so that shapes and draws are those of cells."""
    counts = rows.counts.reshape(-1)
    return Decks(rows.numbers, jnp.zeros_like(counts).at[0].set(len(rows.numbers)))


def exact_slots(
    decks: Decks, probs: jax.Array, batch_size: int, num_batches: int, *, published: bool
) -> Slots:
    """The same deck counts in every batch: `batch_size * probs`, rounded.

    Args:
      decks: C of them; where one holds all rows, `probs` does not matter.
      probs: float32 `[C]`, which sum to 1.
      batch_size: B.
      num_batches: T.
      published: round each count half-to-even, so that their sum varies and batches are padded to
        B + C; else by the largest remainders, which always sum to B.
    """
    num_decks = len(decks.counts)
    expected = batch_size * probs
    if published:
        shares, width = jnp.round(expected).astype(jnp.int32), batch_size + num_decks
    else:
        shares, width = largest_remainder(expected, batch_size), batch_size
    whole = decks.counts[0] == len(decks.numbers)
    shares = select(whole, jnp.zeros_like(shares).at[0].set(batch_size), shares)
    ends = jnp.cumsum(shares)
    place = jnp.arange(width, dtype=jnp.int32)
    deck = jnp.sum(place[:, None] >= ends[None, :], axis=1, dtype=jnp.int32)
    filled = (deck < num_decks).astype(jnp.float32)
    deck = jnp.minimum(deck, num_decks - 1)
    # Start and offset are reduced apart, for B * T remainders cost more than all the rest.
    size = jnp.maximum(decks.counts, 1)
    batch = jnp.arange(num_batches, dtype=jnp.int32)
    start = jax.lax.rem(
        batch[:, None] * shares[None, :], jnp.broadcast_to(size, (num_batches, num_decks))
    )
    offset = jax.lax.rem(place - _of_deck(ends - shares, deck), _of_deck(size, deck))
    weights = jnp.broadcast_to(filled, (num_batches, width))
    return Slots(deck, start, offset, weights)


def deal(key: Key[Array, ""], decks: Decks, slots: Slots) -> Int[Array, "T B"]:
    """Rows without replacement: every deck is shuffled, dealt, and dealt again from its top."""
    word = jnp.uint16 if len(decks.numbers) < 1 << 16 else jnp.uint32
    sizes = jnp.maximum(decks.counts, 1)
    # Whole vectors of words: XLA:CPU takes shorter ones where these leave a rest.
    width, lanes = len(slots.deck), 32 // jnp.dtype(word).itemsize
    deck, offset = (jnp.pad(places, (0, -width % lanes)) for places in (slots.deck, slots.offset))
    size, position = _of_deck(sizes, deck)[None, :], _of_deck(slots.start, deck) + offset[None, :]
    position = jnp.where(position >= size, position - size, position)
    shuffled = _permute(key, position.astype(word), deck, sizes.astype(word))
    return decks.numbers[_of_deck(decks.starts, slots.deck)[None, :] + shuffled[:, :width]]


def weighted_rows(
    key: Key[Array, ""], decks: Decks, slots: Slots, example_weights: Float[Array, " N"]
) -> Int[Array, "T B"]:
    """Rows with replacement, in proportion to `example_weights` within the deck."""
    starts, counts = decks.starts, decks.counts
    cumulative = jnp.concatenate([jnp.zeros(1), jnp.cumsum(example_weights[decks.numbers])])
    low, high = cumulative[starts], cumulative[starts + counts]
    shape = slots.weights.shape
    deck = jnp.broadcast_to(slots.deck, shape)
    draw = low[deck] + jax.random.uniform(key, shape) * (high - low)[deck]
    rank = jnp.searchsorted(cumulative, draw, side="right").astype(jnp.int32) - 1
    return decks.numbers[jnp.clip(rank, starts[deck], starts[deck] + counts[deck] - 1)]


def _permute(key: jax.Array, position: jax.Array, deck: jax.Array, sizes: jax.Array) -> jax.Array:
    """Where random permutations, one of `range(sizes[c])` per deck, send `position [T, B]`.

    Swap-or-not (Hoang, Morris and Rogaway, CRYPTO 2012): each round pairs x with its mirror
    `pivot - x` and swaps the pair or not by a random bit of the pair, here the top bit of a
    multiply-shift hash. A place is looked up without sorting or storing the permutation, several
    times faster on CPU than a sort; two places depend on each other by about 2^-rounds.

    Sizes are below 2^16 unless they are uint32: numbers of 16 bits are hashed as well as they need,
    and twice as many fit into a vector.
    """
    num_rounds, word = 12, sizes.dtype
    bits = _random_bits(key, 3, num_rounds, len(sizes))
    pivots = jax.lax.rem(bits[0], jnp.broadcast_to(sizes.astype(jnp.uint32), bits[0].shape))
    by_place = jnp.stack([pivots, bits[1], bits[2]], axis=1).astype(word)
    half = jnp.array(1 << (8 * word.itemsize - 1), word)

    def rounds(x, size, by_place):
        for pivot, factor, offset in by_place[:, :, None, :]:
            mirror = pivot - x
            mirror = jax.lax.select(x <= pivot, mirror, mirror + size)
            swap = jnp.maximum(x, mirror) * factor + offset >= half
            x = jax.lax.select(swap, mirror, x)
        return x

    # Apart from places and rows, whose 32 bits would halve the numbers that fit into a vector.
    size, by_place = _of_deck(sizes, deck)[None, :], _of_deck(by_place, deck)
    return compiled_apart(rounds)(position, size, by_place).astype(jnp.int32)


def _random_bits(key: jax.Array, *shape: int) -> jax.Array:
    """Random words uint32: a counter mixed with each word of the key, by MurmurHash3's finaliser.

    `jax.random.bits` is a loop of small programs on CPU: for so few words it took as long as half
    of the permutation.
    """
    x = jnp.arange(math.prod(shape), dtype=jnp.uint32)
    for word in jax.random.key_data(key):
        x = x * jnp.uint32(0x9E3779B9) + word
        x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
        x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
        x = x ^ (x >> 16)
    return x.reshape(shape)


def _of_deck(values: jax.Array, deck: jax.Array) -> jax.Array:
    """`values[..., deck]`; of few decks by selects, which vectorise where a gather does not."""
    if values.shape[-1] > _FEW_DECKS:
        return values[..., deck]
    deck = deck.astype(values.dtype)  # comparisons as narrow as what they choose
    found = jnp.broadcast_to(values[..., :1], (*values.shape[:-1], *deck.shape))
    for number in range(1, values.shape[-1]):
        found = jnp.where(deck == number, values[..., number : number + 1], found)
    return found


def largest_remainder(expected: jax.Array, total: int) -> jax.Array:
    """Round `[C]` counts to integers that sum to `total`, the largest fractions up."""
    floor = jnp.floor(expected)
    remainder = expected - floor
    index = jnp.arange(len(expected))
    ahead = (remainder[None, :] > remainder[:, None]) | (
        (remainder[None, :] == remainder[:, None]) & (index[None, :] < index[:, None])
    )
    missing = total - floor.sum().astype(jnp.int32)
    up = ahead.sum(1, dtype=jnp.int32) < missing
    return floor.astype(jnp.int32) + up.astype(jnp.int32)


def select(condition: jax.Array, a: Any, b: Any) -> jax.Array:
    """`jnp.where` for a scalar condition, which may be traced."""
    return jax.lax.select(jnp.broadcast_to(condition, a.shape), a, b)
