"""FairTune the PyTorch way: one mask after another, every image decoded again in every epoch.

The protocol of Dutt et al.'s search: Optuna's TPE proposes a mask and a learning rate, a fresh
network trains with `requires_grad` only where the mask says so, and the last epoch's validation
value is the trial's. Written for speed as PyTorch allows: loaders and their workers live
as long as the search, the optimiser holds trained parameters only, nothing is computed for frozen
ones. Departures, all in its favour or in the metric's: metrics are taken once on the whole split
instead of averaged over batches, and the pruner is left out, as it saved nothing.
"""

import math
import multiprocessing
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from experiments.baselines.torch_models import VisionTransformer

EVAL_BATCH = 64


class Files(NamedTuple):
    """Image files with what is known about them."""

    paths: Sequence[Any]
    labels: np.ndarray
    group: np.ndarray


class Trial(NamedTuple):
    """One mask that was trained."""

    mask: np.ndarray
    learning_rate: float
    value: float


class RandomView:
    """torchvision's RandomResizedCrop and horizontal flip: a random box at `size` pixels."""

    def __init__(self, size: int):
        self.size = size

    def __call__(self, image):
        width, height = image.size
        left, top, box_width, box_height = self._box(width, height)
        box = (left, top, left + box_width, top + box_height)
        view = image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box)
        return view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else view

    @staticmethod
    def _box(width: int, height: int) -> tuple[int, int, int, int]:
        for _ in range(10):
            area = width * height * random.uniform(0.08, 1.0)
            ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return random.randint(0, width - w), random.randint(0, height - h), w, h
        short = min(width, height)
        w, h = min(width, round(short * 4 / 3)), min(height, round(short * 4 / 3))
        return (width - w) // 2, (height - h) // 2, w, h


class CentreView:
    """torchvision's Resize and CenterCrop with the customary margin of 256 to 224."""

    def __init__(self, size: int):
        self.size = size

    def __call__(self, image):
        side = min(image.size) * self.size / round(self.size * 256 / 224)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        box = (left, top, left + side, top + side)
        return image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box)


class ImageFiles(Dataset):
    """Decodes a file whenever it is asked for; uint8 `[3, S, S]`, its label and its row."""

    def __init__(self, files: Files, view):
        self.paths, self.labels, self.view = list(files.paths), files.labels, view

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, row):
        with Image.open(self.paths[row]) as image:
            pixels = np.array(self.view(image.convert("RGB")))
        return torch.from_numpy(pixels).permute(2, 0, 1), int(self.labels[row])


class Loaders(NamedTuple):
    """Batches of both splits; workers stay alive from trial to trial."""

    train: DataLoader
    val: DataLoader

    @classmethod
    def make(cls, train: Files, val: Files, *, image_size: int, batch_size: int, num_workers: int):
        options: dict[str, Any] = {"num_workers": num_workers}
        if num_workers:
            # JAX lives in the same process and its threads do not survive a fork
            spawn = multiprocessing.get_context("spawn")
            options |= {"persistent_workers": True, "multiprocessing_context": spawn}
        train_set = ImageFiles(train, RandomView(image_size))
        val_set = ImageFiles(val, CentreView(image_size))
        return cls(
            DataLoader(train_set, batch_size=batch_size, shuffle=True, drop_last=True, **options),
            DataLoader(val_set, batch_size=EVAL_BATCH, **options),
        )


def worst_group_auc(logits: torch.Tensor, labels: np.ndarray, *, group: np.ndarray) -> float:
    """Smallest AUC of any group, on the whole split."""
    scores = logits.softmax(dim=1)[:, 1].numpy()
    return min(
        float(roc_auc_score(labels[group == g], scores[group == g])) for g in np.unique(group)
    )


def set_trainable(network: VisionTransformer, mask: np.ndarray) -> None:
    """The authors' `auto_peft1`: three bits per block, norms, attention and MLP; head always."""
    network.requires_grad_(False)
    network.head.requires_grad_(True)
    for block, (norm, attn, mlp) in zip(network.blocks, mask.reshape(-1, 3), strict=True):
        for part, on in (
            (block.norm1, norm),
            (block.norm2, norm),
            (block.attn, attn),
            (block.mlp, mlp),
        ):
            part.requires_grad_(bool(on))


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 to float32 in [-1, 1], the normalisation of this network's weights."""
    return pixels.float().div_(127.5).sub_(1.0)


