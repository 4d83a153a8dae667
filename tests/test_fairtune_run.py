# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportOptionalCall=false
"""FairTune as two calls, on a network of one's own: search, train, take away."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from fairjax import trees
from fairjax.data import Dataset, folds
from fairjax.data.augment import compose, random_flip
from fairjax.fairtune import (
    Choice,
    Search,
    mask_search,
    mask_space,
    mask_space_from_rules,
    objective,
    random_search,
    refit,
    refit_choice,
    search_masks,
)
from fairjax.models import Weights, image_preprocess, wrap_nnx
from fairjax.sharding import candidate_mesh
from fairjax.thresholds import thresholds_after
from fairjax.train import Recipe, linear_probe, seed_keys
from fairjax.train.seeds import _compiled_scores

KEY = jax.random.key(0)


class Net(nnx.Module):
    """Two convolutions and a classifier that is not called head."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.conv0 = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.conv1 = nnx.Conv(4, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.fc = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        x = jax.nn.relu(self.norm(self.conv1(jax.nn.relu(self.conv0(x)))))
        pooled = x.mean((1, 2))
        return self.fc(pooled), {"pooled": pooled}


MODEL = wrap_nnx(
    Net, num_classes=2, head="fc", preprocess=image_preprocess(8, (0.5,) * 3, (0.5,) * 3)
)
RULES = {
    r"fc/.*": "trained",
    r"conv(\d)/.*": r"conv\1",
    r"norm/.*": "norm",
}
RECIPE = Recipe(num_epochs=2, batch_size=8, augment=compose(random_flip()))


def make_weights():
    return Weights(*MODEL.init(KEY), ())


