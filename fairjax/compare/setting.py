"""What the methods of a comparison share, and what each of them leaves behind."""

import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Integer

from fairjax.data import Dataset, Splits
from fairjax.metrics.rate_comparison import rates_of_preds
from fairjax.models import Model, Weights
from fairjax.thresholds import CRITERIA
from fairjax.train import Recipe, logits_of_rows, predict

NUM_STAGES = 10  # that a training is cut into at most: the epochs that selection chooses among
Criterion = Literal["equalized_odds", "equal_opportunity", "demographic_parity"]


class Strengths(NamedTuple):
    """The numbers of the methods."""

    fairbatch_step: float = 0.01
    """share of a label that FairBatch moves at an update"""
    rate_step: float = 0.04
    """the same by measured rates, whose steps shrink"""
    dro_step: float = 0.01
    upweight: float = 6.0
    """how often Just Train Twice repeats what a first training gets wrong"""
    gamma: float = 2.0
    """of the focal loss"""
    worst_share: float = 0.5
    """of rows (`group_cvar`) or of a batch (`cvar`), whose mean loss is trained on"""
    tau: float = 1.0
    """of logit adjustment"""


class Setting(NamedTuple):
    """What all methods of a table share; a run is a split and a seed, F * S of them."""

    data: Dataset
    """Two classes, at least two groups."""
    splits: Splits
    """F of them, rows of the data set, stratified so that they are of equal sizes."""
    num_seeds: int
    """S starts and orders of batches on every split."""
    model: Model
    recipe: Recipe
    """The samplers and losses are those of the methods."""
    criterion: Criterion = "equalized_odds"
    """What FairBatch and thresholds are after."""
    strengths: Strengths = Strengths()
    weights: Weights | None = None
    """What all runs start from, but for their classifiers; drawn by `model.init` if None. With
    them FairBatch moves its shares every ten batches, by these; else before every epoch, by a full
    pass."""
    start_seed: int = 0
    batch_seed: int = 0

    @property
    def split_of_run(self) -> np.ndarray:
        """Int `[F * S]`."""
        return np.repeat(np.arange(len(self.splits.train)), self.num_seeds)

    @property
    def num_stages(self) -> int:
        """E: the most of at most ten that divide the epochs."""
        num_epochs = self.recipe.num_epochs
        return max(count for count in range(1, NUM_STAGES + 1) if num_epochs % count == 0)

    def arguments(self) -> dict[str, Any]:
        """Of every sampler."""
        data = self.data
        ids = {"labels": data.labels, "group": data.group, "batch_size": self.recipe.batch_size}
        return {**ids, "num_classes": data.num_classes, "num_groups": data.num_groups}

    def rates(
        self, preds: Integer[np.ndarray, "*axes n"], rows: Integer[np.ndarray, " n"]
    ) -> dict[str, np.ndarray]:
        """Metrics `[...]` of predictions for some rows; see `rates_of_preds`."""
        data = self.data
        ids = {"labels": data.labels[rows], "group": data.group[rows]}
        return rates_of_preds(preds, **ids, num_groups=data.num_groups)

    def logits(self, trained: "Trained", rows: Integer[np.ndarray, "P n"]) -> np.ndarray:
        """Of runs `[P, ...]`, each on rows of its own; float32 `[P, n, K]`."""
        one = lambda tree: jax.tree.map(lambda leaf: leaf[None], tree)
        return self.logits_of_all(one(trained.params), one(trained.batch_stats), rows)[0]

    def logits_of_all(
        self, params: Any, batch_stats: Any, rows: Integer[np.ndarray, "P n"]
    ) -> np.ndarray:
        """Of Q networks of every run, leaves `[Q, P, ...]`, on its rows; float32 `[Q, P, n, K]`."""
        inputs = jnp.asarray(self.data.inputs)
        if self.weights is None:  # small ones: the rows of a table are read once for all
            return np.asarray(_logits_of_tables(self.model, params, batch_stats, inputs, rows))
        found = []
        for q in range(len(jax.tree.leaves(params)[0])):
            own = jax.tree.map(lambda leaf, q=q: leaf[q], [params, batch_stats])
            found.append(logits_of_rows(self.model, own[0], own[1], inputs, rows))
        return np.stack(found)


