"""A search over masks and learning rates, set up: what it trains, from what, on which data."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from fairjax.data import Dataset
from fairjax.fairtune.found import Found
from fairjax.fairtune.objectives import Objective, check_objectives, objective
from fairjax.fairtune.options import NO_OPTIONS, PLAN, Options, check_options, num_values
from fairjax.fairtune.program import (
    NUM_DRAWS,
    Program,
    make_program,
    make_replicates,
    pool_shapes,
)
from fairjax.fairtune.rungs import Rungs, racing, successive_halving
from fairjax.fairtune.search import (
    LEARNING_RATES,
    Search,
    directions_of,
    evolution,
    random_search,
)
from fairjax.fairtune.spaces import MaskSpace, mask_space
from fairjax.fairtune.studies import nsga2, tpe
from fairjax.fairtune.tune import TuneState, init_tune, tune
from fairjax.memory import plan_chunk_size
from fairjax.models import Model, Weights
from fairjax.sharding import candidate_mesh, everywhere, spread
from fairjax.train import Recipe
from fairjax.trees import unstack_blocks

SearchName = Literal["tpe", "random", "evolution", "nsga2"]
Stopping = Literal["halving", "racing", "none"]


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
    space: str | MaskSpace | None = None,
    objective: str | tuple[str, ...] = "worst_group_auc",
    search: SearchName | Search = "tpe",
    num_trials: int = 12,
    num_slots: int = 8,
    learning_rates: tuple[float, float] = LEARNING_RATES,
    options: Options = NO_OPTIONS,
    num_folds: int = 1,
    num_seeds: int = 1,
    stopping: Stopping = "halving",
    first_rung: int = 1,
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
      space: name of a mask space (`mask_space`; None takes the parts of a ViT's or ResNet's
        blocks, and the layers of another network), or one of your own.
      objective: one or several metrics (`fairtune.objective`).
      search: what proposes candidates, by name or one of your own.
      num_trials: T, candidates in all.
      num_slots: P, candidates trained as one population.
      learning_rates: range, log-uniform; a search of your own has its own.
      options: what candidates choose among besides, name -> values: fields of the recipe, such as
        `{"sampler": ("shuffled", "group_dro"), "loss": ("cross_entropy", "focal")}`, each
        combination of which is compiled (see `options.FIELDS`), and "plan", `pruning.PrunePlan`s of
        which `PrunePlan({})` prunes nothing. Candidates then train one by one on a device.
      num_folds: F, train and val are cut into as many folds, and a candidate's value is its mean
        over trainings that leave out one fold each and validate on it; 1 takes the split as it is.
      num_seeds: S, trainings of a candidate on each fold, with classifiers and orders of examples
        of their own; the first has the given classifier.
      stopping: who stops early: all but the best third at every rung of "halving"; in "racing",
        where folds are trained on one after another, whom paired differences to the best exclude;
        or "none".
      first_rung: epochs before halving first compares.
      num_brackets: more than one is Hyperband.
      first_masks: bool `[U]` each, tried first (tpe, nsga2); see `simple_masks` and
        `guided_masks`.
      storage: see `optuna_search` (tpe, nsga2).
      worker: see `optuna_search`.
      chunk_size: candidates that a device trains at the same time; None is one on CPU, where more
        are seldom faster (and convolutions several times slower), and elsewhere lets the compiler
        say what fits into memory.

    Returns:
      `MaskSearch`.

    Raises:
      ValueError: unknown names, numbers out of range, an objective that the validation split does
        not define for every group, or options that the search does not take.
    """
    names = (objective,) if isinstance(objective, str) else tuple(objective)
    objectives = tuple(_objective(name, num_groups=data.num_groups) for name in names)
    seed = int(np.asarray(jax.random.key_data(key)).reshape(-1)[-1])
    replicates = make_replicates(data, num_folds, num_seeds, seed)
    for val in replicates.pool.splits["train"][replicates.val]:
        check_objectives(
            objectives,
            labels=data.labels[val],
            group=data.group[val],
            group_names=data.group_names,
            num_classes=data.num_classes,
        )
    check_options(options, model, weights.params)
    if PLAN in options:
        weights = weights._replace(params=unstack_blocks(weights.params))
    if not isinstance(space, MaskSpace):
        space = mask_space(weights.params, space, head=model.head)
    rungs = _make_rungs(recipe.num_epochs, num_folds, stopping, first_rung, num_brackets)
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1 or None, got {chunk_size}")
    if options and chunk_size not in (None, 1):
        raise ValueError(f"with options candidates train one by one: chunk_size is {chunk_size}")
    if num_trials < 1 or num_slots < 1:
        raise ValueError(f"need at least one trial and slot, got {num_trials} and {num_slots}")
    facts = {} if storage is None else {"data": data.fingerprint, "objective": ", ".join(names)}
    if storage is not None and replicates.count > 1:
        facts["replicates"] = f"{num_folds} folds x {num_seeds} seeds"
    studied = {"storage": storage, "fingerprint": facts, "worker": worker}
    studied |= {"first_masks": first_masks}
    chosen = _make_search(search, space, objectives, learning_rates, options, studied)
    if len(objectives) > 1 and len(rungs.epochs) > 1:
        raise ValueError('early stopping needs a single objective; set stopping="none"')
    what = {"space": space, "objectives": objectives, "rungs": rungs, "key": key}
    what["options"] = options
    program = make_program(model, weights, data, recipe, replicates, **what)
    sizes = {"num_trials": num_trials, "num_slots": num_slots}
    alone = 1 if options or jax.default_backend() == "cpu" else None
    return _assemble(chosen, program, rungs, sizes, seed, chunk_size or alone)


