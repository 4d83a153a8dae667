"""The training engine: a recipe, one step function, one loop, one population wrapper.

    recipe = Recipe(num_epochs=3, batch_size=32)
    sampler = recipe.make_sampler(data)
    optimizer = recipe.make_optimizer(sampler.batches_per_epoch)
    step = recipe.make_step(model, optimizer, data)
    state = init_fit(init_train(model, optimizer, key), sampler, key)
    state, history = jax.jit(lambda s, d: fit(step, s, d, sampler, num_epochs=3))(state, train)

Functions that take arrays are not jitted, and safe under jit, vmap and scan; those that take a
`Dataset` run on the host and compile what they need.
"""

from fairjax.train.heads import Heads as Heads
from fairjax.train.heads import fit_heads as fit_heads
from fairjax.train.logits import logits_of_rows as logits_of_rows
from fairjax.train.logits import population_logits as population_logits
from fairjax.train.loop import FitState as FitState
from fairjax.train.loop import fit as fit
from fairjax.train.loop import init_fit as init_fit
from fairjax.train.loop import measure_cells as measure_cells
from fairjax.train.network import network_trainer as network_trainer
from fairjax.train.network import train_network as train_network
from fairjax.train.population import fit_population as fit_population
from fairjax.train.population import init_population as init_population
from fairjax.train.population import map_chunks as map_chunks
from fairjax.train.population import replicate as replicate
from fairjax.train.predict import evaluation_batch_size as evaluation_batch_size
from fairjax.train.predict import predict as predict
from fairjax.train.recipe import Recipe as Recipe
from fairjax.train.seeds import Tuned as Tuned
from fairjax.train.seeds import linear_probe as linear_probe
from fairjax.train.seeds import seed_keys as seed_keys
from fairjax.train.seeds import train_seeds as train_seeds
from fairjax.train.step import Batch as Batch
from fairjax.train.step import Step as Step
from fairjax.train.step import TrainState as TrainState
from fairjax.train.step import init_train as init_train
from fairjax.train.step import make_step as make_step
from fairjax.train.step import start_train as start_train
from fairjax.train.stream import fit_population_streamed as fit_population_streamed
from fairjax.train.stream import stream_map as stream_map
