import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import oracle
import pytest

from fairjax import metrics as m

ROWS, SEEDS, N, G = 3, 2, 40, 2
SHOWN = ("accuracy", "worst_group_auc", "equalized_odds_difference")


def make_case(seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, N).astype(np.int32)
    group = rng.integers(0, G, N).astype(np.int32)
    # Few levels, so that scores tie.
    logits = rng.integers(-3, 4, (ROWS, SEEDS, N, 2)) + np.eye(2)[labels]
    return logits.astype(np.float32), labels, group


def compare(logits, labels, group, *, seed=0, **settings):
    settings = {"shown": SHOWN, "num_replicates": 15, "num_groups": G} | settings
    return m.compare_rows(logits, labels=labels, group=group, key=jax.random.key(seed), **settings)


def drawn_weights(key, num_replicates):
    """The weights `[R, N + S]` that the bootstrap draws: examples and seeds, each among itself."""
    drawn = []

    def record(weights):
        jax.debug.callback(lambda w: drawn.append(np.array(w)), weights)
        return weights.sum()

    strata = jnp.asarray([0] * N + [1] * SEEDS)
    m.bootstrap(record, N + SEEDS, key=key, num_replicates=num_replicates, strata=strata)
    jax.effects_barrier()
    return [weights for weights in drawn if (weights != 1).any()][:num_replicates]


def test_rows_agree_with_a_loop_over_replicates_rows_and_seeds():
    logits, labels, group = make_case()
    result = compare(logits, labels, group)

    def means(weights):
        """Each row's metrics averaged over the drawn seeds, `{name: [R]}`."""
        tables = [
            [oracle.fairness_metrics(one, labels, group, G, weights[:N]) for one in row]
            for row in logits
        ]
        return {
            name: np.array(
                [np.average([t[name] for t in row], weights=weights[N:]) for row in tables]
            )
            for name in SHOWN
        }

    for row, seed in np.ndindex(ROWS, SEEDS):
        expected = oracle.fairness_metrics(logits[row, seed], labels, group, G, np.ones(N))
        for name, value in expected.items():
            np.testing.assert_allclose(result.metrics[name][row, seed], value, atol=2e-6)
    once = means(np.ones(N + SEEDS))
    replicates = [means(weights) for weights in drawn_weights(jax.random.key(0), 15)]
    assert len(replicates) == 15
    for name in SHOWN:
        values = np.array([replicate[name] for replicate in replicates])
        for part, sample, estimate in (
            (result.mean, values, once[name]),
            (result.change, values - values[:, :1], once[name] - once[name][0]),
        ):
            low, high = np.quantile(sample, [0.025, 0.975], axis=0)
            np.testing.assert_allclose(part.estimate[name], estimate, atol=1e-6)
            np.testing.assert_allclose(part.lower[name], low, atol=2e-6)
            np.testing.assert_allclose(part.upper[name], high, atol=2e-6)


def test_the_order_of_the_other_rows_does_not_matter():
    logits, labels, group = make_case(1)
    first, swapped = compare(logits, labels, group), compare(logits[[0, 2, 1]], labels, group)
    for name in SHOWN:
        for a, b in ((first.mean, swapped.mean), (first.change, swapped.change)):
            np.testing.assert_allclose(a.lower[name], b.lower[name][[0, 2, 1]], atol=1e-6)
            np.testing.assert_allclose(a.upper[name], b.upper[name][[0, 2, 1]], atol=1e-6)


def test_a_row_equal_to_the_first_changes_by_exactly_nothing_and_another_one_does():
    logits, labels, group = make_case(2)
    result = compare(logits[[0, 0, 1]], labels, group)
    for name in SHOWN:
        low, high = result.change.lower[name], result.change.upper[name]
        assert low[:2].tolist() == high[:2].tolist() == [0.0, 0.0]
        assert low[2] < high[2]
        assert result.mean.lower[name][0] < result.mean.upper[name][0]


def test_a_diverged_network_leaves_its_row_without_an_interval_and_the_others_alone():
    logits, labels, group = make_case(3)
    broken = logits.copy()
    broken[1, 0, 0] = np.nan
    result, whole = compare(broken, labels, group), compare(logits, labels, group)
    for name in SHOWN:
        np.testing.assert_array_equal(np.isnan(result.mean.lower[name]), [False, True, False])
        np.testing.assert_array_equal(result.mean.lower[name][::2], whole.mean.lower[name][::2])


