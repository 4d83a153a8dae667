"""The FairBatch sampler: its factory, and the draws of an epoch."""

import functools
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Integer

from fairjax.fairbatch import signals
from fairjax.fairbatch.clean import choose_clean, start_clean
from fairjax.fairbatch.state import (
    CRITERIA,
    NONE,
    SIGNALS,
    Criterion,
    Draw,
    FairBatchState,
    Rounding,
    Signal,
)
from fairjax.metrics.counts import check_choice
from fairjax.sampling import (
    BatchSampler,
    Decks,
    Rows,
    Slots,
    arrange_rows,
    check_batch_size,
    deal,
    exact_slots,
    one_deck,
    own_rows,
    select,
    weighted_rows,
)


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
    odds_weight: float = 3.0,
    clean_share: float | None = None,
    warm_up: int = 10,
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
        "demographic_parity_and_equalized_odds" watches both, and the largest gap of either moves.
      signal: "loss" compares mean cross-entropies (published); "rate" compares the true- and
        false-positive or selection rates themselves: equal losses are not equal rates.
      step_size: share in (0, 1] moved by the first update, alpha of the paper.
      decay: exponent at least 0 with which the step shrinks, see `FairBatchState`. A constant step
        (0, published) never settles; 0.5 does.
      odds_weight: positive; what gaps of equalized odds count when both criteria are watched.
      clean_share: in (0, 1], of the examples that are kept by `clean_examples`, chosen anew at
        every update; about 1 minus the share of wrong labels. None keeps all. Needs full passes
        over all training examples, in one piece; rows are then drawn with replacement.
      warm_up: updates before the first choice, for losses of an untrained network say nothing.
      draw: "exact" gives every batch the same rounded cell counts and deals each shuffled cell
        without replacement, starting over at its end; "iid" draws cell and row independently.
      rounding: of exact cell counts. "largest_remainder" always sums to `batch_size`; "published"
        rounds each cell half-to-even, so the sum varies and the batch is padded with weight 0.
      positive_class: the favourable label.

    Returns:
      A `BatchSampler`, safe under jit, vmap and scan, with static shapes. `init` also takes
      `measured` (see `FairBatchState`), `step_size`, `decay`, `odds_weight`, `clean_share`,
      `criterion` and `signal` (the latter two as indices into `CRITERIA` and `SIGNALS`), which
      default to the factory's and may be traced. `cell_losses` are means over the cell, or for
      demographic parity sums over the cell (rate: over the group) divided by the group's size.
      With both criteria a label has those of the larger gap: means times `odds_weight`, or such
      sums, which labels other than the positive class have negated.

    Raises:
      ValueError: an unknown name, a number out of range, or ids outside their range.

    Source: Roh et al. 2021, Algorithm 1 and Section 3. For two groups and two labels the update is
    the published one, except that an exact tie moves nothing and that equal largest gaps move
    together. With more groups the pair with the largest gap exchanges mass, the authors' own
    recipe. The rate signal is ours; for demographic parity it moves all labels at once. Both
    criteria at once follow the code of Roh et al., ICML 2023, whose `odds_weight` is 3, or 10 after
    `data_ratio`. `clean_share` follows Roh et al., NeurIPS 2021, except that shares also move
    during the warm-up (100 of 400 epochs there) and that epochs keep their number of batches.

    >>> from fairjax.fairbatch import fairbatch
    >>> data = {"labels": np.array([0, 1, 0, 1]), "group": np.array([0, 0, 1, 1])}
    >>> sampler = fairbatch(**data, num_classes=2, num_groups=2, batch_size=4)
    >>> sampler.init().shares.tolist()
    [[0.5, 0.5], [0.5, 0.5]]
    """
    _check_names(criterion, signal, draw, rounding)
    _check_numbers(step_size, decay, odds_weight, clean_share, warm_up)
    _check_class(positive_class, num_classes)
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
        "odds_weight": odds_weight,
        "criterion": CRITERIA.index(criterion),
        "signal": SIGNALS.index(signal),
    }
    published, exact = rounding == "published", draw == "exact"
    batches_per_epoch = num_rows // batch_size

    def init(*, rows=None, measured=None, **choices) -> FairBatchState:
        own = own_rows(everything, rows, batch_size)
        if measured is None and rows is not None:
            measured = jnp.zeros(num_rows, bool).at[own.numbers].set(True)
        share = choices.pop("clean_share", clean_share)
        clean = None if share is None else start_clean(share, num_rows, own.counts)
        return _init(own, measured, clean, **(defaults | choices))

    def update(cell_losses, state: FairBatchState, losses=None) -> FairBatchState:
        state = signals.update(cell_losses, state, positive_class)
        return state if losses is None else choose_clean(losses, state, warm_up)

    def sample_epoch(key, state: FairBatchState, *, example_weights=None, num_batches=None):
        num_batches = batches_per_epoch if num_batches is None else num_batches
        key_deck, key_row = jax.random.split(key)
        decks, probs = _decks(state)
        if exact:
            slots = exact_slots(decks, probs, batch_size, num_batches, published=published)
        else:
            slots = _iid_slots(key_deck, probs, (num_batches, batch_size))
        example_weights = _clean_only(example_weights, state)
        if example_weights is not None:
            # plain batches know one deck, whatever cell a place has drawn
            plain = state.criterion == NONE
            slots = slots._replace(deck=jnp.where(plain, 0, slots.deck))
            indices = weighted_rows(key_row, decks, slots, example_weights)
        elif exact:
            indices = deal(key, decks, slots)
        else:
            indices = _uniform_rows(key_row, state.rows, slots)
        return indices, slots.weights

    measure, cell_losses = (
        functools.partial(look, positive_class=positive_class)
        for look in (signals.measure, signals.cell_losses)
    )
    return BatchSampler(init, sample_epoch, batches_per_epoch, measure, cell_losses, update)


def _check_names(criterion, signal, draw, rounding) -> None:
    """Refuse unknown names."""
    for name, value, known in (
        ("criterion", criterion, CRITERIA),
        ("signal", signal, SIGNALS),
        ("draw", draw, get_args(Draw)),
        ("rounding", rounding, get_args(Rounding)),
    ):
        check_choice(name, value, known)


def _check_numbers(step_size, decay, odds_weight, clean_share, warm_up) -> None:
    """Refuse numbers out of range."""
    if not 0 < step_size <= 1:
        raise ValueError(f"step_size must be in (0, 1], got {step_size}")
    if not (decay >= 0 and np.isfinite(decay)):
        raise ValueError(f"decay must be at least 0, got {decay}")
    if not (odds_weight > 0 and np.isfinite(odds_weight)):
        raise ValueError(f"odds_weight must be positive, got {odds_weight}")
    if clean_share is not None and not 0 < clean_share <= 1:
        raise ValueError(f"clean_share must be in (0, 1] or None, got {clean_share}")
    if warm_up < 0:
        raise ValueError(f"warm_up must be at least 0 updates, got {warm_up}")


def _check_class(positive_class: int, num_classes: int) -> None:
    """Refuse a favourable label that there is not."""
    if not 0 <= positive_class < num_classes:
        raise ValueError(f"positive_class must be in [0, {num_classes}), got {positive_class}")


def _init(
    rows: Rows, measured, clean, *, step_size, decay, odds_weight, criterion, signal
) -> FairBatchState:
    """At natural frequencies."""
    if measured is not None and (jnp.ndim(measured) != 1 or measured.dtype != bool):
        raise ValueError(
            f"measured must be bool [N] of one run, got {measured.dtype} {jnp.shape(measured)}"
        )
    of_label = jnp.maximum(rows.counts.sum(1, keepdims=True), 1)
    return FairBatchState(
        rows=rows,
        measured=measured,
        clean=clean,
        shares=rows.counts.astype(jnp.float32) / of_label.astype(jnp.float32),
        step_size=jnp.asarray(step_size, jnp.float32),
        decay=jnp.asarray(decay, jnp.float32),
        odds_weight=jnp.asarray(odds_weight, jnp.float32),
        num_updates=jnp.zeros((), jnp.int32),
        criterion=jnp.asarray(criterion, jnp.int32),
        signal=jnp.asarray(signal, jnp.int32),
    )


def _decks(state: FairBatchState) -> tuple[Decks, jax.Array]:
    """What is dealt apart, the cells or (criterion "none") everything, and the shares of cells."""
    counts = state.rows.counts.astype(jnp.float32)
    counts = counts if state.clean is None else state.clean.counts
    of_label = counts.sum(1, keepdims=True) / counts.sum()
    whole, cells = one_deck(state.rows).counts, state.rows.counts.reshape(-1)
    decks = Decks(state.rows.numbers, select(state.criterion == NONE, whole, cells))
    return decks, (state.shares * of_label).reshape(-1)


def _clean_only(example_weights, state: FairBatchState) -> jax.Array | None:
    """The weights of examples by which rows are drawn; None deals them out."""
    if state.clean is None:
        return example_weights
    clean = state.clean.weights
    return clean if example_weights is None else clean * example_weights


def _iid_slots(key: jax.Array, probs: jax.Array, shape: tuple[int, int]) -> Slots:
    """Every place draws its cell independently."""
    ends = jnp.cumsum(probs)
    draw = jax.random.uniform(key, shape) * ends[-1]
    cell = jnp.sum(draw[..., None] >= ends[None, None, :], axis=-1, dtype=jnp.int32)
    cell = jnp.minimum(cell, len(probs) - 1)
    start, offset = jnp.zeros((shape[0], len(probs)), jnp.int32), jnp.zeros(shape[1], jnp.int32)
    return Slots(cell, start, offset, jnp.ones(shape, jnp.float32))


def _uniform_rows(key: jax.Array, rows: Rows, slots: Slots) -> jax.Array:
    """Rows with replacement, uniform within the cell of each place."""
    counts = rows.counts.reshape(-1)
    starts, size = jnp.cumsum(counts) - counts, counts[slots.deck]
    draw = jax.random.uniform(key, slots.deck.shape)
    within = jnp.minimum((draw * size.astype(jnp.float32)).astype(jnp.int32), size - 1)
    return rows.numbers[starts[slots.deck] + within]
