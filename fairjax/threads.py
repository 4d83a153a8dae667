"""Several things at once, on the host."""

import concurrent.futures
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any


def threaded(
    fn: Callable[[Any], Any], items: Iterable[Any], num_threads: int | None = None
) -> Iterator[Any]:
    """`map(fn, items)` in threads, for what NumPy, JAX or a decoder does without Python's lock.

    Args:
      fn: called once for every item, in any order, and outside of JAX's `with` settings, which are
        those of one thread.
      items: read at once when the first result is asked for; nothing begins before.
      num_threads: one per processor by default.

    Returns:
      The results in the order of the items. The first error is raised and cancels what has not
      begun.

    >>> list(threaded(abs, [-2, 1]))
    [2, 1]
    """
    with concurrent.futures.ThreadPoolExecutor(num_threads or os.cpu_count()) as pool:
        yield from pool.map(fn, items)
