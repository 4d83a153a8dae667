"""LoRA adapters of PEFT: merged as by hand, or refused."""

import json
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fairjax.models import image_model, load_pretrained, load_weights, save_weights
from tests.golden.filling import arrays_of

KEY = jax.random.key(0)
SMALL: dict[str, Any] = {"image_size": 64, "depth": 1, "width": 24, "num_heads": 3}
NAME = "vit_tiny_patch16_224"
LAYER = "blocks.0.attn.qkv"
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "bias": "none", "use_dora": False}


def adapted(folder, change=None, layer=LAYER, **settings):
    """A base, an adapter of rank 2 on one kernel with a classifier, and the parts of the latter."""
    model = image_model(NAME, 3, **SMALL)
    save_weights(folder / "base.safetensors", model, *arrays_of(model))
    rng = np.random.default_rng(0)
    down, up = rng.normal(size=(2, 24)), rng.normal(size=(72, 2))
    parts = {
        f"base_model.model.{layer}.lora_A.weight": down.astype(np.float32),
        f"base_model.model.{layer}.lora_B.weight": up.astype(np.float32),
        "base_model.model.head.weight": np.ones((3, 24), np.float32),
    }
    save_file(parts | (change or {}), folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | settings))
    return model, folder / "base.safetensors", folder / "adapter_model.safetensors", up @ down


@pytest.mark.parametrize(("rslora", "scale"), [(False, 3.0), (True, 6 / np.sqrt(2))])
def test_an_adapter_is_merged_as_by_hand(rslora, scale, tmp_path):
    model, base, adapter, product = adapted(tmp_path, use_rslora=rslora)
    weights = load_weights(base, model, KEY, adapter=adapter)
    before = load_file(base)[f"{LAYER}.weight"]
    found = weights.params["blocks"]["attn"]["qkv"]["kernel"][0]
    np.testing.assert_allclose(found.T, before + scale * product, atol=1e-5)
    assert (np.asarray(weights.params["head"]["kernel"]) == 1).all()
    assert weights.notes[:2] == (
        "merged the LoRA updates of 1 kernels from adapter_model.safetensors",
        "the adapter brings head.weight",
    )
    plain = load_weights(base, model, KEY)
    other = plain.params["blocks"]["mlp"]["fc1"]["kernel"]
    np.testing.assert_array_equal(weights.params["blocks"]["mlp"]["fc1"]["kernel"], other)


def test_the_base_may_have_a_prefix_and_be_loaded_by_name(tmp_path):
    model, base, adapter, product = adapted(tmp_path)
    tensors = load_file(base)
    save_file({f"net.{name}": tensor for name, tensor in tensors.items()}, base)
    again = load_weights(base, model, KEY, adapter=adapter)
    assert (np.asarray(again.params["head"]["kernel"]) == 1).all()
    weights = load_pretrained(NAME, 3, KEY, path=base, adapter=adapter, **SMALL)[1]
    found = weights.params["blocks"]["attn"]["qkv"]["kernel"][0].T
    np.testing.assert_allclose(found, tensors[f"{LAYER}.weight"] + 3 * product, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"peft_type": "LOHA"}, "peft_type='LOHA' is not known here, 'LORA' is"),
        ({"use_dora": True}, "use_dora=True is not known here"),
        ({"alpha_pattern": {"qkv": 3}}, "alpha_pattern=.* is not known here"),
        ({"lora_alpha": None}, "not a configuration of a LoRA adapter"),
        ({"layer": "blocks.7.attn.qkv"}, "changes blocks.7.attn.qkv.weight, of which .* hold 0"),
        ({"layer": "blocks.0.mlp.fc1"}, "does not change blocks.0.mlp.fc1.weight"),
        (
            {"change": {f"base_model.model.{LAYER}.lora_magnitude_vector": np.ones(2)}},
            "no adapter of kernels alone: .*lora_magnitude",
        ),
    ],
)
def test_an_adapter_of_another_kind_or_network_is_refused(options, error, tmp_path):
    model, base, adapter, _ = adapted(tmp_path, **options)
    with pytest.raises(ValueError, match=error):
        load_weights(base, model, KEY, adapter=adapter)


def test_an_adapter_without_its_settings_is_refused(tmp_path):
    model, base, adapter, _ = adapted(tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="adapter_config.json: no such file"):
        load_weights(base, model, KEY, adapter=adapter)
    with pytest.raises(ValueError, match="adapter_model.safetensors: holds a LoRA adapter"):
        load_weights(adapter, model, KEY)
