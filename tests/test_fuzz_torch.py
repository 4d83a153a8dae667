"""Files of weights written by torch itself; skipped where it is not installed."""

import random

import numpy as np
import pytest
from test_fuzz_weights import run

torch = pytest.importorskip("torch")


def write_torch(path, tensors, wrap, legacy):
    """The tensors as scripts save them: parameters, views of one storage, other strides."""
    draw, state = random.Random(path.stem), {}
    for name, array in tensors.items():
        tensor = torch.from_numpy(np.array(array))
        way = draw.choice(("plain", "parameter", "view", "strided"))
        if way == "parameter" and tensor.is_floating_point():
            tensor = torch.nn.Parameter(tensor)
        elif way == "view":
            tensor = torch.stack([torch.zeros_like(tensor), tensor])[1]
        elif way == "strided" and tensor.ndim > 1:
            tensor = tensor.transpose(0, 1).contiguous().transpose(0, 1)
        state[name] = tensor
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3}]}
    tree = state if wrap is None else {wrap: state, "epoch": 3, "optimizer": optimizer}
    torch.save(tree, path, _use_new_zipfile_serialization=not legacy)
    with open(path, "rb") as file:  # an independent reader accepts it too
        torch.load(file, weights_only=True)


def test_files_of_torch_are_refused_or_give_their_numbers(tmp_path):
    outcomes = run(range(2000, 2060), tmp_path, write_torch)
    assert outcomes["read"] >= 20 and len(outcomes) >= 6, outcomes