def test_own_metrics_are_compared_and_a_second_call_traces_nothing():
    traces = []

    def evaluate(prepared, weights=None):
        traces.append(1)
        return {"error": 1 - m.evaluate(prepared, weights)["accuracy"]}

    case = make_case(4)
    result = compare(*case, shown=["error"], evaluate_fn=evaluate)
    usual = compare(*case)
    np.testing.assert_allclose(result.metrics["error"], 1 - usual.metrics["accuracy"], atol=1e-6)
    np.testing.assert_allclose(
        result.mean.lower["error"], 1 - usual.mean.upper["accuracy"], atol=1e-6
    )
    first = len(traces)
    compare(*case, seed=1, shown=["error"], evaluate_fn=evaluate)
    assert len(traces) == first


def test_the_pareto_front_keeps_what_nothing_beats():
    accuracy = [0.9, 0.8, 0.7, 0.8, np.nan, 0.9]
    fairness = [0.1, 0.5, 0.4, 0.5, 0.9, 0.05]
    front = m.pareto_front(np.stack([accuracy, fairness], axis=1))
    np.testing.assert_array_equal(front, [True, True, False, True, False, False])
    assert not m.pareto_front(np.full((2, 1), np.nan)).any()


@pytest.fixture
def untyped():
    """Mistakes as a user makes them: without the type checks that the tests switch on."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_mistakes_are_named(untyped):
    logits, labels, group = make_case()
    with pytest.raises(ValueError, match=r"logits must be \[R, S, N, K\].*\(2, 40, 2\)"):
        compare(logits[0], labels, group)
    with pytest.raises(ValueError, match=r"logits must be \[R, S, N, K\].*\(0, 2, 40, 2\)"):
        compare(logits[:0], labels, group)
    with pytest.raises(ValueError, match=r"logits must be floating \[N, K\].*float32 \[40, 1\]"):
        compare(logits[..., :1], labels, group)
    with pytest.raises(ValueError, match="one value per example"):
        compare(logits, labels[:-1], group)
    with pytest.raises(ValueError, match=r"shown names \['group_auc', 'f2'\], known .*accuracy"):
        compare(logits, labels, group, shown=["accuracy", "group_auc", "f2"])
    with pytest.raises(ValueError, match="num_replicates >= 2"):
        compare(logits, labels, group, num_replicates=1)


def test_seeds_on_splits_of_their_own_are_judged_on_their_own_examples():
    logits, labels, group = make_case()
    draw = np.random.default_rng(3)
    tested = np.stack([draw.permutation(N)[:30] for _ in range(SEEDS)])
    own = np.stack([logits[:, seed, rows] for seed, rows in enumerate(tested)], axis=1)
    result = compare(own, labels, group, examples=tested)
    for seed, rows in enumerate(tested):
        alone = compare(logits[:, seed : seed + 1, rows], labels[rows], group[rows])
        for name in SHOWN:
            np.testing.assert_allclose(
                result.metrics[name][:, seed], alone.metrics[name][:, 0], rtol=1e-6
            )
    whole = compare(logits, labels, group)
    given = compare(logits, labels, group, examples=np.tile(np.arange(N), (SEEDS, 1)))
    for field in ("mean", "change"):
        for name in SHOWN:
            expected = getattr(whole, field).lower[name]
            np.testing.assert_array_equal(getattr(given, field).lower[name], expected)


def test_seeds_of_one_split_are_drawn_together():
    logits, labels, group = make_case()
    steady = np.repeat(logits[:1, :1], 4, axis=1)  # row 0: all seeds alike
    moved = steady.copy()
    moved[:, 1::2, :, 1] += 3.0  # row 1: the second seed of each split predicts class 1 more often
    rows = np.concatenate([steady, moved])
    together = compare(rows, labels, group, splits=np.array([0, 0, 1, 1]), num_replicates=60)
    apart = compare(rows, labels, group, num_replicates=60)
    width = lambda result: result.mean.upper["accuracy"][1] - result.mean.lower["accuracy"][1]
    assert width(together) < width(apart)


def test_examples_and_splits_that_do_not_fit_are_refused():
    logits, labels, group = make_case()
    tested = np.tile(np.arange(N), (SEEDS, 1))
    for message, options in {
        r"2 seeds on 40 examples each, examples of \(2, 39\)": {"examples": tested[:, 1:]},
        r"examples must be in \[0, 40\), got 1 to 40": {"examples": tested + 1},
        "name each example of a seed once": {"examples": tested * 0},
        "number the split of each seed from 0": {"splits": np.array([0, 2])},
    }.items():
        with pytest.raises(ValueError, match=message):
            compare(logits, labels, group, **options)
