"""HAM10000, Fitzpatrick17k, ISIC 2019 and the synthetic lesions from their files."""

from pathlib import Path

import numpy as np

from fairjax.data.attributes import AGE_CUTS, age_bands, cells, read_attribute
from fairjax.data.columns import tidy
from fairjax.data.csvfile import Column, Table, number, read_csv
from fairjax.data.image_tables import ImageTable
from fairjax.data.lesion_files import IMAGES, METADATA
from fairjax.data.lesions import LABEL_NAMES
from fairjax.data.named.recipe import (
    Prepared,
    Recipe,
    Seeds,
    coded,
    counted,
    keep,
    labels_from,
    map_column,
    named_images,
    places,
    present,
    read_table,
    spelling_notes,
)
from fairjax.data.splits import split_by_id

_DX = {"akiec": 1, "mel": 1, "bcc": 0, "bkl": 0, "df": 0, "nv": 0, "vasc": 0}


def _read_ham10000(folder: Path, seeds: Seeds, encoding: str | None) -> ImageTable:
    """Rows without age or sex are dropped; sex "unknown" stays as unknown, as in MEDFAIR."""
    notes: list[str] = []
    table = read_table(folder, "HAM10000_metadata.csv", encoding)
    table.require(("lesion_id", "image_id", "dx", "age", "sex"))
    table = keep(table, present(table, "age", "sex"), "no age or no sex", notes)
    where, names = places(table), cells(table, "image_id")
    folders = ("HAM10000_images_part_1", "HAM10000_images_part_2", "HAM10000_images")
    paths, found = named_images(folder, folders, names, where)
    ids = np.array(cells(table, "lesion_id"))
    return ImageTable(
        name="ham10000",
        paths=paths,
        where=where,
        labels=labels_from(table, "dx", _DX),
        label_names=HAM10000.label_names,
        attributes={"sex": read_attribute(table, "sex"), **_ages(table, "age")},
        ids=ids,
        splits=split_by_id(ids, seeds=seeds),
        notes=(*notes, *found, *spelling_notes(table, "dx", "sex")),
    )


def _ages(table: Table, name: str) -> dict[str, Column]:
    return {band: age_bands(table, name, cuts) for band, cuts in AGE_CUTS.items()}


HAM10000 = Recipe(
    name="ham10000",
    title="HAM10000, 10,015 dermoscopic images: is the lesion malignant (mel, akiec)?",
    home="https://doi.org/10.7910/DVN/DBW86T",
    licence="CC BY-NC 4.0",
    files=("HAM10000_metadata.csv", "HAM10000_images*/*.jpg"),
    label_names=("benign", "malignant"),
    sensitive=("sex",),
    read=_read_ham10000,
    prepared=Prepared(
        "Path", "binaryLabel", ("sex", "age_binary", "age_multi"), ("", "combined", "images")
    ),
)


def _read_fitzpatrick(
    folder: Path, encoding: str | None
) -> tuple[Table, tuple[Path, ...], dict[str, Column], list]:
    """What both forms share; unknown skin types (-1) are dropped."""
    notes: list[str] = []
    table = read_table(folder, "fitzpatrick17k.csv", encoding)
    table.require(("md5hash", "fitzpatrick_scale", "label", "three_partition_label"))
    types = {f"{t}{tail}": t for t in range(1, 7) for tail in ("", ".0")}
    known = np.array([t in types for t in cells(table, "fitzpatrick_scale")])
    if not known.all():
        others = counted(table, "fitzpatrick_scale", ~known)
        table = keep(table, known, f"skin type unknown, {others}", notes)
    scale = np.array([types[t] for t in cells(table, "fitzpatrick_scale")])
    attributes = {
        "skin_binary": coded(("types I-III", "types IV-VI"), scale > 3),
        "skin_type": coded([f"type {r}" for r in ("I", "II", "III", "IV", "V", "VI")], scale - 1),
    }
    names = cells(table, "md5hash")
    paths, found = named_images(folder, ("images",), names, places(table))
    notes += found
    notes += spelling_notes(table, "three_partition_label", "label")
    return table, paths, attributes, notes


def _read_fitzpatrick17k(folder: Path, seeds: Seeds, encoding: str | None) -> ImageTable:
    """Malignant or not."""
    table, paths, attributes, notes = _read_fitzpatrick(folder, encoding)
    parts = {"malignant": 1, "benign": 0, "non-neoplastic": 0}
    ids = np.array(cells(table, "md5hash"))
    return ImageTable(
        name="fitzpatrick17k",
        paths=paths,
        where=places(table),
        labels=labels_from(table, "three_partition_label", parts),
        label_names=FITZPATRICK17K.label_names,
        attributes=attributes,
        ids=ids,
        splits=split_by_id(ids, seeds=seeds),
        notes=tuple(notes),
    )


def _read_fitzpatrick17k_114(folder: Path, seeds: Seeds, encoding: str | None) -> ImageTable:
    """The condition, classes in alphabetical order of those in the file."""
    table, paths, attributes, notes = _read_fitzpatrick(folder, encoding)
    table, _ = tidy(table, ["label"])
    found = cells(table, "label")
    names = tuple(sorted(set(found)))
    ids = np.array(cells(table, "md5hash"))
    notes.append(
        f"The published split is lost; this one is drawn with seeds {seeds[0]} and {seeds[1]}."
    )
    return ImageTable(
        name="fitzpatrick17k_114",
        paths=paths,
        where=places(table),
        labels=labels_from(table, "label", {name: k for k, name in enumerate(names)}),
        label_names=names,
        attributes=attributes,
        ids=ids,
        splits=split_by_id(ids, seeds=seeds),
        notes=tuple(notes),
    )


