"""Methods with each other: every sampler with every loss and every part that trains."""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from fairjax.compare.methods import PROGRAMS, Program
from fairjax.compare.setting import Setting, Trained

FACTORS: Mapping[str, tuple[str, ...]] = {
    "sampler": (
        *("plain", "fairbatch", "fairbatch@rate", "group_dro", "group_cvar", "reweighted"),
        *("class_balanced", "group_balanced"),
    ),
    "loss": ("", "focal", "cvar", "logit_adjusted"),
    "part": ("", "norm_only", "lora"),
}
"""What methods are made of; the first of each is that of plain training."""
THRESHOLDS: Mapping[str, tuple[str, ...]] = {"after": ("", "thresholds")}
Make = Callable[[Setting, Mapping[str, Trained]], Program]


def cross_methods(methods: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Factors and their levels: those of the methods, and what plain training has.

    Raises:
      ValueError: a method that is none of `FACTORS`, or fewer than two factors.

    >>> cross_methods(["group_dro", "focal"])
    {'sampler': ('plain', 'group_dro'), 'loss': ('', 'focal')}
    """
    known = [name for levels in FACTORS.values() for name in levels if name]
    if unknown := [name for name in methods if name not in known]:
        raise ValueError(f"crossed are {', '.join(known)}; not {', '.join(unknown)}")
    found = {
        factor: (levels[0], *(name for name in dict.fromkeys(methods) if name in levels[1:]))
        for factor, levels in FACTORS.items()
    }
    found = {factor: levels for factor, levels in found.items() if len(levels) > 1}
    if len(found) < 2:
        raise ValueError(f"crossed are two factors of {', '.join(FACTORS)}, got {list(methods)}")
    return found


def combinations(factors: Mapping[str, Sequence[str]]) -> list[str]:
    """All names of `train_methods`, plain training first.

    >>> combinations({"sampler": ("plain", "group_dro"), "loss": ("", "focal")})
    ['plain', 'focal', 'group_dro', 'group_dro+focal']
    """
    return [_name(levels) for levels in itertools.product(*factors.values())]


def _name(levels: Sequence[str]) -> str:
    return "+".join(level for level in levels if level not in ("", "plain")) or "plain"


def is_combination(name: str) -> bool:
    """Whether `train_methods` can make a method of several: at most one of each factor, in order.

    >>> is_combination("group_dro+focal"), is_combination("focal+group_dro")
    (True, False)
    """
    parts = name.split("+")
    places = [[p in levels[1:] for levels in FACTORS.values()] for p in parts]
    order = [place.index(True) for place in places if any(place)]
    return 1 < len(parts) == len(order) and order == sorted(set(order))


def combined_programs(wanted: Sequence[str]) -> Iterator[tuple[tuple[str, ...], Make]]:
    """Programs of combinations, those that differ only in the numbers of a sampler together."""
    by_program: dict[tuple, list[str]] = {}
    for name in wanted:
        sampler, loss, part = (
            next((each for each in name.split("+") if each in levels[1:]), levels[0])
            for levels in FACTORS.values()
        )
        of_sampler = next(names for names in PROGRAMS if sampler in names)
        by_program.setdefault((of_sampler, loss, part), []).append(name)
    for key, names in by_program.items():
        yield tuple(names), functools.partial(_combine, key, names)


def _combine(key: tuple, names: Sequence[str], setting: Setting, found) -> Program:
    of_sampler, loss, part = key
    program = PROGRAMS[of_sampler](setting, found)
    choices = {
        name: program.choices[next((p for p in name.split("+") if p in of_sampler), "plain")]
        for name in names
    }
    step = PROGRAMS[(loss,)](setting, found).step if loss else {}
    space = PROGRAMS[(part,)](setting, found).space if part else None
    return program._replace(choices=choices, step=step, space=space)


def effects(rows: Sequence[str]) -> dict[str, np.ndarray]:
    """Main effects and pairs as weights of rows, for `RateComparison.contrast`.

    A main effect is what a level changes against the first of its factor, the mean over all levels
    of the others. A pair is what both change together beyond the sum of what each does alone.

    Args:
      rows: of `compare_methods` with all `combinations`; `plain@best` stands for plain training,
        and rows `+thresholds` are a factor.

    Returns:
      "group_dro" or "group_dro x focal" -> float64 `[R]`, main effects first; none where a
      combination is missing, for means over the others would not be of alike.

    >>> rows = ["plain", "plain@best", "focal", "group_dro", "group_dro+focal"]
    >>> {name: weights.tolist() for name, weights in effects(rows).items()}["group_dro x focal"]
    [0.0, 1.0, -1.0, -1.0, 1.0]
    """
    parts = list(dict.fromkeys(part for row in rows for part in row.split("+")))
    factors = {
        factor: (levels[0], *(part for part in parts if part in levels[1:]))
        for factor, levels in {**FACTORS, **THRESHOLDS}.items()
    }
    factors = {factor: levels for factor, levels in factors.items() if len(levels) > 1}
    grid = np.empty([len(levels) for levels in factors.values()], int)
    for place, levels in zip(
        np.ndindex(grid.shape), itertools.product(*factors.values()), strict=True
    ):
        name = _name([level for level in levels if level != "thresholds"])
        name = "plain@best" if name == "plain" else name
        name += "+thresholds" * ("thresholds" in levels)
        if name not in rows:
            return {}
        grid[place] = list(rows).index(name)

    def weights(**signs: np.ndarray) -> np.ndarray:
        """Of all rows, from a weight for every level of some factors."""
        each = [
            signs.get(factor, np.full(len(levels), 1 / len(levels)))
            for factor, levels in factors.items()
        ]
        found = np.zeros(len(rows))
        found[grid] = functools.reduce(np.multiply.outer, each)
        return found

    change = lambda levels, i: np.eye(len(levels))[i] - np.eye(len(levels))[0]
    single = {
        (factor, level): change(levels, i)
        for factor, levels in factors.items()
        for i, level in enumerate(levels)
        if i
    }
    told = {level: weights(**{factor: sign}) for (factor, level), sign in single.items()}
    for (one, a), (two, b) in itertools.combinations(single, 2):
        if one != two:
            told[f"{a} x {b}"] = weights(**{one: single[one, a], two: single[two, b]})
    return told
