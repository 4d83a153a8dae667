"""The PyTorch twin of FairBatch does what fairjax does."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import benchmark
from experiments.run import main
from fairjax.data import Examples
from fairjax.fairbatch import fairbatch, fairbatch_indices
from fairjax.models import logistic_regression
from fairjax.train import Batch, init_train, make_step, measure_cells

torch = pytest.importorskip("torch")
twin = pytest.importorskip("experiments.baselines.torch_fairbatch")

CRITERIA = ("equal_opportunity", "equalized_odds", "demographic_parity")
BATCH_SIZE = 20


@pytest.fixture(scope="module")
def rows() -> Examples:
    """200 rows with every (label, group) cell filled unevenly."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200).astype(np.int32)
    group = (rng.random(200) < np.where(labels == 1, 0.7, 0.3)).astype(np.int32)
    signal = (2 * labels - 1)[:, None] + rng.normal(0, 2, (200, 2))
    inputs = np.concatenate([signal, group[:, None]], axis=1).astype(np.float32)
    return Examples(inputs, labels, group)


def make_sampler(rows: Examples, **options):
    return fairbatch(
        labels=rows.labels,
        group=rows.group,
        num_classes=2,
        num_groups=2,
        batch_size=BATCH_SIZE,
        rounding="published",
        **options,
    )


@pytest.mark.parametrize("criterion", CRITERIA)
def test_shares_of_both_sides_follow_the_same_path_when_fed_the_same_cell_losses(rows, criterion):
    sampler = make_sampler(rows, criterion=criterion, step_size=0.05)
    state, update = sampler.init(), jax.jit(sampler.update)
    shares = twin.natural_shares(twin.cell_rows(rows.labels, rows.group))
    rng = np.random.default_rng(1)
    path = []
    for epoch in range(60):
        # Group 1 loses more at first and less later, so that shares reach 1 and come back.
        losses = rng.random((2, 2)).astype(np.float32)
        losses[:, 1] += 0.8 if epoch < 30 else -0.8
        state = update(jnp.asarray(losses), state)
        shares = twin.update_shares(losses.tolist(), shares, criterion, 0.05)
        np.testing.assert_allclose(
            [state.shares[1, 1], state.shares[0, 1]], shares, atol=1e-5, err_msg=f"{epoch}"
        )
        path.append(shares)
    moved = np.ptp(np.array(path), axis=0)
    assert moved[0] > 0.2
    assert (moved[1] > 0.1) == (criterion != "equal_opportunity")


@pytest.mark.parametrize("criterion", CRITERIA)
def test_cell_losses_of_both_sides_agree_for_the_same_model(rows, criterion):
    model = logistic_regression(3)
    state = init_train(model, optax.adam(5e-4), jax.random.key(0))
    sampler = make_sampler(rows, criterion=criterion)
    data = Examples(*map(jnp.asarray, rows))
    shares = sampler.init()
    ours = sampler.cell_losses(measure_cells(model, sampler, state, shares, data), shares)
    z = rows.inputs @ np.asarray(state.params["head"]["kernel"])[:, 0]
    theirs = twin.cell_losses(
        torch.sigmoid(torch.from_numpy(2 * z)),
        torch.from_numpy(rows.labels.astype(np.float32)),
        twin.cell_rows(rows.labels, rows.group),
        criterion,
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize("style", ["original", "vectorised", "by_hand"])
def test_parameters_agree_after_steps_on_the_same_batches_from_the_same_start(rows, style):
    learning_rate, num_steps = 0.01, 30
    model, optimizer = logistic_regression(3), optax.adam(learning_rate)
    state = init_train(model, optimizer, jax.random.key(2))
    kernel = np.array(state.params["head"]["kernel"])[:, 0]
    indices = np.random.default_rng(3).integers(0, 200, (num_steps, BATCH_SIZE))

    step = jax.jit(make_step(model, optimizer))
    for batch in indices:
        inputs, labels, group = (jnp.asarray(array[batch]) for array in rows)
        weights = jnp.ones(BATCH_SIZE)
        state, _ = step(state, Batch(inputs, labels, group, weights), jax.random.key(0))
    head = state.params["head"]
    ours = np.concatenate([np.asarray(head["kernel"])[:, 0], np.asarray(head["bias"])])

    inputs = torch.from_numpy(rows.inputs[indices])
    labels = torch.from_numpy(rows.labels[indices].astype(np.float32))
    if style == "original":
        linear = torch.nn.Linear(3, 1)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(kernel)[None])
            linear.bias.zero_()
        adam = torch.optim.Adam(linear.parameters(), lr=learning_rate)
        for batch, targets in zip(inputs, labels, strict=True):
            twin.train_step(linear, adam, batch, targets)
        theirs = np.concatenate([p.detach().numpy().ravel() for p in linear.parameters()])
    else:
        adam = twin.FlatAdam(torch.from_numpy(np.append(kernel, np.float32(0))), learning_rate)
        batches = twin.homogeneous(inputs.reshape(-1, 3)).reshape(num_steps, BATCH_SIZE, 4)
        twin.train_epoch(adam, batches, labels, by_hand=style == "by_hand")
        theirs = adam.params.numpy()
    assert np.abs(ours - np.append(kernel, 0)).max() > 0.05
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_all_styles_train_alike(rows):
    options = {"num_epochs": 20, "batch_size": BATCH_SIZE, "learning_rate": 0.01, "seed": 0}
    results = {
        style: twin.run(rows, rows, style=style, **options)
        for style in ("original", "vectorised", "by_hand")
    }
    np.testing.assert_allclose(
        results["vectorised"]["logits"], results["by_hand"]["logits"], atol=1e-4
    )
    preds = {style: result["logits"].argmax(-1) for style, result in results.items()}
    assert (preds["original"] == rows.labels).mean() > 0.65
    assert (preds["original"] == preds["vectorised"]).mean() > 0.95
    for result in results.values():
        assert result["lambdas"].shape == (20, 2)


