"""FairTune: search which parts of a pre-trained network to fine-tune, by validation fairness.

    python -m experiments.fairtune                       synthetic lesions by skin tone
    python -m experiments.fairtune --num-seeds 5 --objective worst_group_auc@bound
    python -m experiments.fairtune lesions_jpeg --data.manual-dir lesions
    python -m experiments.fairtune csv --data.csv my.csv --data.image-root images --data.label y
    python -m experiments.fairtune ham10000_sex --data.manual-dir DIR --weights vit_base.safetensors

Rows of the table, each trained with several seeds: `full` fine-tuning to the last epoch,
`full@best` (the same trainings, stopped at the epoch that validates best), the `linear` probe,
`norm` (scales and shifts of the normalisation alone), `all_on` (every unit of the space) and
`fairtune` (the mask that the search found: of its best `--num-finalists` trials the one whose mean
over seeds is best). All get a learning rate chosen on validation by the same objective.
"""

import contextlib
import csv
import dataclasses
import functools
import inspect
import json
import shutil
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from experiments import cli, results
from experiments.data import Augment, Data, load_data, make_augment
from experiments.files import load_arrays, replacing, save_arrays, write_atomically
from experiments.run import Run, main, timed
from experiments.tracking import Tracker
from fairjax import fairtune, models, report, thresholds, train
from fairjax.data import Dataset
from fairjax.fairtune import Choice, Found, MaskSearch
from fairjax.optimizers import Optimizer, Schedule, inner_rates
from fairjax.report.search import search_figures, search_sentence
from fairjax.train.recipe import Dtype, Loss, Sampler

COMPARED = ("accuracy", "auc", "worst_group_auc", "auc_gap", "equalized_odds_difference")
PROBE_RATES, PROBE_EPOCHS = (1e-4, 1.0), 50


@dataclasses.dataclass(frozen=True)
class Config(cli.WeightFile):
    """FairTune on images."""

    about: cli.Hidden = ""
    data: Data = Data()
    seeds: cli.Seeds = cli.Seeds()
    model: str = "vit_micro"
    image_size: cli.Count = 64
    augment: Augment = "flips"
    """flips of whole images (a digit that is flipped looks like another), or random crops with a
    horizontal flip"""
    weights: Path | None = None
    """file of pre-trained weights; vit_micro's ship with fairjax"""
    space: str | None = None
    """mask space, by its readable or its published name; by default the parts of a ViT's blocks
    (norm_attn_mlp) or a ResNet's (conv_bn), and the layers of another network"""
    lora_rank: cli.Count = 8
    """of the space `lora`"""
    objective: tuple[str, ...] = ("worst_group_auc",)
    """what the search optimises on validation; "@bound" takes the pessimistic 95 % bound"""
    search: Literal["tpe", "random", "evolution", "nsga2"] = "tpe"
    first_masks: Literal["simple", "guided", "none"] = "simple"
    """what tpe and nsga2 try first. simple: nothing but the classifier, normalisation alone,
    everything; guided: masks from gates trained by gradients"""
    num_trials: cli.Count = 12
    num_slots: cli.Count = 8
    """candidates trained as one population"""
    num_epochs: cli.Count = 4
    num_folds: cli.Count = 1
    """folds of train and val that a candidate is judged by; 1 takes the split as it is"""
    search_seeds: cli.Count = 1
    """trainings of a candidate on each fold"""
    stopping: Literal["halving", "racing", "none"] = "halving"
    """halving: the best third goes on after first_rung, 3 first_rung, ... epochs; racing: folds are
    trained on in turn, and whom paired differences to the best exclude stops"""
    first_rung: cli.Count = 1
    num_brackets: cli.Count = 1
    """more than one is Hyperband"""
    optimizer: Optimizer = "adamw"
    schedule: Schedule = "cosine"
    warmup_epochs: cli.NonNegative = 1
    batch_size: cli.Count = 32
    sampler: Sampler = "shuffled"
    """of candidates and rows"""
    loss: Loss = "cross_entropy"
    options: tuple[str, ...] = ()
    """what candidates choose among, too, such as sampler=shuffled,group_dro loss=focal,cvar; other
    rows take --sampler and --loss"""
    after: Literal["thresholds"] | None = None
    """thresholds: every row once more, with a threshold per group that is chosen on validation"""
    weight_decay: cli.NonNegative = 0.01
    label_smoothing: cli.Smoothing = 0.0
    class_weights: Literal["balanced"] | None = None
    """balanced: losses weigh as much in all classes, by their share of the training split"""
    ema_decay: cli.Inside | None = None
    """measure and keep the moving average of the parameters"""
    dtype: Dtype = "float32"
    """bfloat16: activations and products; bfloat16_products: faster on CPUs that have it"""
    checkpoint_blocks: bool = False
    """recompute blocks in the backward pass: a third more work, much less memory"""
    data_bytes: cli.Count | None = None
    """that images may take on a device, half of its memory by default; more are streamed"""
    learning_rates: tuple[cli.Positive, cli.Positive] = (1e-4, 3e-3)
    """range of the search, log-uniform"""
    num_rates: cli.Count = 2
    """learning rates tried for the other rows, evenly inside that range"""
    select: Literal["best", "last"] = "last"
    """epoch whose parameters are kept in the final training, by validation"""
    num_finalists: cli.Count = 3
    """best trials of the search that are trained with all seeds; the best on average is the row"""
    num_seeds: cli.Count = 3
    chunk_size: cli.Count | None = None
    """candidates that a device trains at the same time; by default one on CPU, and elsewhere what
    fits into memory"""
    num_replicates: cli.Replicates = 200
    """bootstrap replicates behind the 95 % intervals"""
    storage: str | None = None
    """Optuna storage; default a journal in the run folder"""
    worker: cli.Whole = 0
    """number of this process among those that share --storage, each with its own --out"""
    track: tuple[Tracker, ...] = ()
    """where the numbers of every epoch or round go, too: tensorboard, wandb, mlflow"""
    out: Path | None = None
    """result folder; default runs/fairtune-<time>"""
    resume: bool = False
    """go on with the interrupted run in --out"""


