"""Figures of a FairTune search, as SVG."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fairjax.fairtune import (
    STATUS_NAMES,
    Found,
    MaskSpace,
    Objective,
    Trials,
    best_masks,
    best_trials,
)
from fairjax.report.plots import figure
from fairjax.report.tables import moved

_COMPLETE = STATUS_NAMES.index("complete")


def history(trials: Trials, objective: Objective) -> str:
    """Every trial's last value, and the best completed one so far."""

    def draw(canvas):
        axis = canvas.subplots()
        values = trials.values[:, 0]
        for status in ("complete", "stopped"):
            rows = np.flatnonzero(trials.status == STATUS_NAMES.index(status))
            axis.scatter(rows, values[rows], s=14, label=status)
        best = np.where(trials.status == _COMPLETE, values, np.nan)
        running = np.fmax.accumulate(best) if objective.maximize else np.fmin.accumulate(best)
        axis.step(np.arange(len(running)), running, where="post", label="best completed")
        axis.set(xlabel="trial", ylabel=f"validation {objective.name}")
        axis.legend(fontsize=7)

    return figure(draw)


def heat_map(trials: Trials, space: MaskSpace, top: int = 10) -> str:
    """How often the best trials train each unit: block against part."""
    rows = best_trials(trials, top)
    frequency = trials.masks[rows].mean(0)
    places = [re.fullmatch(r"(.*?\d+(?:/\d+)*)(?:/(.*))?", unit) for unit in space.units]
    names = [
        (match[1], match[2] or space.name) if match else (unit, space.name)
        for match, unit in zip(places, space.units, strict=True)
    ]
    blocks, parts = (list(dict.fromkeys(name[i] for name in names)) for i in (0, 1))
    table = np.full((len(parts), len(blocks)), np.nan)
    for (block, part), share in zip(names, frequency, strict=True):
        table[parts.index(part), blocks.index(block)] = share

    def draw(canvas):
        axis = canvas.subplots()
        image = axis.imshow(table, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        axis.set_xticks(range(len(blocks)), blocks, fontsize=7, rotation=45)
        axis.set_yticks(range(len(parts)), parts, fontsize=8)
        canvas.colorbar(image, label=f"share of the best {len(rows)} trials")

    return figure(draw, size=(8.0, 1.6 + 0.4 * len(parts)))


def front(trials: Trials, objectives: Sequence[Objective]) -> str:
    """Completed trials in the first two objectives, with the Pareto front."""
    rows = np.flatnonzero(trials.status == _COMPLETE)
    best = best_masks(trials)

    def draw(canvas):
        axis = canvas.subplots()
        axis.scatter(*trials.values[rows, :2].T, s=12, label="completed")
        axis.scatter(*trials.values[best, :2].T, s=24, label="Pareto front")
        axis.set(xlabel=objectives[0].name, ylabel=objectives[1].name)
        axis.legend(fontsize=7)

    return figure(draw, size=(5.0, 3.6))


def importance(shares: Mapping[str, float], objective: Objective) -> str:
    """How much units, options and the learning rate explain of the trials' first comparison."""
    names = sorted(shares, key=lambda name: shares[name])[-20:]

    def draw(canvas):
        axis = canvas.subplots()
        axis.barh(names, [shares[name] for name in names], height=0.7)
        axis.tick_params(axis="y", labelsize=7)
        axis.set(xlabel=f"share of {objective.name} at the first comparison explained")

    return figure(draw, size=(6.0, 0.8 + 0.2 * len(names)))


def parameter_importance(
    trials: Trials, space: MaskSpace, options: Sequence[str] = ()
) -> dict[str, float]:
    """Share of the variance that units, options and the rate explain, by Optuna's fANOVA.

    Taken at the first rung, which trials of all qualities reach; {} for fewer than 4 of them or if
    they do not differ.
    """
    import optuna

    values = trials.rung_values[:, 0]
    rows = np.flatnonzero(np.isfinite(values) & (trials.same_as < 0))
    if len(rows) < 4 or np.ptp(values[rows]) == 0:
        return {}
    rates = trials.learning_rates[rows]
    categorical = optuna.distributions.CategoricalDistribution
    distributions: dict[str, Any] = {unit: categorical([False, True]) for unit in space.units}
    chosen = dict(zip(options, () if trials.choices is None else trials.choices.T, strict=True))
    distributions |= {name: categorical(np.unique(own).tolist()) for name, own in chosen.items()}
    low, high = float(rates.min()), float(rates.max())
    distributions["learning rate"] = optuna.distributions.FloatDistribution(low, high, log=True)
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study()
    for row in rows:
        params: dict[str, Any] = dict(zip(space.units, map(bool, trials.masks[row]), strict=True))
        params["learning rate"] = min(max(float(trials.learning_rates[row]), low), high)
        params |= {name: int(own[row]) for name, own in chosen.items()}
        study.add_trial(
            optuna.trial.create_trial(
                params=params, distributions=distributions, value=float(values[row])
            )
        )
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    optuna.logging.set_verbosity(before)
    return shares


def search_figures(found: Found) -> dict[str, str]:
    """Heading -> SVG: the trials, what the best of them train, what decides, the front."""
    space, trials, objectives = found.space, found.trials, found.objectives
    drawn = {"Search": history(trials, objectives[0])}
    if space.num_units:
        drawn["What the best trials train"] = heat_map(trials, space)
    if shares := parameter_importance(trials, space, tuple(found.options)):
        drawn["What decides"] = importance(shares, objectives[0])
    if len(objectives) > 1:
        drawn["Pareto front"] = front(trials, objectives)
    return drawn


def search_sentence(by_row: Mapping[str, Any], name: str) -> str:
    """Worst-group AUC of the found mask, and what it gains over every other row.

    Args:
      by_row: results of `summarise`; those of "fairtune" with "gain_over", as of
        `experiments.results.gains`.
      name: of the data.
    """
    metric, found = "worst_group_auc", by_row["fairtune"]
    told: dict[str, list[str]] = {}
    for other, gain in found["gain_over"].items():
        verdict = moved(gain[metric][1:])
        change = "{:+.3f} ({:+.3f} to {:+.3f})".format(*gain[metric])
        value = f"{other} {by_row[other][metric]:.3f}"
        told.setdefault(verdict, []).append(
            value if "compared" in verdict else f"{value}, {change}"
        )
    words = {
        "rises": "more than",
        "falls": "less than",
        "does not clearly change": "not clearly different from",
        "cannot be compared": "not to be compared with",
    }
    parts = [f"{words[verdict]} {'; '.join(rows)}" for verdict, rows in told.items()]
    return (
        f"On {name}, the found mask has a test worst-group AUC of {found[metric]:.3f}: "
        f"{', and '.join(parts)}. Differences are paired, with 95 % intervals."
    )