@functools.partial(jax.jit, static_argnums=0)
def _logits_of_tables(model: Model, params, batch_stats, inputs, rows):
    def of_run(run):
        networks, own = run
        one = lambda network: predict(model, network[0], network[1], inputs, rows=own)
        return jax.vmap(one)(networks)

    networks = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), (params, batch_stats))
    return jnp.swapaxes(jax.lax.map(of_run, (networks, rows)), 0, 1)


class Trained(NamedTuple):
    """One method's runs at the ends of E stages of its training, on the host."""

    params: Any
    """Leaves `[E, F * S, ...]`, of whole networks."""
    batch_stats: Any
    val: np.ndarray
    """Logits of the validation rows of each run's split, float32 `[E, F * S, m, K]`."""

    def at(self, stage: Integer[np.ndarray, " R"]) -> "Trained":
        """Every run at a stage of its own, `[F * S]`; leaves `[F * S, ...]`.

        Raises:
          ValueError: validation logits there are not finite, which would count as class 0.
        """
        of_run = np.arange(len(stage))
        if lost := int((~np.isfinite(self.val[stage, of_run]).all((-2, -1))).sum()):
            raise ValueError(
                f"{lost} of {len(stage)} runs predict what is not finite: training diverged, try a "
                "lower learning rate or strength"
            )
        pick = lambda leaf: np.asarray(leaf)[stage, of_run]
        return Trained(*jax.tree.map(pick, tuple(self)))

    def at_stage(self, number: int) -> "Trained":
        """All runs at one stage, 0 the first and -1 the last."""
        return self.at(np.full(self.val.shape[1], number))


def check_setting(setting: Setting) -> None:
    """Refuse what the methods cannot be compared on.

    Raises:
      ValueError: other than two classes or fewer than two groups, an unknown criterion, no seeds,
        a recipe with what methods decide, or a split that tests on rows that it trains or selects
        on.
    """
    data = setting.data
    if data.num_classes != 2 or data.num_groups < 2:
        raise ValueError(
            f"{data.name} has {data.num_classes} classes and {data.num_groups} groups; "
            "compared are two classes and at least two groups"
        )
    if setting.criterion not in CRITERIA or setting.criterion not in get_args(Criterion):
        known = ", ".join(get_args(Criterion))
        raise ValueError(f"criterion must be one of {known}; got {setting.criterion!r}")
    if setting.num_seeds < 1:
        raise ValueError(f"num_seeds must be at least 1, got {setting.num_seeds}")
    for name in ("sampler", "label_smoothing", "class_weights", "ema_decay"):
        value, default = getattr(setting.recipe, name), getattr(Recipe(), name)
        if value != default:
            raise ValueError(
                f"the recipe's {name} must be {default!r} where methods are compared, got {value!r}"
            )
    for number, (train, val, test) in enumerate(zip(*setting.splits, strict=True)):
        common = len(np.intersect1d(test, np.concatenate([train, val])))
        if common:
            raise ValueError(f"split {number} tests on {common} rows that it trains or selects on")


def make_recipe(num_steps: int, num_rows: int, batch_size: int, learning_rate: float) -> Recipe:
    """For tables: Adam at a constant rate for at least so many steps, in ten equal stages.

    Args:
      num_steps: of every run.
      num_rows: training rows of a split.
      batch_size: at most `num_rows`.
      learning_rate: positive.

    >>> make_recipe(2_700, num_rows=1_000, batch_size=100, learning_rate=0.005).num_epochs
    270
    """
    per_stage = -(-num_steps // (NUM_STAGES * max(1, num_rows // batch_size)))
    return Recipe(
        num_epochs=NUM_STAGES * per_stage,
        batch_size=batch_size,
        learning_rate=learning_rate,
        schedule="constant",
    )


def known_methods(wanted: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """The wanted methods, each once, plain training first.

    Raises:
      ValueError: an unknown method.
    """
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(f"methods must be among {', '.join(known)}; got {', '.join(unknown)}")
    return tuple(dict.fromkeys(("plain", *wanted)))
