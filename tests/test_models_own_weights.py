"""Weights of networks of one's own, to a file and back."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen, nnx

from fairjax.models import (
    Channels,
    Slot,
    image_model,
    load_weights,
    save_weights,
    wrap_linen,
    wrap_nnx,
)
from tests.golden.filling import arrays_of
from tests.test_weights import equal

KEY = jax.random.key(0)


def own_network(num_classes=3, with_graph=True):
    layers = {
        "Dense_0": Channels(
            6, (Slot("Dense_0/kernel", 1), Slot("Dense_0/bias", 0)), (Slot("Dense_1/kernel", 0),)
        )
    }

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.Dense(6)(x)
            return linen.Dense(num_classes)(jax.nn.relu(x)), {"Dense_0": x}

    return wrap_linen(
        Net(),
        jnp.ones((1, 4)),
        num_classes=num_classes,
        head="Dense_1",
        channel_graph=layers if with_graph else None,
    )


def test_networks_of_ones_own_are_written_too_and_get_a_fresh_classifier(tmp_path):
    model, path = own_network(), tmp_path / "w.safetensors"
    params, _ = arrays_of(model)
    save_weights(path, model, params, {})
    assert equal(load_weights(path, model, KEY).params, params)
    two = load_weights(path, own_network(2), KEY)
    assert equal(two.params["Dense_0"], params["Dense_0"])
    assert two.params["Dense_1"]["kernel"].shape == (6, 2)
    assert two.notes == ("fresh, not from the file: Dense_1/bias, Dense_1/kernel",)
    small = {
        "Dense_0": {"kernel": params["Dense_0"]["kernel"][:, :4], "bias": jnp.ones(4)},
        "Dense_1": params["Dense_1"] | {"kernel": params["Dense_1"]["kernel"][:4]},
    }
    save_weights(path, model, small, {})
    read = load_weights(path, model, KEY)
    assert equal(read.params, small)
    assert model.apply(read.params, {}, jnp.ones((2, 4)))[0].shape == (2, 3)
    with pytest.raises(
        ValueError, match=r"not the parameters of Own\({'num_classes': 3}\): Dense_0"
    ):
        save_weights(path, own_network(with_graph=False), small, {})
    foreign = image_model("vgg_micro", 3)
    save_weights(path, foreign, *arrays_of(foreign))
    with pytest.raises(ValueError, match="own network weights do not fit .* missing: Dense_0/bias"):
        load_weights(path, model, KEY)


def test_numbered_blocks_of_ones_own_network_stay_numbered(tmp_path):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.blocks = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(2)])
            self.fc = nnx.Linear(4, 2, rngs=rngs)

        def __call__(self, x):
            return self.fc(self.blocks[1](self.blocks[0](x)))

    model = wrap_nnx(Net, num_classes=2, head="fc")
    params, _ = model.init(KEY)
    save_weights(tmp_path / "w.safetensors", model, params, {})
    assert equal(load_weights(tmp_path / "w.safetensors", model, KEY).params, params)
