"""Position embeddings of one grid of patches for another."""

import jax
import numpy as np


def resize_positions(
    array: np.ndarray, shape: tuple[int, ...], notes: list[str], *, num_prefix: int = 1
) -> np.ndarray:
    """Position embeddings `[1, prefix + n * n, D]` for another grid.

    A file may leave out the prefix tokens (class, distillation), which then get 0. Bicubic with
    antialiasing, as timm does.

    Args:
      array: what the file holds.
      shape: `[1, num_prefix + m * m, D]`, what the network has.
      notes: gets a sentence if the grid was resized.
      num_prefix: tokens before the patches in the network.

    Raises:
      ValueError: the tokens are no square grid, with or without that many tokens before it.
    """
    if array.shape == shape or array.ndim != 3 or array.shape[-1] != shape[-1]:
        return array
    tokens = array.shape[1]
    side = _root(tokens - num_prefix)
    if side is None and (side := _root(tokens)):
        absent = np.zeros((1, num_prefix, array.shape[-1]), array.dtype)
        array = np.concatenate([absent, array], axis=1)
    if not side:
        guesses = [n for n in (0, 1, 2, 4, 5) if n != num_prefix and _root(tokens - n)]
        found = f", but {guesses[0]} + {_root(tokens - guesses[0])}**2" if guesses else ""
        raise ValueError(
            f"position embeddings of {tokens} tokens are not {num_prefix} + n**2{found}: the grid "
            "is no square, or the network has other tokens before its patches than the model"
        )
    new = _root(shape[1] - num_prefix)
    if new and new != side:
        notes.append(f"position embeddings resized from {side} x {side} to {new} x {new}")
        grid = array[:, num_prefix:].reshape(1, side, side, -1).astype(np.float32)
        grid = jax.image.resize(grid, (1, new, new, shape[-1]), "cubic", antialias=True)
        patches = np.asarray(grid).reshape(1, new * new, -1)
        array = np.concatenate([array[:, :num_prefix], patches], axis=1)
    return array


def split_class_position(
    array: np.ndarray, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray | None]:
    """The positions of patches, and that of a class token where the file has one before them.

    A network whose class token has no position computes the same with both added up.
    """
    if array.ndim != 3 or array.shape == shape or _root(array.shape[1]):
        return array, None
    if not _root(array.shape[1] - 1):
        return array, None
    return array[:, 1:], array[:, :1]


def _root(count: int) -> int | None:
    """The whole square root, if there is one."""
    side = round(max(count, 0) ** 0.5)
    return side if side > 0 and side * side == count else None
