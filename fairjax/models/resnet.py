"""ResNets in the layout of torchvision and timm."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fairjax.models.channels import Channels, Slot, norm_slots
from fairjax.models.convolution import BatchNorm, Conv, max_pool
from fairjax.models.functional import Draws, as_model
from fairjax.models.layers import Linear, check_images
from fairjax.models.model import Model
from fairjax.models.preprocess import IMAGENET_MEAN, IMAGENET_STD, image_preprocess

_NAMES: dict[str, dict[str, Any]] = {
    "resnet18": {"depths": (2, 2, 2, 2)},
    "resnet34": {"depths": (3, 4, 6, 3)},
    "resnet50": {"depths": (3, 4, 6, 3), "bottleneck": True},
    "resnet101": {"depths": (3, 4, 23, 3), "bottleneck": True},
    "resnet152": {"depths": (3, 8, 36, 3), "bottleneck": True},
    "resnet18d": {"depths": (2, 2, 2, 2), "deep": True},
    "resnet34d": {"depths": (3, 4, 6, 3), "deep": True},
    "resnet50d": {"depths": (3, 4, 6, 3), "bottleneck": True, "deep": True},
    "resnet101d": {"depths": (3, 4, 23, 3), "bottleneck": True, "deep": True, "image_size": 256},
    "resnet152d": {"depths": (3, 8, 36, 3), "bottleneck": True, "deep": True, "image_size": 256},
    "wide_resnet50_2": {"depths": (3, 4, 6, 3), "bottleneck": True, "inner": 2},
    "wide_resnet101_2": {"depths": (3, 4, 23, 3), "bottleneck": True, "inner": 2},
}


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """Architecture of a ResNet and the normalisation its weights expect."""

    num_classes: int
    image_size: int = 224
    depths: tuple[int, ...] = (2, 2, 2, 2)
    """Residual blocks per stage."""
    bottleneck: bool = False
    """1x1, 3x3 (strided), 1x1 convolutions with a fourfold output instead of two 3x3."""
    width: int = 64
    """Channels of the stem and of the first stage; doubles with each stage."""
    inner: int = 1
    """How many times as wide a bottleneck is inside, of wide networks."""
    deep: bool = False
    """ResNet-D: three 3x3 convolutions instead of the stem's 7x7 (`stem`, then `conv1`), and in
    shortcuts the mean of 2x2 pixels instead of every other one."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self):
        if self.num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {self.num_classes}")
        if self.inner < 1 or (self.inner > 1 and not self.bottleneck):
            raise ValueError(f"inner must be 1, or more with bottleneck=True, got {self.inner}")
        if self.image_size < 32:
            raise ValueError(f"image_size must be at least 32, got {self.image_size}")

    @property
    def blocks(self) -> tuple["BlockSpec", ...]:
        """Every residual block in order."""
        blocks, num_in = [], self.width
        for stage, depth in enumerate(self.depths):
            width = self.width * 2**stage
            num_out = width * (4 if self.bottleneck else 1)
            for i in range(depth):
                stride = 2 if stage and not i else 1
                inner = width * self.inner
                spec = BlockSpec(f"layer{stage + 1}", str(i), num_in, inner, num_out, stride)
                blocks.append(spec)
                num_in = num_out
        return tuple(blocks)

    @property
    def channel_graph(self) -> dict[str, Channels]:
        """Channels inside every block, and those that whole stages share through their sums.

        `layer2` are the channels of stage 2's output: the projection and the last convolution of
        every block in the stage. A stem without a projection behind it belongs to `layer1`.
        """
        graph: dict[str, Channels] = {}
        if self.deep:
            for i, reader in ((1, "stem/conv2"), (2, "conv1")):
                graph[f"stem/conv{i}"] = Channels(
                    self.width // 2,
                    (Slot(f"stem/conv{i}/kernel", 3), *norm_slots(f"stem/bn{i}")),
                    (Slot(f"{reader}/kernel", 2),),
                )
        stream, size = "conv1", self.width
        outputs, inputs = [Slot("conv1/kernel", 3), *norm_slots("bn1")], []
        last = 3 if self.bottleneck else 2
        for spec in self.blocks:
            path = f"{spec.stage}/{spec.index}"
            inputs.append(Slot(f"{path}/conv1/kernel", 2))
            if spec.has_projection:
                inputs.append(Slot(f"{path}/downsample/0/kernel", 2))
                graph[stream] = Channels(size, tuple(outputs), tuple(inputs))
                outputs = [Slot(f"{path}/downsample/0/kernel", 3)]
                outputs += norm_slots(f"{path}/downsample/1")
                inputs = []
            stream, size = spec.stage, spec.num_out
            outputs += [Slot(f"{path}/conv{last}/kernel", 3), *norm_slots(f"{path}/bn{last}")]
            for i in range(1, last):
                graph[f"{path}/conv{i}"] = Channels(
                    spec.width,
                    (Slot(f"{path}/conv{i}/kernel", 3), *norm_slots(f"{path}/bn{i}")),
                    (Slot(f"{path}/conv{i + 1}/kernel", 2),),
                )
        graph[stream] = Channels(size, tuple(outputs), (*inputs, Slot("head/kernel", 0)))
        return graph


@dataclasses.dataclass(frozen=True)
class BlockSpec:
    """Name and sizes of one residual block."""

    stage: str
    index: str
    num_in: int
    width: int
    num_out: int
    stride: int

    @property
    def has_projection(self) -> bool:
        """Whether the shortcut is a 1x1 convolution."""
        return self.stride > 1 or self.num_in != self.num_out


