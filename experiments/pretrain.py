"""Pre-train the small networks that ship with fairjax, on procedural pictures of things.

    python -m experiments.pretrain vit_micro             50,000 images; 2 busy CPU cores: 32 minutes
    python -m experiments.pretrain vgg_micro             the same images; 18 minutes

One network learns four tasks: shape, texture and colour of what is in front, and the texture
behind it. `MODEL.safetensors` in the result folder holds the weights in half precision, under the
names that timm or torchvision use.
"""

import dataclasses
import functools
import itertools
import time
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import cli
from experiments.files import replacing
from experiments.run import Run, data_summary, main, timed
from experiments.tracking import Tracker
from fairjax.data import Dataset, Examples
from fairjax.data.augment import compose, random_flip
from fairjax.data.pictures import COLOUR_NAMES, SHAPE_NAMES, TEXTURE_NAMES, synthetic_pictures
from fairjax.losses import predictions
from fairjax.metrics import bootstrap
from fairjax.models import Model, image_model, save_weights
from fairjax.sampling import shuffled
from fairjax.train import TrainState, fit, init_fit, init_train, make_step, predict


@dataclasses.dataclass(frozen=True)
class AllSeeds(cli.Seeds):
    """What is drawn at random."""

    data: cli.Seed = 0
    """of the images"""


@dataclasses.dataclass(frozen=True)
class Config:
    """Multi-task training on procedural pictures."""

    about: cli.Hidden = ""
    seeds: AllSeeds = AllSeeds()
    model: Literal["vit_micro", "vgg_micro"] = "vit_micro"
    num_images: cli.Count = 50_000
    """drawn, of which 80 % train, 5 % watch and 15 % test"""
    num_epochs: cli.Count = 6
    batch_size: cli.Count = 32
    learning_rate: cli.Positive = 0.001
    """peak; rises over the first tenth of the steps and falls as a cosine"""
    weight_decay: cli.NonNegative = 0.05
    num_replicates: cli.Replicates = 200
    """bootstrap replicates behind the 95 % intervals"""
    track: tuple[Tracker, ...] = ()
    """where the numbers of every epoch or round go, too: tensorboard, wandb, mlflow"""
    out: Path | None = None
    """result folder; default runs/pretrain-<time>"""
    resume: bool = False
    """go on with the interrupted run in --out"""


PRESETS = {
    "vit_micro": Config(about="transformer: patch 8, width 96, 6 blocks"),
    "vgg_micro": Config(
        about="convolutions: VGG of 6 layers for 64 px", model="vgg_micro", num_epochs=4
    ),
    "smoke": Config(
        about="seconds, for tests",
        model="vgg_micro",
        num_images=128,
        num_epochs=2,
        num_replicates=20,
    ),
}

TASKS = {
    "shape": SHAPE_NAMES,
    "texture": TEXTURE_NAMES,
    "colour": COLOUR_NAMES,
    "backdrop": TEXTURE_NAMES,
}
SIZES = tuple(len(names) for names in TASKS.values())


def picture_dataset(key: jax.Array, n: int) -> Dataset:
    """Procedural pictures, one label for each combination of answers; all are of one group."""
    pictures = synthetic_pictures(key, n)
    answers = tuple(getattr(pictures, task) for task in TASKS)
    cuts = np.split(np.arange(n, dtype=np.int32), [int(0.8 * n), int(0.85 * n)])
    return Dataset(
        name="pictures",
        inputs=pictures.images,
        labels=np.asarray(np.ravel_multi_index(answers, SIZES), np.int32),
        group=np.zeros(n, np.int32),
        label_names=tuple(map(", ".join, itertools.product(*TASKS.values()))),
        group_names=("pictures",),
        splits=dict(zip(("train", "val", "test"), cuts, strict=True)),
        notes=("procedural images of no particular things",),
    )


def joint_model(model: Model) -> Model:
    """The same network with a logit for each combination of answers, `[B, 10 * 8 * 8 * 8]`.

    `model` gives the tasks' logits side by side, `[B, 10 + 8 + 8 + 8]`. A combination's logit is
    the sum of its answers' logits, so its softmax is the product of the tasks' softmaxes, its
    cross-entropy the sum of the tasks' losses and its arg-max the tasks' arg-maxes: one ordinary
    classifier.
    """

    def apply(params, batch_stats, inputs, *, train=False, key=None):
        logits, out, batch_stats = model.apply(params, batch_stats, inputs, train=train, key=key)
        joint, *others = jnp.split(logits, np.cumsum(SIZES)[:-1], axis=-1)
        for other in others:
            joint = (joint[:, :, None] + other[:, None, :]).reshape(len(logits), -1)
        return joint, out, batch_stats

    return model._replace(apply=apply)


def correct(
    model: Model, params: Any, batch_stats: Any, examples: Examples
) -> dict[str, jax.Array]:
    """Which answers of a joint model are right, float32 `[N]` per task."""
    logits = predict(model, params, batch_stats, examples.inputs)
    found = jnp.unravel_index(predictions(logits), SIZES)
    wanted = jnp.unravel_index(examples.labels, SIZES)
    return {
        task: (a == b).astype(jnp.float32) for task, a, b in zip(TASKS, found, wanted, strict=True)
    }


