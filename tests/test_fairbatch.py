"""FairBatch against a NumPy reading of the paper, and the properties of its draws."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairjax.fairbatch import CRITERIA, SIGNALS, FairBatchState, fairbatch

CELLS = np.array([[726, 256], [392, 626]])  # (label, group) counts of the published training set


def two_by_two(counts=CELLS):
    labels, group = zip(
        *[(y, z) for y in (0, 1) for z in (0, 1) for _ in range(counts[y, z])], strict=True
    )
    order = np.random.default_rng(0).permutation(len(labels))
    return np.array(labels)[order], np.array(group)[order]


def make(labels=None, group=None, **options):
    if labels is None or group is None:
        labels, group = two_by_two()
    options = {"num_classes": 2, "num_groups": 2, "batch_size": 100, **options}
    return fairbatch(labels=labels, group=group, **options)


def published_update(criterion, losses, lambda1, lambda2, alpha):
    """The update of the authors' released sampler for labels 0/1 and groups 0/1."""
    up1 = alpha if losses[1, 1] > losses[1, 0] else -alpha
    up2 = alpha if losses[0, 1] > losses[0, 0] else -alpha
    gaps = abs(losses[:, 1] - losses[:, 0])
    if criterion == "equal_opportunity" or gaps[1] > gaps[0]:
        lambda1 += up1
    else:
        lambda2 += up2 if criterion == "equalized_odds" else -up2
    return np.clip(lambda1, 0, 1), np.clip(lambda2, 0, 1)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(CRITERIA[1:4]),
    st.lists(st.floats(0.01, 5), min_size=4, max_size=4, unique=True),
    st.floats(0, 1, width=32),
    st.floats(0, 1, width=32),
)
def test_two_groups_follow_the_published_update(criterion, losses, lambda1, lambda2):
    losses = np.array(losses, np.float32).reshape(2, 2)
    gaps = np.abs(losses[:, 1] - losses[:, 0])
    if gaps[0] == gaps[1] or 0 in gaps:
        return  # exact ties are the documented departure
    sampler = SAMPLERS[criterion]
    state = sampler.init()._replace(
        shares=jnp.array([[1 - lambda2, lambda2], [1 - lambda1, lambda1]], jnp.float32)
    )
    after = UPDATES[criterion](jnp.asarray(losses), state).shares
    expected1, expected2 = published_update(criterion, losses, lambda1, lambda2, 0.05)
    np.testing.assert_allclose(after[:, 1], [expected2, expected1], atol=1e-6)
    np.testing.assert_allclose(after.sum(1), 1, atol=1e-6)


SAMPLERS = {name: make(criterion=name, step_size=0.05) for name in CRITERIA}
UPDATES = {name: jax.jit(sampler.update) for name, sampler in SAMPLERS.items()}


def test_initial_shares_are_the_published_ones():
    shares = SAMPLERS["equal_opportunity"].init().shares
    np.testing.assert_allclose(shares[1, 1], 0.6149, atol=5e-5)
    np.testing.assert_allclose(shares[0, 1], 0.2607, atol=5e-5)


def test_with_three_groups_the_worst_pair_exchanges_mass():
    labels = np.repeat([0, 1], 30)
    group = np.tile([0, 1, 2], 20)
    sampler = make(labels, group, num_groups=3, batch_size=12, step_size=0.1)
    losses = jnp.array([[0.0, 9.0, 0.0], [0.3, 0.1, 0.9]])
    after = sampler.update(losses, sampler.init()).shares
    np.testing.assert_allclose(after[0], [1 / 3] * 3, atol=1e-6)  # label 0 is not watched
    np.testing.assert_allclose(after[1], [1 / 3, 1 / 3 - 0.1, 1 / 3 + 0.1], atol=1e-6)