def train_epoch(
    network: nn.Module, optimizer: torch.optim.Optimizer, batches, *, rounded: bool = False
) -> None:
    network.train()
    for pixels, labels in batches:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=rounded):
            loss = functional.cross_entropy(network(normalised(pixels)), labels)
        loss.backward()
        optimizer.step()


@torch.inference_mode()
def predict(network: nn.Module, batches, *, rounded: bool = False) -> torch.Tensor:
    """Logits of a whole split, float32."""
    network.eval()
    with torch.autocast("cpu", torch.bfloat16, enabled=rounded):
        return torch.cat([network(normalised(pixels)).float() for pixels, _ in batches])


def train_trial(
    network: VisionTransformer,
    weights: dict[str, torch.Tensor],
    mask: np.ndarray,
    learning_rate: float,
    loaders: Loaders,
    val: Files,
    *,
    num_epochs: int,
    weight_decay: float = 0.01,
    rounded: bool = False,
) -> float:
    """Train from the pre-trained weights, `rounded` under autocast; the last epoch's objective.

    The published code validates after every epoch, too, and throws that away; this does not.
    """
    network.load_state_dict(weights)
    set_trainable(network, mask)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_epochs)
    for _ in range(num_epochs):
        train_epoch(network, optimizer, loaders.train, rounded=rounded)
        schedule.step()
    logits = predict(network, loaders.val, rounded=rounded)
    return worst_group_auc(logits, val.labels, group=val.group)


def search(
    network: VisionTransformer,
    weights: dict[str, torch.Tensor],
    loaders: Loaders,
    val: Files,
    *,
    num_trials: int,
    num_epochs: int,
    learning_rates: tuple[float, float],
    seed: int,
    rounded: bool = False,
) -> list[Trial]:
    """All trials of a search for the mask with the best worst-group AUC, in order."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    random.seed(seed)
    torch.manual_seed(seed)
    trials = []

    def objective(trial) -> float:
        bits = [trial.suggest_int(f"Mask Idx {i}", 0, 1) for i in range(3 * len(network.blocks))]
        mask, rate = np.array(bits, bool), trial.suggest_float("lr", *learning_rates, log=True)
        how: dict[str, Any] = {"num_epochs": num_epochs, "rounded": rounded}
        value = train_trial(network, weights, mask, rate, loaders, val, **how)
        trials.append(Trial(mask, rate, value))
        return value

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    study.optimize(objective, n_trials=num_trials)
    return trials


class Searcher:
    """A search with its loaders running and the faster number of threads chosen.

    Args:
      train: files to train on.
      val: files to validate on.
      weights: safetensors file that every trial starts from.
      network: what is trained.
      image_size: its inputs' side.
      num_epochs: of a trial.
      batch_size: of training.
      num_workers: processes that decode each split; 0 decodes in this one.
    """

    def __init__(
        self,
        train: Files,
        val: Files,
        weights: Path,
        network: VisionTransformer,
        *,
        image_size: int,
        num_epochs: int,
        batch_size: int,
        num_workers: int,
    ):
        self.network, self.weights, self.val = network, load_file(weights), val
        self.num_epochs, self.num_workers = num_epochs, num_workers
        self.loaders = Loaders.make(
            train,
            val,
            image_size=image_size,
            batch_size=batch_size,
            num_workers=num_workers,
        )
        self.rounded = False
        self._one_epoch(1)  # starts the workers
        self.choose()

    def choose(self, rounded: bool = False) -> None:
        """In float32 or, `rounded`, under bfloat16 autocast; with the faster number of threads."""
        self.rounded = rounded
        self.num_threads = min((1, 2), key=self._one_epoch)
        torch.set_num_threads(self.num_threads)

    def _one_epoch(self, num_threads: int) -> float:
        """Seconds of an epoch of every second unit."""
        torch.set_num_threads(num_threads)
        mask = np.arange(3 * len(self.network.blocks)) % 2 == 0
        both = (self.network, self.weights, mask, 1e-4, self.loaders, self.val)
        began = time.perf_counter()
        train_trial(*both, num_epochs=1, rounded=self.rounded)
        return time.perf_counter() - began

    def search(
        self, num_trials: int, learning_rates: tuple[float, float], seed: int
    ) -> list[Trial]:
        """See `search`."""
        return search(
            self.network,
            self.weights,
            self.loaders,
            self.val,
            num_trials=num_trials,
            num_epochs=self.num_epochs,
            learning_rates=learning_rates,
            seed=seed,
            rounded=self.rounded,
        )
