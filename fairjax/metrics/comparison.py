"""Rows of networks side by side: what each scores over its seeds, and what it changes."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array as JaxArray
from jaxtyping import Bool, Float, Int, Key

from fairjax.metrics.counts import Array, Ids, check_examples, device_logits
from fairjax.metrics.disparities import STEP
from fairjax.metrics.outputs import logits_of
from fairjax.metrics.resampling import Intervals, bootstrap
from fairjax.metrics.summary import (
    Measured,
    Prepared,
    auc_scores,
    by_group,
    measure,
    prepare_scored,
    tabulate,
    with_counts,
)

TableFn = Callable[[Measured], dict[str, jax.Array]]


class Comparison(NamedTuple):
    """R rows with S seeds each, as NumPy arrays."""

    metrics: dict[str, np.ndarray]
    """name -> `[R, S, ...]`, of every metric of `table_fn`."""
    mean: Intervals
    """Each row's mean over seeds, 95 %; fields `{name: [R]}` for the shown metrics."""
    change: Intervals
    """What that mean gains over the first row's in the same replicates, `{name: [R]}`."""
    by_group: Intervals
    """Each row's rates in every group and of everyone, means over seeds: `{name: [R, G + 1]}`,
    percentiles of the same replicates; the rates of `group_table`."""


def compare_rows(
    logits: Float[Array, "R S n K"],
    *,
    labels: Ids,
    group: Ids,
    num_groups: int,
    shown: Sequence[str],
    num_replicates: int,
    key: Key[JaxArray, ""],
    examples: Int[Array, "S n"] | None = None,
    splits: Int[Array, " S"] | None = None,
    table_fn: TableFn = tabulate,
) -> Comparison:
    """Metrics of R rows with S seeds each, and bootstrap intervals of their means over seeds.

    A replicate draws examples and seeds, the same ones for all rows, so that changes are paired:
    the change of a row that equals the first is exactly 0. Runs on the host; memory grows with
    R * S * n * K, not with the replicates.

    Where seeds are tested on splits of their own, an example counts as often in every split that
    tests it, and splits are drawn whole, with all their seeds. The interval then says how the mean
    would vary with other test examples and other splits of the same data; as the splits share
    most of their training examples, not how it would vary with other training data.

    Of gaps and worst groups the percentiles of a bootstrap do not hold: the largest of several
    noisy differences is too large in the data and larger again in every replicate, so that they may
    lie wholly above what was estimated, and a true gap of 0 is always missed. Here the rates r are
    resampled, and with what a replicate adds to them, e, a metric f has three values:

      plain      f(r + e), which bounds how much f was underestimated;
      reflected  f(r) + f(0) - f(-e), which bounds how much it was overestimated, by chance alone;
      slope      f(r) + (f(r + h e) - f(r)) / h for h = 0.1, where the extreme groups stay so.

    A row's interval reaches from the 2.5 % quantile of the smaller to the 97.5 % quantile of the
    larger one of plain and reflected; a change's is made of plain and slope. Of averages, such as
    accuracy, all are the same and this is the percentile interval. Where many groups are small
    the intervals are wide, since any of them may be the extreme one. `experiments/BENCHMARKS.md`
    has how often they hold the truth. They rest on what was seen: a group whose few examples are
    all predicted alike shows no spread (see `small_cells`).

    Args:
      logits: float `[R, S, n, K]` on examples that no choice was made on.
      labels: int `[N]` in `[0, K)`.
      group: int `[N]` in `[0, G)`.
      num_groups: G.
      shown: names of the scalar metrics that get intervals.
      num_replicates: of the bootstrap, at least 2.
      key: PRNG key of the bootstrap.
      examples: int `[S, n]` in `[0, N)`, which examples a seed was tested on, each once; None if
        all seeds were on all N in order.
      splits: int `[S]`, the split of each seed, numbered from 0; None if each is drawn alone.
      table_fn: metrics from `Measured`, like `tabulate`, whose gaps should scale with the rates.

    Returns:
      Comparison. A mean is nan where one of its seeds' values is; see `bootstrap` for replicates.

    Raises:
      ValueError: shapes or dtypes do not fit, an axis is empty, or `shown` names no scalar metric.

    Source: for f that is convex or concave and scales with the rates, f(r + e) - f(r) lies between
    -f(-e) and f(e); Fang and Santos 2019 say why the bootstrap fails, the slope is Hong and
    Li's (2018).

    >>> logits, ids = 9.0 * np.eye(2)[None, None, [0, 1, 1, 0]], np.array([0, 1, 0, 1])
    >>> settings = {"shown": ["accuracy"], "num_replicates": 9, "key": jax.random.key(0)}
    >>> result = compare_rows(logits, labels=ids, group=ids * 0, num_groups=1, **settings)
    >>> result.metrics["accuracy"].tolist(), result.change.upper["accuracy"].tolist()
    ([[0.5]], [0.0])
    """
    if np.ndim(logits) != 4 or 0 in np.shape(logits):
        raise ValueError(f"logits must be [R, S, N, K], none of them 0, got {np.shape(logits)}")
    logits_of(logits[0, 0], num_classes=None, weights=None)  # to refuse what are none
    num_seeds, num_classes = np.shape(logits)[1], np.shape(logits)[3]
    labels, group = check_examples(
        num_groups=num_groups, num_classes=num_classes, labels=labels, group=group
    )
    if examples is None:
        examples = np.broadcast_to(np.arange(len(labels)), (num_seeds, len(labels)))
    _check_splits(np.shape(logits), np.asarray(examples), splits, len(labels))
    examples = jnp.asarray(examples, jnp.int32)
    prepared, metrics = _measure(
        device_logits(logits),
        auc_scores(logits),
        jnp.asarray(labels)[examples],
        jnp.asarray(group)[examples],
        num_groups=num_groups,
        table_fn=table_fn,
    )
    scalars = [name for name, value in metrics.items() if value.ndim == 2]
    if unknown := [name for name in shown if name not in scalars]:
        raise ValueError(f"shown names {unknown}, known scalar metrics are {scalars}")
    splits = np.arange(num_seeds) if splits is None else np.asarray(splits)
    mean, change, rates = _intervals(
        prepared,
        key,
        examples,
        jnp.asarray(len(labels) + splits, jnp.int32),  # they are drawn after the examples
        # an argument, for as a constant its sort is folded while compiling, for seconds
        jnp.repeat(jnp.arange(2, dtype=jnp.int32), np.array([len(labels), int(splits.max()) + 1])),
        shown=tuple(shown),
        num_replicates=num_replicates,
        table_fn=table_fn,
    )
    # percentiles of a bounded rate may lie beside it
    rates = rates._replace(
        lower=jax.tree.map(jnp.minimum, rates.lower, rates.estimate),
        upper=jax.tree.map(jnp.maximum, rates.upper, rates.estimate),
    )
    return Comparison(*jax.device_get((metrics, mean, change, rates)))


