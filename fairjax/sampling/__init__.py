"""Which rows every batch holds: samplers as pure functions that live inside the jitted epoch.

    sampler = shuffled(labels=labels, group=group, num_classes=2, num_groups=2, batch_size=100)
    state = sampler.init()
    indices, weights = sampler.sample_epoch(key, state)   # [T, B] rows; weight 0 is padding

All samplers are `BatchSampler`s and take the same arguments, so that one replaces another in
`fairjax.train`. Which rows a run may draw is part of its state, so that the runs of one population
may have splits of their own.
"""

from fairjax.sampling.dealing import Decks as Decks
from fairjax.sampling.dealing import Slots as Slots
from fairjax.sampling.dealing import deal as deal
from fairjax.sampling.dealing import exact_slots as exact_slots
from fairjax.sampling.dealing import largest_remainder as largest_remainder
from fairjax.sampling.dealing import one_deck as one_deck
from fairjax.sampling.dealing import select as select
from fairjax.sampling.dealing import weighted_rows as weighted_rows
from fairjax.sampling.dro import GroupCVaRState as GroupCVaRState
from fairjax.sampling.dro import GroupDROState as GroupDROState
from fairjax.sampling.dro import group_cvar as group_cvar
from fairjax.sampling.dro import group_dro as group_dro
from fairjax.sampling.plain import class_balanced as class_balanced
from fairjax.sampling.plain import shuffled as shuffled
from fairjax.sampling.protocol import BatchSampler as BatchSampler
from fairjax.sampling.protocol import CellSums as CellSums
from fairjax.sampling.protocol import PlainState as PlainState
from fairjax.sampling.protocol import Rows as Rows
from fairjax.sampling.protocol import arrange_rows as arrange_rows
from fairjax.sampling.protocol import arrange_splits as arrange_splits
from fairjax.sampling.protocol import check_batch_size as check_batch_size
from fairjax.sampling.protocol import check_ids as check_ids
from fairjax.sampling.protocol import own_rows as own_rows
from fairjax.sampling.weighted import Balance as Balance
from fairjax.sampling.weighted import WeightedState as WeightedState
from fairjax.sampling.weighted import balance_weights as balance_weights
from fairjax.sampling.weighted import group_balanced as group_balanced
from fairjax.sampling.weighted import reweighted as reweighted
from fairjax.sampling.weighted import weighted as weighted
