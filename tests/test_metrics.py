import functools
from typing import Any

import fairlearn.metrics as fl
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import oracle
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st

from fairjax import metrics as m

MAX_N, MAX_G, MAX_K = 48, 5, 4

# One compiled program per function: every random case is padded to MAX_N rows of weight 0.
summarise = jax.jit(
    lambda logits, labels, group, weights, num_groups: m.fairness_metrics(
        logits, labels=labels, group=group, num_groups=num_groups, weights=weights
    ),
    static_argnums=4,
)


@jax.jit
def named_disparities(preds, labels, group, weights):
    counts = m.group_counts(preds, labels=labels, group=group, num_groups=MAX_G, weights=weights)
    values = {}
    for method in ("between_groups", "to_overall"):
        for name in ("demographic_parity", "equal_opportunity"):
            for kind in ("difference", "ratio"):
                values[name, kind, method] = getattr(m, f"{name}_{kind}")(counts, method=method)
        for agg in ("worst_case", "mean"):
            for kind in ("difference", "ratio"):
                function = getattr(m, f"equalized_odds_{kind}")
                values["equalized_odds", kind, method, agg] = function(
                    counts, method=method, agg=agg
                )
    return values


@jax.jit
def multiclass(logits, labels, group, weights):
    grouping = {"group": group, "num_groups": MAX_G}
    preds = logits.argmax(-1)
    counts = m.group_counts(preds, labels=labels, **grouping, num_classes=MAX_K, weights=weights)
    return {
        "balanced_accuracy": m.balanced_accuracy(counts),
        "macro_f1": m.macro_f1(counts),
        "auc": m.group_auc(logits, labels=labels, **grouping, weights=weights),
        "brier": m.group_brier_score(logits, labels=labels, **grouping, weights=weights),
        "ece": m.group_calibration_error(
            logits, labels=labels, **grouping, weights=weights, num_bins=10
        ),
        "equalized_odds": m.equalized_odds_difference(counts),
        "equal_opportunity": m.equal_opportunity_difference(counts),
    }


@st.composite
def cases(draw, num_classes=2, num_groups=MAX_G):
    """Small splits with missing cells, one-class groups, empty groups and many tied scores."""
    seed = draw(st.integers(0, 2**32 - 1))
    n = draw(st.integers(2, MAX_N))
    levels = draw(st.sampled_from([2, 5, 1000]))
    rng = np.random.default_rng(seed)
    share = rng.dirichlet(np.full(num_groups * num_classes, draw(st.sampled_from([0.2, 2.0]))))
    cell = rng.choice(num_groups * num_classes, n, p=share)
    group, labels = (cell // num_classes).astype(np.int32), (cell % num_classes).astype(np.int32)
    logits = rng.integers(-levels, levels + 1, (n, num_classes)).astype(np.float32) * 2 / levels
    weights = rng.integers(0, 3, n).astype(np.float32)
    if not weights.sum():
        weights[0] = 1.0
    return logits, labels, group, weights


def pad(logits, labels, group, weights):
    rows = MAX_N - len(labels)
    # Padding carries absurd values on purpose: weight 0 must silence them.
    return (
        np.pad(logits, ((0, rows), (0, 0)), constant_values=np.nan),
        np.pad(labels, (0, rows)),
        np.pad(group, (0, rows)),
        np.pad(weights, (0, rows)),
    )


def close(actual, expected, tolerance=1e-6):
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=tolerance)


@settings(max_examples=200, deadline=None)
@given(cases())
def test_summary_agrees_with_the_definitions(case):
    logits, labels, group, weights = case
    expected = oracle.fairness_metrics(logits, labels, group, MAX_G, weights)
    actual = summarise(*pad(*case), MAX_G)
    for name, value in expected.items():
        close(actual[name], value, 2e-6 if "loss" in name else 1e-6)


def restrict(keep, *arrays):
    return [array[keep] for array in arrays]


METHODS = ("between_groups", "to_overall")


