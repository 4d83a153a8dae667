"""EfficientNet-Lite0 in the layout of the pip package efficientnet_lite_pytorch."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from fairjax.models.channels import Channels, Slot, norm_slots
from fairjax.models.convolution import BatchNorm, Conv
from fairjax.models.depthwise import DepthwiseConv, pad_same
from fairjax.models.functional import Draws, as_model
from fairjax.models.layers import Linear, check_images, drop_path, dropout
from fairjax.models.model import Model
from fairjax.models.preprocess import image_preprocess


class Stage(NamedTuple):
    """Blocks of one width; only the first of them has the stride."""

    depth: int
    """Blocks."""
    width: int
    """Channels of their outputs."""
    size: int
    """Side of the depthwise kernels."""
    stride: int
    expansion: int
    """Channels inside a block per channel of its input."""


_LITE0 = (
    Stage(1, 16, size=3, stride=1, expansion=1),
    Stage(2, 24, size=3, stride=2, expansion=6),
    Stage(2, 40, size=5, stride=2, expansion=6),
    Stage(3, 80, size=3, stride=2, expansion=6),
    Stage(3, 112, size=5, stride=1, expansion=6),
    Stage(4, 192, size=5, stride=2, expansion=6),
    Stage(1, 320, size=3, stride=1, expansion=6),
)


@dataclasses.dataclass(frozen=True)
class EfficientNetConfig:
    """Architecture of an EfficientNet-Lite and the normalisation its weights expect."""

    num_classes: int
    image_size: int = 224
    stages: tuple[Stage, ...] = _LITE0
    stem: int = 32
    """Channels of the first convolution."""
    head_width: int = 1280
    """Channels of the last convolution."""
    dropout: float = 0.2
    """Before the classifier, in training."""
    drop_path: float = 0.2
    """Of the residual branches, in training: rises linearly from 0 to nearly this in the last."""
    # pixels from 0 to 255 less 127, divided by 128
    mean: tuple[float, float, float] = (127 / 255, 127 / 255, 127 / 255)
    std: tuple[float, float, float] = (128 / 255, 128 / 255, 128 / 255)

    def __post_init__(self):
        for field in ("dropout", "drop_path"):
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(f"{field} must be in [0, 1), got {getattr(self, field)}")
        if self.num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {self.num_classes}")
        if self.image_size < 32:
            raise ValueError(f"image_size must be at least 32, got {self.image_size}")

    @property
    def blocks(self) -> tuple["BlockSpec", ...]:
        """Every block in order."""
        blocks, num_in = [], self.stem
        for number, stage in enumerate(self.stages, start=1):
            for i in range(stage.depth):
                stride = 1 if i else stage.stride
                width = num_in * stage.expansion
                spec = (f"layer{number}", str(len(blocks)), num_in, width, stage.width)
                blocks.append(BlockSpec(*spec, stage.size, stride))
                num_in = stage.width
        return tuple(blocks)

    @property
    def channel_graph(self) -> dict[str, Channels]:
        """Channels inside every block, and those that whole stages share through their sums.

        A depthwise convolution has no channels of its own: it belongs to `layer2/1/conv1`, whose
        channels it goes through, or to the block's input where nothing widens that. `layer2` are
        the channels of stage 2's output, `conv1` those of the stem.
        """
        graph: dict[str, Channels] = {}
        stream, size = "conv1", self.stem
        outputs, inputs = [Slot("conv1/kernel", 3), *norm_slots("bn1")], []
        for spec in self.blocks:
            inside = [Slot(f"{spec.path}/conv2/kernel", 3), *norm_slots(f"{spec.path}/bn2")]
            reader = Slot(f"{spec.path}/conv3/kernel", 2)
            if spec.widens:
                inputs.append(Slot(f"{spec.path}/conv1/kernel", 2))
                first = [Slot(f"{spec.path}/conv1/kernel", 3), *norm_slots(f"{spec.path}/bn1")]
                channels = Channels(spec.width, (*first, *inside), (reader,))
                graph[f"{spec.path}/conv1"] = channels
            else:
                outputs += inside
                inputs.append(reader)
            if not spec.has_shortcut:
                graph[stream] = Channels(size, tuple(outputs), tuple(inputs))
                stream, size, outputs, inputs = spec.stage, spec.num_out, [], []
            outputs += [Slot(f"{spec.path}/conv3/kernel", 3), *norm_slots(f"{spec.path}/bn3")]
        graph[stream] = Channels(size, tuple(outputs), (*inputs, Slot("conv2/kernel", 2)))
        last = (Slot("conv2/kernel", 3), *norm_slots("bn2"))
        return graph | {"conv2": Channels(self.head_width, last, (Slot("head/kernel", 0),))}


@dataclasses.dataclass(frozen=True)
class BlockSpec:
    """Name and sizes of one block."""

    stage: str
    index: str
    num_in: int
    width: int
    num_out: int
    size: int
    stride: int

    @property
    def path(self) -> str:
        """Its name in the parameters."""
        return f"{self.stage}/{self.index}"

    @property
    def widens(self) -> bool:
        """Whether a 1x1 convolution comes before the depthwise one."""
        return self.width != self.num_in

    @property
    def has_shortcut(self) -> bool:
        """Whether the input is added to the output."""
        return self.stride == 1 and self.num_in == self.num_out


def efficientnet_config(name: str, num_classes: int, **overrides: Any) -> EfficientNetConfig | None:
    """The configuration behind `efficientnet_lite0`, or None."""
    if name != "efficientnet_lite0":
        return None
    return EfficientNetConfig(num_classes=num_classes, **overrides)


def efficientnet(config: EfficientNetConfig) -> Model:
    """EfficientNet-Lite as pure functions of normalised float32 `[B, S, S, 3]` images.

    Args:
      config: sizes; `efficientnet_config` makes them from a name.

    Returns:
      A `Model` whose params are named as those of a ResNet: `conv1` and `bn1` are the stem, `conv2`
      and `bn2` the last convolution; block n of the network (counted through all stages) has
      `layer3/4/conv1`, which widens, the depthwise `conv2` with its kernel `[5, 5, 1, C]`, and
      `conv3`, which narrows. Block 0 has no `conv1`. `out` holds every convolution's and batch
      norm's output by name, the output of each stage (`layer3`) and `pooled` `[B, C]`.
      With `train=True` and a `dropout` or `drop_path` rate, `apply` needs a `key`.

    Source: Tan and Le, ICML 2019; the lite variant of their code (ReLU6, no squeeze and
    excitation, "SAME" padding), as the package efficientnet_lite_pytorch has it.
    """
    preprocess = image_preprocess(config.image_size, config.mean, config.std)
    return as_model(lambda draws: _EfficientNet(config, draws), config, preprocess)


def _norm(width: int, draws: Draws) -> BatchNorm:
    return BatchNorm(width, draws=draws, momentum=0.01, eps=1e-3)


class _Block(nnx.Module):
    def __init__(self, spec: BlockSpec, draws: Draws):
        self.spec = spec
        if spec.widens:
            self.conv1 = Conv(spec.num_in, spec.width, 1, draws=draws)
            self.bn1 = _norm(spec.width, draws)
        self.conv2 = DepthwiseConv(spec.width, spec.size, stride=spec.stride, draws=draws)
        self.bn2 = _norm(spec.width, draws)
        self.conv3 = Conv(spec.width, spec.num_out, 1, draws=draws)
        self.bn3 = _norm(spec.num_out, draws)

    def __call__(
        self, x: jax.Array, *, train: bool, rate: float, key: jax.Array | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        shortcut, out = x, {}
        for i in (1, 2, 3) if self.spec.widens else (2, 3):
            out[f"conv{i}"] = x = getattr(self, f"conv{i}")(x)
            out[f"bn{i}"] = x = getattr(self, f"bn{i}")(x, train=train)
            x = x if i == 3 else jax.nn.relu6(x)
        if self.spec.has_shortcut:
            x = shortcut + drop_path(x, jnp.float32(rate), key)
        return x, out


class _EfficientNet(nnx.Module):
    def __init__(self, config: EfficientNetConfig, draws: Draws):
        self.config = config
        self.conv1 = Conv(3, config.stem, 3, stride=2, padding=0, draws=draws)
        self.bn1 = _norm(config.stem, draws)
        for spec in config.blocks:
            if not hasattr(self, spec.stage):
                setattr(self, spec.stage, nnx.Dict({}))
            getattr(self, spec.stage)[spec.index] = _Block(spec, draws)
        self.conv2 = Conv(config.blocks[-1].num_out, config.head_width, 1, draws=draws)
        self.bn2 = _norm(config.head_width, draws)
        self.head = Linear(config.head_width, config.num_classes, draws=draws)

    def __call__(self, x, *, train, key):
        config, blocks = self.config, self.config.blocks
        check_images(x, config.image_size)
        keys = [None] * (len(blocks) + 1)
        if train and (config.dropout or config.drop_path):
            if key is None:
                raise ValueError("train=True with dropout or drop_path needs a key")
            keys = jax.random.split(key, len(blocks) + 1)
        out = {}
        out["conv1"] = x = self.conv1(pad_same(x, 3, 2))
        out["bn1"] = x = self.bn1(x, train=train)
        x = jax.nn.relu6(x)
        for n, spec in enumerate(blocks):
            rate = config.drop_path * n / len(blocks)
            x, inside = getattr(self, spec.stage)[spec.index](
                x, train=train, rate=rate, key=keys[n] if rate else None
            )
            out |= {f"{spec.path}/{layer}": value for layer, value in inside.items()}
            out[spec.stage] = x
        out["conv2"] = x = self.conv2(x)
        out["bn2"] = x = self.bn2(x, train=train)
        out["pooled"] = x = jnp.mean(jax.nn.relu6(x), axis=(1, 2))
        return self.head(dropout(x, config.dropout, keys[-1])), out
