# pyright: reportCallIssue=false, reportArgumentType=false
"""FairBatch for loaders of other libraries: index batches that repeat by seed and adapt."""

import numpy as np
import pytest

from fairjax.fairbatch import fairbatch, fairbatch_indices
from fairjax.sampling import shuffled

RNG = np.random.default_rng(0)
LABELS, GROUP = RNG.integers(0, 2, 2000), RNG.integers(0, 2, 2000)
IDS = {"labels": LABELS, "group": GROUP}


def make(factory=fairbatch):
    return factory(**IDS, num_classes=2, num_groups=2, batch_size=100)


def test_index_batches_serve_any_loader_and_repeat_by_seed():
    batches, again = (fairbatch_indices(make(), seed=5) for _ in range(2))
    first, second = list(batches), list(batches)
    assert len(first) == len(batches) == 20
    assert first == list(again) and first != second
    logits = np.stack([np.zeros(2000), np.where(GROUP == 1, 1.0, -1.0)], 1)
    before = np.asarray(batches.state.shares)
    batches.update(logits, **IDS)
    moved = np.asarray(batches.state.shares) - before
    np.testing.assert_allclose(moved[1], [0.005, -0.005], atol=1e-6)  # group 0 loses more


@pytest.mark.filterwarnings("ignore:.*os.fork.*")
def test_index_batches_drive_a_grain_loader():
    grain = pytest.importorskip("grain.python")
    batches = fairbatch_indices(make(), seed=0)
    rows = list(batches)
    loaded = grain.MapDataset.source(rows).map(lambda row: LABELS[np.asarray(row)])
    assert sum(len(batch) for batch in loaded) == 2000


def test_index_batches_of_a_sampler_that_does_not_adapt_cannot_be_updated():
    batches = fairbatch_indices(make(shuffled))
    assert sorted(row for batch in batches for row in batch) == list(range(2000))
    with pytest.raises(ValueError, match="does not adapt"):
        batches.update(np.zeros((2000, 2)), **IDS)


def test_index_batches_refuse_ids_that_the_sampler_does_not_know():
    batches = fairbatch_indices(make())
    ids = np.zeros(4, int)
    with pytest.raises(ValueError, match=r"labels must be in \[0, 2\), got 0 to 2"):
        batches.update(np.zeros((4, 2)), labels=np.array([0, 1, 2, 0]), group=ids)
    with pytest.raises(ValueError, match="group must be integers"):
        batches.update(np.zeros((4, 2)), labels=ids, group=np.zeros(4))


def test_labels_and_group_cannot_be_swapped_by_position_in_an_update():
    with pytest.raises(TypeError, match="positional"):
        fairbatch_indices(make()).update(np.zeros((2000, 2)), LABELS, GROUP)