def fairlearn_disparities(rate, base, labels, preds, group, weights):
    """Fairlearn's values over the groups that define the rate; nan if fewer than two do."""
    defined = np.unique(group[base])
    if len(defined) < 2:
        return {(kind, method): np.nan for kind in ("difference", "ratio") for method in METHODS}
    labels, preds, group, weights = restrict(np.isin(group, defined), labels, preds, group, weights)
    frame = fl.MetricFrame(
        metrics=rate,
        y_true=labels,
        y_pred=preds,
        sensitive_features=group,
        sample_params={"sample_weight": weights},
    )
    differences = {("difference", method): frame.difference(method=method) for method in METHODS}
    if not np.any(frame.by_group):
        return differences | {("ratio", method): np.nan for method in METHODS}
    return differences | {("ratio", method): frame.ratio(method=method) for method in METHODS}


@settings(max_examples=200, deadline=None)
@given(cases())
def test_disparities_agree_with_fairlearn_over_the_groups_that_define_them(case):
    logits, labels, group, weights = case
    preds = logits.argmax(1).astype(np.int32)
    actual = named_disparities(np.pad(preds, (0, MAX_N - len(preds))), *pad(*case)[1:])
    data = restrict(weights > 0, labels, preds, group, weights)
    selection = fairlearn_disparities(fl.selection_rate, data[0] >= 0, *data)
    true = fairlearn_disparities(fl.true_positive_rate, data[0] == 1, *data)
    false = fairlearn_disparities(fl.false_positive_rate, data[0] == 0, *data)
    for kind, method in selection:
        worst = np.maximum if kind == "difference" else np.minimum
        t, f = true[kind, method], false[kind, method]
        close(actual["demographic_parity", kind, method], selection[kind, method])
        close(actual["equal_opportunity", kind, method], t)
        close(actual["equalized_odds", kind, method, "worst_case"], worst(t, f))
        close(actual["equalized_odds", kind, method, "mean"], (t + f) / 2)


@settings(max_examples=200, deadline=None)
@given(cases(num_classes=MAX_K, num_groups=MAX_G))
def test_multiclass_metrics_agree_with_scikit_learn_group_by_group(case):
    logits, labels, group, weights = case
    actual = multiclass(*pad(*case))
    probs = oracle.softmax(logits)
    for g in range(MAX_G):
        keep = (group == g) & (weights > 0)
        if not keep.any():
            assert all(np.isnan(actual[name][g]) for name in ("macro_f1", "auc", "brier", "ece"))
            continue
        y, w, x, p = restrict(keep, labels, weights, logits, probs)
        preds = x.argmax(1)
        present = np.unique(y)
        recalls = [np.average(preds[y == c] == c, weights=w[y == c]) for c in present]
        close(actual["balanced_accuracy"][g], np.mean(recalls))
        either = np.union1d(y, preds)
        f1 = [sk.f1_score(y == c, preds == c, sample_weight=w) for c in either]
        close(actual["macro_f1"][g], np.mean(f1))
        both_sides = [c for c in present if len(present) > 1]
        aucs = [sk.roc_auc_score(y == c, x[:, c], sample_weight=w) for c in both_sides]
        close(actual["auc"][g], np.mean(aucs) if aucs else np.nan)
        close(actual["brier"][g], np.average(((p - np.eye(MAX_K)[y]) ** 2).sum(1), weights=w))
        close(actual["ece"][g], oracle.calibration_error(p, y, w, 10))


@settings(max_examples=100, deadline=None)
@given(cases(num_classes=3, num_groups=2), st.booleans())
def test_pruning_paper_variants_agree_with_their_definitions(case, skip):
    logits, labels, group, _ = case
    if len(np.unique(group)) < 2:
        return
    preds = logits.argmax(1).astype(np.int32)
    expected = oracle.pruning_variants(preds, labels, group, 3, skip)
    confusion = np.zeros((2, 3, 3), np.float32)
    np.add.at(confusion, (group, labels, preds), 1)
    counts = m.GroupCounts(jnp.asarray(confusion))
    missing = "skip" if skip else "zero"
    for name in ("eopp0", "eopp1", "eodd", "eodd_scp"):
        close(getattr(m, name)(counts, missing=missing), expected[name])
    close(m.dp_scp(counts), expected["dp_scp"])


# Worked numbers.


def counts_of(table):
    """GroupCounts from {group: (tn, fp, fn, tp)}."""
    return m.GroupCounts(jnp.array([[[tn, fp], [fn, tp]] for tn, fp, fn, tp in table], jnp.float32))


