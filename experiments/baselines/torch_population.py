"""Many vision transformers in PyTorch: one after another, or stacked under `torch.func.vmap`."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from experiments.baselines.torch_models import compiled


def one_after_another(
    twin: nn.Module, images: torch.Tensor, labels: torch.Tensor, *, how: dict[str, Any]
) -> Callable[[int], list[float]]:
    """Epochs of one candidate after another, each step with a batch drawn for it.

    Args:
      twin: trained on and on, as what a step costs does not depend on the parameters.
      images: float32 `[N, 3, H, W]`, on the device of `twin`.
      labels: int64 `[N]`.
      how: `batch_size`, `learning_rate`, `mixed` (bfloat16 autocast) and `style`, see `styles`.

    Returns:
      A function of a number of candidates that gives the mean loss of each.
    """
    optimizer = _adamw(twin.parameters(), how)
    draw = np.random.default_rng(0)

    def loss_of(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=how["mixed"]):
            return functional.cross_entropy(twin(images).float(), labels)

    measure = compiled(loss_of, how["style"])

    def step(rows: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = measure(images[rows], labels[rows])
        loss.backward()
        optimizer.step()
        return loss.detach().clone()  # a graph's own memory is written again by its next run

    def epoch(count: int) -> list[float]:
        drawn = _batches(draw, count, labels, how["batch_size"])
        return torch.stack(
            [torch.stack([step(rows) for rows in run]).mean() for run in drawn]
        ).tolist()

    return epoch


def stacked(
    twin: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    count: int,
    how: dict[str, Any],
) -> Callable[[int], list[float]]:
    """`one_after_another` with all candidates in one step: `torch.func` over stacked parameters."""
    twins = [copy.deepcopy(twin) for _ in range(count)]
    params, buffers = torch.func.stack_module_state(twins)
    optimizer = _adamw(params.values(), how)
    draw = np.random.default_rng(0)

    def loss_of(params: Any, buffers: Any, images: torch.Tensor, labels: torch.Tensor) -> Any:
        if how["mixed"]:  # by hand: autocast's gradients mix types under vmap
            params = {name: param.bfloat16() for name, param in params.items()}
            images = images.bfloat16()
        logits = torch.func.functional_call(twin, (params, buffers), (images,))
        loss = functional.cross_entropy(logits.float(), labels)
        return loss, loss.detach()

    gradients = compiled(torch.func.vmap(torch.func.grad(loss_of, has_aux=True)), how["style"])

    def step(rows: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels fall back to a loop under vmap
            found, losses = gradients(params, buffers, images[rows], labels[rows])
        for name, param in params.items():
            param.grad = found[name]
        optimizer.step()
        return losses.detach().clone()

    def epoch(count: int) -> list[float]:
        drawn = _batches(draw, count, labels, how["batch_size"])
        return torch.stack([step(rows) for rows in drawn.unbind(1)]).mean(0).tolist()

    return epoch


def _adamw(params: Any, how: dict[str, Any]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=how["learning_rate"], weight_decay=0.0, fused=True)


def _batches(
    draw: np.random.Generator, count: int, labels: torch.Tensor, size: int
) -> torch.Tensor:
    """Rows `[count, T, size]` of an epoch of each candidate, shuffled; on the device at once."""
    rows = np.stack([draw.permutation(len(labels)) for _ in range(count)])
    return torch.from_numpy(rows.reshape(count, -1, size)).to(labels.device)
