"""A search over masks and learning rates, set up: what it trains, from what, on which data."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from fairjax.data import Dataset, Examples
from fairjax.fairtune.found import Found
from fairjax.fairtune.objectives import Objective, check_objectives, objective
from fairjax.fairtune.search import (
    LEARNING_RATES,
    Search,
    directions_of,
    evolution,
    random_search,
)
from fairjax.fairtune.spaces import MaskSpace, mask_space
from fairjax.fairtune.studies import nsga2, tpe
from fairjax.fairtune.tune import (
    Rungs,
    TuneState,
    init_tune,
    successive_halving,
    tune,
)
from fairjax.memory import plan_chunk_size
from fairjax.models import Model, Weights, kernel_gate
from fairjax.sharding import (
    candidate_mesh,
    everywhere,
    shard_candidates,
    spread,
)
from fairjax.train import (
    Recipe,
    fit_population,
    fit_population_streamed,
    init_fit,
    map_chunks,
    predict,
    start_train,
    stream_map,
)

SearchName = Literal["tpe", "random", "evolution", "nsga2"]


class MaskSearch(NamedTuple):
    """A search that is set up and checked, made by `mask_search`."""

    init: Callable[[], TuneState]
    """`init() -> state` before the first round; also the shape of a saved one."""
    run: Callable[..., Found]
    """`run(state=None, on_round=None) -> Found`; see `search_masks`."""
    lower: Callable[..., Any]
    """`lower(num_candidates, device=None)`: the program that trains so many at a time, lowered for
    a device that need not be there."""
    space: MaskSpace
    objectives: tuple[Objective, ...]
    rungs: Rungs


def mask_search(
    model: Model,
    weights: Weights,
    data: Dataset,
    recipe: Recipe,
    *,
    key: Any,
    space: str | MaskSpace = "norm_attn_mlp",
    objective: str | tuple[str, ...] = "worst_group_auc",
    search: SearchName | Search = "tpe",
    num_trials: int = 12,
    num_slots: int = 8,
    learning_rates: tuple[float, float] = LEARNING_RATES,
    first_rung: int | None = 1,
    num_brackets: int = 1,
    first_masks: Sequence[np.ndarray] = (),
    storage: str | None = None,
    worker: int = 0,
    chunk_size: int | None = None,
) -> MaskSearch:
    """Set up and check what `search_masks` runs; nothing is trained or compiled yet.

    Args:
      model: see `search_masks`.
      weights: see `search_masks`; from `add_lora` for the space "lora".
      data: see `search_masks`.
      recipe: see `search_masks`.
      key: see `search_masks`.
      space: name of a mask space (`mask_space`), or one of your own.
      objective: one or several metrics (`fairtune.objective`).
      search: what proposes candidates, by name or one of your own.
      num_trials: T, candidates in all.
      num_slots: P, candidates trained as one population.
      learning_rates: range, log-uniform; a search of your own has its own.
      first_rung: epochs before candidates are first compared, of which the best third goes on;
        None stops nobody early.
      num_brackets: more than one is Hyperband.
      first_masks: bool `[U]` each, tried first (tpe, nsga2); see `guided_masks`.
      storage: see `optuna_search` (tpe, nsga2).
      worker: see `optuna_search`.
      chunk_size: candidates that a device trains at the same time; None lets the compiler say what
        fits into memory.

    Returns:
      `MaskSearch`.

    Raises:
      ValueError: unknown names, numbers out of range, an objective that the validation split does
        not define for every group, or options that the search does not take.
    """
    names = (objective,) if isinstance(objective, str) else tuple(objective)
    objectives = tuple(_objective(name, num_groups=data.num_groups) for name in names)
    val = data.splits["val"]
    check_objectives(
        objectives,
        labels=data.labels[val],
        group=data.group[val],
        group_names=data.group_names,
        num_classes=data.num_classes,
    )
    if isinstance(space, str):
        space = mask_space(weights.params, space, head=model.head)
    first = recipe.num_epochs if first_rung is None else first_rung
    rungs = successive_halving(recipe.num_epochs, first=first, num_brackets=num_brackets)
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1 or None, got {chunk_size}")
    if num_trials < 1 or num_slots < 1:
        raise ValueError(f"need at least one trial and slot, got {num_trials} and {num_slots}")
    facts = {} if storage is None else {"data": data.fingerprint, "objective": ", ".join(names)}
    studied = {"storage": storage, "fingerprint": facts, "worker": worker}
    studied |= {"first_masks": first_masks}
    chosen = _make_search(search, space, objectives, learning_rates, studied)
    if len(objectives) > 1 and len(rungs.epochs) > 1:
        raise ValueError("early stopping needs a single objective; set first_rung=None")
    program = _make_program(model, weights, data, recipe, space, objectives, rungs, key)
    sizes = {"num_trials": num_trials, "num_slots": num_slots}
    return _assemble(chosen, program, rungs, sizes, chunk_size)


_objective = objective
_SEARCHES: dict[str, Callable[..., Search]] = {
    "tpe": tpe,
    "random": random_search,
    "evolution": evolution,
    "nsga2": nsga2,
}


def _make_search(search, space, objectives, learning_rates, studied) -> Search:
    """The search of that name, or the given one if it fits; `studied` are options of Optuna's."""
    if isinstance(search, Search):
        name = "a search of your own"
        wanted = (space.num_units, directions_of(objectives))
        if (search.num_units, tuple(search.maximize)) != wanted:
            raise ValueError(
                f"the search must propose masks of {wanted[0]} units and maximise {wanted[1]}, "
                f"got {search.num_units} and {search.maximize}"
            )
    elif search not in _SEARCHES:
        raise ValueError(f"search must be one of {', '.join(_SEARCHES)}; got {search!r}")
    elif search in ("tpe", "nsga2"):
        return _SEARCHES[search](space, objectives, learning_rates=learning_rates, **studied)
    else:
        name = search
    if studied["storage"] is not None or studied["worker"] or len(studied["first_masks"]):
        raise ValueError(f"storage, worker and first_masks go with tpe or nsga2, not with {name}")
    if isinstance(search, Search):
        return search
    return _SEARCHES[search](space, objectives, learning_rates=learning_rates)


