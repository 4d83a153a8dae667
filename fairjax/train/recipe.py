"""How a network is trained: settings that are checked once and shared by every method."""

import dataclasses
import functools
import itertools
import math
import numbers
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax.numpy as jnp
import numpy as np
import optax

from fairjax import models, sampling
from fairjax.data import Dataset
from fairjax.data.streaming import device_budget, device_bytes
from fairjax.fairbatch import fairbatch
from fairjax.losses import balanced_class_weights, focal_loss, log_priors
from fairjax.models import Model
from fairjax.optimizers import Optimizer, Schedule, make_optimizer
from fairjax.sampling import BatchSampler
from fairjax.train.loop import Augment
from fairjax.train.step import Step, make_step

Sampler = Literal[
    "shuffled",
    "class_balanced",
    "group_balanced",
    "reweighted",
    "group_dro",
    "group_cvar",
    "fairbatch",
    "fairbatch@rate",
]
Loss = Literal["cross_entropy", "focal", "cvar", "logit_adjusted"]
_WORST_SHARE = 0.5
_FAIRBATCH: dict[str, dict[str, Any]] = {
    "fairbatch": {"step_size": 0.01},
    "fairbatch@rate": {"signal": "rate", "step_size": 0.1, "decay": 0.5},
}
_UPDATE_EVERY = 10  # batches, by which rates are known well enough
Dtype = Literal["float32", "bfloat16", "bfloat16_products"]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Settings of a training, checked when it is made; `dataclasses.replace` checks again.

    >>> recipe = Recipe(num_epochs=3, learning_rate=1e-3)
    >>> dataclasses.replace(recipe, weight_decay=-1.0)
    Traceback (most recent call last):
    ValueError: weight_decay must be at least 0, got -1.0

    Raises:
      ValueError: a number out of range or an unknown name; says which.
    """

    num_epochs: int = 3
    batch_size: int = 32
    sampler: Sampler | Callable[..., BatchSampler] = "shuffled"
    """see `fairjax.sampling`; group DRO and CVaR move with every batch, FairBatch every ten, for
    equalized odds. Or a function of the arguments that all samplers take; `update_every` of what it
    returns says when it adapts"""
    loss: Loss = "cross_entropy"
    """focal loss (gamma 2), the mean over the worst half of a batch (cvar), or logits adjusted by
    log P(label | group) of the training split"""
    optimizer: Optimizer = "adamw"
    learning_rate: float = 1e-3
    """the largest; searches try their own"""
    schedule: Schedule = "cosine"
    warmup_epochs: float = 0.0
    """of rising learning rate, at most half of the epochs"""
    drops: tuple[float, ...] = (1 / 3, 2 / 3)
    """of the schedule "step": where the rate falls to a tenth, as shares of the steps,
    rising"""
    momentum: float = 0.9
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | Literal["balanced"] | None = None
    """one per class; balanced: inverse to its share of the training split"""
    augment: Augment | None = None
    """`augment(key, inputs [B, ...])`, before the model's `preprocess`"""
    ema_decay: float | None = None
    """evaluate and keep the moving average of the parameters"""
    dtype: Dtype = "float32"
    """for networks that have the setting: bfloat16 of activations and products, on accelerators;
    bfloat16_products of products' factors alone, on CPUs that multiply it faster"""
    checkpoint_blocks: bool = False
    """recompute blocks in the backward pass: a third more work, much less memory"""
    data_bytes: int | None = None
    """that examples may take on a device, half of its memory by default; more are streamed"""

    def __post_init__(self):
        for name in ("drops", "class_weights"):  # also from lists and arrays
            value = getattr(self, name)
            if name == "drops" or not (value is None or isinstance(value, str)):
                object.__setattr__(self, name, _numbers(name, value))
        self._check_numbers()
        self._check_names()

    def _check_numbers(self) -> None:
        counts = {"num_epochs": self.num_epochs, "batch_size": self.batch_size}
        if self.data_bytes is not None:
            counts["data_bytes"] = self.data_bytes
        for name, value in counts.items():
            whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
            if not whole or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        for name in ("warmup_epochs", "weight_decay"):
            _require(name, getattr(self, name), lambda x: x >= 0, "at least 0")
        for name in ("momentum", "label_smoothing"):
            _require(name, getattr(self, name), lambda x: 0 <= x < 1, "in [0, 1)")
        _require("learning_rate", self.learning_rate, lambda x: x > 0, "positive")
        for drop in self.drops:
            _require("drops", drop, lambda x: 0 < x < 1, "in (0, 1)")
        if any(a >= b for a, b in itertools.pairwise(self.drops)):
            raise ValueError(f"drops must rise, got {self.drops}")
        if self.ema_decay is not None:
            _require("ema_decay", self.ema_decay, lambda x: 0 < x < 1, "in (0, 1)")
        if isinstance(self.class_weights, tuple):
            for weight in self.class_weights:
                _require("class_weights", weight, lambda x: x >= 0, "at least 0")
            if not any(self.class_weights):
                raise ValueError(f"class_weights must not all be 0, got {self.class_weights}")

    def _check_names(self) -> None:
        for name, known in (
            ("sampler", Sampler),
            ("loss", Loss),
            ("optimizer", Optimizer),
            ("schedule", Schedule),
            ("dtype", Dtype),
        ):
            if name == "sampler" and callable(self.sampler):
                continue
            if getattr(self, name) not in get_args(known):
                accepted = ", ".join(get_args(known))
                raise ValueError(f"{name} must be one of {accepted}; got {getattr(self, name)!r}")
        if isinstance(self.class_weights, str) and self.class_weights != "balanced":
            raise ValueError(
                f"class_weights must be numbers or 'balanced', got {self.class_weights!r}"
            )
        if not isinstance(self.checkpoint_blocks, bool):
            raise ValueError(f"checkpoint_blocks must be a bool, got {self.checkpoint_blocks!r}")
        if self.augment is not None and not callable(self.augment):
            raise ValueError(f"augment must be a function or None, got {self.augment!r}")

    def streams(self, data: Dataset) -> bool:
        """Whether the training and validation examples are too many to lie on a device."""
        needed = sum(device_bytes(data, split) for split in ("train", "val"))
        return needed > (device_budget() if self.data_bytes is None else self.data_bytes)

    def make_model(self, model: Model) -> Model:
        """The network in this dtype, with blocks checkpointed or not."""
        return models.reconfigure(model, dtype=self.dtype, checkpoint_blocks=self.checkpoint_blocks)

    def make_sampler(self, data: Dataset) -> BatchSampler:
        """Of the training split; its rows count from 0 within the split."""
        train = data.splits["train"]
        make = self.sampler
        watched = isinstance(make, str) and make in _FAIRBATCH
        if watched:
            make = functools.partial(fairbatch, criterion="equalized_odds", **_FAIRBATCH[str(make)])
        elif isinstance(make, str):
            make = getattr(sampling, make)
        sampler = make(
            labels=data.labels[train],
            group=data.group[train],
            num_classes=data.num_classes,
            num_groups=data.num_groups,
            batch_size=self.batch_size,
        )
        return sampler._replace(update_every=_UPDATE_EVERY) if watched else sampler

    def make_optimizer(self, batches_per_epoch: int) -> optax.GradientTransformation:
        """For `num_epochs` epochs; its learning rate and weight decay may differ between runs."""
        warmup = min(self.warmup_epochs, self.num_epochs / 2)
        return make_optimizer(
            self.optimizer,
            total_steps=self.num_epochs * batches_per_epoch,
            schedule=self.schedule,
            warmup_steps=int(warmup * batches_per_epoch),
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            drops=self.drops,
        )

    def make_step(
        self,
        model: Model,
        optimizer: optax.GradientTransformation,
        data: Dataset,
        *,
        bind: Any = None,
        gate: Any = None,
    ) -> Step:
        """The gradient step; see `train.make_step` for `bind` and `gate`.

        Raises:
          ValueError: class weights that are not one per class, or a class without examples; or
            smoothing or class weights with another loss than the cross-entropy.
        """
        weights = self.class_weights
        if weights == "balanced":
            labels = data.labels[data.splits["train"]]
            weights = balanced_class_weights(labels, data.num_classes)
        elif weights is not None:
            if len(weights) != data.num_classes:
                raise ValueError(
                    f"class_weights must be one per class, {data.num_classes}, got {len(weights)}"
                )
            weights = jnp.asarray(weights, jnp.float32)
        options: dict[str, Any] = {}
        if self.loss == "focal":
            options["loss_fn"] = focal_loss
        elif self.loss == "cvar":
            options["worst_share"] = _WORST_SHARE
        elif self.loss == "logit_adjusted":
            options["log_prior"] = log_priors(data.cell_counts("train"))
        return make_step(
            model,
            optimizer,
            **options,
            label_smoothing=self.label_smoothing,
            class_weights=weights,
            bind=bind,
            gate=gate,
            ema_decay=self.ema_decay,
        )


def _require(name: str, value: Any, holds: Callable[[Any], bool], rule: str) -> None:
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and holds(value)):
        raise ValueError(f"{name} must be {rule}, got {value!r}")


def _numbers(name: str, values: Any) -> tuple[float, ...]:
    """A tuple, so that recipes compare and hash."""
    try:
        return tuple(float(value) for value in values)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be several numbers, got {values!r}") from None
