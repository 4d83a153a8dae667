"""The map of `experiments.compare map`: where does each method help, hurt or do nothing?

Controlled data (`shortcut_gaussians`) of every minority share, training size and strength of the
shortcut, drawn anew for each of R draws. The sizes and draws of one share and strength are runs of
one population: a smaller set is repeated until it is as long as the largest, which changes neither
what is learned from nor how many steps are taken.
"""

import dataclasses
import itertools
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np

from experiments import cli
from experiments.files import load_arrays, replacing, save_arrays, write_atomically
from experiments.run import Run, timed
from fairjax import report
from fairjax.compare import (
    Criterion,
    Setting,
    Strengths,
    add_thresholds,
    make_recipe,
    margins,
    train_methods,
)
from fairjax.data import Dataset, Splits, shortcut_gaussians
from fairjax.models import logistic_regression
from fairjax.report.maps import Effects, as_csv, effect_maps, map_sentence, paired_effects

Balancing = Literal["class_balanced", "group_balanced", "reweighted", "group_dro", "group_cvar"]
Weighing = Literal["jtt", "focal", "cvar", "logit_adjusted", "fairbatch", "fairbatch@rate"]
Method = Balancing | Weighing | Literal["thresholds"]
Noise = Annotated[float, cli.Range(0, 0.5, below=True)]
NUM_VAL, NUM_TEST = 400, 2000


@dataclasses.dataclass(frozen=True)
class MapConfig:
    """Where does each method help? Minority share x training size x strength of a shortcut."""

    about: cli.Hidden = ""
    shares: tuple[cli.Inside, ...] = (0.05, 0.1, 0.2, 0.4)
    """of the minority"""
    sizes: tuple[cli.Count, ...] = (200, 800, 3200)
    """training rows, divisors of the largest; validation has 400, test 2,000"""
    strengths: tuple[cli.NonNegative, ...] = (0.0, 0.5, 1.0)
    """of the shortcut; with 1 it tells the majority as much as the honest feature does"""
    label_noise: Noise = 0.0
    """chance that a training or validation label is wrong"""
    methods: tuple[Method, ...] = (
        "group_balanced",
        "reweighted",
        "group_dro",
        "fairbatch@rate",
        "thresholds",
    )
    criterion: Criterion = "equalized_odds"
    metric: Literal["worst_group_accuracy", "accuracy", "gap"] = "worst_group_accuracy"
    """whose change is drawn; the file has all"""
    cost: cli.Inside = 0.005
    """accuracy on validation that thresholds may give up"""
    num_splits: cli.Count = 5
    """draws of every cell"""
    num_steps: cli.Count = 1_000
    batch_size: cli.Count = 64
    learning_rate: cli.Positive = 0.01
    fairbatch_step: cli.Positive = 0.01
    rate_step: cli.Positive = 0.1
    dro_step: cli.Positive = 0.01
    upweight: cli.Positive = 6.0
    gamma: cli.NonNegative = 2.0
    worst_share: cli.Inside = 0.5
    tau: cli.NonNegative = 1.0
    seeds: cli.Seeds = cli.Seeds()
    data_seed: cli.Seed = 0
    out: Path | None = None
    """result folder; default runs/compare-<time>"""
    resume: bool = False
    """go on with the interrupted run in --out, column by column"""


def prepare_map(config: MapConfig):
    """Check everything; returns the function that trains."""
    cli.check_numbers(config)
    largest = max(config.sizes, default=0)
    if not (config.shares and config.sizes and config.strengths and config.methods):
        raise ValueError("--shares, --sizes, --strengths and --methods must name something")
    if any(largest % size for size in config.sizes):
        raise ValueError(f"--sizes must divide the largest of them, got {config.sizes}")
    if config.num_splits < 2:
        raise ValueError("--num-splits must be at least 2, to tell a change from chance")
    if min(config.shares) * min(config.sizes) < 4:
        raise ValueError("--shares and --sizes leave a minority of fewer than 4 rows")
    run = Run("compare", config, out=config.out, resume=config.resume)
    return lambda: run_map(config, run.start())


