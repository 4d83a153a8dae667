"""Which rows every batch holds: samplers as pure functions that live inside the jitted epoch.

    sampler = shuffled(labels=labels, group=group, num_classes=2, num_groups=2, batch_size=100)
    state = sampler.init()
    indices, weights = sampler.sample_epoch(key, state)   # [T, B] rows; weight 0 is padding

All samplers are `BatchSampler`s and take the same arguments, so that one replaces another in
`fairjax.train`. Which rows a run may draw is part of its state, so that the runs of one population
may have splits of their own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer, Key


class Rows(NamedTuple):
    """The n examples that a run may draw, arranged by (label, group) cell; may be traced."""

    numbers: Any
    """int32 `[n]`, row numbers, cell after cell."""
    counts: Any
    """int32 `[K, G]`, rows of every cell."""


class CellSums(NamedTuple):
    """Sums over the examples of every cell, float32 `[K, G]`; add those of two batches."""

    count: jax.Array
    value: jax.Array
    """Of what the sampler looks at: losses, or wrong predictions."""
    positive: jax.Array
    """The same if every label were the positive class."""
    losses: jax.Array | None = None
    """float32 `[N]`, of every example, where the sampler chooses among them; such are not added."""

    def __add__(self, other: "CellSums") -> "CellSums":  # pyright: ignore[reportIncompatibleMethodOverride]
        return jax.tree.map(jnp.add, self, other)

    def at_counts(self, counts: jax.Array) -> "CellSums":
        """The same means over `counts` examples: of batches drawn by shares, as in the data."""
        seen = self.count > 0
        scale = counts.astype(jnp.float32) / jnp.where(seen, self.count, 1.0)
        return jax.tree.map(lambda sums: jnp.where(seen, sums * scale, 0.0), self)


class BatchSampler(NamedTuple):
    """A sampler as pure functions; `measure`, `cell_losses` and `update` only where it adapts."""

    init: Callable[..., Any]
    """`init(*, rows=None, **choices) -> state`; rows as from `arrange_rows`, all by default.
    Vmap it for runs with rows of their own."""
    sample_epoch: Callable[..., tuple[jax.Array, jax.Array]]
    """`sample_epoch(key, state, *, example_weights=None, num_batches=None)`
    `-> (indices int32 [T, B], weights float32 [T, B])`; T defaults to `batches_per_epoch`."""
    batches_per_epoch: int
    """N // batch_size. Where runs have n < N rows of their own, an epoch of theirs is
    `sampler._replace(batches_per_epoch=n // batch_size)`."""
    measure: Any = None
    """`measure(logits [N, K], state, *, labels [N], group [N], weights=None) -> CellSums`: what
    the state looks at; weights float32 `[N]`, 0 = padding."""
    cell_losses: Any = None
    """`cell_losses(sums, state) -> [K, G]`: what the cells compare; nan for an empty cell."""
    update: Any = None
    """`update(cell_losses [K, G], state) -> state`; nan cells are left alone. Takes `losses [N]`
    too where `CellSums` has them."""

    @property
    def adapts(self) -> bool:
        """Whether the sampler wants to see the model's outputs while training."""
        return self.update is not None

    def adapt(self, sums: CellSums, state: Any) -> tuple[Any, jax.Array]:
        """The state after what was measured, and the cell losses `[K, G]` that moved it."""
        cell_losses = self.cell_losses(sums, state)
        chosen_by = {} if sums.losses is None else {"losses": sums.losses}
        return self.update(cell_losses, state, **chosen_by), cell_losses


class PlainState(NamedTuple):
    """What samplers that do not adapt carry."""

    rows: Rows


