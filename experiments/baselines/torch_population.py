"""Many vision transformers in PyTorch: one after another, or stacked under `torch.func.vmap`."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel


def one_after_another(
    twin: nn.Module, images: torch.Tensor, labels: torch.Tensor, *, how: dict[str, Any]
) -> Callable[[], list[float]]:
    """An epoch of `count` candidates, each step with a batch drawn for it.

    Args:
      twin: trained on and on, as what a step costs does not depend on the parameters.
      images: float32 `[N, 3, H, W]`, on the device of `twin`.
      labels: int64 `[N]`.
      how: `count`, `batch_size`, `learning_rate`, `mixed` (bfloat16 autocast) and `compiled`.

    Returns:
      A function that gives the mean loss of each candidate.
    """
    network: Any = torch.compile(twin) if how["compiled"] else twin
    optimizer = _adamw(twin.parameters(), how["learning_rate"])
    draw = np.random.default_rng(0)

    def step(rows: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=how["mixed"]):
            loss = functional.cross_entropy(network(images[rows]).float(), labels[rows])
        loss.backward()
        optimizer.step()
        return loss.detach()

    def epoch() -> list[float]:
        losses = []
        for _ in range(how["count"]):
            batches = _batches(draw, labels, how["batch_size"])
            losses.append(torch.stack([step(rows) for rows in batches]).mean())
        return torch.stack(losses).tolist()

    return epoch


def stacked(
    twin: nn.Module, images: torch.Tensor, labels: torch.Tensor, *, how: dict[str, Any]
) -> Callable[[], list[float]]:
    """`one_after_another` with all candidates in one step: `torch.func` over stacked parameters."""
    twins = [copy.deepcopy(twin) for _ in range(how["count"])]
    params, buffers = torch.func.stack_module_state(twins)
    optimizer = _adamw(params.values(), how["learning_rate"])
    draw = np.random.default_rng(0)

    def loss_of(params: Any, buffers: Any, images: torch.Tensor, labels: torch.Tensor) -> Any:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=how["mixed"]):
            logits = torch.func.functional_call(twin, (params, buffers), (images,))
        loss = functional.cross_entropy(logits.float(), labels)
        return loss, loss.detach()

    gradients: Any = torch.func.vmap(torch.func.grad(loss_of, has_aux=True))
    gradients = torch.compile(gradients) if how["compiled"] else gradients

    def step(rows: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels fall back to a loop under vmap
            found, losses = gradients(params, buffers, images[rows], labels[rows])
        for name, param in params.items():
            param.grad = found[name]
        optimizer.step()
        return losses.detach()

    def epoch() -> list[float]:
        drawn = [_batches(draw, labels, how["batch_size"]) for _ in range(how["count"])]
        losses = [step(torch.stack(rows)) for rows in zip(*drawn, strict=True)]
        return torch.stack(losses).mean(0).tolist()

    return epoch


def _adamw(params: Any, learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=learning_rate, weight_decay=0.0, fused=True)


def _batches(draw: np.random.Generator, labels: torch.Tensor, size: int) -> list[torch.Tensor]:
    """An epoch's rows, shuffled."""
    rows = torch.from_numpy(draw.permutation(len(labels))).to(labels.device)
    return list(rows.split(size))
