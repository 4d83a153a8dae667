"""FairTune: choose which parts of a pre-trained network to fine-tune by validation fairness.

Dutt, Bohdal, Tsaftaris, Hospedales: "FairTune: Optimizing Parameter Efficient Fine Tuning for
Fairness in Medical Image Analysis", ICLR 2024. The whole job is `search_masks` and `refit`; spaces,
objectives, searches and `tune` are its parts.
"""

from fairjax.fairtune.choosing import Posterior as Posterior
from fairjax.fairtune.choosing import corrected_value as corrected_value
from fairjax.fairtune.choosing import estimate as estimate
from fairjax.fairtune.found import Choice as Choice
from fairjax.fairtune.found import Found as Found
from fairjax.fairtune.guided import guided_masks as guided_masks
from fairjax.fairtune.lora import add_lora as add_lora
from fairjax.fairtune.lora import fold_lora as fold_lora
from fairjax.fairtune.objectives import MAXIMIZED as MAXIMIZED
from fairjax.fairtune.objectives import Objective as Objective
from fairjax.fairtune.objectives import check_objectives as check_objectives
from fairjax.fairtune.objectives import objective as objective
from fairjax.fairtune.options import Options as Options
from fairjax.fairtune.options import parse_options as parse_options
from fairjax.fairtune.run import refit as refit
from fairjax.fairtune.run import refit_choice as refit_choice
from fairjax.fairtune.run import search_masks as search_masks
from fairjax.fairtune.rungs import Rungs as Rungs
from fairjax.fairtune.rungs import racing as racing
from fairjax.fairtune.rungs import successive_halving as successive_halving
from fairjax.fairtune.search import Candidates as Candidates
from fairjax.fairtune.search import Search as Search
from fairjax.fairtune.search import evolution as evolution
from fairjax.fairtune.search import random_search as random_search
from fairjax.fairtune.search import replay as replay
from fairjax.fairtune.setup import MaskSearch as MaskSearch
from fairjax.fairtune.setup import mask_search as mask_search
from fairjax.fairtune.spaces import PUBLISHED_NAMES as PUBLISHED_NAMES
from fairjax.fairtune.spaces import Description as Description
from fairjax.fairtune.spaces import MaskSpace as MaskSpace
from fairjax.fairtune.spaces import mask_space as mask_space
from fairjax.fairtune.spaces import mask_space_from_rules as mask_space_from_rules
from fairjax.fairtune.spaces import simple_masks as simple_masks
from fairjax.fairtune.studies import nsga2 as nsga2
from fairjax.fairtune.studies import optuna_search as optuna_search
from fairjax.fairtune.studies import tpe as tpe
from fairjax.fairtune.trials import COMPLETE as COMPLETE
from fairjax.fairtune.trials import STATUS_NAMES as STATUS_NAMES
from fairjax.fairtune.trials import Trials as Trials
from fairjax.fairtune.trials import best_masks as best_masks
from fairjax.fairtune.trials import best_trial as best_trial
from fairjax.fairtune.trials import best_trials as best_trials
from fairjax.fairtune.tune import Measured as Measured
from fairjax.fairtune.tune import TuneState as TuneState
from fairjax.fairtune.tune import init_tune as init_tune
from fairjax.fairtune.tune import more_trials as more_trials
from fairjax.fairtune.tune import tune as tune
