"""Sensitive-channel pruning: score channels, select a plan, mask or slice, evaluate many plans.

Kong et al.: "Achieving Fairness Through Channel Pruning for Dermatological Disease Diagnosis",
MICCAI 2024. The whole job is `prune`, or `prune_rounds` with controls of one's own; scores, plans
and their evaluation are its parts.
"""

from fairjax.pruning.evaluate import ACCURACIES as ACCURACIES
from fairjax.pruning.evaluate import DISPARITIES as DISPARITIES
from fairjax.pruning.evaluate import evaluate_plans as evaluate_plans
from fairjax.pruning.evaluate import evaluate_pruned as evaluate_pruned
from fairjax.pruning.evaluate import fate_objective as fate_objective
from fairjax.pruning.evaluate import plan_logits as plan_logits
from fairjax.pruning.evaluate import propose_plans as propose_plans
from fairjax.pruning.evaluate import pruning_metrics as pruning_metrics
from fairjax.pruning.evaluate import rank_plans as rank_plans
from fairjax.pruning.evaluate import stack_plans as stack_plans
from fairjax.pruning.evaluate import tabulate_pruned as tabulate_pruned
from fairjax.pruning.plans import Candidate as Candidate
from fairjax.pruning.plans import Proposal as Proposal
from fairjax.pruning.plans import PrunePlan as PrunePlan
from fairjax.pruning.plans import channel_masks as channel_masks
from fairjax.pruning.plans import check_layers as check_layers
from fairjax.pruning.plans import mask_channels as mask_channels
from fairjax.pruning.plans import num_channels as num_channels
from fairjax.pruning.plans import select_channels as select_channels
from fairjax.pruning.plans import slice_channels as slice_channels
from fairjax.pruning.rounds import Decision as Decision
from fairjax.pruning.rounds import Propose as Propose
from fairjax.pruning.rounds import Pruned as Pruned
from fairjax.pruning.rounds import PruneRounds as PruneRounds
from fairjax.pruning.rounds import PruneState as PruneState
from fairjax.pruning.rules import repeat_random as repeat_random
from fairjax.pruning.rules import repeat_unpruned as repeat_unpruned
from fairjax.pruning.rules import rule_of as rule_of
from fairjax.pruning.rules import scored_plans as scored_plans
from fairjax.pruning.rules import sensitive_plans as sensitive_plans
from fairjax.pruning.run import check_cells as check_cells
from fairjax.pruning.run import prune as prune
from fairjax.pruning.run import prune_rounds as prune_rounds
from fairjax.pruning.scores import SCORES as SCORES
from fairjax.pruning.scores import ChannelScores as ChannelScores
from fairjax.pruning.scores import Score as Score
from fairjax.pruning.scores import score_channels as score_channels
