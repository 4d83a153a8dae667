# pyright: reportOptionalCall=false, reportOptionalOperand=false
"""The pruning experiment end to end, in seconds."""

import dataclasses
import json

import jax
import numpy as np
import page_tables
import pytest
from PIL import Image

from experiments import pruning as experiment
from experiments.cli import Seeds
from experiments.data import Data, load_data
from experiments.pruning import row_names
from experiments.run import Run, main
from fairjax import pruning
from fairjax.models import image_model, load_weights, save_weights

SMALL = dataclasses.replace(experiment.PRESETS["smoke"], num_finalists=1, after="thresholds")


class Killed(BaseException):
    """Like `kill -9`: nothing in the program catches it."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A run in one piece, and one that was killed between saving and two of its rounds."""
    root = tmp_path_factory.mktemp("pruning")
    whole, cut = (dataclasses.replace(SMALL, out=root / name) for name in ("whole", "cut"))
    experiment.prepare_run(whole)()
    save, log, calls = Run.save, Run.log, []

    def save_and_die(self, step, state):
        save(self, step, state)
        if step == 2:  # after the first round of "pruned"
            raise Killed

    def log_and_die(self, row):
        log(self, row)
        calls.append(row)
        if row["row"] == "random_best":
            raise Killed

    for name, function, resume in (("save", save_and_die, False), ("log", log_and_die, True)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Run, name, function)
            with pytest.raises(Killed):
                experiment.prepare_run(dataclasses.replace(cut, resume=resume))()
        assert not (cut.out / "summary.json").exists()
    assert calls[0]["row"] != "baseline"  # which was not trained again
    experiment.prepare_run(dataclasses.replace(cut, resume=True))()
    return whole.out, cut.out


def rows_of(folder):
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def test_a_killed_run_resumes_to_the_same_results(folders):
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    with_thresholds = ["baseline+thresholds", "pruned+thresholds"]
    assert list(summaries[0]["results"]) == [*row_names(SMALL), *with_thresholds]
    assert summaries[0]["results"] == summaries[1]["results"]
    assert rows_of(folders[0]) == rows_of(folders[1])
    assert summaries[0]["results"]["baseline"]["fate"] in (0.0, None)
    assert {"forward_before_s", "forward_after_s"} <= set(summaries[0]["timing"])


def test_thresholds_after_pruning_move_predictions_between_groups_alone(folders):
    by_row = json.loads((folders[0] / "summary.json").read_text())["results"]
    for row in ("baseline", "pruned"):
        before, after = by_row[row], by_row[f"{row}+thresholds"]
        assert after["group_auc"] == pytest.approx(before["group_auc"])
        assert after["accuracy"] != before["accuracy"]
    low, high = by_row["pruned+thresholds"]["ci95_vs_baseline"]["eodd"]
    assert low <= by_row["pruned+thresholds"]["eodd"] - by_row["baseline"]["eodd"] <= high
    assert "pruned+thresholds" in by_row["pruned"]["gain_over"]
    assert "pruned+thresholds" in (folders[0] / "report.html").read_text()


def test_the_saved_network_has_the_channels_that_were_left(folders):
    model = image_model("vgg_micro", 2, image_size=16)
    weights = load_weights(folders[0] / "pruned.safetensors", model, jax.random.key(0))
    taken = [r for r in rows_of(folders[0]) if r["row"] == "pruned" and r["taken"]]
    graph = model.config.channel_graph
    left = pruning.num_channels(weights.params, graph)["features/13"]
    assert graph["features/13"].size - left == sum(r["count"] for r in taken)
    images = np.zeros((1, 16, 16, 3), np.float32)
    assert np.isfinite(model.apply(*weights[:2], images)[0]).all()
    assert (folders[0] / "report.html").read_text().count("<svg") == 8
    assert list(page_tables.check_groups(folders[0])) == ["baseline", "pruned"]


def test_seeds_of_start_and_batches_are_apart():
    model = image_model("vgg_micro", 2, image_size=16)
    kernels = [
        experiment.start_weights(config, model, seed).params["head"]["kernel"]
        for config, seed in (
            (SMALL, 1),
            (dataclasses.replace(SMALL, seeds=Seeds(start=1)), 0),
            (dataclasses.replace(SMALL, seeds=Seeds(batches=1)), 0),
        )
    ]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[0], kernels[2])
    keys = [
        jax.random.key_data(experiment.batch_key(dataclasses.replace(SMALL, seeds=seeds), 0))
        for seeds in (Seeds(), Seeds(start=1), Seeds(batches=1))
    ]
    np.testing.assert_array_equal(keys[0], keys[1])
    assert not np.array_equal(keys[0], keys[2])


@pytest.mark.parametrize(
    ("match", "change"),
    [
        ("no layer 'conv1' with channels; this network has features/0", {"layers": ("conv1",)}),
        ("below 128, the number of channels of features/13", {"counts": (4, 128)}),
        ("--num-rounds must be at least 1", {"num_rounds": 0}),
        ("or 0 with --weights, got 0", {"num_epochs": 0}),
        ("scores must be at least one, each once", {"scores": ()}),
        ("num_train must be a positive multiple of 4", {"data": Data(num_train=6)}),
        (
            "split has fewer than two classes in every group",
            {"data": Data(num_train=40, num_val=8, num_test=12)},
        ),
        ("disparity must be one of", {"disparity": "gap"}),
        ("VGG has no dtype setting", {"dtype": "bfloat16"}),
        ("num_finalists is 9, but there are 2 plans", {"num_finalists": 9}),
    ],
)
def test_bad_settings_are_refused_before_training(match, change, tmp_path):
    with pytest.raises(ValueError, match=match):
        experiment.prepare_run(dataclasses.replace(SMALL, out=tmp_path / "run", **change))
    assert not (tmp_path / "run").exists()


def test_evaluation_splits_hold_as_many_images_of_either_skin_tone():
    dataset = load_data(SMALL.data, image_size=16)
    for split in ("val", "test"):
        light, dark = dataset.cell_counts(split).sum(0)
        assert light == dark > 10
    lesions = np.asarray(dataset.ids)
    train, val, test = (set(lesions[rows]) for rows in dataset.splits.values())
    assert not (train & val | train & test | val & test)


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
    dataset = load_data(data, image_size=16)
    images = model.preprocess(dataset.examples("test").inputs)
    preds = np.asarray(model.apply(params, batch_stats, images)[0]).argmax(1)
    expected = (preds == dataset.examples("test").labels).mean()
    assert summary["results"]["baseline"]["accuracy"] == pytest.approx(expected)

    other = dataclasses.replace(config, data=SMALL.data)
    with pytest.raises(ValueError, match="--after thresholds needs two classes, not 3"):
        again = dataclasses.replace(config, after="thresholds", out=tmp_path / "again")
        experiment.prepare_run(again)
    with pytest.raises(ValueError, match="no baseline for these data .fresh, not from the file"):
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
