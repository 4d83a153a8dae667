"""The loss of a group or cell weighs the more the worse it has been: group DRO, and CVaR."""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Integer

from fairjax.losses import cross_entropy, worst_weights
from fairjax.sampling.dealing import Decks, deal, exact_slots, weighted_rows
from fairjax.sampling.protocol import (
    BatchSampler,
    CellSums,
    Rows,
    arrange_rows,
    check_batch_size,
    own_rows,
)

Over = Literal["cells", "groups"]


class GroupDROState(NamedTuple):
    """What group DRO carries from update to update; every field may get a population axis."""

    rows: Rows
    shares: jax.Array
    """float32 `[K, G]`: weight of every cell's mean loss, the paper's q; they sum to 1. With
    `over="groups"` that of a group is spread over its cells by their rows."""
    step_size: jax.Array
    """float32 scalar: the paper's eta_q."""


def group_dro(
    *,
    labels: Integer[np.ndarray | Array, " N"],
    group: Integer[np.ndarray | Array, " N"],
    num_classes: int,
    num_groups: int,
    batch_size: int,
    step_size: float = 0.01,
    over: Over = "cells",
) -> BatchSampler:
    """The weighted sum of cells' mean losses, whose weights grow where the loss is high.

    Every batch holds as many rows of each cell (or of each group, in its natural mix of labels),
    and their losses weigh q / that share. An update, after every batch as published, multiplies q
    by exp(step_size * loss).

    Args:
      labels: int `[N]` training labels in `[0, num_classes)`.
      group: int `[N]` sensitive groups in `[0, num_groups)`.
      num_classes: K.
      num_groups: G.
      batch_size: B, enough for a row of every non-empty cell.
      step_size: positive.
      over: "cells" (published: a group is a label and an attribute together) or "groups".

    Returns:
      A `BatchSampler`, safe under jit, vmap and scan; `init` also takes `step_size`, which may be
      traced. `cell_losses` are mean cross-entropies of the cell or of its whole group.

    Raises:
      ValueError: an unknown name, a step size that is not positive, ids outside their range, or a
        batch that cannot hold every cell.

    Source: Sagawa et al., ICLR 2020, Algorithm 1, with the batches balanced as by the authors'
    code. Here the losses of a batch move the weights of the next one, not its own.

    >>> ids = {"labels": np.array([0, 1, 0, 1]), "group": np.array([0, 0, 1, 1])}
    >>> sampler = group_dro(**ids, num_classes=2, num_groups=2, batch_size=4, step_size=1.0)
    >>> state = sampler.update(jnp.log(jnp.array([[1.0, 1.0], [1.0, 5.0]])), sampler.init())
    >>> state.shares.round(3).tolist()
    [[0.125, 0.125], [0.125, 0.625]]
    """
    if not (step_size > 0 and np.isfinite(step_size)):
        raise ValueError(f"step_size must be positive, got {step_size}")
    default = step_size

    def start(own: Rows, *, step_size: Any = default) -> GroupDROState:
        return GroupDROState(own, _start(own.counts, over), jnp.asarray(step_size, jnp.float32))

    def update(cell_losses, state: GroupDROState) -> GroupDROState:
        growth = jnp.where(jnp.isfinite(cell_losses), state.step_size * cell_losses, 0.0)
        # by its largest value, so that no step overflows
        shares = state.shares * jnp.exp(growth - growth.max())
        return state._replace(shares=shares / shares.sum())

    arguments: dict[str, Any] = {"labels": labels, "group": group, "batch_size": batch_size}
    sizes = {"num_classes": num_classes, "num_groups": num_groups}
    return _weighing_cells(start, update, over, **arguments, **sizes)


class GroupCVaRState(NamedTuple):
    """What `group_cvar` carries from update to update; every field may get a population axis."""

    rows: Rows
    shares: jax.Array
    """float32 `[K, G]`: weight of every cell's mean loss; they sum to 1."""
    losses: jax.Array
    """float32 `[K, G]`: moving averages of cell losses, from 0, so that all lag alike."""
    worst_share: jax.Array
    """float32 scalar."""


