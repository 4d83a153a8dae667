"""The disparities as the sensitive-channel-pruning paper and its reference code define them.

They differ from the usual ones in three ways that change the numbers: they average (or sum) over
classes one-vs-rest instead of taking one positive class, they count an undefined rate as 0, and
`eodd_scp` lets opposite gaps cancel. Kong et al., MICCAI 2024; for two groups each |difference|
is the paper's, for more the largest difference between two groups.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Float

from fairjax.metrics.counts import GroupCounts, check_choice, divide
from fairjax.metrics.rates import (
    false_positive_rates,
    rate_difference,
    selection_rates,
    true_positive_rates,
)

Missing = Literal["zero", "skip"]


def _gaps(rates: jax.Array, counts: GroupCounts, missing: Missing) -> jax.Array:
    """Gap over groups for each class, `[K]`: missing rates as 0, or nan for the whole class."""
    check_choice("missing", missing, ("zero", "skip"))
    present = counts.n > 0
    undefined = jnp.isnan(rates) & present[:, None]
    if missing == "zero":
        rates = jnp.where(undefined, 0.0, rates)
    gaps = rate_difference(rates.T)
    return jnp.where(undefined.any(0), jnp.nan, gaps) if missing == "skip" else gaps


def _class_mean(gaps: jax.Array, missing: Missing) -> jax.Array:
    """Mean over classes; over those not skipped if `missing` is "skip"."""
    if missing == "zero":
        return gaps.mean()
    kept = ~jnp.isnan(gaps)
    return divide(jnp.where(kept, gaps, 0.0).sum(), kept.sum().astype(gaps.dtype))


def eopp0(counts: GroupCounts, *, missing: Missing = "zero") -> Float[jax.Array, ""]:
    """Mean over classes of the gap in true-negative rate between groups.

    In [0, 1], 0 is fair; empty groups are left out, nan if fewer than two are left.

    Args:
      counts: confusion counts, `[G, K, K]`; K comes from the task, not from the data.
      missing: "zero" counts an undefined rate as 0, as the reference code does, which can make a
        gap of up to 1 out of missing data (see `num_unsupported_classes`); "skip" leaves out
        classes that lack support in some group.

    Returns:
      Scalar float32. Safe under jit and vmap.

    Raises:
      ValueError: `missing` is neither name.
    """
    return _class_mean(_gaps(1.0 - false_positive_rates(counts), counts, missing), missing)


def eopp1(counts: GroupCounts, *, missing: Missing = "zero") -> Float[jax.Array, ""]:
    """Mean over classes of the gap in true-positive rate between groups; otherwise as `eopp0`."""
    return _class_mean(_gaps(true_positive_rates(counts), counts, missing), missing)


def eodd(counts: GroupCounts, *, missing: Missing = "zero") -> Float[jax.Array, ""]:
    """Mean over classes of half (gap in true-positive + gap in false-positive rate).

    In [0, 1], 0 is fair: equalized odds without the cancellation of `eodd_scp`; otherwise as
    `eopp0`.
    """
    true_gap = _gaps(true_positive_rates(counts), counts, missing)
    false_gap = _gaps(false_positive_rates(counts), counts, missing)
    return _class_mean(0.5 * (true_gap + false_gap), missing)


def eodd_scp(counts: GroupCounts, *, missing: Missing = "zero") -> Float[jax.Array, ""]:
    """Mean over classes of half |gap in (true-positive + false-positive rate)|.

    In [0, 1]. As the reference code computes it: the absolute value is taken after the sum, so a
    group that is favoured in one rate and disfavoured in the other can read as fair. Use `eodd`
    unless you compare with published numbers; otherwise as `eopp0`.
    """
    # Each rate's own zero first: a class may lack positives in one group, negatives in another.
    present = (counts.n > 0)[:, None]
    total = jnp.zeros(())
    for rates in (true_positive_rates(counts), false_positive_rates(counts)):
        if missing == "zero":
            rates = jnp.where(jnp.isnan(rates) & present, 0.0, rates)
        total = total + rates
    return _class_mean(0.5 * _gaps(total, counts, missing), missing)


def dp_scp(counts: GroupCounts) -> Float[jax.Array, ""]:
    """Sum over classes of the gap in P(prediction = class) between groups.

    In [0, K], for two groups in [0, 2]; 0 is fair. A sum and not a mean, as in the reference
    code. Empty groups are left out, nan if fewer than two are left.
    """
    return _gaps(selection_rates(counts), counts, "zero").sum()


def num_unsupported_classes(counts: GroupCounts) -> Float[jax.Array, ""]:
    """How many classes some non-empty group has no example of, a float32 scalar in [0, K]."""
    lacking = (counts.per_label == 0) & (counts.n > 0)[:, None]
    return lacking.any(0).sum().astype(jnp.float32)


def fate(
    accuracy: ArrayLike,
    disparity: ArrayLike,
    *,
    base_accuracy: ArrayLike,
    base_disparity: ArrayLike,
    trade_off: float = 1.0,
) -> jax.Array:
    """Fairness-accuracy trade-off: relative gain in accuracy minus relative gain in disparity.

    Unitless, higher is better, 0 is the baseline; nan if a baseline is 0 or undefined.

    Args:
      accuracy: the model's accuracy term. The reference code gives macro-F1 here; say which.
      disparity: the model's disparity (the reference code's is `eodd_scp`).
      base_accuracy: accuracy term of the unpruned model, measured in the same way.
      base_disparity: disparity of the unpruned model.
      trade_off: weight of the disparity term.

    Returns:
      float32, of the arguments' shape.

    Source: Kong et al. 2024, FATE; published baselines are not built in.
    """
    base_accuracy, base_disparity = jnp.asarray(base_accuracy), jnp.asarray(base_disparity)
    gain = divide(jnp.asarray(accuracy) - base_accuracy, base_accuracy)
    growth = divide(jnp.asarray(disparity) - base_disparity, base_disparity)
    return gain - trade_off * growth
