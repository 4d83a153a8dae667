"""Vision transformers in timm's layout, with blocks scanned or one by one."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fairjax.models.attention import SAVED, attend
from fairjax.models.channels import Channels, Slot
from fairjax.models.functional import Draws, init_arrays, structure_of
from fairjax.models.layers import LayerNorm, Linear, check_images, drop_path, dropout, gelu
from fairjax.models.model import Model
from fairjax.models.preprocess import IMAGE_REMEDY, as_floats, image_preprocess

POOLS = ("cls", "mean", "map")
DTYPES = ("float32", "bfloat16", "bfloat16_products")
"""bfloat16: activations and products, for accelerators. bfloat16_products: only the factors of
products, of linear layers and attention, for CPUs that multiply bfloat16 faster (avx512_bf16,
amx_bf16)."""


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Architecture of a vision transformer and the normalisation its weights expect."""

    num_classes: int
    image_size: int = 224
    patch_size: int = 16
    width: int = 192
    depth: int = 12
    num_heads: int = 3
    mlp_ratio: float = 4.0
    pool: str = "cls"
    """"mean" averages the patch tokens and then normalises (`fc_norm`), "cls" the reverse; "map" is
    SigLIP's: no class token, a learned query attends to all patches (`attn_pool`)."""
    norm_pre: bool = False
    """CLIP: normalise after adding positions, no bias in the patch embedding."""
    quick_gelu: bool = False
    tanh_gelu: bool = False
    """SigLIP in transformers and big_vision: the approximation of GELU by tanh."""
    distilled: bool = False
    """DeiT: a second class token, and a classifier that reads both, side by side."""
    num_registers: int = 0
    """DINOv2: tokens without a position, between the class token and the patches."""
    class_position: bool = True
    """Whether class tokens have positions too; not in DeiT-III nor, in timm, beside registers."""
    layer_scale: bool = False
    """DeiT-III, DINOv2: a factor for each channel of what a block adds, `attn/gamma` and
    `mlp/gamma`."""
    norm_eps: float = 1e-6
    dropout: float = 0.0
    drop_path: float = 0.0
    """Stochastic depth of the last block; rises linearly from 0 at the first."""
    dtype: str = "float32"
    """One of `DTYPES`; all parameters, norms, softmax and logits stay float32."""
    checkpoint_blocks: bool = False
    """Recompute each block in the backward pass instead of keeping what is inside it."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self):
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size must be a multiple of patch_size {self.patch_size}, "
                f"got {self.image_size}"
            )
        if self.width % self.num_heads:
            raise ValueError(
                f"width must be a multiple of num_heads {self.num_heads}, got {self.width}"
            )
        for field, accepted in (("pool", POOLS), ("dtype", DTYPES)):
            if getattr(self, field) not in accepted:
                raise ValueError(f"{field} must be one of {accepted}, got {getattr(self, field)!r}")
        for field in ("dropout", "drop_path"):
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(f"{field} must be in [0, 1), got {getattr(self, field)}")
        if self.num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {self.num_classes}")
        if self.num_registers < 0 or (self.distilled and self.pool != "cls"):
            raise ValueError(
                "num_registers must be at least 0, and a distilled network reads its class tokens "
                f'(pool="cls"), got {self.num_registers} and pool={self.pool!r}'
            )
        if (self.num_registers and self.pool == "map") or (self.quick_gelu and self.tanh_gelu):
            raise ValueError(
                'pool="map" has no registers, and only one of quick_gelu and tanh_gelu can be True'
            )

    @property
    def activations(self) -> str:
        """The dtype of what lies between the layers."""
        return "bfloat16" if self.dtype == "bfloat16" else "float32"

    @property
    def rounded(self) -> bool:
        """Whether the products of linear layers round their factors; see `Linear`."""
        return self.dtype == "bfloat16_products"

    @property
    def num_class_tokens(self) -> int:
        """Tokens that a classifier reads: the class token, and that of a distilled network."""
        return 0 if self.pool == "map" else 1 + self.distilled

    @property
    def num_positions(self) -> int:
        """Tokens with a position."""
        patches = (self.image_size // self.patch_size) ** 2
        return patches + self.num_class_tokens * self.class_position

    @property
    def channel_graph(self) -> dict[str, Channels]:
        """Heads (`blocks/3/attn`) and hidden units (`blocks/3/mlp/fc1`) that can be removed.

        Paths are those of unstacked blocks, whose widths may differ from block to block.
        """
        graph = {}
        head = self.width // self.num_heads
        for i in range(self.depth):
            attn, mlp = f"blocks/{i}/attn", f"blocks/{i}/mlp"
            graph[attn] = Channels(
                size=self.num_heads,
                outputs=(
                    Slot(f"{attn}/qkv/kernel", axis=1, outer=3, inner=head),
                    Slot(f"{attn}/qkv/bias", axis=0, outer=3, inner=head),
                ),
                inputs=(Slot(f"{attn}/proj/kernel", axis=0, inner=head),),
            )
            graph[f"{mlp}/fc1"] = Channels(
                size=int(self.width * self.mlp_ratio),
                outputs=(Slot(f"{mlp}/fc1/kernel", axis=1), Slot(f"{mlp}/fc1/bias", axis=0)),
                inputs=(Slot(f"{mlp}/fc2/kernel", axis=0),),
            )
        return graph


# What a scan keeps for the backward pass is written to stacked buffers, so it keeps the outputs of
# the large products only: recomputing norms, GELU and softmax is cheaper than storing them.
_KEEP_PRODUCTS = jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    jax.checkpoint_policies.save_only_these_names(SAVED),
)


def vit(config: ViTConfig) -> Model:
    """Vision transformer as pure functions.

    `apply` takes normalised float32 `[B, S, S, 3]` images, or `[B, T, D]` tokens (class tokens,
    registers, patches) that enter below the lowest block present (what a frozen prefix put into
    `out`). `blocks` may be stacked on a leading axis `[L]` (as `init` makes them; scanned, on a
    host with a GPU one after the other) or a dict by block number (see
    `fairjax.trees.unstack_blocks`; a Python loop, in which leaves that are not differentiated cost
    no gradient and nothing is propagated below the lowest trained block).

    Args:
      config: sizes and options; `vit_config` makes them from timm's names.

    Returns:
      A `Model`. `out` holds `tokens` `[B, T, D]` after the last block and `pooled` `[B, D]` before
      the head (`[B, 2 D]` of a distilled network); with unstacked blocks also `blocks/i`
      `[B, T, D]`, `blocks/i/attn` `[B, T, D]` (the heads side by side, before the projection) and
      `blocks/i/mlp/fc1` `[B, T, 4 D]` before GELU. With `train=True` and a `dropout` or
      `drop_path` rate, `apply` needs a `key`.

    Source: Dosovitskiy et al., ICLR 2021; layout, names and defaults of timm's VisionTransformer;
    Touvron et al. 2021 (DeiT) and 2022 (DeiT-III), Darcet et al. 2024 (registers), Zhai et al. 2023
    (SigLIP).
    """

    make_block, make_trunk = functools.partial(_Block, config), functools.partial(_Trunk, config)
    block_structure, block_draws = structure_of(make_block)
    trunk_structure, trunk_draws = structure_of(make_trunk)

    def init(key):
        key_trunk, key_blocks = jax.random.split(key)
        params, batch_stats = init_arrays(make_trunk, trunk_draws, key_trunk)
        blocks, _ = init_arrays(make_block, block_draws, key_blocks, stack=(config.depth,))
        return {**params, "blocks": blocks}, batch_stats

    def run_block(x, params, rate, key):
        block: Any = nnx.merge(block_structure, params, {})
        return block(x, rate, key)

    policy = None if config.checkpoint_blocks else _KEEP_PRODUCTS
    scanned_block = jax.checkpoint(run_block, policy=policy, prevent_cse=False)
    looped_block = jax.checkpoint(run_block) if config.checkpoint_blocks else run_block

    def scan_blocks(x, params, rates, keys):
        xs = (params, rates, keys)
        # On GPUs a loop costs a third of a population's step, and saves half of its memory.
        unroll = jax.default_backend() == "gpu"
        run = looped_block if unroll else scanned_block
        return jax.lax.scan(lambda x, xs: (run(x, *xs)[0], None), x, xs, unroll=unroll)

    def loop_blocks(x, params, rates, keys):
        out = {}
        for name in sorted(params, key=int):
            i = int(name)
            key = None if keys is None else keys[i]
            x, inside = looped_block(x, params[name], rates[i], key)
            out[f"blocks/{i}"] = x
            out |= {f"blocks/{i}/{layer}": value for layer, value in inside.items()}
        return x, out

    def apply(params, batch_stats, inputs, *, train=False, key=None):
        inputs = as_floats(inputs, IMAGE_REMEDY)
        key_trunk, keys = None, None
        if train and (config.dropout or config.drop_path):
            if key is None:
                raise ValueError("train=True with dropout or drop_path needs a key")
            key_trunk, key_blocks = jax.random.split(key)
            keys = jax.random.split(key_blocks, config.depth)
        rates = jnp.linspace(0.0, config.drop_path, config.depth, dtype=jnp.float32)
        blocks = params["blocks"]
        trunk: Any = nnx.merge(
            trunk_structure, {name: leaf for name, leaf in params.items() if name != "blocks"}, {}
        )
        x = (
            inputs.astype(config.activations)
            if inputs.ndim == 3
            else trunk.embed(inputs, key_trunk)
        )
        run = loop_blocks if all(name.isdecimal() for name in blocks) else scan_blocks
        x, out = run(x, blocks, rates, keys)
        pooled = trunk.pool(x)
        return trunk.head(pooled), {**(out or {}), "tokens": x, "pooled": pooled}, batch_stats

    preprocess = image_preprocess(config.image_size, config.mean, config.std)
    return Model(init, apply, config, preprocess)


_GAMMA = 1e-5  # of layer scale, as DINOv2 starts
_STD = 0.02  # of kernels and positions at the start, as timm draws them


class _PatchEmbed(nnx.Module):
    """Non-overlapping patches times one matrix, stored as the convolution kernel `[P, P, 3, D]`."""

    def __init__(self, config: ViTConfig, draws: Draws):
        size = config.patch_size
        kernel = draws.normal((3 * size * size) ** -0.5, size, size, 3, config.width)
        self.proj = nnx.Dict({"kernel": nnx.Param(kernel)})
        if not config.norm_pre:
            self.proj["bias"] = nnx.Param(draws.full(0.0, config.width))

    def __call__(self, images: jax.Array) -> jax.Array:
        kernel = self.proj["kernel"][...].astype(images.dtype)
        size, _, _, width = kernel.shape
        batch, side = images.shape[0], images.shape[1] // size
        patches = images.reshape(batch, side, size, side, size, 3).transpose(0, 1, 3, 2, 4, 5)
        x = patches.reshape(batch * side * side, -1) @ kernel.reshape(-1, width)
        if "bias" in self.proj:
            x = x + self.proj["bias"][...].astype(x.dtype)[None]
        return x.reshape(batch, side * side, width)


class _Trunk(nnx.Module):
    """What surrounds the blocks: embedding below, pooling and classifier above."""

    def __init__(self, config: ViTConfig, draws: Draws):
        self.config = config
        self.patch_embed = _PatchEmbed(config, draws)
        if config.num_class_tokens:
            self.cls_token = nnx.Param(draws.normal(1e-6, 1, 1, config.width))
        if config.distilled:
            self.dist_token = nnx.Param(draws.normal(_STD, 1, 1, config.width))
        if config.num_registers:
            self.reg_token = nnx.Param(draws.normal(1e-6, 1, config.num_registers, config.width))
        self.pos_embed = nnx.Param(draws.normal(_STD, 1, config.num_positions, config.width))
        if config.norm_pre:
            self.norm_pre = LayerNorm(config.width, draws=draws, eps=config.norm_eps)
        norm = LayerNorm(config.width, draws=draws, eps=config.norm_eps)
        if config.pool == "mean":
            self.fc_norm = norm
        else:
            self.norm = norm
        if config.pool == "map":
            self.attn_pool = _AttentionPool(config, draws)
        width = config.width * max(1, config.num_class_tokens)
        self.head = Linear(width, config.num_classes, draws=draws, std=_STD)

    def embed(self, images: jax.Array, key: jax.Array | None) -> jax.Array:
        config = self.config
        check_images(images, config.image_size)
        x = self.patch_embed(images.astype(config.activations))
        positions = self.pos_embed[...].astype(x.dtype)
        if not config.class_position:
            x = x + positions
        names = ("cls_token", "dist_token")[: config.num_class_tokens]
        classes = [getattr(self, name) for name in names]
        x = jnp.concatenate([*(_for_all(token, x) for token in classes), x], axis=1)
        if config.class_position:
            x = x + positions
        if config.num_registers:
            count = config.num_class_tokens
            x = jnp.concatenate([x[:, :count], _for_all(self.reg_token, x), x[:, count:]], axis=1)
        x = dropout(x, config.dropout, key)
        return self.norm_pre(x) if config.norm_pre else x

    def pool(self, x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        if self.config.pool == "mean":
            return self.fc_norm(jnp.mean(x[:, 1 + self.config.num_registers :], axis=1))
        if self.config.distilled:
            return self.norm(x[:, :2]).reshape(x.shape[0], -1)
        if self.config.pool == "map":
            return self.attn_pool(self.norm(x))
        return self.norm(x[:, 0])


def _for_all(token: Any, x: jax.Array) -> jax.Array:
    """A token `[1, n, D]` for each example of `[B, T, D]`."""
    token = token[...].astype(x.dtype)
    return jnp.broadcast_to(token, (x.shape[0], *token.shape[1:]))


def _scaled(layer: Any, x: jax.Array) -> jax.Array:
    """The output of a layer times its factors, where it has some."""
    return x * layer.gamma[...].astype(x.dtype)[None, None] if hasattr(layer, "gamma") else x


class _Attention(nnx.Module):
    def __init__(self, config: ViTConfig, draws: Draws):
        width = config.width
        self.head_width, self.rounded = width // config.num_heads, config.rounded
        self.qkv = Linear(width, 3 * width, draws=draws, std=_STD, rounded=config.rounded)
        self.proj = Linear(width, width, draws=draws, std=_STD, rounded=config.rounded)
        if config.layer_scale:
            self.gamma = nnx.Param(draws.full(_GAMMA, width))

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        heads = attend(self.qkv(x), self.head_width, rounded=self.rounded)
        return _scaled(self, self.proj(heads)), heads


class _Mlp(nnx.Module):
    def __init__(self, config: ViTConfig, draws: Draws):
        hidden = int(config.width * config.mlp_ratio)
        self.config = config
        self.fc1 = Linear(config.width, hidden, draws=draws, std=_STD, rounded=config.rounded)
        self.fc2 = Linear(hidden, config.width, draws=draws, std=_STD, rounded=config.rounded)
        if config.layer_scale:
            self.gamma = nnx.Param(draws.full(_GAMMA, config.width))

    def __call__(self, x: jax.Array, key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        hidden = self.fc1(x)
        if self.config.quick_gelu:
            x = hidden * jax.nn.sigmoid(1.702 * hidden)
        else:
            x = jax.nn.gelu(hidden) if self.config.tanh_gelu else gelu(hidden)
        return _scaled(self, self.fc2(dropout(x, self.config.dropout, key))), hidden


class _AttentionPool(nnx.Module):
    """SigLIP's head: one learned query attends to all tokens, and a perceptron follows."""

    def __init__(self, config: ViTConfig, draws: Draws):
        width = config.width
        self.num_heads = config.num_heads
        self.latent = nnx.Param(draws.normal(width**-0.5, 1, 1, width))
        self.qkv = Linear(width, 3 * width, draws=draws, std=_STD)
        self.proj = Linear(width, width, draws=draws, std=_STD)
        self.norm = LayerNorm(width, draws=draws, eps=config.norm_eps)
        self.mlp = _Mlp(config, draws)

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, _, width = x.shape
        tokens = jnp.concatenate([_for_all(self.latent, x), x], axis=1)
        q, k, v = jnp.split(self.qkv(tokens), 3, axis=-1)
        heads = (batch, -1, self.num_heads, width // self.num_heads)
        q, k, v = q[:, :1].reshape(heads), k[:, 1:].reshape(heads), v[:, 1:].reshape(heads)
        scores = jnp.einsum("bqhd,bnhd->bhqn", q * heads[-1] ** -0.5, k)
        pooled = jnp.einsum("bhqn,bnhd->bqhd", jax.nn.softmax(scores, axis=-1), v)
        y = self.proj(pooled.reshape(batch, width))
        return y + self.mlp(self.norm(y)[:, None], None)[0][:, 0]


class _Block(nnx.Module):
    def __init__(self, config: ViTConfig, draws: Draws):
        self.rate = config.dropout
        self.norm1 = LayerNorm(config.width, draws=draws, eps=config.norm_eps)
        self.attn = _Attention(config, draws)
        self.norm2 = LayerNorm(config.width, draws=draws, eps=config.norm_eps)
        self.mlp = _Mlp(config, draws)

    def __call__(self, x: jax.Array, path_rate: jax.Array, key: jax.Array | None):
        keys = (None,) * 5 if key is None else jax.random.split(key, 5)
        y, heads = self.attn(self.norm1(x))
        x = x + drop_path(dropout(y, self.rate, keys[0]), path_rate, keys[1])
        y, hidden = self.mlp(self.norm2(x), keys[2])
        x = x + drop_path(dropout(y, self.rate, keys[3]), path_rate, keys[4])
        return x, {"attn": heads, "mlp/fc1": hidden}
