"""Initialisation: one draw cut into all kernels, alike however it is run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairjax.models import image_model, logistic_regression, mlp
from fairjax.trees import flatten_named

SMALL = {"image_size": 32}
MODELS = {
    "vit": image_model("vit_micro", 5, image_size=64, depth=3),
    "resnet": image_model("resnet50", 5, width=16, depths=(1, 1), **SMALL),
    "vgg": image_model("vgg11_bn", 5, features=(8, "M", 16, "M"), classifier=(64, 64), **SMALL),
    "mlp": mlp(200, 5, hidden=(64,)),
    "logistic": logistic_regression(4000),
}
SPREAD = {
    "vit": {
        "blocks/attn/qkv/kernel": 0.02,
        "pos_embed": 0.02,
        "patch_embed/proj/kernel": 192**-0.5,
    },
    "resnet": {"conv1/kernel": (2 / (49 * 16)) ** 0.5, "layer1/0/conv3/kernel": (2 / 64) ** 0.5},
    "vgg": {"features/4/kernel": (2 / (9 * 16)) ** 0.5, "classifier/3/kernel": (2 / 64) ** 0.5},
    "mlp": {"hidden/0/kernel": (2 / 200) ** 0.5, "head/kernel": 64**-0.5},
    "logistic": {"head/kernel": 0.2},
}


@pytest.mark.parametrize("name", MODELS)
def test_kernels_have_their_spread_and_share_no_numbers(name):
    leaves = flatten_named(MODELS[name].init(jax.random.key(0))[0])
    for path, std in SPREAD[name].items():
        error = 4 / leaves[path].size ** 0.5
        assert np.std(leaves[path]) == pytest.approx(std, rel=error), path
        assert abs(np.mean(leaves[path])) < error * std, path
    numbers = np.concatenate(
        [np.ravel(leaf) / np.std(leaf) for path, leaf in leaves.items() if path.endswith("kernel")]
    )
    assert len(np.unique(numbers.round(6))) > 0.95 * len(numbers)


def test_blocks_start_differently():
    kernels = MODELS["vit"].init(jax.random.key(0))[0]["blocks"]["mlp"]["fc1"]["kernel"]
    assert abs(np.corrcoef(kernels[0].ravel(), kernels[1].ravel())[0, 1]) < 0.02


def test_biases_norms_and_statistics_start_as_constants():
    params, stats = MODELS["resnet"].init(jax.random.key(0))
    leaves = flatten_named(params) | flatten_named(stats)
    for path, leaf in leaves.items():
        assert isinstance(leaf, jax.Array) and leaf.dtype == jnp.float32
        if not path.endswith("kernel"):
            assert np.all(leaf == (1 if path.endswith(("scale", "var")) else 0)), path


@pytest.mark.parametrize("name", MODELS)
def test_jit_and_vmap_draw_the_same_numbers(name):
    model, keys = MODELS[name], jax.random.split(jax.random.key(1), 2)
    alone = [model.init(key) for key in keys]
    jitted = jax.jit(model.init)(keys[0])
    together = jax.jit(jax.vmap(model.init))(keys)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), jitted, alone[0])
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *alone)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), together, stacked)
    assert not np.array_equal(*(run[0]["head"]["kernel"] for run in alone))
