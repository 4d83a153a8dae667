"""The stages of `experiments.pruning`: baseline, rounds of pruning, judging."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import results
from experiments.cli import say
from experiments.run import Run
from fairjax import optimizers, pruning
from fairjax.data import Dataset, Examples
from fairjax.data.augment import (
    color_jitter,
    compose,
    cutout,
    eval_preprocess,
    normalize,
    random_affine,
    random_flip,
)
from fairjax.fairbatch import BatchSampler, fairbatch
from fairjax.metrics import compare_rows
from fairjax.models import Model
from fairjax.pruning import Candidate, PrunePlan
from fairjax.sharding import candidate_mesh
from fairjax.train import (
    TrainState,
    fit_population,
    init_fit,
    make_step,
    predict,
    start_train,
)
from fairjax.trees import unstack_blocks

ROWS = ("baseline", "pruned", "tuned", "random", "random_best")
CONTROLS = ROWS[2:]
SHOWN = ("accuracy", "macro_f1", "auc", "eodd", "eodd_scp", "eopp0", "eopp1", "dp_scp", "fate")

Start = Callable[[jax.Array], tuple[Any, Any]]
"""`start(key) -> (params, batch_stats)` before the baseline is trained."""


class Network(NamedTuple):
    """A masked network on its way through the rounds; what a checkpoint holds."""

    params: Any
    batch_stats: Any
    keep: dict[str, Any]
    """Layer -> bool `[C]`, for all layers that may be pruned."""


class Task(NamedTuple):
    """What all rounds share: data on the device and compiled programs."""

    config: Any
    """`experiments.pruning.Config`"""
    dataset: Dataset
    model: Model
    data: dict[str, Examples]
    sampler: BatchSampler
    start: Start
    mask: Any
    """`(params, batch_stats, plans [P], keys [P], num_epochs) -> states [P]`"""
    fit: Any
    """`(states [P], active [P], train, num_epochs) -> states [P]`"""
    measure: Any
    """`(params, batch_stats, data) -> (logits, metrics)`"""
    measure_plans: Any
    """`(params, batch_stats, plans [P], data) -> metrics [P]`"""
    score: Any
    """`(params, batch_stats, data, key, score) -> ChannelScores`"""


def make_task(config: Any, model: Model, start: Start, dataset: Dataset) -> Task:
    """Put the data on the device and set up the programs; each compiles once for all rounds."""
    data = {
        split: jax.tree.map(jnp.asarray, dataset.examples(split))
        for split in ("train", "val", "test")
    }
    num_groups, graph = dataset.num_groups, model.config.channel_graph
    sampler = class_balanced(dataset, config.batch_size)
    preprocess = eval_preprocess(config.image_size, model.config.mean, model.config.std)
    augment = make_augment(config, model)

    def mask(params, batch_stats, plans, keys, num_epochs):
        def under(plan, key):
            masks = pruning.channel_masks(params, plan, graph)
            optimizer = make_optimizer(config, num_epochs * sampler.batches_per_epoch, masks)
            masked = pruning.mask_channels(params, plan, graph)
            return init_fit(start_train(masked, batch_stats, optimizer), sampler, key)

        return jax.vmap(under)(plans, keys)

    mesh = candidate_mesh(jax.devices()[: math.gcd(config.num_finalists, jax.device_count())])

    def fit(states, active, train, num_epochs):
        optimizer = make_optimizer(config, num_epochs * sampler.batches_per_epoch, None)
        states, _ = fit_population(
            make_step(model, optimizer),
            states,
            train,
            sampler,
            active=active,
            num_epochs=num_epochs,
            chunk_size=1,
            mesh=mesh if len(active) % mesh.size == 0 else None,
            augment=augment,
        )
        return states

    def measure(params, batch_stats, data):
        state = TrainState(params, batch_stats, None, jnp.zeros((), jnp.int32))
        logits = predict(model, state, data.inputs, batch_size=256, preprocess=preprocess)
        return logits, pruning.pruning_metrics(
            logits, labels=data.labels, group=data.group, num_groups=num_groups
        )

    def measure_plans(params, batch_stats, plans, data):
        return pruning.evaluate_plans(
            model, params, batch_stats, plans, data, num_groups=num_groups, preprocess=preprocess
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
            preprocess=preprocess,
        )

    return Task(
        config,
        dataset,
        model,
        data,
        sampler,
        start,
        jax.jit(mask, static_argnums=4),
        jax.jit(fit, static_argnums=3),
        jax.jit(measure),
        jax.jit(measure_plans),
        jax.jit(score, static_argnums=4),
    )


def class_balanced(dataset: Dataset, batch_size: int) -> BatchSampler:
    """Batches drawn with replacement, every class equally likely, as published."""
    labels, group = dataset.examples("train").labels, dataset.examples("train").group
    sampler = fairbatch(
        labels,
        group,
        num_classes=dataset.num_classes,
        num_groups=dataset.num_groups,
        batch_size=batch_size,
        criterion="none",
    )
    weights = jnp.asarray(1 / np.bincount(labels)[labels], jnp.float32)
    return sampler._replace(
        sample_epoch=functools.partial(sampler.sample_epoch, example_weights=weights)
    )


def make_augment(config: Any, model: Model) -> Any:
    """Flips; "published" adds what the pruning paper's code does, short of AutoAugment."""
    transforms = [random_flip(horizontal=0.5, vertical=0.5)]
    if config.augment == "published":
        transforms += [
            random_affine(180.0, scale=(0.8, 1.2), shear=10.0),
            color_jitter(brightness=32 / 255, saturation=0.5),
            cutout(16),
        ]
    return compose(*transforms, normalize(model.config.mean, model.config.std))


