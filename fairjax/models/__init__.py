"""Networks as `Model(init, apply)`; the only package that imports flax."""

import json
from pathlib import Path
from typing import Any

import jax
import safetensors

from fairjax.models import resnet, vgg, vit
from fairjax.models.channels import Channels, Slot
from fairjax.models.export import load_inference, save_inference
from fairjax.models.layers import gate_kernels
from fairjax.models.mlp import logistic_regression, mlp
from fairjax.models.model import Model
from fairjax.models.preprocess import image_preprocess
from fairjax.models.resnet import ResNetConfig
from fairjax.models.vgg import VGGConfig
from fairjax.models.vit import ViTConfig
from fairjax.models.weights import Weights, load_weights, save_weights

__all__ = [
    "Channels",
    "Model",
    "ResNetConfig",
    "Slot",
    "VGGConfig",
    "ViTConfig",
    "Weights",
    "gate_kernels",
    "image_model",
    "image_preprocess",
    "load_inference",
    "load_pretrained",
    "load_weights",
    "logistic_regression",
    "mlp",
    "save_inference",
    "save_weights",
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
      A `Model`; `fairjax.models.vit.vit`, `.resnet.resnet` and `.vgg.vgg` describe its parameters
      and intermediates.

    Raises:
      ValueError: unknown name, or sizes that do not fit together.
    """
    if config := vit.vit_config(name, num_classes, **overrides):
        return vit.vit(config)
    if config := resnet.resnet_config(name, num_classes, **overrides):
        return resnet.resnet(config)
    if config := vgg.vgg_config(name, num_classes, **overrides):
        return vgg.vgg(config)
    raise ValueError(
        f"unknown model {name!r}; known are vit_SIZE_patchN_PIXELS "
        "(tiny, small, base, large, huge; 8, 14, 16, 32; optionally _clip or _clip_quickgelu "
        "before the pixels), vit_micro, resnet18, resnet34, resnet50, vgg11, vgg11_bn, vgg_micro"
    )


def load_pretrained(
    name: str, num_classes: int | None, key: jax.Array, **overrides: Any
) -> tuple[Model, Weights]:
    """A network that ships with fairjax, its weights trained on synthetic pictures of skin lesions.

    For demos and tests: the weights know nothing of real images. `pretrained.md`, beside them, says
    how they were made and what they reach.

    Args:
      name: `vit_micro` or `vgg_micro`.
      num_classes: K, of a fresh classifier; None keeps the 3 + 4 + 3 logits of the pre-training
        tasks (shape, colours, border).
      key: typed PRNG key for the fresh classifier.
      **overrides: fields of the configuration, e.g. `image_size=96`; see `image_model`.

    Returns:
      `(model, weights)`. Inputs are normalised by the configuration's `mean` and `std`.

    Raises:
      ValueError: unknown name, or overrides that do not fit the weights.
    """
    folder = Path(__file__).parent
    shipped = sorted(path.stem for path in folder.glob("*.safetensors"))
    if name not in shipped:
        raise ValueError(f"no weights ship for {name!r}; they do for {', '.join(shipped)}")
    path = folder / f"{name}.safetensors"
    if num_classes is None:
        with safetensors.safe_open(path, framework="np") as file:
            num_logits = json.loads(file.metadata()["fairjax"])["config"]["num_classes"]
        model = image_model(name, num_logits, **overrides)
        return model, load_weights(path, model, key)
    model = image_model(name, num_classes, **overrides)
    weights = load_weights(path, model, key)
    # also where K happens to be the number of logits in the file
    fresh = jax.jit(lambda key: model.init(key)[0]["head"])(key)
    return model, weights._replace(params={**weights.params, "head": fresh})
