"""The scikit-learn face beside fairlearn's own on Adult: disparity, accuracy and time."""

from collections.abc import Callable, Iterator
from typing import Any

import fairlearn.postprocessing
import fairlearn.reductions
import numpy as np
from fairlearn.metrics import demographic_parity_difference
from sklearn.linear_model import LogisticRegression

from experiments.timing import claim, paired
from fairjax.data import load_adult
from fairjax.estimator import FairBatchClassifier, GroupThresholds


def claims(quick: bool = False) -> Iterator[dict[str, Any]]:
    """`fairbatch_vs_reductions` and `thresholds_vs_fairlearn`: fitting, judged on test."""
    data = load_adult("sex")
    rows, test = data.examples("train"), data.examples("test")
    if quick:
        rows = type(rows)(*(part[:600] for part in rows))
    # fairlearn writes float64 into a column of this type
    rows, test = (part._replace(inputs=part.inputs.astype(np.float64)) for part in (rows, test))
    criterion, repeats = "demographic_parity", 1 if quick else 3

    def plain() -> LogisticRegression:
        return LogisticRegression(max_iter=1000)

    def fit(model: Any) -> Callable[[], Any]:
        return lambda: model.fit(rows.inputs, rows.labels, sensitive_features=rows.group)

    def judge(predict: Callable[..., Any]) -> dict[str, float]:
        preds = np.asarray(predict(test.inputs))
        gap = demographic_parity_difference(test.labels, preds, sensitive_features=test.group)
        return {"accuracy": float(np.mean(preds == test.labels)), "gap": float(gap)}

    ours = FairBatchClassifier(criterion, random_state=0, num_epochs=3 if quick else None)
    theirs = fairlearn.reductions.ExponentiatedGradient(
        plain(), fairlearn.reductions.DemographicParity(), max_iter=3 if quick else 50
    )
    times = paired(fit(ours), fit(theirs), repeats=repeats, warmup=0)
    draw = {"random_state": 0}
    quality = {"ours": judge(ours.predict), "theirs": judge(lambda x: theirs.predict(x, **draw))}
    yield claim(
        "fairbatch_vs_reductions",
        times,
        quality=quality,
        notes="fit of FairBatchClassifier, compiling included, beside ExponentiatedGradient",
    )
    ours = GroupThresholds(plain(), criterion, max_gap=0.01)
    theirs = fairlearn.postprocessing.ThresholdOptimizer(
        estimator=plain(), constraints=criterion, predict_method="predict_proba"
    )
    times = paired(fit(ours), fit(theirs), repeats=repeats, warmup=0)
    by_group = {"sensitive_features": test.group}
    yield claim(
        "thresholds_vs_fairlearn",
        times,
        quality={
            "ours": judge(lambda x: ours.predict(x, **by_group)),
            "theirs": judge(lambda x: theirs.predict(x, **by_group, **draw)),
        },
        notes="fit of GroupThresholds, its five folds included, beside ThresholdOptimizer; theirs "
        "mixes predictions at random, ours does not",
    )
