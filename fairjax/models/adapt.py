"""Tensors of a file made to fit the network, each change noted, and checked as numbers."""

import pathlib
import re
from typing import Any

import numpy as np

from fairjax.models.layouts import ALIASES, Layout
from fairjax.models.model import Model
from fairjax.models.positions import resize_positions, split_class_position

FIRST = ("conv1/kernel", "stem/conv1/kernel", "features/0/kernel", "patch_embed/proj/kernel")
"""The kernels that see the image."""


def spread_grey(
    layout: Layout,
    prefix: str,
    tensors: dict[str, np.ndarray],
    expected: dict[str, tuple[int, ...]],
    notes: list[str],
) -> dict[str, np.ndarray]:
    """The tensors with a first kernel of one input channel spread over three."""
    axis = 1 if layout.style == "torch" else 2
    for path in set(FIRST) & expected.keys():
        name = prefix + layout.names(path)[0]
        kernel = tensors.get(name, np.zeros(0))
        if kernel.ndim == 4 and kernel.shape[axis] == 1:
            notes.append(f"{name} sees one channel: a third of it was put on each colour")
            thirds = np.repeat(np.asarray(kernel, np.float32) / 3, 3, axis)
            return {**tensors, name: thirds}
    return tensors


def unwrap_head(
    model: Model, layout: Layout, prefix: str, tensors: dict[str, np.ndarray], notes: list[str]
) -> None:
    """Give a classifier inside a sequence (`fc.1.weight`) its usual name; drop one of layers."""
    usual = prefix + layout.names(f"{model.head}/kernel")[0]
    base = usual.removesuffix(".weight")
    if layout.style != "torch" or usual in tensors:
        return
    inside = [name for name in tensors if name.startswith(f"{base}.")]
    kernels = [name for name in inside if name.endswith(".weight")]
    if len(kernels) == 1 and tensors[kernels[0]].ndim == 2:
        inner = kernels[0].removesuffix(".weight")
        for leaf in ("weight", "bias"):
            if f"{inner}.{leaf}" in tensors:
                tensors[f"{base}.{leaf}"] = tensors.pop(f"{inner}.{leaf}")
    elif inside:
        notes.append(f"left out a classifier of several layers: {', '.join(inside[:4])}")
        for name in inside:
            del tensors[name]


def usual_name(name: str) -> str:
    """The name that layouts know a tensor by."""
    for pattern, usual in ALIASES:
        name = re.sub(pattern, usual, name)
    return name


def check_numbers(path: pathlib.Path, arrays: dict[str, Any]) -> None:
    """Raises ValueError for arrays of which a number is not finite, or a variance is negative."""
    for name, array in arrays.items():
        values = np.asarray(array, np.float32)
        if not np.isfinite(values).all():
            count = int((~np.isfinite(values)).sum())
            raise ValueError(f"{path}: {count} of {values.size} numbers of {name} are not finite")
        if name.endswith("/var") and values.min(initial=0) < 0:
            raise ValueError(f"{path}: {name} is a variance and holds {values.min():g}")


def fit_positions(
    model: Model,
    array: np.ndarray,
    found: dict[str, Any],
    shape: tuple[int, ...],
    notes: list[str],
) -> np.ndarray:
    """Positions for the model's grid; those of a class token that has none are added to it."""
    num_prefix = model.config.num_class_tokens
    if not model.config.class_position:
        num_prefix = 0
        array, inside = split_class_position(array, shape)
        if inside is not None and "cls_token" in found:
            found["cls_token"] = found["cls_token"] + inside
    return resize_positions(array, shape, notes, num_prefix=num_prefix)
