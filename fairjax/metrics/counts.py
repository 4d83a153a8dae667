"""Confusion counts per group, and what every metric checks about its arguments."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Bool, Float, Integer, Real

Array = jax.Array | np.ndarray
"""What a user may pass: arrays of JAX (traced ones too) or of NumPy."""


@runtime_checkable
class Column(Protocol):
    """A column of a table, such as a Series of pandas."""

    def __len__(self) -> int:
        """How many values it has."""
        ...

    def to_numpy(self) -> Any:
        """Its values as an array of NumPy."""
        ...


Ids = Integer[Array, " N"] | Sequence[int] | Column
"""Numbers of classes or groups, of integer dtype: no bools, no floats that happen to be whole."""

Weights = Real[Array, " N"] | Bool[Array, " N"] | Sequence[float] | Column
"""Weights of examples: 0 or False for padding."""

_BLOCK = 128


def group_sums(
    values: Real[Array, "N V"], *, group: Ids, num_groups: int
) -> Float[jax.Array, "G V"]:
    """Sum of `values [N, V]` over the examples of each group, `[G, V]` float32.

    A one-hot matmul rather than a scatter: deterministic on every device. Whole numbers are exact
    below 2^24; other values keep about 1e-7 relative error at any N, because the sum is a tree
    over blocks of 128. A nan or inf reaches the sum of its own group and column only. Traced
    groups outside `[0, G)` count nowhere.

    Raises:
      ValueError: shapes or dtypes do not fit, there is no example or group, or a group that can
        be looked at is outside `[0, G)`.

    >>> group_sums(jnp.array([[1.0], [2.0], [jnp.nan]]), group=[0, 0, 1], num_groups=2).tolist()
    [[3.0], [nan]]
    """
    values, group = check_examples(num_groups=num_groups, values=values, group=group)
    values = jnp.asarray(values).astype(jnp.float32)
    up, down = (~(values < jnp.inf)), (~(values > -jnp.inf))  # a nan is both
    parts = [jnp.where(up | down, 0.0, values), up.astype(jnp.float32), down.astype(jnp.float32)]
    stacked = jnp.concatenate(parts, axis=1)
    sums = finite_sums(stacked, group=jnp.asarray(group), num_groups=num_groups)
    total, ups, downs = jnp.split(sums, 3, axis=1)
    return total + jnp.where(ups > 0, jnp.inf, 0.0) + jnp.where(downs > 0, -jnp.inf, 0.0)


def finite_sums(
    values: Real[Array, "N V"], *, group: Integer[Array, " N"], num_groups: int
) -> Float[jax.Array, "G V"]:
    """`group_sums` of values known to be finite: times 0, a nan or inf would reach every group."""
    n, v = values.shape
    group = jnp.asarray(group).astype(jnp.int32)
    pad = -n % _BLOCK
    one_hot = jax.nn.one_hot(jnp.pad(group, (0, pad), constant_values=-1), num_groups)
    blocks = jnp.einsum(
        "bng,bnv->bgv",
        one_hot.reshape(-1, _BLOCK, num_groups),
        jnp.pad(values, ((0, pad), (0, 0))).reshape(-1, _BLOCK, v),
        precision="highest",
    )
    while len(blocks) > 1:
        blocks = jnp.pad(blocks, ((0, -len(blocks) % _BLOCK), (0, 0), (0, 0)))
        blocks = blocks.reshape(-1, _BLOCK, num_groups, v).sum(1)
    return blocks.reshape(num_groups, v)


def mark(values: jax.Array, unknown: jax.Array) -> jax.Array:
    """Put a number too large for any sum of `values` where they are unknown.

    A nan would reach every group of a product; this one reaches its own, see `unmark`.
    """
    return jnp.where(unknown, 1e30, values)


def unmark(sums: jax.Array) -> jax.Array:
    """Sums, nan for those that hold a number put by `mark`."""
    return jnp.where(sums < 1e18, sums, jnp.nan)


def divide(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """`numerator / denominator`, nan unless the denominator is positive; differentiable."""
    defined = denominator > 0
    return jnp.where(defined, numerator / jnp.where(defined, denominator, 1.0), jnp.nan)


class _Form(NamedTuple):
    """What an argument must look like, and what to do about one that does not."""

    says: str
    kinds: tuple[Any, ...]
    num_axes: tuple[int, ...]
    remedy: str = ""


_IDS = _Form("integer [N]", (jnp.integer,), (1,))
_FROM_0 = "; number them from 0, such as np.unique({name}, return_inverse=True)[1]"
_FORMS = {
    "logits": _Form(
        "floating [N, K] with K >= 2",
        (jnp.floating,),
        (2,),
        "; give [N, 2] logits where a network has one sigmoid output z [N, 1], such as "
        "concatenate([zeros_like(z), z], 1)",
    ),
    "scores": _Form(
        "real [N], or [N, K] with K >= 2",
        (jnp.floating, jnp.integer),
        (1, 2),
        "; give the scores of class 1 as [N], such as scores[:, 0]",
    ),
    "probs": _Form(
        "floating [N], or [N, K] with K >= 2",
        (jnp.floating,),
        (1, 2),
        "; give class numbers as preds=, and the probabilities of class 1 as [N]",
    ),
    "values": _Form("real [N, V]", (jnp.floating, jnp.integer), (2,)),
    "weights": _Form("real [N]", (jnp.floating, jnp.integer, jnp.bool_), (1,)),
    "preds": _IDS._replace(remedy="; give class numbers, such as logits.argmax(-1)"),
    "labels": _IDS._replace(remedy="; give class numbers, one for each example"),
    "group": _IDS._replace(remedy="; give group numbers, one for each example"),
}


def check_examples(
    *, num_groups: int = 1, num_classes: int | None = None, **arrays: Any
) -> tuple[Any, ...]:
    """Refuse arguments that do not fit, and give them back as arrays.

    Shapes and dtypes of all are checked, for free, and the values of ids and weights that are no
    tracers: whatever their range, they would be counted on the rows that happen to fit.

    Args:
      num_groups: G, at least 1.
      num_classes: K; the columns of `logits` or `scores`, or 2 for `scores [N]`, if None.
      **arrays: by name, of JAX or what NumPy makes an array of, such as lists and columns of
        pandas. `logits` are floating `[N, K]` with K >= 2; `probs` floating and `scores` numbers
        `[N]` or `[N, K]` with K >= 2; `values` numbers `[N, V]`; `weights` finite numbers `[N]`,
        not negative; `preds` and `labels` integers `[N]` in `[0, K)`, `group` in `[0, G)`; where a
        weight is 0, any integers. None is passed over.

    Returns:
      The arrays in the order of the arguments; None stays None.

    Raises:
      ValueError: an argument has another form, lengths differ, N or G is 0, or an id or weight is
        out of range.
    """
    if num_groups < 1:
        raise ValueError(f"num_groups must be at least 1, got {num_groups}")
    arrays = {
        name: array if array is None or isinstance(array, Array) else np.asarray(array)
        for name, array in arrays.items()
    }
    given = {name: array for name, array in arrays.items() if array is not None}
    for name, array in given.items():
        form = _FORMS[name]
        fits = array.ndim in form.num_axes and any(
            jnp.issubdtype(array.dtype, kind) for kind in form.kinds
        )
        if name in ("logits", "probs", "scores") and array.ndim == 2:
            fits &= array.shape[1] >= 2
            num_classes = array.shape[1] if num_classes is None else num_classes
        if not fits:
            found = f"{array.dtype} {list(array.shape)}"
            raise ValueError(f"{name} must be {form.says}, got {found}{form.remedy}")
    lengths = {name: array.shape[0] for name, array in given.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(f"need one value per example, at least one example; got lengths {lengths}")
    if "scores" in given and given["scores"].ndim == 1:
        num_classes = 2
    _check_values(given, {"preds": num_classes, "labels": num_classes, "group": num_groups})
    return tuple(arrays.values())


def _check_values(arrays: dict[str, Any], counts: dict[str, int | None]) -> None:
    """Refuse weights that are none, and ids outside `[0, count)` of examples that have weight."""
    weights = seen(arrays.get("weights"))
    if weights is not None and not (np.isfinite(weights) & (weights >= 0)).all():
        wrong = np.unique(weights[~(np.isfinite(weights) & (weights >= 0))])[:3]
        raise ValueError(f"weights must be finite and not negative, got {wrong.tolist()}")
    for name, count in counts.items():
        ids = seen(arrays.get(name))
        if ids is None:
            continue
        if weights is not None:
            ids = ids[weights != 0]  # padding may hold anything
        if ids.size and (ids.min() < 0 or (count is not None and ids.max() >= count)):
            accepted = "not be negative" if count is None else f"lie in [0, {count})"
            found = f"{ids.min()} to {ids.max()}{_FROM_0.format(name=name)}"
            raise ValueError(f"{name} must {accepted}, got {found}")


def seen(array: Any) -> np.ndarray | None:
    """The values where this process has them all: not of tracers, nor of parts elsewhere."""
    if array is None or isinstance(array, Tracer):
        return None
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return None
    return np.asarray(jax.device_get(array))


def is_wide(array: Any) -> bool:
    """Are these numbers of NumPy that float32 may merge, such as float64?"""
    return isinstance(array, np.ndarray) and array.dtype.itemsize > 4


def device_logits(logits: Float[Array, "*axes K"]) -> Float[jax.Array, "*axes K"]:
    """Logits as float32 with the differences that NumPy's float64 has.

    Each row is shifted so that its largest is 0, which changes no probability; large logits would
    otherwise become equal.
    """
    if is_wide(logits):
        with np.errstate(invalid="ignore", over="ignore"):
            logits = (logits - logits.max(-1, keepdims=True)).astype(np.float32)
    return jnp.asarray(logits).astype(jnp.float32)


def example_weights(weights: Any, num_examples: int) -> jax.Array:
    """`weights` as float32, or ones for every example."""
    if weights is None:
        return jnp.ones(num_examples, jnp.float32)
    return jnp.asarray(weights).astype(jnp.float32)


def weigh(values: jax.Array, weights: jax.Array) -> jax.Array:
    """`values * weights`, where weight 0 silences even inf and nan: padding may hold anything."""
    return jnp.where(weights == 0, 0.0, values) * weights


def check_choice(name: str, value: str, accepted: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is one of the accepted words."""
    if value not in accepted:
        raise ValueError(f"{name} must be one of {', '.join(accepted)}; got {value!r}")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GroupCounts:
    """Weighted examples per (group, label, prediction); `+` merges the counts of two batches.

    Attributes:
      confusion: float32 `[G, K, K]`; `confusion[g, k, j]` is the weight of group g's examples
        with label k predicted as j.
    """

    confusion: jax.Array

    def __add__(self, other: "GroupCounts") -> "GroupCounts":
        """Counts of both sets of examples together."""
        return GroupCounts(self.confusion + other.confusion)

    @property
    def num_classes(self) -> int:
        """K, the number of classes."""
        return self.confusion.shape[-1]

    @property
    def n(self) -> jax.Array:
        """Weight of each group, `[G]`; 0 means that every rate of the group is undefined."""
        # Summed over labels last, so that n - per_label is exactly 0 where only one label occurs.
        return self.per_label.sum(-1)

    @property
    def per_label(self) -> jax.Array:
        """Weight of each (group, label) cell, `[G, K]`."""
        return self.confusion.sum(-1)

    def pooled(self) -> "GroupCounts":
        """The same examples as one group, G = 1: rates of it are overall rates."""
        return GroupCounts(self.confusion.sum(-3, keepdims=True))

    def one_vs_rest(self, positive: int) -> "GroupCounts":
        """Counts of the two-class question "is it class `positive`?", K = 2."""
        is_positive = jnp.arange(self.num_classes) == positive
        side = jax.nn.one_hot(is_positive.astype(jnp.int32), 2)
        return GroupCounts(
            jnp.einsum("...kj,ka,jb->...ab", self.confusion, side, side, precision="highest")
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GroupRates(GroupCounts):
    """Counts whose rates are given: what disparities would be if the rates were these.

    Attributes:
      selection, true_positive, false_positive: float32 `[G, K]`, one-vs-rest; see `rates`.
      overall: the pooled rates, G = 1; None in the pooled rates themselves.
    """

    selection: jax.Array
    true_positive: jax.Array
    false_positive: jax.Array
    overall: "GroupRates | None" = None

    def pooled(self) -> "GroupCounts":
        """The pooled rates as they were given."""
        return self if self.overall is None else self.overall


def group_counts(
    preds: Ids,
    *,
    labels: Ids,
    group: Ids,
    num_groups: int,
    num_classes: int = 2,
    weights: Weights | None = None,
) -> GroupCounts:
    """Count predictions per group and label.

    Args:
      preds: predicted class, int `[N]` in `[0, num_classes)`.
      labels: true class, int `[N]` in `[0, num_classes)`.
      group: sensitive group, int `[N]` in `[0, num_groups)`.
      num_groups: G.
      num_classes: K, a property of the task and not of the rows at hand.
      weights: float `[N]`: 0 for padding, how often a row was drawn for a bootstrap; ones if None.

    Returns:
      GroupCounts, exact while each count is a whole number below 2^24. Safe under jit and vmap.
      A row with a traced id outside its range counts nowhere, like padding.

    Raises:
      ValueError: shapes or dtypes do not fit, lengths differ or are 0, or an id that is not traced
        is outside its range, such as labels -1 and 1 or groups 1 and 2 of two.

    >>> ids = jnp.array([0, 1, 1, 0])
    >>> counts = group_counts(ids, labels=ids, group=jnp.array([0, 0, 0, 1]), num_groups=2)
    >>> counts.n.tolist()
    [3.0, 1.0]
    """
    preds, labels, group, weights = check_examples(
        num_groups=num_groups,
        num_classes=num_classes,
        preds=preds,
        labels=labels,
        group=group,
        weights=weights,
    )
    weights = example_weights(weights, len(labels))
    labels, group = jnp.asarray(labels, jnp.int32), jnp.asarray(group, jnp.int32)
    inside = (labels >= 0) & (labels < num_classes) & (group >= 0) & (group < num_groups)
    cell = jnp.where(inside, group * num_classes + labels, -1)
    # The cell side of the product is the same for every candidate and every bootstrap replicate.
    values = jax.nn.one_hot(preds, num_classes) * weights[:, None]
    confusion = finite_sums(values, group=cell, num_groups=num_groups * num_classes)
    return GroupCounts(confusion.reshape(num_groups, num_classes, num_classes))
