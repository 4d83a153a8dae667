"""Weights as training scripts leave them: suffixes, neighbours, wrapped heads, one channel."""

import argparse
import datetime
import pathlib
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fairjax.models import image_model, load_pretrained, load_weights, save_weights
from fairjax.models.torch_files import Beside, read_torch_file
from fairjax.models.weight_files import read_weight_file
from tests.golden.filling import arrays_of
from tests.test_torch_files import Tensor, kinds, names_of_torch, write

KEY = jax.random.key(0)
SMALL: dict[str, Any] = {"image_size": 32, "width": 8}
assert names_of_torch  # a fixture, taken over


def resnet(folder, change=lambda tensors: tensors):
    """A small ResNet, its arrays, and a file of its tensors as `change` leaves them."""
    model = image_model("resnet18", 3, **SMALL)
    params, stats = arrays_of(model)
    save_weights(folder / "w.safetensors", model, params, stats)
    save_file(change(load_file(folder / "w.safetensors")), folder / "w.safetensors")
    return model, params, folder / "w.safetensors"


def checkpoint(folder, name, legacy=False, **beside):
    model, params, path = resnet(folder)
    tensors = load_file(path)
    state = {f"model.{n}": Tensor(t, str(i)) for i, (n, t) in enumerate(tensors.items())}
    write(folder / name, {"state_dict": state, **beside}, legacy=legacy)
    return model, params, folder / name


@kinds
@pytest.mark.parametrize("name", ["last.ckpt", "w.pth.tar", "w.bin", "w.pt", "W.PTH"])
def test_checkpoints_are_read_under_every_usual_name(name, legacy, tmp_path):
    model, params, path = checkpoint(tmp_path, name, legacy=legacy, epoch=3)
    found = load_weights(path, model, KEY).params
    np.testing.assert_array_equal(found["conv1"]["kernel"], params["conv1"]["kernel"])


@kinds
def test_settings_and_scores_beside_the_tensors_are_passed_over(legacy, tmp_path):
    beside = {
        "args": argparse.Namespace(lr=0.1, out=pathlib.PurePosixPath("/x")),
        "best": np.float64(0.9),
        "history": np.arange(3.0),
        "when": datetime.datetime(2024, 1, 2),
        "seen": {1, 2},
    }
    model, params, path = checkpoint(tmp_path, "w.pth", legacy=legacy, **beside)
    found = read_torch_file(path)
    assert all(isinstance(found[name], Beside) for name in beside)
    assert found["args"].__dict__ == {}  # nothing of it is kept
    np.testing.assert_array_equal(
        load_weights(path, model, KEY).params["head"]["kernel"], params["head"]["kernel"]
    )


def test_a_dropout_before_the_classifier_changes_its_name_only(tmp_path):
    def wrap(tensors):
        return {n.replace("fc.", "fc.1."): t for n, t in tensors.items()}

    model, params, path = resnet(tmp_path, wrap)
    weights = load_weights(path, model, KEY)
    np.testing.assert_array_equal(weights.params["head"]["kernel"], params["head"]["kernel"])
    assert weights.notes == ()


def test_a_classifier_of_several_layers_is_left_out_and_named(tmp_path):
    def wrap(tensors):
        more = {"fc.0.weight": np.zeros((4, 64), np.float32), "fc.3.weight": np.zeros((3, 4), "f4")}
        return {n: t for n, t in tensors.items() if not n.startswith("fc.")} | more

    model, params, path = resnet(tmp_path, wrap)
    weights = load_weights(path, model, KEY)
    assert "left out a classifier of several layers: fc.0.weight, fc.3.weight" in weights.notes
    assert "fresh, not from the file: head/bias, head/kernel" in weights.notes
    np.testing.assert_array_equal(weights.params["conv1"]["kernel"], params["conv1"]["kernel"])


def test_a_network_of_grey_images_is_refused_or_spread_by_choice(tmp_path):
    def grey(tensors):
        return tensors | {"conv1.weight": tensors["conv1.weight"].sum(1, keepdims=True)}

    model, params, path = resnet(tmp_path, grey)
    with pytest.raises(ValueError, match=r"conv1.weight \(7, 7, 1, 8\), .*grey=\"spread\""):
        load_weights(path, model, KEY)
    weights = load_weights(path, model, KEY, grey="spread")
    kernel = np.asarray(params["conv1"]["kernel"])
    np.testing.assert_allclose(weights.params["conv1"]["kernel"].sum(2), kernel.sum(2), atol=1e-6)
    # on grey images it computes what it did: the three channels are equal
    spread = np.asarray(weights.params["conv1"]["kernel"])
    assert np.ptp(spread, axis=2).max() == 0 and "a third of it" in weights.notes[0]
    load_pretrained("resnet18", 3, KEY, path=path, grey="spread", **SMALL)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".npz"])
def test_empty_and_foreign_files_are_one_line(suffix, tmp_path):
    path = tmp_path / f"w{suffix}"
    for content in (b"", b"PK\x03\x04", b"\x89PNG\r\n", b"\xff" * 64, b"{}"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"w\{suffix}: .*damaged") as caught:
            read_weight_file(path)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
