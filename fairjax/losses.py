"""Losses of examples, what weighs or adjusts them, and soft nearest-neighbour loss of channels."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Real

from fairjax.neighbors import soft_nearest_neighbor_loss as soft_nearest_neighbor_loss

Array = jax.Array | np.ndarray

_FEW_CLASSES = 8


def _check_logits(logits: Array, labels: Array | None = None) -> None:
    """Refuse logits and labels whose shapes or dtypes do not fit."""
    floating = jnp.issubdtype(logits.dtype, jnp.floating)
    if not floating or logits.ndim < 1 or logits.shape[-1] < 2:
        raise ValueError(
            f"logits must be floating [B, K] with K >= 2, got {logits.dtype} {list(logits.shape)}; "
            "give [B, 2] logits where a network has one sigmoid output z [B, 1], such as "
            "concatenate([zeros_like(z), z], 1)"
        )
    if labels is None:
        return
    if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels must be integer {list(logits.shape[:-1])}, one for each row of logits, "
            f"got {labels.dtype} {list(labels.shape)}"
        )


def cross_entropy(
    logits: Float[Array, "*B K"],
    labels: Int[Array, "*B"],
    *,
    label_smoothing: float | Float[jax.Array, ""] = 0.0,
    class_weights: Float[Array, " K"] | None = None,
) -> Float[jax.Array, "*B"]:
    """Softmax cross-entropy of each example, in nats.

    Args:
      logits: float32 `[B, K]`.
      labels: int32 `[B]` in `[0, K)`.
      label_smoothing: mass in [0, 1) spread evenly over all K classes.
      class_weights: float32 `[K]`; the loss of an example is multiplied by its class's weight. Take
        the plain mean over examples afterwards for the sum(w * loss) / N of FairTune, or divide by
        the summed weights for the convention of `torch.nn.CrossEntropyLoss`.

    Returns:
      float32 `[B]`. Safe under jit, vmap and grad.

    Raises:
      ValueError: shapes or dtypes do not fit, such as logits `[B, 1]` or float labels.

    >>> round(float(cross_entropy(jnp.log(jnp.array([[0.75, 0.25]])), jnp.array([0]))[0]), 3)
    0.288
    """
    _check_logits(logits, labels)
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    if logits.shape[-1] > _FEW_CLASSES:
        log_total = jax.nn.logsumexp(logits, axis=-1)
        own = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    else:
        # Class by class: XLA:CPU fuses this into one loop over examples, but not a reduction over
        # a short axis, which made small models three times slower.
        columns = [logits[..., k] for k in range(logits.shape[-1])]
        highest = jax.lax.stop_gradient(functools.reduce(jnp.maximum, columns))
        log_total = jnp.log(sum(jnp.exp(column - highest) for column in columns)) + highest
        own = sum(jnp.where(labels == k, column, 0.0) for k, column in enumerate(columns))
    loss = log_total - own
    if not isinstance(label_smoothing, float) or label_smoothing:
        uniform = log_total - jnp.mean(logits, axis=-1)
        loss = (1 - label_smoothing) * loss + label_smoothing * uniform
    if class_weights is not None:
        loss = loss * jnp.asarray(class_weights)[labels]
    return loss


def focal_loss(
    logits: Float[Array, "*B K"],
    labels: Int[Array, "*B"],
    *,
    gamma: float | Float[jax.Array, ""] = 2.0,
    class_weights: Float[Array, " K"] | None = None,
) -> Float[jax.Array, "*B"]:
    """Cross-entropy of each example, less of it the surer the network is: (1 - p)^gamma * -log p.

    Args:
      logits: float32 `[B, K]`.
      labels: int32 `[B]` in `[0, K)`.
      gamma: at least 0, where it is the cross-entropy; an array may differ between runs.
      class_weights: float32 `[K]`, the paper's alpha.

    Returns:
      float32 `[B]`, in nats. Safe under jit, vmap and grad.

    Raises:
      ValueError: as `cross_entropy`, or a gamma given as a number that is below 0 or not finite.

    Source: Lin et al., ICCV 2017, equations 4 and 5, with softmax for K classes.

    >>> logits = jnp.log(jnp.array([[0.75, 0.25]]))
    >>> round(float(focal_loss(logits, jnp.array([0]), gamma=2.0)[0]), 4)  # 0.25^2 * -log 0.75
    0.018
    """
    if isinstance(gamma, (int, float)) and not (gamma >= 0 and np.isfinite(gamma)):
        raise ValueError(f"gamma must be a number of at least 0, got {gamma}")
    loss = cross_entropy(logits, labels)
    # 1 - p without cancellation, kept from 0, where a power below 1 has no slope
    wrong = jnp.maximum(-jnp.expm1(-loss), jnp.finfo(loss.dtype).eps)
    loss = jnp.exp(gamma * jnp.log(wrong)) * loss
    return loss if class_weights is None else loss * jnp.asarray(class_weights)[labels]


def worst_weights(
    losses: Float[Array, " N"],
    mass: Real[Array, " N"],
    worst_share: float | Float[jax.Array, ""],
) -> Float[jax.Array, " N"]:
    """Weights of the mean over the largest losses: CVaR is `worst_weights(...) @ losses`.

    Args:
      losses: float32 `[N]`, of examples or groups.
      mass: at least 0, what each of them counts; padding has 0.
      worst_share: alpha in (0, 1], of all mass; 1 is the plain mean.

    Returns:
      float32 `[N]`, at most `mass` / (alpha * total) each, which sum to 1: filled up from the
      largest loss down; 0 for all if there is no mass. Without gradients, which makes the gradient
      of the product that of CVaR. Safe under jit and vmap.

    Raises:
      ValueError: a share given as a number outside (0, 1].

    Source: Rockafellar and Uryasev 2000; of batches Levy et al., NeurIPS 2020, section 2.

    >>> weights = worst_weights(jnp.array([1.0, 3.0, 2.0, 0.0]), jnp.ones(4), 0.375)
    >>> [round(weight, 3) for weight in weights.tolist()]
    [0.0, 0.667, 0.333, 0.0]
    """
    if isinstance(worst_share, (int, float)) and not 0 < worst_share <= 1:
        raise ValueError(f"worst_share must be in (0, 1], got {worst_share}")
    losses, mass = jax.lax.stop_gradient(losses), jnp.asarray(mass).astype(jnp.float32)
    order = jnp.argsort(-losses)
    sorted_mass = mass[order]
    before = jnp.cumsum(sorted_mass) - sorted_mass
    budget = worst_share * sorted_mass.sum()
    taken = jnp.clip(budget - before, 0.0, sorted_mass)
    taken = taken / jnp.maximum(taken.sum(), 1e-30)
    return jnp.zeros_like(mass).at[order].set(taken)


def log_priors(
    counts: Real[np.ndarray | jax.Array, "K G"],
    *,
    tau: float = 1.0,
    of: Literal["classes", "groups"] = "groups",
) -> Float[jax.Array, "K G"]:
    """What logit adjustment adds to the logits of an example of group g while training.

    A network trained so has to make up for what is rare by its own logits, which are then used as
    they are: it is consistent for the balanced error.

    Args:
      counts: `[K, G]`, training rows of every (label, group) cell.
      tau: at least 0, where nothing is added.
      of: "groups": tau log P(label | group), so that the label does not follow from the group;
        "classes": tau log P(label), as published, for all groups.

    Returns:
      float32 `[K, G]` for `train.make_step(log_prior=)`; an empty cell counts half a row.

    Raises:
      ValueError: no `[K, G]` counts, a group without rows, or a `tau` or name out of range.

    Source: Menon et al., ICLR 2021, equation 10 (logit-adjusted softmax cross-entropy).

    >>> np.round(np.float64(log_priors(np.array([[3, 2], [1, 2]]))), 3).tolist()
    [[-0.288, -0.693], [-1.386, -0.693]]
    """
    if of not in ("classes", "groups"):
        raise ValueError(f"of must be classes or groups, got {of!r}")
    if not (tau >= 0 and np.isfinite(tau)):
        raise ValueError(f"tau must be a number of at least 0, got {tau}")
    found = np.asarray(counts, np.float64)
    if found.ndim != 2 or found.min() < 0 or not found.sum(0).all():
        raise ValueError(f"counts must be [K, G] with rows of every group, got {found.tolist()}")
    if of == "classes":
        found = np.broadcast_to(found.sum(1, keepdims=True), found.shape)
    found = np.maximum(found, 0.5)
    return jnp.asarray(tau * np.log(found / found.sum(0)), jnp.float32)


def balanced_class_weights(labels: np.ndarray, num_classes: int) -> jax.Array:
    """float32 `[K]`: inverse to the share of each class, 1 on average over examples.

    Args:
      labels: int `[N]` in `[0, K)`, on the host.
      num_classes: K.

    Raises:
      ValueError: a class without examples.
    """
    counts = np.bincount(labels, minlength=num_classes)
    if not counts.all():
        raise ValueError(f"class_weights: class {int(counts.argmin())} has no training examples")
    return jnp.asarray(len(labels) / (num_classes * counts), jnp.float32)


def predictions(logits: Float[Array, "*B K"]) -> Int[jax.Array, "*B"]:
    """Arg-max class int32 `[B]` of logits `[B, K]`, the first of equals.

    Raises:
      ValueError: logits are not floating `[B, K]` with K >= 2.
    """
    _check_logits(logits)
    logits = jnp.asarray(logits)
    if logits.shape[-1] > _FEW_CLASSES:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    highest, preds = logits[..., 0], jnp.zeros(logits.shape[:-1], jnp.int32)
    for k in range(1, logits.shape[-1]):
        preds = jnp.where(logits[..., k] > highest, k, preds)
        highest = jnp.maximum(logits[..., k], highest)
    return preds
