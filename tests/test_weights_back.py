"""Weights on their way back: other libraries' layouts, pruned files in PyTorch and out of it."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fairjax.models import image_model, load_weights, save_weights
from fairjax.models.torch_card import OPEN_IN_TORCH
from tests.golden import parity
from tests.golden.filling import arrays_of
from tests.test_weights import slice_half

REFERENCES = parity.golden()
KEY = jax.random.key(0)


def same(a, b):
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.mark.parametrize(
    ("key", "layout"),
    [
        ("timm/vgg11_bn", "timm VGG"),
        ("transformers/vit_tiny_patch16_224", "transformers ViT"),
        ("transformers/resnet18", "transformers ResNet"),
        ("torchvision/vit_b_16", "torchvision ViT"),
        ("transformers/vit_small_patch14_dinov2", "transformers DINOv2"),
        ("transformers/vit_base_patch16_siglip_224", "transformers SigLIP"),
        ("transformers/vit_base_patch16_clip_quickgelu_224", "transformers CLIP"),
        ("timm/vit_base_patch16_siglip_224", None),
    ],
)
def test_every_tensor_goes_back_to_the_layout_it_came_from(key, layout, tmp_path):
    case = next(c for c in (*parity.CASES, *parity.SMALL_CASES) if c.key == key)
    small = {"classifier": (8, 8)} if "vgg" in key else {}
    shapes = json.loads(str(REFERENCES[f"{key}/shapes"]))
    model = image_model(case.name, parity.NUM_CLASSES, **case.overrides | small)
    params, stats = arrays_of(model)
    save_weights(tmp_path / "w.safetensors", model, params, stats, layout=layout)
    written = load_file(tmp_path / "w.safetensors")
    absent = {name for name in shapes if name.endswith(("num_batches_tracked", "mask_token"))}
    assert written.keys() == shapes.keys() - absent
    for name, tensor in written.items():
        if "pre_logits" not in name and "head" not in name:  # made smaller above
            assert list(tensor.shape) == shapes[name], name
    if "vgg" in key:
        assert written["pre_logits.fc1.weight"].shape == (8, 512, 7, 7)
        assert written["pre_logits.fc2.weight"].shape == (8, 8, 1, 1)
    weights = load_weights(tmp_path / "w.safetensors", model, KEY)
    assert same(weights.params, params) and same(weights.batch_stats, stats)


def test_a_layout_of_another_network_is_refused_with_those_there_are(tmp_path):
    model = image_model("vgg_micro", 3)
    with pytest.raises(ValueError, match="no layout 'timm ViT' .* 'timm VGG', 'torchvision VGG'"):
        save_weights(tmp_path / "w.safetensors", model, *arrays_of(model), layout="timm ViT")


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("vgg_micro", "features/13"),
        ("vgg_micro", "classifier/0"),
        ("resnet18", "layer2"),
        ("vit_micro", "blocks/2/mlp/fc1"),
    ],
)
def test_a_pruned_file_without_its_header_is_read_by_its_shapes(name, layer, tmp_path):
    options = {"image_size": 64} | ({"width": 8} if name == "resnet18" else {})
    model = image_model(name, 3, **options)
    sliced, _ = slice_half(model, *arrays_of(model), layer)
    path = tmp_path / "w.safetensors"
    save_weights(path, model, *sliced)
    with_header = load_weights(path, model, KEY)
    save_file(load_file(path), path)  # as torch's own save_file leaves it
    weights = load_weights(path, model, KEY)
    assert same(weights.params, with_header.params)
    left = model.config.channel_graph[layer].size // 2
    assert weights.notes == (f"{layer} has {left} channels left",)


def test_a_layer_that_is_cut_in_one_place_only_is_refused(tmp_path):
    model = image_model("vgg_micro", 3)
    save_weights(tmp_path / "w.safetensors", model, *arrays_of(model))
    tensors = load_file(tmp_path / "w.safetensors")
    tensors["features.3.weight"] = tensors["features.3.weight"][:10].copy()
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"wrong shape: features.3.bias \(32,\), expected \(10,\)"):
        load_weights(tmp_path / "w.safetensors", model, KEY)


def opened():
    space = {}
    exec(OPEN_IN_TORCH, space)
    return space["open_pruned"]


@pytest.mark.parametrize(
    ("name", "layers"),
    [("resnet18", ["layer3"]), ("vit_micro", ["blocks/2/mlp/fc1"])],
)
def test_the_helper_of_the_model_card_opens_a_pruned_network_in_torch(name, layers, tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    from experiments.baselines.torch_models import ResNet18, VisionTransformer

    def twin():
        if name == "resnet18":
            return ResNet18(3).eval()
        return VisionTransformer(
            3, image_size=64, patch_size=8, width=96, depth=6, num_heads=3
        ).eval()

    model = image_model(name, 3, image_size=64)
    path = tmp_path / "w.safetensors"
    inputs = parity.images(64)
    for layer in layers:
        sliced, _ = slice_half(model, *arrays_of(model), layer)
        save_weights(path, model, *sliced)
        network = opened()(twin(), path)
        with torch.no_grad():
            theirs = network(torch.from_numpy(np.array(inputs)).permute(0, 3, 1, 2)).numpy()
        ours = model.apply(*sliced, inputs)[0]
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
        # trained further there and saved as torch saves: the header is gone
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(0.9)
        save_torch(network.state_dict(), path)
        again = load_weights(path, model, KEY)
        assert any(note.startswith(f"{layer} has ") for note in again.notes)
        with torch.no_grad():
            theirs = network(torch.from_numpy(np.array(inputs)).permute(0, 3, 1, 2)).numpy()
        ours = model.apply(again.params, again.batch_stats, inputs)[0]
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
