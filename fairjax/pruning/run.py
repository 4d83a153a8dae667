"""Pruning as one call: from a trained network to a smaller, fairer one.

pruned = prune(model, weights, data, recipe, layers=["features/13"], counts=[8, 16], key=key)
pruned.logits("test"), pruned.weights
"""

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key

from fairjax.data import Dataset
from fairjax.models import Model, Weights
from fairjax.pruning.evaluate import ACCURACIES, DISPARITIES
from fairjax.pruning.plans import check_layers, check_outputs, graph_of, num_channels
from fairjax.pruning.rounds import Pruned, PruneRounds, PruneState
from fairjax.pruning.rules import sensitive_plans
from fairjax.pruning.scores import SCORES, Score
from fairjax.train import Recipe
from fairjax.trees import unstack_blocks


def prune(
    model: Model,
    weights: Weights,
    data: Dataset,
    recipe: Recipe | None,
    *,
    layers: Sequence[str],
    counts: Sequence[int],
    key: Key[Array, ""],
    state: PruneState | None = None,
    on_round: Callable[[PruneState], None] | None = None,
    on_epoch: Callable[[], None] | None = None,
    **options: Any,
) -> Pruned:
    """Remove channels that carry the group, in rounds, while validation gets fairer.

    A round scores the channels, measures plans from every (layer, count, score, trade-off) on
    validation as one program, fine-tunes the best of them as a population and keeps the best of
    those if it beats the baseline and all rounds before.

    Args:
      model: the network, ours or one of `models.wrap_nnx` with a `channel_graph`.
      weights: the trained baseline.
      data: scores and fine-tunes on "train", chooses on "val"; "test" is not looked at.
      recipe: how every round fine-tunes; None leaves networks as pruning makes them.
      layers: names in `model.config.channel_graph` whose channels may go.
      counts: channels that a round may remove from one layer.
      key: PRNG key of the scores and the orders of examples.
      state: to go on from, as `on_round` was given it.
      on_round: called after every round, to save and to report.
      on_epoch: called after every epoch of fine-tuning.
      **options: others of `prune_rounds`.

    Returns:
      `Pruned`, whose `weights` the same `model.apply` runs; those of the baseline where no round
      made it better.

    Raises:
      ValueError: as `prune_rounds`, before anything is trained.

    Source: Kong et al., MICCAI 2024; choosing on validation, rounds and finalists are ours.
    """
    rounds = prune_rounds(model, weights, data, recipe, layers=layers, counts=counts, **options)
    state = rounds.init(weights) if state is None else state
    calls = {"on_round": on_round, "on_epoch": on_epoch}
    state = rounds.run(state, key=key, propose=sensitive_plans, **calls)
    return rounds.finish(state, weights, key=key)


def prune_rounds(
    model: Model,
    weights: Weights,
    data: Dataset,
    recipe: Recipe | None,
    *,
    layers: Sequence[str],
    counts: Sequence[int],
    scores: Sequence[Score] = ("snnl",),
    trade_offs: Sequence[float] = (0.0,),
    num_rounds: int = 1,
    num_finalists: int = 2,
    accuracy: str = "macro_f1",
    disparity: str = "eodd",
    max_accuracy_drop: float = 0.02,
) -> PruneRounds:
    """Set up and check rounds of pruning; nothing is trained.

    Args:
      model: see `prune`.
      weights: of the shapes of the baseline, trained or not.
      data: see `prune`.
      recipe: see `prune`.
      layers: see `prune`.
      counts: see `prune`.
      scores: what ranks channels; see `score_channels`.
      trade_offs: how much to protect channels that separate the labels, at least 0.
      num_rounds: at most.
      num_finalists: best plans of a round that are fine-tuned.
      accuracy: what FATE wants high, one of `ACCURACIES`; "accuracy" itself would reward calling
        everything the commonest class.
      disparity: what FATE wants low, one of `DISPARITIES`; the published code takes "eodd_scp".
      max_accuracy_drop: a round that loses more of the baseline's validation accuracy or macro F1,
        as a share in [0, 1], is not taken.

    Returns:
      `PruneRounds`.

    Raises:
      ValueError: unknown names, numbers out of range, weights or data that do not fit the network,
        or a validation split that cannot compare the groups.
    """
    rounds = PruneRounds(
        model,
        data,
        recipe,
        tuple(layers),
        tuple(counts),
        tuple(scores),
        tuple(trade_offs),
        num_rounds,
        num_finalists,
        accuracy,
        disparity,
        max_accuracy_drop,
    )
    _check_numbers(rounds)
    _check_names(rounds)
    _check_network(rounds, weights)
    if (recipe or Recipe()).streams(data):
        raise ValueError(
            f"scores and plans need the training and validation images of {data.name} on a device; "
            "they are more than half of its memory, or than data_bytes: use fewer or smaller ones"
        )
    check_cells(data, "val")
    in_group = np.bincount(data.group[data.splits["train"]], minlength=data.num_groups)
    if (in_group >= 2).sum() < 2:
        raise ValueError(
            "scores compare groups: the train split needs two groups of two examples each, its "
            f"groups have {', '.join(map(str, in_group))}"
        )
    if recipe is None:
        return rounds
    network = recipe.make_model(model)
    sampler = recipe.make_sampler(data)
    recipe.make_step(network, recipe.make_optimizer(sampler.batches_per_epoch), data)
    return rounds


