"""Sensitive-channel pruning in PyTorch, for timing and checking fairjax against.

    snnl_loop       how the paper's code works: one channel after another from Python
    snnl_batched    the same numbers made fast: batched products, exponentials in place
    plan_logits     masked networks one after another, whole or from the pruned layer on

Written from the paper's definitions (Kong et al., MICCAI 2024).
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from experiments.baselines.torch_models import VGG11


def snnl_loop(features: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """Published soft nearest-neighbour loss of each channel of `[B, C, H, W]`, `[C]`."""
    same = (group[:, None] == group[None]).float()
    others = 1 - torch.eye(len(group), device=group.device)
    losses = []
    for channel in features.split(1, dim=1):
        unit = F.normalize(channel.flatten(1), dim=1)
        near = torch.exp(unit @ unit.T - 1)
        losses.append(-torch.log(((near * same).sum(1) + 1e-9) / (near * others).sum(1)).mean())
    return torch.stack(losses)


def snnl_batched(
    features: torch.Tensor,
    group: torch.Tensor,
    *,
    chunk_size: int = 16,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """The same, `chunk_size` channels at a time; that many stay in the cache.

    `dtype` is that of the products; PyTorch rounds what comes out to it, too.
    """
    members = F.one_hot(group, int(group.max()) + 1).float()
    losses = []
    for channels in features.split(chunk_size, dim=1):
        vectors = channels.transpose(0, 1).flatten(2)  # a view, scaled after the product
        scale = torch.linalg.vector_norm(vectors, dim=2).clamp_min(1e-12).reciprocal()
        vectors = vectors.to(dtype)
        near = torch.bmm(vectors, vectors.transpose(1, 2)).float()
        near.mul_(scale[:, :, None]).mul_(scale[:, None]).sub_(1).exp_()
        by_group = near @ members
        others = by_group.sum(2) - torch.diagonal(near, dim1=1, dim2=2)
        same = (by_group * members).sum(2)
        losses.append((others.log() - same.log()).mean(1))
    return torch.cat(losses)


def load_vgg11(path: Path, **sizes) -> VGG11:
    """A VGG-11 with the weights of a .safetensors file, ready to evaluate."""
    network = VGG11(**sizes)
    network.load_state_dict(load_file(path))
    return network.eval()


@torch.inference_mode()
def plan_logits(
    network: VGG11, layer: int, keep: torch.Tensor, images: torch.Tensor, *, share_prefix: bool
) -> torch.Tensor:
    """Logits `[P, N, K]` of P networks whose convolution `features[layer]` is masked.

    Args:
      network: left as it was.
      layer: position of the convolution in `features`.
      keep: bool `[P, C]`; pruned channels lose weight and bias.
      images: `[N, 3, S, S]`.
      share_prefix: run what lies below the convolution once instead of once per plan.
    """
    conv: Any = network.features[layer]
    weight, bias = conv.weight.clone(), conv.bias.clone()
    below, above = network.features[:layer], network.features[layer:]
    shared = below(images) if share_prefix else None
    logits = []
    for mask in keep.float():
        conv.weight.copy_(weight * mask[:, None, None, None])
        conv.bias.copy_(bias * mask)
        maps = above(below(images) if shared is None else shared)
        logits.append(network.classifier(network.avgpool(maps).flatten(1)))
    conv.weight.copy_(weight)
    conv.bias.copy_(bias)
    return torch.stack(logits)
