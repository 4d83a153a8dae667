"""FairBatch beside plain training, all criteria, signals and seeds as one compiled population.

    python -m experiments.fairbatch                      Adult by sex; 2 CPU cores: 30 s
    python -m experiments.fairbatch --update-every 5     shares move every 5 batches
    python -m experiments.fairbatch synthetic            the paper's two Gaussians, its settings
    python -m experiments.fairbatch compas --data.csv compas-scores-two-years.csv
    python -m experiments.fairbatch csv --data.csv my.csv --data.label y --data.sensitive sex

Expect on Adult: accuracy .848 plain; equal_opportunity_difference .071 plain, .037 with its rate
signal; demographic_parity_difference .178 plain, .009 with its rate signal.

Rows of the table: `plain`, then each criterion with the published signal (`equal_opportunity`) and
with the measured rates (`equal_opportunity@rate`).
"""

import dataclasses
import functools
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

from experiments import cli, results
from experiments.data import Data, load_data
from experiments.files import named_errors, replacing
from experiments.run import Run, main, timed
from fairjax import report
from fairjax.data import Dataset
from fairjax.fairbatch import CRITERIA, SIGNALS, Draw, Signal, fairbatch
from fairjax.models import Model, logistic_regression, mlp
from fairjax.optimizers import Optimizer, Schedule
from fairjax.report.fairbatch import fairbatch_figures, fairbatch_sentence
from fairjax.sampling import BatchSampler
from fairjax.train import (
    FitState,
    Recipe,
    fit_population,
    init_population,
    measure_cells,
    population_logits,
    seed_keys,
)
from fairjax.train.loop import check_cadence
from fairjax.trees import flatten_named, map_named

Watched = Literal["equal_opportunity", "equalized_odds", "demographic_parity"]
Moved = Annotated[float, cli.Range(0, 1, above=True)]


@dataclasses.dataclass(frozen=True)
class Config:
    """FairBatch on a table."""

    about: cli.Hidden = ""
    data: Data = Data("adult")
    seeds: cli.Seeds = cli.Seeds()
    criteria: tuple[Watched, ...] = ("equal_opportunity", "equalized_odds", "demographic_parity")
    """plain training always runs beside them"""
    signals: tuple[Signal, ...] = ("loss", "rate")
    """what the criteria compare between groups: cell losses (published) or the rates themselves"""
    signal_split: Literal["train", "val"] = "train"
    """the split on which the signal is measured before every epoch"""
    update_every: cli.Count | None = None
    """move the shares every that many batches, by the signal in those batches alone; must divide
    the batches of an epoch. By default before every epoch, by a full pass (published)"""
    num_seeds: cli.Count = 10
    num_epochs: cli.Count = 60
    batch_size: cli.Count = 500
    learning_rate: cli.Positive = 0.005
    optimizer: Optimizer = "adamw"
    """without weight decay adamw is the published Adam"""
    schedule: Schedule = "constant"
    weight_decay: cli.NonNegative = 0.0
    step_size: Moved = 0.01
    """share of a label that one update moves between groups (the paper's alpha)"""
    rate_step_size: Moved = 0.04
    """the same for the rate signal, whose steps shrink as 1 / sqrt(updates)"""
    hidden: tuple[cli.Count, ...] = ()
    """units of hidden layers; none is logistic regression"""
    draw: Draw = "exact"
    pretrained: Path | None = None
    """fine-tune the `plain` models of an earlier run's folder instead of starting at random"""
    num_replicates: cli.Replicates = 200
    """bootstrap replicates behind the 95 % intervals"""
    out: Path | None = None
    """result folder; default runs/fairbatch-<time>"""
    resume: bool = False
    """go on with the interrupted run in --out"""


PRESETS = {
    "adult": Config(
        about="UCI Adult by sex, logistic regression on all features; 30 s on 2 cores",
        # a group's true-positive rate needs a large test split
        data=Data("adult", split="0.5,0.1,0.4"),
    ),
    "synthetic": Config(
        about="the paper's synthetic set and settings; 20 s on 2 cores",
        data=Data("synthetic"),
        num_epochs=450,
        batch_size=100,
        learning_rate=0.0005,
        step_size=0.005,
    ),
    "compas": Config(
        about="COMPAS by sex: --data.csv is ProPublica's compas-scores-two-years.csv",
        data=Data("compas"),
        batch_size=200,
    ),
    "csv": Config(
        about="a table of yours: --data.csv, --data.label, --data.sensitive", data=Data("csv")
    ),
    "smoke": Config(
        about="seconds, for tests",
        data=Data("synthetic"),
        num_seeds=2,
        num_epochs=4,
        batch_size=100,
        num_replicates=20,
    ),
}

