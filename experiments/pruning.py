"""Sensitive-channel pruning: score, select on validation, prune, fine-tune, repeat, slice.

    python -m experiments.pruning            embedded synthetic skin lesions, a small VGG
    python -m experiments.pruning smoke      seconds, for tests

Trains a baseline, then prunes it in rounds: candidates from every (layer, count, trade-off) are
evaluated on validation as one program, the best are fine-tuned as a population, and the best of
those is kept while validation FATE improves. Rows of the table: `baseline`, `pruned`, and `random`,
which prunes as many channels of the same layers at random, with the same choice and training.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import common, results, timing
from fairjax import pruning, report
from fairjax.data import Dataset, Examples
from fairjax.data.augment import compose, eval_preprocess, normalize, random_flip
from fairjax.data.lesions import lesions_dataset
from fairjax.fairbatch import BatchSampler, fairbatch
from fairjax.models import Model, image_model, save_weights
from fairjax.pruning import PrunePlan
from fairjax.train import (
    TrainState,
    fit_population,
    init_fit,
    make_step,
    predict,
    start_train,
)
from fairjax.trees import unstack_blocks


@dataclasses.dataclass(frozen=True)
class Config:
    """Sensitive-channel pruning of an image network."""

    about: str = ""
    num_images: int = 4000
    image_size: int = 32
    model: str = "vgg_micro"
    layers: tuple[str, ...] = ("features/11", "features/13")
    """layers whose channels may go"""
    counts: tuple[int, ...] = (4, 8, 16)
    """channels that a round may remove from one layer"""
    trade_offs: tuple[float, ...] = (0.0, 1.0)
    """how much to protect channels that separate the labels"""
    num_rounds: int = 4
    num_finalists: int = 2
    """best candidates of a round that are fine-tuned"""
    disparity: str = "eodd"
    """what FATE wants low; the published code takes eodd_scp"""
    accuracy: str = "accuracy"
    """what FATE wants high; the published code takes macro_f1"""
    max_accuracy_drop: float = 0.02
    """a round that loses more of the baseline's validation accuracy, relatively, is not taken"""
    num_seeds: int = 1
    num_epochs: int = 15
    """of the baseline"""
    finetune_epochs: int = 2
    """of every round"""
    batch_size: int = 64
    learning_rate: float = 0.02
    weight_decay: float = 1e-5
    num_replicates: int = 100
    """bootstrap replicates behind the 95 %% intervals"""
    out: Path | None = None
    """result folder; default runs/pruning-<time>"""
    resume: bool = False
    """go on with the interrupted run in --out"""


PRESETS = {
    "lesions": Config(about="embedded synthetic skin lesions at 32 px, a small VGG"),
    "smoke": Config(
        about="seconds, for tests",
        num_images=400,
        layers=("features/13",),
        counts=(4, 8),
        trade_offs=(0.0,),
        num_rounds=2,
        num_epochs=1,
        finetune_epochs=1,
        num_replicates=4,
    ),
}
ROWS = ("baseline", "pruned", "random")
SHOWN = ("accuracy", "macro_f1", "auc", "eodd", "eodd_scp", "eopp0", "eopp1", "dp_scp", "fate")


class Network(NamedTuple):
    """A masked network on its way through the rounds; what a checkpoint holds."""

    params: Any
    batch_stats: Any
    keep: dict[str, jax.Array]
    """Layer -> bool `[C]`, for all layers that may be pruned."""


