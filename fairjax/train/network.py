"""The whole training of one network, from a recipe."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fairjax.data import Dataset
from fairjax.models import Model, Weights, compiler_options
from fairjax.train.loop import fit, init_fit
from fairjax.train.recipe import Recipe
from fairjax.train.step import start_train
from fairjax.train.stream import fit_population_streamed


def train_network(
    model: Model,
    weights: Weights,
    data: Dataset,
    recipe: Recipe,
    *,
    key: Any,
    on_epoch: Callable[[float], None] | None = None,
) -> Weights:
    """Train all of one network, from the given weights and with the classifier among them.

    Args:
      model: the network.
      weights: what it starts from; left as they are.
      data: trains on "train".
      recipe: how.
      key: PRNG key of the order of examples.
      on_epoch: called after every epoch with its mean loss.

    Returns:
      `Weights` of the last epoch, with the notes of the given ones.

    Raises:
      ValueError: as the recipe and its sampler.
    """
    return network_trainer(model, data, recipe)(weights, key=key, on_epoch=on_epoch)


def network_trainer(model: Model, data: Dataset, recipe: Recipe) -> Callable[..., Weights]:
    """`train_network` for several trainings that differ in weights and key, compiled once.

    Args:
      model: see `train_network`.
      data: see `train_network`.
      recipe: see `train_network`.

    Returns:
      `trainer(weights, *, key, on_epoch=None)`, which returns what `train_network` does.

    Raises:
      ValueError: as the recipe and its sampler.
    """
    sampler = recipe.make_sampler(data)
    optimizer = recipe.make_optimizer(sampler.batches_per_epoch)
    step = recipe.make_step(recipe.make_model(model), optimizer, data)
    window = None if recipe.data_bytes is None else recipe.data_bytes // 2

    @jax.jit
    def start(params, batch_stats, key):
        params, batch_stats = jax.tree.map(jnp.copy, (params, batch_stats))  # `epoch` donates them
        train = start_train(params, batch_stats, optimizer, ema=recipe.ema_decay is not None)
        return init_fit(train, sampler, key)

    @functools.partial(jax.jit, donate_argnums=0, compiler_options=compiler_options(model))
    def epoch(state, train):
        return fit(step, state, train, sampler, num_epochs=1, augment=recipe.augment)

    def streamed_epoch(state, data):
        alone = jax.tree.map(lambda leaf: leaf[None], state)
        results = fit_population_streamed(
            step, alone, data, sampler, num_epochs=1, augment=recipe.augment, window_bytes=window
        )
        return jax.tree.map(lambda leaf: leaf[0], results)

    def trainer(
        weights: Weights, *, key: Any, on_epoch: Callable[[float], None] | None = None
    ) -> Weights:
        if recipe.streams(data):
            run, train = streamed_epoch, data
        else:
            run, train = epoch, jax.tree.map(jnp.asarray, data.examples("train"))
        state = start(weights.params, weights.batch_stats, key)
        for _ in range(recipe.num_epochs):
            state, history = run(state, train)
            if on_epoch is not None:
                on_epoch(float(history["loss"][0]))
        params, batch_stats = jax.device_get((state.train.final_params, state.train.batch_stats))
        return Weights(params, batch_stats, weights.notes)

    return trainer
