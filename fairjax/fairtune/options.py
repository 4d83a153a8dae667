"""Options that candidates choose among, beside masks and rates: samplers, losses, pruning plans.

    options = {"sampler": ("shuffled", "group_dro"), "plan": (PrunePlan({}), plan)}
    found = search_masks(model, weights, data, recipe, key=key, options=options)

A candidate carries a number per option. Those of fields of the recipe choose between branches of
one program, as candidates train one after another; a plan is masked, by numbers alone.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fairjax.models import Model
from fairjax.pruning import PrunePlan, mask_channels, num_channels, stack_plans
from fairjax.pruning.plans import check_plan, graph_of
from fairjax.sampling import BatchSampler, CellSums
from fairjax.train import FitState, Recipe, Step, fit
from fairjax.train.population import spread_runs, train_chunks

Options = Mapping[str, Sequence[Any]]
"""Name of an option -> its K values: a field of `Recipe`, or "plan"."""
NO_OPTIONS: Options = MappingProxyType({})
FIELDS = ("sampler", "loss", "label_smoothing", "class_weights", "augment")
"""Fields of a recipe that leave the shapes and numbers of a training state alone."""
PLAN = "plan"


def parse_options(texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Options as they are typed, names of samplers and losses.

    Raises:
      ValueError: a text of another form, or an option twice.

    >>> parse_options(["sampler=shuffled,group_dro", "loss=cross_entropy,focal"])
    {'sampler': ('shuffled', 'group_dro'), 'loss': ('cross_entropy', 'focal')}
    """
    options: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name, _, values = text.partition("=")
        if not values or name in options or name not in ("sampler", "loss"):
            raise ValueError(
                "options are typed sampler=NAME,NAME,... and loss=NAME,NAME,..., each once; "
                f"got {' '.join(texts)}"
            )
        options[name] = tuple(values.split(","))
    return options


def check_options(options: Options, model: Model, params: Any) -> None:
    """Refuse options that one program cannot hold; `make_branches` checks values of the recipe.

    Raises:
      ValueError: an unknown name, not several values or one twice, or a plan of another network or
        that keeps nothing of a layer.
    """
    for name, values in options.items():
        if name not in (*FIELDS, PLAN):
            raise ValueError(
                f"candidates choose among {', '.join(FIELDS)} and {PLAN}; {name!r} would make "
                "another network, schedule or shape of batches, which is a search of its own"
            )
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise ValueError(f"option {name!r} must have a sequence of values, got {values!r}")
        names = [value for value in values if isinstance(value, str)]
        if len(set(names)) < len(names):
            raise ValueError(f"option {name!r} has a value twice: {', '.join(names)}")
    for plan in options.get(PLAN, ()):
        if not isinstance(plan, PrunePlan):
            raise ValueError(f"values of {PLAN!r} are pruning.PrunePlan(keep), got {plan!r}")
        check_plan(params, plan, graph_of(model))
        for layer, keep in plan.keep.items():
            if np.ndim(keep) != 1 or not np.asarray(keep).any():
                raise ValueError(
                    f"a plan must keep channels of {layer}, bool [C], got {np.asarray(keep)}"
                )


def option_labels(options: Options) -> dict[str, tuple[str, ...]]:
    """Every value of every option in words; equal words are numbered.

    >>> option_labels({"plan": (PrunePlan({}), PrunePlan({"conv": np.arange(4) < 3}))})
    {'plan': ('nothing pruned', 'conv keeps 3 of 4')}
    """
    labels = {}
    for name, values in options.items():
        words = [in_words(value) for value in values]
        labels[name] = tuple(
            word if words.count(word) == 1 else f"{word} (value {i})"
            for i, word in enumerate(words)
        )
    return labels


def in_words(value: Any) -> str:
    """One value of an option."""
    if isinstance(value, PrunePlan):
        kept = {layer: np.asarray(keep, bool) for layer, keep in value.keep.items()}
        parts = [f"{at} keeps {k.sum()} of {len(k)}" for at, k in kept.items() if not k.all()]
        return ", ".join(parts) or "nothing pruned"
    return getattr(value, "__name__", str(value))


def option_facts(options: Options) -> dict[str, str]:
    """What a stored study must agree with; {} without options."""
    facts = {"options": str(option_labels(options))} if options else {}
    if PLAN in options:
        kept = [(at, np.asarray(k, bool)) for plan in options[PLAN] for at, k in plan.keep.items()]
        words = b"".join(at.encode() + keep.tobytes() for at, keep in kept)
        facts["plans"] = hashlib.sha256(words).hexdigest()[:16]
    return facts


def num_values(options: Options) -> tuple[int, ...]:
    """K of each option."""
    return tuple(len(values) for values in options.values())


def choose(recipe: Recipe, chosen: Mapping[str, Any]) -> Recipe:
    """The recipe with the values that a candidate chose."""
    return dataclasses.replace(recipe, **{k: v for k, v in chosen.items() if k != PLAN})


