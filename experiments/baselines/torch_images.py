"""Images the PyTorch way: torchvision transforms in the workers of a DataLoader."""

import multiprocessing

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Workers are threads' rivals for the cores: leave each its own.
torch.set_num_threads(1)


class ImageFiles(Dataset):
    """Decodes a file and transforms it whenever it is asked for."""

    def __init__(self, paths, transform):
        self.paths, self.transform = paths, transform

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB"))


def decode_and_resize(size):
    return v2.Compose([v2.Resize(size), v2.CenterCrop(size), v2.PILToTensor()])


def train_transform(stored, size):
    return v2.Compose(
        [
            v2.Resize(stored),
            v2.CenterCrop(stored),
            v2.RandomCrop(size),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )


def loader(paths, transform, *, batch_size, num_workers):
    """Workers stay alive between epochs, so only the first pays for starting them."""
    return DataLoader(
        ImageFiles(paths, transform),
        batch_size=batch_size,
        shuffle=True,
        num_workers=num_workers,
        persistent_workers=True,
        multiprocessing_context=multiprocessing.get_context("spawn"),
    )


def resized_crop_pipeline(size):
    """torchvision's default training transform on a decoded uint8 tensor `[3, H, W]`."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
