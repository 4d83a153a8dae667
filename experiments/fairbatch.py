"""FairBatch beside plain training: all criteria, signals, splits and seeds as one population.

    python -m experiments.fairbatch                      Adult by sex; 2 CPU cores: 1 minute
    python -m experiments.fairbatch --update-every 5     shares move every 5 batches
    python -m experiments.fairbatch synthetic            the paper's two Gaussians, its settings
    python -m experiments.fairbatch compas --data.csv compas-scores-two-years.csv
    python -m experiments.fairbatch csv --data.csv my.csv --data.label y --data.sensitive sex
    python -m experiments.fairbatch lesions              fine-tunes a pre-trained network on images

Expect on Adult (means over ten splits): accuracy .847 plain; equal_opportunity_difference .095,
.030 with its rate signal; equalized_odds_difference .097 plain, .055; demographic_parity_difference
.180 plain, .007; a threshold per group does as well.

Rows of the table: `plain`, then each criterion with the published signal (`equal_opportunity`),
with the measured rates (`equal_opportunity@rate`), and the strongest simple alternative
(`equal_opportunity@thresholds`): a threshold per group on plain training's scores, chosen on
validation for the smallest gap at the accuracy of the row above.
"""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

from experiments import cli, results
from experiments.data import Augment, Data, load_data, make_augment
from experiments.files import named_errors, replacing
from experiments.run import Run, main, timed
from experiments.tracking import Tracker
from fairjax import report, thresholds
from fairjax.data import Dataset, Examples, Splits, given_split, resplits
from fairjax.fairbatch import CRITERIA, SIGNALS, Draw, Signal, data_ratio, fairbatch, thin_rows
from fairjax.models import (
    Model,
    Weights,
    find_weights,
    fresh_head,
    load_pretrained,
    logistic_regression,
    mlp,
)
from fairjax.optimizers import Optimizer, Schedule
from fairjax.report.fairbatch import (
    fairbatch_figures,
    fairbatch_sentence,
    loss_note,
    split_notes,
)
from fairjax.sampling import BatchSampler, arrange_splits
from fairjax.table_model import how_to_open, table_header
from fairjax.train import (
    FitState,
    Recipe,
    fit_population,
    init_population,
    logits_of_rows,
    measure_cells,
    replicate,
    seed_keys,
)
from fairjax.train.loop import check_cadence
from fairjax.trees import flatten_named, map_named

Watched = Literal[
    "equal_opportunity",
    "equalized_odds",
    "demographic_parity",
    "demographic_parity_and_equalized_odds",
]
Correlation = Annotated[float, cli.Range(-1, 1, above=True, below=True)]
Moved = Annotated[float, cli.Range(0, 1, above=True)]


@dataclasses.dataclass(frozen=True)
class Config(cli.WeightFile):
    """FairBatch on a table, or with `--model` on images."""

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
    num_splits: cli.Count | None = None
    """splits drawn anew, stratified on (label, group); 10 by default, or 1 where test was given"""
    num_seeds: cli.Count = 1
    """starts and orders of batches on each split"""
    num_epochs: cli.Count | None = None
    """as many as 2,700 steps take"""
    batch_size: cli.Count | None = None
    """a 45th of the training rows, at least 32"""
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
    model: str | None = None
    """pre-trained network that all rows fine-tune, for images: vit_micro, resnet18, ..."""
    weights: Path | None = None
    """file of its weights; vit_micro's and vgg_micro's ship with fairjax"""
    image_size: cli.Count = 64
    augment: Augment = "flips"
    """of images: flips, or random crops with a horizontal flip"""
    draw: Draw = "exact"
    data_ratio: Correlation | None = None
    """P(label 1 | group 1) - P(label 1 | group 0) expected of new data: leaves training rows out
    until they have it, for all rows of the table; two labels and two groups"""
    pretrained: Path | None = None
    """start from the `plain` models of an earlier run's folder"""
    clean_share: cli.Inside | None = None
    """all rows but `plain` train on that share of the examples, those of lowest loss in FairBatch's
    proportions: for labels that are partly wrong"""
    num_replicates: cli.Replicates = 200
    """bootstrap replicates behind the 95 % intervals"""
    track: tuple[Tracker, ...] = ()
    """where the numbers of every epoch or round go, too: tensorboard, wandb, mlflow"""
    out: Path | None = None
    """result folder; default runs/fairbatch-<time>"""
    resume: bool = False
    """go on with the interrupted run in --out"""


