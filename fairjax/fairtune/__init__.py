"""FairTune: choose which parts of a pre-trained network to fine-tune by validation fairness.

Dutt, Bohdal, Tsaftaris, Hospedales: "FairTune: Optimizing Parameter Efficient Fine Tuning for
Fairness in Medical Image Analysis", ICLR 2024.
"""

from fairjax.fairtune.guided import guided_masks
from fairjax.fairtune.lora import add_lora, fold_lora
from fairjax.fairtune.objectives import MAXIMIZED, Objective, check_objectives, objective
from fairjax.fairtune.search import (
    Candidates,
    Search,
    evolution,
    nsga2,
    optuna_search,
    random_search,
    tpe,
)
from fairjax.fairtune.spaces import (
    PUBLISHED_NAMES,
    Description,
    MaskSpace,
    mask_space,
    mask_space_from_rules,
)
from fairjax.fairtune.tune import (
    STATUS_NAMES,
    Rungs,
    Trials,
    TuneState,
    best_trial,
    best_trials,
    init_tune,
    pareto_front,
    successive_halving,
    tune,
)

__all__ = [
    "MAXIMIZED",
    "PUBLISHED_NAMES",
    "STATUS_NAMES",
    "Candidates",
    "Description",
    "MaskSpace",
    "Objective",
    "Rungs",
    "Search",
    "Trials",
    "TuneState",
    "add_lora",
    "best_trial",
    "best_trials",
    "check_objectives",
    "evolution",
    "fold_lora",
    "guided_masks",
    "init_tune",
    "mask_space",
    "mask_space_from_rules",
    "nsga2",
    "objective",
    "optuna_search",
    "pareto_front",
    "random_search",
    "successive_halving",
    "tpe",
    "tune",
]
