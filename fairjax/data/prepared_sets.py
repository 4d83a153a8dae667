"""Where prepared TensorFlow data sets lie, what their features are, and their records as cells."""

import bisect
import difflib
import functools
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fairjax.data.columns import split_called
from fairjax.data.csvfile import Table, encode, kept_words, missing_words, show
from fairjax.data.decode import Packed
from fairjax.data.named import RECIPES
from fairjax.data.rawtable import blamed
from fairjax.data.values import MISSING

OURS = "fairjax_"
"""How the names of sets begin that `write_tfds` writes; their feature "id" says who is whose."""

_READ_AT_ONCE = 256


class PreparedSet(NamedTuple):
    """A prepared set."""

    name: str
    folder: Path
    builder: Any
    features: dict[str, Any]
    """Features that are not made of others, by their path."""


class Source(NamedTuple):
    """The records of a split, as bytes."""

    records: Any
    files: list[Path]
    ends: list[int]
    """Of each file, the number of records in it and in those before it."""


def open_set(name: str, data_dir: str | Path | None) -> PreparedSet:
    """The newest version of a set, if it is prepared in a format that is read by number."""
    root = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    folder = _find(name, Path(root).expanduser())
    with blamed(folder / "dataset_info.json"):
        info = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
        formats = [info.get("fileFormat", "tfrecord"), *info.get("alternativeFileFormats", ())]
    if "array_record" not in formats:
        raise ValueError(
            f"{folder}: is prepared as {formats[0]}, which only TensorFlow reads; make it readable "
            f"by tfds convert_format --dataset_version_dir={folder} --out_file_format=array_record"
        )
    with blamed(folder):
        import tensorflow_datasets as tfds  # a second to import: only when needed

        builder: Any = tfds.builder_from_directory(str(folder), file_format="array_record")
        features = dict(_leaves(builder.info.features))
    return PreparedSet(name.partition(":")[0], folder, builder, features)


def _find(name: str, root: Path) -> Path:
    """The folder of the newest version of `set` or `set:config`."""
    if not re.fullmatch(r"\w+(:[\w.+-]*\w)?", name):
        raise ValueError(f"a TensorFlow data set is called name or name:config, got {show(name)}")
    called, _, config = name.partition(":")
    versions = _versions(root / called / config)
    if not versions and not config:
        configs = [each for each in sorted((root / called).glob("*")) if _versions(each)]
        if len(configs) > 1:
            listed = ", ".join(f"{called}:{each.name}" for each in configs)
            raise ValueError(f"{root / called}: holds several configurations, choose of {listed}")
        versions = _versions(configs[0]) if configs else []
    if not versions:
        command = f"tfds build {name.replace(':', '/')} --file_format=array_record"
        command += f" --data_dir={root} (which needs TensorFlow)"
        if (recipe := called.removeprefix(OURS)) in RECIPES:
            command = f"python -m experiments.prepare {recipe} --manual-dir ... --tfds-dir {root}"
            if (root / f"{OURS}{recipe}").is_dir() and recipe == called:
                command = f"or read {OURS}{recipe}, which is there"
        raise FileNotFoundError(f"{root}: holds no prepared {show(name)}; make it: {command}")
    return versions[-1]


def _versions(folder: Path) -> list[Path]:
    """The finished versions that a folder holds, the newest last."""
    found = (path.parent for path in folder.glob("*/dataset_info.json"))
    numbered = [each for each in found if re.fullmatch(r"\d+\.\d+\.\d+", each.name)]
    return sorted(numbered, key=lambda each: tuple(map(int, each.name.split("."))))


