"""How much group information each channel carries, several layers in one forward pass."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from fairjax.data import Examples
from fairjax.losses import cross_entropy, soft_nearest_neighbor_loss
from fairjax.models import Model
from fairjax.pruning.compiled import compiled
from fairjax.pruning.plans import (
    check_layers,
    check_outputs,
    graph_of,
    num_channels,
    scale_slots,
)
from fairjax.trees import get_path, unstack_blocks

Score = Literal["snnl", "taylor", "activation", "magnitude", "random"]
SCORES: tuple[Score, ...] = get_args(Score)


class ChannelScores(NamedTuple):
    """Scores of every channel; a pytree."""

    group: dict[str, jax.Array]
    """Layer -> float32 `[C]`; low = carries group information, prune."""
    label: dict[str, jax.Array]
    """Layer -> float32 `[C]`; low = the labels need it; 0 for scores that do not look at data."""
    num_batches: jax.Array
    """int32, batches that counted."""
    num_skipped: jax.Array
    """int32, batches left out because an attribute had no two groups with two examples each."""

    def values(self, trade_off: float | jax.Array = 0.0) -> dict[str, jax.Array]:
        """`group - trade_off * label`: a positive `trade_off` protects what the labels need."""
        if isinstance(trade_off, (int, float)) and not trade_off:
            return self.group  # labels that cannot be scored do not matter then
        return jax.tree.map(lambda group, label: group - trade_off * label, self.group, self.label)


def score_channels(
    model: Model,
    params: Any,
    batch_stats: Any,
    data: Examples,
    *,
    layers: Sequence[str],
    num_groups: int,
    key: Key[Array, ""],
    score: Score = "snnl",
    batch_size: int = 128,
    **options: Any,
) -> ChannelScores:
    """Score the channels of some layers on a whole split, in evaluation mode.

    Scores:
      "snnl": soft nearest-neighbour loss of a channel's activations before their non-linearity,
        in nats, with respect to the group and to the labels.
      "taylor": minus the largest difference between groups in a channel's importance (squared
        first-order change of the group's loss when the channel is removed, as a share of the
        layer); for the labels minus the mean importance.
      "activation": minus the largest difference between two groups' (labels') mean activation, in
        standard deviations.
      "magnitude": mean absolute weight that makes the channel; the usual control.
      "random": uniform in [0, 1); the other control.

    Args:
      model: network whose configuration has a `channel_graph`; its `preprocess` is applied to
        every batch.
      params: its parameters, masked, sliced or whole.
      batch_stats: its statistics, `{}` without batch norm.
      data: inputs as stored; `group` may be `[N, A]` for A sensitive attributes, whose scores are
        averaged.
      layers: names in `model.config.channel_graph`.
      num_groups: G; with several attributes, of the one with most groups.
      key: shuffles the batches (and draws "random").
      score: one of the above.
      batch_size: examples that are compared with each other; the last batch may be smaller, and
        counts by its size.
      **options: of `soft_nearest_neighbor_loss`, for "snnl": `self_in_numerator=True` is as
        published, `distance`, `temperature`, `chunk_size`, `dtype`.

    Returns:
      `ChannelScores`. Compiled once for equal settings; safe under jit, where unused parts cost
      nothing. Channels with activations that are not finite score nan, which `select_channels`
      refuses.

    Raises:
      ValueError: unknown layer or score, a network without channel graph or that does not give a
        layer's activations, or a batch too small for two examples per group.

    Source: "snnl" Kong et al. 2024 (with shuffled batches of any group mix, weighted by size);
    "taylor" the gate criterion of Molchanov et al., CVPR 2019, compared between groups in the
    spirit of FairPrune (Wu et al., MICCAI 2022).
    """
    graph = graph_of(model)
    check_layers(layers, graph)
    if score not in SCORES:
        raise ValueError(f"score must be one of {', '.join(SCORES)}; got {score!r}")
    if batch_size < 1 or num_groups < 1:
        raise ValueError(
            f"batch_size and num_groups must be at least 1, got {batch_size} and {num_groups}"
        )
    if score in ("magnitude", "random"):
        run = compiled(_score_without_data, model, tuple(layers), score)
        return run(params, key)
    batch_size = min(batch_size, len(data.labels))
    if batch_size < 2 * num_groups:
        raise ValueError(
            f"batches need two examples per group: at least {2 * num_groups} rows, got {batch_size}"
        )
    settings = (tuple(layers), num_groups, score, batch_size, tuple(sorted(options.items())))
    return compiled(_score_on_data, model, *settings)(params, batch_stats, data, key)


def _score_on_data(
    model, layers, num_groups, score, batch_size, options, params, batch_stats, data, key
) -> ChannelScores:
    """The scores that look at activations or gradients."""
    graph, params = graph_of(model), unstack_blocks(params)
    sizes = num_channels(params, {layer: graph[layer] for layer in layers})
    # The labels are one attribute more, scored in the same way.
    ids = jnp.concatenate([data.group.reshape(len(data.labels), -1), data.labels[:, None]], axis=1)
    num_ids = max(num_groups, model.config.num_classes)

    def forward(inputs, params):
        inputs = inputs if model.preprocess is None else model.preprocess(inputs)
        logits, out, _ = model.apply(params, batch_stats, inputs, train=False)
        return logits, out

    def losses(x, ids, weights):
        """Soft nearest-neighbour losses `[A, C]`; distances are computed once for all A."""
        loss = lambda ids: soft_nearest_neighbor_loss(
            x, ids, num_classes=num_ids, weights=weights, **dict(options)
        )
        return jax.vmap(loss, in_axes=1)(ids)

    def measure(batch):
        rows, weights = batch
        inputs, ids_here = data.inputs[rows], ids[rows]
        members = jax.nn.one_hot(ids_here, num_ids, axis=1) * weights[:, None, None]  # [B, I, A]
        if score == "taylor":
            gates = {layer: jnp.ones(size) for layer, size in sizes.items()}

            def losses_by_class(gates):
                slots = [(slot, gates[layer]) for layer in layers for slot in graph[layer].inputs]
                logits, _ = forward(inputs, scale_slots(params, slots, params))
                sums = jnp.einsum(
                    "b,bia->ia",
                    cross_entropy(logits, data.labels[rows]),
                    members,
                    precision="highest",
                )
                return sums / jnp.maximum(jnp.sum(members, axis=0), 1.0)

            return _importances(losses_by_class, gates), members.sum(0)
        _, out = forward(inputs, params)
        check_outputs(layers, out)
        vectors = {layer: _by_channel(out[layer], sizes[layer]) for layer in layers}
        if score == "activation":
            return {layer: _moments(x, members) for layer, x in vectors.items()}, members.sum(0)
        measured = {layer: losses(x, ids_here, weights) for layer, x in vectors.items()}
        return measured, members.sum(0)

    measured, masses = jax.lax.map(measure, _batches(key, len(data.labels), batch_size))
    counted = jnp.sum(masses >= 2, axis=1) >= 2  # [batches, A + 1]
    combine = {"snnl": _combine_losses, "taylor": _combine_importances}.get(score, _combine_moments)
    by_attribute = {layer: combine(measured[layer], masses, counted) for layer in layers}
    num_counted = jnp.sum(counted[:, :-1].all(1))
    return ChannelScores(
        group={layer: values[:-1].mean(0) for layer, values in by_attribute.items()},
        label={layer: values[-1] for layer, values in by_attribute.items()},
        num_batches=num_counted,
        num_skipped=len(counted) - num_counted,
    )


def _score_without_data(model, layers, score, params, key) -> ChannelScores:
    """The two controls."""
    graph, params = graph_of(model), unstack_blocks(params)
    sizes = num_channels(params, {layer: graph[layer] for layer in layers})
    values = {}
    for i, (layer, size) in enumerate(sizes.items()):
        if score == "random":
            values[layer] = jax.random.uniform(jax.random.fold_in(key, i), (size,))
            continue
        slot = graph[layer].outputs[0]
        lines = jnp.moveaxis(jnp.abs(get_path(params, slot.path)), slot.axis, 0)
        values[layer] = lines.reshape(slot.outer, size, -1).mean((0, 2))
    zero = jnp.zeros((), jnp.int32)
    return ChannelScores(values, jax.tree.map(jnp.zeros_like, values), zero, zero)


def _batches(key: jax.Array, num_rows: int, batch_size: int) -> tuple[jax.Array, jax.Array]:
    """Shuffled row numbers and weights, both `[batches, B]`; weight 0 pads the last batch."""
    num_batches = -(-num_rows // batch_size)
    place = jnp.arange(num_batches * batch_size)
    rows = jax.random.permutation(key, num_rows)[place % num_rows]
    shape = (num_batches, batch_size)
    return rows.reshape(shape), (place < num_rows).astype(jnp.float32).reshape(shape)


def _by_channel(activations: jax.Array, size: int) -> jax.Array:
    """`[B, ..., C * inner]` as `[B, F, C]`."""
    x = activations.reshape(len(activations), -1, size, activations.shape[-1] // size)
    return x.transpose(0, 1, 3, 2).reshape(len(x), -1, size)


def _combine_losses(losses: jax.Array, masses: jax.Array, counted: jax.Array) -> jax.Array:
    """Mean over the batches that count, by size: `[batches, A, C]` to `[A, C]`."""
    size = jnp.where(counted, masses.sum(1), 0.0)[:, :, None]
    return jnp.sum(jnp.where(size > 0, losses * size, 0.0), axis=0) / size.sum(0)


def _importances(losses_fn, gates) -> dict[str, jax.Array]:
    """Squared gradient of each loss `[I, A]` by every gate: `{layer: [I, A, C]}`."""
    losses, pull = jax.vjp(losses_fn, gates)
    unit = jnp.eye(losses.size).reshape(-1, *losses.shape)
    # One backward pass after another: together they would hold all activations that many times.
    (gradients,) = jax.lax.map(pull, unit)
    return jax.tree.map(lambda g: jnp.square(g).reshape(*losses.shape, -1), gradients)


def _combine_importances(squares: jax.Array, masses: jax.Array, counted: jax.Array) -> jax.Array:
    """`[batches, I, A, C]` to `[A, C]`; see "taylor"."""
    mass = masses.sum(0)[:, :, None]
    mean = jnp.sum(squares * masses[..., None], axis=0) / mass
    shares = mean / jnp.maximum(jnp.nansum(mean, axis=2, keepdims=True), 1e-30)
    gap = -_gap(shares, mass > 0)
    overall = -jnp.sum(jnp.where(mass > 0, shares * mass, 0.0), axis=0) / mass.sum(0)
    groups_scored = counted.any(0)[:-1, None]
    return jnp.concatenate([jnp.where(groups_scored, gap[:-1], jnp.nan), overall[-1:]])


def _moments(x: jax.Array, members: jax.Array) -> jax.Array:
    """Sums by id of the mean activation and of its square: `[2, I, A, C]`."""
    level = x.astype(jnp.float32).mean(1)
    return jnp.stack(
        [jnp.einsum("bc,bia->iac", v, members, precision="highest") for v in (level, level**2)]
    )


def _combine_moments(sums: jax.Array, masses: jax.Array, counted: jax.Array) -> jax.Array:
    """`[batches, 2, I, A, C]` to `[A, C]`; see "activation"."""
    mass = masses.sum(0)[:, :, None]
    first, second = sums.sum(0)
    mean, square = first.sum(0) / mass.sum(0), second.sum(0) / mass.sum(0)
    deviation = jnp.sqrt(jnp.maximum(square - mean**2, 0.0))
    gap = -_gap(first / mass, mass > 0) / jnp.maximum(deviation, 1e-12)
    return jnp.where(counted.any(0)[:, None], gap, jnp.nan)


def _gap(values: jax.Array, present: jax.Array) -> jax.Array:
    """Largest difference along the first axis among those present."""
    highest = jnp.max(jnp.where(present, values, -jnp.inf), axis=0)
    return highest - jnp.min(jnp.where(present, values, jnp.inf), axis=0)
