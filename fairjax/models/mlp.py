"""Networks for tables: logistic regression and a multilayer perceptron."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from fairjax.models.channels import Channels, Slot
from fairjax.models.functional import Draws, as_model
from fairjax.models.layers import Linear
from fairjax.models.model import Model


@dataclasses.dataclass(frozen=True)
class MLPConfig:
    """Sizes of a network for tables; `hidden=()` is logistic regression."""

    num_features: int
    num_classes: int = 2
    hidden: tuple[int, ...] = ()

    def __post_init__(self):
        if self.num_features < 1 or min(self.hidden, default=1) < 1:
            raise ValueError(
                "num_features and hidden sizes must be at least 1, "
                f"got {self.num_features} and {self.hidden}"
            )
        if self.num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {self.num_classes}")

    @property
    def channel_graph(self) -> dict[str, Channels]:
        """Hidden units of every layer."""
        names = [f"hidden/{i}" for i in range(len(self.hidden))]
        readers = [*names[1:], "head"]
        return {
            name: Channels(
                size=width,
                outputs=(Slot(f"{name}/kernel", axis=1), Slot(f"{name}/bias", axis=0)),
                inputs=(Slot(f"{reader}/kernel", axis=0),),
            )
            for name, reader, width in zip(names, readers[: len(names)], self.hidden, strict=True)
        }


def logistic_regression(num_features: int, num_classes: int = 2) -> Model:
    """Logistic regression as FairBatch's authors train it.

    Two classes share one weight column: with z = x w + b the logits are [-z, z], so that softmax
    gives p(label 1) = sigmoid(2 z) = (tanh z + 1) / 2. More classes are plain softmax regression.
    Weights start as N(0, 0.2), biases at 0.

        >>> model = logistic_regression(num_features=3)
        >>> params, batch_stats = model.init(jax.random.key(0))
        >>> model.apply(params, batch_stats, jnp.ones((5, 3)))[0].shape
        (5, 2)

    Args:
      num_features: D, columns of the float32 `[B, D]` inputs.
      num_classes: K, at least 2.

    Returns:
      A `Model` with params `{"head": {"kernel", "bias"}}`, shapes `[D, 1]` and `[1]` for two
      classes, `[D, K]` and `[K]` for more; `out` is `{"pooled": inputs}`.

    Raises:
      ValueError: `num_features` below 1 or `num_classes` below 2.

    Source: Roh et al., ICLR 2021, and the link function of the authors' published code.
    """
    config = MLPConfig(num_features, num_classes)
    return as_model(lambda draws: _LogisticRegression(config, draws), config)


def mlp(num_features: int, num_classes: int, hidden: Sequence[int] = (64, 64)) -> Model:
    """Multilayer perceptron with ReLU.

        >>> model = mlp(num_features=3, num_classes=2, hidden=(8,))
        >>> logits, out, _ = model.apply(*model.init(jax.random.key(0)), jnp.ones((5, 3)))
        >>> logits.shape, out["hidden/0"].shape
        ((5, 2), (5, 8))

    Args:
      num_features: D, columns of the float32 `[B, D]` inputs.
      num_classes: K, at least 2.
      hidden: units of each hidden layer.

    Returns:
      A `Model` with params `hidden/0 .. hidden/n-1` and `head`, each `{"kernel", "bias"}`; `out`
      holds every hidden layer before its ReLU, `{"hidden/0": [B, hidden[0]], ...}`, and `pooled`,
      what the head reads.

    Raises:
      ValueError: a size below 1 or `num_classes` below 2.
    """
    config = MLPConfig(num_features, num_classes, tuple(hidden))
    return as_model(lambda draws: _MLP(config, draws), config)


class _LogisticRegression(nnx.Module):
    def __init__(self, config: MLPConfig, draws: Draws):
        columns = 1 if config.num_classes == 2 else config.num_classes
        self.head = Linear(config.num_features, columns, draws=draws, std=0.2)

    def __call__(self, x, *, train, key):
        z = self.head(x)
        return (jnp.concatenate([-z, z], axis=-1) if z.shape[-1] == 1 else z), {"pooled": x}


class _MLP(nnx.Module):
    def __init__(self, config: MLPConfig, draws: Draws):
        sizes = (config.num_features, *config.hidden)
        self.hidden = nnx.Dict(
            {
                str(i): Linear(sizes[i], sizes[i + 1], draws=draws, std=(2 / sizes[i]) ** 0.5)
                for i in range(len(config.hidden))
            }
        )
        self.head = Linear(sizes[-1], config.num_classes, draws=draws)

    def __call__(self, x, *, train, key):
        out = {}
        for i in range(len(self.hidden)):
            out[f"hidden/{i}"] = x = self.hidden[str(i)](x)
            x = jax.nn.relu(x)
        return self.head(x), out | {"pooled": x}
