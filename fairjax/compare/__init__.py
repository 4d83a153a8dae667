"""Methods side by side on one data set: which makes a model fairer, at what price, is it sure?

    setting = Setting(data, resplits(data, 10), num_seeds=2, model=logistic_regression(D),
                      recipe=make_recipe(2_700, num_rows, batch_size=100, learning_rate=0.005))
    found = compare_methods(setting, ("reweighted", "group_dro", "fairbatch@rate"))
    row = found.rows.index("group_dro+thresholds")
    found.judged.change("equalized_odds_difference", row, 0)   # against plain, with its interval

The runs of all splits and seeds of the methods that differ only in numbers are one compiled
program; see `PROGRAMS` for which those are.
"""

from fairjax.compare.crossing import combinations as combinations
from fairjax.compare.crossing import cross_methods as cross_methods
from fairjax.compare.crossing import effects as effects
from fairjax.compare.judging import Select as Select
from fairjax.compare.judging import add_thresholds as add_thresholds
from fairjax.compare.judging import common_accuracy as common_accuracy
from fairjax.compare.judging import judge as judge
from fairjax.compare.judging import margins as margins
from fairjax.compare.judging import one_class as one_class
from fairjax.compare.judging import select_stage as select_stage
from fairjax.compare.methods import ADAPTING as ADAPTING
from fairjax.compare.methods import METHODS as METHODS
from fairjax.compare.methods import PROGRAMS as PROGRAMS
from fairjax.compare.methods import Adapting as Adapting
from fairjax.compare.methods import Method as Method
from fairjax.compare.methods import Program as Program
from fairjax.compare.retrain import linear_probe as linear_probe
from fairjax.compare.retrain import retrain_balanced as retrain_balanced
from fairjax.compare.run import Compared as Compared
from fairjax.compare.run import compare_methods as compare_methods
from fairjax.compare.setting import Criterion as Criterion
from fairjax.compare.setting import Setting as Setting
from fairjax.compare.setting import Strengths as Strengths
from fairjax.compare.setting import Trained as Trained
from fairjax.compare.setting import check_setting as check_setting
from fairjax.compare.setting import make_recipe as make_recipe
from fairjax.compare.training import ALL_METHODS as ALL_METHODS
from fairjax.compare.training import train_methods as train_methods
