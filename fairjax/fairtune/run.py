"""FairTune as two calls: search a mask by validation fairness, then train the network with it.

found = search_masks(model, weights, data, recipe, space="norm_attn_mlp", key=key)
tuned = refit(model, weights, data, recipe, found, num_seeds=3)
tuned.logits("test"), tuned.weights(0)
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from fairjax.data import Dataset
from fairjax.fairtune.found import Choice, Found
from fairjax.fairtune.objectives import Objective
from fairjax.fairtune.options import PLAN, choose, planned_bind
from fairjax.fairtune.setup import mask_search
from fairjax.fairtune.tune import (
    TuneState,
)
from fairjax.models import Model, Weights
from fairjax.train import (
    Recipe,
    Tuned,
    seed_keys,
    train_seeds,
)
from fairjax.trees import unstack_blocks


def search_masks(
    model: Model,
    weights: Weights,
    data: Dataset,
    recipe: Recipe,
    *,
    key: Any,
    state: TuneState | None = None,
    on_round: Callable[[TuneState], None] | None = None,
    **options: Any,
) -> Found:
    """Search which parts of a pre-trained network to fine-tune, by validation fairness.

    Candidates are masks and learning rates, and values of `options` such as samplers, losses and
    pruning plans; a population of them trains as one program, those that validate badly stop early,
    and new ones take their places.

    Args:
      model: the network, ours or one of `models.wrap_nnx` and `models.wrap_linen`.
      weights: pre-trained, with a fresh classifier.
      data: trains on "train", validates on "val"; "test" is not looked at.
      recipe: how candidates are trained; its learning rate is not used.
      key: PRNG key of the search and of the order of examples, which all candidates share.
      state: to go on from, as `on_round` was given it.
      on_round: called before every round and at the end, to save and to report; the state's
        population is only there until it returns.
      **options: of `mask_search`.

    Returns:
      `Found`. Give it to `refit`.

    Raises:
      ValueError: as `mask_search`; or no trial was completed.

    Source: Dutt et al., ICLR 2024, stage 1; early stopping by successive halving is ours.
    """
    search = mask_search(model, weights, data, recipe, key=key, **options)
    return search.run(state=state, on_round=on_round)


def refit(
    model: Model,
    weights: Weights,
    data: Dataset,
    recipe: Recipe,
    found: Found,
    *,
    num_seeds: int = 3,
    num_finalists: int = 1,
    **options: Any,
) -> Tuned:
    """Train the network with what a search found, and nothing below the lowest trained block.

    Args:
      model: as in the search.
      weights: as in the search.
      data: as in the search.
      recipe: as in the search.
      found: from `search_masks`.
      num_seeds: S, each with its own classifier and order of examples.
      num_finalists: best trials that are trained with all seeds; the one whose mean over seeds
        validates best is returned. The best of many noisy values is too good to be true.
      **options: of `refit_choice`.

    Returns:
      `Tuned`: S networks, `logits(split)` and `weights(seed)`.

    Source: Dutt et al., ICLR 2024, stage 2; several seeds and finalists are ours.
    """
    chosen = found.objectives[0]
    tuned = [
        refit_choice(model, weights, data, recipe, choice, chosen, num_seeds=num_seeds, **options)
        for choice in found.best(num_finalists)
    ]
    means = np.array([one.scores.mean() for one in tuned])
    return tuned[int(np.where(np.isnan(means), -np.inf, means).argmax())]


def refit_choice(
    model: Model,
    weights: Weights,
    data: Dataset,
    recipe: Recipe,
    choice: Choice,
    objective: Objective,
    *,
    num_seeds: int = 3,
    start_keys: Any = None,
    batch_keys: Any = None,
    **options: Any,
) -> Tuned:
    """Train one mask for good: the first seed with each of its rates, the others with the best.

    Args:
      model: the network.
      weights: pre-trained.
      data: trains on "train"; rates (and epochs) are chosen on "val".
      recipe: how.
      choice: what changes, the learning rates to try, and options that replace the recipe's.
      objective: judges the validation split.
      num_seeds: S.
      start_keys: PRNG keys `[S]` of the classifiers; of the seeds 0 to S - 1 if None.
      batch_keys: of the orders of examples; as `start_keys` if None.
      **options: `select` and `chunk_size` of `train.train_seeds`.

    Returns:
      `Tuned`. Channels that a plan prunes are 0 in it; `pruning.slice_channels` removes them.
    """
    recipe, params, bind = choose(recipe, choice.options), weights.params, choice.space.bind
    if PLAN in choice.options:
        params, bind = unstack_blocks(params), planned_bind(bind, model)
    trained, rest = choice.space.split(params, choice.mask)
    if PLAN in choice.options:
        rest = (rest, choice.options[PLAN])
    return train_seeds(
        model,
        trained,
        weights.batch_stats,
        data,
        recipe,
        score_fn=objective.score,
        start_keys=seed_keys(num_seeds) if start_keys is None else start_keys,
        batch_keys=batch_keys,
        learning_rates=choice.learning_rates,
        rest=rest,
        bind=bind,
        **options,
    )
