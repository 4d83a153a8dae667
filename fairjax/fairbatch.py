"""FairBatch: how much of each batch every (label, group) cell gets, adapted while training.

Roh, Lee, Whang, Suh: "FairBatch: Batch Selection for Model Fairness", ICLR 2021. Everything an
epoch needs is pure and statically shaped, so it lives inside the jitted training loop:

    sampler = fairbatch(labels=labels, group=group, num_classes=2, num_groups=2, batch_size=100,
                        criterion="equal_opportunity")
    state = sampler.init()
    for epoch in range(num_epochs):                      # or lax.scan
        sums = sampler.measure(logits, state, labels=labels, group=group)   # a full pass
        state = sampler.update(sampler.cell_losses(sums, state), state)
        indices, weights = sampler.sample_epoch(key, state)   # [T, B] rows; weight 0 is padding
"""

import functools
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Integer

from fairjax.losses import cross_entropy, predictions
from fairjax.metrics.counts import check_choice
from fairjax.sampling import (
    BatchSampler,
    CellSums,
    Decks,
    Rows,
    Slots,
    arrange_rows,
    check_batch_size,
    check_ids,
    deal,
    exact_slots,
    one_deck,
    own_rows,
    select,
    weighted_rows,
)

Criterion = Literal["none", "equal_opportunity", "equalized_odds", "demographic_parity"]
Signal = Literal["loss", "rate"]
Draw = Literal["exact", "iid"]
Rounding = Literal["largest_remainder", "published"]

CRITERIA: tuple[str, ...] = get_args(Criterion)
SIGNALS: tuple[str, ...] = get_args(Signal)
_NONE, _OPPORTUNITY, _ODDS, _PARITY = range(4)
_RATE = SIGNALS.index("rate")


class FairBatchState(NamedTuple):
    """What FairBatch carries from update to update; every field may get a population axis."""

    rows: Rows
    """What may be drawn."""
    measured: jax.Array | None
    """bool `[N]`: which examples a full pass measures; None is all that it is given. A run with
    rows of its own measures those unless `init(measured=...)` says otherwise."""
    shares: jax.Array
    """float32 `[K, G]`: share of label k's examples drawn from group g; each row sums to 1.
    With two groups `shares[1, 1]` is the paper's lambda_1 and `shares[0, 1]` its lambda_2."""
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


