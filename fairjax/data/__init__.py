"""Data as arrays: tables, images, splits and synthetic sets."""

from fairjax.data.dataset import SPLITS, Dataset, Examples
from fairjax.data.splits import split_by_id, stratified_split
from fairjax.data.synthetic import synthetic_gaussians
from fairjax.data.tables import load_adult, load_compas, load_csv

__all__ = [
    "SPLITS",
    "Dataset",
    "Examples",
    "load_adult",
    "load_compas",
    "load_csv",
    "split_by_id",
    "stratified_split",
    "synthetic_gaussians",
]
