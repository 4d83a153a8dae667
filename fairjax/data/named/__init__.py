"""Named image sets, built from what their homes distribute or from MEDFAIR's prepared CSVs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from fairjax.data.dataset import Dataset
from fairjax.data.image_tables import ImageTable, image_dataset
from fairjax.data.named.faces import UTKFACE
from fairjax.data.named.recipe import Recipe, has_prepared, read_prepared, require_files
from fairjax.data.named.scans import CHEXPERT, GF3300, OASIS1, OL3I, PAPILA
from fairjax.data.named.skin import FITZPATRICK17K, FITZPATRICK17K_114, HAM10000, ISIC2019

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
    )
}

__all__ = ["RECIPES", "Recipe", "load_named", "read_named"]


def read_named(name: str, manual_dir: str | Path) -> tuple[Recipe, ImageTable]:
    """Recipe and table of a named set, nothing decoded yet.

    Raises:
      ValueError: no such set, or a file does not hold what it should.
      FileNotFoundError: files are missing; the message lists them.
    """
    if name not in RECIPES:
        raise ValueError(f"no data set {name!r}; there are {', '.join(RECIPES)}")
    recipe, folder = RECIPES[name], Path(manual_dir)
    if recipe.prepared is not None and has_prepared(folder):
        return recipe, read_prepared(recipe, folder)
    try:
        require_files(folder, recipe.files)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}; get them from {recipe.home} (licence to check: {recipe.licence})"
        ) from None
    return recipe, recipe.read(folder)


def load_named(
    name: str,
    manual_dir: str | Path,
    *,
    size: int,
    sensitive: str | Sequence[str] | None = None,
    unknown: Literal["drop", "group"] = "drop",
    on_error: Literal["error", "skip"] = "error",
    cache_dir: str | Path | None = None,
    allow_small_groups: bool = False,
) -> Dataset:
    """A named image set with its published label, groups and patient-level split.

    Args:
      name: one of `RECIPES`.
      manual_dir: folder with the downloaded files, see `RECIPES[name].files`, or with MEDFAIR's
        `new_{train,val,test}.csv`.
      size: side of the decoded images; see `cached_images`.
      sensitive: one attribute of the set or several; its first by default.
      unknown: see `load_image_table`; likewise `on_error` and `cache_dir`.
      on_error: see `cached_images`.
      cache_dir: see `cached_images`.
      allow_small_groups: see `load_image_table`.

    Returns:
      A `Dataset`, `inputs` uint8 `[N, size, size, 3]`.

    Raises:
      ValueError: no such set or attribute, or a file does not hold what it should.
      FileNotFoundError: files are missing; the message lists them.
    """
    recipe, table = read_named(name, manual_dir)
    names = (sensitive,) if isinstance(sensitive, str) else tuple(sensitive or recipe.sensitive)
    return image_dataset(
        table,
        names,
        size=size,
        unknown=unknown,
        window=recipe.window,
        array_key=recipe.array_key,
        on_error=on_error,
        cache_dir=cache_dir,
        allow_small_groups=allow_small_groups,
    )