class _Program(NamedTuple):
    """What candidates start from and how they train; arrays are arguments of its functions."""

    space: MaskSpace
    objectives: tuple[Objective, ...]
    start_fn: Callable[..., Any]
    """`start_fn(mask [U], rate, (tunable, batch_stats)) -> state`."""
    advance: Any
    """`advance(states [P], masks [P, U], active [P], train, (val, frozen), chunk_size=, mesh=)`
    `-> (states, values [P, M])`, jitted."""
    stream: Any
    """The same on the host, where examples are too many for a device:
    `stream(states, masks, active, data, frozen, chunk_size=, mesh=)`; None where they are not."""
    start_data: Any
    frozen: Any
    data: Dataset
    seed: int


def _make_program(model, weights, data, recipe, space, objectives, rungs, key) -> _Program:
    sampler = recipe.make_sampler(data)
    optimizer = recipe.make_optimizer(sampler.batches_per_epoch)
    network = recipe.make_model(model)
    step = recipe.make_step(network, optimizer, data, bind=space.bind, gate=kernel_gate(network))
    tunable, frozen = space.partition(weights.params)
    num_epochs = int(rungs.epochs[0])

    def start_fn(mask, rate, shared):
        del mask
        params, batch_stats = shared
        ema = recipe.ema_decay is not None
        train = start_train(params, batch_stats, optimizer, ema=ema, learning_rate=rate)
        return init_fit(train, sampler, key)

    def measure_one(train, shared):
        val, frozen = shared
        params = space.bind(train.final_params, frozen)
        logits = predict(network, params, train.batch_stats, val.inputs)
        ids = {"labels": val.labels, "group": val.group}
        return jnp.stack([chosen.measure(logits, **ids) for chosen in objectives])

    def measure_all(trains, active, shared):
        return map_chunks(lambda train: measure_one(train, shared), trains, 1, active)

    @functools.partial(jax.jit, static_argnames=("chunk_size", "mesh"), donate_argnums=0)
    def advance(states, masks, active, train, shared, *, chunk_size, mesh):
        states, _ = fit_population(
            step,
            states,
            train,
            sampler,
            num_epochs=num_epochs,
            mask=jax.vmap(space.expand)(masks),
            frozen=shared[1],
            active=active,
            chunk_size=chunk_size,
            mesh=mesh,
            # all draw the same batches; drawn once they need less memory, but one candidate after
            # another is faster where its whole epoch stays in the cache
            shared_batches=chunk_size > 1,
            augment=recipe.augment,
        )
        measured = shard_candidates(measure_all, mesh, num_mapped=2)
        return states, measured(states.train, active, shared)

    seed = int(np.asarray(jax.random.key_data(key)).reshape(-1)[-1])
    start_data = (tunable, weights.batch_stats)
    stream = None
    if recipe.streams(data):
        stream = _make_stream(network, step, sampler, recipe, space, objectives, num_epochs)
    return _Program(space, objectives, start_fn, advance, stream, start_data, frozen, data, seed)


