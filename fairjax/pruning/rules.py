"""Which plans a round of pruning tries: the most sensitive channels, and what controls try."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from fairjax.pruning.evaluate import evaluate_plans, propose_plans, stack_plans
from fairjax.pruning.plans import Candidate, Proposal, PrunePlan
from fairjax.pruning.rounds import Decision, Propose, PruneRounds, PruneState, Take
from fairjax.pruning.scores import ChannelScores, Score


def sensitive_plans(rounds: PruneRounds, state: PruneState, key: Any) -> list[Candidate]:
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
        proposed: list[Candidate] = []
        for layer, counts in room.items():
            if not counts:
                continue
            here: list[Candidate] = []
            for values, trade_offs in scored:
                here += _pairs(
                    *propose_plans(
                        values, layer=layer, counts=counts, trade_offs=trade_offs, after=state.plan
                    )
                )
            # what earlier rounds pruned is zero already, so only this layer differs
            only = [PrunePlan({layer: each.plan.keep[layer]}) for each in here]
            # filled up, so that rounds with less room for counts have the same program
            full = len(here) * len(rounds.counts) // len(counts)
            only = stack_plans(only + only[:1] * (full - len(here)))
            groups = rounds.data.num_groups
            table = evaluate_plans(rounds.model, *network, only, rounds.val, num_groups=groups)
            tried.append({name: np.asarray(values)[: len(here)] for name, values in table.items()})
            proposed += here
        whole = {name: np.concatenate([part[name] for part in tried]) for name in tried[0]}
        scalars = {name: whole[name] for name in state.base}
        return [
            proposed[i]._replace(val={name: values[i] for name, values in scalars.items()})
            for i in rounds.rank(whole, state.base)
        ]

    return propose


def repeat_unpruned(decisions: tuple[Decision, ...]) -> Propose:
    """A control: trains for as many rounds as were decided, and prunes nothing."""

    def propose(rounds: PruneRounds, state: PruneState, key: Any):
        del key
        if state.num_tried >= len(decisions):
            return []
        return [Candidate(Proposal("", 0, "none"), state.plan)]

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


def rule_of(row: str, taken: tuple[Decision, ...]) -> dict[str, Any]:
    """`propose` and `take` of `PruneRounds.run` for a method or a control by its name.

    Args:
      row: "pruned" takes the most sensitive channels; "tuned" trains as long and prunes nothing,
        "random" prunes as many channels of the same layers at random; "random_best" and
        "magnitude" choose on validation as "pruned" does, but rank channels otherwise.
      taken: decisions of "pruned" that were taken, which "tuned" and "random" follow.

    Raises:
      ValueError: another name.

    >>> rule_of("tuned", ())["take"]
    'all'
    """
    rules: dict[str, tuple[Propose, Take]] = {
        "pruned": (sensitive_plans, "better"),
        "tuned": (repeat_unpruned(taken), "all"),
        "random": (repeat_random(taken), "all"),
        "random_best": (scored_plans(["random"]), "better"),
        "magnitude": (scored_plans(["magnitude"]), "better"),
    }
    if row not in rules:
        raise ValueError(f"row must be one of {', '.join(rules)}; got {row!r}")
    propose, take = rules[row]
    return {"propose": propose, "take": take}


def _pairs(proposals: list[Proposal], plans: PrunePlan) -> list[Candidate]:
    """Each of P proposals beside its own of the plans `[P, C]`."""
    return [
        Candidate(proposal, jax.tree.map(lambda keep, i=i: keep[i], plans))
        for i, proposal in enumerate(proposals)
    ]
