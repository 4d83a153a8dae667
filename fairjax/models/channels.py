"""Which arrays of a network a channel lives in, so that pruning can be generic."""

from typing import NamedTuple


class Slot(NamedTuple):
    """One axis of one array along which channels lie.

    The axis has length `outer * C * inner`: seen as `[outer, C, inner]`, channel c is
    `[:, c, :]`. Heads of a merged qkv kernel have outer 3 and inner the head width; a linear
    layer behind a flattened 7x7 map in `[H, W, C]` order has outer 49.
    """

    path: str
    """Names of the leaf joined by "/", in `params` unless `in_stats`."""
    axis: int
    outer: int = 1
    inner: int = 1
    in_stats: bool = False
    """The leaf is in `batch_stats`."""


class Channels(NamedTuple):
    """C channels that can only be removed together wherever they appear."""

    size: int
    """C."""
    outputs: tuple[Slot, ...]
    """Arrays that produce the channels: kernels and biases, batch norm and its statistics."""
    inputs: tuple[Slot, ...]
    """Arrays that read the channels: kernels of the layers that follow."""


def norm_slots(path: str) -> list[Slot]:
    """The four vectors of a batch norm."""
    params = [Slot(f"{path}/{leaf}", axis=0) for leaf in ("scale", "bias")]
    return params + [Slot(f"{path}/{leaf}", axis=0, in_stats=True) for leaf in ("mean", "var")]
