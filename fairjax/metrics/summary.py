"""The one-stop table of metrics: prepare a model's outputs once, evaluate under any weights."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from fairjax.metrics import rates
from fairjax.metrics.calibration import binned_calibration_error, calibration_terms
from fairjax.metrics.counts import (
    Array,
    GroupCounts,
    GroupRates,
    Weights,
    check_examples,
    divide,
    example_weights,
    group_counts,
    group_sums,
    weigh,
)
from fairjax.metrics.ranking import RankedScores, rank_scores, ranked_auc
from fairjax.metrics.rates import group_max, group_min, rate_difference

NUM_BINS = 15
FEW = 20  # examples of a cell: a rate of fewer moves by more than 5 points with each
_NAMED = 6  # cells of one sentence


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prepared:
    """What `evaluate` needs of a model's outputs, with all sorting done.

    Attributes:
      preds, labels, group: int32 `[N]`.
      loss: cross-entropy of each example, float32 `[N]`.
      excess, bins: confidence minus correctness, float32 `[N]`, and its bin, int32 `[N]`.
      diverged: bool `[N]`, whether the logits hold nan or inf.
      ranked, ranked_by_group: the scores sorted among everyone and within groups.
      num_groups, num_classes: G and K.
    """

    preds: jax.Array
    labels: jax.Array
    group: jax.Array
    loss: jax.Array
    excess: jax.Array
    bins: jax.Array
    diverged: jax.Array
    ranked: RankedScores
    ranked_by_group: RankedScores
    num_groups: int = dataclasses.field(metadata={"static": True})
    num_classes: int = dataclasses.field(metadata={"static": True})


def prepare(
    logits: Float[Array, "N K"],
    *,
    labels: Int[Array, " N"],
    group: Int[Array, " N"],
    num_groups: int,
) -> Prepared:
    """Do once what does not depend on example weights, for many calls of `evaluate`.

    Args:
      logits: float `[N, K]`, K >= 2.
      labels: int `[N]` in `[0, K)`.
      group: int `[N]` in `[0, G)`.
      num_groups: G.

    Returns:
      Prepared, a pytree that passes through jit, vmap and scan.

    Raises:
      ValueError: shapes or dtypes do not fit, such as logits `[N, 1]`; lengths differ or are 0.
    """
    check_examples(num_groups=num_groups, logits=logits, labels=labels, group=group)
    num_classes = logits.shape[1]
    logits = jnp.asarray(logits).astype(jnp.float32)
    labels, group = jnp.asarray(labels).astype(jnp.int32), jnp.asarray(group).astype(jnp.int32)
    # The difference of two logits orders examples as softmax does, without its ties near 0 and 1.
    scores = logits[:, 1] - logits[:, 0] if num_classes == 2 else jax.nn.softmax(logits)
    log_probs = jax.nn.log_softmax(logits)
    excess, bins = calibration_terms(logits, labels=labels, num_bins=NUM_BINS)
    return Prepared(
        preds=logits.argmax(-1).astype(jnp.int32),
        labels=labels,
        group=group,
        loss=-jnp.take_along_axis(log_probs, labels[:, None], axis=1)[:, 0],
        excess=excess,
        bins=bins,
        diverged=~jnp.isfinite(logits).all(-1),
        ranked=rank_scores(scores, labels=labels),
        ranked_by_group=rank_scores(scores, labels=labels, group=group, num_groups=num_groups),
        num_groups=num_groups,
        num_classes=num_classes,
    )


def evaluate(prepared: Prepared, weights: Weights | None = None) -> dict[str, jax.Array]:
    """All metrics of `fairness_metrics` for one set of example weights.

    Args:
      prepared: see `prepare`.
      weights: float `[N]`, 0 for padding, multiplicities in a bootstrap; ones if None.

    Returns:
      Dict of float32 arrays; see `fairness_metrics`. Safe under jit, vmap and differentiation.

    Raises:
      ValueError: `weights` are not numbers `[N]`.
    """
    return tabulate(measure(prepared, weights))


class Measured(NamedTuple):
    """What can be counted or averaged directly: all that the metrics of `tabulate` are made of."""

    rates: GroupRates
    group: dict[str, jax.Array]
    """float32 `[G]`: group_accuracy, group_auc, group_loss."""
    overall: dict[str, jax.Array]
    """Scalars: accuracy, balanced_accuracy, macro_f1, auc, ece."""


def measure(prepared: Prepared, weights: Weights | None = None) -> Measured:
    """Rates, and averages of everyone and of each group, for one set of example weights.

    Args:
      prepared: see `prepare`.
      weights: float `[N]`; see `evaluate`.

    Returns:
      Measured; all nan but the counts where logits of a weighted example hold nan or inf.

    Raises:
      ValueError: `weights` are not numbers `[N]`.
    """
    p = prepared
    check_examples(labels=p.labels, weights=weights)
    weights = example_weights(weights, len(p.labels))
    counts = group_counts(
        p.preds,
        labels=p.labels,
        group=p.group,
        num_groups=p.num_groups,
        num_classes=p.num_classes,
        weights=weights,
    )
    pooled = counts.pooled()
    loss_sums = group_sums(weigh(p.loss, weights)[:, None], group=p.group, num_groups=p.num_groups)[
        :, 0
    ]
    everyone = {"group": jnp.zeros_like(p.group), "num_groups": 1}
    error = binned_calibration_error(p.excess, p.bins, weights, **everyone, num_bins=NUM_BINS)
    group = {
        "group_accuracy": rates.accuracy(counts),
        "group_auc": ranked_auc(p.ranked_by_group, weights),
        "group_loss": divide(loss_sums, counts.n),
    }
    overall = {
        "accuracy": rates.accuracy(pooled)[0],
        "balanced_accuracy": rates.balanced_accuracy(pooled)[0],
        "macro_f1": rates.macro_f1(pooled)[0],
        "auc": ranked_auc(p.ranked, weights)[0],
        "ece": error[0],
    }
    # A diverged model still has an argmax: make all its metrics undefined, so that it cannot win.
    diverged = (p.diverged & (weights > 0)).any()
    measured = Measured(rates.rates_of(counts), group, overall)
    measured = jax.tree.map(lambda value: jnp.where(diverged, jnp.nan, value), measured)
    return with_counts(measured, counts)


def with_counts(measured: Measured, counts: GroupCounts) -> Measured:
    """The same with other counts of examples, which rates are not computed from again."""
    pooled = measured.rates.pooled()
    pooled = dataclasses.replace(pooled, confusion=counts.pooled().confusion)
    given = dataclasses.replace(measured.rates, confusion=counts.confusion, overall=pooled)
    return measured._replace(rates=given)


def tabulate(measured: Measured) -> dict[str, jax.Array]:
    """The metrics of `fairness_metrics` from what was measured: gaps, lowest and highest values.

    Each is a rate, a mean of them, or a largest or smallest one, difference or distance, so that
    they scale with the rates: what `compare_rows` needs for its intervals.
    """
    group, given = measured.group, measured.rates
    metrics = {
        **measured.overall,
        **group,
        "worst_group_accuracy": group_min(group["group_accuracy"]),
        "accuracy_gap": rate_difference(group["group_accuracy"]),
        "worst_group_auc": group_min(group["group_auc"]),
        "auc_gap": rate_difference(group["group_auc"]),
        "max_group_loss": group_max(group["group_loss"]),
        "equal_opportunity_difference": rates.equal_opportunity_difference(given),
        "equal_opportunity_deviation": rates.equal_opportunity_deviation(given),
        "equalized_odds_difference": rates.equalized_odds_difference(given),
        "equalized_odds_deviation": rates.equalized_odds_deviation(given),
        "demographic_parity_difference": rates.demographic_parity_difference(given),
        "demographic_parity_deviation": rates.demographic_parity_deviation(given),
    }
    return metrics | {"n": given.n, "n_per_label": given.per_label}


def fairness_metrics(
    logits: Float[Array, "N K"],
    *,
    labels: Int[Array, " N"],
    group: Int[Array, " N"],
    num_groups: int,
    weights: Weights | None = None,
) -> dict[str, jax.Array]:
    """Accuracy, ranking, calibration and fairness of one model on one whole split.

    Predictions are the largest logit; AUC scores are the logit difference for two classes, the
    softmax of each class against the rest for more. Undefined values are nan and never counted as
    fair: a group lacking what a rate needs is left out of gaps, `undefined` names it, and logits
    that hold nan or inf make every metric nan.

    Args:
      logits: float `[N, K]`, K >= 2. Under vmap, a population's `[P, N, K]` is sorted once per
        candidate, whatever the number of groups.
      labels: int `[N]` in `[0, K)`.
      group: int `[N]` in `[0, G)`.
      num_groups: G.
      weights: float `[N]`, 0 for padding; ones if None.

    Returns:
      Dict of float32 arrays: scalars `accuracy`, `balanced_accuracy`, `macro_f1`, `auc`, `ece`
      (15 bins), `worst_group_accuracy`, `accuracy_gap`, `worst_group_auc`, `auc_gap`,
      `max_group_loss` (nats) and the `_difference` (largest gap between two groups) and
      `_deviation` (largest distance from the pooled rate) of `equal_opportunity`,
      `equalized_odds` and `demographic_parity`; `[G]` `n`, `group_accuracy`, `group_auc`,
      `group_loss`; `[G, K]` `n_per_label`. Compiled once per shape; safe under jit and vmap.

    Raises:
      ValueError: shapes or dtypes do not fit, such as logits `[N, 1]`; lengths differ or are 0.

    >>> logits, labels = jnp.eye(2)[jnp.array([0, 1, 1, 1])], jnp.array([0, 1, 0, 1])
    >>> group = jnp.array([0, 0, 1, 1])
    >>> metrics = fairness_metrics(logits, labels=labels, group=group, num_groups=2)
    >>> float(metrics["accuracy"]), float(metrics["equalized_odds_difference"])
    (0.75, 1.0)
    """
    check_examples(
        num_groups=num_groups, logits=logits, labels=labels, group=group, weights=weights
    )
    return _compiled(logits, labels=labels, group=group, num_groups=num_groups, weights=weights)


@functools.partial(jax.jit, static_argnames="num_groups")
def _compiled(logits, *, labels, group, num_groups, weights):
    """`fairness_metrics`; operation by operation it takes half a minute."""
    return evaluate(prepare(logits, labels=labels, group=group, num_groups=num_groups), weights)


def undefined(metrics: Mapping[str, Array], group_names: Sequence[str]) -> list[str]:
    """Say in plain sentences which metrics are undefined or leave a group out, and why.

    Args:
      metrics: what `fairness_metrics` returned for one model, on the host or the device.
      group_names: G names.

    Returns:
      One sentence per undefined metric and per group that a defined gap leaves out; empty if all
      is well.

    Raises:
      ValueError: the number of names is not G.
    """
    per_label = np.asarray(metrics["n_per_label"])
    if len(group_names) != len(per_label):
        raise ValueError(f"got {len(group_names)} group names for {len(per_label)} groups")
    sentences = []
    for metric, value in metrics.items():
        value = np.asarray(value)
        lacks = {
            name: reason
            for name, cells in zip(group_names, per_label, strict=True)
            if (reason := _what_is_missing(metric, cells))
        }
        named = "; ".join(f"group '{name}' has {reason}" for name, reason in lacks.items())
        if value.ndim == 0 and np.isnan(value):
            sentences.append(f"{metric} undefined: {named or 'the logits hold nan or inf'}")
        elif value.ndim == 0 and named and metric.endswith(("_difference", "_deviation", "_gap")):
            sentences.append(f"{metric} leaves out: {named}")
        elif value.ndim == 1:
            sentences += [
                f"{metric} of '{name}' undefined: {lacks.get(name, 'the logits hold nan or inf')}"
                for name, entry in zip(group_names, value, strict=True)
                if np.isnan(entry)
            ]
    return sentences


def _what_is_missing(metric: str, cells: np.ndarray) -> str:
    """Why a group with `cells [K]` examples per label cannot define `metric`; "" if it can."""
    absent = np.flatnonzero(cells == 0)
    if len(absent) == len(cells):
        return "no examples"
    needs_labels = metric.startswith(("equal", "auc", "group_auc", "worst_group_auc"))
    if not needs_labels or not len(absent):
        return ""
    if len(cells) > 2:
        return f"no examples of {len(absent)} of {len(cells)} classes"
    if 1 in absent:
        return "no positives"
    return "" if metric.startswith("equal_opportunity") else "no negatives"


def small_cells(
    metrics: Mapping[str, Array], group_names: Sequence[str], label_names: Sequence[str] = ()
) -> list[str]:
    """Say which gaps and worst groups rest on a cell of fewer than `FEW` examples.

    Args:
      metrics: what `fairness_metrics` returned for one model, on the host or the device.
      group_names: G names.
      label_names: K names, used where K > 2; numbers if empty.

    Returns:
      At most one sentence for each kind of cell, naming all metrics that rest on it; empty cells
      are left to `undefined`.

    Raises:
      ValueError: the number of names is not G.

    >>> metrics = {"auc_gap": np.array(0.1), "n_per_label": np.array([[90.0, 12.0], [80.0, 70.0]])}
    >>> small_cells(metrics, ["dark", "light"])
    ["auc_gap rests on few examples: 12 positives of 'dark'"]
    """
    per_label = np.asarray(metrics["n_per_label"])
    if len(group_names) != len(per_label):
        raise ValueError(f"got {len(group_names)} group names for {len(per_label)} groups")
    num_classes = per_label.shape[1]
    kinds = {"examples": per_label.sum(1)[:, None]}
    if num_classes == 2:
        kinds |= {"positives": per_label[:, 1:], "negatives": per_label[:, :1]}
    else:
        kinds |= {"labels": per_label}
    sentences = []
    for kind, cells in kinds.items():
        resting = dict.fromkeys(
            name.removesuffix("_difference").removesuffix("_deviation")
            for name, value in metrics.items()
            if np.ndim(value) == 0 and kind in _rests_on(name, num_classes)
        )
        few = [
            f"{cells[g, k]:.0f} {_cell_name(kind, int(k), label_names)} of '{group_names[g]}'"
            for g, k in np.argwhere((cells > 0) & (cells < FEW))
        ]
        if resting and few:
            more = f" and {len(few) - _NAMED} more cells" if len(few) > _NAMED else ""
            verb = "rest" if len(resting) > 1 else "rests"
            named = f"{', '.join(few[:_NAMED])}{more}"
            sentences.append(f"{', '.join(resting)} {verb} on few examples: {named}")
    return sentences


def _rests_on(metric: str, num_classes: int) -> tuple[str, ...]:
    """The kinds of cells whose examples decide a gap or a worst group; () for other metrics."""
    if metric.startswith(("accuracy_gap", "worst_group_acc", "max_group", "demographic", "dp_")):
        return ("examples",)
    if not metric.startswith(("equal", "auc_gap", "worst_group_auc", "eopp", "eodd")):
        return ()
    if num_classes > 2:
        return ("labels",)
    return ("positives",) if metric.startswith("equal_opp") else ("positives", "negatives")


def _cell_name(kind: str, k: int, label_names: Sequence[str]) -> str:
    if kind != "labels":
        return kind
    return f"with label '{label_names[k]}'" if label_names else f"with label {k}"
