"""The one-stop table of metrics: prepare a model's outputs once, evaluate under any weights."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from fairjax.metrics import rates
from fairjax.metrics.calibration import binned_errors, calibration_terms
from fairjax.metrics.counts import (
    Array,
    GroupCounts,
    GroupRates,
    Ids,
    Weights,
    check_examples,
    device_logits,
    divide,
    example_weights,
    finite_sums,
    group_counts,
    is_wide,
    weigh,
)
from fairjax.metrics.outputs import Logits, Probs, logits_of
from fairjax.metrics.ranking import RankedScores, ordered, rank_checked, ranked_auc
from fairjax.metrics.rates import group_max, group_min, rate_difference

NUM_BINS = 15


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prepared:
    """What `evaluate` needs of a model's outputs, with all sorting done.

    Attributes:
      preds, labels, group: int32 `[N]`.
      loss: cross-entropy of each example, float32 `[N]`.
      excess, bins: confidence minus correctness, float32 `[N]`, and its bin, int32 `[N]`.
      diverged: bool `[N]`, whether the logits hold nan, inf or nothing but -inf.
      ranked, ranked_by_group: the scores sorted among everyone and within groups.
      num_groups, num_classes: G and K.
      scored: whether there are more than predictions: scores to rank, and probabilities.
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
    scored: bool = dataclasses.field(default=True, metadata={"static": True})


def prepare(
    logits: Logits | None = None,
    *,
    probs: Probs | None = None,
    preds: Ids | None = None,
    labels: Ids,
    group: Ids,
    num_groups: int,
    num_classes: int | None = None,
) -> Prepared:
    """Do once what does not depend on example weights, for many calls of `evaluate`.

    Args:
      logits: float `[N, K]`, K >= 2; or instead of them
      probs: float `[N]` or `[N, K]`; or
      preds: int `[N]`; all as in `fairness_metrics`.
      labels: int `[N]` in `[0, K)`.
      group: int `[N]` in `[0, G)`.
      num_groups: G.
      num_classes: K of `preds`, 2 if None.

    Returns:
      Prepared, a pytree that passes through jit, vmap and scan.

    Raises:
      ValueError: as `fairness_metrics`.
    """
    scored = preds is None
    given = logits_of(logits, probs, preds, num_classes=num_classes, weights=None)
    _, labels, group = check_examples(
        num_groups=num_groups, logits=given, labels=labels, group=group
    )
    scores = auc_scores(given)
    return prepare_scored(device_logits(given), scores, labels, group, num_groups, scored)


def auc_scores(logits: Float[Array, "*axes K"]) -> jax.Array:
    """Scores of `logits [..., N, K]`: `[..., N]` for two classes, else `[..., N, K]`.

    The difference of two logits orders examples as softmax does, without its ties near 0 and 1.
    """
    wide = is_wide(logits)
    logits = logits if wide else jnp.asarray(logits)
    with np.errstate(invalid="ignore", over="ignore"):
        if logits.shape[-1] == 2:
            return ordered(logits[..., 1] - logits[..., 0], axis=-1)
        if wide:
            from scipy.special import softmax  # slow to import: only when needed
        else:
            softmax = jax.nn.softmax
        return ordered(softmax(logits, axis=-1), axis=-2)


