"""The report page: self-contained, escaped, the same for the same drawing."""

import jax
import numpy as np
import pytest

from fairjax import metrics, report
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
    )
    assert text.startswith("---\nlibrary_name: fairjax\n")
    assert "| row | auc |\n| --- | --- |\n| plain | 0.9 ± 0.1 \\[0.8, 1.0\\] |" in text
    assert "Groups: \\<b\\>x\\</b\\> 3, y\\_z 3." in text and "a\\|b" in text
    assert "- dropped \\# 2\n- chosen" in text and "It \\*falls\\*." in text