FITZPATRICK17K = Recipe(
    name="fitzpatrick17k",
    title="Fitzpatrick17k, 16,577 clinical images: is the condition malignant?",
    home="https://github.com/mattgroh/fitzpatrick17k",
    licence="annotations CC BY-NC-SA 3.0, images by their atlases",
    files=("fitzpatrick17k.csv", "images/*.jpg"),
    label_names=("not malignant", "malignant"),
    sensitive=("skin_binary",),
    read=_read_fitzpatrick17k,
    seeds=(5, 6),
    prepared=Prepared("Path", "binary_label", ("skin_binary", "skin_type"), ("", "finalfitz17k")),
)

FITZPATRICK17K_114 = Recipe(
    name="fitzpatrick17k_114",
    title="Fitzpatrick17k, 16,577 clinical images: which of 114 conditions?",
    home=FITZPATRICK17K.home,
    licence=FITZPATRICK17K.licence,
    files=FITZPATRICK17K.files,
    label_names=(),  # read from the file
    sensitive=("skin_binary",),
    read=_read_fitzpatrick17k_114,
    seeds=(5, 6),
)

_ISIC_CLASSES = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")


def _read_isic2019(folder: Path, seeds: Seeds, encoding: str | None) -> ImageTable:
    """Ground truth is one-hot; images without a lesion id count as lesions of their own."""
    truth = read_table(folder, "ISIC_2019_Training_GroundTruth.csv", encoding)
    facts = read_table(folder, "ISIC_2019_Training_Metadata.csv", encoding)
    truth.require(("image", *_ISIC_CLASSES))
    facts.require(("image", "age_approx", "lesion_id", "sex"))
    names = cells(truth, "image")
    row_of = {name: row for row, name in enumerate(cells(facts, "image"))}
    for row, name in enumerate(names):
        if name not in row_of:
            raise ValueError(f"{truth.where(row)}: image {name} is not in {facts.files[0]}")
    facts = facts.take(np.array([row_of[name] for name in names]))
    notes: list[str] = []
    if len(row_of) > len(names):
        notes.append(f"{len(row_of) - len(names)} rows of metadata are of no image of the truth.")
    one_hot = np.array([[number(v) or 0.0 for v in cells(truth, c)] for c in _ISIC_CLASSES]).T
    wrong = (one_hot.sum(axis=1) != 1) | (one_hot.max(axis=1) != 1)
    if wrong.any():
        raise ValueError(f"{truth.where(int(wrong.argmax()))}: not exactly one class is 1")
    values, codes = facts.columns["lesion_id"]
    ids = np.array([values[c] if c >= 0 else n for c, n in zip(codes, names, strict=True)])
    paths, found = named_images(folder, ("ISIC_2019_Training_Input",), names, places(truth))
    return ImageTable(
        name="isic2019",
        paths=paths,
        where=places(truth),
        labels=one_hot.argmax(axis=1).astype(np.int32),
        label_names=_ISIC_CLASSES,
        attributes={
            "sex": map_column(
                facts, "sex", {"female": "female", "male": "male"}, ("female", "male"), notes
            ),
            **_ages(facts, "age_approx"),
        },
        ids=ids,
        splits=split_by_id(ids, seeds=seeds),
        notes=(
            "The published split is lost; this one is 8/1/1 by lesion, seeds "
            f"{seeds[0]} and {seeds[1]}.",
            *found,
            *notes,
        ),
    )


ISIC2019 = Recipe(
    name="isic2019",
    title="ISIC 2019 challenge, 25,331 dermoscopic images: which of 8 diagnoses?",
    home="https://challenge.isic-archive.com/data/#2019",
    licence="CC BY-NC 4.0",
    files=(
        "ISIC_2019_Training_GroundTruth.csv",
        "ISIC_2019_Training_Metadata.csv",
        "ISIC_2019_Training_Input/*.jpg",
    ),
    label_names=_ISIC_CLASSES,
    sensitive=("sex",),
    read=_read_isic2019,
)


def _read_synthetic(folder: Path, seeds: Seeds, encoding: str | None) -> ImageTable:
    """What `write_lesions` writes; the split is left to be drawn, since dark skin is rare."""
    del seeds
    table = read_csv(folder / METADATA, encoding=encoding)
    table.require(("image_id", "lesion_id", "diagnosis", "skin_tone", "age", "sex"))
    where = places(table)
    classes = {name: k for k, name in enumerate(SYNTHETIC_LESIONS.label_names)}
    paths, found = named_images(folder, (IMAGES,), cells(table, "image_id"), where)
    return ImageTable(
        name="synthetic_lesions",
        paths=paths,
        where=where,
        labels=labels_from(table, "diagnosis", classes),
        label_names=SYNTHETIC_LESIONS.label_names,
        attributes={
            "skin_tone": read_attribute(table, "skin_tone"),
            "sex": read_attribute(table, "sex"),
            **_ages(table, "age"),
        },
        ids=np.array(cells(table, "lesion_id")),
        notes=(
            "synthetic images, no patients",
            *found,
            *spelling_notes(table, "diagnosis", "skin_tone", "sex"),
        ),
    )


SYNTHETIC_LESIONS = Recipe(
    name="synthetic_lesions",
    title="synthetic skin lesions, drawn and not photographed: is the lesion malignant?",
    home="python -m experiments.prepare lesions",
    licence="that of fairjax",
    files=(METADATA, f"{IMAGES}/*.jpg"),
    label_names=LABEL_NAMES,
    sensitive=("skin_tone",),
    read=_read_synthetic,
    seeds=None,
)
