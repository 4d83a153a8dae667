"""FairBatch: how much of each batch every (label, group) cell gets, adapted while training.

Roh, Lee, Whang, Suh: "FairBatch: Batch Selection for Model Fairness", ICLR 2021. Everything an
epoch needs is pure and statically shaped, so it lives inside the jitted training loop:

    sampler = fairbatch(labels, group, num_classes=2, num_groups=2, batch_size=100,
                        criterion="equal_opportunity")
    state = sampler.init()
    for epoch in range(num_epochs):                      # or lax.scan
        sums = sampler.measure(logits, labels, state, group=group)   # a full pass of the model
        state = sampler.update(sampler.cell_losses(sums, state), state)
        indices, weights = sampler.sample_epoch(key, state)   # [T, B] rows; weight 0 is padding
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from fairjax.losses import cross_entropy, predictions
from fairjax.metrics.counts import check_choice

Criterion = Literal["none", "equal_opportunity", "equalized_odds", "demographic_parity"]
Signal = Literal["loss", "rate"]
Draw = Literal["exact", "iid"]
Rounding = Literal["largest_remainder", "published"]

CRITERIA: tuple[str, ...] = get_args(Criterion)
SIGNALS: tuple[str, ...] = get_args(Signal)
_NONE, _OPPORTUNITY, _ODDS, _PARITY = range(4)
_RATE = SIGNALS.index("rate")


class BatchState(NamedTuple):
    """What FairBatch carries from update to update; every field may get a population axis."""

    weights: jax.Array
    """float32 `[K, G]`: share of label k's examples drawn from group g; rows sum to 1.
    With two groups `weights[1, 1]` is the paper's lambda_1 and `weights[0, 1]` its lambda_2."""
    step_size: jax.Array
    """float32 scalar: the share moved by the first update, the paper's alpha."""
    decay: jax.Array
    """float32 scalar: update t (from 0) moves `step_size / (1 + t) ** decay`; 0 is published."""
    num_updates: jax.Array
    """int32 scalar."""
    criterion: jax.Array
    """int32 scalar, index into `CRITERIA`: an array, so that one program runs several criteria."""
    signal: jax.Array
    """int32 scalar, index into `SIGNALS`."""


class CellSums(NamedTuple):
    """Sums over the examples of every cell, float32 `[K, G]`; add those of two batches."""

    count: jax.Array
    value: jax.Array
    """cross-entropies (signal "loss") or wrong arg-max predictions (signal "rate") against the
    wanted label: the example's own, or the positive class under demographic parity"""

    def __add__(self, other: "CellSums") -> "CellSums":  # pyright: ignore[reportIncompatibleMethodOverride]
        return CellSums(self.count + other.count, self.value + other.value)


class BatchSampler(NamedTuple):
    """FairBatch as pure functions, made by `fairbatch`."""

    init: Callable[..., BatchState]
    """`init(*, step_size, decay, criterion, signal) -> BatchState` at natural frequencies; every
    argument defaults to the factory's and may be traced (criterion and signal as indices)."""
    measure: Callable[..., CellSums]
    """`measure(logits [N, K], labels [N], state, *, group [N], weights=None) -> CellSums`: what
    the state's criterion and signal look at; weights float32 `[N]`, 0 = padding."""
    cell_losses: Callable[[CellSums, BatchState], jax.Array]
    """`cell_losses(sums, state) -> [K, G]`: means over the cell, or for demographic parity sums
    over the cell (rate: over the group) divided by the group's size; nan for an empty cell."""
    update: Callable[[jax.Array, BatchState], BatchState]
    """`update(cell_losses [K, G], state) -> state`: one signed step; nan cells are left alone."""
    sample: Callable[..., tuple[jax.Array, jax.Array]]
    """`sample(key, state, example_weights=None) -> (indices int32 [B], weights float32 [B])`."""
    sample_epoch: Callable[..., tuple[jax.Array, jax.Array]]
    """`sample_epoch(key, state, example_weights=None, num_batches=None)`
    `-> (indices int32 [T, B], weights float32 [T, B])`; T defaults to `batches_per_epoch`."""
    batches_per_epoch: int
    """N // batch_size."""


