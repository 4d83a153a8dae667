"""A first guess at good masks from gradients: every unit gets a gate between 0 and 1."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Key

from fairjax.data import Dataset, Examples
from fairjax.fairtune.spaces import MaskSpace
from fairjax.losses import cross_entropy
from fairjax.models import Model, Weights


def guided_masks(
    model: Model,
    space: MaskSpace,
    weights: Weights,
    data: Dataset,
    *,
    key: Key[Array, ""],
    num_masks: int,
    num_rounds: int = 40,
    unroll: int = 4,
    batch_size: int = 32,
    val_size: int = 128,
    learning_rate: float = 1e-3,
    gate_rate: float = 0.2,
) -> tuple[np.ndarray, np.ndarray]:
    """Masks to begin a search with, from gates that gradients opened and closed.

    A mask is relaxed to gates `sigmoid(logits)`, which multiply each unit's updates. A round takes
    `unroll` training steps through the gates and then moves the logits down the gradient of the
    worst group's validation loss, smoothed as `log sum exp` over groups. Directions of the steps
    are held fixed, so that this costs little more than the steps: the gradient says how far each
    unit's own updates helped or hurt the worst group.

    Args:
      model: the network.
      space: of the masks.
      weights: pre-trained; batch statistics are used unchanged.
      data: steps train on "train", the gates are judged on "val".
      key: typed PRNG key.
      num_masks: n.
      num_rounds: of gates.
      unroll: training steps of a round.
      batch_size: of a training step.
      val_size: validation examples of a round, as many from each group.
      learning_rate: of the training steps (Adam).
      gate_rate: of the logits (Adam).

    Returns:
      `(masks bool [n, U], gates float32 [U])`: the first mask holds the units whose gate is above
      the middle one, the others draw each unit with its gate as probability.

    Raises:
      ValueError: a group has no validation example, or a number is below 1.

    Source: the relaxation follows Liu et al., ICLR 2019 (DARTS), in its first-order form.
    """
    (params, batch_stats, _), num_groups = weights, data.num_groups
    train, val = data.examples("train"), data.examples("val")
    if min(num_masks, num_rounds, unroll, batch_size) < 1 or val_size < num_groups:
        raise ValueError(
            "num_masks, num_rounds, unroll and batch_size must be at least 1 and val_size at least "
            f"{num_groups}, got {(num_masks, num_rounds, unroll, batch_size, val_size)}"
        )
    counts = np.bincount(np.asarray(val.group), minlength=num_groups)
    if not counts.all():
        raise ValueError(f"group {int(counts.argmin())} has no validation example")
    tunable, frozen = space.partition(params)
    optimizer, gate_optimizer = optax.adam(learning_rate), optax.adam(gate_rate)

    def losses(tunable, frozen, batch_stats, batch: Examples):
        inputs = batch.inputs if model.preprocess is None else model.preprocess(batch.inputs)
        logits = model.apply(space.bind(tunable, frozen), batch_stats, inputs, train=False)[0]
        return cross_entropy(logits, batch.labels)

    def gated_steps(logits, tunable, opt_state, frozen, batch_stats, batches, judged):
        gates = space.gates(jax.nn.sigmoid(logits))

        def one_step(carry, batch):
            tunable, opt_state = carry
            at = jax.lax.stop_gradient(tunable)
            grads = jax.grad(lambda p: losses(p, frozen, batch_stats, batch).mean())(at)
            with jax.numpy_dtype_promotion("standard"):  # optax mixes integer counts and floats
                updates, opt_state = optimizer.update(grads, opt_state, at)
            tunable = jax.tree.map(lambda p, g, u: p + g * u, tunable, gates, updates)
            return (tunable, opt_state), None

        (tunable, opt_state), _ = jax.lax.scan(one_step, (tunable, opt_state), batches)
        by_example = losses(tunable, frozen, batch_stats, judged)
        by_group = by_example.reshape(num_groups, -1).mean(1)  # as `_balanced_rows` drew them
        return jax.nn.logsumexp(by_group), (tunable, opt_state)

    @jax.jit
    def search(tunable, frozen, batch_stats, train, val, key):
        def one_round(carry, key):
            logits, tunable, opt_state, gate_state = carry
            key_train, key_val = jax.random.split(key)
            rows = jax.random.randint(key_train, (unroll, batch_size), 0, len(train.labels))
            picked = _balanced_rows(key_val, val.group, num_groups, val_size)
            batches = jax.tree.map(lambda x: x[rows], train)
            judged = jax.tree.map(lambda x: x[picked], val)
            (_, (tunable, opt_state)), slope = jax.value_and_grad(gated_steps, has_aux=True)(
                logits, tunable, opt_state, frozen, batch_stats, batches, judged
            )
            with jax.numpy_dtype_promotion("standard"):
                change, gate_state = gate_optimizer.update(slope, gate_state)
            return (logits + change, tunable, opt_state, gate_state), None

        logits = jnp.zeros(space.num_units)
        state = (logits, tunable, optimizer.init(tunable), gate_optimizer.init(logits))
        (logits, *_), _ = jax.lax.scan(one_round, state, jax.random.split(key, num_rounds))
        return jax.nn.sigmoid(logits)

    key_search, key_draw = jax.random.split(key)
    gates = np.asarray(search(tunable, frozen, batch_stats, train, val, key_search))
    drawn = jax.random.bernoulli(key_draw, gates[None], (num_masks - 1, len(gates)))
    return np.concatenate([(gates > np.median(gates))[None], np.asarray(drawn)]), gates


def _balanced_rows(key: jax.Array, group: jax.Array, num_groups: int, count: int) -> jax.Array:
    """Row numbers `[G * (count // G)]`, group by group, drawn with replacement."""
    chances = jax.nn.one_hot(group, num_groups, axis=0)
    draw = lambda key, chance: jax.random.choice(
        key, len(group), (count // num_groups,), p=chance / chance.sum()
    )
    return jax.vmap(draw)(jax.random.split(key, num_groups), chances).reshape(-1)
