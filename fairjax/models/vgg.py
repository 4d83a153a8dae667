"""VGG networks in torchvision's layout, and a small one for 64 px."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fairjax.models.channels import Channels, Slot, norm_slots
from fairjax.models.convolution import BatchNorm, Conv, max_pool
from fairjax.models.functional import Draws, as_model
from fairjax.models.layers import Linear, check_images, dropout
from fairjax.models.model import Model
from fairjax.models.preprocess import IMAGENET_MEAN, IMAGENET_STD, image_preprocess


def _features(depths: tuple[int, ...]) -> tuple[int | str, ...]:
    """Convolutions of five stages, each of which ends in a pooling."""
    stages = zip((64, 128, 256, 512, 512), depths, strict=True)
    return tuple(each for width, depth in stages for each in (*[width] * depth, "M"))


_DEPTHS = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
_NAMES: dict[str, dict[str, Any]] = {
    **{name: {"features": _features(depths)} for name, depths in _DEPTHS.items()},
    **{
        f"{name}_bn": {"features": _features(depths), "batch_norm": True}
        for name, depths in _DEPTHS.items()
    },
    "vgg_micro": {
        "image_size": 64,
        "features": (16, "M", 32, "M", 64, 64, "M", 128, 128, "M"),
        "classifier": (128, 128),
        "pool_size": 4,
        "dropout": 0.0,
    },
}


@dataclasses.dataclass(frozen=True)
class VGGConfig:
    """Architecture of a VGG network and the normalisation its weights expect."""

    num_classes: int
    image_size: int = 224
    features: tuple[int | str, ...] = _features(_DEPTHS["vgg11"])
    """Output channels of each 3x3 convolution; "M" halves the map."""
    classifier: tuple[int, ...] = (4096, 4096)
    """Units of the two hidden layers between the pooled map and the head."""
    pool_size: int = 7
    batch_norm: bool = False
    dropout: float = 0.5
    """After each hidden layer of the classifier, in training."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self):
        halvings = self.features.count("M")
        if self.image_size < 2**halvings:
            raise ValueError(f"image_size must be at least {2**halvings}, got {self.image_size}")
        if len(self.classifier) != 2:
            raise ValueError(f"classifier must be two numbers of units, got {self.classifier}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        if self.num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {self.num_classes}")

    @property
    def layers(self) -> tuple[tuple[str, int | str], ...]:
        """`(index, width or "M")` with torchvision's positions inside `features`."""
        layers, index = [], 0
        for width in self.features:
            layers.append((str(index), width))
            index += 1 if width == "M" else 3 if self.batch_norm else 2
        return tuple(layers)

    @property
    def channel_graph(self) -> dict[str, Channels]:
        """Channels of every convolution and hidden units of the classifier."""
        names = [(f"features/{i}", width) for i, width in self.layers if width != "M"]
        units = [(f"classifier/{3 * i}", width) for i, width in enumerate(self.classifier)]
        readers = [Slot(f"{name}/kernel", axis=2) for name, _ in names[1:]]
        after = [name for name, _ in units] + ["head"]
        readers.append(Slot(f"{after[0]}/kernel", axis=0, outer=self.pool_size**2))
        readers += [Slot(f"{name}/kernel", axis=0) for name in after[1:]]
        graph = {}
        for (name, width), reader in zip(names + units, readers, strict=True):
            is_conv = name.startswith("features")
            outputs = [Slot(f"{name}/kernel", axis=3 if is_conv else 1), Slot(f"{name}/bias", 0)]
            if is_conv and self.batch_norm:
                outputs += norm_slots(f"features/{int(name.split('/')[1]) + 1}")
            graph[name] = Channels(int(width), tuple(outputs), (reader,))
        return graph


