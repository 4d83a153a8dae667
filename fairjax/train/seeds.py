"""Whole trainings of one choice with several seeds: of a network, or of a classifier alone."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fairjax import trees
from fairjax.data import Dataset, Examples
from fairjax.models import Model, Weights, compiler_options
from fairjax.sharding import (
    candidate_mesh,
    dealing_order,
    everywhere,
    shard_candidates,
    spread,
    spread_out,
)
from fairjax.train.logits import population_logits
from fairjax.train.population import fit_population, init_population, map_chunks, replicate
from fairjax.train.predict import below_head, predict
from fairjax.train.recipe import Recipe
from fairjax.train.stream import fit_population_streamed, stream_map

ScoreFn = Callable[..., jax.Array]
"""`score_fn(logits [N, K], *, labels [N], group [N]) -> scalar`, larger is better, nan is none."""
Select = Literal["last", "best"]


class Tuned(NamedTuple):
    """S trained networks, on the host."""

    params: Any
    """Leaves `[S, ...]`, as `model.apply` takes them."""
    batch_stats: Any
    scores: np.ndarray
    """float32 `[S]`, of the validation split, larger is better."""
    learning_rate: float
    logits_fn: Callable[[str], np.ndarray]
    best: "Tuned | None" = None
    """The same trainings at the epochs that validate best, where they were asked for."""

    def logits(self, split: str) -> np.ndarray:
        """Of every network on a split, float32 `[S, N, K]`."""
        return self.logits_fn(split)

    def weights(self, seed: int = 0) -> tuple[Any, Any]:
        """Parameters and batch statistics of one of the S networks."""
        return jax.tree.map(lambda leaf: leaf[seed], (self.params, self.batch_stats))


def seed_keys(num_seeds: int, first: int = 0) -> Any:
    """PRNG keys `[S]` of the seeds `first`, `first + 1`, ..."""
    return jax.vmap(jax.random.key)(first + jnp.arange(num_seeds))


def train_seeds(
    model: Model,
    params: Any,
    batch_stats: Any,
    data: Dataset,
    recipe: Recipe,
    *,
    score_fn: ScoreFn,
    start_keys: Any,
    batch_keys: Any = None,
    learning_rates: Sequence[float] | None = None,
    rest: Any = None,
    bind: Callable[[Any, Any], Any] | None = None,
    select: Select = "last",
    also_best: bool = False,
    chunk_size: int = 1,
) -> Tuned:
    """Train the first seed with every learning rate, then the others with the best of them.

    Every seed has its own classifier, drawn anew, and its own order of examples. All runs are one
    population.

    Args:
      model: the network.
      params: what trains; the classifier under `model.head` among it is replaced by fresh ones.
      batch_stats: `{}` without batch norm.
      data: trains on "train"; learning rates and epochs are chosen on "val".
      recipe: how.
      score_fn: what the validation split judges by.
      start_keys: PRNG keys `[S]` of the classifiers, such as `seed_keys(3)`.
      batch_keys: of the orders of examples; `start_keys` if None.
      learning_rates: to choose from; the recipe's if None.
      rest: parameters that stay as they are.
      bind: `bind(params, rest)` gives what `model.apply` takes; None if `params` are all.
      select: "last" keeps the parameters of the last epoch, "best" those of the epoch that
        validates best.
      also_best: keep those of the best epoch as well, in `Tuned.best`, at the rate that `select`
        chose.
      chunk_size: runs that a device trains at the same time.

    Returns:
      `Tuned`, in the order of `start_keys`.

    Raises:
      ValueError: as the recipe and its sampler.
    """
    batch_keys = start_keys if batch_keys is None else batch_keys
    rates = np.asarray(
        [recipe.learning_rate] if learning_rates is None else learning_rates, np.float32
    )
    num_seeds = len(start_keys)
    most = max(len(rates), num_seeds - 1)
    kinds: tuple[Select, ...] = (select, "best") if also_best and select != "best" else (select,)
    trainer = _trainer(
        recipe.make_model(model),
        params,
        batch_stats,
        data,
        recipe,
        score_fn,
        rest,
        bind,
        kinds,
        chunk_size,
        most,
    )
    first = np.zeros(len(rates), int)
    kept = trainer(rates, start_keys[first], batch_keys[first])
    best = int(np.where(np.isnan(kept[0][0]), -np.inf, kept[0][0]).argmax())
    kept = _rows(kept, slice(best, best + 1))
    if num_seeds > 1:
        others = np.full(num_seeds - 1, rates[best])
        more = trainer(others, start_keys[1:], batch_keys[1:])
        kept = jax.tree.map(lambda one, other: np.concatenate([one, other]), kept, more)

    def tuned(scores, networks):
        params, batch_stats = networks
        logits_fn = lambda split: population_logits(
            model, params, batch_stats, data, split, data_bytes=recipe.data_bytes
        )
        return Tuned(params, batch_stats, scores, float(rates[best]), logits_fn)

    chosen, *at_best = (tuned(*of_kind) for of_kind in kept)
    return chosen._replace(best=(at_best[0] if at_best else chosen) if also_best else None)


def linear_probe(
    model: Model,
    weights: Weights,
    data: Dataset,
    recipe: Recipe,
    *,
    score_fn: ScoreFn,
    start_keys: Any,
    batch_keys: Any = None,
    learning_rates: Sequence[float] | None = None,
) -> Tuned:
    """Train only the classifier, on features that the frozen network computes once.

    Args:
      model: gives its features as `out["pooled"]` `[B, D]`, and classifies them by
        `params[model.head]`, `{"kernel" [D, K], "bias" [K]}`.
      weights: of the network; its batch statistics are used unchanged.
      data: as `train_seeds`; every split's features are computed once.
      recipe: of the classifier; no augmentation.
      score_fn: as `train_seeds`.
      start_keys: as `train_seeds`.
      batch_keys: as `train_seeds`.
      learning_rates: as `train_seeds`.

    Returns:
      `Tuned`, whose parameters are those of whole networks.

    Raises:
      ValueError: the network does not give its features, or has another kind of classifier.
    """
    params, batch_stats, _ = weights
    head = trees.flatten_named(_of_head(model, params, inside=True))
    kernel, bias = (f"{model.head}/{leaf}" for leaf in ("kernel", "bias"))
    if set(head) != {kernel, bias}:
        raise ValueError(
            f"a linear probe needs a classifier of {kernel} and {bias}, found {', '.join(head)}"
        )

    def classify(params, batch_stats, inputs, *, train=False, key=None):
        leaves = trees.flatten_named(params)
        return inputs @ leaves[kernel] + leaves[bias][None], {}, batch_stats

    features = _features(below_head(model), params, batch_stats, data, recipe)
    probe = model._replace(apply=classify, preprocess=None)
    trained = train_seeds(
        probe,
        _of_head(model, params, inside=True),
        {},
        dataclasses.replace(data, inputs=features),
        dataclasses.replace(recipe, augment=None, dtype="float32", checkpoint_blocks=False),
        score_fn=score_fn,
        start_keys=start_keys,
        batch_keys=batch_keys,
        learning_rates=learning_rates,
    )
    num_seeds = len(trained.scores)
    share = lambda leaf: np.broadcast_to(leaf, (num_seeds, *np.shape(leaf)))
    below = jax.tree.map(share, _of_head(model, params, inside=False))
    whole = trees.merge(below, trained.params)
    return trained._replace(params=whole, batch_stats=jax.tree.map(share, batch_stats))


def _features(model: Model, params: Any, batch_stats: Any, data: Dataset, recipe: Recipe):
    """What one network gives for the rows of all splits, float32 `[N, D]` in the set's order."""
    run = lambda inputs, params, batch_stats: predict(model, params, batch_stats, inputs)
    rows = np.concatenate(list(data.splits.values()))  # at once: lengths compile on their own
    whole = dataclasses.replace(data, splits={"train": rows, "val": rows[:0], "test": rows[:0]})
    found = stream_map(run, whole, "train", params, batch_stats, batch_bytes=recipe.data_bytes)
    features = np.zeros((len(data.inputs), *found.shape[1:]), np.float32)
    features[rows] = found
    return features


