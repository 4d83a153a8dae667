"""Inference as one self-contained file that runs on CPU, CUDA and TPU without this package."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, UInt8

from fairjax.models.model import Model

Images = UInt8[Array | np.ndarray, "B S S 3"]
PLATFORMS = ("cpu", "cuda", "tpu")


def save_inference(path: str | pathlib.Path, model: Model, params: Any, batch_stats: Any) -> None:
    """Write the function from uint8 images to class probabilities, weights included.

    The file takes any batch size and holds the program for CPU, CUDA and TPU; `model.preprocess` is
    part of it. Needs the extra `export` (flatbuffers).

    Args:
      path: where to write.
      model: an image network (it has `preprocess`, and its `config` `image_size`).
      params: its parameters, sliced or not.
      batch_stats: its batch statistics, `{}` without batch norm.

    Raises:
      ValueError: the model does not take images, or flatbuffers is not installed.
    """
    config, preprocess = model.config, model.preprocess
    if preprocess is None or not getattr(config, "image_size", None):
        raise ValueError(
            "only image networks are exported: with preprocess, and image_size in their "
            f"configuration (wrap_nnx takes it from example), got {type(config).__name__}"
        )

    # the one place where arrays are closed over: they are meant to be constants of the program
    @jax.jit
    def predict(images):
        return jax.nn.softmax(model.apply(params, batch_stats, preprocess(images))[0])

    (batch,) = jax.export.symbolic_shape("batch")
    shape = (batch, config.image_size, config.image_size, 3)
    images = jax.ShapeDtypeStruct(shape, jnp.uint8)
    exported = jax.export.export(predict, platforms=PLATFORMS)(images)
    try:
        blob = exported.serialize()
    except ImportError:
        raise ValueError("exporting needs flatbuffers: pip install 'fairjax[export]'") from None
    pathlib.Path(path).write_bytes(blob)


def load_inference(path: str | pathlib.Path) -> Callable[[Images], Float32[Array, "B K"]]:
    """The function that `save_inference` wrote: uint8 `[B, S, S, 3]` to float32 `[B, K]`.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not an exported function.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such exported function")
    try:
        exported = jax.export.deserialize(bytearray(path.read_bytes()))
    except Exception as error:  # flatbuffers raises whatever the first wrong offset leads to
        raise ValueError(f"{path}: not an exported function ({type(error).__name__})") from None
    return jax.jit(exported.call)
