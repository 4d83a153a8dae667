"""Many plans at once: how they come about, their metrics, and which to take."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from fairjax import metrics
from fairjax.data import Examples
from fairjax.models import Model, ResNetConfig, VGGConfig
from fairjax.models.mlp import MLPConfig
from fairjax.pruning.compiled import compiled
from fairjax.pruning.plans import (
    Graph,
    Mode,
    Proposal,
    PrunePlan,
    check_mode,
    check_plan,
    graph_of,
    mask_channels,
    num_channels,
    select_channels,
)
from fairjax.pruning.scores import ChannelScores
from fairjax.train import evaluation_batch_size
from fairjax.trees import get_path, unstack_blocks

ACCURACIES = (
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "auc",
    "worst_group_accuracy",
    "worst_group_auc",
)
"""Metrics of `pruning_metrics` that FATE may want high."""
DISPARITIES = (
    *("eodd", "eodd_scp", "eopp0", "eopp1", "dp_scp"),
    *("equalized_odds_difference", "equal_opportunity_difference", "demographic_parity_difference"),
    *("equalized_odds_deviation", "equal_opportunity_deviation", "demographic_parity_deviation"),
    *("accuracy_gap", "auc_gap", "max_group_loss"),
)
"""Metrics of `pruning_metrics` that FATE may want low."""


def propose_plans(
    scores: Mapping[str, ChannelScores],
    *,
    layer: str,
    counts: Sequence[int],
    trade_offs: Sequence[float] = (0.0,),
    after: PrunePlan | None = None,
) -> tuple[list[Proposal], PrunePlan]:
    """Plans for one layer from every (score, trade-off, count); runs on the host.

    Args:
      scores: name -> scores, such as `{"snnl": ..., "random": ...}`.
      layer: which to prune.
      counts: channels to prune more than `after` does.
      trade_offs: see `ChannelScores.values`.
      after: channels that are pruned already.

    Returns:
      P proposals, and their plans as one `PrunePlan` with leaves `[P, C]`.

    Raises:
      ValueError: as `select_channels`.
    """
    proposals, plans = [], []
    for (name, score), trade_off, count in itertools.product(scores.items(), trade_offs, counts):
        values = {layer: score.values(trade_off)[layer]}
        proposals.append(Proposal(layer, count, name, trade_off))
        plans.append(select_channels(values, count=count, after=after))
    return proposals, stack_plans(plans)


def stack_plans(plans: Sequence[PrunePlan]) -> PrunePlan:
    """P plans of the same layers as one with leaves `[P, C]`.

    >>> stack_plans([PrunePlan({"conv": jnp.ones(4, bool)})] * 3).keep["conv"].shape
    (3, 4)
    """
    return jax.tree.map(lambda *keeps: jnp.stack(keeps), *plans)


def plan_logits(
    model: Model,
    params: Any,
    batch_stats: Any,
    plans: PrunePlan,
    inputs: Shaped[Array | np.ndarray, "B ..."],
    *,
    mode: Mode = "channel",
) -> Float[Array, "P B K"]:
    """Logits of P pruned networks, float32 `[P, B, K]`, in evaluation mode.

    Where one layer is pruned, what lies below runs once. If it feeds the linear layers of one of
    our VGGs or MLPs, it runs once itself: the linear layer's output is a sum over channels, so the
    plans are one product with `keep [P, C]`. Plans that touch several convolutions at once run one
    after another.

    Args:
      model: network whose configuration has a `channel_graph`; its `preprocess` is applied.
      params: its parameters, of which `plans` masks more.
      batch_stats: its statistics.
      plans: leaves bool `[P, C]`, the same layers in all plans.
      inputs: `[B, ...]` as stored, all at once.
      mode: see `mask_channels`.

    Returns:
      The logits that `mask_channels` gives plan by plan, to rounding. Compiled once for equal
      settings; safe under jit.

    Raises:
      ValueError: as `mask_channels`, or a network without channel graph.
    """
    check_mode(mode)
    check_plan(params, plans, graph_of(model))
    return compiled(_plan_logits, model, mode)(params, batch_stats, plans, inputs)


def _plan_logits(model, mode, params, batch_stats, plans, inputs) -> jax.Array:
    graph, params = graph_of(model), unstack_blocks(params)
    inputs = inputs if model.preprocess is None else model.preprocess(inputs)

    def run(plan: PrunePlan, where: Graph = graph):
        masked = mask_channels(params, plan, where, mode=mode)
        logits, out, _ = model.apply(masked, batch_stats, inputs, train=False)
        return logits, out

    layers = list(plans.keep)
    chain, where, at_once = _passes(model, layers, mode)
    if not chain:
        transform = jax.vmap if at_once else lambda fn: lambda xs: jax.lax.map(fn, xs)
        return transform(lambda plan: run(plan, where)[0])(plans)
    (layer,) = layers
    size = num_channels(params, {layer: graph[layer]})[layer]

    def read(keep: bool) -> jax.Array:
        """What the linear layer reads, `[B, outer, C]`, with all channels kept or all pruned."""
        _, out = run(PrunePlan({layer: jnp.full(size, keep)}))
        pooled = out["map" if "map" in out else "pooled"]
        features = pooled if out[layer].ndim == 4 else jax.nn.relu(out[layer])
        return features.reshape(len(features), -1, size)

    off = read(False) if mode == "weight" else None
    hidden = masked_linear(read(True), off, plans.keep[layer], get_path(params, chain[0]))
    for name in chain[1:]:
        linear = get_path(params, name)
        flat = jax.nn.relu(hidden).reshape(-1, hidden.shape[-1])
        hidden = (flat @ linear["kernel"] + linear["bias"][None]).reshape(*hidden.shape[:2], -1)
    return hidden


class _Passes(NamedTuple):
    """What plans of the same layers run of their own."""

    chain: tuple[str, ...]
    """From `shared_chain`: nothing but these linear layers."""
    where: Graph
    """Otherwise a pass, in which this graph is masked."""
    at_once: bool
    """All plans' passes at the same time, rather than one after another."""


