"""The same networks in plain PyTorch, with the parameter names of timm and torchvision."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional


def twins_device(platform: str) -> torch.device:
    """Where twins run beside JAX on a `platform`; a GPU takes TF32 products, as JAX's does."""
    if platform == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    return torch.device("cuda")


def styles(device: torch.device, *, compile: bool) -> dict[str, str | None]:
    """Ways to run a network that may be the fastest on a device; None is eager.

    Otherwise a mode of `torch.compile`: "reduce-overhead" replays CUDA graphs.
    """
    if device.type == "cuda":
        return {"torch.compile with CUDA graphs": "reduce-overhead"}
    return {"eager": None} | ({"torch.compile": "default"} if compile else {})


def compiled(function: Callable[..., Any], mode: str | None) -> Any:
    """A function or network in one of the `styles`."""
    return function if mode is None else torch.compile(function, mode=mode)


class Attention(nn.Module):
    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        x = functional.scaled_dot_product_attention(*qkv.unbind(0))
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, width))


class Mlp(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x):
        return self.fc2(functional.gelu(self.fc1(x)))


class TransformerBlock(nn.Module):
    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, patch_size: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_size, patch_size)

    def forward(self, images):
        return self.proj(images).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """timm's VisionTransformer with class-token pooling and no dropout."""

    def __init__(
        self,
        num_classes: int,
        *,
        image_size: int = 224,
        patch_size: int = 16,
        width: int = 192,
        depth: int = 12,
        num_heads: int = 3,
    ):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        num_tokens = 1 + (image_size // patch_size) ** 2
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, num_tokens, width))
        self.patch_embed = PatchEmbed(patch_size, width)
        self.blocks = nn.Sequential(*(TransformerBlock(width, num_heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, num_classes)

    @classmethod
    def of(cls, config: Any) -> "VisionTransformer":
        """The twin of a network of ours, from its configuration."""
        sizes = ("image_size", "patch_size", "width", "depth", "num_heads")
        return cls(config.num_classes, **{name: getattr(config, name) for name in sizes})

    def forward(self, images):
        x = self.patch_embed(images)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(x)[:, 0]))


class BasicBlock(nn.Module):
    def __init__(self, num_in: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(num_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = None
        if stride > 1 or num_in != width:
            conv = nn.Conv2d(num_in, width, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(width))

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        x = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        return functional.relu(self.bn2(self.conv2(x)) + shortcut, inplace=True)


class ResNet18(nn.Module):
    """torchvision's resnet18."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        num_in = 64
        for stage in range(4):
            width = 64 * 2**stage
            first = BasicBlock(num_in, width, 2 if stage else 1)
            stage_blocks = nn.Sequential(first, BasicBlock(width, width, 1))
            setattr(self, f"layer{stage + 1}", stage_blocks)
            num_in = width
        self.fc = nn.Linear(num_in, num_classes)

    def forward(self, images):
        x = self.maxpool(functional.relu(self.bn1(self.conv1(images)), inplace=True))
        for stage in range(4):
            x = getattr(self, f"layer{stage + 1}")(x)
        return self.fc(x.mean((2, 3)))


class VGG11(nn.Module):
    """torchvision's vgg11; `widths` of a pruned network come from the weight file's header."""

    def __init__(
        self,
        num_classes: int,
        *,
        widths: tuple[int, ...] = (64, 128, 256, 256, 512, 512, 512, 512),
        hidden: tuple[int, int] = (4096, 4096),
        batch_norm: bool = False,
    ):
        super().__init__()
        layers, num_in = [], 3
        for i, width in enumerate(widths):
            layers.append(nn.Conv2d(num_in, width, 3, padding=1))
            layers += [nn.BatchNorm2d(width)] if batch_norm else []
            layers.append(nn.ReLU(inplace=True))
            layers += [nn.MaxPool2d(2)] if i in (0, 1, 3, 5, 7) else []
            num_in = width
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(
            nn.Linear(49 * num_in, hidden[0]),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(hidden[0], hidden[1]),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(hidden[1], num_classes),
        )

    def forward(self, images):
        return self.classifier(self.avgpool(self.features(images)).flatten(1))
