"""What a search found: choices of what to train, and everything tried."""

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np

from fairjax.fairtune.choosing import Posterior, corrected_value, estimate, ranked_trials
from fairjax.fairtune.objectives import Objective
from fairjax.fairtune.spaces import Description, MaskSpace
from fairjax.fairtune.trials import STATUS_NAMES, Trials, best_masks


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


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search found."""

    space: MaskSpace
    objectives: tuple[Objective, ...]
    trials: Trials

    @functools.cached_property
    def posterior(self) -> Posterior:
        """What all trials together say of each, in the first objective; see `choosing`."""
        return estimate(self.trials)

    @property
    def winner(self) -> Choice:
        """The completed trial of best posterior mean."""
        return self.best(1)[0]

    @property
    def corrected_value(self) -> float:
        """Validation value of the winner, corrected for having been chosen among all trials."""
        return corrected_value(self.trials, self.posterior)

    def best_rows(self, count: int) -> np.ndarray:
        """Rows of the best completed trials by posterior mean of the first objective."""
        return ranked_trials(self.trials, self.posterior)[:count]

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
            row["posterior_mean"] = self.posterior.mean[i]
            row["posterior_sd"] = self.posterior.sd[i]
            for number, value in enumerate(trials.replicates[i]):
                row[f"replicate_{number}"] = value
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
            "posterior_mean": float(self.posterior.mean[row]),
            "corrected_value": self.corrected_value,
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
        """What the winner's value is worth, and which trials failed."""
        name, trials = self.objectives[0].name, self.trials
        row = int(self.best_rows(1)[0])
        notes = [
            f"Trial {row} was chosen: validation {name} {trials.values[row, 0]:.4f}, posterior "
            f"mean {self.posterior.mean[row]:.4f}; {self.corrected_value:.4f} corrected for having "
            f"been chosen among {len(trials.status)} trials."
        ]
        failed = np.flatnonzero(trials.status == STATUS_NAMES.index("failed"))
        if len(failed):
            named = ", ".join(self._failure(int(i)) for i in failed[:5])
            more = f" and {len(failed) - 5} more" if len(failed) > 5 else ""
            notes.append(
                f"{len(failed)} trials failed, as the objective was undefined or the training "
                f"diverged: {named}{more}."
            )
        return notes

    def _failure(self, row: int) -> str:
        """A trial that failed, with the replicate that did."""
        replicates = self.trials.replicates[row]
        if len(replicates) == 1:
            return f"trial {row}"
        return f"trial {row} (replicate {int(np.isnan(replicates).argmax())})"

    def front(self) -> list[Choice]:
        """The completed trials that no other beats in all objectives."""
        return [self.choice(int(row)) for row in best_masks(self.trials)]

    def choice(self, row: int) -> Choice:
        """The mask and rate of one trial."""
        rate = float(self.trials.learning_rates[row])
        return Choice(self.space, self.trials.masks[row], (rate,))
