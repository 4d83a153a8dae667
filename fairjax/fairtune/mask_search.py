"""A search over masks and learning rates, set up: what it trains, from what, on which data."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from fairjax.data import Dataset, Examples
from fairjax.fairtune.objectives import Objective, check_objectives, objective
from fairjax.fairtune.search import (
    LEARNING_RATES,
    Search,
    directions_of,
    evolution,
    random_search,
)
from fairjax.fairtune.spaces import Description, MaskSpace, mask_space
from fairjax.fairtune.studies import nsga2, tpe
from fairjax.fairtune.tune import (
    STATUS_NAMES,
    Rungs,
    Trials,
    TuneState,
    best_masks,
    best_trials,
    init_tune,
    successive_halving,
    tune,
)
from fairjax.models import Model, Weights, kernel_gate
from fairjax.sharding import (
    candidate_mesh,
    everywhere,
    plan_chunk_size,
    shard_candidates,
    spread,
)
from fairjax.train import (
    Recipe,
    fit_population,
    init_fit,
    map_chunks,
    predict,
    start_train,
)

SearchName = Literal["tpe", "random", "evolution", "nsga2"]


class Choice(NamedTuple):
    """A mask and the learning rates to try with it."""

    space: MaskSpace
    mask: np.ndarray
    """bool `[U]`, True = trained."""
    learning_rates: tuple[float, ...]

    @property
    def description(self) -> Description:
        """What it trains, in numbers and words."""
        return self.space.describe(self.mask)


class Found(NamedTuple):
    """What a search found."""

    space: MaskSpace
    objectives: tuple[Objective, ...]
    trials: Trials

    @property
    def winner(self) -> Choice:
        """The completed trial of best validation value."""
        return self.best(1)[0]

    def best_rows(self, count: int) -> np.ndarray:
        """Rows of the best completed trials in the first objective, best first."""
        return best_trials(self.trials, count)

    def best(self, count: int) -> list[Choice]:
        """The choices of `best_rows`."""
        return [self.choice(int(row)) for row in self.best_rows(count)]

    def table(self) -> list[dict[str, Any]]:
        """One row per trial as plain values; values of objectives are of the validation split."""
        trials, rows = self.trials, []
        for i, status in enumerate(trials.status):
            row: dict[str, Any] = {"trial": i, "status": STATUS_NAMES[status]}
            row["epochs"] = int(trials.epochs[i])
            row["same_as"] = int(trials.same_as[i]) if trials.same_as[i] >= 0 else ""
            row["learning_rate"] = trials.learning_rates[i]
            for chosen, value in zip(self.objectives, trials.values[i], strict=True):
                row[f"val_{chosen.name}"] = value
            rows.append(row | dict(zip(self.space.units, trials.masks[i].astype(int), strict=True)))
        return rows

    def describe(self, row: int) -> dict[str, Any]:
        """One trial as plain values: all that training with its mask again needs."""
        choice, trials = self.choice(row), self.trials
        description = choice.description
        content: dict[str, Any] = {
            "space": self.space.name,
            "trial": int(row),
            "mask": choice.mask.astype(int).tolist(),
            "units": list(description.units),
            "learning_rate": choice.learning_rates[0],
            "trained_parameters": description.num_trained,
            "percent_trained": description.percent,
            "objective": self.objectives[0].name,
            "val_objective": float(trials.values[row, 0]),
        }
        if len(self.objectives) > 1:
            content["pareto_front"] = [
                {
                    "mask": trials.masks[i].astype(int).tolist(),
                    "learning_rate": float(trials.learning_rates[i]),
                    "val_objectives": trials.values[i].tolist(),
                }
                for i in best_masks(trials)
            ]
        return content

    def notes(self) -> list[str]:
        """How many trials failed, and why that can be."""
        failed = int((self.trials.status == STATUS_NAMES.index("failed")).sum())
        if not failed:
            return []
        return [f"{failed} trials failed: the objective was undefined or the training diverged"]

    def front(self) -> list[Choice]:
        """The completed trials that no other beats in all objectives."""
        return [self.choice(int(row)) for row in best_masks(self.trials)]

    def choice(self, row: int) -> Choice:
        """The mask and rate of one trial."""
        rate = float(self.trials.learning_rates[row])
        return Choice(self.space, self.trials.masks[row], (rate,))


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
    facts = {} if storage is None else {"data": data.fingerprint, "objective": ", ".join(names)}
    studied = {"storage": storage, "fingerprint": facts, "worker": worker}
    studied |= {"first_masks": first_masks}
    chosen = _make_search(search, space, objectives, learning_rates, studied)
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
    if not isinstance(search, Search) and search not in _SEARCHES:
        raise ValueError(f"search must be one of {', '.join(_SEARCHES)}; got {search!r}")
    if search in ("tpe", "nsga2"):
        return _SEARCHES[search](space, objectives, learning_rates=learning_rates, **studied)
    if studied["storage"] is not None or studied["worker"] or len(studied["first_masks"]):
        name = "a search of your own" if isinstance(search, Search) else search
        raise ValueError(f"storage, worker and first_masks go with tpe or nsga2, not with {name}")
    if not isinstance(search, Search):
        return _SEARCHES[search](space, objectives, learning_rates=learning_rates)
    wanted = (space.num_units, directions_of(objectives))
    if (search.num_units, tuple(search.maximize)) != wanted:
        raise ValueError(
            f"the search must propose masks of {wanted[0]} units and maximise {wanted[1]}, "
            f"got {search.num_units} and {search.maximize}"
        )
    return search


class _Program(NamedTuple):
    """What candidates start from and how they train; arrays are arguments of its functions."""

    space: MaskSpace
    objectives: tuple[Objective, ...]
    start_fn: Callable[..., Any]
    """`start_fn(mask [U], rate, (tunable, batch_stats)) -> state`."""
    advance: Any
    """`advance(states [P], masks [P, U], active [P], train, (val, frozen), chunk_size=, mesh=)`
    `-> (states, values [P, M])`, jitted."""
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
        train = start_train(
            *shared, optimizer, ema=recipe.ema_decay is not None, learning_rate=rate
        )
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
    return _Program(space, objectives, start_fn, advance, start_data, frozen, data, seed)


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

    def run(state: TuneState | None = None, on_round=None) -> Found:
        train, val = (everywhere(program.data.examples(split), mesh) for split in ("train", "val"))
        shared = (val, everywhere(program.frozen, mesh))
        size = chunk_size
        if size is None:
            size = plan_chunk_size(lower, -(-num_slots // mesh.size))

        def train_fn(states, masks, active):
            states, masks, active = spread((states, masks, active), mesh)
            # wait for all devices: whoever is first at a collective waits only so long for the rest
            return jax.block_until_ready(
                program.advance(states, masks, active, train, shared, chunk_size=size, mesh=mesh)
            )

        state = tune(
            search,
            init() if state is None else state,
            program.start_fn,
            train_fn,
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
