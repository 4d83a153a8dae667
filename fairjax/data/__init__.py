"""Data as arrays: tables, images, splits and synthetic sets."""

from fairjax.data.dataset import SPLITS, Dataset, Examples
from fairjax.data.splits import split_by_id, stratified_split
from fairjax.data.synthetic import synthetic_gaussians

__all__ = [
    "SPLITS",
    "Dataset",
    "Examples",
    "split_by_id",
    "stratified_split",
    "synthetic_gaussians",
]
