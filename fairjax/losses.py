"""Losses of examples, what weighs or adjusts them, and soft nearest-neighbour loss of channels."""

import functools
from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Real

Array = jax.Array | np.ndarray

_FEW_CLASSES = 8

Distance = Literal["cosine", "euclidean"]
Products = Literal["float32", "bfloat16_products"]

_TEMPERATURES = (0.01, 100.0)
_TURNED = 64  # bytes of channels brought in front at a time: a line of a CPU's cache, which stays


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


def soft_nearest_neighbor_loss(
    features: Float[Array, "B *axes C"],
    classes: Int[Array, " B"],
    *,
    num_classes: int,
    distance: Distance = "cosine",
    temperature: float | Float[jax.Array, ""] | None = 1.0,
    self_in_numerator: bool = False,
    weights: Real[Array, " B"] | Bool[Array, " B"] | None = None,
    chunk_size: int | None = None,
    dtype: Products = "float32",
) -> Float[jax.Array, " C"]:
    """How far examples of one class lie from each other in each channel, in nats.

    Low means that neighbours share their class, so that the channel carries the class; features
    that know nothing of it give about the entropy of the classes. Never negative, unless
    `self_in_numerator`. An example whose class has no other example is left out; nan if that
    leaves none. Not finite where a channel holds nan or inf.

    Args:
      features: float `[B, ..., C]`; an example's vector in channel c is `features[b, ..., c]`
        flattened. Give `[B, D]` embeddings as one channel: `embeddings[..., None]`.
      classes: int `[B]` in `[0, num_classes)`: sensitive groups, or labels.
      num_classes: number of different classes.
      distance: "cosine" (a zero vector is at distance 1 from everything) or "euclidean", squared.
      temperature: positive; distances are divided by it. None takes, for each channel, the one in
        [0.01, 100] that makes its loss least.
      self_in_numerator: count an example as its own neighbour in the numerator, not in the
        denominator, as the pruning paper's published code does.
      weights: float `[B]`, 0 for padding; ones if None.
      chunk_size: channels in flight at a time, each `[B, B]`; results do not depend on it. None
        takes 1 on CPU, where one product after another stays in the cache, and 32 elsewhere.
      dtype: "bfloat16_products" rounds the features to 8 bits before they are multiplied and adds
        up in float32: faster on CPUs and GPUs that multiply it so. Losses move by about 1e-5 and
        channels that are as close change places; float32 where a channel's mean is many times its
        spread.

    Returns:
      float32 `[C]`. Safe under jit, vmap and grad.

    Raises:
      ValueError: fewer than 2 dimensions, lengths that differ, classes that are no integers,
        unknown distance or dtype, a temperature given as a number that is not positive, or
        `chunk_size` below 1.

    Source: Frosst et al., ICML 2019, equation 1; per channel as in Kong et al., MICCAI 2024.
    """
    if features.ndim < 2 or classes.shape != features.shape[:1]:
        raise ValueError(
            "features must be [B, ..., C] and classes [B], "
            f"got shapes {features.shape} and {classes.shape}"
        )
    if not jnp.issubdtype(classes.dtype, jnp.integer):
        raise ValueError(f"classes must be integer ids, got {classes.dtype}")
    if distance not in ("cosine", "euclidean"):
        raise ValueError(f"distance must be 'cosine' or 'euclidean', got {distance!r}")
    if dtype not in get_args(Products):
        raise ValueError(f"dtype must be one of {', '.join(get_args(Products))}, got {dtype!r}")
    if isinstance(temperature, (int, float)) and not temperature > 0:
        raise ValueError(f"temperature must be positive or None, got {temperature}")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    batch, num_channels = len(features), features.shape[-1]
    classes = jnp.asarray(classes)
    weights = jnp.ones(batch) if weights is None else jnp.asarray(weights).astype(jnp.float32)
    members = jax.nn.one_hot(classes, num_classes, axis=0) * weights[None]
    # A cosine distance is at most 2, so that exp(-distance / temperature) cannot underflow.
    bounded = distance == "cosine" and isinstance(temperature, (int, float)) and temperature >= 0.1

    def channel_loss(vectors: jax.Array) -> jax.Array:
        """Loss of one channel's vectors `[B, F]`."""
        distances = _pairwise_distances(vectors, distance)

        def loss_at(temperature):
            return _neighbor_loss(
                distances / temperature, classes, members, weights, self_in_numerator, bounded
            )

        return loss_at(_least_temperature(loss_at) if temperature is None else temperature)

    features = jnp.asarray(features).astype(jnp.float32).reshape(batch, -1, num_channels)

    def losses(features: jax.Array, chunk_size: int) -> jax.Array:
        # a chunk of one is not a batch of one: XLA:CPU takes twice as long for its product
        batch_size = None if chunk_size == 1 else chunk_size
        line = _TURNED // (4 if dtype == "float32" else 2)
        width = min(num_channels, max(chunk_size, line))

        def turned(start: jax.Array) -> jax.Array:
            some = jax.lax.dynamic_slice_in_dim(features, start, width, axis=2)
            some = some if dtype == "float32" else some.astype(jnp.bfloat16)
            return jax.lax.map(channel_loss, some.transpose(2, 0, 1), batch_size=batch_size)

        # the last ones overlap those before where channels are no multiple of the width
        first = np.minimum(np.arange(0, num_channels, width), num_channels - width)
        channel = np.arange(num_channels)
        place = channel // width * width + channel - first[channel // width]
        return jax.lax.map(turned, jnp.asarray(first)).reshape(-1)[place]

    if chunk_size is not None:
        return losses(features, chunk_size)
    return jax.lax.platform_dependent(
        features,
        cpu=functools.partial(losses, chunk_size=1),
        default=functools.partial(losses, chunk_size=32),
    )


