"""The report page: self-contained, escaped, the same for the same drawing."""

import numpy as np

from fairjax import report


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
    assert "<script>" not in html and "&lt;script&gt;" in html


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


def test_four_panels_take_two_rows():
    panels = {f"panel {i}": {"x": np.arange(3)} for i in range(4)}
    svg = report.lines(panels, x_label="epoch")
    assert all(f">{title}<" in svg for title in panels)
