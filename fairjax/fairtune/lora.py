"""Low-rank adaptation as extra parameters: networks need no code for it."""

from typing import Any

import jax
import jax.numpy as jnp

from fairjax import trees


def add_lora(
    params: dict[str, Any], key: jax.Array, *, rank: int = 8, alpha: float = 8.0
) -> dict[str, Any]:
    """Add low-rank updates of the queries and values of every transformer block.

    They are zero at first: the network computes what it did. Train them in the space "lora"; give
    the network `fold_lora(params)`, as `MaskSpace.bind` does.

    Args:
      params: with blocks stacked, kernels `blocks/attn/qkv/kernel` `[L, D, 3 D]`.
      key: for the first factors.
      rank: r, at least 1 and at most D.
      alpha: the update is `alpha / rank * a @ b`.

    Returns:
      New parameters with `blocks/lora/{q,v}/{a,b}`, `[L, D, r]` and `[L, r, D]`, and
      `blocks/lora/scale` `[L]`.

    Raises:
      ValueError: the network has no stacked transformer blocks, or `rank` is out of range.

    Source: Hu et al., ICLR 2022; `a` is drawn as in peft (uniform, variance 1 / (3 D)).
    """
    blocks = params.get("blocks", {})
    if "attn" not in blocks:
        raise ValueError("LoRA needs a transformer with stacked blocks (trees.stack_blocks)")
    depth, width, _ = blocks["attn"]["qkv"]["kernel"].shape
    if not 1 <= rank <= width:
        raise ValueError(f"rank must be in [1, {width}], got {rank}")
    bound = width**-0.5

    def factors(key: jax.Array) -> dict[str, jax.Array]:
        a = jax.random.uniform(key, (depth, width, rank), minval=-bound, maxval=bound)
        return {"a": a, "b": jnp.zeros((depth, rank, width), jnp.float32)}

    key_q, key_v = jax.random.split(key)
    scale = jnp.full(depth, alpha / rank, jnp.float32)
    lora = {"q": factors(key_q), "v": factors(key_v), "scale": scale}
    return {**params, "blocks": {**blocks, "lora": lora}}


def fold_lora(params: dict[str, Any]) -> dict[str, Any]:
    """Add the low-rank updates to the kernels and drop them; other parameters as they are.

    Args:
      params: from `add_lora`, blocks stacked or one by one.

    Returns:
      New parameters for `model.apply`. Differentiable.
    """
    blocks = params.get("blocks", {})
    if "lora" in blocks:
        return {**params, "blocks": jax.vmap(_fold_block)(blocks)}
    if trees.is_unstacked(blocks) and any("lora" in block for block in blocks.values()):
        return {**params, "blocks": {i: _fold_block(block) for i, block in blocks.items()}}
    return params


def _fold_block(block: dict[str, Any]) -> dict[str, Any]:
    lora, qkv = block["lora"], block["attn"]["qkv"]
    q, v = (lora["scale"] * (lora[part]["a"] @ lora[part]["b"]) for part in ("q", "v"))
    kernel = qkv["kernel"] + jnp.concatenate([q, jnp.zeros_like(q), v], axis=1)
    block = {name: leaf for name, leaf in block.items() if name != "lora"}
    return {**block, "attn": {**block["attn"], "qkv": {**qkv, "kernel": kernel}}}
