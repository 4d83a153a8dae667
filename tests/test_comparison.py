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


def parts(logits, labels, group, weights):
    """Of one network, by definition: accuracy, and AUC, TPR and FPR of each group."""
    preds, scores = logits.argmax(1), logits[:, 1] - logits[:, 0]
    members = [group == g for g in range(G)]
    return {
        "accuracy": oracle.rate(preds == labels, labels >= 0, weights),
        "auc": np.array([oracle.auc(scores[m], labels[m], weights[m]) for m in members]),
        "true": np.array([oracle.rate(preds == 1, m & (labels == 1), weights) for m in members]),
        "false": np.array([oracle.rate(preds == 1, m & (labels == 0), weights) for m in members]),
    }


def shown_of(parts):
    odds = max(np.ptp(parts["true"]), np.ptp(parts["false"]))
    return np.array([parts["accuracy"], parts["auc"].min(), odds])


def test_rows_agree_with_a_loop_over_replicates_rows_and_seeds():
    logits, labels, group = make_case()
    result = compare(logits, labels, group)
    for row, seed in np.ndindex(ROWS, SEEDS):
        expected = oracle.fairness_metrics(logits[row, seed], labels, group, G, np.ones(N))
        for name, value in expected.items():
            np.testing.assert_allclose(result.metrics[name][row, seed], value, atol=2e-6)
    replicates = drawn_weights(jax.random.key(0), 15)
    assert len(replicates) == 15
    three = np.zeros((15, ROWS, SEEDS, 3, len(SHOWN)))  # plain, reflected, slope
    once = np.zeros((ROWS, SEEDS, len(SHOWN)))
    for row, seed in np.ndindex(ROWS, SEEDS):
        case = logits[row, seed], labels, group
        whole = parts(*case, np.ones(N))
        value = once[row, seed] = shown_of(whole)
        for r, weights in enumerate(replicates):
            drawn = parts(*case, weights[:N])
            move = {name: drawn[name] - value for name, value in whole.items()}
            near = shown_of({name: value + 0.1 * move[name] for name, value in whole.items()})
            reflected = value - shown_of({name: -x for name, x in move.items()})
            slope = value + (near - value) / 0.1
            three[r, row, seed] = shown_of(drawn), np.clip(reflected, 0, 1), slope
    means = [
        np.average(values, axis=1, weights=weights[N:])
        for values, weights in zip(three, replicates, strict=True)
    ]
    means, once = np.stack(means), once.mean(1)  # [15, ROWS, 3, 3], [ROWS, 3]
    changes = (means - means[:, :1])[:, :, ::2]
    for i, name in enumerate(SHOWN):
        for part, values, value in (
            (result.mean, means[:, :, :2, i], once[:, i]),
            (result.change, changes[..., i], once[:, i] - once[0, i]),
        ):
            low = np.quantile(values.min(2), 0.025, axis=0)
            high = np.quantile(values.max(2), 0.975, axis=0)
            np.testing.assert_allclose(part.estimate[name], value, atol=1e-6)
            np.testing.assert_allclose(part.lower[name], np.minimum(low, value), atol=1e-5)
            np.testing.assert_allclose(part.upper[name], np.maximum(high, value), atol=1e-5)
    check_groups(result.by_group, logits, labels, group, replicates)


def check_groups(found, logits, labels, group, replicates):
    """The rates by group and of everyone, against the same loop."""

    def rates(row, seed, weights):
        own = parts(logits[row, seed], labels, group, weights)
        scores = logits[row, seed, :, 1] - logits[row, seed, :, 0]
        return {
            "true_positive_rate": [*own["true"], oracle.rate(scores > 0, labels == 1, weights)],
            "false_positive_rate": [*own["false"], oracle.rate(scores > 0, labels == 0, weights)],
            "accuracy": [np.nan] * G + [own["accuracy"]],
            "auc": [*own["auc"], oracle.auc(scores, labels, weights)],
        }

    for row in range(ROWS):
        once = [rates(row, seed, np.ones(N)) for seed in range(SEEDS)]
        drawn = [[rates(row, seed, w[:N]) for seed in range(SEEDS)] for w in replicates]
        for name in once[0]:
            value = np.mean([each[name] for each in once], axis=0)
            means = [
                np.average([each[name] for each in one], axis=0, weights=w[N:])
                for one, w in zip(drawn, replicates, strict=True)
            ]
            low, high = np.quantile(means, [0.025, 0.975], axis=0)
            known = ~np.isnan(value)
            for part, expected in (
                (found.estimate, value),
                (found.lower, np.minimum(low, value)),
                (found.upper, np.maximum(high, value)),
            ):
                np.testing.assert_allclose(part[name][row][known], expected[known], atol=1e-5)


def test_the_table_by_group_of_one_network_is_that_of_group_table():
    logits, labels, group = make_case(5)
    found = m.group_tables("abc", compare(logits[:, :1], labels, group), ["x", "y"])
    assert list(found) == ["a", "b", "c"]
    one = m.group_table(labels, logits=logits[2, 0], sensitive_features=group, num_replicates=2)
    assert found["c"].n.tolist() == one.n.tolist()
    np.testing.assert_array_equal(np.asarray(found["c"].positives), np.asarray(one.positives))
    assert list(found["c"].rates) == list(one.rates)
    for name, rate in one.rates.items():
        np.testing.assert_allclose(found["c"].rates[name].estimate, rate.estimate, atol=1e-5)
    told = found["c"].as_dict()
    assert list(told) == ["x", "y", "everyone"] and told["y"]["n"] == (group == 1).sum()
    assert told["x"]["auc"]["lower"] <= told["x"]["auc"]["estimate"] <= told["x"]["auc"]["upper"]


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

    def errors(measured):
        traces.append(1)
        return {"error": 1 - m.tabulate(measured)["accuracy"]}

    case = make_case(4)
    result = compare(*case, shown=["error"], table_fn=errors)
    usual = compare(*case)
    np.testing.assert_allclose(result.metrics["error"], 1 - usual.metrics["accuracy"], atol=1e-6)
    np.testing.assert_allclose(
        result.mean.lower["error"], 1 - usual.mean.upper["accuracy"], atol=1e-6
    )
    first = len(traces)
    compare(*case, seed=1, shown=["error"], table_fn=errors)
    assert len(traces) == first


def test_a_gap_of_many_equal_groups_is_held_by_its_interval_as_is_what_was_estimated():
    # Eight groups that do not differ: all percentiles of the plain bootstrap exceed 0.
    rng = np.random.default_rng(0)
    labels, group = np.ones(800, np.int32), np.arange(800, dtype=np.int32) % 8
    scores = rng.normal(size=(20, 1, 800)) + 0.5
    logits = np.stack([0 * scores, scores], axis=-1).astype(np.float32)
    name = "equal_opportunity_difference"
    result = compare(logits, labels, group, num_groups=8, shown=[name], num_replicates=200)
    low, value, high = result.mean.lower[name], result.mean.estimate[name], result.mean.upper[name]
    assert (low == 0).sum() >= 18 and (low <= value).all() and (value < high).all()

    def plain(weights):
        counts = m.group_counts(preds, labels=labels, group=group, num_groups=8, weights=weights)
        return m.equal_opportunity_difference(counts)

    preds = logits[0, 0].argmax(-1)
    key = jax.random.key(0)
    assert jax.jit(lambda key: m.bootstrap(plain, 800, key=key, num_replicates=200))(key).lower > 0


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
