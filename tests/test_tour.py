"""The notebook runs from top to bottom and says what its cells promise."""

import contextlib
import io
import json
from pathlib import Path

import jax
import pytest

TOUR = json.loads((Path(__file__).parents[1] / "experiments" / "tour.ipynb").read_text())
CODE = ["".join(cell["source"]) for cell in TOUR["cells"] if cell["cell_type"] == "code"]


def test_the_tour_has_ten_cells_without_results_of_some_other_day():
    assert len(TOUR["cells"]) == 10
    assert not any(cell.get("outputs") for cell in TOUR["cells"])
    for number, code in enumerate(CODE):
        compile(code, f"cell {number}", "exec")


@pytest.mark.slow
def test_the_tour_runs_as_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names, told = {}, io.StringIO()
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        contextlib.redirect_stdout(told),
    ):
        for number, code in enumerate(CODE):
            exec(compile(code, f"cell {number}", "exec"), names)
    found = names["found"]
    assert all(row in told.getvalue() for row in found.rows)
    assert "fairbatch@rate+thresholds" in found.rows
    assert "'worst_group_auc'" in told.getvalue()
