"""Searches over masks and learning rates: random, evolutionary, TPE and NSGA-II.

    search = tpe(space, maximize=(True,))
    state = search.init(seed)
    candidates, state = search.ask(state, 8)
    values = ...                                   # [8, M], train and evaluate them
    state = search.tell(state, candidates, values)

States are pytrees of arrays: they can be checkpointed, and asking goes on from any of them.
"""

import contextlib
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

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


class Search(NamedTuple):
    """A search as functions; candidates may be told in any order, some of them much later."""

    init: Callable[[int], Any]
    """`init(seed) -> state`."""
    ask: Callable[[Any, int], tuple[Candidates, Any]]
    """`ask(state, count) -> (candidates, state)`."""
    tell: Callable[..., Any]
    """`tell(state, candidates, values [n, M], epochs=None) -> state`; a row with nan is a failure.
    `epochs [n]` marks candidates that were stopped early, after that many; 0 = ran to the end."""


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


class StudyState(NamedTuple):
    """How far an Optuna study is; the trials themselves are in its storage."""

    seed: Any
    asked: Any


def random_search(
    space: MaskSpace, *, learning_rates: tuple[float, float] = LEARNING_RATES
) -> Search:
    """Every bit a fair coin, learning rates log-uniform in a range.

    Raises:
      ValueError: an empty or negative range.
    """
    low, high = _log_range(learning_rates)

    def init(seed: int) -> RandomState:
        return RandomState(jax.random.key(seed), jnp.zeros((), jnp.int32))

    def ask(state: RandomState, count: int):
        numbers = state.asked + jnp.arange(count, dtype=jnp.int32)
        keys = jax.vmap(lambda n: jax.random.fold_in(state.key, n))(numbers)
        masks, log_rates = jax.vmap(lambda key: _draw(key, space.num_units, low, high))(keys)
        return Candidates(numbers, masks, jnp.exp(log_rates)), state._replace(
            asked=state.asked + count
        )

    def tell(state: RandomState, candidates: Candidates, values, epochs=None) -> RandomState:
        del candidates, values, epochs
        return state

    return Search(init, jax.jit(ask, static_argnums=1), tell)  # asked once a round, by the host


def evolution(
    space: MaskSpace,
    *,
    maximize: bool,
    num_parents: int = 8,
    learning_rates: tuple[float, float] = LEARNING_RATES,
) -> Search:
    """A steady-state evolutionary search for one objective; all of it works under jit.

    A child mixes the bits of two of the best `num_parents` candidates so far, flips each with
    probability 1 / U and inherits a learning rate times a log-normal factor. Until `num_parents`
    candidates were told, children are random.

    Raises:
      ValueError: fewer than 2 parents, or an empty or negative range of learning rates.
    """
    if num_parents < 2:
        raise ValueError(f"num_parents must be at least 2, got {num_parents}")
    low, high = _log_range(learning_rates)
    num_units = space.num_units

    def init(seed: int) -> EvolutionState:
        return EvolutionState(
            jax.random.key(seed),
            jnp.zeros((), jnp.int32),
            jnp.zeros((num_parents, num_units), bool),
            jnp.zeros(num_parents, jnp.float32),
            jnp.full(num_parents, -jnp.inf, jnp.float32),
        )

    def child(state: EvolutionState, key: jax.Array):
        key_random, key_parents, key_cross, key_flip, key_rate = jax.random.split(key, 5)
        one, other = jax.random.choice(key_parents, num_parents, (2,), replace=False)
        from_one = jax.random.bernoulli(key_cross, 0.5, (num_units,))
        mask = jnp.where(from_one, state.masks[one], state.masks[other])
        mask ^= jax.random.bernoulli(key_flip, 1 / max(num_units, 1), (num_units,))
        log_rate = state.log_rates[one] + 0.1 * (high - low) * jax.random.normal(key_rate)
        random_mask, random_rate = _draw(key_random, num_units, low, high)
        ready = jnp.isfinite(state.scores).all()
        return (
            jnp.where(ready, mask, random_mask),
            jnp.where(ready, jnp.clip(log_rate, low, high), random_rate),
        )

    def ask(state: EvolutionState, count: int):
        numbers = state.asked + jnp.arange(count, dtype=jnp.int32)
        keys = jax.vmap(lambda n: jax.random.fold_in(state.key, n))(numbers)
        masks, log_rates = jax.vmap(lambda key: child(state, key))(keys)
        return Candidates(numbers, masks, jnp.exp(log_rates)), state._replace(
            asked=state.asked + count
        )

    def tell(state: EvolutionState, candidates: Candidates, values, epochs=None) -> EvolutionState:
        del epochs  # a candidate that was stopped keeps the value it had
        scores = jnp.asarray(values, jnp.float32)[:, 0] * (1.0 if maximize else -1.0)
        scores = jnp.concatenate([state.scores, jnp.where(jnp.isnan(scores), -jnp.inf, scores)])
        masks = jnp.concatenate([state.masks, jnp.asarray(candidates.masks)])
        log_rates = jnp.log(jnp.asarray(candidates.learning_rates, jnp.float32))
        log_rates = jnp.concatenate([state.log_rates, log_rates])
        scores, best = jax.lax.top_k(scores, num_parents)
        return state._replace(masks=masks[best], log_rates=log_rates[best], scores=scores)

    return Search(init, jax.jit(ask, static_argnums=1), tell)  # asked once a round, by the host


