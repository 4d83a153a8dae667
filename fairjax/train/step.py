"""One gradient step as a pure function, and the state that it changes."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from fairjax.losses import cross_entropy, worst_weights
from fairjax.models import Model


class TrainState(NamedTuple):
    """What one gradient step changes."""

    params: Any
    batch_stats: Any
    opt_state: Any
    step: jax.Array
    """int32 scalar, gradient steps taken."""
    ema: Any = None
    """Exponential moving average of `params`, where `make_step` keeps one."""

    @property
    def final_params(self) -> Any:
        """What to predict with: the average where there is one."""
        return self.params if self.ema is None else self.ema


class Batch(NamedTuple):
    """One training batch."""

    inputs: jax.Array
    labels: jax.Array
    group: jax.Array
    weights: jax.Array
    """float32 `[B]`; 0 marks padding, other values weigh the loss."""


@runtime_checkable
class Step(Protocol):
    """A gradient step, as `make_step` makes it."""

    def __call__(
        self, state: TrainState, batch: Batch, key: Any, mask: Any = None, frozen: Any = None
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """The next state, and `{"loss": scalar, "logits": [B, K]}` before the step.

        `mask` is a tree of bool arrays that broadcast to the parameters: where False, parameters
        stay exactly as they are, whatever the optimiser does. `frozen` goes to `bind`.
        """
        ...


def make_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    label_smoothing: float = 0.0,
    class_weights: Float[Array, " K"] | None = None,
    loss_fn: Callable[..., jax.Array] = cross_entropy,
    log_prior: Float[Array, "K G"] | None = None,
    worst_share: float | None = None,
    bind: Any = None,
    gate: Any = None,
    ema_decay: float | None = None,
) -> Step:
    """One gradient step as a pure function.

    Args:
      model: `apply` gives logits `[B, K]`; inputs go through its `preprocess` first.
      optimizer: any optax transformation; wrap it in `optax.inject_hyperparams` to make its
        numbers arrays that differ between candidates.
      label_smoothing: in [0, 1).
      class_weights: float32 `[K]`; the loss is sum(w * loss) / sum(batch weights).
      loss_fn: `loss_fn(logits, labels) -> [B]`, such as `losses.focal_loss`; only the
        cross-entropy takes label smoothing and class weights too.
      log_prior: added to the logits of an example of group g in the loss, see `losses.log_priors`;
        the logits that the step gives are without.
      worst_share: in (0, 1], the loss is the mean over that share of a batch, by its weights, whose
        losses are largest (CVaR); None is the mean over all.
      bind: `bind(params, frozen)` makes what `model.apply` takes, such as `MaskSpace.bind`; only
        `params` is differentiated and in the state. None trains all parameters.
      gate: `gate(params, mask)` makes of bound parameters those that skip the gradients of what
        the mask freezes, such as `models.gate_kernels`; for steps that are given a mask.
      ema_decay: in (0, 1), keeps `state.ema`; begin with `start_train(..., ema=True)`.

    Returns:
      A `Step`. XLA drops what the caller does not use of its results.

    Raises:
      ValueError: `label_smoothing` outside [0, 1), `ema_decay` outside (0, 1), `worst_share`
        outside (0, 1], smoothing or class weights with another loss; when traced, class weights
        that are not one per class, or a state that has no average where one is kept.

    >>> from fairjax.models import logistic_regression
    >>> net, sgd = logistic_regression(3), optax.sgd(0.1)
    >>> batch = Batch(jnp.ones((1, 3)), jnp.ones(1, int), jnp.zeros(1, int), jnp.ones(1))
    >>> int(make_step(net, sgd)(init_train(net, sgd, jax.random.key(0)), batch, key=None)[0].step)
    1
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
    if ema_decay is not None and not 0 < ema_decay < 1:
        raise ValueError(f"ema_decay must be in (0, 1), got {ema_decay}")

    if worst_share is not None and not 0 < worst_share <= 1:
        raise ValueError(f"worst_share must be in (0, 1], got {worst_share}")

    if loss_fn is cross_entropy:
        loss_of = functools.partial(
            cross_entropy, label_smoothing=label_smoothing, class_weights=class_weights
        )
    elif label_smoothing or class_weights is not None:
        raise ValueError(
            "label_smoothing and class_weights are those of cross_entropy; bind them to loss_fn"
        )
    else:
        loss_of = loss_fn

    def mean_loss(params, mask, frozen, batch_stats, batch: Batch, key):
        params = params if bind is None else bind(params, frozen)
        params = params if gate is None or mask is None else gate(params, mask)
        inputs = batch.inputs if model.preprocess is None else model.preprocess(batch.inputs)
        logits, _, batch_stats = model.apply(params, batch_stats, inputs, train=True, key=key)
        if class_weights is not None and class_weights.shape != logits.shape[-1:]:
            raise ValueError(
                f"class_weights must be one per class, {logits.shape[-1:]}, "
                f"got shape {class_weights.shape}"
            )
        adjusted = logits if log_prior is None else logits + log_prior.T[batch.group]
        losses = loss_of(adjusted, batch.labels)
        if worst_share is not None:
            return worst_weights(losses, batch.weights, worst_share) @ losses, (logits, batch_stats)
        loss = jnp.sum(losses * batch.weights) / jnp.maximum(jnp.sum(batch.weights), 1e-12)
        return loss, (logits, batch_stats)

    def step(state: TrainState, batch: Batch, key: Any, mask: Any = None, frozen: Any = None):
        if (state.ema is None) != (ema_decay is None):
            raise ValueError(
                "the step and the state must agree on the average: make_step(ema_decay=...) goes "
                "with start_train(ema=True)"
            )
        (loss, (logits, batch_stats)), grads = jax.value_and_grad(mean_loss, has_aux=True)(
            state.params, mask, frozen, state.batch_stats, batch, key
        )
        with jax.numpy_dtype_promotion("standard"):  # optax mixes integer counts and floats
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        if mask is not None:  # after the optimiser, so that weight decay cannot move what is frozen
            updates = jax.tree.map(lambda keep, u: jnp.where(keep, u, 0.0), mask, updates)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema_decay is not None:
            rate = 1 - ema_decay
            ema = jax.tree.map(lambda a, p: a + rate * (p - a), ema, params)
        state = TrainState(params, batch_stats, opt_state, state.step + 1, ema)
        return state, {"loss": loss, "logits": logits}

    return step