def test_the_batches_of_both_dealers_hold_the_same_cells_and_cover_a_cell_before_repeating(rows):
    cells = twin.cell_rows(rows.labels, rows.group)
    losses = [[0.1, 0.9], [0.1, 0.9]]
    shape = (cells, BATCH_SIZE, 0.3, "equalized_odds")
    sampler = twin.CellSampler(twin.Dealer(*shape, np.random.default_rng(0)), lambda: losses)
    batches = list(sampler)
    epoch = twin.Dealer(*shape, np.random.default_rng(0)).at_once(losses).numpy()
    assert epoch.shape == (len(sampler), len(batches[0]))
    for label in (0, 1):
        for group in (0, 1):
            inside = (rows.labels == label) & (rows.group == group)
            counts = [inside[batch].sum() for batch in batches]
            assert counts == inside[epoch].sum(1).tolist()
            times = np.bincount(np.concatenate(batches), minlength=200)[inside]
            assert times.max() - times.min() <= 1
            np.testing.assert_array_equal(
                np.sort(times), np.sort(np.bincount(epoch.ravel(), minlength=200)[inside])
            )


def test_an_empty_cell_is_an_error_that_counts_the_cells():
    labels, group = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 0])
    with pytest.raises(ValueError, match=r"\[1, 1, 2, 0\]"):
        twin.cell_rows(labels, group)


def test_fairbatch_indices_are_the_batch_sampler_of_a_torch_data_loader(rows):
    sampler = make_sampler(rows, criterion="equalized_odds", step_size=0.2)
    batches = fairbatch_indices(sampler, seed=0)
    dataset = torch.utils.data.TensorDataset(*(torch.from_numpy(array) for array in rows))
    loader = torch.utils.data.DataLoader(dataset, batch_sampler=batches)

    def share_of_group_1():
        labels, group = (torch.cat(parts).numpy() for parts in list(zip(*loader, strict=True))[1:])
        return group[labels == 1].mean()

    natural = rows.group[rows.labels == 1].mean()
    assert len(loader) == 200 // BATCH_SIZE
    assert abs(share_of_group_1() - natural) < 0.05
    # Logits that are wrong for group 1 with label 1 alone move the batches towards it.
    wrong = (rows.labels == 1) & (rows.group == 1)
    z = np.where(wrong, -1.0, 2.0 * rows.labels - 1)
    batches.update(np.stack([-z, z], 1), labels=rows.labels, group=rows.group)
    assert abs(share_of_group_1() - (natural + 0.2)) < 0.05


def test_fairbatch_indices_serve_a_data_loader_whose_workers_are_spawned(rows):
    batches = fairbatch_indices(make_sampler(rows), seed=0)
    dataset = torch.utils.data.TensorDataset(torch.from_numpy(rows.labels), torch.arange(200))
    loader = torch.utils.data.DataLoader(
        dataset, batch_sampler=batches, num_workers=1, multiprocessing_context="spawn"
    )
    same = fairbatch_indices(make_sampler(rows), seed=0)
    loaded = [(labels.numpy(), numbers.tolist()) for labels, numbers in loader]
    assert [numbers for _, numbers in loaded] == list(same)
    for labels, numbers in loaded:
        np.testing.assert_array_equal(labels, rows.labels[numbers])


def run_benchmark(monkeypatch, *args: str) -> object:
    monkeypatch.setattr(sys, "argv", ["benchmark", *args])
    with pytest.raises(SystemExit) as exit_info:
        main(benchmark.prepare, benchmark.PRESETS, description="")
    return exit_info.value.code


def test_an_unknown_benchmark_is_one_line_and_status_2(monkeypatch, capsys):
    assert run_benchmark(monkeypatch, "nonsense") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "nonsense" in error and "fairbatch" in error


def test_a_style_for_another_benchmark_is_one_line_and_status_2(monkeypatch, capsys):
    assert run_benchmark(monkeypatch, "metrics", "--style", "original") == 2
    assert "fairbatch only" in capsys.readouterr().err


def test_an_unwritable_out_file_is_noticed_before_measuring(monkeypatch, capsys, tmp_path):
    out = tmp_path / "missing" / "claims.jsonl"
    assert run_benchmark(monkeypatch, "fairbatch", "--out", str(out)) == 2
    assert "claims.jsonl" in capsys.readouterr().err
