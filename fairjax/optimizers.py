"""Optimisers by name, whose numbers are arrays that may differ between candidates."""

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax.numpy as jnp
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
        optax.scale_by_schedule(_relative(schedule, total_steps, warmup_steps, drops)),  # pyright: ignore[reportArgumentType]
    )


def _relative(
    schedule: Schedule, total_steps: int, warmup_steps: int, drops: tuple[float, ...]
) -> Callable[[Any], Any]:
    """Factor in [0, 1] of the learning rate at a step."""

    def factor(step):
        step = jnp.asarray(step, jnp.float32)
        done = jnp.clip((step - warmup_steps) / (total_steps - warmup_steps), 0.0, 1.0)
        decayed = {
            "constant": lambda: jnp.ones_like(done),
            "cosine": lambda: 0.5 * (1 + jnp.cos(jnp.pi * done)),
            "step": lambda: 0.1 ** sum((done >= drop).astype(jnp.float32) for drop in drops),
            "exponential": lambda: 0.01**done,
        }[schedule]()
        warm = 0.01 + 0.99 * step / max(warmup_steps, 1)
        return jnp.where(step < warmup_steps, warm, decayed)

    return factor
