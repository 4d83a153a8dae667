"""FairTune beside PyTorch: a search from JPEG files to the winning mask, and what refits cost.

    python -m experiments.benchmark fairtune

Both sides search masks of `norm_attn_mlp` (the authors' `auto_peft1`) for ViT-Ti/16 at 64 px from
equal weights and the same files, and validate on 600 images of either group. The searches take
turns, one pair per seed. Sixteen minutes on two idle CPU cores (the sum of its parts);
`claims(num_timed=32)` from Python times all of the twin's trials instead of scaling up two, which
takes an hour.
"""

import dataclasses
import functools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks._fairtune_start import FULL, QUICK, Start, make_start
from experiments.cli import phase
from experiments.timing import Paired, claim, compile_seconds, paired, seconds, step_flops
from fairjax.data import Dataset, Examples
from fairjax.data.augment import compose, random_flip, random_resized_crop
from fairjax.fairtune import (
    Candidates,
    Trials,
    best_trial,
    mask_search,
    mask_space,
    objective,
    replay,
)
from fairjax.models import Model, Weights, kernel_gate, save_weights
from fairjax.optimizers import make_optimizer
from fairjax.train import (
    fit,
    fit_population,
    init_fit,
    init_population,
    predict,
    replicate,
    start_train,
)
from fairjax.trees import unstack_blocks

LEARNING_RATES = (1e-5, 1e-3)


def claims(quick: bool = False, num_timed: int = 2, num_seeds: int = 2) -> Iterator[dict[str, Any]]:
    """All rows.

    Args:
      quick: a small network on small photographs, one pair.
      num_timed: trials of a whole search without early stopping that are timed and scaled up, at
        least 2, so that both of two cores train.
      num_seeds: searches with their own data order, masks and pair of timings; with early stopping
        the first.

    Raises:
      ValueError: `num_timed` below 2.
    """
    if quick:
        num_timed, num_seeds = 2, 1
    if num_timed < 2:
        raise ValueError(f"num_timed must be at least 2, got {num_timed}")
    with tempfile.TemporaryDirectory() as folder:
        phase("drawing photographs, pre-training a network")
        start = make_start(QUICK if quick else FULL, Path(folder))
        repeats = 1 if quick else 3
        phase("starting PyTorch's loaders")
        theirs = _twin(start)
        yield from search_claims(start, theirs, num_timed, num_seeds)
        phase("both sides with products of bfloat16")
        yield rounded_claim(start, theirs, num_timed)
        phase("training one mask")
        yield from refit_claims(start, repeats)
        phase("training populations")
        yield cost_claim(start, repeats)


def search_claims(start: Start, theirs: Any, num_timed: int, num_seeds: int) -> list[dict]:
    """`fairtune_search_early_stopping` and `fairtune_search_full`."""
    sizes, scale = start.sizes, start.sizes.num_trials / num_timed
    full, twin, rows = [], [], []
    for seed in range(num_seeds):
        phase(f"searches with seed {seed}: PyTorch's, ours with PyTorch's masks")
        began = time.perf_counter()
        trials = theirs.search(num_timed, LEARNING_RATES, seed)
        twin.append((time.perf_counter() - began) * scale)
        same, same_s = _same_trials(start, trials, seed)
        full.append(same_s)
        rows.append(
            {
                "same": same.mean(),
                "same_best": same.max(),
                "twin": np.mean([trial.value for trial in trials]),
                "twin_best": max(trial.value for trial in trials),
            }
        )
    what = (
        f"{sizes.num_trials} masks, {sizes.num_epochs} epochs; means over {num_seeds} seeds; "
        f"theirs: time of {num_timed} trials x {scale:.3g}, {theirs.num_threads} training "
        f"thread(s) (the faster choice) and {theirs.num_workers} loader workers, started untimed"
    )
    phase("our search with early stopping")  # beside the first of PyTorch's
    found, found_s, _ = search_files(start, "tpe", sizes.num_trials, sizes.num_slots, 0)
    early = Paired([found_s], twin[:1])
    return _search_rows(early, found, Paired(full, twin), rows, num_timed, what)


