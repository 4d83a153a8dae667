"""UTKFace from its folder of images."""

import re
from pathlib import Path

import numpy as np

from fairjax.data.csvfile import show
from fairjax.data.image_tables import ImageTable
from fairjax.data.named.recipe import Recipe, Seeds, coded
from fairjax.data.splits import split_by_id

_RACES = ("White", "Black", "Asian", "Indian", "Other")


def _read_utkface(folder: Path, seeds: Seeds, encoding: str | None) -> ImageTable:
    """Files named age_gender_race_date; names that lack a part are dropped and counted."""
    paths, facts, dropped = [], [], []
    for path in sorted(folder.rglob("*.[jJ][pP][gG]")):
        parts = re.match(r"(\d{1,3})_([01])_([0-4])_", path.name)
        if parts is None:
            dropped.append(path.name)
        else:
            paths.append(path)
            facts.append([int(part) for part in parts.groups()])
    if not paths:
        raise FileNotFoundError(f"{folder}: no files named age_gender_race_date.jpg")
    more = ", ..." if len(dropped) > 3 else ""
    shown = f": {', '.join(map(show, dropped[:3]))}{more}" if dropped else ""
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
            f"Dropped {len(dropped)} files whose names lack age, gender or race{shown}.",
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