def fairbatch(
    *,
    labels: Integer[np.ndarray | Array, " N"],
    group: Integer[np.ndarray | Array, " N"],
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
      decay: exponent at least 0 with which the step shrinks, see `FairBatchState`. A constant step
        (0, published) never settles; 0.5 does.
      draw: "exact" gives every batch the same rounded cell counts and deals each shuffled cell
        without replacement, starting over at its end; "iid" draws cell and row independently.
      rounding: of exact cell counts. "largest_remainder" always sums to `batch_size`; "published"
        rounds each cell half-to-even, so the sum varies and the batch is padded with weight 0.
      positive_class: the favourable label.

    Returns:
      A `BatchSampler`, safe under jit, vmap and scan, with static shapes. `init` also takes
      `measured` (see `FairBatchState`), `step_size`, `decay`, `criterion` and `signal` (the latter
      two as indices into `CRITERIA` and `SIGNALS`), which default to the factory's and may be
      traced. `cell_losses` are means over
      the cell, or for demographic parity sums over the cell (rate: over the group) divided by the
      group's size.

    Raises:
      ValueError: an unknown name, a number out of range, or ids outside their range.

    Source: Roh et al. 2021, Algorithm 1 and Section 3. For two groups and two labels the update is
    the published one, except that an exact tie moves nothing and that equal largest gaps move
    together. With more groups the pair with the largest gap exchanges mass, the authors' own
    recipe. The rate signal is ours; for demographic parity it moves all labels at once.

    >>> data = {"labels": np.array([0, 1, 0, 1]), "group": np.array([0, 0, 1, 1])}
    >>> sampler = fairbatch(**data, num_classes=2, num_groups=2, batch_size=4)
    >>> sampler.init().shares.tolist()
    [[0.5, 0.5], [0.5, 0.5]]
    """
    _check_settings(criterion, signal, draw, rounding, step_size, decay)
    if not 0 <= positive_class < num_classes:
        raise ValueError(f"positive_class must be in [0, {num_classes}), got {positive_class}")
    everything = arrange_rows(
        labels=labels, group=group, num_classes=num_classes, num_groups=num_groups
    )
    num_rows, occupied = len(everything.numbers), int((everything.counts > 0).sum())
    check_batch_size(batch_size, num_rows)
    if criterion != "none" and batch_size < occupied:
        raise ValueError(
            f"batch_size must be at least the number of non-empty (label, group) cells, {occupied},"
            f" to draw from all of them; got {batch_size}"
        )
    defaults = {
        "step_size": step_size,
        "decay": decay,
        "criterion": CRITERIA.index(criterion),
        "signal": SIGNALS.index(signal),
    }
    published, exact = rounding == "published", draw == "exact"
    batches_per_epoch = num_rows // batch_size

    def init(*, rows=None, measured=None, **choices) -> FairBatchState:
        own = own_rows(everything, rows, batch_size)
        if measured is None and rows is not None:
            measured = jnp.zeros(num_rows, bool).at[own.numbers].set(True)
        return _init(own, measured, **(defaults | choices))

    def measure(logits, state: FairBatchState, *, labels, group, weights=None) -> CellSums:
        return _measure(logits, state, labels, group, weights, positive_class)

    def update(cell_losses, state: FairBatchState) -> FairBatchState:
        return _update(cell_losses, state, positive_class)

    def sample_epoch(key, state: FairBatchState, *, example_weights=None, num_batches=None):
        num_batches = batches_per_epoch if num_batches is None else num_batches
        key_deck, key_row = jax.random.split(key)
        decks, probs = _decks(state)
        if exact:
            slots = exact_slots(decks, probs, batch_size, num_batches, published=published)
        else:
            slots = _iid_slots(key_deck, probs, (num_batches, batch_size))
        if example_weights is not None:
            # plain batches know one deck, whatever cell a place has drawn
            plain = state.criterion == _NONE
            slots = slots._replace(deck=jnp.where(plain, 0, slots.deck))
            indices = weighted_rows(key_row, decks, slots, example_weights)
        elif exact:
            indices = deal(key_row, decks, slots)
        else:
            indices = _uniform_rows(key_row, state.rows, slots)
        return indices, slots.weights

    return BatchSampler(init, sample_epoch, batches_per_epoch, measure, _cell_losses, update)


def _check_settings(criterion, signal, draw, rounding, step_size, decay) -> None:
    """Refuse unknown names and numbers out of range."""
    for name, value, known in (
        ("criterion", criterion, CRITERIA),
        ("signal", signal, SIGNALS),
        ("draw", draw, get_args(Draw)),
        ("rounding", rounding, get_args(Rounding)),
    ):
        check_choice(name, value, known)
    if not 0 < step_size <= 1:
        raise ValueError(f"step_size must be in (0, 1], got {step_size}")
    if not (decay >= 0 and np.isfinite(decay)):
        raise ValueError(f"decay must be at least 0, got {decay}")


def _init(rows: Rows, measured, *, step_size, decay, criterion, signal) -> FairBatchState:
    """At natural frequencies."""
    if measured is not None and (jnp.ndim(measured) != 1 or measured.dtype != bool):
        raise ValueError(
            f"measured must be bool [N] of one run, got {measured.dtype} {jnp.shape(measured)}"
        )
    of_label = jnp.maximum(rows.counts.sum(1, keepdims=True), 1)
    return FairBatchState(
        rows=rows,
        measured=measured,
        shares=rows.counts.astype(jnp.float32) / of_label.astype(jnp.float32),
        step_size=jnp.asarray(step_size, jnp.float32),
        decay=jnp.asarray(decay, jnp.float32),
        num_updates=jnp.zeros((), jnp.int32),
        criterion=jnp.asarray(criterion, jnp.int32),
        signal=jnp.asarray(signal, jnp.int32),
    )


def _measure(logits, state: FairBatchState, labels, group, weights, positive_class) -> CellSums:
    """Sums of cross-entropies (signal "loss") or of wrong arg-max predictions ("rate").

    Both against the wanted label: the example's own, or the positive class for demographic parity.
    """
    num_classes, num_groups = state.shares.shape
    _check_outputs(logits, labels, group, weights, num_classes)
    labels, group = labels.astype(jnp.int32), group.astype(jnp.int32)  # small ids would overflow
    parity = state.criterion == _PARITY
    wanted = select(parity, jnp.full_like(labels, positive_class), labels)
    wrong = (predictions(logits) != wanted).astype(jnp.float32)
    value = select(state.signal == _RATE, wrong, cross_entropy(logits, wanted))
    cell_ids = jnp.arange(num_classes * num_groups, dtype=jnp.int32)
    cells = ((labels * num_groups + group)[None] == cell_ids[:, None]).astype(jnp.float32)
    if weights is not None:
        cells = cells * weights[None]
    sums = cells.sum(1), jnp.matmul(cells, value, precision="highest")
    return CellSums(*(x.reshape(num_classes, num_groups) for x in sums))


def _check_outputs(logits, labels, group, weights, num_classes: int) -> None:
    """Refuse shapes and dtypes that would be measured as something else."""
    if logits.ndim != 2 or logits.shape[1] != num_classes:
        hint = ""
        if logits.ndim == 1 or logits.shape[-1] == 1:
            hint = "; a sigmoid's logit z makes two: concatenate([-z, z], axis=1) / 2"
        raise ValueError(f"logits must be [N, {num_classes}], got shape {logits.shape}{hint}")
    for name, values in (("labels", labels), ("group", group), ("weights", weights)):
        if values is None:
            continue
        if values.shape != logits.shape[:1]:
            raise ValueError(f"{name} must be [N] = {logits.shape[:1]}, got shape {values.shape}")
        if name != "weights" and not jnp.issubdtype(values.dtype, jnp.integer):
            raise ValueError(f"{name} must be integers, got {values.dtype}")


def _cell_losses(sums: CellSums, state: FairBatchState) -> jax.Array:
    parity, rate = state.criterion == _PARITY, state.signal == _RATE
    of_group = jnp.broadcast_to(sums.value.sum(0, keepdims=True), sums.value.shape)
    size_of_group = jnp.broadcast_to(sums.count.sum(0, keepdims=True), sums.count.shape)
    value = select(parity & rate, of_group, sums.value)
    losses = value / select(parity, size_of_group, sums.count)
    return jnp.where(sums.count > 0, losses, jnp.nan)


def _update(cell_losses: jax.Array, state: FairBatchState, positive_class: int) -> FairBatchState:
    """One signed step between the two groups furthest apart."""
    num_classes, num_groups = state.shares.shape
    watched, direction = _criterion_tables(num_classes, positive_class)
    usable = jnp.isfinite(cell_losses) & (state.rows.counts > 0)
    high = jnp.where(usable, cell_losses, -jnp.inf)
    low = jnp.where(usable, cell_losses, jnp.inf)
    gap = high.max(1) - low.min(1)
    gap = jnp.where(jnp.asarray(watched)[state.criterion] & usable.any(1), gap, 0.0)
    moves = (gap > 0) & (gap == gap.max())
    worst = jax.nn.one_hot(high.argmax(1), num_groups, dtype=jnp.float32)
    best = jax.nn.one_hot(low.argmin(1), num_groups, dtype=jnp.float32)
    toward_worst = (worst - best) * jnp.asarray(direction)[state.criterion][:, None]
    donor_share = jnp.sum(jnp.where(toward_worst < 0, state.shares, 0.0), axis=1)
    step = state.step_size / (1.0 + state.num_updates.astype(jnp.float32)) ** state.decay
    share = jnp.where(moves, jnp.minimum(step, donor_share), 0.0)
    return state._replace(
        shares=state.shares + share[:, None] * toward_worst, num_updates=state.num_updates + 1
    )


def _decks(state: FairBatchState) -> tuple[Decks, jax.Array]:
    """What is dealt apart, the cells or (criterion "none") everything, and the shares of cells."""
    counts = state.rows.counts.astype(jnp.float32)
    of_label = counts.sum(1, keepdims=True) / counts.sum()
    whole, cells = one_deck(state.rows).counts, state.rows.counts.reshape(-1)
    decks = Decks(state.rows.numbers, select(state.criterion == _NONE, whole, cells))
    return decks, (state.shares * of_label).reshape(-1)


def _iid_slots(key: jax.Array, probs: jax.Array, shape: tuple[int, int]) -> Slots:
    """Every place draws its cell independently."""
    ends = jnp.cumsum(probs)
    draw = jax.random.uniform(key, shape) * ends[-1]
    cell = jnp.sum(draw[..., None] >= ends[None, None, :], axis=-1, dtype=jnp.int32)
    cell = jnp.minimum(cell, len(probs) - 1)
    return Slots(cell, jnp.zeros(shape, jnp.int32), jnp.ones(shape, jnp.float32))


def _uniform_rows(key: jax.Array, rows: Rows, slots: Slots) -> jax.Array:
    """Rows with replacement, uniform within the cell of each place."""
    counts = rows.counts.reshape(-1)
    starts, size = jnp.cumsum(counts) - counts, counts[slots.deck]
    draw = jax.random.uniform(key, slots.deck.shape)
    within = jnp.minimum((draw * size.astype(jnp.float32)).astype(jnp.int32), size - 1)
    return rows.numbers[starts[slots.deck] + within]


class FairBatchIndices:
    """Index batches for any Python loader; made by `fairbatch_indices`."""

    def __init__(self, sampler: BatchSampler, key: jax.Array):
        """Start at natural frequencies; `state` may be replaced or saved at any time."""
        self.sampler = sampler
        self.state = sampler.init()
        self.epoch = 0
        self._key = key
        self._sample_epoch = jax.jit(sampler.sample_epoch)
        self._adapt = jax.jit(functools.partial(_adapt, sampler))

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

    def update(self, logits: Any, *, labels: Any, group: Any) -> None:
        """Adapt to the model's current logits `[N, K]` on the whole training or validation set."""
        if not self.sampler.adapts:
            raise ValueError("the sampler does not adapt: update is for samplers such as fairbatch")
        num_classes, num_groups = self.state.rows.counts.shape
        ids = {"labels": np.asarray(labels), "group": np.asarray(group)}
        check_ids("labels", ids["labels"], num_classes)
        check_ids("group", ids["group"], num_groups)
        ids = {name: values.astype(np.int32) for name, values in ids.items()}
        self.state = self._adapt(np.asarray(logits, np.float32), self.state, **ids)


def fairbatch_indices(sampler: BatchSampler, *, seed: int = 0) -> FairBatchIndices:
    """FairBatch for a loader of your own: an iterable of index batches, one epoch per `iter()`.

    Pass it wherever a loader takes a batch sampler, and call `update` once per epoch:

        batches = fairbatch_indices(sampler, seed=0)
        loader = torch.utils.data.DataLoader(dataset, batch_sampler=batches)
        for epoch in range(num_epochs):
            batches.update(predict_all(model), labels=labels, group=group)
            for batch in loader: ...

    A loader with workers needs `multiprocessing_context="spawn"`: JAX does not survive a fork.

    Args:
      sampler: from `fairbatch`, or any other.
      seed: the same seed gives the same batches, with no global random state touched.

    Returns:
      A `FairBatchIndices`.

    >>> data = {"labels": np.array([0, 1, 0, 1]), "group": np.array([0, 0, 1, 1])}
    >>> sampler = fairbatch(**data, num_classes=2, num_groups=2, batch_size=4)
    >>> [sorted(batch) for batch in fairbatch_indices(sampler)]
    [[0, 1, 2, 3]]
    """
    return FairBatchIndices(sampler, jax.random.key(seed))


def _adapt(sampler: BatchSampler, logits, state: FairBatchState, *, labels, group):
    """The state after one look at the model's outputs."""
    sums = sampler.measure(logits, state, labels=labels, group=group)
    return sampler.update(sampler.cell_losses(sums, state), state)


def _criterion_tables(num_classes: int, positive_class: int) -> tuple[np.ndarray, np.ndarray]:
    """Per criterion: labels that are watched, bool `[4, K]`, and the sign of their step."""
    watched = np.zeros((len(CRITERIA), num_classes), bool)
    watched[_OPPORTUNITY, positive_class] = True
    watched[[_ODDS, _PARITY]] = True
    direction = np.ones((len(CRITERIA), num_classes), np.float32)
    direction[_PARITY, np.arange(num_classes) != positive_class] = -1
    return watched, direction
