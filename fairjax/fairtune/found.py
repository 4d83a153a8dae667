"""What a search found: choices of what to train, and everything tried."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fairjax.fairtune.choosing import Posterior, corrected_value, estimate, ranked_trials
from fairjax.fairtune.objectives import Objective
from fairjax.fairtune.options import NO_OPTIONS, PLAN, Options, in_words, option_labels
from fairjax.fairtune.spaces import Description, MaskSpace
from fairjax.fairtune.trials import STATUS_NAMES, Trials, best_masks


class Choice(NamedTuple):
    """A mask, the learning rates to try with it, and values of options."""

    space: MaskSpace
    mask: np.ndarray
    """bool `[U]`, True = trained."""
    learning_rates: tuple[float, ...]
    options: Mapping[str, Any] = NO_OPTIONS
    """Option -> value that is trained with, such as `{"sampler": "group_dro"}`; see `Options`."""

    @property
    def description(self) -> Description:
        """What it trains and how, in numbers and words; numbers are of the unpruned network."""
        description = self.space.describe(self.mask)
        told = [f"{name} {in_words(value)}" for name, value in self.options.items()]
        return description._replace(text="; ".join([description.text, *told]))


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search found."""

    space: MaskSpace
    objectives: tuple[Objective, ...]
    trials: Trials
    options: Options = dataclasses.field(default_factory=dict)

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
            row |= self.chosen(i)
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
            **self._options_of(row),
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
                    **self._options_of(int(i)),
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
        if self.options:
            notes += self._notes_by_option()
        failed = np.flatnonzero(trials.status == STATUS_NAMES.index("failed"))
        if len(failed):
            named = ", ".join(self._failure(int(i)) for i in failed[:5])
            more = f" and {len(failed) - 5} more" if len(failed) > 5 else ""
            notes.append(
                f"{len(failed)} trials failed, as the objective was undefined or the training "
                f"diverged: {named}{more}."
            )
        return notes

    def chosen(self, row: int) -> dict[str, str]:
        """Option -> the value that one trial chose, in words."""
        if self.trials.choices is None:
            return {}
        labels = option_labels(self.options).items()
        own = self.trials.choices[row]
        return {name: values[i] for (name, values), i in zip(labels, own, strict=True)}

    def _options_of(self, row: int) -> dict[str, Any]:
        """Those of one trial as JSON has them, with the channels that a plan keeps."""
        content: dict[str, Any] = {"options": self.chosen(row)} if self.options else {}
        if PLAN in self.options:
            plan = self.choice(row).options[PLAN].keep
            content["keep"] = {at: np.asarray(k).astype(int).tolist() for at, k in plan.items()}
        return content

    def by_option(self) -> list[dict[str, Any]]:
        """What trials with every value of every option were worth when first compared.

        Means over trials that the search made, which differ in masks and rates, too, and of which
        a search that learns makes more where values are good: observational, not effects.

        Returns:
          One row per value: "option", "value", "trials" compared, "mean" of the first objective on
          validation (nan without trials) and how many "failed". Repeated trials do not count.
        """
        trials, rows = self.trials, []
        first, new = trials.rung_values[:, 0], trials.same_as < 0
        failed = new & (trials.status == STATUS_NAMES.index("failed"))
        for number, (name, values) in enumerate(option_labels(self.options).items()):
            for i, value in enumerate(values):
                here = new & (trials.choices[:, number] == i)  # pyright: ignore
                seen = first[here & np.isfinite(first)]
                mean = float(seen.mean()) if len(seen) else float("nan")
                row = {"option": name, "value": value, "trials": len(seen), "mean": mean}
                rows.append(row | {"failed": int((here & failed).sum())})
        return rows

    def _notes_by_option(self) -> list[str]:
        parts: dict[str, list[str]] = {}
        for row in self.by_option():
            more = f", {row['failed']} failed" if row["failed"] else ""
            told = f"{row['value']} {row['mean']:.4f} ({row['trials']} trials{more})"
            parts.setdefault(row["option"], []).append(told)
        name = self.objectives[0].name
        return [
            f"Mean validation {name} at the first comparison by {option}: {'; '.join(told)}. "
            "Observational: these trials differ in masks and rates, too."
            for option, told in parts.items()
        ]

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
        """The mask, rate and options of one trial."""
        rate = float(self.trials.learning_rates[row])
        own = () if self.trials.choices is None else self.trials.choices[row]
        options = {
            name: values[i] for (name, values), i in zip(self.options.items(), own, strict=True)
        }
        return Choice(self.space, self.trials.masks[row], (rate,), options)