def _passes(model: Model, layers: Sequence[str], mode: Mode) -> _Passes:
    """How plans share work.

    A channel that reads 0 may as well not be read: masked there, the layer that makes it runs once
    for all plans. Networks of somebody else may use it in other places; ours are known.

    vmap leaves what lies below the first mask unbatched and makes that layer's P kernels one wide
    kernel; a second masked convolution would become a grouped one, slower than a loop.
    """
    graph, chain = graph_of(model), shared_chain(model, layers)
    read = {name: graph[name]._replace(outputs=graph[name].inputs) for name in layers}
    known = isinstance(model.config, (VGGConfig, ResNetConfig)) and mode == "channel"
    where = read if known and _num_kernels(read, layers) == 1 else graph
    return _Passes(chain, where, not chain and _num_kernels(where, layers) == 1)


def _num_kernels(graph: Graph, layers: Sequence[str]) -> int:
    """Kernels that a plan of these layers masks."""
    slots = [slot for layer in layers for slot in graph[layer].outputs]
    return sum(slot.path.endswith("/kernel") for slot in slots)


def masked_linear(
    on: Float[Array, "B outer C"],
    off: Float[Array, "B outer C"] | None,
    keep: Bool[Array, "P C"],
    linear: Mapping[str, Any],
) -> Float[Array, "P B U"]:
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


def shared_chain(model: Model, layers: Sequence[str]) -> tuple[str, ...]:
    """The `dense_chain` of the only layer that is pruned; () where plans need passes of their own.

    Between its linear layers a network of somebody else may do anything; ours are known.
    """
    if len(layers) != 1 or not isinstance(model.config, (VGGConfig, MLPConfig)):
        return ()
    return dense_chain(graph_of(model), layers[0], head=model.head)


def dense_chain(graph: Graph, layer: str, *, head: str) -> tuple[str, ...]:
    """Linear layers from the one that alone reads `layer` to the head; () if there are others."""
    names = []
    while layer in graph:
        readers = graph[layer].inputs
        if len(readers) != 1 or readers[0].axis != 0:
            return ()
        layer = readers[0].path.removesuffix("/kernel")
        names.append(layer)
    return tuple(names) if layer == head else ()


