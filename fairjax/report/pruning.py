"""Figures of channel pruning, as SVG."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fairjax.data import Dataset
from fairjax.models import Model, Weights
from fairjax.pruning import Pruned, PrunePlan, PruneRounds, num_channels
from fairjax.report.plots import figure
from fairjax.report.tables import moved

Paths = Mapping[str, np.ndarray]
"""Seed -> `(disparity, accuracy)` of the baseline and of each round that was taken, `[T, 2]`."""


def pruning_figures(
    rounds: PruneRounds,
    base: Weights,
    pruned: Pruned,
    history: Sequence[Mapping[str, Any]],
    *,
    names: tuple[str, str],
    sizes: Mapping[str, tuple[float, float]],
) -> dict[str, str]:
    """Every figure under its heading.

    Args:
      rounds: the network and the data, whose validation split is drawn.
      base: the baseline that was pruned.
      pruned: what became of it.
      history: the fields of every `Decision`, with its "seed" and "row", and the baselines.
      names: of the disparity and the accuracy.
      sizes: what -> its number before and after.
    """
    model, data = rounds.model, rounds.data
    paths = {row: validation_paths(history, row, names) for row in ("pruned", "random_best")}
    score, scores = next(iter(pruned.scores.items()))
    layer, low, high = example_channels(scores.group, pruned.plan)
    rows = _some_of_each_group(data, 150)
    maps = channel_maps(model, base, data.inputs[rows], layer)
    return {
        "Validation accuracy against disparity, round by round": draw_paths(paths, *names),
        f"Scores ({score}) of the baseline's channels, last seed": draw_scores(
            scores.group, pruned.plan
        ),
        "Size and latency, last seed": draw_sizes(sizes),
        "What a channel of low and one of high score see, last seed": draw_channels(
            {
                f"channel {channel} of {layer}, "
                + ("kept" if pruned.plan.keep[layer][channel] else "pruned"): maps[..., channel]
                for channel in (low, high)
            },
            data.group[rows],
            data.group_names,
        ),
    }


def validation_paths(
    history: Sequence[Mapping[str, Any]], row: str, names: tuple[str, str]
) -> Paths:
    """The way of a row of the table, from the baseline through the rounds that were taken."""
    found: dict[str, list[list[float]]] = {}
    for entry in history:
        if entry["row"] == "baseline" or (entry["row"] == row and entry["taken"]):
            values = (entry["val"][name] for name in names)
            point = [np.nan if value is None else value for value in values]
            found.setdefault(f"seed {entry['seed']}", []).append(point)
    return {seed: np.array(points) for seed, points in found.items()}


def draw_paths(paths: Mapping[str, Paths], x_name: str, y_name: str) -> str:
    """A panel for each row of the table, with a line for each seed; squares are baselines."""

    def draw(canvas):
        axes = canvas.subplots(1, len(paths), sharex=True, sharey=True, squeeze=False)[0]
        for axis, (row, lines) in zip(axes, paths.items(), strict=True):
            for name, points in lines.items():
                (line,) = axis.plot(*points.T, marker=".", linewidth=1.2, label=name)
                axis.plot(*points[0], marker="s", color=line.get_color())
            axis.set(title=f"{row} (square: baseline)", xlabel=x_name, ylabel=y_name)
            axis.legend(fontsize=7)

    return figure(draw)


def draw_scores(scores: Mapping[str, Any], plan: PrunePlan) -> str:
    """Histogram of every layer's scores, split into kept and pruned."""

    def draw(canvas):
        axes = canvas.subplots(1, len(scores), squeeze=False)[0]
        for axis, (layer, values) in zip(axes, scores.items(), strict=True):
            keep = np.asarray(plan.keep[layer])
            parts = [np.asarray(values)[keep], np.asarray(values)[~keep]]
            axis.hist(parts, bins=20, stacked=True, label=["kept", "pruned"])
            axis.set(title=layer, xlabel="score (low: tells groups apart)", ylabel="channels")
            axis.legend(fontsize=7)

    return figure(draw)


