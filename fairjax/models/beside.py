"""What a weight file's header, its neighbours and its name say of the network it belongs to.

Activations, epsilons, numbers of heads and strides have no tensors: files that differ only in them
fit by name and shape and compute something else. So whatever is written down is compared.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fairjax.models.names import config_of, normalisation_of, other_network
from fairjax.models.preprocess import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD


class Fact(NamedTuple):
    """A field of a configuration, as something says it."""

    value: Any
    source: str
    """Where it stands, for messages."""


Facts = dict[str, Fact]

_FREE = (
    *("num_classes", "image_size", "dropout", "drop_path", "dtype", "checkpoint_blocks"),
    *("mean", "std", "pool", "channel_graph"),
)
"""Fields that may differ from those of the network that a file was made with: what they change is
replaced, resized, noted, or does not outlive training."""
CHOSEN = ("norm_eps", "quick_gelu", "tanh_gelu", "mean", "std")
"""Fields that the name of a network leaves open and that its file may settle."""
_IGNORED_ARGS = ("num_classes", "img_size", "global_pool", "dynamic_img_size", "in_chans")


def facts_of(path: pathlib.Path, header: Mapping[str, Any]) -> Facts:
    """What is known of the network in a file, by field of its configuration.

    The header that `save_weights` wrote comes first, then `config.json` (transformers, timm),
    `open_clip_config.json` and `preprocessor_config.json` beside the file, then its name.

    Raises:
      ValueError: a neighbour is damaged, or says that the network is none that is known here.
    """
    if other := other_network(path.stem):
        raise ValueError(
            f"{path}: by its name a {other}, which has the tensors of a network that is known here "
            "and computes something else with them"
        )
    if config := header.get("config"):
        return _compared({k: _tuples(v) for k, v in config.items()}, "its header")
    facts: Facts = {}
    if found := normalisation_of(path.stem):
        facts |= _normalisation(*found, f"the name {path.name}")
    for name, read in _NEIGHBOURS.items():
        neighbour = path.parent / name
        if not neighbour.is_file():
            continue
        try:
            content = json.loads(neighbour.read_text(encoding="utf-8"))
            facts |= read(content if isinstance(content, dict) else {}, neighbour)
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{neighbour}, beside the weights: not readable: {error}") from None
        except (TypeError, KeyError, IndexError, AttributeError, ZeroDivisionError) as error:
            raise ValueError(
                f"{neighbour}, beside the weights: not as its library writes it "
                f"({type(error).__name__}: {error}); mend it, or take it away"
            ) from None
    return facts


def check_facts(path: pathlib.Path, config: Any, facts: Facts) -> list[str]:
    """Notes on a normalisation that differs from the model's; ValueError for all else."""
    wrong = []
    for field, (value, source) in facts.items():
        if not hasattr(config, field):
            continue  # of another family, which the names of its tensors tell
        ours = getattr(config, field)
        if field not in _FREE and ours != value:
            wrong.append(f"{field}={value!r} by {source}, the model has {ours!r}")
    if wrong:
        raise ValueError(
            f"{path}: belongs to another network: {'; '.join(wrong[:4])}; give these to image_model"
        )
    return [
        f"trained with {field} {_short(facts[field].value)} by {facts[field].source}, "
        f"the model normalises with {_short(getattr(config, field))}"
        for field in ("mean", "std")
        if field in facts
        and hasattr(config, field)
        and _short(facts[field].value) != _short(getattr(config, field))
    ]


def normalisation_note(config: Any, facts: Facts, overrides: Mapping[str, Any]) -> str:
    """The mean and deviation that images are normalised by, and who says so."""
    sources = dict.fromkeys(
        "the caller" if f in overrides else facts[f].source if f in facts else "the model's name"
        for f in ("mean", "std")
    )
    return (
        f"images are normalised with mean {_short(config.mean)} and std {_short(config.std)}, "
        f"by {' and '.join(sources)}"
    )


def obeyed(named: Any, config: Any, facts: Facts) -> tuple[str, ...]:
    """Notes on what differs from the network of that name because the file says so."""
    return tuple(
        f"{field}={getattr(config, field)!r}, by {facts[field].source}"
        for field in CHOSEN
        if field in facts
        and field not in ("mean", "std")
        and getattr(config, field, None) != getattr(named, field, None)
    )


def _short(numbers: Any) -> tuple[float, ...]:
    return tuple(round(float(number), 4) for number in numbers)


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples they were."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _compared(values: Mapping[str, Any], source: str) -> Facts:
    kept = {f: v for f, v in values.items() if f not in _FREE or f in ("mean", "std")}
    return {field: Fact(value, source) for field, value in kept.items()}


def _normalisation(mean: Any, std: Any, source: str) -> Facts:
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(f"{source}: mean {mean} and std {std} are not of three channels")
    mean, std = (tuple(map(float, numbers)) for numbers in (mean, std))
    return {"mean": Fact(mean, source), "std": Fact(std, source)}


def _refuse(neighbour: pathlib.Path, field: str, value: Any, accepted: str) -> None:
    raise ValueError(
        f"{neighbour}, beside the weights: {field}={value!r} is not known here, {accepted} is; "
        "the weights would compute something else"
    )


