"""The report page: self-contained, escaped, the same for the same drawing."""

import json
import re
import shutil
import subprocess
from html import escape

import jax
import numpy as np
import page_tables
import pytest
import scipy.stats
import yaml

from fairjax import metrics, report
from fairjax.report import plots
from fairjax.report.fairbatch import fairbatch_sentence, loss_note
from fairjax.report.pruning import pruning_sentence
from fairjax.report.search import search_sentence
from fairjax.report.tables import moved


def page(tmp_path, **changes):
    content = {
        "title": "A run",
        "question": "Is it fair?",
        "answer": "It is.",
        "columns": ["row", "auc"],
        "rows": [[("plain", ""), ("0.9", "[0.8, 1.0]")]],
        "caption": "Mean.",
        "figures": {},
        "notes": [],
        "command": "python -m experiments.fairbatch",
        "facts": {"device": "cpu"},
        **changes,
    }
    report.write_report(tmp_path / "report.html", **content)
    return (tmp_path / "report.html").read_text()


def test_names_from_data_are_escaped(tmp_path):
    html = page(tmp_path, notes=["group <script>alert(1)</script> has no positives"])
    assert "<script>alert" not in html and "&lt;script&gt;" in html


def test_the_page_shows_everything_and_loads_nothing(tmp_path):
    svg = report.trade_off({"a": (0.1, 0.9)}, x_label="gap", y_label="accuracy", title="t")
    html = page(tmp_path, figures={"Trade-off": svg})
    for text in ("A run", "Is it fair?", "[0.8, 1.0]", "Trade-off", "<svg", "device"):
        assert text in html
    assert "src=" not in html and "<link" not in html


def test_tables_by_group_are_on_the_page_as_they_are_in_the_summary_and_no_name_is_markup(tmp_path):
    rate = {"estimate": 0.5, "lower": 0.25, "upper": 0.75}
    told = {
        name: {"n": 1200, "auc": rate, "ece": rate | {"lower": None}}
        for name in ("<i>x</i> ± 1", "everyone")
    }
    told["everyone"]["auc"] = {"estimate": None, "lower": None, "upper": None}
    groups = {row: metrics.group_cells(told) for row in ("plain", "<b>fair</b>", "third")}
    html = page(tmp_path, groups=groups)
    assert "<i>x" not in html and "<b>fair" not in html and html.count("<details open>") == 2
    results = {row: {"by_group": told} for row in groups}
    (tmp_path / "summary.json").write_text(json.dumps({"results": results}))
    tables = page_tables.check_groups(tmp_path)
    assert list(tables) == ["plain", "<b>fair</b>", "third"]
    assert tables["plain"][1] == ["<i>x</i> ± 1", "1,200", "0.500 [0.250, 0.750]", "0.500"]


def contrast(*colors):
    """Of two colours "#rrggbb", as WCAG 2 defines it."""
    light = []
    for color in colors:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        light.append(np.dot([0.2126, 0.7152, 0.0722], linear))
    return (max(light) + 0.05) / (min(light) + 0.05)


def test_text_and_lines_stand_out_in_light_and_in_dark(tmp_path):
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    styles = re.findall(r":root {([^}]*)}", page(tmp_path))
    assert len(styles) == 2
    for style in styles:
        found = {
            name: color * 2 if len(color) == 3 else color
            for name, color in re.findall(r"--(\w+): #(\w+)", style)
        }
        for text in ("text", "quiet"):
            for ground in ("page", "code"):
                assert contrast(f"#{found[text]}", f"#{found[ground]}") >= 4.5, (text, ground)
        assert contrast(f"#{found['mark']}", f"#{found['page']}") >= 3
    assert all(contrast(color, "#ffffff") >= 4.5 for color in plots.COLORS)


