"""Pruning in rounds: propose plans, fine-tune the best, keep what validates better."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Key

from fairjax.data import Dataset, Examples
from fairjax.models import Model, Weights, compiler_options
from fairjax.pruning.compiled import compiled
from fairjax.pruning.evaluate import fate_objective, pruning_metrics, rank_plans, stack_plans
from fairjax.pruning.plans import (
    Candidate,
    PrunePlan,
    channel_masks,
    graph_of,
    mask_channels,
    num_channels,
    slice_channels,
)
from fairjax.pruning.scores import SCORES, ChannelScores, Score, score_channels
from fairjax.sharding import candidate_mesh, everywhere, spread
from fairjax.train import Recipe, fit_population, init_population, predict, replicate
from fairjax.trees import unstack_blocks

SCORE_NAMES = (*SCORES, "none")
Take = Literal["better", "all"]


class Decision(NamedTuple):
    """What one round came to."""

    round: int
    """From 1."""
    taken: bool
    layer: str
    """Of the best fine-tuned plan, "" if it prunes nothing; see `Proposal`."""
    count: int
    score: str
    trade_off: float
    val_fate: float
    """FATE against the baseline on the validation split, higher is better."""
    accurate: bool
    """Whether it keeps the baseline's accuracy and macro F1."""
    val: dict[str, float]
    """All scalar metrics of the validation split."""


class PruneState(NamedTuple):
    """Where the rounds stand: a pytree of fixed shape, for a checkpoint."""

    params: Any
    """Of the masked network, transformer blocks one by one."""
    batch_stats: Any
    keep: dict[str, np.ndarray]
    """Layer -> bool `[C]`, for all layers that may be pruned."""
    base: dict[str, np.ndarray]
    """The baseline's validation metrics, float32 scalars."""
    num_tried: np.ndarray
    """int32, rounds done."""
    decisions: dict[str, Any]
    """The fields of `Decision`, arrays `[R]` of which `num_tried` are filled."""

    @property
    def plan(self) -> PrunePlan:
        """What is pruned so far."""
        return PrunePlan(jax.tree.map(jnp.asarray, self.keep))


class Pruned(NamedTuple):
    """What pruning came to, on the host."""

    weights: Weights
    """Of the smaller network: pruned channels are gone from every array."""
    plan: PrunePlan
    """What was kept of each layer."""
    rounds: tuple[Decision, ...]
    scores: dict[str, ChannelScores]
    """Of the baseline's channels, by the name of the score."""
    masked: tuple[Any, Any]
    """`(params, batch_stats)` of the baseline's shapes, pruned channels 0."""
    logits_fn: Callable[[str], np.ndarray]

    def logits(self, split: str) -> np.ndarray:
        """Of the smaller network on a split, float32 `[N, K]`."""
        return self.logits_fn(split)


Propose = Callable[["PruneRounds", PruneState, Any], list[Candidate]]
"""`propose(rounds, state, key)`: plans of the next round, best first; none ends the run. Each keeps
pruned what `state.keep` has pruned. Only the first `num_finalists` are fine-tuned."""


