# pyright: reportCallIssue=false, reportArgumentType=false, reportOptionalCall=false
"""Gates trained by gradients, on a toy network of which one block matters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairjax.data import Dataset
from fairjax.fairtune import guided_masks, mask_space_from_rules, objective, tpe
from fairjax.models import Model, Weights

NUM_BLOCKS = 4


def toy_model():
    """Block i adds `w[i] . x` to the logit of class 1; the head adds a bias."""

    def init(key):
        params = {"blocks": {"w": jnp.zeros((NUM_BLOCKS, NUM_BLOCKS))}, "head": {"b": jnp.zeros(1)}}
        return params, {}

    def apply(params, batch_stats, inputs, *, train=False, key=None):
        # block i reads feature i only
        score = (inputs * jnp.diagonal(params["blocks"]["w"])[None]).sum(1) + params["head"]["b"]
        return jnp.stack([-score, score], axis=1), {}, batch_stats

    return Model(init, apply)


def make_data(seed, n=400):
    """Feature 0 tells the label in both groups, 1 in the majority only; 2 and 3 are
    faint noise."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 2, n).astype(np.int32)
    group = (draw.random(n) < 0.2).astype(np.int32)
    sign = 2.0 * labels - 1
    features = draw.normal(size=(n, NUM_BLOCKS))
    features[:, 2:] *= 0.1
    features[:, 0] += sign
    features[:, 1] += np.where(group == 0, 2.0, -2.0) * sign
    return features.astype(np.float32), labels, group


def both_splits():
    parts = [np.concatenate(pair) for pair in zip(make_data(0), make_data(1), strict=True)]
    rows = np.arange(800, dtype=np.int32)
    names = {"label_names": ("0", "1"), "group_names": ("most", "few")}
    splits = {"train": rows[:400], "val": rows[400:], "test": rows[:0]}
    return Dataset("toy", *parts, splits=splits, **names)


def without_val(name):
    """The toy set, with no validation example of one group."""
    data = both_splits()
    val = data.splits["val"]
    kept = val[data.group[val] != data.group_names.index(name)]
    return dataclasses.replace(data, splits={**data.splits, "val": kept})


MODEL = toy_model()
PARAMS = MODEL.init(jax.random.key(0))[0]
SPACE = mask_space_from_rules(PARAMS, {r"blocks/(\d+)/w": r"blocks/\1", r"head/b": "trained"})


def find(**changes):
    arguments = {"key": jax.random.key(0), "num_masks": 6, "learning_rate": 0.05}
    weights, data = Weights(PARAMS, {}, ()), changes.pop("data", both_splits())
    return guided_masks(MODEL, SPACE, weights, data, **(arguments | changes))


def test_the_gate_of_the_block_that_helps_the_worst_group_comes_out_highest():
    masks, gates = find()
    assert gates.argmax() == 0 and gates[0] > 0.5
    assert gates[1] < 0.5  # right for the majority, wrong for the others
    assert masks.shape == (6, NUM_BLOCKS) and masks.dtype == bool
    np.testing.assert_array_equal(masks[0], gates > np.median(gates))
    np.testing.assert_array_equal(find()[0], masks)


def test_a_search_asks_for_the_given_masks_first():
    masks = np.array([[1, 0, 0, 1], [0, 1, 1, 0], [1, 1, 1, 1]], bool)
    search = tpe(SPACE, [objective("auc", num_groups=2)], first_masks=tuple(masks))
    state = search.init(0)
    one, state = search.ask(state, 2)
    other, state = search.ask(state, 3)
    np.testing.assert_array_equal(np.concatenate([one.masks, other.masks])[:3], masks)
    assert len(np.unique(np.concatenate([one.learning_rates, other.learning_rates]))) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_masks": 0}, "must be at least 1"),
        ({"val_size": 1}, "val_size at least 2"),
        ({"data": without_val("few")}, "group 1 has no validation example"),
    ],
)
def test_numbers_that_leave_nothing_to_do_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        find(**changes)