def prepare_run(config: Config):
    """Check everything; returns the function that trains."""
    for name in ("num_rounds", "num_finalists", "num_seeds", "num_epochs", "finetune_epochs"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
    for name in ("accuracy", "disparity"):
        if getattr(config, name) not in SHOWN[:-1]:
            raise ValueError(
                f"{name} must be one of {', '.join(SHOWN[:-1])}, got {getattr(config, name)!r}"
            )
    model = image_model(config.model, 2, image_size=config.image_size)
    graph = model.config.channel_graph
    for layer in config.layers:
        if layer not in graph:
            raise ValueError(f"--layers: no layer {layer!r}; {config.model} has {', '.join(graph)}")
        if max(config.counts) >= graph[layer].size:
            raise ValueError(
                f"--counts: {max(config.counts)} is all of the {graph[layer].size} channels "
                f"of {layer} or more"
            )
    num_candidates = len(config.layers) * len(config.counts) * len(config.trade_offs)
    if num_candidates < config.num_finalists:
        raise ValueError(
            f"num_finalists is {config.num_finalists}, but there are {num_candidates} candidates"
        )
    dataset = lesions_dataset(jax.random.key(0), config.num_images, config.image_size)
    task = make_task(config, model, dataset)
    run = common.Run("pruning", config, out=config.out, resume=config.resume)
    return lambda: train_and_report(task, run)


class Task(NamedTuple):
    """What all rounds share: data on the device and compiled programs."""

    config: Config
    dataset: Dataset
    model: Model
    data: dict[str, Examples]
    sampler: BatchSampler
    start: Any
    """`(params, batch_stats, plans [P], key, num_epochs) -> states [P]`"""
    fit: Any
    """`(states [P], train, num_epochs) -> states [P]`"""
    measure: Any
    """`(params, batch_stats, data) -> (logits, metrics)`"""
    measure_plans: Any
    """`(params, batch_stats, plans [P], data) -> metrics [P]`"""
    score: Any
    """`(params, batch_stats, data, key, score) -> ChannelScores`"""


def make_task(config: Config, model: Model, dataset: Dataset) -> Task:
    """Put the data on the device and set up the programs; each compiles once for all rounds."""
    data = {
        split: jax.tree.map(jnp.asarray, dataset.examples(split))
        for split in ("train", "val", "test")
    }
    num_groups = dataset.num_groups
    sampler = fairbatch(
        dataset.examples("train").labels,
        dataset.examples("train").group,
        num_classes=dataset.num_classes,
        num_groups=num_groups,
        batch_size=config.batch_size,
        criterion="none",
    )
    counts = dataset.cell_counts("train").sum(1)
    balance = jnp.asarray(counts.sum() / (len(counts) * counts), jnp.float32)
    mean, std = model.config.mean, model.config.std
    prep = eval_preprocess(config.image_size, mean, std)
    augment = compose(random_flip(vertical=0.5), normalize(mean, std))

    def start(params, batch_stats, plans, key, num_epochs):
        def under(plan):
            masks = pruning.channel_masks(params, plan, model.config.channel_graph)
            masked = pruning.mask_channels(params, plan, model.config.channel_graph)
            num_steps = num_epochs * sampler.batches_per_epoch
            optimizer = make_optimizer(config, num_steps, masks)
            return init_fit(start_train(masked, batch_stats, optimizer), sampler, key)

        return jax.vmap(under)(plans)

    def fit(states, train, num_epochs):
        optimizer = make_optimizer(config, num_epochs * sampler.batches_per_epoch, None)
        step = make_step(model, optimizer, class_weights=balance)
        states, _ = fit_population(
            step,
            states,
            train,
            sampler,
            num_epochs=num_epochs,
            chunk_size=1,
            augment=augment,
        )
        return states

    def measure(params, batch_stats, data):
        state = TrainState(params, batch_stats, None, jnp.zeros((), jnp.int32))
        logits = predict(model, state, data.inputs, batch_size=256, preprocess=prep)
        return logits, pruning.pruning_metrics(
            logits, data.labels, group=data.group, num_groups=num_groups
        )

    def measure_plans(params, batch_stats, plans, data):
        return pruning.evaluate_plans(
            model, params, batch_stats, plans, data, num_groups=num_groups, preprocess=prep
        )

    def score(params, batch_stats, data, key, name):
        return pruning.score_channels(
            model,
            params,
            batch_stats,
            data,
            layers=config.layers,
            num_groups=num_groups,
            key=key,
            score=name,
            preprocess=prep,
        )

    return Task(
        config,
        dataset,
        model,
        data,
        sampler,
        jax.jit(start, static_argnums=4),
        jax.jit(fit, static_argnums=2),
        jax.jit(measure),
        jax.jit(measure_plans),
        jax.jit(score, static_argnums=4),
    )


def make_optimizer(config: Config, num_steps: int, masks: Any) -> optax.GradientTransformation:
    """Nesterov SGD, learning rate falling to 0; `masks` live in its state, not in the program."""
    rate = optax.cosine_decay_schedule(-config.learning_rate, num_steps)
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay),
        optax.trace(decay=0.9, nesterov=True),
        optax.scale_by_schedule(rate),
        pruning.hold_pruned(masks),
    )


