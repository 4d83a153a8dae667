"""Which channels to remove, and removing them: as zeros, or physically."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fairjax.models import Channels, Model, Slot
from fairjax.trees import map_named, unstack_blocks

Graph = Mapping[str, Channels]
Mode = Literal["channel", "weight"]


class PrunePlan(NamedTuple):
    """Channels to keep, a pytree; P plans of the same layers are one with leaves `[P, C]`."""

    keep: dict[str, jax.Array]
    """Layer -> bool `[C]`, True = kept; layers that are absent stay whole."""


class Proposal(NamedTuple):
    """How a plan came about: what it prunes on top of the plan before, and by which score."""

    layer: str
    """"" where nothing is pruned."""
    count: int
    score: str
    """A name of `SCORES`, or "none"."""
    trade_off: float = 0.0


class Candidate(NamedTuple):
    """A plan that a round may try."""

    proposal: Proposal
    plan: PrunePlan
    val: dict[str, np.ndarray] | None = None
    """Scalar validation metrics as it is, before any fine-tuning, where they are known."""


def num_channels(params: Any, graph: Graph) -> dict[str, int]:
    """Channels that each layer of `graph` has in `params`, which may be sliced already."""
    shapes: dict[str, tuple[int, ...]] = {}
    map_named(lambda name, leaf: shapes.setdefault(name, leaf.shape), unstack_blocks(params))
    sizes = {}
    for layer, channels in graph.items():
        slot = channels.outputs[0]
        sizes[layer] = shapes[slot.path][slot.axis] // (slot.outer * slot.inner)
    return sizes


def select_channels(
    scores: Mapping[str, Any],
    *,
    count: int | None = None,
    ratio: float | None = None,
    scope: Literal["per_layer", "global"] = "per_layer",
    min_keep: int = 1,
    after: PrunePlan | None = None,
) -> PrunePlan:
    """Prune the channels of lowest score; equal scores go by layer order, then channel number.

    Runs on the host, on concrete arrays.

    Args:
      scores: layer -> float `[C]`, as from `ChannelScores.values`.
      count: channels to prune, of each layer or of all together, by `scope`; or
      ratio: the same as a share in (0, 1) of all channels, rounded down.
      scope: "per_layer" takes as many from each layer; "global" the lowest anywhere.
      min_keep: channels that every layer keeps, at least 1.
      after: an earlier plan: its channels stay pruned, are not chosen again and come on top.

    Returns:
      A `PrunePlan` for the layers of `scores` (and of `after`).

    Raises:
      ValueError: both or neither of `count` and `ratio`, fewer channels than asked for, scores
        that are not finite, or `after` of another network.

    Source: Kong et al. 2024; ties are broken rather than left out, so that exactly `count` go.

    >>> plan = select_channels({"conv": [3.0, 1.0, 1.0, 5.0]}, count=2)
    >>> plan.keep["conv"].tolist()
    [True, False, False, True]
    """
    if (count is None) == (ratio is None):
        raise ValueError(f"give count or ratio, got count={count} and ratio={ratio}")
    if ratio is not None and not 0 < ratio < 1:
        raise ValueError(f"ratio must be in (0, 1), got {ratio}")
    if count is not None and count < 1 or min_keep < 1:
        raise ValueError(f"count and min_keep must be at least 1, got {count} and {min_keep}")
    if scope not in ("per_layer", "global"):
        raise ValueError(f"scope must be 'per_layer' or 'global', got {scope!r}")
    before = {} if after is None else after.keep
    keep = {layer: np.array(mask, bool) for layer, mask in before.items()}
    values = {layer: np.asarray(score, np.float32) for layer, score in scores.items()}
    for layer, score in values.items():
        kept = keep.setdefault(layer, np.ones(len(score), bool))
        if kept.shape != score.shape:
            raise ValueError(
                f"{layer} has {len(score)} channels, but {len(kept)} in the earlier plan"
            )
        if not np.isfinite(score[kept]).all():
            channel = np.flatnonzero(kept & ~np.isfinite(score))[0]
            raise ValueError(
                f"score of channel {channel} of {layer} is {score[channel]}: its activations are "
                "not finite, or no batch held two groups with two examples each"
            )
    pools = [[layer] for layer in values] if scope == "per_layer" else [list(values)]
    for layers in pools:
        size = sum(len(values[layer]) for layer in layers)
        wanted = count if count is not None else int(ratio * size)  # pyright: ignore
        _prune_lowest(keep, values, layers, wanted, min_keep)
    return PrunePlan({layer: jnp.asarray(mask) for layer, mask in keep.items()})


def _prune_lowest(
    keep: dict[str, np.ndarray],
    values: dict[str, np.ndarray],
    layers: list[str],
    wanted: int,
    min_keep: int,
) -> None:
    """Clear `wanted` more bits of `keep` in some layers, lowest values first."""
    spare = {layer: int(keep[layer].sum()) - min_keep for layer in layers}
    if wanted > sum(max(0, number) for number in spare.values()):
        raise ValueError(
            f"cannot prune {wanted} channels of {', '.join(layers)}: "
            f"{sum(int(keep[layer].sum()) for layer in layers)} are left, "
            f"and each layer keeps at least {min_keep}"
        )
    channels = [(layer, c) for layer in layers for c in np.flatnonzero(keep[layer])]
    for layer, c in sorted(channels, key=lambda channel: values[channel[0]][channel[1]]):
        if not wanted:
            return
        if spare[layer] > 0:
            keep[layer][c] = False
            spare[layer] -= 1
            wanted -= 1


def channel_masks(params: Any, plan: PrunePlan, graph: Graph, *, mode: Mode = "channel") -> Any:
    """Factors that prune: a tree like `params` (blocks unstacked) of broadcastable float32.

    0 for pruned entries, 1 for others; see `mask_channels` for the arguments.
    """
    check_mode(mode)
    params = unstack_blocks(params)
    check_plan(params, plan, graph)
    slots = []
    for layer, keep in plan.keep.items():
        outputs = [slot for slot in graph[layer].outputs if not slot.in_stats]
        if mode == "weight":
            outputs = [slot for slot in outputs if slot.path.endswith("/kernel")]
        slots += [(slot, keep) for slot in outputs]
    return scale_slots(jax.tree.map(lambda _: jnp.ones(()), params), slots, params)


def scale_slots(tree: Any, slots: list[tuple[Slot, jax.Array]], params: Any) -> Any:
    """`tree` (parameters, or factors of them) with values `[C]` multiplied in along each slot."""

    def scale(name: str, leaf: jax.Array, param: jax.Array) -> jax.Array:
        for slot, values in slots:
            if slot.path == name:
                line = jnp.tile(jnp.repeat(values.astype(jnp.float32), slot.inner), slot.outer)
                leaf = leaf * line.reshape([-1 if i == slot.axis else 1 for i in range(param.ndim)])
        return leaf

    return map_named(scale, tree, params)


def mask_channels(params: Any, plan: PrunePlan, graph: Graph, *, mode: Mode = "channel") -> Any:
    """Prune by zeros: the shapes stay, so one compiled program runs every plan.

    Args:
      params: of any of our networks; stacked transformer blocks come back unstacked.
      plan: what to keep; may be traced, under vmap too.
      graph: `model.config.channel_graph`.
      mode: "channel" zeroes all that makes the channel, so that it reads 0 after activation;
        "weight" the kernel alone, as the pruning paper's published code does, which leaves the
        constant that its bias (or batch norm) makes.

    Returns:
      Parameters shaped as `params`. To train them, give the step `channel_masks(...) > 0` as its
      `mask`: where it is False, entries stay 0.

    Raises:
      ValueError: a layer that does not exist, or a plan of another network.
    """
    masks = channel_masks(params, plan, graph, mode=mode)
    return jax.tree.map(jnp.multiply, unstack_blocks(params), masks)


def slice_channels(params: Any, batch_stats: Any, plan: PrunePlan, graph: Graph) -> tuple[Any, Any]:
    """Remove pruned channels from every array that makes or reads them; runs on the host.

    Args:
      params: masked or not; stacked transformer blocks come back unstacked.
      batch_stats: `{}` without batch norm.
      plan: what to keep, concrete, at least one channel of each layer.
      graph: `model.config.channel_graph`.

    Returns:
      `(params, batch_stats)` of a smaller network that the same `model.apply` runs, with the
      logits of `mask_channels`.

    Raises:
      ValueError: a layer that does not exist, a plan of another network, or one that keeps
        nothing of a layer.
    """
    params = unstack_blocks(params)
    check_plan(params, plan, graph)
    slots = []
    for layer, keep in plan.keep.items():
        kept = np.asarray(keep, bool)
        if not kept.any():
            raise ValueError(f"the plan keeps no channel of {layer}; a network needs at least one")
        slots += [(slot, kept) for slot in (*graph[layer].outputs, *graph[layer].inputs)]

    def cut(in_stats: bool):
        def cut_leaf(name: str, leaf: Any) -> jax.Array:
            leaf = np.asarray(leaf)
            for slot, kept in slots:
                if slot.path == name and slot.in_stats == in_stats:
                    line = np.tile(np.repeat(kept, slot.inner), slot.outer)
                    leaf = np.compress(line, leaf, axis=slot.axis)
            return jnp.asarray(leaf)

        return cut_leaf

    return map_named(cut(False), params), map_named(cut(True), batch_stats)


def graph_of(model: Model) -> Graph:
    """The channels of a network; ValueError where it does not say which arrays hold them."""
    graph = getattr(model.config, "channel_graph", None)
    if not graph:
        raise ValueError(
            "the network does not say which arrays hold its channels: model.config.channel_graph "
            "is missing or empty; give wrap_nnx or wrap_linen a channel_graph"
        )
    return graph


def check_mode(mode: str) -> None:
    """Reject what is no `Mode`."""
    if mode not in ("channel", "weight"):
        raise ValueError(f"mode must be 'channel' or 'weight', got {mode!r}")


def check_outputs(layers: Any, out: Mapping[str, Any]) -> None:
    """Reject layers whose activations a network does not give."""
    for layer in layers:
        if layer not in out:
            raise ValueError(
                f"scores look at the activations of {layer}, which the network does not give; its "
                f"intermediates are {', '.join(out) or 'none'}"
            )


def check_layers(layers: Any, graph: Graph) -> None:
    """Reject names that are not layers with channels."""
    for layer in layers:
        if layer not in graph:
            raise ValueError(
                f"no layer {layer!r} with channels; this network has {', '.join(graph) or 'none'}"
            )


def check_plan(params: Any, plan: PrunePlan, graph: Graph) -> None:
    """Reject a plan whose layers or widths are not those of the network."""
    check_layers(plan.keep, graph)
    sizes = num_channels(params, {layer: graph[layer] for layer in plan.keep})
    for layer, keep in plan.keep.items():
        if keep.shape[-1] != sizes[layer]:
            raise ValueError(
                f"plan of another network: {layer} has {sizes[layer]} channels here, "
                f"{keep.shape[-1]} in the plan"
            )
