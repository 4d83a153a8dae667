"""Weight files of other libraries in, torch-readable ones out; nothing in a file is executed."""

import dataclasses
import json
import pathlib
import re
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Key
from safetensors.numpy import save_file

from fairjax.models.adapt import (
    FIRST,
    check_numbers,
    fit_positions,
    spread_grey,
    unwrap_head,
    usual_name,
)
from fairjax.models.adapters import merge_adapter
from fairjax.models.beside import check_facts, facts_of
from fairjax.models.efficientnet import EfficientNetConfig
from fairjax.models.layouts import LAYOUTS, OWN, WRITTEN, Layout
from fairjax.models.mlp import MLPConfig
from fairjax.models.model import Model
from fairjax.models.resnet import ResNetConfig
from fairjax.models.vgg import VGGConfig
from fairjax.models.vit import ViTConfig
from fairjax.models.weight_files import read_weight_file
from fairjax.trees import is_unstacked, stack_blocks, unstack_blocks

_FAMILIES = {
    ViTConfig: "vit",
    ResNetConfig: "resnet",
    VGGConfig: "vgg",
    EfficientNetConfig: "efficientnet",
    MLPConfig: "mlp",
}
"""By configuration; networks of one's own, of any other, are "own"."""
_HARMLESS = re.compile(
    r"num_batches_tracked|position_ids$|^pooler\.|(^|\.)mask_token|^decoder|^pre_logits/|^opt/|^norm\.|^fc_norm\.|^proj$"
)
"""Names that may be left over: counters, decoders, poolers, the norm of the other pooling, CLIP's
projection to the space that it shares with text."""


class Weights(NamedTuple):
    """What a file held, in the form a model's `apply` takes."""

    params: Any
    batch_stats: Any
    notes: tuple[str, ...]
    """What was replaced, resized or left out, one sentence each."""


def load_weights(
    path: str | pathlib.Path,
    model: Model,
    key: Key[Array, ""],
    *,
    weights_key: str | None = None,
    grey: Literal["error", "spread"] = "error",
    adapter: str | pathlib.Path | None = None,
) -> Weights:
    """Read the parameters of `model` from a file written by another library or by `save_weights`.

    The layout is recognised by its names: timm, torchvision and Hugging Face transformers
    (`ViTForImageClassification`, `ResNetForImageClassification`) and the image tower of open_clip
    and efficientnet_lite_pytorch as .safetensors, or as .pth and .bin state dicts (read without
    torch); vision_transformer and big_vision as .npz. A classifier of another size is replaced by
    a fresh one, position embeddings of another grid are resized (bicubic with antialiasing, as timm
    does). OpenAI's CLIP weights belong to the models named `quickgelu`, which no tensor says.
    Networks of one's own are read as `save_weights` wrote them.

    Args:
      path: the file.
      model: a network of the same architecture; channels that `save_weights` recorded as removed
        are taken into account.
      key: typed PRNG key for a fresh classifier.
      weights_key: which state dict of a checkpoint that holds several, such as "state_dict_ema"
        and "state_dict"; None takes the average, as timm does, and says so in the notes.
      grey: what to do with a network that takes one channel: "error", or "spread" its first
        kernel, a third of it on each colour, so that it sees their mean.
      adapter: PEFT's `adapter_model.safetensors` to merge (LoRA), beside its `adapter_config.json`.

    Returns:
      `Weights(params, batch_stats, notes)`, float32 whatever the precision of the file. Transformer
      blocks are stacked unless pruning left them different.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file is damaged or of an unknown kind or layout, belongs to another
        architecture by its tensors, its header, its name or a `config.json` beside it, lacks, has
        too many or misshapes parameters (the first few are named), or holds NaN.
    """
    path = pathlib.Path(path)
    tensors, header, notes = read_weight_file(path, weights_key)
    if adapter is not None:
        tensors = merge_adapter(tensors, pathlib.Path(adapter), notes)
    if _family(model) == "vit":
        tensors = {usual_name(name): tensor for name, tensor in tensors.items()}
    layout, prefix = _detect(path, tensors, _family(model))
    notes = [*notes, *check_facts(path, model.config, facts_of(path, header))]
    try:
        widths = header.get("widths")
        if widths is None:  # trained further elsewhere: whoever saved it kept the shapes only
            widths = _widths(model, _channels(model, layout, prefix, tensors))
            notes += [f"{layer} has {n} channels left" for layer, n in widths.items()]
        expected = _expected(model, widths)
        if grey == "spread":
            tensors = spread_grey(layout, prefix, tensors, expected, notes)
        unwrap_head(model, layout, prefix, tensors, notes)
        found, used, problems = _collect(model, layout, prefix, tensors, expected, notes)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        # tensors with other axes than their names have anywhere else, a header that is not ours
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: does not fit {_describe(model)}: {reason}") from None
    left_over = sorted(set(tensors) - used)
    foreign = [name for name in left_over if not name.startswith(prefix)]
    inside = [name.removeprefix(prefix) for name in left_over if name.startswith(prefix)]
    problems["unexpected"] = [name for name in inside if not _HARMLESS.search(name)]
    if any(problems.values()):
        reasons = [
            f"{len(names)} {what}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
            for what, names in problems.items()
            if names
        ]
        raise ValueError(
            f"{path}: {layout.name} weights do not fit {_describe(model)}; {'; '.join(reasons)}"
        )
    check_numbers(path, found)
    if foreign:
        notes.append(f"ignored {len(foreign)} tensors outside {prefix!r}, such as {foreign[0]}")
    fresh = {name: shape for name, shape in expected.items() if name not in found}
    if fresh:
        notes.append(f"fresh, not from the file: {', '.join(fresh)}")
        found |= _fresh(model, key, fresh)
    return _assemble(model, found, tuple(notes))