# By label, which way the share of the worse group moves when only that label's cells differ.
STEPS = {
    "none": [0, 0, 0],
    "equal_opportunity": [0, 1, 0],
    "equalized_odds": [1, 1, 1],
    "demographic_parity": [-1, 1, -1],
    "demographic_parity_and_equalized_odds": [1, 1, 1],  # losses of parity come negated
}


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_watches_its_labels_and_steps_its_way(criterion):
    sampler = make(
        np.repeat([0, 1, 2], 20),
        np.tile([0, 1], 30),
        num_classes=3,
        batch_size=12,
        criterion=criterion,
        step_size=0.1,
        positive_class=1,
    )
    before = sampler.init()
    for label, step in enumerate(STEPS[criterion]):
        losses = jnp.full((3, 2), 0.5).at[label, 1].set(0.9)  # group 1 is the worse
        moved = sampler.update(losses, before).shares - before.shares
        expected = np.zeros((3, 2))
        expected[label] = [-0.1 * step, 0.1 * step]
        np.testing.assert_allclose(moved, expected, atol=1e-6)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_renaming_groups_renames_the_shares(criterion):
    labels, group = two_by_two()
    losses = jnp.array([[0.2, 0.5], [0.9, 0.3]])
    one = make(labels, group, criterion=criterion)
    other = make(labels, 1 - group, criterion=criterion)
    a = one.update(losses, one.init()).shares
    b = other.update(losses[:, ::-1], other.init()).shares
    np.testing.assert_allclose(a, b[:, ::-1], atol=1e-7)


def test_cell_sums_and_losses_match_a_loop():
    rng = np.random.default_rng(1)
    labels, group = rng.integers(0, 3, 60), rng.integers(0, 2, 60)
    logits = rng.normal(size=(60, 3)).astype(np.float32)
    sampler = make(labels, group, num_classes=3, batch_size=20, positive_class=2)
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    for y, z in itertools.product(range(3), range(2)):
        rows = (labels == y) & (group == z)
        in_group = (group == z).sum()
        preds = logits.argmax(1)
        expected = {
            ("equalized_odds", "loss"): -log_probs[rows, y].mean(),
            ("equalized_odds", "rate"): (preds[rows] != y).mean(),
            ("demographic_parity", "loss"): -log_probs[rows, 2].sum() / in_group,
            ("demographic_parity", "rate"): (preds[group == z] != 2).mean(),
        }
        for (criterion, signal), value in expected.items():
            state = sampler.init(criterion=CRITERIA.index(criterion), signal=SIGNALS.index(signal))
            sums = sampler.measure(jnp.asarray(logits), state, labels=labels, group=group)
            np.testing.assert_allclose(sampler.cell_losses(sums, state)[y, z], value, rtol=1e-5)


def test_measured_weights_count_as_repeated_rows():
    sampler = make()
    state = sampler.init()
    logits = jnp.array([[0.0, 1.0], [2.0, 0.0], [0.5, 0.1]])
    labels, group = jnp.array([1, 0, 1]), jnp.array([0, 1, 1])
    twice = sampler.measure(
        logits, state, labels=labels, group=group, weights=jnp.array([2.0, 1.0, 0.0])
    )
    rows = jnp.array([0, 0, 1])
    by_hand = sampler.measure(logits[rows], state, labels=labels[rows], group=group[rows])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), twice, by_hand)


def one_batch(sampler, key):
    return sampler.sample_epoch(key, sampler.init(), num_batches=1)


def counts_of(labels, group, indices, weights):
    cells = np.zeros((len(indices), 2, 2), int)
    for t, (row, keep) in enumerate(zip(np.asarray(indices), np.asarray(weights) > 0, strict=True)):
        np.add.at(cells[t], (labels[row[keep]], group[row[keep]]), 1)
    return cells


def test_exact_batches_hold_the_rounded_cell_counts():
    labels, group = two_by_two()
    sampler = make(labels, group)
    indices, weights = sampler.sample_epoch(jax.random.key(0), sampler.init())
    assert indices.shape == weights.shape == (20, 100)
    for cells in counts_of(labels, group, indices, weights):
        np.testing.assert_array_equal(cells, [[36, 13], [20, 31]])  # 36.3, 12.8, 19.6, 31.3


def test_published_rounding_may_change_the_batch_size_and_pads():
    labels, group = two_by_two()
    sampler = make(labels, group, rounding="published")
    state = sampler.init()._replace(shares=jnp.array([[0.49, 0.51], [0.5, 0.5]]))
    indices, weights = sampler.sample_epoch(jax.random.key(0), state)
    share = np.array([[0.49, 0.51], [0.5, 0.5]]) * CELLS.sum(1, keepdims=True) / 20
    expected = np.round(share).astype(int)
    assert indices.shape == (20, 104)
    assert expected.sum() == 99
    for cells in counts_of(labels, group, indices, weights):
        np.testing.assert_array_equal(cells, expected)


