"""Fair and robust selection: the examples that look rightly labelled, in FairBatch's proportions.

Roh, Lee, Whang, Suh: "Sample Selection for Fair and Robust Training", NeurIPS 2021.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from fairjax.fairbatch.state import Clean, FairBatchState


def clean_examples(
    losses: Float[Array, " n"],
    *,
    labels: Integer[Array, " n"],
    group: Integer[Array, " n"],
    shares: Float[Array, "K G"],
    clean_share: float | Float[Array, ""],
) -> Float[Array, " n"]:
    """Which examples look clean: those of lowest loss, while they keep to FairBatch's shares.

    Examples are taken in the order of their losses until `clean_share` of them are, or until a
    cell holds more than its share of its label's examples and the places still free together. A
    cell that would be left without an example keeps all of its own.

    Args:
      losses: float `[n]` of the examples' own labels; nan is never taken before a number.
      labels: `[n]` in `[0, K)`.
      group: `[n]` in `[0, G)`.
      shares: float32 `[K, G]`, the part of each label's examples that a group should have.
      clean_share: in (0, 1], rounded to a number of examples.

    Returns:
      float32 `[n]`, 1 for what is kept and 0 else. Safe under jit, vmap and scan.

    Raises:
      ValueError: lengths that differ, or a `clean_share` given as a number out of range.

    Source: the paper's greedy solution of a knapsack with one dimension per cell, as
    the authors' code has it for two labels and groups: with `s` taken in all, `s_c` in the cell and
    `s_y` with its label, `s + s_c - shares * s_y` must stay below `clean_share * n`. Since every
    example weighs something in every dimension, what is taken is the lowest losses up to a point.
    That cells are never left empty is ours.

    >>> ids = {"labels": jnp.zeros(4, int), "group": jnp.array([0, 0, 1, 1])}
    >>> losses = jnp.array([0.1, 2.0, 0.2, 0.3])
    >>> clean_examples(losses, **ids, shares=jnp.array([[0.5, 0.5]]), clean_share=0.75).tolist()
    [1.0, 0.0, 1.0, 1.0]
    """
    num, (num_classes, num_groups) = len(losses), shares.shape
    if labels.shape != losses.shape or group.shape != losses.shape:
        raise ValueError(
            f"losses, labels and group must have one length, got shapes {losses.shape}, "
            f"{labels.shape} and {group.shape}"
        )
    if isinstance(clean_share, (int, float)) and not 0 < clean_share <= 1:
        raise ValueError(f"clean_share must be in (0, 1], got {clean_share}")
    order = jnp.argsort(losses)
    cell = labels.astype(jnp.int32) * num_groups + group.astype(jnp.int32)
    of_cell = jax.nn.one_hot(cell, num_classes * num_groups, dtype=jnp.float32)
    taken = of_cell[order]
    before = (jnp.cumsum(taken, axis=0) - taken).reshape(num, num_classes, num_groups)
    of_label = before.sum(2, keepdims=True)
    number = jnp.arange(num, dtype=jnp.float32)
    filled = number[:, None, None] + before - shares[None] * of_label
    most = jnp.round(jnp.asarray(clean_share, jnp.float32) * num)
    accepted = (filled.max((1, 2)) < most) & (number < most)
    clean = jnp.zeros(num).at[order].set(accepted.astype(jnp.float32))
    left = jnp.sum(of_cell * clean[:, None], axis=0)
    return jnp.where(left[cell] > 0, clean, 1.0)


def start_clean(share: float | jax.Array, num_examples: int, counts: jax.Array) -> Clean:
    """Everything, until there is a first look."""
    share = jnp.asarray(share, jnp.float32)
    return Clean(share, jnp.ones(num_examples), counts.astype(jnp.float32))


def choose_clean(losses: jax.Array, state: FairBatchState, warm_up: int) -> FairBatchState:
    """The state after a look at the losses `[N]` of all examples, by its own shares and rows."""
    clean: Any = state.clean  # there is one where losses are looked at
    rows, (num_classes, num_groups) = state.rows, state.shares.shape
    num_rows, num_cells = len(rows.numbers), num_classes * num_groups
    cell_ids = jnp.arange(num_cells, dtype=jnp.int32)
    cell = jnp.repeat(cell_ids, rows.counts.reshape(-1), total_repeat_length=num_rows)
    chosen = clean_examples(
        losses[rows.numbers],
        labels=cell // num_groups,
        group=cell % num_groups,
        shares=state.shares,
        clean_share=clean.share,
    )
    chosen = jnp.where(state.num_updates > warm_up, chosen, 1.0)
    counts = jnp.sum(jax.nn.one_hot(cell, num_cells) * chosen[:, None], axis=0)
    # examples that the run does not draw, such as those of a validation split, stay as they are
    weights = jnp.ones_like(clean.weights).at[rows.numbers].set(chosen)
    return state._replace(clean=Clean(clean.share, weights, counts.reshape(state.shares.shape)))
