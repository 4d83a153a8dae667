"""The scikit-learn face: FairBatch and group thresholds as classifiers with sensitive features.

    model = FairBatchClassifier("equalized_odds").fit(X, y, sensitive_features=frame["sex"])
    model = GroupThresholds(LogisticRegression()).fit(X, y, sensitive_features=frame["sex"])
    model.predict(X, sensitive_features=frame["sex"])

Both work in pipelines, `cross_validate` and `GridSearchCV`; with metadata routing switched on,
`set_fit_request(sensitive_features=True)` (and `set_score_request`) sends each fold its own part.
Only this module imports scikit-learn, and `import fairjax` does not import it.
"""

import functools
from typing import Any

import jax
import numpy as np
import optax
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.utils import check_array, check_random_state, column_or_1d, get_tags
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import check_is_fitted, validate_data

from fairjax import thresholds, train
from fairjax.data import Examples
from fairjax.fairbatch import CRITERIA, SIGNALS, fairbatch
from fairjax.metrics import name_groups
from fairjax.metrics.counts import check_choice
from fairjax.models import logistic_regression

_NUM_STEPS = 2_700  # what logistic regression on Adult takes until its loss is flat


class FairBatchClassifier(ClassifierMixin, BaseEstimator):
    """Logistic regression whose batches are drawn so that a criterion of fairness holds.

    Columns are standardised inside. Nothing of the group is needed to predict.

    Args:
      criterion: what groups should have in common, or "none"; see `fairbatch`. The favourable
        class is the second of `classes_`.
      signal: "rate" compares the rates themselves, "loss" (published) the losses.
      num_epochs: passes over the data; as many as 2,700 steps take if None.
      batch_size: a 45th of the rows, at least 32, if None.
      learning_rate: of Adam.
      step_size: what one update moves; .04 (rate, shrinking) or .01 (loss) if None.
      random_state: of batches.

    Attributes:
      classes_: `[K]`.
      coef_, intercept_: float64 `[K, D]` and `[K]`, for features as they are given.
      group_names_: the groups of the training rows, in order.

    >>> X, y = [[0.0], [1.0], [0.2], [0.9]], ["no", "yes", "no", "yes"]
    >>> model = FairBatchClassifier(num_epochs=50, learning_rate=0.1)
    >>> print(model.fit(X, y, sensitive_features=list("aabb")).predict([[0.1], [0.8]]))
    ['no' 'yes']
    """

    def __init__(
        self,
        criterion: Any = "equal_opportunity",  # as it is: scikit-learn checks in `fit` only
        signal: Any = "rate",
        *,
        num_epochs: Any = None,
        batch_size: Any = None,
        learning_rate: Any = 0.005,
        step_size: Any = None,
        random_state: Any = None,
    ):
        self.criterion = criterion
        self.signal = signal
        self.num_epochs = num_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.step_size = step_size
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sensitive_features: Any = None) -> "FairBatchClassifier":
        """Train.

        Args:
          X: numbers `[N, D]`, an array or a frame.
          y: classes `[N]`.
          sensitive_features: values `[N]` or columns of them; see `metrics.name_groups`. None is
            one group, which makes this plain logistic regression.

        Raises:
          ValueError: something does not fit, one class only, or a sensitive value is missing.
        """
        check_choice("criterion", self.criterion, CRITERIA)
        check_choice("signal", self.signal, SIGNALS)
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y holds one class only, {self.classes_[0]!r}: two are needed")
        group, self.group_names_ = _groups(sensitive_features, len(y))
        mean, scale = X.mean(0), X.std(0)
        scale = np.where(scale > 0, scale, 1.0)
        rows = Examples(((X - mean) / scale).astype(np.float32), labels.astype(np.int32), group)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        kernel, bias = self._train(rows, seed)
        self.coef_ = (kernel / scale[:, None]).T
        self.intercept_ = bias - self.coef_ @ mean
        return self

    def _train(self, rows: Examples, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Kernel `[D, K]` and bias `[K]` for standardised features."""
        num_rows, num_classes = len(rows.labels), len(self.classes_)
        batch_size = min(num_rows, self.batch_size or max(32, num_rows // 45))
        by_signal = {"rate": (0.04, 0.5), "loss": (0.01, 0.0)}
        step_size, decay = by_signal[self.signal]
        alone = len(self.group_names_) < 2
        sampler = fairbatch(
            labels=rows.labels,
            group=rows.group,
            num_classes=num_classes,
            num_groups=len(self.group_names_),
            batch_size=batch_size,
            criterion="none" if alone else self.criterion,
            signal=self.signal,
            step_size=step_size if self.step_size is None else self.step_size,
            decay=decay,
        )
        num_epochs = self.num_epochs or -(-_NUM_STEPS // sampler.batches_per_epoch)
        model = logistic_regression(rows.inputs.shape[1], num_classes)
        optimizer = optax.adam(self.learning_rate)
        first, draws = jax.random.split(jax.random.key(seed))
        state = train.init_fit(train.init_train(model, optimizer, first), sampler, draws)
        step, look = (
            train.make_step(model, optimizer),
            functools.partial(train.measure_cells, model, sampler),
        )
        fit = jax.jit(
            lambda state, rows: (
                train.fit(step, state, rows, sampler, num_epochs=num_epochs, measure_fn=look)[
                    0
                ].train.params
            )
        )
        num_features = rows.inputs.shape[1]
        corners = np.concatenate([np.zeros((1, num_features)), np.eye(num_features)])
        logits = train.predict(model, fit(state, rows), {}, corners.astype(np.float32))
        bias, *moved = np.asarray(logits, np.float64)
        return np.stack(moved) - bias, bias

    def decision_function(self, X: Any) -> np.ndarray:
        """Log-odds `[N]` of the second class for two, logits `[N, K]` for more."""
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities float64 `[N, K]`, columns as `classes_`."""
        logits = self._logits(X)
        exp = np.exp(logits - logits.max(1, keepdims=True))
        return exp / exp.sum(1, keepdims=True)

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each row, `[N]`."""
        best = self._logits(X).argmax(1)  # first, for it says if nothing is fitted
        return self.classes_[best]

    def _logits(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return X @ self.coef_.T + self.intercept_


class GroupThresholds(MetaEstimatorMixin, ClassifierMixin, BaseEstimator):
    """Any classifier of two classes with a threshold for each group on its scores.

    Thresholds are chosen on out-of-fold scores, the classifier is then fitted on all rows. The
    exact best choice within the gap; see `thresholds.group_thresholds`.

    Args:
      estimator: a classifier with `predict_proba` or `decision_function`.
      criterion: one of `thresholds.CRITERIA`.
      max_gap: highest gap of the criterion among the training rows.
      cv: folds.

    Attributes:
      estimator_: the fitted classifier.
      classes_: `[2]`.
      thresholds_: group name -> threshold of the score (log-odds, or the decision function).

    >>> from sklearn.linear_model import LogisticRegression
    >>> X, y, group = [[0.0], [1.0], [0.2], [0.9]] * 5, [0, 1, 0, 1] * 5, list("aabb") * 5
    >>> model = GroupThresholds(LogisticRegression()).fit(X, y, sensitive_features=group)
    >>> model.predict([[0.1], [0.8]], sensitive_features=["a", "b"]).tolist()
    [0, 1]
    """

    def __init__(
        self,
        estimator: Any = None,
        criterion: Any = "equalized_odds",
        *,
        max_gap: Any = 0.01,
        cv: Any = 5,
    ):
        self.estimator = estimator
        self.criterion = criterion
        self.max_gap = max_gap
        self.cv = cv

    def __sklearn_tags__(self) -> Any:
        """As of the classifier within, but for two classes."""
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        tags.input_tags.sparse = get_tags(self._inner()).input_tags.sparse
        return tags

    def _inner(self) -> Any:
        if self.estimator is not None:
            return self.estimator
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression()

    def fit(self, X: Any, y: Any, sensitive_features: Any = None) -> "GroupThresholds":
        """Choose thresholds and fit the classifier.

        Args:
          X: what the classifier takes.
          y: two classes `[N]`; the second in order is the favourable one.
          sensitive_features: values `[N]` or columns of them. None is one group, which leaves the
            classifier as it is.

        Raises:
          ValueError: something does not fit, not two classes, a sensitive value is missing, or a
            group lacks what the criterion needs.
        """
        check_choice("criterion", self.criterion, thresholds.CRITERIA)
        validate_data(self, X, y, skip_check_array=True)
        as_given: Any = {"ensure_2d": False, "dtype": None, "input_name": "y"}
        y = column_or_1d(check_array(y, **as_given), warn=True)
        kind = type_of_target(y, input_name="y", raise_unknown=True)
        if kind != "binary":
            raise ValueError(
                f"Only binary classification is supported. The type of the target is {kind}."
            )
        inner: Any = clone(self._inner())
        self.estimator_ = inner.fit(X, y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        group, names = _groups(sensitive_features, len(labels))
        self.thresholds_ = {}
        if len(names) < 2:
            return self
        cells = np.bincount(labels)
        if min(self.cv, cells.min()) < 2:
            raise ValueError(f"thresholds need two rows of every class, got {cells.tolist()}")
        method = "predict_proba" if hasattr(self.estimator_, "predict_proba") else None
        scores = cross_val_predict(
            clone(self._inner()),
            X,
            y,
            cv=StratifiedKFold(min(self.cv, int(cells.min()))),
            method=method or "decision_function",
        )
        found = thresholds.group_thresholds(
            _as_scores(scores),
            labels=labels.astype(np.int32),
            group=group,
            num_groups=len(names),
            criterion=self.criterion,
            max_gap=self.max_gap,
        )
        self.thresholds_ = dict(zip(names, np.asarray(found.thresholds).tolist(), strict=True))
        return self

    def predict(self, X: Any, sensitive_features: Any = None) -> np.ndarray:
        """The class of each row, `[N]`, by the threshold of its group.

        Raises:
          ValueError: the group of a row is missing or was not seen in training.
        """
        check_is_fitted(self)
        if not self.thresholds_:
            return self.estimator_.predict(X)
        if sensitive_features is None:
            raise ValueError("thresholds are by group: give sensitive_features to predict, too")
        inner = self.estimator_
        scored = getattr(inner, "predict_proba", None) or inner.decision_function
        scores = _as_scores(scored(X))
        group, names = _groups(sensitive_features, len(scores))
        if unknown := [name for name in names if name not in self.thresholds_]:
            raise ValueError(
                f"groups {unknown} were not seen in training; known are {list(self.thresholds_)}"
            )
        limits = np.array([self.thresholds_[name] for name in names], np.float32)[group]
        return self.classes_[(scores >= limits).astype(int)]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities `[N, 2]` of the classifier within; thresholds do not change them."""
        check_is_fitted(self)
        return self.estimator_.predict_proba(X)

    def score(
        self, X: Any, y: Any, sample_weight: Any = None, sensitive_features: Any = None
    ) -> float:
        """Accuracy, so that `cross_validate` can hand the groups on."""
        right = self.predict(X, sensitive_features=sensitive_features) == np.asarray(y)
        return float(np.average(right, weights=sample_weight))


def _groups(sensitive_features: Any, num_rows: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Group numbers and names; one group without a name if None."""
    if sensitive_features is None:
        return np.zeros(num_rows, np.int32), ("",)
    named = name_groups(sensitive_features)
    if len(named.ids) != num_rows:
        raise ValueError(f"sensitive_features are of {len(named.ids)} rows, X of {num_rows}")
    if lost := int((named.ids < 0).sum()):
        raise ValueError(f"sensitive_features are missing in {lost} of {num_rows} rows")
    return named.ids, named.names


def _as_scores(values: Any) -> np.ndarray:
    """Finite float32 scores `[N]` of the second class: log-odds of probabilities `[N, 2]`."""
    if values.ndim == 2:
        tiny = np.finfo(np.float64).tiny
        probs = np.clip(np.asarray(values, np.float64), tiny, None)
        values = np.log(probs[:, 1]) - np.log(probs[:, 0])
    return values.astype(np.float32)
