"""Searches by Optuna: TPE, NSGA-II, or any sampler of its own, resumable and shared."""

import contextlib
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fairjax.fairtune.objectives import Objective
from fairjax.fairtune.options import NO_OPTIONS, Options, num_values, option_facts
from fairjax.fairtune.search import (
    LEARNING_RATES,
    Candidates,
    Search,
    directions_of,
    log_range,
)
from fairjax.fairtune.spaces import MaskSpace


class StudyState(NamedTuple):
    """How far an Optuna study is; the trials themselves are in its storage."""

    seed: Any
    asked: Any


def tpe(space: MaskSpace, objectives: Sequence[Objective], **options: Any) -> Search:
    """Tree-structured Parzen estimator of Optuna, the authors' sampler; any number of objectives.

    Args:
      space: what the bits mean.
      objectives: one or several.
      **options: of `optuna_search`.

    Source: Bergstra et al., NeurIPS 2011, as in Optuna with its default settings.
    """
    import optuna

    make = lambda seed: optuna.samplers.TPESampler(seed=seed)
    return optuna_search(space, objectives, make, **options)


def nsga2(
    space: MaskSpace, objectives: Sequence[Objective], *, population_size: int = 16, **options: Any
) -> Search:
    """NSGA-II of Optuna, for several objectives whose Pareto front is wanted.

    Args:
      space: what the bits mean.
      objectives: one or several.
      population_size: candidates per generation.
      **options: of `optuna_search`.

    Source: Deb et al., IEEE Transactions on Evolutionary Computation 2002.
    """
    import optuna

    make = lambda seed: optuna.samplers.NSGAIISampler(seed=seed, population_size=population_size)
    return optuna_search(space, objectives, make, **options)


def optuna_search(
    space: MaskSpace,
    objectives: Sequence[Objective],
    make_sampler: Callable[[int], Any],
    *,
    learning_rates: tuple[float, float] = LEARNING_RATES,
    options: Options = NO_OPTIONS,
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
      objectives: one or several.
      make_sampler: `make_sampler(seed)`.
      learning_rates: range, log-uniform.
      options: what candidates choose among besides, categorical.
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
    log_range(learning_rates)
    maximize = directions_of(objectives)
    units = hashlib.sha256(json.dumps(space.units).encode()).hexdigest()[:16]
    facts = {"space": space.name, "units": units, "learning_rates": str(learning_rates)}
    facts |= option_facts(options) | dict(fingerprint or {})
    sizes = num_values(options)
    studies: list[Any] = []

    def init(seed: int) -> StudyState:
        studies[:] = [_open_study(storage, maximize, facts)]
        return StudyState(np.array(seed, np.int32), np.array(0, np.int32))

    def ask(state: StudyState, count: int):
        (study,) = studies
        _abandon(study, worker, int(state.asked))
        seed = (int(state.seed) + 7919 * worker) * 1_000_003 + int(state.asked)
        study.sampler = make_sampler(seed % 2**32)
        trials = []
        first = first_masks[int(state.asked) :]
        for mask in itertools.islice(itertools.chain(first, itertools.repeat(None)), count):
            fixed = {} if mask is None else dict(zip(space.units, map(bool, mask), strict=True))
            trial = _new_trial(study, worker, fixed)
            for unit in space.units:
                trial.suggest_categorical(unit, [False, True])
            trial.suggest_float("learning_rate", *learning_rates, log=True)
            for name, size in zip(options, sizes, strict=True):
                trial.suggest_categorical(f"option {name}", list(range(size)))
            trials.append(trial)
        masks = [[trial.params[unit] for unit in space.units] for trial in trials]
        choices = [[trial.params[f"option {name}"] for name in options] for trial in trials]
        candidates = Candidates(
            np.array([trial.number for trial in trials], np.int32),
            np.array(masks, bool).reshape(count, space.num_units),
            np.array([trial.params["learning_rate"] for trial in trials], np.float32),
            np.array(choices, np.int32) if options else None,
        )
        return candidates, state._replace(asked=state.asked + np.int32(count))

    def tell(state: StudyState, candidates: Candidates, values, epochs=None) -> StudyState:
        (study,) = studies
        stopped = np.zeros(len(candidates.numbers), int) if epochs is None else np.asarray(epochs)
        values = np.asarray(values, float)
        for number, row, epoch in zip(candidates.numbers, values, stopped, strict=True):
            _tell_trial(study, int(number), row, int(epoch))
        return state

    return Search(init, ask, tell, space.num_units, maximize, sizes)


def _open_study(storage: str | None, maximize: tuple[bool, ...], facts: Mapping[str, str]) -> Any:
    """A new study, or a stored one that agrees in directions and facts."""
    import optuna

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
    return study


def _abandon(study: Any, worker: int, asked: int) -> None:
    """Fail what a worker asked for beyond a state that it goes on from: a kill lost it."""
    import optuna

    name = f"abandoned by worker {worker}"
    lost = list(study.user_attrs.get(name, []))
    own = [t for t in _own_trials(study, worker) if t.number not in lost]
    if len(own) < asked:
        raise ValueError(
            f"the study knows {len(own)} of the {asked} trials asked for; "
            "go on with the storage that holds them"
        )
    waiting = optuna.trial.TrialState.WAITING  # asked for in vain: `ask` takes it up again
    beyond = [t.number for t in own[asked:] if t.state != waiting]
    if beyond:
        study.set_user_attr(name, lost + beyond)
    for number in beyond:
        study.tell(number, state=optuna.trial.TrialState.FAIL, skip_if_finished=True)


def _new_trial(study: Any, worker: int, fixed: Mapping[str, bool]) -> Any:
    """`study.ask`, but the trial names its worker from the moment it exists."""
    import optuna

    waiting = optuna.trial.TrialState.WAITING
    if not any(trial.state == waiting for trial in _own_trials(study, worker)):
        study.enqueue_trial(dict(fixed), user_attrs={"worker": worker})
    trial = study.ask()
    if trial.user_attrs.get("worker") != worker:  # another's, who takes ours in turn
        trial.set_user_attr("worker", worker)
    return trial


def _own_trials(study: Any, worker: int) -> list[Any]:
    """A worker's trials in order."""
    trials = study.get_trials(deepcopy=False)
    return [trial for trial in trials if trial.user_attrs.get("worker") == worker]


def _tell_trial(study: Any, number: int, values: np.ndarray, epoch: int) -> None:
    """Tell one trial's values; nan is a failure, a positive epoch an early stop."""
    import optuna

    states = optuna.trial.TrialState
    with _quiet():
        if np.isnan(values).any():
            study.tell(number, state=states.FAIL, skip_if_finished=True)
        elif not epoch:
            study.tell(number, values.tolist(), skip_if_finished=True)
        else:
            frozen = study.get_trials(deepcopy=False)[number]
            if not frozen.state.is_finished():
                # a pruned trial's value is its last report, and only a `Trial` reports
                optuna.Trial(study, frozen._trial_id).report(float(values[0]), epoch)
                study.tell(number, state=states.PRUNED)


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
