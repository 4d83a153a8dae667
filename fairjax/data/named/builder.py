"""Named sets as TensorFlow Datasets (array_record files, no TensorFlow)."""

import io
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from fairjax.data.decode import decode_image, upright_png
from fairjax.data.image_tables import ImageTable
from fairjax.data.named.recipe import Recipe

_COPIED = (".jpg", ".jpeg", ".png")
_ARRAY_SIZE = 256


class NamedImages(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Images as they are on disk, with label, attributes and split of a recipe.

    JPEG and PNG files are copied byte by byte, unless EXIF turns them or they have more than 8
    bits: those become upright PNGs. Arrays and GIFs become PNGs of 256 pixels a side.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, recipe: Recipe, table: ImageTable, **kwargs: Any):
        """Keep the recipe and its table, which is read before the builder is made."""
        self._recipe, self._table = recipe, table
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features: dict[str, Any] = {
            "image": tfds.features.Image(),
            "label": tfds.features.ClassLabel(names=list(self._table.label_names)),
            "id": tfds.features.Text(),
        }
        for name, column in self._table.attributes.items():
            names = [*column.values, "unknown"]
            features[name] = tfds.features.ClassLabel(names=names)
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self._recipe.title} Licence to check: {self._recipe.licence}.",
            homepage=self._recipe.home,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # files lie where the user has put them
        splits = self._table.splits or {}
        return {split: self._generate_examples(rows) for split, rows in splits.items()}

    def _generate_examples(self, rows: Any) -> Any:
        table = self._table
        for row in map(int, rows):
            path = table.paths[row]
            example = {
                "image": self._image(path),
                "label": int(table.labels[row]),
                "id": path.stem if table.ids is None else str(table.ids[row]),
            }
            for name, column in table.attributes.items():
                code = int(column.codes[row])
                example[name] = len(column.values) if code < 0 else code
            yield row, example

    def _image(self, path: Path) -> str | io.BytesIO:
        """The file, or a PNG that looks as our own readers decode it."""
        from PIL import Image

        if path.suffix.lower() in _COPIED:
            png = upright_png(path, self._recipe.window)
            return str(path) if png is None else io.BytesIO(png)
        pixels = decode_image(
            path, _ARRAY_SIZE, window=self._recipe.window, array_key=self._recipe.array_key
        )
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format="PNG")
        file.seek(0)
        return file


def write_tfds(recipe: Recipe, table: ImageTable, data_dir: str | Path) -> Path:
    """Write a named set below `data_dir`; read it with `tfds.builder_from_directory`.

    A set that is there already is left as it is; an interrupted one is started again.

    Returns:
      The folder of the finished set.
    """
    kind = type(
        f"Fairjax{recipe.name.title().replace('_', '')}",
        (NamedImages,),
        {
            "name": f"fairjax_{recipe.name}",
            "MANUAL_DOWNLOAD_INSTRUCTIONS": f"Put {', '.join(recipe.files)} from {recipe.home} "
            "into the manual directory.",
            "__module__": __name__,
        },
        skip_registration=True,
    )
    builder = kind(recipe=recipe, table=table, data_dir=str(data_dir))
    builder.download_and_prepare()
    return Path(builder.data_dir)
