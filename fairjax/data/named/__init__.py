"""Named image sets, built from what their homes distribute or from MEDFAIR's prepared CSVs."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from fairjax.data.dataset import Dataset
from fairjax.data.image_tables import ImageTable, image_dataset
from fairjax.data.lesion_files import refuse_synthetic
from fairjax.data.named.faces import UTKFACE
from fairjax.data.named.recipe import Recipe as Recipe
from fairjax.data.named.recipe import (
    check_present,
    has_files,
    has_prepared,
    read_prepared,
    require_files,
)
from fairjax.data.named.scans import CHEXPERT, GF3300, OASIS1, OL3I, PAPILA
from fairjax.data.named.skin import (
    FITZPATRICK17K,
    FITZPATRICK17K_114,
    HAM10000,
    ISIC2019,
    SYNTHETIC_LESIONS,
)
from fairjax.data.rawtable import short_errors

RECIPES = {
    recipe.name: recipe
    for recipe in (
        HAM10000,
        FITZPATRICK17K,
        FITZPATRICK17K_114,
        PAPILA,
        OL3I,
        OASIS1,
        CHEXPERT,
        GF3300,
        ISIC2019,
        UTKFACE,
        SYNTHETIC_LESIONS,
    )
}

_SEEDS = 2**32  # scikit-learn takes seeds below this


@short_errors()
def read_named(
    name: str,
    manual_dir: str | Path,
    *,
    seed: int = 0,
    on_error: Literal["error", "skip"] = "error",
    encoding: str | None = None,
) -> tuple[Recipe, ImageTable]:
    """Recipe and table of a named set, nothing decoded yet.

    Args:
      name: one of `RECIPES`.
      manual_dir: folder with the downloaded files, or with the one folder that has them.
      seed: added to the seeds of the published split: 0 gives that split, any other number one
        that is drawn in the same way. Splits that come with the files stay as they are.
      on_error: "skip" leaves absent images in the table, for `cached_images` to skip and count.
      encoding: of the characters of its tables, as Python names it ("cp1252" for old Windows
        files); by default UTF-8, or UTF-16 by its mark.

    Raises:
      ValueError: no such set, a file does not hold what it should, or the folder holds synthetic
        images that pose as a real set.
      FileNotFoundError: files are missing; the message lists them.
    """
    if name not in RECIPES:
        raise ValueError(f"no data set {name!r}; there are {', '.join(RECIPES)}")
    if not 0 <= seed < _SEEDS:
        raise ValueError(f"seed must be a whole number in [0, 2**32), got {seed}")
    recipe, given = RECIPES[name], Path(manual_dir)
    folder = _folder_of(recipe, given)
    if recipe is not SYNTHETIC_LESIONS:
        refuse_synthetic(name, (folder,))
    if recipe.prepared is not None and has_prepared(folder):
        table, seeds = read_prepared(recipe, folder, encoding), None
    else:
        try:
            require_files(folder, recipe.files)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{error}; get them from {recipe.home} (licence to check: {recipe.licence})"
            ) from None
        first, second = recipe.seeds or (0, 0)
        seeds = (first + seed) % _SEEDS, (second + seed) % _SEEDS
        table = recipe.read(folder, seeds, encoding)
    if on_error == "error":
        check_present(table)
    if folder != given:
        notes = (f"The files lie one folder deeper, in {folder.name}.", *table.notes)
        table = dataclasses.replace(table, notes=notes)
    if recipe is not SYNTHETIC_LESIONS:
        holders = {path.parent for path in table.paths}
        below = {f for p in holders for f in (p, *p.parents) if f.is_relative_to(folder)}
        refuse_synthetic(name, sorted(below))
    if seed and table.splits is not None:
        drawn = f"The split is drawn with seeds {seeds}, not the published {recipe.seeds}."
        given = f"The split comes with the files; seed {seed} changes nothing."
        note = drawn if seeds is not None and recipe.seeds is not None else given
        table = dataclasses.replace(table, notes=(*table.notes, note))
    return recipe, table


def _folder_of(recipe: Recipe, folder: Path) -> Path:
    """The folder, or the only one inside it that holds all files where it holds none itself."""
    if not folder.is_dir() or has_prepared(folder) or has_files(folder, recipe.files):
        return folder
    inside = [each for each in sorted(folder.iterdir()) if each.is_dir()]
    fitting = [each for each in inside if has_prepared(each) or has_files(each, recipe.files)]
    return fitting[0] if len(fitting) == 1 else folder


@short_errors()
def load_named(
    name: str,
    manual_dir: str | Path,
    *,
    size: int = 256,
    sensitive: str | Sequence[str] | None = None,
    seed: int = 0,
    unknown: Literal["drop", "group"] = "drop",
    on_error: Literal["error", "skip"] = "error",
    cache_dir: str | Path | None = None,
    allow_small_groups: bool = False,
    encoding: str | None = None,
) -> Dataset:
    """A named image set with its published label, groups and patient-level split.

    Args:
      name: one of `RECIPES`.
      manual_dir: folder with the downloaded files, see `RECIPES[name].files`, or with MEDFAIR's
        `new_{train,val,test}.csv`.
      size: side of the decoded images in pixels; see `load_image_table`.
      sensitive: one attribute of the set or several; its first by default.
      seed: of the split, 0 for the published one; see `read_named`.
      unknown: see `load_image_table`; likewise `on_error` and `cache_dir`.
      on_error: see `cached_images`.
      cache_dir: see `cached_images`.
      allow_small_groups: see `load_image_table`.
      encoding: see `read_named`.

    Returns:
      A `Dataset`, `inputs` uint8 `[N, size, size, 3]`.

    Raises:
      ValueError: no such set or attribute, or a file does not hold what it should.
      FileNotFoundError: files are missing; the message lists them.
    """
    recipe, table = read_named(name, manual_dir, seed=seed, on_error=on_error, encoding=encoding)
    names = (sensitive,) if isinstance(sensitive, str) else tuple(sensitive or recipe.sensitive)
    return image_dataset(
        table,
        names,
        size=size,
        seed=seed,
        unknown=unknown,
        window=recipe.window,
        array_key=recipe.array_key,
        on_error=on_error,
        cache_dir=cache_dir,
        allow_small_groups=allow_small_groups,
    )
