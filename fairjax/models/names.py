"""Configurations by the names that timm and torchvision use, and what names say of weight files."""

import re
from typing import Any

from fairjax.models.efficientnet import EfficientNetConfig, efficientnet_config
from fairjax.models.preprocess import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD
from fairjax.models.resnet import ResNetConfig, resnet_config
from fairjax.models.vgg import VGGConfig, vgg_config
from fairjax.models.vit import ViTConfig
from fairjax.models.vit_names import vit_config

Config = ViTConfig | ResNetConfig | VGGConfig | EfficientNetConfig

_CONFIGS = (vit_config, resnet_config, vgg_config, efficientnet_config)
KNOWN = (
    "vit_SIZE_patchN_PIXELS (tiny, small, base, large, huge; 8, 14, 16, 32; optionally _clip or "
    "_clip_quickgelu before the pixels)",
    "vit_SIZE_patchN_siglip_PIXELS (base, large, so400m; 14, 16, 32)",
    "vit_SIZE_patch14_dinov2 and vit_SIZE_patch14_reg4_dinov2 (small, base, large)",
    *("deit_SIZE_patch16_PIXELS", "deit_SIZE_distilled_patch16_PIXELS", "deit3_SIZE_patch16_224"),
    *("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14", "vit_micro"),
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnet18d", "resnet34d", "resnet50d", "resnet101d", "resnet152d"),
    *("wide_resnet50_2", "wide_resnet101_2"),
    *("vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"),
    *("vgg_micro", "efficientnet_lite0"),
)
_NORMALISATIONS = (
    (r"clip", CLIP_MEAN, CLIP_STD),
    (r"deit\d*|dino(v2)?|mae", IMAGENET_MEAN, IMAGENET_STD),
)
"""Words in the name of a file, and what its network was trained with."""
_OTHERS = re.compile(r"resnet(aa|blur)\w*|resnet\d+_clip\w*|vit_\w*siglip_gap\w*")
"""timm's names of networks that have the tensors of one of ours and compute something else."""


def config_of(name: str, num_classes: int, **overrides: Any) -> Config:
    """The configuration of an image network; see `fairjax.models.factory.image_model`.

    Raises:
      ValueError: unknown name, or sizes that do not fit together.
    """
    for make_config in _CONFIGS:
        if config := make_config(name, num_classes, **overrides):
            return config
    raise ValueError(
        f"unknown model {name!r}; known are {', '.join(KNOWN)}, and a tag such as .mae behind it"
    )


def other_network(stem: str) -> str | None:
    """The network in the name of a file, where its tensors would fit one of ours by accident.

    >>> other_network("resnetaa50_a1h-4cf422b3")
    'resnetaa50_a1h'
    """
    match = _OTHERS.match(stem.lower())
    return match.group() if match else None


def normalisation_of(stem: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and deviation of the images that a network was trained with, by the name of its file."""
    words = re.split(r"[^a-z0-9]+", stem.lower())
    for pattern, mean, std in _NORMALISATIONS:
        if any(re.fullmatch(pattern, word) for word in words):
            return mean, std
    return None
