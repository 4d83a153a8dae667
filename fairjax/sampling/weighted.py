"""Samplers by weights of examples: cells balanced, label and group made independent, or any other.

The weights are part of a run's state, so that runs which differ in nothing else share a program:

    sampler = weighted(labels=labels, group=group, num_classes=2, num_groups=2, batch_size=100)
    state = sampler.init(example_weights=np.where(preds == labels, 1, 20))   # Just Train Twice
"""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Integer

from fairjax.sampling.plain import shuffled
from fairjax.sampling.protocol import BatchSampler, PlainState, Rows

Balance = Literal["classes", "groups", "cells", "independence"]
By = Literal["draws", "loss"]


class WeightedState(NamedTuple):
    """What a sampler by weights carries; every field may get a population axis."""

    rows: Rows
    example_weights: jax.Array
    """float32 `[N]`, of all examples: those that are not among the rows do not matter."""


def balance_weights(
    counts: Integer[np.ndarray | Array, "K G"], over: Balance
) -> Float[jax.Array, "K G"]:
    """Weight of an example of every cell so that what is named weighs alike; 1 on average.

    Args:
      counts: int `[K, G]`, rows of every (label, group) cell.
      over: "classes", "groups" or "cells": each of them has the same sum of weights.
        "independence": a cell weighs what it would if label and group were independent,
        n_k n_g / (n n_kg).

    Returns:
      float32 `[K, G]`, 0 for empty cells. Safe under jit and vmap.

    Raises:
      ValueError: an unknown name.

    Source: Kamiran and Calders 2012, section 4.1 (independence); Idrissi et al. 2022.

    >>> balance_weights(np.array([[6, 2], [2, 2]]), "independence").tolist()
    [[0.8888888955116272, 1.3333333730697632], [1.3333333730697632, 0.6666666865348816]]
    """
    if over not in get_args(Balance):
        raise ValueError(f"over must be one of {', '.join(get_args(Balance))}; got {over!r}")
    counts = jnp.asarray(counts).astype(jnp.float32)
    of_class, of_group = counts.sum(1, keepdims=True), counts.sum(0, keepdims=True)
    total = counts.sum()
    if over == "independence":
        weights = of_class * of_group / (total * jnp.maximum(counts, 1.0))
    else:
        sizes = {"classes": of_class, "groups": of_group, "cells": counts}[over]
        num_units = (sizes > 0).sum().astype(jnp.float32)
        weights = jnp.broadcast_to(total / (num_units * jnp.maximum(sizes, 1.0)), counts.shape)
    return jnp.where(counts > 0, weights, 0.0)


def weighted(
    *,
    labels: Integer[np.ndarray | Array, " N"],
    group: Integer[np.ndarray | Array, " N"],
    num_classes: int,
    num_groups: int,
    batch_size: int,
    by: By = "draws",
    balance: Balance | None = None,
) -> BatchSampler:
    """Rows by weights that each run brings along; arguments as of `shuffled`, and two more.

    Args:
      labels: int `[N]`.
      group: int `[N]`.
      num_classes: K.
      num_groups: G.
      batch_size: B, at most N.
      by: "draws" draws rows with replacement, in proportion to their weights; "loss" deals them as
        `shuffled` does and multiplies their losses, so that a batch's loss is its weighted mean.
      balance: what the weights of a run start from, see `balance_weights`, by the cells of its own
        rows; None is all alike.

    Returns:
      A `BatchSampler` whose `init` also takes `example_weights [N]`, at least 0, which multiply
      those of `balance`; of the misclassified rows of a first training, for Just Train Twice.

    Raises:
      ValueError: as `shuffled`, or an unknown name; by `init`, weights that are not `[N]`, negative
        or not finite.

    Source: Liu et al., ICML 2021 (Just Train Twice: rows that a first, short training gets wrong
    are repeated).

    >>> ids = {"labels": np.array([0, 1]), "group": np.array([0, 1])}
    >>> sampler = weighted(**ids, num_classes=2, num_groups=2, batch_size=2)
    >>> state = sampler.init(example_weights=np.array([1.0, 3.0]))
    >>> rows, _ = sampler.sample_epoch(jax.random.key(0), state, num_batches=5000)
    >>> print(f"{rows.mean():.2f}")
    0.75
    """
    for name, value, known in (("by", by, By), ("balance", balance, Balance)):
        if value is not None and value not in get_args(known):
            raise ValueError(f"{name} must be one of {', '.join(get_args(known))}; got {value!r}")
    plain = shuffled(
        labels=labels,
        group=group,
        num_classes=num_classes,
        num_groups=num_groups,
        batch_size=batch_size,
    )
    labels, group = (jnp.asarray(ids, jnp.int32) for ids in (labels, group))

    def init(*, rows: Rows | None = None, example_weights: Any = None) -> WeightedState:
        own = plain.init(rows=rows).rows
        weights = jnp.ones(len(labels), jnp.float32)
        if balance is not None:
            weights = balance_weights(own.counts, balance)[labels, group]
        if example_weights is not None:
            _check_weights(example_weights, len(labels))
            weights = weights * jnp.asarray(example_weights).astype(jnp.float32)
        return WeightedState(own, weights)

    def sample_epoch(key, state: WeightedState, *, example_weights=None, num_batches=None):
        if by == "draws":
            drawn = state.example_weights
            example_weights = drawn if example_weights is None else drawn * example_weights
        indices, weights = plain.sample_epoch(
            key,
            PlainState(state.rows),
            example_weights=example_weights,
            num_batches=num_batches,
        )
        return indices, weights if by == "draws" else weights * state.example_weights[indices]

    return plain._replace(init=init, sample_epoch=sample_epoch)


