# pyright: reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false
"""Mask spaces: bit tables of the published methods, partition, expansion, LoRA."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairjax import trees
from fairjax.fairtune import (
    PUBLISHED_NAMES,
    add_lora,
    fold_lora,
    mask_space,
    mask_space_from_rules,
)
from fairjax.models import image_model

VIT_B = jax.eval_shape(image_model("vit_base_patch16_224", 2).init, jax.random.key(0))[0]
RESNET = jax.eval_shape(image_model("resnet50", 2).init, jax.random.key(0))[0]
TINY = image_model("vit_micro", 2, image_size=16, width=12, depth=3)
PARAMS = TINY.init(jax.random.key(0))[0]
HEAD, NORM, ATTN, MLP = 768 * 2 + 2, 1536, 2_362_368, 4_722_432
BLOCK, BACKBONE, POSITIONS = 7_087_872, 85_798_656, 151_296


def one_bit(space, i):
    mask = np.zeros(space.num_units, bool)
    mask[i] = True
    return mask


@pytest.mark.parametrize(
    ("name", "bits", "sizes"),
    [
        ("tune_full_block", 12, [2 * NORM + ATTN + MLP]),
        ("tune_attention_blocks_random", 12, [ATTN]),
        ("tune_layernorm_blocks_random", 12, [2 * NORM]),
        ("tune_mlp_blocks_random", 12, [MLP]),
        ("tune_attention_layernorm", 12, [ATTN + 2 * NORM]),
        ("tune_attention_mlp", 12, [ATTN + MLP]),
        ("tune_layernorm_mlp", 12, [2 * NORM + MLP]),
        ("tune_attention_layernorm_mlp", 12, [BLOCK]),
        ("auto_peft1", 36, [2 * NORM, ATTN, MLP]),
        ("auto_peft2", 48, [NORM, ATTN, NORM, MLP]),
        ("tune_attention_params_random", 48, [768 * 2304, 2304, 768 * 768, 768]),
    ],
)
def test_every_bit_of_the_published_methods_trains_what_the_authors_table_says(name, bits, sizes):
    space = mask_space(VIT_B, name)
    assert space.num_units == bits
    always = HEAD + (POSITIONS if name == "tune_attention_params_random" else 0)
    assert space.describe(np.zeros(bits, bool)).num_trained == always
    for i in (0, 1, 2, 3, bits // 2, bits - 1):
        found = space.describe(one_bit(space, i))
        assert found.num_trained - always == sizes[i % len(sizes)]
        assert found.units[0].startswith(f"blocks/{i // len(sizes)}")
    assert found.num_params == BACKBONE + HEAD


def test_bits_follow_the_published_order_within_a_block():
    assert mask_space(VIT_B, "auto_peft1").units[33:] == (
        "blocks/11/norm",
        "blocks/11/attn",
        "blocks/11/mlp",
    )
    assert mask_space(VIT_B, "auto_peft2").units[4:8] == (
        "blocks/1/norm1",
        "blocks/1/attn",
        "blocks/1/norm2",
        "blocks/1/mlp",
    )


@pytest.mark.parametrize(
    ("name", "trained"),
    [
        ("fullft", BACKBONE + HEAD),
        ("linear_readout", HEAD),
        ("tune_attention", 12 * ATTN + POSITIONS + HEAD),
        ("tune_layernorm", 25 * NORM + HEAD),
        ("bitfit", 12 * (768 * 2 + 2304 + 768 + 3072 + 768) + 768 + 768 + 2),
    ],
)
def test_methods_without_bits_train_their_published_number_of_parameters(name, trained):
    space = mask_space(VIT_B, name)
    assert space.num_units == 0
    description = space.describe(np.zeros(0, bool))
    head_weights = HEAD - 2 if name == "bitfit" else 0  # the head's kernel has no "bias" in it
    assert description.num_trained == trained + head_weights
    assert description.percent == pytest.approx(100 * description.num_trained / (BACKBONE + HEAD))


def test_published_names_are_the_readable_spaces():
    for published, name in PUBLISHED_NAMES.items():
        assert mask_space(VIT_B, published).units == mask_space(VIT_B, name).units


def test_residual_blocks_have_convolution_and_norm_bits():
    space = mask_space(RESNET, "conv_bn")
    assert space.num_units == 2 * 16
    assert space.units[:3] == ("layer1/0/conv", "layer1/0/bn", "layer1/1/conv")
    first = space.describe(one_bit(space, 0)).num_trained - (2048 * 2 + 2)
    assert first == 64 * 64 + 9 * 64 * 64 + 64 * 256 + 64 * 256  # with the projection
    norms = mask_space(RESNET, "bn")
    assert norms.describe(one_bit(norms, 0)).num_trained - (2048 * 2 + 2) == 2 * (128 + 512)
    assert mask_space(RESNET, "blocks").num_units == mask_space(RESNET, "conv").num_units == 16
    with pytest.raises(ValueError, match="unknown mask space 'mlp'"):
        mask_space(RESNET, "mlp")


def test_parts_bind_to_the_whole_and_only_tunable_leaves_need_copies():
    space = mask_space(PARAMS, "norm")
    tunable, frozen = space.partition(PARAMS)
    assert set(trees.flatten_named(tunable)) == {
        f"{part}/{leaf}"
        for part, leaves in {
            "head": ("kernel", "bias"),
            "blocks/norm1": ("scale", "bias"),
            "blocks/norm2": ("scale", "bias"),
        }.items()
        for leaf in leaves
    }
    bound = space.bind(tunable, frozen)
    assert jax.tree.structure(bound) == jax.tree.structure(PARAMS)
    jax.tree.map(np.testing.assert_array_equal, bound, PARAMS)


def test_expanded_masks_broadcast_to_their_leaves_and_mark_whole_blocks():
    space = mask_space(PARAMS, "norm_attn_mlp")
    mask = one_bit(space, 4)  # block 1, attention
    expanded = jax.jit(space.expand)(jnp.asarray(mask))
    tunable = space.partition(PARAMS)[0]
    full = jax.tree.map(lambda leaf, m: jnp.broadcast_to(m, leaf.shape), tunable, expanded)
    on = {
        name: np.asarray(leaf).reshape(len(leaf), -1).all(1)
        for name, leaf in trees.flatten_named(full["blocks"]).items()
    }
    for name, blocks in on.items():
        assert blocks.tolist() == [False, name.startswith("attn/"), False]
    assert all(bool(leaf.all()) for leaf in jax.tree.leaves(full["head"]))
    count = sum(int(leaf.sum()) for leaf in jax.tree.leaves(full))
    assert count == space.describe(mask).num_trained


def test_a_static_split_holds_exactly_what_the_mask_trains():
    space = mask_space(PARAMS, "norm1_attn_norm2_mlp")
    mask = one_bit(space, 10)  # block 2, norm2
    trained, rest = space.split(PARAMS, mask)
    assert set(trees.flatten_named(trained)) == {
        "head/kernel",
        "head/bias",
        "blocks/2/norm2/scale",
        "blocks/2/norm2/bias",
    }
    everywhere = space.split(PARAMS, np.ones(12, bool))[0]
    assert everywhere["blocks"]["norm2"]["scale"].shape == (3, 12)  # no reason to take blocks apart
    images = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
    whole = TINY.apply(PARAMS, {}, images)[0]
    np.testing.assert_allclose(
        TINY.apply(space.bind(trained, rest), {}, images)[0], whole, atol=1e-5
    )


def test_lora_starts_at_the_pretrained_network_and_folds_its_product_into_q_and_v():
    params = add_lora(PARAMS, jax.random.key(1), rank=2, alpha=4.0)
    jax.tree.map(np.testing.assert_array_equal, fold_lora(params), PARAMS)
    space = mask_space(params, "lora")
    assert space.units == ("blocks/0/lora", "blocks/1/lora", "blocks/2/lora")
    per_block = 2 * 2 * 12 * 2  # q and v, a and b, width 12, rank 2
    assert space.describe(one_bit(space, 1)).num_trained == per_block + 12 * 2 + 2
    tunable, frozen = space.partition(params)
    assert "scale" not in tunable["blocks"]["lora"]
    b = jnp.ones_like(tunable["blocks"]["lora"]["q"]["b"])
    tunable["blocks"]["lora"]["q"]["b"] = b
    bound = space.bind(tunable, frozen)
    change = bound["blocks"]["attn"]["qkv"]["kernel"] - PARAMS["blocks"]["attn"]["qkv"]["kernel"]
    by_hand = 2.0 * jnp.einsum("lir,lrj->lij", tunable["blocks"]["lora"]["q"]["a"], b)
    np.testing.assert_allclose(change[:, :, :12], by_hand, atol=1e-5)
    assert not change[:, :, 12:].any()
    one_by_one = fold_lora(trees.unstack_blocks(trees.merge(tunable, frozen)))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        trees.stack_blocks(one_by_one),
        bound,
    )


def test_rules_of_ones_own_make_units_in_block_order():
    space = mask_space_from_rules(
        PARAMS,
        {
            r"head/.*": "trained",
            r"blocks/(\d+)/mlp/.*": r"blocks/\1/mlp",
            r"blocks/(\d+)/attn/.*": r"blocks/\1/attn",
            r"pos_embed|cls_token": "tokens",
            r".*": "frozen",
        },
    )
    assert space.units == (
        "tokens",
        "blocks/0/mlp",
        "blocks/0/attn",
        "blocks/1/mlp",
        "blocks/1/attn",
        "blocks/2/mlp",
        "blocks/2/attn",
    )
    text = space.describe(np.array([True, True, False, True, False, False, True])).text
    assert text.startswith("mlp of blocks 0-1; attn of blocks 2; tokens; head; ")


def test_mistakes_in_rules_and_masks_are_named():
    with pytest.raises(ValueError, match="no rule for parameter 'blocks/0/"):
        mask_space_from_rules(PARAMS, {r"head/.*": "trained"})
    with pytest.raises(ValueError, match=r"rule 'block/\.\*' decides no parameter"):
        mask_space_from_rules(PARAMS, {r"block/.*": "trained", r".*": "frozen"})
    with pytest.raises(ValueError, match="unknown mask space 'norms'"):
        mask_space(PARAMS, "norms")
    with pytest.raises(ValueError, match="needs parameters from add_lora"):
        mask_space(PARAMS, "lora")
    with pytest.raises(ValueError, match=r"rank must be in \[1, 12\], got 13"):
        add_lora(PARAMS, jax.random.key(0), rank=13)
    space = mask_space(PARAMS, "norm")
    for use in (space.expand, space.describe, lambda mask: space.split(PARAMS, mask)):
        with pytest.raises(ValueError, match=r"has shape \(3,\), got \(2,\)"):
            use(np.ones(2, bool))
    with pytest.raises(ValueError, match="both trees hold head/bias"):
        trees.merge(PARAMS, {"head": {"bias": jnp.zeros(2)}})


def own_params(depth=1):
    """A network whose classifier is `fc`, or lies deeper."""
    layer = {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)}
    params = {"body": {"0": dict(layer), "BatchNorm_0": {"scale": jnp.ones(2)}}, "fc": dict(layer)}
    return params if depth == 1 else {"net": params, "head": jnp.ones(3)}


@pytest.mark.parametrize("head", ["fc", "net/fc"])
@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("full", {"0/kernel", "0/bias", "BatchNorm_0/scale"}),
        ("linear", set()),
        ("bitfit", {"0/bias"}),
        ("norm_all", {"BatchNorm_0/scale"}),
    ],
)
def test_spaces_without_bits_suit_any_network_whatever_its_classifier_is_called(head, name, body):
    params = own_params(depth=head.count("/") + 1)
    trained = set(trees.flatten_named(mask_space(params, name, head=head).partition(params)[0]))
    prefix = head.removesuffix("fc")
    expected = {f"{head}/kernel", f"{head}/bias"} | {f"{prefix}body/{leaf}" for leaf in body}
    if name == "full" and prefix:
        expected.add("head")  # here it is not the classifier
    assert trained == expected


def test_a_network_of_ones_own_has_a_bit_per_layer_without_being_asked():
    assert mask_space(own_params(), head="fc").units == ("body/BatchNorm_0", "body/0")
    deeper = mask_space(own_params(2), head="net/fc").units
    assert set(deeper) == {"head", "net/body/BatchNorm_0", "net/body/0"}
    assert mask_space(PARAMS).units == mask_space(PARAMS, "norm_attn_mlp").units
    assert mask_space(RESNET).units == mask_space(RESNET, "conv_bn").units
    vgg = jax.eval_shape(image_model("vgg11", 2).init, jax.random.key(0))[0]
    assert {"features/0", "features/18"} < set(mask_space(vgg).units)
    with pytest.raises(ValueError, match="'norm' for this network; known are layers, full, linear"):
        mask_space(vgg, "norm")


def test_a_network_that_is_all_classifier_has_these_spaces_too():
    params = {"head": {"kernel": jnp.ones((3, 1)), "bias": jnp.ones(1)}}
    for name in ("full", "linear"):
        assert mask_space(params, name).describe(np.zeros(0, bool)).num_trained == 4


def test_a_missing_classifier_is_named_with_what_is_there():
    with pytest.raises(ValueError, match="no head 'head': no 'head' on .*, there is body, fc"):
        mask_space(own_params(), "full")
    with pytest.raises(ValueError, match="no head 'net/head': .*, there is body, fc"):
        mask_space(own_params(2), "linear", head="net/head")
    with pytest.raises(ValueError, match="for others see mask_space_from_rules"):
        mask_space(own_params(), "mine", head="fc")
