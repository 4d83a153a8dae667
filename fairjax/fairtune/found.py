"""What a search found: choices of what to train, and everything tried."""

from typing import Any, NamedTuple

import numpy as np

from fairjax.fairtune.objectives import Objective
from fairjax.fairtune.spaces import Description, MaskSpace
from fairjax.fairtune.tune import STATUS_NAMES, Trials, best_masks, best_trials


class Choice(NamedTuple):
    """A mask and the learning rates to try with it."""

    space: MaskSpace
    mask: np.ndarray
    """bool `[U]`, True = trained."""
    learning_rates: tuple[float, ...]

    @property
    def description(self) -> Description:
        """What it trains, in numbers and words."""
        return self.space.describe(self.mask)


class Found(NamedTuple):
    """What a search found."""

    space: MaskSpace
    objectives: tuple[Objective, ...]
    trials: Trials

    @property
    def winner(self) -> Choice:
        """The completed trial of best validation value."""
        return self.best(1)[0]

    def best_rows(self, count: int) -> np.ndarray:
        """Rows of the best completed trials in the first objective, best first."""
        return best_trials(self.trials, count)

    def best(self, count: int) -> list[Choice]:
        """The choices of `best_rows`."""
        return [self.choice(int(row)) for row in self.best_rows(count)]

    def table(self) -> list[dict[str, Any]]:
        """One row per trial as plain values; values of objectives are of the validation split."""
        trials, rows = self.trials, []
        for i, status in enumerate(trials.status):
            row: dict[str, Any] = {"trial": i, "status": STATUS_NAMES[status]}
            row["epochs"] = int(trials.epochs[i])
            row["same_as"] = int(trials.same_as[i]) if trials.same_as[i] >= 0 else ""
            row["learning_rate"] = trials.learning_rates[i]
            for chosen, value in zip(self.objectives, trials.values[i], strict=True):
                row[f"val_{chosen.name}"] = value
            rows.append(row | dict(zip(self.space.units, trials.masks[i].astype(int), strict=True)))
        return rows

    def describe(self, row: int) -> dict[str, Any]:
        """One trial as plain values: all that training with its mask again needs."""
        choice, trials = self.choice(row), self.trials
        description = choice.description
        content: dict[str, Any] = {
            "space": self.space.name,
            "trial": int(row),
            "mask": choice.mask.astype(int).tolist(),
            "units": list(description.units),
            "learning_rate": choice.learning_rates[0],
            "trained_parameters": description.num_trained,
            "percent_trained": description.percent,
            "objective": self.objectives[0].name,
            "val_objective": float(trials.values[row, 0]),
        }
        if len(self.objectives) > 1:
            content["pareto_front"] = [
                {
                    "mask": trials.masks[i].astype(int).tolist(),
                    "learning_rate": float(trials.learning_rates[i]),
                    "val_objectives": trials.values[i].tolist(),
                }
                for i in best_masks(trials)
            ]
        return content

    def notes(self) -> list[str]:
        """How many trials failed, and why that can be."""
        failed = int((self.trials.status == STATUS_NAMES.index("failed")).sum())
        if not failed:
            return []
        return [f"{failed} trials failed: the objective was undefined or the training diverged"]

    def front(self) -> list[Choice]:
        """The completed trials that no other beats in all objectives."""
        return [self.choice(int(row)) for row in best_masks(self.trials)]

    def choice(self, row: int) -> Choice:
        """The mask and rate of one trial."""
        rate = float(self.trials.learning_rates[row])
        return Choice(self.space, self.trials.masks[row], (rate,))
