"""The candidate axis over devices and their memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "candidates"


def candidate_mesh(devices: Any = None) -> Mesh:
    """A one-dimensional mesh over `devices` (default: all of them), axis `"candidates"`."""
    return Mesh(np.asarray(jax.devices() if devices is None else devices), (AXIS,))


def everywhere(tree: Any, mesh: Mesh) -> Any:
    """Arrays that all candidates need, one copy on every device of `mesh`."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def spread(tree: Any, mesh: Mesh) -> Any:
    """Arrays `[P, ...]` put onto the devices that train them, where these divide P."""
    if len(jax.tree.leaves(tree)[0]) % mesh.size:
        return everywhere(tree, mesh)
    return jax.device_put(tree, spread_out(mesh))


def spread_out(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays `[P, ...]` on a mesh that divides P."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def dealing_order(num_slots: int, num_devices: int) -> np.ndarray:
    """Slots int `[P]` in the order in which candidates are dealt to devices, one to each in turn.

    Device d holds slots d P / D to (d + 1) P / D; a multiple of D divides evenly.
    """
    return np.argsort(np.arange(num_slots) % -(-num_slots // num_devices), kind="stable")


def shard_candidates(
    fn: Callable[..., Any], mesh: Mesh, *, num_mapped: int = 1
) -> Callable[..., Any]:
    """Run `fn` on every device's share of the candidates.

    Args:
      fn: takes `num_mapped` arguments whose leaves lead with P, then arguments that all candidates
        share; returns leaves that lead with P. It must treat candidates independently.
      mesh: from `candidate_mesh`.
      num_mapped: how many leading arguments carry the candidate axis.

    Returns:
      A function of the same signature for use under jit. A P that the devices do not divide is
      padded with copies of the first candidate, which are dropped from the result.
    """
    num_devices = mesh.size

    def sharded(*args):
        mapped, shared = args[:num_mapped], args[num_mapped:]
        num_candidates = len(jax.tree.leaves(mapped)[0])
        missing = -num_candidates % num_devices
        rows = jnp.concatenate([jnp.arange(num_candidates), jnp.zeros(missing, jnp.int32)]).astype(
            jnp.int32
        )
        if missing:
            mapped = jax.tree.map(lambda leaf: leaf[rows], mapped)
        specs = tuple(PartitionSpec(AXIS) for _ in mapped) + tuple(PartitionSpec() for _ in shared)
        spread = jax.shard_map(
            fn, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(AXIS), check_vma=False
        )
        results = spread(*mapped, *shared)
        return jax.tree.map(lambda leaf: leaf[:num_candidates], results) if missing else results

    return sharded
