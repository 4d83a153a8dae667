"""ResNet and VGG: batch norm, pooling, intermediates and the channel graph."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairjax.models import image_model
from fairjax.models.convolution import _batch_norm, conv, max_pool
from fairjax.models.vgg import _adaptive_mean_pool
from fairjax.models.weights import _flat
from fairjax.trees import unstack_blocks
from tests.golden.filling import arrays_of

KEY = jax.random.key(0)


def images(batch=2, size=32):
    return jax.random.normal(jax.random.key(1), (batch, size, size, 3))


def train(model):
    return jax.jit(lambda p, s, x, key=None: model.apply(p, s, x, train=True, key=key))


@pytest.mark.parametrize(("size", "stride", "padding", "side"), [(3, 2, 1, 12), (2, 2, 0, 13)])
def test_max_pool_equals_xla_window_reduction(size, stride, padding, side):
    x = jax.random.normal(KEY, (2, side, side, 3))
    pads = [(0, 0), (padding, padding), (padding, padding), (0, 0)]
    window, strides = (1, size, size, 1), (1, stride, stride, 1)

    def reference(x):
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, pads)

    pooled, pullback = jax.vjp(lambda x: max_pool(x, size, stride, padding), x)
    expected, expected_pullback = jax.vjp(reference, x)
    np.testing.assert_array_equal(pooled, expected)
    weights = jax.random.normal(jax.random.key(2), pooled.shape)
    np.testing.assert_allclose(pullback(weights)[0], expected_pullback(weights)[0], atol=1e-6)


@pytest.mark.parametrize("in_loop", [False, True])
@pytest.mark.parametrize(
    ("size", "stride", "padding", "side"),
    [(3, 1, 1, 8), (3, 2, 1, 8), (3, 2, 1, 9), (1, 2, 0, 9), (1, 1, 0, 5), (7, 2, 3, 14)],
)
def test_gradients_of_a_convolution_equal_xlas_own(size, stride, padding, side, in_loop):
    x = jax.random.normal(KEY, (2, side, side, 3))
    kernel = jax.random.normal(jax.random.key(1), (size, size, 3, 4))

    def reference(x, kernel):
        strides, pads = (stride, stride), [(padding, padding)] * 2
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=numbers)

    y, pullback = jax.vjp(reference, x, kernel)
    weights = jax.random.normal(jax.random.key(2), y.shape)

    def ours(x, kernel, weights):
        return jax.vjp(lambda x, k: conv(x, k, stride, padding), x, kernel)[1](weights)

    if in_loop:
        one = tuple(leaf[None] for leaf in (x, kernel, weights))
        found = jax.tree.map(lambda leaf: leaf[0], jax.lax.map(lambda args: ours(*args), one))
    else:
        found = jax.jit(ours)(x, kernel, weights)
    for gradient, expected in zip(found, pullback(weights), strict=True):
        np.testing.assert_allclose(gradient, expected, atol=1e-5)


@pytest.mark.parametrize("side", [2, 7, 9, 14])
def test_adaptive_pool_equals_torch(side):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=(2, side, side, 3)).astype(np.float32)
    pool = torch.nn.AdaptiveAvgPool2d(7)
    theirs = pool(torch.from_numpy(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(_adaptive_mean_pool(jnp.asarray(x), 7), theirs, atol=1e-6)


def test_batch_norm_keeps_the_unbiased_variance_and_normalises_by_the_biased_one():
    model = image_model("resnet18", 2, image_size=32, width=8)
    params, stats = arrays_of(model)
    _, out, new = train(model)(params, stats, images())
    x = np.asarray(out["conv1"]).reshape(-1, 8)
    np.testing.assert_allclose(
        new["bn1"]["mean"], 0.9 * stats["bn1"]["mean"] + 0.1 * x.mean(0), atol=1e-6
    )
    np.testing.assert_allclose(
        new["bn1"]["var"], 0.9 * stats["bn1"]["var"] + 0.1 * x.var(0, ddof=1), rtol=1e-5
    )
    expected = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    expected = expected * np.asarray(params["bn1"]["scale"]) + np.asarray(params["bn1"]["bias"])
    np.testing.assert_allclose(np.asarray(out["bn1"]).reshape(-1, 8), expected, atol=1e-4)


@pytest.mark.parametrize(("side", "offset"), [(8, 0.0), (5, 0.0), (8, 100.0)])
def test_the_gradient_of_batch_norm_equals_autodiffs_in_float64(side, offset):
    rng = np.random.default_rng(side)
    x = (rng.normal(size=(3, side, side, 4)) + offset).astype(np.float32)
    weights = rng.normal(size=x.shape).astype(np.float32)
    one = x, *rng.normal(size=(2, 4)).astype(np.float32)

    def exact_loss(x, scale, bias, weights):
        centred = x.reshape(-1, 4) - jnp.mean(x, (0, 1, 2))[None]
        y = centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), 0) + 1e-5)[None]
        return jnp.sum((y * scale[None] + bias[None]) * weights.reshape(-1, 4))

    with jax.enable_x64(True):
        arrays = [leaf.astype(np.float64) for leaf in (*one, weights)]
        exact = [np.asarray(leaf) for leaf in jax.grad(exact_loss, (0, 1, 2))(*arrays)]

    def loss(x, scale, bias):
        return jnp.sum(_batch_norm(x, scale, bias, 1e-5)[0] * weights)

    many = tuple(np.stack([leaf, leaf]) for leaf in one)  # a population's
    alone = jax.jit(jax.grad(loss, (0, 1, 2)))(*one)
    together = jax.jit(jax.vmap(jax.grad(loss, (0, 1, 2))))(*many)
    tolerance = 1e-5 if not offset else 1e-3  # of 100 itself, float32 keeps 1e-5
    for first, both, expected in zip(alone, together, exact, strict=True):
        size = tolerance * np.abs(expected).max()
        np.testing.assert_allclose(first, expected, atol=size)
        np.testing.assert_allclose(both[1], expected, atol=size)


def test_evaluation_leaves_the_batch_statistics_alone():
    model = image_model("resnet18", 2, image_size=32, width=8)
    params, stats = arrays_of(model)
    _, _, new = jax.jit(model.apply)(params, stats, images())
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), stats, new))


def test_statistics_can_be_carried_through_a_scan_and_a_population():
    model = image_model("resnet18", 2, image_size=32, width=8)
    params, stats = arrays_of(model)

    def epoch(params, stats):
        def step(stats, inputs):
            logits, _, stats = model.apply(params, stats, inputs, train=True)
            return stats, logits

        return jax.lax.scan(step, stats, jnp.stack([images(), images()]))

    together, _ = jax.vmap(epoch, (None, 0))(
        params, jax.tree.map(lambda x: jnp.stack([x] * 2), stats)
    )
    alone, _ = epoch(params, stats)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, atol=1e-5), together, alone)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {"width": 8}),
        ("resnet50", {"width": 8}),
        ("vgg11", {"classifier": (8, 8)}),
        ("vgg11_bn", {"classifier": (8, 8)}),
        ("vgg_micro", {}),
        ("vit_micro", {}),
    ],
)
def test_every_axis_in_the_channel_graph_has_the_length_it_states(name, options):
    model = image_model(name, 3, image_size=32, **options)
    params, stats = jax.eval_shape(model.init, KEY)
    params = jax.eval_shape(unstack_blocks, params)
    leaves = _flat(params, stats)
    _, out, _ = jax.eval_shape(model.apply, params, stats, images())
    produced = set()
    for layer, channels in model.config.channel_graph.items():
        assert layer in out
        for slot in channels.outputs + channels.inputs:
            length = leaves[slot.path].shape[slot.axis]
            assert length == slot.outer * channels.size * slot.inner, (layer, slot)
        produced.update(slot.path for slot in channels.outputs)
    if "vit" not in name:
        # only the classifier's outputs cannot be pruned
        assert set(leaves) - produced == {"head/kernel", "head/bias"}


def test_intermediates_are_the_convolutions_before_their_relu():
    model = image_model("vgg11", 3, image_size=32, classifier=(8, 8))
    params, stats = arrays_of(model)
    _, out, _ = jax.jit(model.apply)(params, stats, images())
    assert out["features/18"].shape == (2, 2, 2, 512)
    assert float(out["features/18"].min()) < 0


def test_dropout_in_vgg_needs_a_key():
    model = image_model("vgg_micro", 3, image_size=32, dropout=0.5)
    params, stats = arrays_of(model)
    with pytest.raises(ValueError, match="needs a key"):
        model.apply(params, stats, images(), train=True)
    first, second = (train(model)(params, stats, images(), jax.random.key(i))[0] for i in (1, 2))
    assert not np.allclose(first, second)
