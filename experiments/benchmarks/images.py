"""Reading, serving and augmenting images: fairjax beside torchvision and its DataLoader."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.cli import phase
from experiments.timing import claim, compile_seconds, paired
from fairjax.data import augment
from fairjax.data.cache import cached_images
from fairjax.data.lesion_files import write_lesions
from fairjax.data.lesions import synthetic_lesions
from fairjax.models import image_preprocess

STORED, SIZE, BATCH = 72, 64, 64


def claims(quick: bool = False) -> Iterator[dict[str, Any]]:
    """Rows for decoding, serving, starting a second time and augmenting."""
    from experiments.baselines import torch_images

    count, repeats = (64, 1) if quick else (1000, 3)
    with tempfile.TemporaryDirectory() as folder:
        phase("drawing and writing photographs")
        raw = Path(folder) / "raw"
        # A few distinct pictures suffice: what counts is bytes and pixels per file.
        lesions = synthetic_lesions(jax.random.key(0), 8 if quick else 40, (450, 600))
        rows = np.arange(count) % len(lesions.labels)
        write_lesions(type(lesions)(*(field[rows] for field in lesions)), raw)
        paths = sorted(raw.glob("*/*.jpg"))
        cache = Path(folder) / "cache"
        yield _decode(paths, cache, torch_images, repeats)
        yield _serve(paths, cache, torch_images, repeats)
        yield _second_start(Path(folder), torch_images, 200 if quick else 20_000, repeats)
    yield _augment(torch_images, 8 if quick else 128, repeats)


def _drain(batches: Any) -> Callable[[], int]:
    """A function that runs through one epoch and counts the images."""
    return lambda: sum(len(batch) for batch in batches)


def _decode(paths: list[Path], cache: Path, theirs: Any, repeats: int) -> dict[str, Any]:
    workers = os.cpu_count() or 1

    def ours() -> np.ndarray:
        shutil.rmtree(cache, ignore_errors=True)
        return cached_images(paths, STORED, cache_dir=cache)[0]

    transform = theirs.decode_and_resize(STORED)
    batches = theirs.loader(paths, transform, batch_size=BATCH, num_workers=workers)
    times = paired(ours, _drain(batches), repeats=repeats)
    pixels = cached_images(paths, STORED, cache_dir=cache)[0]
    reference = np.stack([theirs.ImageFiles(paths, transform)[i].numpy() for i in range(8)])
    error = np.abs(pixels[:8] - reference.transpose(0, 2, 3, 1).astype(np.float32)).mean()
    return claim(
        "decode_vs_torchvision",
        times,
        quality={
            "ours": {"mean_abs_difference_of_pixels": float(error)},
            "theirs": {},
        },
        notes=(
            f"{len(paths)} JPEGs of 600 x 450 to {STORED} x {STORED} uint8, {workers} workers on "
            "both sides (kept alive, start-up untimed); ours also writes the cache"
        ),
    )


def _serve(paths: list[Path], cache: Path, theirs: Any, repeats: int) -> dict[str, Any]:
    workers = os.cpu_count() or 1
    images = jnp.asarray(cached_images(paths, STORED, cache_dir=cache)[0])
    transform = augment.compose(augment.random_crop(SIZE), augment.random_flip())
    normalize = image_preprocess(SIZE, theirs.MEAN, theirs.STD)

    @jax.jit
    def batch(key: jax.Array, images: jax.Array, rows: jax.Array) -> jax.Array:
        return normalize(transform(key, images[rows]))

    key = jax.random.key(0)
    draw = np.random.default_rng(0)

    def ours() -> None:
        order = draw.permutation(len(images)).astype(np.int32)
        for step in range(len(images) // BATCH):
            rows = order[step * BATCH : (step + 1) * BATCH]
            jax.block_until_ready(batch(jax.random.fold_in(key, step), images, rows))

    compile_s = compile_seconds(batch, key, images, np.zeros(BATCH, np.int32))
    batches = theirs.loader(
        paths, theirs.train_transform(STORED, SIZE), batch_size=BATCH, num_workers=workers
    )
    times = paired(ours, _drain(batches), repeats=repeats)
    return claim(
        "serve_vs_torchvision",
        times,
        compile_s=compile_s,
        notes=(
            f"an epoch of {len(paths)} images from the second on: random crop {SIZE} of {STORED}, "
            f"flip, normalise, batches of {BATCH}; torchvision decodes again, as its users do"
        ),
    )


def _second_start(folder: Path, theirs: Any, count: int, repeats: int) -> dict[str, Any]:
    """From nothing in memory to the first batch, when the images were decoded earlier."""
    lesions = synthetic_lesions(jax.random.key(0), 8, 96)
    write_lesions(lesions, folder / "few")
    few = sorted((folder / "few").glob("*/*.jpg"))
    many = folder / "many"
    many.mkdir()
    for i in range(count):
        os.link(few[i % len(few)], many / f"{i:05d}.jpg")
    paths, cache = sorted(many.iterdir()), folder / "second"
    cached_images(paths, STORED, cache_dir=cache)
    rows = np.random.default_rng(0).permutation(count)[:BATCH]

    def ours() -> jax.Array:
        return jnp.asarray(cached_images(paths, STORED, cache_dir=cache)[0][rows])

    def first_batch() -> Any:
        workers = os.cpu_count() or 1
        transform = theirs.decode_and_resize(STORED)
        return next(iter(theirs.loader(paths, transform, batch_size=BATCH, num_workers=workers)))

    return claim(
        "cache_second_start",
        paired(ours, first_batch, repeats=repeats),
        notes=(
            f"seconds to the first batch of {BATCH} from {count} images of {STORED} x {STORED} "
            "that an earlier run cached; PyTorch starts its workers and decodes that batch"
        ),
    )


def _augment(theirs: Any, count: int, repeats: int) -> dict[str, Any]:
    import torch

    stored, size = 256, 224
    pixels = np.random.default_rng(0).integers(0, 256, (count, stored, stored, 3), dtype=np.uint8)
    crop = augment.compose(augment.random_resized_crop(size, flip=0.5))
    normalize = image_preprocess(size, theirs.MEAN, theirs.STD)
    transform = jax.jit(lambda key, images: normalize(crop(key, images)))
    key, images = jax.random.key(0), jnp.asarray(pixels)
    tensors = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    pipeline = theirs.resized_crop_pipeline(size)
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    compile_s = compile_seconds(transform, key, images)
    times = paired(
        lambda: transform(key, images),
        lambda: torch.stack([pipeline(image) for image in tensors]),
        repeats=5 * repeats,
    )
    torch.set_num_threads(threads)
    analysis: Any = transform.lower(key, images).compile().cost_analysis()
    return claim(
        "augment_vs_torchvision",
        times,
        compile_s=compile_s,
        quality={"ours": {"gflop_per_image": analysis["flops"] / count / 1e9}, "theirs": {}},
        notes=(
            f"{count} decoded images of {stored} x {stored}: random resized crop to {size}, flip, "
            "normalise, parameters drawn per image; torchvision v2 on uint8 tensors"
        ),
    )
