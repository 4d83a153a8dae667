"""FairBatch beside plain training, all criteria, signals and seeds as one compiled population.

    python -m experiments.fairbatch                      Adult by sex; 2 CPU cores: 30 s
    python -m experiments.fairbatch synthetic            the paper's two Gaussians, its settings
    python -m experiments.fairbatch csv --data.csv my.csv --data.label y --data.sensitive sex

Expect on Adult: accuracy .848 plain; equal_opportunity_difference .071 plain, .035 with its rate
signal; demographic_parity_difference .178 plain, .010 with its rate signal.

Rows of the table: `plain`, then each criterion with the published signal (`equal_opportunity`) and
with the measured rates (`equal_opportunity@rate`).
"""

import dataclasses
import functools
import time
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import common, results
from fairjax import report
from fairjax.data import Dataset, load_adult, load_compas, load_csv, synthetic_gaussians
from fairjax.fairbatch import CRITERIA, SIGNALS, Criterion, Signal, fairbatch
from fairjax.metrics import compare_rows
from fairjax.models import Model, logistic_regression, mlp
from fairjax.sharding import candidate_mesh
from fairjax.train import (
    FitState,
    fit_population,
    init_fit,
    make_step,
    measure_cells,
    predict,
    start_train,
)
from fairjax.trees import map_named


@dataclasses.dataclass(frozen=True)
class Data:
    """What to train on."""

    source: Literal["adult", "synthetic", "compas", "csv"] = "adult"
    csv: tuple[Path, ...] = ()
    """the file, or the three files train, val, test; the published file for `compas`"""
    label: str = "label"
    """column to predict (csv)"""
    positive: str | None = None
    """label value that counts as class 1 (csv)"""
    sensitive: tuple[str, ...] = ("sex",)
    """sensitive columns; several make intersections"""
    id_column: str | None = None
    """column whose equal values never straddle splits, such as a patient (csv)"""
    split: str = "0.6,0.2,0.2"
    """shares of train, val and test, or a column that says which (csv)"""
    missing: Literal["drop", "impute"] = "drop"
    """rows with missing features (csv)"""
    allow_small_groups: bool = False
    """accept groups that lack rows or a class in a split (csv)"""
    seed: int = 0
    """of the split, or of the synthetic draw"""


@dataclasses.dataclass(frozen=True)
class Config:
    """FairBatch on a table."""

    about: str = ""
    data: Data = Data()
    criteria: tuple[Criterion, ...] = (
        "equal_opportunity",
        "equalized_odds",
        "demographic_parity",
    )
    """plain training always runs beside them"""
    signals: tuple[Signal, ...] = ("loss", "rate")
    """what the criteria compare between groups: cell losses (published) or the rates themselves"""
    signal_split: Literal["train", "val"] = "train"
    """the split on which the signal is measured before every epoch"""
    num_seeds: int = 10
    num_epochs: int = 60
    batch_size: int = 500
    learning_rate: float = 0.005
    step_size: float = 0.01
    """share of a label that one update moves between groups (the paper's alpha)"""
    rate_step_size: float = 0.04
    """the same for the rate signal, whose steps shrink as 1 / sqrt(updates)"""
    hidden: tuple[int, ...] = ()
    """units of hidden layers; none is logistic regression"""
    draw: Literal["exact", "iid"] = "exact"
    pretrained: Path | None = None
    """fine-tune the `plain` models of an earlier run's folder instead of starting at random"""
    num_replicates: int = 200
    """bootstrap replicates behind the 95 %% intervals"""
    out: Path | None = None
    """result folder; default runs/fairbatch-<time>"""
    resume: bool = False
    """go on with the interrupted run in --out"""


