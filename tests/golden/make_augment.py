"""Writes augment.npz: one small image through torchvision's own operations (torch, torchvision)."""

from pathlib import Path

import numpy as np
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

draw = np.random.default_rng(0)
coarse = draw.uniform(0, 255, (3, 6, 8))
image = F.resize(torch.tensor(coarse), [40, 56]).clamp(0, 255).round().to(torch.uint8)
x = image.float() / 255

BOXES = [(0, 0, 40, 56), (3, 7, 12, 20), (10, 5, 30, 17), (39, 55, 1, 1)]
AFFINES = [(30.0, 0, 0, 1.0, 0.0), (-170.0, 3, -5, 0.8, 8.0), (0.0, 2, 1, 1.2, -10.0)]
FACTORS = [0.0, 0.4, 1.0, 1.7]
HUES = [-0.5, -0.13, 0.0, 0.29]


def hwc(tensor):
    return tensor.numpy().transpose(1, 2, 0).astype(np.float32)


def affine(angle, shift_x, shift_y, scale, shear):
    return F.affine(
        x, angle, [shift_x, shift_y], scale, [shear, 0.0], interpolation=InterpolationMode.BILINEAR
    )


np.savez_compressed(
    Path(__file__).with_name("augment.npz"),
    image=image.numpy().transpose(1, 2, 0),
    boxes=np.array(BOXES, np.int32),
    crops=np.stack([hwc(F.resized_crop(x, *box, [24, 24], antialias=True)) for box in BOXES]),
    affines=np.array(AFFINES, np.float32),
    warped=np.stack([hwc(affine(*values)) for values in AFFINES]),
    factors=np.array(FACTORS, np.float32),
    brightness=np.stack([hwc(F.adjust_brightness(x, f)) for f in FACTORS]),
    contrast=np.stack([hwc(F.adjust_contrast(x, f)) for f in FACTORS]),
    saturation=np.stack([hwc(F.adjust_saturation(x, f)) for f in FACTORS]),
    hues=np.array(HUES, np.float32),
    hue=np.stack([hwc(F.adjust_hue(x, h)) for h in HUES]),
    evaluated=hwc(F.center_crop(F.resize(x, [32], antialias=True), [28, 28])),
)
