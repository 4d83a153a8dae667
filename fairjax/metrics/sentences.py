"""What a table of metrics cannot show, in sentences: what is undefined, what rests on little."""

from collections.abc import Mapping, Sequence

import numpy as np

from fairjax.metrics.counts import Array

FEW = 20  # examples of a cell: a rate of fewer moves by more than 5 points with each
_NAMED = 6  # cells of one sentence
_NO_REASON = "the logits hold nan or inf"


def undefined(metrics: Mapping[str, Array], group_names: Sequence[str]) -> list[str]:
    """Say in plain sentences which metrics are undefined or leave a group out, and why.

    Args:
      metrics: what `fairness_metrics` returned for one model, on the host or the device.
      group_names: G names.

    Returns:
      One sentence per undefined metric and per group that a defined gap leaves out; empty if all
      is well.

    Raises:
      ValueError: the number of names is not G.
    """
    per_label = np.asarray(metrics["n_per_label"])
    if len(group_names) != len(per_label):
        raise ValueError(f"got {len(group_names)} group names for {len(per_label)} groups")
    sentences = []
    diverged = _diverged(metrics, group_names)
    for metric, value in metrics.items():
        value = np.asarray(value)
        lacks = {
            name: reason
            for name, cells in zip(group_names, per_label, strict=True)
            if (reason := _what_is_missing(metric, cells))
        }
        named = "; ".join(f"group '{name}' has {reason}" for name, reason in lacks.items())
        if value.ndim == 0 and np.isnan(value):
            sentences.append(f"{metric} undefined: {diverged or named or _NO_REASON}")
        elif value.ndim == 0 and named and metric.endswith(("_difference", "_deviation", "_gap")):
            sentences.append(f"{metric} leaves out: {named}")
        elif value.ndim == 1:
            sentences += [
                f"{metric} of '{name}' undefined: {lacks.get(name) or diverged or _NO_REASON}"
                for name, entry in zip(group_names, value, strict=True)
                if np.isnan(entry)
            ]
    return sentences


def _diverged(metrics: Mapping[str, Array], group_names: Sequence[str]) -> str:
    """Which groups hold examples that make every metric undefined; "" if none does."""
    counts = np.asarray(metrics.get("n_diverged", []))
    first = np.asarray(metrics.get("first_diverged", np.full(len(counts), -1)))
    held = [
        f"{count:.0f} of '{name}'" + (f" (first: row {row:.0f})" if row >= 0 else "")
        for name, count, row in zip(group_names, counts, first, strict=False)
        if count > 0
    ]
    return f"the logits of {', '.join(held)} hold nan, inf or only -inf" if held else ""


def _what_is_missing(metric: str, cells: np.ndarray) -> str:
    """Why a group with `cells [K]` examples per label cannot define `metric`; "" if it can."""
    absent = np.flatnonzero(cells == 0)
    if len(absent) == len(cells):
        return "no examples"
    needs_labels = metric.startswith(("equal", "auc", "group_auc", "worst_group_auc"))
    if not needs_labels or not len(absent):
        return ""
    if len(cells) > 2:
        return f"no examples of {len(absent)} of {len(cells)} classes"
    if 1 in absent:
        return "no positives"
    return "" if metric.startswith("equal_opportunity") else "no negatives"


def small_cells(
    metrics: Mapping[str, Array], group_names: Sequence[str], label_names: Sequence[str] = ()
) -> list[str]:
    """Say which gaps and worst groups rest on a cell of fewer than `FEW` examples.

    Args:
      metrics: what `fairness_metrics` returned for one model, on the host or the device.
      group_names: G names.
      label_names: K names, used where K > 2; numbers if empty.

    Returns:
      At most one sentence for each kind of cell, naming all metrics that rest on it; empty cells
      are left to `undefined`.

    Raises:
      ValueError: the number of names is not G.

    >>> metrics = {"auc_gap": np.array(0.1), "n_per_label": np.array([[90.0, 12.0], [80.0, 70.0]])}
    >>> small_cells(metrics, ["dark", "light"])
    ["auc_gap rests on few examples: 12 positives of 'dark'"]
    """
    per_label = np.asarray(metrics["n_per_label"])
    if len(group_names) != len(per_label):
        raise ValueError(f"got {len(group_names)} group names for {len(per_label)} groups")
    num_classes = per_label.shape[1]
    kinds = {"examples": per_label.sum(1)[:, None]}
    if num_classes == 2:
        kinds |= {"positives": per_label[:, 1:], "negatives": per_label[:, :1]}
    else:
        kinds |= {"labels": per_label}
    sentences = []
    for kind, cells in kinds.items():
        resting = dict.fromkeys(
            name.removesuffix("_difference").removesuffix("_deviation")
            for name, value in metrics.items()
            if np.ndim(value) == 0 and kind in _rests_on(name, num_classes)
        )
        few = [
            f"{cells[g, k]:.0f} {_cell_name(kind, int(k), label_names)} of '{group_names[g]}'"
            for g, k in np.argwhere((cells > 0) & (cells < FEW))
        ]
        if resting and few:
            more = f" and {len(few) - _NAMED} more cells" if len(few) > _NAMED else ""
            verb = "rest" if len(resting) > 1 else "rests"
            named = f"{', '.join(few[:_NAMED])}{more}"
            sentences.append(f"{', '.join(resting)} {verb} on few examples: {named}")
    return sentences


def _rests_on(metric: str, num_classes: int) -> tuple[str, ...]:
    """The kinds of cells whose examples decide a gap or a worst group; () for other metrics."""
    if metric.startswith(("accuracy_gap", "worst_group_acc", "max_group", "demographic", "dp_")):
        return ("examples",)
    if not metric.startswith(("equal", "auc_gap", "worst_group_auc", "eopp", "eodd")):
        return ()
    if num_classes > 2:
        return ("labels",)
    return ("positives",) if metric.startswith("equal_opp") else ("positives", "negatives")


def _cell_name(kind: str, k: int, label_names: Sequence[str]) -> str:
    if kind != "labels":
        return kind
    return f"with label '{label_names[k]}'" if label_names else f"with label {k}"
