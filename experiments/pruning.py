"""Sensitive-channel pruning: score, select on validation, prune, fine-tune, repeat, slice.

    python -m experiments.pruning                        synthetic lesions by skin tone, vgg_micro
    python -m experiments.pruning --num-seeds 5          the same with a spread over seeds
    python -m experiments.pruning smoke                  seconds, for tests
    python -m experiments.pruning fitzpatrick17k --data.manual-dir DIR --weights vgg11.safetensors
    python -m experiments.pruning isic2019 --data.manual-dir DIR --weights baseline.safetensors \
        --num-epochs 0                                   prunes a baseline of your own

Trains a baseline, then prunes it in rounds: candidates from every (layer, count, score, trade-off)
are evaluated on validation as one program, the best are fine-tuned as a population, and the best of
those is kept while validation FATE improves. Rows of the table are `baseline`, `pruned` and three
controls that repeat its rounds: `tuned` trains as long and prunes nothing, `random` prunes as many
channels of the same layer at random, `random_best` takes the best on validation of as many random
plans as `pruned` had finalists.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from experiments import pruning_report, results
from experiments.cli import (
    Count,
    Hidden,
    NonNegative,
    Positive,
    Replicates,
    Share,
    Whole,
    check_numbers,
    phase,
    table,
)
from experiments.cli import progress as bar
from experiments.files import replacing
from experiments.image_data import Data, load_data
from experiments.pruning_stages import (
    ROWS,
    SHOWN,
    Progress,
    Start,
    Task,
    advance,
    blank_progress,
    judge,
    make_task,
)
from experiments.run import Run, data_summary, main, timed
from fairjax import pruning
from fairjax.data import Dataset
from fairjax.models import Model, image_model, load_pretrained, load_weights, save_weights
from fairjax.pruning import PrunePlan, Score

# dark skin is rare, and rates on it want many images of it; as many of light skin are enough
LESIONS = Data(num_train=3200, num_val=4800, num_test=9600, balance=("val", "test"))


@dataclasses.dataclass(frozen=True)
class Config:
    """Sensitive-channel pruning of an image network."""

    about: Hidden = ""
    data: Data = LESIONS
    model: str = "vgg_micro"
    image_size: Count = 64
    weights: Path | None = None
    """of the baseline, to begin with; none takes what ships with fairjax, else fresh ones"""
    layers: tuple[str, ...] = ("features/11", "features/13")
    """layers whose channels may go"""
    counts: tuple[Count, ...] = (8, 16, 32, 64)
    """channels that a round may remove from one layer"""
    scores: tuple[Score, ...] = ("snnl",)
    """what ranks channels; see fairjax.pruning.score_channels"""
    trade_offs: tuple[NonNegative, ...] = (0.0, 1.0)
    """how much to protect channels that separate the labels"""
    num_rounds: Count = 2
    num_finalists: Count = 2
    """best candidates of a round that are fine-tuned"""
    disparity: str = "eodd"
    """what FATE wants low; the published code takes eodd_scp"""
    accuracy: str = "macro_f1"
    """what FATE wants high, as published; "accuracy" would reward calling everything benign"""
    max_accuracy_drop: Share = 0.02
    """a round that loses more of the baseline's validation accuracy or macro F1, relatively, is
    not taken"""
    num_seeds: Count = 1
    num_epochs: Whole = 3
    """of the baseline; 0 takes --weights as the baseline"""
    finetune_epochs: Count = 1
    """of every round"""
    batch_size: Count = 32
    learning_rate: Positive = 0.002
    schedule: Literal["cosine", "step"] = "cosine"
    """rise over a tenth of the steps and fall to 0: from its full size at once it spoils what the
    weights have learned; or, as published, fall to a tenth after half of the steps"""
    weight_decay: NonNegative = 1e-5
    augment: Literal["flip", "published"] = "flip"
    """"published" also turns, zooms, shears, changes colours and cuts a square out"""
    num_replicates: Replicates = 100
    """bootstrap replicates behind the 95 % intervals"""
    out: Path | None = None
    """result folder; default runs/pruning-<time>"""
    resume: bool = False
    """go on with the interrupted run in --out"""


_PUBLISHED = Config(
    model="vgg11",
    image_size=224,
    layers=("features/18",),
    counts=(5, 10, 15, 20),
    num_epochs=200,
    finetune_epochs=200,
    batch_size=256,
    learning_rate=0.01,
    schedule="step",
    augment="published",
)
PRESETS = {
    # one round, so that it ends within 3 minutes on 2 CPU cores
    "lesions": Config(
        about="synthetic skin lesions by skin tone, a small VGG; 3 minutes on 2 cores",
        num_rounds=1,
        num_finalists=4,
    ),
    "smoke": Config(
        about="seconds, for tests",
        data=dataclasses.replace(LESIONS, num_train=240, num_val=160, num_test=320),
        image_size=16,
        layers=("features/13",),
        counts=(4, 8),
        trade_offs=(0.0,),
        num_epochs=1,
        num_replicates=4,
    ),
    "fitzpatrick17k": dataclasses.replace(
        _PUBLISHED,
        about="114 skin conditions by skin type, VGG-11 at 224 px; needs a GPU or TPU",
        data=Data("fitzpatrick17k_114"),
    ),
    "isic2019": dataclasses.replace(
        _PUBLISHED,
        about="8 kinds of skin lesion by sex, VGG-11 at 128 px; needs a GPU or TPU",
        data=Data("isic2019"),
        image_size=128,
    ),
}


def prepare_run(config: Config):
    """Check and read everything; returns the function that trains."""
    check_numbers(config)
    if config.num_epochs == 0 and config.weights is None:
        raise ValueError("--num-epochs must be at least 1, or 0 with --weights, got 0")
    run = Run("pruning", config, out=config.out, resume=config.resume)
    for name in ("accuracy", "disparity"):
        if getattr(config, name) not in SHOWN[:-1]:
            raise ValueError(
                f"{name} must be one of {', '.join(SHOWN[:-1])}, got {getattr(config, name)!r}"
            )
    for name in ("layers", "counts", "scores", "trade_offs"):
        if not getattr(config, name):
            raise ValueError(f"--{name.replace('_', '-')}: give at least one")
    num_candidates = (
        len(config.layers) * len(config.counts) * len(config.scores) * len(config.trade_offs)
    )
    if num_candidates < config.num_finalists:
        raise ValueError(
            f"num_finalists is {config.num_finalists}, but there are {num_candidates} candidates"
        )
    _check_layers(config, image_model(config.model, 2, image_size=config.image_size))
    phase(f"reading {config.data.source}")
    dataset = load_data(config.data, config.image_size)
    _check_cells(dataset)
    model, start = load_network(config, dataset.num_classes)
    task = make_task(config, model, start, dataset)
    return lambda: train_and_report(task, run.start())


def _check_layers(config: Config, model: Model) -> None:
    """Before images are drawn or decoded: are there such layers, with that many channels?"""
    graph = model.config.channel_graph
    for layer in config.layers:
        if layer not in graph:
            raise ValueError(f"--layers: no layer {layer!r}; {config.model} has {', '.join(graph)}")
        if not 0 < min(config.counts) <= max(config.counts) < graph[layer].size:
            raise ValueError(
                f"--counts must be at least 1 and below {graph[layer].size}, the number of "
                f"channels of {layer}; got {', '.join(map(str, config.counts))}"
            )


def _check_cells(dataset: Dataset) -> None:
    """Rates are compared between groups within a class, so two classes must be in every group."""
    for split in ("val", "test"):
        counts = dataset.cell_counts(split)
        if (counts > 0).all(1).sum() < 2:
            label, group = np.argwhere(counts == 0)[0]
            raise ValueError(
                f"the {split} split has fewer than two classes in every group (such as no "
                f"{dataset.label_names[label]} of {dataset.group_names[group]}): it needs more "
                "images"
            )


def load_network(config: Config, num_classes: int) -> tuple[Model, Start]:
    """The model, and what gives the parameters that the baseline of a seed starts from."""
    name, size = config.model, config.image_size
    model = image_model(name, num_classes, image_size=size)
    path = config.weights
    if path is not None:
        notes = load_weights(path, model, jax.random.key(0)).notes
        if config.num_epochs == 0 and notes:
            raise ValueError(
                f"{path} is no baseline for {num_classes} classes ({'; '.join(notes)}); "
                "train one with --num-epochs"
            )
        return model, lambda key: load_weights(path, model, key)[:2]
    if name.endswith("_micro"):
        return model, lambda key: load_pretrained(name, num_classes, key, image_size=size)[1][:2]
    return model, jax.jit(model.init)


def train_and_report(task: Task, run: Run) -> None:
    """Every seed and row, then test metrics, the smaller network and the page."""
    progress = blank_progress(task)
    restored = run.restore(progress)
    if restored is not None:
        progress = Progress(*map(_whole_number, restored[1]))
    run.rewrite_history(row for row in run.history() if row["step"] <= progress.step)
    timing: dict[str, float] = {}
    total, done = task.config.num_seeds * len(ROWS), progress.seed * len(ROWS) + progress.row
    phase("compiling and training the baseline")
    with bar(total, "rows", done) as shown, timed(timing, "train_s"):
        while progress.seed < task.config.num_seeds:
            progress = advance(task, run, progress)
            shown.update(progress.seed * len(ROWS) + progress.row - shown.n)
            run.save(progress.step, progress)
    phase("judging on the test split")
    by_row, notes = judge(task, progress.logits)
    base, final = progress.networks["baseline"], progress.networks["pruned"]
    small = pruning.slice_channels(
        final.params, final.batch_stats, PrunePlan(final.keep), task.model.config.channel_graph
    )
    with replacing(run.folder / "pruned.safetensors") as path:
        save_weights(path, task.model, *small)
    sizes = pruning_report.compare_sizes(task.model, (base.params, base.batch_stats), small)
    by_row["pruned"]["num_parameters"] = sizes["num_parameters"]
    timing |= dict(zip(("forward_before_s", "forward_after_s"), sizes["forward_s"], strict=True))
    summary = run.finish(
        data=data_summary(task.dataset), results=by_row, timing=timing, notes=notes
    )
    size_rows = pruning_report.size_table(sizes)
    results.show(
        run,
        summary,
        title=f"Sensitive-channel pruning on {task.dataset.name}",
        question="Does removing channels that carry the group make the model fairer?",
        answer=pruning_report.one_sentence(by_row),
        shown=SHOWN,
        figures=pruning_report.figures(task, run.history(), base, final, sizes),
        legend="; ".join(
            f"{name}: {before} before, {after} after" for name, before, after in size_rows
        ),
    )
    print(table(["size, last seed", "before", "after"], size_rows))


def _whole_number(value: Any) -> Any:
    """Counters come back from a checkpoint as arrays."""
    return int(value) if np.ndim(value) == 0 and not isinstance(value, dict) else value


if __name__ == "__main__":
    main(prepare_run, PRESETS, description=__doc__ or "")
