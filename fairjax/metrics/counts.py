"""Confusion counts per group, and the rates and gaps that follow from them."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

Method = Literal["between_groups", "to_overall"]
Agg = Literal["worst_case", "mean"]

_BLOCK = 128


def group_sums(values: jax.Array, *, group: jax.Array, num_groups: int) -> jax.Array:
    """Sum of `values [N, V]` over the examples of each group, `[G, V]` float32.

    A one-hot matmul rather than a scatter: deterministic on every device. Whole numbers are exact
    below 2^24; other values keep about 1e-7 relative error at any N, because the sum is a tree
    over blocks of 128. Examples whose group is outside `[0, G)` count nowhere.
    """
    n, v = values.shape
    pad = -n % _BLOCK
    one_hot = jax.nn.one_hot(jnp.pad(group, (0, pad), constant_values=-1), num_groups)
    blocks = jnp.einsum(
        "bng,bnv->bgv",
        one_hot.reshape(-1, _BLOCK, num_groups),
        jnp.pad(values, ((0, pad), (0, 0))).reshape(-1, _BLOCK, v),
        precision="highest",
    )
    while len(blocks) > 1:
        blocks = jnp.pad(blocks, ((0, -len(blocks) % _BLOCK), (0, 0), (0, 0)))
        blocks = blocks.reshape(-1, _BLOCK, num_groups, v).sum(1)
    return blocks.reshape(num_groups, v)


def divide(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """`numerator / denominator`, nan unless the denominator is positive; differentiable."""
    defined = denominator > 0
    return jnp.where(defined, numerator / jnp.where(defined, denominator, 1.0), jnp.nan)


def check_examples(num_groups: int, **arrays: jax.Array) -> None:
    """Raise ValueError unless all `arrays` share one non-zero leading length."""
    if num_groups < 1:
        raise ValueError(f"num_groups must be at least 1, got {num_groups}")
    shapes = {name: array.shape for name, array in arrays.items()}
    lengths = {shape[:1] for shape in shapes.values()}
    if len(lengths) != 1 or lengths & {(), (0,)}:
        raise ValueError(f"need one value per example, at least one example; got shapes {shapes}")


def example_weights(weights: jax.Array | None, like: jax.Array) -> jax.Array:
    """`weights` as float32, or ones for every example of `like`."""
    if weights is None:
        return jnp.ones(like.shape[0], jnp.float32)
    return jnp.asarray(weights).astype(jnp.float32)


def weigh(values: jax.Array, weights: jax.Array) -> jax.Array:
    """`values * weights`, where weight 0 silences even inf and nan: padding may hold anything."""
    return jnp.where(weights == 0, 0.0, values) * weights


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GroupCounts:
    """Weighted examples per (group, label, prediction); `+` merges the counts of two batches.

    Attributes:
      confusion: float32 `[G, K, K]`; `confusion[g, k, j]` is the weight of group g's examples
        with label k predicted as j.
    """

    confusion: jax.Array

    def __add__(self, other: "GroupCounts") -> "GroupCounts":
        """Counts of both sets of examples together."""
        return GroupCounts(self.confusion + other.confusion)

    @property
    def num_classes(self) -> int:
        """K, the number of classes."""
        return self.confusion.shape[-1]

    @property
    def n(self) -> jax.Array:
        """Weight of each group, `[G]`; 0 means that every rate of the group is undefined."""
        # Summed over labels last, so that n - per_label is exactly 0 where only one label occurs.
        return self.per_label.sum(-1)

    @property
    def per_label(self) -> jax.Array:
        """Weight of each (group, label) cell, `[G, K]`."""
        return self.confusion.sum(-1)

    def pooled(self) -> "GroupCounts":
        """The same examples as one group, G = 1: rates of it are overall rates."""
        return GroupCounts(self.confusion.sum(-3, keepdims=True))

    def one_vs_rest(self, positive: int) -> "GroupCounts":
        """Counts of the two-class question "is it class `positive`?", K = 2."""
        is_positive = jnp.arange(self.num_classes) == positive
        side = jax.nn.one_hot(is_positive.astype(jnp.int32), 2)
        return GroupCounts(
            jnp.einsum("...kj,ka,jb->...ab", self.confusion, side, side, precision="highest")
        )


def group_counts(
    preds: jax.Array,
    *,
    labels: jax.Array,
    group: jax.Array,
    num_groups: int,
    num_classes: int = 2,
    weights: jax.Array | None = None,
) -> GroupCounts:
    """Count predictions per group and label.

    Args:
      preds: predicted class, int `[N]` in `[0, num_classes)`.
      labels: true class, int `[N]` in `[0, num_classes)`.
      group: sensitive group, int `[N]` in `[0, num_groups)`.
      num_groups: G.
      num_classes: K, a property of the task and not of the rows at hand.
      weights: float `[N]`: 0 for padding, how often a row was drawn for a bootstrap; ones if None.

    Returns:
      GroupCounts, exact while each count is a whole number below 2^24. Safe under jit and vmap.
      A row with an id outside its range counts nowhere, like padding.

    Raises:
      ValueError: lengths differ or are 0, or an id array is not integer.
    """
    weights = example_weights(weights, labels)
    check_examples(num_groups, preds=preds, labels=labels, group=group, weights=weights)
    for name, ids in (("preds", preds), ("labels", labels), ("group", group)):
        if not jnp.issubdtype(ids.dtype, jnp.integer):
            raise ValueError(f"{name} must be integer ids, got {ids.dtype}")
    group, labels = group.astype(jnp.int32), labels.astype(jnp.int32)
    inside = (labels >= 0) & (labels < num_classes) & (group >= 0) & (group < num_groups)
    cell = jnp.where(inside, group * num_classes + labels, -1)
    # The cell side of the product is the same for every candidate and every bootstrap replicate.
    values = jax.nn.one_hot(preds, num_classes) * weights[:, None]
    confusion = group_sums(values, group=cell, num_groups=num_groups * num_classes)
    return GroupCounts(confusion.reshape(num_groups, num_classes, num_classes))


# Rates: one number per group, nan where the group has nothing to measure it on.


def _hits(counts: GroupCounts) -> jax.Array:
    """Correct predictions per (group, class), `[G, K]`."""
    return jnp.diagonal(counts.confusion, axis1=-2, axis2=-1)


def selection_rates(counts: GroupCounts) -> jax.Array:
    """P(prediction = k | group), `[G, K]`."""
    return divide(counts.confusion.sum(-2), counts.n[..., None])


def true_positive_rates(counts: GroupCounts) -> jax.Array:
    """P(prediction = k | label = k, group), one-vs-rest, `[G, K]`."""
    return divide(_hits(counts), counts.per_label)


def false_positive_rates(counts: GroupCounts) -> jax.Array:
    """P(prediction = k | label != k, group), one-vs-rest, `[G, K]`."""
    false_positives = counts.confusion.sum(-2) - _hits(counts)
    return divide(false_positives, counts.n[..., None] - counts.per_label)


def accuracy(counts: GroupCounts) -> jax.Array:
    """Share of right predictions per group, `[G]` in [0, 1]; nan for an empty group."""
    return divide(_hits(counts).sum(-1), counts.n)


def selection_rate(counts: GroupCounts, *, positive: int = 1) -> jax.Array:
    """P(prediction = `positive`) per group, `[G]` in [0, 1]; nan for an empty group."""
    return selection_rates(counts)[..., positive]


def true_positive_rate(counts: GroupCounts, *, positive: int = 1) -> jax.Array:
    """Recall of class `positive` per group, `[G]` in [0, 1]; nan without positives."""
    return true_positive_rates(counts)[..., positive]


def false_positive_rate(counts: GroupCounts, *, positive: int = 1) -> jax.Array:
    """Share of the others taken for `positive` per group, `[G]` in [0, 1]; nan without others."""
    return false_positive_rates(counts)[..., positive]


def precision(counts: GroupCounts, *, positive: int = 1) -> jax.Array:
    """P(label = `positive` | predicted so) per group, `[G]` in [0, 1]; nan if never predicted."""
    return divide(_hits(counts), counts.confusion.sum(-2))[..., positive]


def balanced_accuracy(counts: GroupCounts) -> jax.Array:
    """Mean recall over the classes that a group has, `[G]` in [0, 1]; nan for an empty group.

    Source: same value as `sklearn.metrics.balanced_accuracy_score`.
    """
    return _mean_defined(true_positive_rates(counts))


def macro_f1(counts: GroupCounts) -> jax.Array:
    """Mean F1 over the classes in a group's labels or predictions, `[G]` in [0, 1].

    nan for an empty group. Source: `sklearn.metrics.f1_score(average="macro")`.
    """
    return _mean_defined(divide(2.0 * _hits(counts), counts.per_label + counts.confusion.sum(-2)))


# Reductions over groups: undefined groups are left out, never counted as 0.


def _mean_defined(values: jax.Array) -> jax.Array:
    """Mean of the non-nan values of the last axis, nan if there are none."""
    defined = ~jnp.isnan(values)
    return divide(jnp.where(defined, values, 0.0).sum(-1), defined.sum(-1).astype(values.dtype))


def group_max(rates: jax.Array) -> jax.Array:
    """Largest defined value of `rates [..., G]`; nan if no group defines one."""
    defined = ~jnp.isnan(rates)
    return jnp.where(
        defined.any(-1), jnp.where(defined, rates, -jnp.inf).max(-1, initial=-jnp.inf), jnp.nan
    )


def group_min(rates: jax.Array) -> jax.Array:
    """Smallest defined value of `rates [..., G]`; nan if no group defines one."""
    return -group_max(-rates)


def _needs_two(rates: jax.Array, value: jax.Array) -> jax.Array:
    """`value`, or nan where fewer than two groups define a rate: one group shows no gap."""
    return jnp.where((~jnp.isnan(rates)).sum(-1) >= 2, value, jnp.nan)


def rate_difference(rates: jax.Array, overall: jax.Array | None = None) -> jax.Array:
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


def rate_ratio(rates: jax.Array, overall: jax.Array | None = None) -> jax.Array:
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


def check_choice(name: str, value: str, accepted: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is one of the accepted words."""
    if value not in accepted:
        raise ValueError(f"{name} must be one of {', '.join(accepted)}; got {value!r}")


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
) -> jax.Array:
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
) -> jax.Array:
    """Smallest ratio of two groups' selection rates, or of a group's and everyone's.

    1 is perfectly fair, 0 the worst; otherwise as `demographic_parity_difference`; nan also when
    nobody is selected.
    """
    return group_min(_per_class(counts, selection_rates, rate_ratio, method))


