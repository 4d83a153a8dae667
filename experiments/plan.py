"""How many FairTune candidates fit on a device, asked of the compiler before anything is bought.

    python -m experiments.plan                                   this machine; seconds
    python -m experiments.plan tpu                               one TPU v5e chip; needs libtpu
    python -m experiments.plan tpu --device v6e:2x2 --space full --batch-size 16

For a TPU no TPU is needed, only `pip install libtpu`: the very program that `experiments.fairtune`
runs, a population that trains and validates, is compiled for the chip and its memory read off. The
answer was compiled, not extrapolated.
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any

import jax
import numpy as np

from experiments import cli
from experiments.data import Augment, make_augment
from experiments.run import main
from fairjax.data import Dataset
from fairjax.fairtune import MaskSearch, mask_search
from fairjax.memory import find_device, free_bytes, gib, hbm_bytes, largest_fit, program_bytes
from fairjax.models import Weights, image_model
from fairjax.optimizers import Optimizer
from fairjax.train import Recipe
from fairjax.train.recipe import Dtype


@dataclasses.dataclass(frozen=True)
class Config:
    """Memory of a population of candidates."""

    about: cli.Hidden = ""
    device: str = "here"
    """"here", or a TPU slice such as v4:2x2x1, v5e:2x2, v5p:2x2x1, v6e:2x2"""
    model: str = "vit_base_patch16_224"
    image_size: cli.Count = 224
    space: str = "norm"
    """mask space of `experiments.fairtune`: fewer parameters to tune, more candidates"""
    num_classes: Annotated[int, cli.Range(2)] = 2
    num_groups: Annotated[int, cli.Range(2)] = 2
    num_images: Annotated[int, cli.Range(8)] = 10_000
    """training images that lie on the device, uint8"""
    num_val: Annotated[int, cli.Range(8)] = 1000
    """validation images that lie beside them"""
    augment: Augment = "crop"
    """see `experiments.fairtune`; crops are cut from images that are 8 / 7 as large"""
    objective: str = "worst_group_auc"
    batch_size: cli.Count = 32
    num_epochs: cli.Count = 1
    """before candidates are first compared"""
    optimizer: Optimizer = "adamw"
    dtype: Dtype = "bfloat16"
    """of activations and products"""
    checkpoint_blocks: bool = True
    """recompute blocks in the backward pass: a third more work, much less memory"""
    max_candidates: cli.Count = 256
    """more than this are not asked for"""


PRESETS = {
    "here": Config(about="the device that JAX finds on this machine"),
    "tpu": Config(about="one chip of a TPU v5e, without a TPU", device="v5e:2x2"),
    "smoke": Config(
        about="seconds, for tests",
        model="vit_micro",
        image_size=16,
        num_images=64,
        num_val=16,
        batch_size=8,
        max_candidates=4,
    ),
}


def prepare_run(config: Config):
    """Check everything; returns the function that compiles."""
    cli.check_numbers(config)
    device, num_devices = find_device(config.device)
    search = make_search(config)
    lower = lambda count: search.lower(count, device)
    available = hbm_bytes(device) if config.device != "here" else free_bytes()
    return lambda: report(config, lower, available, device.device_kind, num_devices)


def make_search(config: Config) -> MaskSearch:
    """The search that `experiments.fairtune` runs, on shapes alone: no weights, no images."""
    model = image_model(config.model, config.num_classes, image_size=config.image_size)
    params, batch_stats = jax.eval_shape(model.init, jax.random.key(0))
    size = config.image_size * 8 // 7 if config.augment == "crop" else config.image_size
    counts = {"train": config.num_images, "val": config.num_val, "test": 0}
    ends = np.cumsum(list(counts.values()))
    rows = np.arange(ends[-1], dtype=np.int32)
    data = Dataset(
        name="shapes",
        inputs=np.broadcast_to(np.uint8(0), (len(rows), size, size, 3)),
        labels=rows % config.num_classes,
        group=rows // config.num_classes % config.num_groups,
        label_names=tuple(map(str, range(config.num_classes))),
        group_names=tuple(map(str, range(config.num_groups))),
        splits={
            split: rows[end - count : end]
            for (split, count), end in zip(counts.items(), ends, strict=True)
        },
    )
    recipe = Recipe(
        num_epochs=config.num_epochs,
        batch_size=config.batch_size,
        optimizer=config.optimizer,
        dtype=config.dtype,
        checkpoint_blocks=config.checkpoint_blocks,
        augment=make_augment(config.augment, config.image_size),
    )
    return mask_search(
        model,
        Weights(params, batch_stats, ()),
        data,
        recipe,
        key=jax.random.key(0),
        space=config.space,
        objective=config.objective,
        search="random",
        num_slots=1,
    )


def report(
    config: Config, lower: Callable[[int], Any], available: int, kind: str, num_devices: int
) -> None:
    """Find the largest population and print what it needs."""

    def cost(num_candidates: int) -> float:
        cli.say(f"compiling for {num_candidates}")
        try:
            return program_bytes(lower(num_candidates))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" in str(error):
                return float("inf")
            raise

    fits = largest_fit(cost, available, config.max_candidates)
    most = max(fits)
    rows = [[str(size), gib(fits[size])] for size in sorted(fits)]
    print(cli.table(["candidates at a time", "GiB of one device"], rows))
    if most > 1:
        each = (fits[most] - fits[1]) / (most - 1)
        print(f"\n{each / 2**20:.1f} MiB for every further candidate")
    limit = " (as far as --max-candidates)" if most == config.max_candidates else ""
    print(
        f"\n{most} candidates{limit} of {config.model}, space {config.space}, batch "
        f"{config.batch_size}, train at the same time on one {kind} of {gib(available)} GiB; "
        f"{most * num_devices} on {num_devices}. Larger populations go through in chunks."
    )


if __name__ == "__main__":
    main(prepare_run, PRESETS, description=__doc__ or "")
