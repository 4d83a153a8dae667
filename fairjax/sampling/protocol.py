"""What a sampler is, and the rows that a run may draw."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Integer


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
    update_every: int | None = None
    """Most batches between two updates where who trains names no cadence, as in a `Recipe`."""

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