def prepare_scored(
    logits: jax.Array,
    scores: jax.Array,
    labels: Any,
    group: Any,
    num_groups: int,
    scored: bool = True,
) -> Prepared:
    """`prepare` of what is known to fit, with the `auc_scores` of the logits."""
    num_classes = logits.shape[1]
    labels, group = jnp.asarray(labels).astype(jnp.int32), jnp.asarray(group).astype(jnp.int32)
    log_probs = jax.nn.log_softmax(logits)
    excess, bins = calibration_terms(logits, labels=labels, num_bins=NUM_BINS)
    return Prepared(
        preds=logits.argmax(-1).astype(jnp.int32),
        labels=labels,
        group=group,
        loss=-jnp.take_along_axis(log_probs, labels[:, None], axis=1)[:, 0],
        excess=excess,
        bins=bins,
        # A probability of 0 is a logit of -inf: no failure, as long as another class has the rest.
        diverged=~jnp.isfinite(logits.max(-1)),
        ranked=rank_checked(scores, labels, None, 1),
        ranked_by_group=rank_checked(scores, labels, group, num_groups),
        num_groups=num_groups,
        num_classes=num_classes,
        scored=scored,
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
    """float32 `[G]`: group_accuracy, group_auc, group_loss, group_ece, n_diverged and
    first_diverged."""
    overall: dict[str, jax.Array]
    """Scalars: accuracy, balanced_accuracy, macro_f1, auc, ece. Of predictions without scores
    neither holds auc, loss or ece."""


def measure(prepared: Prepared, weights: Weights | None = None) -> Measured:
    """Rates, and averages of everyone and of each group, for one set of example weights.

    Args:
      prepared: see `prepare`.
      weights: float `[N]`; see `evaluate`.

    Returns:
      Measured; all nan but the counts where a weighted example has diverged.

    Raises:
      ValueError: `weights` are not numbers `[N]`.
    """
    p = prepared
    _, weights = check_examples(scores=p.labels, weights=weights)
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
    diverged = p.diverged & (weights > 0)
    endless = jnp.isinf(p.loss) & (weights > 0)  # the label was given a probability of 0
    counted = [weigh(jnp.where(jnp.isfinite(p.loss), p.loss, 0.0), weights), endless, diverged]
    loss_sums, num_endless, num_diverged = finite_sums(
        jnp.stack([values.astype(jnp.float32) for values in counted], axis=1),
        group=p.group,
        num_groups=p.num_groups,
    ).T
    loss_sums = jnp.where(num_endless > 0, jnp.inf, loss_sums)
    group = {"group_accuracy": rates.accuracy(counts)}
    overall = {
        "accuracy": rates.accuracy(pooled)[0],
        "balanced_accuracy": rates.balanced_accuracy(pooled)[0],
        "macro_f1": rates.macro_f1(pooled)[0],
    }
    if p.scored:
        errors, error = binned_errors(p.excess, p.bins, weights, p.group, p.num_groups, NUM_BINS)
        group |= {
            "group_auc": ranked_auc(p.ranked_by_group, weights),
            "group_loss": divide(loss_sums, counts.n),
            "group_ece": errors,
        }
        overall |= {"auc": ranked_auc(p.ranked, weights)[0], "ece": error}
    # A diverged model still has an argmax: make all its metrics undefined, so that it cannot win.
    measured = Measured(rates.rates_of(counts), group, overall)
    measured = jax.tree.map(lambda value: jnp.where(diverged.any(), jnp.nan, value), measured)
    own = p.group[None] == jnp.arange(p.num_groups, dtype=jnp.int32)[:, None]
    own &= diverged[None]
    first = jnp.where(own.any(1), own.argmax(1), -1).astype(jnp.float32)
    measured.group.update(n_diverged=num_diverged, first_diverged=first)
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
        "equal_opportunity_difference": rates.equal_opportunity_difference(given),
        "equal_opportunity_deviation": rates.equal_opportunity_deviation(given),
        "equalized_odds_difference": rates.equalized_odds_difference(given),
        "equalized_odds_deviation": rates.equalized_odds_deviation(given),
        "demographic_parity_difference": rates.demographic_parity_difference(given),
        "demographic_parity_deviation": rates.demographic_parity_deviation(given),
    }
    if "group_auc" in group:
        metrics |= {
            "worst_group_auc": group_min(group["group_auc"]),
            "auc_gap": rate_difference(group["group_auc"]),
            "max_group_loss": group_max(group["group_loss"]),
        }
    return metrics | {"n": given.n, "n_per_label": given.per_label}


def by_group(measured: Measured) -> dict[str, Float[jax.Array, " groups"]]:
    """The rates of `group_table` in each of G groups, and of everyone as the last one, `[G + 1]`.

    Selection and error rates are of class 1, and left out for more than two classes.
    """
    group, overall, given = measured.group, measured.overall, measured.rates
    pairs = {"accuracy": (group["group_accuracy"], overall["accuracy"])}
    if given.num_classes == 2:
        pooled = given.pooled()
        pairs = {
            rate.__name__: (rate(given), rate(pooled)[0])
            for rate in (rates.selection_rate, rates.true_positive_rate, rates.false_positive_rate)
        } | pairs
    for name in ("auc", "ece"):
        if name in overall:
            pairs[name] = (group[f"group_{name}"], overall[name])
    return {name: jnp.append(own, everyone) for name, (own, everyone) in pairs.items()}


