"""The PyTorch twin of channel pruning does what fairjax does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import pruning as benchmark
from fairjax import pruning
from fairjax.losses import soft_nearest_neighbor_loss

torch = pytest.importorskip("torch")
twin = pytest.importorskip("experiments.baselines.torch_pruning")


def test_both_styles_score_channels_as_fairjax_does():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(20, 3, 3, 10)).astype(np.float32)
    features[::4, :, :, 1] = 0
    group = (rng.random(20) < 0.4).astype(np.int32)
    ours = soft_nearest_neighbor_loss(
        jnp.asarray(features), jnp.asarray(group), num_classes=2, self_in_numerator=True
    )
    channels_first = torch.from_numpy(features.transpose(0, 3, 1, 2).copy())
    ids = torch.from_numpy(group.astype(np.int64))
    np.testing.assert_allclose(ours, twin.snnl_loop(channels_first, ids), atol=1e-5)
    np.testing.assert_allclose(
        ours, twin.snnl_batched(channels_first, ids, chunk_size=4), atol=1e-5
    )


def test_masked_networks_have_the_logits_of_fairjax_and_leave_the_network_as_it_was(tmp_path):
    model, params, images, sizes = benchmark._network(quick=True)
    path = tmp_path / "vgg11.safetensors"
    benchmark.save_weights(path, model, params, {})
    network = twin.load_vgg11(path, **sizes)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    keep = np.random.default_rng(0).random((3, 32)) < 0.5
    ours = jax.jit(
        lambda params, keep, images: pruning.plan_logits(
            model, params, {}, pruning.PrunePlan({benchmark.LAYER: keep}), images
        )
    )(params, jnp.asarray(keep), images)
    channels_first = torch.from_numpy(np.asarray(images).transpose(0, 3, 1, 2).copy())
    for share_prefix in (False, True):
        theirs = twin.plan_logits(
            network, 18, torch.from_numpy(keep), channels_first, share_prefix=share_prefix
        )
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(ours).max())
    assert np.ptp(ours, axis=0).max() > 1e-2 * np.abs(ours).max()
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_benchmark_gives_a_row_per_claim_with_equal_results_on_both_sides():
    rows = {row["claim"]: row for row in benchmark.claims(quick=True)}
    assert list(rows) == [
        "snnl_vs_original",
        "snnl_vs_torch",
        "snnl_bfloat16_vs_torch",
        "plans_vs_torch",
        "plans_vs_prefix",
        "sliced_vs_flops",
    ]
    for name in ("snnl_vs_original", "snnl_vs_torch"):
        assert rows[name]["quality"]["ours"]["max_abs_difference"] < 1e-5
    rounded = rows["snnl_bfloat16_vs_torch"]["quality"]
    assert 0 < rounded["ours"]["max_abs_difference"] < 1e-3
    assert min(side["kendall_tau"] for side in rounded.values()) > 0.95
    for name in ("plans_vs_torch", "plans_vs_prefix"):
        assert rows[name]["quality"]["ours"]["max_metric_difference"] < 1e-5
        assert rows[name]["quality"]["ours"]["max_relative_logit_difference"] < 1e-4
    assert 2 < rows["sliced_vs_flops"]["quality"]["ours"]["flop_ratio"] < 4.5
