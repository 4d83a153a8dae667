"""Image sets from what was downloaded: decoded once, split, counted and shown.

    python -m experiments.prepare lesions --out lesions     draw synthetic lesions as JPEG files
    python -m experiments.prepare synthetic_lesions --manual-dir lesions
    python -m experiments.prepare fitzpatrick17k --manual-dir DIR --size 144 --tfds-dir DIR2

Names what is missing, or decodes into the cache that training reads, prints the counts of every
split x label x group and writes `splits/{train,val,test}.csv`, `gallery.png` and `summary.json`.
Interrupt and repeat as often as needed.
"""

import csv
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax

from experiments.cli import Count, Hidden, Seed, check_numbers, phase, settings, table
from experiments.files import write_atomically
from experiments.run import data_summary, main
from fairjax.data import SPLITS, Dataset
from fairjax.data.image_tables import ImageTable, image_dataset
from fairjax.data.lesion_files import check_folder, write_lesions
from fairjax.data.lesions import synthetic_lesions
from fairjax.data.named import RECIPES, Recipe, read_named
from fairjax.report import save_gallery


@dataclasses.dataclass(frozen=True)
class Lesions:
    """Synthetic lesions as JPEG files with a CSV and a mark that they are synthetic."""

    out: Path = Path("lesions")
    """folder to write, new or empty"""
    num_images: Count = 1000
    height: Count = 450
    width: Count = 600
    domain: Literal["target", "source"] = "target"
    seed: Seed = 0


@dataclasses.dataclass(frozen=True)
class Named:
    """A named set from its raw files."""

    about: Hidden
    name: Hidden
    manual_dir: Path = Path(".")
    """folder with the downloaded files"""
    out: Path | None = None
    """folder of the results; prepared/NAME by default"""
    size: Count = 72
    """side of the decoded images, a little more than the training crop"""
    sensitive: tuple[str, ...] = ()
    """attributes that make the groups; the set's first by default"""
    unknown: Literal["drop", "group"] = "drop"
    """rows whose attribute is unknown"""
    on_error: Literal["error", "skip"] = "error"
    """images that cannot be read"""
    seed: Seed = 0
    """of the split; 0 is the published one"""
    cache_dir: Path | None = None
    """where decoded images are kept"""
    allow_small_groups: bool = False
    """accept groups that have no rows in a split"""
    encoding: str | None = None
    """of the characters of its tables, such as cp1252; by default UTF-8, or UTF-16 by its mark"""
    tfds_dir: Path | None = None
    """also write a TensorFlow Dataset (array_record) below this folder"""


PRESETS: dict[str, Any] = {"lesions": Lesions()} | {
    name: Named(about=recipe.title, name=name) for name, recipe in RECIPES.items()
}


def prepare(config: Lesions | Named) -> Callable[[], None]:
    """Everything that can fail for bad input; what is returned prints and draws."""
    check_numbers(config)
    if isinstance(config, Lesions):
        return _prepare_lesions(config)
    if results_folder(config).resolve() == config.manual_dir.resolve():
        raise ValueError(f"--out must not be the folder of the raw files, {config.manual_dir}")
    phase(f"reading {config.name}")
    options = settings(config, ("seed", "on_error", "encoding"))
    recipe, table = read_named(config.name, config.manual_dir, **options)
    data = image_dataset(
        table,
        config.sensitive or recipe.sensitive,
        size=config.size,
        seed=config.seed,
        unknown=config.unknown,
        window=recipe.window,
        array_key=recipe.array_key,
        on_error=config.on_error,
        cache_dir=config.cache_dir,
        allow_small_groups=config.allow_small_groups,
    )
    return lambda: _finish(config, recipe, table, data)


def results_folder(config: Named) -> Path:
    """Where the splits, the gallery and the summary go."""
    return config.out if config.out is not None else Path("prepared") / config.name


def _prepare_lesions(config: Lesions) -> Callable[[], None]:
    check_folder(config.out)  # before drawing, which takes a while
    phase(f"drawing {config.num_images} images")
    lesions = synthetic_lesions(
        jax.random.key(config.seed),
        config.num_images,
        (config.height, config.width),
        config.domain,
    )
    path = write_lesions(lesions, config.out)
    return lambda: print(f"{len(lesions.labels)} synthetic images and {path}")


def _finish(config: Named, recipe: Recipe, table: ImageTable, data: Dataset) -> None:
    """Counts on stdout, files in the folder of results."""
    out = results_folder(config)
    (out / "splits").mkdir(parents=True, exist_ok=True)
    print(f"{recipe.title}\nlicence to check: {recipe.licence}; home: {recipe.home}")
    print(counts_table(data))
    for note in data.notes:
        print(note)
    for split in SPLITS:
        _write_split(out / "splits" / f"{split}.csv", config.manual_dir, table, data, split)
    save_gallery(out / "gallery.png", data)
    summary = data_summary(data)
    summary["cells"] = {split: data.cell_counts(split).tolist() for split in SPLITS}
    write_atomically(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    if config.tfds_dir is not None:
        from fairjax.data.named.builder import write_tfds

        print(write_tfds(recipe, dataclasses.replace(table, splits=data.splits), config.tfds_dir))
    print(f"wrote {out}/splits, {out}/gallery.png and {out}/summary.json")


def counts_table(data: Dataset) -> str:
    """Rows per split x label x group."""
    counts = {split: data.cell_counts(split) for split in SPLITS}
    rows = [
        [f"{label}, {group}", *(str(counts[split][y, g]) for split in SPLITS)]
        for y, label in enumerate(data.label_names)
        for g, group in enumerate(data.group_names)
    ]
    rows.append(["all", *(str(counts[split].sum()) for split in SPLITS)])
    return table(["label, group", *SPLITS], rows)


def _write_split(path: Path, root: Path, table: ImageTable, data: Dataset, split: str) -> None:
    """One split as a CSV that can be cited and read back by `load_image_table`."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "group", "id"])
        for row in data.splits[split]:
            image = table.paths[row]
            writer.writerow(
                [
                    image.relative_to(root) if image.is_relative_to(root) else image,
                    data.label_names[data.labels[row]],
                    data.group_names[data.group[row]],
                    image.stem if table.ids is None else table.ids[row],
                ]
            )


if __name__ == "__main__":
    main(prepare, PRESETS, description=__doc__ or "")
