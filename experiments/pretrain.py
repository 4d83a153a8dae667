"""Pre-train the small networks that ship with fairjax, on the source domain of synthetic lesions.

    python -m experiments.pretrain vit_micro             8,000 images, 5 epochs; minutes on a CPU
    python -m experiments.pretrain vgg_micro             the same images, 6 epochs

One network learns three tasks that say nothing about the diagnosis by themselves: the lesion's
shape, its number of colours and its kind of border. `MODEL.safetensors` in the result folder holds
the weights in half precision, under the names that timm or torchvision use.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import common
from fairjax.data import Dataset, Examples
from fairjax.data.augment import compose, eval_preprocess, normalize, random_flip
from fairjax.data.lesions import (
    BORDER_NAMES,
    GROUP_NAMES,
    MAX_COLOURS,
    SHAPE_NAMES,
    synthetic_lesions,
)
from fairjax.losses import predictions
from fairjax.metrics import bootstrap
from fairjax.models import Model, image_model, save_weights
from fairjax.train import Batch, TrainState, init_train, make_step, predict


@dataclasses.dataclass(frozen=True)
class Config:
    """Multi-task training on synthetic lesions."""

    about: str = ""
    model: Literal["vit_micro", "vgg_micro"] = "vit_micro"
    num_images: int = 8_000
    """drawn, of which 70 %% train, 10 %% watch and 20 %% test"""
    num_epochs: int = 6
    batch_size: int = 32
    learning_rate: float = 0.001
    """peak; rises over the first tenth of the steps and falls as a cosine"""
    weight_decay: float = 0.05
    num_replicates: int = 200
    """bootstrap replicates behind the 95 %% intervals"""
    seed: int = 0
    """of images, initial parameters and batches"""
    out: Path | None = None
    """result folder; default runs/pretrain-<time>"""
    resume: bool = False
    """go on with the interrupted run in --out"""


PRESETS = {
    "vit_micro": Config(about="transformer: patch 8, width 96, 6 blocks", num_epochs=5),
    "vgg_micro": Config(about="convolutions: VGG of 6 layers for 64 px", model="vgg_micro"),
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
    "colours": tuple(str(count + 1) for count in range(MAX_COLOURS)),
    "border": BORDER_NAMES,
}
SIZES = tuple(len(names) for names in TASKS.values())
EVALUATION_BATCH = 256


def source_dataset(key: jax.Array, n: int) -> Dataset:
    """Lesions of the source domain; one label for each combination of shape, colours and border."""
    lesions = synthetic_lesions(key, n, domain="source")
    answers = tuple(getattr(lesions, task) for task in TASKS)
    # Lesions are drawn independently, so cutting their sequence is a random split by lesion.
    share = lesions.lesion / (lesions.lesion.max() + 1)
    cuts = {"train": share < 0.7, "val": (share >= 0.7) & (share < 0.8), "test": share >= 0.8}
    return Dataset(
        name="lesions-source",
        inputs=lesions.images,
        labels=np.asarray(np.ravel_multi_index(answers, SIZES), np.int32),
        group=lesions.group,
        label_names=tuple(
            f"{shape}, {colours} colours, {border}"
            for shape in TASKS["shape"]
            for colours in TASKS["colours"]
            for border in TASKS["border"]
        ),
        group_names=GROUP_NAMES,
        splits={split: np.flatnonzero(rows).astype(np.int32) for split, rows in cuts.items()},
        notes=("synthetic images, no patients",),
    )


def joint_model(model: Model) -> Model:
    """The same network with a logit for each combination of answers, `[B, 3 * 4 * 3]`.

    `model` gives the tasks' logits side by side, `[B, 3 + 4 + 3]`. A combination's logit is the sum
    of its answers' logits, so its softmax is the product of the tasks' softmaxes, its cross-entropy
    the sum of the tasks' losses and its arg-max the tasks' arg-maxes: one ordinary classifier.
    """

    def apply(params, batch_stats, inputs, *, train=False, key=None):
        logits, out, batch_stats = model.apply(params, batch_stats, inputs, train=train, key=key)
        shape, colours, border = jnp.split(logits, np.cumsum(SIZES)[:-1], axis=-1)
        joint = shape[:, :, None, None] + colours[:, None, :, None] + border[:, None, None, :]
        return joint.reshape(len(logits), -1), out, batch_stats

    return Model(model.init, apply, model.config)


def correct(model: Model, state: TrainState, examples: Examples) -> dict[str, jax.Array]:
    """Which answers of a joint model are right, float32 `[N]` per task."""
    config = model.config
    logits = predict(
        model,
        state,
        examples.inputs,
        batch_size=EVALUATION_BATCH,
        preprocess=eval_preprocess(config.image_size, config.mean, config.std),
    )
    found = jnp.unravel_index(predictions(logits), SIZES)
    wanted = jnp.unravel_index(examples.labels, SIZES)
    return {
        task: (a == b).astype(jnp.float32) for task, a, b in zip(TASKS, found, wanted, strict=True)
    }


def prepare_run(config: Config):
    """Check everything, draw the images; returns the function that trains."""
    for name, least in (("num_epochs", 1), ("batch_size", 1), ("num_replicates", 2)):
        if getattr(config, name) < least:
            raise ValueError(f"{name} must be at least {least}, got {getattr(config, name)}")
    least = max(20, 2 * config.batch_size)  # a batch of training images, a few in every split
    if config.num_images < least:
        raise ValueError(f"num_images must be at least {least}, got {config.num_images}")
    if not config.learning_rate > 0:
        raise ValueError(f"learning_rate must be positive, got {config.learning_rate}")
    if not config.weight_decay >= 0:
        raise ValueError(f"weight_decay must be at least 0, got {config.weight_decay}")
    run = common.Run("pretrain", config, out=config.out, resume=config.resume)
    return lambda: train_and_report(config, run)


def train_and_report(config: Config, run: common.Run) -> None:
    """Draw, train, write the weights and what they reach on the test split."""
    data_key, model_key, fit_key = jax.random.split(jax.random.key(config.seed), 3)
    common.say(f"drawing {config.num_images} images")
    dataset = source_dataset(data_key, config.num_images)
    network = image_model(config.model, sum(SIZES))
    state, timing = train_network(config, run, dataset, joint_model(network), (model_key, fit_key))
    path = run.folder / f"{config.model}.safetensors"
    halves = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), (state.params, state.batch_stats))
    save_weights(path, network, *halves)
    shipped = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), halves)
    state = state._replace(params=shipped[0], batch_stats=shipped[1])
    result = judge(config, joint_model(network), state, dataset)
    run.finish(
        data=common.data_summary(dataset),
        results={config.model: result},
        timing=timing,
        notes=dataset.notes,
    )
    columns = ["task", "accuracy", "95 % interval", *GROUP_NAMES]
    rows = []
    for task in TASKS:
        low, high = result["ci95"][task]
        groups = (f"{accuracy:.4f}" for accuracy in result["group_accuracy"][task].values())
        rows.append([task, f"{result['tasks'][task]:.4f}", f"{low:.4f} to {high:.4f}", *groups])
    print(common.table(columns, rows))
    print(f"\n{path}: {path.stat().st_size / 1e6:.2f} MB")


def train_network(config: Config, run: common.Run, dataset: Dataset, model: Model, keys):
    """Train epoch by epoch, resuming where asked; returns the final state and the timing."""
    train, val = (jax.tree.map(jnp.asarray, dataset.examples(split)) for split in ("train", "val"))
    model_key, fit_key = keys
    num_steps = len(train.labels) // config.batch_size
    step, optimizer = augmented_step(config, model, num_steps * config.num_epochs)
    state = jax.jit(lambda key: init_train(model, optimizer, key))(model_key)
    # Steps are called one by one, not scanned: on CPU, gradients of convolutions inside a loop miss
    # XLA's fast path and take over ten times as long (jax issue 12868).
    step = jax.jit(step, donate_argnums=0)
    accuracies = jax.jit(
        lambda state, examples: jax.tree.map(jnp.mean, correct(model, state, examples))
    )
    began = time.perf_counter()
    step = step.lower(state, train, jnp.arange(config.batch_size), fit_key).compile()
    timing = {"compile_s": time.perf_counter() - began, "train_s": 0.0}
    restored = run.restore(state) if config.resume else None
    done, state = (0, state) if restored is None else restored
    run.rewrite_history(row for row in run.history() if row["epoch"] <= done)
    with common.progress(config.num_epochs, "epochs", done) as bar:
        for epoch in range(done + 1, config.num_epochs + 1):
            began = time.perf_counter()
            order_key, steps_key = jax.random.split(jax.random.fold_in(fit_key, epoch))
            order = jax.random.permutation(order_key, len(train.labels))
            batches = order[: num_steps * config.batch_size].reshape(num_steps, -1)
            losses = []
            for rows, key in zip(batches, jax.random.split(steps_key, num_steps), strict=True):
                state, loss = step(state, train, rows, key)
                losses.append(loss)
            row = {"epoch": epoch, "loss": np.mean(jax.device_get(losses))}
            seconds = time.perf_counter() - began
            timing["train_s"] += seconds
            row["val"] = jax.device_get(accuracies(state, val))
            run.log(row)
            run.save(epoch, state)
            bar.update(1)
            reached = ", ".join(f"{task} {row['val'][task]:.3f}" for task in TASKS)
            common.say(
                f"epoch {epoch} of {config.num_epochs}: loss {row['loss']:.4f}, "
                f"accuracy {reached} ({seconds:.0f} s)"
            )
    return state, timing


def augmented_step(config: Config, model: Model, num_steps: int):
    """`step(state, examples, rows, key) -> (state, loss)` and the optimiser it uses."""
    rate = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, num_steps // 10, num_steps)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=config.weight_decay)
    )
    plain_step = make_step(model, optimizer)
    augment = compose(
        random_flip(horizontal=0.5, vertical=0.5), normalize(model.config.mean, model.config.std)
    )

    def step(state: TrainState, examples: Examples, rows: jax.Array, key: jax.Array):
        augment_key, step_key = jax.random.split(key)
        inputs, labels, group = jax.tree.map(lambda array: array[rows], examples)
        weights = jnp.ones(len(rows), jnp.float32)
        batch = Batch(augment(augment_key, inputs), labels, group, weights)
        state, metrics = plain_step(state, batch, step_key)
        return state, metrics["loss"]

    return step, optimizer


def judge(config: Config, model: Model, state: TrainState, dataset: Dataset) -> dict[str, Any]:
    """Test accuracy per task, per task and skin, and their intervals."""
    test = jax.tree.map(jnp.asarray, dataset.examples("test"))

    @jax.jit
    def measure(state, test, key):
        right = correct(model, state, test)

        def accuracies(weights):
            total = weights.sum()
            tasks = {task: jnp.sum(values * weights) / total for task, values in right.items()}
            return {**tasks, "accuracy": sum(tasks.values()) / len(tasks)}

        intervals = bootstrap(
            accuracies, len(test.labels), key=key, num_replicates=config.num_replicates
        )
        return right, intervals

    right, intervals = jax.device_get(measure(state, test, jax.random.key(config.seed)))
    tasks = {task: values.mean() for task, values in right.items()}
    group = np.asarray(test.group)
    return {
        "accuracy": np.mean(list(tasks.values())),
        "tasks": tasks,
        "group_accuracy": {
            task: {name: values[group == i].mean() for i, name in enumerate(GROUP_NAMES)}
            for task, values in right.items()
        },
        "ci95": {name: [intervals.lower[name], intervals.upper[name]] for name in intervals.lower},
    }


if __name__ == "__main__":
    common.main(prepare_run, PRESETS, description=__doc__ or "")
