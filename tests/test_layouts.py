"""Layouts of further libraries: logits as theirs, sizes as theirs, files back as theirs."""

import json
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fairjax.models import image_model, load_pretrained, load_weights, save_weights
from tests.golden import parity
from tests.golden.filling import arrays_of, filled
from tests.test_weights import slice_half

REFERENCES = parity.golden()
KEY = jax.random.key(0)
SMALL: dict[str, Any] = {"depth": 1, "width": 24, "num_heads": 3}


@pytest.mark.parametrize("case", parity.SMALL_CASES, ids=[c.key for c in parity.SMALL_CASES])
def test_logits_equal_those_of_the_library(case):
    assert parity.logit_error(case, REFERENCES) < 1e-4


@pytest.mark.parametrize(("name", "count"), json.loads(str(REFERENCES["counts"])).items())
def test_networks_have_as_many_parameters_as_the_librarys(name, count):
    params, _ = jax.eval_shape(image_model(name, parity.NUM_CLASSES).init, KEY)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


def test_a_tag_names_weights_and_not_another_network():
    for name in ("resnet50.a1_in1k", "vgg16_bn.tv_in1k", "wide_resnet50_2.tv2_in1k"):
        assert image_model(name, 2).config == image_model(name.partition(".")[0], 2).config
    with pytest.raises(ValueError, match="unknown model 'resnetaa50'; known are .*wide_resnet50_2"):
        image_model("resnetaa50", 2)


TIMM = [
    case
    for case in parity.SMALL_CASES
    if case.source == "timm" and not case.variant and "resnet" not in case.name
]


@pytest.mark.parametrize("case", TIMM, ids=[case.key for case in TIMM])
def test_what_timm_wrote_is_written_back_bit_by_bit(case, tmp_path):
    model, weights = parity.load(case, REFERENCES)
    save_weights(tmp_path / "w.safetensors", model, weights.params, weights.batch_stats)
    shapes = json.loads(str(REFERENCES[f"{case.key}/shapes"]))
    written = load_file(tmp_path / "w.safetensors")
    assert {name: list(tensor.shape) for name, tensor in written.items()} == shapes
    for name, tensor in written.items():
        if not name.endswith("head.bias") and "head_dist" not in name:
            np.testing.assert_array_equal(tensor, filled(name, tensor.shape), err_msg=name)
    again = load_weights(tmp_path / "w.safetensors", model, KEY)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(again.params), jax.tree.leaves(weights.params), strict=True)
    )


def test_a_distilled_network_keeps_the_mean_of_its_two_classifiers(tmp_path):
    case = next(c for c in parity.SMALL_CASES if c.key == "timm/deit_tiny_distilled_patch16_224")
    model, weights = parity.load(case, REFERENCES)
    save_weights(tmp_path / "w.safetensors", model, weights.params, {})
    tensors = load_file(tmp_path / "w.safetensors")
    theirs = filled("head.bias", (5,)) + filled("head_dist.bias", (5,))
    np.testing.assert_allclose(tensors["head.bias"] + tensors["head_dist.bias"], theirs, atol=1e-6)


def test_a_distilled_file_does_not_pass_for_a_plain_one(tmp_path):
    model = image_model("deit_tiny_distilled_patch16_224", 3, image_size=64, **SMALL)
    save_weights(tmp_path / "w.safetensors", model, *arrays_of(model))
    tensors = load_file(tmp_path / "w.safetensors")
    save_file(tensors, tmp_path / "plain.safetensors")
    plain = image_model("deit_tiny_patch16_224", 3, image_size=96, **SMALL)
    with pytest.raises(ValueError, match="18 tokens are not 1 .* but 2 .* 4..2"):
        load_weights(tmp_path / "plain.safetensors", plain, KEY)


@pytest.mark.parametrize(
    ("name", "renames"),
    [
        ("vit_small_patch14_reg4_dinov2", {"reg_token": "register_tokens"}),
        ("deit3_small_patch16_224", {".ls1.gamma": ".gamma_1", ".ls2.gamma": ".gamma_2"}),
    ],
)
def test_names_of_the_authors_own_files_are_known(name, renames, tmp_path):
    model = image_model(name, 3, **SMALL)
    params, _ = arrays_of(model)
    save_weights(tmp_path / "w.safetensors", model, params, {})
    tensors = load_file(tmp_path / "w.safetensors")
    for ours, theirs in renames.items():
        tensors = {key.replace(ours, theirs): tensor for key, tensor in tensors.items()}
    save_file(tensors, tmp_path / "theirs.safetensors")
    found = load_weights(tmp_path / "theirs.safetensors", model, KEY)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(params), strict=True)
    )


