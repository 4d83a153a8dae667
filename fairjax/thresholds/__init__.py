"""A threshold per group: the strongest simple baseline, chosen exactly for many candidates at once.

    scores = logits[..., 1] - logits[..., 0]                      # [P, N] on validation
    settings = {"labels": labels, "group": group, "num_groups": 2, "criterion": "equalized_odds"}
    found = group_thresholds(scores, **settings, max_gap=0.02)    # thresholds [P, 2]
    fair = shift_logits(test_logits, found.thresholds, group=test_group)  # for fairjax.metrics

Every combination of the groups' thresholds is looked at, in effect: a group of n examples has at
most n + 1 different thresholds, and its rates fall as its threshold rises. Choices whose rates lie
in a window are therefore a run of thresholds in each group, whose best member a table of range
maxima gives in two look-ups; what remains is to slide the window.
"""

from fairjax.thresholds.apply import apply_thresholds as apply_thresholds
from fairjax.thresholds.apply import shift_logits as shift_logits
from fairjax.thresholds.choose import frontier as frontier
from fairjax.thresholds.choose import group_thresholds as group_thresholds
from fairjax.thresholds.choose import match_accuracy as match_accuracy
from fairjax.thresholds.choose import thresholds_after as thresholds_after
from fairjax.thresholds.points import OperatingPoints as OperatingPoints
from fairjax.thresholds.points import operating_points as operating_points
from fairjax.thresholds.search import CRITERIA as CRITERIA
from fairjax.thresholds.search import GroupThresholds as GroupThresholds