PRESETS = {
    "adult": Config(
        about="UCI Adult by sex, logistic regression on all features",
        data=Data(split="0.5,0.1,0.4"),  # a group's true-positive rate needs a large test split
    ),
    "synthetic": Config(
        about="the paper's synthetic set and settings",
        data=Data(source="synthetic"),
        num_epochs=450,
        batch_size=100,
        learning_rate=0.0005,
        step_size=0.005,
    ),
    "csv": Config(about="a table of yours", data=Data(source="csv")),
    "smoke": Config(
        about="seconds, for tests",
        data=Data(source="synthetic"),
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
NUM_CALLS = 10  # compiled calls that a run is cut into, a checkpoint after each


def load_data(data: Data) -> Dataset:
    """Read what the configuration names."""
    if data.source == "adult":
        return load_adult(data.sensitive, split=_ratios(data.split), seed=data.seed)
    if data.source == "synthetic":
        # 1,000 test rows as published leave a standard error of 0.03 in a rate's gap.
        return synthetic_gaussians(jax.random.key(data.seed), num_test=10_000)
    if len(data.csv) not in (1, 3):
        raise ValueError(f"--data.csv takes one file or train, val and test, got {len(data.csv)}")
    if data.source == "compas":
        return load_compas(data.csv[0], sensitive=data.sensitive, seed=data.seed)
    one_file = len(data.csv) == 1
    return load_csv(
        data.csv[0] if one_file else dict(zip(("train", "val", "test"), data.csv, strict=True)),
        label=data.label,
        positive=data.positive,
        sensitive=data.sensitive,
        id_column=data.id_column,
        split=_parse_split(data.split),
        missing=data.missing,
        allow_small_groups=data.allow_small_groups,
        seed=data.seed,
    )


def _parse_split(text: str) -> Any:
    try:
        return _ratios(text)
    except ValueError:
        return text


def _ratios(text: str) -> tuple[float, float, float]:
    train, val, test = (float(part) for part in text.split(","))
    return train, val, test


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


def prepare_run(config: Config):
    """Read and check everything; returns the function that trains."""
    for name, least in (("num_seeds", 1), ("num_epochs", 1), ("num_replicates", 2)):
        if getattr(config, name) < least:
            raise ValueError(f"{name} must be at least {least}, got {getattr(config, name)}")
    if not config.learning_rate > 0:
        raise ValueError(f"learning_rate must be positive, got {config.learning_rate}")
    for name in ("step_size", "rate_step_size"):
        if not 0 < getattr(config, name) <= 1:
            raise ValueError(f"{name} must be in (0, 1], got {getattr(config, name)}")
    dataset = load_data(config.data)
    train = dataset.examples("train")
    sampler = fairbatch(
        train.labels,
        train.group,
        num_classes=dataset.num_classes,
        num_groups=dataset.num_groups,
        batch_size=config.batch_size,
        draw=config.draw,
    )
    num_features = dataset.inputs.shape[1]
    if config.hidden:
        model = mlp(num_features, dataset.num_classes, config.hidden)
    else:
        model = logistic_regression(num_features, dataset.num_classes)
    params = initial_params(config, model, dataset)
    run = common.Run("fairbatch", config, out=config.out, resume=config.resume)
    return lambda: train_and_report(config, run, dataset, model, sampler, params)


def initial_params(config: Config, model: Model, dataset: Dataset) -> Any:
    """Parameters of every seed, leaves `[S, ...]`: drawn, or read from an earlier run."""
    keys = jax.vmap(jax.random.key)(jnp.arange(config.num_seeds))
    params = jax.vmap(lambda key: model.init(key)[0])(keys)
    if config.pretrained is None:
        return params
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = config.pretrained / "models.safetensors"
    if not path.exists():
        raise FileNotFoundError(
            f"--pretrained: {path} does not exist; give a finished run's folder"
        )
    try:
        saved = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file ({error})") from error

    def pick(name: str, leaf: jax.Array) -> jax.Array:
        found = saved.get(f"plain/{name}")
        if found is None or found.shape[1:] != leaf.shape[1:]:
            raise ValueError(
                f"{path}: plain/{name} should have shape (seeds, {leaf.shape[1:]}), "
                f"found {None if found is None else found.shape}; use the same data and --hidden"
            )
        return jnp.asarray(found[np.arange(config.num_seeds) % len(found)])

    return map_named(pick, params)


def train_and_report(config: Config, run: common.Run, dataset: Dataset, model, sampler, params):
    """Train all rows and seeds as one population, evaluate on test, write the result folder."""
    rows = list(row_choices(config))
    states, timing = train_population(config, run, dataset, model, sampler, params)
    test = dataset.examples("test")
    logits = jax.jit(jax.vmap(lambda train, inputs: predict(model, train, inputs), (0, None)))(
        states.train, jnp.asarray(test.inputs)
    )
    comparison = compare_rows(
        logits.reshape(len(rows), config.num_seeds, *logits.shape[1:]),
        labels=test.labels,
        group=test.group,
        num_groups=dataset.num_groups,
        shown=(*SHOWN, "worst_group_auc", "auc_gap"),
        num_replicates=config.num_replicates,
        key=jax.random.key(0),
    )
    by_row, notes = results.summarise(rows, comparison, dataset.group_names)
    save_models(run.folder / "models.safetensors", rows, states)
    summary = run.finish(
        data=common.data_summary(dataset), results=by_row, timing=timing, notes=notes
    )
    results.show(
        run,
        summary,
        title=f"FairBatch on {dataset.name}",
        question="Does choosing batches by group make the model fairer, and at what accuracy?",
        answer=one_sentence(by_row, dataset.name),
        shown=SHOWN,
        figures=figures(config, run.history(), by_row, dataset),
        legend=(
            "diff: largest gap between two groups; dev: largest distance of a group from the "
            "pooled rate (the FairBatch paper's measure)."
        ),
    )


def train_population(config: Config, run: common.Run, dataset: Dataset, model, sampler, params):
    """Train; returns the final states, leaves `[R * S, ...]` row by row, and the timing."""
    rows = row_choices(config)
    num_rows, num_seeds = len(rows), config.num_seeds
    step = make_step(model, optax.adam(config.learning_rate))
    optimizer = optax.adam(config.learning_rate)
    data = jax.tree.map(jnp.asarray, dataset.examples("train"))
    measured = jax.tree.map(jnp.asarray, dataset.examples(config.signal_split))
    choices = {
        name: jnp.repeat(jnp.asarray([row[name] for row in rows.values()]), num_seeds)
        for name in rows["plain"]
    }

    def start(params, seed, choices) -> FitState:
        train = start_train(params, {}, optimizer)
        key = jax.random.fold_in(jax.random.key(seed), 1)
        return init_fit(train, sampler, key, **choices)

    tiled = jax.tree.map(lambda leaf: jnp.tile(leaf, (num_rows,) + (1,) * (leaf.ndim - 1)), params)
    seeds = jnp.tile(jnp.arange(num_seeds), num_rows)
    states = jax.jit(jax.vmap(start))(tiled, seeds, choices)
    mesh = candidate_mesh()

    def train(states, data, measured, num_epochs):
        return fit_population(
            step,
            states,
            data,
            sampler,
            num_epochs=num_epochs,
            mesh=mesh,
            measure_fn=functools.partial(measure_cells, model, sampler),
            measure_data=measured,
        )

    jitted = jax.jit(train, static_argnums=3, donate_argnums=0)
    epochs_per_call = -(-config.num_epochs // NUM_CALLS)
    done = 0
    restored = run.restore(states) if config.resume else None
    if restored is not None:
        done, states = restored
    run.rewrite_history(row for row in run.history() if row["epoch"] <= done)
    timing = {"compile_s": 0.0, "train_s": 0.0}
    compiled = {}
    with common.progress(config.num_epochs, "epochs", done) as bar:
        while done < config.num_epochs:
            count = min(epochs_per_call, config.num_epochs - done)
            if count not in compiled:
                began = time.perf_counter()
                compiled[count] = jitted.lower(states, data, measured, count).compile()
                timing["compile_s"] += time.perf_counter() - began
            began = time.perf_counter()
            states, history = jax.block_until_ready(compiled[count](states, data, measured))
            timing["train_s"] += time.perf_counter() - began
            log_epochs(run, rows, history, done, num_seeds)
            done += count
            run.save(done, states)
            bar.update(count)
            losses = np.asarray(history["loss"])[:, -1]
            common.say(f"epoch {done} of {config.num_epochs}: mean loss {losses.mean():.4f}")
    return states, timing


def log_epochs(run: common.Run, rows, history, done: int, num_seeds: int) -> None:
    """One history row per epoch: means over seeds of every row of the table."""
    by_row = jax.tree.map(
        lambda leaf: np.asarray(leaf).reshape(len(rows), num_seeds, *leaf.shape[1:]).mean(1),
        history,
    )
    for epoch in range(by_row["loss"].shape[1]):
        values = {
            name: {key: by_row[key][i, epoch] for key in ("loss", "weights", "cell_losses")}
            for i, name in enumerate(rows)
        }
        run.log({"epoch": done + epoch + 1, "rows": values})


def one_sentence(by_row, name: str) -> str:
    """What came out: the largest relative fall of a criterion's own disparity."""
    plain = by_row["plain"]
    own = {row: f"{row.split('@')[0]}_difference" for row in by_row if row != "plain"}
    falls = {
        row: result[own[row]] / plain[own[row]]
        for row, result in by_row.items()
        if row in own and plain[own[row]] > 0
    }
    falls = {row: ratio for row, ratio in falls.items() if np.isfinite(ratio)}
    if not falls:
        return f"On {name} no disparity could be compared with plain training."
    best = min(falls, key=lambda row: falls[row])
    metric, result = own[best], by_row[best]
    low, high = result["ci95_vs_plain"][metric]
    points = 100 * (result["accuracy"] - plain["accuracy"])
    verb = "falls" if falls[best] < 1 else "rises"
    return (
        f"On {name}, {metric} {verb} from {plain[metric]:.3f} (plain) to "
        f"{result[metric]:.3f} ({best}; change {low:+.3f} to {high:+.3f} at 95 %), "
        f"accuracy {points:+.1f} points."
    )


def save_models(path: Path, rows, states: FitState) -> None:
    """All final parameters as `row/leaf`, leading axis seeds."""
    from safetensors.numpy import save_file

    tensors = {}
    for i, row in enumerate(rows):

        def add(name: str, leaf: jax.Array, i=i, row=row):
            num_seeds = len(leaf) // len(rows)
            tensors[f"{row}/{name}"] = np.ascontiguousarray(
                leaf[i * num_seeds : (i + 1) * num_seeds]
            )
            return leaf

        map_named(add, states.train.params)
    save_file(tensors, path)


def figures(config: Config, history, by_row, dataset: Dataset) -> dict[str, str]:
    """Heading -> SVG: sampling shares and signals over epochs, accuracy against disparities."""
    cells = [
        (f"{label} · {group}", k, g)
        for k, label in enumerate(dataset.label_names)
        for g, group in enumerate(dataset.group_names)
    ]

    def over_epochs(key: str) -> str:
        panels = {}
        for row in list(by_row)[1:]:
            values = np.asarray([line["rows"][row][key] for line in history], dtype=float)
            panels[row] = {name: values[:, k, g] for name, k, g in cells}
        return report.lines(panels, x_label="epoch")

    drawn = {}
    if len(cells) <= 12:
        drawn["Share of each label's draw, by group"] = over_epochs("weights")
        drawn["Signal per (label, group) cell before each epoch"] = over_epochs("cell_losses")
    for criterion in config.criteria:
        metric = f"{criterion}_difference"
        drawn[f"Accuracy against {metric}"] = report.trade_off(
            {row: (result[metric], result["accuracy"]) for row, result in by_row.items()},
            x_label=metric,
            y_label="test accuracy",
            title="",
        )
    return drawn


if __name__ == "__main__":
    common.main(prepare_run, PRESETS, description=__doc__ or "")
