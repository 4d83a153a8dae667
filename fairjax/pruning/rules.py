"""Which plans a round of pruning tries: the most sensitive channels, and what controls try."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from fairjax.pruning.evaluate import Proposal, evaluate_plans, propose_plans, stack_plans
from fairjax.pruning.plans import PrunePlan
from fairjax.pruning.rounds import Decision, Propose, PruneRounds, PruneState
from fairjax.pruning.scores import ChannelScores, Score


def sensitive_plans(
    rounds: PruneRounds, state: PruneState, key: Any
) -> list[tuple[Proposal, PrunePlan]]:
    """Plans from every (layer, count, score, trade-off), best first on validation as they are."""
    return scored_plans(rounds.scores)(rounds, state, key)


def scored_plans(scores: Sequence[Score]) -> Propose:
    """The same from other scores: what a method is to be compared with, chosen in the same way.

    Args:
      scores: what ranks channels. "random" draws anew for every trade-off and every score of the
        rounds, so that chance has as many plans to choose from as they have.
    """

    def propose(rounds: PruneRounds, state: PruneState, key: Any):
        network, tried = (state.params, state.batch_stats), []
        room = {
            layer: [count for count in rounds.counts if count < int(state.keep[layer].sum())]
            for layer in rounds.layers
        }
        if not any(room.values()):
            return []
        scored: list[tuple[dict[str, ChannelScores], tuple[float, ...]]] = []
        for name in scores:
            if name != "random":
                scored.append(({name: rounds.score(*network, name, key)}, rounds.trade_offs))
                continue
            for own in jax.random.split(key, len(rounds.trade_offs) * len(rounds.scores)):
                scored.append(({name: rounds.score(*network, name, own)}, (0.0,)))
        proposed: list[tuple[Proposal, PrunePlan]] = []
        for layer, counts in room.items():
            if not counts:
                continue
            here: list[tuple[Proposal, PrunePlan]] = []
            for values, trade_offs in scored:
                here += _pairs(
                    *propose_plans(
                        values, layer=layer, counts=counts, trade_offs=trade_offs, after=state.plan
                    )
                )
            # what earlier rounds pruned is zero already, so only this layer differs
            only = stack_plans([PrunePlan({layer: plan.keep[layer]}) for _, plan in here])
            num_groups = rounds.data.num_groups
            tried.append(
                evaluate_plans(rounds.model, *network, only, rounds.val, num_groups=num_groups)
            )
            proposed += here
        table = jax.tree.map(lambda *parts: np.concatenate(parts), *tried)
        return [proposed[i] for i in rounds.rank(table, state.base)]

    return propose


def repeat_unpruned(decisions: tuple[Decision, ...]) -> Propose:
    """A control: trains for as many rounds as were decided, and prunes nothing."""

    def propose(rounds: PruneRounds, state: PruneState, key: Any):
        del key
        if state.num_tried >= len(decisions):
            return []
        return [(Proposal("", 0, "none"), state.plan)]

    return propose


def repeat_random(decisions: tuple[Decision, ...]) -> Propose:
    """A control: as many channels of the same layers as were decided, but at random."""

    def propose(rounds: PruneRounds, state: PruneState, key: Any):
        if state.num_tried >= len(decisions):
            return []
        like = decisions[int(state.num_tried)]
        scores = {"random": rounds.score(state.params, state.batch_stats, "random", key)}
        size = {"layer": like.layer, "counts": [like.count]}
        return _pairs(*propose_plans(scores, **size, after=state.plan))

    return propose


def _pairs(proposals: list[Proposal], plans: PrunePlan) -> list[tuple[Proposal, PrunePlan]]:
    """Each of P proposals beside its own of the plans `[P, C]`."""
    return [
        (proposal, jax.tree.map(lambda keep, i=i: keep[i], plans))
        for i, proposal in enumerate(proposals)
    ]