def test_a_cell_is_dealt_out_before_any_row_repeats():
    labels, group = two_by_two(np.array([[8, 30], [30, 32]]))
    sampler = make(labels, group, batch_size=20, criterion="equalized_odds")
    state = sampler.init()._replace(shares=jnp.array([[0.5, 0.5], [0.5, 0.5]]))
    indices, weights = sampler.sample_epoch(jax.random.key(3), state, num_batches=8)
    rows = np.asarray(indices)[np.asarray(weights) > 0]
    seen = np.bincount(rows, minlength=100)
    for y, z in itertools.product(range(2), range(2)):
        times = seen[(labels == y) & (group == z)]
        assert times.max() - times.min() <= 1


@pytest.mark.parametrize("num_rows", [300, 70_000])
def test_plain_batches_are_a_shuffle_of_all_rows(num_rows):
    rng = np.random.default_rng(0)
    labels, group = rng.integers(0, 2, num_rows), rng.integers(0, 2, num_rows)
    sampler = make(labels, group, criterion="none")
    indices, weights = sampler.sample_epoch(jax.random.key(0), sampler.init())
    assert (np.asarray(weights) == 1).all()
    np.testing.assert_array_equal(np.sort(np.ravel(indices)), np.arange(num_rows))
    assert abs(np.corrcoef(np.ravel(indices), np.arange(num_rows))[0, 1]) < 0.2


def test_every_row_of_a_cell_is_equally_likely_to_come_first():
    labels, group = two_by_two(np.array([[5, 5], [5, 5]]))
    sampler = make(labels, group, batch_size=4)
    keys = jax.random.split(jax.random.key(0), 5000)
    first, _ = jax.vmap(lambda key: one_batch(sampler, key))(keys)
    share = np.bincount(np.ravel(first), minlength=20) / 5000
    np.testing.assert_allclose(share, 0.2, atol=0.03)


def test_iid_batches_follow_the_shares():
    labels, group = two_by_two()
    sampler = make(labels, group, draw="iid")
    state = sampler.init()._replace(shares=jnp.array([[0.9, 0.1], [0.2, 0.8]]))
    indices, weights = sampler.sample_epoch(jax.random.key(0), state, num_batches=2000)
    share = counts_of(labels, group, indices, weights).sum(0) / 200_000
    expected = np.array([[0.9, 0.1], [0.2, 0.8]]) * CELLS.sum(1, keepdims=True) / 2000
    np.testing.assert_allclose(share, expected, atol=0.01)


@pytest.mark.parametrize("draw", ["exact", "iid"])
def test_example_weights_choose_within_the_cell_only(draw):
    labels, group = two_by_two()
    sampler = make(labels, group, draw=draw)
    favoured = np.zeros(2000, np.float32)
    picks = [np.flatnonzero((labels == y) & (group == z))[:3] for y in (0, 1) for z in (0, 1)]
    favoured[np.concatenate(picks)] = 1, 1, 2, 1, 1, 2, 1, 1, 2, 1, 1, 2
    indices, weights = sampler.sample_epoch(
        jax.random.key(0), sampler.init(), example_weights=jnp.asarray(favoured), num_batches=200
    )
    assert set(np.ravel(indices)) == set(np.concatenate(picks))
    share = counts_of(labels, group, indices, weights).sum(0) / 20_000
    np.testing.assert_allclose(share, CELLS / 2000, atol=0.02)
    of_first_cell = np.bincount(np.ravel(indices), minlength=2000)[picks[0]]
    np.testing.assert_allclose(of_first_cell / of_first_cell.sum(), [0.25, 0.25, 0.5], atol=0.03)


def test_steps_shrink_by_the_decay():
    sampler = make(step_size=0.1, decay=0.5)
    losses, state, moved = jnp.array([[0.0, 0.0], [0.1, 0.2]]), sampler.init(), []
    for _ in range(4):
        after = sampler.update(losses, state)
        moved.append(float(after.shares[1, 1] - state.shares[1, 1]))
        state = after
    np.testing.assert_allclose(moved, 0.1 / np.sqrt([1, 2, 3, 4]), atol=1e-6)


