"""What the images of a data set look like, by label and group."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fairjax.data import Dataset
from fairjax.data.augment import color_jitter, compose, random_resized_crop

_GALLERY_ROWS, _GALLERY_COLUMNS = 12, 6


def save_gallery(path: Path, data: Dataset) -> None:
    """Training samples per label x group, as they are and after augmentation, as a PNG."""
    from matplotlib.figure import Figure

    rows = data.splits["train"]
    cells = [
        (y, g, rows[(data.labels[rows] == y) & (data.group[rows] == g)][:_GALLERY_COLUMNS])
        for y in range(data.num_classes)
        for g in range(data.num_groups)
    ]
    cells = [cell for cell in cells if len(cell[2])][:_GALLERY_ROWS]
    augment = jax.jit(
        compose(
            random_resized_crop(data.inputs.shape[1], flip=0.5),
            color_jitter(brightness=0.2, contrast=0.2, saturation=0.2),
        )
    )
    side, gap = data.inputs.shape[1], 2
    width = 2 * _GALLERY_COLUMNS * (side + gap) + side // 2
    canvas = np.full((len(cells) * (side + gap), width, 3), 255, np.uint8)
    for i, (_, _, picked) in enumerate(cells):
        images = np.zeros((_GALLERY_COLUMNS, side, side, 3), np.uint8)
        images[: len(picked)] = data.inputs[picked]
        after = np.asarray(augment(jax.random.key(0), jnp.asarray(images)))
        after = np.round(255 * after).astype(np.uint8)
        top = i * (side + gap)
        for j in range(len(picked)):
            left = j * (side + gap)
            canvas[top : top + side, left : left + side] = images[j]
            left += width - _GALLERY_COLUMNS * (side + gap)
            canvas[top : top + side, left : left + side] = after[j]
    figure = Figure(figsize=(2 * _GALLERY_COLUMNS + 3, len(cells) + 0.8), dpi=100)
    axes = figure.subplots()
    axes.imshow(canvas)
    axes.set_xticks([])
    names = [f"{data.label_names[y]}, {data.group_names[g]}" for y, g, _ in cells]
    axes.set_yticks((np.arange(len(cells)) + 0.5) * (side + gap), names, fontsize=8)
    axes.set_frame_on(False)
    axes.set_title(f"{data.name}: as stored (left), augmented (right)", fontsize=9)
    figure.savefig(path, bbox_inches="tight")