def test_two_groups_by_hand():
    # Group a: TPR 3/4, FPR 1/2, selected 5/8. Group b: TPR 1/4, FPR 1/4, selected 2/8.
    counts = counts_of([(2, 2, 1, 3), (3, 1, 3, 1)])
    close(m.true_positive_rate(counts), [0.75, 0.25])
    close(m.equal_opportunity_difference(counts), 0.5)
    close(m.equal_opportunity_ratio(counts), 1 / 3)
    close(m.demographic_parity_difference(counts), 3 / 8)
    close(m.demographic_parity_ratio(counts), 2 / 5)
    close(m.equalized_odds_difference(counts), 0.5)
    close(m.equalized_odds_difference(counts, agg="mean"), 0.375)
    close(m.equal_opportunity_deviation(counts), 0.25)
    close(m.equalized_odds_deviation(counts), 0.25)
    close(m.precision(counts), [3 / 5, 1 / 2])


def test_deviations_are_distances_from_the_pooled_rate_not_half_the_gap():
    # TPR 1.0 of 9 positives and 0.0 of 1: pooled 0.9, so the distances are 0.1 and 0.9.
    counts = counts_of([(1, 0, 0, 9), (1, 0, 1, 0)])
    close(m.equal_opportunity_deviation(counts), 0.9)
    close(m.equal_opportunity_difference(counts), 1.0)


def test_opposite_gaps_cancel_in_eodd_scp_and_not_in_eodd():
    # TPR gap +1/2, FPR gap -1/2 for class 1, and likewise for class 0.
    counts = counts_of([(4, 0, 2, 2), (2, 2, 4, 0)])
    close(m.eodd_scp(counts), 0.0)
    close(m.eodd(counts), 0.5)


def test_fate_is_relative_gain_minus_relative_disparity():
    value = m.fate(
        jnp.array(0.77),
        jnp.array(0.10),
        base_accuracy=jnp.array(0.7),
        base_disparity=jnp.array(0.2),
    )
    close(value, 0.1 + 0.5)
    zero = jnp.zeros(())
    assert jnp.isnan(m.fate(zero, zero, base_accuracy=zero, base_disparity=zero))


def test_classes_missing_from_a_group_are_counted():
    confusion = jnp.zeros((2, 3, 3)).at[:, 0, 0].set(1.0).at[0, 1, 1].set(1.0).at[:, 2, 2].set(2.0)
    assert m.num_unsupported_classes(m.GroupCounts(confusion)) == 1


def test_one_vs_rest_of_a_class_gives_that_class_and_the_worst_class_is_reported():
    rng = np.random.default_rng(0)
    counts = m.GroupCounts(jnp.asarray(rng.integers(1, 20, (3, 4, 4)), jnp.float32))
    each = [m.equalized_odds_difference(counts.one_vs_rest(c)) for c in range(4)]
    close(m.equalized_odds_difference(counts), max(each))
    close(m.true_positive_rate(counts, positive=2), m.true_positive_rate(counts.one_vs_rest(2)))


# Undefined values.


def test_a_group_without_positives_has_no_rate_and_is_no_perfect_or_awful_group():
    counts = counts_of([(2, 2, 1, 3), (3, 1, 3, 1), (5, 5, 0, 0)])
    assert jnp.isnan(m.true_positive_rate(counts)[2])
    close(m.equal_opportunity_difference(counts), 0.5)


@pytest.mark.parametrize(
    "gap",
    [
        m.equal_opportunity_difference,
        m.equal_opportunity_ratio,
        m.equal_opportunity_deviation,
        m.equalized_odds_difference,
        m.equalized_odds_ratio,
        m.equalized_odds_deviation,
    ],
)
def test_a_gap_that_one_group_alone_defines_is_undefined_not_zero(gap):
    assert jnp.isnan(gap(counts_of([(2, 2, 1, 3), (5, 5, 0, 0)])))


def test_a_single_class_group_never_makes_the_auc_gap_zero():
    labels = jnp.array([0, 1, 0, 1, 1, 1], jnp.int32)
    group = jnp.array([0, 0, 0, 0, 1, 1], jnp.int32)
    auc = m.group_auc(jnp.arange(6.0), labels=labels, group=group, num_groups=2)
    assert jnp.isnan(auc[1]) and jnp.isnan(m.rate_difference(auc))
    close(m.group_min(auc), 0.75)


