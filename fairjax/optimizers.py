"""Optimisers by name, whose numbers are arrays that may differ between candidates."""

import math
from typing import Literal, get_args

import numpy as np
import optax

Optimizer = Literal["adamw", "sgd", "sgd_nesterov"]
Schedule = Literal["constant", "cosine", "step", "exponential"]


def make_optimizer(
    name: Optimizer,
    *,
    total_steps: int,
    schedule: Schedule = "cosine",
    warmup_steps: int = 0,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    drops: tuple[float, ...] = (1 / 3, 2 / 3),
) -> optax.GradientTransformation:
    """An optimiser under a schedule that multiplies its learning rate.

    `start_train(..., learning_rate=..., weight_decay=...)` replaces the numbers, by one array entry
    per candidate where it is mapped. Every run counts its own steps.

    Args:
      name: "adamw" decays weights apart from the gradient; "sgd" and "sgd_nesterov" add the decay
        to the gradient, as torch does.
      total_steps: steps of a whole run.
      schedule: factor of the learning rate after the warm-up: "constant" 1; "cosine" from 1 to 0;
        "step" a tenth at each of `drops`; "exponential" from 1 to a hundredth.
      warmup_steps: steps over which the factor first rises linearly from a hundredth.
      learning_rate: largest step size.
      weight_decay: its coefficient.
      momentum: of SGD.
      drops: of "step", as shares of the steps after the warm-up.

    Returns:
      An optax transformation.

    Raises:
      ValueError: unknown name, or not 0 <= warmup_steps < total_steps.
    """
    for label, value, known in (("optimizer", name, Optimizer), ("schedule", schedule, Schedule)):
        if value not in get_args(known):
            raise ValueError(f"{label} must be one of {', '.join(get_args(known))}; got {value!r}")
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            f"warmup_steps must be in [0, total_steps), got {warmup_steps} of {total_steps} steps"
        )

    def build(learning_rate, weight_decay):
        if name == "adamw":
            return optax.adamw(learning_rate, weight_decay=weight_decay)
        sgd = optax.sgd(learning_rate, momentum=momentum, nesterov=name == "sgd_nesterov")
        return optax.chain(optax.add_decayed_weights(weight_decay), sgd)

    return optax.chain(
        optax.inject_hyperparams(build)(learning_rate=learning_rate, weight_decay=weight_decay),
        optax.scale_by_schedule(_relative(schedule, total_steps, warmup_steps, drops)),
    )


def _relative(
    schedule: Schedule, total_steps: int, warmup_steps: int, drops: tuple[float, ...]
) -> optax.Schedule:
    """Factor in [0, 1] of the learning rate at a step."""
    num_steps = total_steps - warmup_steps
    decayed = {
        "constant": lambda: optax.constant_schedule(1.0),
        "cosine": lambda: optax.cosine_decay_schedule(1.0, num_steps),
        "step": lambda: optax.piecewise_constant_schedule(
            1.0, {math.ceil(drop * num_steps - 1e-9): 0.1 for drop in drops}
        ),
        "exponential": lambda: optax.exponential_decay(1.0, num_steps, 0.01, end_value=0.01),
    }[schedule]()
    if not warmup_steps:
        return decayed
    rise = optax.linear_schedule(0.01, 1.0, warmup_steps)
    return optax.join_schedules([rise, decayed], [warmup_steps])


def inner_rates(bounds: tuple[float, float], count: int) -> tuple[float, ...]:
    """Learning rates evenly inside a range, by their logarithms.

    >>> [round(rate, 6) for rate in inner_rates((1e-4, 1e-1), 2)]
    [0.001, 0.01]
    """
    return tuple(float(rate) for rate in np.geomspace(*bounds, count + 2)[1:-1])
