"""Weights of other libraries in and out; golden results made by `golden/make_models.py`."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden.filling import filled, noise
from safetensors.numpy import load_file, save_file

from fairjax.models import image_model, load_weights, save_weights

GOLDEN = np.load(pathlib.Path(__file__).parent / "golden" / "models.npz")
K = 5


def shapes_in(case):
    return {name: tuple(shape) for name, shape in json.loads(str(GOLDEN[f"{case}/shapes"])).items()}


def write_like(case, path):
    """The file the other library would write, with numbers that depend on the names only."""
    tensors = {name: filled(name, shape) for name, shape in shapes_in(case).items()}
    if path.suffix == ".npz":
        np.savez(path, **tensors)
    else:
        save_file(tensors, path)
    return path


def relative_error(ours, theirs):
    return np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs))


def images(size, batch=2):
    return jnp.asarray(noise("images", (batch, size, size, 3)))


CASES = [
    ("timm/vit_tiny_patch16_224", {}),
    ("timm/vit_base_patch16_224", {}),
    ("timm/vit_base_patch16_clip_224", {}),
    ("timm/vit_base_patch16_224.dino", {}),
    ("timm/vit_base_patch16_224.mae", {}),
    ("timm/vit_huge_patch14_224", {"depth": 2}),
    ("timm/vit_base_patch16_clip_quickgelu_224", {"depth": 2}),
    ("timm/vit_tiny_patch16_224 mean", {"depth": 2, "pool": "mean"}),
    ("timm/vit_tiny_patch16_224 at 96", {"depth": 2, "image_size": 96}),
    ("timm/resnet18", {}),
    ("timm/resnet50", {}),
    ("timm/vgg11", {}),
    ("timm/vgg11_bn", {}),
    ("torchvision/resnet18", {}),
    ("torchvision/resnet34", {}),
    ("torchvision/resnet50", {}),
    ("torchvision/vgg11", {}),
    ("torchvision/vgg11_bn", {}),
    ("transformers/vit_tiny_patch16_224", {"norm_eps": 1e-12}),
    ("transformers_memory/vit_tiny_patch16_224", {"norm_eps": 1e-12}),
    ("transformers/resnet18", {}),
    ("transformers/resnet50", {}),
    ("vision_transformer/vit_tiny_patch16_224", {"depth": 2}),
    ("big_vision/vit_tiny_patch16_224", {"depth": 2}),
]


@pytest.mark.parametrize(("case", "overrides"), CASES, ids=[case for case, _ in CASES])
def test_logits_equal_those_of_the_library(case, overrides, tmp_path):
    source, name = case.split("/")
    suffix = ".npz" if source in ("vision_transformer", "big_vision") else ".safetensors"
    model = image_model(name.split(" ")[0], K, **overrides)
    path = write_like(case, tmp_path / f"weights{suffix}")
    params, batch_stats, notes = load_weights(path, model, jax.random.key(0))
    logits, _, _ = jax.jit(model.apply)(params, batch_stats, images(model.config.image_size))
    assert relative_error(logits, GOLDEN[f"{case}/logits"]) < 1e-4
    assert len(notes) == ("at 96" in name)
