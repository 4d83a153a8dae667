"""Fairness metrics as pure functions: counts, rates, gaps, AUC, calibration, intervals, comparison.

Every metric runs under jit and vmap, takes example weights (0 for padding, multiplicities in a
bootstrap) and any number of groups and classes. What a group cannot define is nan and is left out
of gaps, never counted as fair; `undefined` says so in words.
"""

from fairjax.metrics.calibration import brier_score as brier_score
from fairjax.metrics.calibration import expected_calibration_error as expected_calibration_error
from fairjax.metrics.calibration import group_brier_score as group_brier_score
from fairjax.metrics.calibration import group_calibration_error as group_calibration_error
from fairjax.metrics.comparison import Comparison as Comparison
from fairjax.metrics.comparison import compare_rows as compare_rows
from fairjax.metrics.comparison import pareto_front as pareto_front
from fairjax.metrics.counts import GroupCounts as GroupCounts
from fairjax.metrics.counts import GroupRates as GroupRates
from fairjax.metrics.counts import group_counts as group_counts
from fairjax.metrics.counts import group_sums as group_sums
from fairjax.metrics.curves import calibration_curve as calibration_curve
from fairjax.metrics.curves import roc_curve as roc_curve
from fairjax.metrics.group_table import GroupTable as GroupTable
from fairjax.metrics.group_table import group_cells as group_cells
from fairjax.metrics.group_table import group_table as group_table
from fairjax.metrics.group_table import group_tables as group_tables
from fairjax.metrics.naming import name_groups as name_groups
from fairjax.metrics.pruning_variants import dp_scp as dp_scp
from fairjax.metrics.pruning_variants import eodd as eodd
from fairjax.metrics.pruning_variants import eodd_scp as eodd_scp
from fairjax.metrics.pruning_variants import eopp0 as eopp0
from fairjax.metrics.pruning_variants import eopp1 as eopp1
from fairjax.metrics.pruning_variants import fate as fate
from fairjax.metrics.pruning_variants import num_unsupported_classes as num_unsupported_classes
from fairjax.metrics.ranking import RankedScores as RankedScores
from fairjax.metrics.ranking import group_auc as group_auc
from fairjax.metrics.ranking import rank_scores as rank_scores
from fairjax.metrics.ranking import ranked_auc as ranked_auc
from fairjax.metrics.ranking import roc_auc as roc_auc
from fairjax.metrics.rates import accuracy as accuracy
from fairjax.metrics.rates import balanced_accuracy as balanced_accuracy
from fairjax.metrics.rates import demographic_parity_deviation as demographic_parity_deviation
from fairjax.metrics.rates import demographic_parity_difference as demographic_parity_difference
from fairjax.metrics.rates import demographic_parity_ratio as demographic_parity_ratio
from fairjax.metrics.rates import equal_opportunity_deviation as equal_opportunity_deviation
from fairjax.metrics.rates import equal_opportunity_difference as equal_opportunity_difference
from fairjax.metrics.rates import equal_opportunity_ratio as equal_opportunity_ratio
from fairjax.metrics.rates import equalized_odds_deviation as equalized_odds_deviation
from fairjax.metrics.rates import equalized_odds_difference as equalized_odds_difference
from fairjax.metrics.rates import equalized_odds_ratio as equalized_odds_ratio
from fairjax.metrics.rates import false_positive_rate as false_positive_rate
from fairjax.metrics.rates import group_max as group_max
from fairjax.metrics.rates import group_min as group_min
from fairjax.metrics.rates import macro_f1 as macro_f1
from fairjax.metrics.rates import precision as precision
from fairjax.metrics.rates import rate_difference as rate_difference
from fairjax.metrics.rates import rate_ratio as rate_ratio
from fairjax.metrics.rates import selection_rate as selection_rate
from fairjax.metrics.rates import true_positive_rate as true_positive_rate
from fairjax.metrics.resampling import Intervals as Intervals
from fairjax.metrics.resampling import bootstrap as bootstrap
from fairjax.metrics.resampling import resampling_weights as resampling_weights
from fairjax.metrics.sentences import small_cells as small_cells
from fairjax.metrics.sentences import undefined as undefined
from fairjax.metrics.summary import Measured as Measured
from fairjax.metrics.summary import Prepared as Prepared
from fairjax.metrics.summary import evaluate as evaluate
from fairjax.metrics.summary import fairness_metrics as fairness_metrics
from fairjax.metrics.summary import measure as measure
from fairjax.metrics.summary import prepare as prepare
from fairjax.metrics.summary import tabulate as tabulate