def group_cvar(
    *,
    labels: Integer[np.ndarray | Array, " N"],
    group: Integer[np.ndarray | Array, " N"],
    num_classes: int,
    num_groups: int,
    batch_size: int,
    worst_share: float = 0.5,
    memory: float = 0.9,
    over: Over = "cells",
) -> BatchSampler:
    """The mean loss of the cells that are worst off: of those that hold a share of the rows.

    As `group_dro`, whose adversary may put all weight on a rare cell; here a cell weighs at most
    its share of the rows / `worst_share`. 1 is plain training; the share of the rarest cell, or
    less, is the worst cell alone.

    Args:
      labels: as `group_dro`.
      group: as `group_dro`.
      num_classes: K.
      num_groups: G.
      batch_size: B, enough for a row of every non-empty cell.
      worst_share: alpha in (0, 1], of the rows.
      memory: in [0, 1), of the moving averages that say which cells are worst; 0 forgets all but
        the last update.
      over: "cells" or "groups".

    Returns:
      A `BatchSampler`, safe under jit, vmap and scan; `init` also takes `worst_share`, which may be
      traced. Plain training's weights before the first update; updates after every batch.

    Raises:
      ValueError: as `group_dro`, or a number out of range.

    Source: Oren et al., EMNLP 2019 (topic CVaR), section 3.2 and Algorithm 1; the conditional value
    at risk of Rockafellar and Uryasev, 2000. Batches are balanced as those of `group_dro`.

    >>> ids = {"labels": np.array([0, 1, 0, 1]), "group": np.array([0, 0, 1, 1])}
    >>> sampler = group_cvar(**ids, num_classes=2, num_groups=2, batch_size=4, worst_share=0.5)
    >>> sampler.update(jnp.array([[0.1, 0.7], [0.2, 0.3]]), sampler.init()).shares.tolist()
    [[0.0, 0.5], [0.0, 0.5]]
    """
    if not 0 < worst_share <= 1:
        raise ValueError(f"worst_share must be in (0, 1], got {worst_share}")
    if not 0 <= memory < 1:
        raise ValueError(f"memory must be in [0, 1), got {memory}")
    default = worst_share

    def start(own: Rows, *, worst_share: Any = default) -> GroupCVaRState:
        counts = own.counts.astype(jnp.float32)
        share = jnp.asarray(worst_share, jnp.float32)
        return GroupCVaRState(own, counts / counts.sum(), jnp.zeros_like(counts), share)

    def update(cell_losses, state: GroupCVaRState) -> GroupCVaRState:
        moved = memory * state.losses + (1 - memory) * cell_losses
        losses = jnp.where(jnp.isfinite(cell_losses), moved, state.losses)
        counts = state.rows.counts.astype(jnp.float32)
        mass = counts / counts.sum()
        if over == "groups":
            of_group = mass.sum(0)
            worst = worst_weights(losses.max(0), of_group, state.worst_share)
            shares = mass * (worst / jnp.maximum(of_group, 1e-30))[None]
        else:
            worst = worst_weights(losses.reshape(-1), mass.reshape(-1), state.worst_share)
            shares = worst.reshape(mass.shape)
        return state._replace(shares=shares, losses=losses)

    arguments: dict[str, Any] = {"labels": labels, "group": group, "batch_size": batch_size}
    sizes = {"num_classes": num_classes, "num_groups": num_groups}
    return _weighing_cells(start, update, over, **arguments, **sizes)