def test_every_order_of_a_small_cell_is_equally_likely():
    labels, group = two_by_two(np.array([[4, 4], [4, 4]]))
    sampler = make(labels, group, batch_size=16)
    keys = jax.random.split(jax.random.key(0), 24_000)
    rows, _ = jax.vmap(lambda key: one_batch(sampler, key))(keys)
    of_cell = np.flatnonzero((labels == 0) & (group == 0))
    orders = np.searchsorted(of_cell, np.asarray(rows)[:, 0, :4])
    counts = np.unique(orders @ [64, 16, 4, 1], return_counts=True)[1]
    assert len(counts) == 24
    np.testing.assert_allclose(counts / 1000, 1, atol=0.15)  # 5 standard deviations


def test_an_empty_cell_gets_nothing_and_moves_nothing():
    labels, group = two_by_two(np.array([[40, 40], [40, 0]]))
    sampler = make(labels, group, batch_size=30, criterion="equalized_odds")
    logits = jnp.zeros((120, 2))
    state = sampler.init()
    sums = sampler.measure(logits, state, labels=labels, group=group)
    losses = sampler.cell_losses(sums, state)
    assert np.isnan(losses[1, 1]) and np.isfinite(losses[1, 0])
    state = sampler.update(losses.at[0, 0].set(0.1), sampler.init())
    np.testing.assert_allclose(state.shares[1], [1, 0])
    indices, weights = sampler.sample_epoch(jax.random.key(0), state)
    assert counts_of(labels, group, indices, weights)[:, 1, 1].sum() == 0


def test_a_cell_of_one_row_is_drawn_again_and_again():
    labels, group = two_by_two(np.array([[40, 1], [40, 39]]))
    sampler = make(labels, group, batch_size=40, criterion="equalized_odds")
    state = sampler.init()._replace(shares=jnp.array([[0.75, 0.25], [0.5, 0.5]]))
    indices, weights = sampler.sample_epoch(jax.random.key(0), state)
    cells = counts_of(labels, group, indices, weights)
    assert (cells[:, 0, 1] == 4).all()  # 41 / 120 * 40 * 0.25 = 3.4, the largest remainder
    assert (cells.sum((1, 2)) == 40).all()


def test_nothing_recompiles_and_state_is_a_scan_carry():
    sampler = make()
    traces = []

    @jax.jit
    def epoch(key, losses, state):
        traces.append(1)
        state = sampler.update(losses, state)
        return state, sampler.sample_epoch(key, state)

    state = sampler.init()
    for seed in range(3):
        state, _ = epoch(jax.random.key(seed), jnp.array([[0.1, 0.2], [0.3, 0.9]]), state)
    assert len(traces) == 1
    carried, _ = jax.lax.scan(
        lambda s, _: (sampler.update(jnp.ones((2, 2)), s), None), sampler.init(), length=3
    )
    before, after = jax.tree.map(lambda x: (x.shape, x.dtype), (sampler.init(), carried))
    assert before == after


def test_criteria_and_signals_are_an_array_axis():
    sampler = make()
    criteria = jnp.arange(len(CRITERIA))
    losses = jnp.array([[0.1, 0.7], [0.3, 0.2]])
    states = jax.vmap(lambda c: sampler.init(criterion=c))(criteria)
    together = jax.vmap(sampler.update, in_axes=(None, 0))(losses, states).shares
    for i, name in enumerate(CRITERIA):
        alone = make(criterion=name)
        np.testing.assert_allclose(together[i], alone.update(losses, alone.init()).shares)