def _check_splits(shape, examples: np.ndarray, splits, num_examples: int) -> None:
    """Refuse examples that are not those of the logits, and splits that are no numbers from 0."""
    _, num_seeds, num_tested, _ = shape
    if examples.shape != (num_seeds, num_tested):
        raise ValueError(
            f"logits are of {num_seeds} seeds on {num_tested} examples each, "
            f"examples of {examples.shape}"
        )
    if examples.min() < 0 or examples.max() >= num_examples:
        raise ValueError(
            f"examples must be in [0, {num_examples}), got {examples.min()} to {examples.max()}"
        )
    if (np.diff(np.sort(examples, axis=1), axis=1) == 0).any():
        raise ValueError("examples must name each example of a seed once")
    if splits is None:
        return
    splits = np.asarray(splits)
    if splits.shape != (num_seeds,) or set(splits.tolist()) != set(range(splits.max() + 1)):
        raise ValueError(f"splits must number the split of each seed from 0, got {splits}")


@functools.partial(jax.jit, static_argnames=("num_groups", "table_fn"))
def _measure(
    logits: jax.Array,
    scores: jax.Array,
    labels: jax.Array,
    group: jax.Array,
    *,
    num_groups: int,
    table_fn: TableFn,
) -> tuple[Prepared, dict[str, jax.Array]]:
    """Every network prepared, and its metrics; leaves `[R, S, ...]`."""

    def one(logits, scores, labels, group):
        prepared = prepare_scored(logits, scores, labels, group, num_groups)
        return prepared, table_fn(measure(prepared))

    in_axes = (0, 0, None, None)
    return jax.vmap(jax.vmap(one), in_axes=in_axes)(logits, scores, labels, group)