def save_weights(
    path: str | pathlib.Path,
    model: Model,
    params: Any,
    batch_stats: Any,
    *,
    layout: str | None = None,
) -> None:
    """Write parameters as .safetensors under the names that timm or torchvision use.

    PyTorch reads the file with `load_state_dict`; networks of one's own keep their own names and
    arrays. The header's `fairjax` entry is JSON: the configuration, and under `widths` the channels
    that are left of each pruned layer, from which a PyTorch user builds the narrower network and
    `load_weights` knows what to expect. Reading the file back gives the same arrays bit by bit.
    `OPEN_IN_TORCH` of `fairjax.models.torch_card` opens a pruned one in PyTorch.

    Args:
      path: where to write; must end in .safetensors.
      model: the network, as it was before any channel was removed.
      params: its parameters, float32, masked or sliced or not, blocks stacked or not.
      batch_stats: its batch statistics, `{}` without batch norm.
      layout: whose names and shapes to write: None for the usual ones, "timm VGG", "torchvision
        ViT", "transformers ViT", "transformers ResNet" and so on, as errors list them.

    Raises:
      ValueError: another suffix, arrays that are not of this network, or no such layout of it.
    """
    path = pathlib.Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: weights are written as .safetensors")
    leaves = _flat(unstack_blocks(params), batch_stats)
    arrays = {name: np.asarray(leaf) for name, leaf in leaves.items()}
    widths = _widths(model, arrays)
    expected = _expected(model, widths)
    wrong = [
        name
        for name in sorted(expected.keys() | arrays.keys())
        if name not in arrays or arrays[name].shape != expected.get(name)
    ]
    if wrong:
        raise ValueError(f"not the parameters of {_describe(model)}: {', '.join(wrong[:4])}")
    family = _family(model)
    target = _written(model, layout)
    tensors = {}
    for name, array in arrays.items():
        tensors |= target.write(name, array, _spatial(model))
    header = {"family": family, "config": _settings(model), "widths": widths}
    save_file(tensors, path, metadata={"format": "pt", "fairjax": json.dumps(header)})


def _written(model: Model, name: str | None) -> Layout:
    """The layout of that name, or the usual one of a network."""
    family, distilled = _family(model), getattr(model.config, "distilled", False)
    layouts = [each for each in (*LAYOUTS, OWN) if each.family == family and each.style != "flax"]
    if name is None:
        name = "timm distilled ViT" if distilled else WRITTEN[family]
        name = "timm ResNet-D" if getattr(model.config, "deep", False) else name
    for each in layouts:
        if each.name == name:
            return each
    names = ", ".join(repr(each.name) for each in layouts)
    raise ValueError(f"no layout {name!r} of a {family} network; there are {names}")


def _family(model: Model) -> str:
    return _FAMILIES.get(type(model.config), "own")


def _detect(path: pathlib.Path, tensors: dict[str, Any], family: str) -> tuple[Layout, str]:
    """The layout of a file and what precedes all its names."""
    if family == "own":
        return OWN, ""  # whose names may be anything
    for layout in LAYOUTS:
        if layout.family == "mlp" and family != "mlp":
            continue  # its one name, head.weight, is in many files
        for name in sorted(tensors):
            if match := re.fullmatch(f"((?:.*[./])?){layout.marker}", name):
                if layout.family != family:
                    raise ValueError(
                        f"{path}: holds a {layout.family} network ({layout.name}), "
                        f"the model is {family}"
                    )
                return layout, match.group(1)
    raise ValueError(
        f"{path}: unknown layout, starts with {', '.join(sorted(tensors)[:4]) or 'nothing'}; "
        f"known are {', '.join(layout.name for layout in LAYOUTS)}"
    )


