"""Images that an experiment trains on: drawn in memory, or read from files through the cache."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import jax
import numpy as np

from experiments.cli import Count, Range, Seed
from fairjax.data import Dataset
from fairjax.data.augment import (
    Transform,
    compose,
    normalize,
    random_flip,
    random_resized_crop,
)
from fairjax.data.image_tables import image_dataset
from fairjax.data.lesion_files import has_lesions, write_lesions
from fairjax.data.lesions import lesions_dataset, synthetic_lesions
from fairjax.data.named import load_named, read_named

Augment = Literal["flips", "crop"]


@dataclasses.dataclass(frozen=True)
class Data:
    """What to train on."""

    source: str = "lesions"
    """lesions: synthetic, drawn in memory; lesions_jpeg: the same as files; or a named set"""
    manual_dir: Path = Path(".")
    """folder with the downloaded files; of lesions_jpeg, drawn there where it holds none"""
    sensitive: tuple[str, ...] = ()
    """attributes that make the groups; the set's first by default"""
    cache_dir: Path | None = None
    """where decoded images are kept"""
    num_train: Annotated[int, Range(4)] = 400
    """images of the synthetic sets, multiples of 4: photographs of one lesion stay together"""
    num_val: Annotated[int, Range(4)] = 1200
    """dark skin is rare, so that a smaller split would hold too few malignant lesions on it"""
    num_test: Annotated[int, Range(4)] = 1200
    height: Count = 150
    """of the files of lesions_jpeg, which are 4 / 3 as wide"""
    balance: tuple[Literal["val", "test"], ...] = ()
    """splits that keep as many images of each group as the smallest has: what a metric within
    groups gains from more of the others is little"""
    seed: Seed = 0

    @property
    def sizes(self) -> dict[str, int]:
        """Images per split of the synthetic sets."""
        return {"train": self.num_train, "val": self.num_val, "test": self.num_test}


def load_data(data: Data, image_size: int, augment: Augment = "flips") -> Dataset:
    """The configured data set; whatever can be wrong with it is found here.

    Raises:
      ValueError: sizes, names or files that do not fit; FileNotFoundError: what is missing.
    """
    dataset = read_data(data, image_size, augment)
    for split in data.balance:
        dataset = balance(dataset, split)
    return dataset


def read_data(data: Data, image_size: int, augment: Augment) -> Dataset:
    """The data set as it comes."""
    # a random crop is taken from a little more than it keeps, 256 for 224
    size = image_size * 8 // 7 if augment == "crop" else image_size
    if data.source == "lesions":
        check_sizes(data)
        return drawn_lesions(data, size)
    if data.source == "lesions_jpeg":
        check_sizes(data)
        return lesion_files(data, size)
    return load_named(
        data.source,
        data.manual_dir,
        size=size,
        sensitive=data.sensitive or None,
        cache_dir=data.cache_dir,
    )


def balance(dataset: Dataset, split: str) -> Dataset:
    """The first rows of every group in a split, as many as the smallest group has."""
    rows = dataset.splits[split]
    group = dataset.group[rows]
    count = np.bincount(group, minlength=dataset.num_groups).min()
    kept = [rows[group == g][:count] for g in range(dataset.num_groups)]
    note = f"Kept {count} of each group in {split}, {count * len(kept)} of {len(rows)} rows."
    return dataclasses.replace(
        dataset,
        splits={**dataset.splits, split: np.sort(np.concatenate(kept))},
        notes=(*dataset.notes, note),
    )


def check_sizes(data: Data) -> None:
    """Raises ValueError for splits that would cut through a lesion."""
    for name, size in data.sizes.items():
        if size < 4 or size % 4:
            raise ValueError(f"--data.num-{name} must be a positive multiple of 4, got {size}")


def drawn_lesions(data: Data, size: int) -> Dataset:
    """Lesions of the target domain, cut into the configured splits."""
    dataset = lesions_dataset(jax.random.key(data.seed), sum(data.sizes.values()), size)
    ends = np.cumsum(list(data.sizes.values()))
    splits = {
        name: np.arange(end - size, end, dtype=np.int32)
        for (name, size), end in zip(data.sizes.items(), ends, strict=True)
    }
    return dataclasses.replace(dataset, splits=splits)


def lesion_files(data: Data, size: int) -> Dataset:
    """Synthetic lesions as files, groups by skin tone."""
    total = sum(data.sizes.values())
    if not has_lesions(data.manual_dir):
        shape = (data.height, data.height * 4 // 3)
        lesions = synthetic_lesions(jax.random.key(data.seed), total, shape)
        write_lesions(lesions, data.manual_dir)
    table = read_named("synthetic_lesions", data.manual_dir)[1]
    train, val, test = (count / total for count in data.sizes.values())
    return image_dataset(
        dataclasses.replace(table, name="lesions-jpeg", splits=None),
        data.sensitive or ("skin_tone",),
        size=size,
        split=(train, val, test),
        seed=data.seed,
        cache_dir=data.cache_dir,
    )


def make_augment(kind: Augment, image_size: int, mean: tuple, std: tuple) -> Transform:
    """What a training batch goes through, normalisation last."""
    if kind == "flips":
        changed = random_flip(horizontal=0.5, vertical=0.5)
    else:
        changed = random_resized_crop(image_size, flip=0.5)
    return compose(changed, normalize(mean, std))
