"""Do intervals of `compare_rows` hold the truth as often as they say? Minutes of simulation."""

import interval_coverage as study
import numpy as np
import pytest
from interval_coverage import SCENARIOS, SHOWN, coverage, truth

pytestmark = pytest.mark.slow
NUM_SPLITS = 100  # whose share near 95 % has a standard error of 2 %


def test_the_true_values_are_those_of_a_very_large_split():
    rng, scenario = np.random.default_rng(0), SCENARIOS["2 x 500, one apart"]
    mean, strength = study.means_and_strengths(scenario)
    group, labels = rng.integers(0, 2, 400_000), rng.random(400_000) < study.POSITIVES
    for model in (0, 1):
        scores = mean[model, group] + strength[model, group] * labels + rng.normal(size=400_000)
        rates = [np.mean(scores[(group == g) & labels] > 0) for g in (0, 1)]
        accuracy = np.mean((scores > 0) == labels)
        expected = truth(scenario)
        assert (
            abs(abs(rates[0] - rates[1]) - expected["equal_opportunity_difference"][model]) < 0.01
        )
        assert abs(accuracy - expected["accuracy"][model]) < 0.01


@pytest.mark.parametrize(
    "name", ["2 x 20, equal", "50 + 500, one apart", "8 x 50, equal", "8 x 50, one apart"]
)
def test_intervals_hold_the_truth_where_percentiles_do_not(name):
    found = coverage(name, NUM_SPLITS)
    for metric in SHOWN:
        # 40 examples or cells of 8: a rate is a matter of a few examples, as is accuracy.
        least = 0.84 if name == "2 x 20, equal" else 0.88
        assert found["ours"][metric][0] >= least, metric
        assert found["ours change"][metric][0] >= 0.85, metric
    if name.startswith("8"):
        for method in ("percentile", "bca"):
            assert found[method]["equalized_odds_difference"][0] < 0.7