@functools.partial(jax.jit, static_argnames=("shown", "num_replicates", "table_fn"))
def _intervals(
    prepared: Prepared,
    key: jax.Array,
    examples: jax.Array,
    splits: jax.Array,
    strata: jax.Array,
    *,
    shown: tuple[str, ...],
    num_replicates: int,
    table_fn: TableFn,
) -> tuple[Intervals, Intervals, Intervals]:
    """Intervals of the rows' means over seeds, of their changes from the first row, and by group.

    Of the `strata`, examples are drawn among examples (0) and splits among splits (1).
    """
    whole = jax.vmap(jax.vmap(measure))(prepared)

    def bounds(prepared, whole, examples):
        """Of one network in one replicate: `{name: [plain, reflected, slope]}`, rates by group."""
        drawn = measure(prepared, examples)
        deviation = jax.tree.map(_deviation, drawn, whole)
        estimate, plain = table_fn(whole), table_fn(drawn)
        start, near, mirrored = (
            table_fn(with_counts(jax.tree.map(at, whole, deviation), whole.rates))
            for at in (lambda r, e: 0.0 * r, lambda r, e: r + STEP * e, lambda r, e: -e)
        )
        found = {}
        for name in shown:
            value, usual = estimate[name], plain[name]
            reflected = value + start[name] - mirrored[name]
            # No further than to the whole numbers around: gaps and rates stay within 0 and 1.
            least, most = jnp.floor(jnp.minimum(usual, 0.5)), jnp.ceil(jnp.maximum(usual, 0.5))
            slope = value + (near[name] - value) / STEP
            found[name] = jnp.stack([usual, jnp.clip(reflected, least, most), slope])
        found = jax.tree.map(lambda x: jnp.where(jnp.isnan(x[0]), jnp.nan, x), found)
        return found, by_group(drawn)

    def metric_fn(weights):
        own, seeds = weights[examples], weights[splits]  # [S, n] and [S]
        found = jax.vmap(jax.vmap(bounds), in_axes=(0, 0, None))(prepared, whole, own)
        share = (seeds / seeds.sum())[None, :, None]
        means, rates = jax.tree.map(lambda values: jnp.sum(values * share, axis=1), found)
        changes = {name: (mean - mean[:1])[:, ::2] for name, mean in means.items()}
        ends = [
            {name: jnp.stack([x.min(1), x[:, 0], x.max(1)]) for name, x in part.items()}
            for part in ({name: mean[:, :2] for name, mean in means.items()}, changes)
        ]
        return ends, rates

    replicated = bootstrap(
        metric_fn,
        len(strata),
        key=key,
        strata=strata,
        batch_size=1,
        num_replicates=num_replicates,
    )
    ends = Intervals(estimate=1, lower=0, upper=2, num_defined=1)
    mean, change = (
        Intervals(
            *({k: v[i] for k, v in field.items()} for field, i in zip(part, ends, strict=True))
        )
        for part in zip(*(both for both, _ in replicated), strict=True)
    )
    return mean, change, Intervals(*(rates for _, rates in replicated))


def _deviation(drawn: jax.Array, whole: jax.Array) -> jax.Array:
    """What a replicate adds; nothing where it has no examples of a group, nan where nobody has."""
    return jnp.where(jnp.isnan(whole), jnp.nan, jnp.where(jnp.isnan(drawn), 0.0, drawn - whole))


def pareto_front(objectives: Float[Array, "P M"]) -> Bool[np.ndarray, " P"]:
    """Which candidates no other beats: as good in every objective and better in one.

    Args:
      objectives: float `[P, M]`, higher is better; negate what should be small.

    Returns:
      bool `[P]`, on the host. Equal candidates are on the front together; one with an undefined
      (nan) objective never is, and beats nobody.

    Raises:
      ValueError: `objectives` is not `[P, M]`.

    >>> pareto_front(np.array([[0.9, 0.1], [0.8, 0.5], [0.7, 0.4]])).tolist()
    [True, True, False]
    """
    values = np.array(objectives, np.float64)
    if values.ndim != 2:
        raise ValueError(f"objectives must be [P, M], got shape {values.shape}")
    defined = ~np.isnan(values).any(axis=1)
    values[~defined] = -np.inf
    no_worse = (values[:, None] >= values[None]).all(axis=-1)
    better = (values[:, None] > values[None]).any(axis=-1)
    beaten = np.any(no_worse & better, axis=0)
    return np.logical_and(defined, ~beaten)