def evaluate_plans(
    model: Model,
    params: Any,
    batch_stats: Any,
    plans: PrunePlan,
    data: Examples,
    *,
    num_groups: int,
    batch_size: int | None = None,
    mode: Mode = "channel",
) -> dict[str, Array]:
    """All metrics of P pruned networks on a whole split.

    Args:
      model: network whose configuration has a `channel_graph`; its `preprocess` is applied to
        every batch.
      params: its parameters.
      batch_stats: its statistics.
      plans: leaves bool `[P, C]`; see `plan_logits`.
      data: the split, inputs as stored; `group` int `[N]`.
      num_groups: G.
      batch_size: examples in flight at a time, for all plans; None chooses by their size, see
        `train.evaluation_batch_size`, and by P where plans have activations of their own.
      mode: see `mask_channels`.

    Returns:
      What `pruning_metrics` returns, with a leading axis P. Compiled once for equal settings; safe
      under jit.

    Raises:
      ValueError: as `mask_channels` and `fairness_metrics`, or `batch_size` below 1.
    """
    check_mode(mode)
    graph, layers = graph_of(model), list(plans.keep)
    check_plan(params, plans, graph)
    if batch_size is None:
        batch_size = evaluation_batch_size(model, data.inputs)
        if _passes(model, layers, mode).at_once:
            batch_size = max(1, batch_size // len(plans.keep[layers[0]]))
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    settings = (num_groups, min(batch_size, len(data.labels)), mode)
    return compiled(_evaluate_plans, model, *settings)(params, batch_stats, plans, data)


def _evaluate_plans(model, num_groups, batch_size, mode, params, batch_stats, plans, data):
    num_rows = len(data.labels)
    num_batches = -(-num_rows // batch_size)

    def forward(rows):
        return _plan_logits(model, mode, params, batch_stats, plans, data.inputs[rows])

    rows = jnp.arange(num_batches * batch_size) % num_rows
    logits = jax.lax.map(forward, rows.reshape(num_batches, batch_size))  # [batches, P, B, K]
    logits = logits.transpose(1, 0, 2, 3).reshape(logits.shape[1], -1, logits.shape[3])

    def measure(logits):
        return pruning_metrics(logits, labels=data.labels, group=data.group, num_groups=num_groups)

    return jax.vmap(measure)(logits[:, :num_rows])


def pruning_metrics(
    logits: Float[Array, "N K"],
    *,
    labels: Int[Array | np.ndarray, " N"],
    group: Int[Array | np.ndarray, " N"],
    num_groups: int,
) -> dict[str, Array]:
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
    prepared = metrics.prepare(
        logits, labels=jnp.asarray(labels), group=jnp.asarray(group), num_groups=num_groups
    )
    return evaluate_pruned(prepared)


def evaluate_pruned(
    prepared: metrics.Prepared, weights: Float[Array, " N"] | None = None
) -> dict[str, Array]:
    """`pruning_metrics` for one set of example weights `[N]`; see `fairjax.metrics.evaluate`."""
    return tabulate_pruned(metrics.measure(prepared, weights))


def tabulate_pruned(measured: metrics.Measured) -> dict[str, Array]:
    """`pruning_metrics` from what was measured; see `fairjax.metrics.tabulate`."""
    table, rates = metrics.tabulate(measured), measured.rates
    diverged = jnp.isnan(table["accuracy"])
    for fn in (metrics.eopp0, metrics.eopp1, metrics.eodd, metrics.eodd_scp, metrics.dp_scp):
        table[fn.__name__] = jnp.where(diverged, jnp.nan, fn(rates))
    return table | {"num_unsupported_classes": metrics.num_unsupported_classes(rates)}


def fate_objective(
    table: Mapping[str, Any],
    baseline: Mapping[str, Any],
    *,
    accuracy: str = "accuracy",
    disparity: str = "eodd",
    trade_off: float = 1.0,
) -> Float[Array, "..."]:
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

    >>> table, baseline = {"accuracy": 0.8, "eodd": 0.1}, {"accuracy": 0.8, "eodd": 0.2}
    >>> float(fate_objective(table, baseline))
    0.5
    """
    values = [table[accuracy], table[disparity], baseline[accuracy], baseline[disparity]]
    now, unfair, base_accuracy, base_disparity = (jnp.asarray(v, jnp.float32) for v in values)
    return metrics.fate(
        now, unfair, base_accuracy=base_accuracy, base_disparity=base_disparity, trade_off=trade_off
    )


def rank_plans(values: Any) -> Int[np.ndarray, " P"]:
    """Numbers of the plans from the best value to the worst, int `[P]`; undefined ones last.

    >>> rank_plans([0.1, float("nan"), 0.3]).tolist()
    [2, 0, 1]
    """
    values = np.asarray(values, np.float64)
    return np.argsort(-np.where(np.isnan(values), -np.inf, values), kind="stable")
