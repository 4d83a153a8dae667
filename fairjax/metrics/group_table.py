"""The table by group: how many, and every rate with a bootstrap interval, on the host."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from fairjax.metrics.calibration import calibration_terms
from fairjax.metrics.comparison import Comparison
from fairjax.metrics.counts import Ids, check_examples, device_logits
from fairjax.metrics.disparities import bounds, deviations, disparities
from fairjax.metrics.naming import name_groups
from fairjax.metrics.outputs import Logits, Probs, logits_of
from fairjax.metrics.summary import NUM_BINS

EVERYONE = "everyone"
FEW = 20
_HEADS = {
    "selection_rate": "selected",
    "true_positive_rate": "TPR",
    "false_positive_rate": "FPR",
    "accuracy": "accuracy",
    "auc": "AUC",
    "ece": "ECE",
}
_CHUNK = 2**16  # weights drawn at a time


def with_everyone(names: Sequence[str]) -> tuple[str, ...]:
    """The groups of a table: those of the data, and one that holds all of them."""
    return (*names, EVERYONE if EVERYONE not in names else f"{EVERYONE} (all groups)")


class Estimates(NamedTuple):
    """Values with 95 % intervals; nan where undefined."""

    estimate: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


class GroupTable(NamedTuple):
    """What a model does in each group; prints as a table."""

    groups: tuple[str, ...]
    """G names, then "everyone"; n, positives and rates are `[G + 1]`."""
    n: np.ndarray
    positives: np.ndarray | None
    """None for more than two classes."""
    rates: dict[str, Estimates]
    """selection_rate, true_positive_rate, false_positive_rate (for two classes), accuracy, and of
    scores auc and ece (15 bins)."""
    gaps: dict[str, Estimates]
    """Scalars by the names of `fairness_metrics`."""
    notes: tuple[str, ...]

    @staticmethod
    def of_means(
        names: Sequence[str], per_label: np.ndarray, rates: dict[str, Estimates]
    ) -> "GroupTable":
        """A table of means over runs from the mean counts `[G, K]` of their examples."""
        counts = np.round(np.concatenate([per_label, per_label.sum(0)[None]])).astype(int)
        positives = counts[:, 1] if counts.shape[1] == 2 else None
        return GroupTable(with_everyone(names), counts.sum(1), positives, rates, {}, ())

    def cells(self) -> tuple[list[str], list[list[tuple[str, str]]]]:
        """Heads of the columns, and per group the cells: a value and its interval, or ""."""
        return group_cells(self.as_dict())

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """The table as `summary.json` holds it, under `by_group`: `{group: {"n", "positives", rate:
        {"estimate", "lower", "upper"}}}`, groups and "everyone"; undefined values are nan."""
        told: dict[str, dict[str, Any]] = {name: {} for name in self.groups}
        for g, own in enumerate(told.values()):
            own["n"] = int(self.n[g])
            if self.positives is not None:
                own["positives"] = int(self.positives[g])
            for name, rate in self.rates.items():
                own[name] = {field: float(values[g]) for field, values in rate._asdict().items()}
        return told

    def to_markdown(self) -> str:
        """The table in Markdown, a line per group."""
        columns, rows = self.cells()
        text = [[" ".join(filter(None, cell)).replace("|", "\\|") for cell in row] for row in rows]
        lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *text]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def __str__(self) -> str:
        return self.to_markdown()


def group_table(
    labels: Ids,
    *,
    preds: Ids | None = None,
    probs: Probs | None = None,
    logits: Logits | None = None,
    sensitive_features: Any,
    num_replicates: int = 1000,
    seed: int = 0,
) -> GroupTable:
    """How many are in each group, how often they are selected, and how rightly, with intervals.

    Intervals are percentiles of a bootstrap over examples whose weights are Poisson with mean 1,
    which is the usual one but for a total that is not fixed. A gap's interval also reaches as
    far as chance alone may have made it too large; see `compare_rows`. Nothing is compiled:
    examples are sorted once, and a replicate is a few sums over what lies next to each other.

    Args:
      labels: int `[N]`, 0 or 1.
      preds: int `[N]`, 0 or 1; or
      probs: float `[N]` or `[N, 2]`; or
      logits: float `[N, 2]`: exactly one of the three; of `preds` there is no AUC and no ECE.
      sensitive_features: values `[N]`, or several columns, whose intersections are the groups;
        see `name_groups`.
      num_replicates: of the bootstrap, at least 2.
      seed: of the bootstrap.

    Returns:
      GroupTable, of NumPy arrays. A replicate that leaves a value undefined is left out of its
      interval.

    Raises:
      ValueError: as `fairness_metrics` and `name_groups`; more than two classes; a sensitive value
        is missing.

    Source: rates and gaps as fairlearn's `MetricFrame`; Hanley and MacGibbon 2006 for the weights.

    >>> table = group_table([1, 0, 1, 0], preds=[1, 0, 0, 0], sensitive_features=list("aabb"))
    >>> print(table.groups, table.rates["accuracy"].estimate.tolist())
    ('a', 'b', 'everyone') [1.0, 0.5, 0.75]
    """
    if num_replicates < 2:
        raise ValueError(f"num_replicates must be at least 2, got {num_replicates}")
    scored = preds is None
    given = np.asarray(logits_of(logits, probs, preds, num_classes=2, weights=None))
    _, checked = check_examples(logits=given, labels=labels)
    truth = np.asarray(checked)
    if given.shape[1] != 2:
        raise ValueError(f"group_table is for two classes, got {given.shape[1]}")
    if wrong := int((~np.isfinite(given.max(1))).sum()):
        raise ValueError(
            f"{wrong} of {len(given)} predictions are nan or infinite (first: row "
            f"{int((~np.isfinite(given.max(1))).argmax())}); leave these rows out"
        )
    named = name_groups(sensitive_features)
    if len(named.ids) != len(truth):
        raise ValueError(f"sensitive_features are of {len(named.ids)} rows, labels {len(truth)}")
    if lost := int((named.ids < 0).sum()):
        raise ValueError(
            f"sensitive_features are missing in {lost} of {len(truth)} rows (first: row "
            f"{int((named.ids < 0).argmax())}); leave these out, or name them, such as 'unknown'"
        )
    replicates = _Replicates(given, truth, named.ids, len(named.names), scored)
    whole = {
        name: values[0]
        for name, values in replicates.rates(np.ones((1, len(truth)), np.float32)).items()
    }
    drawn = [replicates.rates(w) for w in _weights(len(truth), num_replicates, seed)]
    drawn = {name: np.concatenate([part[name] for part in drawn]) for name in whole}
    rates = {name: percentiles(whole[name], drawn[name], drawn[name]) for name in whole}
    positives = np.bincount(named.ids[truth == 1], minlength=len(named.names))
    n = np.bincount(named.ids, minlength=len(named.names))
    n, positives = (np.append(counts, counts.sum()) for counts in (n, positives))
    groups = with_everyone(named.names)
    notes = (*named.notes, *_few(groups, n, positives))
    return GroupTable(groups, n, positives, rates, _gaps(whole, drawn), notes)


def group_tables(
    rows: Sequence[str], comparison: Comparison, group_names: Sequence[str]
) -> dict[str, GroupTable]:
    """The table by group of every row of a comparison: means over its seeds and splits.

    Args:
      rows: names of its R rows.
      comparison: of `compare_rows`, whose replicates make the intervals.
      group_names: G names.

    Returns:
      `{row: GroupTable}`, without gaps and notes. n and positives are of the test examples of one
      seed; the mean where seeds have splits of their own.

    >>> half = {"accuracy": np.array([[0.5, 0.5]])}
    >>> counts = {"n_per_label": np.full((1, 1, 1, 2), 2.0)}
    >>> found = Comparison(counts, *[Estimates(half, half, half)] * 3)
    >>> group_tables(["net"], found, ["all"])["net"].n.tolist()
    [4, 4]
    """
    per_label = np.asarray(comparison.metrics["n_per_label"], np.float64)[0].mean(0)
    parts = comparison.by_group.estimate, comparison.by_group.lower, comparison.by_group.upper
    tables = {}
    for i, row in enumerate(rows):
        columns = [name for name in _HEADS if name in parts[0]]  # in the order of a table
        rates = {name: Estimates(*(part[name][i] for part in parts)) for name in columns}
        tables[row] = GroupTable.of_means(group_names, per_label, rates)
    return tables


class _Replicates:
    """Examples sorted by (group, score): a replicate's sums are over runs of neighbours."""

    def __init__(self, logits, labels, group, num_groups: int, scored: bool):
        with np.errstate(invalid="ignore"):
            scores = logits[:, 1] - logits[:, 0]
        excess, bins = calibration_terms(
            device_logits(logits), labels=jnp.asarray(labels, jnp.int32), num_bins=NUM_BINS
        )
        self.num_groups, self.scored = num_groups, scored
        self.order = np.lexsort((scores, group))
        self.positive = labels[self.order] == 1
        self.excess = np.asarray(excess)[self.order]
        group, scores = group[self.order], scores[self.order]
        self.own = _Levels(scores, group)
        place = np.argsort(scores, kind="stable")
        self.pooled = _Levels(scores[place], np.zeros_like(group))
        self.place = place
        # All of a run are in one group, predicted alike and in one bin of confidence.
        cell = (group * 2 + (scores > 0)) * NUM_BINS + np.asarray(bins)[self.order]
        self.starts = _starts(cell)
        self.cells = np.zeros((len(self.starts), num_groups * 2 * NUM_BINS))
        self.cells[np.arange(len(self.starts)), cell[self.starts]] = 1.0

    def rates(self, weights: Float[np.ndarray, "R N"]) -> dict[str, np.ndarray]:
        """Every rate under each of R sets of weights of the sorted examples, `[R, G + 1]`."""
        weights_pos = weights * self.positive
        parts = [weights, weights_pos, *([weights * self.excess] if self.scored else [])]
        sums = [
            (np.add.reduceat(part, self.starts, axis=1) @ self.cells).reshape(
                len(weights), self.num_groups, 2, NUM_BINS
            )
            for part in parts
        ]
        sums = [np.concatenate([part, part.sum(1, keepdims=True)], axis=1) for part in sums]
        total, positive = (part.sum(-1) for part in sums[:2])  # [R, G + 1, predicted]
        n, num_pos = total.sum(-1), positive.sum(-1)
        hits, false = positive[..., 1], total[..., 1] - positive[..., 1]
        with np.errstate(divide="ignore", invalid="ignore"):
            found = {
                "selection_rate": total[..., 1] / n,
                "true_positive_rate": hits / num_pos,
                "false_positive_rate": false / (n - num_pos),
                "accuracy": (hits + (n - num_pos) - false) / n,
            }
            if self.scored:
                everyone = self.pooled.auc(weights[:, self.place], weights_pos[:, self.place])
                own = self.own.auc(weights, weights_pos)
                found["auc"] = np.concatenate([own, everyone], axis=1)
                found["ece"] = abs(sums[2].sum(2)).sum(-1) / n
        return found


