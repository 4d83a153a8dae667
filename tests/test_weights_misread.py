"""Weights that fit by name and compute something else: obeyed, or refused with the reason."""

import dataclasses
import json
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fairjax.models import image_model, load_pretrained, load_weights, save_weights
from fairjax.models.positions import resize_positions
from fairjax.models.preprocess import IMAGENET_MEAN, IMAGENET_STD
from fairjax.models.weight_files import read_weight_file
from tests.golden.filling import arrays_of
from tests.test_torch_files import Tensor, names_of_torch, write

KEY = jax.random.key(0)
NAME = "vit_tiny_patch16_224"
SMALL: dict[str, Any] = {"image_size": 32, "width": 24, "depth": 2}
assert names_of_torch  # a fixture, taken over


def written(folder, name=NAME, file="model.safetensors", change=lambda tensors: None, **sizes):
    """A file as timm would write it, without our header."""
    model = image_model(name, 3, **(sizes or SMALL))
    save_weights(folder / "ours.safetensors", model, *arrays_of(model))
    tensors = load_file(folder / "ours.safetensors")
    change(tensors)
    save_file(tensors, folder / file)
    (folder / "ours.safetensors").unlink()
    return model, folder / file


def tokens_of(count):
    return lambda tensors: tensors.update(pos_embed=np.ones((1, count, 24), np.float32))


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (18, "18 tokens are not 1 .* but 2 . 4..2"),  # class, distillation, 4 x 4
        (13, "13 tokens are not 1 .* n..2, but 4 . 3..2"),
        (9 * 16 + 1, None),
        (8 * 6 + 1, "49 tokens"),  # 7 x 7 without a class token, or 8 x 6 with one
        (8 * 7 + 1, "57 tokens are not .*the grid is no square"),
    ],
)
def test_positions_of_another_kind_of_grid_are_refused(tokens, said, tmp_path):
    model, path = written(tmp_path, change=tokens_of(tokens))
    if said is None or tokens == 49:
        note = load_weights(path, model, KEY).notes[0]
        assert "resized from 12 x 12" in note or "resized from 7 x 7" in note
        return
    with pytest.raises(ValueError, match=rf"model\.safetensors: .*{said}"):
        load_weights(path, model, KEY)


def test_prefix_tokens_are_not_resized_and_absent_ones_are_zero():
    grid = np.random.default_rng(0).standard_normal((1, 2 + 16, 6)).astype(np.float32)
    shape, notes = (1, 2 + 36, 6), []
    whole = resize_positions(grid, shape, notes, num_prefix=2)
    patches = resize_positions(grid[:, 2:], shape, notes, num_prefix=2)
    np.testing.assert_array_equal(whole[:, :2], grid[:, :2])
    np.testing.assert_array_equal(patches[:, :2], 0)
    np.testing.assert_array_equal(patches[:, 2:], whole[:, 2:])
    assert set(notes) == {"position embeddings resized from 4 x 4 to 6 x 6"}


VIT = {
    "model_type": "vit",
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 96,
    "patch_size": 16,
    "layer_norm_eps": 1e-12,
}


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ({}, "norm_eps", 1e-12),
        ({"hidden_act": "quick_gelu"}, "quick_gelu", True),
        ({"layer_norm_eps": 1e-3}, "norm_eps", 1e-3),
    ],
)
def test_a_config_beside_the_file_is_obeyed_and_noted(change, field, value, tmp_path):
    model, path = written(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(VIT | change))
    obeyed, weights = load_pretrained(NAME, 3, KEY, path=path, **SMALL)
    assert getattr(obeyed.config, field) == value
    assert f"{field}={value!r}, by config.json" in weights.notes
    with pytest.raises(ValueError, match=rf"{field}={value!r} by config.json, the model has"):
        load_weights(path, model, KEY)  # a network that is made already cannot obey
    load_weights(path, obeyed, KEY)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_act": "gelu_new"}, "hidden_act='gelu_new' is not known here, gelu, quick_gelu"),
        ({"num_attention_heads": 6}, "num_heads=6 by config.json, the model has 3"),
        ({"image_size": [32, 64]}, r"image_size=\[32, 64\] is not known here, a square"),
        ({"model_type": "swin"}, "model_type='swin' is not known here"),
        ({"hidden_size": "x"}, "config.json, beside the weights: not as its library writes it"),
    ],
)
def test_a_config_of_another_network_is_refused(change, said, tmp_path):
    _, path = written(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(VIT | change))
    with pytest.raises(ValueError, match=said):
        load_pretrained(NAME, 3, KEY, path=path, **SMALL)


