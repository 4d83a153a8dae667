"""Write models.npz: logits, gradients and batch statistics of timm, torchvision and others.

    python tests/golden/make_models.py

Made with torch 2.14.1, torchvision 0.29.1, timm 1.0.31 and transformers 5.23.0; EfficientNet-Lite
with torch 2.13.0 and efficientnet_lite_pytorch 0.1.0. Both sides fill
their parameters by name (`filling.py`), so the file holds names, shapes and results only.
"""

# pyright: reportMissingImports=false, reportArgumentType=false, reportOptionalMemberAccess=false
import json
import pathlib
import sys
import tempfile

import numpy as np
import timm
import torch
import torchvision
import transformers
from efficientnet_lite_pytorch import EfficientNet
from efficientnet_lite_pytorch.utils import BlockDecoder, get_model_params
from filling import filled, noise
from safetensors.numpy import load_file
from timm.models.vision_transformer import checkpoint_filter_fn

NUM_CLASSES = 5
HERE = pathlib.Path(__file__).parent
results: dict[str, np.ndarray] = {}


def images(size: int, batch: int = 2) -> torch.Tensor:
    return torch.from_numpy(noise("images", (batch, size, size, 3))).permute(0, 3, 1, 2)


def fill(module: torch.nn.Module) -> torch.nn.Module:
    state = module.state_dict()
    new = {name: torch.from_numpy(filled(name, tuple(t.shape))) for name, t in state.items()}
    module.load_state_dict(new)
    return module


def record(case: str, shapes: dict[str, tuple[int, ...]], logits: torch.Tensor) -> None:
    results[f"{case}/shapes"] = np.array(json.dumps({k: list(v) for k, v in shapes.items()}))
    results[f"{case}/logits"] = logits.detach().numpy()
    print(case, len(shapes), logits[0].detach().numpy(), file=sys.stderr)


def shapes_of(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in module.state_dict().items()}


def evaluate(case: str, module: torch.nn.Module, size: int = 224) -> torch.nn.Module:
    fill(module).eval()
    with torch.no_grad():
        record(case, shapes_of(module), module(images(size)))
    return module


def gradients(case: str, module: torch.nn.Module, size: int) -> None:
    """Norm of each parameter's gradient and its product with noise of the same name."""
    fill(module).eval()
    labels = torch.tensor([1, 3])
    torch.nn.functional.cross_entropy(module(images(size)), labels).backward()
    rows = {}
    for name, parameter in module.named_parameters():
        gradient = parameter.grad.numpy().astype(np.float64)
        probe = noise(f"probe {name}", gradient.shape)
        rows[name] = [float(np.linalg.norm(gradient)), float(np.sum(gradient * probe))]
    results[f"{case}/gradients"] = np.array(json.dumps(rows))


def statistics(case: str, module: torch.nn.Module, size: int) -> None:
    """Running statistics after three SGD steps at learning rate 0.001 on four images."""
    fill(module).train()
    for layer in module.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    optimizer = torch.optim.SGD(module.parameters(), lr=0.001)
    labels = torch.tensor([1, 3, 0, 2])
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(images(size, 4)), labels).backward()
        optimizer.step()
    for name, buffer in module.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            results[f"{case}/statistics/{name}"] = buffer.numpy()


def timm_models() -> None:
    for name in (
        "vit_tiny_patch16_224",
        "vit_base_patch16_224",
        "vit_base_patch16_clip_224",
        "vit_base_patch16_224.dino",
        "vit_base_patch16_224.mae",
        "resnet18",
        "resnet50",
        "vgg11",
        "vgg11_bn",
    ):
        evaluate(f"timm/{name}", timm.create_model(name, num_classes=NUM_CLASSES))
    huge = timm.create_model("vit_huge_patch14_224", depth=2, num_classes=NUM_CLASSES)
    evaluate("timm/vit_huge_patch14_224", huge)
    quick = timm.create_model(
        "vit_base_patch16_clip_quickgelu_224", depth=2, num_classes=NUM_CLASSES
    )
    evaluate("timm/vit_base_patch16_clip_quickgelu_224", quick)
    mean = timm.create_model(
        "vit_tiny_patch16_224", depth=2, global_pool="avg", num_classes=NUM_CLASSES
    )
    evaluate("timm/vit_tiny_patch16_224 mean", mean)
    gradients(
        "timm/vit_tiny_patch16_224", timm.create_model("vit_tiny_patch16_224", num_classes=5), 224
    )
    resized(timm.create_model("vit_tiny_patch16_224", depth=2, img_size=96, num_classes=5))


def resized(module: torch.nn.Module) -> None:
    """Weights of a 14 x 14 grid in a network with 6 x 6."""
    big = timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=NUM_CLASSES)
    module.load_state_dict(checkpoint_filter_fn(fill(big).state_dict(), module))
    with torch.no_grad():
        record("timm/vit_tiny_patch16_224 at 96", shapes_of(big), module.eval()(images(96)))


def torchvision_models() -> None:
    for name in ("resnet18", "resnet34", "resnet50", "vgg11", "vgg11_bn"):
        make = getattr(torchvision.models, name)
        evaluate(f"torchvision/{name}", make(num_classes=NUM_CLASSES))
        if name in ("resnet18", "vgg11"):
            gradients(f"torchvision/{name}", make(num_classes=NUM_CLASSES), 64)
        if name in ("resnet18", "vgg11_bn"):
            statistics(f"torchvision/{name}", make(num_classes=NUM_CLASSES), 64)