BAD = {
    "criterion must be one of": {"criterion": "parity"},
    "signal must be one of": {"signal": "gradient"},
    "draw must be one of": {"draw": "sorted"},
    "rounding must be one of": {"rounding": "up"},
    "step_size must be in": {"step_size": 0.0},
    "decay must be at least 0": {"decay": -0.5},
    "odds_weight must be positive": {"odds_weight": 0.0},
    "clean_share must be in": {"clean_share": 1.5},
    "warm_up must be at least 0": {"clean_share": 0.9, "warm_up": -1},
    "number of non-empty": {"batch_size": 3},
    "the number of examples, 2000": {"batch_size": 2001},
    "labels must be in": {"num_classes": 1, "positive_class": 0},
    "group must be in": {"num_groups": 1},
    "positive_class must be in": {"positive_class": 2},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments_are_told_in_one_line(message):
    with pytest.raises(ValueError, match=message) as error:
        make(**BAD[message])
    assert "\n" not in str(error.value)


def test_lengths_must_agree_and_ids_be_integers():
    with pytest.raises(ValueError, match="differ in length"):
        make(np.zeros(10, int), np.zeros(9, int), batch_size=2)
    with pytest.raises(ValueError, match="must be integers"):
        make(np.zeros(10), np.zeros(10, int), batch_size=2)
    with pytest.raises(ValueError, match="non-empty"):
        make(np.zeros(0, int), np.zeros(0, int), batch_size=2)


def test_state_fields_are_what_the_docstring_says():
    state = make().init()
    assert isinstance(state, FairBatchState)
    assert [leaf.dtype for leaf in state.rows] == [jnp.int32] * 2
    assert state.measured is None and state.clean is None
    assert [leaf.dtype for leaf in state[3:]] == [jnp.float32] * 4 + [jnp.int32] * 3
    assert state.rows.numbers.shape == (2000,) and state.shares.shape == (2, 2)


def test_plain_batches_may_be_smaller_than_the_number_of_cells():
    labels = np.arange(60) % 6
    sampler = make(labels, np.arange(60) // 30, num_classes=6, batch_size=5, criterion="none")
    indices, weights = sampler.sample_epoch(jax.random.key(0), sampler.init())
    np.testing.assert_array_equal(np.sort(indices.ravel()), np.arange(60))
    assert (weights == 1).all()


def test_plain_iid_batches_follow_the_example_weights_over_all_cells():
    labels, group = two_by_two(np.array([[2, 2], [2, 2]]))
    sampler = make(labels, group, batch_size=8, criterion="none", draw="iid")
    wanted = jnp.arange(1.0, 9.0)
    indices, _ = sampler.sample_epoch(
        jax.random.key(0), sampler.init(), example_weights=wanted, num_batches=3000
    )
    share = np.bincount(np.ravel(indices), minlength=8) / 24_000
    np.testing.assert_allclose(share, wanted / 36, atol=0.01)


LOGITS = jax.ShapeDtypeStruct((6, 2), jnp.float32)
IDS = jax.ShapeDtypeStruct((6,), jnp.int32)
BAD_OUTPUTS = {
    r"must be \[N, 2\], got shape \(6, 1\); a sigmoid's logit z makes two": {"logits": (6, 1)},
    r"must be \[N, 2\], got shape \(6,\); a sigmoid's logit z": {"logits": (6,)},
    r"must be \[N, 2\], got shape \(6, 3\)": {"logits": (6, 3)},
    r"labels must be \[N\] = \(6,\), got shape \(5,\)": {"labels": (5,)},
    r"group must be \[N\] = \(6,\), got shape \(6, 1\)": {"group": (6, 1)},
    r"weights must be \[N\] = \(6,\), got shape \(1,\)": {"weights": (1,)},
    "labels must be integers, got float32": {"labels": jnp.float32},
    "group must be integers, got bool": {"group": jnp.bool},
}


@pytest.mark.parametrize("message", BAD_OUTPUTS)
def test_outputs_of_another_shape_or_kind_are_refused_while_tracing(message):
    sampler = make()
    arrays = {"logits": LOGITS, "labels": IDS, "group": IDS}
    for name, what in BAD_OUTPUTS[message].items():
        shape, dtype = (what, None) if isinstance(what, tuple) else (IDS.shape, what)
        usual = arrays.get(name, jax.ShapeDtypeStruct((6,), jnp.float32)).dtype
        arrays[name] = jax.ShapeDtypeStruct(shape, dtype or usual)
    logits = arrays.pop("logits")
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(sampler.measure, logits, sampler.init(), **arrays)


def test_labels_and_group_cannot_be_swapped_by_position_when_measured():
    sampler, ids = make(), jnp.zeros(6, jnp.int32)
    with pytest.raises(TypeError, match="positional"):
        sampler.measure(jnp.zeros((6, 2)), sampler.init(), ids, ids)


def test_small_integer_ids_are_measured_in_their_own_cells():
    labels, group = np.arange(200), np.arange(200) % 2
    sampler = make(labels, group, num_classes=200, batch_size=200)
    state, logits = sampler.init(), jnp.zeros((200, 200))
    small = {"labels": labels.astype(np.uint8), "group": group.astype(np.uint8)}
    sums = sampler.measure(logits, state, **small)
    np.testing.assert_array_equal(sums.count, state.rows.counts)