def test_a_config_that_is_none_of_a_network_is_not_minded(tmp_path):
    _, path = written(tmp_path)
    (tmp_path / "config.json").write_text('{"experiment": "fairtune", "num_epochs": 3}')
    load_pretrained(NAME, 3, KEY, path=path, **SMALL)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json, beside the weights: not readable"):
        load_pretrained(NAME, 3, KEY, path=path, **SMALL)


@pytest.mark.parametrize(
    ("field", "value"),
    [("downsample_in_bottleneck", True), ("hidden_act", "gelu"), ("depths", [3, 4, 23, 3])],
)
def test_a_resnet_that_differs_in_what_has_no_tensor_is_refused(field, value, tmp_path):
    model, path = written(tmp_path, "resnet50", image_size=32, width=8)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet", field: value}))
    with pytest.raises(ValueError, match=r"config\.json"):
        load_weights(path, model, KEY)


@pytest.mark.parametrize("stem", ["resnetaa50_a1h-4cf422b3", "resnetblur50-84f4748f"])
def test_timm_names_of_another_network_are_refused(stem, tmp_path):
    model, path = written(tmp_path, "resnet50", f"{stem}.safetensors", image_size=32, width=8)
    with pytest.raises(ValueError, match="by its name a resnet(aa|blur)50"):
        load_weights(path, model, KEY)
    renamed = path.rename(tmp_path / "model.safetensors")
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"architecture": stem.partition("_")[0].partition("-")[0]}))
    with pytest.raises(ValueError, match="timm's resnet(aa|blur)50, which is not known"):
        load_weights(renamed, model, KEY)


