"""FairTune: search which parts of a pre-trained network to fine-tune, by validation fairness.

    python -m experiments.fairtune                       synthetic lesions by skin tone
    python -m experiments.fairtune smoke                 seconds, for tests
    python -m experiments.fairtune --space norm --objective auc_gap@bound --num-trials 64

Rows of the table, each trained with several seeds: `full` fine-tuning, the `linear` probe, `all_on`
(every unit of the space) and `fairtune` (the mask that the search found). All get a learning rate
chosen on the validation split by the same objective.
"""

import csv
import dataclasses
import json
import time
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common, fairtune_report, results
from experiments.fairtune_stages import (
    COMPARED,
    Task,
    compile_networks,
    prepared_params,
    pretrained,
    search_masks,
    train_rows,
)
from fairjax.data import Dataset
from fairjax.data.augment import compose, eval_preprocess, normalize, random_flip
from fairjax.data.lesions import lesions_dataset
from fairjax.fairbatch import fairbatch
from fairjax.fairtune import (
    STATUS_NAMES,
    MaskSpace,
    Rungs,
    TuneState,
    best_trial,
    check_objectives,
    mask_space,
    objective,
    pareto_front,
    successive_halving,
)
from fairjax.models import Model, image_model, load_weights, save_weights
from fairjax.optimizers import Optimizer, Schedule


@dataclasses.dataclass(frozen=True)
class Data:
    """What to train on: synthetic lesions by skin tone."""

    num_train: int = 640
    """images of the target domain, a multiple of 4: photographs of one lesion stay together"""
    num_val: int = 600
    """dark skin is rare, so that a smaller split would hold too few malignant lesions on it"""
    num_test: int = 1600
    num_source: int = 1600
    """of the source domain, for pre-training"""
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Config:
    """FairTune on images."""

    about: str = ""
    data: Data = Data()
    model: str = "vit_micro"
    image_size: int = 64
    weights: Path | None = None
    """pre-trained weights; none pre-trains on the source domain first"""
    pretrain_epochs: int = 15
    space: str = "norm_attn_mlp"
    """mask space, by its readable or its published name"""
    lora_rank: int = 8
    """of the space `lora`"""
    objective: tuple[str, ...] = ("worst_group_auc",)
    """what the search optimises on validation; "@bound" takes the pessimistic 95 %% bound"""
    search: Literal["tpe", "random", "evolution", "nsga2"] = "tpe"
    num_trials: int = 32
    num_slots: int = 8
    """candidates trained as one population"""
    num_epochs: int = 9
    early_stopping: bool = True
    """successive halving: only the best third goes on after 1, 3, ... epochs"""
    num_brackets: int = 1
    """more than one is Hyperband"""
    optimizer: Optimizer = "adamw"
    schedule: Schedule = "cosine"
    warmup_epochs: int = 1
    batch_size: int = 32
    weight_decay: float = 0.01
    label_smoothing: float = 0.0
    learning_rates: tuple[float, float] = (1e-4, 1e-2)
    """range of the search, log-uniform"""
    num_rates: int = 4
    """learning rates tried for the other rows"""
    select: Literal["best", "last"] = "best"
    """epoch whose parameters are kept in the final training, by validation"""
    num_seeds: int = 3
    chunk_size: int | None = None
    """candidates trained at the same time; none asks the compiler what fits into memory"""
    num_replicates: int = 200
    """bootstrap replicates behind the 95 %% intervals"""
    storage: str | None = None
    """Optuna storage; default a journal in the run folder"""
    out: Path | None = None
    """result folder; default runs/fairtune-<time>"""
    resume: bool = False
    """go on with the interrupted run in --out"""


PRESETS = {
    "lesions": Config(about="synthetic skin lesions by skin tone, vit_micro"),
    "smoke": Config(
        about="seconds, for tests",
        data=Data(num_train=96, num_val=400, num_test=400, num_source=64),
        image_size=16,
        pretrain_epochs=1,
        space="norm",
        num_trials=4,
        num_slots=2,
        num_epochs=3,
        num_rates=1,
        num_seeds=2,
        batch_size=16,
        chunk_size=1,
        num_replicates=20,
    ),
}


