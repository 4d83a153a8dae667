"""The FairTune experiment end to end: interrupted, resumed, and what it writes."""

import csv
import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments import common
from experiments.fairtune import PRESETS, prepare_run
from fairjax.fairtune import mask_space
from fairjax.models import image_model, load_weights

SMOKE = PRESETS["smoke"]


def test_an_interrupted_run_goes_on_and_writes_its_folder(tmp_path, monkeypatch, capsys):
    config = dataclasses.replace(SMOKE, num_seeds=1, out=tmp_path / "run")
    save, saved = common.Run.save, []

    def save_then_stop(run, step, state):
        save(run, step, state)
        saved.append(state)
        if len(saved) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(common.Run, "save", save_then_stop)
        with pytest.raises(KeyboardInterrupt):
            prepare_run(config)()
    folder = tmp_path / "run"
    assert not (folder / "summary.json").exists()
    with pytest.raises(ValueError, match="holds a run already"):
        prepare_run(config)
    with pytest.raises(ValueError, match="space was 'norm'"):
        prepare_run(dataclasses.replace(config, space="mlp", resume=True))

    prepare_run(dataclasses.replace(config, resume=True))()
    assert "fairtune" in capsys.readouterr().out
    with (folder / "trials.csv").open() as file:
        trials = list(csv.DictReader(file))
    assert len(trials) == 4 and {trial["status"] for trial in trials} <= {"complete", "stopped"}
    before = saved[2].trials
    for row, trial in enumerate(trials):  # what was known at the kill is what stands in the table
        if before.status[row]:
            assert [int(trial[unit]) for unit in list(trial)[6:]] == list(before.masks[row])

    found = json.loads((folder / "mask.json").read_text())
    summary = json.loads((folder / "summary.json").read_text())
    assert list(summary["results"]) == ["full", "linear", "all_on", "fairtune"]
    best = max(
        (trial for trial in trials if trial["status"] == "complete"),
        key=lambda trial: float(trial["val_worst_group_auc"]),
    )
    assert found["val_objective"] == pytest.approx(float(best["val_worst_group_auc"]))
    shares = [row["percent_trained"] for row in summary["results"].values()]
    assert shares[0] == 100 and shares[1] <= shares[3] <= shares[2]
    assert shares[3] == pytest.approx(found["percent_trained"])
    assert summary["results"]["full"]["ci95_vs_full"]["auc"] == [0, 0]
    assert "What the best trials train" in (folder / "report.html").read_text()

    model = image_model("vit_micro", 2, image_size=16)
    tuned, before = (
        load_weights(folder / name, model, jax.random.key(0)).params
        for name in ("fairtune.safetensors", "pretrained.safetensors")
    )
    mask = np.array(found["mask"], bool)
    frozen = mask_space(before, "norm").split(before, mask)[1]
    assert "patch_embed" in frozen
    for path in (("blocks", "mlp", "fc1", "kernel"), ("patch_embed", "proj", "kernel")):
        one, other = tuned, before
        for key in path:
            one, other = one[key], other[key]
        np.testing.assert_array_equal(one, other)
    moved = np.asarray(tuned["blocks"]["norm1"]["scale"] != before["blocks"]["norm1"]["scale"])
    np.testing.assert_array_equal(moved.any(1), mask)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_slots": 0}, "num_slots must be at least 1"),
        ({"objective": ("min_auc",)}, "unknown objective 'min_auc'"),
        ({"space": "norms"}, "unknown mask space 'norms'"),
        ({"objective": ("auc", "auc_gap"), "search": "evolution"}, "takes one objective"),
        ({"data": dataclasses.replace(SMOKE.data, num_val=30)}, "multiple of 4, got 30"),
        ({"data": dataclasses.replace(SMOKE.data, num_val=8)}, "'dark skin'"),
    ],
)
def test_mistakes_are_named_before_training(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        prepare_run(dataclasses.replace(SMOKE, out=tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()
