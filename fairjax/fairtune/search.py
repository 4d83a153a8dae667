"""Searches over masks and learning rates: the form of all of them, and those that are ours.

    search = evolution(space, [objective("worst_group_auc", num_groups=2)])
    state = search.init(seed)
    candidates, state = search.ask(state, 8)
    values = ...                                   # [8, M], train and evaluate them
    state = search.tell(state, candidates, values)

States are pytrees of arrays: they can be checkpointed, and asking goes on from any of them.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fairjax.fairtune.objectives import Objective
from fairjax.fairtune.options import NO_OPTIONS, Options, num_values
from fairjax.fairtune.spaces import MaskSpace

LEARNING_RATES = (1e-5, 1e-3)


class Candidates(NamedTuple):
    """Some masks to try, and how fast to train them."""

    numbers: Any
    """int32 `[n]`, what the search calls them."""
    masks: Any
    """bool `[n, U]`, True = trained."""
    learning_rates: Any
    """float32 `[n]`."""
    choices: Any = None
    """int32 `[n, C]`, which value of each option; None where C = 0."""


class Search(NamedTuple):
    """A search as functions; candidates may be told in any order, some of them much later."""

    init: Callable[[int], Any]
    """`init(seed) -> state`."""
    ask: Callable[[Any, int], tuple[Candidates, Any]]
    """`ask(state, count) -> (candidates, state)`."""
    tell: Callable[..., Any]
    """`tell(state, candidates, values [n, M], epochs=None) -> state`; a row with nan is a failure.
    `epochs [n]` marks candidates that were stopped early, after that many; 0 = ran to the end."""
    num_units: int
    """U, length of a mask."""
    maximize: tuple[bool, ...]
    """Direction of each of the M objectives."""
    num_values: tuple[int, ...] = ()
    """K of each of the C options that candidates choose from."""


class RandomState(NamedTuple):
    """What `random_search` carries."""

    key: jax.Array
    asked: jax.Array


class EvolutionState(NamedTuple):
    """What `evolution` carries: the best candidates told so far."""

    key: jax.Array
    asked: jax.Array
    masks: jax.Array
    """bool `[S, U]`."""
    log_rates: jax.Array
    """float32 `[S]`, natural logarithms."""
    scores: jax.Array
    """float32 `[S]`, larger is better, -inf where nobody is yet."""
    choices: jax.Array | None = None
    """int32 `[S, C]`; None where C = 0."""


def random_search(
    space: MaskSpace,
    objectives: Sequence[Objective],
    *,
    learning_rates: tuple[float, float] = LEARNING_RATES,
    options: Options = NO_OPTIONS,
) -> Search:
    """Every bit a fair coin, every option a fair die, learning rates log-uniform in a range.

    Raises:
      ValueError: no objective, or an empty or negative range.
    """
    maximize = directions_of(objectives)
    low, high = log_range(learning_rates)
    sizes = num_values(options)

    def init(seed: int) -> RandomState:
        return RandomState(jax.random.key(seed), jnp.zeros((), jnp.int32))

    def ask(state: RandomState, count: int):
        numbers = state.asked + jnp.arange(count, dtype=jnp.int32)
        keys = jax.vmap(lambda n: jax.random.fold_in(state.key, n))(numbers)
        masks, log_rates = jax.vmap(lambda key: _draw(key, space.num_units, low, high))(keys)
        choices = jax.vmap(lambda key: _draw_choices(key, sizes))(keys)
        return Candidates(numbers, masks, jnp.exp(log_rates), choices), state._replace(
            asked=state.asked + count
        )

    def tell(state: RandomState, candidates: Candidates, values, epochs=None) -> RandomState:
        del candidates, values, epochs
        return state

    # asked once a round, by the host
    return Search(init, jax.jit(ask, static_argnums=1), tell, space.num_units, maximize, sizes)


def evolution(
    space: MaskSpace,
    objectives: Sequence[Objective],
    *,
    num_parents: int = 8,
    learning_rates: tuple[float, float] = LEARNING_RATES,
    options: Options = NO_OPTIONS,
) -> Search:
    """A steady-state evolutionary search for one objective; all of it works under jit.

    A child mixes the bits and choices of two of the best `num_parents` candidates so far, flips or
    draws anew each with probability 1 / (U + C) and inherits a learning rate times a log-normal
    factor. Until `num_parents`
    candidates were told, children are random.

    Raises:
      ValueError: not one objective, fewer than 2 parents, or an empty or negative range of
        learning rates.
    """
    if num_parents < 2:
        raise ValueError(f"num_parents must be at least 2, got {num_parents}")
    if len(objectives) != 1:
        raise ValueError(
            f"evolution takes one objective, got {len(objectives)}; nsga2 or tpe take several"
        )
    maximize = directions_of(objectives)
    low, high = log_range(learning_rates)
    num_units, sizes = space.num_units, num_values(options)
    flips = 1 / max(num_units + len(sizes), 1)

    def init(seed: int) -> EvolutionState:
        return EvolutionState(
            jax.random.key(seed),
            jnp.zeros((), jnp.int32),
            jnp.zeros((num_parents, num_units), bool),
            jnp.zeros(num_parents, jnp.float32),
            jnp.full(num_parents, -jnp.inf, jnp.float32),
            jnp.zeros((num_parents, len(sizes)), jnp.int32) if sizes else None,
        )

    def child(state: EvolutionState, key: jax.Array):
        key_random, key_parents, key_cross, key_flip, key_rate = jax.random.split(key, 5)
        one, other = jax.random.choice(key_parents, num_parents, (2,), replace=False)
        from_one = jax.random.bernoulli(key_cross, 0.5, (num_units,))
        mask = jnp.where(from_one, state.masks[one], state.masks[other])
        mask ^= jax.random.bernoulli(key_flip, flips, (num_units,))
        log_rate = state.log_rates[one] + 0.1 * (high - low) * jax.random.normal(key_rate)
        random_mask, random_rate = _draw(key_random, num_units, low, high)
        ready = jnp.isfinite(state.scores).all()
        choices = _draw_choices(key, sizes)
        if choices is not None and state.choices is not None:
            keys, parents = (key_cross, key_flip), state.choices[jnp.stack([one, other])]
            choices = jnp.where(ready, _inherit(keys, parents, choices, flips), choices)
        log_rate = jnp.where(ready, jnp.clip(log_rate, low, high), random_rate)
        return jnp.where(ready, mask, random_mask), log_rate, choices

    def ask(state: EvolutionState, count: int):
        numbers = state.asked + jnp.arange(count, dtype=jnp.int32)
        keys = jax.vmap(lambda n: jax.random.fold_in(state.key, n))(numbers)
        masks, log_rates, choices = jax.vmap(lambda key: child(state, key))(keys)
        return Candidates(numbers, masks, jnp.exp(log_rates), choices), state._replace(
            asked=state.asked + count
        )

    def tell(state: EvolutionState, candidates: Candidates, values, epochs=None) -> EvolutionState:
        del epochs  # a candidate that was stopped keeps the value it had
        scores = jnp.asarray(values, jnp.float32)[:, 0] * (1.0 if maximize[0] else -1.0)
        scores = jnp.concatenate([state.scores, jnp.where(jnp.isnan(scores), -jnp.inf, scores)])
        masks = jnp.concatenate([state.masks, jnp.asarray(candidates.masks)])
        log_rates = jnp.log(jnp.asarray(candidates.learning_rates, jnp.float32))
        log_rates = jnp.concatenate([state.log_rates, log_rates])
        scores, best = jax.lax.top_k(scores, num_parents)
        kept = {"masks": masks[best], "log_rates": log_rates[best], "scores": scores}
        if state.choices is not None:
            choices = jnp.concatenate([state.choices, jnp.asarray(candidates.choices)])
            kept["choices"] = choices[best]
        return state._replace(**kept)

    return Search(init, jax.jit(ask, static_argnums=1), tell, num_units, maximize, sizes)


def replay(
    space: MaskSpace,
    objectives: Sequence[Objective],
    candidates: Candidates,
    *,
    options: Options = NO_OPTIONS,
) -> Search:
    """Given candidates in their order, such as those of another search, under other conditions.

    Args:
      space: of the masks.
      objectives: one or several.
      candidates: at least as many as the search will have trials.
      options: those that the candidates chose from.

    Raises:
      ValueError: masks of another space, or choices of other options; asked for more than there
        are.
    """
    numbers, masks, rates = (np.asarray(values) for values in candidates[:3])
    sizes = num_values(options)
    choices = np.zeros((len(masks), 0), int) if candidates.choices is None else candidates.choices
    choices = np.asarray(choices)
    if choices.shape != (len(masks), len(sizes)) or not ((choices >= 0) & (choices < sizes)).all():
        raise ValueError(
            f"choices must be [{len(masks)}, {len(sizes)}] of options with {sizes} values, got "
            f"{choices.tolist()}"
        )
    if masks.ndim != 2 or masks.shape[1] != space.num_units:
        raise ValueError(f"masks must be [n, {space.num_units}], got {masks.shape}")

    def ask(asked: Any, count: int):
        if asked + count > len(masks):
            raise ValueError(f"{len(masks)} candidates were given, {asked + count} are asked for")
        rows = np.arange(asked, asked + count)
        own = [choices[rows]] if sizes else []
        return Candidates(numbers[rows], masks[rows], rates[rows], *own), asked + np.int32(count)

    def tell(asked: Any, candidates: Candidates, values, epochs=None) -> Any:
        del candidates, values, epochs
        return asked

    start = lambda seed: np.zeros((), np.int32)
    return Search(start, ask, tell, space.num_units, directions_of(objectives), sizes)


def directions_of(objectives: Sequence[Objective]) -> tuple[bool, ...]:
    """Which objectives are maximised; they, not a caller's flag, know."""
    for chosen in objectives:
        if not isinstance(chosen, Objective):
            raise ValueError(f"objectives come from `objective(...)`, got {chosen!r}")
    if not objectives:
        raise ValueError("a search needs at least one objective")
    return tuple(bool(chosen.maximize) for chosen in objectives)