def fairbatch(
    labels: np.ndarray,
    group: np.ndarray,
    *,
    num_classes: int,
    num_groups: int,
    batch_size: int,
    criterion: Criterion = "equal_opportunity",
    signal: Signal = "loss",
    step_size: float = 0.005,
    decay: float = 0.0,
    draw: Draw = "exact",
    rounding: Rounding = "largest_remainder",
    positive_class: int = 1,
) -> BatchSampler:
    """Batch selection that equalises a signal between groups while training.

    Each update finds, among the labels that the criterion watches, the one whose cells differ most
    between two groups, and moves `step_size` of that label's share from the better to the worse
    group (demographic parity: the other way round for labels other than the positive class).

    Args:
      labels: int `[N]` training labels in `[0, num_classes)`.
      group: int `[N]` sensitive groups in `[0, num_groups)`.
      num_classes: K.
      num_groups: G.
      batch_size: examples per batch; with a criterion at least the number of non-empty cells.
      criterion: "equal_opportunity" watches the positive class, "equalized_odds" and
        "demographic_parity" all labels, "none" never moves and draws plain shuffled batches.
      signal: "loss" compares mean cross-entropies (published); "rate" compares the true- and
        false-positive or selection rates themselves: equal losses are not equal rates.
      step_size: share in (0, 1] moved by the first update, alpha of the paper.
      decay: exponent at least 0 with which the step shrinks, see `BatchState`. A constant step
        (0, published) never settles; 0.5 does.
      draw: "exact" gives every batch the same rounded cell counts and deals each shuffled cell
        without replacement, starting over at its end; "iid" draws cell and row independently.
      rounding: of exact cell counts. "largest_remainder" always sums to `batch_size`; "published"
        rounds each cell half-to-even, so the sum varies and the batch is padded with weight 0.
      positive_class: the favourable label.

    Returns:
      A `BatchSampler`. Its functions are safe under jit, vmap and scan, with static shapes.

    Raises:
      ValueError: an unknown name, a number out of range, or ids outside their range.

    Source: Roh et al. 2021, Algorithm 1 and Section 3. For two groups and two labels the update is
    the published one, except that an exact tie moves nothing and that equal largest gaps move
    together. With more groups the pair with the largest gap exchanges mass, the authors' own
    recipe. The rate signal is ours; for demographic parity it moves all labels at once.
    """
    labels, group = np.asarray(labels), np.asarray(group)
    check_choice("criterion", criterion, CRITERIA)
    check_choice("signal", signal, SIGNALS)
    check_choice("draw", draw, get_args(Draw))
    check_choice("rounding", rounding, get_args(Rounding))
    _check_ids("labels", labels, num_classes)
    _check_ids("group", group, num_groups)
    if labels.shape != group.shape:
        raise ValueError(f"labels and group differ in length: {len(labels)} and {len(group)}")
    if not 0 < step_size <= 1:
        raise ValueError(f"step_size must be in (0, 1], got {step_size}")
    if not decay >= 0:
        raise ValueError(f"decay must be at least 0, got {decay}")
    if not 0 <= positive_class < num_classes:
        raise ValueError(f"positive_class must be in [0, {num_classes}), got {positive_class}")

    num_rows, num_cells = len(labels), num_classes * num_groups
    cell = labels * num_groups + group
    counts = np.bincount(cell, minlength=num_cells).astype(np.int32)
    occupied = int((counts > 0).sum())
    if not 1 <= batch_size <= num_rows:
        raise ValueError(
            f"batch_size must be between 1 and the number of examples, {num_rows}; got {batch_size}"
        )
    if criterion != "none" and batch_size < occupied:
        raise ValueError(
            f"batch_size must be at least the number of non-empty (label, group) cells, {occupied},"
            f" to draw from all of them; got {batch_size}"
        )
    rows = np.argsort(cell, kind="stable").astype(np.int32)
    layout = _Layout(rows, counts, batch_size, rounding)
    table = counts.reshape(num_classes, num_groups)
    label_share = table.sum(1, keepdims=True) / num_rows
    watched, direction = _criterion_tables(num_classes, positive_class)

    default_criterion, default_signal = CRITERIA.index(criterion), SIGNALS.index(signal)

    def init(
        *,
        step_size=step_size,
        decay=decay,
        criterion=default_criterion,
        signal=default_signal,
    ) -> BatchState:
        natural = table / np.maximum(table.sum(1, keepdims=True), 1)
        return BatchState(
            weights=jnp.asarray(natural, jnp.float32),
            step_size=jnp.asarray(step_size, jnp.float32),
            decay=jnp.asarray(decay, jnp.float32),
            num_updates=jnp.zeros((), jnp.int32),
            criterion=jnp.asarray(criterion, jnp.int32),
            signal=jnp.asarray(signal, jnp.int32),
        )

    def measure(logits, labels, state: BatchState, *, group, weights=None) -> CellSums:
        parity = state.criterion == _PARITY
        wanted = _select(parity, jnp.full_like(labels, positive_class), labels)
        wrong = (predictions(logits) != wanted).astype(jnp.float32)
        value = _select(state.signal == _RATE, wrong, cross_entropy(logits, wanted))
        cell_ids = jnp.arange(num_cells, dtype=jnp.int32)
        cells = ((labels * num_groups + group)[None] == cell_ids[:, None]).astype(jnp.float32)
        if weights is not None:
            cells = cells * weights[None]
        sums = cells.sum(1), jnp.matmul(cells, value, precision="highest")
        return CellSums(*(x.reshape(num_classes, num_groups) for x in sums))

    def cell_losses(sums: CellSums, state: BatchState) -> jax.Array:
        parity, rate = state.criterion == _PARITY, state.signal == _RATE
        of_group = jnp.broadcast_to(sums.value.sum(0, keepdims=True), sums.value.shape)
        size_of_group = jnp.broadcast_to(sums.count.sum(0, keepdims=True), sums.count.shape)
        value = _select(parity & rate, of_group, sums.value)
        losses = value / _select(parity, size_of_group, sums.count)
        return jnp.where(sums.count > 0, losses, jnp.nan)

    def update(cell_losses: jax.Array, state: BatchState) -> BatchState:
        usable = jnp.isfinite(cell_losses) & jnp.asarray(table > 0)
        high = jnp.where(usable, cell_losses, -jnp.inf)
        low = jnp.where(usable, cell_losses, jnp.inf)
        gap = high.max(1) - low.min(1)
        gap = jnp.where(jnp.asarray(watched)[state.criterion] & usable.any(1), gap, 0.0)
        moves = (gap > 0) & (gap == gap.max())
        worst = jax.nn.one_hot(high.argmax(1), num_groups, dtype=jnp.float32)
        best = jax.nn.one_hot(low.argmin(1), num_groups, dtype=jnp.float32)
        toward_worst = (worst - best) * jnp.asarray(direction)[state.criterion][:, None]
        donor_share = jnp.sum(jnp.where(toward_worst < 0, state.weights, 0.0), axis=1)
        step = state.step_size / (1.0 + state.num_updates.astype(jnp.float32)) ** state.decay
        share = jnp.where(moves, jnp.minimum(step, donor_share), 0.0)
        return state._replace(
            weights=state.weights + share[:, None] * toward_worst,
            num_updates=state.num_updates + 1,
        )

    def sample_epoch(key, state: BatchState, example_weights=None, num_batches=None):
        num_batches = batches_per_epoch if num_batches is None else num_batches
        plain = state.criterion == _NONE
        probs = (state.weights * jnp.asarray(label_share, jnp.float32)).reshape(-1)
        key_cell, key_row = jax.random.split(key)
        if draw == "exact":
            slots = layout.exact_slots(probs, plain, num_batches)
        else:
            slots = layout.iid_slots(key_cell, probs, num_batches)
        if example_weights is not None:
            indices = layout.weighted_rows(key_row, slots, example_weights, plain)
        elif draw == "exact":
            indices = layout.deal(key_row, slots, plain)
        else:
            indices = layout.uniform_rows(key_row, slots)
        return indices, slots.weights

    def sample(key, state: BatchState, example_weights=None):
        indices, weights = sample_epoch(key, state, example_weights, num_batches=1)
        return indices[0], weights[0]

    batches_per_epoch = num_rows // batch_size
    return BatchSampler(init, measure, cell_losses, update, sample, sample_epoch, batches_per_epoch)


