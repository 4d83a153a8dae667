"""FairBatch in PyTorch, for timing and checking fairjax against; written from the paper.

Logistic regression with p(label 1) = sigmoid(2 z), Adam, binary cross-entropy; the sampling shares
are updated from a full pass before every epoch. Four styles do the same steps:

    original     how the authors work: a `Sampler` that deals Python index lists, a `DataLoader`
                 whose every item is a whole batch, one module, one optimiser, one step at a time
    vectorised   the same method made fast for any differentiable model: an epoch's indices and
                 batches at once, no loader, autograd on one flat parameter, the fused Adam kernel
    by_hand      as vectorised, with this one model's gradient derived by hand, without autograd

Source: Roh et al. 2021, Algorithm 1 and Section 4. Departures, all of which save the PyTorch side
time or leave it unchanged: full passes keep no autograd graph, a cell that runs out is dealt again
from its top, random numbers come from local generators.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset, Sampler

Criterion = Literal["equal_opportunity", "equalized_odds", "demographic_parity"]
Style = Literal["original", "vectorised", "by_hand"]

Cells = list[list[Any]]
"""One value per cell, as `cells[label][group]`."""


class Shares(NamedTuple):
    """What FairBatch moves."""

    lambda_1: float
    """share of group 1 in the batch's examples with label 1"""
    lambda_2: float
    """share of group 1 in the batch's examples with label 0"""


def run(
    train: tuple[np.ndarray, np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray, np.ndarray],
    *,
    criterion: Criterion = "equal_opportunity",
    num_epochs: int = 300,
    batch_size: int = 100,
    step_size: float = 0.005,
    learning_rate: float = 5e-4,
    seed: int = 0,
    style: Style = "vectorised",
) -> dict[str, Any]:
    """Train with FairBatch and predict the test split.

    Args:
      train: features float `[N, D]`, labels `[N]` and groups `[N]`, both 0 or 1.
      test: likewise.
      criterion: what the shares equalise.
      num_epochs: each of N // `batch_size` steps.
      batch_size: expected examples per batch; rounding moves it by one or two.
      step_size: of the shares.
      learning_rate: of Adam.
      seed: of the initial weights and of the batches.
      style: see the module.

    Returns:
      `{"logits": float32 [N_test, 2], "lambdas": float64 [num_epochs, 2], "seconds": float}`;
      seconds from arrays in memory to logits.

    Raises:
      ValueError: unknown style, or labels or groups other than 0 and 1 with no cell empty.
    """
    if style not in get_args(Style):
        raise ValueError(f"style must be one of {', '.join(get_args(Style))}; got {style!r}")
    rows = cell_rows(np.asarray(train[1]), np.asarray(train[2]))
    start = time.perf_counter()
    dealer = Dealer(rows, batch_size, step_size, criterion, np.random.default_rng(seed))
    features, labels = _tensors(train)
    weight = torch.normal(0.0, 0.2, (features.shape[1],), generator=_generator(seed))
    fit = _fit_original if style == "original" else _fit_vectorised
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # 100 rows are too few to share: every style is faster on one thread
    try:
        lambdas, predict = fit(
            features,
            labels,
            weight,
            dealer,
            num_epochs=num_epochs,
            learning_rate=learning_rate,
            by_hand=style == "by_hand",
        )
        with torch.no_grad():
            z = predict(_tensors(test)[0])
    finally:
        torch.set_num_threads(threads)
    logits = torch.stack([-z, z], dim=1).numpy()
    return {
        "logits": logits,
        "lambdas": np.array(lambdas),
        "seconds": time.perf_counter() - start,
    }


def cell_rows(labels: np.ndarray, group: np.ndarray) -> Cells:
    """Row numbers of every cell."""
    rows = [[np.flatnonzero((labels == y) & (group == z)) for z in (0, 1)] for y in (0, 1)]
    sizes = [len(cell) for pair in rows for cell in pair]
    if sum(sizes) != len(labels) or 0 in sizes:
        raise ValueError(
            "the PyTorch twin needs labels and groups 0 and 1 and examples in all four cells, "
            f"got {sizes} of {len(labels)} examples in them"
        )
    return rows


def natural_shares(rows: Cells) -> Shares:
    """The data's own shares, from which training starts."""
    natural = [len(pair[1]) / (len(pair[0]) + len(pair[1])) for pair in rows]
    return Shares(natural[1], natural[0])


