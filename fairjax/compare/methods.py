"""The methods that are trained on one setting; those that can do so share a program.

A method is a sampler, a loss or what of the network trains: one more function that makes a
`Program`, never a second training loop. What is trained afterwards is in `retrain.py`.
"""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np

from fairjax.compare.setting import Setting, Trained
from fairjax.fairbatch import CRITERIA, SIGNALS, fairbatch
from fairjax.losses import focal_loss, log_priors
from fairjax.sampling import (
    Balance,
    BatchSampler,
    balance_weights,
    group_cvar,
    group_dro,
    reweighted,
    shuffled,
    weighted,
)

Method = Literal[
    "plain",
    "class_balanced",
    "group_balanced",
    "reweighted",
    "group_dro",
    "group_cvar",
    "jtt",
    "focal",
    "cvar",
    "logit_adjusted",
    "dfr",
    "fairbatch",
    "fairbatch@rate",
]
Adapting = Literal["linear_probe", "norm_only", "lora"]
METHODS: tuple[Method, ...] = get_args(Method)
ADAPTING: tuple[Adapting, ...] = get_args(Adapting)
"""For networks that start from given weights."""
UPDATE_EVERY = 10  # batches by which FairBatch moves where a full pass is dear


class Program(NamedTuple):
    """Methods that one compiled program trains."""

    sampler: BatchSampler
    choices: Mapping[str, Mapping[str, Any]]
    """Method -> arguments of `sampler.init`, a number or an array `[F * S, ...]` each."""
    full_pass: bool = False
    """Whether the sampler adapts before every epoch by all training rows; else by its cadence."""
    step: Mapping[str, Any] = {}
    """Arguments of `train.make_step`."""
    steps: Mapping[str, Mapping[str, Any]] = {}
    """Instead, of methods that train on the same batches, each batch drawn once for all of them:
    method -> arguments of `train.make_step`; there is one choice."""
    weighed: tuple[str, ...] = ()
    """Those of `steps` that train on the sampler's weights of examples; to others all weigh 1."""
    space: str | None = None
    """What trains, see `fairtune.mask_space`; everything if None."""

    @property
    def methods(self) -> tuple[str, ...]:
        """What it trains."""
        return tuple(self.steps or self.choices)

    def only(self, names: Collection[str]) -> "Program":
        """The program of some of its methods."""
        kept = lambda each: {name: value for name, value in each.items() if name in names}
        if self.steps:
            return self._replace(steps=kept(self.steps))
        return self._replace(choices=kept(self.choices))


def watched(setting: Setting, _) -> Program:
    """plain, fairbatch: batches by what is measured while training."""
    numbers, criterion = setting.strengths, CRITERIA.index(setting.criterion)
    loss = {"criterion": criterion, "signal": SIGNALS.index("loss")}
    rate = {**loss, "signal": SIGNALS.index("rate"), "step_size": numbers.rate_step, "decay": 0.5}
    rows = {
        "plain": {**loss, "criterion": 0, "step_size": 1.0, "decay": 0.0},
        "fairbatch": {**loss, "step_size": numbers.fairbatch_step, "decay": 0.0},
        "fairbatch@rate": rate,
    }
    # of what starts from given weights a full pass is dear
    sampler = fairbatch(**setting.arguments())._replace(update_every=UPDATE_EVERY)
    return Program(sampler, rows, full_pass=setting.weights is None)


def by_worst_group(setting: Setting, _) -> Program:
    """group_dro: its weights move with every batch."""
    rows = {"group_dro": {"step_size": setting.strengths.dro_step}}
    return Program(group_dro(**setting.arguments()), rows)


def by_worst_share(setting: Setting, _) -> Program:
    """group_cvar: the cells that are worst off, of those that hold a share of the rows."""
    rows = {"group_cvar": {"worst_share": setting.strengths.worst_share}}
    return Program(group_cvar(**setting.arguments()), rows)


def by_loss(setting: Setting, _) -> Program:
    """reweighted: losses weigh as if label and group were independent."""
    return Program(reweighted(**setting.arguments()), {"reweighted": {}})