@functools.lru_cache(maxsize=16)
def _compiled_scores(model: Model, score_fn: ScoreFn, mesh: Any) -> Any:
    """`(params [P], batch_stats [P], active [P], val) -> [P]`."""

    def score(params, batch_stats, active, val: Examples):
        def one(network):
            logits = predict(model, network[0], network[1], val.inputs)
            return score_fn(logits, labels=val.labels, group=val.group)

        return map_chunks(one, (params, batch_stats), 1, active)

    return jax.jit(shard_candidates(score, mesh, num_mapped=3))


@functools.lru_cache(maxsize=16)
def _compiled_score_fn(score_fn: ScoreFn) -> Any:
    """`(logits [P, N, K], labels, group) -> [P]`."""
    one = lambda logits, labels, group: score_fn(logits, labels=labels, group=group)
    return jax.jit(jax.vmap(one, in_axes=(0, None, None)))


@functools.lru_cache(maxsize=16)
def _compiled_heads(model: Model) -> Any:
    """`(keys [P]) -> fresh classifiers [P]`, nested as in the parameters."""
    return jax.jit(jax.vmap(lambda key: _of_head(model, model.init(key)[0], inside=True)))


def _of_head(model: Model, params: Any, *, inside: bool) -> Any:
    """The classifier's part of the parameters, or everything else."""
    head, others = trees.partition(params, lambda name: name.startswith(f"{model.head}/"))
    return head if inside else others