class FairBatchIndices:
    """Index batches for any Python loader; made by `fairbatch_indices`."""

    def __init__(self, sampler: BatchSampler, key: jax.Array):
        """Start at natural frequencies; `state` may be replaced or saved at any time."""
        self.sampler = sampler
        self.state = sampler.init()
        self.epoch = 0
        self._key = key
        self._sample_epoch = jax.jit(sampler.sample_epoch)
        self._update = jax.jit(sampler.update)

    def __len__(self) -> int:
        """Batches per epoch."""
        return self.sampler.batches_per_epoch

    def __iter__(self) -> Iterator[list[int]]:
        """One epoch of index batches, padding removed; every call is the next epoch."""
        key = jax.random.fold_in(self._key, self.epoch)
        self.epoch += 1
        indices, weights = map(np.asarray, self._sample_epoch(key, self.state))
        for rows, keep in zip(indices, weights > 0, strict=True):
            yield rows[keep].tolist()

    def update(self, logits: Any, labels: Any, *, group: Any) -> None:
        """Adapt to the model's current logits `[N, K]` on the whole training or validation set."""
        sums = self.sampler.measure(
            jnp.asarray(logits, jnp.float32),
            jnp.asarray(labels, jnp.int32),
            self.state,
            group=jnp.asarray(group, jnp.int32),
        )
        self.state = self._update(self.sampler.cell_losses(sums, self.state), self.state)