def _leaves(features: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """The features that are not made of others, with their paths, in alphabetical order.

    Their own order is that of a map in a file, and differs from one process to the next.
    """
    for name, feature in sorted(features.items()):
        if isinstance(feature, Mapping) or hasattr(feature, "items"):
            yield from _leaves(feature, f"{above}{name}/")
        else:
            yield f"{above}{name}", feature


def matches(found: PreparedSet, name: str) -> list[str]:
    """Paths of the features that a name may stand for: the whole path, else its end."""
    whole = [path for path in found.features if path.casefold() == name.casefold()]
    end = f"/{name}".casefold()
    return whole or [path for path in found.features if path.casefold().endswith(end)]


def path_of(found: PreparedSet, name: str) -> str:
    """The path of the feature that a name stands for; ValueError for none or several."""
    paths = matches(found, name)
    if len(paths) > 1:
        raise ValueError(f"{found.folder}: {show(name)} may be {' or '.join(paths)}")
    if not paths:
        near = sorted(found.features, key=lambda path: -_likeness(path, name))
        more = f", ... ({len(near)} in all)" if len(near) > 6 else ""
        raise ValueError(
            f"{found.folder}: no feature {show(name)}; there are {', '.join(near[:6])}{more}"
        )
    return paths[0]


def paths_of(found: PreparedSet, names: Sequence[str]) -> tuple[str, ...]:
    """`path_of` each name."""
    return tuple(path_of(found, name) for name in names)


def _likeness(path: str, name: str) -> float:
    end = path.rpartition("/")[2]
    return difflib.SequenceMatcher(None, end.casefold(), name.casefold()).ratio()


def check_image(found: PreparedSet, image: str) -> None:
    """Raises ValueError unless a feature is a picture whose bytes are those of an image file."""
    pictures = [path for path, each in found.features.items() if type(each).__name__ == "Image"]
    if image not in pictures:
        what = f"its pictures are {', '.join(pictures)}; choose by image= (--data.image-column)"
        if not pictures:
            what = "it holds no pictures; read it as a table"
        raise ValueError(f"{found.folder}: no feature {show(image)} is a picture; {what}")
    if found.features[image].np_dtype not in (np.uint8, np.uint16):
        dtype = found.features[image].np_dtype
        raise ValueError(
            f"{found.folder}: pictures of {np.dtype(dtype)}, accepted are uint8 and uint16"
        )


def is_scalar(feature: Any) -> bool:
    """Whether a feature is one value: a class, a truth value, a number or a text."""
    return feature.shape == () and type(feature).__name__ in (
        "ClassLabel",
        "Scalar",
        "Tensor",
        "Text",
    )


def names_of(found: PreparedSet, name: str) -> tuple[str, ...] | None:
    """The names of a feature's values in order, of a class or a truth value; None for others."""
    path = path_of(found, name)
    feature = found.features[path]
    if type(feature).__name__ == "ClassLabel" and feature.num_classes:
        return tuple(feature.names)
    end = path.rpartition("/")[2]
    return (f"not {end}", end) if feature.np_dtype == np.bool_ and is_scalar(feature) else None


def read_splits_of(
    found: PreparedSet, columns: Sequence[str], not_missing: Sequence[str]
) -> tuple[list[Table], dict[str, Source], list[str]]:
    """A table and the records of each split, by our name of it, and notes.

    Rows are numbered as records of their split, from 0.
    """
    from tensorflow_datasets.core.decode import DeserializeMethod

    kept = kept_words(not_missing)
    paths = {name: path_of(found, name) for name in dict.fromkeys(columns)}
    for name, path in paths.items():
        if not is_scalar(found.features[path]):
            raise ValueError(
                f"{found.folder}: feature {show(name)} is {kind_of(found.features[path])}, "
                "expected is a class, a number, a text or a truth value"
            )
    tables, sources = [], {}
    notes = [f"{found.folder.name} is the version of {found.name} that is read."]
    with blamed(found.folder):
        for theirs, info in found.builder.info.splits.items():
            ours = split_called(theirs)
            if ours is None or not info.num_examples:
                notes.append(f"Split {show(theirs)} of {info.num_examples} records is not read.")
                continue
            if ours in sources:
                raise ValueError(f"{found.folder}: several splits are a {ours}, one is {theirs!r}")
            if ours != theirs:
                notes.append(f"Split {show(theirs)} is read as {show(ours)}.")
            records = found.builder.as_data_source(
                split=theirs, deserialize_method=DeserializeMethod.RAW_BYTES
            )
            files = list(map(Path, info.filepaths))
            sources[ours] = Source(records, files, list(itertools.accumulate(info.shard_lengths)))
            cells = _cells(found, records, paths)
            tables.append(
                Table(
                    files=(f"{found.folder} ({theirs})",),
                    columns={name: encode(each, MISSING - kept) for name, each in cells.items()},
                    file_of_row=np.zeros(len(records), np.int32),
                    line_of_row=np.arange(len(records), dtype=np.int32),
                    kept=kept,
                    unit="record",
                    words={name: missing_words(each, kept) for name, each in cells.items()},
                )
            )
    if not tables:
        raise ValueError(f"{found.folder}: holds no split train. {' '.join(notes)}")
    return tables, sources, notes


def _cells(found: PreparedSet, records: Any, paths: Mapping[str, str]) -> dict[str, list[str]]:
    """The values of features in all records, as a CSV would hold them."""
    texts = {
        name: _text(found.features[path], names_of(found, name)) for name, path in paths.items()
    }
    cells: dict[str, list[str]] = {name: [] for name in paths}
    for start in range(0, len(records), _READ_AT_ONCE):
        some = range(start, min(start + _READ_AT_ONCE, len(records)))
        for record in records.__getitems__(list(some)):
            fields = _fields(record)
            for name, path in paths.items():
                values = _values(fields, path)
                cells[name].append(texts[name](values[0]) if values else "")
    return cells


def _fields(record: bytes) -> Any:
    """The features of a record as they are stored, by path."""
    from tensorflow_datasets.proto import tf_example_pb2

    example: Any = tf_example_pb2
    return example.Example.FromString(record).features.feature


def _values(fields: Any, path: str) -> Sequence[Any]:
    kind = fields[path].WhichOneof("kind") if path in fields else None
    return () if kind is None else getattr(fields[path], kind).value


def _text(feature: Any, names: Sequence[str] | None) -> Callable[[Any], str]:
    """How a stored value of a feature is written as text."""
    if names is not None:
        name_of = dict(enumerate(names))
        return lambda value: name_of.get(value, "")  # -1 is no label
    if np.dtype(feature.np_dtype).kind == "f":
        return lambda value: str(np.float32(value))  # as which all floats are stored
    return lambda value: value.decode() if isinstance(value, bytes) else str(value)


def kind_of(feature: Any) -> str:
    """What a feature is, for messages."""
    return f"{type(feature).__name__} of shape {feature.shape}"


def pictures_of(sources: Sequence[Source], table: Table, image: str) -> list[Packed]:
    """The picture of every row, to be read when it is decoded."""
    pictures = []
    for s, record in zip(table.file_of_row.tolist(), table.line_of_row.tolist(), strict=True):
        source = sources[s]
        file = source.files[bisect.bisect_right(source.ends, record)]
        read = functools.partial(_picture, source.records, record, image)
        pictures.append(Packed(file, f"{image} of record {record}", read))
    return pictures


def _picture(records: Any, record: int, image: str) -> bytes:
    values = _values(_fields(records[record]), image)
    if not values or not values[0]:
        raise ValueError("the record holds no picture")
    return values[0]
