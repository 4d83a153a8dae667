# pyright: reportCallIssue=false, reportArgumentType=false, reportOptionalMemberAccess=false
# pyright: reportOptionalSubscript=false
"""One search over masks, rates, samplers, losses and pruning plans."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairjax import pruning
from fairjax.data import synthetic_gaussians
from fairjax.fairtune import (
    STATUS_NAMES,
    Candidates,
    Choice,
    evolution,
    mask_search,
    mask_space_from_rules,
    nsga2,
    objective,
    parse_options,
    random_search,
    refit,
    refit_choice,
    replay,
    search_masks,
    tpe,
)
from fairjax.fairtune.choosing import _distances
from fairjax.fairtune.trials import find_same, no_trials
from fairjax.models import Weights, mlp
from fairjax.pruning import PrunePlan
from fairjax.train import Recipe, fit, init_fit, predict, start_train, train_network

KEY = jax.random.key(0)
RECIPE = Recipe(num_epochs=2, batch_size=20)
RULES = {"head/.*": "trained", r"hidden/(\d)/.*": r"hidden/\1"}
DATA = synthetic_gaussians(KEY, 200, num_val=120, num_test=100)
MODEL = mlp(DATA.inputs.shape[1], 2, (8, 6))
WEIGHTS = Weights(*jax.jit(MODEL.init)(KEY), ())
WEIGHTS = train_network(MODEL, WEIGHTS, DATA, RECIPE, key=KEY)
SPACE = mask_space_from_rules(WEIGHTS.params, RULES)
GRAPH = MODEL.config.channel_graph
PLANS = (
    PrunePlan({}),
    PrunePlan({"hidden/0": np.arange(8) < 5}),
    PrunePlan({"hidden/0": np.arange(8) > 1, "hidden/1": np.arange(6) != 3}),
)
OPTIONS = {
    "sampler": ("shuffled", "fairbatch@rate", "group_dro"),
    "loss": ("cross_entropy", "focal"),
    "plan": PLANS,
}
FEW = {"sampler": ("shuffled", "group_dro"), "plan": PLANS[:2]}
LOSS = objective("max_group_loss", num_groups=2)
HOW = {"space": SPACE, "objective": "max_group_loss", "num_slots": 3, "key": KEY}
GIVEN = Candidates(
    np.arange(6, dtype=np.int32),
    np.array([[1, 1], [1, 0], [0, 1], [1, 1], [0, 0], [1, 0]], bool),
    np.array([1e-2, 3e-3, 1e-2, 5e-3, 1e-2, 3e-3], np.float32),
    np.array([[0, 0, 1], [1, 1, 0], [2, 0, 2], [2, 1, 1], [1, 0, 2], [1, 0, 0]], np.int32),
)


def search(**options):
    own = replay(SPACE, [LOSS], GIVEN, options=OPTIONS)
    how = HOW | {"search": own, "options": OPTIONS, "num_trials": 6, "stopping": "none"}
    return search_masks(MODEL, WEIGHTS, DATA, RECIPE, **how | options)


@pytest.fixture(scope="module")
def found():
    return search()


def alone(mask, rate, sampler, loss, plan):
    """One training, of a network without the channels that the plan prunes, and its value."""
    recipe = dataclasses.replace(RECIPE, sampler=sampler, loss=loss)
    params, stats = pruning.slice_channels(*WEIGHTS[:2], plan, GRAPH)
    masks = mask_space_from_rules(params, RULES).expand(mask)
    batches = recipe.make_sampler(DATA)
    optimizer = recipe.make_optimizer(batches.batches_per_epoch)
    step = recipe.make_step(MODEL, optimizer, DATA)
    state = init_fit(start_train(params, stats, optimizer, learning_rate=rate), batches, KEY)
    run = jax.jit(lambda s, data, mask: fit(step, s, data, batches, num_epochs=2, mask=mask)[0])
    train, val = run(state, DATA.examples("train"), masks).train, DATA.examples("val")
    logits = predict(MODEL, train.params, train.batch_stats, val.inputs)
    return LOSS.measure(logits, labels=jnp.asarray(val.labels), group=jnp.asarray(val.group))


def test_every_trial_is_worth_what_its_mask_rate_sampler_loss_and_plan_give_alone(found):
    values = found.trials.values[:, 0]
    expected = []
    for row in range(6):
        choice = found.choice(row)
        expected.append(alone(choice.mask, *choice.learning_rates, *choice.options.values()))
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    assert len(np.unique(values.round(4))) == 6  # and none is like another


def test_a_search_goes_on_from_the_middle_on_other_devices_to_the_same_end(monkeypatch):
    saved = []

    def copied(x):
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(np.array(jax.random.key_data(x)))
        return np.array(x)

    keep = lambda state: saved.append(jax.tree.map(copied, state))
    how = {"options": FEW, "search": "random", "num_trials": 8, "stopping": "halving"}
    whole = search(**how, on_round=keep).trials
    assert (whole.status >= STATUS_NAMES.index("complete")).all()
    one = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: one)
    again = search(**how, state=saved[2]).trials
    for field in ("masks", "choices", "status", "same_as", "epochs"):
        np.testing.assert_array_equal(getattr(again, field), getattr(whole, field), field)
    np.testing.assert_allclose(again.values, whole.values, rtol=1e-5)


def test_a_race_over_folds_gives_each_trial_the_values_of_its_choices():
    raced = search(options=FEW, search="random", num_folds=2, stopping="racing", num_trials=3)
    replicates = raced.trials.replicates
    assert np.isfinite(replicates[:, 0]).all() and len(np.unique(replicates[:, 0])) == 3


def test_a_refit_trains_with_the_options_of_the_winner(found):
    tuned = refit(MODEL, WEIGHTS, DATA, RECIPE, found, num_seeds=2)
    winner = found.winner
    assert winner.options == {
        name: OPTIONS[name][i]
        for name, i in zip(OPTIONS, found.trials.choices[found.best_rows(1)[0]], strict=True)
    }
    chosen = {name: value for name, value in winner.options.items() if name != "plan"}
    plan, recipe = PLANS[2], dataclasses.replace(RECIPE, **chosen)
    same = refit_choice(
        MODEL, WEIGHTS, DATA, recipe, winner._replace(options={}), LOSS, num_seeds=2
    )
    if not winner.options["plan"].keep:
        np.testing.assert_allclose(tuned.logits("test"), same.logits("test"), atol=1e-6)
    pruned = Choice(SPACE, winner.mask, winner.learning_rates, {**chosen, "plan": plan})
    tuned = refit_choice(MODEL, WEIGHTS, DATA, RECIPE, pruned, LOSS, num_seeds=2)
    assert np.abs(tuned.logits("test") - same.logits("test")).max() > 1e-3
    params, stats = tuned.weights(1)
    assert not np.asarray(params["hidden"]["0"]["kernel"])[:, :2].any()
    small = pruning.slice_channels(params, stats, plan, GRAPH)
    assert small[0]["hidden"]["1"]["kernel"].shape == (6, 5)
    logits = MODEL.apply(*small, jnp.asarray(DATA.examples("test").inputs), train=False)[0]
    np.testing.assert_allclose(logits, tuned.logits("test")[1], atol=1e-5)


def test_tables_descriptions_and_notes_name_what_was_chosen(found):
    rows = found.table()
    assert [row["sampler"] for row in rows[:3]] == ["shuffled", "fairbatch@rate", "group_dro"]
    assert rows[0]["plan"] == "hidden/0 keeps 5 of 8" and rows[1]["plan"] == "nothing pruned"
    told = found.describe(4)
    assert told["options"] == {
        "sampler": "fairbatch@rate",
        "loss": "cross_entropy",
        "plan": "hidden/0 keeps 6 of 8, hidden/1 keeps 5 of 6",
    }
    assert told["keep"]["hidden/0"] == [0, 0, 1, 1, 1, 1, 1, 1]
    first = {(row["option"], row["value"]): row for row in found.by_option()}
    values = found.trials.values[:, 0]
    of_dro = first["sampler", "group_dro"]
    assert of_dro["trials"] == 2 and of_dro["mean"] == pytest.approx(values[2:4].mean())
    assert sum(row["trials"] for row in first.values()) == 3 * 6
    notes = found.notes()
    assert any("first comparison by loss" in note and "Observational" in note for note in notes)
    text = found.choice(0).description.text
    assert text.endswith("sampler shuffled; loss cross_entropy; plan hidden/0 keeps 5 of 8")


TOY = {"sampler": ("a", "b", "c"), "loss": ("a", "b")}
WIDE = mask_space_from_rules(
    {"blocks": {"w": jnp.zeros((6, 2))}}, {r"blocks/(\d+)/w": r"blocks/\1"}
)
TARGET, BEST = np.array([1, 0, 1, 1, 0, 0], bool), np.array([2, 1])
SEARCHES = {
    "random": random_search,
    "evolution": lambda *args, **options: evolution(*args, num_parents=4, **options),
    "tpe": tpe,
    "nsga2": lambda *args, **options: nsga2(*args, population_size=4, **options),
}


DRAWN = (
    (
        "random",
        [53, 30, 31, 4, 30, 62, 37, 23, 48, 13, 56, 24],
        [1.3367362953431439e-05, 0.00010190221655648202, 1.3584668522526044e-05],
    ),
    (
        "evolution",
        [47, 62, 21, 40, 38, 61, 32, 62, 45, 61, 29, 61],
        [0.00035239645512774587, 1.3538470739149489e-05, 1.7172482330352068e-05],
    ),
)


def asked(name, rounds, options):
    search = SEARCHES[name](WIDE, [objective("auc", num_groups=2)], options=options)
    state, seen = search.init(0), []
    for _ in range(rounds):
        candidates, state = search.ask(state, 4)
        right = (np.asarray(candidates.masks) == TARGET).mean(1)
        if options:
            right = right + (np.asarray(candidates.choices) == BEST).mean(1)
        state = search.tell(state, candidates, right[:, None])
        seen.append(jax.tree.map(np.asarray, candidates))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *seen)


@pytest.mark.parametrize("name", SEARCHES)
def test_every_search_tries_all_values_and_prefers_good_ones_where_it_learns(name):
    candidates = asked(name, 15, TOY)
    choices = candidates.choices
    assert choices.shape == (60, 2) and choices.dtype == np.int32
    early = [np.unique(column).tolist() for column in choices[:24].T]
    assert early == [[0, 1, 2], [0, 1]]
    if name == "random":
        of_first = np.bincount(choices[:, 0])
        assert of_first.min() >= 10
    else:
        late = (choices[-20:] == BEST).mean(0)
        assert (late > (choices[:12] == BEST).mean(0)).any() and late.mean() > 0.6
    again = asked(name, 3, TOY)
    np.testing.assert_array_equal(again.choices, choices[:12])


def test_without_options_searches_draw_what_they_always_drew():
    """Numbers of version 1.0, masks as bits."""
    bits = 2 ** np.arange(6)
    for name, masks, rates in DRAWN:
        candidates = asked(name, 3, {})
        assert candidates.choices is None
        assert (candidates.masks @ bits).tolist() == masks
        np.testing.assert_allclose(candidates.learning_rates[-3:], rates, rtol=1e-5)
    with_options = asked("random", 3, TOY)
    assert (with_options.masks @ bits).tolist() == DRAWN[0][1]


def test_trials_are_the_same_only_if_they_chose_the_same_and_are_near_if_nearly():
    trials = no_trials(3, 2, (True,), 1, num_replicates=1, num_draws=0, num_runs=1, num_options=2)
    trials.learning_rates[:] = 1e-3
    trials.choices[:] = [[0, 1], [0, 2], [0, 1]]
    assert [find_same(trials, row) for row in range(3)] == [-1, -1, 0]
    np.testing.assert_allclose(_distances(trials, np.arange(3))[0], [0, 2, 0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"options": {"batch_size": (8, 16)}}, "choose among sampler, loss, .* 'batch_size' would"),
        ({"options": {"num_epochs": (1, 2)}}, "'num_epochs' would make another"),
        ({"options": {"sampler": "shuffled"}}, "'sampler' must have a sequence of values"),
        ({"options": {"loss": ()}}, "'loss' must have a sequence of values"),
        ({"options": {"loss": ("focal", "focal")}}, "'loss' has a value twice"),
        ({"options": {"loss": ("hinge",)}}, "loss must be one of .* got 'hinge'"),
        ({"options": {"sampler": ("fairbatch:rate",)}}, "sampler must be one of"),
        ({"options": {"plan": ("hidden/0",)}}, r"'plan' are pruning.PrunePlan\(keep\)"),
        ({"options": {"plan": (PrunePlan({"conv": np.ones(3)}),)}}, "no layer 'conv'"),
        ({"options": {"plan": (PrunePlan({"hidden/0": np.ones(3)}),)}}, "plan of another network"),
        ({"options": {"plan": (PrunePlan({"hidden/0": np.zeros(8)}),)}}, "keep channels of hid"),
        ({"options": TOY | {"loss": ("focal",)}, "search": "random"}, "sampler must be one of"),
        ({"chunk_size": 2}, "with options candidates train one by one: chunk_size is 2"),
        ({"options": {}}, r"options of \(\) values, got \(3, 2, 3\)"),
    ],
)
def test_options_that_cannot_be_are_refused_by_name(options, message):
    if "options" in options and options["options"]:
        options = {"search": "random"} | options
    with pytest.raises(ValueError, match=message):
        search(**options)


def test_a_set_that_is_streamed_and_choices_out_of_range_are_refused():
    small = dataclasses.replace(RECIPE, data_bytes=1_000)
    with pytest.raises(ValueError, match="examples that lie on the device"):
        mask_search(MODEL, WEIGHTS, DATA, small, **HOW, search="random", options=OPTIONS)
    with pytest.raises(ValueError, match=r"choices must be \[6, 2\] of options"):
        replay(SPACE, [LOSS], GIVEN, options=TOY)
    for texts in (["sampler"], ["loss=a", "loss=b"], ["batch_size=4"]):
        with pytest.raises(ValueError, match="options are typed sampler=NAME"):
            parse_options(texts)


def test_a_stored_study_of_other_options_is_refused(tmp_path):
    path, objectives = str(tmp_path / "journal.log"), [objective("auc", num_groups=2)]
    tpe(WIDE, objectives, storage=path, options=TOY).init(0)
    with pytest.raises(ValueError, match="was made for options"):
        tpe(WIDE, objectives, storage=path, options={"loss": ("a", "b")}).init(0)