def efficientnet_models() -> None:
    """Lite0, and three stages of it: gradients jump where a ReLU6 of many is at its bend."""
    case = "efficientnet_lite_pytorch/efficientnet_lite0"
    evaluate(case, EfficientNet.from_name("efficientnet-lite0", num_classes=NUM_CLASSES))
    stages = ["r1_k3_s11_e1_i32_o16", "r3_k3_s11_e6_i16_o24", "r2_k5_s22_e6_i24_o40"]

    def small() -> torch.nn.Module:
        options = {"num_classes": NUM_CLASSES, "image_size": 32, "drop_connect_rate": 0.0}
        _, settings = get_model_params("efficientnet-lite0", options)
        return EfficientNet(BlockDecoder.decode(stages), settings)

    evaluate(f"{case} small", small(), 32)
    gradients(f"{case} small", small(), 32)
    statistics(f"{case} small", small(), 32)


def transformers_models() -> None:
    vit = transformers.ViTConfig(
        hidden_size=192,
        num_attention_heads=3,
        intermediate_size=768,
        num_hidden_layers=12,
        num_labels=NUM_CLASSES,
    )
    resnet18 = transformers.ResNetConfig(
        layer_type="basic",
        depths=[2, 2, 2, 2],
        hidden_sizes=[64, 128, 256, 512],
        num_labels=NUM_CLASSES,
    )
    resnet50 = transformers.ResNetConfig(num_labels=NUM_CLASSES)
    for case, module in (
        ("vit_tiny_patch16_224", transformers.ViTForImageClassification(vit)),
        ("resnet18", transformers.ResNetForImageClassification(resnet18)),
        ("resnet50", transformers.ResNetForImageClassification(resnet50)),
    ):
        # names in files differ from names in memory: fill what is written, then read it back
        with tempfile.TemporaryDirectory() as folder:
            module.save_pretrained(folder)
            path = pathlib.Path(folder) / "model.safetensors"
            on_disk = {name: array.shape for name, array in load_file(path).items()}
            tensors = {
                name: torch.from_numpy(filled(name, shape)) for name, shape in on_disk.items()
            }
            from safetensors.torch import save_file

            save_file(tensors, path, metadata={"format": "pt"})
            module = type(module).from_pretrained(folder).eval()
        with torch.no_grad():
            record(f"transformers/{case}", on_disk, module(images(224)).logits)
        in_memory = shapes_of(module)
        if set(in_memory) != set(on_disk):
            fill(module).eval()
            with torch.no_grad():
                record(f"transformers_memory/{case}", in_memory, module(images(224)).logits)


def npz_names(style: str, depth: int, width: int, heads: int) -> dict[str, tuple[int, ...]]:
    """What the two JAX code bases write for a ViT with patches of 16 at 224."""
    big_vision = style == "big_vision"
    prefix = "params/" if big_vision else ""
    attention = "MultiHeadDotProductAttention_0" if big_vision else "MultiHeadDotProductAttention_1"
    norm2, mlp = ("LayerNorm_1", "MlpBlock_0") if big_vision else ("LayerNorm_2", "MlpBlock_3")
    position = "pos_embedding" if big_vision else "Transformer/posembed_input/pos_embedding"
    head_width, hidden = width // heads, 4 * width
    shapes = {
        "cls": (1, 1, width),
        position: (1, 196 if big_vision else 197, width),
        "embedding/kernel": (16, 16, 3, width),
        "embedding/bias": (width,),
        "Transformer/encoder_norm/scale": (width,),
        "Transformer/encoder_norm/bias": (width,),
        "head/kernel": (width, NUM_CLASSES),
        "head/bias": (NUM_CLASSES,),
    }
    for i in range(depth):
        block = f"Transformer/encoderblock_{i}"
        for norm in ("LayerNorm_0", norm2):
            shapes |= {f"{block}/{norm}/scale": (width,), f"{block}/{norm}/bias": (width,)}
        for part in ("query", "key", "value"):
            shapes[f"{block}/{attention}/{part}/kernel"] = (width, heads, head_width)
            shapes[f"{block}/{attention}/{part}/bias"] = (heads, head_width)
        shapes[f"{block}/{attention}/out/kernel"] = (heads, head_width, width)
        shapes[f"{block}/{attention}/out/bias"] = (width,)
        shapes[f"{block}/{mlp}/Dense_0/kernel"] = (width, hidden)
        shapes[f"{block}/{mlp}/Dense_0/bias"] = (hidden,)
        shapes[f"{block}/{mlp}/Dense_1/kernel"] = (hidden, width)
        shapes[f"{block}/{mlp}/Dense_1/bias"] = (width,)
    return {prefix + name: shape for name, shape in shapes.items()}


def npz_models() -> None:
    """timm's own reader of these files is the reference."""
    for style in ("vision_transformer", "big_vision"):
        shapes = npz_names(style, 2, 192, 3)
        options = {"no_embed_class": True} if style == "big_vision" else {}
        module = timm.create_model(
            "vit_tiny_patch16_224", depth=2, num_classes=NUM_CLASSES, **options
        )
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "weights.npz"
            np.savez(path, **{name: filled(name, shape) for name, shape in shapes.items()})
            module.load_pretrained(str(path))
        with torch.no_grad():
            record(f"{style}/vit_tiny_patch16_224", shapes, module.eval()(images(224)))


if __name__ == "__main__":
    torch.set_num_threads(2)
    timm_models()
    torchvision_models()
    efficientnet_models()
    transformers_models()
    npz_models()
    np.savez_compressed(HERE / "models.npz", **results)
