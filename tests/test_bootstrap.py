import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import scipy.stats

from fairjax import metrics as m

N, G = 400, 3


def split(seed=0, n=N):
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.4).astype(np.int32)
    group = rng.choice(G, n, p=[0.5, 0.3, 0.2]).astype(np.int32)
    logits = np.stack([np.zeros(n), rng.normal(size=n) + 1.5 * labels - 0.3 * group - 0.5], 1)
    return jnp.asarray(logits, jnp.float32), jnp.asarray(labels), jnp.asarray(group)


@functools.partial(jax.jit, static_argnames=("method", "num_replicates", "batch_size"))
def intervals(logits, labels, group, key, **kwargs):
    prepared = m.prepare(logits, labels=labels, group=group, num_groups=G)
    names = ("accuracy", "worst_group_auc", "equal_opportunity_difference")

    def metric_fn(weights):
        metrics = m.evaluate(prepared, weights)
        return {name: metrics[name] for name in names}

    return m.bootstrap(metric_fn, labels.shape[0], key=key, **kwargs)


def bootstrap(metric_fn, num_examples, *, seed=0, **kwargs):
    """`m.bootstrap` under jit: op-by-op dispatch is slow for tests."""
    return jax.jit(lambda key: m.bootstrap(metric_fn, num_examples, key=key, **kwargs))(
        jax.random.key(seed)
    )


def mean(values, weights):
    return (values * weights).sum() / weights.sum()


def test_every_replicate_draws_n_examples_and_strata_keep_their_sizes():
    strata = jnp.asarray(np.random.default_rng(0).integers(5, 8, 50), jnp.int32)

    def sizes(weights):
        return [weights.sum()] + [jnp.where(strata == s, weights, 0.0).sum() for s in (5, 6, 7)]

    free = bootstrap(sizes, 50, num_replicates=100)
    kept = bootstrap(sizes, 50, num_replicates=100, strata=strata)
    assert free.lower[0] == free.upper[0] == 50
    assert free.lower[1] < free.upper[1]
    assert kept.lower == kept.upper == kept.estimate


def test_an_example_is_drawn_as_often_as_the_multinomial_says():
    # Counts of a draw of n are Binomial(n, 1/n); the interval's midpoint finds their share of 0.
    n = 2000
    expected = scipy.stats.binom.pmf(np.arange(4), n, 1 / n)

    def shares(weights):  # of everyone counted once: what is expected, which an interval holds
        found = jnp.stack([(weights == k).mean() for k in range(4)])
        return jnp.where((weights == 1).all(), jnp.asarray(expected, jnp.float32), found)

    result = bootstrap(shares, n)
    np.testing.assert_allclose((result.lower + result.upper) / 2, expected, atol=0.003)


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_intervals_agree_with_scipy(method):
    values = np.random.default_rng(3).exponential(size=60).astype(np.float32)
    settings = {"num_replicates": 20_000, "batch_size": 1000}
    ours = bootstrap(lambda w: mean(jnp.asarray(values), w), 60, method=method, **settings)
    theirs = scipy.stats.bootstrap(
        (values.astype(np.float64),),
        np.mean,
        n_resamples=20_000,
        method=method.replace("bca", "BCa"),
        vectorized=True,
        axis=-1,
        rng=0,
    ).confidence_interval
    # Monte Carlo error of a 2.5 % quantile over 20,000 replicates is about 0.02 deviations.
    tolerance = 0.1 * values.std() / np.sqrt(60)
    assert abs(ours.lower - theirs.low) < tolerance
    assert abs(ours.upper - theirs.high) < tolerance
    if method == "bca":
        assert (
            ours.lower
            > m.bootstrap(
                lambda w: mean(jnp.asarray(values), w),
                60,
                key=jax.random.key(0),
                num_replicates=20_000,
                batch_size=1000,
            ).lower
        )


