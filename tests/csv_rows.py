"""A small table as rows, and the CSV files made of it."""

import csv
import io
from typing import Any

import numpy as np

from fairjax.data import load_csv

ROWS = [
    # age, city, sex, outcome, part
    (20, "Bonn", "F", 0, "train"),
    (30, "Oslo", "F", 1, "train"),
    (40, "Bonn", "M", 0, "train"),
    (50, "Oslo", "M", 1, "train"),
    (35, "Bonn", "F", 0, "val"),
    (45, "Rome", "F", 1, "val"),
    (35, "Bonn", "M", 0, "val"),
    (55, "Oslo", "M", 1, "val"),
    (30, "Oslo", "F", 0, "test"),
    (25, "Bonn", "F", 1, "test"),
    (60, "Bonn", "M", 0, "test"),
    (35, "Oslo", "M", 1, "test"),
]
HEADER = ("age", "city", "sex", "outcome", "part")


def to_csv(rows, header=HEADER, **options):
    text = io.StringIO()
    writer = csv.writer(text, **options)
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def write(path, rows=ROWS, header=HEADER):
    path.write_text(to_csv(rows, header), encoding="utf-8")
    return path


def changed(row, column, value, rows=ROWS):
    cells = [list(r) for r in rows]
    cells[row][HEADER.index(column)] = value
    return cells


def load(path, **options):
    defaults: dict[str, Any] = {"label": "outcome", "sensitive": "sex", "split": "part"}
    return load_csv(path, **(defaults | options))


def many_rows(n, seed=0):
    generator = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        sex, label = generator.choice(["F", "M"]), int(generator.random() < 0.3)
        rows.append((int(generator.integers(18, 90)), generator.choice(["a", "b"]), sex, label, i))
    return rows