def equal_opportunity_difference(
    counts: GroupCounts, *, method: Method = "between_groups"
) -> jax.Array:
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


def equal_opportunity_ratio(counts: GroupCounts, *, method: Method = "between_groups") -> jax.Array:
    """Smallest ratio of two groups' true-positive rates, or of a group's and everyone's.

    1 is perfectly fair, 0 the worst; otherwise as `equal_opportunity_difference`; nan also when
    no positive is found in any group.
    """
    return group_min(_per_class(counts, true_positive_rates, rate_ratio, method))


def equalized_odds_difference(
    counts: GroupCounts, *, method: Method = "between_groups", agg: Agg = "worst_case"
) -> jax.Array:
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
) -> jax.Array:
    """Smallest ratio of two groups' true- or false-positive rates.

    1 is perfectly fair, 0 the worst; otherwise as `equalized_odds_difference`; nan also when one
    of the rates is 0 in all groups.
    """
    true_ratio = _per_class(counts, true_positive_rates, rate_ratio, method)
    false_ratio = _per_class(counts, false_positive_rates, rate_ratio, method)
    return group_min(_combine(true_ratio, false_ratio, agg, jnp.minimum))


def demographic_parity_deviation(counts: GroupCounts) -> jax.Array:
    """FairBatch's disparity: max over groups of |selection rate - pooled selection rate|.

    The `to_overall` difference under the paper's name; in [0, 1], 0 is fair.
    Source: Roh et al. 2021, section 4.
    """
    return demographic_parity_difference(counts, method="to_overall")


def equal_opportunity_deviation(counts: GroupCounts) -> jax.Array:
    """FairBatch's disparity: max over groups of |true-positive rate - pooled true-positive rate|.

    The `to_overall` difference under the paper's name; in [0, 1], 0 is fair.
    Source: Roh et al. 2021, section 4.
    """
    return equal_opportunity_difference(counts, method="to_overall")


def equalized_odds_deviation(counts: GroupCounts) -> jax.Array:
    """FairBatch's disparity: the larger distance from the pooled rate over both label rows.

    The `to_overall` difference under the paper's name; in [0, 1], 0 is fair.
    Source: Roh et al. 2021, section 4.
    """
    return equalized_odds_difference(counts, method="to_overall")
