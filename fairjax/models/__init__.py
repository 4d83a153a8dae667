"""Networks as `Model(init, apply)`; the only package that imports flax."""

from typing import Any

from fairjax.models.channels import Channels, Slot
from fairjax.models.mlp import logistic_regression, mlp
from fairjax.models.model import Model
from fairjax.models.resnet import ResNetConfig, resnet, resnet_config
from fairjax.models.vgg import VGGConfig, vgg, vgg_config
from fairjax.models.vit import ViTConfig, vit, vit_config
from fairjax.models.weights import Weights, load_weights, save_weights

__all__ = [
    "Channels",
    "Model",
    "ResNetConfig",
    "Slot",
    "VGGConfig",
    "ViTConfig",
    "Weights",
    "image_model",
    "load_weights",
    "logistic_regression",
    "mlp",
    "resnet",
    "save_weights",
    "vgg",
    "vit",
]


def image_model(name: str, num_classes: int, **overrides: Any) -> Model:
    """An image network by the name that timm or torchvision give it.

    Args:
      name: `vit_{tiny,small,base,large,huge}_patch{8,14,16,32}_SIZE`, with `_clip` or
        `_clip_quickgelu` before the size and a timm tag (`.dino`, `.mae`, ...) behind it;
        `resnet18`, `resnet34`, `resnet50`; `vgg11`, `vgg11_bn`; for 64 px `vit_micro`, `vgg_micro`.
      num_classes: K, at least 2.
      **overrides: fields of `ViTConfig`, `ResNetConfig` or `VGGConfig`, e.g. `image_size=64`.

    Returns:
      A `Model` with fresh `init`; see `vit`, `resnet` and `vgg` for names and intermediates.

    Raises:
      ValueError: unknown name, or sizes that do not fit together.
    """
    for make_config, make in ((vit_config, vit), (resnet_config, resnet), (vgg_config, vgg)):
        config = make_config(name, num_classes, **overrides)
        if config is not None:
            return make(config)  # pyright: ignore[reportArgumentType]
    raise ValueError(
        f"unknown model {name!r}; known are vit_SIZE_patchN_PIXELS "
        "(tiny, small, base, large, huge; 8, 14, 16, 32; optionally _clip or _clip_quickgelu "
        "before the pixels), vit_micro, resnet18, resnet34, resnet50, vgg11, vgg11_bn, vgg_micro"
    )