@dataclasses.dataclass(frozen=True, eq=False)
class PruneRounds:
    """Rounds of pruning that are set up and checked, made by `prune_rounds`; see its arguments."""

    model: Model
    data: Dataset
    recipe: Recipe | None
    layers: tuple[str, ...]
    counts: tuple[int, ...]
    scores: tuple[Score, ...]
    trade_offs: tuple[float, ...]
    num_rounds: int
    num_finalists: int
    accuracy: str
    disparity: str
    max_accuracy_drop: float

    def init(self, weights: Weights) -> PruneState:
        """The state of a baseline before its first round; also the shape of a saved one."""
        params, graph = unstack_blocks(weights.params), graph_of(self.model)
        sizes = num_channels(params, {layer: graph[layer] for layer in self.layers})
        params, batch_stats = jax.device_get((params, weights.batch_stats))
        base = self.measure(params, batch_stats)
        keep = {layer: np.ones(size, bool) for layer, size in sizes.items()}
        empty = lambda dtype: np.zeros(self.num_rounds, dtype)
        decisions = {
            "taken": empty(bool),
            "layer": empty(np.int32),
            "count": empty(np.int32),
            "score": empty(np.int32),
            "trade_off": empty(np.float32),
            "val_fate": empty(np.float32),
            "accurate": empty(bool),
            "val": {name: empty(np.float32) for name in base},
        }
        return PruneState(params, batch_stats, keep, base, np.zeros((), np.int32), decisions)

    def run(
        self,
        state: PruneState,
        *,
        key: Key[Array, ""],
        propose: Propose,
        take: Take = "better",
        on_round: Callable[[PruneState], None] | None = None,
        on_epoch: Callable[[], None] | None = None,
    ) -> PruneState:
        """Go on until `num_rounds` are done, a round is not taken or nothing is proposed.

        Args:
          state: from `init`, or as `on_round` was given it.
          key: of the scores and the orders of examples; each round folds its number in.
          propose: which plans a round tries, such as `sensitive_plans`.
          take: "better" takes a round that loses little accuracy and improves validation FATE over
            the baseline and all rounds before; "all" takes every one, for controls.
          on_round: called after every round, to save and to report.
          on_epoch: called after every epoch of fine-tuning.

        Raises:
          ValueError: scores that are undefined, or a rule that proposes what does not fit.
        """
        while not self.ended(state):
            key_here = jax.random.fold_in(key, 1 + int(state.num_tried))
            key_propose, key_train = jax.random.split(key_here)
            finalists = propose(self, state, key_propose)[: self.num_finalists]
            if not finalists:
                break
            state = self._decide(state, finalists, key_train, take, on_epoch)
            if on_round is not None:
                on_round(state)
        return state

    def ended(self, state: PruneState) -> bool:
        """Whether all rounds are done, or the last one was not taken."""
        taken = state.decisions["taken"]
        tried = int(state.num_tried)
        return tried >= len(taken) or not taken[:tried].all()

    def decisions(self, state: PruneState) -> tuple[Decision, ...]:
        """What the rounds so far came to."""
        names = {"layer": (*self.layers, ""), "score": SCORE_NAMES}

        def decision(i: int) -> Decision:
            fields = jax.tree.map(lambda values: np.asarray(values)[i].item(), state.decisions)
            return Decision(i + 1, **fields | {k: names[k][fields[k]] for k in names})

        return tuple(decision(i) for i in range(int(state.num_tried)))

    def finish(self, state: PruneState, weights: Weights, *, key: Key[Array, ""]) -> Pruned:
        """The smaller network; `weights` and `key` are those that the rounds began with."""
        masked = (state.params, state.batch_stats)
        params, batch_stats = jax.device_get(
            slice_channels(*masked, state.plan, graph_of(self.model))
        )
        notes = [
            f"Pruned {(~keep).sum()} of {len(keep)} channels of {layer}."
            for layer, keep in state.keep.items()
            if not keep.all()
        ]
        first = jax.random.split(jax.random.fold_in(key, 1))[0]  # as the first round scored them
        network = (weights.params, weights.batch_stats)
        scores = {name: jax.device_get(self.score(*network, name, first)) for name in self.scores}
        return Pruned(
            Weights(params, batch_stats, (*weights.notes, *notes)),
            state.plan,
            self.decisions(state),
            scores,
            masked,
            lambda split: self.logits(params, batch_stats, split),
        )

    def logits(self, params: Any, batch_stats: Any, split: str) -> np.ndarray:
        """Of a network on a split, float32 `[N, K]`."""
        inputs = self.data.examples(split).inputs
        return np.asarray(compiled(predict, self.model)(params, batch_stats, inputs))

    def measure(self, params: Any, batch_stats: Any) -> dict[str, np.ndarray]:
        """Scalar metrics of a network on the validation split."""
        run = compiled(_measure, self.model, self.data.num_groups)
        table = jax.device_get(run(params, batch_stats, self.val))
        return {name: value for name, value in table.items() if value.ndim == 0}

    def score(self, params: Any, batch_stats: Any, score: Score, key: Any) -> ChannelScores:
        """Scores of the layers' channels on the training split."""
        return score_channels(
            self.model,
            params,
            batch_stats,
            self.train,
            layers=self.layers,
            num_groups=self.data.num_groups,
            key=key,
            score=score,
        )

    def fate(self, table: Mapping[str, Any], base: Mapping[str, Any]) -> np.ndarray:
        """The FATE of one network or of P against the baseline."""
        return np.asarray(
            fate_objective(table, base, accuracy=self.accuracy, disparity=self.disparity)
        )

    def accurate(self, table: Mapping[str, Any], base: Mapping[str, Any]) -> np.ndarray:
        """Which networks keep the baseline's accuracy and macro F1, to `max_accuracy_drop`.

        Each alone can be had for nothing: accuracy by calling everything the commonest class.
        """
        share = 1 - self.max_accuracy_drop
        names = ("accuracy", "macro_f1")
        kept = [np.asarray(table[name]) >= share * np.asarray(base[name]) for name in names]
        return np.asarray(np.logical_and(*kept))

    def rank(self, table: Mapping[str, Any], base: Mapping[str, Any]) -> np.ndarray:
        """Numbers of P networks, best first: the accurate ones by FATE, then the others by FATE."""
        order = rank_plans(self.fate(table, base))
        return order[np.argsort(~self.accurate(table, base)[order], kind="stable")]

    def _decide(self, state: PruneState, finalists, key, take, on_epoch) -> PruneState:
        """Fine-tune the finalists; the best of them is the decision of this round."""
        numbers = [self._numbers(finalist) for finalist in finalists]
        networks = self._fine_tune(state, [each.plan for each in finalists], key, on_epoch)
        known = [each.val if self.recipe is None else None for each in finalists]
        tables = [val or self.measure(*net) for val, net in zip(known, networks, strict=True)]
        table = jax.tree.map(lambda *values: np.stack(values), *tables)
        best = int(self.rank(table, state.base)[0])
        number = int(state.num_tried)
        before = state.decisions["val_fate"][:number]
        fate = self.fate(tables[best], state.base)
        accurate = self.accurate(tables[best], state.base)
        better = bool(accurate) and fate > np.nanmax(before, initial=0.0)
        decision = numbers[best] | {
            "taken": take == "all" or better,
            "val_fate": fate,
            "accurate": accurate,
            "val": tables[best],
        }

        def with_decision(values, value):
            values = np.array(values)
            values[number] = value
            return values

        decisions = jax.tree.map(with_decision, dict(state.decisions), decision)
        state = state._replace(decisions=decisions, num_tried=np.array(number + 1, np.int32))
        if not decision["taken"]:
            return state
        params, batch_stats = networks[best]
        keep = jax.device_get(finalists[best].plan.keep)
        return state._replace(params=params, batch_stats=batch_stats, keep=keep)

    def _numbers(self, candidate: Candidate) -> dict[str, Any]:
        """A proposal as numbers, for the state; refuses one that does not fit."""
        proposal, plan, _ = candidate
        if set(plan.keep) != set(self.layers):
            found, wanted = (", ".join(names) for names in (plan.keep, self.layers))
            raise ValueError(f"a proposed plan must be of the layers {wanted}, got {found}")
        layers = (*self.layers, "")
        for name, known in (("layer", layers), ("score", SCORE_NAMES)):
            if getattr(proposal, name) not in known:
                raise ValueError(f"a proposal's {name} must be one of {known}, got {proposal}")
        layer, score = layers.index(proposal.layer), SCORE_NAMES.index(proposal.score)
        return proposal._asdict() | {"layer": layer, "score": score}

    def _fine_tune(self, state: PruneState, plans: list[PrunePlan], key, on_epoch) -> list[Any]:
        """Train the network under each plan; `[(params, batch_stats)]`, pruned parts at 0.

        Without a recipe they stay as pruning leaves them.

        Each has its own order of examples: on few images that moves the disparity as much as the
        plan does, and plans that share it would be lucky or unlucky together. Slots that have no
        plan cost nothing; they keep the program the same for any number of plans.
        """
        if self.recipe is None:
            run = compiled(_masked, self.model)
            return [(jax.device_get(run(state.params, p)), state.batch_stats) for p in plans]
        (start, epoch), mesh, num_slots = self._programs, self._mesh, self.num_finalists
        stacked = stack_plans(plans + plans[:1] * (num_slots - len(plans)))
        active = jnp.arange(num_slots) < len(plans)
        keys = jax.random.split(key, num_slots)
        states, mask = start(state.params, state.batch_stats, stacked, keys)
        states, mask, active = spread((states, mask, active), mesh)
        for _ in range(self.recipe.num_epochs):
            # wait for all devices: who is first at a collective waits only so long for the rest
            states = jax.block_until_ready(epoch(states, mask, active, self._train_everywhere))
            if on_epoch is not None:
                on_epoch()
        networks = jax.device_get((states.train.final_params, states.train.batch_stats))
        return [jax.tree.map(lambda leaf, i=i: leaf[i], networks) for i in range(len(plans))]

    @functools.cached_property
    def train(self) -> Examples:
        """The training split on the first device."""
        return jax.tree.map(lambda leaf: leaf.addressable_data(0), self._train_everywhere)

    @functools.cached_property
    def val(self) -> Examples:
        """The validation split on the first device."""
        return jax.tree.map(jnp.asarray, self.data.examples("val"))

    @functools.cached_property
    def _train_everywhere(self) -> Examples:
        return everywhere(self.data.examples("train"), self._mesh)

    @functools.cached_property
    def _mesh(self) -> Mesh:
        return candidate_mesh(jax.devices()[: self.num_finalists])

    @functools.cached_property
    def _programs(self):
        """`(start, epoch)` of the population of finalists, compiled once for all rounds."""
        recipe: Any = self.recipe  # there is one where networks are fine-tuned
        graph, mesh, options = graph_of(self.model), self._mesh, compiler_options(self.model)
        sampler = recipe.make_sampler(self.data)
        optimizer = recipe.make_optimizer(sampler.batches_per_epoch)
        step = recipe.make_step(recipe.make_model(self.model), optimizer, self.data)

        @jax.jit
        def start(params, batch_stats, plans, keys):
            def under(plan):
                masks = channel_masks(params, plan, graph)
                kept = jax.tree.map(lambda factor: factor > 0, masks)
                return mask_channels(params, plan, graph), kept

            masked, kept = jax.vmap(under)(plans)
            states = init_population(
                masked,
                replicate(batch_stats, len(keys)),
                optimizer,
                sampler,
                keys=keys,
                ema=recipe.ema_decay is not None,
            )
            return states, kept

        @functools.partial(jax.jit, donate_argnums=0, compiler_options=options)
        def epoch(states, mask, active, train):
            return fit_population(
                step,
                states,
                train,
                sampler,
                num_epochs=1,
                mask=mask,
                active=active,
                chunk_size=1,
                mesh=mesh,
                augment=recipe.augment,
            )[0]

        return start, epoch


def _masked(model, params, plan: PrunePlan):
    return mask_channels(params, plan, graph_of(model))


def _measure(model, num_groups, params, batch_stats, data: Examples):
    logits = predict(model, params, batch_stats, data.inputs)
    return pruning_metrics(logits, labels=data.labels, group=data.group, num_groups=num_groups)