def paper_preset(source: str, *sensitive: str, **settings) -> Config:
    """A data set of the paper: ViT-B/16 at 224 from `--weights`, every fourth of a block a unit."""
    return Config(
        about=f"{source} by {' and '.join(sensitive)}, ViT-B/16; give --data.manual-dir, --weights",
        data=Data(source, sensitive=sensitive),
        model="vit_base_patch16_224",
        image_size=224,
        augment="crop",
        space="norm1_attn_norm2_mlp",
        num_trials=64,
        num_epochs=27,
        first_rung=1,
        learning_rates=(1e-5, 1e-3),
        num_rates=3,
        num_replicates=1000,
        **settings,
    )


# small images, for 4 minutes on 2 cores
LESIONS = Config(
    about="synthetic skin lesions by skin tone, vit_micro at 32 px; about 4 minutes on 2 cores",
    # Dark skin is rare: a rate within it wants many images, as many of light skin are enough. To
    # tell masks apart that differ by .02 takes 800 images of a group on validation.
    data=Data(num_val=6_400, num_test=24_000, balance=("val", "test")),
    image_size=32,
    num_epochs=18,
    # what overfits leads after 2 epochs and is last after 18: nothing can be stopped early
    stopping="none",
    warmup_epochs=0.5,
    learning_rates=(1e-4, 1e-2),
    num_finalists=1,
    num_seeds=5,
)
SMALL = dataclasses.replace(LESIONS, num_folds=3, num_seeds=3)