def fairbatch_indices(sampler: BatchSampler, *, seed: int = 0) -> FairBatchIndices:
    """FairBatch for a loader of your own: an iterable of index batches, one epoch per `iter()`.

    Pass it wherever a loader takes a batch sampler, and call `update` once per epoch:

        batches = fairbatch_indices(sampler, seed=0)
        loader = torch.utils.data.DataLoader(dataset, batch_sampler=batches)
        for epoch in range(num_epochs):
            batches.update(predict_all(model), labels, group=group)
            for batch in loader: ...

    Args:
      sampler: from `fairbatch`.
      seed: the same seed gives the same batches, with no global random state touched.
    """
    return FairBatchIndices(sampler, jax.random.key(seed))


class _Slots(NamedTuple):
    """Which cell fills each place of the batches of an epoch."""

    cell: jax.Array  # int32 [B] (the same for every batch) or [T, B]
    position: jax.Array  # int32 [T, B]: running number among the draws from that cell, modulo size
    weights: jax.Array  # float32 [T, B], 0 = padding


class _Layout(NamedTuple):
    """Rows arranged by cell, and every way to pick from them."""

    rows: np.ndarray  # int32 [N], row numbers, cell after cell
    counts: np.ndarray  # int32 [K * G], rows of each cell
    batch_size: int
    rounding: str

    def cells(self, plain: jax.Array) -> tuple[jax.Array, jax.Array]:
        """First place in `rows` and size of every cell; plain batches know one cell, of all."""
        counts = jnp.asarray(self.counts)
        everything = jnp.zeros_like(counts).at[0].set(len(self.rows))
        counts = _select(plain, everything, counts)
        return jnp.cumsum(counts) - counts, counts

    def exact_slots(self, probs: jax.Array, plain: jax.Array, num_batches: int) -> _Slots:
        """The same cell counts in every batch."""
        num_cells = len(self.counts)
        expected = self.batch_size * probs
        if self.rounding == "published":
            shares, width = jnp.round(expected).astype(jnp.int32), self.batch_size + num_cells
        else:
            shares, width = _largest_remainder(expected, self.batch_size), self.batch_size
        everything = jnp.zeros_like(shares).at[0].set(self.batch_size)
        shares = _select(plain, everything, shares)
        ends = jnp.cumsum(shares)
        place = jnp.arange(width, dtype=jnp.int32)
        cell = jnp.sum(place[:, None] >= ends[None, :], axis=1, dtype=jnp.int32)
        filled = (cell < num_cells).astype(jnp.float32)
        cell = jnp.minimum(cell, num_cells - 1)
        # Start and offset are reduced apart, for B * T remainders cost more than all the rest.
        size = jnp.maximum(self.cells(plain)[1], 1)
        batch = jnp.arange(num_batches, dtype=jnp.int32)
        start = jax.lax.rem(
            batch[:, None] * shares[None, :], jnp.broadcast_to(size, (num_batches, num_cells))
        )
        offset = jax.lax.rem(place - (ends - shares)[cell], size[cell])
        position = start[:, cell] + offset[None, :]
        size = size[cell][None, :]
        position = jnp.where(position >= size, position - size, position)
        return _Slots(cell, position, jnp.broadcast_to(filled, position.shape))

    def iid_slots(self, key: jax.Array, probs: jax.Array, num_batches: int) -> _Slots:
        """Every place draws its cell independently."""
        shape = (num_batches, self.batch_size)
        ends = jnp.cumsum(probs)
        draw = jax.random.uniform(key, shape) * ends[-1]
        cell = jnp.sum(draw[..., None] >= ends[None, None, :], axis=-1, dtype=jnp.int32)
        cell = jnp.minimum(cell, len(self.counts) - 1)
        return _Slots(cell, jnp.zeros(shape, jnp.int32), jnp.ones(shape, jnp.float32))

    def deal(self, key: jax.Array, slots: _Slots, plain: jax.Array) -> jax.Array:
        """Rows without replacement: every cell is shuffled, dealt, and dealt again from its top."""
        starts, counts = self.cells(plain)
        shuffled = _permute(key, slots.position, slots.cell, jnp.maximum(counts, 1))
        return jnp.asarray(self.rows)[starts[slots.cell][None, :] + shuffled]

    def uniform_rows(self, key: jax.Array, slots: _Slots) -> jax.Array:
        """Rows with replacement, uniform within the cell of each place."""
        counts = jnp.asarray(self.counts)
        starts, size = jnp.cumsum(counts) - counts, counts[slots.cell]
        draw = jax.random.uniform(key, slots.cell.shape)
        within = jnp.minimum((draw * size.astype(jnp.float32)).astype(jnp.int32), size - 1)
        return jnp.asarray(self.rows)[starts[slots.cell] + within]

    def weighted_rows(
        self, key: jax.Array, slots: _Slots, example_weights: jax.Array, plain: jax.Array
    ) -> jax.Array:
        """Rows with replacement, in proportion to `example_weights` within the cell."""
        rows = jnp.asarray(self.rows)
        starts, counts = self.cells(plain)
        cumulative = jnp.concatenate([jnp.zeros(1), jnp.cumsum(example_weights[rows])])
        low, high = cumulative[starts], cumulative[starts + counts]
        shape = slots.weights.shape
        cell = jnp.broadcast_to(slots.cell, shape)
        draw = low[cell] + jax.random.uniform(key, shape) * (high - low)[cell]
        rank = jnp.searchsorted(cumulative, draw, side="right").astype(jnp.int32) - 1
        return rows[jnp.clip(rank, starts[cell], starts[cell] + counts[cell] - 1)]


