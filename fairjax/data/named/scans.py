"""PAPILA, OL3I, OASIS-1, CheXpert and Harvard-GF3300 from their raw distributions."""

import re
import zipfile
from pathlib import Path

import numpy as np

from fairjax.data.attributes import AGE_CUTS, age_bands, cells, find_column, read_attribute, texts
from fairjax.data.csvfile import Table, join, number, read_csv, show
from fairjax.data.image_files import path_below
from fairjax.data.image_tables import ImageTable
from fairjax.data.named.recipe import (
    Prepared,
    Recipe,
    Seeds,
    coded,
    keep,
    labels_from,
    map_column,
    named_images,
    places,
    present,
    read_table,
    spelling_notes,
    table_file,
)
from fairjax.data.rawtable import read_sheet
from fairjax.data.splits import split_by_id
from fairjax.data.values import canonical, strip

_SEX = ("female", "male")


def _read_papila(folder: Path, seeds: Seeds, encoding: str | None) -> ImageTable:
    """Eyes of the clinical tables; the suspicious ones (diagnosis 2) are dropped."""
    rows, dropped = [], 0
    unread: list[str] = []
    for eye in ("od", "os"):
        file = table_file(folder, f"ClinicalData/patient_data_{eye}.csv")
        for patient, age, sex, diagnosis, where in _papila_rows(file, encoding, unread):
            if diagnosis == 2:
                dropped += 1
            else:
                name = f"RET{patient[1:]}{eye.upper()}"
                rows.append((patient, age, int(sex), int(diagnosis), name, where))
    if not rows:
        found = " ".join(_unread_note(unread)) or "the clinical tables hold no diagnosis of 0 or 1"
        raise ValueError(f"{folder}: no eye is left. {found}")
    ids, ages, sexes, labels, names, where = zip(*rows, strict=True)
    ids = np.array(ids)
    paths, found = named_images(folder, ("FundusImages",), names, where)
    return ImageTable(
        name="papila",
        paths=paths,
        where=where,
        labels=np.array(labels, np.int32),
        label_names=PAPILA.label_names,
        attributes={
            "sex": coded(_SEX, 1 - np.array(sexes)),  # PAPILA: 0 male, 1 female
            "age_binary": coded(("age <= 60", "age > 60"), np.array(ages) > 60),
        },
        ids=ids,
        splits=split_by_id(ids, held_out=0.3, test_share=0.66, seeds=seeds),
        notes=(f"Dropped {dropped} suspicious eyes (diagnosis 2).", *found, *_unread_note(unread)),
    )


def _unread_note(unread: list[str]) -> list[str]:
    """A sentence on rows that hold something but no patient's number."""
    if not unread:
        return []
    more = ", ..." if len(unread) > 5 else ""
    return [
        f"Dropped {len(unread)} rows without a patient's number ({', '.join(unread[:5])}{more})."
    ]


def _papila_rows(path: Path, encoding: str | None, unread: list[str]):
    """Patient, age, sex, diagnosis and place of each row of a clinical table, `.xlsx` or a CSV.

    Patients are "#002", in some copies "002" or 2. Rows with facts but another id go to `unread`.
    """
    if path.suffix.lower() == ".xlsx":  # with lines of subtitles
        rows, _ = read_sheet(path)
        width = max(map(len, rows), default=0)
        sheet = [row + [""] * (width - len(row)) for row in rows]
    else:
        table = read_csv(path, encoding=encoding)
        titles = [find_column(table, c) for c in ("ID", "Age", "Gender", "Diagnosis")]
        columns = [texts(table, title) for title in titles]
        sheet = [("ID", "Age", "Gender", "Diagnosis"), *zip(*columns, strict=True)]
    place: dict[str, int] = {}
    for line, row in enumerate(sheet, 1):
        titles = [c for c in row if c in ("Age", "Gender", "Diagnosis")]
        for title in titles:
            place.setdefault(title, row.index(title))
        if titles or len(place) < 3:
            continue
        facts = [row[place[c]] for c in ("Age", "Gender", "Diagnosis")]
        patient = re.fullmatch(r"#?\s*(\d+)", canonical(row[0]))
        if patient is None:
            if any(map(strip, (row[0], *facts))):  # all blank is a line of subtitles
                unread.append(f"{path.name}, row {line}: {show(row[0])}")
            continue
        age, sex, diagnosis = map(number, facts)
        if age is None or sex not in (0, 1) or diagnosis not in (0, 1, 2):
            found = ", ".join(map(show, facts))
            raise ValueError(
                f"{path}, row {line}: expected an age, gender 0 or 1 and diagnosis 0, 1 or 2, "
                f"found {found}"
            )
        yield f"#{patient[1].zfill(3)}", age, sex, diagnosis, f"{path}, row {line}"
    if len(place) < 3:
        raise ValueError(f"{path}: no row of titles with Age, Gender and Diagnosis")


