"""The pre-training experiment and the weights that it made for the package."""

import dataclasses
import itertools
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import fairjax.models
from experiments import pretrain as experiment
from experiments.run import Run
from fairjax.losses import cross_entropy
from fairjax.models import Model, image_model, load_pretrained, load_weights

FOLDER = Path(fairjax.models.__file__).parent
NAMES = ("vgg_micro", "vit_micro")
KEY = jax.random.key(0)


def test_the_joint_loss_is_the_sum_of_the_tasks_losses():
    logits = 2 * jax.random.normal(KEY, (5, sum(experiment.SIZES)))
    model = experiment.joint_model(Model(lambda key: ({}, {}), lambda *_, **__: (logits, {}, {})))
    joint, _, _ = model.apply({}, {}, jnp.zeros((5, 1)))
    assert joint.shape == (5, np.prod(experiment.SIZES))
    parts = np.split(np.asarray(logits), np.cumsum(experiment.SIZES)[:-1], axis=1)
    combinations = list(itertools.product(*map(range, experiment.SIZES)))
    for label in (0, 1, 8, 64, 512, 777, len(combinations) - 1):
        expected = sum(
            np.log(np.exp(part).sum(1)) - part[:, answer]
            for part, answer in zip(parts, combinations[label], strict=True)
        )
        got = cross_entropy(joint, jnp.full(5, label, jnp.int32))
        np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_labels_name_the_four_answers_and_every_picture_is_in_one_split():
    dataset = experiment.picture_dataset(KEY, 60)
    pictures = experiment.synthetic_pictures(KEY, 60)
    np.testing.assert_array_equal(dataset.inputs, pictures.images)
    for row, label in enumerate(dataset.labels):
        answers = dataset.label_names[label].split(", ")
        for answer, (task, names) in zip(answers, experiment.TASKS.items(), strict=True):
            assert answer == names[getattr(pictures, task)[row]]
    assert [len(dataset.splits[split]) for split in ("train", "val", "test")] == [48, 3, 9]


@pytest.mark.parametrize("name", NAMES)
def test_shipped_weights_get_a_fresh_head_of_any_size(name):
    for num_classes in (2, sum(experiment.SIZES)):
        model, weights = load_pretrained(name, num_classes, KEY)
        assert model.config.num_classes == num_classes
        images = jax.random.normal(KEY, (3, 64, 64, 3))
        logits, _, _ = model.apply(weights.params, weights.batch_stats, images)
        assert logits.shape == (3, num_classes) and np.isfinite(logits).all()
    _, own = load_pretrained(name, None, KEY)
    assert not np.array_equal(own.params["head"]["kernel"], weights.params["head"]["kernel"])
    body = [{k: v for k, v in p.items() if k != "head"} for p in (own.params, weights.params)]
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, *body)))


@pytest.mark.parametrize("name", NAMES)
def test_shipped_weights_are_small_half_precision_files(name):
    path = FOLDER / f"{name}.safetensors"
    assert path.stat().st_size < 2_000_000
    with safe_open(path, framework="np") as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} == {np.dtype("float16")}  # noqa: SIM118


def test_a_name_without_weights_is_refused():
    with pytest.raises(ValueError, match="no weights ship for resnet18, they do for vgg_micro"):
        load_pretrained("resnet18", 2, KEY)


@pytest.fixture(scope="module")
def fresh_images():
    dataset = experiment.picture_dataset(jax.random.key(2024), 1536)
    examples = experiment.Examples(dataset.inputs, dataset.labels, dataset.group)
    return jax.tree.map(jnp.asarray, examples)


@pytest.mark.parametrize("name", NAMES)
def test_shipped_weights_are_as_accurate_as_their_card_says(name, fresh_images):
    card = (FOLDER / "pretrained.md").read_text()
    line = re.findall(rf"^\| `{name}` \|(.*)\|$", card, re.MULTILINE)[0]  # of the first table
    stated = np.array([float(cell) for cell in line.split("|")[: len(experiment.TASKS) + 1]])
    network, weights = load_pretrained(name, None, KEY)
    model = experiment.joint_model(network)
    right = jax.jit(lambda *args: experiment.correct(model, *args))(*weights[:2], fresh_images)
    found = np.array([np.mean(right[task]) for task in experiment.TASKS])
    assert abs(found.mean() - stated[0]) < 0.02
    assert np.abs(found - stated[1:]).max() < 0.04  # three standard errors of one task
    assert np.isclose(stated[0], stated[1:].mean(), atol=2e-3)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    config = dataclasses.replace(
        experiment.PRESETS["smoke"], out=tmp_path_factory.mktemp("run") / "out"
    )
    experiment.prepare_run(config)()
    return config


def test_a_run_leaves_weights_that_load_and_a_summary(finished):
    summary = json.loads((finished.out / "summary.json").read_text())
    result = summary["results"]["vgg_micro"]
    assert np.isclose(result["accuracy"], np.mean(list(result["tasks"].values())))
    assert set(result["tasks"]) == set(experiment.TASKS)
    weights = load_weights(
        finished.out / "vgg_micro.safetensors", image_model("vgg_micro", sum(experiment.SIZES)), KEY
    )
    assert weights.notes == ()
    rows = [json.loads(line) for line in (finished.out / "history.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2] and np.isfinite(rows[-1]["loss"])


def test_an_interrupted_run_ends_like_an_uninterrupted_one(finished, tmp_path, monkeypatch):
    config = dataclasses.replace(finished, out=tmp_path / "out")
    save = Run.save

    def killed(self, step, state):
        save(self, step, state)
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        experiment.prepare_run(config)()
    monkeypatch.undo()
    experiment.prepare_run(dataclasses.replace(config, resume=True))()
    # arrays and not bytes: safetensors writes its header's entries in any order
    both = [load_file(c.out / "vgg_micro.safetensors") for c in (finished, config)]
    jax.tree.map(np.testing.assert_array_equal, *both)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_images": 10}, "--num-images must be at least 64, got 10"),
        ({"learning_rate": 0.0}, "--learning-rate must be above 0"),
        ({"num_epochs": 0}, "--num-epochs must be at least 1"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_drawn(change, message, tmp_path):
    config = dataclasses.replace(experiment.PRESETS["smoke"], out=tmp_path / "out", **change)
    with pytest.raises(ValueError, match=message):
        experiment.prepare_run(config)
    assert not (tmp_path / "out").exists()