def _permute(key: jax.Array, position: jax.Array, cell: jax.Array, sizes: jax.Array) -> jax.Array:
    """Where random permutations, one of `range(sizes[c])` per cell, send `position [T, B]`.

    Swap-or-not (Hoang, Morris and Rogaway, CRYPTO 2012): each round pairs x with its mirror
    `pivot - x` and swaps the pair or not by a random bit of the pair, here the top bit of a
    multiply-shift hash. A place is looked up without sorting or storing the permutation, several
    times faster on CPU than a sort; two places depend on each other by about 2^-rounds.
    """
    rounds = 12
    bits = jax.random.bits(key, (3, rounds, len(sizes)))
    sizes = sizes.astype(jnp.uint32)
    pivots = jax.lax.rem(bits[0], jnp.broadcast_to(sizes, bits[0].shape))
    by_place = jnp.stack([pivots, bits[1], bits[2]], axis=1)[..., cell]
    x, size = position.astype(jnp.uint32), sizes[cell][None, :]
    for pivot, factor, offset in by_place[:, :, None, :]:
        mirror = jnp.where(x <= pivot, pivot - x, pivot + size - x)
        swap = jnp.maximum(x, mirror) * factor + offset >= jnp.uint32(1 << 31)
        x = jnp.where(swap, mirror, x)
    return x.astype(jnp.int32)


def _largest_remainder(expected: jax.Array, total: int) -> jax.Array:
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


def _criterion_tables(num_classes: int, positive_class: int) -> tuple[np.ndarray, np.ndarray]:
    """Per criterion: labels that are watched, bool `[4, K]`, and the sign of their step."""
    watched = np.zeros((len(CRITERIA), num_classes), bool)
    watched[_OPPORTUNITY, positive_class] = True
    watched[[_ODDS, _PARITY]] = True
    direction = np.ones((len(CRITERIA), num_classes), np.float32)
    direction[_PARITY, np.arange(num_classes) != positive_class] = -1
    return watched, direction


def _select(condition: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """`jnp.where` for a scalar condition, which may be traced."""
    return jax.lax.select(jnp.broadcast_to(condition, a.shape), a, b)


def _check_ids(name: str, ids: np.ndarray, bound: int) -> None:
    if ids.ndim != 1 or len(ids) == 0:
        raise ValueError(f"{name} must be a non-empty vector, got shape {ids.shape}")
    if not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"{name} must be integers, got {ids.dtype}")
    if ids.min() < 0 or ids.max() >= bound:
        raise ValueError(f"{name} must be in [0, {bound}), got {ids.min()} to {ids.max()}")
