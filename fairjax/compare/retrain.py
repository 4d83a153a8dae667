"""Classifiers on the features of networks that are trained already: balanced, or of a probe."""

import jax
import numpy as np

from fairjax.compare.setting import Setting, Trained
from fairjax.models import Model
from fairjax.threads import threaded
from fairjax.train import fit_heads, predict
from fairjax.train.predict import below_head
from fairjax.trees import get_path, set_path

NUM_SUBSETS = 5
PENALTIES = (1e-4, 1e-3, 1e-2)


def retrain_balanced(setting: Setting, networks: Trained) -> Trained:
    """The last layer trained anew on rows with equally many of every cell (`dfr`); E is 1.

    Of every cell as many training rows as the smallest has, drawn five times, whose heads are
    averaged; the penalty is that of highest worst-group accuracy on validation.

    Args:
      setting: of the comparison.
      networks: of all runs, leaves `[F * S, ...]`.

    Source: Kirichenko, Izmailov and Wilson, ICLR 2023, on training rows ("DFR, train").
    """
    data = setting.data
    cells = data.labels * data.num_groups + data.group

    def weights_of(run: int, rows: np.ndarray) -> np.ndarray:
        return balanced_subsets(cells[rows], NUM_SUBSETS, seed=setting.batch_seed + run)

    return _refit(setting, networks, weights_of, "worst_group_accuracy")


def linear_probe(setting: Setting, networks: Trained) -> Trained:
    """A last layer on the features of networks that stay as they are; E is 1.

    The penalty is that of highest accuracy on validation. Arguments as of `retrain_balanced`.
    """
    return _refit(setting, networks, lambda run, rows: np.ones((1, len(rows))), "accuracy")


def _refit(setting: Setting, networks: Trained, weights_of, metric: str) -> Trained:
    """Networks whose heads are the mean over the weightings, at the penalty of best metric."""
    data, head_at = setting.data, setting.model.head
    params, features_of = networks.params, jax.jit(_features, static_argnums=0)
    kernels, biases = (np.array(get_path(params, head_at)[leaf]) for leaf in ("kernel", "bias"))
    # one column of weights stands for the logits [-z, z], two for themselves
    half = np.array([-0.5, 0.5])[-biases.shape[1] :]
    trains, vals = setting.splits.train[setting.split_of_run], setting.splits.val
    by_run = [weights_of(run, rows) for run, rows in enumerate(trains)]
    most = max(int(weights.any(0).sum()) for weights in by_run)  # rows that any head of a run sees

    def of_run(run: int) -> None:
        weights, val = by_run[run], vals[setting.split_of_run[run]]
        # as many for all runs, which then share a program; what fills up weighs nothing
        kept = np.argsort(~weights.any(0), kind="stable")[:most]
        rows, weights = trains[run][kept], weights[:, kept]
        network = jax.tree.map(lambda leaf: leaf[run], networks)
        inputs = data.inputs[np.concatenate([rows, val])]
        features = np.asarray(features_of(setting.model, network, inputs))
        heads = fit_heads(
            features[: len(rows)],
            data.labels[rows],
            example_weights=np.tile(weights, (len(PENALTIES), 1)),
            l2=np.repeat(np.array(PENALTIES, np.float32), len(weights)),
        )
        kernel, bias = (
            np.asarray(leaf).reshape(len(PENALTIES), len(weights), -1).mean(1) for leaf in heads[:2]
        )
        preds = (kernel @ features[len(rows) :].T + bias > 0).astype(int)
        best = int(setting.rates(preds, val)[metric].argmax())
        kernels[run], biases[run] = kernel[best][:, None] * half, bias[best] * half

    of_run(0)  # compiles for all
    list(threaded(of_run, range(1, len(trains))))
    params = set_path(params, head_at, {"kernel": kernels, "bias": biases})
    trained = networks._replace(params=params)
    own = setting.splits.val[setting.split_of_run]
    return jax.tree.map(lambda leaf: leaf[None], trained._replace(val=setting.logits(trained, own)))


def balanced_subsets(cells: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Weights `[count, n]`: 1 for as many rows of each cell as the smallest has, else 0."""
    generator = np.random.default_rng(seed)
    present, sizes = np.unique(cells, return_counts=True)
    weights = np.zeros((count, len(cells)), np.float32)
    for own in weights:
        for cell in present:
            rows = np.flatnonzero(cells == cell)
            own[generator.choice(rows, sizes.min(), replace=False)] = 1
    return weights


def _features(model: Model, network: Trained, inputs) -> jax.Array:
    """What the last layer reads, `[n, D]`."""
    return predict(below_head(model), network.params, network.batch_stats, inputs)
