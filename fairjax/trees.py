"""Parameters as trees of named leaves."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp


def leaf_names(tree: Any) -> list[str]:
    """Names of all leaves in tree order, path parts joined by "/": `"blocks/3/mlp/fc1/kernel"`."""
    return [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def map_named(fn: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """`jax.tree.map` whose function gets the leaf's name first: `fn(name, leaf, *rest_leaves)`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: fn(_name(path), *leaves), tree, *rest
    )


def stack(trees: Sequence[Any]) -> Any:
    """Stack P trees of one structure into one tree whose leaves have a leading axis P."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def take(tree: Any, index: Any) -> Any:
    """Index the leading axis of every leaf: one candidate (int) or several (int array)."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def _name(path: Sequence[Any]) -> str:
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)
