"""What the benchmarks time compiles down to what a GPU's and a TPU's compiler takes."""

import functools
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from fairjax import metrics, pruning
from fairjax.data import Examples, lesions, pictures
from fairjax.fairbatch import fairbatch
from fairjax.fairtune import mask_space
from fairjax.losses import soft_nearest_neighbor_loss
from fairjax.models import image_model, logistic_regression
from fairjax.optimizers import make_optimizer
from fairjax.sampling import shuffled
from fairjax.train import (
    fit_population,
    heads,
    init_population,
    make_step,
    measure_cells,
    replicate,
    seed_keys,
)

ROWS = np.arange(16, dtype=np.int32)
IDS = {"labels": ROWS % 2, "group": ROWS // 8, "num_classes": 2, "num_groups": 2}
OPTIMIZER = make_optimizer("adamw", total_steps=4)


def images(size):
    return Examples(jnp.ones((16, size, size, 3)), jnp.asarray(ROWS % 2), jnp.asarray(ROWS // 8))


def masks_of_a_transformer():
    """FairTune's population: shared frozen weights, a mask each, bfloat16."""
    model = image_model("vit_micro", 2, image_size=16, width=12, depth=2, dtype="bfloat16")
    params = model.init(jax.random.key(0))[0]
    space, sampler = mask_space(params, "norm_attn_mlp"), shuffled(**IDS, batch_size=8)
    tunable, frozen = space.partition(params)
    step = make_step(model, OPTIMIZER, bind=space.bind)

    def epoch(masks, data, frozen):
        states = init_population(replicate(tunable, 4), {}, OPTIMIZER, sampler, keys=seed_keys(4))
        mask = jax.vmap(space.expand)(masks)
        how = {"num_epochs": 1, "mask": mask, "frozen": frozen, "chunk_size": 2}
        return fit_population(step, states, data, sampler, **how)

    return epoch, (jnp.ones((4, space.num_units), bool), images(16), frozen)


def convolutions():
    """A population of networks whose gradients of convolutions differ by platform."""
    model = image_model("resnet18", 2, image_size=32, width=8)
    params, stats = model.init(jax.random.key(0))
    sampler = shuffled(**IDS, batch_size=8)
    step = make_step(model, OPTIMIZER)

    def epoch(params, stats, data):
        many = replicate(params, 2), replicate(stats, 2)
        states = init_population(*many, OPTIMIZER, sampler, keys=seed_keys(2))
        return fit_population(step, states, data, sampler, num_epochs=1, chunk_size=1)

    return epoch, (params, stats, images(32))


def sweep_of_fairbatch():
    """The shares of cells adapt inside the step."""
    model, sampler = logistic_regression(3), fairbatch(**IDS, batch_size=4)
    measure = functools.partial(measure_cells, model, sampler)
    params = replicate(model.init(jax.random.key(0))[0], 5)

    def run(params, data):
        states = init_population(params, {}, OPTIMIZER, sampler, keys=seed_keys(5))
        step = make_step(model, OPTIMIZER)
        return fit_population(step, states, data, sampler, num_epochs=2, measure_fn=measure)

    return run, (params, images(1)._replace(inputs=jnp.ones((16, 3))))


def plans_of_a_network():
    """Many pruned networks from what they share."""
    model = image_model("vgg_micro", 2)
    params, stats = model.init(jax.random.key(0))
    count = params["features"]["13"]["bias"].size
    plans = pruning.PrunePlan({"features/13": jnp.ones((6, count), bool)})
    run = lambda *arrays: pruning.plan_logits(model, *arrays)
    return run, (params, stats, plans, jnp.ones((2, 64, 64, 3), jnp.uint8))


def scores_of_channels():
    """The soft nearest neighbour loss."""
    run = functools.partial(soft_nearest_neighbor_loss, num_classes=2)
    return run, (jnp.ones((16, 32)), jnp.asarray(ROWS // 8))


def intervals_of_metrics():
    """A bootstrap of every metric."""

    def run(logits, labels, group, key):
        ready = metrics.prepare(logits, labels=labels, group=group, num_groups=2)
        return metrics.bootstrap(
            lambda weights: metrics.evaluate(ready, weights), 16, key=key, num_replicates=50
        )

    ids = jnp.asarray(ROWS % 2), jnp.asarray(ROWS // 8)
    return run, (jnp.ones((16, 2)), *ids, jax.random.key(0))


@pytest.mark.parametrize(
    ("program", "host"),
    [
        (masks_of_a_transformer, "cpu"),
        (masks_of_a_transformer, "gpu"),  # which runs blocks without a loop
        (convolutions, "cpu"),
        (sweep_of_fairbatch, "cpu"),
        (plans_of_a_network, "cpu"),
        (scores_of_channels, "cpu"),
        (intervals_of_metrics, "cpu"),
    ],
)
def test_a_program_lowers_for_cuda_and_tpu(program, host, monkeypatch):
    run, args = program()
    monkeypatch.setattr(jax, "default_backend", lambda: host)
    exported = jax.export.export(jax.jit(run), platforms=["cuda", "tpu"])(*args)
    assert exported.platforms == ("cuda", "tpu") and exported.mlir_module_serialized


def test_what_must_be_exact_asks_accelerators_for_whole_float32_products(monkeypatch):
    # GPUs round the factors of float32 products to 10 bits, TPUs to 7, unless asked not to
    rows, target = jnp.arange(4), lesions.DOMAINS["target"]
    draw_lesions = functools.partial(lesions._draw_chunk, height=16, width=16)
    draw_pictures = functools.partial(pictures._draw_chunk, height=16, width=16)
    some_heads = heads.Heads(jnp.ones((2, 3)), jnp.ones(2), jnp.ones(2))
    for run, args in (
        (some_heads.logits, (jnp.ones((4, 3)),)),
        scores_of_channels(),
        intervals_of_metrics(),
        (lambda key, rows: draw_lesions(key, rows, domain=target), (jax.random.key(0), rows)),
        (draw_pictures, (jax.random.key(0), rows)),
    ):
        text = jax.jit(run).trace(*args).lower(lowering_platforms=("cuda",)).as_text()
        products = [line for line in text.splitlines() if "dot_general" in line]
        assert products and all("HIGHEST" in line for line in products)
    config: Any = jax.config  # of which types know nothing
    seen, fit_heads = [], heads._minimise
    record = lambda *args, **how: (
        seen.append(config.jax_default_matmul_precision),
        fit_heads(*args, **how),
    )[1]
    monkeypatch.setattr(heads, "_minimise", record)
    heads.fit_heads(np.eye(4), ROWS[:4] % 2, example_weights=np.ones((1, 4)))
    assert seen == ["highest"]
