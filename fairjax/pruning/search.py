"""Many plans at once: candidates, their metrics, and which to take."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fairjax import metrics
from fairjax.data import Examples
from fairjax.models import Model
from fairjax.pruning.plans import (
    Graph,
    Mode,
    PrunePlan,
    check_plan,
    mask_channels,
    num_channels,
    select_channels,
)
from fairjax.pruning.scores import ChannelScores
from fairjax.trees import unstack_blocks


class Candidate(NamedTuple):
    """How a plan came about."""

    layer: str
    count: int
    score: str
    trade_off: float


def candidate_plans(
    scores: Mapping[str, ChannelScores],
    *,
    layer: str,
    counts: Sequence[int],
    trade_offs: Sequence[float] = (0.0,),
    after: PrunePlan | None = None,
) -> tuple[list[Candidate], PrunePlan]:
    """Plans for one layer from every (score, trade-off, count); runs on the host.

    Args:
      scores: name -> scores, such as `{"snnl": ..., "random": ...}`.
      layer: which to prune.
      counts: channels to prune more than `after` does.
      trade_offs: see `ChannelScores.values`.
      after: channels that are pruned already.

    Returns:
      P candidates, and their plans as one `PrunePlan` with leaves `[P, C]`.

    Raises:
      ValueError: as `select_channels`.
    """
    candidates, plans = [], []
    for (name, score), trade_off, count in itertools.product(scores.items(), trade_offs, counts):
        values = {layer: score.values(trade_off)[layer]}
        candidates.append(Candidate(layer, count, name, trade_off))
        plans.append(select_channels(values, count=count, after=after))
    return candidates, stack_plans(plans)


def stack_plans(plans: Sequence[PrunePlan]) -> PrunePlan:
    """P plans of the same layers as one with leaves `[P, C]`."""
    return jax.tree.map(lambda *keeps: jnp.stack(keeps), *plans)


def plan_logits(
    model: Model,
    params: Any,
    batch_stats: Any,
    plans: PrunePlan,
    inputs: jax.Array,
    *,
    mode: Mode = "channel",
) -> jax.Array:
    """Logits of P pruned networks, float32 `[P, B, K]`, in evaluation mode.

    Where one layer is pruned, what lies below runs once. If it feeds pooling and a linear layer
    (VGG's last convolution), or a linear layer directly, it runs once itself: the linear layer's
    output is a sum over channels, so the plans are one product with `keep [P, C]`. Plans that
    touch several convolutions at once run one after another.

    Args:
      model: network whose configuration has a `channel_graph`.
      params: its parameters, of which `plans` masks more.
      batch_stats: its statistics.
      plans: leaves bool `[P, C]`, the same layers in all plans.
      inputs: `[B, ...]`.
      mode: see `mask_channels`.

    Returns:
      The logits that `mask_channels` gives plan by plan, to rounding. Safe under jit.

    Raises:
      ValueError: as `mask_channels`.
    """
    graph = model.config.channel_graph
    params = unstack_blocks(params)
    check_plan(params, plans, graph)

    def run(plan: PrunePlan):
        masked = mask_channels(params, plan, graph, mode=mode)
        logits, out, _ = model.apply(masked, batch_stats, inputs, train=False)
        return logits, out

    layers = list(plans.keep)
    chain = dense_chain(graph, layers[0]) if len(layers) == 1 else ()
    if not chain:
        num_kernels = sum(
            slot.path.endswith("/kernel") for layer in layers for slot in graph[layer].outputs
        )
        # vmap leaves what lies below the first mask unbatched and makes that layer's P kernels one
        # wide kernel; a second masked convolution would become a grouped one, slower than a loop.
        transform = jax.vmap if num_kernels == 1 else lambda fn: lambda xs: jax.lax.map(fn, xs)
        return transform(lambda plan: run(plan)[0])(plans)
    (layer,) = layers
    size = num_channels(params, {layer: graph[layer]})[layer]

    def read(keep: bool) -> jax.Array:
        """What the linear layer reads, `[B, outer, C]`, with all channels kept or all pruned."""
        _, out = run(PrunePlan({layer: jnp.full(size, keep)}))
        features = out["pooled"] if out[layer].ndim == 4 else jax.nn.relu(out[layer])
        return features.reshape(len(features), -1, size)

    off = read(False) if mode == "weight" else None
    hidden = masked_linear(read(True), off, plans.keep[layer], _lookup(params, chain[0]))
    for name in chain[1:]:
        linear = _lookup(params, name)
        flat = jax.nn.relu(hidden).reshape(-1, hidden.shape[-1])
        hidden = (flat @ linear["kernel"] + linear["bias"][None]).reshape(*hidden.shape[:2], -1)
    return hidden


def masked_linear(
    on: jax.Array, off: jax.Array | None, keep: jax.Array, linear: Mapping[str, jax.Array]
) -> jax.Array:
    """A linear layer for P masks over its input channels, `[P, B, U]`.

    Args:
      on: inputs with every channel kept, `[B, outer, C]`.
      off: inputs with every channel pruned; None is zeros.
      keep: bool `[P, C]`.
      linear: `kernel` `[outer * C, U]` and `bias` `[U]`.
    """
    batch, outer, size = on.shape
    num_units = linear["kernel"].shape[1]
    kernel = linear["kernel"].reshape(outer, size, num_units)
    # Some channels at a time: the contributions of all, [C, B, U], may be gigabytes.
    chunk = next(c for c in range(min(size, 64), 0, -1) if size % c == 0)
    gates = keep.astype(jnp.float32)
    delta = on if off is None else on - off
    start = jnp.broadcast_to(linear["bias"][None, None], (len(keep), batch, num_units))
    if off is not None:
        start = start + (off.reshape(batch, -1) @ linear["kernel"])[None]

    def add(hidden, first):
        block = jax.lax.dynamic_slice_in_dim(kernel, first, chunk, 1)
        here = jax.lax.dynamic_slice_in_dim(delta, first, chunk, 2)
        contributions = jnp.einsum("boc,ocu->cbu", here, block).reshape(chunk, -1)
        more = jax.lax.dynamic_slice_in_dim(gates, first, chunk, 1) @ contributions
        return hidden + more.reshape(hidden.shape), None

    hidden, _ = jax.lax.scan(add, start, jnp.arange(0, size, chunk))
    return hidden


def dense_chain(graph: Graph, layer: str) -> tuple[str, ...]:
    """Linear layers from the one that alone reads `layer` to the head, ReLU between; () if none."""
    names = []
    while layer in graph:
        readers = graph[layer].inputs
        if len(readers) != 1 or readers[0].axis != 0:
            return ()
        layer = readers[0].path.removesuffix("/kernel")
        names.append(layer)
    return tuple(names) if layer == "head" else ()


def _lookup(params: Any, path: str) -> Any:
    for name in path.split("/"):
        params = params[name]
    return params


def evaluate_plans(
    model: Model,
    params: Any,
    batch_stats: Any,
    plans: PrunePlan,
    data: Examples,
    *,
    num_groups: int,
    batch_size: int = 64,
    mode: Mode = "channel",
    preprocess: Callable[[jax.Array], jax.Array] | None = None,
) -> dict[str, jax.Array]:
    """All metrics of P pruned networks on a whole split.

    Args:
      model: network whose configuration has a `channel_graph`.
      params: its parameters.
      batch_stats: its statistics.
      plans: leaves bool `[P, C]`; see `plan_logits`.
      data: the split; `group` int `[N]`.
      num_groups: G.
      batch_size: examples in flight at a time, for all plans.
      mode: see `mask_channels`.
      preprocess: applied to every batch of inputs.

    Returns:
      What `pruning_metrics` returns, with a leading axis P. Not jitted; safe under jit.

    Raises:
      ValueError: as `mask_channels` and `fairness_metrics`.
    """
    num_rows = len(data.labels)
    batch_size = min(batch_size, num_rows)
    num_batches = -(-num_rows // batch_size)
    inputs = jnp.asarray(data.inputs)

    def forward(rows):
        batch = inputs[rows] if preprocess is None else preprocess(inputs[rows])
        return plan_logits(model, params, batch_stats, plans, batch, mode=mode)

    rows = jnp.arange(num_batches * batch_size) % num_rows
    logits = jax.lax.map(forward, rows.reshape(num_batches, batch_size))  # [batches, P, B, K]
    logits = logits.transpose(1, 0, 2, 3).reshape(logits.shape[1], -1, logits.shape[3])

    def measure(logits):
        return pruning_metrics(logits, labels=data.labels, group=data.group, num_groups=num_groups)

    return jax.vmap(measure)(logits[:, :num_rows])


def pruning_metrics(
    logits: jax.Array, *, labels: jax.Array, group: jax.Array, num_groups: int
) -> dict[str, jax.Array]:
    """`fairness_metrics` and the pruning paper's own disparities.

    Args:
      logits: float `[N, K]`.
      labels: int `[N]` in `[0, K)`.
      group: int `[N]` in `[0, G)`.
      num_groups: G.

    Returns:
      The dict of `fairness_metrics` with `eopp0`, `eopp1`, `eodd`, `eodd_scp`, `dp_scp` and
      `num_unsupported_classes`. Safe under jit and vmap.

    Raises:
      ValueError: as `fairness_metrics`.
    """
    return evaluate_pruned(
        metrics.prepare(logits, labels=labels, group=group, num_groups=num_groups)
    )


def evaluate_pruned(
    prepared: metrics.Prepared, weights: jax.Array | None = None
) -> dict[str, jax.Array]:
    """`pruning_metrics` for one set of example weights `[N]`; see `fairjax.metrics.evaluate`."""
    table = metrics.evaluate(prepared, weights)
    counts = metrics.group_counts(
        prepared.preds,
        labels=prepared.labels,
        group=prepared.group,
        num_groups=prepared.num_groups,
        num_classes=prepared.num_classes,
        weights=weights,
    )
    diverged = jnp.isnan(table["accuracy"])
    for fn in (metrics.eopp0, metrics.eopp1, metrics.eodd, metrics.eodd_scp, metrics.dp_scp):
        table[fn.__name__] = jnp.where(diverged, jnp.nan, fn(counts))
    return table | {"num_unsupported_classes": metrics.num_unsupported_classes(counts)}


def fate_objective(
    table: Mapping[str, jax.Array],
    baseline: Mapping[str, jax.Array],
    *,
    accuracy: str = "accuracy",
    disparity: str = "eodd",
    trade_off: float = 1.0,
) -> jax.Array:
    """FATE of pruned networks against the unpruned one; higher is better, 0 is the baseline.

    Args:
      table: metrics of one network or, with a leading axis, of P.
      baseline: metrics of the unpruned network on the same rows.
      accuracy: the metric that counts as accuracy ("macro_f1" in the published code).
      disparity: the metric that counts as unfairness ("eodd_scp" in the published code).
      trade_off: weight of the disparity.

    Returns:
      float32, nan where undefined. Safe under jit and vmap.

    Source: Kong et al. 2024, FATE.
    """
    return metrics.fate(
        table[accuracy],
        table[disparity],
        base_accuracy=baseline[accuracy],
        base_disparity=baseline[disparity],
        trade_off=trade_off,
    )


def rank_plans(values: Any) -> np.ndarray:
    """Numbers of the plans from the best value to the worst, int `[P]`; undefined ones last."""
    values = np.asarray(values, np.float64)
    return np.argsort(-np.where(np.isnan(values), -np.inf, values), kind="stable")