def test_transformers_configs_of_the_new_kinds_are_obeyed(tmp_path):
    case = next(c for c in parity.SMALL_CASES if c.key == "transformers/vit_small_patch14_dinov2")
    path = parity.write_like_library(case, REFERENCES, str(tmp_path))
    config = {"model_type": "dinov2", "hidden_size": 48, "num_attention_heads": 3, "mlp_ratio": 4}
    (tmp_path / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-5}))
    model, weights = load_pretrained(case.name, 3, KEY, path=path, **case.overrides)
    assert model.config.norm_eps == 1e-5
    assert "norm_eps=1e-05, by config.json" in weights.notes
    (tmp_path / "config.json").write_text(json.dumps(config | {"use_swiglu_ffn": True}))
    with pytest.raises(ValueError, match="use_swiglu_ffn=True is not known here"):
        load_pretrained(case.name, 3, KEY, path=path, **case.overrides)


def case_of(key):
    return next(case for case in parity.SMALL_CASES if case.key == key)


@pytest.mark.parametrize(
    ("name", "kind", "field"),
    [
        ("vit_base_patch16_siglip_224", "siglip_vision_model", "tanh_gelu"),
        ("vit_base_patch16_clip_224", "clip_vision_model", "quick_gelu"),
    ],
)
def test_a_vision_tower_has_the_activation_that_its_library_means(name, kind, field, tmp_path):
    quick = name.replace("clip_224", "clip_quickgelu_224")
    case = case_of(f"transformers/{quick}")._replace(overrides={**parity.SMALL_CASES[0].overrides})
    path = parity.write_like_library(case, REFERENCES, str(tmp_path))
    both = load_file(path)
    tower = {f"vision_model.{n}": t for n, t in both.items() if "classifier" not in n}
    text = {f"text_model.{n}": np.zeros(3, np.float32) for n in tower if "encoder" in n}
    # of transformers' own image classifiers, which read the mean of the patches
    own = {"classifier.weight": np.ones((3, 48), np.float32), "logit_scale": np.ones(())}
    save_file({**tower, **text, **own}, path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    model, weights = load_pretrained(name, 5, KEY, path=path, **case.overrides)
    assert getattr(model.config, field) and f"{field}=True, by config.json" in weights.notes
    assert "fresh, not from the file: head/bias, head/kernel" in weights.notes
    assert any("outside 'vision_model.'" in note for note in weights.notes)
    head = {leaf: both[f"pooled_classifier.{n}"] for n, leaf in TORCH_LEAVES.items()}
    weights.params["head"] = {"kernel": head["kernel"].T, "bias": head["bias"]}
    logits = model.apply(weights.params, {}, parity.images(64))[0]
    expected = REFERENCES[f"transformers/{quick}/logits"]
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "hidden_act": "silu"}))
    with pytest.raises(ValueError, match="hidden_act='silu' is not known here"):
        load_pretrained(name, 5, KEY, path=path, **case.overrides)


TORCH_LEAVES = {"weight": "kernel", "bias": "bias"}


def test_networks_that_pool_by_attention_do_not_pass_for_others(tmp_path):
    case = case_of("timm/vit_base_patch16_siglip_224")
    path = parity.write_like_library(case, REFERENCES, str(tmp_path))
    for name in ("vit_base_patch16_224", "deit_tiny_patch16_224"):
        with pytest.raises(ValueError, match="missing: cls_token.* unexpected: attn_pool"):
            load_weights(path, image_model(name, 5, **case.overrides), KEY)
    renamed = path.rename(tmp_path / "vit_base_patch16_siglip_gap_224.safetensors")
    with pytest.raises(ValueError, match="by its name a vit_base_patch16_siglip_gap_224"):
        load_weights(renamed, image_model(case.name, 5, **case.overrides), KEY)
    for options in ({"num_registers": 4}, {"distilled": True}, {"quick_gelu": True}):
        with pytest.raises(ValueError, match="registers|distilled|only one of quick_gelu"):
            image_model(case.name, 5, tanh_gelu=True, **options)


def test_a_resnet_d_goes_back_and_is_pruned_in_its_stem(tmp_path):
    case = case_of("timm/resnet50d")
    model, weights = parity.load(case, REFERENCES)
    path = tmp_path / "w.safetensors"
    save_weights(path, model, weights.params, weights.batch_stats)
    shapes = json.loads(str(REFERENCES[f"{case.key}/shapes"]))
    shapes = {name: shape for name, shape in shapes.items() if "num_batches" not in name}
    assert {name: list(tensor.shape) for name, tensor in load_file(path).items()} == shapes
    plain = image_model("resnet50", 5, **case.overrides)
    with pytest.raises(ValueError, match="deep=True by its header, the model has False"):
        load_weights(path, plain, KEY)
    bare = parity.write_like_library(case, REFERENCES, str(tmp_path))
    with pytest.raises(ValueError, match="wrong shape: conv1.6.weight .*unexpected: conv1.0"):
        load_weights(bare, plain, KEY)
    inputs = parity.images(64)
    sliced, masked = slice_half(model, weights.params, weights.batch_stats, "stem/conv2")
    logits = [jax.jit(model.apply)(*arrays, inputs)[0] for arrays in (sliced, masked)]
    np.testing.assert_allclose(*logits, atol=1e-4)
    save_weights(path, model, *sliced)
    again = load_weights(path, model, KEY)
    np.testing.assert_array_equal(again.params["conv1"]["kernel"], sliced[0]["conv1"]["kernel"])