PRESETS = {
    "lesions": LESIONS,
    "lesions_more": dataclasses.replace(
        LESIONS,
        about="the same from 1,600 images, 10 epochs; about 10 minutes on 2 cores",
        data=dataclasses.replace(LESIONS.data, num_train=1_600),
        num_epochs=10,
    ),
    "smoke": Config(
        about="seconds, for tests",
        data=Data(num_train=96, num_val=400, num_test=400),
        image_size=16,
        space="norm",
        num_trials=4,
        num_slots=2,
        num_epochs=3,
        first_rung=1,
        num_rates=1,
        num_seeds=2,
        batch_size=16,
        num_replicates=20,
    ),
    "lesions_jpeg": dataclasses.replace(
        SMALL,
        about="the synthetic lesions as JPEG files, drawn once, read from disk and cached",
        data=Data("lesions_jpeg", Path("lesions"), ("skin_tone",), balance=("val",)),
    ),
    "csv": dataclasses.replace(
        SMALL,
        about="a CSV and a folder of images of yours: --data.csv, --data.image-root, --data.label",
        data=Data("csv"),
    ),
    "ham10000_sex": paper_preset("ham10000", "sex"),
    "ham10000_age": paper_preset("ham10000", "age_multi"),
    "fitzpatrick17k": paper_preset("fitzpatrick17k", "skin_type"),
    "papila": paper_preset("papila", "sex", class_weights="balanced"),
    "ol3i": paper_preset("ol3i", "sex", class_weights="balanced"),
    "oasis1": paper_preset("oasis1", "sex"),
    "chexpert": paper_preset("chexpert", "sex"),
    "gf3300": paper_preset("gf3300", "race"),
}


class Task(NamedTuple):
    """What the stages share."""

    config: Config
    run: Run
    data: Dataset
    model: models.Model
    weights: models.Weights
    recipe: train.Recipe


def prepare_run(config: Config):
    """Read and check everything; returns the function that trains."""
    cli.check_numbers(config)
    if config.first_masks == "guided" and config.search not in ("tpe", "nsga2"):
        raise ValueError(f"--first-masks guided goes with tpe or nsga2, not with {config.search}")
    models.find_weights(config.model, config.reading()["path"])  # data can take long to read
    recipe = make_recipe(config)
    how = {"out": config.out, "resume": config.resume, "may_grow": ("num_trials",)}
    run = Run("fairtune", config, **how)
    cli.phase(f"reading {config.data.source}")
    data = load_data(config.data, image_size=config.image_size, augment=config.augment)
    task = Task(config, run, data, *load_network(config, data.num_classes), recipe)
    make_search(task)
    return lambda: run_all(task)


def make_recipe(config: Config) -> train.Recipe:
    """How candidates and rows are trained."""
    names = [field.name for field in dataclasses.fields(train.Recipe)]
    settings = cli.settings(config, names)
    settings["augment"] = make_augment(config.augment, config.image_size)
    return train.Recipe(**settings)


def load_network(config: Config, num_classes: int) -> tuple[models.Model, models.Weights]:
    """The pre-trained network with a fresh classifier."""
    key = jax.random.key(config.seeds.start)
    model, weights = models.load_pretrained(
        config.model, num_classes, key, image_size=config.image_size, **config.reading()
    )
    if config.space == "lora":
        params = fairtune.add_lora(weights.params, key, rank=config.lora_rank)
        weights = weights._replace(params=params)
    return model, weights


def make_search(task: Task, masks: tuple[np.ndarray, ...] = ()) -> MaskSearch:
    """The configured search, checked; nothing of it has begun."""
    config = task.config
    options = cli.settings(config, inspect.signature(fairtune.mask_search).parameters)
    options["num_seeds"] = config.search_seeds
    options["options"] = fairtune.parse_options(config.options)
    if config.search in ("tpe", "nsga2"):
        options["storage"] = config.storage or str(task.run.folder / "study.journal")
    options["first_masks"] = masks
    given = {"model": task.model, "weights": task.weights, "data": task.data}
    key = jax.random.key(config.seeds.batches)
    return fairtune.mask_search(**options | given | {"recipe": task.recipe, "key": key})


