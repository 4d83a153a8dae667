"""CSV plus folder as a Dataset: aliases, codings, splits and one-line errors."""

import pickle

import numpy as np
import pytest
from PIL import Image

from fairjax.data.image_tables import load_image_table

ROWS = 24


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pics").mkdir()
    for i in range(ROWS):
        Image.new("RGB", (12, 10), (10 * i, 0, 0)).save(tmp_path / "pics" / f"i{i}.png")
    return tmp_path


def write(folder, name="my.csv", rows=range(ROWS), **columns):
    """A CSV with the index column that pandas writes; a column is a function of the row."""
    standard = {
        "Path": lambda i: f"pics/i{i}.png",
        "y": lambda i: i % 2,
        "Gender": lambda i: "M" if i % 4 < 2 else "f",
        "AGE": lambda i: 50 + i,
        "patient": lambda i: f"p{i // 2}",
    } | columns
    lines = ["," + ",".join(standard)]
    for i in rows:
        lines.append(f"{i}," + ",".join(str(make(i)) for make in standard.values()))
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name


def load(folder, **arguments):
    settings = {"label": "y", "sensitive": "sex", "size": 8, "cache_dir": folder / "cache"}
    path = arguments.pop("path", folder / "my.csv")
    return load_image_table(path, **(settings | arguments))


def test_a_csv_and_a_folder_become_a_dataset(folder):
    write(folder)
    data = load(folder)
    assert data.inputs.shape == (ROWS, 8, 8, 3) and data.inputs.dtype == np.uint8
    np.testing.assert_array_equal(data.inputs[:, 0, 0, 0], 10 * np.arange(ROWS))
    np.testing.assert_array_equal(data.labels, np.arange(ROWS) % 2)
    assert data.group_names == ("female", "male")
    np.testing.assert_array_equal(data.group, (np.arange(ROWS) % 4 < 2).astype(int))
    assert sorted(np.concatenate(list(data.splits.values()))) == list(range(ROWS))


@pytest.mark.parametrize("header", ["image_id", "hasher", "MD5HASH", "Image"])
def test_image_columns_go_by_many_names_and_suffixes_may_be_left_out(folder, header):
    path = write(folder, Path=lambda i: f"i{i}")
    path.write_text(path.read_text().replace("Path", header))
    assert len(load(folder, image_root=folder / "pics").labels) == ROWS


def test_ages_become_bands_in_which_a_cut_ends_its_band(folder):
    write(folder)
    data = load(folder, sensitive="age", age_cuts=(60,))
    assert data.group_names == ("age <= 60", "age > 60")
    np.testing.assert_array_equal(data.group, (np.arange(ROWS) > 10).astype(int))
    derived = load(folder, sensitive="Age_binary")
    np.testing.assert_array_equal(derived.group, data.group)
    bands = load(folder, sensitive="Age_multi", allow_small_groups=True)
    assert bands.group_names == ("39 < age <= 59", "59 < age <= 79")


def test_attributes_combine_into_named_intersections(folder):
    write(folder)
    data = load(folder, sensitive=("sex", "Age_binary"))
    assert data.group_names == (
        "female & age <= 60",
        "female & age > 60",
        "male & age <= 60",
        "male & age > 60",
    )
    assert data.group[0] == 2 and data.group[23] == 1


def test_unknown_attributes_leave_the_splits_or_form_a_group(folder):
    write(folder, Gender=lambda i: ["M", "F", "unknown", ""][i % 4])
    data = load(folder)
    rows = np.concatenate(list(data.splits.values()))
    assert sorted(rows) == [i for i in range(ROWS) if i % 4 < 2]
    assert any("12 rows with unknown sex" in note for note in data.notes)
    kept = load(folder, unknown="group", split=(0.5, 0.25, 0.25))
    assert kept.group_names == ("female", "male", "sex unknown")
    assert sum(map(len, kept.splits.values())) == ROWS


