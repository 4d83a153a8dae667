"""Training the methods of a setting: all runs of a program as one population."""

import functools
from collections.abc import Callable, Collection, Mapping, MutableMapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fairjax.compare.crossing import combined_programs, is_combination
from fairjax.compare.methods import PROGRAMS, Program, by_method, choices_of_runs, programs
from fairjax.compare.retrain import linear_probe, retrain_balanced
from fairjax.compare.setting import Setting, Trained, known_methods
from fairjax.fairtune import add_lora, mask_space
from fairjax.models import compiler_options, fresh_head
from fairjax.sampling import BatchSampler, arrange_splits
from fairjax.timing import timed
from fairjax.train import (
    Step,
    fit_population,
    init_population,
    make_step,
    measure_cells,
    replicate,
    seed_keys,
)

AFTERWARDS = ("dfr", "linear_probe")  # heads on features of a trained network
ALL_METHODS = (*(name for names in PROGRAMS for name in names), *AFTERWARDS)


def train_methods(
    setting: Setting,
    methods: Sequence[str],
    *,
    keep: Callable[[str, Trained], Any] = lambda name, trained: trained,
    on_trained: Callable[[tuple[str, ...]], None] = lambda names: None,
    seconds: MutableMapping[str, float] | None = None,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Train all methods that apply, those of one program at the same time.

    Methods start alike and draw by the same keys, so that their differences are paired.

    Args:
      setting: what they share.
      methods: of `ALL_METHODS`, or several as in "group_dro+focal" (`is_combination`); plain
        training runs always.
      keep: `keep(name, trained)`: what stays of a method; networks of all stages are many.
      on_trained: called with the names of what is trained.
      seconds: where the time goes is added here: "compile_s", "train_s", "heads_s".

    Returns:
      `({method: kept}, {method: why it was left out})`, the first in the order of `methods`. What
      fails, or trains to values that are not finite, costs its own method alone: programs of
      several that fail are tried one method at a time.

    Raises:
      ValueError: an unknown method; or as the recipe and its step. Whatever fails plain training,
      which all others are compared with.
    """
    together = [name for name in methods if is_combination(name)]
    wanted = known_methods(methods, (*ALL_METHODS, *together))
    seconds = {} if seconds is None else seconds
    kept: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    plain: dict[str, Trained] = {}

    def attempt(own: tuple[str, ...], train: Callable[[tuple[str, ...]], Mapping[str, Trained]]):
        """Some methods together; each alone where that fails."""
        try:
            found = train(own)
        except Exception as error:  # whatever the loss of a method may raise
            if own == ("plain",):
                raise
            if len(own) == 1:
                kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
                left_out[own[0]] = kind + " ".join(str(error).split())
            for name in own if len(own) > 1 else ():
                attempt((name,), train)
            return
        plain.update({name: each for name, each in found.items() if name == "plain"})
        for name, each in found.items():
            try:
                kept[name] = keep(name, each)
            except ValueError as error:
                if name == "plain":
                    raise
                left_out[name] = str(error)
        on_trained(tuple(name for name in own if name in kept))

    for names, make in [*programs(setting).items(), *combined_programs(together)]:
        own = tuple(name for name in wanted if name in names)
        if own:
            attempt(
                own, lambda own, make=make: _train(setting, make(setting, plain).only(own), seconds)
            )
    for name in (name for name in wanted if name in AFTERWARDS):
        attempt((name,), lambda own: _afterwards(own[0], setting, plain["plain"], seconds))
    return {name: kept[name] for name in wanted if name in kept}, left_out


def _afterwards(
    name: str, setting: Setting, plain: Trained, seconds: MutableMapping[str, float]
) -> dict[str, Trained]:
    """Heads on the features of trained networks."""
    with timed(seconds, "heads_s"):
        if name == "dfr":
            return {name: retrain_balanced(setting, plain.at_stage(-1))}
        if setting.weights is None:
            raise ValueError("needs a network that was trained before")
        num_runs = len(setting.split_of_run)
        params, stats = jax.tree.map(np.array, replicate(tuple(setting.weights[:2]), num_runs))
        return {name: linear_probe(setting, Trained(params, stats, plain.val[-1]))}


def _space(setting: Setting, program: Program) -> tuple[Any, Any]:
    """The mask space of a program and the parameters it is of; None where everything trains."""
    if program.space is None or setting.weights is None:
        return None, None
    params = setting.weights.params
    if program.space == "lora":
        params = add_lora(params, jax.random.key(0))
    return mask_space(params, program.space, head=setting.model.head), params


def _train(
    setting: Setting, program: Program, seconds: MutableMapping[str, float]
) -> dict[str, Trained]:
    """All runs of the program's methods, kept at the end of every stage."""
    space, whole = _space(setting, program)
    frozen = None if space is None else space.partition(whole)[1]
    data, model, num_stages = setting.data, setting.model, setting.num_stages
    network = setting.recipe.make_model(model)
    num_train = setting.splits.train.shape[1]
    sampler = program.sampler._replace(batches_per_epoch=num_train // setting.recipe.batch_size)
    optimizer = setting.recipe.make_optimizer(sampler.batches_per_epoch)
    bind = None if space is None else space.bind
    make = functools.partial(make_step, network, optimizer, bind=bind)
    if program.steps:
        steps = {name: make(**how) for name, how in program.steps.items()}
        step = on_same_batch(steps, program.weighed)
    else:
        step = make(**program.step)
    measure = functools.partial(measure_cells, network, sampler) if program.full_pass else None

    @functools.partial(jax.jit, donate_argnums=0, compiler_options=compiler_options(model))
    def stage(states, examples, frozen):
        states = fit_population(
            step,
            states,
            examples,
            sampler,
            num_epochs=setting.recipe.num_epochs // num_stages,
            frozen=frozen,
            augment=setting.recipe.augment,
            measure_fn=measure,
            chunk_size=None if setting.weights is None else 1,
        )[0]
        trains: Any = states.train if program.steps else (states.train,)
        networks = [(train.params, train.batch_stats) for train in trains]
        params, stats = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *networks)
        if bind is not None:
            params = jax.vmap(bind, in_axes=(0, None))(params, frozen)
        return states, (params, stats)

    states = _start(setting, program, space, sampler, optimizer)
    examples = jax.tree.map(jnp.asarray, data.rows(np.arange(len(data.labels))))
    with timed(seconds, "compile_s"):
        run = stage.lower(states, examples, frozen).compile()
    stages = []
    with timed(seconds, "train_s"):
        for _ in range(num_stages):
            states, networks = run(states, examples, frozen)
            stages.append(jax.device_get(networks))
        found = by_method(jax.tree.map(lambda *leaves: np.stack(leaves), *stages), program.methods)
    with timed(seconds, "predict_s"):
        # [E, M, P, ...] as networks of P runs
        own = setting.splits.val[setting.split_of_run]
        params, stats = jax.tree.map(lambda *leaves: np.concatenate(leaves), *found.values())
        val = np.split(setting.logits_of_all(params, stats, own), len(found))
    return {
        name: Trained(each[0], each[1], logits)
        for (name, each), logits in zip(found.items(), val, strict=True)
    }


def on_same_batch(steps: Mapping[str, Step], weighed: Collection[str]) -> Any:
    """The steps of several methods, each of its own state, on one batch; only those `weighed` look
    at the weights of its examples, for a batch of plain training is whole."""

    def step(state, batch, key, mask=None, frozen=None):
        plain = batch._replace(weights=jnp.ones_like(batch.weights))
        done = [
            each(train, batch if name in weighed else plain, key, mask=mask, frozen=frozen)
            for (name, each), train in zip(steps.items(), state, strict=True)
        ]
        return tuple(train for train, _ in done), done[0][1]

    return step


def _start(
    setting: Setting, program: Program, space: Any, sampler: BatchSampler, optimizer: Any
) -> Any:
    """All runs before their first epoch, ordered by method, split and seed."""
    num_splits, num_runs = len(setting.splits.train), len(setting.split_of_run)
    arguments = setting.arguments()
    del arguments["batch_size"]
    rows = arrange_splits(**arguments, rows=setting.splits.train)
    keys = jnp.tile(seed_keys(setting.num_seeds, setting.start_seed), num_splits)
    # not the keys that drew the parameters
    order = jnp.tile(seed_keys(setting.num_seeds, setting.batch_seed), num_splits)
    order = jax.vmap(jax.random.fold_in)(order, 1 + setting.split_of_run)
    number = np.tile(np.arange(num_runs), len(program.choices))

    def fresh(key, weights):
        """The parameters and statistics of one run."""
        if weights is None:
            return setting.model.init(key)
        params = fresh_head(setting.model, weights[0], key)
        if space is not None:
            if space.name == "lora":
                params = add_lora(params, jax.random.fold_in(key, 1))
            params = space.partition(params)[0]
        return params, weights[1]

    @jax.jit
    def init(keys, order, weights, rows, choices):
        networks = jax.vmap(fresh, in_axes=(0, None))(keys, weights)
        params, stats = jax.tree.map(lambda leaf: leaf[number], networks)
        choices |= {"rows": jax.tree.map(lambda leaf: leaf[setting.split_of_run[number]], rows)}
        how = {"keys": order[number], "choices": choices}
        states = init_population(params, stats, optimizer, sampler, **how)
        if not program.steps:
            return states
        return states._replace(train=(states.train,) * len(program.steps))

    weights = None if setting.weights is None else setting.weights[:2]
    return init(keys, order, weights, rows, choices_of_runs(program, num_runs))
