"""What every network looks like from outside: pure functions, its configuration and its head."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Float32, Key, Shaped

Preprocess = Callable[[Shaped[Array | np.ndarray, "B H W 3"]], Float32[Array, "B S S 3"]]
"""From the images of a data set to those that a network takes."""


class Model(NamedTuple):
    """A network as pure functions over plain nested dicts of arrays."""

    init: Callable[[Key[Array, ""]], tuple[Any, Any]]
    """`init(key) -> (params, batch_stats)`; `batch_stats` is `{}` without batch norm."""
    apply: Callable[..., tuple[Float[Array, "B K"], dict[str, Any], Any]]
    """`apply(params, batch_stats, inputs, *, train=False, key=None)`
    `-> (logits [B, K] float32, out, batch_stats)`; `out` holds intermediates that XLA drops when
    they are not used. Integer inputs are refused."""
    config: Any = None
    """The frozen dataclass the network was made from. Image networks carry `image_size` and the
    `mean` and `std` their weights expect; `channel_graph` says which arrays share channels."""
    preprocess: Preprocess | None = None
    """From the inputs of a data set to those of `apply`, without randomness: of image networks
    uint8, or float32 in [0, 1], `[B, H, W, 3]` of any size to normalised float32 `[B, S, S, 3]`.
    None where they are the same. Training, prediction and scoring apply it themselves."""
    head: str = "head"
    """Where the classifier `{"kernel", "bias"}` is in `params`; names of nested dicts are joined by
    "/"."""