def rounded_claim(start: Start, theirs: Any, num_timed: int) -> dict[str, Any]:
    """`fairtune_search_full_bfloat16`: as `fairtune_search_full`, with one seed."""
    theirs.choose(rounded=True)
    began = time.perf_counter()
    trials = theirs.search(num_timed, LEARNING_RATES, 0)
    twin_s = (time.perf_counter() - began) * start.sizes.num_trials / num_timed
    rounded = start._replace(sizes=start.sizes._replace(dtype="bfloat16_products"))
    same, same_s = _same_trials(rounded, trials, 0)
    reached = {"ours": same.mean(), "theirs": np.mean([trial.value for trial in trials])}
    return claim(
        "fairtune_search_full_bfloat16",
        Paired([same_s], [twin_s]),
        quality={
            side: {"mean_val_worst_group_auc": float(value)} for side, value in reached.items()
        },
        notes=f"as fairtune_search_full, one seed; ours: bfloat16_products; theirs: torch.autocast "
        f"in bfloat16, {theirs.num_threads} training thread(s)",
    )


def _same_trials(start: Start, trials: Any, seed: int) -> tuple[Any, float]:
    """Values of the twin's trials `[n]` with ours; seconds of a whole search, none stopped early.

    A slot for each, so that all devices train; random ones come first: the first round compiles.
    """
    sizes, space, chosen = start.sizes, start.space, objective("worst_group_auc", num_groups=2)
    num_slots = min(sizes.num_slots, len(trials))
    first = np.random.default_rng(seed).random((num_slots, space.num_units)) < 0.5
    masks = np.concatenate([first, [trial.mask for trial in trials]])
    rates = np.array([1e-4] * num_slots + [trial.learning_rate for trial in trials], np.float32)
    given = Candidates(np.arange(len(masks), dtype=np.int32), masks, rates)
    how = replay(space, [chosen], given), len(masks), num_slots, seed
    found, whole_s, trial_s = search_files(start, *how, stopping="none")
    return found.values[num_slots:, 0], whole_s + trial_s * (sizes.num_trials - len(masks))


def _search_rows(
    early: Paired,
    found: Trials,
    full: Paired,
    rows: list[dict[str, Any]],
    num_timed: int,
    what: str,
) -> list[dict[str, Any]]:
    """Both claims from the times, what was found and what was reached with every seed."""
    mean = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    spread = {name: float(np.std([row[name] for row in rows])) for name in rows[0]}
    return [
        claim(
            "fairtune_search_early_stopping",
            early,
            quality={
                "ours": {
                    "best_val_worst_group_auc": float(found.values[best_trial(found), 0]),
                    "candidate_epochs": float(found.epochs_trained),
                },
                "theirs": {f"best_of_{num_timed}_val_worst_group_auc": rows[0]["twin_best"]},
            },
            notes=f"{what}, here the first; ours: everything from the files on, compilation "
            "included",
        ),
        claim(
            "fairtune_search_full",
            full,
            quality={
                side: {
                    "mean_val_worst_group_auc": mean[name],
                    "std": spread[name],
                    f"best_of_{num_timed}": mean[f"{name}_best"],
                }
                for side, name in (("ours", "same"), ("theirs", "twin"))
            },
            notes=f"{what}; ours: the same {num_timed} trials, whose training time is scaled "
            "likewise while decoding and compilation count once",
        ),
    ]


def _twin(start: Start) -> Any:
    """The PyTorch search over the same files from the same weights."""
    from experiments.baselines import torch_fairtune as twin

    sizes, path = start.sizes, start.folder / "weights.safetensors"
    save_weights(path, start.model, start.params, {})
    network = {"image_size": sizes.image_size, **dict(sizes.network)}
    cuts = slice(sizes.num_train), slice(sizes.num_train, None)
    train, val = (twin.Files(start.paths[cut], start.labels[cut], start.group[cut]) for cut in cuts)
    return twin.Searcher(
        train,
        val,
        path,
        twin.VisionTransformer(2, **network),
        image_size=sizes.image_size,
        num_epochs=sizes.num_epochs,
        batch_size=sizes.batch_size,
        num_workers=min(2, os.cpu_count() or 1) if sizes is FULL else 0,
    )


