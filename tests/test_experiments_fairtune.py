"""The FairTune experiment end to end: killed, resumed, and what it reads and writes."""

import csv
import dataclasses
import json
import multiprocessing
import random
import signal
import sys
import time

import jax
import numpy as np
import page_tables
import pytest
from PIL import Image

from experiments import fairtune
from experiments.data import load_data
from experiments.fairtune import PRESETS, prepare_run
from experiments.run import Run, main
from fairjax.fairtune import mask_space
from fairjax.models import load_pretrained, load_weights, save_weights

SMOKE = PRESETS["smoke"]


class Killed(BaseException):
    """Like `kill -9`: nothing in the program catches it."""


def kill_after(monkeypatch, module, name, calls):
    """Run a function so many times; the next call dies before it does anything."""
    original, count = getattr(module, name), 0

    def call(*args, **kwargs):
        nonlocal count
        count += 1
        if count > calls:
            raise Killed
        return original(*args, **kwargs)

    monkeypatch.setattr(module, name, call)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A smoke run that was killed between two rows of its table, then resumed."""
    out = tmp_path_factory.mktemp("fairtune") / "run"
    config = dataclasses.replace(SMOKE, out=out)
    with pytest.MonkeyPatch.context() as patch:
        kill_after(patch, fairtune, "train_row", 2)
        with pytest.raises(Killed):
            prepare_run(config)()
    config = dataclasses.replace(config, resume=True)
    assert not (out / "summary.json").exists()
    finished = {name: (out / f"{name}.npz").stat().st_mtime_ns for name in ("full", "linear")}
    prepare_run(config)()
    for name, written in finished.items():
        assert (out / f"{name}.npz").stat().st_mtime_ns == written  # not trained again
    return out


def test_the_folder_of_a_run_that_was_killed_is_complete_and_agrees(folder):
    with (folder / "trials.csv").open() as file:
        trials = list(csv.DictReader(file))
    assert len(trials) == 4 and {trial["status"] for trial in trials} <= {"complete", "stopped"}
    found = json.loads((folder / "mask.json").read_text())
    summary = json.loads((folder / "summary.json").read_text())
    rows = ["full", "full@best", "linear", "norm", "all_on", "fairtune"]
    assert list(summary["results"]) == rows
    ranked = sorted(
        (trial for trial in trials if trial["status"] == "complete" and not trial["same_as"]),
        key=lambda trial: -float(trial["posterior_mean"]),
    )
    finalists = {}
    for i, trial in enumerate(ranked[: SMOKE.num_finalists]):
        with np.load(folder / f"finalist_{i + 1}.npz") as row:
            finalists[int(trial["trial"])] = row["values"].mean()
    assert found["trial"] == max(finalists, key=lambda trial: finalists[trial])
    best = trials[found["trial"]]
    assert found["val_objective"] == pytest.approx(float(best["val_worst_group_auc"]))
    assert summary["results"]["fairtune"]["val_objective"] == pytest.approx(max(finalists.values()))
    shares = {name: row["percent_trained"] for name, row in summary["results"].items()}
    assert shares["full"] == shares["full@best"] == 100
    assert shares["linear"] <= shares["fairtune"] <= shares["all_on"] <= shares["norm"]
    assert shares["fairtune"] == pytest.approx(found["percent_trained"])
    gain = summary["results"]["fairtune"]["gain_over"]
    assert list(gain) == rows[:-1]
    mean, low, high = gain["full"]["worst_group_auc"]
    values = [summary["results"][name]["worst_group_auc"] for name in ("fairtune", "full")]
    assert mean == pytest.approx(values[0] - values[1], abs=1e-6) and low <= mean <= high
    assert any("corrected for having been chosen" in note for note in summary["notes"])
    assert summary["results"]["full"]["ci95_vs_full"]["auc"] == [0, 0]
    assert len(summary["results"]["linear"]["per_seed"]["auc"]) == SMOKE.num_seeds
    assert "`fairtune.safetensors`" in (folder / "README.md").read_text()
    page = (folder / "report.html").read_text()
    assert list(page_tables.check_groups(folder)) == ["full", "fairtune"]
    assert "ROC by group" in page and "Calibration by group" in page
    assert "What the best trials train" in page and "What decides" in page


def test_the_saved_network_differs_from_the_shipped_one_only_where_the_mask_says(folder):
    model, shipped = load_pretrained("vit_micro", 2, jax.random.key(0), image_size=16)
    tuned, before = load_weights(folder / "fairtune.safetensors", model, jax.random.key(0)), shipped
    mask = np.array(json.loads((folder / "mask.json").read_text())["mask"], bool)
    assert "patch_embed" in mask_space(before.params, "norm").split(before.params, mask)[1]
    for path in (("blocks", "mlp", "fc1", "kernel"), ("patch_embed", "proj", "kernel")):
        one, other = tuned.params, before.params
        for key in path:
            one, other = one[key], other[key]
        np.testing.assert_array_equal(one, other)
    scales = (weights.params["blocks"]["norm1"]["scale"] for weights in (tuned, before))
    moved = np.asarray(np.not_equal(*scales)).any(1)
    np.testing.assert_array_equal(moved, mask)


def test_a_folder_is_not_overwritten_nor_resumed_with_other_settings(folder):
    config = dataclasses.replace(SMOKE, out=folder)
    with pytest.raises(ValueError, match="holds a run already"):
        prepare_run(config)
    with pytest.raises(ValueError, match="space was 'norm'"):
        prepare_run(dataclasses.replace(config, space="mlp", resume=True))


RESUMED = ("masks", "learning_rates", "status", "same_as", "epochs", "values")


def search_in(out, resume=False, **changes):
    """The search of a smoke run, without its rows."""
    config = dataclasses.replace(SMOKE, out=out, resume=resume, **changes)
    job = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fairtune, "run_all", lambda task: job.update(found=search_of(task)))
        prepare_run(config)()
    return job["found"].trials


def search_of(task):
    task.run.start()
    return fairtune.search(task)


def search_process(out, resume):
    """A search in a process of its own."""
    search_in(out, resume=resume)


def test_a_search_killed_at_three_times_ends_with_the_same_trials(tmp_path, monkeypatch):
    whole, out = search_in(tmp_path / "whole"), tmp_path / "killed"
    for kill, (name, calls) in enumerate([("save", 1), ("log", 1), ("save", 2)]):
        with monkeypatch.context() as patch:
            kill_after(patch, Run, name, calls)
            with pytest.raises(Killed):
                search_in(out, resume=kill > 0)
    again = search_in(out, resume=True)
    for field in RESUMED:
        np.testing.assert_array_equal(getattr(again, field), getattr(whole, field), field)


def test_a_process_killed_at_random_times_leaves_a_search_that_ends_the_same(tmp_path):
    out, spawn, draw = tmp_path / "run", multiprocessing.get_context("spawn"), random.Random(0)
    history, killed = out / "history.jsonl", 0
    for kill in range(2):
        process = spawn.Process(target=search_process, args=(out, kill > 0))
        process.start()
        before = history.stat().st_size if kill else 0
        while process.is_alive() and not (history.exists() and history.stat().st_size > before):
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.3))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
    assert killed >= 1  # another came too late: it had ended
    again, whole = search_in(out, resume=True), search_in(tmp_path / "whole")
    assert whole.masks[:2].tolist() == [6 * [False], 6 * [True]]  # what is tried first
    for field in RESUMED:
        np.testing.assert_array_equal(getattr(again, field), getattr(whole, field), field)


def test_a_guided_start_is_computed_once_and_tried_first(tmp_path, monkeypatch):
    masks, computed = np.eye(6, dtype=bool)[:2], []

    def guided(*args, num_masks, **options):
        computed.append(num_masks)
        return masks, masks.mean(0)

    monkeypatch.setattr(fairtune.fairtune, "guided_masks", guided)
    with monkeypatch.context() as patch:
        kill_after(patch, Run, "save", 2)
        with pytest.raises(Killed):
            search_in(tmp_path / "run", first_masks="guided")
    trials = search_in(tmp_path / "run", resume=True, first_masks="guided")
    np.testing.assert_array_equal(trials.masks[:2], masks)
    assert computed == [2]  # as many as there are slots


def test_a_finished_search_goes_on_to_more_trials_but_not_to_fewer(tmp_path):
    few = search_in(tmp_path / "run")
    more = search_in(tmp_path / "run", resume=True, num_trials=6)
    for field in ("masks", "learning_rates", "status", "values"):
        np.testing.assert_array_equal(getattr(more, field)[: len(few.status)], getattr(few, field))
    assert len(more.status) == 6 and more.num_ended == 6
    assert json.loads((tmp_path / "run/config.json").read_text())["num_trials"] == 6
    with pytest.raises(ValueError, match="--num-trials was 6 .* now 5"):
        search_in(tmp_path / "run", resume=True, num_trials=5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_slots": 0}, "--num-slots must be at least 1"),
        ({"objective": ("min_auc",)}, "unknown objective 'min_auc'"),
        ({"space": "norms"}, "unknown mask space 'norms'"),
        ({"objective": ("auc", "auc_gap"), "search": "evolution"}, "takes one objective"),
        (
            {"first_masks": "guided", "search": "random"},
            "--first-masks guided goes with tpe or nsga2",
        ),
        ({"model": "resnet18"}, "no weights ship for resnet18"),
        ({"data": dataclasses.replace(SMOKE.data, num_val=30)}, "multiple of 4, got 30"),
        ({"data": dataclasses.replace(SMOKE.data, num_val=8)}, "'dark skin'"),
        ({"data": dataclasses.replace(SMOKE.data, source="ham")}, "no source 'ham'"),
    ],
)
def test_mistakes_are_named_before_training(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        prepare_run(dataclasses.replace(SMOKE, out=tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


PAPER = [name for name, config in PRESETS.items() if config.model == "vit_base_patch16_224"]


@pytest.mark.parametrize("name", PAPER)
def test_paper_presets_say_in_one_line_which_files_they_miss(name, tmp_path, monkeypatch, capsys):
    weights = tmp_path / "weights.safetensors"
    for arguments, message in (
        ([], "error: no weights ship for vit_base_patch16_224"),
        (["--weights", weights], f"error: {weights}: no such file"),
        (["--weights", weights, "--data.manual-dir", tmp_path], f"error: {tmp_path}: missing"),
    ):
        if "--data.manual-dir" in arguments:
            weights.touch()
        monkeypatch.setattr(sys, "argv", ["fairtune", name, *map(str, arguments)])
        with pytest.raises(SystemExit, match="2"):
            main(prepare_run, PRESETS, description="")
        printed = capsys.readouterr().err.strip()
        assert message in printed and "\n" not in printed


def write_ham10000(folder, count):
    """Photographs of noise in the layout of HAM10000, two of each lesion."""
    (folder / "HAM10000_images_part_1").mkdir(parents=True)
    lines = ["lesion_id,image_id,dx,dx_type,age,sex,localization,dataset"]
    noise = np.random.default_rng(0)
    for i in range(count):
        dx, sex = ("nv", "mel")[i // 2 % 3 == 0], ("male", "female")[i // 2 % 2]
        lines.append(f"HAM_{i // 2},ISIC_{i},{dx},histo,{20 + i % 60},{sex},back,vidir")
        pixels = noise.integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "HAM10000_images_part_1" / f"ISIC_{i}.jpg")
    (folder / "HAM10000_metadata.csv").write_text("\n".join(lines) + "\n")


def test_a_paper_preset_reads_its_raw_files_and_lesions_as_jpeg_are_drawn_once(tmp_path):
    write_ham10000(tmp_path / "ham", 400)
    model, shipped = load_pretrained("vit_micro", 2, jax.random.key(0))
    save_weights(tmp_path / "vit.safetensors", model, shipped.params, {})
    preset = PRESETS["ham10000_sex"]
    data = dataclasses.replace(
        preset.data, manual_dir=tmp_path / "ham", cache_dir=tmp_path / "cache"
    )
    config = dataclasses.replace(
        preset,
        data=data,
        model="vit_micro",
        image_size=64,
        weights=tmp_path / "vit.safetensors",
        out=tmp_path / "run",
    )
    prepare_run(config)
    assert not (tmp_path / "run").exists()  # nothing is written before it trains
    assert load_data(data, image_size=64, augment="crop").inputs.shape == (400, 73, 73, 3)

    sizes = {"num_train": 80, "num_val": 40, "num_test": 40, "height": 24}
    data = dataclasses.replace(
        data, source="lesions_jpeg", sensitive=(), manual_dir=tmp_path / "jpeg", **sizes
    )
    one, again = (load_data(data, image_size=16) for _ in range(2))
    assert set(one.group_names) == {"light", "dark"} and one.fingerprint == again.fingerprint
    assert abs(len(one.splits["train"]) - 80) <= 4


def test_a_network_without_blocks_and_normalisation_is_searched_with_options(tmp_path):
    choices = ("sampler=shuffled,group_dro", "loss=cross_entropy,focal")
    config = dataclasses.replace(
        SMOKE, model="vgg_micro", space=None, options=choices, out=tmp_path / "run"
    )
    prepare_run(config)()
    rows = list(csv.DictReader((tmp_path / "run/trials.csv").read_text().splitlines()))
    assert len(rows) == SMOKE.num_trials
    assert {row["sampler"] for row in rows} <= {"shuffled", "group_dro"}
    told = json.loads((tmp_path / "run/mask.json").read_text())
    assert told["space"] == "layers" and set(told["options"]) == {"sampler", "loss"}
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    rows = [name for name in summary["results"] if "finalist" not in name]
    assert rows == ["full", "full@best", "linear", "all_on", "fairtune"]  # nothing normalises