def _weighing_cells(start, update, over: Over, *, labels, group, batch_size, **sizes: Any):
    """Balanced batches in which a cell's mean loss weighs `state.shares`, moved by `update`.

    `start(rows, **choices)` makes the state of a run.
    """
    if over not in get_args(Over):
        raise ValueError(f"over must be one of {', '.join(get_args(Over))}; got {over!r}")
    everything = arrange_rows(labels=labels, group=group, **sizes)
    check_batch_size(batch_size, len(everything.numbers))
    _check_slots(everything.counts, batch_size, over)

    def init(*, rows: Rows | None = None, **choices: Any):
        return start(own_rows(everything, rows, batch_size), **choices)

    def sample_epoch(key, state, *, example_weights=None, num_batches=None):
        num_batches = batches_per_epoch if num_batches is None else num_batches
        even = _start(state.rows.counts, over).reshape(-1)
        decks = Decks(state.rows.numbers, state.rows.counts.reshape(-1))
        slots = exact_slots(decks, even, batch_size, num_batches, published=False)
        key = jax.random.split(key)[1]  # as the other samplers
        if example_weights is None:
            indices = deal(key, decks, slots)
        else:
            indices = weighted_rows(key, decks, slots, example_weights)
        # by the rows that the batch holds of a cell, which are rounded
        held = jnp.sum(jax.nn.one_hot(slots.deck, len(even)), axis=0)
        weight = batch_size * state.shares.reshape(-1) / jnp.maximum(held, 1.0)
        # above 0: a cell of no weight is looked at like any other, it may be the worst tomorrow
        return indices, slots.weights * jnp.maximum(weight, 1e-12)[slots.deck][None]

    def cell_losses(sums: CellSums, state) -> jax.Array:
        count, value = sums.count, sums.value
        if over == "groups":
            count, value = (
                jnp.broadcast_to(x.sum(0, keepdims=True), x.shape) for x in (count, value)
            )
        return jnp.where((count > 0) & (state.rows.counts > 0), value / count, jnp.nan)

    batches_per_epoch = len(everything.numbers) // batch_size
    how = init, sample_epoch, batches_per_epoch, _measure, cell_losses, update
    return BatchSampler(*how, update_every=1)


def _measure(logits, state, *, labels, group, weights=None) -> CellSums:
    """Sums of cross-entropies by cell; weights are of the loss, only 0 leaves a row out."""
    num_classes, num_groups = state.shares.shape
    cell = labels.astype(jnp.int32) * num_groups + group.astype(jnp.int32)
    members = jnp.arange(num_classes * num_groups, dtype=jnp.int32)[:, None] == cell[None]
    present = jnp.ones(len(cell)) if weights is None else (weights > 0).astype(jnp.float32)
    count = members.astype(jnp.float32) * present[None]
    losses = jnp.matmul(count, cross_entropy(logits, labels), precision="highest")
    count, losses = (x.reshape(num_classes, num_groups) for x in (count.sum(1), losses))
    return CellSums(count, losses, jnp.zeros_like(count))


def _start(counts: Any, over: Over) -> jax.Array:
    """What cells weigh before the first update: alike, or by their share of one of G groups."""
    counts = jnp.asarray(counts).astype(jnp.float32)
    if over == "cells":
        occupied = (counts > 0).astype(jnp.float32)
        return occupied / occupied.sum()
    of_group = counts.sum(0, keepdims=True)
    return counts / (jnp.maximum(of_group, 1.0) * (of_group > 0).sum().astype(jnp.float32))


def _check_slots(counts: np.ndarray, batch_size: int, over: Over) -> None:
    """Refuse batches that would never hold some cell."""
    occupied = counts > 0
    if over == "cells":
        share = 1 / occupied.sum()
    else:
        of_group = counts.sum(0, keepdims=True)
        share = (counts / np.maximum(of_group, 1))[occupied].min() / (of_group > 0).sum()
    if batch_size * share < 1:
        raise ValueError(
            f"batch_size must be at least {int(np.ceil(1 / share))} for a row of every non-empty "
            f"(label, group) cell in every batch, got {batch_size}"
        )
