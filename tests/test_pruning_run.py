# pyright: reportCallIssue=false, reportArgumentType=false, reportOptionalCall=false
"""Pruning as one call, its rounds and its controls, on small networks."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from fairjax import pruning
from fairjax.data import Dataset, synthetic_gaussians
from fairjax.fairtune import mask_space_from_rules, refit, search_masks
from fairjax.models import Channels, Slot, Weights, image_preprocess, mlp, wrap_nnx
from fairjax.pruning import PrunePlan
from fairjax.pruning.plans import graph_of
from fairjax.train import Recipe, fit, init_fit, init_train, make_step, predict, train_network

KEY = jax.random.key(0)
RECIPE = Recipe(num_epochs=2, batch_size=20, sampler="class_balanced", learning_rate=3e-3)


@pytest.fixture(scope="module")
def table():
    """Two Gaussians, a trained network of two hidden layers, and the options of a short pruning."""
    data = synthetic_gaussians(KEY, 200, num_val=120, num_test=100)
    model = mlp(data.inputs.shape[1], 2, (8, 6))
    weights = Weights(*jax.jit(model.init)(KEY), ())
    return model, train_network(model, weights, data, RECIPE, key=KEY), data


def rounds_of(table, **options):
    model, weights, data = table
    settings = {"layers": ["hidden/0"], "counts": [1, 2], "num_rounds": 2, "num_finalists": 2}
    return pruning.prune_rounds(model, weights, data, RECIPE, **settings | options)


def equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


class OwnNet(nnx.Module):
    """A convolution, a hidden layer with tanh, and a classifier that is no attribute itself."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        linears = {"hidden": nnx.Linear(8, 10, rngs=rngs), "fc": nnx.Linear(10, 2, rngs=rngs)}
        self.net = nnx.Dict(linears)

    def __call__(self, x):
        conv = self.conv(x)
        hidden = self.net["hidden"](jax.nn.relu(conv).mean((1, 2)))
        return self.net["fc"](jnp.tanh(hidden)), {"conv": conv, "net/hidden": hidden}


def own_network():
    def layer(name, size, reader, axis):
        outputs = (Slot(f"{name}/kernel", axis), Slot(f"{name}/bias", 0))
        return Channels(size, outputs, (Slot(f"{reader}/kernel", 0),))

    graph = {
        "conv": layer("conv", 8, "net/hidden", 3),
        "net/hidden": layer("net/hidden", 10, "net/fc", 1),
    }
    preprocess = image_preprocess(8, (0.5,) * 3, (0.25,) * 3)
    return wrap_nnx(
        lambda rngs: OwnNet(rngs),
        num_classes=2,
        head="net/fc",
        preprocess=preprocess,
        channel_graph=graph,
    )


