"""Mask spaces: which bit of a mask trains which parameters."""

import dataclasses
import itertools
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from fairjax import trees
from fairjax.fairtune.lora import fold_lora

Mask = Bool[Array | np.ndarray, " U"]
"""One bit per unit, True = trained."""

TRAINED, FROZEN = "trained", "frozen"

# Per block: the units of a space, in the order of its bits, and the parts that each one trains.
_NORM = "norm1|norm2"
_VIT_UNITS: dict[str, dict[str, str]] = {
    "blocks": {"": f"{_NORM}|attn|mlp"},
    "attention": {"attn": "attn"},
    "norm": {"norm": _NORM},
    "mlp": {"mlp": "mlp"},
    "attention+norm": {"attn+norm": f"attn|{_NORM}"},
    "attention+mlp": {"attn+mlp": "attn|mlp"},
    "norm+mlp": {"norm+mlp": f"{_NORM}|mlp"},
    "attention+norm+mlp": {"attn+norm+mlp": f"attn|{_NORM}|mlp"},
    "norm_attn_mlp": {"norm": _NORM, "attn": "attn", "mlp": "mlp"},
    "norm1_attn_norm2_mlp": {part: part for part in ("norm1", "attn", "norm2", "mlp")},
    "attention_params": {
        part: f"attn/{part}" for part in ("qkv/kernel", "qkv/bias", "proj/kernel", "proj/bias")
    },
    "lora": {"lora": "lora"},
}
_CONV, _BN = r"conv\d|downsample/0", r"bn\d|downsample/1"
_RESNET_UNITS: dict[str, dict[str, str]] = {
    "blocks": {"": f"{_CONV}|{_BN}"},
    "conv": {"conv": _CONV},
    "bn": {"bn": _BN},
    "conv_bn": {"conv": _CONV, "bn": _BN},
}

_NORMALISATION = r".*((?i:norm)|bn\d|downsample/1).*"

# Spaces that know no blocks; all but the last two suit any network.
_FIXED: dict[str, dict[str, str]] = {
    "layers": {r"(.+?)(/[^/]+)?": r"\1"},
    "full": {r".*": TRAINED},
    "linear": {r".*": FROZEN},
    "bitfit": {r".*bias": TRAINED, r".*": FROZEN},
    "norm_all": {_NORMALISATION: TRAINED, r".*": FROZEN},
    "attention_all": {r"blocks/\d+/attn/.*|pos_embed": TRAINED, r".*": FROZEN},
}

# What `mask_space` takes unless told: the parts of known blocks, else layers.
_DEFAULTS = {"norm_attn_mlp": r"blocks/(\d+/)?attn/.*", "conv_bn": r"layer\d+/\d+/bn\d/.*"}

PUBLISHED_NAMES = {
    "tune_full_block": "blocks",
    "tune_attention_blocks_random": "attention",
    "tune_layernorm_blocks_random": "norm",
    "tune_mlp_blocks_random": "mlp",
    "tune_attention_layernorm": "attention+norm",
    "tune_attention_mlp": "attention+mlp",
    "tune_layernorm_mlp": "norm+mlp",
    "tune_attention_layernorm_mlp": "attention+norm+mlp",
    "auto_peft1": "norm_attn_mlp",
    "auto_peft2": "norm1_attn_norm2_mlp",
    "tune_attention_params_random": "attention_params",
    "fullft": "full",
    "train_from_scratch": "full",
    "linear_readout": "linear",
    "tune_attention": "attention_all",
    "tune_layernorm": "norm_all",
}
"""The names of the authors' command line, and ours."""


class Description(NamedTuple):
    """What a mask trains."""

    units: tuple[str, ...]
    """Names of the units that are on."""
    num_trained: int
    """Parameters trained, the head and whatever else is always trained included."""
    num_params: int
    percent: float
    """100 * num_trained / num_params."""
    text: str
    """All of it in one line."""