def search_files(
    start: Start, search: Any, num_trials: int, num_slots: int, seed: int, **options: Any
) -> tuple[Trials, float, float]:
    """From files to finished trials, its seconds, and seconds per trial after the first round."""
    began, sizes, rounds = time.perf_counter(), start.sizes, []
    data = start.read(sizes.stored, sizes.num_train, sizes.num_val)
    augment = compose(random_resized_crop(sizes.image_size, flip=0.5))
    searching = mask_search(
        start.model,
        Weights(start.params, {}, ()),
        data,
        dataclasses.replace(start.recipe, augment=augment),
        key=jax.random.key(seed),
        space=start.space,
        search=search,
        num_trials=num_trials,
        num_slots=num_slots,
        learning_rates=LEARNING_RATES,
        chunk_size=1,
        **options,
    )
    found = searching.run(on_round=lambda state: rounds.append(time.perf_counter()))
    # before every round and at the end: the first one compiles, the others only train
    trial_s = (rounds[-1] - rounds[1]) / (num_trials - num_slots)
    return found.trials, time.perf_counter() - began, trial_s


def cost_claim(start: Start, repeats: int) -> dict[str, Any]:
    """`fairtune_cost_per_candidate`: many ("ours") against one ("theirs"), per candidate."""
    sizes, num_steps = start.sizes, 2
    data = start.read(sizes.image_size, num_steps * sizes.batch_size, 8)

    def step_seconds(count: int) -> Callable[[], float]:
        run = _population(start, data, count)
        seconds(run)  # compiles
        return lambda: seconds(run) / count / num_steps

    costs, pairs, alone = {}, Paired([], []), step_seconds(1)
    for count in sizes.populations:  # one at a time: 64 candidates fill several gigabytes
        many = step_seconds(count)
        turns = [(many(), alone()) for _ in range(repeats)]
        pairs = Paired([ours for ours, _ in turns], [theirs for _, theirs in turns])
        costs[f"step_s_at_{count}"] = float(np.median(pairs.ours_s))
    norm, bias = (memory_share(start.params, name) for name in ("norm", "bitfit"))
    return claim(
        "fairtune_cost_per_candidate",
        pairs,
        quality={"ours": costs, "theirs": {}},
        notes=f"a step of each of {sizes.populations[-1]} candidates (ours) and of one alone "
        f"(theirs), with 1/{num_steps} of a validation of 8 images; state of a candidate: "
        f"{norm:.2%} (norm) and {bias:.2%} (bitfit) of the backbone's bytes",
    )


def _population(start: Start, data: Dataset, count: int) -> Callable[[], jax.Array]:
    """A function that trains so many candidates for an epoch and validates each of them."""
    recipe, space, model = start.recipe, start.space, start.model
    chosen = objective("worst_group_auc", num_groups=data.num_groups)
    sampler = recipe.make_sampler(data)
    optimizer = recipe.make_optimizer(sampler.batches_per_epoch)
    step = recipe.make_step(model, optimizer, data, bind=space.bind, gate=kernel_gate(model))
    tunable, frozen = space.partition(start.params)

    def measure(state, shared):
        val, frozen = shared
        logits = predict(model, space.bind(state.params, frozen), {}, val.inputs)
        return chosen.measure(logits, labels=val.labels, group=val.group)

    @jax.jit
    def init(tunable):
        keys, rates = jnp.broadcast_to(jax.random.key(0), (count,)), jnp.full(count, 1e-4)
        params = replicate(tunable, count)
        return init_population(params, {}, optimizer, sampler, keys=keys, learning_rate=rates)

    @functools.partial(jax.jit, donate_argnums=0)
    def advance(states, masks, examples, shared):
        mask = jax.vmap(space.expand)(masks)
        states, history = fit_population(
            step,
            states,
            examples,
            sampler,
            num_epochs=1,
            mask=mask,
            frozen=shared[1],
            augment=compose(random_flip(vertical=0.5)),
            evaluate_fn=measure,
            evaluate_data=shared,
            chunk_size=1,
        )
        return states, history["evaluation"]

    states = init(tunable)
    masks = np.random.default_rng(0).random((count, space.num_units)) < 0.5
    examples = jax.tree.map(jnp.asarray, (data.examples("train"), data.examples("val")))

    def run():
        nonlocal states
        states, values = advance(states, masks, examples[0], (examples[1], frozen))
        return values

    return run


