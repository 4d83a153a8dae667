"""Which plans a round of pruning tries: the most sensitive channels, and what controls try."""

from typing import Any

import jax
import numpy as np

from fairjax.pruning.evaluate import Proposal, evaluate_plans, propose_plans
from fairjax.pruning.plans import PrunePlan
from fairjax.pruning.rounds import Decision, Propose, PruneRounds, PruneState


def sensitive_plans(
    rounds: PruneRounds, state: PruneState, key: Any
) -> list[tuple[Proposal, PrunePlan]]:
    """Plans from every (layer, count, score, trade-off), best first on validation as they are."""
    network, tried = (state.params, state.batch_stats), []
    room = {
        layer: [count for count in rounds.counts if count < int(state.keep[layer].sum())]
        for layer in rounds.layers
    }
    if not any(room.values()):
        return []
    scores = {name: rounds.score(*network, name, key) for name in rounds.scores}
    proposed: list[tuple[Proposal, PrunePlan]] = []
    for layer, counts in room.items():
        if not counts:
            continue
        proposals, plans = propose_plans(
            scores, layer=layer, counts=counts, trade_offs=rounds.trade_offs, after=state.plan
        )
        # what earlier rounds pruned is zero already, so only this layer differs between plans
        only = PrunePlan({layer: plans.keep[layer]})
        tried.append(
            evaluate_plans(
                rounds.model, *network, only, rounds.val, num_groups=rounds.data.num_groups
            )
        )
        proposed += _pairs(proposals, plans)
    table = jax.tree.map(lambda *parts: np.concatenate(parts), *tried)
    return [proposed[i] for i in rounds.rank(table, state.base)]


def repeat_unpruned(decisions: tuple[Decision, ...]) -> Propose:
    """A control: trains for as many rounds as were decided, and prunes nothing."""

    def propose(rounds: PruneRounds, state: PruneState, key: Any):
        del key
        if state.num_tried >= len(decisions):
            return []
        return [(Proposal("", 0, "none"), state.plan)]

    return propose


def repeat_random(decisions: tuple[Decision, ...], num_plans: int = 1) -> Propose:
    """A control: as many channels of the same layers as were decided, but at random.

    All of its plans are fine-tuned, so none is measured before.

    Args:
      decisions: the rounds to repeat, such as those that were taken.
      num_plans: random plans of each round, the best of which is taken; at most `num_finalists`.
    """

    def propose(rounds: PruneRounds, state: PruneState, key: Any):
        if state.num_tried >= len(decisions):
            return []
        like = decisions[int(state.num_tried)]
        keys = jax.random.split(key, rounds.num_finalists)[:num_plans]
        found = []
        for key in keys:
            scores = {"random": rounds.score(state.params, state.batch_stats, "random", key)}
            found += _pairs(
                *propose_plans(scores, layer=like.layer, counts=[like.count], after=state.plan)
            )
        return found

    return propose


def _pairs(proposals: list[Proposal], plans: PrunePlan) -> list[tuple[Proposal, PrunePlan]]:
    """Each of P proposals beside its own of the plans `[P, C]`."""
    return [
        (proposal, jax.tree.map(lambda keep, i=i: keep[i], plans))
        for i, proposal in enumerate(proposals)
    ]
