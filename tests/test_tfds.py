"""TensorFlow data sets as they lie prepared: our own, CelebA's structure, and a table."""

import io
import json
import sys
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from raw_sets import make_ham10000
from tensorflow_datasets.datasets.celeb_a import celeb_a_dataset_builder as celeb_a

from experiments.data import Data, load_data
from fairjax.data import load_named, load_tfds, load_tfds_table
from fairjax.data.named import read_named
from fairjax.data.named.builder import write_tfds

CelebA: Any = celeb_a.Builder
PEOPLE = 24


class SmallCelebA(CelebA, skip_registration=True):  # pyright: ignore
    """The real features of celeb_a, with pictures of noise; four of each person, no validation."""

    name = "celeb_a"
    get_metadata = classmethod(lambda cls: CelebA.get_metadata())

    def _split_generators(self, dl_manager):
        return {"train": self._examples(0, 4 * PEOPLE), "test": self._examples(1, 40)}

    def _examples(self, seed, count):
        draw = np.random.default_rng(seed)
        for i in range(count):
            file = io.BytesIO()
            noise = draw.integers(0, 256, (218, 178, 3), dtype=np.uint8)
            Image.fromarray(noise).save(file, "JPEG")
            file.seek(0)
            truths = dict.fromkeys(celeb_a.ATTR_HEADINGS, False)
            truths |= {"Male": i % 2 == 0, "Smiling": i % 3 == 0}
            yield (
                i,
                {
                    "image": file,
                    "landmarks": dict.fromkeys(celeb_a.LANDMARK_HEADINGS, i),
                    "attributes": truths,
                    "identity": {"Identity_No": 1000 * seed + i // 4},
                },
            )


class Voyage(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A table: numbers, texts, classes; configurations of it, one with a vector."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ("plain", "vector")]

    def _info(self):
        features: dict[str, Any] = {
            "age": np.float32,
            "cabin": tfds.features.Text(),
            "sex": tfds.features.ClassLabel(names=["male", "female"]),
            "survived": tfds.features.ClassLabel(names=["zero", "died"]),
        }
        if self.builder_config.name == "vector":  # pyright: ignore
            features["where"] = tfds.features.Tensor(shape=(2,), dtype=np.float32)
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {
            "train": self._generate_examples(80),
            "valid": self._generate_examples(20),
            "extra": self._generate_examples(3),
        }

    def _generate_examples(self, count):
        for i in range(count):
            label = -1 if i == 7 else i % 3 % 2
            row = {"age": i + 0.1, "cabin": "abc"[i % 3], "sex": i // 2 % 2, "survived": label}
            if self.builder_config.name == "vector":  # pyright: ignore
                row["where"] = np.zeros(2, np.float32)
            yield i, row


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with all three sets, and the raw files of ours."""
    folder = tmp_path_factory.mktemp("tfds")
    make_ham10000(folder / "raw")
    recipe, table = read_named("ham10000", folder / "raw")
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[:16] = 250
    exif = Image.Exif()
    exif[0x0112] = 3  # the bright half is below
    assert table.splits is not None
    turned = table.paths[int(table.splits["val"][0])]
    Image.fromarray(picture).save(turned, exif=exif)
    write_tfds(recipe, table, folder)
    options: Any = {"data_dir": str(folder), "file_format": "array_record"}
    SmallCelebA(**options).download_and_prepare()
    for config in ("plain", "vector"):
        Voyage(config=config, **options).download_and_prepare()
    return folder


def facts(data, split):
    """What is known of each row of a split, in no order."""
    rows = data.splits[split]
    labels = [data.label_names[label] for label in data.labels[rows]]
    groups = [data.group_names[group] for group in data.group[rows]]
    pixels = [data.inputs[row].tobytes() for row in rows]
    return sorted(zip(labels, groups, map(str, data.ids[rows]), pixels, strict=True))


def faces(prepared, **changes):
    options: Any = {"label": "Smiling", "sensitive": "Male", "data_dir": prepared, "size": 8}
    options |= {"cache_dir": prepared / "cache", "id_column": "Identity_No"}
    return load_tfds("celeb_a", **options | changes)


def test_a_set_that_prepare_writes_is_the_same_set_when_read_back(prepared):
    cache = prepared / "cache"
    small: Any = {"cache_dir": cache, "allow_small_groups": True}
    raw = load_named("ham10000", prepared / "raw", size=16, **small)
    given: Any = {"label": "label", "sensitive": ("sex",), "tfds_dir": prepared}
    back = load_data(Data("tfds:fairjax_ham10000", **small, **given), image_size=16)
    assert back.label_names == raw.label_names and back.group_names == raw.group_names
    assert [facts(back, split) for split in raw.splits] == [
        facts(raw, split) for split in raw.splits
    ]
    bright = [np.asarray(back.inputs[row]).astype(int) for row in back.splits["val"]]
    assert any(each[10:].mean() > 240 and each[:6].mean() < 10 for each in bright)  # upright
    assert back.fixed_test and "tensorflow" not in sys.modules
    assert "Column 'sex': 'unknown' (2) read as missing." in back.notes
    assert any(str(cache) in note and "MiB" in note for note in back.notes)


def test_bands_of_a_set_of_ours_keep_their_order(prepared):
    options: Any = {"data_dir": prepared, "size": 8, "cache_dir": prepared / "cache"}
    names = ("age <= 19", "19 < age <= 39", "39 < age <= 59", "59 < age <= 79", "age > 79")
    options |= {"label": "label", "sensitive": "age_multi", "allow_small_groups": True}
    found = load_tfds("fairjax_ham10000", **options).group_names
    assert found == tuple(name for name in names if name in found) and len(found) > 2


def test_truth_values_inside_a_feature_are_labels_and_groups(prepared):
    data = faces(prepared)
    assert data.label_names == ("not Smiling", "Smiling") and data.inputs.shape[1:] == (8, 8, 3)
    assert data.group_names == ("not Male", "Male") and len(data.splits["test"]) == 40
    assert data.cell_counts("test").sum(axis=0).tolist() == [20, 20]
    assert data.labels[data.splits["test"]].sum() == 14  # of 40, each third
    assert data.ids is not None
    train, val = (set(data.ids[data.splits[split]].tolist()) for split in ("train", "val"))
    assert not train & val and len(train) + len(val) == PEOPLE and len(val) == PEOPLE // 4
    assert any("No val split is given: 24 of 96 rows of train" in note for note in data.notes)
    turned = faces(prepared, positive="not Smiling")
    assert turned.label_names == ("Smiling", "not Smiling")
    np.testing.assert_array_equal(turned.labels, 1 - data.labels)


def test_a_table_has_the_classes_and_splits_of_the_set(prepared):
    options: Any = {"label": "survived", "sensitive": "sex", "data_dir": prepared}
    data = load_tfds_table("voyage:plain", **options, allow_small_groups=True)
    assert data.label_names == ("zero", "died") and data.group_names == ("female", "male")
    assert data.feature_names[0] == "age" and len(data.feature_names) == 6, data.feature_names
    train, val, test = (len(data.splits[split]) for split in ("train", "val", "test"))
    assert (val, train + test) == (19, 79) and 18 <= test <= 21 and not data.fixed_test
    notes = " ".join(data.notes)
    assert "Split 'extra' of 3 records is not read." in notes
    assert "Dropped 2 of 100 rows with missing values ('survived' 2)." in notes
    assert "'valid' is read as 'val'" in notes and "No test split is given" in notes
    named: Any = {"features": ("age",), "drop": ("where",)}
    vector = load_tfds_table("voyage:vector", **options, features=("age",), allow_small_groups=True)
    assert vector.feature_names == ("age",)
    del named["features"]
    dropped = load_tfds_table("voyage:vector", **options, **named, allow_small_groups=True)
    assert dropped.feature_names == data.feature_names
    with pytest.raises(ValueError, match=r"'where' is Tensor of shape \(2,\), and a table"):
        load_tfds_table("voyage:vector", **options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "Smile"}, "no feature 'Smile'; there are attributes/Male, attributes/Smiling, "),
        ({"sensitive": "landmarks"}, "no feature 'landmarks'; there are "),
        ({"label": "image"}, "'image' is Image of shape (218, 178, 3), expected is a class"),
        ({"image": "picture"}, "no feature 'picture' is a picture; its pictures are image"),
        ({"positive": "yes"}, "never holds positive='yes'; it holds 'Smiling', 'not Smiling'"),
        ({"split": (0.5, 0.5, 0.5)}, "three positive numbers summing to 1"),
        ({"id_column": "lefteye_x"}, None),
    ],
)
def test_what_does_not_fit_is_named_with_what_there_is(prepared, changes, message):
    if message is None:  # the same number in train and test
        with pytest.raises(ValueError, match=r"\(test\), record \d+: id '\d+' is in split 'test'"):
            faces(prepared, **changes)
        return
    with pytest.raises(ValueError) as caught:
        faces(prepared, **changes)
    assert message in str(caught.value) and len(str(caught.value)) < 350


def test_a_set_that_is_not_there_says_how_it_is_made(prepared, tmp_path):
    options: Any = {"label": "x", "sensitive": "y", "data_dir": prepared}
    for name, message in (
        ("fairjax_papila", "python -m experiments.prepare papila --manual-dir"),
        ("ham10000", "or read fairjax_ham10000, which is there"),
        ("mnist", "tfds build mnist --file_format=array_record --data_dir="),
        ("voyage:other", "tfds build voyage/other"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            load_tfds(name, **options)
    with pytest.raises(ValueError, match="choose of voyage:plain, voyage:vector"):
        load_tfds_table("voyage", **options)
    with pytest.raises(ValueError, match=r"is called name or name:config, got '\.\./raw'"):
        load_tfds("../raw", **options)
    with pytest.raises(ValueError, match="it holds no pictures; read it as a table"):
        load_tfds("voyage:plain", **options)
    given: Any = {"tfds_dir": prepared, "label": "Smiling", "sensitive": ("Male",)}
    with pytest.raises(ValueError, match="'image' is Image of shape .* read the set as images"):
        load_data(Data("tfds:celeb_a", **given))
    with pytest.raises(ValueError, match=r"--data.csv does not apply to tfds with images"):
        load_data(Data("tfds:celeb_a", csv=(tmp_path,), **given), image_size=8)


def test_another_format_and_damaged_files_are_told_in_a_line(prepared, tmp_path):
    folder = tmp_path / "celeb_a" / "2.1.0"
    folder.mkdir(parents=True)
    for file in (prepared / "celeb_a" / "2.1.0").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    options: Any = {"data_dir": tmp_path, "cache_dir": tmp_path / "cache"}
    shard = next(folder.glob("*test*"))
    shard.write_bytes(shard.read_bytes()[:5000])
    with pytest.raises(ValueError, match="celeb_a") as caught:
        faces(prepared, **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    shard.unlink()
    with pytest.raises((ValueError, FileNotFoundError), match="celeb_a"):
        faces(prepared, **options)
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    with pytest.raises(ValueError, match="prepared as tfrecord.*tfds convert_format --dataset_ver"):
        faces(prepared, **options)
    (folder / "dataset_info.json").write_text("{")
    with pytest.raises(ValueError, match=r"dataset_info.json: cannot be read"):
        faces(prepared, **options)
