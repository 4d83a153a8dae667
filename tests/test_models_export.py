"""The exported inference function equals the network."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fairjax.models import (
    image_model,
    image_preprocess,
    load_inference,
    mlp,
    save_inference,
    wrap_nnx,
)


def test_exported_inference_equals_the_network_at_any_batch_size(tmp_path):
    pytest.importorskip("flatbuffers")
    model = image_model("vit_micro", 3, width=24, depth=2, image_size=16)
    params, batch_stats = model.init(jax.random.key(0))
    save_inference(tmp_path / "net.bin", model, params, batch_stats)
    predict = load_inference(tmp_path / "net.bin")
    for batch in (1, 3):
        images = np.random.default_rng(0).integers(0, 256, (batch, 16, 16, 3), np.uint8)
        inputs = (images.astype(np.float32) / 255 - 0.5) / 0.5
        logits, _, _ = model.apply(params, batch_stats, jnp.asarray(inputs))
        np.testing.assert_allclose(predict(images), jax.nn.softmax(logits), atol=1e-6)


def test_one_file_holds_the_program_for_cpu_cuda_and_tpu(tmp_path):
    pytest.importorskip("flatbuffers")
    model = image_model("vgg_micro", 2, classifier=(8, 8))
    save_inference(tmp_path / "net.bin", model, *model.init(jax.random.key(0)))
    exported = jax.export.deserialize(bytearray((tmp_path / "net.bin").read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")


def test_only_image_networks_are_exported(tmp_path):
    model = mlp(3, 2)
    with pytest.raises(ValueError, match="image networks"):
        save_inference(tmp_path / "net.bin", model, *model.init(jax.random.key(0)))


def test_a_network_of_ones_own_is_exported_with_its_preprocessing(tmp_path):
    pytest.importorskip("flatbuffers")

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.fc = nnx.Linear(3, 2, rngs=rngs)

        def __call__(self, x):
            return self.fc(x.mean((1, 2)))

    example = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    settings = {"num_classes": 2, "head": "fc", "preprocess": image_preprocess(8)}
    model = wrap_nnx(Net, **settings, example=example)
    arrays = model.init(jax.random.key(0))
    save_inference(tmp_path / "net.bin", model, *arrays)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    expected = jax.nn.softmax(model.apply(*arrays, image_preprocess(8)(pixels))[0])
    np.testing.assert_allclose(load_inference(tmp_path / "net.bin")(pixels), expected, atol=1e-6)
    with pytest.raises(ValueError, match="image_size in their configuration"):
        save_inference(tmp_path / "net.bin", wrap_nnx(Net, **settings), *arrays)


def test_damaged_files_are_named(tmp_path):
    (tmp_path / "net.bin").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="net.bin: not an exported function"):
        load_inference(tmp_path / "net.bin")
    with pytest.raises(FileNotFoundError, match="absent.bin"):
        load_inference(tmp_path / "absent.bin")