def _make_stream(network, step, sampler, recipe, space, objectives, num_epochs):
    """`advance` on examples that are read while candidates train and validate."""
    expand = jax.jit(jax.vmap(space.expand))
    window = None if recipe.data_bytes is None else recipe.data_bytes // 2

    @functools.partial(jax.jit, static_argnames="mesh")
    def logits_of(inputs, trains, active, frozen, mesh):
        def one(train, frozen, inputs):
            params = space.bind(train.final_params, frozen)
            return predict(network, params, train.batch_stats, inputs)

        def every(trains, active, frozen, inputs):
            return map_chunks(lambda train: one(train, frozen, inputs), trains, 1, active)

        return shard_candidates(every, mesh, num_mapped=2)(trains, active, frozen, inputs)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None, None))
    def values_of(logits, labels, group):
        return jnp.stack(
            [chosen.measure(logits, labels=labels, group=group) for chosen in objectives]
        )

    def advance(states, masks, active, data, frozen, *, chunk_size, mesh):
        states, _ = fit_population_streamed(
            step,
            states,
            data,
            sampler,
            num_epochs=num_epochs,
            mask=expand(masks),
            frozen=frozen,
            active=active,
            chunk_size=chunk_size,
            mesh=mesh,
            augment=recipe.augment,
            window_bytes=window,
        )
        on_mesh = functools.partial(logits_of, mesh=mesh)
        arguments = (states.train, active, frozen)
        logits = stream_map(on_mesh, data, "val", *arguments, batch_bytes=recipe.data_bytes, axis=1)
        val = data.splits["val"]
        return states, values_of(logits, data.labels[val], data.group[val])

    return advance


def _assemble(search: Search, program: _Program, rungs: Rungs, sizes, chunk_size) -> MaskSearch:
    """The search's functions around a program."""
    num_slots = sizes["num_slots"]
    mesh = candidate_mesh(jax.devices()[:num_slots])
    space, start_data = program.space, program.start_data

    def init() -> TuneState:
        return init_tune(
            search, program.start_fn, rungs, start_data=start_data, seed=program.seed, **sizes
        )

    def lower(num_candidates: int, device: Any = None):
        mesh = candidate_mesh([jax.devices()[0] if device is None else device])
        on = SingleDeviceSharding(mesh.devices.item())
        at = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=on)
        masks = jax.ShapeDtypeStruct((num_candidates, space.num_units), bool)
        rates = jax.ShapeDtypeStruct((num_candidates,), jnp.float32)
        states = jax.eval_shape(
            jax.vmap(program.start_fn, in_axes=(0, 0, None)), masks, rates, start_data
        )
        active = jax.ShapeDtypeStruct((num_candidates,), bool)
        train, val = (_shapes(program.data, split) for split in ("train", "val"))
        arguments = jax.tree.map(at, (states, masks, active, train, (val, program.frozen)))
        return program.advance.lower(*arguments, chunk_size=num_candidates, mesh=mesh)

    def make_train_fn():
        frozen = everywhere(program.frozen, mesh)
        if program.stream is not None:
            how = {"chunk_size": chunk_size or 1, "mesh": mesh}
            return lambda *now: program.stream(*now, program.data, frozen, **how)
        train, val = (everywhere(program.data.examples(split), mesh) for split in ("train", "val"))
        size = chunk_size
        if size is None:
            size = plan_chunk_size(lower, -(-num_slots // mesh.size))
        how = {"chunk_size": size, "mesh": mesh}

        def train_fn(states, masks, active):
            now = spread((states, masks, active), mesh)
            # wait for all devices: whoever is first at a collective waits only so long for the rest
            return jax.block_until_ready(program.advance(*now, train, (val, frozen), **how))

        return train_fn

    def run(state: TuneState | None = None, on_round=None) -> Found:
        state = tune(
            search,
            init() if state is None else state,
            program.start_fn,
            make_train_fn(),
            start_data=start_data,
            on_round=on_round,
        )
        return Found(space, program.objectives, state.trials)

    return MaskSearch(init, run, lower, space, program.objectives, rungs)


def _shapes(data: Dataset, split: str) -> Examples:
    """The shapes of a split, without its data."""
    count = len(data.splits[split])
    fields = (data.inputs, data.labels, data.group)
    return Examples(*(jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype) for x in fields))
