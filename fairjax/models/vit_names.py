"""The vision transformers that timm and torchvision have names for."""

import re
from typing import Any

from fairjax.models.preprocess import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD
from fairjax.models.vit import ViTConfig

_SIZES = {
    "tiny": {"width": 192, "depth": 12, "num_heads": 3},
    "small": {"width": 384, "depth": 12, "num_heads": 6},
    "base": {"width": 768, "depth": 12, "num_heads": 12},
    "large": {"width": 1024, "depth": 24, "num_heads": 16},
    "huge": {"width": 1280, "depth": 32, "num_heads": 16},
    "so400m": {"width": 1152, "depth": 27, "num_heads": 16, "mlp_ratio": 4304 / 1152},
}
_IMAGENET = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
_VIT = r"vit_(tiny|small|base|large|huge)_patch(8|14|16|32)(_clip(_quickgelu)?)?_(\d+)"
_DINOV2 = r"vit_(small|base|large)_patch14(_reg4)?_dinov2"
_DEIT = r"deit(3)?_(tiny|small|base|large|huge)(_distilled)?_patch(14|16)_(\d+)"
_SIGLIP = r"vit_(base|large|so400m)_patch(14|16|32)_siglip_(\d+)"
_TORCHVISION = r"vit_(b|l|h)_(14|16|32)"


def vit_config(name: str, num_classes: int, **overrides: Any) -> ViTConfig | None:
    """The configuration behind a name such as `vit_base_patch16_clip_224`, or None.

    `vit_micro` is fairjax's own: patch 8 at 64 px, 6 blocks of width 96. Whatever follows a dot
    names a set of weights; `.dino` and `.mae` were trained with ImageNet's mean and deviation.
    """
    name, _, tag = name.partition(".")
    values = _values(name, tag)
    return None if values is None else ViTConfig(num_classes=num_classes, **(values | overrides))


def _values(name: str, tag: str) -> dict[str, Any] | None:
    """What a name says of the configuration, None if it is none of a transformer."""
    if name == "vit_micro":
        return {"image_size": 64, "patch_size": 8, "width": 96, "depth": 6, "num_heads": 3}
    if match := re.fullmatch(_VIT, name):
        size, patch, clip, quick, image = match.groups()
        values = {**_SIZES[size], "patch_size": int(patch), "image_size": int(image)}
        if clip:
            values |= {"norm_pre": True, "norm_eps": 1e-5, "quick_gelu": bool(quick)}
            return values | {"mean": CLIP_MEAN, "std": CLIP_STD}
        return values | (_IMAGENET if tag in ("dino", "mae") else {})
    if match := re.fullmatch(_SIGLIP, name):
        size, patch, image = match.groups()
        values = {**_SIZES[size], "patch_size": int(patch), "image_size": int(image)}
        later = patch == "32" or (size == "so400m" and patch == "16")  # came with SigLIP 2
        return values | {"pool": "map", "tanh_gelu": later}
    if match := re.fullmatch(_DINOV2, name):
        size, registers = match.groups()
        values = {**_SIZES[size], "patch_size": 14, "image_size": 518, "layer_scale": True}
        values |= {"num_registers": 4, "class_position": False} if registers else {}
        return values | _IMAGENET
    if match := re.fullmatch(_DEIT, name):
        third, size, distilled, patch, image = match.groups()
        values = {**_SIZES[size], "patch_size": int(patch), "image_size": int(image)}
        values |= {"layer_scale": True, "class_position": False} if third else {}
        return values | {"distilled": bool(distilled)} | _IMAGENET
    if match := re.fullmatch(_TORCHVISION, name):
        size = {"b": "base", "l": "large", "h": "huge"}[match[1]]
        return {**_SIZES[size], "patch_size": int(match[2]), "image_size": 224} | _IMAGENET
    return None
