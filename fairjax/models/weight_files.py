"""Tensors by name from the files of other libraries; nothing in a file is executed."""

import json
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors

from fairjax.models.torch_files import read_torch_file

NESTED = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema"),
    *("state_dict", "model_state_dict", "model", "teacher", "student"),
    *("module", "net", "network", "weights"),
)
"""Where training scripts keep a state dict inside a file; averages come first, as in timm."""
_TORCH = (".pth", ".pt", ".bin", ".ckpt", ".tar")


class WeightFile(NamedTuple):
    """What a file holds."""

    tensors: dict[str, np.ndarray]
    header: dict[str, Any]
    """What `save_weights` recorded, {} in all other files."""
    notes: list[str]


def read_weight_file(path: pathlib.Path, weights_key: str | None = None) -> WeightFile:
    """All tensors of a file of weights.

    Args:
      path: .safetensors, .npz, or what torch.save wrote (.pth, .pt, .bin, .ckpt, .pth.tar).
      weights_key: which state dict of a checkpoint that holds several; None takes the first of
        `NESTED` and notes the others.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file is damaged, of an unknown kind, an adapter, or lacks that key.
    """
    found = read_any(path, weights_key)
    if any(".lora_A." in name or ".lora_B." in name for name in found.tensors):
        raise ValueError(
            f"{path}: holds a LoRA adapter (PEFT), which changes a network and is none; give the "
            "base weights and this file as adapter=, or merge it in PyTorch (merge_and_unload)"
        )
    return found


def read_any(path: pathlib.Path, weights_key: str | None = None) -> WeightFile:
    """As `read_weight_file`, whatever the tensors are of."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weight file")
    suffix = path.suffix.lower()
    if suffix not in (".safetensors", ".npz", *_TORCH):
        raise ValueError(
            f"{path}: unknown kind of file; accepted are .safetensors, .npz, and what torch.save "
            f"writes: {', '.join(_TORCH[:-1])}, .pth.tar"
        )
    try:
        return _read(path, suffix, weights_key)
    except Exception as error:  # a damaged file raises whatever its first wrong byte leads to
        kind = "a safetensors file" if suffix == ".safetensors" else "an npz of arrays"
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        reason = reason.removeprefix(f"{path}: ")
        message = reason if suffix in _TORCH else f"damaged or not {kind} ({reason})"
        raise ValueError(f"{path}: {message}") from None


def _read(path: pathlib.Path, suffix: str, weights_key: str | None) -> WeightFile:
    if suffix in _TORCH:
        return _state_dict(read_torch_file(path), weights_key)
    if weights_key is not None:
        raise ValueError(f"weights_key={weights_key!r} is for checkpoints of torch.save")
    if suffix == ".npz":
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"wrong checksum of {damaged}")
        with np.load(path, allow_pickle=False) as file:
            return WeightFile({name: file[name] for name in file.files}, {}, [])
    with safetensors.safe_open(path, framework="np") as file:
        names = file.keys()
        tensors = {name: file.get_tensor(name) for name in names}
    return WeightFile(tensors, read_header(path), [])


def read_header(path: pathlib.Path) -> dict[str, Any]:
    """What `save_weights` recorded; {} of others, and of damaged files, which the reader names."""
    try:
        with safetensors.safe_open(path, framework="np") as file:
            header = json.loads((file.metadata() or {}).get("fairjax", "{}"))
    except (safetensors.SafetensorError, OSError, json.JSONDecodeError):
        return {}
    return header if isinstance(header, dict) else {}


def _state_dict(tree: Any, weights_key: str | None) -> WeightFile:
    """The state dict that is meant, found inside what a training script saved beside it."""
    if not isinstance(tree, dict):
        raise ValueError(f"expected a state dict, got {type(tree).__name__}")
    inside = {name: tree[name] for name in NESTED if _holds_tensors(tree.get(name))}
    if weights_key is not None:
        named = {str(name): value for name, value in tree.items() if _holds_tensors(value)}
        if weights_key not in named:
            there = ", ".join(named) or "the tensors alone, so leave it out"
            raise ValueError(f"no weights_key={weights_key!r} in it; there are {there}")
        return _state_dict(named[weights_key], None)
    if not inside:
        tensors = {str(n): value for n, value in tree.items() if isinstance(value, np.ndarray)}
        return WeightFile(tensors, {}, [])
    first, *others = inside
    found = _state_dict(inside[first], None)
    if others:
        note = f"read {first!r} of the file, which holds {', '.join(others)} too (weights_key)"
        found.notes.append(note)
    return found


def _holds_tensors(value: Any) -> bool:
    """Whether it is a dict with a tensor somewhere below."""
    return isinstance(value, Mapping) and any(
        isinstance(each, np.ndarray) or _holds_tensors(each) for each in value.values()
    )
