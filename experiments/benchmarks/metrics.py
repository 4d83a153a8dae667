"""Bootstrap intervals of group metrics and the table by group beside fairlearn's `MetricFrame`."""

import functools
import time
from collections.abc import Iterator
from typing import Any

import fairlearn.metrics
import jax
import jax.numpy as jnp
import numpy as np
import sklearn.metrics

from experiments.timing import claim, compile_seconds, paired, seconds
from fairjax import metrics

NUM_EXAMPLES, NUM_GROUPS = 10_000, 10


def make_split(num_examples: int = NUM_EXAMPLES) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, labels and groups of an imaginary classifier; every group has both labels."""
    rng = np.random.default_rng(0)
    labels = (rng.random(num_examples) < 0.3).astype(np.int32)
    group = rng.integers(0, NUM_GROUPS, num_examples).astype(np.int32)
    scores = rng.normal(size=num_examples) + labels - 0.1 * (group % 3)
    return scores.astype(np.float32), labels, group


def ours(scores, labels, group, key, *, num_replicates: int) -> metrics.Intervals:
    """Intervals of four metrics in each group and overall."""
    grouping = {"group": group, "num_groups": NUM_GROUPS}
    preds = (scores > 0).astype(jnp.int32)
    overall_ranked = metrics.rank_scores(scores, labels=labels)
    ranked = metrics.rank_scores(scores, labels=labels, **grouping)

    def metric_fn(weights):
        counts = metrics.group_counts(preds, labels=labels, **grouping, weights=weights)
        by_group, overall = (
            {
                "accuracy": metrics.accuracy(table),
                "selection_rate": metrics.selection_rate(table),
                "true_positive_rate": metrics.true_positive_rate(table),
            }
            for table in (counts, counts.pooled())
        )
        by_group["auc"] = metrics.ranked_auc(ranked, weights)
        overall["auc"] = metrics.ranked_auc(overall_ranked, weights)
        return by_group, overall

    return metrics.bootstrap(metric_fn, labels.shape[0], key=key, num_replicates=num_replicates)


def theirs(scores, labels, group, *, num_replicates: int) -> fairlearn.metrics.MetricFrame:
    """The same by fairlearn: `y_pred` holds scores, and the rates threshold them."""

    def at_zero(rate):
        return lambda y_true, y_score: rate(y_true, (y_score > 0).astype(np.int32))

    return fairlearn.metrics.MetricFrame(
        metrics={
            "accuracy": at_zero(sklearn.metrics.accuracy_score),
            "selection_rate": at_zero(fairlearn.metrics.selection_rate),
            "true_positive_rate": at_zero(fairlearn.metrics.true_positive_rate),
            "auc": sklearn.metrics.roc_auc_score,
        },
        y_true=labels,
        y_pred=scores,
        sensitive_features=group,
        n_boot=num_replicates,
        ci_quantiles=[0.025, 0.975],
        random_state=0,
    )


def claims(quick: bool = False) -> Iterator[dict[str, Any]]:
    """Both sides of the first row run as many replicates; of the second fairlearn runs a few."""
    yield bootstrap_claim(quick)
    yield group_table_claim(quick)


def calibration_error(labels, scores) -> float:
    """ECE of 15 bins of a column of log-odds, for fairlearn to call."""
    probs = 1 / (1 + np.exp(-np.abs(scores)))
    bins = np.clip(np.ceil(probs * 15) - 1, 0, 14).astype(int)
    excess = np.bincount(bins, probs - ((scores > 0) == labels), 15)
    return float(np.abs(excess).sum() / len(labels))


def group_table_claim(quick: bool) -> dict[str, Any]:
    """The row `group_table_vs_fairlearn`: the six rates of `metrics.group_table`."""
    num_examples, theirs_of = (2_000, 2) if quick else (100_000, 4)
    num_replicates = 50 * theirs_of if quick else 2_000
    rng = np.random.default_rng(0)
    labels = (rng.random(num_examples) < 0.3).astype(np.int32)
    groups = {"a": rng.integers(0, 2, num_examples), "b": rng.integers(0, 4, num_examples)}
    scores = rng.normal(size=num_examples) + labels
    logits = np.stack([np.zeros_like(scores), scores], axis=1)

    def ours() -> metrics.GroupTable:
        return metrics.group_table(
            labels, logits=logits, sensitive_features=groups, num_replicates=num_replicates
        )

    def at_zero(rate):
        return lambda y_true, y_score: rate(y_true, (y_score > 0).astype(np.int32))

    def theirs() -> fairlearn.metrics.MetricFrame:
        return fairlearn.metrics.MetricFrame(
            metrics={
                "selection_rate": at_zero(fairlearn.metrics.selection_rate),
                "true_positive_rate": at_zero(fairlearn.metrics.true_positive_rate),
                "false_positive_rate": at_zero(fairlearn.metrics.false_positive_rate),
                "accuracy": at_zero(sklearn.metrics.accuracy_score),
                "auc": sklearn.metrics.roc_auc_score,
                "ece": calibration_error,
            },
            y_true=labels,
            y_pred=scores,
            sensitive_features=groups,
            n_boot=theirs_of,
            ci_quantiles=[0.025, 0.975],
            random_state=0,
        )

    times = paired(ours, theirs, repeats=1 if quick else 3, warmup=1)
    scale = num_replicates / theirs_of
    times = times._replace(theirs_s=[scale * each for each in times.theirs_s])
    began = time.process_time()
    table = ours()
    between = time.process_time()
    frame = theirs()
    cpu = between - began, scale * (time.process_time() - between)
    disagreement = max(
        float(np.abs(rate.estimate[:-1] - np.asarray(frame.by_group[name], float)).max())
        for name, rate in table.rates.items()
    )
    return claim(
        "group_table_vs_fairlearn",
        times,
        quality={
            "ours": {"max_abs_difference_of_point_estimates": disagreement, "cpu_s": cpu[0]},
            "theirs": {"cpu_s": cpu[1]},
        },
        notes=(
            f"{num_replicates:,} replicates of six rates, 8 intersections, n = {num_examples:,}; "
            f"fairlearn ran {theirs_of} of them, its time is scaled by {scale:g}; nothing of ours "
            "is compiled"
        ),
    )


def bootstrap_claim(quick: bool) -> dict[str, Any]:
    """The row `bootstrap_vs_fairlearn`."""
    num_replicates, repeats = (10, 1) if quick else (50, 3)
    split = make_split(2_000 if quick else NUM_EXAMPLES)
    data = jax.device_put(split)
    key = jax.random.key(0)
    jitted = jax.jit(functools.partial(ours, num_replicates=num_replicates))
    compile_s = compile_seconds(jitted, *data, key)
    times = paired(
        lambda: jitted(*data, key),
        lambda: theirs(*split, num_replicates=num_replicates),
        repeats=repeats,
        warmup=1,
    )
    thousand = jax.jit(functools.partial(ours, num_replicates=1000))
    by_group, _ = thousand(*data, key).estimate
    thousand_s = seconds(lambda: thousand(*data, key))
    point = theirs(*split, num_replicates=2).by_group
    disagreement = max(
        float(np.abs(np.asarray(by_group[name]) - np.asarray(point[name], float)).max())
        for name in by_group
    )
    return claim(
        "bootstrap_vs_fairlearn",
        times,
        compile_s=compile_s,
        quality={
            "ours": {
                "max_abs_difference_of_point_estimates": disagreement,
                "seconds_for_1000_replicates": thousand_s,
            },
            "theirs": {},
        },
        notes=(
            f"{num_replicates} replicates on both sides, accuracy, selection rate, TPR and AUC "
            f"of {NUM_GROUPS} groups and overall, n = {len(split[0]):,}; "
            f"ours alone with 1,000 replicates: {thousand_s:.2f} s"
        ),
    )
