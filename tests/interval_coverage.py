"""How often intervals hold the truth: simulated test splits whose true gaps are known.

    PYTHONPATH=. python tests/interval_coverage.py [number of splits, 300 by default]

prints the tables of experiments/BENCHMARKS.md, and in brackets how much wider ours are than
percentiles. Two models score the same examples, with errors
correlated at 0.8; a score is mean + strength * label + a standard normal, predictions are
score > 0. "change" is of the second model against the first.
"""

import functools
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import norm

from fairjax import metrics
from fairjax.metrics import comparison

SHOWN = (
    "accuracy",
    "accuracy_gap",
    "demographic_parity_difference",
    "equal_opportunity_difference",
    "equalized_odds_difference",
    "auc_gap",
    "worst_group_auc",
)
POSITIVES, CORRELATION, NUM_REPLICATES = 0.4, 0.8, 300


class Scenario(NamedTuple):
    """Expected examples of each group, and how much the first group is disfavoured `[2 models]`."""

    sizes: tuple[int, ...]
    shift: tuple[float, float]


SCENARIOS = {
    "2 x 20, equal": Scenario((20, 20), (0.0, 0.0)),
    "20 + 200, equal": Scenario((20, 200), (0.0, 0.0)),
    "50 + 500, equal": Scenario((50, 500), (0.0, 0.0)),
    "50 + 500, one apart": Scenario((50, 500), (0.8, 0.4)),
    "2 x 1,000, equal": Scenario((1000, 1000), (0.0, 0.0)),
    "2 x 500, one apart": Scenario((500, 500), (0.8, 0.4)),
    "4 x 100, one apart": Scenario((100,) * 4, (0.8, 0.4)),
    "8 x 50, equal": Scenario((50,) * 8, (0.0, 0.0)),
    "8 x 50, one apart": Scenario((50,) * 8, (0.8, 0.4)),
    "8 x 200, one apart": Scenario((200,) * 8, (0.8, 0.0)),
}


def means_and_strengths(scenario: Scenario) -> np.ndarray:
    """Of both models and all groups, `[2, 2 models, G]`."""
    first = np.arange(len(scenario.sizes)) == 0
    shift = np.array(scenario.shift)[:, None] * first
    return np.stack([-0.6 - 0.5 * shift, 1.6 - 0.5 * shift])


def truth(scenario: Scenario) -> dict[str, np.ndarray]:
    """The metrics of both models on everyone there could be, `[2]` each."""
    mean, strength = means_and_strengths(scenario)
    true, false, auc = norm.cdf(mean + strength), norm.cdf(mean), norm.cdf(strength / 2**0.5)
    accuracy = POSITIVES * true + (1 - POSITIVES) * (1 - false)
    selected = POSITIVES * true + (1 - POSITIVES) * false
    spread = functools.partial(np.ptp, axis=1)
    return {
        "accuracy": np.average(accuracy, axis=1, weights=scenario.sizes),
        "accuracy_gap": spread(accuracy),
        "demographic_parity_difference": spread(selected),
        "equal_opportunity_difference": spread(true),
        "equalized_odds_difference": np.maximum(spread(true), spread(false)),
        "auc_gap": spread(auc),
        "worst_group_auc": auc.min(1),
    }