def make_data(num=96, seed=0):
    """The brighter half is class 1; group 1 is reddish."""
    draw = np.random.default_rng(seed)
    labels = np.arange(num, dtype=np.int32) % 2
    group = (np.arange(num, dtype=np.int32) // 2) % 2
    images = draw.normal(100, 40, (num, 8, 8, 3)) + 40 * labels[:, None, None, None]
    images[..., 0] += 30 * group[:, None, None]
    rows = np.arange(num, dtype=np.int32)
    return Dataset(
        name="squares",
        inputs=np.clip(images, 0, 255).astype(np.uint8),
        labels=labels,
        group=group,
        label_names=("dark", "bright"),
        group_names=("grey", "red"),
        splits={"train": rows[: num // 2], "val": rows[num // 2 : -24], "test": rows[-24:]},
    )


DATA, WEIGHTS = make_data(), make_weights()
SPACE = mask_space_from_rules(WEIGHTS.params, RULES)
OPTIONS = {
    "space": SPACE,
    "search": "random",
    "num_trials": 4,
    "num_slots": 2,
    "learning_rates": (1e-3, 1e-2),
    "chunk_size": 1,
}


def search(recipe=RECIPE, **options):
    return search_masks(MODEL, WEIGHTS, DATA, recipe, key=KEY, **OPTIONS | options)


@pytest.fixture(scope="module")
def found():
    return search()


def test_a_search_on_a_network_of_ones_own_finds_a_choice_that_can_be_read(found):
    assert len(found.trials.status) == 4
    choice = found.winner
    assert choice.mask.dtype == bool and choice.mask.shape == (3,)
    described = found.describe(int(found.best_rows(1)[0]))
    assert described["mask"] == choice.mask.astype(int).tolist()
    completed = found.posterior.mean[found.trials.status == 3]
    assert described["posterior_mean"] == pytest.approx(np.nanmax(completed))
    assert [row["trial"] for row in found.table()] == [0, 1, 2, 3]


def test_a_search_of_ones_own_is_what_proposes(found):
    own = random_search(found.space, found.objectives, learning_rates=OPTIONS["learning_rates"])
    again = search(search=own)
    np.testing.assert_array_equal(again.trials.masks, found.trials.masks)
    np.testing.assert_allclose(again.trials.values, found.trials.values)


@pytest.mark.parametrize("chunk_size", [1, 2])
def test_candidates_draw_their_own_batches_by_fairbatch_and_thresholds_come_after(chunk_size):
    recipe = dataclasses.replace(RECIPE, sampler="fairbatch")
    states = []
    keep = lambda state: states.append(jax.device_get(state.population.sampler))
    found = search(recipe, num_trials=2, stopping="none", chunk_size=chunk_size, on_round=keep)
    natural = DATA.cell_counts("train") / DATA.cell_counts("train").sum(1, keepdims=True)
    shares = states[-1].shares
    assert shares.shape == (2, 2, 2) and np.abs(shares - natural).max() > 1e-3
    assert (states[-1].num_updates == 2 * 1).all()  # six batches, an update for each epoch
    if chunk_size == 2:
        return
    tuned = refit(MODEL, WEIGHTS, DATA, recipe, found, num_seeds=2)
    val, test = tuned.logits("val"), tuned.logits("test")
    shifted = thresholds_after(val, test, DATA)
    scores = test[..., 1] - test[..., 0]
    moved = shifted[..., 1] - scores
    for g in range(2):  # one number for each group of each network
        of_group = moved[:, DATA.examples("test").group == g]
        np.testing.assert_allclose(
            of_group, of_group[:, :1].repeat(of_group.shape[1], 1), atol=1e-5
        )


def test_a_refit_moves_what_the_mask_trains_and_nothing_else(found):
    tuned = refit(MODEL, WEIGHTS, DATA, RECIPE, found, num_seeds=2)
    assert tuned.logits("test").shape == (2, 24, 2)
    params, _ = tuned.weights(0)
    before = trees.flatten_named(WEIGHTS.params)
    on = set(found.winner.description.units)
    for name, now in trees.flatten_named(params).items():
        unit = name.split("/")[0]
        moved = not np.array_equal(now, before[name])
        assert moved == (unit == "fc" or unit in on), name
    logits = MODEL.apply(*tuned.weights(1), MODEL.preprocess(DATA.examples("test").inputs))[0]
    np.testing.assert_allclose(tuned.logits("test")[1], logits, atol=1e-5)


def test_the_best_finalist_is_the_one_whose_mean_over_seeds_is_best(found):
    chosen = found.objectives[0]
    every = [
        refit_choice(MODEL, WEIGHTS, DATA, RECIPE, choice, chosen, num_seeds=2)
        for choice in found.best(2)
    ]
    best = refit(MODEL, WEIGHTS, DATA, RECIPE, found, num_seeds=2, num_finalists=2)
    assert best.scores.mean() == max(one.scores.mean() for one in every)


def test_trainings_of_different_parts_are_scored_by_one_program():
    chosen = objective("accuracy", num_groups=2)  # a new one, which nothing was compiled for
    for mask in ((True, False, False), (True, True, True)):
        choice = Choice(SPACE, np.array(mask), (1e-2,))
        refit_choice(MODEL, WEIGHTS, DATA, RECIPE, choice, chosen, num_seeds=2)
    scores = _compiled_scores(RECIPE.make_model(MODEL), chosen.score, candidate_mesh())
    assert scores._cache_size() == 1


def test_a_search_goes_on_from_what_on_round_was_given_to_the_same_end(found):
    saved = []

    def keep(state):
        saved.append(jax.tree.map(lambda x: x if is_key(x) else np.array(x), state))
        if len(saved) == 2:
            raise KeyboardInterrupt

    def is_key(x):
        return isinstance(x, jax.Array) and jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key)

    with pytest.raises(KeyboardInterrupt):
        search(on_round=keep)
    again = search(state=saved[1])
    for field in ("masks", "status", "epochs", "values"):
        np.testing.assert_array_equal(
            getattr(again.trials, field), getattr(found.trials, field), field
        )


def test_a_trial_is_worth_its_mean_over_folds_each_trained_as_if_it_were_the_split():
    found = search(num_folds=3, stopping="none")
    trials, drawn = found.trials, folds(DATA, 3)
    np.testing.assert_allclose(trials.values[:, 0], trials.replicates.mean(1), rtol=1e-6)
    for fold in range(3):
        splits = {"train": drawn.train[fold], "val": drawn.val[fold], "test": drawn.test[fold]}
        data = dataclasses.replace(DATA, splits=splits)
        alone = search_masks(MODEL, WEIGHTS, data, RECIPE, key=KEY, **OPTIONS, stopping="none")
        np.testing.assert_allclose(trials.replicates[:, fold], alone.trials.values[:, 0], atol=1e-6)


def test_seeds_of_a_trial_begin_with_the_training_that_it_has_alone():
    alone, both = search(stopping="none"), search(stopping="none", num_seeds=2)
    replicates = both.trials.replicates
    np.testing.assert_allclose(replicates[:, 0], alone.trials.values[:, 0], atol=1e-6)
    assert (np.abs(replicates[:, 1] - replicates[:, 0]) > 1e-4).any()
    np.testing.assert_allclose(both.trials.values[:, 0], replicates.mean(1), rtol=1e-6)
    assert both.trials.epochs_trained == 2 * alone.trials.epochs_trained


def test_a_race_trains_folds_in_turn_to_the_values_of_all_at_once():
    raced, whole = search(num_folds=3, stopping="racing"), search(num_folds=3, stopping="none")
    trained = np.isfinite(raced.trials.replicates)
    assert trained[:, 0].all() and (trained[:, 0] >= trained[:, 2]).all()
    np.testing.assert_allclose(
        raced.trials.replicates[trained], whole.trials.replicates[trained], atol=1e-6
    )
    np.testing.assert_allclose(
        raced.trials.drawn[trained], whole.trials.drawn[trained], atol=1e-6, equal_nan=True
    )


def test_draws_are_the_metric_of_resampled_validation_examples(found):
    """Shared by all trials, so that their differences are paired; their mean is near the value."""
    drawn, values = found.trials.drawn[:, 0], found.trials.values[:, 0]
    assert drawn.shape == (4, 2, 100)
    assert (np.abs(drawn[:, 0].mean(1) - values) < 0.1).all()
    spread = drawn[:, 0].std(1)
    assert ((spread > 0.01) | (values == 0) | (values == 1)).all() and spread.max() > 0.01
    assert np.isfinite(drawn[:, 1]).mean() > 0.9


def test_a_set_too_large_for_the_device_is_streamed_to_the_same_result(found):
    row = int(np.prod(DATA.inputs.shape[1:])) + 8
    small = dataclasses.replace(RECIPE, data_bytes=40 * row)
    assert small.streams(DATA) and not RECIPE.streams(DATA)
    streamed = search(small)
    np.testing.assert_array_equal(streamed.trials.status, found.trials.status)
    np.testing.assert_allclose(streamed.trials.values, found.trials.values, atol=1e-5)
    folded, again = (search(recipe, num_folds=2, num_trials=2) for recipe in (RECIPE, small))
    np.testing.assert_allclose(folded.trials.replicates, again.trials.replicates, atol=1e-5)
    tuned, again = (
        refit(MODEL, WEIGHTS, DATA, recipe, found, num_seeds=2) for recipe in (RECIPE, small)
    )
    np.testing.assert_allclose(tuned.logits("test"), again.logits("test"), atol=1e-5)
    np.testing.assert_allclose(tuned.scores, again.scores, atol=1e-6)


def test_results_do_not_depend_on_the_number_of_devices(found, monkeypatch):
    one = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: one)
    alone = search()
    np.testing.assert_array_equal(alone.trials.status, found.trials.status)
    np.testing.assert_allclose(alone.trials.values, found.trials.values, atol=1e-5)


def test_a_linear_probe_trains_the_classifier_alone_on_features_computed_once(found):
    chosen = found.objectives[0]
    probe = linear_probe(
        MODEL,
        WEIGHTS,
        DATA,
        dataclasses.replace(RECIPE, num_epochs=5),
        score_fn=chosen.score,
        start_keys=seed_keys(2),
        learning_rates=[1e-2, 1e-1],
    )
    params, stats = probe.weights(0)
    for name, leaf in trees.flatten_named(WEIGHTS.params).items():
        assert np.array_equal(trees.get_path(params, name), leaf) != name.startswith("fc/")
    logits = MODEL.apply(params, stats, MODEL.preprocess(DATA.examples("test").inputs))[0]
    np.testing.assert_allclose(probe.logits("test")[0], logits, atol=1e-4)


def test_the_average_of_the_parameters_is_what_is_measured_and_kept():
    averaged = dataclasses.replace(RECIPE, ema_decay=0.9)
    choice = Choice(mask_space(WEIGHTS.params, "full", head="fc"), np.zeros(0, bool), (1e-2,))
    chosen = objective("auc", num_groups=2)
    plain, mean = (
        refit_choice(MODEL, WEIGHTS, DATA, recipe, choice, chosen, num_seeds=1)
        for recipe in (RECIPE, averaged)
    )
    start = WEIGHTS.params["conv0"]["kernel"]
    far = np.abs(plain.weights(0)[0]["conv0"]["kernel"] - start).mean()
    near = np.abs(mean.weights(0)[0]["conv0"]["kernel"] - start).mean()
    assert 0 < near < far


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "min_auc"}, "unknown objective 'min_auc'"),
        ({"space": "norm_attn_mlp"}, "mask space"),
        ({"search": "grid"}, "search must be one of tpe, random, evolution, nsga2"),
        ({"search": Search(None, None, None, 2, (True,))}, "masks of 3 units .* got 2"),
        ({"search": Search(None, None, None, 3, (False,))}, r"maximise \(True,\), got 3 and"),
        ({"chunk_size": 0}, "chunk_size must be at least 1"),
        ({"num_slots": 0}, "at least one trial and slot"),
        ({"first_rung": 5}, "first <= 2 epochs"),
        ({"num_folds": 0}, "num_folds must be a whole number of at least 1, got 0"),
        ({"num_seeds": True}, "num_seeds must be a whole number of at least 1, got True"),
        ({"num_folds": 40}, "part . of 40 has no rows of class"),
        ({"stopping": "racing"}, "one fold after another: num_folds is 1"),
        ({"stopping": "soon"}, "stopping must be one of halving, racing, none; got 'soon'"),
        ({"stopping": "none", "num_brackets": 2}, "num_brackets is of halving"),
        ({"storage": "study.log"}, "go with tpe or nsga2, not with random"),
        ({"learning_rates": (1e-2, 1e-3)}, "increasing positive range"),
        ({"objective": ("auc", "auc_gap")}, "single objective"),
    ],
)
def test_mistakes_are_named_before_anything_trains(options, message):
    with pytest.raises(ValueError, match=message):
        mask_search(MODEL, WEIGHTS, DATA, RECIPE, key=KEY, **OPTIONS | options)


def test_an_objective_that_validation_cannot_define_is_refused():
    labels = np.where(DATA.group == 1, 0, DATA.labels).astype(np.int32)
    one_sided = dataclasses.replace(DATA, labels=labels)
    with pytest.raises(ValueError, match="'red' undefined: no positives"):
        mask_search(MODEL, WEIGHTS, one_sided, RECIPE, key=KEY, **OPTIONS)
