"""How well a search chooses: the true value that is lost by each way to judge trials.

    python -m experiments.benchmark regret

Every search draws lesions, masks and learning rates of its own and may train as many images as 12
trials on the single split take. Regret is the true worst-group AUC of the best of these 12 minus
that of the trial that is chosen; the truth of a trial is its value after training on the training
split, on 6,000 fresh images, half of them of the rarer group. One way has 1,570 images to validate
on instead of 300. Means over searches, and the 95 % t-interval of the paired difference to the
single split: 24 searches of the ways that train each trial once, 8 of those that train folds.
About 45 minutes on two CPU cores.
"""

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from scipy import stats

from experiments.cli import phase
from experiments.timing import Paired, claim
from fairjax import fairtune
from fairjax.data import Dataset, balance_groups, lesions_dataset
from fairjax.data.augment import compose, random_flip
from fairjax.fairtune import COMPLETE, Candidates, Found, Trials
from fairjax.fairtune.rungs import goes_on, racing
from fairjax.fairtune.trials import FAILED, STOPPED
from fairjax.models import load_pretrained
from fairjax.train import Recipe

SINGLE = "single split"
NUM_FOLDS = 3
LEARNING_RATES = (1e-4, 1e-2)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is searched."""

    searches: int = 24
    folded: int = 8
    """of them, those that train folds, too"""
    trials: int = 12
    epochs: int = 5
    train: int = 400
    val: int = 1200
    """images drawn, of which as many of light skin are kept as there are of dark"""
    more: int = 6_400
    """likewise, of the way that validates on more images"""
    fresh: int = 26_000
    """likewise, of the truth"""
    image_size: int = 32


QUICK = Sizes(
    searches=3, folded=2, trials=6, epochs=1, train=96, val=400, more=800, fresh=800, image_size=16
)


def claims(quick: bool = False) -> Iterator[dict[str, Any]]:
    """A row for every way to judge; `theirs` is the single split."""
    sizes, seconds = QUICK if quick else Sizes(), 0.0
    fresh, more = (_fresh(sizes, count) for count in (sizes.fresh, sizes.more))
    regrets: dict[str, list[float]] = {}
    for number in range(sizes.searches):
        phase(f"search {number + 1} of {sizes.searches}")
        began = time.perf_counter()
        for way, regret in one_search(sizes, fresh, more, number).items():
            regrets.setdefault(way, []).append(regret)
        seconds += time.perf_counter() - began
    for way, values in regrets.items():
        single = np.array(regrets[SINGLE])[: len(values)]
        change = np.array(values) - single
        low, high = _interval(change)
        quality = {
            "ours": {"regret": float(np.mean(values)), "change": float(change.mean())},
            "theirs": {"regret": float(single.mean())},
        }
        quality["ours"] |= {"change_low": low, "change_high": high}
        each = seconds / sizes.searches
        yield claim(
            f"regret: {way}",
            Paired([each], [each]),
            quality=quality,
            notes=f"{len(values)} searches at equal compute; seconds are of all ways together",
        )


def one_search(sizes: Sizes, fresh: Dataset, more: Dataset, number: int) -> dict[str, float]:
    """The regret of every way to judge the same candidates on the same images."""
    data = _labelled(sizes, number)
    model, weights = load_pretrained(
        "vit_micro", 2, jax.random.key(number), image_size=sizes.image_size
    )
    space = fairtune.mask_space(weights.params, "norm_attn_mlp", head=model.head)
    names = ("worst_group_auc", "worst_group_auc@bound")
    objectives = [fairtune.objective(name, num_groups=2) for name in names]
    proposed = fairtune.random_search(space, objectives[:1], learning_rates=LEARNING_RATES)
    candidates = proposed.ask(proposed.init(number), sizes.trials)[0]
    recipe = Recipe(
        num_epochs=sizes.epochs,
        warmup_epochs=0.5,
        weight_decay=0.01,
        augment=compose(random_flip(horizontal=0.5, vertical=0.5)),
    )

    def trained(data: Dataset, num_trials: int, num_folds: int = 1, bound: bool = False) -> Found:
        chosen = names if bound else names[:1]
        return fairtune.search_masks(
            model,
            weights,
            data,
            recipe,
            key=jax.random.key(number),
            space=space,
            objective=chosen,
            search=fairtune.replay(space, objectives[: len(chosen)], Candidates(*candidates)),
            num_trials=num_trials,
            num_folds=num_folds,
            stopping="none",
            chunk_size=1,
        )

    truth = trained(_judged_on(data, fresh), sizes.trials).trials.values[:, 0]
    single = trained(data, sizes.trials, bound=True)
    richer = trained(_judged_on(data, more), sizes.trials)
    chosen = {
        SINGLE: single.trials.values[:, 0].argmax(),
        "lower bound": single.trials.values[:, 1].argmax(),
        "posterior mean": single.best_rows(1)[0],
        "more validation images": richer.trials.values[:, 0].argmax(),
    }
    regrets = {way: float(truth.max() - truth[row]) for way, row in chosen.items()}
    regrets["blindly"] = float(truth.max() - truth.mean())
    if number >= sizes.folded:
        return regrets
    folded = trained(data, sizes.trials, NUM_FOLDS)
    pool = len(data.splits["train"]) + len(data.splits["val"])
    cost = {folds: (pool - pool // folds) / len(data.splits["train"]) for folds in (3, 5)}
    # trainings on folds see more images each, so that fewer of them are affordable
    of_five = trained(data, max(1, int(sizes.trials / 5 / cost[5])), 5)
    raced = _race(folded.trials, sizes.trials / cost[NUM_FOLDS])
    whole = int(sizes.trials / NUM_FOLDS / cost[NUM_FOLDS])
    chosen = {
        f"{NUM_FOLDS} folds": folded.trials.values[: max(1, whole), 0].argmax(),
        "5 folds": of_five.trials.values[:, 0].argmax(),
        "racing": np.where(raced.status == COMPLETE, raced.values[:, 0], -np.inf).argmax(),
        "racing, posterior mean": Found(space, single.objectives[:1], raced).best_rows(1)[0],
    }
    return regrets | {way: float(truth.max() - truth[row]) for way, row in chosen.items()}


def _race(trials: Trials, budget: float) -> Trials:
    """What a race of the same trials would have come to, from trainings on all of their folds.

    Trials enter one after another while the budget of trainings lasts.
    """
    rungs, num_folds = racing(int(trials.epochs[0]), NUM_FOLDS), NUM_FOLDS
    raced = trials._replace(
        status=np.full_like(trials.status, FAILED),
        replicates=np.full_like(trials.replicates, np.nan),
        drawn=np.full_like(trials.drawn, np.nan),
        values=np.full_like(trials.values, np.nan),
        num_runs=np.array(1, np.int32),
    )
    spent = 0
    for row in range(len(trials.status)):
        if spent + num_folds > budget:
            break
        for fold in range(num_folds):
            raced.replicates[row, fold] = trials.replicates[row, fold]
            raced.drawn[row, fold] = trials.drawn[row, fold]
            raced.values[row, 0] = raced.replicates[row, : fold + 1].mean()
            raced.status[row] = COMPLETE
            spent += 1
            if fold + 1 < num_folds and not goes_on(raced, rungs, row, fold):
                raced.status[row] = STOPPED
                break
    return raced


def _fresh(sizes: Sizes, count: int) -> Dataset:
    """So many images that no search has, almost all in "val", which is balanced."""
    key, split = jax.random.key(10_000 + count), (0.01, 0.98, 0.01)
    return balance_groups(lesions_dataset(key, count, sizes.image_size, split=split), "val")


def _labelled(sizes: Sizes, number: int) -> Dataset:
    """Images of a search, "val" balanced; a lesion of them is left to "test"."""
    total = sizes.train + sizes.val + 4
    split = (sizes.train / total, sizes.val / total, 4 / total)
    drawn = lesions_dataset(jax.random.key(number), total, sizes.image_size, split=split)
    return balance_groups(drawn, "val")


def _judged_on(data: Dataset, fresh: Dataset) -> Dataset:
    """The training split of one set, and the images of another to validate on."""
    train, val = data.examples("train"), fresh.examples("val")
    sizes = np.array([len(train.labels), len(val.labels)])
    rows = np.arange(sizes.sum(), dtype=np.int32)
    none = np.zeros(0, np.int32)
    return dataclasses.replace(
        data,
        **{
            field: np.concatenate([getattr(part, field) for part in (train, val)])
            for field in ("inputs", "labels", "group")
        },
        splits={"train": rows[: sizes[0]], "val": rows[sizes[0] :], "test": none},
        ids=None,
    )


def _interval(change: np.ndarray) -> tuple[float, float]:
    """Of the mean, 95 %, by Student's t."""
    half = stats.t.ppf(0.975, len(change) - 1) * change.std(ddof=1) / np.sqrt(len(change))
    return float(change.mean() - half), float(change.mean() + half)
