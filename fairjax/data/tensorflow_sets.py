"""TensorFlow data sets that lie prepared as array_record files, read without TensorFlow."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from fairjax.data.attributes import AGE_CUTS
from fairjax.data.cache import cached_images
from fairjax.data.csvfile import Column, join, show
from fairjax.data.dataset import Dataset
from fairjax.data.image_tables import Ratios, annotate, image_dataset
from fairjax.data.prepared_sets import (
    OURS,
    check_image,
    is_scalar,
    kind_of,
    matches,
    names_of,
    open_set,
    path_of,
    paths_of,
    pictures_of,
    read_splits_of,
)
from fairjax.data.rawtable import short_errors
from fairjax.data.tables import assemble
from fairjax.data.values import MISSING, UNKNOWN, key


@short_errors()
def load_tfds(
    name: str,
    *,
    label: str,
    sensitive: str | Sequence[str],
    data_dir: str | Path | None = None,
    size: int = 256,
    image: str = "image",
    positive: str | int | None = None,
    id_column: str | None = None,
    split: Ratios = (0.6, 0.2, 0.2),
    seed: int = 0,
    unknown: Literal["drop", "group"] = "drop",
    age_cuts: Sequence[float] | None = None,
    window: tuple[float, float] | None = None,
    on_error: Literal["error", "skip"] = "error",
    cache_dir: str | Path | None = None,
    allow_small_groups: bool = False,
    not_missing: Sequence[str] = (),
) -> Dataset:
    """Images of a TensorFlow data set that is prepared as array_record; no TensorFlow is needed.

    Features inside others are named by their path, `attributes/Male`, or by its end, `Male`, where
    that is the only one. Names and order of classes and groups are those of a `ClassLabel`; a truth
    value is "Male" or "not Male"; class -1 means that there is no label.

    The splits of the set stay as they are (train; val, valid, validation or dev; test or testing).
    Those that it lacks are cut out of train, with the rows of an id together, and noted.

    Args:
      name: of the set, `"celeb_a"`, with a configuration where it has several, `"name:config"`.
        The newest version is read.
      label: the feature to predict.
      sensitive: the feature that makes the groups, or several, whose intersections do.
      data_dir: folder that holds the set's; `$TFDS_DATA_DIR`, or `~/tensorflow_datasets`.
      size: side of the decoded images in pixels; see `load_image_table`.
      image: the feature with the picture.
      positive: the label value that becomes class 1, all others class 0.
      id_column: the feature whose rows must stay together; of sets that `write_tfds` has written,
        "id" by default.
      split: shares of train, val and test, for splits that the set lacks.
      seed: of splits that are cut out of train.
      unknown: see `load_image_table`; likewise `age_cuts`, `window`, `on_error`, `cache_dir`.
      age_cuts: ages that end a band.
      window: for pictures of 16 bits.
      on_error: what to do with a picture that cannot be read.
      cache_dir: where decoded images are kept.
      allow_small_groups: note, rather than refuse, a group that a split has no rows of.
      not_missing: words that are values; see `load_csv`.

    Returns:
      A `Dataset`; `inputs` uint8 `[N, size, size, 3]`.

    Raises:
      FileNotFoundError: the set is not prepared there; the message has the command that does it.
      ValueError: it is prepared in another format, or anything in it or in the arguments does not
        fit; the message lists the features.
    """
    found = open_set(name, data_dir)
    check_image(found, image)
    if id_column is None and found.name.startswith(OURS) and "id" in found.features:
        id_column = "id"
    label, ids = path_of(found, label), None if id_column is None else path_of(found, id_column)
    given = (sensitive,) if isinstance(sensitive, str) else tuple(sensitive)
    banded = [each for each in given if each in AGE_CUTS and not matches(found, each)]
    names = tuple(each if each in banded else path_of(found, each) for each in given)
    columns = [label, *(["age"] if banded else []), *(() if ids is None else (ids,))]
    columns += [each for each in names if each not in banded]
    tables, sources, notes = read_splits_of(found, columns, not_missing)
    classes, told = names_of(found, label), label
    if classes is not None and positive is None:
        nothing = (MISSING | UNKNOWN) - tables[0].kept
        known = [each for each in classes if key(each) not in nothing]
        told = {label: {each: k for k, each in enumerate(known)}}
    table, result = annotate(
        join(tables),
        names,
        label=told,
        positive=positive,
        id_column=ids,
        image="",
        age_cuts=age_cuts,
        on_error=on_error,
    )
    attributes = {
        each: _in_order(column, None if each in banded else names_of(found, each))
        for each, column in result.attributes.items()
    }
    rows_of = {
        split_name: np.flatnonzero(table.file_of_row == s).astype(np.int32)
        for s, split_name in enumerate(sources)
    }
    notes = (*notes, *result.notes)
    result = dataclasses.replace(
        result, name=name, attributes=attributes, splits=rows_of, notes=notes
    )
    pictures = pictures_of(list(sources.values()), table, image)
    return image_dataset(
        result,
        names,
        split=split,
        seed=seed,
        unknown=unknown,
        allow_small_groups=allow_small_groups,
        images=cached_images(pictures, size, cache_dir=cache_dir, window=window, on_error=on_error),
    )


@short_errors()
def load_tfds_table(
    name: str,
    *,
    label: str,
    sensitive: str | Sequence[str],
    data_dir: str | Path | None = None,
    features: Sequence[str] | None = None,
    positive: str | int | None = None,
    split: Ratios = (0.6, 0.2, 0.2),
    id_column: str | None = None,
    missing: Literal["drop", "impute"] = "drop",
    seed: int = 0,
    sensitive_as_feature: bool = True,
    categorical: Sequence[str] = (),
    drop: Sequence[str] = (),
    not_missing: Sequence[str] = (),
    allow_small_groups: bool = False,
) -> Dataset:
    """A TensorFlow data set of numbers and texts, prepared as array_record, as a table.

    Every feature that is one value is a column, which is read as `load_csv` reads it. The set's
    splits, its names of classes and `name`, `data_dir`, `split` and `seed` are as in `load_tfds`;
    the other arguments as in `load_csv`. Of two classes the second is class 1 where `positive` does
    not say otherwise.

    Returns:
      A `Dataset`; `inputs` float32 `[N, D]`.

    Raises:
      FileNotFoundError: the set is not prepared there; the message has the command that does it.
      ValueError: a feature is an image or has several values, or as `load_tfds` and `load_csv`.
    """
    found = open_set(name, data_dir)
    label, ids = path_of(found, label), None if id_column is None else path_of(found, id_column)
    groups = paths_of(found, (sensitive,) if isinstance(sensitive, str) else sensitive)
    dropped, texts = paths_of(found, drop), paths_of(found, categorical)
    chosen = None if features is None else paths_of(found, features)
    needed = [label, *groups, *(() if ids is None else (ids,)), *texts, *(chosen or ())]
    for path in () if chosen is not None else found.features:
        if is_scalar(found.features[path]):
            needed.append(path)
        elif path not in dropped:
            raise ValueError(
                f"{found.folder}: feature {show(path)} is {kind_of(found.features[path])}, and a "
                "table takes single values; leave it out by drop= (--data.drop), or read the set "
                "as images"
            )
    needed = [path for path in found.features if path in needed]
    tables, sources, notes = read_splits_of(found, needed, not_missing)
    classes = names_of(found, label)
    if positive is None and classes is not None and len(classes) == 2:
        positive = classes[1]
    data = assemble(
        tables,
        name,
        splits=tuple(sources),
        label=label,
        sensitive=groups,
        features=chosen,
        positive=positive,
        split=split,
        id_column=ids,
        missing=missing,
        seed=seed,
        sensitive_as_feature=sensitive_as_feature,
        categorical=texts,
        drop=[path for path in dropped if path in needed],
        allow_small_groups=allow_small_groups,
    )
    return dataclasses.replace(data, notes=(*notes, *data.notes))


def _in_order(column: Column, names: Sequence[str] | None) -> Column:
    """An attribute with its values in the order of the set's own names."""
    if names is None or not set(column.values) <= set(names):
        return column
    order = [name for name in names if name in column.values]
    recode = [order.index(value) for value in column.values]
    return Column(tuple(order), np.array([*recode, -1], np.int32)[column.codes])
