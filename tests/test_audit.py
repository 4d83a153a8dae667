"""The audit of predictions: curves, frontier, files, and the command line as a user runs it."""

import csv
import importlib
import json
import sys

import numpy as np
import page_tables
import pytest
import sklearn.calibration
import sklearn.metrics as sk

import fairjax
from fairjax.audit import read_predictions

RNG = np.random.default_rng(0)
N = 300
LABELS = RNG.integers(0, 2, N)
PROBS = 1 / (1 + np.exp(-0.03 - np.round(RNG.normal(size=N) + LABELS, 1)))
SEX = RNG.choice(["female", "male"], N)


def write(path, columns):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *zip(*columns.values(), strict=True)])
    return path


def test_curves_are_those_of_scikit_learn_and_the_frontier_beats_one_threshold():
    found = fairjax.audit(LABELS, probs=PROBS, sensitive_features=SEX, num_replicates=50)
    for name in ("female", "male"):
        own = name == SEX
        false, true, _ = sk.roc_curve(LABELS[own], PROBS[own], drop_intermediate=False)
        np.testing.assert_allclose(found.roc[name][:, :2], np.stack([false, true], axis=1))
        share, mean = sklearn.calibration.calibration_curve(LABELS[own], PROBS[own], n_bins=10)
        bins = found.calibration[name]
        np.testing.assert_allclose(bins[bins[:, 4] > 0, :2], np.stack([mean, share], axis=1))
        assert bins[:, 4].sum() == np.sum(own)
    choice = found.frontier["demographic_parity"]
    assert (choice.gap <= np.linspace(0, 0.2, 11) + 1e-6).all()
    assert choice.accuracy[-1] >= np.mean((PROBS > 0.5) == LABELS)
    plain = fairjax.audit(LABELS, preds=LABELS, sensitive_features=SEX, num_replicates=2)
    assert not plain.roc and not plain.frontier and "give scores" in plain.notes[-1]


def test_groups_that_lack_a_class_are_left_out_of_thresholds_and_named():
    group = np.where(np.arange(N) < 5, "rare", SEX)
    labels = np.where(np.arange(N) < 5, 1, LABELS)
    found = fairjax.audit(labels, probs=PROBS, sensitive_features=group, num_replicates=2)
    assert "Thresholds leave out groups that lack a class: 'rare'." in found.notes
    assert found.frontier["equalized_odds"].thresholds.shape == (11, 2)
    with pytest.raises(ValueError, match="all examples are 'a'"):
        fairjax.audit(labels, probs=PROBS, sensitive_features=["a"] * N)


def test_a_file_is_read_as_its_columns_say(tmp_path):
    path = write(
        tmp_path / "p.csv",
        {
            **dict.fromkeys(("y", "guess"), ["good", "bad", "bad", "good"]),
            **{"s": ["0.9", "0.2", "?", "1"], "sex": list("fmmf")},
        },
    )
    options = {"label": "y", "sensitive": ["sex"], "positive": "good"}
    read = read_predictions(path, **options, score="s")
    assert read.arguments["labels"].tolist() == [1, 0, 1]
    assert read.arguments["probs"].tolist() == [0.9, 0.2, 1.0]
    assert read.notes == (
        "Left out 1 of 4 rows with missing values (s 1).",
        "Class 1 is y = good.",
    )
    assert read_predictions(path, **options, pred="guess").arguments["preds"].tolist() == [
        1,
        0,
        0,
        1,
    ]
    logits = read_predictions(path, **options, score="s", log_odds=True).arguments["logits"]
    assert logits[:, 1].tolist() == [0.9, 0.2, 1.0]


WRONG = {
    "an absent column": (["--label", "z", "--score", "p"], "no column 'z'"),
    "both": (["--label", "y", "--score", "p", "--pred", "y"], "exactly one of them"),
    "no probabilities": (["--label", "y", "--score", "odds"], "holds -.*expected probabilities"),
    "text as scores": (["--label", "y", "--score", "sex"], "sex must hold numbers"),
    "labels of many values": (["--label", "p", "--score", "p"], r"class 1 \(--positive\)"),
    "another positive": (["--label", "y", "--score", "p", "--positive", "3"], "must hold '3' and"),
    "one group": (["--label", "y", "--score", "p", "--sensitive", "one"], "all examples are '1'"),
}


def run(path, args, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["audit", str(path), "--sensitive", "sex", *args])
    module = importlib.import_module("experiments.audit")
    module.main(module.prepare, module.Config, description="")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    columns = {"y": LABELS, "p": PROBS, "odds": PROBS * 4 - 2, "sex": SEX, "one": LABELS * 0 + 1}
    return write(tmp_path_factory.mktemp("audit") / "preds.csv", columns)


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_one_line_with_status_2_and_no_folder(
    case, path, tmp_path, monkeypatch, capsys
):
    args, message = WRONG[case]
    with pytest.raises(SystemExit) as left:
        run(path, [*args, "--out", str(tmp_path / "out")], monkeypatch)
    assert left.value.code == 2 and not (tmp_path / "out").exists()
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "\n" not in error
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(error)


def test_the_folder_of_an_audit_holds_the_page_the_card_and_the_numbers(
    path, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out"
    args = ["--label", "y", "--score", "p", "--num-replicates", "20", "--out", str(out)]
    run(path, args, monkeypatch)
    summary = json.loads((out / "summary.json").read_text())
    accuracy = summary["results"]["by_group"]["everyone"]["accuracy"]
    expected = np.mean((PROBS > 0.5) == LABELS)
    assert accuracy["estimate"] == pytest.approx(expected)
    assert accuracy["lower"] <= expected <= accuracy["upper"]
    assert summary["data"]["groups"] == {name: int((name == SEX).sum()) for name in np.unique(SEX)}
    shown = capsys.readouterr().out
    for text in (shown, (out / "README.md").read_text(), (out / "report.html").read_text()):
        assert "female" in text and f"{expected:.3f}" in text and "Class 1 is y = 1." in text
    assert (out / "report.html").read_text().count("<svg") == 4
    (head, *lines), _ = page_tables.read_tables(out / "report.html")
    assert head[:3] == ["group", "n", "positives"] and len(lines) == 3
    for line in lines:
        auc = summary["results"]["by_group"][line[0]]["auc"]
        told = f"{auc['estimate']:.3f} [{auc['lower']:.3f}, {auc['upper']:.3f}]"
        assert line[head.index("AUC")] == told
