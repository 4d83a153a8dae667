"""Data as arrays: tables, images, splits and synthetic sets."""

from fairjax.data.dataset import SPLITS, Dataset, Examples

__all__ = ["SPLITS", "Dataset", "Examples"]
