"""Bootstrap intervals of group metrics: one jitted program beside fairlearn's `MetricFrame`."""

import functools
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
    """The row `bootstrap_vs_fairlearn`: both sides run the same number of replicates."""
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
    yield claim(
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
