"""Racing, and the choice of a winner by what all trials say together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairjax.fairtune import (
    STATUS_NAMES,
    Found,
    Measured,
    Objective,
    Trials,
    corrected_value,
    estimate,
    init_tune,
    mask_space_from_rules,
    racing,
    random_search,
    successive_halving,
    tune,
)
from fairjax.fairtune.choosing import _distances, _regress

PARAMS = {"blocks": {"w": jnp.zeros((6, 2))}, "head": {"w": jnp.zeros(3)}}
SPACE = mask_space_from_rules(PARAMS, {r"blocks/(\d+)/w": r"blocks/\1", r"head/w": "trained"})
UP = [Objective("toy", True, lambda logits, **ids: logits)]
COMPLETE, STOPPED, FAILED = (STATUS_NAMES.index(name) for name in ("complete", "stopped", "failed"))
NUM_DRAWS = 40


class Toy:
    """Trials whose value on a fold is their share of trained units, plus noise of the fold."""

    def __init__(self, spread, fail_in=None):
        self.spread, self.fail_in, self.trained = spread, fail_in, []

    def start(self, mask, learning_rate, rung, start_data):
        return {"rung": jnp.asarray(rung)[None]}

    def train(self, states, masks, rungs, active, due):
        np.testing.assert_array_equal(np.asarray(states["rung"])[active], rungs[active])
        self.trained.append(int(active.sum()))
        worth = np.asarray(masks).mean(1)
        values = np.where(rungs == self.fail_in, np.where(worth > 0.5, np.nan, worth), worth)
        numbers = np.asarray(masks) @ 2 ** np.arange(6)  # each trial draws its own noise
        draws = [np.random.default_rng(number).normal(size=(2, NUM_DRAWS)) for number in numbers]
        return states, Measured(
            values[:, None], values[:, None, None] + self.spread * np.stack(draws)
        )


def run(toy, num_trials=16, rungs=None, state=None, on_round=None):
    search = random_search(SPACE, UP, learning_rates=(1e-4, 1e-4))
    rungs = racing(2, 4) if rungs is None else rungs
    sizes = {"num_trials": num_trials, "num_slots": 4, "num_replicates": 4, "num_draws": NUM_DRAWS}
    fresh = init_tune(search, toy.start, rungs, **sizes)
    state = fresh if state is None else state
    return tune(search, state, toy.start, toy.train, on_round=on_round).trials


def test_a_race_stops_whom_the_best_excludes_and_spares_whom_noise_hides():
    sharp, blurred = Toy(0.01), Toy(10.0)
    trials = run(sharp)
    own = trials.same_as < 0
    share = trials.masks.mean(1)
    assert (trials.status[own & (share == share.max())] == COMPLETE).all()
    stopped = own & (trials.status == STOPPED)
    assert stopped.any() and (share[stopped] < share.max()).all()
    assert set(trials.epochs[stopped]) <= {2, 4, 6}
    everyone = run(blurred)
    assert (everyone.status == COMPLETE).all() and (everyone.epochs == 8).all()
    assert sum(sharp.trained) < 0.8 * sum(blurred.trained)


def test_a_trial_fails_with_the_replicate_that_does_and_is_named():
    trials = run(Toy(10.0, fail_in=1))
    failed = (trials.status == FAILED) & (trials.same_as < 0)
    assert failed.any() and (trials.masks[failed].mean(1) > 0.5).all()
    assert np.isfinite(trials.replicates[failed, 0]).all()
    assert np.isnan(trials.replicates[failed, 1]).all()
    notes = Found(SPACE, tuple(UP), trials).notes()
    first = int(np.flatnonzero(failed)[0])
    assert f"trial {first} (replicate 1)" in notes[-1]


def test_a_race_goes_on_from_a_saved_state_to_the_same_end():
    saved = []
    whole = run(Toy(0.05), on_round=lambda state: saved.append(jax.tree.map(copy, state)))
    again = run(Toy(0.05), state=saved[len(saved) // 2])
    for field in ("status", "epochs", "values", "replicates"):
        np.testing.assert_array_equal(getattr(again, field), getattr(whole, field), field)


def copy(leaf):
    is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return leaf if is_key else np.array(leaf)


def test_races_that_cannot_be_run_are_refused():
    with pytest.raises(ValueError, match="at least 1 epoch and 2 folds, got 2 and 1"):
        racing(2, 1)
    toy, search = Toy(1.0), random_search(SPACE, UP)
    sizes = {"num_trials": 2, "num_slots": 2}
    with pytest.raises(ValueError, match="1 runs of a trial at a time do not make 3 replicates"):
        init_tune(search, toy.start, racing(2, 4), **sizes, num_replicates=3)
    with pytest.raises(ValueError, match="a race needs num_draws"):
        init_tune(search, toy.start, racing(2, 4), **sizes, num_replicates=4)


def make_trials(truth, noise, draw, *, masks=None, num_draws=60, num_examples=80):
    """Trials valued by the mean of examples, whose noise they share in part."""
    count = len(truth)
    masks = draw.random((count, 6)) < 0.5 if masks is None else masks
    shared = draw.normal(0, 1, num_examples)
    own = draw.normal(0, 1, (count, num_examples))
    examples = truth[:, None] + noise * (shared + own)
    weights = draw.multinomial(num_examples, np.full(num_examples, 1 / num_examples), num_draws)
    left_out = weights == 0
    drawn = np.stack(
        [examples @ weights.T / num_examples, examples @ left_out.T / left_out.sum(1)], axis=1
    )
    integers = np.zeros(count, np.int32)
    return Trials(
        numbers=np.arange(count, dtype=np.int32),
        masks=masks,
        learning_rates=np.full(count, 1e-3, np.float32),
        status=integers + COMPLETE,
        same_as=integers - 1,
        epochs=integers + 3,
        values=examples.mean(1)[:, None].astype(np.float32),
        replicates=examples.mean(1)[:, None].astype(np.float32),
        drawn=drawn[:, None].astype(np.float32),
        rung_values=examples.mean(1)[:, None].astype(np.float32),
        maximize=np.array([True]),
        num_runs=np.array(1, np.int32),
    )


def test_the_regression_is_the_limit_of_a_process_whose_mean_is_unknown():
    """With one age, a flat prior of the mean is a constant kernel that grows without bound."""
    draw = np.random.default_rng(0)
    y, near = draw.normal(size=9), _distances(make_trials(np.zeros(9), 1.0, draw), np.arange(9))
    kernel = 0.7 * np.exp(-near / 2)
    noise = 0.3 * np.eye(9) + 0.05
    ones = np.ones((9, 1))
    _, smoother, variance = _regress(y, kernel + noise, kernel, ones, ones)
    flat = 1e6 * np.ones((9, 9))
    expected = (kernel + flat) @ np.linalg.solve(kernel + noise + flat, np.eye(9))
    np.testing.assert_allclose(smoother, expected, atol=1e-4)
    assert (variance >= 0).all() and (variance <= 0.7).all()


def test_the_likelihood_is_that_of_the_contrasts():
    """The flat prior leaves what differences of the values say; here against their density."""
    draw = np.random.default_rng(1)
    y, near = draw.normal(size=6), _distances(make_trials(np.zeros(6), 1.0, draw), np.arange(6))
    ones, contrasts = np.ones((6, 1)), np.diff(np.eye(6), axis=0)

    def density(total):
        covariance = contrasts @ total @ contrasts.T
        rest = contrasts @ y
        return -0.5 * (rest @ np.linalg.solve(covariance, rest) + np.linalg.slogdet(covariance)[1])

    totals = [scale * np.exp(-near / 2) + 0.4 * np.eye(6) for scale in (0.2, 2.0)]
    ours = [_regress(y, total, total, ones, ones)[0] for total in totals]
    theirs = [density(total) for total in totals]
    assert ours[1] - ours[0] == pytest.approx(theirs[1] - theirs[0], abs=1e-6)


def test_values_without_noise_stay_and_noise_shrinks_them_to_what_similar_trials_have():
    draw = np.random.default_rng(2)
    masks = draw.random((24, 6)) < 0.5
    truth = 0.7 + 0.05 * masks[:, 0]
    clean = estimate(make_trials(truth, 1e-6, draw, masks=masks))
    np.testing.assert_allclose(clean.mean, truth, atol=2e-3)
    gained = []
    for _ in range(40):
        truth = 0.7 + 0.03 * masks @ draw.normal(0, 1, 6)
        trials = make_trials(truth, 0.5, draw, masks=masks)
        posterior = estimate(trials)
        assert np.ptp(posterior.mean) < np.ptp(trials.values)
        chosen, luckiest = posterior.mean.argmax(), trials.values[:, 0].argmax()
        gained.append(truth[chosen] - truth[luckiest])
    assert np.mean(gained) > 2 * np.std(gained) / np.sqrt(len(gained))


def test_noise_that_all_trials_share_does_not_shrink_their_differences():
    draw = np.random.default_rng(3)
    masks = draw.random((16, 6)) < 0.5
    truth = 0.7 + 0.05 * masks.sum(1) / 6
    trials = make_trials(truth, 1e-6, draw, masks=masks)
    common = draw.normal(0, 0.2, trials.drawn.shape[2:]).astype(np.float32)
    posterior = estimate(trials._replace(drawn=trials.drawn + common))
    np.testing.assert_allclose(
        posterior.mean - posterior.mean.mean(), truth - truth.mean(), atol=3e-3
    )


def test_trials_that_stopped_early_are_judged_among_those_of_their_age():
    draw = np.random.default_rng(4)
    masks = draw.random((20, 6)) < 0.5
    truth = 0.7 + 0.1 * masks[:, 0]
    trials = make_trials(truth, 0.01, draw, masks=masks)
    young = np.arange(20) % 2 == 1
    trials.values[young] -= 0.3
    trials.epochs[young] = 1
    trials.status[young] = STOPPED
    posterior = estimate(trials)
    np.testing.assert_allclose(posterior.mean[young].mean(), truth[young].mean(), atol=0.05)
    assert masks[Found(SPACE, tuple(UP), trials).best_rows(1)[0], 0]


def test_the_corrected_value_takes_back_what_choosing_the_luckiest_gained():
    """All trials are worth 0.5: the best of them looks better, corrected it does not."""
    draw = np.random.default_rng(5)
    best, corrected = [], []
    for _ in range(60):
        trials = make_trials(np.full(16, 0.5), 0.5, draw)
        posterior, fair = estimate(trials), trials.values.mean()
        best.append(trials.values.max() - fair)
        corrected.append(corrected_value(trials, posterior) - fair)
    assert np.mean(best) > 0.08
    assert abs(np.mean(corrected)) < 0.25 * np.mean(best)


def test_few_trials_or_trials_without_draws_are_taken_at_their_values():
    draw = np.random.default_rng(6)
    trials = make_trials(np.arange(3) / 10, 0.01, draw)
    np.testing.assert_allclose(estimate(trials).mean, trials.values[:, 0])
    none = make_trials(np.arange(8) / 10, 0.01, draw)
    none = none._replace(drawn=none.drawn[..., :0])
    assert np.isfinite(estimate(none).mean).all()
    assert np.isnan(corrected_value(none, estimate(none)))


def test_halving_with_replicates_compares_means():
    trials = run(Replicated(), rungs=successive_halving(3))
    own = trials.same_as < 0
    np.testing.assert_allclose(trials.values[own, 0], trials.replicates[own].mean(1), rtol=1e-6)
    assert (trials.status[own] == STOPPED).any() and int(trials.num_runs) == 4


class Replicated:
    """Four runs of a trial side by side."""

    def start(self, mask, learning_rate, rung, start_data):
        return {"age": jnp.zeros(4)}

    def train(self, states, masks, rungs, active, due):
        values = np.repeat(np.asarray(masks).mean(1), 4) + np.tile([0.0, 0.1, 0.2, 0.3], 4)
        measured = Measured(values[:, None], np.zeros((16, 2, NUM_DRAWS)))
        return {"age": states["age"] + 1}, measured