class _Levels:
    """Runs of equal scores within groups."""

    def __init__(self, scores: np.ndarray, group: np.ndarray):
        self.starts = _starts(scores, group)
        self.all_different = len(self.starts) == len(scores)
        self.groups = _starts(group[self.starts])

    def auc(self, weights: np.ndarray, weights_pos: np.ndarray) -> np.ndarray:
        """How often a positive outscores a negative, `[R, groups]`; ties count half."""
        pos, neg = weights_pos, weights - weights_pos
        if not self.all_different:
            pos, neg = (np.add.reduceat(part, self.starts, axis=1) for part in (pos, neg))
        below = np.cumsum(neg, axis=1, dtype=np.float64)
        below -= 0.5 * neg
        num_pos, num_neg, wins = (
            np.add.reduceat(part, self.groups, axis=1) for part in (pos, neg, pos * below)
        )
        before = np.cumsum(num_neg, axis=1) - num_neg  # negatives of the groups that come first
        return (wins - num_pos * before) / (num_pos * num_neg)


def _starts(*columns: np.ndarray) -> np.ndarray:
    """Where runs of equal rows begin."""
    new = np.any([values[1:] != values[:-1] for values in columns], axis=0)
    return np.concatenate([[0], np.flatnonzero(new) + 1])


def _weights(num_examples: int, num_replicates: int, seed: int) -> Iterator[np.ndarray]:
    """Poisson weights of mean 1, `[R, N]` at a time, from 16 random bits each."""
    share = np.exp(-1.0) / np.cumprod(np.concatenate([[1.0], np.arange(1.0, 9.0)]))
    ends = np.round(np.cumsum(share) * 2**16)[:-1]
    table = np.searchsorted(ends, np.arange(2**16), side="right").astype(np.float32)
    rng = np.random.Generator(np.random.SFC64(seed))
    size = max(1, _CHUNK // num_examples)
    for start in range(0, num_replicates, size):
        count = min(size, num_replicates - start)
        yield table[rng.integers(0, 2**16, (count, num_examples), dtype=np.uint16)]


def percentiles(whole: np.ndarray, low: np.ndarray, high: np.ndarray) -> Estimates:
    """95 % of the replicates `[R, ...]`, reaching to the estimate at least."""
    bounds = []
    for drawn, share, outer in ((low, 0.025, np.fmin), (high, 0.975, np.fmax)):
        drawn = np.sort(drawn, axis=0)  # nan last
        count = (~np.isnan(drawn)).sum(0)
        at = share * (np.maximum(count, 1) - 1)
        first, last = (
            np.take_along_axis(drawn, np.expand_dims(f(at).astype(int), 0), axis=0)[0]
            for f in (np.floor, np.ceil)
        )
        bound = first + (at - np.floor(at)) * (last - first)
        bounds.append(np.where(np.isnan(whole) | np.isnan(bound), np.nan, outer(bound, whole)))
    return Estimates(whole, *map(np.asarray, bounds))


def _gaps(whole: dict[str, np.ndarray], drawn: dict[str, np.ndarray]) -> dict[str, Estimates]:
    """Gaps and worst groups; groups where a rate is undefined are left out."""
    own = {name: values[:-1] for name, values in whole.items()}
    moved = deviations({name: drawn[name][:, :-1] for name in own}, own)
    estimate, reached = disparities(own), bounds(disparities, own, moved)
    found = {}
    for name, value in estimate.items():
        plain, reflected, _ = np.moveaxis(reached[name], -1, 0)
        ends = np.fmin(plain, reflected), np.fmax(plain, reflected)
        found[name] = percentiles(np.asarray(value), *ends)
    return found


def _few(groups: tuple[str, ...], n: np.ndarray, positives: np.ndarray) -> Iterator[str]:
    """Which groups have so few examples that their rates say little."""
    for what, counts in (("positives", positives), ("negatives", n - positives)):
        few = [f"{counts[g]} of '{groups[g]}'" for g in np.flatnonzero(counts[:-1] < FEW)]
        if few:
            more = f" and {len(few) - 6} more groups" if len(few) > 6 else ""
            yield f"Few {what}: {', '.join(few[:6])}{more}."


def group_cells(
    by_group: Mapping[str, Mapping[str, Any]],
) -> tuple[list[str], list[list[tuple[str, str]]]]:
    """Heads and cells of a table from what `GroupTable.as_dict` gives, null or nan if undefined.

    >>> group_cells({"all": {"n": 4, "accuracy": {"estimate": 0.5, "lower": 0.2, "upper": None}}})
    (['group', 'n', 'accuracy'], [[('all', ''), ('4', ''), ('0.500', '')]])
    """
    first = next(iter(by_group.values()))
    columns = ["group", *(_HEADS.get(name, name) for name in first)]
    rows = [
        [(name, "")]
        + [
            number_and_span(*value.values()) if isinstance(value, Mapping) else (f"{value:,}", "")
            for value in own.values()
        ]
        for name, own in by_group.items()
    ]
    return columns, rows


def number_and_span(value: Any, low: Any, high: Any) -> tuple[str, str]:
    """A value and its interval as tables show them; nan or None where undefined."""
    value, low, high = (np.nan if number is None else number for number in (value, low, high))
    if np.isnan(value):
        return "undefined", ""
    return f"{value:.3f}", "" if np.isnan(low + high) else f"[{low:.3f}, {high:.3f}]"
