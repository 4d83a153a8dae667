"""Uncertainty of any metric: bootstrap intervals by example weights."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.scipy.stats import norm
from jaxtyping import Float, Int, Key

from fairjax.metrics.counts import Array, check_choice
from fairjax.metrics.ranking import runs

MetricFn = Callable[[jax.Array], Any]


class Intervals(NamedTuple):
    """Bootstrap intervals; each field has the structure of what `metric_fn` returns."""

    estimate: Any
    """The metric on all examples, each counted once."""
    lower: Any
    upper: Any
    num_defined: Any
    """How many replicates defined the value; the others (nan) are left out of the interval."""


class _Strata(NamedTuple):
    """Examples sorted by stratum: their numbers and the bounds of their stratum, `[N]` each."""

    order: jax.Array
    start: jax.Array
    end: jax.Array


def _sort_strata(strata: Array | None, num_examples: int) -> _Strata:
    """Lay the strata out as runs; one stratum if None."""
    if strata is None:
        strata = jnp.zeros(num_examples, jnp.int32)
    if strata.shape != (num_examples,) or not jnp.issubdtype(strata.dtype, jnp.integer):
        raise ValueError(
            f"strata must be integer [{num_examples}], got {strata.dtype} {list(strata.shape)}"
        )
    strata = jnp.asarray(strata)
    order = jnp.argsort(strata)
    return _Strata(order, *runs(strata[order]))


def _count(mask: jax.Array) -> jax.Array:
    """How many entries of each column are true, float32."""
    return mask.sum(0).astype(jnp.float32)


def _first_and_others(
    function: Callable[[jax.Array], jax.Array], num_others: int, batch_size: int
) -> tuple[jax.Array, jax.Array]:
    """`function(0)` and the stack of `function(1)`, ..., compiled once for all in full batches."""
    # Batches of equal size, the last one filled up: a remainder would be compiled again.
    num_batches = -(-(num_others + 1) // batch_size)
    size = -(-(num_others + 1) // num_batches)
    values = jax.lax.map(function, jnp.arange(num_batches * size), batch_size=size)
    return values[0], values[1 : num_others + 1]


def _flat(metric_fn: MetricFn, weights: jax.Array) -> jax.Array:
    """The metrics as one float32 vector `[M]`."""
    values = jax.tree.map(lambda x: jnp.asarray(x).astype(jnp.float32), metric_fn(weights))
    return ravel_pytree(values)[0]


def bootstrap(
    metric_fn: MetricFn,
    num_examples: int,
    *,
    key: Key[jax.Array, ""],
    num_replicates: int = 1000,
    strata: Int[Array, " N"] | None = None,
    method: Literal["percentile", "bca"] = "percentile",
    level: float = 0.95,
    batch_size: int = 25,
) -> Intervals:
    """Confidence intervals of everything that `metric_fn` returns, by resampling examples.

    A replicate draws N examples with replacement and hands `metric_fn` how often each was drawn,
    so nothing is gathered or sorted again. All replicates run on the device in one program; wrap
    the call in `jax.jit`, with the data as an argument, to compile it once:

        @jax.jit
        def intervals(prepared, key):
            return bootstrap(lambda w: evaluate(prepared, w), num_examples, key=key)

    Args:
      metric_fn: pure; example weights float32 `[N]` -> pytree of arrays. For "bca" it must also be
        differentiable in the weights, as all metrics here are.
      num_examples: N.
      key: PRNG key.
      num_replicates: R, at least 2.
      strata: int `[N]`; drawing within each stratum keeps its size (for example per group). None
        draws from everyone.
      method: "percentile", or "bca" (bias-corrected and accelerated), better for skewed metrics
        such as a rate near 1. Neither is right for gaps and worst groups of more than two groups,
        whose replicates all exceed the estimate: `compare_rows`, also of one row, is.
      level: coverage in (0, 1).
      batch_size: replicates evaluated together; a trade of memory against speed only.

    Returns:
      Intervals, which hold their estimate. A value undefined (nan) in some replicates uses the
      others and counts them; lower and upper are nan if none, or the estimate, is defined.

    Raises:
      ValueError: an argument is out of range or `strata` is not `[N]`.

    Source: Efron 1987. The acceleration comes from the derivative of the metric in the weights,
    the empirical influence function of its section 7, instead of N leave-one-out evaluations.

    >>> values = jnp.arange(100.0)
    >>> result = bootstrap(lambda w: (w * values).mean(), 100, key=jax.random.key(0))
    >>> float(result.estimate), bool(result.lower < 49.5 < result.upper)
    (49.5, True)
    """
    check_choice("method", method, ("percentile", "bca"))
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}")
    if num_replicates < 2 or num_examples < 1:
        raise ValueError(
            "need num_replicates >= 2 and num_examples >= 1, "
            f"got {num_replicates} and {num_examples}"
        )
    layout = _sort_strata(strata, num_examples)
    ones = jnp.ones(num_examples, jnp.float32)

    def replicate(index):
        drawn = jax.random.randint(
            jax.random.fold_in(key, index), (num_examples,), layout.start, layout.end
        )
        weights = jnp.zeros_like(ones).at[layout.order[drawn]].add(1.0)
        return _flat(metric_fn, jnp.where(index == 0, ones, weights))

    estimate, replicates = _first_and_others(replicate, num_replicates, batch_size)
    num_defined = _count(~jnp.isnan(replicates))
    tail = (1.0 - level) / 2.0
    quantiles = jnp.full((2, estimate.size), jnp.array([[tail], [1.0 - tail]]))
    if method == "bca":
        acceleration = _acceleration(metric_fn, ones, layout, estimate.size)
        quantiles = _bca_quantiles(quantiles, replicates, estimate, num_defined, acceleration)
    bounds = _quantiles(jnp.sort(replicates, axis=0), num_defined, quantiles)
    lower = jnp.minimum(bounds[0], estimate)  # nan where either is
    upper = jnp.maximum(bounds[1], estimate)
    unravel = ravel_pytree(
        jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), jax.eval_shape(metric_fn, ones))
    )[1]
    return Intervals(unravel(estimate), unravel(lower), unravel(upper), unravel(num_defined))


def _acceleration(
    metric_fn: MetricFn, ones: jax.Array, layout: _Strata, num_metrics: int
) -> jax.Array:
    """Efron's a for each metric, `[M]`, from influence values centred within each stratum."""
    _, pull = jax.vjp(lambda w: _flat(metric_fn, w), ones)

    def one_metric(index):
        (influence,) = pull(jax.nn.one_hot(index, num_metrics))
        influence = influence[layout.order]
        total = jnp.concatenate([jnp.zeros(1), jnp.cumsum(influence)])
        size = (layout.end - layout.start).astype(jnp.float32)
        influence -= (total[layout.end] - total[layout.start]) / size
        # Scaled first: squares and cubes of influences near 1 / N leave float32's range.
        influence /= jnp.maximum(jnp.abs(influence).max(), jnp.finfo(jnp.float32).tiny)
        spread = jnp.square(influence).sum()
        return (influence**3).sum() / (6.0 * jnp.where(spread > 0, spread, 1.0) ** 1.5)

    return jax.lax.map(one_metric, jnp.arange(num_metrics))