def update_shares(losses: Cells, shares: Shares, criterion: Criterion, step_size: float) -> Shares:
    """The published step of one share by `step_size`, kept in [0, 1].

    `losses` are cell means; for demographic parity the loss of predicting 1, summed over the cell
    and divided by the size of the group.
    """
    gap_0, gap_1 = (pair[1] - pair[0] for pair in losses)
    step_1 = step_size if gap_1 > 0 else -step_size
    step_0 = step_size if gap_0 > 0 else -step_size
    if criterion == "demographic_parity":
        step_0 = -step_0
    if criterion == "equal_opportunity" or abs(gap_1) > abs(gap_0):
        return shares._replace(lambda_1=min(max(shares.lambda_1 + step_1, 0.0), 1.0))
    return shares._replace(lambda_2=min(max(shares.lambda_2 + step_0, 0.0), 1.0))


def cell_sizes(rows: Cells, shares: Shares, batch_size: int, criterion: Criterion) -> Cells:
    """Examples that each cell gives to a batch, every cell rounded half-to-even on its own."""
    num_rows = sum(len(cell) for pair in rows for cell in pair)
    expected = [[batch_size * len(cell) / num_rows for cell in pair] for pair in rows]
    sizes = [[round(size) for size in pair] for pair in expected]
    for label, share in ((1, shares.lambda_1), (0, shares.lambda_2)):
        if label == 1 or criterion != "equal_opportunity":
            total = sum(expected[label])
            sizes[label] = [round((1 - share) * total), round(share * total)]
    return sizes


def cell_losses(p: torch.Tensor, labels: torch.Tensor, rows: Cells, criterion: Criterion) -> Cells:
    """Mean losses of the cells, from probabilities of label 1 of all rows."""
    if criterion != "demographic_parity":
        losses = F.binary_cross_entropy(p, labels, reduction="none").numpy()
        return [[float(losses[cell].mean()) for cell in pair] for pair in rows]
    losses = F.binary_cross_entropy(p, torch.ones_like(p), reduction="none").numpy()
    in_group = [len(rows[0][z]) + len(rows[1][z]) for z in (0, 1)]
    return [[float(losses[pair[z]].sum()) / in_group[z] for z in (0, 1)] for pair in rows]


class Dealer:
    """Owns the shares and deals index batches, one epoch per call."""

    def __init__(
        self,
        rows: Cells,
        batch_size: int,
        step_size: float,
        criterion: Criterion,
        rng: np.random.Generator,
    ):
        self.rows, self.batch_size, self.step_size, self.rng = rows, batch_size, step_size, rng
        self.criterion: Criterion = criterion
        self.shares = natural_shares(rows)
        self.num_batches = sum(len(cell) for pair in rows for cell in pair) // batch_size

    def update(self, losses: Cells) -> Cells:
        """Step the shares; returns the new sizes of the cells."""
        self.shares = update_shares(losses, self.shares, self.criterion, self.step_size)
        return cell_sizes(self.rows, self.shares, self.batch_size, self.criterion)

    def one_by_one(self, losses: Cells) -> Iterator[np.ndarray]:
        """Batch by batch in Python, as the authors deal them."""
        sizes = self.update(losses)
        dealt = []
        for group in (0, 1):
            for label in (0, 1):
                cell, size = self.rng.permutation(self.rows[label][group]), sizes[label][group]
                batches, start = [], 0
                for _ in range(self.num_batches):
                    batch = cell[start : start + size]
                    while len(batch) < size:
                        batch = np.concatenate([batch, cell[: size - len(batch)]])
                    batches.append(batch)
                    start = (start + size) % len(cell)
                dealt.append(batches)
        for parts in zip(*dealt, strict=True):
            batch = np.concatenate(parts)
            self.rng.shuffle(batch)
            yield batch

    def at_once(self, losses: Cells) -> torch.Tensor:
        """The same batches as int64 `[T, B]`; order within a batch does not matter."""
        sizes = self.update(losses)
        cells = [
            np.resize(self.rng.permutation(cell), (self.num_batches, size))
            for pair, pair_sizes in zip(self.rows, sizes, strict=True)
            for cell, size in zip(pair, pair_sizes, strict=True)
        ]
        return torch.from_numpy(np.concatenate(cells, axis=1))


class CellSampler(Sampler):
    """For a `DataLoader`: measures the model, then yields an epoch's batches."""

    def __init__(self, dealer: Dealer, measure: Callable[[], Cells]):
        self.dealer, self.measure = dealer, measure

    def __len__(self) -> int:
        return self.dealer.num_batches

    def __iter__(self) -> Iterator[np.ndarray]:
        return self.dealer.one_by_one(self.measure())


