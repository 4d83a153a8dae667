"""Channel pruning beside PyTorch: scores, many plans at once, and what a smaller network gains.

    python -m experiments.benchmark pruning

Both sides get the same numbers: activations of a convolution with 512 channels for the scores,
the same VGG-11 and images for the plans. The last row has no PyTorch side: it holds the measured
speed-up of a sliced network to the ratio of arithmetic.
"""

import functools
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from jax.sharding import NamedSharding, PartitionSpec

from experiments.timing import claim, compile_seconds, matmul_rate, paired
from fairjax import pruning
from fairjax.data import Examples
from fairjax.losses import soft_nearest_neighbor_loss
from fairjax.models import Model, VGGConfig, compiler_options, save_weights
from fairjax.models.vgg import vgg
from fairjax.sharding import candidate_mesh

LAYER = "features/18"
WIDTHS = (64, 128, 256, 256, 512, 512, 512, 512)


def claims(quick: bool = False) -> Iterator[dict[str, Any]]:
    """All rows; `quick` uses a narrow network on small images."""
    with tempfile.TemporaryDirectory() as folder:
        yield from score_claims(quick)
        yield from plan_claims(quick, Path(folder))
        yield slice_claim(quick)


def score_claims(quick: bool) -> list[dict[str, Any]]:
    """From given activations to one loss per channel: `snnl_vs_original`, `snnl_vs_torch` and, with
    factors of bfloat16 on both sides, `snnl_bfloat16_vs_torch`."""
    import torch

    from experiments.baselines.torch_models import twins_device
    from experiments.baselines.torch_pruning import snnl_batched, snnl_loop

    batch, side, size, repeats = (32, 4, 16, 1) if quick else (128, 14, 512, 9)
    rng = np.random.default_rng(0)
    group = (rng.random(batch) < 0.4).astype(np.int32)
    features = rng.normal(size=(batch, side, side, size)).astype(np.float32)
    features += rng.normal(size=(2, 1, 1, size)).astype(np.float32)[group]
    channels_first = torch.from_numpy(np.ascontiguousarray(features.transpose(0, 3, 1, 2)))
    ids = torch.from_numpy(group.astype(np.int64))
    exact = snnl_batched(channels_first, ids).numpy()
    device = twins_device(jax.default_backend())
    channels_first, ids = channels_first.to(device), ids.to(device)
    if device.type == "cuda":  # whose caches are too small for any part of the channels
        snnl_batched = functools.partial(snnl_batched, chunk_size=size)
    rows, rate = [], matmul_rate()
    in_bfloat16 = functools.partial(snnl_batched, dtype=torch.bfloat16)
    for name, dtype, theirs in (
        ("snnl_vs_original", "float32", snnl_loop),
        ("snnl_vs_torch", "float32", snnl_batched),
        ("snnl_bfloat16_vs_torch", "bfloat16_products", in_bfloat16),
    ):
        ours, compile_s, extra_mb = _compiled_scores(features, group, dtype)
        times = paired(ours, lambda theirs=theirs: theirs(channels_first, ids), repeats=repeats)
        quality = {"ours": _against(exact, np.asarray(ours())) | {"extra_memory_mb": extra_mb}}
        quality["theirs"] = _against(exact, theirs(channels_first, ids).cpu().numpy())
        rows.append(
            claim(
                name,
                times,
                compile_s=compile_s,
                # its products
                floor_s=2 * batch**2 * side**2 * size / rate if dtype == "float32" else None,
                quality=quality,
                notes=f"{size} channels, {batch} images of {side}x{side}, published variant",
            )
        )
    return rows


def _compiled_scores(features, group, dtype) -> tuple[Callable[[], Any], float, float]:
    """Ours on all devices, the seconds it takes to compile, and the MiB it needs beside."""
    mesh = candidate_mesh()
    by_channel = PartitionSpec(None, None, None, mesh.axis_names[0])

    def score(features, group):
        return soft_nearest_neighbor_loss(
            features, group, num_classes=2, self_in_numerator=True, dtype=dtype
        )

    jitted = jax.jit(
        jax.shard_map(
            score,
            mesh=mesh,
            in_specs=(by_channel, PartitionSpec()),
            out_specs=PartitionSpec(mesh.axis_names[0]),
            check_vma=False,
        )
    )
    arrays = (
        jax.device_put(features, NamedSharding(mesh, by_channel)),
        jax.device_put(group, NamedSharding(mesh, PartitionSpec())),
    )
    compile_s = compile_seconds(jitted, *arrays)
    memory = jitted.lower(*arrays).compile().memory_analysis()
    extra_mb = 0.0 if memory is None else mesh.size * memory.temp_size_in_bytes / 2**20
    return lambda: jitted(*arrays), compile_s, extra_mb


