"""The same network with other activations or checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairjax import trees
from fairjax.models import Model, image_model, mlp, reconfigure
from tests.golden.filling import arrays_of


def tiny():
    return image_model("vit_micro", 3, image_size=16, width=24, depth=2)


def images():
    return jax.random.normal(jax.random.key(1), (4, 16, 16, 3))


def test_another_dtype_takes_the_same_parameters_and_computes_in_it():
    model = tiny()
    params, _ = arrays_of(model)
    half = reconfigure(model, dtype="bfloat16")
    logits, out, _ = half.apply(params, {}, images())
    assert logits.dtype == jnp.float32 and out["tokens"].dtype == jnp.bfloat16
    np.testing.assert_allclose(logits, model.apply(params, {}, images())[0], atol=0.03)
    assert half.config.dtype == "bfloat16" and not half.config.checkpoint_blocks
    assert reconfigure(half, checkpoint_blocks=True).config.dtype == "bfloat16"


def test_checkpointed_blocks_keep_less_for_the_backward_pass():
    model = tiny()
    params, _ = arrays_of(model)

    def kept(model):
        def residuals(params):
            return jax.vjp(lambda params: model.apply(params, {}, images())[0], params)[1]

        leaves = jax.tree.leaves(jax.eval_shape(residuals, params))
        return sum(leaf.size for leaf in leaves)

    assert kept(reconfigure(model, checkpoint_blocks=True)) < 0.8 * kept(model)


def test_preprocessing_and_head_are_kept_and_nothing_asked_changes_nothing():
    model = tiny()._replace(preprocess=None, head="classifier")
    assert reconfigure(model) is model
    assert reconfigure(model, dtype="float32", checkpoint_blocks=False) is model
    changed = reconfigure(model, checkpoint_blocks=True)
    assert changed.preprocess is None and changed.head == "classifier"


def test_networks_without_the_settings_take_their_defaults_only():
    own = Model(lambda key: ({}, {}), lambda *args, **options: (jnp.zeros((1, 2)), {}, {}))
    for model, name in ((image_model("resnet18", 2), "ResNet"), (mlp(3, 2), "MLP"), (own, "None")):
        assert reconfigure(model, dtype="float32", checkpoint_blocks=False) is model
        with pytest.raises(ValueError, match=f"{name}.* has no dtype setting, got .*bfloat16"):
            reconfigure(model, dtype="bfloat16")
        with pytest.raises(ValueError, match="has no checkpoint_blocks setting"):
            reconfigure(model, checkpoint_blocks=True)


def test_an_apply_of_ones_own_is_not_silently_lost():
    model = tiny()
    own = model._replace(apply=lambda *args, **options: model.apply(*args, **options))
    with pytest.raises(ValueError, match="reconfigure the network first"):
        reconfigure(own, dtype="bfloat16")


def test_unknown_dtypes_are_refused():
    with pytest.raises(ValueError, match="dtype must be one of"):
        reconfigure(tiny(), dtype="float16")


def test_paths_into_nested_parameters_read_replace_and_name_what_is_there():
    tree = {"net": {"fc": {"kernel": 1}, "conv": 2}, "other": 3}
    assert trees.get_path(tree, "net/fc/kernel") == 1
    changed = trees.set_path(tree, "net/fc", 5)
    assert changed == {"net": {"fc": 5, "conv": 2}, "other": 3}
    assert tree["net"]["fc"] == {"kernel": 1}
    with pytest.raises(ValueError, match="no 'head' on the way to 'net/head', there is fc, conv"):
        trees.get_path(tree, "net/head")
    with pytest.raises(ValueError, match="no 'kernel' on the way .*, there is an array"):
        trees.set_path(tree, "other/kernel", 0)
