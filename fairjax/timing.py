"""Where the time goes."""

import contextlib
import time
from collections.abc import Iterator, MutableMapping


@contextlib.contextmanager
def timed(seconds: MutableMapping[str, float], name: str) -> Iterator[None]:
    """Add the seconds of a block to `seconds[name]`; JAX's arrays must be waited for inside.

    >>> seconds = {}
    >>> with timed(seconds, "train_s"):
    ...     _ = sum(range(10))
    >>> list(seconds)
    ['train_s']
    """
    began = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began
