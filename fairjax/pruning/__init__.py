"""Sensitive-channel pruning: score channels, select a plan, mask or slice, evaluate many plans.

Source: Kong et al., MICCAI 2024.
"""

from fairjax.pruning.plans import (
    PrunePlan,
    channel_masks,
    hold_pruned,
    mask_channels,
    num_channels,
    select_channels,
    slice_channels,
)
from fairjax.pruning.scores import SCORES, ChannelScores, Score, score_channels
from fairjax.pruning.search import (
    Candidate,
    candidate_plans,
    evaluate_plans,
    evaluate_pruned,
    fate_objective,
    plan_logits,
    pruning_metrics,
    rank_plans,
    stack_plans,
)

__all__ = [
    "SCORES",
    "Candidate",
    "ChannelScores",
    "PrunePlan",
    "Score",
    "candidate_plans",
    "channel_masks",
    "evaluate_plans",
    "evaluate_pruned",
    "fate_objective",
    "hold_pruned",
    "mask_channels",
    "num_channels",
    "plan_logits",
    "pruning_metrics",
    "rank_plans",
    "score_channels",
    "select_channels",
    "slice_channels",
    "stack_plans",
]
