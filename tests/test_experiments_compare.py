"""The comparison as a user meets it: its folder, its tables, its resumption, its error lines."""

import csv
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import page_tables
import pytest

from experiments import compare as experiment
from experiments.compare import PRESETS, Config
from experiments.data import Data
from experiments.run import main

SMOKE: Any = PRESETS["smoke"]
SMOKE_MAP: Any = PRESETS["smoke_map"]
METHODS = ("plain", "reweighted", "dfr")
SCORED = ("auc", "worst_group_auc", "auc_gap")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two settings of one small table and one that fails."""
    folder = tmp_path_factory.mktemp("run")
    table = folder / "own<set>.csv"
    generator = np.random.default_rng(0)
    lines = ["x,sex,race,y"]
    for _ in range(240):
        sex, race = generator.integers(2), generator.integers(2)
        x = generator.normal() + sex
        lines.append(
            f"{x:.3f},{('<M>', 'F')[sex]},{'ab'[race]},{int(x + generator.normal() > 0.5)}"
        )
    table.write_text("\n".join(lines) + "\n")
    config = dataclasses.replace(
        SMOKE,
        sets=(),
        tables=(f"{table}:y:sex", f"{table}:y:race", f"{table}:y:nobody"),
        methods=METHODS,
        batch_size=40,
        out=folder / "out",
    )
    experiment.prepare_run(config)()
    return config, json.loads((folder / "out" / "summary.json").read_text())


def test_rows_of_all_settings_are_in_every_file_and_what_failed_is_named(finished):
    config, summary = finished
    assert list(summary["results"]) == ["own<set>:sex", "own<set>:race"]
    rows = ["plain", "plain@best", "reweighted", "dfr"]
    rows += [f"{row}+thresholds" for row in rows]
    assert all(list(results) == rows for results in summary["results"].values())
    assert any("nobody left out" in note for note in summary["notes"])
    lines = list(csv.DictReader((config.out / "results.csv").read_text().splitlines()))
    assert {line["setting"] for line in lines} == set(summary["results"])
    for line in lines:
        result = summary["results"][line["setting"]][line["row"]]
        if line["metric"] in SCORED and line["row"].endswith("+thresholds"):
            assert result[line["metric"]] is None and line["mean"] == "nan"
            continue
        assert float(line["mean"]) == result[line["metric"]]
        assert np.isclose(result[line["metric"]], np.mean(result["per_seed"][line["metric"]]))
    page = (config.out / "report.html").read_text()
    assert "own<set>" not in page and "own&lt;set&gt;" in page
    assert "<M>" not in page and "&lt;M&gt;" in page
    tables = page_tables.check_groups(config.out)
    assert [name for name in tables if "race" not in name] == [
        f"own<set>:sex: {row}" for row in ("plain", "reweighted", "dfr")
    ]
    latex = (config.out / "results.tex").read_text()
    assert latex.count(r"\\" + "\n") == 1 + 2 * len(rows)
    assert (config.out / "results.md").read_text().count("\n") == 2 + 2 * len(rows)
    ranks = json.loads((config.out / "ranks.json").read_text())
    for told in ranks.values():
        assert np.isclose(np.mean(list(told["average_rank"].values())), (1 + len(rows)) / 2)
    # a page for one reader: three diagrams of ranks, and a plot and two curves for each setting
    assert page.count("<svg") == 3 + 2 * 3


def test_changes_are_those_of_the_rows(finished):
    results = finished[1]["results"]["own<set>:sex"]
    gap = "equalized_odds_difference"
    for row, result in results.items():
        change = result["change_vs_plain"][gap]
        assert np.isclose(change, result[gap] - results["plain"][gap])
        low, high = result["ci95_vs_plain"][gap]
        assert low - 1e-9 <= change <= high + 1e-9 and (row != "plain" or low == high == 0)
        worst = result["levelling_down"]["accuracy"]
        assert worst["change"][0] <= result["change_vs_plain"]["accuracy"] + 1e-9
        assert worst["group"] in ("<M>", "F")


def test_a_resumed_run_reads_what_is_done_and_refuses_other_data(finished, monkeypatch):
    config, summary = finished
    monkeypatch.setattr(experiment, "compare", None)  # nothing may be trained again
    again = dataclasses.replace(config, resume=True)
    experiment.prepare_run(again)()
    resumed = json.loads((config.out / "summary.json").read_text())
    assert resumed["results"] == summary["results"]
    table = Path(config.tables[0].split(":")[0])
    text = table.read_text()
    table.write_text(text + "0.5,<M>,a,1\n")
    with pytest.raises(ValueError, match="fingerprint .* do not belong into one table"):
        experiment.prepare_run(again)()
    table.write_text(text)


def test_the_map_has_every_cell_and_smaller_sets_are_repeated(tmp_path):
    config = dataclasses.replace(SMOKE_MAP, out=tmp_path / "out")
    experiment.prepare_run(config)()
    lines = list(csv.DictReader((tmp_path / "out/results.csv").read_text().splitlines()))
    assert len(lines) == 3 * 2 * 2  # metrics, methods, sizes
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    for line in lines:
        change = summary["results"][line["method"]][line["metric"]]["change"]
        place = SMOKE_MAP.sizes.index(int(line["size"]))
        assert np.isclose(float(line["change"]), change[0][0][place])
        assert float(line["low"]) <= float(line["change"]) <= float(line["high"])
    assert (tmp_path / "out/map.svg").read_text().count("<svg") == 1


def test_a_small_set_of_the_map_holds_its_rows_equally_often():
    from experiments.compare_map import make_column

    setting = make_column(SMOKE_MAP, 0.2, 1.0)
    data, splits = setting.data, setting.splits
    assert splits.train.shape == (4, 100) and splits.test.shape == (4, 2000)
    small, large = splits.train[0], splits.train[2]
    rows, times = np.unique(data.inputs[small], axis=0, return_counts=True)
    assert len(rows) == 50 and set(times) == {2}
    assert data.group[small].mean() == data.group[large].mean() == 0.2
    assert np.isin(data.inputs[small], data.inputs[large]).all()
    np.testing.assert_array_equal(splits.test[0], splits.test[2])


BAD = {
    "without --model --sets knows adult, census": ["smoke", "--sets", "faces"],
    "with --model --sets knows lesions": ["smoke", "--model", "vit_micro"],
    "--sets compas needs --compas": ["smoke", "--sets", "compas"],
    "--tables takes FILE:LABEL:SENSITIVE": ["smoke", "--tables", "a.csv"],
    "name nothing to train on": ["smoke", "--sets"],
    "--sizes must divide the largest": ["smoke_map", "--sizes", "30", "100"],
    "--num-splits must be at least 2": ["smoke_map", "--num-splits", "1"],
    "--cost must be above 0": ["smoke", "--cost", "2"],
    "--num-splits must be at least 1": ["smoke", "--num-splits", "0"],
    "--seeds.start must be at least 0": ["smoke", "--seeds.start", "-1"],
    "make 1 group(s), accepted are 2": ["smoke", "--sets", "--tables", "{table}:y:one"],
    "no column 'nobody'": ["smoke", "--sets", "--tables", "{table}:y:nobody"],
    "has 3 classes": ["smoke", "--sets", "--tables", "{table}:three:y"],
    "nobody'; the columns are 'x', 'y', 'one', 'three'; ": [
        *("smoke", "--sets", "--tables", "{table}:y:nobody", "{table}:three:y")
    ],
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_one_line_and_nothing_is_written(
    message, tmp_path, tmp_path_factory, monkeypatch, capsys
):
    table = tmp_path_factory.mktemp("bad") / "table.csv"
    rows = [f"{i % 7},{i % 2},a,{i % 3}\n" for i in range(240)]
    table.write_text("x,y,one,three\n" + "".join(rows))
    monkeypatch.chdir(tmp_path)
    arguments = [text.format(table=table) for text in BAD[message]]
    monkeypatch.setattr(sys, "argv", ["compare", *arguments])
    with pytest.raises(SystemExit) as leave:
        main(experiment.prepare_run, PRESETS, description="")
    assert leave.value.code == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_settings_are_named_by_set_and_groups():
    config = Config(sets=("adult", "adult:race+sex"), tables=("/a/b.csv:y:sex:yes",))
    sources = experiment.name_sources(config)
    assert list(sources) == ["adult", "adult:race+sex", "b:sex"]
    assert sources["adult:race+sex"].sensitive == ("race", "sex")
    assert isinstance(sources["b:sex"], Data) and sources["b:sex"].positive == "yes"
