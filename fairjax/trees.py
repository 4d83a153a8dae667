"""Parameters as nested dicts with named leaves; transformer blocks stacked or one by one."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp


def map_named(fn: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """`jax.tree.map` whose function gets the leaf's name first: `fn("head/kernel", leaf, ...)`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: fn(jax.tree_util.keystr(path, simple=True, separator="/"), *leaves),
        tree,
        *rest,
    )


def flatten_named(tree: Any) -> dict[str, Any]:
    """Every leaf under its name: `{"head/kernel": leaf, ...}`, in tree order."""
    leaves: dict[str, Any] = {}
    map_named(leaves.__setitem__, tree)
    return leaves


def unflatten_named(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Undo `flatten_named` for nested dicts."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *parents, last = name.split("/")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[last] = leaf
    return tree


def partition(
    tree: dict[str, Any], select: Callable[[str], bool]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Nested dicts of the leaves whose name `select` accepts, and of the others; see `merge`."""
    leaves = flatten_named(tree)
    chosen = {name: leaf for name, leaf in leaves.items() if select(name)}
    rest = {name: leaf for name, leaf in leaves.items() if name not in chosen}
    return unflatten_named(chosen), unflatten_named(rest)


def merge(tree: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """One nested dict with the leaves of both.

    Raises:
      ValueError: a leaf is in both.
    """
    leaves, others = flatten_named(tree), flatten_named(other)
    if both := sorted(leaves.keys() & others.keys()):
        raise ValueError(f"cannot merge, both trees hold {both[0]}")
    return unflatten_named(leaves | others)


def unstack_blocks(params: dict[str, Any]) -> dict[str, Any]:
    """Split `params["blocks"]`, stacked on a leading axis `[L]`, into `{"0": ..., "L-1": ...}`.

    Networks accept both forms and give the same logits. Parameters without stacked blocks come
    back as they are.

    Args:
      params: nested dict of arrays (or of masks, gradients, anything with a leading axis).

    Returns:
      A new dict; leaves outside `blocks` are shared with `params`.
    """
    blocks = params.get("blocks", {})
    if not blocks or is_unstacked(blocks):
        return params
    num_blocks = len(jax.tree.leaves(blocks)[0])
    split = {str(i): jax.tree.map(lambda leaf, i=i: leaf[i], blocks) for i in range(num_blocks)}
    return {**params, "blocks": split}


def stack_blocks(params: dict[str, Any]) -> dict[str, Any]:
    """Undo `unstack_blocks`: one leading axis `[L]` over blocks 0 to L-1.

    Args:
      params: nested dict whose `blocks` are named "0" to "L-1".

    Returns:
      A new dict; parameters without unstacked blocks come back as they are.

    Raises:
      ValueError: block names have a gap, or blocks differ in structure or shape (after pruning).
    """
    blocks = params.get("blocks", {})
    if not is_unstacked(blocks):
        return params
    names = sorted(blocks, key=int)
    if names != [str(i) for i in range(len(names))]:
        raise ValueError(f"blocks must be named 0 to {len(names) - 1}, got {', '.join(names)}")
    layouts = [jax.tree.map(jnp.shape, blocks[name]) for name in names]
    for name, layout in zip(names, layouts, strict=True):
        if layout != layouts[0]:
            raise ValueError(f"block {name} differs in shape from block 0: {layout}, {layouts[0]}")
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(blocks[name] for name in names))
    return {**params, "blocks": stacked}


def is_unstacked(blocks: dict[str, Any]) -> bool:
    """Whether block names are numbers."""
    return bool(blocks) and all(name.isdecimal() for name in blocks)


def get_path(tree: dict[str, Any], path: str) -> Any:
    """What nested dicts hold under names joined by "/": `get_path(params, "net/fc")`.

    Raises:
      ValueError: no such entry; the error names what is there.
    """
    branch: Any = tree
    for name in path.split("/"):
        if not isinstance(branch, dict) or name not in branch:
            there = ", ".join(map(str, branch)) if isinstance(branch, dict) else "an array"
            raise ValueError(f"no {name!r} on the way to {path!r}, there is {there or 'nothing'}")
        branch = branch[name]
    return branch


def set_path(tree: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """New nested dicts in which `value` replaces what `get_path` finds; the rest is shared.

    Raises:
      ValueError: no such entry.
    """
    get_path(tree, path)
    first, _, rest = path.partition("/")
    return {**tree, first: set_path(tree[first], rest, value) if rest else value}
