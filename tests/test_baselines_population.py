"""PyTorch's two ways to train many networks are the same training."""

import numpy as np
import pytest

from experiments.benchmarks import population

torch = pytest.importorskip("torch")
twins = pytest.importorskip("experiments.baselines.torch_population")
models = pytest.importorskip("experiments.baselines.torch_models")


@pytest.mark.parametrize(("mixed", "tolerance"), [(False, 1e-5), (True, 3e-3)])
def test_stacked_networks_learn_as_one_after_another_does(mixed, tolerance):
    torch.manual_seed(0)
    sizes = {"image_size": 16, "patch_size": 8, "width": 12, "depth": 2, "num_heads": 3}
    twin = models.VisionTransformer(2, **sizes)
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8) % 2
    # the whole set is one batch, so that what is drawn does not matter
    how = {"batch_size": 8, "learning_rate": 1e-2, "mixed": mixed, "style": None}
    stacked = twins.stacked(twin, images, labels, count=3, how=how)
    alone = twins.one_after_another(twin, images, labels, how=how)
    together = np.array([stacked(3) for _ in range(4)])
    one = np.array([alone(1) for _ in range(4)])
    np.testing.assert_allclose(together, np.repeat(one, 3, axis=1), atol=tolerance)
    assert one[-1] < one[0] - 0.1


def test_the_benchmark_gives_a_row_per_population_whose_first_losses_agree(monkeypatch):
    one_step = population.QUICK._replace(num_steps=1)  # the whole set again
    monkeypatch.setattr(population, "QUICK", one_step)
    rows = {row["claim"]: row for row in population.claims(quick=True)}
    assert list(rows) == ["population_step_1_vit_micro", "population_step_2_vit_micro"]
    alone = rows["population_step_1_vit_micro"]
    assert alone["ratio"] > 0 and alone["floor_s"] > 0
    ours, theirs = (alone["quality"][side]["loss"] for side in ("ours", "theirs"))
    assert ours == pytest.approx(theirs, abs=1e-4)
    assert alone["quality"]["ours"]["temporaries_mib"] > 0
