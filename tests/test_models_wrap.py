# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
"""Networks of one's own, from flax.nnx and flax.linen, obey the protocol of ours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from fairjax import trees
from fairjax.models import Channels, Slot, image_preprocess, wrap_linen, wrap_nnx
from fairjax.pruning import PrunePlan, slice_channels

KEY = jax.random.key(0)


class NnxNet(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs, rate: float = 0.5):
        self.layers = nnx.List([nnx.Conv(3, 6, (3, 3), rngs=rngs), nnx.BatchNorm(6, rngs=rngs)])
        self.drop, self.twice = nnx.Dropout(rate, rngs=rngs), nnx.Dropout(rate, rngs=rngs)
        self.net = nnx.Dict({"fc": nnx.Linear(6, 3, rngs=rngs)})

    def __call__(self, x):
        conv = self.layers[0](x)
        x = jax.nn.relu(self.layers[1](conv)).mean((1, 2))
        return self.net["fc"](self.twice(self.drop(x))), {"layers/0": conv}


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x, train: bool):
        conv = linen.Conv(6, (3, 3))(x)
        x = jax.nn.relu(linen.BatchNorm(use_running_average=not train)(conv)).mean((1, 2))
        return linen.Dense(3)(linen.Dropout(0.5, deterministic=not train)(x)), {"Conv_0": conv}


def graph(conv, norm, head):
    norms = [Slot(f"{norm}/{leaf}", 0) for leaf in ("scale", "bias")]
    norms += [Slot(f"{norm}/{leaf}", 0, in_stats=True) for leaf in ("mean", "var")]
    outputs = (Slot(f"{conv}/kernel", 3), Slot(f"{conv}/bias", 0), *norms)
    return {conv: Channels(6, outputs, (Slot(f"{head}/kernel", 0),))}


def wrapped(kind, **options):
    if kind == "nnx":
        names = graph("layers/0", "layers/1", "net/fc")
        settings = {"num_classes": 3, "head": "net/fc", "channel_graph": names}
        return wrap_nnx(NnxNet, **settings | {"example": images()} | options)
    names = graph("Conv_0", "BatchNorm_0", "Dense_0")
    settings = {"num_classes": 3, "head": "Dense_0", "channel_graph": names}
    return wrap_linen(LinenNet(), images(), **settings | options)


def images(batch=4, seed=1):
    return jax.random.normal(jax.random.key(seed), (batch, 8, 8, 3))


def close(a, b, atol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


both = pytest.mark.parametrize("kind", ["nnx", "linen"])


def test_an_nnx_network_gives_its_own_logits_and_statistics():
    model, module = wrapped("nnx"), NnxNet(rngs=nnx.Rngs(KEY))
    params, stats = jax.jit(model.init)(KEY)
    assert set(params["layers"]) == {"0", "1"} and set(params["net"]) == {"fc"}
    module.eval()
    logits, out, same = model.apply(params, stats, images())
    close(logits, module(images())[0])
    close(out["layers/0"], module.layers[0](images()))
    assert same is stats
    still = NnxNet(rngs=nnx.Rngs(KEY), rate=0.0)  # .train() is what a new module is set to
    expected, _ = still(images())
    without = wrap_nnx(lambda rngs: NnxNet(rngs=rngs, rate=0.0), num_classes=3, head="net/fc")
    logits, _, stats = without.apply(params, stats, images(), train=True, key=KEY)
    close(logits, expected)
    close(stats["layers"]["1"]["mean"], still.layers[1].mean[...])
    close(stats["layers"]["1"]["var"], still.layers[1].var[...])


def test_a_linen_network_gives_its_own_logits_and_statistics():
    model, module = wrapped("linen"), LinenNet()
    variables = module.init(KEY, images(), train=False)
    params, stats = model.init(KEY)
    close(params, variables["params"])
    logits, _, same = model.apply(params, stats, images())
    close(logits, module.apply(variables, images(), train=False)[0])
    assert same is stats
    logits, _, stats = model.apply(params, stats, images(), train=True, key=jax.random.key(3))
    (expected, _), new = module.apply(
        variables,
        images(),
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": jax.random.key(3)},
    )
    close(logits, expected)
    close(stats, new["batch_stats"])


@both
def test_training_moves_the_statistics_and_scoring_does_not(kind):
    model = wrapped(kind)
    params, stats = model.init(KEY)

    def epoch(stats):
        def step(stats, key):
            _, _, stats = model.apply(params, stats, images(), train=True, key=key)
            return stats, None

        return jax.lax.scan(step, stats, jax.random.split(KEY, 2))[0]

    moved = trees.flatten_named(jax.jit(epoch)(stats))
    for name, leaf in trees.flatten_named(stats).items():
        assert float(jnp.abs(moved[name] - leaf).max()) > 1e-4, name
    close(model.apply(params, stats, images())[2], stats, atol=0)


@both
def test_dropout_comes_from_the_key_alone_and_needs_it(kind):
    model = wrapped(kind)
    params, stats = model.init(KEY)

    @jax.jit
    def logits(key):
        return model.apply(params, stats, images(), train=True, key=key)[0]

    first, again, other = (logits(jax.random.key(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    scored = model.apply(params, stats, images(), key=jax.random.key(5))[0]
    np.testing.assert_array_equal(scored, model.apply(params, stats, images())[0])
    with pytest.raises(ValueError, match="train=True needs a key"):
        model.apply(params, stats, images(), train=True)


def test_every_dropout_layer_of_an_nnx_network_draws_its_own_mask():
    class Twice(nnx.Module):
        def __init__(self, rngs):
            self.first, self.second = nnx.Dropout(0.5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
            self.fc = nnx.Linear(64, 2, rngs=rngs)

        def __call__(self, x):
            return self.fc(x), {"first": self.first(x), "second": self.second(x)}

    model = wrap_nnx(Twice, num_classes=2, head="fc")
    out = model.apply(*model.init(KEY), jnp.ones((2, 64)), train=True, key=KEY)[1]
    assert not np.array_equal(out["first"], out["second"])
    assert 0.3 < float(jnp.mean(out["first"] == 0)) < 0.7


@both
def test_a_population_equals_its_networks_one_by_one_with_gradients(kind):
    model = wrapped(kind)
    params, stats = jax.vmap(model.init)(jax.random.split(KEY, 3))

    def loss(params, stats):
        logits, _, stats = model.apply(params, stats, images(), train=True, key=KEY)
        return jnp.square(logits).sum(), (logits, stats)

    run = jax.grad(loss, has_aux=True)
    together = jax.jit(jax.vmap(run))(params, stats)
    for i in range(3):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], (params, stats, together))
        close(one[2], run(*one[:2]), atol=1e-4)
    assert not np.allclose(together[1][0][0], together[1][0][1])


@both
def test_second_call_does_not_recompile(kind):
    model, traces = wrapped(kind), []

    @jax.jit
    def step(params, stats, key):
        traces.append(None)
        return model.apply(params, stats, images(), train=True, key=key)[2]

    params, stats = model.init(KEY)
    for _ in range(3):
        stats = step(params, stats, KEY)
    assert traces == [None]


@both
def test_removed_channels_give_the_logits_of_zeroed_ones_and_train(kind):
    model = wrapped(kind)
    params, stats = model.init(KEY)
    stats = jax.tree.map(lambda leaf: leaf + 0.1, stats)
    (layer,) = model.config.channel_graph
    plan = PrunePlan({layer: jnp.array([True, False, True, True, False, True])})
    small = slice_channels(params, stats, plan, model.config.channel_graph)
    conv = trees.get_path(small[0], layer)["kernel"]
    assert conv.shape == (3, 3, 3, 4)
    kernel = f"{model.head}/kernel"
    read = jnp.where(plan.keep[layer][:, None], trees.get_path(params, kernel), 0)
    logits, out, _ = model.apply(*small, images())
    close(logits, model.apply(trees.set_path(params, kernel, read), stats, images())[0])
    assert out[layer].shape == (4, 8, 8, 4)
    _, _, new = jax.jit(lambda p, s: model.apply(p, s, images(), train=True, key=KEY))(*small)
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, small[1])
    gradient = jax.grad(lambda p: jnp.square(model.apply(p, small[1], images())[0]).sum())(small[0])
    assert float(jnp.abs(trees.get_path(gradient, layer)["kernel"]).min()) > 0


@both
def test_raw_pixels_and_their_preprocessing(kind):
    model = wrapped(kind, preprocess=image_preprocess(8))
    params, stats = model.init(KEY)
    pixels = np.zeros((2, 20, 30, 3), np.uint8)
    with pytest.raises(ValueError, match="uint8 images go through model.preprocess"):
        model.apply(params, stats, pixels)
    assert model.preprocess is not None
    assert model.apply(params, stats, model.preprocess(pixels))[0].shape == (2, 3)
    assert (model.config.image_size, model.config.num_classes) == (8, 3)


class Blocks(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(3)])
        self.fc = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x, *, train):
        for block in self.blocks:
            x = jnp.tanh(block(x)) + (1.0 if train else 0.0)
        return self.fc(x)


def test_numbered_blocks_are_taken_stacked_too_and_call_arguments_are_passed():
    model = wrap_nnx(Blocks, num_classes=2, head="fc", example=jax.ShapeDtypeStruct((2, 4), "f4"))
    params, stats = model.init(KEY)
    assert set(params["blocks"]) == {"0", "1", "2"} and stats == {}
    logits = model.apply(params, {}, jnp.ones((2, 4)))[0]
    close(model.apply(trees.stack_blocks(params), {}, jnp.ones((2, 4)))[0], logits)
    assert not np.allclose(model.apply(params, {}, jnp.ones((2, 4)), train=True)[0], logits)


class Odd(nnx.Module):
    """A network with one of several faults."""

    def __init__(self, rngs, fault):
        self.fc = nnx.Linear(4, 1 if fault == "sigmoid" else 2, rngs=rngs)
        if fault == "cache":
            self.seen = nnx.Cache(jnp.zeros(3))
        if fault == "blocks":
            self.blocks = nnx.Dict({"a": nnx.Linear(4, 2, rngs=rngs)})
        self.fault = fault

    def __call__(self, x):
        z = self.fc(x)
        return (z, z, z) if self.fault == "triple" else z


@pytest.mark.parametrize(
    ("fault", "options", "message"),
    [
        ("sigmoid", {}, r"shape \[B, 2\], got \(5, 1\); .*concatenate\(\[jnp.zeros_like"),
        ("triple", {}, "must return logits, or"),
        ("cache", {}, "neither parameters nor batch statistics: seen"),
        ("blocks", {}, "this network has blocks/a/bias: rename it"),
        (None, {"num_classes": 3}, r"shape \[B, 3\], got \(5, 2\)"),
        (None, {"num_classes": 1}, "num_classes must be at least 2"),
        (None, {"head": "net/fc"}, "head 'net/fc' is not in the parameters: no 'net' .* is fc"),
        (None, {"head": "fc/kernel"}, "must be a linear layer"),
        (
            None,
            {"channel_graph": {"fc": Channels(2, (Slot("fc/kern", 1),), ())}},
            r"channel_graph\['fc'\]: there is no array 'fc/kern'",
        ),
        (
            None,
            {"channel_graph": {"fc": Channels(3, (Slot("fc/kernel", 1),), ())}},
            r"axis 1 of fc/kernel should have length 3, its shape is \(4, 2\)",
        ),
        (
            None,
            {"channel_graph": {"fc": Channels(2, (Slot("fc/kernel", 1),), ())}},
            "must return this intermediate, .* it returns none",
        ),
    ],
)
def test_networks_that_cannot_work_are_explained_when_they_are_wrapped(fault, options, message):
    settings = {"num_classes": 2, "head": "fc", "example": jnp.ones((5, 4))} | options
    with pytest.raises(ValueError, match=message):
        wrap_nnx(lambda rngs: Odd(rngs, fault), **settings)


def test_other_mistakes_in_wrapping_are_explained():
    with pytest.raises(ValueError, match="make must take the argument rngs"):
        wrap_nnx(lambda: Odd(nnx.Rngs(0), None), num_classes=2, head="fc")
    with pytest.raises(ValueError, match="must return an nnx.Module, got Shape"):
        wrap_nnx(lambda rngs: 3, num_classes=2, head="fc")
    model = wrap_nnx(lambda rngs: Odd(rngs, None), num_classes=2, head="fc")
    with pytest.raises(ValueError, match="missing parameter or statistic 'fc/bias'"):
        model.apply({"fc": {"kernel": jnp.ones((4, 2))}}, {}, jnp.ones((5, 4)))

    class Counting(linen.Module):
        @linen.compact
        def __call__(self, x):
            self.variable("cache", "seen", lambda: jnp.zeros(3))
            return linen.Dense(2)(x)

    with pytest.raises(ValueError, match="neither params nor batch_stats: cache"):
        wrap_linen(Counting(), jnp.ones((5, 4)), num_classes=2, head="Dense_0")