PAPILA = Recipe(
    name="papila",
    title="PAPILA, 488 fundus images of 244 patients: glaucoma?",
    home="https://doi.org/10.6084/m9.figshare.14798004",
    licence="CC BY 4.0",
    files=(
        "ClinicalData/patient_data_od.*",
        "ClinicalData/patient_data_os.*",
        "FundusImages/*.jpg",
    ),
    label_names=("healthy", "glaucoma"),
    sensitive=("sex",),
    read=_read_papila,
    seeds=(5, 15),
    prepared=Prepared("Path", "Diagnosis", ("sex", "age_binary"), ("", "FundusImages")),
)


def _read_ol3i(folder: Path, seeds: Seeds, encoding: str | None) -> ImageTable:
    """Slices as `.npy`, named by a path below the folder."""
    table = read_table(folder, "ol3i.csv", encoding)
    names = [name.removeprefix("/") for name in cells(table, find_column(table, "path"))]
    where = places(table)
    ids = np.array(cells(table, "patient_id") if "patient_id" in table.columns else names)
    files = [Path(name).name for name in names]
    paths, found = named_images(folder, ("Image_Slices", ""), files, where)
    return ImageTable(
        name="ol3i",
        paths=paths,
        where=where,
        labels=labels_from(table, "label_1y", {"0": 0, "1": 1, "0.0": 0, "1.0": 1}),
        label_names=OL3I.label_names,
        attributes={n: read_attribute(table, n) for n in ("sex", "age_binary", "age_multi")},
        ids=ids,
        splits=split_by_id(ids, seeds=seeds),
        notes=(
            f"Split 8/1/1 by patient with seeds {seeds[0]} and {seeds[1]}.",
            *found,
            *spelling_notes(table, "sex"),
        ),
    )


OL3I = Recipe(
    name="ol3i",
    title="OL3I, one slice at L3 of 8,139 abdominal CTs: ischaemic heart disease within a year?",
    home="https://aimi.stanford.edu/datasets",
    licence="Stanford research use agreement",
    files=("ol3i.csv", "Image_Slices/*.npy"),
    label_names=("no disease", "disease within a year"),
    sensitive=("sex",),
    read=_read_ol3i,
    prepared=Prepared("path", "label_1y", ("sex", "age_binary", "age_multi"), ("", "Image_Slices")),
)


def _ratings(table: Table, name: str) -> list[float]:
    """The distinct values of a column of numbers; text is refused rather than taken for 0."""
    values, codes = table.columns[name]
    numbers = [number(value) for value in values]
    for code, found in enumerate(numbers):
        if found is None:
            row = int((codes == code).argmax())
            raise ValueError(
                f"{table.where(row)}: column {show(name)} holds {show(values[code])}, "
                "expected a number"
            )
    return [value for value in numbers if value is not None]


def _read_oasis1(folder: Path, seeds: Seeds, encoding: str | None) -> ImageTable:
    """The transverse atlas slice of each subject whose dementia rating is known."""
    notes: list[str] = []
    table = read_table(folder, "oasis_cross-sectional.csv", encoding)
    table.require(("ID", "M/F", "Age", "CDR"))
    table = keep(table, present(table, "CDR"), "no dementia rating", notes)
    where, subjects = places(table), cells(table, "ID")
    gifs = folder.rglob("*_gfc_tra_90.[gG][iI][fF]")
    slices = {path.name.partition("_mpr")[0]: path for path in gifs}
    slices |= {path.stem: path for path in folder.rglob("OAS1_*.npy")}
    ids = np.array([subject.rpartition("_MR")[0] or subject for subject in subjects])
    if lone := [subject for subject in subjects if "_MR" not in subject]:
        notes.append(f"{len(lone)} subjects are not named by _MR, such as {show(lone[0])}.")
    rating = np.array(_ratings(table, "CDR"))[table.columns["CDR"].codes]
    return ImageTable(
        name="oasis1",
        paths=tuple(slices.get(s, folder / f"{s}*_gfc_tra_90.gif") for s in subjects),
        where=where,
        labels=(rating > 0).astype(np.int32),
        label_names=OASIS1.label_names,
        attributes={
            "sex": map_column(table, "M/F", {"F": "female", "M": "male"}, _SEX, notes),
            **{band: age_bands(table, "Age", cuts) for band, cuts in AGE_CUTS.items()},
        },
        ids=ids,
        splits=split_by_id(ids, held_out=0.3, test_share=0.66, seeds=seeds),
        notes=(f"Split 7/1/2 by subject with seeds {seeds[0]} and {seeds[1]}.", *notes),
    )


OASIS1 = Recipe(
    name="oasis1",
    title="OASIS-1, T1 MRI of 416 subjects, 235 of them rated: dementia (CDR > 0)?",
    home="https://sites.wustl.edu/oasisbrains/",
    licence="OASIS data use agreement",
    files=("oasis_cross-sectional.csv", "**/*_gfc_tra_90.gif"),
    label_names=("not demented", "demented"),
    sensitive=("sex",),
    read=_read_oasis1,
    prepared=Prepared("Path", "CDR", ("sex", "age_binary", "age_multi"), ("", "All_files")),
)