def prepare_run(config: Config):
    """Check everything, draw the images; returns the function that trains."""
    cli.check_numbers(config)
    least = max(20, 2 * config.batch_size)  # a batch of training images, a few in every split
    if config.num_images < least:
        raise ValueError(f"--num-images must be at least {least}, got {config.num_images}")
    run = Run("pretrain", config, out=config.out, resume=config.resume)
    return lambda: train_and_report(config, run.start())


def train_and_report(config: Config, run: Run) -> None:
    """Draw, train, write the weights and what they reach on the test split."""
    # each its own part of its seed, so that equal seeds do not draw the same numbers
    seeds = config.seeds.data, config.seeds.start, config.seeds.batches
    data_key, *keys = (jax.random.split(jax.random.key(x), 3)[i] for i, x in enumerate(seeds))
    cli.phase(f"drawing {config.num_images} images")
    dataset = picture_dataset(data_key, config.num_images)
    network = image_model(config.model, sum(SIZES))
    model = joint_model(network)
    state, timing = train_network(config, run, dataset, model, *keys)
    path = run.folder / f"{config.model}.safetensors"
    halves = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), (state.params, state.batch_stats))
    with replacing(path) as partial:
        save_weights(partial, network, *halves)
    params, batch_stats = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), halves)
    cli.phase("judging on the test split")
    result = judge(config, model, params, batch_stats, dataset)
    run.finish(
        data=data_summary(dataset),
        results={config.model: result},
        timing=timing,
        notes=dataset.notes,
    )
    columns = ["task", "accuracy", "95 % interval"]
    rows = []
    for task in TASKS:
        low, high = result["ci95"][task]
        rows.append([task, f"{result['tasks'][task]:.4f}", f"{low:.4f} to {high:.4f}"])
    print(cli.table(columns, rows))
    print(f"\n{path}: {path.stat().st_size / 1e6:.2f} MB")


def train_network(
    config: Config, run: Run, dataset: Dataset, model: Model, start_key: Any, batch_key: Any
) -> tuple[TrainState, dict[str, float]]:
    """Train epoch by epoch, resuming where asked; returns the final state and the timing."""
    train, val = (jax.tree.map(jnp.asarray, dataset.examples(split)) for split in ("train", "val"))
    sampler = shuffled(
        labels=dataset.examples("train").labels,
        group=dataset.examples("train").group,
        num_classes=dataset.num_classes,
        num_groups=dataset.num_groups,
        batch_size=config.batch_size,
    )
    num_steps = sampler.batches_per_epoch * config.num_epochs
    rate = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, num_steps // 10, num_steps)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=config.weight_decay)
    )
    step = make_step(model, optimizer)
    augment = compose(random_flip(horizontal=0.5, vertical=0.5))

    @functools.partial(jax.jit, donate_argnums=0)
    def epoch(state, train, val):
        def accuracies(state, val):
            right = correct(model, state.params, state.batch_stats, val)
            return jax.tree.map(jnp.mean, right)

        return fit(
            step,
            state,
            train,
            sampler,
            num_epochs=1,
            augment=augment,
            evaluate_fn=accuracies,
            evaluate_data=val,
        )

    state = jax.jit(lambda key: init_train(model, optimizer, key))(start_key)
    state = init_fit(state, sampler, batch_key)
    timing = {"train_s": 0.0}
    cli.phase("compiling")
    with timed(timing, "compile_s"):
        compiled = epoch.lower(state, train, val).compile()
    restored = run.restore(state) if config.resume else None
    done, state = (0, state) if restored is None else restored
    run.rewrite_history(row for row in run.history() if row["epoch"] <= done)
    with cli.progress(config.num_epochs, "epochs", done) as bar:
        for number in range(done + 1, config.num_epochs + 1):
            began = time.perf_counter()
            state, history = jax.block_until_ready(compiled(state, train, val))
            seconds = time.perf_counter() - began
            timing["train_s"] += seconds
            reached = jax.tree.map(lambda leaf: float(leaf[0]), history["evaluation"])
            row = {"epoch": number, "loss": float(history["loss"][0]), "val": reached}
            run.log(row)
            tasks = ", ".join(f"{task} {accuracy:.3f}" for task, accuracy in reached.items())
            cli.say(
                f"epoch {number} of {config.num_epochs}: loss {row['loss']:.4f}, "
                f"accuracy {tasks} ({seconds:.0f} s)"
            )
            run.save(number, state)
            bar.update(1)
    return state.train, timing


def judge(
    config: Config, model: Model, params: Any, batch_stats: Any, dataset: Dataset
) -> dict[str, Any]:
    """Test accuracy per task, their mean and their intervals."""
    test = jax.tree.map(jnp.asarray, dataset.examples("test"))

    @jax.jit
    def measure(params, batch_stats, test, key):
        right = correct(model, params, batch_stats, test)

        def accuracies(weights):
            total = weights.sum()
            tasks = {task: jnp.sum(values * weights) / total for task, values in right.items()}
            return {**tasks, "accuracy": sum(tasks.values()) / len(tasks)}

        intervals = bootstrap(
            accuracies, len(test.labels), key=key, num_replicates=config.num_replicates
        )
        return right, intervals

    right, intervals = jax.device_get(measure(params, batch_stats, test, jax.random.key(0)))
    tasks = {task: values.mean() for task, values in right.items()}
    return {
        "accuracy": np.mean(list(tasks.values())),
        "tasks": tasks,
        "ci95": {name: [intervals.lower[name], intervals.upper[name]] for name in intervals.lower},
    }


if __name__ == "__main__":
    main(prepare_run, PRESETS, description=__doc__ or "")
