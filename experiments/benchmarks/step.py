"""A training step beside PyTorch's: same weights, batch, dtype, optimiser and threads.

    python -m experiments.benchmark step

Ours are steps of `fairjax.train` in a compiled loop, as `fit` runs them, so that memory is had from
the system once for many steps: one step a call takes 5 to 8 % longer. About six minutes on two CPU
cores, most of it `torch.compile`. Compile time and peak memory of a large network are those of
fresh processes, which this module is run as:
`python -m experiments.benchmarks.step fairjax|torch|torch.compile MODEL BATCH`. On an accelerator
steps of other sizes; PyTorch's then are compiled with CUDA graphs.
"""

import json
import os
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

from experiments.cli import phase
from experiments.timing import (
    Paired,
    claim,
    compile_seconds,
    matmul_rate,
    paired,
    seconds,
    step_flops,
)
from fairjax.models import Model, compiler_options, image_model, reconfigure, save_weights
from fairjax.train import Batch, TrainState, init_train, make_step, start_train
from fairjax.trees import unstack_blocks

NUM_CLASSES = 5
LEARNING_RATE, WEIGHT_DECAY = 1e-4, 1e-2
OPTIMIZER = optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY)
# claim, model, image size, batch, dtype
ROWS = (
    ("step_vit_tiny_224", "vit_tiny_patch16_224", 224, 8, "float32"),
    ("step_vit_tiny_64", "vit_tiny_patch16_224", 64, 32, "float32"),
    ("step_vit_tiny_224_bfloat16", "vit_tiny_patch16_224", 224, 8, "bfloat16_products"),
    ("step_vit_tiny_64_bfloat16", "vit_tiny_patch16_224", 64, 32, "bfloat16_products"),
    ("step_resnet18", "resnet18", 224, 8, "float32"),
)
ACCELERATOR_ROWS = (
    ("step_vit_base_224_bfloat16", "vit_base_patch16_224", 224, 128, "bfloat16"),
    ("step_resnet18", "resnet18", 224, 128, "float32"),
)
NUM_STEPS = 8  # in one turn of either side
LARGE, LARGE_BATCH = "vit_base_patch16_224", 8


def claims(quick: bool = False) -> Iterator[dict[str, Any]]:
    """A row per network, then compile time and peak memory of a large one.

    `quick` times 2 pairs instead of 7, leaves `torch.compile` out and takes a small network.
    """
    on_cpu = jax.default_backend() == "cpu"
    for row in ROWS if on_cpu else ACCELERATOR_ROWS:
        phase(f"steps of {row[1]}")
        yield _row(*row, quick=quick)
    if on_cpu:
        yield from _large_rows("vit_micro" if quick else LARGE, LARGE_BATCH, quick)


def _large_rows(name: str, batch: int, quick: bool) -> list[dict[str, Any]]:
    """Seconds until the first step is compiled, and peak resident memory of two steps."""
    ours, theirs = (_in_fresh_process(side, name, batch) for side in ("fairjax", "torch"))
    memory = claim(
        "step_vit_base_memory",
        Paired([ours["peak_gib"]], [theirs["peak_gib"]]),
        compile_s=ours["compile_s"],
        unit="GiB",
        notes=f"peak resident memory of a process, two steps of {name}, "
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
    phase(f"a process of its own: {' '.join(map(str, args))}")
    command = [sys.executable, "-m", "experiments.benchmarks.step", *map(str, args)]
    uncached = os.environ | {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}  # as ours
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=uncached)
    if result.returncode:
        raise OSError(f"{' '.join(command)} failed: {result.stderr.strip()[-300:]}")
    return json.loads(result.stdout.splitlines()[-1])


def measure(side: str, name: str, batch: int) -> dict[str, float]:
    """Compile seconds of a training step and peak GiB of this process after two steps."""
    if side == "fairjax":
        compile_s = _compile_and_step(name, batch)
    else:
        compile_s = _step_torch(name, batch, compiled=side == "torch.compile")
    return {"compile_s": compile_s, "peak_gib": _peak_bytes() / 2**30}


def _peak_bytes() -> int:
    """Peak resident memory of this process alone: `getrusage` also counts who started it."""
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _compile_and_step(name: str, batch_size: int) -> float:
    model = _network(name)
    size = model.config.image_size
    images = np.ones((batch_size, size, size, 3), np.float32)
    state, batch = _start(model, images, np.zeros(batch_size, np.int32))
    step = _make_steps(model, 1)
    compile_s = compile_seconds(step, state, batch)
    for _ in range(2):
        state, loss = step(state, batch)
        jax.block_until_ready(loss)
    return compile_s


def _step_torch(name: str, batch: int, *, compiled: bool) -> float:
    import torch

    from experiments.baselines.torch_models import VisionTransformer

    config: Any = _network(name).config
    twin = VisionTransformer.of(config)
    images = torch.ones(batch, 3, config.image_size, config.image_size)
    step = _torch_step(
        twin, torch.compile(twin) if compiled else twin, images, torch.zeros(batch).long()
    )
    first, second = seconds(step), seconds(step)
    return first - second


