"""FairBatch for loaders of other libraries: an iterable of index batches that adapts."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from fairjax.fairbatch.state import FairBatchState
from fairjax.sampling import BatchSampler, check_ids


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

    >>> from fairjax.fairbatch import fairbatch
    >>> data = {"labels": np.array([0, 1, 0, 1]), "group": np.array([0, 0, 1, 1])}
    >>> sampler = fairbatch(**data, num_classes=2, num_groups=2, batch_size=4)
    >>> [sorted(batch) for batch in fairbatch_indices(sampler)]
    [[0, 1, 2, 3]]
    """
    return FairBatchIndices(sampler, jax.random.key(seed))


def _adapt(sampler: BatchSampler, logits, state: FairBatchState, *, labels, group):
    """The state after one look at the model's outputs."""
    sums = sampler.measure(logits, state, labels=labels, group=group)
    return sampler.adapt(sums, state)[0]
