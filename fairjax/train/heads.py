"""Logistic heads on features, thousands at a time: last-layer retraining."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

_NEWTON_STEPS = 30


class Heads(NamedTuple):
    """P logistic regressions; the score of class 1 is `features @ kernel + bias`."""

    kernel: jax.Array
    """float32 `[P, D]`."""
    bias: jax.Array
    """float32 `[P]`."""
    slope: jax.Array
    """float32 `[P]`: largest entry of the loss's gradient in the coordinates that it was minimised
    in, whose curvature is about 1: about how far the head still is from its minimum."""

    def logits(self, features: Float[Array | np.ndarray, "n D"]) -> Float[jax.Array, "P n 2"]:
        """For `fairjax.metrics`: 0 and the score."""
        scores = jnp.matmul(self.kernel, jnp.asarray(features).T, precision="highest")
        scores = scores + self.bias[:, None]
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
    are balanced, bootstrap samples, splits) and in `l2`. A chunk of heads starts from one head of
    its mean weights, found by Newton's method, and goes on by conjugate gradients in coordinates
    where the curvature there is 1, with the exact minimum along every direction by Newton steps,
    which need no product with the features: all heads of a chunk advance together, by two matrix
    products a step, and about ten steps will do where their weights are of one kind.

    Args:
      features: float32, such as the outputs of a network's last hidden layer.
      labels: 0 or 1.
      example_weights: at least 0.
      l2: positive, one for all or one per head.
      max_steps: of the conjugate gradients.
      tolerance: a chunk ends when no head's `slope` is larger.
      chunk_size: heads that advance together, neighbours in `l2`.

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
    order = np.argsort(l2, kind="stable")
    back = np.argsort(order)
    even = (order == np.arange(len(l2))).all()  # as they are: weights of thousands are dear to copy
    ordered = weights if even else weights[order]
    with jax.default_matmul_precision("highest"):  # GPUs and TPUs round factors otherwise
        found, slope = _minimise(
            jnp.asarray(standard @ turn, jnp.float32),
            jnp.asarray(2 * labels - 1, jnp.float32),
            jnp.asarray(ordered / ordered.sum(1, keepdims=True)),
            jnp.asarray(l2[order]),
            jnp.asarray(penalty, jnp.float32),
            max_steps=max_steps,
            tolerance=tolerance,
            chunk_size=chunk_size,
        )
    plain = np.asarray(found, np.float64)[back] @ turn.T
    kernel = plain[:, :-1] / scale
    bias = plain[:, -1] - kernel @ center
    return Heads(jnp.asarray(kernel, jnp.float32), jnp.asarray(bias, jnp.float32), slope[back])


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

    def chunk(start, part):
        weights, l2 = part
        return _chunk(x, signs[None], penalty, start, weights, l2, max_steps, tolerance)

    size = min(chunk_size, len(l2))
    missing = -len(l2) % size
    fill = lambda leaf: jnp.concatenate([leaf, jnp.repeat(leaf[-1:], missing, axis=0)])
    parts: Any = [fill(leaf).reshape(-1, size, *leaf.shape[1:]) for leaf in (weights, l2)]
    start = jnp.zeros((1, x.shape[1]), jnp.float32)
    v, slope = jax.lax.scan(chunk, start, tuple(parts))[1]
    return v.reshape(-1, x.shape[1])[: len(l2)], slope.reshape(-1)[: len(l2)]


def _chunk(x, signs, penalty, start, weights, l2, max_steps, tolerance):
    """Conjugate gradients of a chunk; `(where its middle is, (coefficients, slopes))`."""
    l2 = l2[:, None]
    middle, margins, root = _middle(
        x, signs, penalty, start, weights.mean(0)[None], jnp.exp(jnp.log(l2).mean())
    )
    # coordinates around the middle, in which its curvature is 1 in every direction
    turn = jax.scipy.linalg.solve_triangular(root, jnp.eye(len(root)), lower=True).T
    columns, bending, leaning = x @ turn, turn.T @ penalty @ turn, middle @ penalty @ turn
    gradient = lambda p, u: l2 * (leaning + u @ bending) - (signs * weights * p) @ columns

    def advance(carry):
        number, u, margins, p, grad, direction = carry
        run, bent = direction @ columns.T, l2 * (direction @ bending)
        lean = (bent * u + l2 * leaning * direction).sum(1)
        sums = -(grad * direction).sum(1), lean, (bent * direction).sum(1)
        step = _length(margins, run, p, signs, weights, *sums)
        u, margins = u + step * direction, margins + step * run
        p = _wrong(margins, signs)
        after = gradient(p, u)
        old = jnp.maximum((grad * grad).sum(1), 1e-30)
        again = jnp.maximum((after * (after - grad)).sum(1) / old, 0.0)[:, None]
        direction = -after + again * direction
        uphill = ((direction * after).sum(1) > 0)[:, None]
        return number + 1, u, margins, p, after, jnp.where(uphill, -after, direction)

    def unfinished(carry):
        return (carry[0] < max_steps) & (jnp.abs(carry[4]).max() > tolerance)

    u = jnp.zeros((len(weights), len(root)), jnp.float32)
    margins = jnp.broadcast_to(margins, weights.shape)
    p = _wrong(margins, signs)
    grad = gradient(p, u)
    begin = (jnp.zeros((), jnp.int32), u, margins, p, grad, -grad)
    _, u, _, _, grad, _ = jax.lax.while_loop(unfinished, advance, begin)
    return middle, (middle + u @ turn.T, jnp.abs(grad).max(1))


def _middle(x, signs, penalty, start, weights, l2):
    """One head for a whole chunk by Newton's method: `[1, D + 1]`, its margins, its curvature."""

    def look(v):
        margins = v @ x.T
        p = _wrong(margins, signs)
        grad = l2 * (v @ penalty) - (signs * weights * p) @ x
        curvature = (x * (weights * p * (1 - p)).T).T @ x + l2 * penalty
        ridge = 1e-5 * jnp.trace(curvature) / len(curvature)
        return v, margins, p, grad, jnp.linalg.cholesky(curvature + ridge * jnp.eye(len(curvature)))

    def advance(carry):
        number, (v, margins, p, grad, root) = carry
        direction = -jax.scipy.linalg.cho_solve((root, True), grad[0])[None]
        run, bent = direction @ x.T, l2 * (direction @ penalty)
        sums = -(grad * direction).sum(1), (bent * v).sum(1), (bent * direction).sum(1)
        return number + 1, look(v + _length(margins, run, p, signs, weights, *sums) * direction)

    def unfinished(carry):
        return (carry[0] < _NEWTON_STEPS) & (jnp.abs(carry[1][3]).max() > 1e-4)

    begin = (jnp.zeros((), jnp.int32), look(start))
    v, margins, _, _, root = jax.lax.while_loop(unfinished, advance, begin)[1]
    return v, margins, root


def _wrong(margins, signs):
    """Probability of the other label."""
    return jax.nn.sigmoid(-signs * margins)


def _length(margins, run, p, signs, weights, fall, lean, bend):
    """How far to go along each direction, `[P, 1]`: two Newton steps in one variable.

    `fall` is the slope downhill, `lean` and `bend` slope and curvature of the penalty.
    """
    squares = weights * run * run
    curvature = lambda p: jnp.maximum((squares * p * (1 - p)).sum(1) + bend, 1e-20)
    finite = lambda step: jnp.where(jnp.isfinite(step), step, 0.0)
    step = finite(fall / curvature(p))
    near = _wrong(margins + step[:, None] * run, signs)
    first = lean + step * bend - (signs * weights * near * run).sum(1)
    return finite(step - first / curvature(near))[:, None]
