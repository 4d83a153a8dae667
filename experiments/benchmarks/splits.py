"""What splits cost as an axis: runs on splits of their own beside runs that differ by seed.

    python -m experiments.benchmark splits

Both sides train logistic regression with FairBatch (equal opportunity, measured rates) on Adult: 20
runs as one population, "theirs" all on one split with 20 seeds, "ours" on 10 splits with 2 seeds
each. A minute on two idle CPU cores.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.timing import claim, compile_seconds, paired
from fairjax.data import load_adult, resplits
from fairjax.fairbatch import fairbatch
from fairjax.models import logistic_regression
from fairjax.sampling import arrange_splits
from fairjax.train import Recipe, fit_population, init_population, measure_cells, seed_keys


def claims(quick: bool = False) -> Iterator[dict[str, Any]]:
    """One row."""
    num_splits, num_seeds, repeats = (2, 1, 1) if quick else (10, 2, 5)
    data = load_adult("sex", split=(0.5, 0.1, 0.4))
    ids = {"labels": data.labels, "group": data.group, "num_classes": 2, "num_groups": 2}
    splits, num_runs = resplits(data, num_splits).train, num_splits * num_seeds
    recipe = Recipe(num_epochs=5, batch_size=500, learning_rate=0.005, schedule="constant")
    sampler = fairbatch(**ids, batch_size=500, signal="rate", step_size=0.04, decay=0.5)
    sampler = sampler._replace(batches_per_epoch=splits.shape[1] // 500)
    optimizer = recipe.make_optimizer(sampler.batches_per_epoch)
    model = logistic_regression(data.inputs.shape[1])
    step = recipe.make_step(model, optimizer, data)
    examples = jax.tree.map(jnp.asarray, data.rows(np.arange(len(data.labels))))
    keys = seed_keys(num_runs)
    params = jax.vmap(lambda key: model.init(key)[0])(keys)
    measure = functools.partial(measure_cells, model, sampler)

    @jax.jit
    def train(states, examples):
        how = {"num_epochs": recipe.num_epochs, "measure_fn": measure}
        return fit_population(step, states, examples, sampler, **how)[0].train.params

    def start(rows: np.ndarray):
        choices = {"rows": arrange_splits(**ids, rows=rows)}
        init = functools.partial(init_population, params, {}, optimizer, sampler, keys=keys)
        return jax.jit(lambda choices: init(choices=choices))(choices)

    own = start(np.repeat(splits, num_seeds, axis=0))
    shared = start(np.repeat(splits[:1], num_runs, axis=0))
    compile_s = compile_seconds(train, own, examples)
    yield claim(
        "splits_as_an_axis",
        paired(lambda: train(own, examples), lambda: train(shared, examples), repeats=repeats),
        compile_s=compile_s,
        notes=f"{num_runs} runs x {recipe.num_epochs} epochs; theirs: the same runs on one split",
    )