def _read_chexpert(folder: Path, seeds: Seeds, encoding: str | None) -> ImageTable:
    """Training and validation files pooled and split anew by patient, as both share a source."""
    notes: list[str] = []
    columns = ("Path", "Sex", "Age", "No Finding")
    tables = [read_table(folder, f"{part}.csv", encoding) for part in ("train", "valid")]
    for table in tables:
        table.require(columns)
    table = join([table.select(columns) for table in tables])
    where = places(table)
    named = map(path_below, [folder] * len(table), cells(table, "Path"), where)
    # Paths begin with the name of the release's folder, wherever the user has put it.
    inside = [Path(*p.parts[str(p).startswith("CheXpert") :]) for p in named]
    paths, moved = named_images(folder, ("",), list(map(str, inside)), where)
    ids = np.array(
        [next((p for p in path.parts if p.startswith("patient")), "") for path in inside]
    )
    if (ids == "").any():
        raise ValueError(f"{where[int((ids == '').argmax())]}: the path names no patient")
    found = _ratings(table, "No Finding")
    healthy = np.array([*(value > 0 for value in found), False])[table.columns["No Finding"].codes]
    return ImageTable(
        name="chexpert",
        paths=paths,
        where=where,
        labels=healthy.astype(np.int32),
        label_names=CHEXPERT.label_names,
        attributes={
            "sex": map_column(table, "Sex", {"Female": "female", "Male": "male"}, _SEX, notes),
            **{band: age_bands(table, "Age", cuts) for band, cuts in AGE_CUTS.items()},
        },
        ids=ids,
        splits=split_by_id(ids, seeds=seeds),
        notes=(
            f"Split 8/1/1 by patient with seeds {seeds[0]} and {seeds[1]}.",
            *moved,
            *notes,
        ),
    )


CHEXPERT = Recipe(
    name="chexpert",
    title="CheXpert (small), 224,316 chest radiographs: is there no finding?",
    home="https://stanfordmlgroup.github.io/competitions/chexpert/",
    licence="Stanford research use agreement",
    files=("train.csv", "valid.csv", "train/**/*.jpg", "valid/**/*.jpg"),
    label_names=("finding", "no finding"),
    sensitive=("sex",),
    read=_read_chexpert,
    prepared=Prepared("Path", "No Finding", ("sex", "age_binary", "age_multi", "race"), ("", "..")),
)

_OFFICIAL_GF3300 = ((2100, "train"), (2400, "val"), (3300, "test"))


def _read_gf3300(folder: Path, seeds: Seeds, encoding: str | None) -> ImageTable:
    """Files `data_0001.npz` to `data_3300.npz`, the official split by number."""
    del seeds
    paths = tuple(sorted(folder.rglob("data_*.npz")))
    facts, split_of = [], []
    for path in paths:
        digits = re.fullmatch(r"data_(\d+)", path.stem)
        last = next((s for top, s in _OFFICIAL_GF3300 if digits and int(digits[1]) <= top), None)
        if last is None:
            raise ValueError(f"{path}: expected a number from data_0001 to data_3300")
        split_of.append(last)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                facts.append([float(arrays[name]) for name in ("glaucoma", "male", "race", "age")])
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: not a Harvard-GF file: {error}") from None
    glaucoma, male, race, age = np.array(facts).reshape(-1, 4).T
    for name, found, top in (("glaucoma", glaucoma, 1), ("male", male, 1), ("race", race, 2)):
        wrong = ~np.isin(found, np.arange(top + 1))
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(f"{paths[row]}: {name} is {found[row]:g}, expected 0 to {top}")
    splits = np.array(split_of)
    return ImageTable(
        name="gf3300",
        paths=paths,
        where=("",) * len(paths),
        labels=glaucoma.astype(np.int32),
        label_names=GF3300.label_names,
        attributes={
            "race": coded(("Black", "Asian or White"), race != 1),
            "race_three": coded(("Asian", "Black", "White"), race),
            "sex": coded(_SEX, male),
            "age_binary": coded(("age <= 60", "age > 60"), age > 60),
        },
        splits={s: np.flatnonzero(splits == s).astype(np.int32) for _, s in _OFFICIAL_GF3300},
        notes=("Retinal thickness maps, 0 to 350 micrometres as black to white.",),
    )


GF3300 = Recipe(
    name="gf3300",
    title="Harvard-GF3300, retinal nerve fibre thickness of 3,300 patients: glaucoma?",
    home="https://github.com/Harvard-Ophthalmology-AI-Lab/Harvard-GF",
    licence="CC BY-NC-ND 4.0",
    files=("**/data_*.npz",),
    label_names=("no glaucoma", "glaucoma"),
    sensitive=("race",),
    read=_read_gf3300,
    seeds=None,
    prepared=Prepared(
        "Path", "Glaucoma", ("sex", "age_binary", "age_multi", "race"), ("", "All_files")
    ),
    window=(0.0, 350.0),
    array_key="rnflt",
)