SHOWN = (
    "accuracy",
    "auc",
    "equal_opportunity_difference",
    "equal_opportunity_deviation",
    "equalized_odds_difference",
    "equalized_odds_deviation",
    "demographic_parity_difference",
    "demographic_parity_deviation",
)
COMPARED = (*SHOWN, "worst_group_auc", "auc_gap")
NUM_CALLS = 10  # compiled calls that a run is cut into, a checkpoint after each


class Task(NamedTuple):
    """What the stages share."""

    config: Config
    run: Run
    data: Dataset
    model: Model
    params: Any
    """Initial parameters of every seed, leaves `[S, ...]`."""
    recipe: Recipe
    sampler: BatchSampler


def prepare_run(config: Config):
    """Read and check everything; returns the function that trains."""
    cli.check_numbers(config)
    if config.update_every is not None and config.signal_split != "train":
        raise ValueError(
            "--update-every takes the signal from training batches; leave --signal-split out"
        )
    recipe = Recipe(
        num_epochs=config.num_epochs,
        batch_size=config.batch_size,
        optimizer=config.optimizer,
        learning_rate=config.learning_rate,
        schedule=config.schedule,
        weight_decay=config.weight_decay,
    )
    run = Run("fairbatch", config, out=config.out, resume=config.resume)
    cli.phase(f"reading {config.data.source}")
    data = load_data(config.data)
    examples = data.examples("train")
    sampler = fairbatch(
        labels=examples.labels,
        group=examples.group,
        num_classes=data.num_classes,
        num_groups=data.num_groups,
        batch_size=config.batch_size,
        draw=config.draw,
    )
    check_cadence(sampler, config.update_every is None, config.update_every)
    sizes = data.inputs.shape[1], data.num_classes
    model = mlp(*sizes, config.hidden) if config.hidden else logistic_regression(*sizes)
    task = Task(config, run, data, model, initial_params(config, model), recipe, sampler)
    return lambda: run_all(task)


def initial_params(config: Config, model: Model) -> Any:
    """Parameters of every seed, leaves `[S, ...]`: drawn, or read from an earlier run."""
    keys = seed_keys(config.num_seeds, config.seeds.start)
    params = jax.vmap(lambda key: model.init(key)[0])(keys)
    if config.pretrained is None:
        return params
    path = config.pretrained / "models.safetensors"
    if not path.exists():
        raise FileNotFoundError(f"--pretrained needs a finished run's folder: no {path}")
    with named_errors("read", path):
        saved = load_file(path)

    def pick(name: str, leaf: jax.Array) -> jax.Array:
        found = saved.get(f"plain/{name}")
        if found is None or found.shape[1:] != leaf.shape[1:]:
            raise ValueError(
                f"{path}: plain/{name} should have shape (seeds, {leaf.shape[1:]}), "
                f"found {None if found is None else found.shape}; use the same data and --hidden"
            )
        return jnp.asarray(found[np.arange(config.num_seeds) % len(found)])

    return map_named(pick, params)


def row_choices(config: Config) -> dict[str, dict[str, float]]:
    """Row name -> what `sampler.init` takes; plain training first."""

    def choices(criterion: str, signal: str) -> dict[str, float]:
        published = {"step_size": config.step_size, "decay": 0.0}
        step = published if signal == "loss" else {"step_size": config.rate_step_size, "decay": 0.5}
        return {"criterion": CRITERIA.index(criterion), "signal": SIGNALS.index(signal), **step}

    rows = {"plain": choices("none", "loss")}
    for signal in config.signals:
        for criterion in config.criteria:
            name = criterion if signal == "loss" else f"{criterion}@{signal}"
            rows[name] = choices(criterion, signal)
    return rows


def run_all(task: Task) -> None:
    """Train all rows and seeds as one population, judge them on test, write the folder."""
    config, run, data = task.config, task.run.start(), task.data
    timing: dict[str, float] = {"compile_s": 0.0, "train_s": 0.0}
    rows, params = list(row_choices(config)), train(task, timing).train.params
    logits = population_logits(task.model, params, {}, data, "test")
    logits = logits.reshape(len(rows), config.num_seeds, *logits.shape[1:])
    compared = results.judge(
        dict(zip(rows, logits, strict=True)),
        data,
        timing,
        shown=COMPARED,
        num_replicates=config.num_replicates,
    )
    by_row, notes = report.summarise(rows, compared, data.group_names)
    save_models(run.folder / "models.safetensors", rows, params)
    cli.phase("drawing the report")
    results.show(
        run,
        data,
        by_row,
        timing=timing,
        notes=notes,
        title=f"FairBatch on {data.name}",
        question="Does choosing batches by group make the model fairer, and at what accuracy?",
        answer=fairbatch_sentence(by_row, data.name),
        shown=SHOWN,
        figures=fairbatch_figures(run.history(), by_row, config.criteria, data),
        legend=(
            "diff: largest gap between two groups; dev: largest distance of a group from the "
            "pooled rate (the FairBatch paper's measure)."
        ),
    )


