"""How much of a device's memory examples take, and may take.

What fits lies on the device for a whole run; a larger set is read while it trains, see
`fairjax.train.stream`.
"""

import os

import jax
import numpy as np

from fairjax.data.dataset import Dataset

_SHARE = 0.5


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