def test_logits_that_are_nan_make_every_metric_undefined():
    logits = jnp.zeros((4, 2)).at[2].set(jnp.nan)
    labels, group = jnp.array([0, 1, 0, 1]), jnp.array([0, 0, 1, 1])
    metrics = summarise(logits, labels, group, None, 2)
    assert all(jnp.isnan(v).all() for k, v in metrics.items() if k[0] != "n" and "first" not in k)
    cause = "the logits of 1 of 'b' (first: row 2) hold nan, inf or only -inf"
    assert m.undefined(metrics, ["a", "b"])[0] == f"accuracy undefined: {cause}"


def test_undefined_metrics_are_explained_by_group():
    logits = jnp.array([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    labels, group = jnp.array([1, 0, 0, 0]), jnp.array([0, 0, 1, 1])
    metrics = summarise(logits, labels, group, None, 3)
    sentences = m.undefined(metrics, ["women", "men", "others"])
    causes = "group 'men' has no positives; group 'others' has no examples"
    assert f"equal_opportunity_difference undefined: {causes}" in sentences
    assert "group_auc of 'men' undefined: no positives" in sentences
    assert "group_accuracy of 'others' undefined: no examples" in sentences
    assert "demographic_parity_difference leaves out: group 'others' has no examples" in sentences


def test_complete_data_leaves_nothing_to_explain():
    logits = jnp.array([[0.0, 1.0], [1.0, 0.0]] * 2)
    labels, group = jnp.array([1, 0, 0, 1]), jnp.array([0, 0, 1, 1])
    metrics = summarise(logits, labels, group, None, 2)
    assert m.undefined(metrics, ["a", "b"]) == []
    with pytest.raises(ValueError, match="3 group names for 2 groups"):
        m.undefined(metrics, ["a", "b", "c"])


def test_cells_of_few_examples_are_named_with_what_rests_on_them():
    names = ("accuracy", "accuracy_gap", "equalized_odds_difference", "equalized_odds_deviation")
    metrics = {name: np.array(0.1) for name in names}
    two = metrics | {"n_per_label": np.array([[19.0, 20.0], [0.0, 5.0], [50.0, 19.0]])}
    assert m.small_cells(two, ["a", "b", "c"]) == [
        "accuracy_gap rests on few examples: 5 examples of 'b'",
        "equalized_odds rests on few examples: 5 positives of 'b', 19 positives of 'c'",
        "equalized_odds rests on few examples: 19 negatives of 'a'",
    ]
    many = metrics | {"n_per_label": np.full((3, 4), 7.0)}
    (sentence,) = m.small_cells(many, ["a", "b", "c"], ["k", "l", "m", "n"])
    assert "7 with label 'k' of 'a'" in sentence and sentence.endswith("and 6 more cells")
    assert m.small_cells(metrics | {"n_per_label": np.full((3, 4), 20.0)}, ["a", "b", "c"]) == []
    with pytest.raises(ValueError, match="1 group names for 3 groups"):
        m.small_cells(two, ["a"])


def test_a_table_of_measured_rates_is_that_of_the_examples():
    logits, labels, group = (
        jnp.asarray(np.random.default_rng(0).normal(size=(60, 3)), jnp.float32),
        jnp.arange(60) % 3,
        jnp.arange(60) // 7 % 2,
    )
    prepared = m.prepare(logits, labels=labels, group=group, num_groups=3)  # one group is empty
    weights = jnp.arange(60) % 4
    measured = m.measure(prepared, weights)
    preds = logits.argmax(-1)
    counts = m.group_counts(
        preds, labels=labels, group=group, num_groups=3, num_classes=3, weights=weights
    )
    for fn in (m.equalized_odds_difference, m.demographic_parity_deviation, m.eodd, m.dp_scp):
        close(fn(measured.rates), fn(counts))
    np.testing.assert_array_equal(measured.rates.n, counts.n)


# Exactness, invariances, transformations.


def test_auc_of_100k_examples_with_ties_matches_scikit_learn():
    rng = np.random.default_rng(1)
    n = 100_000
    labels = (rng.random(n) < 0.1).astype(np.int32)
    scores = np.round(rng.normal(size=n) + labels, 2).astype(np.float32)
    weights = rng.poisson(1.0, n).astype(np.float32)
    group = (rng.random(n) < 0.02).astype(np.int32)
    x, y = jnp.asarray(scores), jnp.asarray(labels)
    close(jax.jit(m.roc_auc)(x, labels=y), sk.roc_auc_score(labels, scores))
    close(
        jax.jit(m.roc_auc)(x, labels=y, weights=jnp.asarray(weights)),
        sk.roc_auc_score(labels, scores, sample_weight=weights),
    )
    ranked = jax.jit(lambda x, y, group: m.rank_scores(x, labels=y, group=group, num_groups=2))(
        x, y, jnp.asarray(group)
    )
    by_group = [sk.roc_auc_score(labels[group == g], scores[group == g]) for g in (0, 1)]
    close(jax.jit(m.ranked_auc)(ranked), by_group)


def test_counts_of_a_million_examples_are_exact():
    n = 1_000_003
    ones = jnp.ones(n, jnp.int32)
    counts = m.group_counts(ones, labels=ones, group=ones, num_groups=2)
    assert counts.confusion[1, 1, 1] == n and counts.confusion.sum() == n


def random_split(seed, n, num_classes, num_groups):
    rng = np.random.default_rng(seed)
    return (
        jnp.asarray(rng.normal(size=(n, num_classes)), jnp.float32),
        jnp.asarray(rng.integers(0, num_classes, n), jnp.int32),
        jnp.asarray(rng.integers(0, num_groups, n), jnp.int32),
    )


@pytest.mark.parametrize("num_classes", [2, 3])
def test_renaming_groups_permutes_group_metrics_and_leaves_the_others(num_classes):
    logits, labels, group = random_split(0, 200, num_classes, 4)
    names = jnp.array([2, 0, 3, 1])
    before = summarise(logits, labels, group, None, 4)
    after = summarise(logits, labels, names[group], None, 4)
    for name, value in before.items():
        renamed = after[name] if value.ndim == 0 else after[name][names]
        close(renamed, value)


def test_whole_number_weights_mean_repeated_rows_and_order_does_not_matter():
    logits, labels, group = random_split(1, 150, 2, 3)
    repeats = np.random.default_rng(2).integers(0, 4, 150)
    rows = np.random.default_rng(3).permutation(np.repeat(np.arange(150), repeats))
    weighted = summarise(logits, labels, group, jnp.asarray(repeats, jnp.float32), 3)
    repeated = summarise(logits[rows], labels[rows], group[rows], None, 3)
    for name, value in weighted.items():
        close(value, repeated[name])


def test_counts_of_batches_add_up_to_the_counts_of_the_split():
    logits, labels, group = random_split(4, 90, 3, 2)
    preds = logits.argmax(1)

    def count(rows):
        return m.group_counts(
            preds[rows], labels=labels[rows], group=group[rows], num_groups=2, num_classes=3
        )

    merged = count(slice(0, 40)) + count(slice(40, 90))
    assert (merged.confusion == count(slice(None)).confusion).all()


def test_a_population_under_vmap_gets_each_candidate_s_own_metrics():
    logits, labels, group = random_split(5, 120, 2, 3)
    population = jnp.stack([logits, -logits, logits * 0.0])
    together = jax.vmap(lambda x: summarise(x, labels, group, None, 3))(population)
    for p in range(3):
        alone = summarise(population[p], labels, group, None, 3)
        for name, value in alone.items():
            close(together[name][p], value)
    close(together["auc"][2], 0.5)


def test_traced_ids_out_of_range_count_nowhere_instead_of_in_another_cell():
    labels = jnp.array([0, 2, -1, 1], jnp.int32)
    group = jnp.array([0, 0, 1, 9], jnp.int32)
    count = functools.partial(m.group_counts, num_groups=2)
    counts = jax.jit(count)(jnp.zeros(4, jnp.int32), labels=labels, group=group)
    assert counts.confusion.sum() == 1 and counts.confusion[0, 0, 0] == 1


def test_auc_sees_order_that_softmax_rounds_away():
    logits = jnp.array([[0.0, 100.0], [0.0, 110.0], [0.0, 120.0], [0.0, 130.0]])
    labels, group = jnp.array([0, 0, 1, 1]), jnp.zeros(4, jnp.int32)
    close(summarise(logits, labels, group, None, 1)["auc"], 1.0)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_overall_calibration_and_brier_are_those_of_one_group_and_match_scikit_learn(num_classes):
    logits, labels, _ = random_split(6, 300, num_classes, 1)
    probs = oracle.softmax(np.asarray(logits))
    y = np.asarray(labels)
    close(
        m.expected_calibration_error(logits, labels=labels, num_bins=10),
        oracle.calibration_error(probs, y, np.ones(300), 10),
    )
    truth = np.eye(num_classes)[y]
    expected = ((probs - truth) ** 2).sum(1).mean()
    if num_classes == 2:
        expected = sk.brier_score_loss(y, probs[:, 1])
    close(m.brier_score(logits, labels=labels), expected)


def test_numpy_arrays_of_any_width_give_what_jax_arrays_give():
    logits, labels, group = random_split(7, 80, 3, 2)
    narrow: dict[str, Any] = {"labels": labels, "group": group}
    wide: dict[str, Any] = {name: np.asarray(ids, np.int64) for name, ids in narrow.items()}
    numbers = np.asarray(logits, np.float64)
    for function in (m.fairness_metrics, m.group_auc, m.group_brier_score):
        ours = function(numbers, **wide, num_groups=2)
        jax.tree.map(close, ours, function(logits, **narrow, num_groups=2))
    preds = logits.argmax(-1)
    count = functools.partial(m.group_counts, num_groups=2, num_classes=3)
    counts = count(np.asarray(preds), **wide, weights=np.arange(80) % 2)
    masked = count(preds, **narrow, weights=jnp.arange(80) % 2 == 1)
    close(counts.confusion, masked.confusion)
    deciles = np.asarray(preds) + 1
    close(
        m.roc_auc(deciles, labels=wide["labels"] % 2),
        m.roc_auc(preds.astype(jnp.float32), labels=labels % 2),
    )


def test_fairness_metrics_is_one_compiled_program_also_inside_jit_and_vmap():
    logits, labels, group = random_split(8, 40, 2, 2)
    function = lambda x: m.fairness_metrics(x, labels=labels, group=group, num_groups=2)
    assert len(jax.make_jaxpr(function)(logits).eqns) == 1
    alone = function(logits)
    jax.tree.map(close, jax.jit(function)(logits), alone)
    jax.tree.map(lambda x, y: close(x[0], y), jax.vmap(function)(logits[None]), alone)


# Mistakes.


@pytest.fixture
def untyped():
    """Mistakes as a user makes them: without the type checks that the tests switch on."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_mistakes_are_named(untyped):
    ids, logits = jnp.zeros(3, jnp.int32), jnp.zeros((3, 2))
    with pytest.raises(ValueError, match="agg must be one of .* got 'max'"):
        m.equalized_odds_difference(counts_of([(1, 1, 1, 1)] * 2), agg="max")  # pyright: ignore
    with pytest.raises(ValueError, match="method must be one of"):
        m.demographic_parity_ratio(counts_of([(1, 1, 1, 1)] * 2), method="all")  # pyright: ignore
    with pytest.raises(ValueError, match="missing must be one of"):
        m.eodd(counts_of([(1, 1, 1, 1)] * 2), missing="nan")  # pyright: ignore
    with pytest.raises(ValueError, match="at least one example"):
        m.roc_auc(jnp.zeros(0), labels=ids[:0])
    with pytest.raises(ValueError, match="num_groups must be at least 1"):
        m.group_auc(jnp.zeros(3), labels=ids, group=ids, num_groups=0)
    with pytest.raises(ValueError, match="num_bins must be at least 1"):
        m.expected_calibration_error(logits, labels=ids, num_bins=0)
    with pytest.raises(ValueError, match=r"objectives must be \[P, M\], got shape \(3,\)"):
        m.pareto_front(jnp.zeros(3))


IDS = jnp.zeros(3, jnp.int32)
GROUPED = {"group": IDS, "num_groups": 2}
# Each function with arguments that it takes.
CALLS = {
    "fairness_metrics": (m.fairness_metrics, {"logits": jnp.zeros((3, 2)), **GROUPED}),
    "prepare": (m.prepare, {"logits": jnp.zeros((3, 2)), **GROUPED}),
    "group_calibration_error": (
        m.group_calibration_error,
        {"logits": jnp.zeros((3, 2)), **GROUPED},
    ),
    "group_brier_score": (m.group_brier_score, {"logits": jnp.zeros((3, 2)), **GROUPED}),
    "expected_calibration_error": (
        m.expected_calibration_error,
        {"logits": jnp.zeros((3, 2))},
    ),
    "brier_score": (m.brier_score, {"logits": jnp.zeros((3, 2))}),
    "group_auc": (m.group_auc, {"scores": jnp.zeros(3), **GROUPED}),
    "rank_scores": (m.rank_scores, {"scores": jnp.zeros(3), **GROUPED}),
    "roc_auc": (m.roc_auc, {"scores": jnp.zeros(3)}),
    "group_counts": (m.group_counts, {"preds": IDS, **GROUPED}),
}
UNFIT = {
    "logits": [jnp.zeros((3, 1)), jnp.zeros(3), jnp.zeros((3, 2), jnp.int32), jnp.zeros((4, 2))],
    "scores": [jnp.zeros((3, 1)), jnp.zeros((1, 3, 2)), jnp.zeros(3, bool), jnp.zeros(2)],
    "preds": [jnp.zeros(3), jnp.zeros((3, 2), jnp.int32), IDS[:2]],
    "labels": [jnp.zeros(3), jnp.zeros((3, 1), jnp.int32), jnp.zeros(3, bool), IDS[:2], "010"],
    "group": [jnp.zeros(3), jnp.zeros((3, 1), jnp.int32), jnp.zeros(3, bool), IDS[:2], [0.0] * 3],
    "weights": [jnp.ones((3, 1)), jnp.ones(2), 1.0],
}


@pytest.mark.parametrize("name", CALLS)
def test_shapes_and_dtypes_that_do_not_fit_are_refused_by_name_also_under_jit(name, untyped):
    function, fitting = CALLS[name]
    fitting = {**fitting, "labels": IDS}
    if name not in ("rank_scores", "prepare"):
        fitting["weights"] = jnp.ones(3)
    (first,) = set(fitting) & {"logits", "scores", "preds"}
    num_groups = {"num_groups": fitting.pop("num_groups")} if "group" in fitting else {}

    def call(arrays):
        others = {key: value for key, value in arrays.items() if key != first}
        return function(arrays[first], **others, **num_groups)

    jax.eval_shape(call, fitting)
    for argument in fitting:
        for wrong in UNFIT[argument]:
            with pytest.raises(ValueError, match=f"{argument} must be|one value per .*{argument}"):
                call({**fitting, argument: wrong})
            if isinstance(wrong, jax.Array):
                with pytest.raises(ValueError, match=f"{argument} must|one value per"):
                    jax.jit(call)({**fitting, argument: wrong})


def test_the_remedy_for_the_output_of_a_sigmoid_network_gives_its_own_probabilities(untyped):
    z = jnp.array([[0.3], [-1.2], [2.0]])
    labels = jnp.array([0, 1, 1])
    with pytest.raises(ValueError, match=r"concatenate\(\[zeros_like\(z\), z\], 1\)"):
        m.brier_score(z, labels=labels)
    expected = jnp.square(jax.nn.sigmoid(z[:, 0]) - labels.astype(jnp.float32)).mean()
    close(m.brier_score(jnp.concatenate([jnp.zeros_like(z), z], 1), labels=labels), expected)


def test_weights_of_another_length_are_refused_for_prepared_and_ranked_scores(untyped):
    prepared = m.prepare(jnp.zeros((3, 2)), labels=IDS, group=IDS, num_groups=1)
    with pytest.raises(ValueError, match="one value per example"):
        m.evaluate(prepared, jnp.ones(4))
    with pytest.raises(ValueError, match="one value per example"):
        m.ranked_auc(prepared.ranked, jnp.ones(4))


def test_labels_and_groups_cannot_be_swapped_unnoticed():
    with pytest.raises(TypeError, match="positional argument"):
        m.fairness_metrics(jnp.zeros((3, 2)), IDS, IDS, num_groups=1)  # pyright: ignore
    with pytest.raises(TypeError, match="positional argument"):
        m.roc_auc(jnp.zeros(3), IDS)  # pyright: ignore
