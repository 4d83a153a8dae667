"""Sensitive-channel pruning: score, select on validation, prune, fine-tune, repeat, slice.

    python -m experiments.pruning                        synthetic lesions by skin tone, vgg_micro
    python -m experiments.pruning --num-seeds 5          the same with a spread over seeds
    python -m experiments.pruning csv --data.csv my.csv --data.image-root images --data.label y
    python -m experiments.pruning fitzpatrick17k --data.manual-dir DIR --weights vgg11.safetensors
    python -m experiments.pruning isic2019 --data.manual-dir DIR --weights baseline.safetensors \
        --num-epochs 0                                   prunes a baseline of your own

Rows of the table are `baseline`, `pruned` (see `fairjax.pruning.prune`) and its controls: `tuned`
trains as long and prunes nothing, `random` prunes as many channels of the same layer at random;
`random_best` and `magnitude` choose on validation as `pruned` does, from as many plans, but rank
channels at random or by the size of their weights. `--after thresholds` adds two rows.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from experiments import cli, results, timing
from experiments.data import Data, load_data, make_augment
from experiments.files import replacing
from experiments.run import Run, main, timed
from experiments.tracking import Tracker
from fairjax import pruning, report, thresholds
from fairjax.data.augment import color_jitter, compose, cutout, random_affine, random_flip
from fairjax.models import Model, Weights, image_model, load_pretrained, load_weights, save_weights
from fairjax.models.torch_card import OPEN_IN_TORCH
from fairjax.pruning import PruneRounds, PruneState, Score
from fairjax.report.pruning import pruning_figures, pruning_sentence
from fairjax.train import Recipe, network_trainer
from fairjax.train.recipe import Dtype, Loss, Sampler

SHOWN = ("accuracy", "macro_f1", "auc", "eodd", "eodd_scp", "eopp0", "eopp1", "dp_scp", "fate")
# the group predicts the label in train and val; half of the images show dark skin
SHORTCUT = Data(domain="shortcut", num_train=3200, num_val=1600, num_test=4800)
# dark skin is rare, and rates on it want many images of it; as many of light skin are enough
TARGET = Data(num_train=3200, num_val=4800, num_test=9600, balance=("val", "test"))


@dataclasses.dataclass(frozen=True)
class Config(cli.WeightFile):
    """Sensitive-channel pruning of an image network."""

    about: cli.Hidden = ""
    data: Data = SHORTCUT
    seeds: cli.Seeds = cli.Seeds()
    model: str = "vgg_micro"
    image_size: cli.Count = 64
    weights: Path | None = None
    """of the baseline, to begin with; none takes what ships with fairjax, else fresh ones"""
    layers: tuple[str, ...] = ("features/11", "features/13")
    """layers whose channels may go"""
    counts: tuple[cli.Count, ...] = (8, 16, 32, 64)
    """channels that a round may remove from one layer"""
    scores: tuple[Score, ...] = ("snnl",)
    """what ranks channels; see fairjax.pruning.score_channels"""
    trade_offs: tuple[cli.NonNegative, ...] = (0.0, 1.0)
    """how much to protect channels that separate the labels"""
    num_rounds: cli.Count = 2
    num_finalists: cli.Count = 2
    """best plans of a round that are fine-tuned"""
    disparity: str = "eodd"
    """what FATE wants low; the published code takes eodd_scp"""
    accuracy: str = "macro_f1"
    """what FATE wants high, as published; "accuracy" would reward calling everything benign"""
    max_accuracy_drop: cli.Share = 0.02
    """a round that loses more of the baseline's validation accuracy or macro F1, relatively, is
    not taken"""
    num_seeds: cli.Count = 1
    num_epochs: cli.Whole = 3
    """of the baseline; 0 takes --weights as the baseline"""
    finetune_epochs: cli.Whole = 1
    """of every round; 0 leaves networks as pruning makes them"""
    batch_size: cli.Count = 32
    learning_rate: cli.Positive = 0.002
    schedule: Literal["cosine", "step"] = "cosine"
    """a rise over a tenth of the steps, without which it spoils what the weights have learned, and
    a fall to 0; or, as published, a fall to a tenth after half of the steps"""
    sampler: Sampler = "class_balanced"
    loss: Loss = "cross_entropy"
    weight_decay: cli.NonNegative = 1e-5
    augment: Literal["flip", "published", "none"] = "flip"
    """"published" also turns, zooms, shears, changes colours and cuts a square out"""
    dtype: Dtype = "float32"
    """in training (vision transformers); see fairtune"""
    checkpoint_blocks: bool = False
    """recompute blocks in the backward pass: slower, much less memory (vision transformers)"""
    num_replicates: cli.Replicates = 100
    """bootstrap replicates behind the 95 % intervals"""
    after: Literal["thresholds"] | None = None
    """thresholds: `baseline` and `pruned` once more, a threshold per group chosen on validation"""
    track: tuple[Tracker, ...] = ()
    """where the numbers of every epoch or round go, too: tensorboard, wandb, mlflow"""
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
# Validation has the shortcut, too: a network that takes it less must lose accuracy there. Without
# fine-tuning the best plan is known before any is made.
_SHORTCUT = Config(
    num_rounds=2, num_finalists=1, num_seeds=3, finetune_epochs=0, max_accuracy_drop=0.1
)
PRESETS = {
    # sizes for 3 minutes on 2 CPU cores
    "lesions": dataclasses.replace(
        _SHORTCUT,
        about="synthetic lesions, skin tone a shortcut to the label; 3 minutes on 2 cores",
    ),
    "target": Config(
        about="synthetic lesions without a shortcut, dark skin rare; 3 minutes on 2 cores",
        data=TARGET,
        num_rounds=1,
        num_finalists=4,
    ),
    "colored_digits": dataclasses.replace(
        _SHORTCUT,
        about="handwritten digits, colour a shortcut to the label; 2 minutes on 2 cores",
        data=Data("colored_digits"),
        image_size=32,
        augment="none",  # a 2 that is flipped looks like a 5
        num_epochs=15,  # of 721 images
    ),
    "smoke": Config(
        about="seconds, for tests",
        data=dataclasses.replace(TARGET, num_train=240, num_val=160, num_test=320),
        image_size=16,
        layers=("features/13",),
        counts=(4, 8),
        trade_offs=(0.0,),
        num_epochs=1,
        num_replicates=4,
    ),
    "csv": Config(
        about="a CSV and a folder of images of yours: --data.csv, --data.image-root, --data.label",
        data=Data("csv"),
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
    """Read and check everything; returns the function that trains."""
    cli.check_numbers(config)
    config.reading()
    if config.num_epochs == 0 and config.weights is None:
        raise ValueError("--num-epochs must be at least 1, or 0 with --weights, got 0")
    architecture = image_model(config.model, 2, image_size=config.image_size).config
    pruning.check_layers(config.layers, architecture.channel_graph)
    run = Run("pruning", config, out=config.out, resume=config.resume)
    cli.phase(f"reading {config.data.source}")
    data = load_data(config.data, image_size=config.image_size)
    pruning.check_cells(data, "test")
    if config.after is not None and data.num_classes != 2:
        raise ValueError(f"--after {config.after} needs two classes, not {data.num_classes}")
    model = image_model(config.model, data.num_classes, image_size=config.image_size)
    names = [field.name for field in dataclasses.fields(PruneRounds)][3:]  # what is no option
    settings: dict[str, Any] = {name: getattr(config, name) for name in names}
    weights = start_weights(config, model, 0)
    recipe = make_recipe(config, config.finetune_epochs) if config.finetune_epochs else None
    rounds = pruning.prune_rounds(model, weights, data, recipe, **settings)
    return lambda: run_all(config, run, rounds)


def row_names(config: Config) -> tuple[str, ...]:
    """Rows of the table; without fine-tuning `tuned` would be the baseline."""
    tuned = ("tuned",) if config.finetune_epochs else ()
    return ("baseline", "pruned", *tuned, "random", "random_best", "magnitude")


def make_recipe(config: Config, num_epochs: int) -> Recipe:
    """How the baseline and every round are trained."""
    augment = None if config.augment == "none" else make_augment("flips", config.image_size)
    if config.augment == "published":  # short of AutoAugment
        augment = compose(
            random_flip(horizontal=0.5, vertical=0.5),
            random_affine(180.0, scale=(0.8, 1.2), shear=10.0),
            color_jitter(brightness=32 / 255, saturation=0.5),
            cutout(16),
        )
    return Recipe(
        num_epochs=num_epochs,
        batch_size=config.batch_size,
        sampler=config.sampler,
        loss=config.loss,
        optimizer="sgd_nesterov",
        learning_rate=config.learning_rate,
        schedule=config.schedule,
        warmup_epochs=0.1 * num_epochs if config.schedule == "cosine" else 0.0,
        drops=(0.5,),
        weight_decay=config.weight_decay,
        augment=augment,
        dtype=config.dtype,
        checkpoint_blocks=config.checkpoint_blocks,
    )


def start_weights(config: Config, model: Model, seed: int) -> Weights:
    """What the baseline of a seed begins with."""
    key, path = jax.random.key(config.seeds.start + seed), config.weights
    if path is not None:
        weights = load_weights(model=model, key=key, **config.reading())
        if config.num_epochs == 0 and weights.notes:
            raise ValueError(
                f"{path} is no baseline for these data ({'; '.join(weights.notes)}); "
                "train one with --num-epochs"
            )
        return weights
    if config.model.endswith("_micro"):
        classes, size = model.config.num_classes, config.image_size
        return load_pretrained(config.model, classes, key, image_size=size)[1]
    params, batch_stats = jax.jit(model.init)(key)
    return Weights(params, batch_stats, ())


def run_all(config: Config, run: Run, rounds: PruneRounds) -> None:
    """Every seed and row, then test metrics, the smaller network and the page."""
    seconds: dict[str, float] = {}
    with timed(seconds, "train_s"):
        done = train(config, run.start(), rounds)
    data, names = rounds.data, row_names(config)
    by_split = {
        split: dict(zip(names, np.moveaxis(part, 1, 0), strict=True))
        for split, part in done.logits.items()
    }
    logits = by_split["test"]
    for name in ("baseline", "pruned") if config.after is not None else ():
        shifted = thresholds.thresholds_after(by_split["val"][name], logits[name], data)
        logits[f"{name}+thresholds"] = shifted
    how: dict[str, Any] = {"shown": SHOWN[:-1], "num_replicates": config.num_replicates}
    how["table_fn"] = pruning.tabulate_pruned
    compared = results.judge(logits, data, seconds, **how)
    fate = rounds.fate(compared.metrics, {k: v[:1] for k, v in compared.metrics.items()})
    compared = compared._replace(metrics={**compared.metrics, "fate": fate})
    by_row, notes = report.summarise(list(logits), compared, data.group_names)
    by_row["pruned"]["gain_over"] = results.gains(
        "pruned", logits, data, seconds, told_of=("eodd", "accuracy"), **how
    )
    notes.append(f"FATE weighs {config.accuracy} against {config.disparity}, trade-off 1")
    cli.phase("the smaller network, its scores and its speed")
    first = done.states["baseline"]
    base = Weights(first.params, first.batch_stats, ())
    pruned = rounds.finish(done.states["pruned"], base, key=batch_key(config, config.num_seeds - 1))
    with replacing(run.folder / "pruned.safetensors") as path:
        save_weights(path, rounds.model, pruned.weights.params, pruned.weights.batch_stats)
    sizes = timing.compare_sizes(rounds.model, data.inputs[:1], base, pruned.weights)
    by_row["pruned"]["num_parameters"] = list(sizes["parameters"])
    before_ms, after_ms = sizes["ms per 64 images"]
    seconds |= {"forward_before_s": before_ms / 1e3, "forward_after_s": after_ms / 1e3}
    cli.phase("drawing the report")
    axes = (config.disparity, config.accuracy)
    results.show(
        run,
        data,
        by_row,
        timing=seconds,
        notes=notes,
        title=f"Sensitive-channel pruning on {data.name}",
        question="Does removing channels that carry the group make the model fairer?",
        answer=pruning_sentence(by_row),
        network=(
            f"`pruned.safetensors`, a smaller {config.model} (of the last seed): "
            f"`load_weights(path, image_model({config.model!r}, {data.num_classes}), key)` of "
            "`fairjax.models`, or in PyTorch, in a network of these names,"
            f"\n\n```python\n{OPEN_IN_TORCH}```"
        ),
        shown=SHOWN,
        chosen=("baseline", "pruned"),
        logits=logits,
        figures=pruning_figures(rounds, base, pruned, run.history(), names=axes, sizes=sizes),
    )
    size_rows = [[name, *(f"{value:,.6g}" for value in pair)] for name, pair in sizes.items()]
    print(cli.table(["size, last seed", "before", "after"], size_rows))


class Progress(NamedTuple):
    """Where a run stands; saved after every step, which is one round or less."""

    step: Any
    seed: Any
    row: Any
    """index into `row_names` of the row in progress"""
    states: dict[str, PruneState]
    """of this seed; rows ahead hold the baseline"""
    logits: dict[str, Any]
    """split -> logits of finished rows `[S, R, N, K]`; of validation for `--after` alone"""


def train(config: Config, run: Run, rounds: PruneRounds) -> Progress:
    """All seeds and rows; goes on where an interrupted run stopped."""
    data, names = rounds.data, row_names(config)
    logits = {
        split: np.zeros((config.num_seeds, len(names), rows.size, data.num_classes), np.float32)
        for split, rows in data.splits.items()
        if split == "test" or (split == "val" and config.after is not None)
    }
    now = Progress(0, 0, 0, {}, logits)
    if config.resume:  # into the shapes of a state
        blank = rounds.init(start_weights(config, rounds.model, 0))
        restored = run.restore(now._replace(states=dict.fromkeys(names, blank)))
        now = now if restored is None else restored[1]
    run.rewrite_history(row for row in run.history() if row["step"] <= now.step)
    cli.phase("compiling and training the baseline")
    # one program for the baselines of all seeds
    train_baseline = network_trainer(
        rounds.model, data, make_recipe(config, config.num_epochs or 1)
    )
    rounds_epochs = config.num_rounds * config.finetune_epochs
    per_seed = config.num_epochs + (len(names) - 1) * rounds_epochs
    with cli.progress(config.num_seeds * per_seed, "epochs") as bar:
        while now.seed < config.num_seeds:
            # rows may end early: what the rows before could take at most counts as done
            done = now.seed * per_seed + (now.row > 0) * config.num_epochs
            done += max(0, int(now.row) - 1) * rounds_epochs
            bar.update(int(done) - bar.n)
            now = train_row(config, run, rounds, train_baseline, now, bar)
    return now


def train_row(
    config: Config, run: Run, rounds: PruneRounds, train_baseline: Any, now: Progress, bar: Any
) -> Progress:
    """Train what is left of a row and look at the test split, once."""
    names = row_names(config)
    seed, row = int(now.seed), names[int(now.row)]
    key, place = batch_key(config, seed), {"seed": seed, "row": row}
    states: dict[str, PruneState] = dict(now.states)
    if row == "baseline":
        weights = start_weights(config, rounds.model, seed)
        if config.num_epochs:
            apart = jax.random.split(key, 1)[0]  # rounds fold their numbers into the key itself
            weights = train_baseline(weights, key=apart, on_epoch=lambda _: bar.update())
        state = rounds.init(weights)
        states = dict.fromkeys(names, state)
        val = {name: state.base[name] for name in SHOWN[:-1]}
        run.log(place | {"step": int(now.step) + 1, "round": 0, "val": val})
    else:

        def on_round(state: PruneState) -> None:
            nonlocal now
            now = now._replace(step=int(now.step) + 1, states={**states, row: state})
            decision = rounds.decisions(state)[-1]
            what = f"{decision.count} of {decision.layer}" if decision.count else "nothing pruned"
            ending = "" if decision.taken else ", not taken"
            fate = f"validation FATE {decision.val_fate:+.3f}{ending}"
            cli.say(f"seed {seed} {row} round {decision.round}: {what}, {fate}")
            val = {name: decision.val[name] for name in SHOWN[:-1]}
            run.log(place | {"step": now.step} | decision._asdict() | {"val": val})
            run.save(now.step, now)

        taken = tuple(d for d in rounds.decisions(states["pruned"]) if d.taken)
        rule: dict[str, Any] = pruning.rule_of(row, taken)
        calls = {"on_round": on_round, "on_epoch": bar.update}
        states[row] = state = rounds.run(states[row], key=key, **rule, **calls)
    logits = jax.tree.map(np.array, dict(now.logits))
    for split, held in logits.items():
        held[seed, now.row] = rounds.logits(state.params, state.batch_stats, split)
    next_seed, next_row = divmod(seed * len(names) + int(now.row) + 1, len(names))
    now = Progress(int(now.step) + 1, next_seed, next_row, states, logits)
    run.save(now.step, now)
    return now


def batch_key(config: Config, seed: int) -> jax.Array:
    """Of the orders of examples and the scores of a seed."""
    return jax.random.key(config.seeds.batches + seed)


if __name__ == "__main__":
    main(prepare_run, PRESETS, description=__doc__ or "")
