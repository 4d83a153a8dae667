"""A recipe refuses nonsense when it is made, and every one of its settings reaches the training."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairjax.data import Dataset, Examples
from fairjax.models import image_model, mlp
from fairjax.optimizers import make_optimizer
from fairjax.sampling import shuffled
from fairjax.train import Batch, Recipe, fit, init_fit, init_train, make_step, start_train

RNG = np.random.default_rng(0)
DATA = Dataset(
    name="toy",
    inputs=RNG.normal(size=(40, 3)).astype(np.float32),
    labels=(np.arange(40) % 4 == 0).astype(np.int32),
    group=(np.arange(40) % 2).astype(np.int32),
    label_names=("no", "yes"),
    group_names=("a", "b"),
    splits={
        "train": np.arange(39, 11, -1, dtype=np.int32),
        "val": np.arange(6, dtype=np.int32),
        "test": np.arange(6, 12, dtype=np.int32),
    },
)
TRAIN = Examples(*map(jnp.asarray, DATA.examples("train")))
MODEL = mlp(3, 2, (4,))
NAN, INF = float("nan"), float("inf")

NONSENSE: dict[str, list[Any]] = {
    "num_epochs": [0, -1, 1.5, 2.0, NAN, INF, "3", None, True],
    "batch_size": [0, -1, 1.5, NAN, INF, None],
    "sampler": ["fairbatching", "", None],
    "loss": ["focal_loss", "", None],
    "optimizer": ["adam", None],
    "learning_rate": [0, 0.0, -1, NAN, INF, "0.1", None, True],
    "schedule": ["linear", None],
    "warmup_epochs": [-1, NAN, INF, "1", None],
    "drops": [(0.0,), (1.0,), (NAN,), (0.5, 0.5), (0.6, 0.3), 0.5, None, "abc"],
    "momentum": [-0.1, 1.0, NAN, INF, None],
    "weight_decay": [-1, NAN, INF, None],
    "label_smoothing": [-0.1, 1.0, NAN, INF, None],
    "class_weights": [(-1.0, 1.0), (NAN, 1.0), (0.0, INF), (0.0, 0.0), (), "equal", 3.0],
    "augment": ["flip", 1],
    "ema_decay": [0.0, 1.0, -1, NAN, INF, "0.9"],
    "dtype": ["float16", jnp.bfloat16, None],
    "checkpoint_blocks": [1, "yes", None],
    "data_bytes": [0, -1, 1.5, NAN, INF, "1", True],
}


def test_every_setting_is_tried_with_nonsense():
    assert set(NONSENSE) == {field.name for field in dataclasses.fields(Recipe)}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in NONSENSE.items() for value in values]
)
def test_nonsense_is_refused_by_name_in_one_line(name, value):
    with pytest.raises(ValueError, match=f"^{name} must ") as error:
        Recipe(**{name: value})
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=f"^{name} must "):
        dataclasses.replace(Recipe(), **{name: value})


def test_recipes_of_equal_numbers_are_equal_whatever_holds_the_numbers():
    recipe = Recipe(class_weights=(1.0, 2.0), drops=(0.5,))
    other = Recipe(class_weights=np.array([1, 2]), drops=[0.5])  # pyright: ignore
    assert recipe == other and hash(recipe) == hash(other)
    with pytest.raises(ValueError, match="drops must be several numbers"):
        dataclasses.replace(recipe, drops=["half"])  # pyright: ignore


def trained(recipe, num_epochs=2):
    """Parameters and losses after training as a recipe says."""
    sampler = recipe.make_sampler(DATA)
    optimizer = recipe.make_optimizer(sampler.batches_per_epoch)
    step = recipe.make_step(MODEL, optimizer, DATA)
    averaged = recipe.ema_decay is not None
    train = init_train(MODEL, optimizer, jax.random.key(0), ema=averaged)
    run = jax.jit(
        lambda state, data: fit(
            step, state, data, sampler, num_epochs=num_epochs, augment=recipe.augment
        )
    )
    state, history = run(init_fit(train, sampler, jax.random.key(1)), TRAIN)
    return state.train, history["loss"]


BASE = Recipe(num_epochs=2, batch_size=7, optimizer="sgd", learning_rate=0.1)


def difference(a, b):
    return max(jax.tree.leaves(jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), a, b)))


@pytest.fixture(scope="module")
def plain():
    return trained(BASE)


CHANGES: dict[str, Any] = {
    "num_epochs": 3,  # of the schedule
    "batch_size": 14,
    "sampler": "class_balanced",
    "optimizer": "adamw",
    "learning_rate": 0.2,
    "schedule": "constant",
    "warmup_epochs": 0.5,
    "momentum": 0.5,
    "weight_decay": 0.1,
    "label_smoothing": 0.1,
    "class_weights": (1.0, 3.0),
    "loss": "logit_adjusted",
    "augment": lambda key, inputs: inputs + jax.random.normal(key, inputs.shape),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_setting_changes_what_is_trained(name, plain):
    state, losses = trained(dataclasses.replace(BASE, **{name: CHANGES[name]}))
    assert difference(state.params, plain[0].params) > 1e-4
    assert np.isfinite(losses).all()


@pytest.mark.parametrize("sampler", ["group_dro", "group_cvar", "fairbatch", "fairbatch@rate"])
def test_a_sampler_that_adapts_moves_its_shares_wherever_a_recipe_trains(sampler, plain):
    recipe = dataclasses.replace(BASE, sampler=sampler)
    made = recipe.make_sampler(DATA)
    step = recipe.make_step(MODEL, recipe.make_optimizer(made.batches_per_epoch), DATA)
    train = init_train(MODEL, recipe.make_optimizer(4), jax.random.key(0))
    key = jax.random.key(3)  # with which the network tells classes apart for a while
    state = init_fit(train, made, key)
    state, history = jax.jit(lambda state: fit(step, state, TRAIN, made, num_epochs=2))(state)
    assert np.abs(history["shares"][1] - made.init().shares).max() > 1e-3
    by_hand = made._replace(update_every=None)
    every = 4 if sampler.startswith("fairbatch") else 1  # the most up to ten that divide 4 batches
    again = init_fit(train, by_hand, key)
    again, _ = jax.jit(
        lambda state: fit(step, state, TRAIN, by_hand, num_epochs=2, update_every=every)
    )(again)
    assert difference(again.train.params, state.train.params) == 0
    with pytest.raises(ValueError, match="give measure_fn"):
        fit(step, state, TRAIN, by_hand, num_epochs=1)


def test_a_recipe_takes_a_sampler_of_the_users(plain):
    same, _ = trained(dataclasses.replace(BASE, sampler=shuffled))
    assert difference(same.params, plain[0].params) == 0


def test_drops_change_the_schedule_of_steps_alone(plain):
    other = dataclasses.replace(BASE, drops=(0.25,))
    assert difference(trained(other)[0].params, plain[0].params) == 0  # cosine
    steps = [
        trained(dataclasses.replace(BASE, schedule="step", drops=drops))[0].params
        for drops in ((0.25,), (0.5,))
    ]
    assert difference(*steps) > 1e-4


def test_balanced_class_weights_are_those_of_the_training_split():
    share = np.bincount(DATA.labels[DATA.splits["train"]]) / 28
    weights = tuple(0.5 / share)
    assert weights[0] != weights[1]
    balanced, _ = trained(dataclasses.replace(BASE, class_weights="balanced"))
    by_hand, _ = trained(dataclasses.replace(BASE, class_weights=weights))
    assert difference(balanced.params, by_hand.params) < 1e-6


def test_the_average_is_kept_where_the_recipe_says_so(plain):
    state, _ = trained(dataclasses.replace(BASE, ema_decay=0.5))
    assert difference(state.params, plain[0].params) < 1e-6
    assert difference(state.final_params, state.params) > 1e-4
    assert plain[0].ema is None and plain[0].final_params is plain[0].params


def test_class_weights_that_are_not_one_per_class_are_refused():
    recipe = Recipe(class_weights=(1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="one per class, 2, got 3"):
        recipe.make_step(MODEL, recipe.make_optimizer(1), DATA)
    empty = dataclasses.replace(DATA, label_names=("no", "yes", "unseen"))
    recipe = Recipe(class_weights="balanced")
    with pytest.raises(ValueError, match="class 2 has no training examples"):
        recipe.make_step(MODEL, recipe.make_optimizer(1), empty)


def test_rows_of_the_sampler_count_within_the_training_split():
    sampler = Recipe(batch_size=4).make_sampler(DATA)
    assert sampler.batches_per_epoch == 7
    rows, _ = sampler.sample_epoch(jax.random.key(0), sampler.init())
    np.testing.assert_array_equal(np.sort(np.ravel(rows)), np.arange(28))
    np.testing.assert_array_equal(
        sampler.init().rows.counts, DATA.cell_counts("train").astype(np.int32)
    )


WARM = [0.01, 0.2575, 0.505, 0.7525]
FACTORS = {  # of version 0.1, 20 steps of which 4 rise
    "constant": [1.0] * 16,
    "cosine": [
        1.0,
        0.9903926,
        0.9619398,
        0.9157348,
        0.8535534,
        0.7777851,
        0.6913417,
        0.5975451,
        0.5,
        0.4024549,
        0.3086582,
        0.2222148,
        0.1464466,
        0.0842652,
        0.0380602,
        0.0096073,
    ],
    "step": [1.0] * 4 + [0.1] * 4 + [0.01] * 8,
    "exponential": [
        1.0,
        0.7498942,
        0.5623413,
        0.4216965,
        0.3162278,
        0.2371374,
        0.1778279,
        0.1333521,
        0.1,
        0.0749894,
        0.0562341,
        0.0421696,
        0.0316228,
        0.0237137,
        0.0177828,
        0.0133352,
    ],
}


def rates(optimizer, num_steps):
    """Step sizes of gradient descent on a constant slope of 1."""
    params = {"w": jnp.zeros(())}

    def one(state, _):
        with jax.numpy_dtype_promotion("standard"):
            update, state = optimizer.update({"w": jnp.ones(())}, state, params)
        return state, -update["w"]

    return jax.lax.scan(one, optimizer.init(params), length=num_steps)[1]


@pytest.mark.parametrize("schedule", FACTORS)
def test_the_optimizer_follows_the_schedules_of_version_0_1(schedule):
    recipe = Recipe(
        num_epochs=4,
        optimizer="sgd",
        learning_rate=2.0,
        schedule=schedule,
        momentum=0.0,
        warmup_epochs=0.8,
        drops=(0.25, 0.5),
    )
    ours = rates(recipe.make_optimizer(5), 20)
    np.testing.assert_allclose(ours, 2.0 * np.array(WARM + FACTORS[schedule]), rtol=2e-5)
    same = make_optimizer(
        "sgd",
        total_steps=20,
        schedule=schedule,
        warmup_steps=4,
        learning_rate=2.0,
        momentum=0.0,
        drops=(0.25, 0.5),
    )
    np.testing.assert_array_equal(ours, rates(same, 20))


def test_the_rate_rises_for_at_most_half_of_the_epochs():
    recipe = Recipe(num_epochs=2, optimizer="sgd", momentum=0.0, warmup_epochs=9.0)
    factors = rates(recipe.make_optimizer(10), 20) / recipe.learning_rate
    assert int(jnp.argmax(factors)) == 10


def test_networks_get_the_dtype_and_the_checkpoints_of_the_recipe():
    model = image_model("vit_micro", 2, image_size=16, width=12, depth=2)
    params, _ = model.init(jax.random.key(0))
    inputs = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))

    def program(recipe):
        apply = recipe.make_model(model).apply
        slope = jax.grad(lambda p: apply(p, {}, inputs, train=True)[0].sum())
        return str(jax.make_jaxpr(slope)(params))

    usual = program(Recipe())
    assert "bf16" not in usual and "bf16" in program(Recipe(dtype="bfloat16"))
    again = program(Recipe(checkpoint_blocks=True))
    assert again.count("dot_general") > usual.count("dot_general")  # products are done twice


def test_a_step_binds_and_gates_what_it_is_given():
    recipe = Recipe(batch_size=4, optimizer="sgd", learning_rate=0.1)
    optimizer = recipe.make_optimizer(7)
    params, _ = MODEL.init(jax.random.key(0))
    seen = []
    bind = lambda tunable, frozen: {**frozen, **tunable}
    gate = lambda params, mask: seen.append(set(mask)) or params
    ours = recipe.make_step(MODEL, optimizer, DATA, bind=bind, gate=gate)
    theirs = make_step(MODEL, optimizer, bind=bind, gate=gate)
    frozen = {"hidden": params["hidden"]}
    batch = Batch(TRAIN.inputs[:4], TRAIN.labels[:4], TRAIN.group[:4], jnp.ones(4))
    mask = {"head": {"kernel": jnp.array(True), "bias": jnp.array(False)}}
    outs = [
        step(start_train({"head": params["head"]}, {}, optimizer), batch, None, mask, frozen)[0]
        for step in (ours, theirs)
    ]
    assert seen == [{"head"}] * 2
    assert difference(outs[0].params, outs[1].params) == 0
    assert difference(outs[0].params["head"]["bias"], params["head"]["bias"]) == 0
