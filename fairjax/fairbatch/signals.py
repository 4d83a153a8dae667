"""What FairBatch looks at: sums over cells, what the cells compare, and the step that follows."""

import jax
import jax.numpy as jnp
import numpy as np

from fairjax.fairbatch.state import BOTH, CRITERIA, ODDS, OPPORTUNITY, PARITY, RATE, FairBatchState
from fairjax.losses import cross_entropy, predictions
from fairjax.metrics.counts import mark, unmark
from fairjax.sampling import CellSums, select


def measure(
    logits, state: FairBatchState, *, labels, group, positive_class: int, weights=None
) -> CellSums:
    """Sums of cross-entropies (signal "loss") or of wrong arg-max predictions ("rate").

    Both against the example's own label and against the positive class. Logits that hold nan make
    the sums of their own cell nan, and of no other.
    """
    num_classes, num_groups = state.shares.shape
    _check_outputs(logits, labels, group, weights, num_classes)
    labels, group = labels.astype(jnp.int32), group.astype(jnp.int32)  # small ids would overflow
    preds, rate = predictions(logits), state.signal == RATE
    failed = jnp.isnan(logits).any(-1)  # its arg-max is the class that comes first

    def against(wanted):
        wrong = jnp.where(failed, jnp.nan, (preds != wanted).astype(jnp.float32))
        return select(rate, wrong, cross_entropy(logits, wanted))

    values = against(labels), against(jnp.full_like(labels, positive_class))
    cell_ids = jnp.arange(num_classes * num_groups, dtype=jnp.int32)
    cells = ((labels * num_groups + group)[None] == cell_ids[:, None]).astype(jnp.float32)
    losses = None
    if state.clean is not None:
        if labels.shape != state.clean.weights.shape:
            raise ValueError(
                f"clean_share chooses among {len(state.clean.weights)} training examples and must "
                f"see all of them at once, got {len(labels)}: measure a full pass over these, "
                "without update_every or streaming"
            )
        losses = cross_entropy(logits, labels)
        cells = cells * state.clean.weights[None]
    if weights is not None:
        cells = cells * weights[None]
    # Two products with a vector: XLA:CPU fuses these, and takes ten times as long for a matrix;
    # of many runs one with a matrix, which takes five times as long the other way round.
    values = (mark(value, ~jnp.isfinite(value)) for value in values)
    sums = (jnp.matmul(value, cells.T, precision="highest") for value in values)
    sums = cells.sum(1), *(unmark(each) for each in sums)
    count, value, positive = (x.reshape(num_classes, num_groups) for x in sums)
    return CellSums(count, value, positive, losses)


def _check_outputs(logits, labels, group, weights, num_classes: int) -> None:
    """Refuse shapes and dtypes that would be measured as something else."""
    if logits.ndim != 2 or logits.shape[1] != num_classes:
        hint = ""
        if logits.ndim == 1 or logits.shape[-1] == 1:
            hint = "; a sigmoid's logit z makes two: concatenate([-z, z], axis=1) / 2"
        raise ValueError(f"logits must be [N, {num_classes}], got shape {logits.shape}{hint}")
    for name, values in (("labels", labels), ("group", group), ("weights", weights)):
        if values is None:
            continue
        if values.shape != logits.shape[:1]:
            raise ValueError(f"{name} must be [N] = {logits.shape[:1]}, got shape {values.shape}")
        if name != "weights" and not jnp.issubdtype(values.dtype, jnp.integer):
            raise ValueError(f"{name} must be integers, got {values.dtype}")


def cell_losses(sums: CellSums, state: FairBatchState, positive_class: int) -> jax.Array:
    """What the cells of a label compare, `[K, G]`; see `fairbatch`."""
    occupied = sums.count > 0
    of_group = jnp.broadcast_to(sums.positive.sum(0, keepdims=True), sums.count.shape)
    positive = select(state.signal == RATE, of_group, sums.positive)
    parity = jnp.where(occupied, positive / sums.count.sum(0, keepdims=True), jnp.nan)
    odds = jnp.where(occupied, sums.value / sums.count, jnp.nan)
    # Of two criteria, each label compares by the one whose gap is larger. Negated, the parity of
    # the other labels has the same gap and moves shares the other way round, as parity demands.
    sign = np.where(np.arange(len(parity)) == positive_class, 1.0, -1.0)[:, None]
    signed, weighted = parity * jnp.asarray(sign, jnp.float32), state.odds_weight * odds
    larger = (_gaps(weighted, state)[0] > _gaps(signed, state)[0])[:, None]
    both = jnp.where(larger, weighted, signed)
    single = select(state.criterion == PARITY, parity, odds)
    return select(state.criterion == BOTH, both, single)


def _gaps(values: jax.Array, state: FairBatchState) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of every label: the largest difference between two groups, the worst group, the best."""
    usable = jnp.isfinite(values) & (state.rows.counts > 0)
    high = jnp.where(usable, values, -jnp.inf)
    low = jnp.where(usable, values, jnp.inf)
    gap = jnp.where(usable.any(1), high.max(1) - low.min(1), 0.0)
    return gap, high.argmax(1), low.argmin(1)


def update(cell_losses: jax.Array, state: FairBatchState, positive_class: int) -> FairBatchState:
    """One signed step between the two groups furthest apart."""
    num_classes, num_groups = state.shares.shape
    watched, direction = _criterion_tables(num_classes, positive_class)
    gap, worst, best = _gaps(cell_losses, state)
    gap = jnp.where(jnp.asarray(watched)[state.criterion], gap, 0.0)
    moves = (gap > 0) & (gap == gap.max())
    worst = jax.nn.one_hot(worst, num_groups, dtype=jnp.float32)
    best = jax.nn.one_hot(best, num_groups, dtype=jnp.float32)
    toward_worst = (worst - best) * jnp.asarray(direction)[state.criterion][:, None]
    donor_share = jnp.sum(jnp.where(toward_worst < 0, state.shares, 0.0), axis=1)
    step = state.step_size / (1.0 + state.num_updates.astype(jnp.float32)) ** state.decay
    share = jnp.where(moves, jnp.minimum(step, donor_share), 0.0)
    return state._replace(
        shares=state.shares + share[:, None] * toward_worst, num_updates=state.num_updates + 1
    )


def _criterion_tables(num_classes: int, positive_class: int) -> tuple[np.ndarray, np.ndarray]:
    """Per criterion: labels that are watched, bool `[5, K]`, and the sign of their step."""
    watched = np.zeros((len(CRITERIA), num_classes), bool)
    watched[OPPORTUNITY, positive_class] = True
    watched[[ODDS, PARITY, BOTH]] = True
    direction = np.ones((len(CRITERIA), num_classes), np.float32)
    direction[PARITY, np.arange(num_classes) != positive_class] = -1
    return watched, direction
