"""Rates of each group from its confusion counts, and the gaps between groups."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Float

from fairjax.metrics.counts import Array, GroupCounts, GroupRates, check_choice, divide

Method = Literal["between_groups", "to_overall"]
Agg = Literal["worst_case", "mean"]

# Rates: one number per group, nan where the group has nothing to measure it on.


def _hits(counts: GroupCounts) -> Float[jax.Array, "*axes G K"]:
    """Correct predictions per (group, class), `[G, K]`."""
    return jnp.diagonal(counts.confusion, axis1=-2, axis2=-1)


def selection_rates(counts: GroupCounts) -> Float[jax.Array, "*axes G K"]:
    """P(prediction = k | group), `[G, K]`."""
    if isinstance(counts, GroupRates):
        return counts.selection
    return divide(counts.confusion.sum(-2), counts.n[..., None])


def true_positive_rates(counts: GroupCounts) -> Float[jax.Array, "*axes G K"]:
    """P(prediction = k | label = k, group), one-vs-rest, `[G, K]`."""
    if isinstance(counts, GroupRates):
        return counts.true_positive
    return divide(_hits(counts), counts.per_label)


def false_positive_rates(counts: GroupCounts) -> Float[jax.Array, "*axes G K"]:
    """P(prediction = k | label != k, group), one-vs-rest, `[G, K]`."""
    if isinstance(counts, GroupRates):
        return counts.false_positive
    false_positives = counts.confusion.sum(-2) - _hits(counts)
    return divide(false_positives, counts.n[..., None] - counts.per_label)


def rates_of(counts: GroupCounts) -> GroupRates:
    """Counts and the rates that they have."""

    def rates(counts: GroupCounts, overall: GroupRates | None = None) -> GroupRates:
        return GroupRates(
            counts.confusion,
            selection=selection_rates(counts),
            true_positive=true_positive_rates(counts),
            false_positive=false_positive_rates(counts),
            overall=overall,
        )

    return rates(counts, overall=rates(counts.pooled()))


def accuracy(counts: GroupCounts) -> Float[jax.Array, "*axes G"]:
    """Share of right predictions per group, `[G]` in [0, 1]; nan for an empty group."""
    return divide(_hits(counts).sum(-1), counts.n)


def selection_rate(counts: GroupCounts, *, positive: int = 1) -> Float[jax.Array, "*axes G"]:
    """P(prediction = `positive`) per group, `[G]` in [0, 1]; nan for an empty group."""
    return selection_rates(counts)[..., positive]


def true_positive_rate(counts: GroupCounts, *, positive: int = 1) -> Float[jax.Array, "*axes G"]:
    """Recall of class `positive` per group, `[G]` in [0, 1]; nan without positives."""
    return true_positive_rates(counts)[..., positive]


def false_positive_rate(counts: GroupCounts, *, positive: int = 1) -> Float[jax.Array, "*axes G"]:
    """Share of the others taken for `positive` per group, `[G]` in [0, 1]; nan without others."""
    return false_positive_rates(counts)[..., positive]


def precision(counts: GroupCounts, *, positive: int = 1) -> Float[jax.Array, "*axes G"]:
    """P(label = `positive` | predicted so) per group, `[G]` in [0, 1]; nan if never predicted."""
    return divide(_hits(counts), counts.confusion.sum(-2))[..., positive]


def balanced_accuracy(counts: GroupCounts) -> Float[jax.Array, "*axes G"]:
    """Mean recall over the classes that a group has, `[G]` in [0, 1]; nan for an empty group.

    Source: same value as `sklearn.metrics.balanced_accuracy_score`.
    """
    return _mean_defined(true_positive_rates(counts))


def macro_f1(counts: GroupCounts) -> Float[jax.Array, "*axes G"]:
    """Mean F1 over the classes in a group's labels or predictions, `[G]` in [0, 1].

    nan for an empty group. Source: `sklearn.metrics.f1_score(average="macro")`.
    """
    return _mean_defined(divide(2.0 * _hits(counts), counts.per_label + counts.confusion.sum(-2)))


# Reductions over groups: undefined groups are left out, never counted as 0.


def _mean_defined(values: jax.Array) -> jax.Array:
    """Mean of the non-nan values of the last axis, nan if there are none."""
    defined = ~jnp.isnan(values)
    return divide(jnp.where(defined, values, 0.0).sum(-1), defined.sum(-1).astype(values.dtype))


def group_max(rates: Float[Array, "*axes G"]) -> Float[jax.Array, "*axes"]:
    """Largest defined value of `rates [..., G]`; nan if no group defines one."""
    defined = ~jnp.isnan(rates)
    return jnp.where(
        defined.any(-1), jnp.where(defined, rates, -jnp.inf).max(-1, initial=-jnp.inf), jnp.nan
    )


def group_min(rates: Float[Array, "*axes G"]) -> Float[jax.Array, "*axes"]:
    """Smallest defined value of `rates [..., G]`; nan if no group defines one."""
    return -group_max(-rates)


def _needs_two(rates: Array, value: jax.Array) -> jax.Array:
    """`value`, or nan where fewer than two groups define a rate: one group shows no gap."""
    return jnp.where((~jnp.isnan(rates)).sum(-1) >= 2, value, jnp.nan)


def rate_difference(
    rates: Float[Array, "*axes G"], overall: Float[Array, "*axes"] | None = None
) -> Float[jax.Array, "*axes"]:
    """Largest difference between two groups' rates, or between a group's and the overall rate.

    Unit and range are those of `rates`; 0 is equal. Undefined (nan) groups are left out; nan if
    fewer than two groups remain.

    Args:
      rates: `[..., G]`, one rate per group.
      overall: `[...]`, the pooled rate to measure from; between groups if None.

    Returns:
      `[...]`, not negative.
    """
    if overall is None:
        return _needs_two(rates, group_max(rates) - group_min(rates))
    return _needs_two(rates, group_max(jnp.abs(rates - overall[..., None])))


def rate_ratio(
    rates: Float[Array, "*axes G"], overall: Float[Array, "*axes"] | None = None
) -> Float[jax.Array, "*axes"]:
    """Smallest ratio of two groups' rates, or of a group's and the overall rate, below 1.

    1 is equal, 0 the worst. nan if fewer than two groups define a rate, or all rates are 0.

    Args:
      rates: `[..., G]`, one rate per group, not negative.
      overall: `[...]`, the pooled rate to compare with; between groups if None.

    Returns:
      `[...]` in [0, 1].
    """
    if overall is None:
        return _needs_two(rates, divide(group_min(rates), group_max(rates)))
    overall = overall[..., None]
    return _needs_two(
        rates, group_min(divide(jnp.minimum(rates, overall), jnp.maximum(rates, overall)))
    )


def _per_class(
    counts: GroupCounts,
    rates_fn: Callable[[GroupCounts], jax.Array],
    reduce_fn: Callable[..., jax.Array],
    method: Method,
) -> jax.Array:
    """The disparity of one rate for class 1 of two, else for each class against the rest."""
    check_choice("method", method, ("between_groups", "to_overall"))
    rates = jnp.swapaxes(rates_fn(counts), -1, -2)
    overall = rates_fn(counts.pooled())[..., 0, :] if method == "to_overall" else None
    values = reduce_fn(rates, overall)
    return values[..., 1:] if counts.num_classes == 2 else values


def _combine(first: jax.Array, second: jax.Array, agg: Agg, worst_fn: Callable) -> jax.Array:
    """Both rates' disparities as one: the worse (nan if either is undefined) or their mean."""
    check_choice("agg", agg, ("worst_case", "mean"))
    return worst_fn(first, second) if agg == "worst_case" else (first + second) / 2.0


