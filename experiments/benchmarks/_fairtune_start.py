"""What both sides of the FairTune benchmark start from; no benchmark of its own."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fairjax.data import Dataset
from fairjax.data.cache import cached_images
from fairjax.data.lesion_files import write_lesions
from fairjax.data.lesions import GROUP_NAMES, LABEL_NAMES, lesions_dataset, synthetic_lesions
from fairjax.fairtune import MaskSpace, mask_space
from fairjax.models import Model, image_model
from fairjax.train import Recipe, fit, init_fit, start_train
from fairjax.train.recipe import Dtype

SPACE = "norm_attn_mlp"
WEIGHT_DECAY = 0.01


class Sizes(NamedTuple):
    """How large everything is."""

    photo: tuple[int, int] = (450, 600)
    domain: str = "shortcut"
    """half of the images show dark skin: enough of either to tell two searches apart"""
    num_train: int = 640
    num_val: int = 1216
    num_source: int = 1600
    image_size: int = 64
    stored: int = 128
    """side of the decoded images that ours keeps, so that random crops have pixels to choose"""
    num_trials: int = 32
    num_slots: int = 8
    num_epochs: int = 9
    batch_size: int = 32
    network: tuple[tuple[str, int], ...] = ()
    dtype: Dtype = "float32"
    populations: tuple[int, ...] = (1, 4, 16, 64)


FULL = Sizes()
QUICK = Sizes(
    photo=(32, 32),
    domain="source",
    num_train=32,
    num_val=48,
    num_source=32,
    image_size=32,
    stored=40,
    num_trials=4,
    num_slots=2,
    num_epochs=3,
    batch_size=16,
    network=(("width", 12), ("depth", 2), ("num_heads", 3)),
    populations=(1,),
)


class Start(NamedTuple):
    """What both sides start from."""

    sizes: Sizes
    model: Model
    params: Any
    paths: list[Path]
    labels: np.ndarray
    group: np.ndarray
    folder: Path

    @property
    def space(self) -> MaskSpace:
        return mask_space(self.params, SPACE)

    @property
    def recipe(self) -> Recipe:
        """How all of ours train; AdamW and a cosine, as the twin."""
        sizes = self.sizes
        return Recipe(
            num_epochs=sizes.num_epochs,
            batch_size=sizes.batch_size,
            weight_decay=WEIGHT_DECAY,
            dtype=sizes.dtype,
        )

    def read(self, size: int, num_train: int, num_val: int = 0) -> Dataset:
        """The first files, decoded and shrunk to `size`, train; the next ones validate."""
        num_rows = num_train + num_val
        with tempfile.TemporaryDirectory(dir=self.folder) as cache:
            images = np.asarray(cached_images(self.paths[:num_rows], size, cache_dir=cache)[0])
        arrays = images, self.labels[:num_rows], self.group[:num_rows]
        splits = _splits(num_train, num_val)
        return Dataset("files", *arrays, LABEL_NAMES, GROUP_NAMES, splits)


def _splits(num_train: int, num_val: int) -> dict[str, np.ndarray]:
    """The first rows train, the next ones validate."""
    rows = np.arange(num_train + num_val, dtype=np.int32)
    return {"train": rows[:num_train], "val": rows[num_train:], "test": rows[:0]}


def make_start(sizes: Sizes, folder: Path) -> Start:
    """Files of lesions, and a network pre-trained for a few epochs on the source."""
    num_images = sizes.num_train + sizes.num_val
    # drawn at half the side, in a quarter of the time: what counts is that files are this large
    half = sizes.photo[0] // 2, sizes.photo[1] // 2
    drawn = synthetic_lesions(jax.random.key(0), num_images, half, sizes.domain)
    photos = drawn.images.repeat(2, axis=1).repeat(2, axis=2)
    write_lesions(drawn._replace(images=photos), folder / "raw")
    paths = sorted((folder / "raw").glob("*/*.jpg"))
    network = {"image_size": sizes.image_size, **dict(sizes.network)}
    model = image_model("vit_tiny_patch16_224", 2, **network)
    params, _ = jax.jit(model.init)(jax.random.key(0))
    params = _pretrained(sizes, model, params)
    return Start(sizes, model, params, paths, drawn.labels, drawn.group, folder)


def _pretrained(sizes: Sizes, model: Model, params: Any) -> Any:
    """The parameters after four epochs on all images of the source."""
    drawn = lesions_dataset(jax.random.key(1), sizes.num_source, sizes.image_size, "source")
    source = dataclasses.replace(drawn, splits=_splits(sizes.num_source, 0))
    recipe = Recipe(
        num_epochs=4, batch_size=sizes.batch_size, learning_rate=5e-4, weight_decay=0.05
    )
    sampler = recipe.make_sampler(source)
    optimizer = recipe.make_optimizer(sampler.batches_per_epoch)
    step = recipe.make_step(model, optimizer, source)
    state = init_fit(start_train(params, {}, optimizer), sampler, jax.random.key(0))
    pretrain = jax.jit(lambda state, data: fit(step, state, data, sampler, num_epochs=4))
    state, _ = pretrain(state, jax.tree.map(jnp.asarray, source.examples("train")))
    return state.train.params
