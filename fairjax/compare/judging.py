"""After training: which epoch of a run, thresholds per group, and the test split, once."""

import functools
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Integer

from fairjax.compare.setting import Setting, Trained
from fairjax.metrics import pareto_front
from fairjax.metrics.disparities import worst
from fairjax.metrics.placements import group_auc_bounds
from fairjax.metrics.rate_comparison import RateComparison, compare_rates
from fairjax.threads import threaded
from fairjax.thresholds import apply_thresholds, group_thresholds

Select = Literal[
    "dto",
    "worst_group",
    "accuracy",
    "last",
    "auc",
    "worst_group_auc",
    "worst_group_auc_lower",
    "utopia",
    "pareto",
]


def select_stage(setting: Setting, trained: Trained, rule: Select) -> Trained:
    """Every run at the stage that is best on its validation rows, the first of equals.

    Args:
      setting: of the comparison.
      trained: a method's runs at E stages.
      rule: "dto": nearest to the best accuracy of all stages without a gap of the criterion;
        "worst_group" and "accuracy": the highest accuracy of a group or of all; "auc" and
        "worst_group_auc": likewise by AUC; "worst_group_auc_lower": the highest of what the AUC of
        every group exceeds by its one-sided 95 % interval; "utopia": nearest to the best AUC of
        every group over the stages; "pareto": of the stages that no other is as good as in all
        groups' AUC and better in one, that of highest worst-group AUC, at equal ones of highest
        mean; "last": the last stage.

    Returns:
      Leaves `[F * S, ...]`. A stage whose value is undefined, or whose logits are not finite,
      never wins. By "dto", nor does one that predicts a single class, which has no gap, while
      another predicts two.

    Raises:
      ValueError: an unknown rule, or a run that has no stage to choose.

    Source: distances to the utopia point (DTO): of accuracy and a gap Han et al., EMNLP 2022
    (FairLib), who take whatever is nearest, also of a single class; of the AUC of groups ("utopia")
    Zong et al., ICLR 2023 (MEDFAIR). "pareto": Martinez et al., ICML 2020, as in MEDFAIR.
    """
    if rule not in get_args(Select):
        raise ValueError(f"select must be one of {', '.join(get_args(Select))}; got {rule!r}")
    best = np.empty(trained.val.shape[1], int)
    finite = np.asarray(np.isfinite(trained.val).all((-2, -1)))
    single = one_class(trained.val)
    for run, split in enumerate(setting.split_of_run):
        rows = setting.splits.val[split]
        of_stages = _by_rates if rule in _BY_RATES else _by_areas
        known = np.where(finite[:, run, None, None], trained.val[:, run], 0)
        value = of_stages(setting, rule, known, rows)
        if np.isnan(value).all():
            raise ValueError(f"{rule} is undefined on validation, for every epoch of run {run}")
        value = np.where(np.isnan(value), -np.inf, value)
        lost = ~finite[:, run]
        if rule == "dto" and not single[finite[:, run], run].all():
            lost = lost | single[:, run]
        kept = np.where(lost, -np.inf, value)
        best[run] = (kept if np.isfinite(kept).any() else value).argmax()
    return trained.at(best)


def one_class(logits: Float[np.ndarray, "*axes n 2"]) -> np.ndarray:
    """Whether all rows are predicted to be of one class, bool `[...]`."""
    preds = logits.argmax(-1)
    return preds.min(-1) == preds.max(-1)


_BY_RATES = ("dto", "worst_group", "accuracy", "last")


