"""Stage 2 of `experiments.fairtune`: every row of the table trained with all seeds."""

import dataclasses
import functools
import shutil
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.cli import progress, say
from experiments.fairtune_stages import Task
from experiments.files import load_arrays, replacing, save_arrays
from experiments.run import Run
from fairjax.fairtune import MaskSpace, mask_space, mask_space_from_rules
from fairjax.models import save_weights
from fairjax.sharding import shard_candidates
from fairjax.train import fit_population, init_fit, map_chunks, start_train
from fairjax.trees import stack_blocks

PROBE_RATES = (1e-4, 1.0)
PROBE_EPOCHS = 50


class Row(NamedTuple):
    """One row of the table, trained with S seeds."""

    values: Any
    """float32 `[S]`, first objective on the validation split."""
    logits: Any
    """float32 `[S, N, K]`, of the test split."""
    learning_rate: Any
    percent: Any = None
    """Share of the parameters that were trained."""
    network: Any = None
    """Parameters and batch statistics of the first seed."""


class Networks(NamedTuple):
    """Functions compiled once for all rows; `networks` are parameters and statistics `[P, ...]`."""

    measure: Any
    """`measure(networks, active [P], val) -> [P]`, the first objective."""
    logits: Any
    """`logits(networks, inputs) -> [P, N, K]`."""
    heads: Any
    """`heads(seeds [P])`, fresh classifiers."""


def train_rows(
    task: Task,
    space: MaskSpace,
    masks: np.ndarray,
    rates: np.ndarray,
    params: Any,
    batch_stats: Any,
    run: Run,
) -> tuple[dict[str, Row], int]:
    """All rows, and which of the finalists `masks [n, M]` with `rates [n]` is the row `fairtune`.

    Rows that an interrupted run finished are read from its folder.
    """
    config, no_bits = task.config, np.zeros(0, bool)
    other_rates = middle_rates(config.learning_rates, config.num_rates)
    full, linear = (mask_space(params, name) for name in ("full", "linear"))
    plan = {
        "full": (full, no_bits, other_rates),
        "linear": (linear, no_bits, middle_rates(PROBE_RATES, config.num_rates)),
        "all_on": (space, np.ones(space.num_units, bool), other_rates),
    }
    finalists = [f"finalist_{i + 1}" for i in range(len(masks))]
    plan |= {
        name: (space, mask, np.array([rate]))
        for name, mask, rate in zip(finalists, masks, rates, strict=True)
    }
    rows, nets = {}, compile_networks(task)
    bar = progress(len(plan), "rows")
    for name, (row_space, row_mask, row_rates) in plan.items():
        path = run.folder / f"{name}.npz"
        if not path.exists():
            began, percent = time.perf_counter(), row_space.describe(row_mask).percent
            if name == "linear":
                trained = train_probe(task, nets, row_rates, params, batch_stats)
            else:
                trained = train_row(
                    task, nets, row_space, row_mask, row_rates, params, batch_stats,
                    config.num_epochs,
                )  # fmt: skip
            row = trained._replace(percent=percent, network=None)
            if name in finalists:
                with replacing(run.folder / f"{name}.safetensors") as partial:
                    save_weights(partial, task.model, *trained.network)
            save_arrays(path, **{k: v for k, v in row._asdict().items() if v is not None})
            line = (
                f"{name}: learning rate {row.learning_rate:.1e}, validation "
                f"{row.values.mean():.4f}, {time.perf_counter() - began:.0f} s"
            )
            say(line)
            run.log({"row": name, "line": line})
            run.may_stop()
        bar.update()
        rows[name] = Row(**load_arrays(path))
    bar.close()
    candidates = [rows.pop(name) for name in finalists]
    means = [row.values.mean() * (1 if task.maximize[0] else -1) for row in candidates]
    best = int(np.where(np.isnan(means), -np.inf, means).argmax())
    rows["fairtune"] = candidates[best]
    shutil.copyfile(
        run.folder / f"{finalists[best]}.safetensors", run.folder / "fairtune.safetensors"
    )
    return rows, best


def compile_networks(task: Task) -> Networks:
    def measure(networks, active, val):
        return map_chunks(
            lambda network: task.measure(network[0], network[1], val)[0], networks, 1, active
        )

    def logits(networks, inputs):
        return jax.lax.map(lambda network: task.logits(network[0], network[1], inputs), networks)

    heads = jax.vmap(lambda seed: task.model.init(jax.random.key(seed))[0]["head"])
    return Networks(
        jax.jit(shard_candidates(measure, task.mesh, num_mapped=2)),
        jax.jit(shard_candidates(logits, task.mesh)),
        jax.jit(heads),
    )


def middle_rates(bounds: tuple[float, float], count: int) -> np.ndarray:
    """`count` learning rates evenly inside a range, by their logarithms."""
    return np.geomspace(*bounds, count + 2)[1:-1]