def pictures(count=240):
    """Labels are brightness, groups redness; most bright pictures of training are red."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, count).astype(np.int32)
    group = np.where(rng.random(count) < 0.75, labels, 1 - labels).astype(np.int32)
    images = rng.normal(110, 30, (count, 10, 10, 3))
    images += (4 * labels + rng.normal(0, 4, count))[:, None, None, None]
    images[..., 0] += 12 * group[:, None, None]
    rows = np.arange(count, dtype=np.int32)
    train, val, test = np.split(rows, [count // 2, 3 * count // 4])
    splits = {"train": train, "val": val, "test": test}
    inputs = np.clip(images, 0, 255).astype(np.uint8)
    names = ("dark", "bright"), ("grey", "red")
    return Dataset("pictures", inputs, labels, group, *names, splits=splits)


def test_a_network_of_ones_own_becomes_smaller_and_gives_the_logits_of_the_masked_one():
    model, data = own_network(), pictures()
    params, batch_stats = jax.jit(model.init)(KEY)
    recipe = Recipe(num_epochs=8, batch_size=20, learning_rate=0.01)
    weights = train_network(model, Weights(params, batch_stats, ()), data, recipe, key=KEY)
    seen = []
    pruned = pruning.prune(
        model,
        weights,
        data,
        recipe,
        layers=["conv", "net/hidden"],
        counts=[1, 3],
        key=KEY,
        max_accuracy_drop=1.0,
        on_round=seen.append,
    )
    graph = model.config.channel_graph
    left = pruning.num_channels(pruned.weights.params, graph)
    assert left == {layer: int(keep.sum()) for layer, keep in pruned.plan.keep.items()}
    (decision,) = pruned.rounds
    assert decision.taken and decision.val_fate > 0 and len(seen) == 1
    assert sum(left.values()) == 18 - decision.count
    inputs = data.examples("test").inputs
    masked = jax.jit(lambda *network: predict(model, *network, inputs))(*pruned.masked)
    np.testing.assert_allclose(pruned.logits("test"), masked, atol=1e-5)
    assert pruned.scores["snnl"].group["conv"].shape == (8,)
    assert pruned.weights.notes == (
        f"Pruned {decision.count} of {graph[decision.layer].size} channels of {decision.layer}.",
    )


def test_plans_of_a_network_with_another_activation_are_not_taken_for_ours():
    model = own_network()
    params, batch_stats = jax.jit(model.init)(KEY)
    inputs = pictures().inputs[:6]
    keep = jnp.asarray(np.random.default_rng(0).random((3, 10)) < 0.5)
    plans = PrunePlan({"net/hidden": keep})
    together = pruning.plan_logits(model, params, batch_stats, plans, inputs)
    for i in range(3):
        plan = PrunePlan({"net/hidden": keep[i]})
        masked = pruning.mask_channels(params, plan, model.config.channel_graph)
        alone = jax.jit(lambda p: predict(model, p, batch_stats, inputs))(masked)
        np.testing.assert_allclose(together[i], alone, atol=1e-5)


def test_inputs_are_preprocessed_once_wherever_they_go():
    model, data = own_network(), pictures().examples("val")
    params, batch_stats = jax.jit(model.init)(KEY)
    ready = data._replace(inputs=model.preprocess(data.inputs))
    bare = model._replace(preprocess=None)
    keep = PrunePlan({"conv": jnp.arange(16).reshape(2, 8) % 3 > 0})
    options = {"layers": ["conv"], "num_groups": 2, "key": KEY}
    for network, examples in ((model, data), (bare, ready)):
        found = (
            pruning.score_channels(network, params, batch_stats, examples, **options).group,
            pruning.evaluate_plans(
                network, params, batch_stats, keep, examples, num_groups=2, batch_size=7
            ),
            pruning.plan_logits(network, params, batch_stats, keep, examples.inputs),
        )
        if network is model:
            first = found
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), first, found)


def test_the_second_score_of_a_network_does_not_compile_again(table):
    model, weights, data = table
    traces = []

    def apply(*args, **kwargs):
        traces.append(1)
        return model.apply(*args, **kwargs)

    def score(network):
        return pruning.score_channels(
            network,
            weights.params,
            weights.batch_stats,
            data.examples("train"),
            layers=["hidden/0"],
            num_groups=2,
            key=KEY,
        ).group

    counted = model._replace(apply=apply)
    expected, before = score(counted), len(traces)
    equal(score(counted), expected)
    assert len(traces) == before > 0
    # a configuration that does not hash cannot be remembered, and works as well
    graph = model.config.channel_graph
    config = types.SimpleNamespace(num_classes=2, channel_graph=graph)
    equal(score(model._replace(config=config)), expected)


def test_a_run_goes_on_from_a_state_between_rounds_to_the_same_network(table):
    rounds, saved = rounds_of(table), []
    start = rounds.init(table[1])
    options = {"key": KEY, "propose": pruning.sensitive_plans, "take": "all"}
    whole = rounds.run(start, **options, on_round=saved.append)
    assert [int(state.num_tried) for state in saved] == [1, 2]
    equal(rounds.run(saved[0], **options), whole)
    assert jax.tree.map(jnp.shape, start) == jax.tree.map(jnp.shape, whole)
    decisions = rounds.decisions(whole)
    gone = 8 - int(whole.keep["hidden/0"].sum())
    assert gone == sum(decision.count for decision in decisions) >= 2
    equal(rounds.run(whole, **options), whole)


def test_pruned_weights_are_still_zero_after_later_rounds_with_weight_decay(table):
    rounds = rounds_of(table, num_rounds=3, counts=[1], num_finalists=1)
    options = {"key": KEY, "propose": pruning.sensitive_plans, "take": "all"}
    state = rounds.run(rounds.init(table[1]), **options)
    gone = ~state.keep["hidden/0"]
    assert gone.sum() == 3
    layer = state.params["hidden"]["0"]
    np.testing.assert_array_equal(layer["kernel"][:, gone], 0.0)
    assert np.abs(layer["kernel"][:, ~gone]).min() > 0
    pruned = rounds.finish(state, table[1], key=KEY)
    assert pruned.weights.params["hidden"]["0"]["kernel"].shape[1] == 5


def test_a_round_that_is_no_better_is_not_taken_and_ends_the_run(table):
    rounds = rounds_of(table, max_accuracy_drop=0.0)
    start = rounds.init(table[1])
    perfect = start._replace(base=start.base | {"accuracy": np.float32(1.1)})
    state = rounds.run(perfect, key=KEY, propose=pruning.sensitive_plans)
    (decision,) = rounds.decisions(state)
    assert not decision.accurate and not decision.taken and rounds.ended(state)
    equal(state.params, start.params)
    assert state.keep["hidden/0"].all()


def test_calling_everything_the_commonest_class_is_no_way_to_be_fair(table):
    base = {"accuracy": 0.70, "macro_f1": 0.66, "eodd": 0.08}
    found = {
        "accuracy": np.array([0.72, 0.69, 0.70, 0.66]),
        "macro_f1": np.array([0.42, 0.65, 0.66, 0.62]),
        "eodd": np.array([0.0, 0.05, 0.07, 0.0]),
    }
    assert rounds_of(table, accuracy="accuracy").rank(found, base).tolist() == [1, 2, 0, 3]


def test_controls_prune_nothing_or_as_many_channels_of_the_same_layer(table):
    rounds = rounds_of(table, num_finalists=3, layers=["hidden/0", "hidden/1"])
    state = rounds.init(table[1])
    like = pruning.Decision(1, True, "hidden/0", 3, "snnl", 0.0, 0.1, True, {})
    rules = {
        "tuned": pruning.repeat_unpruned((like,)),
        "random": pruning.repeat_random((like,)),
    }
    plans = {row: [each.plan for each in rule(rounds, state, KEY)] for row, rule in rules.items()}
    gone = {row: [int((~p.keep["hidden/0"]).sum()) for p in found] for row, found in plans.items()}
    assert gone == {"tuned": [0], "random": [3]}
    assert all(plan.keep["hidden/1"].all() for found in plans.values() for plan in found)
    later = state._replace(num_tried=np.array(1, np.int32))
    assert not any(rule(rounds, later, KEY) for rule in rules.values())


def test_chance_and_magnitude_choose_from_as_many_plans_as_the_method(table):
    rounds = rounds_of(table, layers=["hidden/0", "hidden/1"], trade_offs=[0.0, 1.0])
    state = rounds.init(table[1])
    own = pruning.sensitive_plans(rounds, state, KEY)
    chance = pruning.scored_plans(["random"])(rounds, state, KEY)
    by_size = pruning.scored_plans(["magnitude"])(rounds, state, KEY)
    assert len(own) == len(chance) == len(by_size) == 2 * 2 * len(rounds.counts)
    assert {each.proposal.score for each in chance} == {"random"}
    of_size = [each.plan for each in chance if each.proposal[:2] == ("hidden/0", 2)]
    assert len({str(plan.keep["hidden/0"].tolist()) for plan in of_size}) == len(of_size) == 2


def test_without_a_recipe_networks_stay_as_pruning_makes_them(table):
    rounds = dataclasses.replace(rounds_of(table), recipe=None)
    state = rounds.init(table[1])
    after = rounds.run(state, key=KEY, propose=pruning.sensitive_plans, take="all")
    before = jax.tree.map(jnp.asarray, state.params)
    masked = pruning.mask_channels(before, after.plan, graph_of(rounds.model))
    jax.tree.map(np.testing.assert_array_equal, after.params, jax.device_get(masked))
    assert not after.keep["hidden/0"].all()


def test_a_rule_of_ones_own_is_checked(table):
    rounds = rounds_of(table)
    state = rounds.init(table[1])
    for match, proposal, plan in (
        ("layer must be one of", pruning.Proposal("conv", 1, "snnl"), state.plan),
        ("score must be one of", pruning.Proposal("hidden/0", 1, "mine"), state.plan),
        ("must be of the layers hidden/0", pruning.Proposal("", 0, "none"), PrunePlan({})),
    ):
        with pytest.raises(ValueError, match=match):
            rounds.run(
                state, key=KEY, propose=lambda *_, p=proposal, q=plan: [pruning.Candidate(p, q)]
            )


@pytest.mark.parametrize(
    ("match", "options"),
    [
        ("no layer 'conv1' with channels; this network has hidden/0", {"layers": ["conv1"]}),
        ("layers must be at least one, each once", {"layers": []}),
        ("counts must be at least one, each once", {"counts": [1, 1]}),
        ("counts must be whole numbers of at least 1, got 0", {"counts": [0]}),
        ("counts must be below 8, the number of channels of hidden/0", {"counts": [1, 8]}),
        ("scores must be one of snnl, taylor", {"scores": ["gradient"]}),
        ("trade_offs must be at least 0 and finite, got nan", {"trade_offs": [float("nan")]}),
        ("num_rounds must be whole numbers", {"num_rounds": 0}),
        ("num_finalists is 9, but there are 2 plans", {"num_finalists": 9}),
        ("accuracy must be one of", {"accuracy": "eodd"}),
        ("disparity must be one of eodd", {"disparity": "accuracy"}),
        (r"max_accuracy_drop must be in \[0, 1\], got 2", {"max_accuracy_drop": 2}),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_trained(table, match, options):
    with pytest.raises(ValueError, match=match):
        rounds_of(table, **options)


def test_data_and_networks_that_do_not_fit_are_refused(table):
    model, weights, data = table
    few = data.splits | {"val": data.splits["val"][data.labels[data.splits["val"]] == 0]}
    one = data.splits | {"train": data.splits["train"][data.group[data.splits["train"]] == 0]}

    def refused(match, model=model, weights=weights, **changes):
        fields = {"splits": data.splits, "label_names": data.label_names} | changes
        changed = Dataset(
            "changed",
            data.inputs,
            data.labels,
            data.group,
            fields["label_names"],
            data.group_names,
            fields["splits"],
        )
        with pytest.raises(ValueError, match=match):
            rounds_of((model, weights, changed))

    refused("val split has fewer than two classes in every group", splits=few)
    refused("train split needs two groups of two examples each", splits=one)
    refused("gives 2 logits, but changed has 3 classes", label_names=("a", "b", "c"))
    refused("does not say which arrays", model=model._replace(config=None))
    silent = model._replace(apply=lambda *args, **kw: (model.apply(*args, **kw)[0], {}, {}))
    refused("activations of hidden/0, which the network does not give", model=silent)


def test_every_metric_that_may_be_chosen_is_measured(table):
    base = rounds_of(table).init(table[1]).base
    assert set(pruning.ACCURACIES + pruning.DISPARITIES) <= set(base)


def test_train_network_trains_what_it_is_given_and_leaves_that_alone(table):
    model, _, data = table
    params, batch_stats = jax.jit(model.init)(KEY)
    before, losses = jax.device_get(params), []
    weights = Weights(params, batch_stats, ("a note",))
    trained = train_network(model, weights, data, RECIPE, key=KEY, on_epoch=losses.append)
    equal(jax.device_get(params), before)
    assert trained.notes == ("a note",) and losses[1] < losses[0]
    sampler = RECIPE.make_sampler(data)
    optimizer = RECIPE.make_optimizer(sampler.batches_per_epoch)
    assert isinstance(optimizer, optax.GradientTransformation)
    state = init_fit(init_train(model, optimizer, KEY), sampler, KEY)
    examples = jax.tree.map(jnp.asarray, data.examples("train"))
    run = jax.jit(lambda s, d: fit(make_step(model, optimizer), s, d, sampler, num_epochs=2))
    expected = run(state, examples)[0].train.params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), trained.params, expected)


def test_a_row_without_a_rule_is_refused_by_name():
    with pytest.raises(ValueError, match="row must be one of pruned, tuned, .* got 'best'"):
        pruning.rule_of("best", ())


def test_masks_are_searched_on_a_pruned_network_whose_batches_fairbatch_draws(table):
    model, weights, data = table
    plan = PrunePlan({"hidden/0": np.arange(8) < 5})
    small = Weights(*pruning.slice_channels(*weights[:2], plan, model.config.channel_graph), ())
    rules = {"head/.*": "trained", r"hidden/(\d)/.*": r"hidden/\1"}
    space = mask_space_from_rules(small.params, rules)
    recipe = dataclasses.replace(RECIPE, sampler="fairbatch@rate")
    found = search_masks(model, small, data, recipe, space=space, num_trials=4, key=KEY)
    tuned = refit(model, small, data, recipe, found, num_seeds=2)
    assert tuned.logits("test").shape == (2, 100, 2)
    params = tuned.weights(1)[0]
    assert params["hidden"]["0"]["kernel"].shape == small.params["hidden"]["0"]["kernel"].shape
    for i, trained in enumerate(found.winner.mask):
        before, after = (p["hidden"][str(i)]["kernel"] for p in (small.params, params))
        assert bool(np.abs(before - after).max() > 0) == trained
