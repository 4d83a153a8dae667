"""Every named set from a small tree in its raw layout, through the command line to a Dataset."""

import csv
import json
import sys
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from raw_sets import (
    MAKERS,
    PEOPLE,
    SEX,
    make_chexpert,
    make_gf3300,
    make_ham10000,
    make_ol3i,
    make_papila,
    make_synthetic_lesions,
    picture,
    rows,
)

from experiments import prepare
from experiments.run import main
from fairjax.data import split_by_id, synthetic_lesions
from fairjax.data.lesion_files import MARKER
from fairjax.data.named import RECIPES, load_named, read_named


def run(monkeypatch, *args):
    """Exit status of `python -m experiments.prepare ...`."""
    monkeypatch.setattr(sys, "argv", ["prepare", *map(str, args)])
    try:
        main(prepare.prepare, prepare.PRESETS, description="")
    except SystemExit as leave:
        return leave.code
    return 0


@pytest.mark.parametrize("name", RECIPES)
def test_a_named_set_is_prepared_from_its_raw_layout(name, tmp_path, monkeypatch, capsys):
    raw, out = tmp_path / "raw", tmp_path / "out"
    MAKERS[name](raw)
    arguments = ("--manual-dir", raw, "--out", out, "--size", 16, "--allow-small-groups")
    status = run(monkeypatch, name, *arguments, "--cache-dir", tmp_path / "cache")
    printed = capsys.readouterr()
    assert status == 0, printed.err
    assert "licence to check" in printed.out and "label, group" in printed.out
    with Image.open(out / "gallery.png") as image:
        assert image.size[0] > 500
    summary = json.loads((out / "summary.json").read_text())
    data = load_named(name, raw, size=16, cache_dir=tmp_path / "cache", allow_small_groups=True)
    assert data.fingerprint == summary["fingerprint"]
    assert data.inputs.shape[1:] == (16, 16, 3)
    _, table = read_named(name, raw)
    owners = []
    for split, picked in data.splits.items():
        with (out / "splits" / f"{split}.csv").open() as file:
            written = list(csv.DictReader(file))
        assert [row["label"] for row in written] == [
            data.label_names[k] for k in data.labels[picked]
        ]
        assert [row["group"] for row in written] == [
            data.group_names[g] for g in data.group[picked]
        ]
        assert all((raw / row["path"]).is_file() for row in written)
        owners.append({row["id"] for row in written} if table.ids is not None else set(picked))
    assert all(owners) and not (
        owners[0] & owners[1] | owners[0] & owners[2] | owners[1] & owners[2]
    )


def read(name, tmp_path):
    MAKERS[name](tmp_path)
    table: Any = read_named(name, tmp_path)[1]
    by_name = {path.stem.partition(".")[0]: row for row, path in enumerate(table.paths)}

    def group(attribute, stem):
        column = table.attributes[attribute]
        code = column.codes[by_name[stem]]
        return None if code < 0 else column.values[code]

    return table, group, lambda stem: table.label_names[table.labels[by_name[stem]]]


def test_ham10000_counts_bcc_as_benign_and_puts_sixty_with_the_young(tmp_path):
    table, group, label = read("ham10000", tmp_path)
    assert len(table.labels) == 2 * PEOPLE - 2  # the person without an age
    expected = {2: "benign", 3: "malignant", 4: "benign", 8: "malignant", 7: "benign"}
    assert {i: label(f"ISIC_{i}") for i in expected} == expected
    assert group("sex", "ISIC_2") is None and group("sex", "ISIC_6") == "male"
    assert group("age_binary", "ISIC_40") == "age <= 60"  # 20 + 2 * 20
    assert group("age_binary", "ISIC_42") == "age > 60"
    assert group("age_multi", "ISIC_40") == "59 < age <= 79"


def test_fitzpatrick17k_drops_unknown_types_and_codes_skin_and_malignancy(tmp_path):
    table, group, label = read("fitzpatrick17k", tmp_path)
    assert len(table.labels) == 2 * PEOPLE - 3
    assert group("skin_binary", "hash08") == "types I-III"  # type III
    assert group("skin_binary", "hash09") == "types IV-VI"
    assert group("skin_type", "hash09") == "type IV"
    assert label("hash03") == "malignant"
    assert label("hash04") == label("hash05") == "not malignant"