def check_cells(data: Dataset, split: str) -> None:
    """Rates are compared between groups within a class, so two classes must be in every group.

    Raises:
      ValueError: fewer are; names a class and group without examples.
    """
    counts = data.cell_counts(split)
    if (counts > 0).all(1).sum() < 2:
        label, group = np.argwhere(counts == 0)[0]
        raise ValueError(
            f"the {split} split has fewer than two classes in every group (such as no "
            f"{data.label_names[label]} of {data.group_names[group]}): it needs more examples"
        )


def _check_numbers(rounds: PruneRounds) -> None:
    for name in ("num_rounds", "num_finalists"):
        _check_count(name, getattr(rounds, name))
    for count in rounds.counts:
        _check_count("counts", count)
    drop = rounds.max_accuracy_drop
    if not (isinstance(drop, numbers.Real) and 0 <= drop <= 1):
        raise ValueError(f"max_accuracy_drop must be in [0, 1], got {drop!r}")
    for trade_off in rounds.trade_offs:
        if not (isinstance(trade_off, numbers.Real) and 0 <= trade_off < math.inf):
            raise ValueError(f"trade_offs must be at least 0 and finite, got {trade_off!r}")
    for name in ("layers", "counts", "scores", "trade_offs"):
        values = getattr(rounds, name)
        if not values or len(set(values)) < len(values):
            raise ValueError(f"{name} must be at least one, each once, got {values}")
    sides = (rounds.layers, rounds.counts, rounds.scores, rounds.trade_offs)
    num_plans = math.prod(map(len, sides))
    if num_plans < rounds.num_finalists:
        raise ValueError(
            f"num_finalists is {rounds.num_finalists}, but there are {num_plans} plans to choose "
            "from: layers x counts x scores x trade_offs"
        )


def _check_count(name: str, value: Any) -> None:
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < 1:
        raise ValueError(f"{name} must be whole numbers of at least 1, got {value!r}")


def _check_names(rounds: PruneRounds) -> None:
    check_layers(rounds.layers, graph_of(rounds.model))
    for name, values, known in (
        ("scores", rounds.scores, SCORES),
        ("accuracy", (rounds.accuracy,), ACCURACIES),
        ("disparity", (rounds.disparity,), DISPARITIES),
    ):
        for value in values:
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}")


def _check_network(rounds: PruneRounds, weights: Weights) -> None:
    """Whether weights, data, layers and counts are those of one network."""
    model, data, graph = rounds.model, rounds.data, graph_of(rounds.model)
    params = unstack_blocks(weights.params)
    sizes = num_channels(params, {layer: graph[layer] for layer in rounds.layers})
    for layer, size in sizes.items():
        if max(rounds.counts) >= size:
            raise ValueError(
                f"counts must be below {size}, the number of channels of {layer}; "
                f"got {', '.join(map(str, rounds.counts))}"
            )

    def apply(params, batch_stats, inputs):
        inputs = inputs if model.preprocess is None else model.preprocess(inputs)
        return model.apply(params, batch_stats, inputs, train=False)[:2]

    inputs = jax.ShapeDtypeStruct((1, *data.inputs.shape[1:]), data.inputs.dtype)
    logits, out = jax.eval_shape(apply, params, weights.batch_stats, inputs)
    if logits.shape[-1] != data.num_classes:
        raise ValueError(
            f"the network gives {logits.shape[-1]} logits, but {data.name} has {data.num_classes} "
            "classes"
        )
    if {"snnl", "activation"} & set(rounds.scores):
        check_outputs(rounds.layers, out)
