"""What FairBatch may be asked for, and what it carries while training."""

from typing import Literal, NamedTuple, get_args

import jax

from fairjax.sampling import Rows

Criterion = Literal[
    "none",
    "equal_opportunity",
    "equalized_odds",
    "demographic_parity",
    "demographic_parity_and_equalized_odds",
]
Signal = Literal["loss", "rate"]
Draw = Literal["exact", "iid"]
Rounding = Literal["largest_remainder", "published"]

CRITERIA: tuple[str, ...] = get_args(Criterion)
SIGNALS: tuple[str, ...] = get_args(Signal)
NONE, OPPORTUNITY, ODDS, PARITY, BOTH = range(5)
RATE = SIGNALS.index("rate")


class Clean(NamedTuple):
    """Which examples look rightly labelled; see `clean_examples`."""

    share: jax.Array
    """float32 scalar: of the run's rows, the paper's tau."""
    weights: jax.Array
    """float32 `[N]`: 1 where an example may be drawn and is measured, else 0."""
    counts: jax.Array
    """float32 `[K, G]`: how many of every cell."""


class FairBatchState(NamedTuple):
    """What FairBatch carries from update to update; every field may get a population axis."""

    rows: Rows
    """What may be drawn."""
    measured: jax.Array | None
    """bool `[N]`: which examples a full pass measures; None is all that it is given. A run with
    rows of its own measures those unless `init(measured=...)` says otherwise."""
    clean: Clean | None
    """None draws and measures whatever the labels look like."""
    shares: jax.Array
    """float32 `[K, G]`: share of label k's examples drawn from group g; each row sums to 1.
    With two groups `shares[1, 1]` is the paper's lambda_1 and `shares[0, 1]` its lambda_2."""
    step_size: jax.Array
    """float32 scalar: the share moved by the first update, the paper's alpha."""
    decay: jax.Array
    """float32 scalar: update t (from 0) moves `step_size / (1 + t) ** decay`; 0 is published."""
    odds_weight: jax.Array
    """float32 scalar: of two criteria at once, what a gap of equalized odds counts against one of
    demographic parity, the authors' knob."""
    num_updates: jax.Array
    """int32 scalar."""
    criterion: jax.Array
    """int32 scalar, index into `CRITERIA`: an array, so that one program runs several criteria."""
    signal: jax.Array
    """int32 scalar, index into `SIGNALS`."""
