"""Files of weights on the command line: which state dict of a checkpoint is tuned."""

import numpy as np
from safetensors.numpy import load_file

from experiments import fairtune
from fairjax.models import image_model, save_weights
from tests.golden.filling import arrays_of
from tests.test_torch_files import Tensor, names_of_torch, write

assert names_of_torch  # a fixture, taken over


def test_the_named_state_dict_of_a_checkpoint_is_what_is_tuned(tmp_path):
    model = image_model("vgg_micro", 2)
    trees = {name: arrays_of(model, seed) for seed, name in enumerate(("state_dict", "model_ema"))}
    states = {}
    for name, arrays in trees.items():
        save_weights(tmp_path / "w.safetensors", model, *arrays)
        tensors = load_file(tmp_path / "w.safetensors")
        states[name] = {n: Tensor(t, f"{name}{i}") for i, (n, t) in enumerate(tensors.items())}
    write(tmp_path / "w.pth", states, legacy=False)
    for key, expected in ((None, "model_ema"), ("state_dict", "state_dict")):
        config = fairtune.Config(model="vgg_micro", weights=tmp_path / "w.pth", weights_key=key)
        _, weights = fairtune.load_network(config, 2)
        found = weights.params["features"]["0"]["kernel"]
        np.testing.assert_array_equal(found, trees[expected][0]["features"]["0"]["kernel"])
