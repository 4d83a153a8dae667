"""Training of a comparison: each loss by hand in NumPy, and failures that stay where they are."""

import dataclasses

import jax
import numpy as np
import pytest

from fairjax.compare import (
    ADAPTING,
    METHODS,
    Setting,
    compare_methods,
    make_recipe,
    select_stage,
    train_methods,
)
from fairjax.compare import methods as rooms
from fairjax.compare.setting import Trained
from fairjax.data import resplits, synthetic_gaussians
from fairjax.models import logistic_regression
from fairjax.report.comparison import comparison_cells, row_results
from fairjax.sampling import arrange_splits, shuffled
from fairjax.train import seed_keys

DATA = synthetic_gaussians(jax.random.key(1), 240, num_val=120, num_test=120)
SETTING = Setting(
    DATA, resplits(DATA, 2), 1, logistic_regression(3), make_recipe(20, 240, 60, 0.05)
)
PLAIN = rooms.ALIKE


@pytest.fixture(scope="module")
def found():
    return train_methods(SETTING, [*PLAIN, "class_balanced", "group_balanced", "jtt"])


def batches(run):
    """Rows of every batch of a run, `[T, B]`, from the sampler that plain training has."""
    rows = arrange_splits(
        labels=DATA.labels,
        group=DATA.group,
        num_classes=2,
        num_groups=2,
        rows=SETTING.splits.train,
    )
    sampler = shuffled(**SETTING.arguments())
    state = sampler.init(rows=jax.tree.map(lambda leaf: leaf[run], rows))
    key = jax.random.fold_in(seed_keys(1, SETTING.batch_seed)[0], 1 + run)
    num_batches = SETTING.splits.train.shape[1] // SETTING.recipe.batch_size
    told = []
    for epoch in range(SETTING.recipe.num_epochs):
        (of_epoch,) = jax.random.split(jax.random.fold_in(key, epoch), 1)
        draw = jax.random.split(of_epoch)[0]
        told += np.asarray(sampler.sample_epoch(draw, state, num_batches=num_batches)[0]).tolist()
    return np.array(told)


def slopes(name, run, rows, margin):
    """Weight of every example of a batch times the slope of its loss in the margin of its label."""
    labels, group = DATA.labels[rows], DATA.group[rows]
    train = SETTING.splits.train[run]
    count = lambda y, g: ((DATA.labels[train] == y) & (DATA.group[train] == g)).sum()
    sizes = np.array([[count(y, g) for g in (0, 1)] for y in (0, 1)], float)
    weights = np.ones(len(rows))
    if name == "reweighted":
        expected = np.outer(sizes.sum(1), sizes.sum(0)) / sizes.sum()
        weights = (expected / sizes)[labels, group]
    if name == "logit_adjusted":
        margin = margin + np.log(sizes[labels, group] / sizes[1 - labels, group])
    p = 1 / (1 + np.exp(-margin))
    slope = p - 1
    if name == "focal":
        gamma = SETTING.strengths.gamma
        slope = (gamma * (1 - p) ** (gamma - 1) * np.log(p) - (1 - p) ** gamma / p) * p * (1 - p)
    if name == "cvar":
        worst = np.argsort(margin)[: round(SETTING.strengths.worst_share * len(rows))]
        weights = np.isin(np.arange(len(rows)), worst).astype(float)
    return weights * slope / weights.sum()


@pytest.mark.parametrize("name", PLAIN)
def test_a_method_of_tables_trains_as_adam_by_hand_on_the_batches_of_plain_training(found, name):
    for run in range(2):
        params = jax.tree.map(np.array, SETTING.model.init(seed_keys(1, SETTING.start_seed)[0])[0])
        weights = np.append(params["head"]["kernel"][:, 0], params["head"]["bias"]).astype(float)
        first, second = np.zeros(4), np.zeros(4)
        inputs = np.append(DATA.inputs, np.ones((len(DATA.inputs), 1)), axis=1).astype(float)
        for step, rows in enumerate(batches(run), 1):
            signs = 2.0 * DATA.labels[rows] - 1  # with z = x w + b the logits are [-z, z]
            margin = 2 * signs * (inputs[rows] @ weights)
            gradient = (slopes(name, run, rows, margin) * 2 * signs) @ inputs[rows]
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            moment, scale = first / (1 - 0.9**step), np.sqrt(second / (1 - 0.999**step))
            weights -= SETTING.recipe.learning_rate * moment / (scale + 1e-8)
        head = found[0][name].params["head"]
        told = np.append(head["kernel"][-1, run, :, 0], head["bias"][-1, run])
        np.testing.assert_allclose(told, weights, atol=2e-4, err_msg=f"run {run}")


def test_rows_are_drawn_by_class_by_cell_and_by_what_a_first_training_gets_wrong(found):
    program = rooms.by_draws(SETTING, found[0])
    first = found[0]["plain"].at_stage(0)
    for run, rows in enumerate(SETTING.splits.train):
        labels, group = DATA.labels[rows], DATA.group[rows]
        weights = {name: row["example_weights"][run, rows] for name, row in program.choices.items()}
        for y in (0, 1):
            share = weights["class_balanced"][labels == y].sum() / weights["class_balanced"].sum()
            assert np.isclose(share, 1 / 2)
            for g in (0, 1):
                cell = (labels == y) & (group == g)
                share = weights["group_balanced"][cell].sum() / weights["group_balanced"].sum()
                assert np.isclose(share, 1 / 4) and np.ptp(weights["group_balanced"][cell]) == 0
        head = first.params["head"]
        scores = DATA.inputs[rows] @ head["kernel"][run, :, 0] + head["bias"][run]
        wrong = (scores > 0) != labels
        assert 0 < wrong.mean() < 1
        np.testing.assert_array_equal(
            weights["jtt"], np.where(wrong, SETTING.strengths.upweight, 1)
        )