def test_a_point_says_what_it_is_under_the_pointer_and_undefined_ones_are_named():
    points = {f"row {i}": (0.1 * i, 0.9) for i in range(12)} | {"<b>": (0.5, 0.5)}
    points["lost"] = (float("nan"), 0.5)
    svg = report.trade_off(points, x_label="gap", y_label="accuracy", title="")
    assert "<title>row 3: gap 0.3000, accuracy 0.9000</title>" in svg
    assert "<title>&lt;b&gt;: gap 0.5000" in svg and ">lost (undefined)<" in svg
    looks = re.findall(r'<g id="point\d+">.*?</g>', svg, re.S)
    assert len(looks) == 13 and "<title>lost" not in svg


def test_bands_of_curves_hold_the_curve_and_are_as_wide_as_a_bootstrap_of_examples_says():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 300)
    scores = rng.normal(size=300) + labels
    curve = metrics.roc_curve(scores, labels=labels)
    false, true, low, high = curve.T
    assert (low <= true).all() and (true <= high).all()
    at = np.searchsorted(false, 0.2)
    heights = []
    for _ in range(400):
        rows = rng.integers(0, 300, 300)
        pos, neg = scores[rows][labels[rows] == 1], scores[rows][labels[rows] == 0]
        heights.append(np.mean(pos > np.quantile(neg, 1 - false[at])))
    expected = np.quantile(heights, [0.025, 0.975])
    np.testing.assert_allclose([low[at], high[at]], expected, atol=0.04)
    bins = metrics.calibration_curve(scores - 0.5, labels=labels)
    filled = bins[bins[:, 4] > 0]
    assert bins[:, 4].sum() == 300
    assert (filled[:, 2] <= filled[:, 1]).all() and (filled[:, 1] <= filled[:, 3]).all()
    share, n = filled[3, 1], filled[3, 4]
    wilson = scipy.stats.binomtest(int(round(share * n)), int(n)).proportion_ci(method="wilson")
    np.testing.assert_allclose(filled[3, 2:4], [wilson.low, wilson.high], atol=1e-6)
    assert np.isnan(metrics.roc_curve(scores[:5], labels=np.ones(5, int))).all()


