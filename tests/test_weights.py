"""Weights of other libraries in and out; golden results made by `golden/make_models.py`."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from fairjax.models import image_model, load_weights, mlp, save_weights
from fairjax.models.layouts import LAYOUTS
from fairjax.models.weights import _flat, _spatial
from fairjax.trees import unstack_blocks
from tests.golden import parity
from tests.golden.filling import arrays_of, noise

REFERENCES = parity.golden()
# the same names and numbers as another case that is tested
REPEATED = ("timm/vit_base_patch16_224.dino", "torchvision/resnet50", "torchvision/resnet18")
TESTED = [case for case in parity.CASES if case.key not in REPEATED]
KEY = jax.random.key(0)


def case_of(key):
    return next(case for case in parity.CASES if case.key == key)


def equal(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.mark.parametrize("case", TESTED, ids=[case.key for case in TESTED])
def test_logits_equal_those_of_the_library(case):
    assert parity.logit_error(case, REFERENCES) < 1e-4


@pytest.mark.parametrize(
    ("key", "size", "written"),
    [
        ("timm/vit_tiny_patch16_224", 224, "timm ViT"),
        ("torchvision/resnet18", 64, "torchvision or timm ResNet"),
        ("torchvision/vgg11", 64, "torchvision VGG"),
    ],
)
def test_gradients_equal_those_of_the_library(key, size, written):
    _, (params, batch_stats, _) = parity.load(case_of(key), REFERENCES)
    (layout,) = (layout for layout in LAYOUTS if layout.name == written)
    model = image_model(case_of(key).name, parity.NUM_CLASSES, image_size=size)

    @jax.jit
    def gradient(params, batch_stats, inputs, labels):
        def loss(params):
            logits, _, _ = model.apply(params, batch_stats, inputs)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        return jax.grad(loss)(params)

    gradients = gradient(params, batch_stats, parity.images(size), jnp.array([1, 3]))
    expected = json.loads(str(REFERENCES[f"{key}/gradients"]))
    ours = {}
    for name, array in _flat(unstack_blocks(gradients)).items():
        ours |= layout.write(name, np.asarray(array), _spatial(model))
    assert set(ours) == set(expected)
    # gradients that vanish in exact arithmetic (the key's bias) have only rounding errors
    floor = 1e-5 * max(norm for norm, _ in expected.values())
    for name, (norm, product) in expected.items():
        probe = noise(f"probe {name}", ours[name].shape)
        tolerance = 1e-3 * max(norm, floor)
        assert abs(np.linalg.norm(ours[name]) - norm) < tolerance, name
        assert abs(np.sum(np.float64(ours[name]) * probe) - product) < 3 * tolerance, name


@pytest.mark.parametrize("key", ["torchvision/resnet18", "torchvision/vgg11_bn"])
@pytest.mark.usefixtures("optimised")
def test_batch_statistics_after_three_steps_equal_torch(key):
    overrides = {"dropout": 0.0} if "vgg" in key else {}
    case = case_of(key)
    _, (params, batch_stats, _) = parity.load(case, REFERENCES)
    model = image_model(case.name, parity.NUM_CLASSES, image_size=64, **overrides)

    @jax.jit
    def step(params, batch_stats, inputs, labels):
        def loss(params):
            logits, _, new = model.apply(params, batch_stats, inputs, train=True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), new

        gradients, new = jax.grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 0.001 * g, params, gradients), new

    # in float32 an activation within rounding of 0 may pass its ReLU, and with it a 64th of a
    # channel's gradient: 8e-4 after three steps
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        double = lambda tree: jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tree)
        params, batch_stats, images = double((params, batch_stats, parity.images(64, 4)))
        for _ in range(3):
            params, batch_stats = step(params, batch_stats, images, jnp.array([1, 3, 0, 2]))
    compared = 0
    for name, ours in _flat(batch_stats).items():
        torch_name = name.replace("/", ".").replace(".mean", ".running_mean")
        torch_name = torch_name.replace(".var", ".running_var")
        theirs = REFERENCES[f"{key}/statistics/{torch_name}"]
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max(), err_msg=name)
        compared += 1
    assert compared == {"resnet18": 40, "vgg11_bn": 16}[case.name]


@pytest.mark.parametrize("name", ["vit_micro", "vgg_micro", "resnet18"])
def test_round_trip_is_exact(name, tmp_path):
    model = image_model(name, 3)
    params, batch_stats = arrays_of(model)
    save_weights(tmp_path / "w.safetensors", model, params, batch_stats)
    weights = load_weights(tmp_path / "w.safetensors", model, KEY)
    assert equal(weights.params, params)
    assert equal(weights.batch_stats, batch_stats)
    assert weights.notes == ()


def test_table_networks_are_written_too(tmp_path):
    model = mlp(4, 2, hidden=(3,))
    params, _ = arrays_of(model)
    save_weights(tmp_path / "w.safetensors", model, params, {})
    assert load_file(tmp_path / "w.safetensors")["hidden.0.weight"].shape == (3, 4)
    assert equal(load_weights(tmp_path / "w.safetensors", model, KEY).params, params)


def test_half_precision_is_read_as_float32(tmp_path):
    model = image_model("vit_micro", 3)
    params, _ = arrays_of(model)
    save_weights(tmp_path / "w.safetensors", model, params, {})
    halves = {k: v.astype(np.float16) for k, v in load_file(tmp_path / "w.safetensors").items()}
    save_file(halves, tmp_path / "half.safetensors")
    read = load_weights(tmp_path / "half.safetensors", model, KEY).params
    assert read["head"]["kernel"].dtype == jnp.float32
    np.testing.assert_allclose(read["head"]["kernel"], params["head"]["kernel"], atol=1e-4)


def slice_half(model, params, batch_stats, layer):
    """Keep every other channel of one layer, both by removing the others and by zeroing them."""
    channels = model.config.channel_graph[layer]
    keep = np.arange(channels.size) % 2 == 0
    sliced, zeroed = _flat(unstack_blocks(params), batch_stats), {}
    zeroed = dict(sliced)
    for slot in channels.outputs + channels.inputs:
        leaf = np.moveaxis(np.asarray(sliced[slot.path]), slot.axis, 0)
        parts = leaf.reshape(slot.outer, channels.size, slot.inner, *leaf.shape[1:])
        kept = parts[:, keep].reshape(-1, *leaf.shape[1:])
        sliced[slot.path] = jnp.asarray(np.moveaxis(kept, 0, slot.axis))
        if slot in channels.outputs:
            rest = np.where(keep.reshape(1, -1, *[1] * (parts.ndim - 2)), parts, 0)
            rest = rest.reshape(leaf.shape)
            zeroed[slot.path] = jnp.asarray(np.moveaxis(rest, 0, slot.axis))
    stats = set(_flat(batch_stats))
    return [_nest(flat, stats) for flat in (sliced, zeroed)]


def _nest(flat, stats):
    from flax.traverse_util import unflatten_dict

    return tuple(
        unflatten_dict({k: v for k, v in flat.items() if (k in stats) == wanted}, sep="/")
        for wanted in (False, True)
    )


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("vgg_micro", ["features/3", "features/13", "classifier/0"]),
        ("vgg11_bn", ["features/8"]),
        ("resnet18", ["layer1", "layer2/0/conv1", "layer3"]),
        ("resnet50", ["conv1", "layer1/1/conv2", "layer4"]),
        ("vit_micro", ["blocks/2/mlp/fc1"]),
    ],
)
def test_sliced_networks_equal_zeroed_ones_and_survive_a_file(name, layers, tmp_path):
    options = {"width": 16} if "resnet" in name else {}
    if name == "vgg11_bn":
        options = {"classifier": (16, 16)}
    model = image_model(name, 3, image_size=64, **options)
    params, batch_stats = arrays_of(model)
    inputs = parity.images(64)
    for layer in layers:
        sliced, zeroed = slice_half(model, params, batch_stats, layer)
        apply = jax.jit(lambda *args: model.apply(*args)[0])
        small = apply(*sliced, inputs)
        np.testing.assert_allclose(small, apply(*zeroed, inputs), rtol=1e-4, atol=1e-4)
        path = tmp_path / "w.safetensors"
        save_weights(path, model, *sliced)
        with safe_open(path, framework="np") as file:
            widths = json.loads(file.metadata()["fairjax"])["widths"]
        assert widths == {layer: -(-model.config.channel_graph[layer].size // 2)}
        weights = load_weights(path, model, KEY)
        assert equal(unstack_blocks(weights.params), sliced[0])
        np.testing.assert_array_equal(
            apply(unstack_blocks(weights.params), weights.batch_stats, inputs), small
        )


def test_a_head_can_be_removed_from_one_block():
    model = image_model("vit_micro", 3)
    params, _ = arrays_of(model)
    sliced, zeroed = slice_half(model, params, {}, "blocks/1/attn")
    assert sliced[0]["blocks"]["1"]["attn"]["qkv"]["kernel"].shape == (96, 3 * 64)
    inputs = parity.images(64)
    np.testing.assert_allclose(
        model.apply(*sliced, inputs)[0], model.apply(*zeroed, inputs)[0], atol=1e-5
    )


def test_a_classifier_of_another_size_is_replaced_and_said_so(tmp_path):
    old, new = image_model("vit_micro", 7), image_model("vit_micro", 3)
    params, _ = arrays_of(old)
    save_weights(tmp_path / "w.safetensors", old, params, {})
    weights = load_weights(tmp_path / "w.safetensors", new, jax.random.key(1))
    assert weights.params["head"]["kernel"].shape == (96, 3)
    assert equal(weights.params["blocks"], params["blocks"])
    assert weights.notes == ("fresh, not from the file: head/bias, head/kernel",)


def test_prefixes_and_foreign_tensors_are_seen_through(tmp_path):
    model = image_model("vit_micro", 3)
    params, _ = arrays_of(model)
    save_weights(tmp_path / "w.safetensors", model, params, {})
    tensors = {f"module.backbone.{k}": v for k, v in load_file(tmp_path / "w.safetensors").items()}
    tensors["projector.weight"] = np.zeros(3, np.float32)
    save_file(tensors, tmp_path / "other.safetensors")
    weights = load_weights(tmp_path / "other.safetensors", model, KEY)
    assert equal(weights.params, params)
    assert "projector.weight" in weights.notes[0]


def test_the_image_tower_of_clip_is_read_and_its_text_tower_ignored(tmp_path):
    name, sizes = "vit_base_patch16_clip_quickgelu_224", {"image_size": 32, "width": 24, "depth": 2}
    model = image_model(name, 3, num_heads=3, **sizes)
    params, stats = arrays_of(model)
    save_weights(tmp_path / "timm.safetensors", model, params, stats)
    renames = (
        ("blocks.", "transformer.resblocks."),
        ("patch_embed.proj.", "conv1."),
        ("norm_pre.", "ln_pre."),
        ("attn.qkv.", "attn.in_proj_"),
        ("attn.proj.", "attn.out_proj."),
        ("mlp.fc1.", "mlp.c_fc."),
        ("mlp.fc2.", "mlp.c_proj."),
        ("cls_token", "class_embedding"),
        ("pos_embed", "positional_embedding"),
    )
    tensors = {"visual.proj": np.ones((24, 8), np.float32), "logit_scale": np.ones((), np.float32)}
    tensors["transformer.resblocks.0.attn.in_proj_weight"] = np.ones((24, 8), np.float32)
    for key, tensor in load_file(tmp_path / "timm.safetensors").items():
        for ours, theirs in renames:
            key = key.replace(ours, theirs)
        key = key.replace("norm.", "ln_post.") if key.startswith("norm.") else key
        key = key.replace(".norm", ".ln_")
        if not key.startswith("head."):
            tensors[f"visual.{key}"] = tensor.squeeze()
    save_file(tensors, tmp_path / "clip.safetensors")
    weights = load_weights(tmp_path / "clip.safetensors", model, KEY)
    body = [{k: v for k, v in tree.items() if k != "head"} for tree in (weights.params, params)]
    assert equal(*body)
    assert any("outside 'visual.'" in note for note in weights.notes)
    assert any("head/kernel" in note for note in weights.notes)


def damaged(tmp_path, change):
    model = image_model("vit_micro", 3)
    save_weights(tmp_path / "w.safetensors", model, *arrays_of(model))
    tensors = load_file(tmp_path / "w.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "bad.safetensors")
    return model, tmp_path / "bad.safetensors"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("blocks.3.mlp.fc1.bias"), "1 missing: blocks.3.mlp.fc1.bias"),
        (lambda t: t.update(extra=np.zeros(2)), "1 unexpected: extra"),
        (
            lambda t: t.update({"norm.bias": np.zeros(5)}),
            r"wrong shape: norm.bias \(5,\), expected \(96,\)",
        ),
        (lambda t: [t.pop(k) for k in list(t) if "blocks" in k], "unknown layout"),
    ],
)
def test_files_that_do_not_fit_are_explained(change, message, tmp_path):
    model, path = damaged(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        load_weights(path, model, KEY)


def test_weights_of_another_family_are_refused(tmp_path):
    _, path = damaged(tmp_path, lambda tensors: None)
    with pytest.raises(ValueError, match="holds a vit network .*the model is resnet"):
        load_weights(path, image_model("resnet18", 3), KEY)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pth", ".h5"])
def test_files_that_cannot_be_read_are_named(suffix, tmp_path):
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(b"not a weight file at all")
    with pytest.raises(ValueError, match=f"broken{suffix}: (truncated|damaged|unknown kind)"):
        load_weights(path, image_model("vit_micro", 3), KEY)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.npz"):
        load_weights(tmp_path / "nowhere.npz", image_model("vit_micro", 3), KEY)


def test_torch_reads_what_is_written_and_agrees(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file as load_torch

    from experiments.baselines.torch_models import VisionTransformer

    model = image_model("vit_micro", 3)
    params, _ = arrays_of(model)
    save_weights(tmp_path / "w.safetensors", model, params, {})
    twin = VisionTransformer(3, image_size=64, patch_size=8, width=96, depth=6, num_heads=3)
    twin.load_state_dict(load_torch(tmp_path / "w.safetensors"))
    torch.save({"state_dict": twin.state_dict()}, tmp_path / "w.pth")
    assert equal(load_weights(tmp_path / "w.pth", model, KEY).params, params)
    inputs = parity.images(64)
    with torch.no_grad():
        theirs = twin(torch.from_numpy(np.array(inputs)).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(model.apply(params, {}, inputs)[0], theirs, atol=1e-5)