def draw_sizes(sizes: Mapping[str, tuple[float, float]]) -> str:
    """Bars before and after."""

    def draw(canvas):
        axes = canvas.subplots(1, len(sizes), squeeze=False)[0]
        for axis, (title, values) in zip(axes, sizes.items(), strict=True):
            bars = axis.bar(["baseline", "pruned"], values, width=0.5)
            axis.bar_label(bars, fmt="{:,.4g}", fontsize=8)
            axis.set_title(title, fontsize=10)
            axis.margins(y=0.15)

    return figure(draw, size=(6.0, 2.6))


def draw_channels(
    maps: Mapping[str, np.ndarray], group: np.ndarray, group_names: Sequence[str]
) -> str:
    """Principal components of maps `[N, F]` under their titles, coloured by group int `[N]`."""
    from sklearn.decomposition import PCA

    def draw(canvas):
        axes = canvas.subplots(1, len(maps), squeeze=False)[0]
        for axis, (title, vectors) in zip(axes, maps.items(), strict=True):
            places = PCA(2, random_state=0).fit_transform(vectors)
            for g, name in enumerate(group_names):
                axis.scatter(*places[group == g].T, s=6, alpha=0.6, label=name)
            axis.set_title(title, fontsize=10)
            axis.set(xlabel="first component", ylabel="second component")
            axis.legend(fontsize=7)

    return figure(draw)


def example_channels(scores: Mapping[str, Any], plan: PrunePlan) -> tuple[str, int, int]:
    """`(layer, pruned, kept)`: the pruned channel of lowest score, the kept one of highest.

    Where nothing was pruned, the channel that would have gone first.
    """
    layers = [layer for layer in scores if not np.asarray(plan.keep[layer]).all()]
    layer = [*layers, *scores][0]
    keep, values = np.asarray(plan.keep[layer]), np.asarray(scores[layer])
    gone = np.where(keep, np.inf, values) if layers else values
    return layer, int(np.argmin(gone)), int(np.argmax(np.where(keep, values, -np.inf)))


def channel_maps(model: Model, weights: Weights, inputs: Any, layer: str) -> np.ndarray:
    """A layer's activations on inputs as stored, float32 `[N, F, C]`."""
    size = num_channels(weights.params, {layer: model.config.channel_graph[layer]})[layer]

    @jax.jit
    def activations(params, batch_stats, inputs):
        inputs = inputs if model.preprocess is None else model.preprocess(inputs)
        return model.apply(params, batch_stats, inputs)[1][layer]

    maps = np.asarray(activations(weights.params, weights.batch_stats, inputs))
    maps = maps.reshape(len(maps), -1, size, maps.shape[-1] // size)
    return np.swapaxes(maps, 2, 3).reshape(len(maps), -1, size)


def _some_of_each_group(data: Dataset, count: int) -> np.ndarray:
    """The first validation rows of every group."""
    val = data.splits["val"]
    return np.concatenate([val[data.group[val] == g][:count] for g in range(data.num_groups)])


def pruning_sentence(by_row: Mapping[str, Any]) -> str:
    """What came out: what every row does to eodd, and its accuracy and macro F1 in points."""
    base, told = by_row["baseline"], []
    for row in list(by_row)[1:]:
        result, interval = by_row[row], by_row[row]["ci95_vs_baseline"]["eodd"]
        verdict = moved(interval)
        change = "" if "compared" in verdict else ", change {:+.3f} to {:+.3f}".format(*interval)
        points = ", ".join(
            f"{name} {100 * (result[name] - base[name]):+.1f}" for name in ("accuracy", "macro_f1")
        )
        told.append(f"{row}: eodd {verdict} ({result['eodd']:.3f}{change}), {points} points")
    beside = [
        "{} {:+.3f} ({:+.3f} to {:+.3f})".format(other, *gain["eodd"])
        for other, gain in by_row["pruned"].get("gain_over", {}).items()
        if other != "baseline"
    ]
    paired = f" Pruned minus others, paired: {'; '.join(beside)}." if beside else ""
    return (
        f"Against the baseline's eodd of {base['eodd']:.3f} on test: {'; '.join(told)}. Changes "
        f"are 95 % intervals.{paired}"
    )
