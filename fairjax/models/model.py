"""What every network looks like from outside: two pure functions and its configuration."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Model(NamedTuple):
    """A network as pure functions over plain nested dicts of arrays."""

    init: Callable[[jax.Array], tuple[Any, Any]]
    """`init(key) -> (params, batch_stats)`; `batch_stats` is `{}` without batch norm."""
    apply: Callable[..., tuple[jax.Array, dict[str, Any], Any]]
    """`apply(params, batch_stats, inputs, *, train=False, key=None)`
    `-> (logits [B, K] float32, out, batch_stats)`; `out` holds intermediates that XLA drops when
    they are not used."""
    config: Any = None
    """The frozen dataclass the network was made from. Image networks carry `image_size` and the
    `mean` and `std` their weights expect; `channel_graph` says which arrays share channels."""