PRESETS = {
    "adult": Config(
        about="UCI Adult by sex, logistic regression, ten splits; a minute on 2 cores",
        # a group's true-positive rate needs a large test split
        data=Data("adult", split="0.5,0.1,0.4"),
    ),
    "synthetic": Config(
        about="the paper's synthetic set and settings; 20 s on 2 cores",
        data=Data("synthetic"),
        num_splits=1,
        num_seeds=10,
        num_epochs=450,
        batch_size=100,
        learning_rate=0.0005,
        step_size=0.005,
    ),
    "compas": Config(
        about="COMPAS by sex: --data.csv is ProPublica's compas-scores-two-years.csv",
        data=Data("compas"),
    ),
    "csv": Config(
        about="a table of yours: --data.csv, --data.label, --data.sensitive", data=Data("csv")
    ),
    "lesions": Config(
        about="synthetic lesions whose skin tone predicts the label in training; 2 minutes",
        data=Data(domain="shortcut", num_train=1600, num_val=1600, num_test=4800),
        model="vit_micro",
        image_size=32,
        update_every=10,
        criteria=("equalized_odds",),
        num_splits=1,
        num_seeds=3,
        num_epochs=8,
        batch_size=32,
        learning_rate=0.001,
        schedule="cosine",
        rate_step_size=0.1,
    ),
    "smoke": Config(
        about="seconds, for tests",
        data=Data("synthetic"),
        num_splits=2,
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
NUM_STEPS = 2_700  # what logistic regression on Adult takes until its loss is flat
COMPARED = (*SHOWN, "worst_group_auc", "auc_gap")
NUM_CALLS = 10  # compiled calls that a run is cut into, a checkpoint after each


class Task(NamedTuple):
    """What the stages share."""

    config: Config
    run: Run
    data: Dataset
    splits: Splits
    model: Model
    start: Weights
    """What every split and seed starts from, leaves `[F * S, ...]`."""
    recipe: Recipe
    sampler: BatchSampler


def prepare_run(config: Config):
    """Read and check everything; returns the function that trains."""
    cli.check_numbers(config)
    check_options(config)
    run = Run("fairbatch", config, out=config.out, resume=config.resume)
    cli.phase(f"reading {config.data.source}")
    image_size = None if config.model is None else config.image_size
    data = load_data(config.data, image_size=image_size, augment=config.augment)
    splits = draw_splits(config, data)
    num_rows = splits.train.shape[1]
    batch_size = config.batch_size or min(num_rows, max(32, num_rows // 45))
    recipe = Recipe(
        num_epochs=config.num_epochs or -(-NUM_STEPS // max(1, num_rows // batch_size)),
        batch_size=batch_size,
        optimizer=config.optimizer,
        learning_rate=config.learning_rate,
        schedule=config.schedule,
        weight_decay=config.weight_decay,
        augment=None if image_size is None else make_augment(config.augment, image_size),
    )
    if image_size is not None and recipe.streams(data):
        raise ValueError(
            f"the {len(data.labels)} images do not fit into the device's memory, where FairBatch "
            "wants them; take a smaller --image-size"
        )
    sampler = fairbatch(
        labels=data.labels,
        group=data.group,
        num_classes=data.num_classes,
        num_groups=data.num_groups,
        batch_size=batch_size,
        draw=config.draw,
    )
    sampler = sampler._replace(batches_per_epoch=num_rows // batch_size)
    check_cadence(sampler, config.update_every is None, config.update_every)
    model, start = make_start(config, data, len(splits.train))
    task = Task(config, run, data, splits, model, start, recipe, sampler)
    return lambda: run_all(task)


def check_options(config: Config) -> None:
    """Raises ValueError for options that exclude each other."""
    if config.update_every is not None and config.signal_split != "train":
        raise ValueError(
            "--update-every takes the signal from training batches; leave --signal-split out"
        )
    if config.clean_share is not None and (config.update_every or config.signal_split != "train"):
        raise ValueError(
            "--clean-share looks at all training examples before every epoch; leave --update-every "
            "and --signal-split out"
        )
    config.reading()
    if config.model is None and config.weights is not None:
        raise ValueError("--weights are those of a --model; leave them out, or name the network")
    if config.model is not None and config.hidden:
        raise ValueError("--hidden makes a network for tables; leave it or --model out")
    if config.model is not None:
        find_weights(config.model, config.weights)  # data can take long to read


def draw_splits(config: Config, data: Dataset) -> Splits:
    """Of every run: drawn anew, or the one that was read."""
    num_splits = config.num_splits or (1 if data.fixed_test else 10)
    splits = resplits(data, num_splits, config.data.seed) if num_splits > 1 else given_split(data)
    if config.data_ratio is None:
        return splits
    thinned = []
    for rows in splits.train:
        ids: Any = {"labels": data.labels[rows], "group": data.group[rows]}
        shares = data_ratio(**ids, target_correlation=config.data_ratio)
        thinned.append(rows[thin_rows(shares, **ids, seed=config.data.seed)])
    return splits._replace(train=np.stack([rows[: min(map(len, thinned))] for rows in thinned]))


def make_start(config: Config, data: Dataset, num_splits: int) -> tuple[Model, Weights]:
    """The network, and what every split and seed starts from, leaves `[F * S, ...]`."""
    keys = jnp.tile(seed_keys(config.num_seeds, config.seeds.start), num_splits)
    if config.model is None:
        sizes = data.inputs.shape[1], data.num_classes
        model = mlp(*sizes, config.hidden) if config.hidden else logistic_regression(*sizes)
        start = Weights(*jax.vmap(model.init)(keys), ())
    else:
        how: Any = {**config.reading(), "image_size": config.image_size}
        model, weights = load_pretrained(config.model, data.num_classes, keys[0], **how)
        params = jax.vmap(lambda key: fresh_head(model, weights.params, key))(keys)
        start = Weights(params, replicate(weights.batch_stats, len(keys)), weights.notes)
    if config.pretrained is not None:
        start = read_start(config.pretrained, start, data, (num_splits, config.num_seeds))
    return model, start


def read_start(folder: Path, start: Weights, data: Dataset, shape: tuple[int, int]) -> Weights:
    """The `plain` models of an earlier run, in place of those of `start`: splits x seeds."""
    num_splits, num_seeds = shape
    path = folder / "models.safetensors"
    if not path.exists():
        raise FileNotFoundError(f"--pretrained needs a finished run's folder: no {path}")
    with named_errors("read", path):
        summary = json.loads((folder / "summary.json").read_text())
        saved = load_file(path)
    if summary["data"]["fingerprint"] != data.fingerprint:
        raise ValueError(
            f"{folder} was trained on other data or another split, so that test rows "
            "could be among what it was trained on"
        )

    def pick(name: str, leaf: jax.Array) -> jax.Array:
        found = saved.get(f"plain/{name}")
        if found is None or found.shape[1:] != leaf.shape[1:] or len(found) % num_splits:
            raise ValueError(
                f"{path}: plain/{name} should have shape ({num_splits} splits x seeds, "
                f"{leaf.shape[1:]}), found {None if found is None else found.shape}; use the same "
                "--num-splits, --hidden and --model"
            )
        by_split = found.reshape(num_splits, -1, *found.shape[1:])
        seeds = np.arange(num_seeds) % by_split.shape[1]
        return jnp.asarray(by_split[:, seeds].reshape(leaf.shape))

    found = map_named(pick, named_weights(start))
    return start._replace(batch_stats=found.pop("batch_stats", {}), params=found)


def named_weights(weights: Weights) -> dict[str, Any]:
    """Parameters, and batch statistics where there are any, as one tree."""
    stats = {"batch_stats": weights.batch_stats} if weights.batch_stats else {}
    return {**weights.params, **stats}


def row_choices(config: Config) -> dict[str, dict[str, float]]:
    """Row name -> what `sampler.init` takes; plain training first."""

    def choices(criterion: str, signal: str) -> dict[str, float]:
        published = {"step_size": config.step_size, "decay": 0.0}
        step = published if signal == "loss" else {"step_size": config.rate_step_size, "decay": 0.5}
        if config.clean_share is not None:
            step["clean_share"] = 1.0 if criterion == "none" else config.clean_share
        return {"criterion": CRITERIA.index(criterion), "signal": SIGNALS.index(signal), **step}

    rows = {"plain": choices("none", "loss")}
    for signal in config.signals:
        for criterion in config.criteria:
            name = criterion if signal == "loss" else f"{criterion}@{signal}"
            rows[name] = choices(criterion, signal)
    return rows


def run_all(task: Task) -> None:
    """Train all rows, splits and seeds as one population, judge on test, write the folder."""
    config, run, data = task.config, task.run.start(), task.data
    timing: dict[str, float] = {"compile_s": 0.0, "train_s": 0.0}
    trained = train(task, timing).train
    weights = Weights(trained.params, trained.batch_stats, ())
    test, val = (logits_by_row(task, weights, split) for split in ("test", "val"))
    with timed(timing, "thresholds_s"):
        test |= threshold_rows(task, test, val)
    rows = list(test)
    compared = results.judge(
        test,
        data,
        timing,
        splits=task.splits,
        shown=COMPARED,
        num_replicates=config.num_replicates,
    )
    by_row, notes = report.summarise(rows, compared, data.group_names)
    notes = [
        *split_notes(data, task.splits, config.data.seed, config.data_ratio),
        *loss_note(run.history()),
        *task.start.notes,
        *notes,
    ]
    save_models(task, weights)
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
        chosen=list(row_choices(config)),
        logits=test,
        splits=task.splits,
        network=(
            "`models.safetensors` holds the weights of all rows as `row/name`, the leading axis "
            "splits x seeds; `--pretrained` goes on from the row `plain`."
            + how_to_open(data, run.folder, list(row_choices(config))[-1])
        ),
        figures=fairbatch_figures(run.history(), by_row, config.criteria, data),
        legend=(
            "diff: largest gap between two groups; dev: largest distance of a group from the "
            "pooled rate (the FairBatch paper's measure)."
        ),
    )


def logits_by_row(task: Task, weights: Weights, split: str) -> dict[str, np.ndarray]:
    """Row -> logits `[F * S, n, K]` of its runs, each on its own rows of a split."""
    rows, numbers = list(row_choices(task.config)), getattr(task.splits, split)
    own = numbers[split_numbers(task)]
    found = logits_of_rows(task.model, weights.params, weights.batch_stats, task.data.inputs, own)
    return dict(zip(rows, np.asarray(found).reshape(len(rows), -1, *found.shape[1:]), strict=True))


def threshold_rows(task: Task, test: Any, val: Any) -> dict[str, np.ndarray]:
    """The strongest simple alternative, at the validation accuracy of the criterion's own row."""
    data, splits, num_seeds, found = task.data, task.splits, task.config.num_seeds, {}
    if data.num_classes != 2 or data.num_groups < 2:
        return {}
    for criterion in (each for each in task.config.criteria if each in thresholds.CRITERIA):
        rival = f"{criterion}@rate" if "rate" in task.config.signals else criterion
        shifted = np.empty_like(test["plain"])
        for number, (rows, tested) in enumerate(zip(splits.val, splits.test, strict=True)):
            runs = slice(number * num_seeds, (number + 1) * num_seeds)
            chosen = thresholds.match_accuracy(
                val["plain"][runs],
                val[rival][runs],
                labels=data.labels[rows],
                group=data.group[rows],
                num_groups=data.num_groups,
                criterion=criterion,
            )
            shifted[runs] = thresholds.shift_logits(
                test["plain"][runs], chosen, group=data.group[tested]
            )
        found[f"{criterion}@thresholds"] = shifted
    return found


def split_numbers(task: Task) -> np.ndarray:
    """The split of every run, int `[R * F * S]`; runs are ordered by row, split and seed."""
    of_row = np.repeat(np.arange(len(task.splits.train)), task.config.num_seeds)
    return np.tile(of_row, len(row_choices(task.config)))


def start_runs(task: Task, optimizer: Any) -> FitState:
    """All runs before their first epoch, leaves `[R * F * S, ...]`: row, split, seed."""
    config, data, splits = task.config, task.data, task.splits
    rows, num_splits = list(row_choices(config).values()), len(task.splits.train)
    num_runs = num_splits * config.num_seeds
    choices = {name: np.repeat([row[name] for row in rows], num_runs) for name in rows[0]}
    number, split = np.tile(np.arange(num_runs), len(rows)), split_numbers(task)
    measured = measured_examples(task)[1]
    drawn = arrange_splits(
        labels=data.labels,
        group=data.group,
        num_classes=data.num_classes,
        num_groups=data.num_groups,
        rows=splits.train,
    )
    # not the keys that drew the parameters
    keys = jnp.tile(seed_keys(config.num_seeds, config.seeds.batches), num_splits)
    keys = jax.vmap(jax.random.fold_in)(keys, 1 + np.arange(num_runs) // config.num_seeds)

    @jax.jit
    def init(start, keys, choices, drawn, measured):
        choices |= {"rows": jax.tree.map(lambda leaf: leaf[split], drawn)}
        choices |= {"measured": measured[split]}
        start = jax.tree.map(lambda leaf: leaf[number], start)
        how = {"keys": keys, "choices": choices}
        return init_population(start[0], start[1], optimizer, task.sampler, **how)

    start = (task.start.params, task.start.batch_stats)
    return init(start, keys[number], choices, drawn, measured)


def measured_examples(task: Task) -> tuple[Examples, np.ndarray]:
    """What the signal is measured on, and which of it each split does, bool `[F, n]`."""
    data, rows = task.data, getattr(task.splits, task.config.signal_split)
    if len(rows) == 1 and task.config.clean_share is None:
        return data.rows(rows[0]), np.ones(rows.shape, bool)
    measured = np.zeros((len(rows), len(data.labels)), bool)
    np.put_along_axis(measured, rows, True, axis=1)
    return data.rows(np.arange(len(data.labels))), measured


def train(task: Task, timing: dict[str, float]) -> FitState:
    """The trained runs; goes on where an interrupted run stopped."""
    config, run, data, sampler = task.config, task.run, task.data, task.sampler
    rows = list(row_choices(config))
    optimizer = task.recipe.make_optimizer(sampler.batches_per_epoch)
    num_epochs = task.recipe.num_epochs
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
            augment=task.recipe.augment,
            measure_fn=full_pass if config.update_every is None else None,
            measure_data=measured,
            update_every=config.update_every,
            chunk_size=None if config.model is None else 1,
        )

    states = start_runs(task, optimizer)
    restored = run.restore(states) if config.resume else None
    done, states = (0, states) if restored is None else restored
    run.rewrite_history(row for row in run.history() if row["epoch"] <= done)
    shared = data.rows(np.arange(len(data.labels))), measured_examples(task)[0]
    shared = jax.tree.map(jnp.asarray, shared)
    runs = f"{len(rows)} rows x {len(task.splits.train)} splits x {config.num_seeds} seeds"
    cli.phase(f"compiling {runs} as one program")
    programs = {}
    with cli.progress(num_epochs, "epochs", done) as bar:
        while done < num_epochs:
            count = min(-(-num_epochs // NUM_CALLS), num_epochs - done)
            if count not in programs:
                with timed(timing, "compile_s"):
                    lowered = train_epochs.lower(states, *shared, count)
                    programs[count] = lowered.compile()
            with timed(timing, "train_s"):
                states, history = jax.block_until_ready(programs[count](states, *shared))
            log_epochs(run, rows, history, done)
            done += count
            losses = np.asarray(history["loss"])[:, -1]
            cli.say(f"epoch {done} of {num_epochs}: mean loss {losses.mean():.4f}")
            run.save(done, states)
            bar.update(count)
    return states


def log_epochs(run: Run, rows: list[str], history: dict[str, Any], done: int) -> None:
    """One history row per epoch: means over splits and seeds of every row of the table."""
    by_row = jax.tree.map(
        lambda leaf: np.asarray(leaf).reshape(len(rows), -1, *leaf.shape[1:]).mean(1), history
    )
    for epoch in range(by_row["loss"].shape[1]):
        values = {
            name: {key: by_row[key][i, epoch] for key in ("loss", "shares", "cell_losses")}
            for i, name in enumerate(rows)
        }
        run.log({"epoch": done + epoch + 1, "rows": values})


def save_models(task: Task, weights: Weights) -> None:
    """All final weights as `row/leaf`, leading axis splits x seeds, and how rows are read."""
    tensors, rows = {}, list(row_choices(task.config))
    for name, leaf in flatten_named(named_weights(weights)).items():
        by_row = np.asarray(leaf).reshape(len(rows), -1, *leaf.shape[1:])
        tensors |= {f"{row}/{name}": by_row[i] for i, row in enumerate(rows)}
    header = None if task.data.encoder is None else table_header(task.model, task.data)
    with replacing(task.run.folder / "models.safetensors") as partial:
        save_file(tensors, partial, metadata=header)


if __name__ == "__main__":
    main(prepare_run, PRESETS, description=__doc__ or "")
