"""PyTorch's two ways to train many networks are the same training."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
twins = pytest.importorskip("experiments.baselines.torch_population")
models = pytest.importorskip("experiments.baselines.torch_models")


def test_stacked_networks_learn_as_one_after_another_does():
    torch.manual_seed(0)
    sizes = {"image_size": 16, "patch_size": 8, "width": 12, "depth": 2, "num_heads": 3}
    twin = models.VisionTransformer(2, **sizes)
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8) % 2
    # the whole set is one batch, so that what is drawn does not matter
    how = {"batch_size": 8, "learning_rate": 1e-2, "mixed": False, "compiled": False}
    stacked = twins.stacked(twin, images, labels, how=how | {"count": 3})
    alone = twins.one_after_another(twin, images, labels, how=how | {"count": 1})
    together = np.array([stacked() for _ in range(4)])
    one = np.array([alone() for _ in range(4)])
    np.testing.assert_allclose(together, np.repeat(one, 3, axis=1), atol=1e-5)
    assert one[-1] < one[0] - 0.1
