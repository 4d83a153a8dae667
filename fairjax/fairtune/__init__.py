"""FairTune: choose which parts of a pre-trained network to fine-tune by validation fairness.

Dutt, Bohdal, Tsaftaris, Hospedales: "FairTune: Optimizing Parameter Efficient Fine Tuning for
Fairness in Medical Image Analysis", ICLR 2024.
"""

from fairjax.fairtune.lora import add_lora, fold_lora
from fairjax.fairtune.spaces import (
    PUBLISHED_NAMES,
    Description,
    MaskSpace,
    mask_space,
    mask_space_from_rules,
)

__all__ = [
    "PUBLISHED_NAMES",
    "Description",
    "MaskSpace",
    "add_lora",
    "fold_lora",
    "mask_space",
    "mask_space_from_rules",
]