def tpe(space: MaskSpace, *, maximize: tuple[bool, ...], **options: Any) -> Search:
    """Tree-structured Parzen estimator of Optuna, the authors' sampler; any number of objectives.

    Args:
      space: what the bits mean.
      maximize: one direction per objective.
      **options: of `optuna_search`.

    Source: Bergstra et al., NeurIPS 2011, as in Optuna with its default settings.
    """
    import optuna

    make = lambda seed: optuna.samplers.TPESampler(seed=seed)  # noqa: E731
    return optuna_search(space, make, maximize=maximize, **options)


def nsga2(
    space: MaskSpace, *, maximize: tuple[bool, ...], population_size: int = 16, **options: Any
) -> Search:
    """NSGA-II of Optuna, for several objectives whose Pareto front is wanted.

    Args:
      space: what the bits mean.
      maximize: one direction per objective.
      population_size: candidates per generation.
      **options: of `optuna_search`.

    Source: Deb et al., IEEE Transactions on Evolutionary Computation 2002.
    """
    import optuna

    make = lambda seed: optuna.samplers.NSGAIISampler(  # noqa: E731
        seed=seed, population_size=population_size
    )
    return optuna_search(space, make, maximize=maximize, **options)


def optuna_search(
    space: MaskSpace,
    make_sampler: Callable[[int], Any],
    *,
    maximize: tuple[bool, ...],
    learning_rates: tuple[float, float] = LEARNING_RATES,
    storage: str | None = None,
    fingerprint: Mapping[str, str] | None = None,
    worker: int = 0,
    first_masks: Sequence[np.ndarray] = (),
) -> Search:
    """Any Optuna sampler as a `Search`; candidates that are out count as pending (constant liar).

    The sampler's seed depends on how many candidates were asked for, so a search that goes on from
    a saved state asks for what it would have asked for. Trials that the storage holds beyond that
    state are marked as abandoned and failed.

    Several processes may share a storage (a journal file, or PostgreSQL; not SQLite) as different
    workers: each asks for and is told its own trials, and the sampler learns from all. What a
    worker asks for then depends on what the others have told, so that only a single worker repeats
    itself exactly.

    Args:
      space: what the bits mean.
      make_sampler: `make_sampler(seed)`.
      maximize: one direction per objective.
      learning_rates: range, log-uniform.
      storage: database URL, or the path of a journal file; None keeps the study in memory.
      fingerprint: further facts, such as that of the data, that a stored study must agree with.
      worker: number of this process among those that share the storage.
      first_masks: masks `[U]` to ask for first, with learning rates that the sampler chooses.

    Returns:
      `Search`, whose `init` raises ValueError if the stored study disagrees with the space, the
      directions or the fingerprint.

    Raises:
      ValueError: no objective, or an empty or negative range of learning rates.
    """
    import optuna

    _log_range(learning_rates)
    if not maximize:
        raise ValueError("maximize needs one direction per objective")
    units = hashlib.sha256(json.dumps(space.units).encode()).hexdigest()[:16]
    facts = {"space": space.name, "units": units, "learning_rates": str(learning_rates)}
    facts |= dict(fingerprint or {})
    studies: list[Any] = []

    def init(seed: int) -> StudyState:
        with _quiet():
            study = optuna.create_study(
                study_name="fairtune",
                storage=_open_storage(storage),
                directions=["maximize" if up else "minimize" for up in maximize],
                load_if_exists=True,
            )
        for name, value in facts.items():
            before = study.user_attrs.get(name, value)
            if before != value:
                raise ValueError(
                    f"the study in {storage} was made for {name} {before}, not {value}; "
                    "use another storage"
                )
            study.set_user_attr(name, value)
        studies[:] = [study]
        return StudyState(np.array(seed, np.int32), np.array(0, np.int32))

    def ask(state: StudyState, count: int):
        (study,) = studies
        known = _own_trials(study, worker)
        if len(known) < state.asked:
            raise ValueError(
                f"the study knows {len(known)} of the {state.asked} trials asked for; "
                "go on with the storage that holds them"
            )
        for trial in known[int(state.asked) :]:
            study._storage.set_trial_user_attr(trial._trial_id, "abandoned", True)
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL, skip_if_finished=True)
        seed = (int(state.seed) + 7919 * worker) * 1_000_003 + int(state.asked)
        study.sampler = make_sampler(seed % 2**32)
        trials = []
        for mask in itertools.islice(itertools.chain(first_masks[int(state.asked) :],
                                                     itertools.repeat(None)), count):  # fmt: skip
            fixed = {} if mask is None else dict(zip(space.units, map(bool, mask), strict=True))
            trial = _new_trial(study, worker, fixed)
            for unit in space.units:
                trial.suggest_categorical(unit, [False, True])
            trial.suggest_float("learning_rate", *learning_rates, log=True)
            trials.append(trial)
        masks = [[trial.params[unit] for unit in space.units] for trial in trials]
        candidates = Candidates(
            np.array([trial.number for trial in trials], np.int32),
            np.array(masks, bool).reshape(count, space.num_units),
            np.array([trial.params["learning_rate"] for trial in trials], np.float32),
        )
        return candidates, state._replace(asked=state.asked + np.int32(count))

    def tell(state: StudyState, candidates: Candidates, values, epochs=None) -> StudyState:
        (study,) = studies
        stopped = np.zeros(len(candidates.numbers), int) if epochs is None else np.asarray(epochs)
        values = np.asarray(values, float)
        for number, row, epoch in zip(candidates.numbers, values, stopped, strict=True):
            with _quiet():
                if np.isnan(row).any():
                    study.tell(int(number), state=optuna.trial.TrialState.FAIL,
                               skip_if_finished=True)  # fmt: skip
                elif epoch:
                    _report(study, int(number), int(epoch), float(row[0]))
                    study.tell(int(number), state=optuna.trial.TrialState.PRUNED,
                               skip_if_finished=True)  # fmt: skip
                else:
                    study.tell(int(number), row.tolist(), skip_if_finished=True)
        return state

    return Search(init, ask, tell)


