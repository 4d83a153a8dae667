"""Several sensitive attributes as one: every combination that occurs becomes a group."""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Intersections(NamedTuple):
    """Groups of combined attributes."""

    group: np.ndarray
    """int32 `[N]`, indices into `group_names`."""
    group_names: tuple[str, ...]
    """Such as `"Female & Black"`, in the order of the attributes' own names."""
    empty: tuple[str, ...]
    """Combinations without a single example; they are no groups."""


def intersect_groups(
    attributes: Mapping[str, tuple[Sequence[str], np.ndarray]],
) -> Intersections:
    """Combine sensitive attributes into one group per combination of values that occurs.

    Args:
      attributes: for each attribute, such as "sex", the names of its values and the ids into them,
        int `[N]`.

    Returns:
      Intersections, with combinations that nobody belongs to left out and named. On the host.

    Raises:
      ValueError: no attribute is given, lengths differ, or an id has no name.
    """
    if not attributes:
        raise ValueError("intersect_groups needs at least one attribute")
    lengths = {attribute: len(ids) for attribute, (_, ids) in attributes.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"attributes need one id per example each, got lengths {lengths}")
    for attribute, (names, ids) in attributes.items():
        ids = np.asarray(ids)
        outside = np.flatnonzero((ids < 0) | (ids >= len(names)))
        if len(outside):
            raise ValueError(
                f"attribute {attribute!r}, row {outside[0]}: id {ids[outside[0]]} has no name, "
                f"accepted are 0 to {len(names) - 1} {tuple(names)}"
            )
    all_names = [names for names, _ in attributes.values()]
    combinations = [" & ".join(names) for names in itertools.product(*all_names)]
    number = np.ravel_multi_index(
        [np.asarray(ids) for _, ids in attributes.values()], [len(names) for names in all_names]
    )
    present, group = np.unique(number, return_inverse=True)
    return Intersections(
        group.astype(np.int32),
        tuple(combinations[i] for i in present),
        tuple(name for i, name in enumerate(combinations) if i not in set(present.tolist())),
    )