def fairness_metrics(
    logits: Logits | None = None,
    *,
    probs: Probs | None = None,
    preds: Ids | None = None,
    labels: Ids,
    group: Ids,
    num_groups: int,
    num_classes: int | None = None,
    weights: Weights | None = None,
) -> dict[str, jax.Array]:
    """Accuracy, ranking, calibration and fairness of one model on one whole split.

    Give what the model gave, exactly one of logits, probabilities and predictions; of predictions
    alone there is no AUC, loss or calibration error, and their entries are left out.

    Predictions are the largest logit; AUC scores are the logit difference for two classes, the
    softmax of each class against the rest for more. Undefined values are nan and never counted as
    fair: a group lacking what a rate needs is left out of gaps, `undefined` names it. A row whose
    logits hold nan, inf or nothing but -inf makes every metric nan; -inf beside a finite logit is
    a probability of 0, and the loss inf where that is the label's.

    Args:
      logits: float `[N, K]`, K >= 2; NumPy's float64 is ranked as such. Under vmap, a
        population's `[P, N, K]` is sorted once per candidate, whatever the number of groups.
      probs: float `[N]`, the probability of class 1, or `[N, K]`, of every class.
      preds: int `[N]` in `[0, K)`.
      labels: int `[N]` in `[0, K)`.
      group: int `[N]` in `[0, G)`.
      num_groups: G.
      num_classes: K of `preds`, 2 if None.
      weights: float `[N]`, 0 for padding; ones if None.

    Returns:
      Dict of float32 arrays: scalars `accuracy`, `balanced_accuracy`, `macro_f1`, `auc`, `ece`
      (15 bins), `worst_group_accuracy`, `accuracy_gap`, `worst_group_auc`, `auc_gap`,
      `max_group_loss` (nats) and the `_difference` (largest gap between two groups) and
      `_deviation` (largest distance from the pooled rate) of `equal_opportunity`,
      `equalized_odds` and `demographic_parity`; `[G]` `n`, `group_accuracy`, `group_auc`,
      `group_loss`, `group_ece`, `n_diverged` (rows that make all nan) and `first_diverged` (the
      number of the first of them, -1 if there is none); `[G, K]` `n_per_label`. Compiled once per
      shape; safe under jit and vmap.

    Raises:
      ValueError: shapes or dtypes do not fit, such as logits `[N, 1]`; lengths differ or are 0; an
        id that is not traced is out of range, such as labels -1 and 1 or groups 1 and 2 of two;
        `logits` are probabilities, or `probs` are none.

    >>> preds, labels, group = [0, 1, 1, 1], [0, 1, 0, 1], [0, 0, 1, 1]
    >>> metrics = fairness_metrics(preds=preds, labels=labels, group=group, num_groups=2)
    >>> float(metrics["accuracy"]), float(metrics["equalized_odds_difference"])
    (0.75, 1.0)
    """
    scored = preds is None
    given = logits_of(logits, probs, preds, num_classes=num_classes, weights=weights)
    _, labels, group, weights = check_examples(
        num_groups=num_groups, logits=given, labels=labels, group=group, weights=weights
    )
    scores = None
    if is_wide(given):  # ranked before it becomes float32
        scores, given = auc_scores(given), device_logits(given)
    return _compiled(given, scores, labels, group, weights, num_groups=num_groups, scored=scored)


@functools.partial(jax.jit, static_argnames=("num_groups", "scored"))
def _compiled(logits, scores, labels, group, weights, *, num_groups, scored):
    """`fairness_metrics`; operation by operation it takes half a minute."""
    scores = auc_scores(logits) if scores is None else scores
    prepared = prepare_scored(device_logits(logits), scores, labels, group, num_groups, scored)
    return evaluate(prepared, weights)