def _by_rates(setting: Setting, rule: str, logits: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """What is to be highest, of E stages, by rates of predictions."""
    found = setting.rates(logits.argmax(-1), rows)
    accuracy, gap = found["accuracy"], found[f"{setting.criterion}_difference"]
    return {
        "last": np.where(np.arange(len(accuracy)) < len(accuracy) - 1, np.nan, 0.0),
        "accuracy": accuracy,
        "worst_group": found["worst_group_accuracy"],
        "dto": -np.hypot(accuracy.max() - accuracy, gap),
    }[rule]


def _by_areas(setting: Setting, rule: str, logits: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """What is to be highest, of E stages, by the AUC of everyone or within groups.

    A group that defines none in any stage does not count.
    """
    data, scores = setting.data, margins(logits)
    labels, group, num_groups = data.labels[rows], data.group[rows], data.num_groups
    if rule == "auc":
        group, num_groups = np.zeros_like(group), 1
    areas, lower = group_auc_bounds(scores, labels=labels, group=group, num_groups=num_groups)
    areas = areas[:, ~np.isnan(areas).all(0)]
    if not areas.size:
        return np.full(len(scores), np.nan)
    if rule == "worst_group_auc_lower":
        return worst(lower)
    if rule == "utopia":
        return -np.linalg.norm(areas.max(0) - areas, axis=1)
    if rule == "pareto":  # a mean breaks ties, far below what areas can differ by
        return np.where(pareto_front(areas), areas.min(1) + 1e-9 * areas.mean(1), np.nan)
    return areas.min(1)


def margins(logits: Float[np.ndarray, "*axes 2"]) -> np.ndarray:
    """Score of class 1 over class 0."""
    return logits[..., 1] - logits[..., 0]


def common_accuracy(
    scores: Float[np.ndarray, "*axes m"], labels: Integer[np.ndarray, " m"]
) -> np.ndarray:
    """The highest accuracy that one threshold for all groups gives, `[...]`.

    >>> float(common_accuracy(np.array([0.1, 0.2, 0.7]), np.array([0, 0, 1])))
    1.0
    """
    order = np.argsort(scores, axis=-1)
    signs = np.take_along_axis(np.broadcast_to(1 - 2 * labels, scores.shape), order, axis=-1)
    # class 1 above the threshold: what falls below it turns right or wrong
    turned = np.maximum(np.cumsum(signs, axis=-1), 0)
    ties = np.diff(np.take_along_axis(scores, order, axis=-1), axis=-1, append=np.inf) == 0
    return np.asarray((labels.sum() + np.where(ties, 0, turned).max(-1)) / len(labels))


def add_thresholds(
    setting: Setting,
    val: Float[np.ndarray, "M P m"],
    test: Float[np.ndarray, "M P t"],
    *,
    cost: float = 0.005,
) -> np.ndarray:
    """Predictions on test with a threshold for every group, beside two rivals of each method.

    Thresholds are chosen for the smallest gap on validation at an accuracy that is demanded.

    Args:
      setting: of the comparison.
      val: `margins` of M methods' runs on the validation rows of their splits; the first is plain
        training, which the rivals are made of.
      test: likewise.
      cost: accuracy that thresholds may give up, against the best single one.

    Returns:
      int8 `[3, M, P, t]`: each method with thresholds of its own; plain training with thresholds
      that are as accurate on validation as the method without; and as the method with them.

    Raises:
      ValueError: a group lacks what the criterion compares.
    """
    data = setting.data
    plain_val, plain_test = (np.broadcast_to(x[:1], x.shape) for x in (val, test))
    found = np.empty((3, *test.shape), np.int8)

    def of_split(split: int) -> None:
        rows, tested = setting.splits.val[split], setting.splits.test[split]
        runs, labels = setting.split_of_run == split, data.labels[rows]
        choose = functools.partial(
            group_thresholds,
            labels=labels,
            group=data.group[rows],
            num_groups=data.num_groups,
            criterion=setting.criterion,
        )

        def apply(scores, limits, ids):
            return np.asarray(apply_thresholds(scores, limits, group=data.group[ids]))

        right = lambda preds: (preds == labels).mean(-1)
        own, plain = val[:, runs], plain_val[:, runs]
        limits = choose(own, min_accuracy=common_accuracy(own, labels) - cost).thresholds
        found[0][:, runs] = apply(test[:, runs], limits, tested)
        for place, preds in ((1, own > 0), (2, apply(own, limits, rows))):
            demanded = np.minimum(common_accuracy(plain, labels), right(preds))
            limits = choose(plain, min_accuracy=demanded).thresholds
            found[place][:, runs] = apply(plain_test[:, runs], limits, tested)

    of_split(0)  # compiles for all; a search is one thread's work
    list(threaded(of_split, range(1, len(setting.splits.val))))
    return found


def judge(
    setting: Setting,
    preds: Integer[np.ndarray, "R P t"],
    scores: Float[np.ndarray, "M P t"] | None = None,
    *,
    num_replicates: int = 500,
) -> RateComparison:
    """All predictions, and scores of the first M rows, on the test rows of their splits, looked at
    once; see `compare_rates`."""
    tested, place = np.unique(setting.splits.test, return_inverse=True)
    place = place.reshape(setting.splits.test.shape)
    data = setting.data
    return compare_rates(
        preds,
        labels=data.labels[tested],
        group=data.group[tested],
        num_groups=data.num_groups,
        examples=place[setting.split_of_run],
        splits=setting.split_of_run,
        scores=scores,
        num_replicates=num_replicates,
    )
