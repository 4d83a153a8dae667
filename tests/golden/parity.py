"""Networks with the numbers that reference libraries had, and the logits these gave."""

import json
import pathlib
import tempfile
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from fairjax.models import Model, Weights, image_model, load_weights
from tests.golden.filling import filled, noise

GOLDEN = ("models.npz", "layouts.npz")
NUM_CLASSES = 5


class Case(NamedTuple):
    """One network as one library has it, with what differs from the network of that name."""

    source: str
    name: str
    overrides: dict = {}
    variant: str = ""

    @property
    def key(self) -> str:
        return f"{self.source}/{self.name}{self.variant and ' ' + self.variant}"


CASES = (
    Case("timm", "vit_tiny_patch16_224"),
    Case("timm", "vit_base_patch16_224"),
    Case("timm", "vit_base_patch16_clip_224"),
    Case("timm", "vit_base_patch16_clip_quickgelu_224", {"depth": 2}),
    Case("timm", "vit_base_patch16_224.dino"),
    Case("timm", "vit_base_patch16_224.mae"),
    Case("timm", "vit_huge_patch14_224", {"depth": 2}),
    Case("timm", "vit_tiny_patch16_224", {"depth": 2, "pool": "mean"}, "mean"),
    Case("timm", "vit_tiny_patch16_224", {"depth": 2, "image_size": 96}, "at 96"),
    Case("timm", "resnet18"),
    Case("timm", "resnet50"),
    Case("timm", "vgg11"),
    Case("timm", "vgg11_bn"),
    Case("torchvision", "resnet18"),
    Case("torchvision", "resnet34"),
    Case("torchvision", "resnet50"),
    Case("torchvision", "vgg11"),
    Case("torchvision", "vgg11_bn"),
    Case("efficientnet_lite_pytorch", "efficientnet_lite0"),
    Case("transformers", "vit_tiny_patch16_224", {"norm_eps": 1e-12}),
    Case("transformers_memory", "vit_tiny_patch16_224", {"norm_eps": 1e-12}),
    Case("transformers", "resnet18"),
    Case("transformers", "resnet50"),
    Case("vision_transformer", "vit_tiny_patch16_224", {"depth": 2}),
    Case("big_vision", "vit_tiny_patch16_224", {"depth": 2}),
)
_SMALL = {"depth": 2, "width": 48, "num_heads": 3, "image_size": 64}
_DINOV2 = _SMALL | {"image_size": 56}
SMALL_CASES = (
    Case("timm", "deit_tiny_patch16_224", _SMALL),
    Case("timm", "deit3_small_patch16_224", _SMALL),
    Case("timm", "vit_small_patch14_dinov2", _DINOV2),
    Case("timm", "vit_small_patch14_reg4_dinov2", _DINOV2),
    Case("timm", "vit_small_patch14_reg4_dinov2", _DINOV2 | {"image_size": 84}, "at 84"),
    Case("timm", "deit_tiny_distilled_patch16_224", _SMALL),
    Case("timm", "deit_tiny_distilled_patch16_224", _SMALL | {"image_size": 96}, "at 96"),
    Case("timm", "vit_base_patch16_siglip_224", _SMALL),
    Case("timm", "vit_base_patch32_siglip_256", _SMALL),
    Case("timm", "resnet50d", {"depths": (1, 1, 1, 1), "image_size": 64}),
    Case("timm", "resnet50d", {"depths": (1, 1, 1, 1), "image_size": 72}, "at 72"),
    Case("torchvision", "vit_b_16", _SMALL),
    Case("torchvision", "wide_resnet50_2", {"depths": (1, 1, 1, 1), "image_size": 64}),
    Case("transformers", "deit_tiny_distilled_patch16_224", _SMALL | {"norm_eps": 1e-12}),
    Case("transformers", "vit_small_patch14_dinov2", _DINOV2),
    Case("transformers", "vit_small_patch14_reg4_dinov2", _DINOV2),
    Case("transformers", "vit_base_patch16_siglip_224", _SMALL | {"tanh_gelu": True}),
    Case("transformers", "vit_base_patch16_clip_quickgelu_224", _SMALL),
)
"""Of `make_layouts.py`: small, for what differs in names and tokens and not in size."""


def golden() -> dict[str, np.ndarray]:
    """Everything the reference libraries computed."""
    found: dict[str, np.ndarray] = {}
    for name in GOLDEN:
        with np.load(pathlib.Path(__file__).parent / name) as file:
            found |= dict(file)
    return found


def images(size: int, batch: int = 2) -> jax.Array:
    """The images the reference libraries saw, `[batch, size, size, 3]`."""
    return jnp.asarray(noise("images", (batch, size, size, 3)))


def write_like_library(case: Case, references: dict[str, np.ndarray], folder: str) -> pathlib.Path:
    """The weight file that library would write, with numbers that depend on the names only."""
    shapes = json.loads(str(references[f"{case.key}/shapes"]))
    tensors = {name: filled(name, tuple(shape)) for name, shape in shapes.items()}
    if case.source in ("vision_transformer", "big_vision"):
        path = pathlib.Path(folder) / "weights.npz"
        np.savez(path, **tensors)  # pyright: ignore[reportArgumentType]
    else:
        path = pathlib.Path(folder) / "weights.safetensors"
        save_file(tensors, path)
    return path


def load(case: Case, references: dict[str, np.ndarray]) -> tuple[Model, Weights]:
    """The network of a case with that library's numbers."""
    model = image_model(case.name, NUM_CLASSES, **case.overrides)
    with tempfile.TemporaryDirectory() as folder:
        path = write_like_library(case, references, folder)
        return model, load_weights(path, model, jax.random.key(0))


def logit_error(case: Case, references: dict[str, np.ndarray]) -> float:
    """Largest difference of any logit, relative to the largest logit."""
    model, weights = load(case, references)
    inputs = images(model.config.image_size)
    logits, _, _ = jax.jit(model.apply)(weights.params, weights.batch_stats, inputs)
    expected = references[f"{case.key}/logits"]
    return float(np.max(np.abs(logits - expected)) / np.max(np.abs(expected)))
