"""Synthetic dermoscopy-like images with a known diagnosis, for demos, tests and benchmarks.

Nothing here is medical: the pictures imitate what makes skin-lesion sets hard (the ABCD signs
overlap between benign and malignant, pigment shows less on dark skin, dark skin is rare, labels
are noisy, hair and vignettes cover things) so that fairness methods can be tried without a
download. Results on them say nothing about real skin.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from fairjax.data.dataset import SPLITS, Dataset
from fairjax.data.lesion_drawing import MAX_COLOURS as MAX_COLOURS
from fairjax.data.lesion_drawing import Domain, Draws, draw_photo, draw_signs
from fairjax.data.splits import balance_groups, check_shares

GROUP_NAMES = ("light skin", "dark skin")
LABEL_NAMES = ("benign", "malignant")
SHAPE_NAMES = ("round", "oval", "irregular")
BORDER_NAMES = ("sharp", "blurred", "ragged")
DOMAINS = {
    "source": Domain(0.5, (0.5, 0.5), 0.0, hair=0.15, vignette=0.15, tint=0.02),
    "target": Domain(0.12, (0.3, 0.2), 0.02, hair=0.3, vignette=0.3, tint=0.05),
    "shortcut": Domain(0.5, (0.25, 0.75), 0.02, hair=0.3, vignette=0.3, tint=0.05),
}


class Lesions(NamedTuple):
    """Images and everything known about them; NumPy arrays with N rows."""

    images: Any
    """uint8 `[N, H, W, 3]`, sRGB."""
    labels: Any
    """int32, recorded diagnosis, indices into `LABEL_NAMES`; some are wrong."""
    group: Any
    """int32, indices into `GROUP_NAMES`."""
    diagnosis: Any
    """int32, the diagnosis the lesion was drawn from."""
    lesion: Any
    """int32, which lesion; a quarter of the images are second photographs of one."""
    ita: Any
    """float32, individual typology angle of the skin in degrees; low is dark."""
    shape: Any
    """int32, indices into `SHAPE_NAMES`."""
    colours: Any
    """int32 in `[0, MAX_COLOURS)`, number of pigment colours minus one."""
    border: Any
    """int32, indices into `BORDER_NAMES`."""


def synthetic_lesions(
    key: PRNGKeyArray, n: int, size: int | tuple[int, int] = 64, domain: str = "target"
) -> Lesions:
    """Draw dermoscopy-like images whose malignancy shows in shape, border, colour and diameter.

    Image i depends on `key`, i and the domain only, so a longer set begins with a shorter one and
    another size shows the same lesions. `domain="source"` is balanced and has clean labels;
    "target" has few dark-skin images, differing prevalence, noisy labels and more artefacts;
    "shortcut" has the noise and artefacts of "target" and as many images of either skin, but dark
    skin predicts malignancy: 75 % of its lesions are malignant, 25 % of those on light skin.

    Args:
      key: PRNG key.
      n: number of images, at least 1.
      size: pixels of a side, or (height, width); at least 16.
      domain: "source", "target" or "shortcut".

    Returns:
      `Lesions` of NumPy arrays with n rows.

    Raises:
      ValueError: an argument is out of range.

    Source: signs after the ABCD rule (Nachbar et al. 1994), skin colour after the individual
    typology angle (Chardon et al. 1991), pigment by Beer-Lambert absorption.

    >>> lesions = synthetic_lesions(jax.random.key(0), 4, size=16)
    >>> lesions.images.shape, lesions.lesion.tolist()  # the last two show the same lesion
    ((4, 16, 16, 3), [0, 1, 2, 2])
    """
    if domain not in DOMAINS:
        raise ValueError(f"domain must be one of {sorted(DOMAINS)}, got {domain!r}")
    return _draw_rows(key, [(n, DOMAINS[domain])], size)


def _draw_rows(
    key: jax.Array,
    pieces: list[tuple[int, Domain]],
    size: int | tuple[int, int],
    rows: np.ndarray | None = None,
) -> Lesions:
    """Images 0, 1, ...: up to the end that each piece names, its domain; pieces may be empty.

    With `rows` int32, ascending, only these of them.
    """
    n = pieces[-1][0]
    height, width = (size, size) if isinstance(size, int) else size
    if n < 1 or min(height, width) < 16:
        raise ValueError(f"n must be at least 1 and size at least 16, got {n} and {size}")
    # A fixed number per call: one compilation for any n, memory bounded by pixels.
    chunk = max(1, min(64, 2**20 // (height * width)))
    rows = np.arange(n, dtype=np.int32) if rows is None else rows
    parts, start = [], 0
    for end, domain in pieces:
        own = rows[(start <= rows) & (rows < end)]
        for first in range(0, len(own), chunk):
            some = own[first : first + chunk]
            part = _draw_chunk(key, np.resize(some, chunk), height, width, domain)
            parts.append(Lesions(*(np.asarray(field)[: len(some)] for field in part)))
        start = end
    return Lesions(*(np.concatenate(field) for field in zip(*parts, strict=True)))


@functools.partial(jax.jit, static_argnames=("height", "width"))
def _draw_chunk(
    key: jax.Array, rows: jax.Array, height: int, width: int, domain: Domain
) -> Lesions:
    """Images for the given row numbers; the domain is traced, so all share a compilation."""
    lesion = _lesion_of(rows)
    lesion_key, photo_key = jax.random.split(key)

    def draw(row, lesion):
        form = _form_of(lesion_key, lesion)
        signs = draw_signs(form, domain)
        photo = Draws(jax.random.fold_in(photo_key, row), 1024 + 3 * height * width)
        image = draw_photo(photo, form, signs, (height, width), domain)
        return Lesions(
            images=image,
            labels=signs["labels"],
            group=signs["group"],
            diagnosis=signs["diagnosis"],
            lesion=lesion.astype(jnp.int32),
            ita=signs["ita"],
            shape=signs["shape"],
            colours=signs["colours"],
            border=signs["border"],
        )

    return jax.vmap(draw)(rows, lesion)


def _lesion_of(rows: jax.Array) -> jax.Array:
    """Of every four images the last two show the same lesion."""
    return rows // 4 * 3 + jnp.minimum(rows % 4, 2)


def _form_of(key: jax.Array, lesion: jax.Array) -> Draws:
    """The random numbers of a lesion, whatever its photograph."""
    return Draws(jax.random.fold_in(key, lesion), 256)


def _draw_groups(key: jax.Array, n: int, domain: Domain) -> np.ndarray:
    """The groups of images 0, 1, ... without their photographs."""

    @jax.jit
    def draw(key, rows, domain):
        one = lambda lesion: draw_signs(_form_of(key, lesion), domain)["group"]
        return jax.vmap(one)(_lesion_of(rows))

    return np.asarray(draw(jax.random.split(key)[0], jnp.arange(n), domain))


def lesions_dataset(
    key: PRNGKeyArray,
    n: int,
    size: int | tuple[int, int] = 64,
    domain: str = "target",
    *,
    split: tuple[float, float, float] = (0.6, 0.2, 0.2),
    strength: float | None = None,
    balance: Sequence[str] = (),
) -> Dataset:
    """Lesions as a `Dataset`, split by lesion: recorded labels, skin groups.

    Images are those of `synthetic_lesions`, but for the test split of the domain "shortcut": there
    50 % of the lesions are malignant on either skin, so the shortcut of train and val fails.

    Args:
      key: PRNG key.
      n: number of images.
      size: pixels of a side, or (height, width); at least 16.
      domain: as of `synthetic_lesions`.
      split: shares of train, val and test; image rows in this order.
      strength: of "shortcut" only, in [0.5, 1): share of malignant lesions on dark skin in train
        and val, 1 - `strength` on light skin; 0.5 is no shortcut, None is 0.75.
      balance: splits of which only what `balance_groups` keeps is drawn.

    Returns:
      A `Dataset` named "lesions-" and the domain; `inputs` are uint8 `[n, H, W, 3]`, or fewer.

    Raises:
      ValueError: an argument is out of range, or `strength` is given for another domain.

    >>> data = lesions_dataset(jax.random.key(0), 40, size=16)
    >>> data.inputs.shape, data.group_names, len(data.splits["train"])
    ((40, 16, 16, 3), ('light skin', 'dark skin'), 24)
    """
    check_shares(split)
    if domain not in DOMAINS:
        raise ValueError(f"domain must be one of {sorted(DOMAINS)}, got {domain!r}")
    if strength is not None and not (domain == "shortcut" and 0.5 <= strength < 1):
        raise ValueError(
            f"strength must be in [0.5, 1), of the domain 'shortcut', got {strength} of {domain!r}"
        )
    # Lesions are drawn independently, so cutting their sequence is a random split by lesion.
    num_lesions = n // 4 * 3 + min(n % 4, 3)  # of four images the last two show one lesion
    cuts = [math.ceil(num_lesions * share - 1e-6) for share in np.cumsum(split)[:2]]
    ends = [*(min(cut // 3 * 4 + cut % 3, n) for cut in cuts), n]
    drawn, notes = DOMAINS[domain], ["synthetic images, no patients"]
    pieces = [(n, drawn)]
    if domain == "shortcut":
        share = drawn.malignant[1] if strength is None else strength
        light, dark = (f"{100 * p:g} %" for p in (1 - share, share))
        notes.append(
            f"shortcut: in train and val {dark} of the lesions on dark skin and {light} on light "
            "skin are malignant, in test 50 % on either"
        )
        biased, fair = (drawn._replace(malignant=(1 - p, p)) for p in (share, 0.5))
        pieces = [(ends[1], biased), (n, fair)]
    plan = Dataset(  # without images: who balances needs groups alone
        name=f"lesions-{domain}",
        inputs=np.zeros((n, 0), np.uint8),
        labels=np.zeros(n, np.int32),
        group=_draw_groups(key, n, drawn) if balance else np.zeros(n, np.int32),
        label_names=LABEL_NAMES,
        group_names=GROUP_NAMES,
        splits={
            name: np.arange(start, end, dtype=np.int32)
            for name, start, end in zip(SPLITS, (0, *ends[:2]), ends, strict=True)
        },
        notes=tuple(notes),
    )
    for name in balance:
        plan = balance_groups(plan, name)
    rows = np.concatenate([plan.splits[name] for name in SPLITS])  # ascending, as the splits are
    lesions = _draw_rows(key, pieces, size, rows)
    return dataclasses.replace(
        plan,
        inputs=lesions.images,
        labels=lesions.labels,
        group=lesions.group,
        splits={
            name: np.searchsorted(rows, kept).astype(np.int32) for name, kept in plan.splits.items()
        },
        ids=lesions.lesion,
        fixed_test=domain == "shortcut",  # its test images are drawn otherwise
    )