def _read_config(content: dict[str, Any], neighbour: pathlib.Path) -> Facts:
    """`config.json` of transformers (`model_type`) or timm (`architecture`); {} of others."""
    if "architecture" in content:
        return _read_timm(content, neighbour)
    kind = content.get("model_type")
    if kind in ("clip", "clip_vision_model"):
        inside = content.get("vision_config", content)
        facts = _read_vit({"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5} | inside, neighbour)
        return facts | _normalisation(CLIP_MEAN, CLIP_STD, "config.json")
    if kind in ("siglip", "siglip_vision_model"):
        inside = {"hidden_act": "gelu_pytorch_tanh"} | content.get("vision_config", content)
        if not inside.get("vision_use_head", True):
            _refuse(neighbour, "vision_use_head", False, "True")
        return _read_vit(inside, neighbour)
    if kind == "deit":
        normal = _normalisation(IMAGENET_MEAN, IMAGENET_STD, "config.json")
        return _read_vit(content, neighbour) | normal
    if kind in ("dinov2", "dinov2_with_registers"):
        if content.get("use_swiglu_ffn"):
            _refuse(neighbour, "use_swiglu_ffn", True, "False")
        normal = _normalisation(IMAGENET_MEAN, IMAGENET_STD, neighbour.name)
        return _read_vit(content, neighbour) | normal
    if kind in ("vit", "vit_mae"):
        return _read_vit(content, neighbour)
    if kind == "resnet":
        return _read_resnet(content, neighbour)
    if isinstance(kind, str):
        _refuse(neighbour, "model_type", kind, "vit, deit, dinov2, clip, siglip or resnet")
    return {}


def _read_vit(content: dict[str, Any], neighbour: pathlib.Path) -> Facts:
    """A transformer's sizes, its activation and its epsilon."""
    activation = content.get("hidden_act", "gelu")
    if activation not in ("gelu", "quick_gelu", "gelu_pytorch_tanh"):
        accepted = "gelu, quick_gelu or gelu_pytorch_tanh"
        _refuse(neighbour, "hidden_act", activation, accepted)
    facts: dict[str, Any] = {"quick_gelu": activation == "quick_gelu"}
    facts["tanh_gelu"] = activation == "gelu_pytorch_tanh"
    for theirs in ("image_size", "patch_size"):
        value = content.get(theirs, 0)
        if isinstance(value, list) and len(set(value)) > 1:
            _refuse(neighbour, theirs, value, "a square")
    names = {
        "layer_norm_eps": "norm_eps",
        "hidden_size": "width",
        "num_hidden_layers": "depth",
        "num_attention_heads": "num_heads",
        "patch_size": "patch_size",
    }
    for theirs, ours in names.items():
        if theirs in content:
            value = content[theirs]
            facts[ours] = value[0] if isinstance(value, list) else value
    if "mlp_ratio" in content:
        facts["mlp_ratio"] = content["mlp_ratio"]
    if "intermediate_size" in content and "hidden_size" in content:
        facts["mlp_ratio"] = content["intermediate_size"] / content["hidden_size"]
    return _compared(facts, neighbour.name)


def _read_resnet(content: dict[str, Any], neighbour: pathlib.Path) -> Facts:
    for field, accepted in (
        ("hidden_act", "relu"),
        ("downsample_in_first_stage", False),
        ("downsample_in_bottleneck", False),
    ):
        if (value := content.get(field, accepted)) != accepted:
            _refuse(neighbour, field, value, f"{accepted!r}")
    facts: dict[str, Any] = {}
    if "layer_type" in content:
        facts["bottleneck"] = content["layer_type"] == "bottleneck"
    if "depths" in content:
        facts["depths"] = tuple(content["depths"])
    return _compared(facts, neighbour.name)


def _read_timm(content: dict[str, Any], neighbour: pathlib.Path) -> Facts:
    """The architecture by its name, and how its images were normalised."""
    name, extra = content["architecture"], content.get("model_args") or {}
    try:
        config = config_of(name, 2)
    except ValueError:
        raise ValueError(
            f"{neighbour}, beside the weights: they are of timm's {name}, which is not known here"
        ) from None
    facts = _compared(dataclasses.asdict(config), f"{neighbour.name} ({name})")
    for field, value in extra.items():
        if field == "act_layer" and value in ("gelu", "quick_gelu", "gelu_tanh"):
            facts["quick_gelu"] = Fact(value == "quick_gelu", neighbour.name)
            facts["tanh_gelu"] = Fact(value == "gelu_tanh", neighbour.name)
        elif field not in _IGNORED_ARGS and not field.endswith("rate"):
            _refuse(neighbour, f"model_args {field}", value, "a network as its name says")
    pretrained = {**content, **(content.get("pretrained_cfg") or {})}
    if "mean" in pretrained and "std" in pretrained:
        facts |= _normalisation(pretrained["mean"], pretrained["std"], neighbour.name)
    return facts


def _read_open_clip(content: dict[str, Any], neighbour: pathlib.Path) -> Facts:
    model = content.get("model_cfg") or {}
    facts = _compared({"quick_gelu": bool(model.get("quick_gelu", False))}, neighbour.name)
    pictures = content.get("preprocess_cfg") or {}
    mean, std = pictures.get("mean", CLIP_MEAN), pictures.get("std", CLIP_STD)
    return facts | _normalisation(mean, std, neighbour.name)


def _read_preprocessor(content: dict[str, Any], neighbour: pathlib.Path) -> Facts:
    """transformers' image processors: scaled to about [0, 1], then normalised."""
    scale = 1.0
    if content.get("do_rescale", True):
        scale = 255 * content.get("rescale_factor", 1 / 255)
    shift = 1.0 if content.get("rescale_offset") else 0.0
    mean, std = (0.0,) * 3, (1.0,) * 3
    if content.get("do_normalize", True):
        if "image_mean" not in content or "image_std" not in content:
            return {}
        mean, std = content["image_mean"], content["image_std"]
    mean = [(number + shift) / scale for number in mean]
    return _normalisation(mean, [number / scale for number in std], neighbour.name)


_NEIGHBOURS: dict[str, Callable[[dict[str, Any], pathlib.Path], Facts]] = {
    "open_clip_config.json": _read_open_clip,
    "config.json": _read_config,
    "preprocessor_config.json": _read_preprocessor,
}
