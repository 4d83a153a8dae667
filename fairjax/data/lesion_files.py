"""Synthetic lesions as files that say what they are, and that no reader takes for a real set."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fairjax.data.lesions import GROUP_NAMES, LABEL_NAMES, Lesions

MARKER = "SYNTHETIC.md"
"""Lies beside images that were drawn and not photographed; readers of real sets refuse it."""

METADATA, IMAGES = "synthetic_lesions_metadata.csv", "synthetic_lesions_images"

_MARKER_TEXT = """\
# Synthetic images

The images in this folder were drawn by fairjax (`fairjax.data.synthetic_lesions`). They show no
patients, and results on them say nothing about real skin. Readers of real sets refuse this folder
because of this file.

contents: {contents}
"""


def write_lesions(lesions: Lesions, folder: str | Path, *, quality: int = 92) -> Path:
    """Write lesions as JPEG files, a CSV and a marker that says that they are synthetic.

    The CSV has the columns `image_id`, `lesion_id`, `diagnosis` (the recorded label), `skin_tone`,
    and `age` and `sex`, which are drawn at random from the number of the lesion, so that its
    photographs agree and equal lesions give equal files. `read_named("synthetic_lesions", folder)`
    reads them back.

    Nothing that is not ours is ever touched: the folder must be absent, empty, or hold these very
    lesions. Those are left as they are if they are whole, and completed after an interruption; the
    CSV is written last.

    Args:
      lesions: as from `synthetic_lesions`.
      folder: created where absent.
      quality: of the JPEG files, 1 to 95.

    Returns:
      Path of `synthetic_lesions_metadata.csv`; the images are in `synthetic_lesions_images`.

    Raises:
      ValueError: the folder holds anything else, or `quality` is out of range.
    """
    from PIL import Image

    if not 1 <= quality <= 95:
        raise ValueError(f"quality must be in [1, 95], got {quality}")
    folder = Path(folder)
    check_folder(folder)
    names = [f"synthetic_{row:07d}" for row in range(len(lesions.labels))]
    marker = _MARKER_TEXT.format(contents=_contents(lesions, quality))
    if (folder / MARKER).exists():
        if (folder / MARKER).read_text(encoding="utf-8") != marker:
            raise ValueError(
                f"{folder}: holds other synthetic images than these; choose another folder or "
                "remove it"
            )
        if has_lesions(folder) and all(
            (folder / IMAGES / f"{name}.jpg").exists() for name in names
        ):
            return folder / METADATA
    (folder / IMAGES).mkdir(parents=True, exist_ok=True)
    (folder / MARKER).write_text(marker, encoding="utf-8")
    for name, image in zip(names, lesions.images, strict=True):
        Image.fromarray(image).save(folder / IMAGES / f"{name}.jpg", quality=quality)
    partial = folder / f"{METADATA}.partial"
    partial.write_text("\n".join(_lines(lesions, names)) + "\n", encoding="utf-8")
    return partial.replace(folder / METADATA)


def check_folder(folder: str | Path) -> None:
    """Raises ValueError where a folder holds files that `write_lesions` has not written."""
    folder = Path(folder)
    if not folder.exists() or (folder / MARKER).is_file():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder}: is a file, expected a folder to write synthetic images into")
    found = next(iter(sorted(folder.iterdir())), None)
    if found is not None:
        raise ValueError(
            f"{folder}: holds files already ({found.name}); synthetic images are written only "
            "into a folder that is new or empty"
        )


def has_lesions(folder: str | Path) -> bool:
    """Whether a folder holds what `write_lesions` has written to the end."""
    return (Path(folder) / MARKER).is_file() and (Path(folder) / METADATA).is_file()


def refuse_synthetic(name: str, folders: Iterable[Path]) -> None:
    """Raises ValueError if any of the folders is marked as holding synthetic images."""
    for folder in folders:
        if (folder / MARKER).exists():
            raise ValueError(
                f"{folder}: holds synthetic images ({MARKER}), which are not {name}; read them as "
                "synthetic_lesions, or give the folder with the real files"
            )


def _lines(lesions: Lesions, names: list[str]) -> list[str]:
    """The lines of the CSV."""
    lines = ["image_id,lesion_id,diagnosis,skin_tone,age,sex"]
    for row, name in enumerate(names):
        lesion = int(lesions.lesion[row])
        draw = np.random.default_rng(lesion)
        sex, age = draw.choice(("male", "female")), 5 * draw.integers(1, 18)
        tone = GROUP_NAMES[lesions.group[row]].removesuffix(" skin")
        diagnosis = LABEL_NAMES[lesions.labels[row]]
        lines.append(f"{name},lesion_{lesion:07d},{diagnosis},{tone},{age},{sex}")
    return lines


def _contents(lesions: Lesions, quality: int) -> str:
    """Number, size and a hash of what is written, by which it is known again."""
    digest = hashlib.sha256(f"quality {quality}".encode())
    for array in (lesions.images, lesions.labels, lesions.group, lesions.lesion):
        digest.update(np.ascontiguousarray(array).data)
    count, height, width = lesions.images.shape[:3]
    return f"{count} images of {width} x {height}, {digest.hexdigest()[:16]}"