def resnet_config(name: str, num_classes: int, **overrides: Any) -> ResNetConfig | None:
    """The configuration behind `resnet50` or `wide_resnet50_2.tv_in1k`, or None."""
    name = name.partition(".")[0]  # a tag names a set of weights
    if name not in _NAMES:
        return None
    return ResNetConfig(num_classes=num_classes, **(_NAMES[name] | overrides))


def resnet(config: ResNetConfig) -> Model:
    """ResNet as pure functions of normalised float32 `[B, S, S, 3]` images.

    Args:
      config: sizes; `resnet_config` makes them from names.

    Returns:
      A `Model` whose params follow torchvision (`layer1/0/conv1/kernel` `[3, 3, in, out]`), with
      `head` for the last layer; `batch_stats` holds `mean` and `var` of each batch norm. `out`
      holds every convolution's and batch norm's output by name (`layer1/0/conv1`), the output of
      each stage (`layer1`) and `pooled` `[B, C]`.

    Source: He et al., CVPR 2016; layout of torchvision's resnet18, resnet34 and resnet50 (stride
    in the 3x3 convolution); He et al., CVPR 2019 (ResNet-D), as timm's resnet50d.
    """
    preprocess = image_preprocess(config.image_size, config.mean, config.std)
    return as_model(lambda draws: _ResNet(config, draws), config, preprocess)


class _Block(nnx.Module):
    def __init__(self, spec: BlockSpec, config: ResNetConfig, draws: Draws):
        if config.bottleneck:
            sizes = ((spec.width, 1, 1), (spec.width, 3, spec.stride), (spec.num_out, 1, 1))
        else:
            sizes = ((spec.width, 3, spec.stride), (spec.num_out, 3, 1))
        self.num_convs, num_in = len(sizes), spec.num_in
        for i, (width, size, stride) in enumerate(sizes, start=1):
            setattr(self, f"conv{i}", Conv(num_in, width, size, stride=stride, draws=draws))
            setattr(self, f"bn{i}", BatchNorm(width, draws=draws))
            num_in = width
        self.has_projection = spec.has_projection
        self.averages = config.deep and spec.stride > 1
        if spec.has_projection:
            stride = 1 if config.deep else spec.stride
            conv = Conv(spec.num_in, spec.num_out, 1, stride=stride, draws=draws)
            self.downsample = nnx.Dict({"0": conv, "1": BatchNorm(spec.num_out, draws=draws)})

    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        shortcut, out = x, {}
        if self.has_projection:
            conv: Any = self.downsample["0"]
            norm: Any = self.downsample["1"]
            out["downsample/0"] = shortcut = conv(_halve(x) if self.averages else x)
            out["downsample/1"] = shortcut = norm(shortcut, train=train)
        for i in range(1, self.num_convs + 1):
            out[f"conv{i}"] = x = getattr(self, f"conv{i}")(x)
            out[f"bn{i}"] = x = getattr(self, f"bn{i}")(x, train=train)
            x = jax.nn.relu(x) if i < self.num_convs else jax.nn.relu(x + shortcut)
        return x, out


def _halve(x: jax.Array) -> jax.Array:
    """Means of 2x2 pixels of `[B, H, W, C]`; at an odd border, of those that there are."""
    # an odd border beside itself has the mean of itself
    x = jnp.pad(x, [(0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)], mode="edge")
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))


class _ResNet(nnx.Module):
    def __init__(self, config: ResNetConfig, draws: Draws):
        self.config = config
        if config.deep:
            half = config.width // 2
            self.stem = nnx.Dict({})
            for i, (width, stride) in enumerate(((3, 2), (half, 1)), start=1):
                self.stem[f"conv{i}"] = Conv(width, half, 3, stride=stride, draws=draws)
                self.stem[f"bn{i}"] = BatchNorm(half, draws=draws)
            self.conv1 = Conv(half, config.width, 3, draws=draws)
        else:
            self.conv1 = Conv(3, config.width, 7, stride=2, draws=draws)
        self.bn1 = BatchNorm(config.width, draws=draws)
        for spec in config.blocks:
            if spec.index == "0":
                setattr(self, spec.stage, nnx.Dict({}))
            getattr(self, spec.stage)[spec.index] = _Block(spec, config, draws)
        self.head = Linear(config.blocks[-1].num_out, config.num_classes, draws=draws)

    def __call__(self, x, *, train, key):
        check_images(x, self.config.image_size)
        out = {}
        for i in (1, 2) if self.config.deep else ():
            conv, norm = self.stem[f"conv{i}"], self.stem[f"bn{i}"]
            out[f"stem/conv{i}"] = x = conv(x)
            out[f"stem/bn{i}"] = x = norm(x, train=train)
            x = jax.nn.relu(x)
        out["conv1"] = x = self.conv1(x)
        out["bn1"] = x = self.bn1(x, train=train)
        x = max_pool(jax.nn.relu(x), 3, 2, padding=1)
        for spec in self.config.blocks:
            x, inside = getattr(self, spec.stage)[spec.index](x, train=train)
            path = f"{spec.stage}/{spec.index}"
            out |= {f"{path}/{layer}": value for layer, value in inside.items()}
            out[spec.stage] = x
        out["pooled"] = x = jnp.mean(x, axis=(1, 2))
        return self.head(x), out
