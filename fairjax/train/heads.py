"""Logistic heads on features, thousands at a time: last-layer retraining."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer


class Heads(NamedTuple):
    """P logistic regressions; the score of class 1 is `features @ kernel + bias`."""

    kernel: jax.Array
    """float32 `[P, D]`."""
    bias: jax.Array
    """float32 `[P]`."""
    slope: jax.Array
    """float32 `[P]`: largest entry of the loss's gradient in the standardised features that it was
    minimised in, about 0 where a head has converged."""

    def logits(self, features: Float[Array | np.ndarray, "n D"]) -> Float[jax.Array, "P n 2"]:
        """For `fairjax.metrics`: 0 and the score."""
        scores = self.kernel @ jnp.asarray(features).T + self.bias[:, None]
        return jnp.stack([jnp.zeros_like(scores), scores], axis=-1)


def fit_heads(
    features: Float[Array | np.ndarray, "n D"],
    labels: Integer[Array | np.ndarray, " n"],
    *,
    example_weights: Float[Array | np.ndarray, "P n"],
    l2: Float[Array | np.ndarray, " P"] | float = 1e-3,
    max_steps: int = 200,
    tolerance: float = 1e-4,
    chunk_size: int = 256,
) -> Heads:
    """Minimise each head's weighted mean cross-entropy + l2 / 2 * |kernel|^2.

    Heads share the features and differ in the weights of examples (0 leaves one out: halves that
    are balanced, bootstrap samples, splits) and in `l2`. Conjugate gradients in coordinates where
    the shared features are uncorrelated, with the exact minimum along every direction by Newton
    steps, which need no product with the features: all heads of a chunk advance together, by two
    matrix products a step.

    Args:
      features: float32, such as the outputs of a network's last hidden layer.
      labels: 0 or 1.
      example_weights: at least 0.
      l2: positive, one for all or one per head.
      max_steps: of the conjugate gradients.
      tolerance: a chunk ends when no head's `slope` is larger.
      chunk_size: heads that advance together.

    Returns:
      Heads. Compiled once per shape; results do not depend on the chunks beyond rounding.

    Raises:
      ValueError: shapes that do not fit, labels other than 0 and 1, or weights or `l2` that are
        negative, not finite, or all 0.

    Source: Kirichenko, Izmailov and Wilson, ICLR 2023 (deep feature reweighting); Fletcher and
    Reeves 1964 with the formula of Polak and Ribiere.

    >>> x, labels = np.array([[0.0], [1.0], [2.0], [3.0]], np.float32), np.array([0, 1, 0, 1])
    >>> heads = fit_heads(x, labels, example_weights=np.ones((1, 4), np.float32), l2=0.25)
    >>> print(f"{heads.kernel.item():.3f} {heads.bias.item():.3f}")  # scikit-learn's with C = 1
    0.453 -0.679
    """
    features, labels = np.asarray(features, np.float32), np.asarray(labels)
    weights = np.asarray(example_weights, np.float32)
    l2 = np.broadcast_to(np.asarray(l2, np.float32), weights.shape[:1])
    _check(features, labels, weights, l2)
    center, scale = features.mean(0), features.std(0)
    scale = np.where(scale > 1e-6 * (1 + np.abs(center)), scale, 1.0)  # of constant columns
    standard = np.concatenate([(features - center) / scale, np.ones((len(features), 1))], axis=1)
    # columns of `turn` make the standardised features, and the ones, uncorrelated
    moment = standard.T @ standard / len(features)
    values, vectors = np.linalg.eigh(moment.astype(np.float64))
    turn = vectors / np.sqrt(np.maximum(values, 1e-3))
    kept = np.append(1 / scale, 0.0)  # kernel = (turn @ v) * kept; the bias is not penalised
    penalty = turn.T @ (np.square(kept)[:, None] * turn)
    found, slope = _minimise(
        jnp.asarray(standard @ turn, jnp.float32),
        jnp.asarray(2 * labels - 1, jnp.float32),
        jnp.asarray(weights / weights.sum(1, keepdims=True)),
        jnp.asarray(l2),
        jnp.asarray(penalty, jnp.float32),
        max_steps=max_steps,
        tolerance=tolerance,
        chunk_size=chunk_size,
    )
    plain = np.asarray(found, np.float64) @ turn.T
    kernel = plain[:, :-1] / scale
    bias = plain[:, -1] - kernel @ center
    return Heads(jnp.asarray(kernel, jnp.float32), jnp.asarray(bias, jnp.float32), slope)


def _check(features, labels, weights, l2) -> None:
    """Refuse what does not fit; see `fit_heads`."""
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise ValueError(
            f"features must be [n, D] and labels [n], got {features.shape} and {labels.shape}"
        )
    if weights.ndim != 2 or weights.shape[1] != len(labels):
        raise ValueError(f"example_weights must be [P, n = {len(labels)}], got {weights.shape}")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(f"labels must be 0 or 1, got {np.unique(labels)[:5]}")
    if not np.isfinite(features).all():
        raise ValueError("features must be finite")
    if not (np.isfinite(weights).all() and weights.min() >= 0 and weights.sum(1).min() > 0):
        raise ValueError("example_weights must be finite, at least 0, and not all 0 for a head")
    if not (np.isfinite(l2).all() and l2.min() > 0):
        raise ValueError(f"l2 must be positive, got {l2.min()}")


@functools.partial(jax.jit, static_argnames=("max_steps", "tolerance", "chunk_size"))
def _minimise(x, signs, weights, l2, penalty, *, max_steps, tolerance, chunk_size):
    """Coefficients `[P, D + 1]` of the columns of `x`, and their slopes `[P]`."""

    signs = signs[None]

    def chunk(weights, l2):
        signed, l2 = signs * weights, l2[:, None]

        def wrong(margins):
            return jax.nn.sigmoid(-signs * margins)

        def gradient(p, v):
            return l2 * (v @ penalty) - (signed * p) @ x

        def advance(carry):
            number, v, margins, p, grad, direction = carry
            run, bent = direction @ x.T, l2 * (direction @ penalty)
            bend, lean = (bent * direction).sum(1), (bent * v).sum(1)
            squares = weights * run * run

            # The minimum along each direction, by two Newton steps in one variable.
            step = -(grad * direction).sum(1) / curvature(squares, p, bend)
            near = wrong(margins + step[:, None] * run)
            first = lean + step * bend - (signed * near * run).sum(1)
            step = finite(step - first / curvature(squares, near, bend))[:, None]

            v, margins = v + step * direction, margins + step * run
            p = wrong(margins)
            after = gradient(p, v)
            old = jnp.maximum((grad * grad).sum(1), 1e-30)
            turn = jnp.maximum((after * (after - grad)).sum(1) / old, 0.0)[:, None]
            direction = -after + turn * direction
            uphill = ((direction * after).sum(1) > 0)[:, None]
            return number + 1, v, margins, p, after, jnp.where(uphill, -after, direction)

        def unfinished(carry):
            return (carry[0] < max_steps) & (jnp.abs(carry[4]).max() > tolerance)

        v = jnp.zeros((len(l2), x.shape[1]), jnp.float32)
        margins = jnp.zeros(weights.shape, jnp.float32)
        p = wrong(margins)
        grad = gradient(p, v)
        start = (jnp.zeros((), jnp.int32), v, margins, p, grad, -grad)
        _, v, _, _, grad, _ = jax.lax.while_loop(unfinished, advance, start)
        return v, jnp.abs(grad).max(1)

    finite = lambda step: jnp.where(jnp.isfinite(step), step, 0.0)
    curvature = lambda squares, p, bend: jnp.maximum((squares * p * (1 - p)).sum(1) + bend, 1e-20)
    size = min(chunk_size, len(l2))
    missing = -len(l2) % size
    fill = lambda leaf: jnp.concatenate([leaf, jnp.repeat(leaf[-1:], missing, axis=0)])
    parts: Any = [fill(leaf).reshape(-1, size, *leaf.shape[1:]) for leaf in (weights, l2)]
    v, slope = jax.lax.map(lambda part: chunk(*part), tuple(parts))
    return v.reshape(-1, x.shape[1])[: len(l2)], slope.reshape(-1)[: len(l2)]
