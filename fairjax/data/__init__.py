"""Data as arrays: tables, images, splits and synthetic sets."""

from fairjax.data.benchmark_tables import load_adult as load_adult
from fairjax.data.benchmark_tables import load_compas as load_compas
from fairjax.data.census import load_census as load_census
from fairjax.data.dataset import SPLITS as SPLITS
from fairjax.data.dataset import Dataset as Dataset
from fairjax.data.dataset import Examples as Examples
from fairjax.data.digits import colored_digits as colored_digits
from fairjax.data.image_tables import ImageTable as ImageTable
from fairjax.data.image_tables import image_dataset as image_dataset
from fairjax.data.image_tables import load_image_table as load_image_table
from fairjax.data.lesion_files import write_lesions as write_lesions
from fairjax.data.lesions import lesions_dataset as lesions_dataset
from fairjax.data.lesions import synthetic_lesions as synthetic_lesions
from fairjax.data.named import load_named as load_named
from fairjax.data.named import read_named as read_named
from fairjax.data.pictures import synthetic_pictures as synthetic_pictures
from fairjax.data.resplit import Splits as Splits
from fairjax.data.resplit import folds as folds
from fairjax.data.resplit import given_split as given_split
from fairjax.data.resplit import resplits as resplits
from fairjax.data.splits import balance_groups as balance_groups
from fairjax.data.splits import split_by_id as split_by_id
from fairjax.data.splits import stratified_split as stratified_split
from fairjax.data.synthetic import shortcut_gaussians as shortcut_gaussians
from fairjax.data.synthetic import synthetic_gaussians as synthetic_gaussians
from fairjax.data.tables import load_csv as load_csv
