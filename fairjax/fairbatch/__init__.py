"""FairBatch: how much of each batch every (label, group) cell gets, adapted while training.

Roh, Lee, Whang, Suh: "FairBatch: Batch Selection for Model Fairness", ICLR 2021. Everything an
epoch needs is pure and statically shaped, so it lives inside the jitted training loop:

    sampler = fairbatch(labels=labels, group=group, num_classes=2, num_groups=2, batch_size=100,
                        criterion="equal_opportunity")
    state = sampler.init()
    for epoch in range(num_epochs):                      # or lax.scan
        sums = sampler.measure(logits, state, labels=labels, group=group)   # a full pass
        state, cell_losses = sampler.adapt(sums, state)
        indices, weights = sampler.sample_epoch(key, state)   # [T, B] rows; weight 0 is padding

The authors' later additions: two criteria at once and `data_ratio`, which thins the training rows
before (ICML 2023); `fairbatch(..., clean_share=)`, which leaves out what looks mislabelled
(NeurIPS 2021).
"""

from fairjax.fairbatch.clean import clean_examples as clean_examples
from fairjax.fairbatch.indices import FairBatchIndices as FairBatchIndices
from fairjax.fairbatch.indices import fairbatch_indices as fairbatch_indices
from fairjax.fairbatch.ratio import data_ratio as data_ratio
from fairjax.fairbatch.ratio import thin_rows as thin_rows
from fairjax.fairbatch.sampler import fairbatch as fairbatch
from fairjax.fairbatch.state import CRITERIA as CRITERIA
from fairjax.fairbatch.state import SIGNALS as SIGNALS
from fairjax.fairbatch.state import Clean as Clean
from fairjax.fairbatch.state import Criterion as Criterion
from fairjax.fairbatch.state import Draw as Draw
from fairjax.fairbatch.state import FairBatchState as FairBatchState
from fairjax.fairbatch.state import Rounding as Rounding
from fairjax.fairbatch.state import Signal as Signal
