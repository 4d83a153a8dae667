"""Numbers for a tensor from its name, so that golden files need not hold any weights."""

import math
import zlib

import numpy as np

# a prime length, so that no tensor repeats with the period of its own shape
_POOL = np.random.default_rng(0).standard_normal(1_000_003, np.float32)


def noise(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal float32 numbers that depend on the name only."""
    start = zlib.crc32(name.encode()) % len(_POOL)
    rolled = np.concatenate([_POOL[start:], _POOL[:start]])
    return np.resize(rolled, math.prod(shape)).reshape(shape)


def filled(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values for a parameter of a network: of the size that keeps activations near one."""
    values = noise(name, shape)
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if name.endswith("running_var"):
        return 0.5 + np.abs(values)
    if len(shape) == 1:
        is_scale = name.endswith(("weight", "scale"))
        return (0.1 * values + 1) if is_scale else 0.1 * values
    if "pos" in name or "cls" in name:
        return 0.2 * values
    fan_in = math.prod(shape[1:]) if name.endswith("weight") else shape[0]
    return values * np.float32(math.sqrt(1.5 / fan_in))
