"""Adapters of PEFT, merged into the weights that they change."""

import json
import math
import pathlib
from typing import Any

import numpy as np

from fairjax.models.weight_files import read_any

_PLAIN = {
    "peft_type": "LORA",
    "bias": "none",
    "use_dora": False,
    "fan_in_fan_out": False,
    "alpha_pattern": {},
    "layer_replication": None,
    "alora_invocation_tokens": None,
}
"""Settings under which an update is alpha / r B A, and nothing else."""


def merge_adapter(
    tensors: dict[str, np.ndarray], path: pathlib.Path, notes: list[str]
) -> dict[str, np.ndarray]:
    """The tensors of base weights with a LoRA adapter added, W + alpha / r B A.

    Args:
      tensors: by the names that the adapter's network has, with or without a prefix.
      path: `adapter_model.safetensors` (or `.bin`), with `adapter_config.json` beside it.
      notes: gets what was merged, and whole layers that the adapter brings.

    Returns:
      A new dict; tensors that the adapter does not change are shared.

    Raises:
      FileNotFoundError: one of the two files is absent.
      ValueError: they are damaged, of another kind of adapter, or of other layers than the base.

    Source: Hu et al., ICLR 2022; names and settings of PEFT.
    """
    settings = _settings(path.with_name("adapter_config.json"))
    found = {
        name.removeprefix("base_model.model.").replace(".default.", "."): tensor
        for name, tensor in read_any(path).tensors.items()
    }
    merged, count = dict(tensors), 0
    for name, down in found.items():
        if not name.endswith(".lora_A.weight"):
            continue
        layer = name.removesuffix(".lora_A.weight")
        up = found.get(f"{layer}.lora_B.weight")
        target = _only(path, f"{layer}.weight", tensors)
        kernel, rank = np.asarray(tensors[target], np.float32), len(down)
        if up is None or up.shape[1] != rank or (len(up), *down.shape[1:]) != kernel.shape:
            raise ValueError(
                f"{path}: {name} {down.shape} with {'nothing' if up is None else up.shape} does "
                f"not change {target} {kernel.shape}"
            )
        scale = settings["lora_alpha"] / (math.sqrt(rank) if settings["use_rslora"] else rank)
        up, down = np.asarray(up, np.float32), np.asarray(down, np.float32)
        update = up.reshape(-1, rank) @ down.reshape(rank, -1)
        merged[target] = kernel + np.float32(scale) * update.reshape(kernel.shape)
        count += 1
    whole = {
        _only(path, name, tensors, new=True): tensor
        for name, tensor in found.items()
        if ".lora_" not in name
    }
    merged |= whole
    others = [
        n for n in found if ".lora_" in n and not n.endswith((".lora_A.weight", ".lora_B.weight"))
    ]
    if others or not count:
        raise ValueError(
            f"{path}: no adapter of kernels alone: {', '.join(others[:3]) or 'no LoRA'}"
        )
    notes.append(f"merged the LoRA updates of {count} kernels from {path.name}")
    if whole:
        notes.append(f"the adapter brings {', '.join(sorted(whole)[:4])}")
    return merged


def _settings(path: pathlib.Path) -> dict[str, Any]:
    """What `adapter_config.json` says, where it is of a kind that is known here."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; an adapter without it says no scale")
    try:
        settings = {"use_rslora": False} | json.loads(path.read_text(encoding="utf-8"))
        alpha = float(settings["lora_alpha"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: not a configuration of a LoRA adapter ({error!r})") from None
    for name, accepted in _PLAIN.items():
        if (value := settings.get(name, accepted)) != accepted and value:
            raise ValueError(
                f"{path}: {name}={value!r} is not known here, {accepted!r} is; merge it in PyTorch "
                "(merge_and_unload)"
            )
    return settings | {"lora_alpha": alpha}


def _only(
    path: pathlib.Path, name: str, tensors: dict[str, np.ndarray], *, new: bool = False
) -> str:
    """The tensor of that name, or the only one whose name ends like it or that it ends like."""
    if name in tensors:
        return name
    alike = [each for each in tensors if each.endswith(f".{name}") or name.endswith(f".{each}")]
    if new and not alike:
        return name
    if len(alike) != 1:
        raise ValueError(
            f"{path}: changes {name}, of which the base weights hold {len(alike)}; they start with "
            f"{', '.join(sorted(tensors)[:3])}"
        )
    return alike[0]