def vgg_config(name: str, num_classes: int, **overrides: Any) -> VGGConfig | None:
    """The configuration behind `vgg11`, `vgg16_bn.tv_in1k` or `vgg_micro` (64 px), or None."""
    name = name.partition(".")[0]  # a tag names a set of weights
    if name not in _NAMES:
        return None
    return VGGConfig(num_classes=num_classes, **(_NAMES[name] | overrides))


def vgg(config: VGGConfig) -> Model:
    """VGG as pure functions of normalised float32 `[B, S, S, 3]` images.

    Args:
      config: sizes and options; `vgg_config` makes them from names.

    Returns:
      A `Model` whose params follow torchvision: `features/18/kernel` `[3, 3, in, out]`,
      `classifier/0`, and `head` for the last layer. `out` holds every convolution's output before
      norm and ReLU by its name (`features/18`), batch norms by theirs, hidden layers of the
      classifier before ReLU (`classifier/0`), the pooled `map` `[B, 7 * 7 * C]` in `[H, W, C]`
      order, and `pooled`, what the last layer reads. With `train=True` and dropout, `apply` needs
      a `key`.

    Source: Simonyan and Zisserman, ICLR 2015; layout of torchvision's vgg11 and vgg11_bn.
    """
    preprocess = image_preprocess(config.image_size, config.mean, config.std)
    return as_model(lambda draws: _VGG(config, draws), config, preprocess)


class _VGG(nnx.Module):
    def __init__(self, config: VGGConfig, draws: Draws):
        self.config = config
        self.features = nnx.Dict({})
        num_in = 3
        for index, width in config.layers:
            if width == "M":
                continue
            self.features[index] = Conv(num_in, int(width), 3, draws=draws, bias=True)
            if config.batch_norm:
                self.features[str(int(index) + 1)] = BatchNorm(int(width), draws=draws)
            num_in = int(width)
        sizes = (num_in * config.pool_size**2, *config.classifier)
        self.classifier = nnx.Dict(
            {
                str(3 * i): Linear(sizes[i], sizes[i + 1], draws=draws, std=(2 / sizes[i]) ** 0.5)
                for i in range(len(config.classifier))
            }
        )
        self.head = Linear(sizes[-1], config.num_classes, draws=draws)

    def __call__(self, x, *, train, key):
        config = self.config
        check_images(x, config.image_size)
        if train and config.dropout and key is None:
            raise ValueError("train=True with dropout needs a key")
        out = {}
        for index, width in config.layers:
            if width == "M":
                x = max_pool(x, 2, 2)
                continue
            out[f"features/{index}"] = x = self.features[index](x)
            if config.batch_norm:
                norm = str(int(index) + 1)
                out[f"features/{norm}"] = x = self.features[norm](x, train=train)
            x = jax.nn.relu(x)
        out["map"] = x = _adaptive_mean_pool(x, config.pool_size).reshape(x.shape[0], -1)
        for i in range(len(config.classifier)):
            out[f"classifier/{3 * i}"] = x = self.classifier[str(3 * i)](x)
            layer_key = jax.random.fold_in(key, i) if train and config.dropout else None
            x = dropout(jax.nn.relu(x), config.dropout, layer_key)
        out["pooled"] = x
        return self.head(x), out


def _adaptive_mean_pool(x: jax.Array, size: int) -> jax.Array:
    """Means over `size` x `size` windows that cover `[B, H, W, C]` as torch's adaptive pooling."""
    if x.shape[1:3] == (size, size):
        return x
    rows, columns = (jnp.asarray(_window_means(length, size)) for length in x.shape[1:3])
    return jnp.einsum("bhwc,ih,jw->bijc", x, rows, columns)


def _window_means(length: int, size: int) -> np.ndarray:
    """Averaging matrix `[size, length]`; window i covers floor(i L / s) to ceil((i + 1) L / s)."""
    matrix = np.zeros((size, length), np.float32)
    for i in range(size):
        start, stop = i * length // size, -(-(i + 1) * length // size)
        matrix[i, start:stop] = 1 / (stop - start)
    return matrix
