"""FairTune: search which parts of a pre-trained network to fine-tune, by validation fairness.

    python -m experiments.fairtune                       synthetic lesions by skin tone
    python -m experiments.fairtune --num-seeds 5 --objective worst_group_auc@bound
    python -m experiments.fairtune lesions_jpeg --data.manual-dir lesions
    python -m experiments.fairtune ham10000_sex --data.manual-dir DIR --weights vit_base.safetensors

Rows of the table, each trained with several seeds: `full` fine-tuning, the `linear` probe, `all_on`
(every unit of the space) and `fairtune` (the mask that the search found: of its best
`--num-finalists` trials the one whose mean over seeds is best). All get a learning rate chosen on
the validation split by the same objective.
"""

import dataclasses
import math
import time
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common, fairtune_report, results
from experiments.fairtune_rows import train_rows
from experiments.fairtune_stages import Task, search_masks
from experiments.image_data import Augment, Data, load_data, make_augment
from fairjax.data import Dataset
from fairjax.data.augment import eval_preprocess
from fairjax.fairbatch import fairbatch
from fairjax.fairtune import (
    MaskSpace,
    Rungs,
    add_lora,
    best_trials,
    check_objectives,
    mask_space,
    objective,
    successive_halving,
)
from fairjax.metrics import compare_rows
from fairjax.models import Model, Weights, image_model, load_pretrained, load_weights
from fairjax.optimizers import Optimizer, Schedule
from fairjax.sharding import candidate_mesh

COMPARED = ("accuracy", "auc", "worst_group_auc", "auc_gap", "equalized_odds_difference")