def _rows(tree: Any, rows: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[rows], tree)


def _trainer(
    model, params, batch_stats, data, recipe, score_fn, rest, bind, kinds, chunk_size, most
):
    """`train(rates [n], start_keys [n], batch_keys [n]) -> [(scores [n], networks [n, ...])]`.

    One pair for each of `kinds`, "last" or "best". n is at most `most`; all calls run one program.
    """
    sampler = recipe.make_sampler(data)
    optimizer = recipe.make_optimizer(sampler.batches_per_epoch)
    num_devices = len(jax.devices())
    num_slots = -(-most // num_devices) * num_devices
    has_head = bool(_of_head(model, params, inside=True))
    others = _of_head(model, params, inside=False) if has_head else params
    slots = dealing_order(num_slots, num_devices)
    epoch, score = _epochs(
        model, data, recipe, sampler, optimizer, score_fn, rest, bind, chunk_size
    )

    @jax.jit
    def start(others, batch_stats, heads, rates, keys):
        return init_population(
            trees.merge(replicate(others, num_slots), heads),
            replicate(batch_stats, num_slots),
            optimizer,
            sampler,
            keys=keys,
            ema=recipe.ema_decay is not None,
            learning_rate=rates,
        )

    def run(rates, start_keys, batch_keys):
        own = slots[: len(rates)]
        place = np.zeros(num_slots, int)
        place[own] = np.arange(len(rates))
        active = np.isin(np.arange(num_slots), own)
        heads = _compiled_heads(model)(start_keys[place]) if has_head else {}
        states = start(others, batch_stats, heads, rates[place], batch_keys[place])
        best = newest = None
        for number in range(recipe.num_epochs):
            states, networks = epoch(states, active)
            if "best" not in kinds and number + 1 < recipe.num_epochs:
                continue
            newest = (score(networks, active), networks)
            if "best" in kinds:
                best = _copied(newest) if best is None else _better(best, newest)
        kept = [newest if kind == "last" else best for kind in kinds]
        # indexed on the host: on devices that is a collective, where one waits for the other
        return _rows(jax.tree.map(np.asarray, kept), own)

    return run


def _epochs(model, data, recipe, sampler, optimizer, score_fn, rest, bind, chunk_size):
    """`epoch(states, active) -> (states, networks)` and `score(networks, active) -> [P]`.

    Examples lie on the devices, or are streamed where they are too many.
    """
    mesh = candidate_mesh()
    step = recipe.make_step(model, optimizer, data, bind=bind)
    rest = everywhere(rest, mesh)
    options = {"chunk_size": chunk_size, "mesh": mesh, "augment": recipe.augment}

    def whole(train, rest):
        params = train.final_params if bind is None else bind(train.final_params, rest)
        return trees.stack_blocks(params), train.batch_stats

    networks_of = jax.jit(jax.vmap(whole, in_axes=(0, None)))
    if recipe.streams(data):

        def epoch(states, active):
            window = None if recipe.data_bytes is None else recipe.data_bytes // 2
            states, _ = fit_population_streamed(
                step,
                states,
                data,
                sampler,
                num_epochs=1,
                frozen=rest,
                active=active,
                window_bytes=window,
                **options,
            )
            return states, networks_of(states.train, rest)

        def score(networks, active):
            params, batch_stats = networks
            logits = population_logits(
                model, params, batch_stats, data, "val", data_bytes=recipe.data_bytes
            )
            val = data.splits["val"]
            return _compiled_score_fn(score_fn)(logits, data.labels[val], data.group[val])

        return epoch, score

    train, val = (everywhere(data.examples(split), mesh) for split in ("train", "val"))

    @functools.partial(jax.jit, donate_argnums=0, compiler_options=compiler_options(model))
    def epoch_on_device(states, active, train, rest):
        states, _ = fit_population(
            step, states, train, sampler, num_epochs=1, frozen=rest, active=active, **options
        )
        networks = jax.vmap(whole, in_axes=(0, None))(states.train, rest)
        # laid out alike whatever trains, so that all trainings are scored by one program
        return states, jax.lax.with_sharding_constraint(networks, spread_out(mesh))

    def epoch_here(states, active):
        states, active = spread((states, active), mesh)
        return epoch_on_device(states, active, train, rest)

    scores = _compiled_scores(model, score_fn, mesh)
    return epoch_here, lambda networks, active: scores(*networks, spread(active, mesh), val)


_copied = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))


@functools.partial(jax.jit, donate_argnums=0)
def _better(kept, newest):
    """Of each run the scores and networks that score higher; nan compares false."""
    better = jnp.isnan(kept[0]) | (newest[0] > kept[0])

    def newer(old, new):
        return jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return jax.tree.map(newer, kept, newest)