def _collect(
    model: Model,
    layout: Layout,
    prefix: str,
    tensors: dict[str, np.ndarray],
    expected: dict[str, tuple[int, ...]],
    notes: list[str],
) -> tuple[dict[str, Any], set[str], dict[str, list[str]]]:
    """Our arrays, the names they came from, and what is wrong with the others; remarks go to notes.

    A classifier or `fc_norm` that is absent or of another size is not wrong: it is made afresh.
    """
    found, used = {}, set()
    replaceable = (f"{model.head}/", "fc_norm/")
    problems: dict[str, list[str]] = {"missing": [], "of the wrong shape": []}
    for name, shape in expected.items():
        sources = [n if (n := prefix + s) in tensors else s for s in layout.names(name)]
        used.update(sources)
        is_head = name.startswith(replaceable)
        if not all(source in tensors for source in sources):
            if not is_head:
                problems["missing"].append(sources[0])
            continue
        arrays = [tensors[source] for source in sources]
        array = layout.read(name, arrays, _spatial(model))
        if name == "pos_embed":
            array = fit_positions(model, array, found, shape, notes)
        if array.shape == shape:
            found[name] = array
        elif not is_head:
            remedy = ' (grey="spread" takes one channel)' if array.shape[2:3] == (1,) else ""
            said = f"{sources[0]} {array.shape}, expected {shape}"
            problems["of the wrong shape"].append(said + remedy * (name in FIRST))
    return found, used, problems


def _spatial(model: Model) -> int:
    """Pixels of the map that VGG flattens."""
    return getattr(model.config, "pool_size", 1) ** 2


def _flat(*trees: Any) -> dict[str, Any]:
    """Leaves of nested dicts by path."""
    flat: dict[str, Any] = {}
    for tree in trees:
        flat.update(flatten_dict(tree, sep="/"))  # pyright: ignore[reportArgumentType]
    return flat


def _settings(model: Model) -> dict[str, Any]:
    """The configuration as a file's header has it."""
    if not dataclasses.is_dataclass(model.config):
        return {}
    fields = [field.name for field in dataclasses.fields(model.config)]
    # a network of one's own is given its graph, all others make it
    return {name: getattr(model.config, name) for name in fields if name != "channel_graph"}


def _describe(model: Model) -> str:
    default = {f.name: f.default for f in dataclasses.fields(model.config)} if model.config else {}
    sizes = {
        name: value
        for name, value in _settings(model).items()
        if name not in ("mean", "std") and value != default[name]
    }
    return f"{type(model.config).__name__.removesuffix('Config')}({sizes})"


def _abstract(model: Model) -> dict[str, tuple[int, ...]]:
    """Shapes of a network as built, blocks one by one."""

    def init(key):
        params, batch_stats = model.init(key)
        return unstack_blocks(params), batch_stats

    leaves = _flat(*jax.eval_shape(init, jax.random.key(0)))
    return {name: leaf.shape for name, leaf in leaves.items()}


def _expected(model: Model, widths: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Shapes of a network of which only `widths` channels are left in some layers."""
    shapes = _abstract(model)
    for layer, width in widths.items():
        channels = model.config.channel_graph[layer]
        for slot in channels.outputs + channels.inputs:
            shape = list(shapes[slot.path])
            shape[slot.axis] = slot.outer * width * slot.inner
            shapes[slot.path] = tuple(shape)
    return shapes


def _channels(
    model: Model, layout: Layout, prefix: str, tensors: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The arrays that tell how many channels each layer has."""
    found = {}
    for channels in getattr(model.config, "channel_graph", {}).values():
        path = channels.outputs[0].path
        sources = [n if (n := prefix + s) in tensors else s for s in layout.names(path)]
        if all(source in tensors for source in sources):
            arrays = [tensors[source] for source in sources]
            found[path] = layout.read(path, arrays, _spatial(model))
    return found


def _widths(model: Model, arrays: dict[str, np.ndarray]) -> dict[str, int]:
    """Channels left in each layer that has fewer than the network was built with."""
    widths = {}
    for layer, channels in getattr(model.config, "channel_graph", {}).items():
        slot = channels.outputs[0]
        if slot.path in arrays:
            length = arrays[slot.path].shape[slot.axis]
            if length < slot.outer * channels.size * slot.inner:
                widths[layer] = length // (slot.outer * slot.inner)
    return widths


def _fresh(
    model: Model, key: jax.Array, shapes: dict[str, tuple[int, ...]]
) -> dict[str, jax.Array]:
    """Newly initialised leaves, cut to `shapes`; jit drops the initialisation of all the others."""

    def init(key):
        flat = _flat(model.init(key)[0])
        return {name: flat[name][tuple(slice(n) for n in shape)] for name, shape in shapes.items()}

    return jax.jit(init)(key)


def _assemble(model: Model, found: dict[str, Any], notes: tuple[str, ...]) -> Weights:
    """Nested dicts of float32 arrays, split into parameters and batch statistics."""
    shapes, stats = jax.eval_shape(model.init, jax.random.key(0))
    stat_names = _flat(stats)
    trees = [
        unflatten_dict(
            {
                name: jnp.asarray(np.asarray(array, np.float32))
                for name, array in found.items()
                if (name in stat_names) == in_stats
            },
            sep="/",
        )
        for in_stats in (False, True)
    ]
    params, batch_stats = trees
    blocks = list(params.get("blocks", {}).values())
    stacked = not is_unstacked(shapes.get("blocks", {}))
    if stacked and len({str(jax.tree.map(jnp.shape, block)) for block in blocks}) == 1:
        params = jax.jit(stack_blocks)(params)
    return Weights(params, batch_stats, notes)
