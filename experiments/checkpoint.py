"""One checkpoint of a pytree, by orbax: whole or not at all, for any number of devices."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from experiments.files import FolderError, reason


def save(folder: Path, step: int, state: Any) -> None:
    """Write `state`, wait until it is on disk, then delete the checkpoint before it.

    Raises:
      OSError: it cannot be written; the checkpoint before it is still there.
    """
    import orbax.checkpoint as ocp

    with _manager("write", folder) as manager:
        kept = jax.tree.map(lambda leaf: None if np.size(leaf) == 0 else leaf, state)
        manager.save(step, args=ocp.args.StandardSave(kept))  # orbax refuses empty arrays
        manager.wait_until_finished()


def restore(folder: Path, like: Any) -> tuple[int, Any] | None:
    """Step and state, shaped as `like`, or None if there is no checkpoint.

    Leaves are NumPy arrays and typed keys bound to no device.

    Raises:
      OSError: the checkpoint is damaged.
    """
    import orbax.checkpoint as ocp

    here = SingleDeviceSharding(jax.devices()[0])  # whatever devices it was saved from

    def target(leaf: Any) -> Any:
        if np.size(leaf) == 0:
            return None
        if isinstance(leaf, jax.Array):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)
        return np.asarray(leaf)

    with _manager("read", folder) as manager:
        step = manager.latest_step()
        if step is None:
            return None
        args = ocp.args.StandardRestore(jax.tree.map(target, like))
        return step, jax.tree.map(_unbound, like, manager.restore(step, args=args))


def _unbound(empty: Any, leaf: Any) -> Any:
    """A restored array bound to no device: programs for any number of devices take it."""
    if leaf is None:
        return empty
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = jnp.asarray(np.asarray(jax.random.key_data(leaf)))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    return np.asarray(leaf)


@contextlib.contextmanager
def _manager(what: str, folder: Path) -> Iterator[Any]:
    import orbax.checkpoint as ocp

    _hush()
    options = ocp.CheckpointManagerOptions(max_to_keep=1)
    try:
        manager = ocp.CheckpointManager(folder.resolve(), options=options)
        try:
            yield manager
        finally:
            manager.close()
    except (ValueError, KeyError, OSError) as error:  # all that orbax and tensorstore raise
        message = f"cannot {what} the checkpoint in {folder}: {reason(error)}"
        raise FolderError(message) from error


def _hush() -> None:
    """Keep orbax's threads from printing tracebacks of an error that reaches us anyway.

    They do so after the error was raised, so this stays for the rest of the process; all other
    messages go through.
    """
    if getattr(sys.unraisablehook, "hushed", False):
        return
    before = sys.unraisablehook

    def hook(args: Any) -> None:
        # tensorstore finishes what it does for a loop that the first error has ended
        if str(args.exc_value) != "Event loop is closed":
            before(args)

    hook.hushed = True
    sys.unraisablehook = hook
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(lambda record: not record.exc_info)
