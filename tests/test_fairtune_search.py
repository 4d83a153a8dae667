# pyright: reportCallIssue=false, reportArgumentType=false, reportOptionalCall=false
"""Searches, early stopping and objectives, on toy problems that need no training."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairjax import fairtune
from fairjax.fairtune import (
    STATUS_NAMES,
    Measured,
    Objective,
    best_masks,
    best_trial,
    check_objectives,
    evolution,
    init_tune,
    mask_space_from_rules,
    nsga2,
    objective,
    random_search,
    successive_halving,
    tpe,
    tune,
)
from fairjax.fairtune.tune import _move_up
from fairjax.metrics import fairness_metrics
from fairjax.sharding import dealing_order

PARAMS = {"blocks": {"w": jnp.zeros((6, 2))}, "head": {"w": jnp.zeros(3)}}
SPACE = mask_space_from_rules(PARAMS, {r"blocks/(\d+)/w": r"blocks/\1", r"head/w": "trained"})
TARGET = np.array([1, 0, 1, 1, 0, 0], bool)


class Toy:
    """Candidates whose value is the share of right bits, approached as they train."""

    def __init__(self, num_objectives=1, fail=False):
        self.epochs_trained, self.num_objectives, self.fail = 0, num_objectives, fail

    def start(self, mask, learning_rate, rung, start_data):
        return {"rate": jnp.asarray(learning_rate)[None], "age": jnp.zeros(1)}

    def train(self, states, masks, rungs, active, due):
        age = states["age"] + 1
        self.epochs_trained += int(active.sum())
        right = (np.asarray(masks) == TARGET).mean(1)
        values = right * (1 - 0.5 ** np.asarray(age))
        if self.fail:
            values = np.where(np.asarray(masks)[:, 0], values, np.nan)
        values = np.where(due, values, np.nan)  # what is not asked for must not be read
        both = np.stack([values, -np.asarray(masks).mean(1)], axis=1)
        values = both[:, : self.num_objectives]
        return {**states, "age": age}, Measured(values, np.zeros((len(values), 2, 0)))


def run(search, toy, rungs, *, num_trials=24, state=None, on_round=None):
    fresh = init_tune(search, toy.start, rungs, num_trials=num_trials, num_slots=4)
    state = fresh if state is None else state
    return tune(search, state, toy.start, toy.train, on_round=on_round).trials


def everyone(num_epochs):
    return successive_halving(num_epochs, first=num_epochs)


def toward(*directions):
    """Objectives of the toy problem, True = larger is better."""
    return [
        Objective(f"toy {i}", up, lambda logits, **ids: logits) for i, up in enumerate(directions)
    ]


UP = toward(True)
SEARCHES = {
    "random": lambda: random_search(SPACE, UP),
    "evolution": lambda: evolution(SPACE, UP, num_parents=4),
    "tpe": lambda: tpe(SPACE, UP),
    "nsga2": lambda: nsga2(SPACE, UP, population_size=4),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_every_search_asks_valid_candidates_and_the_same_again_for_the_same_seed(name):
    def asked(seed):
        search = SEARCHES[name]()
        state, seen = search.init(seed), []
        for _ in range(3):
            candidates, state = search.ask(state, 4)
            values = (np.asarray(candidates.masks) == TARGET).mean(1)[:, None]
            state = search.tell(state, candidates, values)
            seen.append(jax.tree.map(np.asarray, candidates))
        return seen

    one, again, other = asked(0), asked(0), asked(1)
    jax.tree.map(np.testing.assert_array_equal, one, again)
    assert any((a.masks != b.masks).any() for a, b in zip(one, other, strict=True))
    for candidates in one:
        assert candidates.masks.shape == (4, 6) and candidates.masks.dtype == bool
        assert (candidates.learning_rates >= 1e-5 * 0.999).all()
        assert (candidates.learning_rates <= 1e-3 * 1.001).all()


@pytest.mark.parametrize("name", ["evolution", "tpe"])
def test_guided_searches_find_better_masks_than_chance(name):
    trials = run(SEARCHES[name](), Toy(), everyone(1), num_trials=60)
    early, late = trials.values[:12, 0].mean(), trials.values[-12:, 0].mean()
    assert late > early + 0.05
    assert trials.values[best_trial(trials), 0] == 0.5  # all bits right, after one epoch


def test_evolution_works_under_jit():
    search = evolution(SPACE, toward(False), num_parents=4)
    ask, tell = jax.jit(search.ask, static_argnums=1), jax.jit(search.tell)
    state = search.init(0)
    for _ in range(12):
        candidates, state = ask(state, 4)
        state = tell(state, candidates, (candidates.masks != TARGET[None]).mean(1)[:, None])
    np.testing.assert_array_equal(state.masks[0], TARGET)


def test_a_nan_never_becomes_a_parent_or_a_winner():
    search = evolution(SPACE, toward(False), num_parents=2)
    candidates, state = search.ask(search.init(0), 3)
    state = search.tell(state, candidates, jnp.array([[jnp.nan], [1.0], [2.0]]))
    np.testing.assert_array_equal(state.scores, [-1.0, -2.0])
    trials = run(tpe(SPACE, UP), Toy(fail=True), everyone(1))
    failed = trials.status == STATUS_NAMES.index("failed")
    np.testing.assert_array_equal(failed, ~trials.masks[:, 0])
    assert trials.masks[best_trial(trials), 0] and np.isnan(trials.values[failed]).all()


def test_a_mask_asked_twice_is_trained_once():
    fixed = random_search(SPACE, UP, learning_rates=(1e-4, 1e-4))
    toy = Toy()
    trials = run(fixed, toy, everyone(1), num_trials=150)
    distinct = len(np.unique(trials.masks, axis=0))
    assert toy.epochs_trained == distinct < 64 + 1 <= 150
    assert (trials.status == STATUS_NAMES.index("complete")).all()
    repeated = trials.same_as >= 0
    np.testing.assert_array_equal(trials.values[repeated], trials.values[trials.same_as[repeated]])
    np.testing.assert_array_equal(trials.masks[repeated], trials.masks[trials.same_as[repeated]])


def test_rungs_by_hand():
    assert successive_halving(9).epochs.tolist() == [1, 3, 9]
    assert successive_halving(8, first=2, factor=2).epochs.tolist() == [2, 4, 8]
    assert successive_halving(10).epochs.tolist() == [1, 3, 9, 10]
    assert everyone(9).epochs.tolist() == [9]


def test_early_stopping_saves_most_epochs_and_keeps_the_best():
    toy, full = Toy(), Toy()
    fixed = random_search(SPACE, UP, learning_rates=(1e-4, 1e-4))
    trials = run(fixed, toy, successive_halving(9), num_trials=32)
    all_trials = run(fixed, full, everyone(9), num_trials=32)
    assert toy.epochs_trained < 0.4 * 9 * full.epochs_trained
    best, reference = best_trial(trials), best_trial(all_trials)
    np.testing.assert_array_equal(trials.masks[best], all_trials.masks[reference])
    assert trials.epochs[best] == 9
    stopped = trials.status == STATUS_NAMES.index("stopped")
    assert set(trials.epochs[stopped]) <= {1, 3}


def test_hyperband_spares_later_brackets_the_first_comparison():
    fixed = random_search(SPACE, UP, learning_rates=(1e-4, 1e-4))
    trials = run(fixed, Toy(), successive_halving(9, num_brackets=2), num_trials=32)
    trained = trials.same_as < 0
    odd = np.arange(32) % 2 == 1
    assert (trials.epochs[trained & odd] >= 3).all()
    assert (trials.epochs[trained & ~odd] == 1).any()


@pytest.mark.parametrize("name", ["random", "evolution", "tpe"])
def test_a_search_killed_after_any_round_ends_with_the_same_trials(name, tmp_path):
    rungs = successive_halving(3)

    def make(folder):
        if name != "tpe":
            return SEARCHES[name]()
        folder.mkdir(exist_ok=True)
        return tpe(SPACE, UP, storage=str(folder / "journal.log"))

    saved = []

    def keep(state):
        def is_key(x):
            return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)

        saved.append(jax.tree.map(lambda x: x if is_key(x) else np.array(x), state))

    whole = run(make(tmp_path / "whole"), Toy(), rungs, num_trials=20, on_round=keep)
    num_rounds = len(saved)
    for kill_at in (1, num_rounds // 2, num_rounds - 2):
        saved.clear()
        folder = tmp_path / f"killed{kill_at}"

        def killed(state, kill_at=kill_at):
            keep(state)
            if len(saved) == kill_at + 1:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(make(folder), Toy(), rungs, num_trials=20, on_round=killed)
        # the checkpoint before the one at which the kill came: a round is done twice
        state = saved[-2]
        again = run(make(folder), Toy(), rungs, num_trials=20, state=state)
        for field in ("masks", "learning_rates", "status", "same_as", "epochs", "values"):
            np.testing.assert_array_equal(getattr(again, field), getattr(whole, field), field)


def test_two_workers_on_one_journal_neither_lose_nor_repeat_each_others_trials(tmp_path):
    path, rungs = str(tmp_path / "journal.log"), everyone(1)
    searches = [tpe(SPACE, UP, storage=path, worker=worker) for worker in (0, 1)]
    states = [
        init_tune(search, Toy().start, rungs, num_trials=8, num_slots=4) for search in searches
    ]
    found: list[Any] = [None, None]

    def meanwhile(state):  # the other worker runs to its end while the first is in its second round
        if found[1] is None and (state.trials.status != 0).all():
            found[1] = run(searches[1], Toy(), rungs, num_trials=8, state=states[1])

    found[0] = run(searches[0], Toy(), rungs, num_trials=8, state=states[0], on_round=meanwhile)
    for trials in found:
        assert (trials.status == STATUS_NAMES.index("complete")).all()
    numbers = np.concatenate([trials.numbers for trials in found])
    assert sorted(numbers) == list(range(16))
    import optuna
    from optuna.storages.journal import JournalFileBackend

    backend = JournalFileBackend(path)
    study = optuna.load_study(
        study_name="fairtune", storage=optuna.storages.JournalStorage(backend)
    )
    values = np.concatenate([trials.values[:, 0] for trials in found])
    np.testing.assert_allclose(
        np.array([trial.value for trial in study.trials], float), values[numbers.argsort()]
    )
    assert (found[0].masks != found[1].masks).any()


def test_a_stored_study_of_another_space_is_refused(tmp_path):
    path = str(tmp_path / "journal.log")
    tpe(SPACE, UP, storage=path, fingerprint={"data": "a"}).init(0)
    with pytest.raises(ValueError, match="was made for data a, not b"):
        tpe(SPACE, UP, storage=path, fingerprint={"data": "b"}).init(0)
    other = mask_space_from_rules(PARAMS, {r"blocks/.*": "all", r"head/w": "trained"}, name="other")
    with pytest.raises(ValueError, match="was made for space rules, not other"):
        tpe(other, UP, storage=path).init(0)


def test_two_objectives_keep_the_trials_that_nothing_beats():
    search = tpe(SPACE, toward(True, True))
    trials = run(search, Toy(num_objectives=2), everyone(1))
    front = best_masks(trials)
    for i in range(len(trials.status)):
        beaten = any(
            (trials.values[j] >= trials.values[i]).all()
            and (trials.values[j] > trials.values[i]).any()
            for j in range(len(trials.status))
        )
        assert (i in front) == (not beaten and trials.same_as[i] < 0)
    with pytest.raises(ValueError, match="early stopping needs a single objective"):
        run(search, Toy(2), successive_halving(9))


LABELS, GROUP = np.arange(40) % 2, (np.arange(40) // 4) % 2


@pytest.mark.parametrize("name", fairtune.MAXIMIZED)
def test_objectives_are_the_metrics_and_their_bounds_are_pessimistic(name):
    logits = jax.random.normal(jax.random.key(0), (40, 2))
    logits = logits.at[:, 1].add(jnp.asarray(LABELS, jnp.float32))
    labels, group = jnp.asarray(LABELS), jnp.asarray(GROUP)
    plain = objective(name, num_groups=2)
    value = plain.measure(logits, labels=labels, group=group)
    np.testing.assert_allclose(
        value, fairness_metrics(logits, labels=labels, group=group, num_groups=2)[name]
    )
    if name in ("worst_group_auc", "max_group_loss"):
        bound = objective(f"{name}@bound", num_groups=2, num_replicates=20)
        assert bound.maximize == plain.maximize
        pessimistic = bound.measure(logits, labels=labels, group=group)
        assert pessimistic < value if plain.maximize else pessimistic > value


def test_objectives_that_validation_cannot_define_are_refused_by_name():
    names = {"group_names": ("light", "dark"), "num_classes": 2}
    one_class = np.where(GROUP == 1, 0, LABELS)
    check_objectives(
        (objective("worst_group_auc", num_groups=2),), labels=LABELS, group=GROUP, **names
    )
    for name in ("worst_group_auc", "auc_gap@bound", "equalized_odds_difference"):
        with pytest.raises(ValueError, match=f"objective {name} .*'dark'.*no positives"):
            check_objectives(
                (objective(name, num_groups=2),), labels=one_class, group=GROUP, **names
            )
    accuracy = objective("accuracy", num_groups=2)
    own = accuracy._replace(name="one's own")
    check_objectives((accuracy, own), labels=one_class, group=GROUP, **names)
    with pytest.raises(ValueError, match=r"group must lie in \[0, 2\)"):
        check_objectives((accuracy,), labels=LABELS, group=GROUP + 1, **names)
    with pytest.raises(ValueError, match="unknown objective 'min_auc'"):
        objective("min_auc", num_groups=2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: random_search(SPACE, UP, learning_rates=(1e-3, 1e-5)),
            "increasing positive range",
        ),
        (lambda: evolution(SPACE, UP, num_parents=1), "num_parents must be at least 2"),
        (lambda: tpe(SPACE, []), "at least one objective"),
        (lambda: tpe(SPACE, (True,)), "objectives come from"),
        (lambda: evolution(SPACE, toward(True, True)), "takes one objective, got 2"),
        (lambda: successive_halving(9, factor=1), "factor >= 2"),
        (lambda: successive_halving(9, first=2), "multiple of first, got 2"),
        (lambda: successive_halving(9, num_brackets=4), r"num_brackets must be in \[1, 3\]"),
        (
            lambda: run(random_search(SPACE, UP), Toy(), everyone(1), num_trials=0),
            "at least one trial",
        ),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_no_winner_without_a_completed_trial():
    toy = Toy(fail=True)
    train = toy.train
    toy.train = lambda states, masks, rungs, active, due: train(
        states, masks * 0, rungs, active, due
    )
    trials = run(random_search(SPACE, UP), toy, everyone(1), num_trials=3)
    with pytest.raises(ValueError, match="no trial was completed: 3 of 3 failed"):
        best_trial(trials)


def test_the_winner_of_what_is_minimised_has_the_smallest_value_whatever_the_caller_thinks():
    trials = run(random_search(SPACE, toward(False)), Toy(), everyone(1))
    complete = trials.status == STATUS_NAMES.index("complete")
    assert trials.values[best_trial(trials), 0] == trials.values[complete, 0].min()
    assert not trials.maximize[0]


def test_living_candidates_move_so_that_every_device_has_its_share():
    slots = np.array([-1, -1, 4, -1, 6, 7, -1, -1])
    population = {"x": jnp.arange(8.0), "y": jnp.arange(16.0).reshape(8, 2)}
    order = dealing_order(8, 2)
    assert order.tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    moved, after = _move_up(slots, dict(population), order)
    assert moved.tolist() == [4, 7, -1, -1, 6, -1, -1, -1]
    came_from = [2, 5, None, None, 4]
    for slot in (0, 1, 4):
        assert after["x"][slot] == came_from[slot]
        assert after["y"][slot].tolist() == [2 * came_from[slot], 2 * came_from[slot] + 1]