def init_train(
    model: Model, optimizer: optax.GradientTransformation, key: Any, **hyperparams: Any
) -> TrainState:
    """A fresh `TrainState`; `hyperparams` replace injected ones, such as `learning_rate`.

    Safe under vmap over `key` and the hyper-parameters, which makes a population.
    """
    params, batch_stats = model.init(key)
    return start_train(params, batch_stats, optimizer, **hyperparams)


def start_train(
    params: Any,
    batch_stats: Any,
    optimizer: optax.GradientTransformation,
    *,
    ema: bool = False,
    **hyperparams: Any,
) -> TrainState:
    """A `TrainState` that starts from given parameters; see `init_train`.

    With `ema` the state also carries the parameters' moving average.
    """
    opt_state = optimizer.init(params)
    if hyperparams:
        opt_state = optax.tree_utils.tree_set(opt_state, **hyperparams)
    # optax starts from Python numbers; training returns arrays: without this, a second compile
    opt_state = jax.tree.map(jnp.asarray, opt_state)
    opt_state = jax.tree.map(lambda x: x.astype(x.dtype) if x.weak_type else x, opt_state)
    # a copy, for a state whose arrays are used twice cannot be donated
    average = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), params) if ema else None
    return TrainState(params, batch_stats, opt_state, jnp.zeros((), jnp.int32), average)
