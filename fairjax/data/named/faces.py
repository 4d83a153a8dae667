"""UTKFace from its folder of images."""

import re
from pathlib import Path

import numpy as np

from fairjax.data.image_tables import ImageTable
from fairjax.data.named.recipe import Recipe, Seeds, coded
from fairjax.data.splits import split_by_id

_RACES = ("White", "Black", "Asian", "Indian", "Other")


def _read_utkface(folder: Path, seeds: Seeds) -> ImageTable:
    """Files named age_gender_race_date; names that lack a part are dropped and counted."""
    paths, facts, dropped = [], [], 0
    for path in sorted(folder.rglob("*.[jJ][pP][gG]")):
        parts = re.match(r"(\d{1,3})_([01])_([0-4])_", path.name)
        if parts is None:
            dropped += 1
        else:
            paths.append(path)
            facts.append([int(part) for part in parts.groups()])
    if not paths:
        raise FileNotFoundError(f"{folder}: no files named age_gender_race_date.jpg")
    age, sex, race = np.array(facts).T
    return ImageTable(
        name="utkface",
        paths=tuple(paths),
        where=("",) * len(paths),
        labels=sex.astype(np.int32),
        label_names=UTKFACE.label_names,
        attributes={
            "race": coded(_RACES, race),
            "race_binary": coded(("White", "not White"), race > 0),
            "age_binary": coded(("age <= 60", "age > 60"), age > 60),
        },
        splits=split_by_id(np.array([path.name for path in paths]), seeds=seeds),
        notes=(
            f"Dropped {dropped} files whose names lack age, gender or race.",
            "No person is identified, so a face may be in two splits.",
        ),
    )


UTKFACE = Recipe(
    name="utkface",
    title="UTKFace, 23,708 faces: gender as annotated",
    home="https://susanqq.github.io/UTKFace/",
    licence="non-commercial research",
    files=("**/*_*_*_*.jpg",),
    label_names=("male", "female"),
    sensitive=("race",),
    read=_read_utkface,
)