def group_balanced(*, over: Literal["cells", "groups"] = "cells", **arguments: Any) -> BatchSampler:
    """Rows drawn with replacement, every (label, group) cell, or every group, equally likely.

    Args:
      over: "cells", or "groups" whatever their labels.
      **arguments: of `weighted`; of a run with rows of its own, cells are those among these.

    Returns:
      A `BatchSampler`; see `weighted`.

    Raises:
      ValueError: as `weighted`, or a group without rows.

    Source: Idrissi et al., CLeaR 2022 ("RWG").

    >>> ids = {"labels": np.zeros(10, int), "group": np.array([0] * 9 + [1])}
    >>> sampler = group_balanced(**ids, num_classes=1, num_groups=2, batch_size=10)
    >>> rows, _ = sampler.sample_epoch(jax.random.key(0), sampler.init(), num_batches=1000)
    >>> print(f"{(rows == 9).mean():.1f}")
    0.5
    """
    if over not in ("cells", "groups"):
        raise ValueError(f"over must be cells or groups, got {over!r}")
    sampler = weighted(**arguments, balance=over)
    counts = np.bincount(arguments["group"], minlength=arguments["num_groups"])
    if not counts.all():
        raise ValueError(f"group {int(counts.argmin())} has no rows to draw")
    return sampler


def reweighted(**arguments: Any) -> BatchSampler:
    """Plain batches whose losses weigh as if label and group were independent; see `weighted`.

    Args:
      **arguments: of `weighted`.

    Returns:
      A `BatchSampler`.

    Raises:
      ValueError: as `weighted`.

    Source: Kamiran and Calders, Knowledge and Information Systems 2012, "reweighing".

    >>> ids = {"labels": np.array([0, 0, 0, 1]), "group": np.array([0, 0, 1, 1])}
    >>> sampler = reweighted(**ids, num_classes=2, num_groups=2, batch_size=4)
    >>> rows, weights = sampler.sample_epoch(jax.random.key(0), sampler.init())
    >>> weights[0, jnp.argsort(rows[0])].tolist()
    [0.75, 0.75, 1.5, 0.5]
    """
    return weighted(**arguments, by="loss", balance="independence")


def _check_weights(weights: Any, num_rows: int) -> None:
    """Refuse weights that are not one number of at least 0 for each example."""
    if jnp.shape(weights) != (num_rows,):
        raise ValueError(
            f"example_weights must be [N] = ({num_rows},) of one run, got {jnp.shape(weights)}"
        )
    if not isinstance(weights, Tracer):
        found = np.asarray(weights)
        if not (np.isfinite(found).all() and found.min() >= 0 and found.max() > 0):
            raise ValueError(
                "example_weights must be finite, at least 0 and not all 0, "
                f"got {found.min()} to {found.max()}"
            )