def test_codes_of_sex_are_kept_as_codes_since_sources_disagree(folder):
    write(folder, Gender=lambda i: i % 4 // 2)
    assert load(folder).group_names == ("Gender=0", "Gender=1")


def test_labels_can_be_merged_by_a_mapping_and_others_are_counted(folder):
    write(folder, y=lambda i: ["nv", "mel", "akiec", "vasc"][i % 4])
    data = load(folder, label={"y": {"nv": 0, "mel": 1, "akiec": 1}}, sensitive="Age_binary")
    assert data.label_names == ("nv", "mel/akiec") and len(data.labels) == 18
    assert any("Dropped 6 rows" in note for note in data.notes)


def test_patients_stay_together_and_given_splits_are_checked(folder):
    write(folder)
    data = load(folder, id_column="patient")
    owners = [{i // 2 for i in rows} for rows in data.splits.values()]
    assert not (owners[0] & owners[1] or owners[0] & owners[2] or owners[1] & owners[2])

    parts = {"train": range(0, 13), "val": range(13, 18), "test": range(18, 24)}
    path = {name: write(folder, f"{name}.csv", rows) for name, rows in parts.items()}
    data = load(folder, path=path)
    assert [len(data.splits[name]) for name in parts] == [13, 5, 6]
    with pytest.raises(ValueError, match=r"val\.csv, line 2: id 'p6' is in split 'val'.*'train'"):
        load(folder, path=path, id_column="patient")


def test_three_files_are_named_after_their_folder_and_a_column_may_give_the_split(folder):
    parts = {"train": range(0, 12), "val": range(12, 18), "test": range(18, 24)}
    (folder / "clinic").mkdir()
    path = {name: write(folder / "clinic", f"{name}.csv", rows) for name, rows in parts.items()}
    three = load(folder, path=path, image_root=folder)
    assert three.name == "clinic"
    write(folder, part=lambda i: next(name for name, rows in parts.items() if i in rows))
    one = load(folder, split="part")
    assert one.name == "my" and one.fingerprint == three.fingerprint
    with pytest.raises(ValueError, match="give three files or the split column 'part', not both"):
        load(folder, path=path, split="part")
    write(folder, part=lambda i: "holdout")
    with pytest.raises(
        ValueError, match="line 2: split column 'part' holds 'holdout', accepted are"
    ):
        load(folder, split="part")


def test_the_call_of_the_readme_needs_no_size(folder):
    write(folder, diagnosis=lambda i: i % 2)
    cache = folder / "cache"
    data = load_image_table(
        folder / "my.csv", folder, label="diagnosis", sensitive="sex", cache_dir=cache
    )
    assert data.inputs.shape == (ROWS, 256, 256, 3)


def test_medfair_pickles_are_read_in_row_order_and_swapped_to_rgb(folder):
    parts = {"train": range(0, 12), "val": range(12, 18), "test": range(18, 24)}
    path = {name: write(folder, f"{name}.csv", rows) for name, rows in parts.items()}
    pickles = {}
    for name, rows in parts.items():
        images = [np.full((10, 12, 3), (0, 0, 10 * i), np.uint8) for i in rows]
        pickles[name] = folder / f"{name}_images.pkl"
        pickles[name].write_bytes(pickle.dumps(images))
    with pytest.raises(ValueError, match="trust_pickle"):
        load(folder, path=path, pickles=pickles)
    data = load(folder, path=path, pickles=pickles, trust_pickle=True)
    np.testing.assert_array_equal(data.inputs[:, 0, 0, 0], 10 * np.arange(ROWS))
    assert not data.inputs[..., 1:].any()


def test_skipped_images_are_in_no_split_and_are_named(folder):
    write(folder)
    (folder / "pics" / "i5.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"my\.csv, line 7: .*i5\.png"):
        load(folder)
    data = load(folder, on_error="skip")
    assert 5 not in np.concatenate(list(data.splits.values()))
    assert any("line 7" in note and "i5.png" in note for note in data.notes)


@pytest.mark.parametrize(
    ("columns", "arguments", "message"),
    [
        (
            {"Path": lambda i: "../secret.png"},
            {},
            "line 2: image path '../secret.png' leads outside",
        ),
        ({"Path": lambda i: "/etc/passwd"}, {}, "leads outside"),
        (
            {"Path": lambda i: f"pics/none{i}.png"},
            {},
            r"line 2: no image pics/none0.png .*\(24 missing in all\)",
        ),
        ({}, {"label": "diagnosis"}, "no column 'diagnosis'; the columns are"),
        ({}, {"sensitive": "race"}, "no column 'race'"),
        ({}, {"sensitive": "age"}, "give age_cuts="),
        ({}, {"sensitive": "age", "age_cuts": (60, 40)}, "increasing"),
        ({"AGE": lambda i: 900}, {"sensitive": "Age_binary"}, "line 2: .*expected years"),
        ({"Gender": lambda i: "M"}, {}, "1 group"),
        ({"Gender": lambda i: "MF"[i == 0]}, {}, "Group 'female' has no rows in split"),
        ({}, {"label": {"y": {"0": 0, "1": 2}}}, "without gaps"),
        ({}, {"label": {"y": {"0": 0}, "z": {"0": 0}}}, "must map one column"),
        ({}, {"label": {"y": {"0": 0, "1": 1}}, "positive": "1"}, "does not go with a label that"),
        ({}, {"sensitive": ()}, "sensitive must name attributes"),
        ({}, {"sensitive": ("sex", "sex")}, "sensitive must name attributes, each once"),
        ({}, {"sensitive": "age", "age_cuts": (float("nan"),)}, "increasing ages"),
        ({}, {"window": (5, 5)}, "window must be two increasing finite numbers"),
        ({}, {"window": (0, float("inf"))}, "window must be two increasing finite numbers"),
        ({}, {"split": (0.5, 0.5, 0.5)}, "my: split ratios must be three positive numbers"),
        ({}, {"image_root": "/nowhere"}, "/nowhere: no such folder of images"),
        ({}, {"unknown": "keep"}, '"drop" or "group"'),
    ],
)
def test_bad_input_is_one_clear_line(folder, columns, arguments, message):
    write(folder, **columns)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load(folder, **arguments)
    assert "\n" not in str(caught.value)