def train(task: Task, params, batch_stats, plans: list[PrunePlan], num_epochs: int, key):
    """Train one network under each plan; returns `[(params, batch_stats)]`, pruned parts at 0."""
    stacked = pruning.stack_plans(plans)
    states = task.start(params, batch_stats, stacked, key, num_epochs)
    trained = task.fit(states, task.data["train"], num_epochs).train
    networks = (trained.params, trained.batch_stats)
    return [jax.tree.map(lambda leaf, i=i: leaf[i], networks) for i in range(len(plans))]


def train_baseline(task: Task, seed: int) -> Network:
    """Train the unpruned network."""
    key = jax.random.key(seed)
    params, batch_stats = jax.jit(task.model.init)(key)
    graph = task.model.config.channel_graph
    whole = {layer: jnp.ones(graph[layer].size, bool) for layer in task.config.layers}
    ((params, batch_stats),) = train(
        task, params, batch_stats, [PrunePlan(whole)], task.config.num_epochs, key
    )
    return Network(params, batch_stats, whole)


def propose(task: Task, network: Network, row: str, like: dict[str, Any], base, key):
    """Candidates of a round, best first by validation FATE, and their plans.

    `like` is the decision that the "random" row copies: its layer and its count.
    """
    config, plan = task.config, PrunePlan(network.keep)
    arguments = (network.params, network.batch_stats)
    if row == "random":
        layers, counts, trade_offs = (like["layer"],), (like["count"],), (0.0,)
        keys = jax.random.split(key, config.num_finalists)
        scores = {
            f"random {i}": task.score(*arguments, task.data["train"], k, "random")
            for i, k in enumerate(keys)
        }
    else:
        layers, counts, trade_offs = config.layers, config.counts, config.trade_offs
        scores = {"snnl": task.score(*arguments, task.data["train"], key, "snnl")}
    found = []
    for layer in layers:
        room = [n for n in counts if n < int(network.keep[layer].sum())]
        if not room:
            continue
        candidates, plans = pruning.candidate_plans(
            scores, layer=layer, counts=room, trade_offs=trade_offs, after=plan
        )
        only = PrunePlan({layer: plans.keep[layer]})
        table = task.measure_plans(*arguments, only, task.data["val"])
        values = np.asarray(fate(config, table, base))
        for i, candidate in enumerate(candidates):
            choice = PrunePlan({name: keep[i] for name, keep in plans.keep.items()})
            found.append((values[i], candidate, choice))
    order = pruning.rank_plans([value for value, _, _ in found])
    return [found[i] for i in order]


def fate(config: Config, table, base) -> jax.Array:
    """The configured FATE of one network or of P."""
    return pruning.fate_objective(table, base, accuracy=config.accuracy, disparity=config.disparity)


def prune_round(task: Task, network: Network, row: str, like: dict[str, Any], base, key):
    """One round: propose, fine-tune the finalists, take the best; `(network, decision)`.

    The decision is a history row; `network` is None where nothing can be pruned any more.
    """
    config = task.config
    key_score, key_train = jax.random.split(key)
    finalists = propose(task, network, row, like, base, key_score)[: config.num_finalists]
    if not finalists:
        return None, {}
    plans = [plan for _, _, plan in finalists]
    padded = plans + plans[:1] * (config.num_finalists - len(plans))  # one shape, one program
    tuned = train(
        task, network.params, network.batch_stats, padded, config.finetune_epochs, key_train
    )[: len(plans)]
    tables = [task.measure(*parts, task.data["val"])[1] for parts in tuned]
    values = [float(fate(config, table, base)) for table in tables]
    best = int(pruning.rank_plans(values)[0])
    decision = finalists[best][1]._asdict() | {"val_fate": values[best]}
    decision["val"] = {name: tables[best][name] for name in SHOWN[:-1]}
    params, batch_stats = tuned[best]
    return Network(params, batch_stats, plans[best].keep), decision


class Progress(NamedTuple):
    """Where a run stands; saved after every step, which is one round or less."""

    step: int
    seed: int
    row: int
    """index into ROWS of the row in progress"""
    networks: dict[str, Network]
    """row -> network of this seed; rows ahead hold the baseline"""
    logits: Any
    """test logits of finished rows `[S, 3, N, K]`"""