def make_optimizer(config: Any, num_steps: int, masks: Any) -> optax.GradientTransformation:
    """Nesterov SGD under the schedule; `masks` live in its state, not in the program."""
    sgd = optimizers.make_optimizer(
        "sgd_nesterov",
        total_steps=num_steps,
        schedule=config.schedule,
        warmup_steps=num_steps // 10 if config.schedule == "cosine" else 0,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        drops=(0.5,),
    )
    return optax.chain(sgd, pruning.hold_pruned(masks))


def train(
    task: Task, params, batch_stats, plans: list[PrunePlan], num_epochs: int, key, *, num_slots: int
) -> list[tuple[Any, Any]]:
    """Train one network under each plan; returns `[(params, batch_stats)]`, pruned parts at 0.

    Each has its own order of examples: on few images that moves the disparity as much as the plan
    does, and plans that share it would be lucky or unlucky together. Slots that have no plan cost
    nothing; they keep the program the same for any number of plans.
    """
    stacked = pruning.stack_plans(plans + plans[:1] * (num_slots - len(plans)))
    active = jnp.arange(num_slots) < len(plans)
    keys = jax.random.split(key, num_slots)
    states = task.mask(params, batch_stats, stacked, keys, num_epochs)
    trained = task.fit(states, active, task.data["train"], num_epochs).train
    networks = jax.device_get((trained.params, trained.batch_stats))
    return [jax.tree.map(lambda leaf, i=i: leaf[i], networks) for i in range(len(plans))]


def start_network(task: Task, key: jax.Array) -> Network:
    """The whole network before its baseline is trained."""
    params, batch_stats = task.start(key)
    params, graph = unstack_blocks(params), task.model.config.channel_graph
    sizes = pruning.num_channels(params, {layer: graph[layer] for layer in task.config.layers})
    return Network(params, batch_stats, {layer: np.ones(n, bool) for layer, n in sizes.items()})


def train_baseline(task: Task, seed: int) -> Network:
    """The unpruned network: trained, or taken as it is."""
    key = jax.random.key(seed)
    network = start_network(task, key)
    if not task.config.num_epochs:
        return network
    plans = [PrunePlan(network.keep)]
    ((params, batch_stats),) = train(
        task, network.params, network.batch_stats, plans, task.config.num_epochs, key, num_slots=1
    )
    return network._replace(params=params, batch_stats=batch_stats)


def fate(config: Any, table: Mapping[str, Any], base: Mapping[str, Any]) -> jax.Array:
    """The configured FATE of one network or of P."""
    return pruning.fate_objective(table, base, accuracy=config.accuracy, disparity=config.disparity)