def _bca_quantiles(quantiles, replicates, estimate, num_defined, acceleration):
    """Shift the two quantile levels `[2, M]` for bias and skewness."""
    below = _count(replicates < estimate[None]) + 0.5 * _count(replicates == estimate[None])
    # Kept half a replicate inside (0, 1): an estimate beyond all replicates has no finite z.
    share = below / jnp.maximum(num_defined, 1)
    half = 0.5 / jnp.maximum(num_defined, 1)
    bias = norm.ppf(jnp.clip(share, half, 1.0 - half))[None]
    z = bias + norm.ppf(quantiles)
    return norm.cdf(bias + z / (1.0 - acceleration[None] * z))


def _quantiles(ordered: jax.Array, num_defined: jax.Array, quantiles: jax.Array) -> jax.Array:
    """Linearly interpolated quantiles `[2, M]` of sorted columns `[R, M]` that end in nan."""
    place = quantiles * (jnp.maximum(num_defined, 1) - 1)[None]
    low, high = jnp.floor(place), jnp.ceil(place)
    below = jnp.take_along_axis(ordered, low.astype(jnp.int32), axis=0)
    above = jnp.take_along_axis(ordered, high.astype(jnp.int32), axis=0)
    return below + (place - low) * (above - below)


def resampling_weights(
    key: Key[jax.Array, ""], num_replicates: int, *, strata: Int[Array, " N"]
) -> Float[Array, "R N"]:
    """How often each example is drawn in R draws with replacement of N within strata.

    What a bootstrap draws, as an array: for comparing many models by the same draws. Those that a
    draw leaves out, 37 % on average, have weight 0.

    Args:
      key: PRNG key.
      num_replicates: R.
      strata: int `[N]`; every draw keeps each stratum's size.

    Returns:
      float32 `[R, N]`. Safe under jit and vmap.

    >>> weights = resampling_weights(jax.random.key(0), 3, strata=jnp.array([0, 0, 0, 1, 1]))
    >>> weights[:, :3].sum(1).tolist(), weights[:, 3:].sum(1).tolist()
    ([3.0, 3.0, 3.0], [2.0, 2.0, 2.0])
    """
    num_examples = len(strata)
    layout = _sort_strata(strata, num_examples)

    def draw(key):
        drawn = jax.random.randint(key, (num_examples,), layout.start, layout.end)
        return jnp.zeros(num_examples, jnp.float32).at[layout.order[drawn]].add(1.0)

    return jax.vmap(draw)(jax.random.split(key, num_replicates))