def memory_share(params: Any, name: str) -> float:
    """Bytes that one more candidate of a space adds to the training state, per backbone byte."""
    tunable = mask_space(params, name).partition(params)[0]
    optimizer = make_optimizer("adamw", total_steps=1)
    state = jax.eval_shape(lambda p: start_train(p, {}, optimizer), tunable)
    size = lambda tree: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
    return size(state) / size(params)


def refit_claims(start: Start, repeats: int) -> list[dict[str, Any]]:
    """`fairtune_refit_last3` and `fairtune_prefix_cache`: epochs of training one mask for good."""
    space, model = start.space, start.model
    depth = space.num_units // 3
    num_last = min(3, depth - 1)
    trained, rest = space.split(start.params, np.arange(space.num_units) >= 3 * (depth - num_last))
    dense = unstack_blocks(start.params)
    data = start.read(start.sizes.image_size, start.sizes.num_train)
    images = jax.tree.map(jnp.asarray, data.examples("train"))
    epochs = functools.partial(_epochs, start, data)
    dense_run, dense_flops, _ = epochs(model, dense, {}, images)
    last_run, last_flops, compile_s = epochs(model, trained, rest, images)

    upper = {name: leaf for name, leaf in rest.items() if name != "blocks"}
    below = {**dense, "blocks": rest["blocks"]}
    scale: Any = model.preprocess
    embed = jax.jit(lambda params, inputs: model.apply(params, {}, scale(inputs))[1]["tokens"])
    tokens = images._replace(inputs=embed(below, images.inputs))
    prefix_s = seconds(lambda: embed(below, images.inputs))
    above = model._replace(preprocess=None)
    cached_run, _, cached_compile_s = epochs(above, trained, upper, tokens)
    losses = {run: float(run()) for run in (dense_run, last_run, cached_run)}
    what = f"an epoch, the last {num_last} of {depth} blocks trained"
    return [
        claim(
            "fairtune_refit_last3",
            paired(last_run, dense_run, repeats=repeats),
            compile_s=compile_s,
            quality={
                "ours": {"gflop_per_step": last_flops / 1e9},
                "theirs": {"gflop_per_step": dense_flops / 1e9},
            },
            notes=f"{what}; theirs: ours with everything trained",
        ),
        claim(
            "fairtune_prefix_cache",
            paired(cached_run, last_run, repeats=repeats),
            compile_s=cached_compile_s,
            quality={
                "ours": {"first_loss": losses[cached_run], "prefix_once_s": prefix_s},
                "theirs": {"first_loss": losses[last_run]},
            },
            notes=f"{what}, no augmentation; ours: from activations below them, computed once; "
            "theirs: ours from the images",
        ),
    ]


def _epochs(
    start: Start, data: Dataset, model: Model, trained: Any, rest: Any, examples: Examples
) -> tuple[Callable[[], jax.Array], float, float]:
    """A function that trains one more epoch and returns its loss, FLOPs of a step, compile time."""
    recipe = start.recipe
    sampler = recipe.make_sampler(data)
    optimizer = recipe.make_optimizer(sampler.batches_per_epoch)
    step = recipe.make_step(model, optimizer, data, bind=start.space.bind)
    params = jax.tree.map(jnp.copy, trained)  # what is donated must not be the benchmark's
    begin = start_train(params, {}, optimizer, learning_rate=jnp.float32(1e-4))
    state = init_fit(begin, sampler, jax.random.key(0))

    @functools.partial(jax.jit, donate_argnums=0)
    def epoch(state, rest, examples):
        state, history = fit(step, state, examples, sampler, num_epochs=1, frozen=rest)
        return state, history["loss"][0]

    def run():
        nonlocal state
        state, loss = epoch(state, rest, examples)
        return loss

    compile_s = compile_seconds(epoch, state, rest, examples)
    return run, step_flops(epoch, state, rest, examples), compile_s