def run_all(task: Task) -> None:
    """Search, train all rows, judge them on the test split, write the folder."""
    config, run, data = task.config, task.run.start(), task.data
    timing: dict[str, float] = {}
    with timed(timing, "search_s"):
        found = search(task)
    with timed(timing, "train_s"):
        rows, winner = train_rows(task, found)
    write_search(run, task, found, winner)
    if config.after is not None:
        for name, row in list(rows.items()):
            shifted = thresholds.thresholds_after(row["val_logits"], row["logits"], data)
            rows[f"{name}+thresholds"] = row | {"logits": shifted}
    logits = {name: row["logits"] for name, row in rows.items()}
    draws: dict[str, Any] = {"shown": COMPARED, "num_replicates": config.num_replicates}
    compared = results.judge(logits, data, timing, **draws)
    by_row, notes = report.summarise(list(rows), compared, data.group_names)
    for name, row in rows.items():
        by_row[name] |= {"learning_rate": float(row["learning_rate"])}
        by_row[name] |= {"percent_trained": float(row["percent"])}
        by_row[name] |= {"val_objective": float(np.mean(row["values"]))}
    told_of = ("worst_group_auc", "auc")
    gain = results.gains("fairtune", logits, data, timing, told_of=told_of, **draws)
    by_row["fairtune"]["gain_over"] = gain
    mask = f"mask: {found.choice(winner).description.text}"
    notes = [mask, *task.weights.notes, *found.notes(), *notes]
    results.show(
        run,
        data,
        by_row,
        timing=timing,
        notes=notes,
        title=f"FairTune on {data.name}",
        question="Which parts of the network should be fine-tuned for the fairest result?",
        answer=search_sentence(by_row, data.name),
        shown=("percent_trained", *COMPARED),
        chosen=("full", "fairtune"),
        logits=logits,
        figures=search_figures(found),
        network=(
            f"`fairtune.safetensors`, a {config.model} tuned with the found mask (`mask.json`; of "
            "the first seed), in timm's names: `fairjax.models.load_weights(path, "
            f"image_model({config.model!r}, {data.num_classes}, image_size={config.image_size}), "
            "key)`."
        ),
    )


def search(task: Task) -> Found:
    """Train the candidates of the search, or those that an interrupted run left."""
    config, run = task.config, task.run
    job = make_search(task, first_masks(task))
    rounds, state = (restore_search(task, job) if config.resume else None) or (0, None)
    run.rewrite_history(row for row in run.history() if row.get("round", np.inf) <= rounds)
    bar, began = cli.progress(config.num_trials, "trials"), time.perf_counter()
    before = 0 if state is None else state.trials.epochs_trained

    def on_round(state):
        nonlocal rounds
        rounds += 1
        run.save(rounds, state)
        speed = (state.trials.epochs_trained - before) / (time.perf_counter() - began)
        name = job.objectives[0].name
        line = f"search: {state.trials.summary(name)}; {speed:.2f} candidate epochs/s"
        bar.update(state.trials.num_ended - bar.n)
        cli.say(line)
        run.log({"round": rounds, "line": line})

    cli.phase("compiling the search")
    with bar:
        return job.run(state, on_round)


def restore_search(task: Task, job: MaskSearch) -> tuple[int, Any] | None:
    """The saved search, with room for the trials that were asked for since."""
    config, run, like = task.config, task.run, job.init()
    if (had := run.grown.get("num_trials")) is None:
        return run.restore(like)
    earlier = task._replace(config=dataclasses.replace(config, num_trials=had))
    restored = run.restore(make_search(earlier, first_masks(earlier)).init())
    for path in run.folder.glob("finalist_*"):  # others may be the best now
        path.unlink()
    return restored and (restored[0], fairtune.more_trials(restored[1], config.num_trials))


def first_masks(task: Task) -> tuple[np.ndarray, ...]:
    """What the search tries first; guided masks are kept in the run folder."""
    config = task.config
    space = fairtune.mask_space(task.weights.params, config.space, head=task.model.head)
    if config.first_masks == "none" or config.search not in ("tpe", "nsga2"):
        return ()
    if config.first_masks == "simple":
        return fairtune.simple_masks(space)
    path = task.run.folder / "guided.npz"
    if not path.exists():
        cli.phase("gates for a guided start")
        key, count = jax.random.key(config.seeds.batches), config.num_slots
        masks, gates = fairtune.guided_masks(
            task.model, space, task.weights, task.data, key=key, num_masks=count
        )
        save_arrays(path, masks=masks, gates=gates)
    return tuple(load_arrays(path)["masks"])


