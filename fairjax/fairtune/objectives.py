"""What a search optimises: a metric of the validation split and its direction."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fairjax.metrics import bootstrap, evaluate, prepare, undefined
from fairjax.metrics.counts import check_examples

MAXIMIZED = {
    "worst_group_auc": True,
    "auc_gap": False,
    "worst_group_accuracy": True,
    "accuracy_gap": False,
    "max_group_loss": False,
    "auc": True,
    "accuracy": True,
    "equalized_odds_difference": False,
}
"""Metrics that a search can optimise; True = larger is better."""

BOUND = "@bound"


class Objective(NamedTuple):
    """One number per candidate."""

    name: str
    maximize: bool
    measure: Callable[..., jax.Array]
    """`measure(logits [N, K], *, labels [N], group [N]) -> scalar`, nan where undefined; works
    under jit and vmap."""
    resample: Callable[..., jax.Array] | None = None
    """`resample(logits [N, K], *, labels [N], group [N], weights [B, N]) -> [B]`: the metric under
    example weights, without a bound; a race and the choice of the winner need it."""

    def score(self, logits: jax.Array, *, labels: jax.Array, group: jax.Array) -> jax.Array:
        """The value turned so that larger is better."""
        value = self.measure(logits, labels=labels, group=group)
        return value if self.maximize else -value


def objective(name: str, *, num_groups: int, num_replicates: int = 100, seed: int = 0) -> Objective:
    """A metric by its name, or its pessimistic 95 % bootstrap bound by `name@bound`.

    The bound is the lower end of the interval for what is maximised and the upper end for what is
    minimised, so that a candidate cannot win by luck on a small group. All candidates see the same
    replicates.

    Args:
      name: one of `MAXIMIZED`, optionally followed by "@bound".
      num_groups: G.
      num_replicates: of the bootstrap.
      seed: of the bootstrap.

    Raises:
      ValueError: unknown name.
    """
    metric = name.removesuffix(BOUND)
    if metric not in MAXIMIZED:
        known = ", ".join(MAXIMIZED)
        raise ValueError(f"unknown objective {name!r}; known are {known}, each also with {BOUND!r}")

    def measure(logits: jax.Array, *, labels: jax.Array, group: jax.Array) -> jax.Array:
        prepared = prepare(logits, labels=labels, group=group, num_groups=num_groups)
        if metric == name:
            return evaluate(prepared)[metric]
        interval = bootstrap(
            lambda weights: evaluate(prepared, weights)[metric],
            len(labels),
            key=jax.random.key(seed),
            num_replicates=num_replicates,
            strata=group,
        )
        return interval.lower if MAXIMIZED[metric] else interval.upper

    def resample(logits, *, labels, group, weights) -> jax.Array:
        prepared = prepare(logits, labels=labels, group=group, num_groups=num_groups)
        return jax.lax.map(lambda own: evaluate(prepared, own)[metric], weights)

    return Objective(name, MAXIMIZED[metric], measure, resample)


def check_objectives(
    objectives: Sequence[Objective],
    *,
    labels: np.ndarray,
    group: np.ndarray,
    group_names: tuple[str, ...],
    num_classes: int,
) -> None:
    """Refuse objectives that the validation split cannot define for every group.

    Raises:
      ValueError: names the objective, the group and what it lacks; or ids out of range.
    """
    check_examples(num_groups=len(group_names), num_classes=num_classes, labels=labels, group=group)
    perfect = 10.0 * jax.nn.one_hot(jnp.asarray(labels), num_classes, dtype=jnp.float32)
    names = [chosen.name.removesuffix(BOUND) for chosen in objectives]
    ids = jnp.asarray(labels), jnp.asarray(group)
    wanted = (*names, "group_auc", "n_per_label")
    reasons = undefined(_measured(wanted, len(group_names), perfect, *ids), group_names)
    for chosen, metric in zip(objectives, names, strict=True):
        needs = ("group_auc",) if metric in ("worst_group_auc", "auc_gap") else ()
        for reason in reasons:
            if reason.startswith((f"{metric} ", *(f"{need} of" for need in needs))):
                raise ValueError(f"objective {chosen.name} on the validation split: {reason}")


@functools.partial(jax.jit, static_argnums=(0, 1))
def _measured(names, num_groups: int, logits, labels, group) -> dict[str, jax.Array]:
    """Some of the metrics: all of them take three times as long to compile."""
    prepared = prepare(logits, labels=labels, group=group, num_groups=num_groups)
    metrics = evaluate(prepared)
    return {name: metrics[name] for name in names if name in metrics}
