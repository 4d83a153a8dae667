"""Many rows of predictions side by side by what can be counted: rates, gaps, and their changes.

`compare_rows` resamples every metric; here only confusion counts are resampled, as one matrix
product per split, so that dozens of rows over dozens of splits take a second. So is the AUC of rows
that have scores, by what each example adds to it.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer

from fairjax.metrics.disparities import bounds, deviations, disparities, worst
from fairjax.metrics.group_table import Estimates, GroupTable, percentiles
from fairjax.metrics.placements import placements
from fairjax.threads import threaded


class RateComparison(NamedTuple):
    """R rows with S runs each, as NumPy arrays; two classes."""

    metrics: dict[str, np.ndarray]
    """name -> float64 `[R, S]`: accuracy, worst_group_accuracy, accuracy_gap, worst_group_recall,
    equal_opportunity_difference, equalized_odds_difference, demographic_parity_difference;
    `accuracy/g` and `recall/g` (true-positive rate) of every group number g. With scores also auc
    (of everyone), worst_group_auc, auc_gap and `auc/g`, nan for rows without."""
    replicates: dict[str, np.ndarray]
    """name -> float64 `[R, B, 3]`: of every row's mean in every replicate the values plain,
    reflected and slope of `compare_rows`."""
    by_group: dict[str, Estimates]
    """Means over runs of the rates of `group_table` in every group and of everyone, `[R, G + 1]`;
    no ECE, and AUC only with scores."""
    per_label: np.ndarray
    """float64 `[G, 2]`: examples by group and label, the mean over runs."""

    def mean(self, name: str, row: int) -> tuple[float, float, float]:
        """A row's mean over runs, and its 95 % interval."""
        found = self.replicates[name][row, :, :2]
        return (float(self.metrics[name][row].mean()), *_ends(found.min(1), found.max(1)))

    def change(self, name: str, row: int, reference: int) -> tuple[float, float, float]:
        """What a row's mean gains over the reference's, paired, and its 95 % interval."""
        weights = np.zeros(len(self.metrics[name]))
        weights[row] += 1
        weights[reference] -= 1
        return self.contrast(name, weights)

    def contrast(self, name: str, weights: Float[np.ndarray, " R"]) -> tuple[float, float, float]:
        """A weighted sum of rows' means, paired, and its 95 % interval; `change` is 1 and -1.

        Rows of weight 0 do not count, also where they are undefined.
        """
        rows = np.flatnonzero(weights)
        if not len(rows):
            return 0.0, 0.0, 0.0
        moved = np.tensordot(weights[rows], self.replicates[name][rows][:, :, ::2], axes=1)
        estimate = float(weights[rows] @ self.metrics[name][rows].mean(1))
        return (estimate, *_ends(moved.min(1), moved.max(1)))

    def group_table(self, row: int, group_names: Sequence[str]) -> GroupTable:
        """A row's table by group, as of `group_tables`."""
        rates = {name: Estimates(*(x[row] for x in rate)) for name, rate in self.by_group.items()}
        return GroupTable.of_means(group_names, self.per_label, rates)

    def worst_change(self, kind: str, row: int, reference: int) -> tuple[int, float, float, float]:
        """The group whose "accuracy" or "recall" falls most (levelling down), and its change."""
        names = [name for name in self.metrics if name.startswith(f"{kind}/")]
        changes = [self.change(name, row, reference) for name in names]
        estimates = np.array([change[0] for change in changes])
        group = int(np.where(np.isnan(estimates), np.inf, estimates).argmin())
        return (group, *changes[group])