def test_timms_config_is_compared_and_gives_the_normalisation(tmp_path):
    _, path = written(tmp_path, "resnet18", image_size=32)
    config = {"architecture": "resnet18", "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model, weights = load_pretrained("resnet18", 3, KEY, path=path, image_size=32)
    assert model.config.mean == (0.5,) * 3 and model.config.std == (0.25,) * 3
    assert any("mean (0.5, 0.5, 0.5) and std (0.25" in note for note in weights.notes)
    (tmp_path / "config.json").write_text(json.dumps(config | {"architecture": "resnet34"}))
    with pytest.raises(ValueError, match=r"depths=\(3, 4, 6, 3\) by config.json \(resnet34\)"):
        load_pretrained("resnet18", 3, KEY, path=path, image_size=32)


@pytest.mark.parametrize(
    ("file", "mean"),
    [
        ("deit_tiny_patch16_224-a1311bcf", IMAGENET_MEAN),
        ("dino_deitsmall16_pretrain", IMAGENET_MEAN),
        ("mine", (0.5,) * 3),
    ],
)
def test_normalisation_comes_with_the_name_of_the_file(file, mean, tmp_path):
    model, path = written(tmp_path, file=f"{file}.safetensors")
    named, weights = load_pretrained(NAME, 3, KEY, path=path, **SMALL)
    assert named.config.mean == mean
    source = "the model's name" if file == "mine" else f"the name {file}.safetensors"
    assert any(note.endswith(f"by {source}") for note in weights.notes)
    assert (file == "mine") == (not load_weights(path, model, KEY).notes)  # said, not done, there


def test_preprocessor_settings_give_the_normalisation_unless_the_caller_does(tmp_path):
    _, path = written(tmp_path)
    settings = {"image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD)}
    config = tmp_path / "preprocessor_config.json"
    config.write_text(json.dumps(settings))
    model, weights = load_pretrained(NAME, 3, KEY, path=path, **SMALL)
    assert (model.config.mean, model.config.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert "by preprocessor_config.json" in weights.notes[-1]
    own: dict[str, Any] = {"mean": (0.1,) * 3, "std": (0.2,) * 3}
    model, weights = load_pretrained(NAME, 3, KEY, path=path, **SMALL, **own)
    assert model.config.mean == (0.1,) * 3
    assert any("trained with mean (0.485" in note for note in weights.notes)
    # pixels scaled to [-1, 1] and not normalised
    config.write_text(json.dumps({"rescale_factor": 2 / 255, "do_normalize": False}))
    model, _ = load_pretrained(NAME, 3, KEY, path=path, **SMALL)
    assert model.config.mean == (0.0,) * 3 and model.config.std == (0.5,) * 3


def test_a_header_of_ours_is_compared_too(tmp_path):
    model = image_model(NAME, 3, **SMALL, quick_gelu=True)
    save_weights(tmp_path / "w.safetensors", model, *arrays_of(model))
    with pytest.raises(ValueError, match="quick_gelu=True by its header, the model has False"):
        load_weights(tmp_path / "w.safetensors", image_model(NAME, 3, **SMALL), KEY)
    path = tmp_path / "w.safetensors"
    assert load_pretrained(NAME, 3, KEY, path=path, **SMALL)[0].config.quick_gelu


def checkpoint(path, names):
    """One array per state dict, filled with its number."""
    states = {
        name: {"blocks.0.attn.qkv.weight": Tensor(np.full(2, i, np.float32), str(i))}
        for i, name in enumerate(names)
    }
    return write(path, {"epoch": 3, **states}, legacy=False)


def test_of_a_model_and_its_average_the_one_that_timm_takes_is_read_and_named(tmp_path):
    path = checkpoint(tmp_path / "w.pth", ["state_dict", "state_dict_ema", "optimizer"])
    found = read_weight_file(path)
    assert found.tensors["blocks.0.attn.qkv.weight"][0] == 1
    assert found.notes == [
        "read 'state_dict_ema' of the file, which holds state_dict too (weights_key)"
    ]
    found = read_weight_file(path, "state_dict")
    assert found.tensors["blocks.0.attn.qkv.weight"][0] == 0 and found.notes == []
    with pytest.raises(ValueError, match="no weights_key='ema' in it; there are state_dict, state"):
        read_weight_file(path, "ema")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_with_their_name(value, tmp_path):
    def spoil(tensors):
        tensors["blocks.1.mlp.fc1.bias"][3] = value

    model, path = written(tmp_path, change=spoil)
    with pytest.raises(ValueError, match=r"1 of 96 numbers of blocks/1/mlp/fc1/bias are not fin"):
        load_weights(path, model, KEY)


def test_a_negative_variance_is_refused(tmp_path):
    def spoil(tensors):
        tensors["bn1.running_var"][0] = -1

    model, path = written(tmp_path, "resnet18", change=spoil, image_size=32, width=8)
    with pytest.raises(ValueError, match=r"bn1/var is a variance and holds -1"):
        load_weights(path, model, KEY)


def test_an_adapter_is_refused_by_saying_what_it_is(tmp_path):
    name = "base_model.model.vit.encoder.layer.0.attention.attention.query.lora_A.weight"
    save_file({name: np.zeros((4, 24), np.float32)}, tmp_path / "adapter_model.safetensors")
    model = image_model(NAME, 3, **SMALL)
    with pytest.raises(
        ValueError, match="LoRA adapter .* give the base weights and this file as adapter="
    ):
        load_weights(tmp_path / "adapter_model.safetensors", model, KEY)


def test_every_field_that_names_leave_open_is_one_of_a_configuration():
    from fairjax.models.beside import CHOSEN

    known = {field.name for field in dataclasses.fields(image_model(NAME, 2).config)}
    assert set(CHOSEN) <= known