def test_fitzpatrick17k_conditions_are_coded_alphabetically(tmp_path):
    table, _, label = read("fitzpatrick17k_114", tmp_path)
    assert table.label_names == ("acne", "melanoma", "vitiligo") and label("hash04") == "acne"


def test_papila_reads_spreadsheets_drops_suspicious_eyes_and_codes_zero_as_male(tmp_path):
    table, group, label = read("papila", tmp_path)
    assert len(table.labels) == 2 * PEOPLE * 4 // 5
    assert group("sex", "RET000OD") == "male" and group("sex", "RET001OS") == "female"
    assert group("age_binary", "RET010OD") == "age <= 60"
    assert label("RET001OD") == "glaucoma" and label("RET002OS") == "healthy"
    assert len(table.splits["train"]) == 32 and len(table.splits["val"]) == 4


def test_oasis1_keeps_rated_subjects_and_calls_any_dementia_demented(tmp_path):
    table, group, label = read("oasis1", tmp_path)
    assert len(table.labels) == 2 * PEOPLE - 5
    stem = "OAS1_{:04d}_MR1_mpr_n4_anon_111_t88_gfc_tra_90"
    assert label(stem.format(5)) == "demented" and label(stem.format(6)) == "not demented"
    assert group("sex", stem.format(6)) == "female"


def test_ol3i_maps_hounsfield_units_without_wrapping(tmp_path):
    make_ol3i(tmp_path)
    data = load_named("ol3i", tmp_path, size=20, cache_dir=tmp_path / "cache")
    column = data.inputs[0, :, 10, 0].astype(int)
    assert (np.diff(column) > 0).all() and column[0] < 20 and column[-1] > 235
    assert data.labels[:6].tolist() == [1, 0, 0, 0, 0, 1]


def test_chexpert_takes_blank_for_a_finding_and_unknown_sex_for_unknown(tmp_path):
    make_chexpert(tmp_path)
    table: Any = read_named("chexpert", tmp_path)[1]
    assert table.labels[:4].tolist() == [0, 1, 1, 0]
    assert table.attributes["sex"].codes[:6].tolist() == [0, 0, 1, 1, -1, -1]
    assert table.ids[50] == "patient00025"


@pytest.mark.parametrize("place", ["CheXpert-v1.0-small/../../secret.jpg", "/etc/patient1.jpg"])
def test_chexpert_paths_may_not_lead_outside(tmp_path, place):
    make_chexpert(tmp_path)
    with (tmp_path / "valid.csv").open("a") as file:
        file.write(f"{place},Female,50,Frontal,AP,\n")
    with pytest.raises(ValueError, match="valid.csv, line 12: image path '.*' leads outside"):
        read_named("chexpert", tmp_path)


def test_gf3300_reads_npz_with_the_official_split_and_a_fixed_window(tmp_path):
    table, group, label = read("gf3300", tmp_path)
    assert [len(table.splits[s]) for s in ("train", "val", "test")] == [30, 12, 12]
    assert group("race", "data_0001") == "Black" and group("race", "data_0002") == "Asian or White"
    assert label("data_0001") == "glaucoma" and group("sex", "data_0002") == "male"
    data = load_named("gf3300", tmp_path, size=8, cache_dir=tmp_path / "cache")
    assert data.inputs[6, 0, 0, 0] == round(255 * 7 / 350)


def test_isic2019_joins_metadata_by_image_and_gives_lone_images_their_own_id(tmp_path):
    table, group, label = read("isic2019", tmp_path)
    assert label("ISIC_009") == "NV" and group("sex", "ISIC_009") == "male"
    assert group("sex", "ISIC_007") is None and group("age_binary", "ISIC_003") is None
    assert table.ids[0] == "ISIC_000" and table.ids[1] == "L0"


