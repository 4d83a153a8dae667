"""Methods side by side: which epoch is judged, thresholds at a price, what of a network moves."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from fairjax.compare import (
    ALL_METHODS,
    Setting,
    Strengths,
    Trained,
    add_thresholds,
    check_setting,
    combinations,
    common_accuracy,
    compare_methods,
    cross_methods,
    effects,
    linear_probe,
    make_recipe,
    margins,
    retrain_balanced,
    select_stage,
    train_methods,
)
from fairjax.compare.retrain import PENALTIES, balanced_subsets
from fairjax.data import Dataset, given_split, resplits, synthetic_gaussians
from fairjax.models import Weights, image_model, logistic_regression
from fairjax.train import Recipe
from fairjax.trees import flatten_named

DATA = synthetic_gaussians(jax.random.key(0), 240, num_val=120, num_test=120)
SETTING = Setting(
    DATA, resplits(DATA, 2), 2, logistic_regression(3), make_recipe(20, 240, 60, 0.05)
)
OWN_VAL = SETTING.splits.val[SETTING.split_of_run]
PLACE = np.arange(OWN_VAL.shape[1])


def stages(right):
    """Runs whose predictions on validation are right where `right [E, P, m]` is."""
    preds = np.where(right, DATA.labels[OWN_VAL], 1 - DATA.labels[OWN_VAL])
    logits = np.stack([-preds, preds], -1).astype(np.float32)
    return Trained({"w": np.arange(right.shape[0])[:, None].repeat(4, 1)}, {}, logits)


def test_a_run_is_judged_at_the_stage_that_its_own_validation_rows_choose():
    group = DATA.group[OWN_VAL]
    wrong_of = lambda g, every: (group == g) & (PLACE % every == 0)
    # right but unfair, a bit wrong for everyone, very wrong for everyone
    right = np.stack([~wrong_of(1, 2), ~(PLACE % 4 == 0) | (group > 9), group < 0])
    trained = stages(right)
    rates = [
        SETTING.rates(trained.val[:, 0].argmax(-1), OWN_VAL[0])[name]
        for name in ("accuracy", "worst_group_accuracy", "equalized_odds_difference")
    ]
    accuracy, worst, gap = rates
    utopia = np.hypot(accuracy.max() - accuracy, gap)
    by_hand = {"accuracy": accuracy.argmax(), "worst_group": worst.argmax(), "last": 2}
    by_hand["dto"] = utopia.argmin()
    for rule, stage in by_hand.items():
        assert select_stage(SETTING, trained, rule).params["w"][0] == stage, rule  # pyright: ignore
    with pytest.raises(ValueError, match="select must be one of dto"):
        select_stage(SETTING, trained, "best")  # pyright: ignore


def test_stages_are_chosen_by_the_auc_of_groups_as_scikit_learn_has_it():
    rng, labels, group = np.random.default_rng(4), DATA.labels[OWN_VAL[0]], DATA.group[OWN_VAL[0]]
    strength = np.array([[0.2, 3.0], [1.0, 1.2], [0.9, 1.4], [0.9, 1.0]])  # of stages, in groups
    scores = strength[:, group] * labels + rng.normal(size=len(labels))
    logits = np.stack([0 * scores, scores], -1)[:, None].repeat(4, 1).astype(np.float32)
    trained = Trained({"w": np.arange(4)[:, None].repeat(4, 1)}, {}, logits)
    areas = np.array(
        [[roc_auc_score(labels[group == g], each[group == g]) for g in (0, 1)] for each in scores]
    )
    beaten = [(areas >= own).all(1) & (areas > own).any(1) for own in areas]
    front = ~np.array(beaten).any(1)
    assert not front.all()
    by_hand = {
        "auc": np.argmax([roc_auc_score(labels, each) for each in scores]),
        "worst_group_auc": areas.min(1).argmax(),
        "utopia": np.linalg.norm(areas.max(0) - areas, axis=1).argmin(),
        "pareto": np.where(front, areas.min(1), 0).argmax(),
    }
    for rule, stage in by_hand.items():
        assert select_stage(SETTING, trained, rule).params["w"][0] == stage, rule  # pyright: ignore
    lower = select_stage(SETTING, trained, "worst_group_auc_lower").params["w"][0]  # pyright: ignore
    assert lower == areas.min(1).argmax()  # groups of about equal sizes


def test_the_best_single_threshold_is_that_of_trying_all():
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 6, size=(4, 30)) / 4.0, rng.integers(0, 2, size=30)
    limits = [*np.unique(scores), np.inf]
    tried = [[((row >= limit) == labels).mean() for limit in limits] for row in scores]
    np.testing.assert_allclose(common_accuracy(scores, labels), np.max(tried, axis=1))


def test_thresholds_keep_the_accuracy_that_is_demanded_and_rivals_are_made_of_plain():
    rng = np.random.default_rng(1)
    signal = 2.0 * DATA.labels[OWN_VAL] - 1 + DATA.group[OWN_VAL]
    val = signal + rng.normal(size=(2, *signal.shape))
    # the test split is the validation split, so that what was chosen can be seen
    setting = SETTING._replace(splits=SETTING.splits._replace(test=SETTING.splits.val))
    own, at_own, at_shifted = add_thresholds(setting, val, val, cost=0.05)
    labels = DATA.labels[OWN_VAL]
    right = lambda preds: (preds == labels).mean(-1)
    gap = lambda preds: np.array(
        [
            setting.rates(each, rows)["equalized_odds_difference"]
            for each, rows in zip(preds, OWN_VAL, strict=True)
        ]
    )
    best = np.stack([[common_accuracy(val[m, p], labels[p]) for p in range(4)] for m in range(2)])
    assert (right(own) >= best - 0.05 - 1e-6).all()
    for m in range(2):
        assert (gap(own[m]) <= gap((val[m] > 0).astype(int)) + 1e-6).all()
    plain_best = best[0]
    for rival, accuracy in ((at_own, right(val > 0)), (at_shifted, right(own))):
        assert (right(rival) >= np.minimum(plain_best, accuracy) - 1e-6).all()


def probed(kind):
    """A network of given features, and its rows: the head is what `kind` trains."""
    rng = np.random.default_rng(2)
    params = {"head": {"kernel": rng.normal(size=(4, 3, 1)), "bias": rng.normal(size=(4, 1))}}
    start = Trained(jax.tree.map(np.float32, params), {}, np.zeros((*OWN_VAL.shape, 2), np.float32))
    return kind(SETTING, start).at_stage(0)


@pytest.mark.parametrize("kind", [retrain_balanced, linear_probe])
def test_a_retrained_head_is_that_of_scikit_learn_at_the_best_penalty(kind):
    found = probed(kind)
    metric = "accuracy" if kind is linear_probe else "worst_group_accuracy"
    for run, split in enumerate(SETTING.split_of_run):
        rows, val = SETTING.splits.train[split], SETTING.splits.val[split]
        x, cells = DATA.inputs.astype(float), 2 * DATA.labels + DATA.group
        weights = np.ones((1, len(rows)))
        if kind is retrain_balanced:
            weights = balanced_subsets(cells[rows], 5, seed=run)
            of_cell = [weights[:, cells[rows] == cell].sum(1) for cell in range(4)]
            assert np.unique(of_cell).size == 1
        options = []
        for l2 in PENALTIES:
            kernel, bias = np.zeros(3), np.zeros(1)
            for own in weights:
                head = LogisticRegression(C=1 / (l2 * own.sum()), tol=1e-10, max_iter=10_000)
                head.fit(x[rows], DATA.labels[rows], sample_weight=own)
                kernel += head.coef_[0] / len(weights)
                bias += head.intercept_ / len(weights)
            value = SETTING.rates((x[val] @ kernel + bias > 0).astype(int), val)[metric]
            options.append((float(value), kernel, bias))
        _, kernel, bias = max(options, key=lambda option: option[0])
        np.testing.assert_allclose(2 * found.params["head"]["kernel"][run, :, 0], kernel, atol=2e-3)
        scores = x[val] @ kernel + bias
        np.testing.assert_allclose(margins(found.val[run]), scores, atol=2e-2)


def test_only_the_parts_that_a_method_trains_move_and_what_does_not_apply_is_named():
    images = np.random.default_rng(0).integers(0, 255, (48, 16, 16, 3)).astype(np.uint8)
    ids = np.arange(48)
    data = Dataset(
        name="noise",
        inputs=images,
        labels=(ids % 2).astype(np.int32),
        group=(ids // 2 % 2).astype(np.int32),
        label_names=("no", "yes"),
        group_names=("a", "b"),
        splits={"train": ids[:32], "val": ids[32:40], "test": ids[40:]},
    )
    sizes: dict[str, Any] = {"image_size": 16, "patch_size": 8, "width": 16, "num_heads": 2}
    model = image_model("vit_micro", 2, depth=1, **sizes)
    params, stats = jax.jit(model.init)(jax.random.key(0))
    weights = Weights(params, stats, ())
    recipe = Recipe(num_epochs=1, batch_size=16, learning_rate=0.01)
    setting = Setting(data, given_split(data), 2, model, recipe, weights=weights)
    found, left_out = train_methods(setting, ["norm_only", "lora", "linear_probe"])
    assert not left_out and list(found) == ["plain", "norm_only", "lora", "linear_probe"]
    start = flatten_named(weights.params)
    for name, each in found.items():
        moved = {
            leaf
            for leaf, value in flatten_named(each.at_stage(-1).params).items()
            if np.abs(value - np.asarray(start[leaf])[None]).max() > 1e-6
        }
        heads = {"head/kernel", "head/bias"}
        norms = {leaf for leaf in start if "norm" in leaf} | heads
        attention = "blocks/attn/qkv/kernel"
        told = {"plain": set(start), "norm_only": norms, "linear_probe": heads}
        assert moved == {**told, "lora": {*heads, attention}}[name]
        if name == "lora":  # of queries and values, by a product of rank 8 at most
            now = flatten_named(each.at_stage(-1).params)[attention]
            change = (now - np.asarray(start[attention]))[0, 0].reshape(16, 3, 16).swapaxes(0, 1)
            ranks = [np.linalg.matrix_rank(part, tol=1e-6) for part in change]
            assert ranks[1] == 0 and 1 <= ranks[0] <= 8 and 1 <= ranks[2] <= 8
        assert each.val.shape == (1, 2, 8, 2) and np.isfinite(each.val).all()


def test_methods_of_pre_trained_networks_are_left_out_of_others_and_test_is_as_predicted():
    names = []
    found = compare_methods(
        SETTING, ["norm_only", "linear_probe", "cvar"], num_replicates=4, on_trained=names.extend
    )
    assert names == ["plain", "cvar"] and found.num_rivals == len(found.rows) == 6
    assert list(found.left_out) == ["norm_only", "linear_probe"]
    assert [note.split(" left out")[0] for note in found.notes] == list(found.left_out)
    assert found.judged.metrics["accuracy"].shape == (12, 4)
    tested = SETTING.splits.test[SETTING.split_of_run]
    logits = SETTING.logits(found.networks["cvar"], tested)
    np.testing.assert_array_equal(found.preds[2], logits.argmax(-1))
    right = (found.preds == DATA.labels[tested]).mean(-1)
    np.testing.assert_allclose(found.judged.metrics["accuracy"], right)


def test_effects_of_a_crossing_are_those_of_a_table_of_means():
    factors = cross_methods(["group_dro", "reweighted", "focal"])
    names = combinations(factors)
    assert len(names) == 3 * 2 and "group_dro+focal" in names
    rows = ["plain", "plain@best", *names[1:]]
    rows += [f"{row}+thresholds" for row in rows]
    value = np.random.default_rng(5).normal(size=len(rows))
    told = {name: weights @ value for name, weights in effects(rows).items()}
    base = [name.replace("plain", "plain@best") for name in names]
    cube = np.array([value[rows.index(name + end)] for name in base for end in ("", "+thresholds")])
    cube = cube.reshape(3, 2, 2)
    assert np.isclose(told["group_dro"], (cube[1] - cube[0]).mean())
    assert np.isclose(told["focal"], (cube[:, 1] - cube[:, 0]).mean())
    pair = cube[2, 1] - cube[2, 0] - cube[0, 1] + cube[0, 0]
    assert np.isclose(told["reweighted x focal"], pair.mean())
    assert len(told) == 4 + 2 * 1 + 2 * 1 + 1


def test_a_combination_trains_with_the_sampler_and_the_loss_of_its_parts():
    names = ["focal", "group_dro", "group_dro+focal"]
    kernels = {}
    for gamma in (SETTING.strengths.gamma, 1e-6):  # next to nothing: then focal is cross-entropy
        setting = SETTING._replace(strengths=Strengths(gamma=gamma))
        found, left_out = train_methods(setting, names)
        assert not left_out
        kernels[gamma] = {name: each.params["head"]["kernel"][-1] for name, each in found.items()}
    focal, plain = kernels.values()
    np.testing.assert_allclose(plain[names[2]], plain["group_dro"], atol=1e-4)
    assert np.abs(focal[names[2]] - plain[names[2]]).max() > 1e-4
    assert np.abs(focal[names[2]] - focal["focal"]).max() > 1e-4


ONE_GROUP = dataclasses.replace(DATA, group=DATA.group * 0, group_names=("all",))
OVERLAP = SETTING.splits._replace(test=SETTING.splits.val)
BAD: dict[str, Any] = {
    "2 classes and 1 groups": lambda: check_setting(SETTING._replace(data=ONE_GROUP)),
    "criterion must be one of": lambda: check_setting(SETTING._replace(criterion="parity")),
    "num_seeds must be at least 1": lambda: check_setting(SETTING._replace(num_seeds=0)),
    f"split 0 tests on {len(PLACE)} rows": lambda: check_setting(SETTING._replace(splits=OVERLAP)),
    "the recipe's sampler must be 'shuffled'": lambda: check_setting(
        SETTING._replace(recipe=Recipe(sampler="class_balanced"))
    ),
    "methods must be among plain, .*; got fair": lambda: train_methods(SETTING, ["fair"]),
}


@pytest.mark.parametrize("message", BAD)
def test_mistakes_are_named(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()


def test_every_method_has_a_name_of_its_own():
    assert len(set(ALL_METHODS)) == len(ALL_METHODS) and "plain" in ALL_METHODS
    assert jnp.asarray(SETTING.split_of_run).tolist() == [0, 0, 1, 1]
