"""Files of torch.save, read without torch: both kinds, and what is refused."""

import collections
import io
import os
import pickle
import struct
import sys
import types
import zipfile

import jax
import numpy as np
import pytest

from fairjax.models import image_model, load_weights
from fairjax.models.torch_files import read_torch_file

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001


class Tensor:
    """Pickled as torch pickles one: a function to call, and a reference to a storage."""

    def __init__(self, array, key, *, offset=0, size=None, stride=None):
        self.array, self.key, self.offset = array, key, offset
        self.size = array.shape if size is None else size
        self.stride = (
            tuple(s // array.itemsize for s in array.strides) if stride is None else stride
        )

    def __reduce__(self):
        rebuild = sys.modules["torch._utils"]._rebuild_tensor_v2
        args = (self, self.offset, self.size, self.stride, False, collections.OrderedDict())
        return rebuild, (Reference(self), *args[1:])


class Reference:
    """Stands for a storage inside a pickle."""

    def __init__(self, tensor):
        self.tensor = tensor


@pytest.fixture(autouse=True)
def names_of_torch(monkeypatch):
    """Pickling by name needs modules that have the names; the reader must not."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def _rebuild_tensor_v2():
        raise AssertionError("called")

    for function in (_rebuild_tensor_v2,):
        function.__module__, function.__qualname__ = "torch._utils", function.__name__
        setattr(utils, function.__name__, function)
    for name in ("FloatStorage", "LongStorage", "HalfStorage"):
        setattr(torch, name, type(name, (), {"__module__": "torch"}))
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)
    yield
    monkeypatch.undo()


def pickled(tree, legacy):
    """The pickle of a tree, and the arrays that it refers to by key."""
    file, arrays = io.BytesIO(), {}

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            if not isinstance(obj, Reference):
                return None
            array, key = obj.tensor.array, obj.tensor.key
            arrays[key] = array
            kind = {"f4": "Float", "i8": "Long", "f2": "Half"}[array.dtype.str[1:]]
            storage = getattr(sys.modules["torch"], f"{kind}Storage")
            return ("storage", storage, key, "cpu", array.size, *([None] if legacy else []))

    Pickler(file, protocol=2).dump(tree)
    return file.getvalue(), arrays


def write(path, tree, *, legacy, cut=0):
    text, arrays = pickled(tree, legacy)
    if legacy:
        parts = [MAGIC, VERSION, {"little_endian": True}]
        data = b"".join(pickle.dumps(part, protocol=2) for part in parts)
        data += text + pickle.dumps(sorted(arrays), protocol=2)
        for key in sorted(arrays):
            data += struct.pack("<q", arrays[key].size) + arrays[key].tobytes()
        path.write_bytes(data[: len(data) - cut])
        return path
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", text)
        archive.writestr("archive/byteorder", "little")
        for key, array in arrays.items():
            data = array.tobytes()
            archive.writestr(f"archive/data/{key}", data[: len(data) - cut])
    return path


kinds = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])


@kinds
def test_tensors_of_every_form_come_back(legacy, tmp_path):
    grid = np.arange(24, dtype=np.float32).reshape(4, 6)
    tree = collections.OrderedDict(
        whole=Tensor(grid, "0"),
        transposed=Tensor(grid, "0", size=(6, 4), stride=(1, 6)),
        part=Tensor(grid, "0", offset=7, size=(2, 3), stride=(6, 2)),
        counter=Tensor(np.array(5), "1"),
        half=Tensor(np.array([1.5, -2], np.float16), "2"),
        none=Tensor(np.zeros((0, 3), np.float32), "3"),
        epoch=3,
        nested={"names": ["a", ("b", 1.5, None)]},
    )
    found = read_torch_file(write(tmp_path / "w.pth", tree, legacy=legacy))
    np.testing.assert_array_equal(found["whole"], grid)
    np.testing.assert_array_equal(found["transposed"], grid.T)
    np.testing.assert_array_equal(
        found["part"], grid.ravel()[7:].reshape(-1)[[[0, 2, 4], [6, 8, 10]]]
    )
    assert found["counter"].shape == () and found["counter"] == 5
    assert found["half"].dtype == np.float16 and found["none"].shape == (0, 3)
    assert found["epoch"] == 3 and found["nested"] == {"names": ["a", ["b", 1.5, None]]}


class Command:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@kinds
def test_nothing_that_a_file_names_is_called(legacy, tmp_path):
    trace = tmp_path / "called"
    path = write(tmp_path / "w.pth", {"model": Command(trace)}, legacy=legacy)
    with pytest.raises(ValueError, match=r"w.pth: .* never executed \(it names posix.mkdir\)"):
        read_torch_file(path)
    with pytest.raises(ValueError, match="never executed"):
        load_weights(path, image_model("vit_micro", 2), jax.random.key(0))
    assert not trace.exists()
    # the test can fail: an ordinary reader does call it
    pickle.loads(pickled(Command(trace), legacy)[0])
    assert trace.exists()


@kinds
@pytest.mark.parametrize(
    "wrong",
    [
        {"offset": 1},
        {"size": (4, 7)},
        {"stride": (7, 1)},
        {"stride": (-1, 1)},
        {"offset": -1},
        {"size": (-1, -24)},
        {"size": (10**6, 10**6), "stride": (0, 0)},
    ],
    ids=str,
)
def test_tensors_outside_their_storage_are_refused(legacy, wrong, tmp_path):
    grid = np.arange(24, dtype=np.float32).reshape(4, 6)
    path = write(tmp_path / "w.pth", {"x": Tensor(grid, "0", **wrong)}, legacy=legacy)
    with pytest.raises(ValueError, match="is not inside its storage"):
        read_torch_file(path)


@kinds
@pytest.mark.parametrize("cut", [1, 4, 60])
def test_files_that_end_too_early_are_refused(legacy, cut, tmp_path):
    tree = {"x": Tensor(np.arange(24, dtype=np.float32), "0")}
    path = write(tmp_path / "w.pth", tree, legacy=legacy, cut=cut)
    with pytest.raises(ValueError, match="w.pth: damaged"):
        read_torch_file(path)


def test_torch_reads_the_same(tmp_path, monkeypatch):
    monkeypatch.undo()
    torch = pytest.importorskip("torch")
    state = {
        "float": torch.randn(3, 4).T,
        "bfloat16": torch.randn(5).to(torch.bfloat16),
        "parameter": torch.nn.Parameter(torch.randn(2, 3)),
        "long": torch.tensor(7),
        "bool": torch.tensor([True, False]),
        "slice": torch.arange(20.0)[3:12:2],
    }
    for legacy in (False, True):
        path = tmp_path / "w.pth"
        torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=not legacy)
        found = read_torch_file(path)["state_dict"]
        assert set(found) == set(state)
        for name, tensor in state.items():
            expected = tensor.detach()
            assert found[name].shape == tuple(expected.shape)
            np.testing.assert_array_equal(
                np.asarray(found[name], np.float32), expected.float().numpy(), err_msg=name
            )
