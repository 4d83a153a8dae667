"""The pruning experiment end to end, in seconds."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments import common
from experiments import pruning as experiment
from experiments.pruning_stages import ROWS
from fairjax import pruning
from fairjax.models import load_weights

SMALL = dataclasses.replace(experiment.PRESETS["smoke"], num_finalists=1)


def test_a_run_interrupted_between_rounds_resumes_to_the_same_results(tmp_path, monkeypatch):
    dataset = experiment.load_data(SMALL.data, SMALL.image_size)
    model, network = experiment.load_network(SMALL, dataset.num_classes)
    task = experiment.make_task(SMALL, model, network, dataset)

    def start(name, resume=False):
        return common.Run("pruning", SMALL, out=tmp_path / name, resume=resume)

    whole = start("whole")
    experiment.train_and_report(task, whole)
    cut = start("cut")
    log = cut.log

    def log_and_stop(row):
        log(row)
        raise KeyboardInterrupt

    monkeypatch.setattr(cut, "log", log_and_stop)
    with pytest.raises(KeyboardInterrupt):
        experiment.train_and_report(task, cut)
    again = start("cut", resume=True)
    experiment.train_and_report(task, again)

    summaries = [json.loads((run.folder / "summary.json").read_text()) for run in (whole, again)]
    for row in ROWS:
        first, second = (summary["results"][row]["per_seed"] for summary in summaries)
        assert first == second
    assert whole.history() == again.history()
    assert summaries[0]["results"]["baseline"]["fate"] in (0.0, None)

    taken = [r for r in whole.history() if r["row"] == "pruned" and r["taken"]]
    params, batch_stats, _ = load_weights(
        whole.folder / "pruned.safetensors", model, jax.random.key(0)
    )
    size = model.config.channel_graph["features/13"].size
    left = pruning.num_channels(params, model.config.channel_graph)["features/13"]
    assert size - left == sum(r["count"] for r in taken)
    images = np.zeros((1, 16, 16, 3), np.float32)
    assert np.isfinite(model.apply(params, batch_stats, images)[0]).all()
    assert "<svg" in (whole.folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("match", "change"),
    [
        ("no layer 'conv1'; vgg_micro has features/0", {"layers": ("conv1",)}),
        ("below 128, the number of channels of features/13", {"counts": (128,)}),
        ("num_rounds must be at least 1", {"num_rounds": 0}),
        ("disparity must be one of", {"disparity": "gap"}),
        ("num_finalists is 9, but there are 2 candidates", {"num_finalists": 9}),
    ],
)
def test_bad_settings_are_refused_before_training(match, change, tmp_path):
    with pytest.raises(ValueError, match=match):
        experiment.prepare_run(dataclasses.replace(SMALL, out=tmp_path / "run", **change))
    assert not (tmp_path / "run").exists()