def advance(task: Task, run: common.Run, progress: Progress) -> Progress:
    """The next step: train a baseline, prune one round, or finish a row.

    A row ends after `num_rounds`, or when validation FATE no longer improves, or accuracy falls by
    more than `max_accuracy_drop`; the round that ends it is not taken. "random" repeats the rounds
    that "pruned" took, whatever comes of it.
    """
    config, row, seed = task.config, ROWS[progress.row], int(progress.seed)
    networks = dict(progress.networks)
    if row == "baseline":
        baseline = train_baseline(task, seed)
        networks = {row: baseline for row in ROWS}
        return finish_row(task, progress._replace(networks=networks))
    history = [r for r in run.history() if r["seed"] == seed]
    rounds = [r for r in history if r["row"] == row]
    copied = [r for r in history if r["row"] == "pruned" and r["taken"]]
    limit = len(copied) if row == "random" else config.num_rounds
    if len(rounds) >= limit or not all(r["taken"] for r in rounds):
        return finish_row(task, progress)
    start = networks["baseline"]
    base = task.measure(start.params, start.batch_stats, task.data["val"])[1]
    key = jax.random.fold_in(jax.random.key(seed), 1 + len(rounds) * len(ROWS) + progress.row)
    like = copied[len(rounds)] if row == "random" else {}
    candidate, decision = prune_round(task, networks[row], row, like, base, key)
    if candidate is None:
        return finish_row(task, progress)
    best = max([0.0, *(r["val_fate"] for r in rounds if r["val_fate"] is not None)])
    floor = (1 - config.max_accuracy_drop) * float(base[config.accuracy])
    better = decision["val_fate"] > best and float(decision["val"][config.accuracy]) >= floor
    taken = row == "random" or better
    if taken:
        networks[row] = candidate
    step = progress.step + 1
    place = {"step": step, "seed": seed, "row": row, "round": len(rounds) + 1, "taken": taken}
    run.log(place | decision)
    common.say(
        f"seed {seed} {row} round {len(rounds) + 1}: {decision['count']} of {decision['layer']}, "
        f"validation FATE {decision['val_fate']:+.3f}{'' if taken else ', not taken'}"
    )
    return progress._replace(step=step, networks=networks)


def finish_row(task: Task, progress: Progress) -> Progress:
    """Look at the test split, once, and go on to the next row or seed."""
    network = progress.networks[ROWS[progress.row]]
    logits = np.array(progress.logits)
    logits[progress.seed, progress.row] = task.measure(
        network.params, network.batch_stats, task.data["test"]
    )[0]
    seed, row = divmod(progress.seed * len(ROWS) + progress.row + 1, len(ROWS))
    return progress._replace(step=progress.step + 1, seed=seed, row=row, logits=logits)


def blank_progress(task: Task) -> Progress:
    """The start of a run."""
    graph = task.model.config.channel_graph
    shapes = jax.eval_shape(task.model.init, jax.random.key(0))
    params, batch_stats = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    keep: Any = {layer: np.ones(graph[layer].size, bool) for layer in task.config.layers}
    num_test = len(task.data["test"].labels)
    logits = np.zeros((task.config.num_seeds, len(ROWS), num_test, task.dataset.num_classes))
    network = Network(unstack_blocks(params), batch_stats, keep)
    networks = {row: network for row in ROWS}
    return Progress(0, 0, 0, networks, logits.astype(np.float32))


def train_and_report(task: Task, run: common.Run) -> None:
    """Every seed and row, then test metrics, the smaller network and the page."""
    progress = blank_progress(task)
    restored = run.restore(progress)
    if restored is not None:
        progress = Progress(*map(_whole_number, restored[1]))
    run.rewrite_history(row for row in run.history() if row["step"] <= progress.step)
    began = time.perf_counter()
    while progress.seed < task.config.num_seeds:
        progress = advance(task, run, progress)
        run.save(progress.step, progress)
    timing_s = {"train_s": time.perf_counter() - began}
    by_row, notes = judge(task, progress.logits)
    graph = task.model.config.channel_graph
    final = progress.networks["pruned"]
    small, small_stats = pruning.slice_channels(
        final.params, final.batch_stats, PrunePlan(final.keep), graph
    )
    save_weights(run.folder / "pruned.safetensors", task.model, small, small_stats)
    sizes, size_rows = compare_sizes(task, progress.networks["baseline"], small, small_stats)
    by_row["pruned"] |= sizes
    summary = run.finish(
        data=common.data_summary(task.dataset), results=by_row, timing=timing_s, notes=notes
    )
    results.show(
        run,
        summary,
        title=f"Sensitive-channel pruning on {task.dataset.name}",
        question="Does removing channels that carry the group make the model fairer?",
        answer=one_sentence(by_row),
        shown=SHOWN,
        figures=figures(task, run, progress),
        legend="; ".join(
            f"{name}: {before} before, {after} after" for name, before, after in size_rows
        ),
    )
    print(common.table(["size", "before", "after"], size_rows))