def compare_rates(
    preds: Integer[np.ndarray, "R S n"],
    *,
    labels: Integer[np.ndarray, " N"],
    group: Integer[np.ndarray, " N"],
    num_groups: int,
    examples: Integer[np.ndarray, "S n"],
    splits: Integer[np.ndarray, " S"],
    scores: Float[np.ndarray, "M S n"] | None = None,
    num_replicates: int = 500,
    seed: int = 0,
) -> RateComparison:
    """Rates and gaps of R rows with S runs each, and bootstrap replicates of their means over runs.

    What is drawn, and how intervals of gaps are made, is as in `compare_rows`: a replicate draws
    examples, and splits with all their runs, the same ones for all rows. Here any two rows can be
    compared afterwards.

    Args:
      preds: predicted class, 0 or 1.
      labels: int `[N]`, 0 or 1.
      group: int `[N]` in `[0, G)`.
      num_groups: G.
      examples: which examples a run was tested on, equal for runs of one split.
      splits: the split of every run, numbered from 0.
      scores: of the first M rows, whose AUC is judged too. A replicate's AUC is that of the drawn
        examples to first order: what they add to the AUC of all.
      num_replicates: B.
      seed: of the replicates.

    Returns:
      RateComparison. Rates that a group cannot define are nan and left out of gaps; a group that a
      replicate has none of counts there as in the data.

    Raises:
      ValueError: shapes do not fit, runs of one split have other examples, labels or predictions
        other than 0 and 1, or fewer than 2 replicates.

    Source: as `compare_rows`; of the AUC DeLong, DeLong and Clarke-Pearson, Biometrics 1988.

    >>> ids, once = np.array([0, 1, 0, 1]), np.zeros((1, 4), int)
    >>> told = compare_rates(np.array([[[0, 1, 0, 1]], [[0, 1, 0, 0]]]), labels=ids, group=ids * 0,
    ...                      num_groups=1, examples=once + np.arange(4), splits=np.zeros(1, int))
    >>> told.change("accuracy", 1, 0)[0]
    -0.25
    """
    _check(preds, labels, group, num_groups, examples, splits, num_replicates)
    if scores is not None and (
        scores.shape[1:] != preds.shape[1:] or not 0 < len(scores) <= len(preds)
    ):
        raise ValueError(f"scores must be [M, S, n] of first rows, got {scores.shape}")
    num_rows, num_runs, _ = preds.shape
    num_splits, generator = int(splits.max()) + 1, np.random.default_rng(seed)
    # float32 holds whole numbers below 2^24 exactly, and multiplies twice as fast
    drawn = _draws(generator, len(labels), num_replicates)
    of_split = _draws(generator, num_splits, num_replicates).astype(np.float64)[:, splits]
    shape = (num_replicates + 1, num_runs, 2, num_groups)
    totals, selected = np.empty(shape), np.empty((num_rows, *shape))
    # of groups, then of everyone
    areas = np.full((num_rows, *shape[:2], num_groups + 1), np.nan)
    cells = 2 * group + labels

    def count(split: int) -> None:
        runs = np.flatnonzero(splits == split)
        tested = examples[runs[0]]
        for cell in range(2 * num_groups):
            place = np.flatnonzero(cells[tested] == cell)
            weights = np.ones((num_replicates + 1, len(place)), np.float32)
            weights[1:] = drawn[:, tested[place]]
            hits = preds[:, runs][..., place].reshape(num_rows * len(runs), len(place))
            found = (weights @ hits.T.astype(np.float32)).reshape(-1, num_rows, len(runs))
            selected[:, :, runs, cell % 2, cell // 2] = found.swapaxes(0, 1)
            totals[:, runs, cell % 2, cell // 2] = weights.sum(1, dtype=np.float64)[:, None]
        if scores is not None:
            own = scores[:, runs], labels[tested], group[tested], num_groups, drawn[:, tested]
            areas[: len(scores), :, runs] = _areas(*own).swapaxes(1, 2)

    list(threaded(count, range(num_splits)))  # sorting is one thread's work
    rates = _rates(selected, totals[None])
    if scores is not None:
        rates |= {"auc": areas[..., :-1], "auc of everyone": areas[..., -1]}
    whole = {name: value[:, :1] for name, value in rates.items()}
    deviation = deviations({name: value[:, 1:] for name, value in rates.items()}, whole)
    share = of_split / of_split.sum(1, keepdims=True)
    replicates = {
        name: np.einsum("rbsk,bs->rbk", values, share)
        for name, values in bounds(_metrics, whole, deviation).items()
    }
    found = {name: values[:, 0] for name, values in _metrics(whole).items()}
    everyone = _rates(selected.sum(-1, keepdims=True), totals[None].sum(-1, keepdims=True))
    everyone["auc"] = areas[..., -1:]
    by_group = {}
    for name in (each for each in rates if each in everyone and each != "overall"):
        values = np.concatenate([rates[name], everyone[name]], axis=-1)
        drawn = np.einsum("rbsg,bs->brg", values[:, 1:], share)
        by_group[name] = percentiles(values[:, 0].mean(1), drawn, drawn)
    return RateComparison(found, replicates, by_group, totals[0].mean(0).T)


def _check(preds, labels, group, num_groups, examples, splits, num_replicates) -> None:
    """Refuse what does not fit; see `compare_rates`."""
    if preds.ndim != 3 or 0 in preds.shape or examples.shape != preds.shape[1:]:
        raise ValueError(
            f"preds must be [R, S, n] and examples [S, n], got {preds.shape} and {examples.shape}"
        )
    if splits.shape != preds.shape[1:2] or set(splits.tolist()) != set(range(splits.max() + 1)):
        raise ValueError(f"splits must number the split of each run from 0, got {splits}")
    if labels.shape != group.shape or labels.ndim != 1:
        raise ValueError(f"labels and group must be [N], got {labels.shape} and {group.shape}")
    for name, ids, bound in (
        ("preds", preds, 2),
        ("labels", labels, 2),
        ("group", group, num_groups),
        ("examples", examples, len(labels)),
    ):
        if ids.min() < 0 or ids.max() >= bound:
            raise ValueError(f"{name} must be in [0, {bound}), got {ids.min()} to {ids.max()}")
    first = {split: int(np.flatnonzero(splits == split)[0]) for split in np.unique(splits)}
    if any((examples[run] != examples[first[split]]).any() for run, split in enumerate(splits)):
        raise ValueError("examples must be equal for the runs of one split")
    if num_replicates < 2:
        raise ValueError(f"num_replicates must be at least 2, got {num_replicates}")


def _draws(generator: np.random.Generator, count: int, num_replicates: int) -> np.ndarray:
    """How often each of `count` things is drawn with replacement, float32 `[B, count]`."""
    drawn = generator.integers(count, size=(num_replicates, count))
    return np.stack([np.bincount(row, minlength=count) for row in drawn]).astype(np.float32)


def _areas(scores, labels, group, num_groups: int, drawn: np.ndarray) -> np.ndarray:
    """AUC of all examples, then of every replicate, by group, then of everyone.

    `[M, s, B + 1, G + 1]` from scores `[M, s, n]` and how often examples are drawn, `[B, n]`."""
    found = np.full((*scores.shape[:2], len(drawn) + 1, num_groups + 1), np.nan)
    for g in range(num_groups + 1):
        member = np.flatnonzero((group == g) | (g == num_groups))
        own = labels[member]
        if len(np.unique(own)) < 2:
            continue
        shares = placements(scores[..., member], own)
        area = shares[..., own == 1].mean(-1)
        moved = np.zeros((*area.shape, len(drawn)))
        for label in (0, 1):
            weights = drawn[:, member[own == label]]
            beyond = (shares[..., own == label] - area[..., None]).astype(np.float32)
            sums = (beyond.reshape(-1, weights.shape[1]) @ weights.T).reshape(moved.shape)
            with np.errstate(invalid="ignore", divide="ignore"):
                moved += sums / weights.sum(1, dtype=np.float64)
        found[..., 0, g] = area
        found[..., 1:, g] = np.clip(area[..., None] + moved, 0, 1)
    return found


def _rates(selected: np.ndarray, totals: np.ndarray) -> dict[str, np.ndarray]:
    """Rates `[..., G]` from counts `[..., 2, G]` of selected and of all, by the names and in the
    order of `group_table`; the accuracy of everyone `[...]` is "overall"."""
    right = selected[..., 1, :] + totals[..., 0, :] - selected[..., 0, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "selection_rate": selected.sum(-2) / totals.sum(-2),
            "true_positive_rate": selected[..., 1, :] / totals[..., 1, :],
            "false_positive_rate": selected[..., 0, :] / totals[..., 0, :],
            "accuracy": right / totals.sum(-2),
            "overall": np.asarray(right.sum(-1) / totals.sum((-2, -1))),
        }


def _metrics(rates: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every metric from rates."""
    kinds = {"accuracy": rates["accuracy"], "recall": rates["true_positive_rate"]}
    kinds |= {"auc": rates["auc"]} if "auc" in rates else {}
    by_group = {
        f"{kind}/{g}": each[..., g] for kind, each in kinds.items() for g in range(each.shape[-1])
    }
    of_all = {"auc": rates["auc of everyone"]} if "auc" in rates else {}
    return {
        "accuracy": rates["overall"],
        **of_all,
        "worst_group_recall": worst(rates["true_positive_rate"]),
        **disparities(rates),
        **by_group,
    }


def _ends(low: np.ndarray, high: np.ndarray) -> tuple[float, float]:
    """95 %, nan where a replicate is."""
    return float(np.quantile(low, 0.025)), float(np.quantile(high, 0.975))


def rates_of_preds(
    preds: Integer[np.ndarray, "*axes n"],
    *,
    labels: Integer[np.ndarray, " n"],
    group: Integer[np.ndarray, " n"],
    num_groups: int,
) -> dict[str, np.ndarray]:
    """The metrics of `RateComparison` for any number of networks on the same examples.

    Args:
      preds: predicted class, 0 or 1.
      labels: int `[n]`, 0 or 1.
      group: int `[n]` in `[0, G)`.
      num_groups: G.

    Returns:
      name -> float64 `[...]`; nan where no example defines a rate.

    >>> told = rates_of_preds(np.array([0, 1]), labels=np.ones(2, int), group=np.arange(2),
    ...                       num_groups=2)
    >>> float(told["equal_opportunity_difference"])
    1.0
    """
    cells = np.eye(2 * num_groups)[labels * num_groups + group]
    selected = (preds @ cells).reshape(*preds.shape[:-1], 2, num_groups)
    return _metrics(_rates(selected, cells.sum(0).reshape(2, num_groups)))