def start_runs(task: Task, optimizer: Any) -> FitState:
    """All runs before their first epoch, leaves `[R * S, ...]` row by row."""
    config, rows = task.config, list(row_choices(task.config).values())
    choices = {name: np.repeat([row[name] for row in rows], config.num_seeds) for name in rows[0]}
    seed = np.tile(np.arange(config.num_seeds), len(rows))
    params = jax.tree.map(lambda leaf: leaf[seed], task.params)
    # not the key that drew the parameters
    keys = jax.vmap(jax.random.fold_in, (0, None))(
        seed_keys(config.num_seeds, config.seeds.batches), 1
    )

    @jax.jit
    def init(params, keys, choices):
        return init_population(params, {}, optimizer, task.sampler, keys=keys, choices=choices)

    return init(params, keys[seed], choices)


def train(task: Task, timing: dict[str, float]) -> FitState:
    """The trained runs; goes on where an interrupted run stopped."""
    config, run, data, sampler = task.config, task.run, task.data, task.sampler
    rows = list(row_choices(config))
    optimizer = task.recipe.make_optimizer(sampler.batches_per_epoch)
    step = task.recipe.make_step(task.model, optimizer, data)
    full_pass = functools.partial(measure_cells, task.model, sampler)

    @functools.partial(jax.jit, static_argnums=3, donate_argnums=0)
    def train_epochs(states, examples, measured, num_epochs):
        return fit_population(
            step,
            states,
            examples,
            sampler,
            num_epochs=num_epochs,
            measure_fn=full_pass if config.update_every is None else None,
            measure_data=measured,
            update_every=config.update_every,
        )

    states = start_runs(task, optimizer)
    restored = run.restore(states) if config.resume else None
    done, states = (0, states) if restored is None else restored
    run.rewrite_history(row for row in run.history() if row["epoch"] <= done)
    examples, measured = (
        jax.tree.map(jnp.asarray, data.examples(split)) for split in ("train", config.signal_split)
    )
    cli.phase(f"compiling {len(rows)} rows x {config.num_seeds} seeds as one program")
    programs = {}
    with cli.progress(config.num_epochs, "epochs", done) as bar:
        while done < config.num_epochs:
            count = min(-(-config.num_epochs // NUM_CALLS), config.num_epochs - done)
            if count not in programs:
                with timed(timing, "compile_s"):
                    lowered = train_epochs.lower(states, examples, measured, count)
                    programs[count] = lowered.compile()
            with timed(timing, "train_s"):
                states, history = jax.block_until_ready(programs[count](states, examples, measured))
            log_epochs(run, rows, history, done)
            done += count
            losses = np.asarray(history["loss"])[:, -1]
            cli.say(f"epoch {done} of {config.num_epochs}: mean loss {losses.mean():.4f}")
            run.save(done, states)
            bar.update(count)
    return states


def log_epochs(run: Run, rows: list[str], history: dict[str, Any], done: int) -> None:
    """One history row per epoch: means over seeds of every row of the table."""
    by_row = jax.tree.map(
        lambda leaf: np.asarray(leaf).reshape(len(rows), -1, *leaf.shape[1:]).mean(1), history
    )
    for epoch in range(by_row["loss"].shape[1]):
        values = {
            name: {key: by_row[key][i, epoch] for key in ("loss", "shares", "cell_losses")}
            for i, name in enumerate(rows)
        }
        run.log({"epoch": done + epoch + 1, "rows": values})


def save_models(path: Path, rows: list[str], params: Any) -> None:
    """All final parameters as `row/leaf`, leading axis seeds."""
    tensors = {}
    for name, leaf in flatten_named(params).items():
        by_row = np.asarray(leaf).reshape(len(rows), -1, *leaf.shape[1:])
        tensors |= {f"{row}/{name}": by_row[i] for i, row in enumerate(rows)}
    with replacing(path) as partial:
        save_file(tensors, partial)


if __name__ == "__main__":
    main(prepare_run, PRESETS, description=__doc__ or "")