def accurate(config: Any, table: Mapping[str, Any], base: Mapping[str, Any]) -> np.ndarray:
    """Which networks keep the baseline's accuracy and macro F1, to `max_accuracy_drop`.

    Each alone can be had for nothing: accuracy by calling everything the commonest class.
    """
    share = 1 - config.max_accuracy_drop
    kept = [
        np.asarray(table[name]) >= share * np.asarray(base[name])
        for name in ("accuracy", "macro_f1")
    ]
    return np.logical_and(*kept)


def rank(config: Any, table: Mapping[str, Any], base: Mapping[str, Any]) -> np.ndarray:
    """Numbers of P networks, best first: the accurate ones by FATE, then the others by FATE."""
    order = pruning.rank_plans(fate(config, table, base))
    return order[np.argsort(~accurate(config, table, base)[order], kind="stable")]


def propose(task: Task, network: Network, base, key) -> list[tuple[Candidate, PrunePlan]]:
    """Candidates of a round and their plans, best first on validation, before fine-tuning."""
    config, plan = task.config, PrunePlan(network.keep)
    arguments = (network.params, network.batch_stats)
    scores = {name: task.score(*arguments, task.data["train"], key, name) for name in config.scores}
    proposals, tables = [], []
    for layer in config.layers:
        room = [n for n in config.counts if n < int(network.keep[layer].sum())]
        if not room:
            continue
        candidates, plans = pruning.candidate_plans(
            scores, layer=layer, counts=room, trade_offs=config.trade_offs, after=plan
        )
        # what earlier rounds pruned is zero already, so only this layer differs between plans
        only = PrunePlan({layer: plans.keep[layer]})
        tables.append(task.measure_plans(*arguments, only, task.data["val"]))
        proposals += _pair(candidates, plans)
    if not proposals:
        return []
    table = jax.tree.map(lambda *parts: np.concatenate(parts), *tables)
    return [proposals[i] for i in rank(config, table, base)]


def control_plans(task: Task, network: Network, row: str, like: dict[str, Any], key):
    """What a control fine-tunes beside the decision `like`: its layer and its count at random.

    All of its plans are fine-tuned, so none is measured before.
    """
    plan = PrunePlan(network.keep)
    if row == "tuned":
        return [(Candidate("", 0, "none", 0.0), plan)]
    keys = jax.random.split(key, task.config.num_finalists)
    scores = {
        f"random {i}": task.score(
            network.params, network.batch_stats, task.data["train"], key, "random"
        )
        for i, key in enumerate(keys if row == "random_best" else keys[:1])
    }
    layer, counts = like["layer"], [like["count"]]
    return _pair(*pruning.candidate_plans(scores, layer=layer, counts=counts, after=plan))


def _pair(candidates: list[Candidate], plans: PrunePlan) -> list[tuple[Candidate, PrunePlan]]:
    """Each of P candidates beside its own of the plans `[P, C]`."""
    return [
        (candidate, jax.tree.map(lambda keep, i=i: keep[i], plans))
        for i, candidate in enumerate(candidates)
    ]


def prune_round(task: Task, network: Network, row: str, like: dict[str, Any], base, key):
    """One round: propose, fine-tune the finalists, take the best; `(network, decision)`.

    `like` is the decision that a control repeats. The decision is a history row; `network` is None
    where nothing can be pruned any more.
    """
    config = task.config
    key_score, key_train = jax.random.split(key)
    finalists = (
        control_plans(task, network, row, like, key_score)
        if row in CONTROLS
        else propose(task, network, base, key_score)[: config.num_finalists]
    )
    if not finalists:
        return None, {}
    plans = [plan for _, plan in finalists]
    tuned = train(
        task,
        network.params,
        network.batch_stats,
        plans,
        config.finetune_epochs,
        key_train,
        num_slots=config.num_finalists,
    )
    tables = [task.measure(*parts, task.data["val"])[1] for parts in tuned]
    table = jax.tree.map(lambda *parts: np.stack(parts), *tables)
    best = int(rank(config, table, base)[0])
    found = {name: float(table[name][best]) for name in SHOWN[:-1]}
    decision = finalists[best][0]._asdict() | {
        "val_fate": float(fate(config, found, base)),
        "accurate": bool(accurate(config, found, base)),
        "val": found,
    }
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
    """test logits of finished rows `[S, R, N, K]`"""


