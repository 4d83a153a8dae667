"""What a model card tells a PyTorch user."""

OPEN_IN_TORCH = '''\
import torch
from safetensors.torch import load_file

def open_pruned(network, path):
    """Give a network of torchvision or timm the shapes and numbers of a pruned file."""
    tensors = load_file(path)
    for name, tensor in tensors.items():
        place, _, leaf = name.rpartition(".")
        layer = network.get_submodule(place)
        if isinstance(getattr(layer, leaf), torch.nn.Parameter):
            tensor = torch.nn.Parameter(tensor)
        setattr(layer, leaf, tensor)
        if leaf == "weight" and isinstance(layer, torch.nn.Conv2d):
            layer.out_channels, layer.in_channels = tensor.shape[0], tensor.shape[1] * layer.groups
        elif leaf == "weight" and isinstance(layer, torch.nn.Linear):
            layer.out_features, layer.in_features = tensor.shape
        elif leaf == "running_mean":
            layer.num_features = len(tensor)
    network.load_state_dict(tensors)
    return network
'''
"""Python source of `open_pruned(network, path)`. Networks of which whole attention heads were
removed need `num_heads` of those blocks changed too."""