def run_map(config: MapConfig, run: Run) -> None:
    """All columns, then the picture, its numbers and the page."""
    timing: dict[str, float] = {}
    columns = []
    for share, strength in itertools.product(config.shares, config.strengths):
        path = run.folder / f"share_{share:g}_strength_{strength:g}.npz"
        if not path.exists():
            cells, done = train_column(config, share, strength, timing)
            save_arrays(path, **cells)
            cli.say(f"share {share:g}, strength {strength:g}: {done}")
        columns.append(load_arrays(path))
        run.may_stop()
    # [methods, shares, strengths, sizes, draws], plain training first
    shape = (len(config.shares), len(config.strengths))
    values = {
        name: np.moveaxis(np.stack([cells[name] for cells in columns]), 1, 0).reshape(
            1 + len(config.methods), *shape, len(config.sizes), config.num_splits
        )
        for name in columns[0]
    }
    show(config, run, values, timing)


def train_column(config: MapConfig, share: float, strength: float, timing):
    """`{metric: [methods, sizes, draws]}`, plain training first, and one line."""
    setting = make_column(config, share, strength)
    wanted = [name for name in config.methods if name != "thresholds"]
    last = lambda name, trained: trained.at_stage(-1)
    found, left_out = train_methods(setting, wanted, keep=last, seconds=timing)
    if left_out:
        raise ValueError("; ".join(f"{name}: {reason}" for name, reason in left_out.items()))
    own = setting.splits.test[setting.split_of_run]
    scores = {name: margins(setting.logits(each, own)) for name, each in found.items()}
    preds = {name: (each > 0).astype(int) for name, each in scores.items()}
    if "thresholds" in config.methods:
        plain = margins(found["plain"].val)[None], scores["plain"][None]
        with timed(timing, "thresholds_s"):
            preds["thresholds"] = add_thresholds(setting, *plain, cost=config.cost)[0, 0]
    gap = f"{config.criterion}_difference"
    names = {"accuracy": "accuracy", "worst_group_accuracy": "worst_group_accuracy", gap: gap}
    ordered = ["plain", *config.methods]
    cells = {name: np.empty((len(ordered), len(own))) for name in names}
    for run, rows in enumerate(own):
        told = setting.rates(np.stack([preds[name][run] for name in ordered]), rows)
        for name in names:
            cells[name][:, run] = told[name]
    worst = cells["worst_group_accuracy"]
    line = ", ".join(f"{name} {worst[i].mean():.3f}" for i, name in enumerate(ordered))
    shape = (len(ordered), len(config.sizes), config.num_splits)
    return {name: each.reshape(shape) for name, each in cells.items()}, f"worst group {line}"


