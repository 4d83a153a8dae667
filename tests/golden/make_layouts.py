"""Write layouts.npz: logits of small networks of timm, torchvision and transformers, and counts.

    python tests/golden/make_layouts.py

Made with torch 2.13.0, torchvision 0.28.0, timm 1.0.31 and transformers 5.24.0. As in
`make_models.py`, both sides fill their parameters by name.
"""

# pyright: reportMissingImports=false, reportArgumentType=false, reportOptionalMemberAccess=false
import json
import pathlib
import tempfile

import numpy as np
import timm
import torch
import torchvision
import transformers
from filling import filled, noise
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import save_file
from timm.models.resnet import Bottleneck as TimmBottleneck
from timm.models.vision_transformer import checkpoint_filter_fn
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.models.vision_transformer import VisionTransformer

NUM_CLASSES = 5
HERE = pathlib.Path(__file__).parent
results: dict[str, np.ndarray] = {}
COUNTED = (
    *("resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2"),
    *("vgg13", "vgg16", "vgg19", "vgg13_bn", "vgg16_bn", "vgg19_bn"),
    *("deit_base_patch16_384", "deit3_large_patch16_224"),
    *("vit_small_patch14_dinov2", "vit_large_patch14_reg4_dinov2"),
    *("vit_base_patch16_siglip_224", "vit_so400m_patch14_siglip_378", "resnet34d", "resnet101d"),
)


def images(size: int) -> torch.Tensor:
    return torch.from_numpy(noise("images", (2, size, size, 3))).permute(0, 3, 1, 2)


def shapes_of(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in module.state_dict().items()}


def fill(module: torch.nn.Module) -> torch.nn.Module:
    state = {name: torch.from_numpy(filled(name, s)) for name, s in shapes_of(module).items()}
    module.load_state_dict(state)
    return module.eval()


def record(case: str, shapes: dict[str, tuple[int, ...]], logits: torch.Tensor) -> None:
    results[f"{case}/shapes"] = np.array(json.dumps({k: list(v) for k, v in shapes.items()}))
    results[f"{case}/logits"] = logits.numpy()
    print(case, len(shapes), logits[0].numpy())


def evaluate(case: str, module: torch.nn.Module, size: int) -> None:
    output = fill(module)(images(size))
    record(case, shapes_of(module), getattr(output, "logits", output))


def small(name: str, size: int) -> torch.nn.Module:
    sizes = {"depth": 2, "embed_dim": 48, "num_heads": 3, "img_size": size}
    return timm.create_model(name, num_classes=NUM_CLASSES, **sizes)


def timm_models() -> None:
    evaluate("timm/deit_tiny_patch16_224", small("deit_tiny_patch16_224", 64), 64)
    evaluate("timm/deit3_small_patch16_224", small("deit3_small_patch16_224", 64), 64)
    evaluate("timm/vit_small_patch14_dinov2", small("vit_small_patch14_dinov2", 56), 56)
    evaluate("timm/vit_small_patch14_reg4_dinov2", small("vit_small_patch14_reg4_dinov2", 56), 56)
    evaluate("timm/vit_base_patch16_siglip_224", small("vit_base_patch16_siglip_224", 64), 64)
    evaluate("timm/vit_base_patch32_siglip_256", small("vit_base_patch32_siglip_256", 64), 64)
    how = {"stem_type": "deep", "stem_width": 32, "avg_down": True, "num_classes": NUM_CLASSES}
    for size in (64, 72):  # 72 has maps of 9 pixels
        case = f"timm/resnet50d{'' if size == 64 else f' at {size}'}"
        evaluate(case, timm.models.resnet.ResNet(TimmBottleneck, [1, 1, 1, 1], **how), size)
    distilled = "deit_tiny_distilled_patch16_224"
    evaluate(f"timm/{distilled}", small(distilled, 64), 64)
    for name, old, new in ((distilled, 64, 96), ("vit_small_patch14_reg4_dinov2", 56, 84)):
        big, other = fill(small(name, old)), small(name, new)
        other.load_state_dict(checkpoint_filter_fn(big.state_dict(), other))
        record(f"timm/{name} at {new}", shapes_of(big), other.eval()(images(new)))


