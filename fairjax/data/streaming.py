"""Batches from the device where the data fits, through grain where it does not.

`fairjax.train.fit` runs whole epochs as one program, so it needs its data on the device. A set that
is larger than the device's memory is trained with the same step in a Python loop over `iterate`:

    step = jax.jit(make_step(model, optimizer), donate_argnums=0)
    placement, why = choose_placement(data, "train")
    for epoch in range(num_epochs):
        epoch_key = jax.random.fold_in(key, epoch)
        order, weights = sampler.sample_epoch(epoch_key, shares)  # [steps, B] each
        batches = iterate(data, "train", np.asarray(order), placement=placement)
        for i, batch in enumerate(batches):
            step_key = jax.random.fold_in(epoch_key, i)
            inputs = augment(step_key, batch.inputs)  # float32 from the stored uint8
            batch = Batch(inputs, batch.labels, batch.group, weights[i])
            state, metrics = step(state, batch, step_key)

A `BatchSampler` of `fairjax.fairbatch` draws the order from labels and groups alone, which always
fit; `shares` are the state that its `update` moves.
"""

import os
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Integer

from fairjax.data.dataset import Dataset, Examples

Placement = Literal["device", "stream"]

_SHARE = 0.5


class PlacementChoice(NamedTuple):
    """Where a split is kept, and why."""

    placement: Placement
    """"device" or "stream"."""
    reason: str
    """One sentence with the numbers, for a log or a report."""


def device_bytes(data: Dataset, split: str) -> int:
    """Bytes that one split takes on the device: inputs as they are stored, int32 label and group.

    Computed from shapes; nothing is read or allocated.
    """
    row = int(np.prod(data.inputs.shape[1:])) * data.inputs.dtype.itemsize
    return len(data.split_rows(split)) * (row + 8)


def device_budget() -> int:
    """Half of the memory of the first device (for a CPU, of the machine), in bytes."""
    stats = jax.devices()[0].memory_stats() or {}
    limit = stats.get("bytes_limit")
    if limit is None:
        limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(_SHARE * limit)


def choose_placement(
    data: Dataset, split: str, *, budget: int | None = None, num_devices: int = 1
) -> PlacementChoice:
    """Whether a split is kept on the device or streamed; nothing is read or allocated.

    Args:
      data: the data set.
      split: "train", "val" or "test".
      budget: bytes per device that data may take; `device_budget()` by default.
      num_devices: over how many the rows are sharded.

    Returns:
      "device" if the split fits, else "stream", with a sentence that says why.

    Raises:
      ValueError: `budget` is negative or `num_devices` below 1.
    """
    if num_devices < 1 or (budget is not None and budget < 0):
        raise ValueError(
            f"budget must be at least 0 and num_devices at least 1, got {budget} and {num_devices}"
        )
    needed = -(-device_bytes(data, split) // num_devices)
    budget = device_budget() if budget is None else budget
    placement: Placement = "device" if needed <= budget else "stream"
    reason = (
        f"{data.name}/{split}: {needed / 2**20:.1f} MiB per device, budget "
        f"{budget / 2**20:.0f} MiB: {'on the device' if placement == 'device' else 'streamed'}."
    )
    return PlacementChoice(placement, reason)


def place_on_device(data: Dataset, split: str, sharding: Any = None) -> Examples:
    """A split as device arrays, uint8 images included.

    Args:
      data: the data set.
      split: "train", "val" or "test".
      sharding: a `NamedSharding` of the sample axis; the row count must divide evenly. None puts
        everything on the default device.

    Returns:
      `Examples` of `jax.Array`s in split order.

    Raises:
      ValueError: the rows cannot be divided over the devices.
    """
    rows = data.split_rows(split)
    if sharding is not None:
        shards = sharding.num_devices // max(1, _replicas(sharding))
        if len(rows) % shards:
            raise ValueError(
                f"{data.name}/{split}: {len(rows)} rows cannot be divided over {shards} devices; "
                "leave some out or use fewer"
            )
    return jax.device_put(data.examples(split), sharding)


def _replicas(sharding: Any) -> int:
    """On how many devices each row lies."""
    sizes = dict(sharding.mesh.shape)
    first = sharding.spec[0] if len(sharding.spec) else None
    used = (first,) if isinstance(first, str) else tuple(first or ())
    return int(np.prod([size for name, size in sizes.items() if name not in used]))


def iterate(
    data: Dataset,
    split: str,
    order: Integer[np.ndarray, "steps B"],
    *,
    placement: Placement,
    num_threads: int = 8,
    prefetch: int = 4,
) -> Iterator[Examples]:
    """Batches of a split in a given order; both placements yield equal arrays.

    The top of this module shows the training loop.

    Args:
      data: the data set; a memory-mapped `inputs` is read batch by batch when streamed.
      split: "train", "val" or "test".
      order: positions within the split, int `[steps, B]`, one row per batch: a shuffle, or what a
        sampler drew.
      placement: "device" takes batches from a copy of the split on the device, "stream" reads
        them in threads ahead of time; see `choose_placement`.
      num_threads: reading at once when streamed.
      prefetch: batches kept ready when streamed.

    Yields:
      `Examples` of device arrays with B rows.

    Raises:
      ValueError: `order` is not two-dimensional or names rows that are not there.
      ImportError: "stream" without grain.
    """
    order = np.asarray(order)
    count = len(data.split_rows(split))
    if order.ndim != 2 or (order.size and not 0 <= order.min() <= order.max() < count):
        raise ValueError(
            f"order must be [steps, B] positions in [0, {count}), got shape {order.shape}"
        )
    if placement not in ("device", "stream"):
        raise ValueError(f'placement must be "device" or "stream", got {placement!r}')
    if placement == "device":
        return _from_device(place_on_device(data, split), order)
    return _from_grain(data, split, order, num_threads, prefetch)


@jax.jit
def _take(examples: Examples, rows: jax.Array) -> Examples:
    return jax.tree.map(lambda x: x[rows], examples)


def _from_device(examples: Examples, order: np.ndarray) -> Iterator[Examples]:
    for rows in order:
        yield _take(examples, rows)


def _from_grain(
    data: Dataset, split: str, order: np.ndarray, num_threads: int, prefetch: int
) -> Iterator[Examples]:
    try:
        import grain
    except ImportError:
        raise ImportError("streaming needs grain: pip install 'fairjax[streaming]'") from None
    rows = data.split_rows(split)

    def read(step: int) -> Examples:
        return data.rows(rows[order[step]])

    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch)
    batches = grain.MapDataset.range(len(order)).map(read).to_iter_dataset(options)
    for batch in batches:
        yield jax.device_put(batch)