def test_networks_start_from_given_weights_train_apart_and_tables_together():
    apart = rooms.programs(SETTING._replace(weights=({}, {}, ())))  # pyright: ignore
    assert set(apart) == set(rooms.PROGRAMS)
    together = [name for names in rooms.programs(SETTING) for name in names]
    assert sorted(together) == sorted({*METHODS, *ADAPTING} - {"dfr", "linear_probe"})


def test_what_fails_costs_its_own_method_alone_and_is_marked(found, monkeypatch):
    by_step = rooms.by_step

    def broken(name, setting, before):
        program = by_step(name, setting, before)

        def loss_fn(logits, labels):
            if name == "cvar":
                raise KeyError("a loss with a <bug>")
            return logits[:, 0] * np.nan

        return program if name == "logit_adjusted" else program._replace(step={"loss_fn": loss_fn})

    monkeypatch.setattr(rooms, "by_step", broken)
    names = []
    methods = ["focal", "cvar", "logit_adjusted", "norm_only"]
    told = compare_methods(SETTING, methods, num_replicates=4, on_trained=names.extend)
    assert told.rows[:3] == ("plain", "plain@best", "logit_adjusted") and told.num_rivals == 6
    assert set(names) == {"plain", "logit_adjusted"}
    assert "KeyError: 'a loss with a <bug>'" in told.left_out["cvar"]
    assert "2 of 2 runs predict what is not finite" in told.left_out["focal"]
    assert "needs a network" in told.left_out["norm_only"] and len(told.left_out) == 3
    chosen = select_stage(SETTING, found[0]["logit_adjusted"], "dto").params["head"]["kernel"]
    alone = told.networks["logit_adjusted"].params["head"]["kernel"]
    np.testing.assert_allclose(alone, chosen, atol=1e-5)
    results = row_results(told.rows, told.rows, told.judged, DATA.group_names)
    lines = comparison_cells({"own": results}, "equalized_odds", {"own": told.left_out})[1]
    marked = {line[0][0]: line[0][1] for line in lines if line[1][0] == "left out"}
    assert set(marked) == {"cvar", "focal", "norm_only"} and "a <bug>" in marked["cvar"]
    assert {len(line) for line in lines} == {len(lines[0])}


def test_plain_training_that_fails_fails_the_comparison():
    recipe = dataclasses.replace(SETTING.recipe, learning_rate=1e38)
    with pytest.raises(ValueError, match="not finite: training diverged"):
        compare_methods(SETTING._replace(recipe=recipe), ["cvar"], num_replicates=4)


def stages(preds):
    """Two runs that predict `preds [E, m]` on validation."""
    logits = np.stack([-preds, preds], -1).astype(np.float32)[:, None].repeat(2, 1)
    return Trained({"w": np.arange(len(preds))[:, None].repeat(2, 1)}, {}, logits)


def test_an_epoch_of_one_class_has_no_gap_and_is_not_chosen_while_another_has_two():
    own = SETTING.splits.val[0]
    setting = SETTING._replace(splits=SETTING.splits._replace(val=np.stack([own, own])))
    labels, group = DATA.labels[own], DATA.group[own]
    unfair = np.where(group == 1, labels, 0)  # right, but selects nobody of group 0
    trained = stages(np.stack([0 * labels, unfair, 0 * labels + 1]))
    rates = setting.rates(trained.val[:, 0].argmax(-1), own)
    distance = np.hypot(
        rates["accuracy"].max() - rates["accuracy"], rates["equalized_odds_difference"]
    )
    assert distance.argmin() != 1  # what is published would choose one class
    assert select_stage(setting, trained, "dto").params["w"].tolist() == [1, 1]
    alone = stages(np.stack([0 * labels, 0 * labels + 1]))
    assert select_stage(setting, alone, "dto").val.argmax(-1).mean() in (0, 1)
    lost = trained._replace(
        val=np.where(np.arange(3)[:, None, None, None] == 1, np.nan, trained.val)
    )
    assert select_stage(setting, lost, "worst_group").params["w"][0] != 1
    with pytest.raises(ValueError, match="2 of 2 runs predict what is not finite"):
        select_stage(setting, lost._replace(val=lost.val[:2]), "last")


def test_a_rule_that_validation_does_not_define_is_refused():
    own = SETTING.splits.val
    labels = DATA.labels.copy()
    labels[DATA.group == 0] = 0  # equal opportunity compares the positives of two groups
    setting = SETTING._replace(
        data=dataclasses.replace(DATA, labels=labels), criterion="equal_opportunity"
    )
    preds = np.stack([labels[own[0]], 1 - labels[own[0]]])
    with pytest.raises(ValueError, match="dto is undefined on validation"):
        select_stage(setting, stages(preds), "dto")
