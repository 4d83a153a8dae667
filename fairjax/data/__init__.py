"""Data as arrays: tables, images, splits and synthetic sets."""

from fairjax.data.dataset import SPLITS, Dataset, Examples
from fairjax.data.image_tables import load_image_table
from fairjax.data.lesions import lesions_dataset, synthetic_lesions
from fairjax.data.named import load_named
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
    "lesions_dataset",
    "load_image_table",
    "load_named",
    "synthetic_lesions",
    "split_by_id",
    "stratified_split",
    "synthetic_gaussians",
]
