"""Vision transformers: block forms, checkpointing, randomness, populations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fairjax.models import image_model
from fairjax.models.attention import attend
from fairjax.models.functional import Draws
from fairjax.models.layers import LayerNorm, Linear, _in_rows, _sum_rows
from fairjax.trees import stack_blocks, unstack_blocks
from tests.golden.filling import arrays_of

SMALL = {"image_size": 16, "width": 24, "depth": 3}
KEY = jax.random.key(0)


def small(**overrides):
    model = image_model("vit_micro", 3, **(SMALL | overrides))
    return model, arrays_of(model)[0]


def images(batch=4, size=16):
    return jax.random.normal(jax.random.key(1), (batch, size, size, 3))


def loss_fn(model):
    def loss(params, inputs, key=None, train=False):
        logits, _, _ = model.apply(params, {}, inputs, train=train, key=key)
        labels = jnp.arange(len(inputs)) % 3
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return loss


def flops_of(compiled):
    return (compiled.cost_analysis() or {})["flops"]


def close(a, b, tolerance=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=tolerance), a, b)


def test_stacked_and_single_blocks_give_the_same_logits_and_gradients():
    model, params = small()
    single = unstack_blocks(params)
    assert single["blocks"]["2"]["mlp"]["fc1"]["kernel"].shape == (24, 96)
    assert params["blocks"]["mlp"]["fc1"]["kernel"].shape == (3, 24, 96)
    gradient = jax.jit(jax.grad(loss_fn(model)))
    close(gradient(params, images()), stack_blocks(gradient(single, images())))


def test_blocks_that_a_gpu_runs_without_a_loop_give_the_same_gradients(monkeypatch):
    model, params = small()
    looped = jax.make_jaxpr(jax.grad(loss_fn(model)))(params, images())
    expected = jax.grad(loss_fn(model))(params, images())
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    unrolled = jax.make_jaxpr(jax.grad(loss_fn(model)))(params, images())
    assert "remat" in str(looped) and "remat" not in str(unrolled)  # nothing is computed anew
    close(jax.grad(loss_fn(model))(params, images()), expected)


def test_layer_norm_of_bfloat16_and_its_gradients_are_those_of_float32():
    x = (3.0 + jax.random.normal(KEY, (4, 6, 40))).astype(jnp.bfloat16)
    weights = jax.random.normal(jax.random.key(1), x.shape)

    def apply(x, scale, bias):
        norm = LayerNorm(40, draws=Draws(), eps=1e-6)
        norm.scale, norm.bias = type(norm.scale)(scale), type(norm.bias)(bias)
        y = norm(x)
        return (y.astype(jnp.float32) * weights).sum(), y

    arrays = jnp.linspace(0.5, 2.0, 40), jnp.linspace(-1.0, 1.0, 40)
    gradient = jax.grad(apply, (0, 1, 2), has_aux=True)
    short, exact = gradient(x, *arrays), gradient(x.astype(jnp.float32), *arrays)
    assert short[1].dtype == short[0][0].dtype == jnp.bfloat16
    for found, expected in zip(jax.tree.leaves(short), jax.tree.leaves(exact), strict=True):
        largest = float(jnp.abs(expected).max())
        np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=0.01 * largest)


def test_layer_norm_of_bfloat16_knows_rows_that_hardly_vary():
    x = jnp.full((1, 768), 1000.0).at[0, :4].add(8.0).astype(jnp.bfloat16)
    norm = LayerNorm(768, draws=Draws(), eps=1e-6)
    norm.scale, norm.bias = (type(norm.scale)(jnp.full(768, value)) for value in (1.0, 0.0))
    wide = np.asarray(x, np.float64)
    expected = (wide - wide.mean()) / wide.std()
    np.testing.assert_allclose(np.asarray(norm(x), np.float64), expected, rtol=0.01)


def test_repeated_vectors_have_the_derivatives_of_a_broadcast():
    vector, weights = jnp.arange(3.0), jax.random.normal(KEY, (5, 3)).at[2, 1].set(jnp.nan)
    ours = lambda v: (_in_rows(v, 5) * weights).sum()
    plain = lambda v: (jnp.broadcast_to(v[None], (5, 3)) * weights).sum()
    for derivative in (jax.grad, jax.jacfwd):
        found, expected = derivative(ours)(vector), derivative(plain)(vector)
        np.testing.assert_allclose(found, expected, rtol=1e-6)  # nan stays in its column
    np.testing.assert_allclose(_sum_rows(weights), weights.sum(0), rtol=1e-5, atol=1e-6)
    many = jax.vmap(lambda v: _in_rows(v, 2))(jnp.stack([vector, jnp.full(3, jnp.inf)]))
    np.testing.assert_array_equal(many[0], jnp.stack([vector] * 2))


def test_stacking_undoes_unstacking():
    _, params = small()
    again = stack_blocks(unstack_blocks(params))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), again, params))
    assert unstack_blocks({"head": 1}) == {"head": 1} == stack_blocks({"head": 1})


def test_blocks_that_differ_cannot_be_stacked():
    block = {"w": jnp.ones(2)}
    with pytest.raises(ValueError, match="block 1 differs in shape"):
        stack_blocks({"blocks": {"0": block, "1": {"w": jnp.ones(3)}}})
    with pytest.raises(ValueError, match="named 0 to 1, got 0, 2"):
        stack_blocks({"blocks": {"0": block, "2": block}})


def test_checkpointing_blocks_changes_no_gradient():
    model, params = small()
    recomputing, _ = small(checkpoint_blocks=True)
    expected = jax.jit(jax.grad(loss_fn(model)))(params, images())
    close(jax.jit(jax.grad(loss_fn(recomputing)))(params, images()), expected)
    single = unstack_blocks(params)
    close(stack_blocks(jax.jit(jax.grad(loss_fn(recomputing)))(single, images())), expected)


def test_tokens_of_a_frozen_prefix_can_be_fed_back_in():
    model, params = small()
    params = unstack_blocks(params)
    logits, out, _ = model.apply(params, {}, images())
    upper = params | {"blocks": {"2": params["blocks"]["2"]}}
    np.testing.assert_allclose(model.apply(upper, {}, out["blocks/1"])[0], logits, atol=1e-5)


def test_training_only_the_last_block_does_not_go_back_below_it():
    model, params = small(depth=6)
    params = unstack_blocks(params)

    def flops(names):
        def loss(trained, frozen, inputs):
            return loss_fn(model)(frozen | {"blocks": frozen["blocks"] | trained}, inputs)

        trained = {name: params["blocks"][name] for name in names}
        compiled = jax.jit(jax.grad(loss)).lower(trained, params, images()).compile()
        return flops_of(compiled)

    forward = jax.jit(lambda p, x: model.apply(p, {}, x)[0]).lower(params, images()).compile()
    forward_flops = flops_of(forward)
    assert flops("5") < 1.5 * forward_flops
    assert flops("012345") > 2.5 * forward_flops


def test_a_population_of_norms_shares_the_other_parameters():
    model, params = small()
    norms = jax.vmap(lambda s: jax.tree.map(lambda x: x * s, params["blocks"]["norm1"]))(
        jnp.array([0.5, 1.0, 2.0])
    )

    def gradient(norm, params):
        blocks = params["blocks"] | {"norm1": norm}
        return loss_fn(model)(params | {"blocks": blocks}, images())

    together = jax.jit(jax.vmap(jax.grad(gradient), (0, None)))(norms, params)
    alone = jax.lax.map(lambda norm: jax.grad(gradient)(norm, params), norms)
    close(together, alone)


@pytest.mark.parametrize(
    ("dtype", "tokens"), [("bfloat16", jnp.bfloat16), ("bfloat16_products", jnp.float32)]
)
def test_bfloat16_keeps_float32_parameters_and_logits(dtype, tokens):
    model, params = small(dtype=dtype)
    exact, _ = small()
    logits, out, _ = model.apply(params, {}, images())
    assert logits.dtype == jnp.float32
    assert out["tokens"].dtype == tokens
    expected = exact.apply(params, {}, images())[0]
    np.testing.assert_allclose(logits, expected, atol=0.03)
    assert jnp.abs(logits - expected).max() > 1e-6  # something is rounded
    gradients = jax.jit(jax.grad(loss_fn(model)))(params, images())
    assert {g.dtype for g in jax.tree.leaves(gradients)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("num_out", [3, 7])
def test_rounded_products_and_their_gradients_are_those_of_rounded_factors(num_out):
    rng = np.random.default_rng(0)
    x, dy, kernel = (
        rng.normal(size=shape).astype(np.float32)
        for shape in ((2, 11, 5), (2, 11, num_out), (5, num_out))
    )

    def apply(x, kernel, bias):
        layer = Linear(5, num_out, draws=Draws(), rounded=True)
        layer.kernel[...], layer.bias = kernel, type(layer.bias)(bias)
        return layer(x)

    y, pull = jax.vjp(apply, jnp.asarray(x), jnp.asarray(kernel), jnp.zeros(num_out))
    dx, dkernel, dbias = pull(jnp.asarray(dy))
    short = lambda a: np.asarray(jnp.asarray(a).astype(jnp.bfloat16), np.float64)
    np.testing.assert_allclose(y, short(x) @ short(kernel), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dx, short(dy) @ short(kernel).T, rtol=1e-5, atol=1e-6)
    flat = short(x).reshape(-1, 5), short(dy).reshape(-1, num_out)
    np.testing.assert_allclose(dkernel, flat[0].T @ flat[1], rtol=1e-5, atol=1e-5)
    # of rounded numbers, too, where a product sums them
    np.testing.assert_allclose(dbias, dy.sum((0, 1)), atol=0.03)


@pytest.mark.parametrize(("rounded", "tolerance"), [(False, 1e-5), (True, 0.02)])
def test_attention_and_its_gradient_are_those_of_the_formula(rounded, tolerance):
    rng = np.random.default_rng(0)
    batch, tokens, num_heads, width = 2, 65, 2, 4
    qkv, dy = (
        rng.normal(size=(batch, tokens, n * num_heads * width)).astype(np.float32) for n in (3, 1)
    )
    y, pull = jax.vjp(lambda x: attend(x, width, rounded=rounded), jnp.asarray(qkv))
    (dqkv,) = pull(jnp.asarray(dy))

    by_head = lambda x: x.astype(np.float64).reshape(batch, tokens, -1, num_heads, width)
    (q, k, v), (dheads,) = (np.einsum("btnhd->nbhtd", by_head(x)) for x in (qkv, dy))
    turned = lambda x: x.swapaxes(-1, -2)
    weights = np.exp(q @ turned(k) / width**0.5)
    weights /= weights.sum(-1, keepdims=True)
    dweights = dheads @ turned(v)
    dscores = weights * (dweights - (dweights * weights).sum(-1, keepdims=True)) / width**0.5
    expected = np.stack([dscores @ k, turned(dscores) @ q, turned(weights) @ dheads])
    for ours, theirs in ((y, (weights @ v)[None]), (dqkv, expected)):
        error = np.einsum("btnhd->nbhtd", by_head(np.asarray(ours))) - theirs
        assert np.linalg.norm(error) < tolerance * np.linalg.norm(theirs)
        assert rounded == (np.linalg.norm(error) > 1e-4 * np.linalg.norm(theirs))


def test_mean_pooling_has_fc_norm_and_no_norm():
    _, params = small(pool="mean")
    assert "fc_norm" in params
    assert "norm" not in params


@pytest.mark.parametrize("option", ["dropout", "drop_path"])
def test_randomness_comes_from_the_key_and_only_in_training(option):
    model, params = small(**{option: 0.5})
    plain, _ = small()

    def logits(**options):
        return jax.jit(lambda key: model.apply(params, {}, images(), **options | {"key": key})[0])(
            options.get("key")
        )

    first, again = (logits(train=True, key=jax.random.key(3)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, logits(train=True, key=jax.random.key(4)))
    np.testing.assert_allclose(logits(), plain.apply(params, {}, images())[0], atol=1e-5)
    with pytest.raises(ValueError, match="needs a key"):
        logits(train=True)


def test_stochastic_depth_drops_whole_branches_of_the_last_block_at_its_rate():
    model, params = small(depth=2, drop_path=0.4)
    params = unstack_blocks(params)
    _, out, _ = model.apply(params, {}, images(512), train=True, key=jax.random.key(5))
    change = jnp.abs(out["blocks/1"] - out["blocks/0"]).max((1, 2))
    assert abs(float(jnp.mean(change == 0)) - 0.4**2) < 0.05
    exact = model.apply(params, {}, images(512))[1]["blocks/0"]
    np.testing.assert_allclose(out["blocks/0"], exact, atol=1e-5)


def test_second_call_does_not_recompile():
    model, params = small()
    traces = []

    @jax.jit
    def apply(*args):
        traces.append(None)
        return model.apply(*args)

    for _ in range(2):
        apply(params, {}, images())
    assert traces == [None]


def test_images_of_another_size_are_refused():
    model, params = small()
    with pytest.raises(ValueError, match=r"must have shape \[B, 16, 16, 3\], got \(4, 32, 32, 3\)"):
        model.apply(params, {}, images(size=32))
    with pytest.raises(ValueError, match="must have shape"):
        model.apply(params, {}, jnp.ones((2, 16, 16, 1)))


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("vit_tiny_patch16_224", {"image_size": 100}, "multiple of patch_size 16, got 100"),
        ("vit_tiny_patch16_224", {"num_heads": 5}, "multiple of num_heads 5, got 192"),
        ("vit_tiny_patch16_224", {"pool": "max"}, "pool must be one of"),
        ("vit_tiny_patch16_224", {"drop_path": 1.0}, r"drop_path must be in \[0, 1\)"),
        ("vit_giant", {}, "unknown model 'vit_giant'; known are"),
        ("resnet18", {"image_size": 16}, "at least 32, got 16"),
        ("vgg11", {"classifier": (8,)}, "two numbers of units"),
    ],
)
def test_configurations_that_cannot_work_are_explained(name, overrides, message):
    with pytest.raises(ValueError, match=message):
        image_model(name, 3, **overrides)


def test_names_carry_the_normalisation_their_weights_expect():
    assert image_model("vit_base_patch16_224", 2).config.mean == (0.5, 0.5, 0.5)
    assert image_model("vit_base_patch16_224.mae", 2).config.mean == (0.485, 0.456, 0.406)
    assert image_model("vit_base_patch16_clip_224", 2).config.std[0] == 0.26862954
    huge = image_model("vit_huge_patch14_224", 2).config
    assert (huge.depth, huge.width, huge.patch_size) == (32, 1280, 14)