def train_rows(task: Task, found: Found) -> tuple[dict[str, dict[str, Any]], int]:
    """All rows of the table, and the trial whose mask is the row `fairtune`.

    Rows that an interrupted run finished are read from its folder.
    """
    config, run, params = task.config, task.run, task.weights.params
    rates = inner_rates(config.learning_rates, config.num_rates)
    space = lambda name: fairtune.mask_space(params, name, head=task.model.head)
    none, probe_rates = np.zeros(0, bool), inner_rates(PROBE_RATES, config.num_rates)
    choices = {
        "full": Choice(space("full"), none, rates),
        "linear": Choice(space("linear"), none, probe_rates),
    }
    with contextlib.suppress(ValueError):  # of a network without normalisation
        choices["norm"] = Choice(space("norm_all"), none, rates)
    choices["all_on"] = Choice(found.space, np.ones(found.space.num_units, bool), rates)
    finalists = found.best(config.num_finalists)
    choices |= {f"finalist_{i + 1}": choice for i, choice in enumerate(finalists)}
    rows = {}
    with cli.progress(len(choices), "rows") as bar:
        for name, choice in choices.items():
            make = functools.partial(train_row, task, found, name, choice)
            rows[name] = results.kept_row(run, name, make)
            if name == "full":
                of_best = [key for key in rows[name] if key.endswith("_best")]
                at_best = {key.removesuffix("_best"): rows[name].pop(key) for key in of_best}
                rows["full@best"] = rows[name] | at_best
            bar.update(1)
    names = [name for name in rows if name.startswith("finalist_")]
    means = np.array([rows[name]["scores"].mean() for name in names])
    best = int(np.where(np.isnan(means), -np.inf, means).argmax())
    with replacing(run.folder / "fairtune.safetensors") as path:
        shutil.copyfile(run.folder / f"{names[best]}.safetensors", path)
    candidates = {name: rows.pop(name) for name in names}
    return rows | {"fairtune": candidates[names[best]]}, int(found.best_rows(best + 1)[-1])


def train_row(task: Task, found: Found, name: str, choice: Choice) -> tuple[dict[str, Any], str]:
    """One row trained with all seeds: its arrays, and a line that says what came out."""
    config, run, chosen = task.config, task.run, found.objectives[0]
    options: dict[str, Any] = {
        "start_keys": train.seed_keys(config.num_seeds, config.seeds.start),
        "batch_keys": train.seed_keys(config.num_seeds, config.seeds.batches),
    }
    arguments = task.model, task.weights, task.data
    if name == "linear":
        recipe = dataclasses.replace(task.recipe, num_epochs=PROBE_EPOCHS)
        options |= {"score_fn": chosen.score, "learning_rates": choice.learning_rates}
        tuned = train.linear_probe(*arguments, recipe, **options)
    else:
        options |= {"select": config.select, "chunk_size": config.chunk_size or 1}
        options["also_best"] = name == "full"
        tuned = fairtune.refit_choice(*arguments, task.recipe, choice, chosen, **options)
    if name.startswith("finalist_"):
        with replacing(run.folder / f"{name}.safetensors") as path:
            models.save_weights(path, task.model, *tuned.weights(0))
    sign = 1 if chosen.maximize else -1
    row: dict[str, Any] = {"percent": choice.description.percent}
    for suffix, one in (("", tuned), ("_best", tuned.best)):
        if one is not None:
            row |= {f"scores{suffix}": one.scores, f"values{suffix}": one.scores * sign}
            row[f"logits{suffix}"] = one.logits("test")
            row |= {f"val_logits{suffix}": one.logits("val")} if config.after else {}
    row["learning_rate"] = tuned.learning_rate
    return row, f"learning rate {tuned.learning_rate:.1e}, validation {row['values'].mean():.4f}"


def write_search(run: Run, task: Task, found: Found, winner: int) -> None:
    """`trials.csv`, and `mask.json`: everything that training with the found mask again needs."""
    trained = {
        "model": task.config.model,
        "data": {"name": task.data.name, "fingerprint": task.data.fingerprint},
    }
    text = json.dumps(found.describe(winner) | trained, indent=2)
    write_atomically(run.folder / "mask.json", text + "\n")
    rows = found.table()
    with replacing(run.folder / "trials.csv") as path, path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main(prepare_run, PRESETS, description=__doc__ or "")