def train_probe(
    task: Task, nets: Networks, rates: np.ndarray, params: Any, batch_stats: Any
) -> Row:
    """The linear probe: a classifier on frozen features, which are computed only once."""

    def pooled(params, batch_stats, inputs, *, train=False, key=None):
        _, out, _ = task.model.apply(params, batch_stats, inputs, train=False)
        return out["pooled"], out, batch_stats

    def classify(params, batch_stats, inputs, *, train=False, key=None):
        head = params["head"]
        return inputs @ head["kernel"] + head["bias"][None], {}, batch_stats

    below = task._replace(model=task.model._replace(apply=pooled))
    features = jax.jit(below.logits)(params, batch_stats, jnp.asarray(task.dataset.inputs))
    dataset = dataclasses.replace(task.dataset, inputs=np.asarray(features))
    probe = task._replace(
        model=task.model._replace(apply=classify),
        dataset=dataset,
        train=task.everywhere(dataset.examples("train")),
        val=task.everywhere(dataset.examples("val")),
        augment=None,
        preprocess=None,
    )
    head = {"head": params["head"]}
    space = mask_space_from_rules(head, {".*": "trained"}, name="linear")
    nets = compile_networks(probe)._replace(heads=nets.heads)
    return train_row(probe, nets, space, np.zeros(0, bool), rates, head, {}, PROBE_EPOCHS)


def train_row(
    task: Task,
    nets: Networks,
    space: MaskSpace,
    mask: np.ndarray,
    rates: np.ndarray,
    params: Any,
    batch_stats: Any,
    num_epochs: int,
) -> Row:
    """The first seed with every learning rate, then the other seeds with the best of them."""
    num_devices, others = task.mesh.size, np.arange(1, task.config.num_seeds)
    num_slots = -(-max(len(rates), len(others)) // num_devices) * num_devices
    train = make_trainer(task, nets, space, mask, params, batch_stats, num_epochs, num_slots)
    values, networks = train(rates, np.zeros(len(rates), int))
    scores = values * (1 if task.maximize[0] else -1)
    best = int(np.where(np.isnan(scores), -np.inf, scores).argmax())
    values, networks = values[best:][:1], jax.tree.map(lambda leaf: leaf[best:][:1], networks)
    if len(others):
        more, other_networks = train(np.full(len(others), rates[best]), others)
        values = np.concatenate([values, more])
        networks = jax.tree.map(
            lambda one, other: np.concatenate([one, other]), networks, other_networks
        )
    inputs = jnp.asarray(task.dataset.examples("test").inputs)
    num_seeds = len(values)
    rows = np.arange(-(-num_seeds // num_devices) * num_devices) % num_seeds  # a share for each
    logits = nets.logits(jax.tree.map(lambda leaf: leaf[rows], networks), inputs)
    return Row(
        values,
        np.asarray(logits)[:num_seeds],
        np.float32(rates[best]),
        network=jax.tree.map(lambda leaf: leaf[0], networks),
    )


def make_trainer(task, nets, space, mask, params, batch_stats, num_epochs, num_slots):
    """`train(rates [n], seeds [n]) -> (values [n], networks [n, ...])`, n at most `num_slots`.

    All of them train as one population, with gradients only for what `mask` trains. Every seed has
    its own classifier and order of examples.
    """
    config, optimizer = task.config, task.optimizer(num_epochs)
    sign = 1 if task.maximize[0] else -1
    trained, rest = space.split(params, mask)
    step, shared_rest = task.step(optimizer, space), task.everywhere(rest)

    @jax.jit
    def start(trained, batch_stats, heads, rates, seeds):
        def one(head, rate, seed):
            train = start_train(
                {**trained, "head": head}, batch_stats, optimizer, learning_rate=rate
            )
            return init_fit(train, task.sampler, jax.random.key(seed))

        return jax.vmap(one)(heads, rates, seeds)

    @functools.partial(jax.jit, donate_argnums=0)
    def epoch(states, active, data, rest):
        states, _ = fit_population(
            step,
            states,
            data,
            task.sampler,
            frozen=rest,
            active=active,
            chunk_size=config.chunk_size or 1,
            mesh=task.mesh,
            num_epochs=1,
            augment=task.augment,
        )

        def whole(train):
            return stack_blocks(space.bind(train.params, rest)), train.batch_stats

        return states, jax.vmap(whole)(states.train)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def keep_better(kept, newest):
        # nan compares false, so a diverged epoch cannot replace a sound one
        better = jnp.isnan(kept[0]) | (sign * newest[0] > sign * kept[0])

        def newer(old, new):
            return jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        return jax.tree.map(newer, kept, newest)

    # dealt out, so that every device has its share of the runs
    slots = np.argsort(np.argsort(np.arange(num_slots) % task.mesh.size, kind="stable"))

    def train(rates, seeds):
        own = slots[: len(rates)]
        active = np.zeros(num_slots, bool)
        padded = np.zeros(num_slots, np.float32), np.zeros(num_slots, np.int32)
        active[own], padded[0][own], padded[1][own] = True, rates, seeds
        states = start(trained, batch_stats, nets.heads(padded[1]), *padded)
        states, active = task.spread((states, active))
        kept = None
        for number in range(num_epochs):
            states, networks = epoch(states, active, task.train, shared_rest)
            if config.select == "last" and number + 1 < num_epochs:
                continue
            newest = (nets.measure(networks, active, task.val), networks)
            kept = newest if kept is None else keep_better(kept, newest)
        # indexed on the host: on devices that is a collective, where one waits for the other
        return jax.tree.map(lambda leaf: np.asarray(leaf)[own], kept)

    return train