# Named disparities. Scalars; for more than two classes the worst class against the rest.


def demographic_parity_difference(
    counts: GroupCounts, *, method: Method = "between_groups"
) -> Float[jax.Array, "*axes"]:
    """Largest gap in selection rate between groups, or between a group and everyone.

    0 is perfectly fair, 1 the worst; unitless. Empty groups are left out; nan if fewer than two
    groups remain. With more than two classes: the class with the largest gap.

    Args:
      counts: confusion counts, `[G, K, K]`; see `group_counts`.
      method: "between_groups", or "to_overall" for the distance from the pooled rate.

    Returns:
      Scalar float32 in [0, 1]. Safe under jit, vmap and scan.

    Raises:
      ValueError: `method` is neither name.

    Source: same value as `fairlearn.metrics.demographic_parity_difference` for two classes.
    """
    return group_max(_per_class(counts, selection_rates, rate_difference, method))


def demographic_parity_ratio(
    counts: GroupCounts, *, method: Method = "between_groups"
) -> Float[jax.Array, "*axes"]:
    """Smallest ratio of two groups' selection rates, or of a group's and everyone's.

    1 is perfectly fair, 0 the worst; otherwise as `demographic_parity_difference`; nan also when
    nobody is selected.
    """
    return group_min(_per_class(counts, selection_rates, rate_ratio, method))


