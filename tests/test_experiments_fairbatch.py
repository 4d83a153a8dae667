"""The FairBatch experiment as a user meets it: its folder, its resumption, its error lines."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import page_tables
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from experiments import fairbatch as experiment
from experiments.cli import Seeds
from experiments.run import Run, main
from fairjax.models import Weights
from fairjax.trees import flatten_named

ROOT = Path(__file__).parents[1]
ENTRIES = {"experiment", "config", "versions", "device", "data", "results", "timing", "notes"}


def run(*args, **options):
    command = [sys.executable, "-m", "experiments.fairbatch", *map(str, args)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=environment, **options
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "out"
    return folder, run("smoke", "--out", folder)


def test_a_run_prints_a_table_and_leaves_a_complete_folder(finished):
    folder, process = finished
    assert process.returncode == 0, process.stderr
    assert "equal_opportunity@rate" in process.stdout and "±" in process.stdout
    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary) >= ENTRIES
    assert list(summary["results"])[:2] == ["plain", "equal_opportunity"]
    for result in summary["results"].values():
        for name in ("accuracy", "auc", "worst_group_auc", "equalized_odds_deviation"):
            assert np.isclose(result[name], np.mean(result["per_seed"][name]))
            if name in result["ci95"]:
                low, high = result["ci95"][name]
                assert low <= result[name] + 1e-6 and result[name] - 1e-6 <= high
        assert set(result["group_auc"]) == {"z=0", "z=1"}
    assert [row["epoch"] for row in logged(folder)] == [1, 2, 3, 4]
    tables = page_tables.check_groups(folder)
    assert list(tables)[:2] == ["plain", "equal_opportunity"]
    columns = ["group", "n", "positives", "selected", "TPR", "FPR", "accuracy", "AUC", "ECE"]
    assert all(head == columns for head, *_ in tables.values())
    for name, told in summary["results"]["plain"]["by_group"].items():
        own = summary["results"]["plain"]
        expected = own["group_auc"].get(name, own["auc"])
        assert np.isclose(told["auc"]["estimate"], expected, atol=1e-6)
    page = (folder / "report.html").read_text()
    head = page.split("</style>")[0]
    assert page.count("<svg") == 9 and page.count("<script") == 1 and "http://" not in head


def test_an_existing_run_is_not_overwritten(finished):
    folder, _ = finished
    before = (folder / "summary.json").read_text()
    process = run("smoke", "--out", folder)
    assert process.returncode == 2
    assert "holds a run already" in process.stderr and process.stderr.count("\n") == 1
    assert (folder / "summary.json").read_text() == before


def test_an_interrupted_run_ends_like_an_uninterrupted_one(finished, tmp_path, monkeypatch):
    folder, _ = finished
    out = tmp_path / "out"
    config = dataclasses.replace(experiment.PRESETS["smoke"], out=out)
    save, calls = Run.save, []

    def killed(self, step, state):
        save(self, step, state)
        calls.append(step)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        experiment.prepare_run(config)()
    assert not (out / "summary.json").exists()
    with (out / "history.jsonl").open("a") as file:
        file.write('{"epoch": 3, "rows"')  # the line that the kill cut short
    process = run("smoke", "--out", out, "--resume")
    assert process.returncode == 0, process.stderr
    resumed, whole = (json.loads((f / "summary.json").read_text()) for f in (out, folder))
    for row, result in whole["results"].items():
        assert np.isclose(resumed["results"][row]["auc"], result["auc"], atol=1e-5)
    assert len(logged(out)) == 4


def test_resuming_with_other_settings_is_refused(finished):
    folder, _ = finished
    process = run("smoke", "--out", folder, "--resume", "--batch-size", "50")
    assert process.returncode == 2
    assert "--batch-size was 100" in process.stderr


def test_a_run_fine_tunes_the_models_of_another(finished, tmp_path):
    folder, _ = finished
    process = run("smoke", "--pretrained", folder, "--out", tmp_path / "out")
    assert process.returncode == 0, process.stderr
    rows, before = logged(tmp_path / "out"), logged(folder)
    assert rows[0]["rows"]["plain"]["loss"] < before[0]["rows"]["plain"]["loss"]


def logged(folder):
    """The rows of `history.jsonl`."""
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def train_only(out, **changes):
    """The history of a run of two rows, plain and with the rates."""
    config = dataclasses.replace(
        experiment.PRESETS["smoke"],
        out=out,
        criteria=("equal_opportunity",),
        signals=("rate",),
        **changes,
    )
    experiment.prepare_run(config)()
    return logged(out)


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    return train_only(tmp_path_factory.mktemp("usual") / "out")


def test_shares_move_within_an_epoch_where_batches_update_them(usual, tmp_path):
    often = train_only(tmp_path / "out", update_every=5)[0]["rows"]
    first = usual[0]["rows"]
    natural = np.asarray(first["plain"]["shares"])
    moved = lambda rows: np.asarray(rows["equal_opportunity@rate"]["shares"]) - natural
    # one full pass before the epoch
    np.testing.assert_allclose(moved(first), [[0, 0], [0.04, -0.04]], atol=1e-6)
    # before batch 1 there is nothing to go by; updates 2 to 4 agree in both seeds
    step = 0.04 * (2**-0.5 + 3**-0.5 + 4**-0.5)
    np.testing.assert_allclose(moved(often), [[0, 0], [step, -step]], atol=1e-6)
    np.testing.assert_allclose(often["plain"]["shares"], natural, atol=1e-6)


def test_parameters_and_batches_have_seeds_of_their_own(usual, tmp_path):
    losses = {"usual": usual[-1]["rows"]["plain"]["loss"]}
    for name in ("start", "batches"):
        seeds = Seeds(**{name: 7})
        losses[name] = train_only(tmp_path / name, seeds=seeds)[-1]["rows"]["plain"]["loss"]
    assert len(set(losses.values())) == 3


def test_a_seed_trains_alike_alone_and_beside_others(usual, tmp_path):
    alone = train_only(tmp_path / "alone", num_seeds=1)
    second = train_only(tmp_path / "second", num_seeds=1, seeds=Seeds(1, 1))
    losses = [history[-1]["rows"]["plain"]["loss"] for history in (alone, second, usual)]
    assert np.isclose(np.mean(losses[:2]), losses[2], atol=1e-5) and losses[0] != losses[1]


BAD = {
    "--step-size must be above 0 and at most 1": ["--step-size", "2"],
    "number of non-empty": ["--batch-size", "2"],
    "--pretrained needs a finished run's folder": ["--pretrained", "nowhere"],
    "update_every must divide the 20 batches": ["--update-every", "3"],
    "--update-every takes the signal": ["--update-every", "5", "--signal-split", "val"],
    "--num-seeds must be at least 1": ["--num-seeds", "0"],
    "--clean-share looks at all training": ["--clean-share", "0.9", "--update-every", "5"],
    "--weights are those of a --model": ["--weights", "vit.safetensors"],
    "--hidden makes a network for tables": ["--model", "vit_micro", "--hidden", "8"],
    "gives a table, but images are wanted": ["--model", "vit_micro"],
    "--data.csv takes one file": ["--data.source", "csv"],
    "--resume needs --out": ["--resume"],
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_one_line_and_nothing_is_written(message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fairbatch", "smoke", *BAD[message]])
    with pytest.raises(SystemExit) as leave:
        main(experiment.prepare_run, experiment.PRESETS, description="")
    assert leave.value.code == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_unknown_flags_are_errors(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["fairbatch", "--sensitve", "sex"])
    with pytest.raises(SystemExit) as leave:
        main(experiment.prepare_run, experiment.PRESETS, description="")
    assert leave.value.code == 2


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=st.text(alphabet='ab01,\n"\r;é', max_size=80))
def test_a_broken_table_never_shows_a_traceback(text, tmp_path):
    path = tmp_path / "broken.csv"
    path.write_text("sex,x,label\n" + text)
    config = experiment.Config(
        data=experiment.Data(source="csv", csv=(path,)), out=tmp_path / "never"
    )
    try:
        experiment.prepare_run(config)
    except (ValueError, OSError) as error:
        assert str(error)
        assert not (tmp_path / "never").exists()


def test_training_rows_are_thinned_to_a_correlation_and_two_criteria_share_a_row(tmp_path):
    both = "demographic_parity_and_equalized_odds"
    config = dataclasses.replace(
        experiment.PRESETS["smoke"],
        data_ratio=0.1,
        criteria=(both,),
        signals=("rate",),
        out=tmp_path / "out",
    )
    experiment.prepare_run(config)()
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert list(summary["results"]) == ["plain", f"{both}@rate"]
    assert any("correlate by 0.1 in train" in note for note in summary["notes"])
    data = experiment.load_data(config.data)
    rows = experiment.draw_splits(config, data).train
    whole = experiment.draw_splits(dataclasses.replace(config, data_ratio=None), data).train
    assert rows.shape[0] == whole.shape[0] == 2 and rows.shape[1] < whole.shape[1]
    for thinned, split in zip(rows, whole, strict=True):
        assert set(thinned) < set(split) and len(set(thinned)) == len(thinned)
        labels, group = data.labels[thinned], data.group[thinned]
        assert abs(labels[group == 1].mean() - labels[group == 0].mean() - 0.1) < 0.01
    page = (tmp_path / "out/report.html").read_text()
    assert page.count("Accuracy against") == 2


def test_a_network_for_images_is_fine_tuned_and_a_later_run_goes_on_from_it(tmp_path):
    images = dataclasses.replace(
        experiment.PRESETS["lesions"],
        data=experiment.Data(num_train=96, num_val=160, num_test=160),
        model="vgg_micro",
        image_size=16,
        signals=("rate",),
        num_seeds=1,
        num_epochs=1,
        batch_size=16,
        update_every=3,
        num_replicates=4,
        out=tmp_path / "first",
    )
    experiment.prepare_run(images)()
    rows = json.loads((tmp_path / "first/summary.json").read_text())["results"]
    assert list(rows) == ["plain", "equalized_odds@rate", "equalized_odds@thresholds"]
    saved = load_file(tmp_path / "first/models.safetensors")
    further = dataclasses.replace(images, pretrained=images.out, out=None)
    data = experiment.load_data(images.data, image_size=16)
    start = experiment.make_start(further, data, 1)[1].params
    for name, leaf in flatten_named(start).items():
        np.testing.assert_array_equal(leaf, saved[f"plain/{name}"])
    fresh = flatten_named(experiment.make_start(images, data, 1)[1].params)
    assert np.abs(fresh["features/0/kernel"] - start["features"]["0"]["kernel"]).max()


def test_batch_statistics_are_part_of_what_a_run_leaves():
    weights = Weights({"a": np.ones(2)}, {"mean": np.zeros(2)}, ())
    assert set(flatten_named(experiment.named_weights(weights))) == {"a", "batch_stats/mean"}


def test_only_clean_examples_train_where_a_share_is_given(tmp_path, monkeypatch):
    tasks: list[experiment.Task] = []
    monkeypatch.setattr(experiment, "run_all", tasks.append)
    config = dataclasses.replace(
        experiment.PRESETS["smoke"],
        out=tmp_path / "out",
        clean_share=0.6,
        criteria=("equal_opportunity",),
        num_splits=1,
        num_seeds=1,
        num_epochs=12,
    )
    experiment.prepare_run(config)()
    (task,) = tasks
    task.run.start()
    clean = experiment.train(task, {"compile_s": 0.0, "train_s": 0.0}).sampler.clean
    kept = np.asarray(clean.weights)[:, task.splits.train[0]].mean(1)
    assert list(experiment.row_choices(config)) == [
        "plain",
        "equal_opportunity",
        "equal_opportunity@rate",
    ]
    # fewer than the share where a cell has all that it may take
    assert kept[0] == 1 and (kept[1:] < 0.61).all() and (kept[1:] > 0.4).all()