def _draw(key: jax.Array, num_units: int, low: float, high: float) -> tuple[jax.Array, jax.Array]:
    """A random mask `[U]` and the logarithm of a learning rate."""
    key_mask, key_rate = jax.random.split(key)
    log_rate = jax.random.uniform(key_rate, (), minval=low, maxval=max(high, low + 1e-6))
    return jax.random.bernoulli(key_mask, 0.5, (num_units,)), jnp.minimum(log_rate, high)


def _draw_choices(key: jax.Array, sizes: tuple[int, ...]) -> jax.Array | None:
    """A random value of every option, int32 `[C]`; by a key of its own, so that masks stay."""
    if not sizes:
        return None
    return jax.random.randint(jax.random.fold_in(key, 1), (len(sizes),), 0, jnp.array(sizes))


def _inherit(keys, parents: jax.Array, drawn: jax.Array, anew: float) -> jax.Array:
    """Choices `[C]` of two parents `[2, C]`, each of one or the other, some as `drawn` anew."""
    key_cross, key_flip = (jax.random.fold_in(key, 0) for key in keys)
    from_one = jax.random.bernoulli(key_cross, 0.5, drawn.shape)
    inherited = jnp.where(from_one, parents[0], parents[1])
    return jnp.where(jax.random.bernoulli(key_flip, anew, drawn.shape), drawn, inherited)


def log_range(learning_rates: tuple[float, float]) -> tuple[float, float]:
    """Natural logarithms of a range of learning rates; refuses what is none."""
    low, high = learning_rates
    if not 0 < low <= high:
        raise ValueError(f"learning_rates must be an increasing positive range, got {low}, {high}")
    return math.log(low), math.log(high)
