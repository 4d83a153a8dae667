"""How much fits on a device: asked of the compiler, also for devices that are not there."""

import os
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding


def plan_chunk_size(
    lower: Callable[[int], Any],
    num_candidates: int,
    *,
    available_bytes: int | None = None,
) -> int:
    """How many candidates to train at the same time so that the program fits into memory.

    Compiles for one and for two candidates and takes the growth between them as the price of
    each; nothing runs.

    Args:
      lower: `lower(chunk_size)` is the lowered program, as from `jax.jit(fn).lower(...)`.
      num_candidates: P, per device.
      available_bytes: of one device; default is what it has free.

    Returns:
      The largest chunk size that divides P and fits.

    Raises:
      ValueError: not even one candidate fits.
    """
    if available_bytes is None:
        available_bytes = free_bytes()
    one = program_bytes(lower(1))
    if one > available_bytes:
        raise ValueError(
            f"one candidate needs {one / 2**30:.2f} GiB and {available_bytes / 2**30:.2f} GiB are "
            "free; use smaller batches or a smaller network"
        )
    if num_candidates == 1:
        return 1
    each = max(program_bytes(lower(2)) - one, 1)
    affordable = 1 + (available_bytes - one) // each
    divisors = [size for size in range(1, num_candidates + 1) if num_candidates % size == 0]
    return max(size for size in divisors if size <= affordable)


def free_bytes() -> int:
    """Memory that the first device has free, in bytes; virtual CPU devices share the machine's."""
    device = jax.devices()[0]
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // jax.local_device_count()


def program_bytes(lowered: Any) -> int:
    """Arguments, results and temporaries of a lowered program at once, by its compiler."""
    stats: Any = lowered.compile().memory_analysis()
    held = stats.argument_size_in_bytes + stats.output_size_in_bytes + stats.temp_size_in_bytes
    return held - stats.alias_size_in_bytes


def find_device(name: str) -> tuple[Any, int]:
    """The device to compile for, and how many there are of it.

    Raises:
      ValueError: libtpu is missing, or knows no such slice.
    """
    if name == "here":
        return jax.devices()[0], jax.local_device_count()
    from jax.experimental import topologies

    # libtpu would otherwise ask a cloud machine's metadata server, which is not there
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except Exception as error:  # noqa: BLE001  whatever the plugin raises, the user's to mend
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device {name}: {reason}; give 'here' or a TPU slice such as v5e:2x2, with libtpu "
            "installed (pip install libtpu)"
        ) from error
    return devices[0], len(devices)


def hbm_bytes(device: Any) -> int:
    """Memory that a program may use on a device one can only compile for.

    The compiler says it when asked for far too much.
    """
    on = SingleDeviceSharding(device)
    huge = jax.ShapeDtypeStruct((2**40,), jnp.float32)
    try:
        jax.jit(lambda x: x * x, in_shardings=on, out_shardings=on).lower(huge).compile()
    except jax.errors.JaxRuntimeError as error:
        found = re.search(r"available HBM \(([\d.]+)([GM])\)", str(error))
        if found:
            return int(float(found[1]) * {"G": 2**30, "M": 2**20}[found[2]])
        raise
    raise ValueError(f"{device.device_kind} sets no limit of memory")


def largest_fit(cost: Callable[[int], float], available: float, most: int) -> dict[int, float]:
    """Bytes of every population that was compiled and fits, the largest last.

    Costs grow almost linearly, so each guess extrapolates from the two largest that fit.

    Raises:
      ValueError: not even one candidate fits.
    """
    fits, too_many = {1: cost(1)}, most + 1
    if fits[1] > available:
        need = "more" if np.isinf(fits[1]) else gib(fits[1])
        raise ValueError(
            f"one candidate needs {need} GiB, the device has {gib(available)}; use a smaller "
            "--batch-size, fewer --num-images or a smaller --model"
        )
    while (n := max(fits)) + 1 < too_many:
        before = max((size for size in fits if size < n), default=0)
        each = (fits[n] - fits[before]) / (n - before) if before else fits[1]
        # once a guess was too much, halve what is left
        highest = too_many - 1 if too_many > most else (n + too_many) // 2
        guess = int(np.clip(n + (available - fits[n]) // max(each, 1), n + 1, highest))
        bytes_needed = cost(guess)
        if bytes_needed <= available:
            fits[guess] = bytes_needed
        else:
            too_many = guess
    return fits


def gib(num_bytes: float) -> str:
    """Bytes as GiB with two decimals."""
    return f"{num_bytes / 2**30:.2f}"