def blank_progress(task: Task) -> Progress:
    """The start of a run."""
    num_test = len(task.data["test"].labels)
    logits = np.zeros((task.config.num_seeds, len(ROWS), num_test, task.dataset.num_classes))
    network = start_network(task, jax.random.key(0))
    networks: dict[str, Network] = {row: network for row in ROWS}
    return Progress(0, 0, 0, networks, logits.astype(np.float32))


def advance(task: Task, run: Run, progress: Progress) -> Progress:
    """The next step: train a baseline, prune one round, or finish a row.

    A row ends after `num_rounds`, or when validation FATE no longer improves, or accuracy falls by
    more than `max_accuracy_drop`; the round that ends it is not taken. The controls repeat the
    rounds that "pruned" took, whatever comes of them, with the same orders of examples.
    """
    config, row, seed = task.config, ROWS[progress.row], int(progress.seed)
    place = {"step": progress.step + 1, "seed": seed, "row": row}
    history = [r for r in run.history() if r["seed"] == seed]
    rounds = [r for r in history if r["row"] == row]
    if row == "baseline":
        network = train_baseline(task, seed)
        table = task.measure(network.params, network.batch_stats, task.data["val"])[1]
        run.log(place | {"round": 0, "val": {name: table[name] for name in SHOWN[:-1]}})
        return finish_row(task, progress._replace(networks={row: network for row in ROWS}))
    copied = [r for r in history if r["row"] == "pruned" and r["taken"]]
    limit = len(copied) if row in CONTROLS else config.num_rounds
    if len(rounds) >= limit or not all(r["taken"] for r in rounds):
        return finish_row(task, progress)
    base = {name: np.float32(np.nan if v is None else v) for name, v in history[0]["val"].items()}
    key = jax.random.fold_in(jax.random.key(seed), 1 + len(rounds))
    like = copied[len(rounds)] if row in CONTROLS else {}
    candidate, decision = prune_round(task, progress.networks[row], row, like, base, key)
    if candidate is None:
        return finish_row(task, progress)
    best = max([0.0, *(r["val_fate"] for r in rounds if r["val_fate"] is not None)])
    taken = row in CONTROLS or (decision["accurate"] and decision["val_fate"] > best)
    run.log(place | {"round": len(rounds) + 1, "taken": taken} | decision)
    what = f"{decision['count']} of {decision['layer']}" if decision["count"] else "nothing pruned"
    say(
        f"seed {seed} {row} round {len(rounds) + 1}: {what}, "
        f"validation FATE {decision['val_fate']:+.3f}{'' if taken else ', not taken'}"
    )
    networks = progress.networks | ({row: candidate} if taken else {})
    return progress._replace(step=progress.step + 1, networks=networks)


def finish_row(task: Task, progress: Progress) -> Progress:
    """Look at the test split, once, and go on to the next row or seed."""
    network = progress.networks[ROWS[progress.row]]
    logits = np.array(progress.logits)
    logits[progress.seed, progress.row] = task.measure(
        network.params, network.batch_stats, task.data["test"]
    )[0]
    seed, row = divmod(progress.seed * len(ROWS) + progress.row + 1, len(ROWS))
    return progress._replace(step=progress.step + 1, seed=seed, row=row, logits=logits)


def judge(task: Task, logits: np.ndarray) -> tuple[dict[str, Any], list[str]]:
    """Test metrics of every row from logits `[S, R, N, K]`, and notes."""
    config, dataset = task.config, task.dataset
    test = dataset.examples("test")
    comparison = compare_rows(
        np.moveaxis(logits, 1, 0),
        labels=test.labels,
        group=test.group,
        num_groups=dataset.num_groups,
        shown=SHOWN[:-1],
        num_replicates=config.num_replicates,
        key=jax.random.key(0),
        evaluate_fn=pruning.evaluate_pruned,
    )
    base = {name: values[:1] for name, values in comparison.metrics.items()}
    comparison.metrics["fate"] = np.asarray(fate(config, comparison.metrics, base))
    by_row, notes = results.summarise(ROWS, comparison, dataset.group_names)
    notes.append(f"FATE weighs {config.accuracy} against {config.disparity}, trade-off 1")
    return by_row, notes