def _row(
    name: str, model_name: str, size: int, batch_size: int, dtype: str, *, quick: bool
) -> dict[str, Any]:
    model = _network(model_name, image_size=size)
    model = model if dtype == "float32" else reconfigure(model, dtype=dtype)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch_size, size, size, 3), np.float32)
    labels = rng.integers(0, NUM_CLASSES, batch_size, np.int32)
    state, batch = _start(model, images, labels)
    params, batch_stats = state.params, state.batch_stats
    how = {"mixed": dtype != "float32", "compiled": not quick}
    twins, first_loss = _torch_steps(model, params, batch_stats, images, labels, **how)

    # blocks one by one, for the count: a loop's body is counted once however often it runs
    unrolled = start_train(unstack_blocks(params), batch_stats, OPTIMIZER)
    flops = step_flops(_make_steps(model, 1), unrolled, batch)
    steps = _make_steps(model, NUM_STEPS)
    compile_s = compile_seconds(steps, state, batch)

    def ours() -> jax.Array:
        nonlocal state
        state, losses = steps(state, batch)
        return losses

    def turns(step: Callable[[], Any]) -> Callable[[], list[Any]]:
        return lambda: [step() for _ in range(NUM_STEPS)]

    losses = float(ours()[0]), first_loss
    for step in twins.values():
        step()  # compiles
    fastest = {name: min(seconds(step) for _ in range(3)) for name, step in twins.items()}
    which = min(fastest, key=lambda name: fastest[name])
    times = paired(ours, turns(twins[which]), repeats=2 if quick else 7)
    times = Paired(*([turn / NUM_STEPS for turn in side] for side in times))
    return claim(
        name,
        times,
        compile_s=compile_s,
        floor_s=_floor(flops, dtype),
        quality={"ours": {"first_loss": losses[0]}, "theirs": {"first_loss": losses[1]}},
        notes=f"{model_name}, {size} px, batch {batch_size}, {dtype}, {flops / 1e9:.0f} GFLOP; "
        f"PyTorch's fastest of {', '.join(twins)}{' under autocast' * how['mixed']}: {which}",
    )


def _floor(flops: float, dtype: str) -> float | None:
    """Seconds at this device's matmul rate; of CPUs only that of float32 is steady."""
    steady = dtype == "float32" or jax.default_backend() != "cpu"
    return flops / matmul_rate(dtype) if steady else None


def _network(name: str, **sizes: int) -> Model:
    """A network that is given normalised images, as the twin is."""
    return image_model(name, NUM_CLASSES, **sizes)._replace(preprocess=None)


def _start(model: Model, images: np.ndarray, labels: np.ndarray) -> tuple[TrainState, Batch]:
    """A state before the first step, and the batch that all steps take."""
    arrays = jnp.asarray(images), jnp.asarray(labels)
    group, ones = jnp.zeros(len(labels), jnp.int32), jnp.ones(len(labels), jnp.float32)
    return init_train(model, OPTIMIZER, jax.random.key(0)), Batch(*arrays, group, ones)


def _make_steps(model: Model, count: int) -> Any:
    """`(state, batch) -> (state, losses [count])` as one program."""
    step = make_step(model, OPTIMIZER)

    def run(state, batch):
        def one(state, _):
            state, metrics = step(state, batch, jax.random.key(0))
            return state, metrics["loss"]

        return jax.lax.scan(one, state, length=count)

    return jax.jit(run, donate_argnums=0, compiler_options=compiler_options(model))


def _torch_steps(
    model: Model,
    params: Any,
    batch_stats: Any,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    mixed: bool,
    compiled: bool,
) -> tuple[dict[str, Callable[[], Any]], float]:
    """Steps of the twin with the same weights, in every way that may be the fastest, and its loss
    before the first one."""
    import torch
    from safetensors.torch import load_file

    from experiments.baselines import torch_models

    device = torch_models.twins_device(jax.default_backend())
    inputs = torch.from_numpy(images).permute(0, 3, 1, 2).to(device)
    targets = torch.from_numpy(labels).long().to(device)
    is_vit = "blocks" in params
    layouts = {"": torch.contiguous_format, " channels-last": torch.channels_last}
    if device.type == "cuda":  # where it is known which is the faster
        layouts.pop(" channels-last" if is_vit else "")
    steps, first_loss = {}, 0.0
    for layout, memory_format in layouts.items():
        vit, resnet = torch_models.VisionTransformer, torch_models.ResNet18
        twin = vit.of(model.config) if is_vit else resnet(NUM_CLASSES)
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "weights.safetensors"
            save_weights(path, model, params, batch_stats)
            twin.load_state_dict(load_file(path))
        laid: Any = twin  # torch's types know no memory_format
        twin = laid.to(device, memory_format=memory_format)
        batch = inputs.contiguous(memory_format=memory_format), targets
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            first_loss = float(torch.nn.functional.cross_entropy(twin(batch[0]).float(), targets))
        for name, style in torch_models.styles(device, compile=compiled).items():
            network = torch_models.compiled(twin, style)
            steps[f"{name}{layout}"] = _torch_step(twin, network, *batch, mixed)
    return steps, first_loss


def _torch_step(
    twin: Any, network: Any, inputs: Any, targets: Any, mixed: bool = False
) -> Callable[[], Any]:
    """A step of `twin`, run as `network`, its compiled form perhaps, and with autocast if mixed."""
    import torch

    twin.train()
    optimizer = torch.optim.AdamW(
        twin.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True
    )

    def step() -> Any:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=mixed):
            loss = torch.nn.functional.cross_entropy(network(inputs).float(), targets)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