def torchvision_models() -> None:
    vit = VisionTransformer(64, 16, 2, 3, 48, 192, num_classes=NUM_CLASSES)
    evaluate("torchvision/vit_b_16", vit, 64)
    wide = ResNet(Bottleneck, [1, 1, 1, 1], num_classes=NUM_CLASSES, width_per_group=128)
    evaluate("torchvision/wide_resnet50_2", wide, 64)


def filled_on_disk(module: torch.nn.Module) -> tuple[torch.nn.Module, dict]:
    """The module with numbers by the names that its file has, which differ from those in memory."""
    with tempfile.TemporaryDirectory() as folder:
        module.save_pretrained(folder)
        path = pathlib.Path(folder) / "model.safetensors"
        shapes = {name: array.shape for name, array in load_numpy(path).items()}
        tensors = {n: torch.from_numpy(filled(n, s)) for n, s in shapes.items()}
        save_file(tensors, path, metadata={"format": "pt"})
        return type(module).from_pretrained(folder).eval(), shapes


def transformers_models() -> None:
    """Of towers without a classifier what they pool, with one of our own on it."""
    sizes = {
        "hidden_size": 48,
        "num_attention_heads": 3,
        "num_hidden_layers": 2,
        "num_labels": NUM_CLASSES,
    }
    deit = transformers.DeiTConfig(**sizes, image_size=64, intermediate_size=192)
    module, shapes = filled_on_disk(transformers.DeiTForImageClassificationWithTeacher(deit))
    case = "transformers/deit_tiny_distilled_patch16_224"
    record(case, shapes, module(images(64)).logits)
    for case, kind, size, patch, head in (
        ("vit_small_patch14_dinov2", transformers.Dinov2Model, 56, 14, "classifier"),
        (
            "vit_small_patch14_reg4_dinov2",
            transformers.Dinov2WithRegistersModel,
            56,
            14,
            "classifier",
        ),
        (
            "vit_base_patch16_siglip_224",
            transformers.SiglipVisionModel,
            64,
            16,
            "pooled_classifier",
        ),
        (
            "vit_base_patch16_clip_quickgelu_224",
            transformers.CLIPVisionModel,
            64,
            16,
            "pooled_classifier",
        ),
    ):
        more = {} if patch == 14 else {"intermediate_size": 192}
        config = kind.config_class(**sizes, **more, image_size=size, patch_size=patch)
        body, shapes = filled_on_disk(kind(config))
        own = {f"{head}.weight": (NUM_CLASSES, 48), f"{head}.bias": (NUM_CLASSES,)}
        weight, bias = (torch.from_numpy(filled(name, shape)) for name, shape in own.items())
        logits = body(images(size)).pooler_output @ weight.T + bias
        record(f"transformers/{case}", shapes | own, logits)


def counts() -> None:
    """How many numbers each network has, and the names of its tensors, as a check of sizes."""
    rows = {}
    for name in COUNTED:
        source = torchvision.models if name.startswith("vgg") else timm
        options = {"num_classes": NUM_CLASSES}
        with torch.device("meta"):
            make = getattr(source, name, None)
            module = make(**options) if make else timm.create_model(name, **options)
        rows[name] = sum(p.numel() for p in module.parameters())
    for name in ("vit_b_16", "vit_l_32"):
        with torch.device("meta"):
            module = getattr(torchvision.models, name)(num_classes=NUM_CLASSES)
        rows[name] = sum(p.numel() for p in module.parameters())
    results["counts"] = np.array(json.dumps(rows))
    print(rows)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.no_grad():
        timm_models()
        torchvision_models()
        transformers_models()
    counts()
    np.savez_compressed(HERE / "layouts.npz", **results)
