"""The methods that a comparison trains on one setting; those that can do so share a program."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from experiments import cli
from experiments.run import timed
from fairjax.data import Dataset, Splits
from fairjax.fairbatch import CRITERIA, SIGNALS, fairbatch
from fairjax.losses import cross_entropy, focal_loss
from fairjax.metrics.rate_comparison import rates_of_preds
from fairjax.models import Model
from fairjax.sampling import (
    Balance,
    BatchSampler,
    arrange_splits,
    balance_weights,
    group_dro,
    reweighted,
    shuffled,
    weighted,
)
from fairjax.train import (
    Recipe,
    fit_heads,
    fit_population,
    init_population,
    logits_of_rows,
    make_step,
    measure_cells,
    seed_keys,
)

NUM_CALLS = 10  # calls that a training is cut into: the epochs that selection chooses among
SUBSETS, PENALTIES = 5, (1e-4, 1e-3, 1e-2)  # of last-layer retraining
Criterion = Literal["equalized_odds", "equal_opportunity", "demographic_parity"]
Method = Literal[
    "plain",
    "class_balanced",
    "group_balanced",
    "reweighted",
    "group_dro",
    "jtt",
    "focal",
    "dfr",
    "fairbatch",
    "fairbatch@rate",
]
METHODS: tuple[Method, ...] = get_args(Method)


class Strengths(NamedTuple):
    """The numbers of the methods."""

    fairbatch_step: float
    rate_step: float
    dro_step: float
    upweight: float
    gamma: float


class Setting(NamedTuple):
    """What all methods of a table share; a run is a split and a seed, F * S of them."""

    data: Dataset
    splits: Splits
    num_seeds: int
    model: Model
    recipe: Recipe
    criterion: str
    strengths: Strengths
    start_seed: int = 0
    batch_seed: int = 0

    @property
    def split_of_run(self) -> np.ndarray:
        """Int `[F * S]`."""
        return np.repeat(np.arange(len(self.splits.train)), self.num_seeds)

    def arguments(self) -> dict[str, Any]:
        """Of every sampler."""
        data = self.data
        ids = {"labels": data.labels, "group": data.group, "batch_size": self.recipe.batch_size}
        return {**ids, "num_classes": data.num_classes, "num_groups": data.num_groups}

    def rates(self, preds: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Metrics of predictions `[..., n]` for rows `[n]`; see `rates_of_preds`."""
        data = self.data
        ids = {"labels": data.labels[rows], "group": data.group[rows]}
        return rates_of_preds(preds, **ids, num_groups=data.num_groups)

    def logits(self, weights: "Trained", rows: np.ndarray) -> np.ndarray:
        """Of runs `[P, ...]`, each on rows of its own `[P, n]`; `[P, n, K]`."""
        params, batch_stats = weights.params, weights.batch_stats
        inputs = jnp.asarray(self.data.inputs)
        return np.asarray(logits_of_rows(self.model, params, batch_stats, inputs, rows))


class Trained(NamedTuple):
    """One method's runs at the ends of E stretches of its training."""

    params: Any
    """Leaves `[E, F * S, ...]`."""
    batch_stats: Any
    val: np.ndarray
    """Logits of the validation rows of each run's split, float32 `[E, F * S, m, K]`."""

    def at(self, stage: np.ndarray) -> "Trained":
        """Every run at a stage of its own, `[F * S]`; leaves `[F * S, ...]`."""
        pick = lambda leaf: np.asarray(leaf)[stage, np.arange(len(stage))]
        return Trained(*jax.tree.map(pick, tuple(self)))

    def at_call(self, number: int) -> "Trained":
        """All runs at one stage, 0 the first and -1 the last."""
        return self.at(np.full(self.val.shape[1], number))


class Program(NamedTuple):
    """Methods that one compiled program trains."""

    sampler: BatchSampler
    choices: Mapping[str, Mapping[str, Any]]
    """Method -> arguments of `sampler.init`, a number or an array `[F * S, ...]` each."""
    full_pass: bool = False
    update_every: int | None = None
    loss_fn: Callable[..., jax.Array] = cross_entropy