def prepare_run(config: Config):
    """Read and check everything; returns the function that trains."""
    for name in ("num_epochs", "num_trials", "num_slots", "num_seeds", "num_rates"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
    if config.num_replicates < 2:
        raise ValueError(f"num_replicates must be at least 2, got {config.num_replicates}")
    if len(config.objective) > 1 and config.search == "evolution":
        raise ValueError("search evolution takes one objective; use nsga2 or tpe for several")
    dataset = load_data(config.data, config.image_size)
    model = image_model(config.model, dataset.num_classes, image_size=config.image_size)
    task = make_task(config, dataset, model)
    val = dataset.examples("val")
    check_objectives(
        task.objectives,
        val.labels,
        group=val.group,
        group_names=dataset.group_names,
        num_classes=dataset.num_classes,
    )
    shapes = jax.eval_shape(
        lambda key: prepared_params(config, model.init(key)[0]), jax.random.key(0)
    )
    space = mask_space(shapes, config.space)
    rungs = make_rungs(config)
    weights = None
    if config.weights is not None:
        weights = load_weights(config.weights, model, jax.random.key(config.data.seed))
    run = common.Run("fairtune", config, out=config.out, resume=config.resume)
    return lambda: run_all(task, space, rungs, weights, run)


def load_data(data: Data, image_size: int) -> Dataset:
    """Lesions of the target domain, cut into the configured splits."""
    sizes = {"train": data.num_train, "val": data.num_val, "test": data.num_test}
    for name, size in sizes.items():
        if size < 4 or size % 4:
            raise ValueError(f"num_{name} must be a positive multiple of 4, got {size}")
    dataset = lesions_dataset(jax.random.key(data.seed), sum(sizes.values()), image_size)
    ends = np.cumsum(list(sizes.values()))
    splits = {
        name: np.arange(end - size, end, dtype=np.int32)
        for (name, size), end in zip(sizes.items(), ends, strict=True)
    }
    return dataclasses.replace(dataset, splits=splits)


def make_task(config: Config, dataset: Dataset, model: Model) -> Task:
    train = dataset.examples("train")
    mean, std = model.config.mean, model.config.std
    return Task(
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
        train=jax.tree.map(jnp.asarray, train),
        val=jax.tree.map(jnp.asarray, dataset.examples("val")),
        augment=compose(random_flip(horizontal=0.5, vertical=0.5), normalize(mean, std)),
        preprocess=eval_preprocess(config.image_size, mean, std),
    )


def make_rungs(config: Config) -> Rungs:
    first = 1 if config.early_stopping else config.num_epochs
    return successive_halving(config.num_epochs, first=first, num_brackets=config.num_brackets)


def run_all(task: Task, space: MaskSpace, rungs: Rungs, weights: Any, run: common.Run):
    """Pre-train, search, train all rows, judge them on the test split, write the folder."""
    timing: dict[str, float] = {}
    with timed(timing, "pretrain_s"):
        params, batch_stats = weights[:2] if weights else pretrained(task, run)
    nets = compile_networks(task)
    params = prepared_params(task.config, params)
    params = {**params, "head": nets.head(task.config.data.seed)}
    with timed(timing, "search_s"):
        state = search_masks(task, space, rungs, params, batch_stats, run)
    winner = best_trial(state.trials, task.maximize[0])
    mask = state.trials.masks[winner]
    with timed(timing, "train_s"):
        rows = train_rows(
            task,
            nets,
            space,
            mask,
            float(state.trials.learning_rates[winner]),
            params,
            batch_stats,
            run,
        )
    names = list(rows)
    logits = np.stack([rows[name]["logits"] for name in names])
    test = task.dataset.examples("test")
    metrics, intervals = results.judge(
        logits,
        test,
        num_groups=task.dataset.num_groups,
        shown=COMPARED,
        num_replicates=task.config.num_replicates,
    )
    by_row, notes = results.summarise(names, metrics, intervals, task.dataset.group_names)
    for name in names:
        by_row[name] |= {key: rows[name][key] for key in ("learning_rate", "percent_trained")}
        by_row[name]["val_objective"] = rows[name]["value"].mean()
    description = space.describe(mask)
    write_mask(run, task, space, state, winner)
    write_trials(run, task, space, state)
    save_weights(run.folder / "fairtune.safetensors", task.model, *rows["fairtune"]["network"])
    summary = run.finish(
        data=common.data_summary(task.dataset),
        results=by_row,
        timing=timing,
        notes=[f"mask: {description.text}", *trial_notes(state), *notes],
    )
    results.show(
        run,
        summary,
        title=f"FairTune on {task.dataset.name}",
        question="Which parts of the network should be fine-tuned for the fairest result?",
        answer=fairtune_report.one_sentence(by_row, task.dataset.name),
        shown=("percent_trained", *COMPARED),
        figures=fairtune_report.figures(
            space, state.trials, task.objectives, dict(zip(names, logits, strict=True)), test,
            task.dataset,
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


def write_mask(
    run: common.Run, task: Task, space: MaskSpace, state: TuneState, winner: int
) -> None:
    """`mask.json`: everything that training with the found mask again needs."""
    mask, description = state.trials.masks[winner], space.describe(state.trials.masks[winner])
    found = {
        "space": space.name,
        "mask": [int(bit) for bit in mask],
        "units": list(description.units),
        "learning_rate": float(state.trials.learning_rates[winner]),
        "trained_parameters": description.num_trained,
        "percent_trained": description.percent,
        "objective": task.objectives[0].name,
        "val_objective": float(state.trials.values[winner, 0]),
        "model": task.config.model,
        "data": {"name": task.dataset.name, "fingerprint": task.dataset.fingerprint},
    }
    if len(task.objectives) > 1:
        front = pareto_front(state.trials, task.maximize)
        found["pareto_front"] = [
            {
                "mask": [int(bit) for bit in state.trials.masks[row]],
                "learning_rate": float(state.trials.learning_rates[row]),
                "val_objectives": [float(value) for value in state.trials.values[row]],
            }
            for row in front
        ]
    common.write_atomically(run.folder / "mask.json", json.dumps(found, indent=2) + "\n")


def write_trials(run: common.Run, task: Task, space: MaskSpace, state: TuneState) -> None:
    """`trials.csv`: one row per trial; values are of the validation split."""
    trials = state.trials
    with (run.folder / "trials.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        values = [f"val_{objective.name}" for objective in task.objectives]
        writer.writerow(
            ["trial", "status", "epochs", "same_as", "learning_rate", *values, *space.units]
        )
        for i, status in enumerate(trials.status):
            writer.writerow(
                [
                    i,
                    STATUS_NAMES[status],
                    trials.epochs[i],
                    trials.twins[i] if trials.twins[i] >= 0 else "",
                    trials.learning_rates[i],
                    *trials.values[i],
                    *trials.masks[i].astype(int),
                ]
            )


def trial_notes(state: TuneState) -> list[str]:
    """How many trials failed, and why that can be."""
    failed = int((state.trials.status == STATUS_NAMES.index("failed")).sum())
    if not failed:
        return []
    return [f"{failed} trials failed: the objective was undefined or the training diverged"]


if __name__ == "__main__":
    common.main(prepare_run, PRESETS, description=__doc__ or "")
