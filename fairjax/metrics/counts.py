"""Confusion counts per group, and what every metric checks about its arguments."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Real

Array = jax.Array | np.ndarray
"""What a user may pass: arrays of JAX (traced ones too) or of NumPy."""

Weights = Real[Array, " N"] | Bool[Array, " N"]
"""Weights of examples: 0 or False for padding."""

_BLOCK = 128


def group_sums(
    values: Real[Array, "N V"], *, group: Int[Array, " N"], num_groups: int
) -> Float[jax.Array, "G V"]:
    """Sum of `values [N, V]` over the examples of each group, `[G, V]` float32.

    A one-hot matmul rather than a scatter: deterministic on every device. Whole numbers are exact
    below 2^24; other values keep about 1e-7 relative error at any N, because the sum is a tree
    over blocks of 128. Examples whose group is outside `[0, G)` count nowhere.

    Raises:
      ValueError: shapes or dtypes do not fit, or there is no example or group.
    """
    check_examples(num_groups=num_groups, values=values, group=group)
    n, v = values.shape
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
    "values": _Form("real [N, V]", (jnp.floating, jnp.integer), (2,)),
    "weights": _Form("real [N]", (jnp.floating, jnp.integer, jnp.bool_), (1,)),
    "preds": _IDS._replace(remedy="; give class numbers, such as logits.argmax(-1)"),
    "labels": _IDS._replace(remedy="; give class numbers, one for each example"),
    "group": _IDS._replace(remedy="; give group numbers, one for each example"),
}


def check_examples(*, num_groups: int = 1, **arrays: Any) -> None:
    """Refuse arguments whose shapes or dtypes do not fit; free, since no value is looked at.

    Args:
      num_groups: G, at least 1.
      **arrays: by name. `logits` are floating `[N, K]` with K >= 2; `scores` numbers `[N]` or
        `[N, K]` with K >= 2; `values` numbers `[N, V]`; `weights` numbers `[N]`; `preds`,
        `labels` and `group` integers `[N]`. None is passed over.

    Raises:
      ValueError: an argument has another form, lengths differ, or N or G is 0.
    """
    if num_groups < 1:
        raise ValueError(f"num_groups must be at least 1, got {num_groups}")
    arrays = {name: array for name, array in arrays.items() if array is not None}
    for name, array in arrays.items():
        form = _FORMS[name]
        if not isinstance(array, jax.Array | np.ndarray):
            raise ValueError(
                f"{name} must be {form.says}, an array of JAX or NumPy; got {type(array).__name__}"
            )
        fits = array.ndim in form.num_axes and any(
            jnp.issubdtype(array.dtype, kind) for kind in form.kinds
        )
        if name in ("logits", "scores") and array.ndim == 2:
            fits &= array.shape[1] >= 2
        if not fits:
            found = f"{array.dtype} {list(array.shape)}"
            raise ValueError(f"{name} must be {form.says}, got {found}{form.remedy}")
    lengths = {name: array.shape[0] for name, array in arrays.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(f"need one value per example, at least one example; got lengths {lengths}")


def example_weights(weights: Array | None, num_examples: int) -> jax.Array:
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
    preds: Int[Array, " N"],
    *,
    labels: Int[Array, " N"],
    group: Int[Array, " N"],
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
      A row with an id outside its range counts nowhere, like padding.

    Raises:
      ValueError: shapes or dtypes do not fit, lengths differ or are 0.

    >>> ids = jnp.array([0, 1, 1, 0])
    >>> counts = group_counts(ids, labels=ids, group=jnp.array([0, 0, 0, 1]), num_groups=2)
    >>> counts.n.tolist()
    [3.0, 1.0]
    """
    check_examples(num_groups=num_groups, preds=preds, labels=labels, group=group, weights=weights)
    weights = example_weights(weights, len(labels))
    labels, group = jnp.asarray(labels, jnp.int32), jnp.asarray(group, jnp.int32)
    inside = (labels >= 0) & (labels < num_classes) & (group >= 0) & (group < num_groups)
    cell = jnp.where(inside, group * num_classes + labels, -1)
    # The cell side of the product is the same for every candidate and every bootstrap replicate.
    values = jax.nn.one_hot(preds, num_classes) * weights[:, None]
    confusion = group_sums(values, group=cell, num_groups=num_groups * num_classes)
    return GroupCounts(confusion.reshape(num_groups, num_classes, num_classes))