def by_draws(setting: Setting, found: Mapping[str, Trained]) -> Program:
    """class_balanced, group_balanced, jtt: rows are drawn with replacement, by weights."""
    data, train = setting.data, setting.splits.train
    rows: dict[str, dict[str, Any]] = {}
    balances: dict[str, Balance] = {"class_balanced": "classes", "group_balanced": "cells"}
    for name, over in balances.items():
        by_cell = np.stack([np.asarray(balance_weights(each, over)) for each in counts(setting)])
        of_split = by_cell[:, data.labels, data.group]
        rows[name] = {"example_weights": of_split[setting.split_of_run]}
    if "plain" in found:
        first = found["plain"].at_stage(0)
        own = train[setting.split_of_run]
        wrong = setting.logits(first, own).argmax(-1) != data.labels[own]
        times = np.ones((len(own), len(data.labels)), np.float32)
        np.put_along_axis(times, own, np.where(wrong, setting.strengths.upweight, 1), axis=1)
        rows["jtt"] = {"example_weights": times}
    return Program(weighted(**setting.arguments()), rows)


def by_step(name: str, setting: Setting, _) -> Program:
    """Plain batches, another loss of a batch."""
    numbers, step = setting.strengths, {}
    if name == "focal":
        step["loss_fn"] = functools.partial(focal_loss, gamma=numbers.gamma)
    elif name == "cvar":
        step["worst_share"] = numbers.worst_share
    else:  # splits are stratified, so that they share the priors
        step["log_prior"] = log_priors(counts(setting).sum(0), tau=numbers.tau)
    return Program(shuffled(**setting.arguments()), {name: {}}, step=step)


def _in_space(name: str, space: str, setting: Setting, _) -> Program:
    """Plain batches of a pre-trained network, of which a part trains."""
    if setting.weights is None:
        raise ValueError("needs a network that was trained before")
    return Program(shuffled(**setting.arguments()), {name: {}}, space=space)


def on_same_batches(setting: Setting, _) -> Program:
    """Plain batches, which methods that differ only in their losses share: reading the rows of a
    table takes longer than a step of theirs."""
    losses = {name: by_step(name, setting, {}).step for name in ALIKE if name in LOSSES}
    steps = {name: losses.get(name, {}) for name in ALIKE}
    weighing = by_loss(setting, {})
    return Program(weighing.sampler, {"": {}}, steps=steps, weighed=weighing.methods)


LOSSES = ("focal", "cvar", "logit_adjusted")
ALIKE = ("plain", "reweighted", *LOSSES)
PROGRAMS: Mapping[tuple[str, ...], Callable[[Setting, Mapping[str, Trained]], Program]] = {
    ("plain", "fairbatch", "fairbatch@rate"): watched,
    ("group_dro",): by_worst_group,
    ("group_cvar",): by_worst_share,
    ("reweighted",): by_loss,
    ("class_balanced", "group_balanced", "jtt"): by_draws,
    **{(name,): functools.partial(by_step, name) for name in LOSSES},
    ("norm_only",): functools.partial(_in_space, "norm_only", "norm_all"),
    ("lora",): functools.partial(_in_space, "lora", "lora"),
}
"""Methods -> what makes their program, from the setting and what was trained so far."""


def programs(setting: Setting) -> Mapping[tuple[str, ...], Callable[..., Program]]:
    """`PROGRAMS`; for tables those of `ALIKE` are one."""
    if setting.weights is not None:
        return PROGRAMS
    others = {tuple(n for n in names if n not in ALIKE): make for names, make in PROGRAMS.items()}
    return {ALIKE: on_same_batches} | {names: make for names, make in others.items() if names}


def counts(setting: Setting) -> np.ndarray:
    """Training rows of every (label, group) cell of every split, int `[F, K, G]`."""
    data, train = setting.data, setting.splits.train
    found = np.zeros((len(train), data.num_classes, data.num_groups), int)
    for split, own in enumerate(train):
        np.add.at(found[split], (data.labels[own], data.group[own]), 1)
    return found


def choices_of_runs(program: Program, num_runs: int) -> dict[str, np.ndarray]:
    """Arguments of `sampler.init` for all methods and runs, leaves `[M * F * S, ...]`."""

    def of_runs(name: str) -> np.ndarray:
        each = [row[name] for row in program.choices.values()]
        shape = lambda value: (num_runs, *np.shape(value)[1:])
        return np.concatenate([np.broadcast_to(value, shape(value)) for value in each])

    return {name: of_runs(name) for name in next(iter(program.choices.values()))}


def by_method(together: Any, names: Sequence[str]) -> dict[str, Any]:
    """Leaves `[E, M * F * S, ...]` as M trees of leaves `[E, F * S, ...]`."""
    split = lambda leaf: leaf.reshape(len(leaf), len(names), -1, *leaf.shape[2:])
    apart = jax.tree.map(split, together)
    return {name: jax.tree.map(lambda leaf, i=i: leaf[:, i], apart) for i, name in enumerate(names)}
