"""The page of `experiments.pruning`: answer, sizes and figures."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import timing
from experiments.pruning_stages import ROWS, Network, Task
from fairjax import report
from fairjax.data.augment import eval_preprocess
from fairjax.models import Model


def one_sentence(by_row: Mapping[str, Any]) -> str:
    """What came out: relative changes against the baseline."""

    def change(row: str, name: str) -> str:
        before, after = by_row["baseline"][name], by_row[row][name]
        if before is None or after is None or not before > 0:
            return f"{name} undefined"
        return f"{name} {100 * (after / before - 1):+.1f} %"

    parts = [
        f"{row}: {', '.join(change(row, name) for name in ('eodd', 'accuracy', 'macro_f1'))}"
        for row in ROWS[1:]
    ]
    low, high = by_row["pruned"]["ci95_vs_baseline"]["eodd"]
    verdict = "holds 0" if low <= 0 <= high else "excludes 0"
    return (
        f"Relative to the baseline on test, {'; '.join(parts)}. The 95 % interval of the change "
        f"in eodd by pruning, {low:+.3f} to {high:+.3f}, {verdict}."
    )


def compare_sizes(model: Model, before: tuple[Any, Any], after: tuple[Any, Any]) -> dict[str, Any]:
    """Parameters and forward time of a network `(params, batch_stats)` before and after slicing."""
    size = model.config.image_size
    images = jnp.zeros((64, size, size, 3))
    forward = jax.jit(lambda network, images: model.apply(*network, images)[0])
    times = timing.paired(
        lambda: forward(after, images), lambda: forward(before, images), repeats=5
    )
    after_s, before_s = (float(np.median(side)) for side in times)
    weights = [sum(leaf.size for leaf in jax.tree.leaves(params)) for params, _ in (before, after)]
    return {"num_parameters": weights, "forward_s": [before_s, after_s]}


def size_table(sizes: Mapping[str, Any]) -> list[list[str]]:
    """Rows of what, before and after."""
    return [
        ["parameters", *(f"{number:,}" for number in sizes["num_parameters"])],
        ["ms per 64 images", *(f"{1e3 * seconds:.1f}" for seconds in sizes["forward_s"])],
    ]


def figures(
    task: Task,
    history: Sequence[Mapping[str, Any]],
    base: Network,
    final: Network,
    sizes: Mapping[str, Any],
) -> dict[str, str]:
    """Heading -> SVG; networks are those of the last seed."""
    score = task.config.scores[0]
    arguments = (base.params, base.batch_stats, task.data["train"], jax.random.key(0))
    scores = task.score(*arguments, score).group
    return {
        "Validation accuracy against disparity, round by round": draw_path(task, history),
        f"Scores ({score}) of the baseline's channels, last seed": draw_scores(scores, final),
        "Size and latency, last seed": draw_sizes(sizes),
        "What a channel of low and one of high score see, last seed": draw_channels(
            task, base, final, *example_channels(scores, final)
        ),
    }


def draw_path(task: Task, history: Sequence[Mapping[str, Any]]) -> str:
    """One line per seed and row, from the baseline through the rounds that were taken."""
    x_name, y_name = task.config.disparity, task.config.accuracy

    def draw(canvas):
        axes = canvas.subplots(1, 2, sharex=True, sharey=True, squeeze=False)[0]
        for axis, row in zip(axes, ("pruned", "random_best"), strict=True):
            for seed in dict.fromkeys(r["seed"] for r in history):
                own = [r for r in history if r["seed"] == seed]
                path = [
                    (r["val"][x_name], r["val"][y_name])
                    for r in own
                    if r["row"] == "baseline" or (r["row"] == row and r["taken"])
                ]
                points = np.array(path, np.float64)
                (line,) = axis.plot(*points.T, marker=".", linewidth=1.2, label=f"seed {seed}")
                axis.plot(*points[0], marker="s", color=line.get_color())
            axis.set(title=f"{row} (square: baseline)", xlabel=x_name, ylabel=y_name)
            axis.legend(fontsize=7)

    return report.figure(draw)


def draw_scores(scores: Mapping[str, jax.Array], final: Network) -> str:
    """Histogram of every layer's scores, split into kept and pruned."""

    def draw(canvas):
        axes = canvas.subplots(1, len(scores), squeeze=False)[0]
        for axis, (layer, values) in zip(axes, scores.items(), strict=True):
            keep = np.asarray(final.keep[layer])
            parts = [np.asarray(values)[keep], np.asarray(values)[~keep]]
            axis.hist(parts, bins=20, stacked=True, label=["kept", "pruned"])
            axis.set(title=layer, xlabel="score (low: tells groups apart)", ylabel="channels")
            axis.legend(fontsize=7)

    return report.figure(draw)


def draw_sizes(sizes: Mapping[str, Any]) -> str:
    """Bars before and after."""
    panels = {
        "parameters": sizes["num_parameters"],
        "ms per 64 images": [1e3 * seconds for seconds in sizes["forward_s"]],
    }

    def draw(canvas):
        axes = canvas.subplots(1, len(panels), squeeze=False)[0]
        for axis, (title, values) in zip(axes, panels.items(), strict=True):
            bars = axis.bar(["baseline", "pruned"], values, width=0.5)
            axis.bar_label(bars, fmt="{:,.4g}", fontsize=8)
            axis.set_title(title, fontsize=10)
            axis.margins(y=0.15)

    return report.figure(draw, size=(6.0, 2.6))


def example_channels(scores: Mapping[str, jax.Array], final: Network) -> tuple[str, int, int]:
    """`(layer, pruned, kept)`: the pruned channel of lowest score, the kept one of highest.

    Where nothing was pruned, the channel that would have gone first.
    """
    layers = [layer for layer in scores if not np.asarray(final.keep[layer]).all()]
    layer = [*layers, *scores][0]
    keep, values = np.asarray(final.keep[layer]), np.asarray(scores[layer])
    gone = np.where(keep, np.inf, values) if layers else values
    return layer, int(np.argmin(gone)), int(np.argmax(np.where(keep, values, -np.inf)))


def draw_channels(
    task: Task, base: Network, final: Network, layer: str, low: int, high: int
) -> str:
    """Principal components of the baseline's maps of two channels, coloured by group."""
    from sklearn.decomposition import PCA

    val, dataset, config = task.data["val"], task.dataset, task.model.config
    rows = np.concatenate(
        [np.flatnonzero(np.asarray(val.group) == g)[:150] for g in range(dataset.num_groups)]
    )
    preprocess = eval_preprocess(config.image_size, config.mean, config.std)
    group = np.asarray(val.group)[rows]
    images = preprocess(val.inputs[rows])
    maps = jax.jit(lambda p, s, x: task.model.apply(p, s, x)[1][layer])(
        base.params, base.batch_stats, images
    )
    size = len(base.keep[layer])
    maps = np.asarray(maps).reshape(len(rows), -1, size, maps.shape[-1] // size)

    def draw(canvas):
        axes = canvas.subplots(1, 2, squeeze=False)[0]
        for axis, channel in zip(axes, (low, high), strict=True):
            vectors = maps[:, :, channel].reshape(len(rows), -1)
            places = PCA(2, random_state=0).fit_transform(vectors)
            for g, group_name in enumerate(dataset.group_names):
                axis.scatter(*places[group == g].T, s=6, alpha=0.6, label=group_name)
            fate = "kept" if final.keep[layer][channel] else "pruned"
            axis.set_title(f"channel {channel} of {layer}, {fate}", fontsize=10)
            axis.set(xlabel="first component", ylabel="second component")
            axis.legend(fontsize=7)

    return report.figure(draw)