def test_utkface_reads_names_and_counts_those_that_lack_a_part(tmp_path):
    table, group, label = read("utkface", tmp_path)
    assert len(table.labels) == 3 * PEOPLE and "Dropped 1 files" in table.notes[0]
    assert group("race", "10_0_0_20170000") == "White" and label("11_1_0_20170001") == "female"


def test_prepared_csvs_are_used_where_they_are_with_their_split(tmp_path):
    numbers = {"train": range(0, 16), "val": range(16, 24), "test": range(24, 32)}
    for split, members in numbers.items():
        lines = []
        for i in members:
            picture(tmp_path / "HAM10000_images" / f"ISIC_{i}.jpg", i)
            path = f"HAM10000_images/ISIC_{i}.jpg"
            lines.append((i, path, i % 2, SEX[i // 2 % 2], "MF"[i // 2 % 2 == 0], 50 + i, 0, 1))
        header = ",Path,binaryLabel,sex,Sex,age,Age_multi,Age_binary"
        rows(tmp_path / f"new_{split}.csv", header, lines)
    data = load_named("ham10000", tmp_path, size=8, cache_dir=tmp_path / "cache")
    assert [len(data.splits[split]) for split in numbers] == [16, 8, 8]
    assert data.group_names == SEX and data.labels[:3].tolist() == [0, 1, 0]


def test_what_is_missing_is_listed_with_its_home(tmp_path, monkeypatch, capsys):
    make_papila(tmp_path)
    for path in (tmp_path / "ClinicalData").iterdir():
        path.unlink()
    assert run(monkeypatch, "papila", "--manual-dir", tmp_path) == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith("error: ") and "\n" not in line
    assert "patient_data_od.*, ClinicalData/patient_data_os.*" in line and "figshare" in line


def test_a_missing_image_and_a_wrong_label_name_their_lines(tmp_path):
    make_ham10000(tmp_path)
    (tmp_path / "HAM10000_images_part_1" / "ISIC_4.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"line 6: no image ISIC_4.*\(1 missing in all\)"):
        read_named("ham10000", tmp_path)
    file = tmp_path / "HAM10000_metadata.csv"
    file.write_text(file.read_text().replace(",akiec,", ",wart,", 1))
    picture(tmp_path / "HAM10000_images_part_1" / "ISIC_4.jpg")
    with pytest.raises(ValueError, match=r"line 5: column 'dx' holds 'wart'"):
        read_named("ham10000", tmp_path)


def test_lesions_drawn_by_prepare_are_prepared_as_what_they_are(tmp_path, monkeypatch, capsys):
    raw, cache = tmp_path / "lesions", tmp_path / "cache"
    size = ("--num-images", 200, "--height", 32, "--width", 32)
    assert run(monkeypatch, "lesions", "--out", raw, *size) == 0
    assert "200 synthetic images" in capsys.readouterr().out
    written = sorted(raw.rglob("*"))
    assert run(monkeypatch, "lesions", "--out", raw, *size) == 0  # the same again: left as it is
    capsys.readouterr()
    arguments = ("--manual-dir", raw, "--out", tmp_path / "out", "--cache-dir", cache)
    assert run(monkeypatch, "synthetic_lesions", *arguments, "--size", 32) == 0
    printed = capsys.readouterr().out
    assert "drawn and not photographed" in printed and "no patients" in printed
    assert sorted(raw.rglob("*")) == written
    data = load_named("synthetic_lesions", raw, size=32, cache_dir=cache)
    lesions = synthetic_lesions(jax.random.key(0), 200, 32)
    assert data.group_names == ("dark", "light")
    np.testing.assert_array_equal(data.labels, lesions.labels)
    np.testing.assert_array_equal(data.group == 0, lesions.group == 1)
    assert np.abs(data.inputs.astype(int) - lesions.images).mean() < 6
    owners = [set(lesions.lesion[rows]) for rows in data.splits.values()]
    assert not (owners[0] & owners[1] or owners[0] & owners[2] or owners[1] & owners[2])


def test_prepare_draws_nothing_into_a_folder_that_holds_files(tmp_path, monkeypatch, capsys):
    make_ham10000(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert run(monkeypatch, "lesions", "--out", tmp_path, "--num-images", 8) == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith(f"error: {tmp_path}: holds files already") and "\n" not in line
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "synthetic_lesions"])
def test_every_reader_of_a_real_set_refuses_a_folder_of_synthetic_images(name, tmp_path):
    MAKERS[name](tmp_path)
    read_named(name, tmp_path)
    make_synthetic_lesions(tmp_path / "drawn")
    (tmp_path / "drawn" / MARKER).rename(tmp_path / MARKER)
    with pytest.raises(ValueError, match=f"holds synthetic images .*, which are not {name}"):
        read_named(name, tmp_path)


def test_a_real_table_whose_images_lie_in_a_marked_folder_is_refused(tmp_path):
    make_ham10000(tmp_path)
    (tmp_path / "HAM10000_images_part_2" / MARKER).write_text("drawn")
    with pytest.raises(ValueError, match="images_part_2: holds synthetic images"):
        read_named("ham10000", tmp_path)


def test_prepare_does_not_write_its_results_among_the_raw_files(tmp_path, monkeypatch, capsys):
    make_ham10000(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert run(monkeypatch, "ham10000", "--manual-dir", tmp_path, "--out", tmp_path) == 2
    assert "--out must not be the folder of the raw files" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


SPLIT_BY_ID = [name for name, recipe in RECIPES.items() if recipe.seeds is not None]


@pytest.mark.parametrize("name", SPLIT_BY_ID)
def test_a_seed_draws_another_split_and_seed_0_the_published_one(name, tmp_path):
    MAKERS[name](tmp_path)
    (_, published), (_, same), (_, other) = (
        read_named(name, tmp_path, seed=seed) for seed in (0, 0, 7)
    )
    assert published.splits is not None and same.splits is not None and other.splits is not None
    ids = published.ids
    if ids is None:  # faces: every file is its own person
        ids = np.array([path.name for path in published.paths])
    shares = {"papila": (0.3, 0.66), "oasis1": (0.3, 0.66)}.get(name, (0.2, 0.5))
    seeds = {"papila": (5, 15), "fitzpatrick17k": (5, 6), "fitzpatrick17k_114": (5, 6)}
    expected = split_by_id(
        ids, held_out=shares[0], test_share=shares[1], seeds=seeds.get(name, (0, 0))
    )
    for split in expected:
        np.testing.assert_array_equal(published.splits[split], expected[split])
        np.testing.assert_array_equal(published.splits[split], same.splits[split])
    assert not np.array_equal(published.splits["train"], other.splits["train"])
    assert "not the published" in other.notes[-1]


def test_a_split_that_comes_with_the_files_stays_whatever_the_seed(tmp_path):
    make_gf3300(tmp_path)
    (_, one), (_, other) = (read_named("gf3300", tmp_path, seed=seed) for seed in (0, 3))
    assert one.splits is not None and other.splits is not None
    for split, rows_of_split in one.splits.items():
        np.testing.assert_array_equal(rows_of_split, other.splits[split])
    assert other.notes[-1] == "The split comes with the files; seed 3 changes nothing."
    with pytest.raises(ValueError, match="seed must be a whole number .* got -1"):
        read_named("gf3300", tmp_path, seed=-1)


@pytest.mark.parametrize("name", ["ham10000", "oasis1"])
def test_the_tensorflow_dataset_holds_the_same_rows(name, tmp_path):
    import tensorflow_datasets as tfds

    from fairjax.data.named.builder import write_tfds

    raw = tmp_path / "raw"
    MAKERS[name](raw)
    recipe, table = read_named(name, raw)
    assert table.ids is not None and table.splits is not None
    folder = write_tfds(recipe, table, tmp_path / "tfds")
    assert write_tfds(recipe, table, tmp_path / "tfds") == folder
    builder: Any = tfds.builder_from_directory(str(folder))
    source = builder.as_data_source(split="val")
    assert len(source) == len(table.splits["val"]) and "tensorflow" not in sys.modules
    expected = {str(table.ids[row]) for row in table.splits["val"]}
    assert {example["id"].decode() for example in source} == expected
    assert builder.info.features["label"].names == list(table.label_names)
    assert source[0]["image"].shape[-1] == 3
