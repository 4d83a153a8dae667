"""Makes adult.npz from the one-hot Adult CSV: `python -m fairjax.data.make_adult adult.csv.zip`.

The CSV has UCI Adult's training and test rows together (45,222 without those with missing values),
numbers as they are and categories as 0/1 columns named `column_value`. The compact copy keeps
numbers as int32 and each category column as one uint8 code per row.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from fairjax.data.csvfile import number, read_csv


def main(source: str | Path, destination: str | Path) -> None:
    """Reads the CSV and writes the compact copy."""
    one_hot: dict[str, dict[str, np.ndarray]] = {}
    arrays: dict[str, Any] = {}
    for name, column in read_csv(source).columns.items():
        cells = np.array([number(value) for value in column.values], np.int32)[column.codes]
        base, underscore, value = name.partition("_")
        if underscore:
            one_hot.setdefault(base, {})[value] = cells
        else:
            arrays[name] = cells
    for base, indicators in one_hot.items():
        stacked = np.stack(list(indicators.values()), axis=1)
        if (stacked.sum(axis=1) != 1).any():
            raise ValueError(f"{source}: the columns {base}_* do not hold exactly one 1 per row")
        arrays[base] = stacked.argmax(axis=1).astype(np.uint8)
        arrays[f"{base}_values"] = np.array(list(indicators))
    np.savez_compressed(destination, **arrays)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m fairjax.data.make_adult PATH_TO_ADULT_CSV")
    main(sys.argv[1], Path(__file__).with_name("adult.npz"))