class _Rows(Dataset):
    """Indexed by a whole batch of row numbers."""

    def __init__(self, features: torch.Tensor, labels: torch.Tensor):
        self.features, self.labels = features, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows):
        return self.features[rows], self.labels[rows]


def _fit_original(features, labels, weight, dealer: Dealer, *, num_epochs, learning_rate, **_):
    model = torch.nn.Linear(features.shape[1], 1)
    with torch.no_grad():
        model.weight.copy_(weight[None])
        model.bias.zero_()
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)

    @torch.no_grad()
    def measure() -> Cells:
        p = (torch.tanh(model(features)).squeeze(1) + 1) / 2
        return cell_losses(p, labels, dealer.rows, dealer.criterion)

    sampler = CellSampler(dealer, measure)
    loader = DataLoader(_Rows(features, labels), sampler=sampler, generator=_generator(0))
    lambdas = []
    for _ in range(num_epochs):
        for inputs, targets in loader:
            train_step(model, optimizer, inputs[0], targets[0])
        lambdas.append(dealer.shares)
    return lambdas, lambda inputs: model(inputs).squeeze(1)


def train_step(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: torch.Tensor,
    labels: torch.Tensor,
) -> None:
    """One step of the original style."""
    optimizer.zero_grad()
    p = (torch.tanh(model(inputs)).squeeze(1) + 1) / 2
    F.binary_cross_entropy(p, labels).backward()
    optimizer.step()


def _fit_vectorised(
    features, labels, weight, dealer: Dealer, *, num_epochs, learning_rate, by_hand
):
    features = homogeneous(features)
    adam = FlatAdam(torch.cat([weight, torch.zeros(1)]), learning_rate)
    lambdas = []
    for _ in range(num_epochs):
        with torch.no_grad():
            p = torch.sigmoid(features.mv(adam.params))
            losses = cell_losses(p, labels, dealer.rows, dealer.criterion)
        indices = dealer.at_once(losses)
        train_epoch(adam, features[indices], labels[indices], by_hand=by_hand)
        lambdas.append(dealer.shares)
    return lambdas, lambda inputs: homogeneous(inputs).mv(adam.params) / 2


def homogeneous(features: torch.Tensor) -> torch.Tensor:
    """2 (x, 1): its product with (w, b) is the logit 2 z of p."""
    return 2 * torch.cat([features, torch.ones(len(features), 1)], dim=1)


class FlatAdam:
    """Adam on one flat vector by PyTorch's fused kernel, without an optimiser object's overhead."""

    def __init__(self, params: torch.Tensor, learning_rate: float):
        self.params = params
        self.learning_rate = learning_rate
        self.mean, self.square = torch.zeros_like(params), torch.zeros_like(params)
        self.step = torch.zeros(())

    def update(self, grad: torch.Tensor) -> None:
        """Change `params` in place."""
        self.step += 1
        torch._fused_adam_(  # pyright: ignore[reportPrivateImportUsage]
            [self.params],
            [grad],
            [self.mean],
            [self.square],
            [],
            [self.step],
            lr=self.learning_rate,
            beta1=0.9,
            beta2=0.999,
            weight_decay=0.0,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )


def train_epoch(
    adam: FlatAdam, inputs: torch.Tensor, labels: torch.Tensor, *, by_hand: bool
) -> None:
    """Steps on batches `[T, B, D + 1]` (see `homogeneous`) with labels `[T, B]`."""
    batches = zip(inputs.unbind(), labels.unbind(), strict=True)
    if by_hand:
        with torch.inference_mode():
            for x, y in batches:
                error = torch.sigmoid_(x.mv(adam.params)).sub_(y)
                adam.update(x.t().mv(error).div_(len(y)))
        return
    params = adam.params.detach().requires_grad_()  # shares memory with what Adam changes
    for x, y in batches:
        loss = F.binary_cross_entropy_with_logits(x.mv(params), y)
        adam.update(torch.autograd.grad(loss, params)[0])


def _tensors(split) -> tuple[torch.Tensor, torch.Tensor]:
    # torch warns of arrays that cannot be written, as views of a Dataset
    features, labels, _ = (np.require(array, np.float32, "W") for array in split)
    return torch.from_numpy(features), torch.from_numpy(labels)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