def shuffled(
    *,
    labels: Integer[np.ndarray | Array, " N"],
    group: Integer[np.ndarray | Array, " N"],
    num_classes: int,
    num_groups: int,
    batch_size: int,
) -> BatchSampler:
    """Plain training: every epoch deals the shuffled rows once; what fills no batch is left out.

    Args:
      labels: training labels in `[0, num_classes)`.
      group: sensitive groups in `[0, num_groups)`.
      num_classes: K.
      num_groups: G.
      batch_size: B, at most N.

    Returns:
      A `BatchSampler` whose `init` takes `rows` alone.

    Raises:
      ValueError: ids outside their range, lengths that differ, or `batch_size` out of range.

    >>> data = {"labels": np.array([0, 1, 0, 1]), "group": np.array([0, 0, 1, 1])}
    >>> sampler = shuffled(**data, num_classes=2, num_groups=2, batch_size=2)
    >>> indices, weights = sampler.sample_epoch(jax.random.key(0), sampler.init())
    >>> sorted(indices.reshape(-1).tolist())
    [0, 1, 2, 3]
    """
    everything = arrange_rows(
        labels=labels, group=group, num_classes=num_classes, num_groups=num_groups
    )
    check_batch_size(batch_size, len(everything.numbers))

    def sample_epoch(key, state: PlainState, *, example_weights=None, num_batches=None):
        num_batches = batches_per_epoch if num_batches is None else num_batches
        deck = one_deck(state.rows)
        slots = exact_slots(
            deck, jnp.ones(deck.counts.shape), batch_size, num_batches, published=False
        )
        # the same key as FairBatch takes for the rows, so that both draw the same
        key = jax.random.split(key)[1]
        if example_weights is None:
            return deal(key, deck, slots), slots.weights
        return weighted_rows(key, deck, slots, example_weights), slots.weights

    def init(*, rows: Rows | None = None) -> PlainState:
        return PlainState(own_rows(everything, rows, batch_size))

    batches_per_epoch = len(everything.numbers) // batch_size
    return BatchSampler(init, sample_epoch, batches_per_epoch)


def class_balanced(
    *,
    labels: Integer[np.ndarray | Array, " N"],
    group: Integer[np.ndarray | Array, " N"],
    num_classes: int,
    num_groups: int,
    batch_size: int,
) -> BatchSampler:
    """Rows drawn with replacement, every class equally likely; arguments as of `shuffled`.

    Of a run with rows of its own, every class among these.

    Raises:
      ValueError: as `shuffled`, or a class without rows.

    Source: the sampler of the pruning paper's published code.

    >>> data = {"labels": np.array([0] * 9 + [1]), "group": np.zeros(10, int)}
    >>> sampler = class_balanced(**data, num_classes=2, num_groups=1, batch_size=10)
    >>> rows, _ = sampler.sample_epoch(jax.random.key(0), sampler.init(), num_batches=1000)
    >>> print(f"{(rows == 9).mean():.1f}")
    0.5
    """
    plain = shuffled(
        labels=labels,
        group=group,
        num_classes=num_classes,
        num_groups=num_groups,
        batch_size=batch_size,
    )
    counts = np.bincount(labels, minlength=num_classes)
    if not counts.all():
        raise ValueError(f"class {int(counts.argmin())} has no rows to draw")
    classes = jnp.asarray(labels, jnp.int32)

    def sample_epoch(key, state: PlainState, *, example_weights=None, num_batches=None):
        balanced = (1.0 / state.rows.counts.sum(1).astype(jnp.float32))[classes]
        balanced = balanced if example_weights is None else balanced * example_weights
        return plain.sample_epoch(key, state, example_weights=balanced, num_batches=num_batches)

    return plain._replace(sample_epoch=sample_epoch)


def arrange_rows(
    *,
    labels: Integer[np.ndarray | Array, " N"],
    group: Integer[np.ndarray | Array, " N"],
    num_classes: int,
    num_groups: int,
    rows: Integer[np.ndarray, " n"] | None = None,
) -> Rows:
    """The rows that a run may draw, sorted by cell; runs on the host.

    Args:
      labels: of all training examples, in `[0, num_classes)`.
      group: sensitive groups in `[0, num_groups)`.
      num_classes: K.
      num_groups: G.
      rows: row numbers of the split, each once; all by default.

    Returns:
      NumPy arrays; stack those of several runs for `jax.vmap(sampler.init)(rows=...)`.

    Raises:
      ValueError: ids or row numbers outside their range, lengths that differ, or a row twice.

    >>> ids = {"labels": np.array([1, 0, 1]), "group": np.zeros(3, int)}
    >>> arrange_rows(**ids, num_classes=2, num_groups=1).numbers.tolist()
    [1, 0, 2]
    """
    labels, group = np.asarray(labels), np.asarray(group)
    check_ids("labels", labels, num_classes)
    check_ids("group", group, num_groups)
    if labels.shape != group.shape:
        raise ValueError(f"labels and group differ in length: {len(labels)} and {len(group)}")
    chosen = np.arange(len(labels)) if rows is None else np.asarray(rows)
    check_ids("rows", chosen, len(labels))
    if len(np.unique(chosen)) != len(chosen):
        raise ValueError(f"rows: {len(chosen) - len(np.unique(chosen))} of them are repeated")
    cell = (labels.astype(np.int64) * num_groups + group)[chosen]
    counts = np.bincount(cell, minlength=num_classes * num_groups).astype(np.int32)
    order = np.argsort(cell, kind="stable")
    return Rows(chosen[order].astype(np.int32), counts.reshape(num_classes, num_groups))


