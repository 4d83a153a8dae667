"""What a classifier gave: logits, probabilities or predictions, brought into one form."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from fairjax.metrics.counts import Array, Column, check_examples, seen

Logits = Float[Array, "N K"]
Probs = Float[Array, " N"] | Float[Array, "N K"] | Sequence[float] | Column
"""Probabilities of class 1 `[N]`, or of every class `[N, K]`, rows summing to 1."""

_SUM = 1e-3  # by which the sum of a row may miss 1: float16 does


def one_of(**given: Any) -> str:
    """The name of the one argument that is not None; ValueError unless there is exactly one."""
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        found = " and ".join(f"{name}=" for name in names) or "none"
        raise ValueError(f"give exactly one of {', '.join(given)}; got {found}")
    return names[0]


def logits_of(
    logits: Any, probs: Any = None, preds: Any = None, *, num_classes: int | None, weights: Any
) -> Any:
    """Logits `[N, K]` of whichever was given, of NumPy (float64 from probabilities) or JAX.

    Of predictions 0 for the class and -inf for the others. Rows of weight 0 are not looked at.

    Raises:
      ValueError: not exactly one is given, its form is another, or `logits` are probabilities.
    """
    kind = one_of(logits=logits, probs=probs, preds=preds)
    if kind == "logits":
        logits, weights = check_examples(logits=logits, weights=weights)
        _refuse_probabilities(logits, weights)
        return logits
    if kind == "preds":
        num_classes = 2 if num_classes is None else num_classes
        preds, _ = check_examples(num_classes=num_classes, preds=preds, weights=weights)
        xp = jnp if isinstance(preds, jax.Array) else np
        hit = preds.astype(np.int32)[:, None] == np.arange(num_classes, dtype=np.int32)[None]
        return xp.where(hit, 0.0, -np.inf).astype(np.float32)
    probs, weights = check_examples(probs=probs, weights=weights)
    _check_probs(probs, weights)
    xp, dtype = (jnp, jnp.float32) if isinstance(probs, jax.Array) else (np, np.float64)
    probs = probs.astype(dtype).clip(0.0, 1.0)  # a softmax may give 1.0000001
    with np.errstate(divide="ignore"):
        return xp.log(probs) if probs.ndim == 2 else xp.stack([xp.log1p(-probs), xp.log(probs)], 1)


def looks_like_probabilities(rows: np.ndarray) -> bool:
    """Do all rows `[N, K]`, but those that hold nan or inf, lie in [0, 1] and sum to 1?"""
    rows = rows[np.isfinite(rows).all(1)].astype(np.float64)
    if not len(rows):
        return False
    return bool((rows >= 0).all() and (abs(rows.sum(1) - 1) < _SUM).all())


def _refuse_probabilities(logits: Any, weights: Any) -> None:
    rows = _weighted(logits, weights)
    if (
        rows is None
        or not looks_like_probabilities(rows[:64])
        or not looks_like_probabilities(rows)
    ):
        return
    raise ValueError(
        "logits are probabilities: every row lies in [0, 1] and sums to 1, and a softmax of them "
        "says something else; give them as probs=, or their logarithm as logits"
    )


def _check_probs(probs: Any, weights: Any) -> None:
    rows = _weighted(probs, weights)
    if rows is None or not len(rows := rows[~np.isnan(rows)] if rows.ndim == 1 else rows):
        return
    low, high = np.nanmin(rows, initial=1.0), np.nanmax(rows, initial=0.0)
    if low < 0 or high > 1 + 1e-6:
        raise ValueError(
            f"probs must lie in [0, 1], got {low:g} to {high:g}; give log-odds z as logits, "
            "[N, 2] with columns 0 and z"
        )
    if rows.ndim == 2:
        sums = rows.astype(np.float64).sum(1)
        if (wrong := abs(sums - 1) >= _SUM).any():  # never where a row holds nan
            raise ValueError(f"rows of probs must sum to 1, got {sums[wrong][0]:g}")


def _weighted(values: Any, weights: Any) -> np.ndarray | None:
    """The rows that have weight; None where they are traced."""
    rows, weights = seen(values), seen(weights)
    return rows if rows is None or weights is None else rows[weights != 0]