def _make_rungs(num_epochs, num_folds, stopping, first_rung, num_brackets) -> Rungs:
    """When candidates are compared."""
    if stopping not in get_args(Stopping):
        known = ", ".join(get_args(Stopping))
        raise ValueError(f"stopping must be one of {known}; got {stopping!r}")
    if stopping != "halving" and num_brackets != 1:
        raise ValueError(f"num_brackets is of halving, not of stopping={stopping!r}")
    if stopping == "racing":
        if num_folds < 2:
            raise ValueError(f"racing trains on one fold after another: num_folds is {num_folds}")
        return racing(num_epochs, num_folds)
    first = first_rung if stopping == "halving" else num_epochs
    return successive_halving(num_epochs, first=first, num_brackets=num_brackets)


_objective = objective
_SEARCHES: dict[str, Callable[..., Search]] = {
    "tpe": tpe,
    "random": random_search,
    "evolution": evolution,
    "nsga2": nsga2,
}


def _make_search(search, space, objectives, learning_rates, options, studied) -> Search:
    """The search of that name, or the given one if it fits; `studied` are options of Optuna's."""
    how = {"learning_rates": learning_rates, "options": options}
    if isinstance(search, Search):
        name = "a search of your own"
        wanted = (space.num_units, directions_of(objectives))
        if (search.num_units, tuple(search.maximize)) != wanted:
            raise ValueError(
                f"the search must propose masks of {wanted[0]} units and maximise {wanted[1]}, "
                f"got {search.num_units} and {search.maximize}"
            )
        if tuple(search.num_values) != num_values(options):
            raise ValueError(
                f"the search must choose from options of {num_values(options)} values, got "
                f"{search.num_values}"
            )
    elif search not in _SEARCHES:
        raise ValueError(f"search must be one of {', '.join(_SEARCHES)}; got {search!r}")
    elif search in ("tpe", "nsga2"):
        return _SEARCHES[search](space, objectives, **how, **studied)
    else:
        name = search
    if studied["storage"] is not None or studied["worker"] or len(studied["first_masks"]):
        raise ValueError(f"storage, worker and first_masks go with tpe or nsga2, not with {name}")
    if isinstance(search, Search):
        return search
    return _SEARCHES[search](space, objectives, **how)


def _assemble(
    search: Search, program: Program, rungs: Rungs, sizes, seed: int, chunk_size: int | None
) -> MaskSearch:
    """The search's functions around a program."""
    num_slots, num_runs = sizes["num_slots"], program.num_runs
    mesh = candidate_mesh(jax.devices()[: num_slots * num_runs])
    space, start_data, options = program.space, program.start_data, program.options
    pool, val = program.replicates.pool, jnp.asarray(program.replicates.val)
    draws = {"num_replicates": program.replicates.count, "num_draws": NUM_DRAWS}

    def init() -> TuneState:
        given = {"start_data": start_data, "seed": seed}
        return init_tune(search, program.start_fn, rungs, **given, **draws, **sizes)

    def lower(num_candidates: int, device: Any = None):
        mesh = candidate_mesh([jax.devices()[0] if device is None else device])
        on = SingleDeviceSharding(mesh.devices.item())
        at = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=on)
        of_all = lambda *shape, dtype: jax.ShapeDtypeStruct((num_candidates, *shape), dtype)
        mask = jax.ShapeDtypeStruct((space.num_units,), bool)
        first = (mask, jnp.float32(1), jnp.int32(0), start_data)
        first += (jax.ShapeDtypeStruct((len(options),), jnp.int32),) if options else ()
        states = jax.eval_shape(program.start_fn, *first)
        states = jax.tree.map(lambda leaf: of_all(*leaf.shape[1:], dtype=leaf.dtype), states)
        masks, fold = of_all(space.num_units, dtype=bool), of_all(dtype=jnp.int32)
        shared = (pool_shapes(pool), (val, program.frozen))
        bits = of_all(dtype=bool)
        arguments = jax.tree.map(at, (states, masks, fold, bits, bits, *shared))
        return program.advance.lower(*arguments, chunk_size=num_candidates, mesh=mesh)

    def make_train_fn():
        frozen, size = everywhere(program.frozen, mesh), chunk_size
        if program.stream is not None:
            train = lambda *now: program.stream(*now, frozen, chunk_size=size or 1, mesh=mesh)
        else:
            examples, rows = everywhere((pool.examples("train"), val), mesh)
            if size is None:
                size = plan_chunk_size(lower, -(-num_slots * num_runs // mesh.size))

            def train(*now):
                shared = (examples, (rows, frozen))
                return program.advance(*spread(now, mesh), *shared, chunk_size=size, mesh=mesh)

        def train_fn(states, masks, rungs, active, due):
            of_runs = lambda of_slots: np.repeat(of_slots, num_runs, axis=0)
            masks, active, due = map(of_runs, (masks, active, due))
            # wait for all devices: whoever is first at a collective waits only so long for the rest
            fold = program.fold_of_runs(rungs)
            return jax.block_until_ready(train(states, masks, fold, active, due))

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
        return Found(space, program.objectives, state.trials, options)

    return MaskSearch(init, run, lower, space, program.objectives, rungs)