def planned_bind(bind: Callable[..., Any], model: Model) -> Callable[..., Any]:
    """`bind(params, (rest, plan))`: as `bind`, with channels that the plan prunes at 0.

    They stay there: what multiplies by 0 has no gradient.
    """
    graph = graph_of(model)
    return lambda params, rest: mask_channels(bind(params, rest[0]), rest[1], graph)


def stack_choices(plans: Sequence[PrunePlan], model: Model, params: Any) -> PrunePlan:
    """`stack_plans` of plans that need not prune the same layers: leaves bool `[K, C]`."""
    sizes = num_channels(params, graph_of(model))
    layers = dict.fromkeys(layer for plan in plans for layer in plan.keep)
    keeps = [{at: plan.keep.get(at, np.ones(sizes[at], bool)) for at in layers} for plan in plans]
    as_bits = lambda keep: jnp.asarray(keep, bool)
    return stack_plans([PrunePlan(jax.tree.map(as_bits, keep)) for keep in keeps])


class Chosen(NamedTuple):
    """The sampler's part of a candidate that chooses."""

    choices: jax.Array
    """int32 `[C]`."""
    states: tuple[Any, ...]
    """One of every sampler; only the chosen one's moves."""


class Branches(NamedTuple):
    """The trainings that candidates choose among, as functions of one program."""

    init: Callable[..., FitState]
    """`init(train, key, rows, choices [C]) -> state`; with options, `Chosen` is its sampler."""
    fit: Callable[..., FitState]
    """`fit(states, data, *, mask, frozen, active, chunk_size, mesh) -> states` for P runs."""
    own: Callable[[Any, Any], Any]
    """`own(frozen, choices)`: what a candidate binds, its plan for the K plans."""


def make_branches(
    recipe: Recipe,
    options: Options,
    make_sampler: Callable[[Recipe], BatchSampler],
    make_step: Callable[[Recipe], Step],
    num_epochs: int,
) -> Branches:
    """A branch for every combination of the options that are fields of the recipe.

    Args:
      recipe: what all share.
      options: see `check_options`.
      make_sampler: of a recipe.
      make_step: of a recipe; binds `frozen`, or `(frozen, plans)` where plans are an option.
      num_epochs: of a round.

    Raises:
      ValueError: as the recipes, their samplers and steps.
    """
    names = list(options)
    fields = [name for name in names if name != PLAN]
    one_of = [{"sampler": value} for value in options.get("sampler", (recipe.sampler,))]
    samplers = [make_sampler(choose(recipe, chosen)) for chosen in one_of]
    adapts = any(sampler.adapts for sampler in samplers)
    sizes = [len(options[name]) for name in fields]
    branches = []
    for places in itertools.product(*map(range, sizes)):
        chosen = {name: options[name][i] for name, i in zip(fields, places, strict=True)}
        number = dict(zip(fields, places, strict=True)).get("sampler", 0)
        variant = choose(recipe, chosen)
        branches.append((make_step(variant), number, variant.augment))

    def init(train, key, rows, choices) -> FitState:
        states = tuple(sampler.init(rows=rows) for sampler in samplers)
        shape = states[0].rows.counts.shape
        sums = CellSums(*(jnp.zeros(shape) for _ in range(3))) if adapts else None
        return FitState(train, Chosen(choices, states), sums, key, jnp.zeros((), jnp.int32))

    def own(frozen, choices):
        if PLAN not in options:
            return frozen
        shared, plans = frozen
        return shared, jax.tree.map(lambda leaf: leaf[choices[names.index(PLAN)]], plans)

    def fit_branch(branch, state: FitState, mask, shared) -> FitState:
        """`fit` as of one sampler and step alone."""
        step, number, augment = branch
        (choices, states), sampler = state.sampler, samplers[number]
        sums = state.running if sampler.adapts else None
        alone = state._replace(sampler=states[number], running=sums)
        frozen = own(shared["frozen"], choices)
        how = {"num_epochs": num_epochs, "mask": mask, "frozen": frozen, "augment": augment}
        alone, _ = fit(step, alone, shared["data"], sampler, **how)
        states = (*states[:number], alone.sampler, *states[number + 1 :])
        sums = alone.running if sampler.adapts else state.running
        return alone._replace(sampler=Chosen(choices, states), running=sums)

    def fit_run(run, shared):
        state, mask = run
        index = jnp.int32(0)
        for name, size in zip(fields, sizes, strict=True):
            index = index * size + state.sampler.choices[names.index(name)]
        ways = [
            lambda state, branch=branch: fit_branch(branch, state, mask, shared)
            for branch in branches
        ]
        return jax.lax.switch(index, ways, state)

    def fit_all(states, data, *, mask, frozen, active, chunk_size, mesh) -> FitState:
        del chunk_size  # together, all candidates would take all branches

        def here(states, mask, active, shared):
            one_run = lambda run: (fit_run(run, shared), None)
            return train_chunks(one_run, states, mask, 1, active)[0]

        shared = {"data": data, "frozen": frozen}
        return spread_runs(here, mesh)(states, mask, active, shared)

    return Branches(init, fit_all, own)