@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no chromium")
def test_a_browser_shows_the_page_without_errors_and_no_wider_than_a_phone(tmp_path):
    rate = {"estimate": 0.5, "lower": 0.25, "upper": 0.75}
    told = {name: {"n": 1200} | {f"rate {i}": rate for i in range(7)} for name in ("x", "everyone")}
    inner = page(tmp_path, groups={"plain": metrics.group_cells(told)}, answer="long_" * 60)
    frame = f'<iframe style="width: WIDTHpx; border: 0" srcdoc="{escape(inner)}"></iframe>'
    script = """<script>onload = () => { document.title = Array.from(frames).map((frame) => {
      const shown = frame.document.documentElement, table = frame.document.querySelector("details");
      return [shown.scrollWidth - shown.clientWidth, table.scrollWidth - table.clientWidth];
    }).join(); };</script>"""
    # frames, since a window itself is at least 500 wide
    frames = [frame.replace("WIDTH", width, 1) for width in ("390", "1280")]
    (tmp_path / "outer.html").write_text("".join([*frames, script]))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command = ["chromium", *options, "--dump-dom", (tmp_path / "outer.html").as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "CONSOLE" not in shown.stderr
    assert "<title>0,0,0,0</title>" in shown.stdout


def test_undefined_points_are_left_out_and_equal_drawings_are_equal_text():
    points = {"a": (0.1, 0.9), "b": (float("nan"), 0.5)}
    first = report.trade_off(points, x_label="x", y_label="y", title="")
    assert first == report.trade_off(points, x_label="x", y_label="y", title="")
    assert ">a<" in first and ">b<" not in first


def test_several_runs_are_drawn_as_a_mean_within_their_range():
    runs = np.array([[0.0, 1.0], [1.0, 2.0]])
    one = report.lines({"p": {"mean": runs.mean(0)}}, x_label="epoch")
    several = report.lines({"p": {"mean": runs}}, x_label="epoch")
    assert "PolyCollection" in several or "FillBetween" in several
    assert "PolyCollection" not in one and "FillBetween" not in one


@pytest.mark.parametrize("name", ["$5 to $10", "a_b^c", "_hidden", "50 % {x}"])
def test_names_are_drawn_as_they_are(name):
    points = report.trade_off({name: (0.1, 0.9)}, x_label=name, y_label="y", title=name)
    drawn = report.lines({name: {name: np.arange(3)}}, x_label=name)
    assert points.count(f"{name}<") == 3 and drawn.count(f"{name}<") == 3


def test_four_panels_take_two_rows():
    panels = {f"panel {i}": {"x": np.arange(3)} for i in range(4)}
    svg = report.lines(panels, x_label="epoch")
    assert all(f">{title}<" in svg for title in panels)


# What came out, in words


@pytest.mark.parametrize(
    ("interval", "says"),
    [
        ((-0.2, -0.1), "falls"),
        ((0.1, 0.2), "rises"),
        ((-0.1, 0.2), "does not clearly change"),
        ((0.0, 0.2), "does not clearly change"),
        ((np.nan, np.nan), "cannot be compared"),
        ((None, None), "cannot be compared"),
    ],
)
def test_a_change_whose_interval_holds_0_is_none(interval, says):
    assert moved(interval) == says


def test_fairbatch_tells_every_row_by_its_own_criterion_and_picks_none():
    odds, chance = "equalized_odds_difference", "equal_opportunity_difference"

    def row(value, accuracy, low, high):
        own = {odds: value, chance: value / 2, "accuracy": accuracy}
        return own | {"ci95_vs_plain": {odds: [low, high], chance: [np.nan, np.nan]}}

    by_row = {
        "plain": row(0.2, 0.85, 0.0, 0.0),
        "equalized_odds": row(0.05, 0.84, -0.2, -0.1),
        "equalized_odds@rate": row(0.02, 0.83, -0.3, 0.01),
        "equal_opportunity": row(0.1, 0.8, 0.0, 0.0),
    }
    text = fairbatch_sentence(by_row, "Adult")
    assert text.startswith(f"On Adult: {odds}, 0.200 with plain training, falls to 0.050 ")
    assert "(equalized_odds; change -0.200 to -0.100; accuracy -1.0 points)" in text
    assert "does not clearly change: 0.020 (equalized_odds@rate; change -0.300 to +0.010" in text
    assert f"{chance}, 0.100 with plain training, cannot be compared: 0.050" in text
    undefined = {**by_row, "plain": {**by_row["plain"], odds: np.nan}}
    assert f"{odds} cannot be compared" in fairbatch_sentence(undefined, "Adult")
    assert "no disparity" in fairbatch_sentence({"plain": by_row["plain"]}, "Adult")


def test_the_found_mask_helps_only_where_the_interval_says_so():
    def text(interval):
        rows = {name: {"worst_group_auc": 0.8} for name in ("full", "linear")}
        gain = {"full": {"worst_group_auc": [0.1, *interval]}}
        gain["linear"] = {"worst_group_auc": [0.1, -0.1, 0.3]}
        found = {"worst_group_auc": 0.9, "gain_over": gain}
        return search_sentence({**rows, "fairtune": found}, "scans")

    unclear = "not clearly different from linear 0.800, +0.100 (-0.100 to +0.300)"
    assert f"more than full 0.800, +0.100 (+0.050 to +0.150), and {unclear}" in text([0.05, 0.15])
    assert "not clearly different from full 0.800" in text([-0.05, 0.15])
    assert "less than full 0.800" in text([-0.2, -0.1])
    assert "not to be compared with full 0.800, and" in text([np.nan, np.nan])


def test_a_loss_that_still_falls_is_told_and_one_epoch_tells_nothing():
    history = [{"rows": {"plain": {"loss": loss}}} for loss in (0.9, 0.5, 0.4, 0.4)]
    assert loss_note(history[:1]) == [] and loss_note(history) == []
    (note,) = loss_note(history[:2])
    assert "from 0.9000 to 0.5000 over the last 2 of 2 epochs" in note


def test_pruning_says_for_every_row_whether_its_disparity_changed():
    def row(value, interval):
        table = {"eodd": value, "accuracy": 0.8 + value, "macro_f1": 0.7}
        return table | {"ci95_vs_baseline": {"eodd": interval}}

    by_row = {
        "baseline": row(0.2, [0.0, 0.0]),
        "pruned": row(0.1, [-0.15, -0.05])
        | {"gain_over": {"baseline": {}, "random": {"eodd": [-0.09, -0.2, 0.02]}}},
        "random": row(0.19, [-0.1, 0.1]),
        "tuned": row(np.nan, [np.nan, np.nan]),
    }
    text = pruning_sentence(by_row)
    assert "pruned: eodd falls (0.100, change -0.150 to -0.050), accuracy -10.0, macro_f1" in text
    assert "random: eodd does not clearly change (0.190, change -0.100 to +0.100)" in text
    assert "tuned: eodd cannot be compared (nan)" in text
    assert text.endswith("Pruned minus others, paired: random -0.090 (-0.200 to +0.020).")


def test_a_summary_names_the_cells_that_its_gaps_rest_on_once():
    rng = np.random.default_rng(0)
    labels = (np.arange(100) % 3 == 0).astype(np.int32)
    group = (np.arange(100) >= 60).astype(np.int32)  # 40 of the second group, 14 positives
    logits = rng.normal(size=(2, 3, 100, 2)).astype(np.float32)
    compared = metrics.compare_rows(
        logits,
        labels=labels,
        group=group,
        num_groups=2,
        shown=["accuracy"],
        num_replicates=5,
        key=jax.random.key(0),
    )
    _, notes = report.summarise(["a", "b"], compared, ["light", "dark"])
    assert notes == [
        "auc_gap, equal_opportunity, equalized_odds, worst_group_auc rest on few examples: "
        "14 positives of 'dark'"
    ]


def test_a_model_card_names_data_groups_and_intervals_and_no_name_is_markup():
    summary = {
        "command": "python -m experiments.fairtune",
        "data": {
            "name": "a|b",
            "fingerprint": "0123",
            "n": {"train": 4, "test": 2},
            "groups": {"<b>x</b>": 3, "y_z": 3},
            "notes": ["dropped # 2"],
        },
        "notes": ["chosen"],
        "versions": {"jax": "0.10.2"},
    }
    text = report.model_card(
        summary,
        title="A run",
        answer="It *falls*.",
        network="`a.safetensors`",
        columns=["row", "auc"],
        rows=[[("plain", ""), ("0.9 ± 0.1", "[0.8, 1.0]")]],
        caption="Mean.",
        groups={"plain": (["group", "n"], [[("<b>x</b>", ""), ("3", "")]])},
        measured={"plain": {"auc": 0.9, "ece": None, "f1": float("nan")}, 'a "b": c': {}},
        task="tabular-classification",
    )
    _, head, _ = text.split("---\n", 2)
    plain, other = yaml.safe_load(head)["model-index"]
    assert plain["results"] == [
        {
            "task": {"type": "tabular-classification"},
            "dataset": {"name": "a|b", "type": "a|b", "split": "test", "revision": "0123"},
            "metrics": [{"type": "auc", "value": 0.9}],
        }
    ]
    assert other["name"] == 'a "b": c' and other["results"][0]["metrics"] == []
    assert "plain:\n\n| group | n |\n| --- | ---: |\n| \\<b\\>x\\</b\\> | 3 |" in text
    assert "| row | auc |\n| --- | ---: |\n| plain | 0.9 ± 0.1 \\[0.8, 1.0\\] |" in text
    assert "Groups: \\<b\\>x\\</b\\> 3, y\\_z 3." in text and "a\\|b" in text
    assert "- dropped \\# 2\n- chosen" in text and "It \\*falls\\*." in text
