"""Samplers that know classes at most: plain batches, and every class equally likely."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Integer

from fairjax.sampling.dealing import deal, exact_slots, one_deck, weighted_rows
from fairjax.sampling.protocol import (
    BatchSampler,
    PlainState,
    Rows,
    arrange_rows,
    check_batch_size,
    own_rows,
)


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
        # by the same keys as FairBatch, so that both draw the same
        if example_weights is None:
            return deal(key, deck, slots), slots.weights
        key_row = jax.random.split(key)[1]
        return weighted_rows(key_row, deck, slots, example_weights), slots.weights

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
