"""Fair classifiers, fast: FairBatch, FairTune and sensitive-channel pruning in JAX."""