def make_recipe(num_steps: int, num_rows: int, batch_size: int, learning_rate: float) -> Recipe:
    """Of at least so many steps, in `NUM_CALLS` stretches of whole epochs."""
    per_call = -(-num_steps // (NUM_CALLS * max(1, num_rows // batch_size)))
    return Recipe(
        num_epochs=NUM_CALLS * per_call,
        batch_size=batch_size,
        learning_rate=learning_rate,
        schedule="constant",
    )


def train_methods(
    setting: Setting, wanted: tuple[str, ...], timing: dict[str, float]
) -> tuple[dict[str, Trained], list[str]]:
    """Every wanted method that applies, in their order, and why others were left out."""
    found: dict[str, Trained] = {}
    notes: list[str] = []
    for make in (_fairbatch, _dro, _by_loss, _by_draws, _focal):
        try:
            program = make(setting, found)
        except ValueError as error:  # a factory that says why it does not apply
            notes.append(f"{(make.__doc__ or '').split(':')[0]} left out: {error}")
            continue
        choices = {name: row for name, row in program.choices.items() if name in wanted}
        if choices:
            found |= _train(setting, program._replace(choices=choices), timing)
    if "dfr" in wanted and "plain" in found:
        with timed(timing, "heads_s"):
            found["dfr"] = _retrain(setting, found["plain"])
        cli.say("trained dfr")
    return {name: found[name] for name in wanted if name in found}, notes


def _fairbatch(setting: Setting, _) -> Program:
    """plain, fairbatch: measured before every epoch."""
    numbers, criterion = setting.strengths, CRITERIA.index(setting.criterion)
    loss = {"criterion": criterion, "signal": SIGNALS.index("loss")}
    rate = {**loss, "signal": SIGNALS.index("rate"), "step_size": numbers.rate_step, "decay": 0.5}
    rows = {
        "plain": {**loss, "criterion": 0, "step_size": 1.0, "decay": 0.0},
        "fairbatch": {**loss, "step_size": numbers.fairbatch_step, "decay": 0.0},
        "fairbatch@rate": rate,
    }
    return Program(fairbatch(**setting.arguments()), rows, full_pass=True)


def _dro(setting: Setting, _) -> Program:
    """group_dro: its weights move with every batch."""
    rows = {"group_dro": {"step_size": setting.strengths.dro_step}}
    return Program(group_dro(**setting.arguments()), rows, update_every=1)


def _by_loss(setting: Setting, _) -> Program:
    """reweighted: losses weigh as if label and group were independent."""
    return Program(reweighted(**setting.arguments()), {"reweighted": {}})


def _focal(setting: Setting, _) -> Program:
    """focal: plain batches, another loss."""
    loss_fn = functools.partial(focal_loss, gamma=setting.strengths.gamma)
    return Program(shuffled(**setting.arguments()), {"focal": {}}, loss_fn=loss_fn)


def _by_draws(setting: Setting, found: Mapping[str, Trained]) -> Program:
    """class_balanced, group_balanced, jtt: rows are drawn with replacement, by weights."""
    data, train = setting.data, setting.splits.train
    rows: dict[str, dict[str, Any]] = {}
    balances: dict[str, Balance] = {"class_balanced": "classes", "group_balanced": "cells"}
    for name, over in balances.items():
        counts = np.zeros((len(train), data.num_classes, data.num_groups), int)
        for split, own in enumerate(train):
            np.add.at(counts[split], (data.labels[own], data.group[own]), 1)
        by_cell = np.stack([np.asarray(balance_weights(each, over)) for each in counts])
        of_split = by_cell[:, data.labels, data.group]
        rows[name] = {"example_weights": of_split[setting.split_of_run]}
    if "plain" in found:
        first = found["plain"].at_call(0)
        own = train[setting.split_of_run]
        wrong = setting.logits(first, own).argmax(-1) != data.labels[own]
        times = np.ones((len(own), len(data.labels)), np.float32)
        np.put_along_axis(times, own, np.where(wrong, setting.strengths.upweight, 1), axis=1)
        rows["jtt"] = {"example_weights": times}
    return Program(weighted(**setting.arguments()), rows)


def _train(setting: Setting, program: Program, timing: dict[str, float]) -> dict[str, Trained]:
    """All runs of the program's methods as one population, kept at the end of every stretch."""
    data, model, names = setting.data, setting.model, list(program.choices)
    num_train = setting.splits.train.shape[1]
    sampler = program.sampler._replace(batches_per_epoch=num_train // setting.recipe.batch_size)
    optimizer = setting.recipe.make_optimizer(sampler.batches_per_epoch)
    step = make_step(model, optimizer, loss_fn=program.loss_fn)
    measure = functools.partial(measure_cells, model, sampler) if program.full_pass else None

    @functools.partial(jax.jit, donate_argnums=0)
    def stretch(states, examples):
        return fit_population(
            step,
            states,
            examples,
            sampler,
            num_epochs=setting.recipe.num_epochs // NUM_CALLS,
            measure_fn=measure,
            update_every=program.update_every,
        )[0]

    states = _start(setting, program, sampler, optimizer)
    examples = jax.tree.map(jnp.asarray, data.rows(np.arange(len(data.labels))))
    cli.phase(f"compiling {', '.join(names)} as one program")
    with timed(timing, "compile_s"):
        run = stretch.lower(states, examples).compile()
    own = setting.splits.val[np.tile(setting.split_of_run, len(names))]
    stages = []
    with timed(timing, "train_s"):
        for _ in range(NUM_CALLS):
            states = run(states, examples)
            params, stats = jax.device_get((states.train.final_params, states.train.batch_stats))
            val = logits_of_rows(model, params, stats, examples.inputs, own)
            stages.append(Trained(params, stats, np.asarray(val)))
    together = jax.tree.map(lambda *leaves: np.stack(leaves), *stages)
    cli.say(f"trained {', '.join(names)}")
    split = lambda leaf: leaf.reshape(NUM_CALLS, len(names), -1, *leaf.shape[2:])
    by_name = jax.tree.map(split, together)
    return {
        name: jax.tree.map(lambda leaf, i=i: leaf[:, i], by_name) for i, name in enumerate(names)
    }


def _start(setting: Setting, program: Program, sampler: BatchSampler, optimizer: Any) -> Any:
    """All runs before their first epoch, ordered by method, split and seed.

    Methods start alike and have the same keys, so that their differences are paired.
    """
    num_splits, num_runs = len(setting.splits.train), len(setting.split_of_run)
    count = len(program.choices)
    arguments = setting.arguments()
    del arguments["batch_size"]
    rows = arrange_splits(**arguments, rows=setting.splits.train)
    choices = {
        name: np.concatenate(
            [
                np.broadcast_to(row[name], (num_runs, *np.shape(row[name])[1:]))
                for row in program.choices.values()
            ]
        )
        for name in next(iter(program.choices.values()))
    }
    keys = jnp.tile(seed_keys(setting.num_seeds, setting.start_seed), num_splits)
    # not the keys that drew the parameters
    order = jnp.tile(seed_keys(setting.num_seeds, setting.batch_seed), num_splits)
    order = jax.vmap(jax.random.fold_in)(order, 1 + setting.split_of_run)
    number = np.tile(np.arange(num_runs), count)

    @jax.jit
    def init(keys, order, rows, choices):
        params, stats = jax.tree.map(lambda leaf: leaf[number], jax.vmap(setting.model.init)(keys))
        choices |= {"rows": jax.tree.map(lambda leaf: leaf[setting.split_of_run[number]], rows)}
        how = {"keys": order[number], "choices": choices}
        return init_population(params, stats, optimizer, sampler, **how)

    return init(keys, order, rows, choices)


def _retrain(setting: Setting, plain: Trained) -> Trained:
    """The last layer of plain training's last epoch, trained anew on balanced rows; E is 1.

    Of every cell as many training rows as the smallest has, drawn `SUBSETS` times, whose heads are
    averaged; the penalty is that of highest worst-group accuracy on validation.
    """
    data, last = setting.data, plain.at_call(-1)
    cells = data.labels * data.num_groups + data.group
    params = jax.tree.map(np.array, last.params)
    for run, split in enumerate(setting.split_of_run):
        rows, val = setting.splits.train[split], setting.splits.val[split]
        weights = _balanced_subsets(cells[rows], SUBSETS, seed=setting.batch_seed + run)
        rows, weights = rows[weights.any(0)], weights[:, weights.any(0)]
        network = jax.tree.map(lambda leaf, run=run: leaf[run], last)
        features = _features(setting.model, network, data.inputs[np.concatenate([rows, val])])
        heads = fit_heads(
            features[: len(rows)],
            data.labels[rows],
            example_weights=np.tile(weights, (len(PENALTIES), 1)),
            l2=np.repeat(np.array(PENALTIES, np.float32), SUBSETS),
            max_steps=100,
        )
        kernel, bias = (
            np.asarray(leaf).reshape(len(PENALTIES), SUBSETS, -1).mean(1) for leaf in heads[:2]
        )
        preds = (kernel @ features[len(rows) :].T + bias > 0).astype(int)
        best = int(setting.rates(preds, val)["worst_group_accuracy"].argmax())
        # one column of weights stands for the logits [-z, z], two for themselves
        head, half = params["head"], np.array([-0.5, 0.5])[-params["head"]["bias"].shape[1] :]
        head["kernel"][run], head["bias"][run] = kernel[best][:, None] * half, bias[best] * half
    trained = Trained(params, last.batch_stats, last.val)
    own = setting.splits.val[setting.split_of_run]
    return jax.tree.map(lambda leaf: leaf[None], trained._replace(val=setting.logits(trained, own)))


def _balanced_subsets(cells: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Weights `[count, n]`: 1 for as many rows of each cell as the smallest has, else 0."""
    generator = np.random.default_rng(seed)
    present, sizes = np.unique(cells, return_counts=True)
    weights = np.zeros((count, len(cells)), np.float32)
    for own in weights:
        for cell in present:
            rows = np.flatnonzero(cells == cell)
            own[generator.choice(rows, sizes.min(), replace=False)] = 1
    return weights


def _features(model: Model, network: Trained, inputs: np.ndarray) -> np.ndarray:
    """What the last layer sees, `[n, D]`: the inputs, or the last hidden layer after its ReLU."""
    out = model.apply(network.params, network.batch_stats, jnp.asarray(inputs))[1]
    return np.maximum(np.asarray(out[list(out)[-1]]), 0) if out else np.asarray(inputs)
