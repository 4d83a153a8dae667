"""The PyTorch twin of FairTune trains what fairjax trains, and the benchmark's rows hold."""

import dataclasses
import importlib.util
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmark import PRESETS, prepare
from experiments.benchmarks import fairtune as benchmark
from fairjax.fairtune import mask_space, objective
from fairjax.models import image_model, save_weights

torch = pytest.importorskip("torch")
twin = pytest.importorskip("experiments.baselines.torch_fairtune")

SIZES = {"width": 12, "depth": 2, "num_heads": 3}
MASK = np.array([True, False, False, False, True, False])  # norms of block 0, attention of 1


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """The same small network on both sides."""
    from safetensors.torch import load_file

    model = image_model("vit_tiny_patch16_224", 2, image_size=32, **SIZES)
    params, _ = jax.jit(model.init)(jax.random.key(0))
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_weights(path, model, params, {})
    network = twin.VisionTransformer(2, image_size=32, **SIZES)
    return model, params, network, load_file(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    from PIL import Image

    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    paths = [folder / f"{i}.jpg" for i in range(8)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(path)
    labels, group = np.arange(8) % 2, np.arange(8) // 4
    return twin.Files(paths, labels.astype(np.int32), group.astype(np.int32))


def test_a_mask_trains_as_many_parameters_as_ours(networks):
    _, params, network, _ = networks
    space = mask_space(params, "auto_peft1")
    for mask in (MASK, ~MASK, np.zeros(6, bool)):
        twin.set_trainable(network, mask)
        trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
        assert trained == space.describe(mask).num_trained


def test_a_trial_moves_what_its_mask_trains_and_nothing_else(networks, files):
    _, _, network, weights = networks
    loaders = twin.Loaders.make(files, files, image_size=32, batch_size=4, num_workers=0)
    value = twin.train_trial(network, weights, MASK, 1e-2, loaders, files, num_epochs=1)
    assert 0 <= value <= 1
    moved = {
        name for name, now in network.state_dict().items() if not torch.equal(now, weights[name])
    }
    allowed = ("head.", "blocks.0.norm1.", "blocks.0.norm2.", "blocks.1.attn.")
    assert moved and all(name.startswith(allowed) for name in moved)
    assert {name.split(".")[2] for name in moved if name.startswith("blocks.")} == {
        "norm1",
        "norm2",
        "attn",
    }


def test_validation_logits_and_objective_are_those_of_fairjax(networks, files):
    model, params, network, weights = networks
    network.load_state_dict(weights)
    loaders = twin.Loaders.make(files, files, image_size=32, batch_size=4, num_workers=0)
    theirs = twin.predict(network, loaders.val)
    pixels = np.concatenate([batch.numpy() for batch, _ in loaders.val]).transpose(0, 2, 3, 1)
    ours = model.apply(params, {}, jnp.asarray(pixels, jnp.float32) / 127.5 - 1)[0]
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    metric = objective("worst_group_auc", num_groups=2)
    labels, group = jnp.asarray(files.labels), jnp.asarray(files.group)
    expected = float(metric.measure(ours, labels=labels, group=group))
    assert twin.worst_group_auc(theirs, files.labels, group=files.group) == pytest.approx(expected)


def test_random_views_lie_within_the_image_with_the_drawn_area_and_shape():
    random.seed(0)
    for _ in range(200):
        left, top, width, height = twin.RandomView._box(600, 450)
        assert 0 <= left <= 600 - width and 0 <= top <= 450 - height
        assert 0.075 < width * height / (600 * 450) <= 1
        assert 0.74 < width / height < 1.35


def test_the_centre_view_keeps_the_middle_of_the_shorter_side():
    from PIL import Image

    columns = np.broadcast_to(np.arange(240, dtype=np.uint8)[None, :, None], (160, 240, 3))
    view = np.asarray(twin.CentreView(64)(Image.fromarray(np.ascontiguousarray(columns))))
    assert view.shape == (64, 64, 3)
    side = 160 * 64 / 73  # 73 is 64 * 256 / 224, rounded
    middles = 120 - side / 2 + side * (np.arange(64) + 0.5) / 64 - 0.5
    np.testing.assert_allclose(view[10, 1:-1, 0], middles[1:-1], atol=1)


def test_one_more_norm_or_bias_candidate_of_vit_tiny_costs_under_2_percent_of_the_backbone():
    model = image_model("vit_tiny_patch16_224", 2, image_size=64)
    params = jax.eval_shape(model.init, jax.random.key(0))[0]
    for name in ("norm", "bitfit"):
        assert 0 < benchmark.memory_share(params, name) < 0.02


def test_a_package_that_the_other_side_needs_and_lacks_is_named_before_anything_runs(
    monkeypatch, tmp_path
):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torchvision" else find(name)
    )
    out = tmp_path / "claims.jsonl"
    with pytest.raises(ValueError, match="images needs torchvision: pip install torchvision"):
        prepare(dataclasses.replace(PRESETS["images"], out=out))
    assert not out.exists()


def test_too_few_timed_trials_are_refused():
    with pytest.raises(ValueError, match="num_timed must be at least 2, got 1"):
        next(benchmark.claims(num_timed=1))


def test_the_benchmark_gives_a_row_per_claim():
    rows = {row["claim"]: row for row in benchmark.claims(quick=True)}
    assert list(rows) == [
        "fairtune_search_early_stopping",
        "fairtune_search_full",
        "fairtune_search_full_bfloat16",
        "fairtune_refit_last3",
        "fairtune_prefix_cache",
        "fairtune_cost_per_candidate",
    ]
    for side in ("ours", "theirs"):
        values = rows["fairtune_search_full"]["quality"][side]
        assert 0 <= values["mean_val_worst_group_auc"] <= 1
    early = rows["fairtune_search_early_stopping"]["quality"]["ours"]
    assert early["candidate_epochs"] < benchmark.QUICK.num_trials * benchmark.QUICK.num_epochs
    refit = rows["fairtune_refit_last3"]["quality"]
    assert refit["ours"]["gflop_per_step"] < 0.7 * refit["theirs"]["gflop_per_step"]
    cached = rows["fairtune_prefix_cache"]["quality"]
    assert cached["ours"]["first_loss"] == pytest.approx(cached["theirs"]["first_loss"], rel=1e-4)
