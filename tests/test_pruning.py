"""Scoring, selecting, masking, slicing and evaluating plans."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fairjax import metrics, pruning
from fairjax.data import Examples
from fairjax.losses import cross_entropy, soft_nearest_neighbor_loss
from fairjax.models import VGGConfig, image_model, mlp
from fairjax.models.vgg import vgg
from fairjax.pruning import PrunePlan
from fairjax.pruning.evaluate import dense_chain
from fairjax.train import Batch, make_step, start_train

SMALL_VGG = {"image_size": 16, "features": (6, "M", 8, "M"), "classifier": (10, 9), "pool_size": 2}
MODELS = {
    "vgg": lambda: vgg(VGGConfig(3, dropout=0.0, **SMALL_VGG)),
    "vgg_bn": lambda: vgg(VGGConfig(3, dropout=0.0, batch_norm=True, **SMALL_VGG)),
    "resnet18": lambda: image_model("resnet18", 3, image_size=32, width=4, depths=(1, 2)),
    "resnet50": lambda: image_model("resnet50", 3, image_size=32, width=4, depths=(2, 1)),
    "vit": lambda: image_model("vit_micro", 3, image_size=16, width=16, num_heads=4, depth=2),
    "mlp": lambda: mlp(5, 3, (8, 6)),
}


def make(name):
    """A network whose biases and batch statistics are not at their neutral start.

    It takes its inputs as they are, which need not be images.
    """
    model = MODELS[name]()._replace(preprocess=None)
    params, stats = jax.jit(model.init)(jax.random.key(0))
    rng = np.random.default_rng(0)
    params, stats = jax.tree.map(
        lambda leaf: jnp.asarray(leaf + rng.uniform(-0.1, 0.1, leaf.shape), jnp.float32),
        jax.device_get((params, stats)),
    )
    size = getattr(model.config, "image_size", None)
    shape = (24, 5) if size is None else (24, size, size, 3)
    inputs = jnp.asarray(rng.normal(size=shape), jnp.float32)
    return model, params, stats, inputs


@pytest.fixture(scope="module")
def networks():
    return functools.cache(make)


def random_plan(model, layers, seed=0):
    rng = np.random.default_rng(seed)
    keep = {}
    for layer in layers:
        keep[layer] = rng.random(model.config.channel_graph[layer].size) < 0.6
        keep[layer][0], keep[layer][-1] = True, False
    return PrunePlan(jax.tree.map(jnp.asarray, keep))


def mask(params, plan, graph, mode: Any = "channel"):
    return jax.jit(lambda p, plan: pruning.mask_channels(p, plan, graph, mode=mode))(params, plan)


def logits_of(model, params, stats, inputs):
    return jax.jit(lambda *args: model.apply(*args)[0])(params, stats, inputs)


@pytest.mark.parametrize("name", MODELS)
def test_a_sliced_network_is_smaller_and_gives_the_logits_of_the_masked_one(networks, name):
    model, params, stats, inputs = networks(name)
    graph = model.config.channel_graph
    plan = random_plan(model, graph)
    masked = mask(params, plan, graph)
    small, small_stats = pruning.slice_channels(params, stats, plan, graph)
    expected = logits_of(model, masked, stats, inputs)
    np.testing.assert_allclose(logits_of(model, small, small_stats, inputs), expected, atol=1e-5)
    assert np.abs(expected - logits_of(model, params, stats, inputs)).max() > 1e-2
    widths = pruning.num_channels(small, graph)
    assert widths == {layer: int(keep.sum()) for layer, keep in plan.keep.items()}
    num_weights = [sum(leaf.size for leaf in jax.tree.leaves(p)) for p in (small, params)]
    assert num_weights[0] < 0.8 * num_weights[1]


def test_a_sliced_network_can_be_pruned_again(networks):
    model, params, stats, inputs = networks("vgg_bn")
    graph = model.config.channel_graph
    layer = "features/4"
    first = PrunePlan({layer: jnp.arange(8) != 2})
    again = PrunePlan({layer: jnp.arange(7) != 5})  # was channel 6
    both = PrunePlan({layer: ~jnp.isin(jnp.arange(8), jnp.array([2, 6]))})
    twice = pruning.slice_channels(
        *pruning.slice_channels(params, stats, first, graph), again, graph
    )
    once = pruning.slice_channels(params, stats, both, graph)
    jax.tree.map(np.testing.assert_array_equal, twice, once)


def test_the_published_mask_leaves_the_constant_of_the_bias(networks):
    model, params, stats, inputs = networks("vgg")
    plan = PrunePlan({"features/3": jnp.arange(8) > 1})
    graph = model.config.channel_graph
    for mode in ("weight", "channel"):
        masked = mask(params, plan, graph, mode)
        conv = jax.jit(lambda p: model.apply(p, stats, inputs)[1]["features/3"])(masked)
        bias = params["features"]["3"]["bias"] if mode == "weight" else jnp.zeros(8)
        expected = np.broadcast_to(bias[:2], conv[..., :2].shape)
        np.testing.assert_array_equal(conv[..., :2], expected)
        assert float(jnp.std(conv[..., 2:])) > 0.1


@pytest.mark.parametrize("mode", ["channel", "weight"])
def test_pruned_weights_stay_put_in_training_even_with_weight_decay(networks, mode):
    model, params, stats, inputs = networks("vit")
    graph = model.config.channel_graph
    plan = random_plan(model, graph)
    keep = jax.jit(
        lambda p: jax.tree.map(
            lambda factor: factor > 0, pruning.channel_masks(p, plan, graph, mode=mode)
        )
    )(params)
    masked = mask(params, plan, graph, mode)
    optimizer = optax.adamw(0.01, weight_decay=0.1)
    labels = jnp.arange(24) % 3
    batch = Batch(inputs, labels, jnp.zeros(24, jnp.int32), jnp.ones(24))
    step = jax.jit(make_step(model, optimizer))
    state, _ = step(start_train(masked, stats, optimizer), batch, jax.random.key(0), mask=keep)

    @jax.jit
    def gradients(params):
        loss = lambda p: cross_entropy(model.apply(p, stats, inputs)[0], labels).mean()
        return jax.grad(loss)(params)

    hidden = gradients(masked)["blocks"]["0"]["mlp"]["fc1"]["kernel"]
    pruned = ~np.asarray(plan.keep["blocks/0/mlp/fc1"])
    assert np.abs(hidden[:, pruned]).max() > 0  # GELU passes gradients to pruned units
    leaves = zip(*map(jax.tree.leaves, (state.params, keep, masked)), strict=True)
    for after, kept, before in leaves:
        pruned = np.broadcast_to(~kept, after.shape)
        np.testing.assert_array_equal(after[pruned], 0.0)
        assert pruned.all() or np.abs(after - before)[~pruned].max() > 1e-4


def test_select_takes_exactly_the_lowest_and_breaks_ties_by_channel():
    plan = pruning.select_channels({"a": [3.0, 1.0, 1.0, 1.0, 5.0]}, count=2)
    np.testing.assert_array_equal(plan.keep["a"], [1, 0, 0, 1, 1])


def test_select_globally_keeps_the_minimum_of_every_layer():
    scores = {"a": [0.0, 0.1, 0.2], "b": [5.0, 0.15, 7.0, 8.0]}
    plan = pruning.select_channels(scores, count=3, scope="global", min_keep=2)
    np.testing.assert_array_equal(plan.keep["a"], [0, 1, 1])
    np.testing.assert_array_equal(plan.keep["b"], [0, 0, 1, 1])


def test_select_never_takes_a_channel_that_an_earlier_plan_pruned():
    first = pruning.select_channels({"a": [0.0, 1.0, 2.0, 3.0]}, count=1)
    second = pruning.select_channels({"a": [0.0, 3.0, 1.0, 2.0]}, ratio=0.5, after=first)
    np.testing.assert_array_equal(second.keep["a"], [0, 1, 0, 0])
    # What is pruned already may score anything, as a constant channel does.
    third = pruning.select_channels({"a": [np.nan, 3.0, 1.0, 2.0]}, count=1, after=first)
    np.testing.assert_array_equal(third.keep["a"], [0, 1, 0, 1])


@pytest.mark.parametrize(
    ("match", "scores", "options"),
    [
        ("count or ratio", {"a": [1.0, 2.0]}, {}),
        ("count or ratio", {"a": [1.0, 2.0]}, {"count": 1, "ratio": 0.5}),
        ("ratio must be", {"a": [1.0, 2.0]}, {"ratio": 1.0}),
        ("at least 1", {"a": [1.0, 2.0]}, {"count": 0}),
        ("cannot prune 2 channels of a: 2 are left", {"a": [1.0, 2.0]}, {"count": 2}),
        ("scope must be", {"a": [1.0, 2.0]}, {"count": 1, "scope": "all"}),
        ("channel 1 of a is nan.*not finite", {"a": [1.0, np.nan]}, {"count": 1}),
        (
            "a has 2 channels, but 3",
            {"a": [1.0, 2.0]},
            {"count": 1, "after": PrunePlan({"a": jnp.ones(3, bool)})},
        ),
    ],
)
def test_select_refuses(match, scores, options):
    with pytest.raises(ValueError, match=match):
        pruning.select_channels(scores, **options)


def test_unknown_layers_and_plans_of_other_networks_are_named(networks):
    model, params, stats, _ = networks("vgg")
    graph = model.config.channel_graph
    with pytest.raises(ValueError, match="no layer 'conv9'.*features/0, features/3, classifier/0"):
        pruning.mask_channels(params, PrunePlan({"conv9": jnp.ones(3, bool)}), graph)
    with pytest.raises(ValueError, match="features/3 has 8 channels here, 7 in the plan"):
        pruning.slice_channels(params, stats, PrunePlan({"features/3": jnp.ones(7, bool)}), graph)
    with pytest.raises(ValueError, match="keeps no channel of features/3"):
        pruning.slice_channels(params, stats, PrunePlan({"features/3": jnp.zeros(8, bool)}), graph)


def examples(inputs, num_classes=3):
    labels = jnp.arange(len(inputs)) % num_classes
    group = (jnp.arange(len(inputs)) // 2 % 3 > 0).astype(jnp.int32)
    return Examples(inputs, labels, group)


def scores_of(model, params, stats, data, **options):
    @jax.jit
    def run(params, stats, data):
        return pruning.score_channels(
            model, params, stats, data, num_groups=2, key=jax.random.key(1), **options
        )

    return run(params, stats, data)


def test_snnl_scores_of_one_batch_are_the_loss_of_the_activations(networks):
    model, params, stats, inputs = networks("vgg")
    data = examples(inputs)
    layers = ("features/0", "features/3", "classifier/0")
    scores = scores_of(model, params, stats, data, layers=layers, self_in_numerator=True)
    out = jax.jit(lambda *args: model.apply(*args)[1])(params, stats, inputs)
    for layer in layers:
        for ids, ours in ((data.group, scores.group), (data.labels, scores.label)):
            loss = soft_nearest_neighbor_loss(
                out[layer], ids, num_classes=3, self_in_numerator=True
            )
            np.testing.assert_allclose(ours[layer], loss, atol=1e-5)
    assert (scores.num_batches, scores.num_skipped) == (1, 0)
    values = scores.values(0.5)["features/3"]
    expected = scores.group["features/3"] - 0.5 * scores.label["features/3"]
    np.testing.assert_allclose(values, expected, atol=1e-6)


def test_batches_of_one_group_are_skipped_and_counted(networks):
    model, params, stats, inputs = networks("mlp")
    group = jnp.zeros(24, jnp.int32).at[3].set(1)
    data = Examples(inputs, jnp.arange(24) % 3, group)
    scores = scores_of(model, params, stats, data, layers=["hidden/0"], batch_size=10)
    assert (scores.num_batches, scores.num_skipped) == (0, 3)
    with pytest.raises(ValueError, match="no batch held two groups"):
        pruning.select_channels(scores.values(), count=1)
    assert np.isfinite(scores.label["hidden/0"]).all()


def test_batches_count_by_their_size_and_the_tail_is_not_dropped(networks):
    model, params, stats, inputs = networks("mlp")
    data = examples(inputs)._replace(group=jnp.arange(24) % 2)
    scores = scores_of(model, params, stats, data, layers=["hidden/1"], batch_size=16)
    assert (scores.num_batches, scores.num_skipped) == (2, 0)
    order = jax.random.permutation(jax.random.key(1), 24)
    out = model.apply(params, stats, inputs)[1]["hidden/1"]
    losses = [
        soft_nearest_neighbor_loss(out[rows][:, None], data.group[rows], num_classes=2)
        for rows in (order[:16], order[16:])
    ]
    np.testing.assert_allclose(
        scores.group["hidden/1"], (16 * losses[0] + 8 * losses[1]) / 24, atol=1e-5
    )


@pytest.mark.parametrize("score", pruning.SCORES)
def test_every_score_covers_every_channel_and_averages_attributes(networks, score):
    model, params, stats, inputs = networks("vit")
    data = examples(inputs)
    layer = "blocks/1/attn"
    other = (jnp.arange(24) % 2).astype(jnp.int32)
    options = {"layers": [layer], "score": score}
    first, second, both = (
        scores_of(model, params, stats, data._replace(group=group), **options).group[layer]
        for group in (data.group, other, jnp.stack([data.group, other], axis=1))
    )
    assert first.shape == (model.config.channel_graph[layer].size,)
    assert np.unique(first).size == first.size
    np.testing.assert_allclose(both, (first + second) / 2, rtol=1e-4, atol=1e-6)


def test_snnl_and_activation_scores_find_the_hidden_unit_that_shows_the_group():
    model = mlp(5, 2, (6,))
    params, stats = jax.jit(model.init)(jax.random.key(0))
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(200, 5)).astype(np.float32)
    group = (rng.random(200) < 0.4).astype(np.int32)
    labels = (inputs[:, 1] > 0).astype(np.int32)
    inputs[:, 0] = 2.0 * group - 1
    kernel = np.zeros((5, 6), np.float32)
    kernel[[0, 1, 2, 3, 4, 4], range(6)] = 1.0
    params["hidden"]["0"] = {"kernel": jnp.asarray(kernel), "bias": jnp.ones(6)}
    data = Examples(*map(jnp.asarray, (inputs, labels, group)))
    for score in ("snnl", "activation"):
        scores = scores_of(model, params, stats, data, layers=["hidden/0"], score=score)
        assert scores.group["hidden/0"].argmin() == 0, score
        assert scores.label["hidden/0"].argmin() == 1, score


def test_taylor_importance_is_the_squared_effect_of_scaling_a_channel_down(networks):
    model, params, stats, inputs = networks("vgg_bn")
    data = examples(inputs)
    graph, layer = model.config.channel_graph, "features/4"
    scores = scores_of(model, params, stats, data, layers=[layer], score="taylor")

    @jax.jit
    def group_losses(scale):
        small = jax.tree.map(lambda leaf: leaf, params)
        small["classifier"]["0"] = {
            "kernel": params["classifier"]["0"]["kernel"] * jnp.tile(scale, 4)[:, None],
            "bias": params["classifier"]["0"]["bias"],
        }
        losses = cross_entropy(model.apply(small, stats, inputs)[0], data.labels)
        return jnp.stack([losses[np.asarray(data.group) == g].mean() for g in (0, 1)])

    assert graph[layer].size == 8
    step = 1e-3  # so small that hardly a ReLU switches
    slopes = np.stack(
        [
            (group_losses(1 + step * unit) - group_losses(1 - step * unit)) / (2 * step)
            for unit in jnp.eye(8)
        ],
        axis=1,
    )
    shares = slopes**2 / (slopes**2).sum(1, keepdims=True)
    np.testing.assert_allclose(scores.group[layer], -np.abs(shares[0] - shares[1]), atol=2e-3)
    assert np.abs(scores.group[layer]).max() > 0.02


def test_scores_refuse_unknown_names_small_batches_and_show_activations_that_are_not_finite(
    networks,
):
    model, params, stats, inputs = networks("vgg")
    data = examples(inputs)
    for match, options in {
        "no layer 'fc'": {"layers": ["fc"]},
        "score must be one of": {"layers": ["features/0"], "score": "gradient"},
        "at least 4 rows, got 3": {"layers": ["features/0"], "batch_size": 3},
    }.items():
        with pytest.raises(ValueError, match=match):
            scores_of(model, params, stats, data, **options)
    bad = data._replace(inputs=inputs.at[0, 0, 0, 0].set(jnp.nan))
    scores = scores_of(model, params, stats, bad, layers=["features/0"])
    with pytest.raises(ValueError, match="channel 0 of features/0 is nan"):
        pruning.select_channels(scores.values(), count=1)


PLANS = [
    ("vgg", ["features/3"], "channel"),
    ("vgg", ["features/3"], "weight"),
    ("vgg_bn", ["features/4"], "weight"),
    ("vgg_bn", ["features/0"], "channel"),
    ("vgg", ["classifier/0"], "weight"),
    ("mlp", ["hidden/1"], "channel"),
    ("vit", ["blocks/0/attn"], "channel"),
    ("resnet18", ["layer2", "layer2/0/conv1"], "channel"),
]


@pytest.mark.parametrize(("name", "layers", "mode"), PLANS)
def test_plans_evaluated_together_equal_one_masked_network_after_another(
    networks, name, layers, mode
):
    model, params, stats, inputs = networks(name)
    graph = model.config.channel_graph
    plans = [random_plan(model, layers, seed) for seed in range(3)]
    together = jax.jit(lambda *args: pruning.plan_logits(model, *args, mode=mode))
    alone = jax.jit(
        lambda params, stats, plan, inputs: model.apply(
            pruning.mask_channels(params, plan, graph, mode=mode), stats, inputs
        )[0]
    )
    logits = together(params, stats, pruning.stack_plans(plans), inputs)
    expected = jnp.stack([alone(params, stats, plan, inputs) for plan in plans])
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(logits[0] - logits[1]).max() > 1e-3


def test_metrics_of_many_plans_are_those_of_one_masked_network_after_another(networks):
    model, params, stats, inputs = networks("vgg")
    data = examples(inputs)
    plans = [random_plan(model, ["features/3"], seed) for seed in range(3)]

    @jax.jit
    def run(params, stats, plans, data):
        return pruning.evaluate_plans(
            model, params, stats, plans, data, num_groups=2, batch_size=10
        )

    @jax.jit
    def measure(logits, data):
        return pruning.pruning_metrics(logits, labels=data.labels, group=data.group, num_groups=2)

    table = run(params, stats, pruning.stack_plans(plans), data)
    for i, plan in enumerate(plans):
        masked = mask(params, plan, model.config.channel_graph)
        for metric, value in measure(logits_of(model, masked, stats, inputs), data).items():
            np.testing.assert_allclose(table[metric][i], value, atol=1e-5, err_msg=metric)
    assert np.ptp(table["auc"]) > 0


def test_one_layer_feeds_the_head_through_linear_layers_only_where_the_graph_says_so(networks):
    chains = {
        ("vgg", "features/3"): ("classifier/0", "classifier/3", "head"),
        ("vgg", "features/0"): (),
        ("mlp", "hidden/1"): ("head",),
        ("resnet18", "layer2"): (),
        ("vit", "blocks/0/mlp/fc1"): (),
    }
    for (name, layer), chain in chains.items():
        assert dense_chain(networks(name)[0].config.channel_graph, layer, head="head") == chain


def test_plans_rank_by_validation_fate_and_undefined_plans_never_win(networks):
    model, params, stats, inputs = networks("vgg")
    data = examples(inputs)
    scores = {
        name: scores_of(model, params, stats, data, layers=["features/3"], score=name)
        for name in ("snnl", "magnitude")
    }
    proposals, plans = pruning.propose_plans(
        scores, layer="features/3", counts=(1, 4), trade_offs=(0.0, 1.0)
    )
    assert proposals[3] == ("features/3", 4, "snnl", 1.0)
    np.testing.assert_array_equal(8 - plans.keep["features/3"].sum(1), [1, 4] * 4)
    table = {"accuracy": jnp.array([0.8, 0.6, 0.8, 0.9]), "eodd": jnp.array([0.1, 0.1, 0.2, 0.1])}
    base = {"accuracy": jnp.array(0.8), "eodd": jnp.array(0.2)}
    values = pruning.fate_objective(table, base)
    np.testing.assert_allclose(values, [0.5, 0.25, 0.0, 0.625], atol=1e-6)
    ranked = pruning.rank_plans(values.at[3].set(jnp.nan))
    np.testing.assert_array_equal(ranked, [0, 1, 2, 3])


def test_the_papers_disparities_stand_beside_the_usual_metrics():
    logits = 9.0 * jnp.eye(2)[jnp.array([0, 1, 1, 0, 1, 1])]
    labels, group = jnp.array([0, 1, 0, 1, 1, 0]), jnp.array([0, 0, 0, 1, 1, 1])
    measure = jax.jit(
        lambda logits: pruning.pruning_metrics(logits, labels=labels, group=group, num_groups=2)
    )
    table = measure(logits)
    counts = metrics.group_counts(jnp.argmax(logits, -1), labels=labels, group=group, num_groups=2)
    np.testing.assert_allclose(table["eodd"], metrics.eodd(counts))
    np.testing.assert_allclose(table["accuracy"], 0.5)
    assert np.isnan(measure(logits.at[0].set(jnp.nan))["eodd_scp"])