@functools.partial(jax.jit, static_argnames=("num_groups", "num_splits", "num_examples"))
def simulate(key, table, shares, *, num_groups, num_splits, num_examples):
    """Intervals of `compare_rows`, "percentile" and "bca", of D splits.

    Returns `{method: (mean, change)}` whose fields are `{name: [D, 2]}`.
    """

    def split(key):
        keys = jax.random.split(key, 5)
        group = jax.random.choice(keys[0], num_groups, (num_examples,), p=shares)
        labels = jax.random.bernoulli(keys[1], POSITIVES, (num_examples,)).astype(jnp.int32)
        common = jax.random.normal(keys[2], (1, num_examples))
        own = jax.random.normal(keys[3], (2, num_examples))
        noise = CORRELATION**0.5 * common + (1 - CORRELATION) ** 0.5 * own
        scores = table[0][:, group] + table[1][:, group] * labels.astype(jnp.float32)[None] + noise
        logits = jnp.stack([jnp.zeros_like(scores), scores], axis=-1)[:, None]

        def prepare(logits):
            return metrics.prepare(logits, labels=labels, group=group, num_groups=num_groups)

        prepared = jax.vmap(jax.vmap(prepare))(logits)
        intervals = functools.partial(comparison._intervals, shown=SHOWN, table_fn=metrics.tabulate)
        everyone = jnp.arange(num_examples, dtype=jnp.int32)
        drawn = {  # one network, so that there is nothing to draw but its examples
            "examples": everyone[None],
            "splits": jnp.array([num_examples], jnp.int32),
            "strata": jnp.append(jnp.zeros_like(everyone), jnp.int32(1)),
        }
        ours = intervals(prepared, keys[4], num_replicates=NUM_REPLICATES, **drawn)
        found = {"ours": ours[:2]}  # not those of the groups

        def plain(weights):
            rows = jax.vmap(lambda one: metrics.evaluate(one, weights))(
                jax.tree.map(lambda x: x[:, 0], prepared)
            )
            rows = {name: rows[name] for name in SHOWN}
            return rows, {name: value - value[:1] for name, value in rows.items()}

        for method in ("percentile", "bca"):
            both = metrics.bootstrap(
                plain, num_examples, key=keys[4], num_replicates=NUM_REPLICATES, method=method
            )
            mean, change = zip(*both, strict=True)
            found[method] = metrics.Intervals(*mean), metrics.Intervals(*change)
        return found

    return jax.lax.map(split, jax.random.split(key, num_splits))


def coverage(name: str, num_splits: int, seed: int = 0) -> dict[str, dict[str, tuple]]:
    """`{"method" or "method change": {metric: (share that holds the truth, mean width)}}`."""
    scenario = SCENARIOS[name]
    found = jax.device_get(
        simulate(
            jax.random.key(seed),
            jnp.asarray(means_and_strengths(scenario), jnp.float32),
            jnp.asarray(scenario.sizes, jnp.float32) / sum(scenario.sizes),
            num_groups=len(scenario.sizes),
            num_splits=num_splits,
            num_examples=sum(scenario.sizes),
        )
    )
    true, result = truth(scenario), {}
    for method, (mean, change) in found.items():
        result[method], result[f"{method} change"] = {}, {}
        for metric in SHOWN:
            for key, part, target in (
                (method, mean, true[metric][0]),
                (f"{method} change", change, true[metric][1] - true[metric][0]),
            ):
                row = 0 if part is mean else 1
                low, value, high = (
                    field[metric][:, row] for field in (part.lower, part.estimate, part.upper)
                )
                defined = ~np.isnan(low)  # a group of 20 may lack positives
                low, value, high = low[defined], value[defined], high[defined]
                assert ((low <= value) & (value <= high)).all()
                held = (low <= target + 1e-6) & (target - 1e-6 <= high)
                result[key][metric] = held.mean(), (high - low).mean()
    return result


def main() -> None:
    num_splits = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    tables = {name: coverage(name, num_splits) for name in SCENARIOS}
    for what, methods in (
        ("of one model", ("ours", "percentile", "bca")),
        ("of a change", ("ours change", "percentile change", "bca change")),
    ):
        print(f"\n{what}: {' / '.join(methods)}\n")
        print("| groups |", " | ".join(SHOWN), "|\n|", " --- |" * (len(SHOWN) + 1))
        for name, table in tables.items():
            cells = [
                " / ".join(f"{100 * table[method][metric][0]:.0f}" for method in methods)
                + f" ({table[methods[0]][metric][1] / table[methods[1]][metric][1]:.2f})"
                for metric in SHOWN
            ]
            print(f"| {name} |", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