def _new_trial(study: Any, worker: int, fixed: Mapping[str, bool]) -> Any:
    """`study.ask`, but the trial names its worker from the moment it exists."""
    import optuna

    template = optuna.trial.create_trial(
        state=optuna.trial.TrialState.RUNNING,
        user_attrs={"worker": worker},
        system_attrs={"fixed_params": dict(fixed)},
    )
    trial_id = study._storage.create_new_trial(study._study_id, template_trial=template)
    study._thread_local.cached_all_trials = None  # the sampler is to see what others have told
    return optuna.Trial(study, trial_id)


def _own_trials(study: Any, worker: int) -> list[Any]:
    """A worker's trials in order, without those that a kill left behind."""
    trials = study.get_trials(deepcopy=False)
    own = [trial for trial in trials if trial.user_attrs.get("worker") == worker]
    return [trial for trial in own if "abandoned" not in trial.user_attrs]


def _report(study: Any, number: int, epoch: int, value: float) -> None:
    """Give a trial that will be pruned its value; Optuna takes it from the reports."""
    trial = study.get_trials(deepcopy=False)[number]
    if not trial.state.is_finished():
        study._storage.set_trial_intermediate_value(trial._trial_id, epoch, value)


def _open_storage(storage: str | None) -> Any:
    if storage is None or "://" in storage:
        return storage
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(storage))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Optuna logs a line per trial unless told not to."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _draw(key: jax.Array, num_units: int, low: float, high: float) -> tuple[jax.Array, jax.Array]:
    """A random mask `[U]` and the logarithm of a learning rate."""
    key_mask, key_rate = jax.random.split(key)
    log_rate = jax.random.uniform(key_rate, (), minval=low, maxval=max(high, low + 1e-6))
    return jax.random.bernoulli(key_mask, 0.5, (num_units,)), jnp.minimum(log_rate, high)


def _log_range(learning_rates: tuple[float, float]) -> tuple[float, float]:
    low, high = learning_rates
    if not 0 < low <= high:
        raise ValueError(f"learning_rates must be an increasing positive range, got {low}, {high}")
    return math.log(low), math.log(high)
