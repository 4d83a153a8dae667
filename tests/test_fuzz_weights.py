"""Files of weights made at random are refused in one line or give the numbers they hold."""

import collections
import os
import pickle
import random
import warnings
import zipfile

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_torch_files import Tensor, names_of_torch, write

from fairjax.models import image_model, load_weights, save_weights
from tests.golden.filling import arrays_of

assert names_of_torch  # a fixture, taken over

CLASSES = 3
RIGHT = ("none", "none", "none", "counter", "half", "double")
REPLACED = ("head gone", "other head")  # right too, and slow: a fresh head is compiled
WRONG = ("gone", "extra", "shape", "nan", "inf", "variance", "cut", "code", "swapped", "names")
KINDS = (".safetensors", ".npz", ".pth", ".pt")
PREFIXES = ("", "", "module.", "model.", "_orig_mod.", "module.backbone.")
WRAPS = (None, None, "state_dict", "model", "state_dict_ema")


class Command:
    """What a pickle runs when it is loaded as Python loads it."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def write_plain(path, tensors, wrap, legacy):
    """A file of torch.save, without torch; see `tests.test_torch_files`."""
    state = {name: Tensor(array, str(i)) for i, (name, array) in enumerate(tensors.items())}
    tree = state if wrap is None else {wrap: state, "epoch": 3, "best": 0.5}
    write(path, tree, legacy=legacy)


class Maker:
    """A file of weights, what was done to it, and the numbers that it should give."""

    def __init__(self, seed, folder, whole, write_torch):
        self.random = draw = random.Random(seed)
        self.edit = draw.choice(RIGHT) if draw.random() < 0.6 else draw.choice(WRONG)
        self.edit = draw.choice(REPLACED) if seed % 30 == 7 else self.edit
        self.suffix, self.wrap = draw.choice(KINDS), draw.choice(WRAPS)
        self.prefix, self.mark = draw.choice(PREFIXES), folder / f"ran{seed}"
        self.path = folder / f"{seed}{self.suffix}"
        self.tensors = self.edited(dict(whole))
        names = {self.prefix + name: tensor for name, tensor in self.tensors.items()}
        if self.suffix == ".safetensors":
            save_file(names, self.path)
        elif self.suffix == ".npz":
            np.savez(self.path, **names)  # pyright: ignore[reportArgumentType]
        else:
            write_torch(self.path, names, self.wrap, legacy=self.suffix == ".pt")
        if self.edit == "cut":
            data = self.path.read_bytes()
            self.path.write_bytes(data[: draw.randrange(len(data))])
        if self.edit == "code":
            self.run_code(names)

    def edited(self, tensors):
        draw, edit = self.random, self.edit
        body = [name for name in tensors if not name.startswith("fc.")]
        name = draw.choice(body)
        if edit in ("nan", "inf"):
            tensors[name] = tensors[name].copy()
            tensors[name].flat[-1] = np.nan if edit == "nan" else -np.inf
        elif edit == "gone":
            del tensors[name]
        elif edit == "extra":
            tensors["layer9.0.conv1.weight"] = np.ones((2, 2), np.float32)
        elif edit == "shape":
            tensors[name] = np.concatenate([tensors[name]] * 2)
        elif edit == "variance":
            name = draw.choice([name for name in body if name.endswith("var")])
            tensors[name] = -tensors[name]
        elif edit == "swapped":  # 4 x 2 where 2 x 4 belongs
            name = draw.choice([n for n in body if tensors[n].ndim == 4])
            name = name if len(set(tensors[name].shape[:2])) == 2 else "conv1.weight"
            tensors[name] = tensors[name].swapaxes(0, 1).copy()
        elif edit == "names":
            tensors = {f"{name}_": tensor for name, tensor in tensors.items()}
        elif edit == "counter":
            tensors["bn1.num_batches_tracked"] = np.array(7)
        elif edit in REPLACED:
            del tensors["fc.weight"], tensors["fc.bias"]
            if edit == "other head":
                tensors["fc.weight"], tensors["fc.bias"] = np.ones((7, 16), "f4"), np.ones(7, "f4")
        if edit == "half":
            kinds = (
                [np.float16] if self.suffix != ".safetensors" else [np.float16, ml_dtypes.bfloat16]
            )
            kind = draw.choice(kinds)
            tensors = {name: tensor.astype(kind) for name, tensor in tensors.items()}
        if edit == "double" and self.suffix in (".npz", ".safetensors"):
            tensors = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
        return tensors

    def run_code(self, names):
        """A pickle that makes a folder when Python loads it, in whatever it is hidden."""
        data = pickle.dumps({"state_dict": Command(self.mark)}, protocol=2)
        if self.suffix == ".npz":
            np.savez(self.path, **names, more=np.array(Command(self.mark), object))
        elif self.suffix == ".pth":
            with zipfile.ZipFile(self.path, "w") as archive:
                archive.writestr("archive/data.pkl", data)
        else:
            self.path.write_bytes(data)

    def truth(self):
        """The tensors by the library of the file, or as they were given to torch."""
        if self.suffix == ".safetensors":
            found = load_file(self.path)
        elif self.suffix == ".npz":
            with np.load(self.path) as file:
                found = dict(file)
        else:
            return self.tensors
        return {name.removeprefix(self.prefix): tensor for name, tensor in found.items()}


def check(maker, weights):
    """Asserts that parameters and statistics are the tensors of the file, all of them."""
    leaves = {
        "/".join(key.key for key in path): np.asarray(leaf)
        for tree in (weights.params, weights.batch_stats)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    ours = {"running_mean": "mean", "running_var": "var", "bias": "bias"}
    compared = set()
    for name, tensor in maker.truth().items():
        *parts, last = name.replace("fc.", "head.").split(".")
        if last == "num_batches_tracked" or (parts[0] == "head" and maker.edit == "other head"):
            continue
        leaf = ours.get(last, "kernel" if tensor.ndim > 1 else "scale")
        path = "/".join([*parts, leaf])
        wanted = tensor.transpose(*range(2, tensor.ndim), 1, 0) if tensor.ndim > 1 else tensor
        assert leaves[path].dtype == np.float32
        np.testing.assert_array_equal(leaves[path], wanted.astype(np.float32), path)
        compared.add(path)
    fresh = set(leaves) - compared
    replaced = maker.edit in REPLACED
    assert fresh == ({"head/kernel", "head/bias"} if replaced else set()), fresh
    assert replaced == any("fresh, not from the file" in note for note in weights.notes)


def network():
    return image_model("resnet18", CLASSES, image_size=32, width=2, depths=(1, 1, 1, 1))


def run(seeds, folder, write_torch=write_plain):
    model, outcomes = network(), collections.Counter()
    save_weights(folder / "whole.safetensors", model, *arrays_of(model))
    whole, key = load_file(folder / "whole.safetensors"), jax.random.key(0)
    for seed in seeds:
        maker = Maker(seed, folder, whole, write_torch)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                weights = load_weights(maker.path, model, key)
        except ValueError as error:
            text = str(error)
            assert str(maker.path) in text and "\n" not in text and len(text) < 1000, text
            assert maker.edit in WRONG, f"seed {seed}: {text}"
            outcomes[maker.edit] += 1
            continue
        finally:
            assert not maker.mark.exists(), seed
        try:
            assert maker.edit not in WRONG, "accepted"
            check(maker, weights)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {maker.edit} in {maker.path}") from error
        outcomes["read"] += 1
    return outcomes


def test_forty_files_of_weights_are_refused_or_give_their_numbers(tmp_path):
    outcomes = run(range(40), tmp_path)
    assert outcomes["read"] >= 15 and len(outcomes) >= 8, outcomes


@pytest.mark.slow
def test_a_thousand_files_of_weights_are_refused_or_give_their_numbers(tmp_path):
    outcomes = run(range(40, 1040), tmp_path)
    assert outcomes["read"] >= 400 and len(outcomes) == len(WRONG) + 1, outcomes
