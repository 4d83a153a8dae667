"""A training step beside PyTorch's: same weights, batch, dtype, optimiser and threads.

    python -m experiments.benchmark step

About five minutes on two CPU cores, most of it `torch.compile`.
"""

import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.timing import (
    claim,
    compile_seconds,
    matmul_rate,
    paired,
    seconds,
    step_flops,
    utilisation,
)
from fairjax.models import Model, image_model, save_weights
from fairjax.trees import unstack_blocks

NUM_CLASSES = 5
LEARNING_RATE, WEIGHT_DECAY = 1e-4, 1e-2
# claim, model, image size, batch
ROWS = (
    ("step_vit_tiny_224", "vit_tiny_patch16_224", 224, 8),
    ("step_vit_tiny_64", "vit_tiny_patch16_224", 64, 32),
    ("step_resnet18", "resnet18", 224, 8),
)


def claims(quick: bool = False) -> list[dict[str, Any]]:
    """One row per network; `quick` times 2 pairs instead of 15 and leaves `torch.compile` out."""
    rate = matmul_rate()
    return [_row(*row, rate=rate, quick=quick) for row in ROWS]


def _row(
    name: str, model_name: str, size: int, batch: int, *, rate: float, quick: bool
) -> dict[str, Any]:
    model = image_model(model_name, NUM_CLASSES, image_size=size)
    params, batch_stats = model.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch, size, size, 3), np.float32)
    labels = rng.integers(0, NUM_CLASSES, batch, np.int32)
    optimizer = optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    eager, compiled = _torch_steps(model, size, params, batch_stats, images, labels)

    step = _make_step(model, optimizer)
    # blocks one by one, for the count: a loop's body is counted once however often it runs
    unrolled = unstack_blocks(params)
    flops = step_flops(step, unrolled, batch_stats, optimizer.init(unrolled), images, labels)
    args = (params, batch_stats, optimizer.init(params), images, labels)
    compile_s = compile_seconds(step, *args)
    state = args[:3]
    images_on_device, labels_on_device = jnp.asarray(images), jnp.asarray(labels)

    def ours() -> jax.Array:
        nonlocal state
        *state, loss = step(*state, images_on_device, labels_on_device)
        return loss

    losses = float(ours()), eager()
    theirs, which = eager, "eager"
    if not quick:
        compiled()
        if min(seconds(compiled) for _ in range(3)) < min(seconds(eager) for _ in range(3)):
            theirs, which = compiled, "torch.compile"
    times = paired(ours, theirs, repeats=2 if quick else 15, warmup=1 if quick else 3)
    row = claim(
        name,
        times,
        compile_s=compile_s,
        quality={"ours": {"first_loss": losses[0]}, "theirs": {"first_loss": losses[1]}},
    )
    used = utilisation(flops, row["ours_s"], rate)
    row["notes"] = (
        f"PyTorch {which}; {flops / 1e9:.0f} GFLOP a step, {used:.0%} "
        f"of this machine's matmul rate of {rate / 1e9:.0f} GFLOP/s"
    )
    return row


def _make_step(model: Model, optimizer: optax.GradientTransformation) -> Any:
    def step(params, batch_stats, opt_state, images, labels):
        def loss_fn(params):
            logits, _, new_stats = model.apply(params, batch_stats, images, train=True)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return jnp.mean(losses), new_stats

        (loss, batch_stats), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), batch_stats, opt_state, loss

    return jax.jit(step, donate_argnums=(0, 1, 2))


def _torch_steps(
    model: Model, size: int, params: Any, batch_stats: Any, images: np.ndarray, labels: np.ndarray
) -> tuple[Callable[[], float], Callable[[], float]]:
    """Steps of the twin with the same weights: eager, and through `torch.compile`."""
    import torch
    from safetensors.torch import load_file

    from experiments.baselines.torch_models import ResNet18, VisionTransformer

    is_vit = "blocks" in params
    twin = VisionTransformer(NUM_CLASSES, image_size=size) if is_vit else ResNet18(NUM_CLASSES)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "weights.safetensors"
        save_weights(path, model, params, batch_stats)
        twin.load_state_dict(load_file(path))
    twin.train()
    optimizer = torch.optim.AdamW(twin.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    inputs = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    targets = torch.from_numpy(labels).long()

    def make(network: Any) -> Callable[[], float]:
        def step() -> float:
            optimizer.zero_grad(set_to_none=True)
            loss = torch.nn.functional.cross_entropy(network(inputs), targets)
            loss.backward()
            optimizer.step()
            return loss.item()

        return step

    return make(twin), make(torch.compile(twin))