def equal_opportunity_difference(
    counts: GroupCounts, *, method: Method = "between_groups"
) -> Float[jax.Array, "*axes"]:
    """Largest gap in true-positive rate between groups, or between a group and everyone.

    0 is perfectly fair, 1 the worst; unitless. Groups without positives are left out; nan if
    fewer than two groups remain. With more than two classes: the class with the largest gap.

    Args:
      counts: confusion counts, `[G, K, K]`; see `group_counts`.
      method: "between_groups", or "to_overall" for the distance from the pooled rate.

    Returns:
      Scalar float32 in [0, 1]. Safe under jit, vmap and scan.

    Raises:
      ValueError: `method` is neither name.

    Source: Hardt et al. 2016; same value as `fairlearn.metrics.equal_opportunity_difference`
    where every group has positives (fairlearn gives a group without them the rate 0).
    """
    return group_max(_per_class(counts, true_positive_rates, rate_difference, method))


def equal_opportunity_ratio(
    counts: GroupCounts, *, method: Method = "between_groups"
) -> Float[jax.Array, "*axes"]:
    """Smallest ratio of two groups' true-positive rates, or of a group's and everyone's.

    1 is perfectly fair, 0 the worst; otherwise as `equal_opportunity_difference`; nan also when
    no positive is found in any group.
    """
    return group_min(_per_class(counts, true_positive_rates, rate_ratio, method))


def equalized_odds_difference(
    counts: GroupCounts, *, method: Method = "between_groups", agg: Agg = "worst_case"
) -> Float[jax.Array, "*axes"]:
    """Largest gap in true- or false-positive rate between groups, or between a group and everyone.

    0 is perfectly fair, 1 the worst; unitless. A group without positives (negatives) is left out
    of the true- (false-) positive gap; nan if fewer than two groups define either rate. With more
    than two classes: the class with the largest value.

    Args:
      counts: confusion counts, `[G, K, K]`; see `group_counts`.
      method: "between_groups", or "to_overall" for the distance from the pooled rate.
      agg: "worst_case" takes the larger of the two gaps, "mean" their average.

    Returns:
      Scalar float32 in [0, 1]. Safe under jit, vmap and scan.

    Raises:
      ValueError: `method` or `agg` is not an accepted name.

    Source: Hardt et al. 2016; same value as `fairlearn.metrics.equalized_odds_difference` where
    every group has both labels (fairlearn gives an undefined rate the value 0).
    """
    true_gap = _per_class(counts, true_positive_rates, rate_difference, method)
    false_gap = _per_class(counts, false_positive_rates, rate_difference, method)
    return group_max(_combine(true_gap, false_gap, agg, jnp.maximum))


def equalized_odds_ratio(
    counts: GroupCounts, *, method: Method = "between_groups", agg: Agg = "worst_case"
) -> Float[jax.Array, "*axes"]:
    """Smallest ratio of two groups' true- or false-positive rates.

    1 is perfectly fair, 0 the worst; otherwise as `equalized_odds_difference`; nan also when one
    of the rates is 0 in all groups.
    """
    true_ratio = _per_class(counts, true_positive_rates, rate_ratio, method)
    false_ratio = _per_class(counts, false_positive_rates, rate_ratio, method)
    return group_min(_combine(true_ratio, false_ratio, agg, jnp.minimum))


def demographic_parity_deviation(counts: GroupCounts) -> Float[jax.Array, "*axes"]:
    """FairBatch's disparity: max over groups of |selection rate - pooled selection rate|.

    The `to_overall` difference under the paper's name; in [0, 1], 0 is fair.
    Source: Roh et al. 2021, section 4.
    """
    return demographic_parity_difference(counts, method="to_overall")


def equal_opportunity_deviation(counts: GroupCounts) -> Float[jax.Array, "*axes"]:
    """FairBatch's disparity: max over groups of |true-positive rate - pooled true-positive rate|.

    The `to_overall` difference under the paper's name; in [0, 1], 0 is fair.
    Source: Roh et al. 2021, section 4.
    """
    return equal_opportunity_difference(counts, method="to_overall")


def equalized_odds_deviation(counts: GroupCounts) -> Float[jax.Array, "*axes"]:
    """FairBatch's disparity: the larger distance from the pooled rate over both label rows.

    The `to_overall` difference under the paper's name; in [0, 1], 0 is fair.
    Source: Roh et al. 2021, section 4.
    """
    return equalized_odds_difference(counts, method="to_overall")
