"""Every named set from a small tree in its raw layout, through the command line to a Dataset."""

import csv
import json
import sys
import zipfile
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import prepare
from experiments.run import main
from fairjax.data.lesions import synthetic_lesions, write_ham10000
from fairjax.data.named import RECIPES, load_named, read_named

PEOPLE = 30
SEX = ("female", "male")


def picture(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (24, 20), (value % 256, 40, 90)).save(path)


def rows(path, header, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = [header, *(",".join(map(str, line)) for line in lines)]
    path.write_text("\n".join(text) + "\n")


def make_ham10000(folder):
    lines = []
    for i in range(2 * PEOPLE):
        dx = ("nv", "mel", "bcc", "akiec", "bkl", "df", "vasc")[i % 7]
        person = i // 2
        age = "" if person == 0 else 20.0 + 2 * person
        sex = "unknown" if person == 1 else SEX[person % 2]
        lines.append((f"HAM_{person}", f"ISIC_{i}", dx, "histo", age, sex, "back", "vidir"))
        picture(folder / f"HAM10000_images_part_{1 + i % 2}" / f"ISIC_{i}.jpg", i)
    rows(
        folder / "HAM10000_metadata.csv",
        "lesion_id,image_id,dx,dx_type,age,sex,localization,dataset",
        lines,
    )


def make_fitzpatrick(folder):
    lines = []
    for i in range(2 * PEOPLE):
        part = ("malignant", "benign", "non-neoplastic")[i % 3]
        condition = ("vitiligo", "acne", "melanoma")[i % 3]
        scale = -1 if i < 3 else 1 + i % 6
        lines.append((f"hash{i:02d}", scale, 3, condition, "nine", part, "", f"http://x/{i}", ""))
        picture(folder / "images" / f"hash{i:02d}.jpg", i)
    rows(
        folder / "fitzpatrick17k.csv",
        "md5hash,fitzpatrick_scale,fitzpatrick_centaur,label,nine_partition_label,"
        "three_partition_label,qc,url,url_alphanum",
        lines,
    )


def make_papila(folder):
    for eye in ("OD", "OS"):
        sheet: list[list[Any]] = [
            ["ID", "Age", "Gender", "Diagnosis", "Refractive_Defect"],
            ["", "", "", "", "d1"],
        ]
        for i in range(PEOPLE):
            sheet.append([f"#{i:03d}", 40 + 2 * i, i % 2, (0, 1, 0, 1, 2)[i % 5], 0.5])
            picture(folder / "FundusImages" / f"RET{i:03d}{eye}.jpg", i)
        write_xlsx(folder / "ClinicalData" / f"patient_data_{eye.lower()}.xlsx", sheet)


def write_xlsx(path, sheet):
    """A minimal spreadsheet: shared strings for text, plain values for numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texts, body = [], ""
    for r, line in enumerate(sheet, 1):
        cells = ""
        for c, value in enumerate(line):
            place = f"{'ABCDEFGH'[c]}{r}"
            if isinstance(value, str):
                texts.append(value)
                cells += f'<c r="{place}" t="s"><v>{len(texts) - 1}</v></c>' if value else ""
            else:
                cells += f'<c r="{place}"><v>{value}</v></c>'
        body += f'<row r="{r}">{cells}</row>'
    space = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    shared = "".join(f"<si><t>{text}</t></si>" for text in texts)
    with zipfile.ZipFile(path, "w") as book:
        book.writestr("xl/sharedStrings.xml", f"<sst {space}>{shared}</sst>")
        book.writestr(
            "xl/worksheets/sheet1.xml",
            f"<worksheet {space}><sheetData>{body}</sheetData></worksheet>",
        )


def make_ol3i(folder):
    (folder / "Image_Slices").mkdir(parents=True)
    lines = []
    for i in range(2 * PEOPLE):
        np.save(
            folder / "Image_Slices" / f"s{i}.npy", np.linspace(-1000, 1000 + i, 400).reshape(20, 20)
        )
        lines.append((f"/data/s{i}.npy", i % 5 == 0, "MF"[i % 2], 30 + i))
    lines = [(a, int(b), c, d) for a, b, c, d in lines]
    rows(folder / "ol3i.csv", "path,label_1y,sex,age", lines)


def make_oasis1(folder):
    lines = []
    for i in range(2 * PEOPLE):
        subject = f"OAS1_{i:04d}_MR1"
        cdr = "" if i < 5 else (0, 0.5, 0, 1)[i % 4]
        lines.append((subject, "MF"[i // 2 % 2], "R", 20 + i, 2, 3, 29, cdr, 1344, 0.7, 1.3, "N/A"))
        name = f"{subject}_mpr_n4_anon_111_t88_gfc_tra_90.gif"
        path = folder / "disc1" / subject / "PROCESSED" / "MPRAGE" / "T88_111" / name
        path.parent.mkdir(parents=True)
        Image.new("L", (17, 20), 3 * i).save(path)
    rows(
        folder / "oasis_cross-sectional.csv",
        "ID,M/F,Hand,Age,Educ,SES,MMSE,CDR,eTIV,nWBV,ASF,Delay",
        lines,
    )


def make_chexpert(folder):
    for part, start, stop in (("train", 0, 50), ("valid", 50, 60)):
        lines = []
        for i in range(start, stop):
            place = f"{part}/patient{i // 2:05d}/study1/view{i % 2 + 1}_frontal.jpg"
            picture(folder / place, i)
            sex, healthy = ("Female", "Male", "Unknown")[i // 2 % 3], "1.0" if i % 3 else ""
            lines.append((f"CheXpert-v1.0-small/{place}", sex, 20 + i, "Frontal", "AP", healthy))
        rows(folder / f"{part}.csv", "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding", lines)


def make_gf3300(folder):
    folder.mkdir(parents=True, exist_ok=True)
    numbers = [*range(1, 31), *range(2101, 2113), *range(2401, 2413)]
    for i in numbers:
        np.savez(
            folder / f"data_{i:04d}.npz",
            rnflt=np.full((20, 20), float(i % 350), np.float32),
            glaucoma=np.array(i % 2),
            male=np.array(i // 2 % 2),
            race=np.array(i % 3),
            age=np.array(40.5 + i % 40),
            md=np.array(-1.0),
        )


def make_isic2019(folder):
    classes = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")
    truth, facts = [], []
    for i in range(2 * PEOPLE):
        one_hot = [float(k == i % 8) for k in range(8)]
        truth.append((f"ISIC_{i:03d}", *one_hot, 0.0))
        facts.append(
            (
                f"ISIC_{i:03d}",
                "" if i == 3 else 50 + i % 30,
                "back",
                f"L{i // 2}" if i % 4 else "",
                "" if i == 7 else SEX[i // 8 % 2],
            )
        )
        picture(folder / "ISIC_2019_Training_Input" / f"ISIC_{i:03d}.jpg", i)
    rows(folder / "ISIC_2019_Training_GroundTruth.csv", f"image,{','.join(classes)},UNK", truth)
    rows(
        folder / "ISIC_2019_Training_Metadata.csv",
        "image,age_approx,anatom_site_general,lesion_id,sex",
        facts[::-1],
    )


def make_utkface(folder):
    for i in range(3 * PEOPLE):
        picture(
            folder / "part1" / f"{10 + i % 80}_{i % 2}_{i // 2 % 3}_2017{i:04d}.jpg.chip.jpg", i
        )
    picture(folder / "part1" / "61_1_20170109150557335.jpg.chip.jpg")


MAKERS = {
    "ham10000": make_ham10000,
    "fitzpatrick17k": make_fitzpatrick,
    "fitzpatrick17k_114": make_fitzpatrick,
    "papila": make_papila,
    "ol3i": make_ol3i,
    "oasis1": make_oasis1,
    "chexpert": make_chexpert,
    "gf3300": make_gf3300,
    "isic2019": make_isic2019,
    "utkface": make_utkface,
}


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
    status = run(
        monkeypatch, name, "--manual-dir", raw, "--out", out, "--size", 16,
        "--cache-dir", tmp_path / "cache", "--allow-small-groups",
    )  # fmt: skip
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
    assert [label(f"hash{i:02d}") for i in (3, 4, 5)] == [
        "malignant", "not malignant", "not malignant",
    ]  # fmt: skip


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


def test_lesions_written_by_prepare_are_read_back_as_ham10000(tmp_path, monkeypatch, capsys):
    status = run(
        monkeypatch, "lesions", "--out", tmp_path, "--num-images", 80, "--height", 32,
        "--width", 32,
    )  # fmt: skip
    assert status == 0 and "80 synthetic images" in capsys.readouterr().out
    data = load_named(
        "ham10000", tmp_path, size=32, sensitive="skin_tone", cache_dir=tmp_path / "c",
        allow_small_groups=True,
    )  # fmt: skip
    lesions = synthetic_lesions(jax.random.key(0), 80, 32)
    np.testing.assert_array_equal(data.labels, lesions.labels)
    np.testing.assert_array_equal(data.group == 0, lesions.group == 1)
    assert np.abs(data.inputs.astype(int) - lesions.images).mean() < 6


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


def test_equal_lesions_give_equal_files(tmp_path):
    lesions = synthetic_lesions(jax.random.key(3), 4, 32)
    for folder in ("a", "b"):
        write_ham10000(lesions, tmp_path / folder)
    for path in sorted((tmp_path / "a").rglob("*.*")):
        twin = tmp_path / "b" / path.relative_to(tmp_path / "a")
        assert path.read_bytes() == twin.read_bytes()