def make_column(config: MapConfig, share: float, strength: float) -> Setting:
    """Sets of all sizes and draws side by side, each a split of one large set."""
    largest, num_draws = max(config.sizes), config.num_splits
    key = jax.random.fold_in(jax.random.key(config.data_seed), round(1e6 * share))
    key = jax.random.fold_in(key, round(1e6 * strength))
    drawn = [
        shortcut_gaussians(
            jax.random.fold_in(key, draw),
            largest,
            minority=share,
            strength=strength,
            label_noise=config.label_noise,
            num_val=NUM_VAL,
            num_test=NUM_TEST,
        )
        for draw in range(num_draws)
    ]
    parts, train = [], []
    for size, data in itertools.product(config.sizes, drawn):
        few = round(share * size)
        rows = data.splits["train"]
        group = data.group[rows]
        kept = np.concatenate([rows[group == 1][:few], rows[group == 0][: size - few]])
        parts.append(data.rows(np.tile(kept, largest // size)))
        train.append(len(train) * largest + np.arange(largest))
    held = {}
    for split, count in (("val", NUM_VAL), ("test", NUM_TEST)):
        start = sum(len(part.labels) for part in parts)
        parts += [data.examples(split) for data in drawn]
        own = start + np.arange(num_draws * count).reshape(num_draws, count)
        held[split] = np.tile(own, (len(config.sizes), 1)).astype(np.int32)
    inputs, labels, group = (np.concatenate(leaves) for leaves in zip(*parts, strict=True))
    splits = Splits(np.stack(train).astype(np.int32), held["val"], held["test"])
    data = Dataset(
        name="shortcut_gaussians",
        inputs=inputs,
        labels=labels,
        group=group,
        label_names=drawn[0].label_names,
        group_names=drawn[0].group_names,
        splits={name: np.unique(rows) for name, rows in splits._asdict().items()},
    )
    recipe = make_recipe(config.num_steps, largest, config.batch_size, config.learning_rate)
    strengths = Strengths(**cli.settings(config, Strengths._fields))
    model = logistic_regression(inputs.shape[1])
    how: dict[str, Any] = {"start_seed": config.seeds.start, "batch_seed": config.seeds.batches}
    return Setting(data, splits, 1, model, recipe, config.criterion, strengths, **how)


def by_method(methods: tuple[str, ...], effects: dict[str, Effects]) -> dict[str, Any]:
    """The `results` of summary.json, `[shares, strengths, sizes]` each."""
    return {
        method: {
            name: {"change": each.change[i], "p": each.p_value[i], "clear": each.clear[i]}
            for name, each in effects.items()
        }
        for i, method in enumerate(methods)
    }


def show(config: MapConfig, run: Run, values: dict[str, np.ndarray], timing) -> None:
    """The picture and its numbers."""
    gap = f"{config.criterion}_difference"
    effects = {name: paired_effects(each) for name, each in values.items()}
    axes: dict[str, Any] = {
        "methods": config.methods,
        "shares": config.shares,
        "strengths": config.strengths,
        "sizes": config.sizes,
    }
    figures = {
        f"Change of {name} against plain training": effect_maps(
            effects[name], **axes, good=-1 if name == gap else 1
        )
        for name in ("worst_group_accuracy", gap, "accuracy")
    }
    metric = gap if config.metric == "gap" else config.metric
    drawn = figures.pop(f"Change of {metric} against plain training")
    figures = {f"Change of {metric} against plain training": drawn, **figures}
    answer = map_sentence(effects[metric], config.methods, metric, good=-1 if metric == gap else 1)
    plain = {name: each[0].mean(-1) for name, each in values.items()}
    data = {
        "name": "shortcut_gaussians",
        "axes": {"share": config.shares, "strength": config.strengths, "size": config.sizes},
        "notes": [],
    }
    notes = [
        "Validation has 400 rows whatever the training size; thresholds are chosen on them.",
        "A change is clear where the paired t-test over the draws stays below 5 % after Benjamini "
        "and Hochberg's correction for all cells and methods of a picture.",
    ]
    summary = run.finish(
        data=data,
        results={"plain": plain, **by_method(config.methods, effects)},
        timing=timing,
        notes=notes,
    )
    write_atomically(run.folder / "results.csv", as_csv(effects, **axes))
    write_atomically(run.folder / "map.svg", drawn)
    lines = [
        [(name, ""), *((str(int(count)), "") for count in counts)]
        for name, *counts in effects[metric].counts(config.methods, -1 if metric == gap else 1)
    ]
    columns = ["method", "cells where it helps", "hurts", "does nothing clear"]
    print(cli.table(columns, [[value for value, _ in line] for line in lines]))
    with replacing(run.folder / "report.html") as page:
        report.write_report(
            page,
            title="Where does each method help?",
            question=f"Change of {metric} against plain training, by minority share, training "
            "size and strength of the shortcut.",
            answer=answer,
            columns=columns,
            rows=lines,
            caption=f"{config.num_splits} draws of each cell; dots mark clear changes.",
            figures=figures,
            notes=notes,
            command=summary["command"],
            facts={"device": summary["device"], "time": f"{summary['timing']['total_s']:.0f} s"},
        )
    print(f"\n{answer}\nresults in {run.folder}, page {run.folder / 'report.html'}")
