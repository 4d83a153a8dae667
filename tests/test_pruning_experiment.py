"""The pruning experiment end to end, in seconds."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import pruning as experiment
from experiments.image_data import Data, load_data
from experiments.pruning_stages import (
    CONTROLS,
    ROWS,
    class_balanced,
    control_plans,
    rank,
    start_network,
)
from experiments.run import Run, main
from fairjax import pruning
from fairjax.data.augment import eval_preprocess
from fairjax.models import image_model, load_weights, save_weights

SMALL = dataclasses.replace(experiment.PRESETS["smoke"], num_finalists=1)


def test_a_run_interrupted_between_rounds_resumes_to_the_same_results(tmp_path, monkeypatch):
    dataset = load_data(SMALL.data, SMALL.image_size)
    model, network = experiment.load_network(SMALL, dataset.num_classes)
    task = experiment.make_task(SMALL, model, network, dataset)

    def start(name, resume=False):
        return Run("pruning", SMALL, out=tmp_path / name, resume=resume).start()

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
        ("--num-rounds must be at least 1", {"num_rounds": 0}),
        ("or 0 with --weights, got 0", {"num_epochs": 0}),
        ("--scores: give at least one", {"scores": ()}),
        ("num-train must be a positive multiple of 4", {"data": Data(num_train=6)}),
        (
            "val split has fewer than two classes in every group",
            {"data": Data(num_train=40, num_val=8, num_test=12)},
        ),
        ("disparity must be one of", {"disparity": "gap"}),
        ("num_finalists is 9, but there are 2 candidates", {"num_finalists": 9}),
    ],
)
def test_bad_settings_are_refused_before_training(match, change, tmp_path):
    with pytest.raises(ValueError, match=match):
        experiment.prepare_run(dataclasses.replace(SMALL, out=tmp_path / "run", **change))
    assert not (tmp_path / "run").exists()


def test_calling_everything_benign_is_no_way_to_be_fair():
    base = {"accuracy": 0.70, "macro_f1": 0.66, "eodd": 0.08}
    table = {
        "accuracy": np.array([0.72, 0.69, 0.70, 0.66]),
        "macro_f1": np.array([0.42, 0.65, 0.66, 0.62]),
        "eodd": np.array([0.0, 0.05, 0.07, 0.0]),
    }
    config = dataclasses.replace(SMALL, accuracy="accuracy")
    assert rank(config, table, base).tolist() == [1, 2, 0, 3]


def test_controls_prune_nothing_or_as_many_channels_of_the_same_layer():
    config = dataclasses.replace(SMALL, num_finalists=3)
    dataset = load_data(config.data, config.image_size)
    task = experiment.make_task(config, *experiment.load_network(config, 2), dataset)
    network = start_network(task, jax.random.key(0))
    like = {"layer": "features/13", "count": 5}
    proposed = {row: control_plans(task, network, row, like, jax.random.key(1)) for row in CONTROLS}
    pruned = {
        row: [int((~plan.keep["features/13"]).sum()) for _, plan in candidates]
        for row, candidates in proposed.items()
    }
    assert pruned == {"tuned": [0], "random": [5], "random_best": [5, 5, 5]}
    one, several = ([plan.keep["features/13"].tolist() for _, plan in proposed[row]]
                    for row in ("random", "random_best"))  # fmt: skip
    assert one[0] in several and len({tuple(keep) for keep in several}) == 3


def test_every_class_is_as_likely_in_a_batch():
    dataset = load_data(SMALL.data, 16)
    labels = dataset.examples("train").labels
    sampler = class_balanced(dataset, 100)
    indices, _ = sampler.sample_epoch(jax.random.key(0), sampler.init(), num_batches=50)
    assert 0.2 < labels.mean() < 0.4
    assert abs(labels[np.asarray(indices)].mean() - 0.5) < 0.03


def test_evaluation_splits_hold_as_many_images_of_either_skin_tone():
    dataset = load_data(SMALL.data, 16)
    for split in ("val", "test"):
        light, dark = dataset.cell_counts(split).sum(0)
        assert light == dark > 10
    fours = [set(rows // 4) for rows in dataset.splits.values()]  # photographs of one lesion
    assert not (fours[0] & fours[1] | fours[0] & fours[2] | fours[1] & fours[2])


def write_fitzpatrick(folder):
    """Three conditions on six skin types, in the layout of the raw set."""
    lines = ["md5hash,fitzpatrick_scale,label,nine_partition_label,three_partition_label"]
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(216):
        condition = ("acne", "melanoma", "vitiligo")[i % 3]
        lines.append(f"hash{i:03d},{1 + i // 3 % 6},{condition},nine,benign")
        pixels = np.clip(rng.normal(60 * (1 + i % 3), 30, (20, 24, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"hash{i:03d}.jpg")
    (folder / "fitzpatrick17k.csv").write_text("\n".join(lines) + "\n")


def test_a_named_set_is_pruned_from_its_raw_files_and_a_given_baseline_stays_as_it_is(tmp_path):
    write_fitzpatrick(tmp_path / "raw")
    baseline = tmp_path / "baseline.safetensors"
    preset = experiment.PRESETS["fitzpatrick17k"]
    data = dataclasses.replace(
        preset.data, manual_dir=tmp_path / "raw", cache_dir=tmp_path / "cache"
    )
    config = dataclasses.replace(
        preset,
        data=data,
        model="vgg_micro",
        image_size=16,
        layers=("features/13",),
        counts=(5,),
        trade_offs=(0.0,),
        num_rounds=1,
        num_finalists=1,
        num_epochs=0,
        finetune_epochs=1,
        batch_size=32,
        num_replicates=4,
        weights=baseline,
        out=tmp_path / "run",
    )
    model = image_model("vgg_micro", 3, image_size=16)
    params, batch_stats = model.init(jax.random.key(0))
    save_weights(baseline, model, params, batch_stats)
    experiment.prepare_run(config)()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["data"]["groups"] == {"types I-III": 108, "types IV-VI": 108}
    dataset = load_data(data, 16)
    images = eval_preprocess(16, model.config.mean, model.config.std)(
        dataset.examples("test").inputs
    )
    preds = np.asarray(model.apply(params, batch_stats, images)[0]).argmax(1)
    expected = (preds == dataset.examples("test").labels).mean()
    assert summary["results"]["baseline"]["accuracy"] == pytest.approx(expected)

    other = dataclasses.replace(config, data=SMALL.data)
    with pytest.raises(ValueError, match="no baseline for 2 classes .fresh, not from the file"):
        experiment.prepare_run(dataclasses.replace(other, out=tmp_path / "other"))


@pytest.mark.parametrize("preset", ["fitzpatrick17k", "isic2019"])
def test_missing_files_of_a_named_set_end_with_one_line_and_status_2(
    preset, tmp_path, monkeypatch, capsys
):
    arguments = [
        "pruning",
        preset,
        "--data.manual-dir",
        str(tmp_path),
        "--out",
        str(tmp_path / "r"),
    ]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as leave:
        main(experiment.prepare_run, experiment.PRESETS, description="")
    assert leave.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "get them from" in lines[0]