@dataclasses.dataclass(frozen=True)
class Config:
    """FairTune on images."""

    about: str = ""
    data: Data = Data()
    model: str = "vit_micro"
    image_size: int = 64
    augment: Augment = "flips"
    """flips of whole images, or random crops with a horizontal flip"""
    weights: Path | None = None
    """file of pre-trained weights; vit_micro's ship with fairjax"""
    space: str = "norm_attn_mlp"
    """mask space, by its readable or its published name"""
    lora_rank: int = 8
    """of the space `lora`"""
    objective: tuple[str, ...] = ("worst_group_auc",)
    """what the search optimises on validation; "@bound" takes the pessimistic 95 %% bound"""
    search: Literal["tpe", "random", "evolution", "nsga2"] = "tpe"
    guided_start: bool = False
    """the first masks from gates trained by gradients (tpe, nsga2)"""
    num_trials: int = 12
    num_slots: int = 8
    """candidates trained as one population"""
    num_epochs: int = 4
    early_stopping: bool = True
    """successive halving: only the best third goes on after first_rung, 3 first_rung, ... epochs"""
    first_rung: int = 2
    num_brackets: int = 1
    """more than one is Hyperband"""
    optimizer: Optimizer = "adamw"
    schedule: Schedule = "cosine"
    warmup_epochs: float = 1
    batch_size: int = 32
    weight_decay: float = 0.01
    label_smoothing: float = 0.0
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: losses weigh as much in all classes, by their share of the training split"""
    learning_rates: tuple[float, float] = (1e-4, 3e-3)
    """range of the search, log-uniform"""
    num_rates: int = 2
    """learning rates tried for the other rows, evenly inside that range"""
    select: Literal["best", "last"] = "last"
    """epoch whose parameters are kept in the final training, by validation"""
    num_finalists: int = 3
    """best trials of the search that are trained with all seeds; the best on average is the row"""
    num_seeds: int = 3
    chunk_size: int | None = None
    """candidates trained at the same time; none asks the compiler what fits into memory"""
    num_replicates: int = 200
    """bootstrap replicates behind the 95 %% intervals"""
    storage: str | None = None
    """Optuna storage; default a journal in the run folder"""
    worker: int = 0
    """number of this process among those that share --storage, each with its own --out"""
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


# sizes for 3 minutes on 2 cores; one candidate at a time per core, more are no faster on CPU
LESIONS = Config(
    about="synthetic skin lesions by skin tone, vit_micro; about 3 minutes on 2 cores",
    data=Data(balance=("val",)),
    num_epochs=3,
    first_rung=1,
    warmup_epochs=0.5,
    num_finalists=1,
    batch_size=16,
    chunk_size=1,
)

PRESETS = {
    "lesions": LESIONS,
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
        chunk_size=1,
        num_replicates=20,
    ),
    "lesions_jpeg": dataclasses.replace(
        LESIONS,
        about="the synthetic lesions as JPEG files, drawn once, read like HAM10000 and cached",
        data=Data("lesions_jpeg", Path("lesions"), ("skin_tone",), balance=("val",)),
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


def prepare_run(config: Config):
    """Read and check everything; returns the function that trains."""
    for name in (
        "num_epochs",
        "num_trials",
        "num_slots",
        "num_finalists",
        "num_seeds",
        "num_rates",
        "first_rung",
    ):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
    if config.num_replicates < 2:
        raise ValueError(f"num_replicates must be at least 2, got {config.num_replicates}")
    if len(config.objective) > 1 and config.search == "evolution":
        raise ValueError("search evolution takes one objective; use nsga2 or tpe for several")
    if config.guided_start and config.search not in ("tpe", "nsga2"):
        raise ValueError(f"guided_start goes with tpe or nsga2, not with {config.search}")
    check_weights(config)
    dataset = load_data(config.data, config.image_size, config.augment)
    model, weights = load_network(config, dataset.num_classes)
    task = make_task(config, dataset, model)
    val = dataset.examples("val")
    check_objectives(
        task.objectives,
        val.labels,
        group=val.group,
        group_names=dataset.group_names,
        num_classes=dataset.num_classes,
    )
    params = weights.params
    if config.space == "lora":
        params = add_lora(params, jax.random.key(config.data.seed), rank=config.lora_rank)
    space = mask_space(params, config.space)
    rungs = make_rungs(config)
    run = common.Run("fairtune", config, out=config.out, resume=config.resume)
    return lambda: run_all(task, space, rungs, params, weights, run)


def check_weights(config: Config) -> None:
    """Raises before the data are read, which can take long."""
    if config.weights is None and config.model != "vit_micro":
        raise ValueError(
            f"no weights ship for {config.model}: give a file of pre-trained ones with --weights "
            "(.safetensors, .npz or .pth; names of timm or torchvision)"
        )
    if config.weights is not None and not config.weights.is_file():
        raise FileNotFoundError(f"{config.weights}: no such file of weights")


def load_network(config: Config, num_classes: int) -> tuple[Model, Weights]:
    """The pre-trained network with a fresh classifier."""
    key = jax.random.key(config.data.seed)
    if config.weights is None:
        return load_pretrained(config.model, num_classes, key, image_size=config.image_size)
    model = image_model(config.model, num_classes, image_size=config.image_size)
    weights = load_weights(config.weights, model, key)
    # also where the file holds a classifier of as many classes
    fresh = jax.jit(lambda key: model.init(key)[0]["head"])(key)
    return model, weights._replace(params={**weights.params, "head": fresh})


def make_task(config: Config, dataset: Dataset, model: Model) -> Task:
    train = dataset.examples("train")
    mean, std = model.config.mean, model.config.std
    devices = jax.devices()
    mesh = candidate_mesh(devices[: math.gcd(config.num_slots, len(devices))])
    task = Task(
        config=config,
        dataset=dataset,
        model=model,
        objectives=tuple(
            objective(name, num_groups=dataset.num_groups) for name in config.objective
        ),
        sampler=fairbatch(
            train.labels,
            train.group,
            num_classes=dataset.num_classes,
            num_groups=dataset.num_groups,
            batch_size=config.batch_size,
            criterion="none",
        ),
        train=train,
        val=dataset.examples("val"),
        augment=make_augment(config.augment, config.image_size, mean, std),
        preprocess=eval_preprocess(config.image_size, mean, std),
        class_weights=balanced_weights(train.labels, dataset.num_classes)
        if config.class_weights == "balanced"
        else None,
        mesh=mesh,
    )
    return task._replace(train=task.everywhere(train), val=task.everywhere(task.val))


def balanced_weights(labels: np.ndarray, num_classes: int) -> jax.Array:
    """float32 `[K]`: inverse to the share of each class, 1 on average over examples.

    Raises:
      ValueError: a class without training examples.
    """
    counts = np.bincount(labels, minlength=num_classes)
    if not counts.all():
        raise ValueError(f"class_weights: class {int(counts.argmin())} has no training examples")
    return jnp.asarray(len(labels) / (num_classes * counts), jnp.float32)


def make_rungs(config: Config) -> Rungs:
    first = config.first_rung if config.early_stopping else config.num_epochs
    return successive_halving(config.num_epochs, first=first, num_brackets=config.num_brackets)


def run_all(
    task: Task, space: MaskSpace, rungs: Rungs, params: dict, weights: Weights, run: common.Run
) -> None:
    """Search, train all rows, judge them on the test split, write the folder."""
    timing: dict[str, float] = {}
    config, batch_stats = task.config, weights.batch_stats
    with timed(timing, "search_s"):
        state = search_masks(task, space, rungs, params, batch_stats, run)
    trials = state.trials
    fairtune_report.write_trials(run, task, space, trials)
    finalists = best_trials(trials, task.maximize[0], config.num_finalists)
    with timed(timing, "train_s"):
        rows, place = train_rows(
            task,
            space,
            trials.masks[finalists],
            trials.learning_rates[finalists],
            params,
            batch_stats,
            run,
        )
    winner = finalists[place]
    mask = trials.masks[winner]
    fairtune_report.write_mask(run, task, space, trials, winner)
    names = list(rows)
    logits = np.stack([rows[name].logits for name in names])
    test = task.dataset.examples("test")
    with timed(timing, "judge_s"):
        comparison = compare_rows(
            logits,
            labels=test.labels,
            group=test.group,
            num_groups=task.dataset.num_groups,
            shown=COMPARED,
            num_replicates=config.num_replicates,
            key=jax.random.key(0),
        )
    by_row, notes = results.summarise(names, comparison, task.dataset.group_names)
    for name, row in rows.items():
        by_row[name] |= {"learning_rate": float(row.learning_rate)}
        by_row[name] |= {"percent_trained": float(row.percent)}
        by_row[name] |= {"val_objective": float(np.mean(row.values))}
    summary = run.finish(
        data=common.data_summary(task.dataset),
        results=by_row,
        timing=timing,
        notes=[
            f"mask: {space.describe(mask).text}",
            *weights.notes,
            *fairtune_report.trial_notes(trials),
            *notes,
        ],
    )
    results.show(
        run,
        summary,
        title=f"FairTune on {task.dataset.name}",
        question="Which parts of the network should be fine-tuned for the fairest result?",
        answer=fairtune_report.one_sentence(by_row, task.dataset.name),
        shown=("percent_trained", *COMPARED),
        figures=fairtune_report.figures(
            space, trials, rungs, task.objectives, dict(zip(names, logits, strict=True)),
            test, task.dataset,
        ),
    )  # fmt: skip


class timed:
    """Add the seconds of a block to `timing[name]`."""

    def __init__(self, timing: dict[str, float], name: str):
        self.timing, self.name = timing, name

    def __enter__(self):
        self.began = time.perf_counter()

    def __exit__(self, *_):
        self.timing[self.name] = time.perf_counter() - self.began


if __name__ == "__main__":
    common.main(prepare_run, PRESETS, description=__doc__ or "")