def arrange_splits(
    *,
    labels: Integer[np.ndarray, " N"],
    group: Integer[np.ndarray, " N"],
    num_classes: int,
    num_groups: int,
    rows: Integer[np.ndarray, "F n"],
) -> Rows:
    """`arrange_rows` of F splits, leaves `[F, ...]`, such as `data.folds(...).train`."""
    ids = {"labels": labels, "group": group, "num_classes": num_classes, "num_groups": num_groups}
    parts = [arrange_rows(**ids, rows=own) for own in rows]
    return Rows(*(np.stack(leaves) for leaves in zip(*parts, strict=True)))


def check_ids(name: str, ids: np.ndarray, bound: int) -> None:
    """Refuse ids `[N]` that are not integers in `[0, bound)`."""
    if ids.ndim != 1 or len(ids) == 0:
        raise ValueError(f"{name} must be a non-empty vector, got shape {ids.shape}")
    if not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"{name} must be integers, got {ids.dtype}")
    if ids.min() < 0 or ids.max() >= bound:
        raise ValueError(f"{name} must be in [0, {bound}), got {ids.min()} to {ids.max()}")


def check_batch_size(batch_size: int, num_rows: int) -> None:
    """Refuse batches that are empty or larger than all the rows."""
    if not isinstance(batch_size, (int, np.integer)) or not 1 <= batch_size <= num_rows:
        raise ValueError(
            f"batch_size must be between 1 and the number of examples, {num_rows}; got {batch_size}"
        )


def own_rows(everything: Rows, rows: Rows | None, batch_size: int) -> Rows:
    """What a state carries: `rows` of one run, or `everything`; refuses shapes that do not fit."""
    if rows is None:
        return Rows(*map(jnp.asarray, everything))
    if jnp.ndim(rows.numbers) != 1 or jnp.shape(rows.counts) != everything.counts.shape:
        raise ValueError(
            f"rows must be those of one run, numbers [n] and counts {everything.counts.shape}, got "
            f"shapes {jnp.shape(rows.numbers)} and {jnp.shape(rows.counts)}; vmap init for several"
        )
    check_batch_size(batch_size, len(rows.numbers))
    return Rows(*(jnp.asarray(values, jnp.int32) for values in rows))


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
    position: jax.Array
    """int32 `[T, B]`: running number among the draws from that deck, modulo its size."""
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
    offset = jax.lax.rem(place - (ends - shares)[deck], size[deck])
    position = start[:, deck] + offset[None, :]
    size = size[deck][None, :]
    position = jnp.where(position >= size, position - size, position)
    return Slots(deck, position, jnp.broadcast_to(filled, position.shape))


def deal(key: Key[Array, ""], decks: Decks, slots: Slots) -> Int[Array, "T B"]:
    """Rows without replacement: every deck is shuffled, dealt, and dealt again from its top."""
    shuffled = _permute(key, slots.position, slots.deck, jnp.maximum(decks.counts, 1))
    return decks.numbers[decks.starts[slots.deck][None, :] + shuffled]


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
    """
    rounds = 12
    bits = jax.random.bits(key, (3, rounds, len(sizes)))
    sizes = sizes.astype(jnp.uint32)
    pivots = jax.lax.rem(bits[0], jnp.broadcast_to(sizes, bits[0].shape))
    by_place = jnp.stack([pivots, bits[1], bits[2]], axis=1)[..., deck]
    x, size = position.astype(jnp.uint32), sizes[deck][None, :]
    for pivot, factor, offset in by_place[:, :, None, :]:
        mirror = jnp.where(x <= pivot, pivot - x, pivot + size - x)
        swap = jnp.maximum(x, mirror) * factor + offset >= jnp.uint32(1 << 31)
        x = jnp.where(swap, mirror, x)
    return x.astype(jnp.int32)


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
