"""A training step beside PyTorch's: same weights, batch, dtype, optimiser and threads.

    python -m experiments.benchmark step

About ten minutes on two CPU cores, most of it `torch.compile`. Compile time and peak memory of a
large network are those of fresh processes, which this module is run as:
`python -m experiments.benchmarks.step fairjax|torch|torch.compile MODEL BATCH`.
"""

import json
import pathlib
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.timing import (
    Paired,
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
LARGE, LARGE_BATCH = "vit_base_patch16_224", 8


def claims(quick: bool = False) -> Iterator[dict[str, Any]]:
    """A row per network, then compile time and peak memory of a large one.

    `quick` times 2 pairs instead of 15, leaves `torch.compile` out and takes a small network.
    """
    rate = matmul_rate()
    for row in ROWS:
        yield _row(*row, rate=rate, quick=quick)
    yield from _large_rows("vit_micro" if quick else LARGE, LARGE_BATCH, quick)


def _large_rows(name: str, batch: int, quick: bool = False) -> list[dict[str, Any]]:
    """Seconds until the first step is compiled, and peak resident memory of two steps."""
    ours, theirs = (_in_fresh_process(side, name, batch) for side in ("fairjax", "torch"))
    memory = claim(
        "step_vit_base_memory",
        Paired([ours["peak_gib"]], [theirs["peak_gib"]]),
        compile_s=ours["compile_s"],
        notes=f"GiB, not seconds: peak resident memory of a process, two steps of {name}, "
        f"batch {batch}; PyTorch eager",
    )
    if quick:
        return [memory]
    theirs = _in_fresh_process("torch.compile", name, batch)
    compiling = claim(
        "step_vit_base_compile",
        Paired([ours["compile_s"]], [theirs["compile_s"]]),
        compile_s=ours["compile_s"],
        notes=f"seconds to compile the step of {name}, batch {batch}; PyTorch: the first step of "
        "torch.compile without the time of the second",
    )
    return [memory, compiling]


def _in_fresh_process(*args: Any) -> dict[str, float]:
    command = [sys.executable, "-m", "experiments.benchmarks.step", *map(str, args)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise OSError(f"{' '.join(command)} failed: {result.stderr.strip()[-300:]}")
    return json.loads(result.stdout.splitlines()[-1])


def measure(side: str, name: str, batch: int) -> dict[str, float]:
    """Compile seconds of a training step and peak GiB of this process after two steps."""
    if side == "fairjax":
        compile_s = _compile_and_step(name, batch)
    else:
        compile_s = _step_torch(name, batch, compiled=side == "torch.compile")
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"compile_s": compile_s, "peak_gib": peak_kib / 2**20}


def _compile_and_step(name: str, batch: int) -> float:
    model = image_model(name, NUM_CLASSES)
    params, batch_stats = model.init(jax.random.key(0))
    optimizer = optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    state = (params, batch_stats, optimizer.init(params))
    size = model.config.image_size
    data = jnp.ones((batch, size, size, 3), jnp.float32), jnp.zeros(batch, jnp.int32)
    step = _make_step(model, optimizer)
    compile_s = compile_seconds(step, *state, *data)
    for _ in range(2):
        *state, loss = step(*state, *data)
        jax.block_until_ready(loss)
    return compile_s


def _step_torch(name: str, batch: int, *, compiled: bool) -> float:
    import torch

    from experiments.baselines.torch_models import VisionTransformer

    config: Any = image_model(name, NUM_CLASSES).config
    fields = ("image_size", "patch_size", "width", "depth", "num_heads")
    sizes = {field: getattr(config, field) for field in fields}
    twin = VisionTransformer(NUM_CLASSES, **sizes)
    images = torch.ones(batch, 3, config.image_size, config.image_size)
    step = _torch_step(
        twin, torch.compile(twin) if compiled else twin, images, torch.zeros(batch).long()
    )
    first, second = seconds(step), seconds(step)
    return first - second


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
    inputs = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    targets = torch.from_numpy(labels).long()
    eager, compiled = (
        _torch_step(twin, network, inputs, targets) for network in (twin, torch.compile(twin))
    )
    return eager, compiled


def _torch_step(twin: Any, network: Any, inputs: Any, targets: Any) -> Callable[[], float]:
    """A step of `twin`, run as `network`, which may be its compiled form."""
    import torch

    twin.train()
    optimizer = torch.optim.AdamW(twin.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(network(inputs), targets)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