@dataclasses.dataclass(frozen=True)
class MaskSpace:
    """U bits, each of which trains one unit: a bundle of parameters such as `blocks/3/mlp`.

    Attributes:
      name: readable name.
      units: U names, one per bit.
      places: tree of the parameters' structure with the bit of every leaf, int32: a scalar, or
        `[L]` for leaves of stacked blocks. U means always trained, U + 1 never.
      shapes: shape of every leaf, by name.
    """

    name: str
    units: tuple[str, ...]
    places: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]

    @property
    def num_units(self) -> int:
        """U, the length of a mask."""
        return len(self.units)

    def partition(self, params: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Split parameters into leaves that some mask trains and leaves that none does.

        A population holds P copies of the first and shares the second; see `bind`.
        """
        places = trees.flatten_named(self.places)
        return trees.partition(params, lambda name: bool((places[name] <= self.num_units).any()))

    def bind(self, tunable: dict[str, Any], frozen: dict[str, Any]) -> dict[str, Any]:
        """The parameters that `model.apply` takes: both parts together, LoRA folded in."""
        return fold_lora(trees.merge(tunable, frozen))

    def expand(self, mask: Mask) -> dict[str, Any]:
        """The mask of every tunable leaf, broadcastable to it: what `make_step`'s step takes.

        Args:
          mask: bool `[U]`, True = trained. May be traced.

        Returns:
          Tree of bool arrays, structured as the first result of `partition`; `[L, 1, ...]` for
          leaves of stacked blocks, all ones elsewhere.

        Raises:
          ValueError: the mask is not `[U]`.
        """
        mask = jnp.asarray(mask)
        self._check_length(mask.shape)
        return self._spread(jnp.concatenate([mask.astype(bool), jnp.array([True, False])]))

    def gates(self, values: Float[Array, " U"]) -> dict[str, Any]:
        """A relaxed mask for every tunable leaf: like `expand`, but float32 values `[U]`.

        What is always trained has gate 1. Differentiable.

        Raises:
          ValueError: the values are not `[U]`.
        """
        self._check_length(values.shape)
        return self._spread(jnp.concatenate([values, jnp.array([1.0, 0.0])]))

    def _spread(self, bits: jax.Array) -> dict[str, Any]:
        """One value per unit, then those of always and never, to every tunable leaf."""

        def of_leaf(name: str, place: np.ndarray) -> jax.Array:
            rank = len(self.shapes[name])
            return bits[place].reshape(place.shape + (1,) * (rank - place.ndim))

        return trees.map_named(of_leaf, self.partition(self.places)[0])

    def split(self, params: dict[str, Any], mask: Mask) -> tuple[dict[str, Any], dict[str, Any]]:
        """Split parameters for good by one mask: what it trains, and everything else.

        Where the mask treats blocks differently they come back one by one
        (`trees.unstack_blocks`), so that gradients are computed only for what is trained and
        nothing is propagated below the lowest trained block. Join the two with `bind`.

        Raises:
          ValueError: the mask is not `[U]`.
        """
        mask = np.asarray(mask, bool)
        self._check_length(mask.shape)
        bits = np.append(mask, [True, False])
        chosen = jax.tree.map(lambda place: bits[place], self.places)
        if any(bit.any() != bit.all() for bit in jax.tree.leaves(chosen)):
            chosen, params = trees.unstack_blocks(chosen), trees.unstack_blocks(params)
        trained = trees.flatten_named(chosen)
        return trees.partition(params, lambda name: bool(trained[name].all()))

    def describe(self, mask: Mask) -> Description:
        """Units, number and percentage of the parameters that a mask trains.

        Raises:
          ValueError: the mask is not `[U]`.
        """
        mask = np.asarray(mask, bool)
        self._check_length(mask.shape)
        bits = np.append(mask, [True, False])
        places, num_trained, num_params = trees.flatten_named(self.places), 0, 0
        for name, shape in self.shapes.items():
            place, size = places[name], int(np.prod(shape))
            num_params += size
            num_trained += int(bits[place].sum()) * size // max(place.size, 1)
        units = tuple(unit for unit, on in zip(self.units, mask, strict=True) if on)
        percent = 100 * num_trained / num_params
        return Description(
            units,
            num_trained,
            num_params,
            percent,
            f"{_condense(units)}; {num_trained:,} of {num_params:,} parameters ({percent:.2f} %)",
        )

    def _check_length(self, shape: tuple[int, ...]) -> None:
        if shape != (self.num_units,):
            raise ValueError(
                f"a mask of space {self.name!r} has shape ({self.num_units},), got {shape}"
            )


def mask_space(params: dict[str, Any], name: str | None = None, *, head: str = "head") -> MaskSpace:
    """The space of one tuning method.

        >>> from fairjax.models import image_model
        >>> params, _ = jax.eval_shape(image_model("vit_micro", 2).init, jax.random.key(0))
        >>> mask_space(params, "norm_attn_mlp").units[:3]
        ('blocks/0/norm', 'blocks/0/attn', 'blocks/0/mlp')

    Only what a method names is ever trained, besides the head, which always is. With L blocks:

    - one bit per block: `blocks`, `attention`, `norm`, `mlp`, their unions `attention+norm`,
      `attention+mlp`, `norm+mlp`, `attention+norm+mlp`, and `lora` (after `add_lora`);
    - 3 L bits: `norm_attn_mlp`; 4 L bits: `norm1_attn_norm2_mlp`, and `attention_params`, the
      kernels and biases of qkv and projection (with `pos_embed` always trained);
    - ResNets and EfficientNets: `blocks`, `conv`, `bn` (L bits) and `conv_bn` (2 L bits);
    - networks of any kind: `layers`, one bit per layer;
    - no bits: `norm_all`, `attention_all`, and for networks of any kind `full`, `linear` and
      `bitfit` (all biases). Other spaces of one's own networks: `mask_space_from_rules`.

    Args:
      params: of the network, or their shapes from `jax.eval_shape`.
      name: one of the above, or the authors' name for it (`PUBLISHED_NAMES`); None takes
        `norm_attn_mlp` of a ViT, `conv_bn` of a ResNet and `layers` of any other network.
      head: where the classifier is in `params`, as `Model.head` has it.

    Returns:
      `MaskSpace`; bits count blocks first, then parts within a block in the order named.

    Raises:
      ValueError: unknown name, a space that the network has no parts for, or no such head.

    Source: Dutt et al., ICLR 2024, and the authors' code for the order of the bits.
    """
    leaves = trees.flatten_named(params)
    fits = lambda pattern: any(re.fullmatch(pattern, leaf) for leaf in leaves)
    if name is None:
        name = next((known for known, pattern in _DEFAULTS.items() if fits(pattern)), "layers")
    name = PUBLISHED_NAMES.get(name, name)
    try:
        trees.get_path(params, head)
    except ValueError as error:
        raise ValueError(f"the parameters have no head {head!r}: {error}") from None
    if "blocks" in params:
        tables, block, path = _VIT_UNITS, r"blocks/(\d+)", r"blocks/\1"
    else:
        tables, block, path = _RESNET_UNITS, r"layer(\d+)/(\d+)", r"layer\1/\2"
        tables = tables if fits(rf"{block}/.*") else {}
    if name not in tables and name not in _FIXED:
        known = ", ".join([*tables, *_FIXED])
        raise ValueError(
            f"unknown mask space {name!r} for this network; known are {known}; "
            "for others see mask_space_from_rules"
        )
    rules = {rf"{re.escape(head)}(/.*)?": TRAINED}
    if name in _FIXED:
        return _space(params, rules | _FIXED[name], name, optional=".*")
    if name == "attention_params":
        rules["pos_embed"] = TRAINED
    if name == "lora":
        if "lora" not in params["blocks"]:
            raise ValueError("space 'lora' needs parameters from add_lora")
        rules[r"blocks/\d+/lora/scale"] = FROZEN
    for unit, parts in tables[name].items():
        rules[f"{block}/({parts})(/.*)?"] = f"{path}/{unit}".rstrip("/")
    return _space(params, rules | {".*": FROZEN}, name, optional=".*")


def simple_masks(space: MaskSpace) -> tuple[np.ndarray, ...]:
    r"""What people try without a search, bool `[U]` each: nothing, normalisation alone, everything.

    "Nothing" still trains the head, and whatever else the space always trains. For `first_masks` of
    a search, whose winner then is no worse than these on validation. Masks that a space has twice
    come once.

    >>> space = mask_space_from_rules(
    ...     {name: {"w": jnp.ones(2)} for name in ("norm", "conv", "fc")},
    ...     {"fc/.*": "trained", r"(norm|conv)/.*": r"\1"},
    ... )
    >>> [mask.tolist() for mask in simple_masks(space)]
    [[False, False], [False, True], [True, True]]
    """
    others = np.zeros(space.num_units + 2, bool)
    for name, place in trees.flatten_named(space.places).items():
        others[place] |= re.fullmatch(_NORMALISATION, name) is None
    nothing, norms = np.zeros(space.num_units, bool), ~others[: space.num_units]
    masks = {mask.tobytes(): mask for mask in (nothing, norms, ~nothing)}
    return tuple(masks.values())


def mask_space_from_rules(
    params: dict[str, Any], rules: Mapping[str, str], *, name: str = "rules"
) -> MaskSpace:
    r"""A space of your own: the first rule that matches a leaf's whole name decides its unit.

        >>> params = {name: {"kernel": jnp.ones((2, 2))} for name in ("conv1", "conv2", "fc")}
        >>> rules = {"fc/.*": "trained", r"(conv\d)/.*": r"\1"}
        >>> mask_space_from_rules(params, rules).units
        ('conv1', 'conv2')

    Args:
      params: nested dict of arrays or shapes. Leaves of stacked blocks are named block by block,
        `blocks/3/attn/qkv/kernel`.
      rules: regular expression -> unit, which may refer to the match's groups (`\1`). The units
        "trained" and "frozen" need no bit.
      name: what errors and results call the space.

    Returns:
      `MaskSpace`. Bits are ordered by block (the numbers in a unit's path), then by rule.

    Raises:
      ValueError: a leaf without a rule, or a rule that decides nothing.
    """
    return _space(params, rules, name)


def _space(
    params: dict[str, Any], rules: Mapping[str, str], name: str, *, optional: str | None = None
) -> MaskSpace:
    """`mask_space_from_rules`, where the `optional` rule may decide nothing."""
    compiled = [(re.compile(pattern), unit) for pattern, unit in rules.items()]
    used, order, leaf_units = set(), {}, {}
    stacked = "blocks" in params and not trees.is_unstacked(params["blocks"])

    def unit_of(name: str) -> str:
        for number, (pattern, unit) in enumerate(compiled):
            if match := pattern.fullmatch(name):
                used.add(number)
                unit = match.expand(unit)
                order.setdefault(unit, (_block_of(unit), number))
                return unit
        raise ValueError(f"no rule for parameter {name!r}; rules are {', '.join(rules)}")

    shapes = {leaf: tuple(value.shape) for leaf, value in trees.flatten_named(params).items()}
    for leaf, shape in shapes.items():
        if stacked and leaf.startswith("blocks/"):
            rest = leaf.removeprefix("blocks/")
            leaf_units[leaf] = [unit_of(f"blocks/{i}/{rest}") for i in range(shape[0])]
        else:
            leaf_units[leaf] = unit_of(leaf)
    unused = [rule for i, rule in enumerate(rules) if i not in used and rule != optional]
    if unused:
        raise ValueError(
            f"rule {unused[0]!r} decides no parameter; names look like {next(iter(shapes))!r}"
        )
    units = sorted((unit for unit in order if unit not in (TRAINED, FROZEN)), key=order.__getitem__)
    bit = {unit: i for i, unit in enumerate(units)}
    bit |= {TRAINED: len(units), FROZEN: len(units) + 1}
    places = {
        leaf: np.array([bit[u] for u in unit] if isinstance(unit, list) else bit[unit], np.int32)
        for leaf, unit in leaf_units.items()
    }
    return MaskSpace(name, tuple(units), trees.unflatten_named(places), shapes)


def _block_of(unit: str) -> tuple[int, ...]:
    """(3,) for `blocks/3/norm1`, (2, 0) for `layer2/0/conv`."""
    path = re.match(r".*(?<![^/])\d+(?![^/])", unit)
    return tuple(map(int, re.findall(r"\d+", path[0]))) if path else ()


def _condense(units: tuple[str, ...]) -> str:
    """`attn of blocks 0-2, 5; ...` for numbered units, other names as they are."""
    numbers: dict[str, list[int]] = {}
    others = []
    for unit in units:
        if match := re.fullmatch(r"blocks/(\d+)(?:/(.+))?", unit):
            numbers.setdefault(match[2] or "all", []).append(int(match[1]))
        else:
            others.append(unit)
    parts = [f"{part} of blocks {_ranges(found)}" for part, found in numbers.items()]
    return "; ".join([*parts, *others, "head"])


def _ranges(numbers: list[int]) -> str:
    """`0-2, 5` for [0, 1, 2, 5]."""
    runs = []
    for _, run in itertools.groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        run = [number for _, number in run]
        runs.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return ", ".join(runs)