def _whole_number(value: Any) -> Any:
    """Counters come back from a checkpoint as arrays."""
    return int(value) if np.ndim(value) == 0 and not isinstance(value, dict) else value


def judge(task: Task, logits: np.ndarray) -> tuple[dict[str, Any], list[str]]:
    """Test metrics of every row from logits `[S, R, N, K]`, and notes."""
    config, dataset = task.config, task.dataset
    metrics, intervals = results.judge(
        np.moveaxis(logits, 1, 0),
        dataset.examples("test"),
        num_groups=dataset.num_groups,
        shown=SHOWN[:-1],
        num_replicates=config.num_replicates,
        evaluate_fn=pruning.evaluate_pruned,
    )
    base = {name: values[:1] for name, values in metrics.items()}
    metrics["fate"] = np.asarray(fate(config, metrics, base))
    by_row, notes = results.summarise(ROWS, metrics, intervals, dataset.group_names)
    notes.append(f"FATE weighs {config.accuracy} against {config.disparity}, trade-off 1")
    return by_row, notes


def compare_sizes(task: Task, baseline: Network, small, small_stats):
    """Parameters and forward time before and after slicing."""
    model = task.model
    images = jnp.zeros((64, task.config.image_size, task.config.image_size, 3))
    forward = jax.jit(lambda p, s, x: model.apply(p, s, x)[0])
    times = timing.paired(
        lambda: forward(small, small_stats, images),
        lambda: forward(baseline.params, baseline.batch_stats, images),
        repeats=5,
    )
    after_s, before_s = (float(np.median(side)) for side in times)
    weights = [sum(leaf.size for leaf in jax.tree.leaves(p)) for p in (baseline.params, small)]
    sizes = {
        "num_parameters": [weights[0], weights[1]],
        "forward_s": [before_s, after_s],
    }
    rows = [
        ["parameters", f"{weights[0]:,}", f"{weights[1]:,}"],
        ["ms per 64 images", f"{1e3 * before_s:.1f}", f"{1e3 * after_s:.1f}"],
    ]
    return sizes, rows


def one_sentence(by_row) -> str:
    """What came out: relative changes against the baseline."""

    def change(row: str, name: str) -> str:
        before, after = by_row["baseline"][name], by_row[row][name]
        if before is None or after is None or not before > 0:
            return f"{name} undefined"
        return f"{name} {100 * (after / before - 1):+.1f} %"

    parts = [f"{row}: {change(row, 'eodd')}, {change(row, 'accuracy')}" for row in ROWS[1:]]
    return f"Relative to the baseline on test, {'; '.join(parts)}."


def figures(task: Task, run: common.Run, progress: Progress) -> dict[str, str]:
    """Heading -> SVG."""
    base, final = progress.networks["baseline"], progress.networks["pruned"]
    scores = task.score(
        base.params, base.batch_stats, task.data["train"], jax.random.key(0), "snnl"
    ).group

    def draw_scores(canvas):
        axes = canvas.subplots(1, len(scores), squeeze=False)[0]
        for axis, (layer, values) in zip(axes, scores.items(), strict=True):
            keep = np.asarray(final.keep[layer])
            parts = [np.asarray(values)[keep], np.asarray(values)[~keep]]
            axis.hist(parts, bins=20, stacked=True, label=["kept", "pruned"])
            axis.set(title=layer, xlabel="SNNL of the baseline by group")
            axis.legend(fontsize=7)

    points = {
        f"{row} {r['round']} (seed {r['seed']})": (
            r["val"][task.config.disparity],
            r["val"][task.config.accuracy],
        )
        for row in ROWS[1:]
        for r in run.history()
        if r["row"] == row and None not in r["val"].values()
    }
    start = task.measure(base.params, base.batch_stats, task.data["val"])[1]
    points["baseline"] = (float(start[task.config.disparity]), float(start[task.config.accuracy]))
    return {
        "Scores of the baseline's channels, last seed": report.figure(draw_scores),
        "Validation accuracy against disparity, round by round": report.trade_off(
            points, x_label=task.config.disparity, y_label=task.config.accuracy, title=""
        ),
    }


if __name__ == "__main__":
    common.main(prepare_run, PRESETS, description=__doc__ or "")
