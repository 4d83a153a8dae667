"""How other libraries name and shape the parameters of the same networks.

A layout turns a path such as `blocks/3/attn/qkv/kernel` into the names a file uses, and the arrays
found there into ours (and back, for the layouts that are written). Layouts are told apart by one
name that only they have; whatever precedes that name in a file is a prefix of all the others.
"""

import re
from typing import Literal, NamedTuple

import numpy as np

Rules = tuple[tuple[str, str], ...]


class Layout(NamedTuple):
    """One library's names for one family of networks."""

    name: str
    family: str
    """"vit", "resnet", "vgg", "efficientnet", "mlp", or "own" for networks of one's own."""
    marker: str
    """Regular expression of a name that only this layout has."""
    rules: Rules
    """Substitutions on our path; `(a|b)` in the result names several arrays laid side by side."""
    style: Literal["torch", "flax", "own"] = "torch"
    """torch: kernels are `[out, in, ...]` and leaves are named as torch names them; flax: heads are
    an axis of their own; own: names and arrays are ours."""
    body: str = ""
    """What a written file has before all names but the classifier's."""

    def names(self, path: str) -> tuple[str, ...]:
        """The names under which a file holds our `path`."""
        if self.style == "torch":
            head, leaf = path.rpartition("/")[::2]
            path = f"{head}/{_TORCH_LEAVES.get(leaf, leaf)}" if head else leaf
        for pattern, replacement in self.rules:
            path = re.sub(pattern, replacement, path)
        parts = re.fullmatch(r"(.*)\((.*)\)(.*)", path)
        paths = [path]
        if parts:
            before, choices, after = parts.groups()
            paths = [before + choice + after for choice in choices.split("|")]
        return tuple(path.replace("/", ".") if self.style == "torch" else path for path in paths)

    def read(self, path: str, arrays: list[np.ndarray], spatial: int) -> np.ndarray:
        """Our array from those in the file; `spatial` pixels lie below VGG's first linear layer."""
        if self.style == "own":
            return arrays[0]
        if self.style == "torch":
            arrays = [_from_torch(path, array, spatial) for array in arrays]
        elif "attn/qkv" in path:
            arrays = [array.reshape(*array.shape[:-2], -1) for array in arrays]
        elif path.endswith("attn/proj/kernel"):
            arrays = [array.reshape(-1, array.shape[-1]) for array in arrays]
        if len(arrays) == 2 and path.startswith("head/"):
            # the mean of two classifiers is one that reads both tokens
            mean = [array / 2 for array in arrays]
            return np.concatenate(mean) if path.endswith("kernel") else mean[0] + mean[1]
        return np.concatenate(arrays, axis=-1) if len(arrays) > 1 else arrays[0]

    def write(self, path: str, array: np.ndarray, spatial: int) -> dict[str, np.ndarray]:
        """The inverse of `read`, for layouts in the style of torch and our own."""
        if self.style == "own":
            return {path: array}
        names = self.names(path)
        if path == _FLATTENED and spatial > 1:
            array = array.reshape(spatial, -1, array.shape[-1]).swapaxes(0, 1)
            array = array.reshape(-1, array.shape[-1])
        if len(names) == 2 and path.startswith("head/"):  # of a distilled network, see `read`
            arrays = np.split(2 * array, 2) if path.endswith("kernel") else [array, array]
        elif path.startswith("attn_pool/") and len(names) == 2:  # timm's query, and keys and values
            arrays = np.split(array, [array.shape[-1] // 3], axis=-1)
        else:
            arrays = np.split(array, len(names), axis=-1)
        if names[0].startswith("embeddings.position_embedding."):
            arrays = [array[0]]
        elif names[0].endswith("class_embedding"):
            arrays = [array.reshape(-1)]
        if path.endswith("kernel"):
            arrays = [a.transpose(3, 2, 0, 1) if a.ndim == 4 else a.T for a in arrays]
            if names[0].startswith("pre_logits"):  # timm's convolutions over VGG's whole map
                side = round(spatial**0.5) if path == _FLATTENED else 1
                arrays = [a.reshape(len(a), -1, side, side) for a in arrays]
        prefix = "" if path.startswith("head/") else self.body
        arrays = map(np.ascontiguousarray, arrays)
        return {prefix + name: array for name, array in zip(names, arrays, strict=True)}


_TORCH_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
_FLATTENED = "classifier/0/kernel"
"""VGG's first linear layer: torch flattens the map as C, H, W, we as H, W, C."""


def _from_torch(path: str, array: np.ndarray, spatial: int) -> np.ndarray:
    if path in ("cls_token", "dist_token", "reg_token", "pos_embed"):
        return array.reshape(1, -1, array.shape[-1])  # CLIP leaves out axes of length 1
    if not path.endswith("kernel"):
        return array
    if path.startswith("classifier/"):
        # timm writes VGG's linear layers as convolutions over the whole map
        array = array.reshape(len(array), -1)
        if path == _FLATTENED:
            array = array.reshape(len(array), -1, spatial).swapaxes(1, 2).reshape(len(array), -1)
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def _resnet_rules() -> Rules:
    """transformers counts stages and layers from 0 and pairs convolutions with norms."""
    rules = [
        (r"^conv1/", r"embedder/embedder/convolution/"),
        (r"^bn1/", r"embedder/embedder/normalization/"),
        (r"^head/", r"classifier/1/"),
    ]
    for stage in range(1, 5):
        layers = rf"encoder/stages/{stage - 1}/layers/\1"
        block = rf"^layer{stage}/(\d+)"
        rules.append((rf"{block}/downsample/0/", rf"{layers}/shortcut/convolution/"))
        rules.append((rf"{block}/downsample/1/", rf"{layers}/shortcut/normalization/"))
        for i in range(1, 4):
            rules.append((rf"{block}/conv{i}/", rf"{layers}/layer/{i - 1}/convolution/"))
            rules.append((rf"{block}/bn{i}/", rf"{layers}/layer/{i - 1}/normalization/"))
    return tuple(rules)


def _transformers_vit(block: str, attention: str, proj: str, fc1: str, fc2: str) -> Rules:
    return (
        (r"^blocks/(\d+)/norm1/", rf"{block}/layernorm_before/"),
        (r"^blocks/(\d+)/norm2/", rf"{block}/layernorm_after/"),
        (r"^blocks/(\d+)/attn/qkv/", rf"{block}/{attention}/"),
        (r"^blocks/(\d+)/attn/proj/", rf"{block}/{proj}/"),
        (r"^blocks/(\d+)/mlp/fc1/", rf"{block}/{fc1}/"),
        (r"^blocks/(\d+)/mlp/fc2/", rf"{block}/{fc2}/"),
        (r"^patch_embed/proj/", r"embeddings/patch_embeddings/projection/"),
        (r"^cls_token$", r"embeddings/cls_token"),
        (r"^pos_embed$", r"embeddings/position_embeddings"),
        (r"^norm/", r"layernorm/"),
        (r"^head/", r"classifier/"),
    )


_SCALES = (
    (r"^blocks/(\d+)/attn/gamma", r"blocks/\1/ls1/gamma"),
    (r"^blocks/(\d+)/mlp/gamma", r"blocks/\1/ls2/gamma"),
)
"""timm's names of what layer scale multiplies by."""

_BERT = _transformers_vit(
    r"encoder/layer/\1",
    "attention/attention/(query|key|value)",
    "attention/output/dense",
    "intermediate/dense",
    "output/dense",
)

_TORCHVISION_VIT = (
    (r"^blocks/(\d+)/norm([12])/", r"encoder/layers/encoder_layer_\1/ln_\2/"),
    (r"^blocks/(\d+)/attn/qkv/", r"encoder/layers/encoder_layer_\1/self_attention/in_proj_"),
    (r"^blocks/(\d+)/attn/proj/", r"encoder/layers/encoder_layer_\1/self_attention/out_proj/"),
    (r"^blocks/(\d+)/mlp/fc1/", r"encoder/layers/encoder_layer_\1/mlp/0/"),
    (r"^blocks/(\d+)/mlp/fc2/", r"encoder/layers/encoder_layer_\1/mlp/3/"),
    (r"^patch_embed/proj/", r"conv_proj/"),
    (r"^cls_token$", r"class_token"),
    (r"^pos_embed$", r"encoder/pos_embedding"),
    (r"^norm/", r"encoder/ln/"),
    (r"^head/", r"heads/head/"),
)

_DINOV2 = (
    (r"^blocks/(\d+)/norm([12])/", r"encoder/layer/\1/norm\2/"),
    (r"^blocks/(\d+)/attn/gamma", r"encoder/layer/\1/layer_scale1/lambda1"),
    (r"^blocks/(\d+)/mlp/gamma", r"encoder/layer/\1/layer_scale2/lambda1"),
    (r"^blocks/(\d+)/mlp/", r"encoder/layer/\1/mlp/"),
    (r"^reg_token$", r"embeddings/reg_token"),
    *_BERT,
)

_CLIP = (
    (r"^blocks/(\d+)/norm([12])/", r"transformer/resblocks/\1/ln_\2/"),
    (r"^blocks/(\d+)/attn/qkv/", r"transformer/resblocks/\1/attn/in_proj_"),
    (r"^blocks/(\d+)/attn/proj/", r"transformer/resblocks/\1/attn/out_proj/"),
    (r"^blocks/(\d+)/mlp/fc1/", r"transformer/resblocks/\1/mlp/c_fc/"),
    (r"^blocks/(\d+)/mlp/fc2/", r"transformer/resblocks/\1/mlp/c_proj/"),
    (r"^patch_embed/proj/", r"conv1/"),
    (r"^cls_token$", r"class_embedding"),
    (r"^pos_embed$", r"positional_embedding"),
    (r"^norm_pre/", r"ln_pre/"),
    (r"^norm/", r"ln_post/"),
)


_FRESH = ((r"^head/", r"pooled_classifier/"),)
_VISION_MODEL = (
    (r"^blocks/(\d+)/norm([12])/", r"encoder/layers/\1/layer_norm\2/"),
    (r"^blocks/(\d+)/attn/qkv/", r"encoder/layers/\1/self_attn/(q_proj|k_proj|v_proj)/"),
    (r"^blocks/(\d+)/attn/proj/", r"encoder/layers/\1/self_attn/out_proj/"),
    (r"^blocks/(\d+)/mlp/", r"encoder/layers/\1/mlp/"),
    (r"^patch_embed/proj/", r"embeddings/patch_embedding/"),
    (r"^cls_token$", r"embeddings/class_embedding"),
    (r"^pos_embed$", r"embeddings/position_embedding/weight"),
    (r"^norm_pre/", r"pre_layrnorm/"),
    (r"^norm/", r"post_layernorm/"),
)
"""transformers' vision towers. Their own classifiers read other features than the pooled ones: ours
has a name that is in none of their files."""

_SIGLIP = (
    (r"^attn_pool/latent$", r"head/probe"),
    (r"^attn_pool/qkv/", r"head/attention/in_proj_"),
    (r"^attn_pool/proj/", r"head/attention/out_proj/"),
    (r"^attn_pool/norm/", r"head/layernorm/"),
    (r"^attn_pool/mlp/", r"head/mlp/"),
    *_VISION_MODEL,
)


def _npz_vit(attention: str, norm2: str, mlp: str, position: str) -> Rules:
    block = r"Transformer/encoderblock_\1"
    return (
        (r"^blocks/(\d+)/norm1/", rf"{block}/LayerNorm_0/"),
        (r"^blocks/(\d+)/norm2/", rf"{block}/{norm2}/"),
        (r"^blocks/(\d+)/attn/qkv/", rf"{block}/{attention}/(query|key|value)/"),
        (r"^blocks/(\d+)/attn/proj/", rf"{block}/{attention}/out/"),
        (r"^blocks/(\d+)/mlp/fc1/", rf"{block}/{mlp}/Dense_0/"),
        (r"^blocks/(\d+)/mlp/fc2/", rf"{block}/{mlp}/Dense_1/"),
        (r"^patch_embed/proj/", r"embedding/"),
        (r"^cls_token$", r"cls"),
        (r"^pos_embed$", position),
        (r"^norm/", r"Transformer/encoder_norm/"),
    )


LAYOUTS = (
    Layout(
        "timm distilled ViT",
        "vit",
        r"dist_token",
        ((r"^head/", "(head|head_dist)/"),),
    ),
    Layout(
        "timm ViT",
        "vit",
        r"blocks\.0\.attn\.qkv\.weight",
        (*_SCALES, (r"^attn_pool/qkv/", "attn_pool/(q|kv)/")),
    ),
    Layout("torchvision ViT", "vit", r"conv_proj\.weight", _TORCHVISION_VIT),
    Layout("transformers DINOv2", "vit", r"encoder\.layer\.0\.layer_scale1\.lambda1", _DINOV2),
    Layout(
        "transformers DeiT",
        "vit",
        r"embeddings\.distillation_token",
        (
            (r"^dist_token$", "embeddings/distillation_token"),
            (r"^head/", "(cls_classifier|distillation_classifier)/"),
            *_BERT,
        ),
        body="deit.",
    ),
    Layout(
        "transformers ViT",
        "vit",
        r"encoder\.layer\.0\.attention\.attention\.query\.weight",
        _BERT,
        body="vit.",
    ),
    Layout(
        "transformers 5 ViT",
        "vit",
        r"layers\.0\.attention\.q_proj\.weight",
        _transformers_vit(
            r"layers/\1",
            "attention/(q_proj|k_proj|v_proj)",
            "attention/o_proj",
            "mlp/fc1",
            "mlp/fc2",
        ),
    ),
    # text towers have the names of these but for the first norm and the head
    Layout("transformers CLIP", "vit", r"pre_layrnorm\.weight", (*_FRESH, *_VISION_MODEL)),
    Layout("transformers SigLIP", "vit", r"head\.probe", (*_FRESH, *_SIGLIP)),
    # the text tower has these names too, without what the pattern looks back at
    Layout(
        "open_clip image tower",
        "vit",
        r"(?<=visual\.)transformer\.resblocks\.0\.attn\.in_proj_weight",
        _CLIP,
    ),
    Layout(
        "vision_transformer npz",
        "vit",
        r"Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel",
        _npz_vit(
            "MultiHeadDotProductAttention_1",
            "LayerNorm_2",
            "MlpBlock_3",
            "Transformer/posembed_input/pos_embedding",
        ),
        style="flax",
    ),
    Layout(
        "big_vision npz",
        "vit",
        r"Transformer/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel",
        _npz_vit("MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0", "pos_embedding"),
        style="flax",
    ),
    Layout(
        "timm ResNet-D",
        "resnet",
        r"conv1\.0\.weight",
        (
            (r"^conv1/", "conv1/6/"),
            (r"^stem/conv1/", "conv1/0/"),
            (r"^stem/bn1/", "conv1/1/"),
            (r"^stem/conv2/", "conv1/3/"),
            (r"^stem/bn2/", "conv1/4/"),
            # whose first module is the mean of pixels
            (r"/downsample/1/", "/downsample/2/"),
            (r"/downsample/0/", "/downsample/1/"),
            (r"^head/", "fc/"),
        ),
    ),
    Layout(
        "torchvision or timm ResNet",
        "resnet",
        r"layer1\.0\.conv1\.weight",
        ((r"^head/", "fc/"),),
    ),
    Layout(
        "transformers ResNet",
        "resnet",
        r"encoder\.stages\.0\.layers\.0\.layer\.0\.convolution\.weight",
        _resnet_rules(),
        body="resnet.",
    ),
    Layout(
        "timm VGG",
        "vgg",
        r"pre_logits\.fc1\.weight",
        (
            (r"^classifier/0/", "pre_logits/fc1/"),
            (r"^classifier/3/", "pre_logits/fc2/"),
            (r"^head/", "head/fc/"),
        ),
    ),
    Layout("torchvision VGG", "vgg", r"features\.0\.weight", ((r"^head/", "classifier/6/"),)),
    Layout(
        "efficientnet_lite_pytorch",
        "efficientnet",
        r"_blocks\.0\._depthwise_conv\.weight",
        (
            (r"^layer\d+/(\d+)/conv1/", r"_blocks/\1/_expand_conv/"),
            (r"^layer\d+/(\d+)/conv2/", r"_blocks/\1/_depthwise_conv/"),
            (r"^layer\d+/(\d+)/conv3/", r"_blocks/\1/_project_conv/"),
            # norms are counted from 0
            (r"^layer\d+/(\d+)/bn1/", r"_blocks/\1/_bn0/"),
            (r"^layer\d+/(\d+)/bn2/", r"_blocks/\1/_bn1/"),
            (r"^layer\d+/(\d+)/bn3/", r"_blocks/\1/_bn2/"),
            (r"^conv1/", "_conv_stem/"),
            (r"^bn1/", "_bn0/"),
            (r"^conv2/", "_conv_head/"),
            (r"^bn2/", "_bn1/"),
            (r"^head/", "_fc/"),
        ),
    ),
    Layout("fairjax table network", "mlp", r"head\.weight", ()),
)
"""In the order in which they are tried."""

ALIASES = (
    (r"(^|\.)register_tokens$", r"\1reg_token"),  # DINOv2 as its authors publish it
    (r"\.gamma_([12])$", r".ls\1.gamma"),  # DeiT-III, likewise
    (r"(encoder_layer_\d+\.mlp)\.linear_1\.", r"\1.0."),  # torchvision before 0.14
    (r"(encoder_layer_\d+\.mlp)\.linear_2\.", r"\1.3."),
)
"""Older or original names of the same tensors, as patterns and what a layout calls them."""

OWN = Layout("own network", "own", r".+", (), style="own")

WRITTEN = {
    "vit": "timm ViT",
    "resnet": "torchvision or timm ResNet",
    "vgg": "torchvision VGG",
    "efficientnet": "efficientnet_lite_pytorch",
    "mlp": "fairjax table network",
    "own": "own network",
}
"""The layout in which each family is written."""