def _pairwise_distances(vectors: jax.Array, distance: Distance) -> jax.Array:
    """Cosine or squared Euclidean distances `[B, B]` of the rows of `[B, F]`."""
    # not with a transpose: XLA:CPU has no fast product of bfloat16 for that
    rows = (((1,), (1,)), ((), ()))
    products = jax.lax.dot_general(
        vectors, vectors, rows, precision="highest", preferred_element_type=jnp.float32
    )
    squares = jnp.diagonal(products)
    if distance == "cosine":
        scale = jax.lax.rsqrt(jnp.maximum(squares, 1e-24))
        return 1.0 - products * scale[:, None] * scale[None]
    return jnp.maximum(squares[:, None] + squares[None] - 2.0 * products, 0.0)


def _neighbor_loss(
    distances: jax.Array,
    classes: jax.Array,
    members: jax.Array,
    weights: jax.Array,
    self_in_numerator: bool,
    bounded: bool,
) -> jax.Array:
    """Soft nearest-neighbour loss from distances `[B, B]` in units of the temperature."""
    itself = jnp.eye(len(distances), dtype=bool)
    if not bounded:
        # The nearest neighbour moves to 0, which leaves the ratio alone and the sums away from 0.
        absent = (weights == 0)[:, None] | (itself & (not self_in_numerator))
        distances = jnp.where(absent, jnp.inf, distances)
        nearest = jax.lax.stop_gradient(jnp.min(distances, axis=0))
        distances = distances - jnp.where(jnp.isfinite(nearest), nearest, 0.0)[None]
    # The sum over neighbours runs down the columns, along which it vectorises.
    near = jnp.where(itself, 0.0, jnp.exp(-distances))
    by_class = jnp.matmul(members, near, precision="highest")
    total = jnp.sum(by_class, axis=0)
    same = jnp.take_along_axis(by_class, classes[None], axis=0)[0]
    num_same = jnp.sum(members > 0, axis=1)[classes]
    if self_in_numerator:
        same = same + weights * jnp.exp(-jnp.diagonal(distances))
        num_same = num_same + 1
    counted = jnp.where((num_same >= 2) & (jnp.sum(weights > 0) >= 2), weights, 0.0)
    losses = jnp.log(jnp.maximum(total, 1e-30)) - jnp.log(jnp.maximum(same, 1e-30))
    return jnp.sum(counted * losses) / jnp.sum(counted)


def _least_temperature(loss_at: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """The temperature of least loss, to a few per cent: a grid in its logarithm, refined twice."""
    lowest, highest = (jnp.log(temperature) for temperature in _TEMPERATURES)
    low, high = lowest, highest
    for _ in range(3):
        grid = jnp.clip(jnp.linspace(low, high, 9), lowest, highest)
        best = grid[jnp.argmin(jax.lax.map(loss_at, jnp.exp(grid)))]
        width = (high - low) / 8
        low, high = best - width, best + width
    return jax.lax.stop_gradient(jnp.exp(best))