def _against(exact: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """How far losses are from exact ones, and whether they rank channels alike."""
    ranks: Any = scipy.stats.kendalltau(exact, found)
    return {
        "max_abs_difference": float(np.abs(found - exact).max()),
        "kendall_tau": float(ranks.statistic),
    }


def _network(quick: bool) -> tuple[Model, Any, jax.Array, dict[str, Any]]:
    """VGG-11 with fresh weights, what it takes for images, and the sizes of its PyTorch twin."""
    divisor, units, side, num_images = (16, 32, 64, 4) if quick else (1, 4096, 224, 8)
    widths = tuple(width // divisor for width in WIDTHS)
    a, b, c, d, e, f, g, h = widths
    features = (a, "M", b, "M", c, d, "M", e, f, "M", g, h, "M")
    config = VGGConfig(num_classes=4, image_size=side, features=features, classifier=(units, units))
    model = vgg(config)._replace(preprocess=None)
    params, _ = jax.jit(model.init)(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (num_images, side, side, 3))
    return model, params, images, {"num_classes": 4, "widths": widths, "hidden": (units, units)}


def plan_claims(quick: bool, folder: Path) -> list[dict[str, Any]]:
    """`plans_vs_torch` and `plans_vs_prefix`: from images to the metrics of 64 masked networks."""
    import torch

    from experiments.baselines import torch_pruning
    from experiments.baselines.torch_models import twins_device

    num_plans, repeats = (8, 1) if quick else (64, 3)
    model, params, images, sizes = _network(quick)
    save_weights(folder / "vgg11.safetensors", model, params, {})
    device = twins_device(jax.default_backend())
    twin = torch_pruning.load_vgg11(folder / "vgg11.safetensors", **sizes).to(device)
    num_channels = sizes["widths"][-1]
    rng = np.random.default_rng(0)
    keep = np.ones((num_plans, num_channels), bool)
    for mask in keep:
        mask[rng.permutation(num_channels)[: rng.integers(1, num_channels // 2)]] = False
    plans = pruning.PrunePlan({LAYER: jnp.asarray(keep)})
    data = Examples(images, jnp.arange(len(images)) % 4, jnp.arange(len(images)) % 2)

    def run(params, plans, data):
        return pruning.evaluate_plans(model, params, {}, plans, data, num_groups=2)

    jitted = jax.jit(run, compiler_options=compiler_options(model))
    compile_s = compile_seconds(jitted, params, plans, data)
    torch_images = torch.from_numpy(np.ascontiguousarray(np.asarray(images).transpose(0, 3, 1, 2)))
    torch_images, torch_keep = torch_images.to(device), torch.from_numpy(keep).to(device)
    logits = jax.jit(lambda *args: pruning.plan_logits(model, args[0], {}, *args[1:]))
    ours = np.asarray(logits(params, plans, images))

    def theirs(share_prefix: bool) -> Callable[[], torch.Tensor]:
        return lambda: torch_pruning.plan_logits(
            twin, int(LAYER.split("/")[1]), torch_keep, torch_images, share_prefix=share_prefix
        )

    def row(name: str, share_prefix: bool, notes: str) -> dict[str, Any]:
        forwards = theirs(share_prefix)
        times = paired(lambda: jitted(params, plans, data), forwards, repeats=repeats)
        quality = _difference(ours, forwards().cpu().numpy(), jitted(params, plans, data), data)
        return claim(
            name,
            times,
            compile_s=compile_s,
            quality={"ours": quality, "theirs": {}},
            notes=f"{num_plans} plans on {LAYER}, {len(images)} images of {images.shape[1]} px; "
            + notes,
        )

    return [
        row("plans_vs_torch", False, "theirs: one forward per plan, logits only"),
        row(
            "plans_vs_prefix",
            True,
            "theirs: what lies below the pruned layer once, the rest once per plan, logits only",
        ),
    ]


def _difference(
    ours: np.ndarray, theirs: np.ndarray, table: dict[str, jax.Array], data: Examples
) -> dict[str, float]:
    """How far two sides' logits `[P, N, K]` and their metrics `table` are apart."""
    measure = lambda logits: pruning.pruning_metrics(
        logits, labels=data.labels, group=data.group, num_groups=2
    )
    expected = jax.jit(jax.vmap(measure))(jnp.asarray(theirs))
    pairs = zip(jax.tree.leaves(table), jax.tree.leaves(expected), strict=True)
    return {
        "max_relative_logit_difference": float(np.abs(ours - theirs).max() / np.abs(theirs).max()),
        "max_metric_difference": max(
            float(np.nanmax(np.abs(a - b), initial=0.0)) for a, b in pairs
        ),
    }


def slice_claim(quick: bool) -> dict[str, Any]:
    """`sliced_vs_flops`: forward of half the channels ("ours") against the whole network."""
    repeats = 1 if quick else 7
    model, params, images, _ = _network(quick)
    graph = model.config.channel_graph
    scores = {layer: np.arange(channels.size) for layer, channels in graph.items()}
    plan = pruning.select_channels(scores, ratio=0.5)
    small, _ = pruning.slice_channels(params, {}, plan, graph)
    jitted = jax.jit(
        lambda params, images: model.apply(params, {}, images)[0],
        compiler_options=compiler_options(model),
    )
    compiled = [jitted.lower(p, images).compile() for p in (small, params)]
    flops = [_flops(program) for program in compiled]
    times = paired(
        lambda: compiled[0](small, images), lambda: compiled[1](params, images), repeats=repeats
    )
    speed_up, flop_ratio = statistics.median(times.ratios), flops[1] / flops[0]
    return claim(
        "sliced_vs_flops",
        times,
        floor_s=flops[0] / matmul_rate(),
        quality={
            "ours": {
                "speed_up": speed_up,
                "flop_ratio": flop_ratio,
                "speed_up_per_flop_ratio": speed_up / flop_ratio,
            },
            "theirs": {},
        },
        notes=f"half the channels of every layer, {len(images)} images of {images.shape[1]} px; "
        "theirs: the whole network",
    )


def _flops(compiled: Any) -> float:
    """Floating-point operations of a compiled program without loops."""
    costs = compiled.cost_analysis()
    return float((costs[0] if isinstance(costs, list) else costs)["flops"])