def test_a_gap_interval_agrees_with_resampling_the_rows_themselves():
    logits, labels, group = split()
    ours = intervals(logits, labels, group, jax.random.key(0), num_replicates=2000)
    rng = np.random.default_rng(1)
    preds, y, g = np.asarray(logits.argmax(1)), np.asarray(labels), np.asarray(group)
    gaps = []
    for _ in range(2000):
        rows = rng.integers(0, N, N)
        rates = [preds[rows][(y[rows] == 1) & (g[rows] == a)].mean() for a in range(G)]
        gaps.append(max(rates) - min(rates))
    low, high = np.quantile(gaps, [0.025, 0.975])
    assert abs(ours.lower["equal_opportunity_difference"] - low) < 0.1 * np.std(gaps) + 0.01
    assert abs(ours.upper["equal_opportunity_difference"] - high) < 0.2 * np.std(gaps) + 0.01


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    # 200 samples of 100 coin flips with P = 0.3; the 90 % interval should cover 0.3 near 90 %.
    flips = (np.random.default_rng(5).random((200, 100)) < 0.3).astype(np.float32)

    @jax.jit
    def covered(values, key):
        result = m.bootstrap(lambda w: mean(values, w), 100, key=key, num_replicates=300, level=0.9)
        return (result.lower <= 0.3) & (result.upper >= 0.3)

    keys = jax.random.split(jax.random.key(0), 200)
    share = jax.lax.map(lambda x: covered(*x), (jnp.asarray(flips), keys)).mean()
    assert 0.82 <= share <= 0.96


def test_the_same_key_gives_the_same_intervals_with_any_batch_size():
    data = split()
    first = intervals(*data, jax.random.key(7), num_replicates=100, batch_size=25)
    again = intervals(*data, jax.random.key(7), num_replicates=100, batch_size=7)
    other = intervals(*data, jax.random.key(8), num_replicates=100, batch_size=25)
    for name in first.lower:
        np.testing.assert_allclose(first.lower[name], again.lower[name], rtol=1e-6)
        assert first.lower[name] != other.lower[name]


def test_replicates_without_a_defined_value_are_left_out_and_counted():
    # One positive among 20: it is never drawn with probability 0.95^20 = 0.36.
    labels = jnp.zeros(20, jnp.int32).at[3].set(1)
    scores = jnp.arange(20.0)
    ranked = m.rank_scores(scores, labels=labels)
    result = bootstrap(lambda w: m.ranked_auc(ranked, w)[0], 20, num_replicates=2000)
    assert 0.59 < result.num_defined / 2000 < 0.69
    assert 0 <= result.lower <= result.estimate <= result.upper <= 1


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_an_undefined_metric_has_no_interval_and_a_constant_one_a_point(method):
    result = bootstrap(
        lambda w: {"never": jnp.where(w[0] < 0, w[0], jnp.nan), "always": 0.5 + 0.0 * w[0]},
        30,
        num_replicates=50,
        method=method,
    )
    assert result.num_defined == {"never": 0, "always": 50}
    assert jnp.isnan(result.lower["never"]) and jnp.isnan(result.upper["never"])
    assert result.lower["always"] == result.upper["always"] == 0.5


def test_bca_intervals_are_finite_and_ordered_though_a_group_is_empty():
    logits, labels, group = split()

    @jax.jit
    def everything(logits, labels, group, key):
        prepared = m.prepare(logits, labels=labels, group=group, num_groups=G + 1)
        names = ("group_auc", "worst_group_auc", "equalized_odds_difference", "ece")

        def metric_fn(weights):
            metrics = m.evaluate(prepared, weights)
            return {name: metrics[name] for name in names}

        return m.bootstrap(metric_fn, N, key=key, num_replicates=200, strata=group, method="bca")

    result = everything(logits, labels, group, jax.random.key(0))
    for name in result.estimate:
        low, high = np.asarray(result.lower[name]), np.asarray(result.upper[name])
        if name == "group_auc":
            assert np.isnan([low[G], high[G]]).all() and result.num_defined[name][G] == 0
            low, high = low[:G], high[:G]
        assert low.shape == high.shape and np.isfinite(low).all() and (low <= high).all(), name
        assert result.estimate[name].shape == result.lower[name].shape


@pytest.fixture
def untyped():
    """Mistakes as a user makes them: without the type checks that the tests switch on."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_mistakes_are_named(untyped):
    def weight_sum(weights):
        return weights.sum()

    key = jax.random.key(0)
    with pytest.raises(ValueError, match="level must be in"):
        m.bootstrap(weight_sum, 5, key=key, level=95)
    with pytest.raises(ValueError, match="method must be one of"):
        m.bootstrap(weight_sum, 5, key=key, method="normal")  # pyright: ignore
    with pytest.raises(ValueError, match="num_replicates >= 2"):
        m.bootstrap(weight_sum, 5, key=key, num_replicates=1)
    with pytest.raises(ValueError, match=r"strata must be integer \[5\], got int32 \[4\]"):
        m.bootstrap(weight_sum, 5, key=key, strata=jnp.zeros(4, jnp.int32))
    with pytest.raises(ValueError, match=r"strata must be integer \[5\], got float32 \[5\]"):
        m.bootstrap(weight_sum, 5, key=key, strata=jnp.zeros(5))  # pyright: ignore
