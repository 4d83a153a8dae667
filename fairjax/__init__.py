"""Fair classifiers, fast: published fairness methods as pure JAX functions on one engine.

Import the room you need: `fairjax.fairbatch`, `fairjax.metrics`, `fairjax.data`, `fairjax.models`,
`fairjax.losses`, `fairjax.train`, `fairjax.sharding`, `fairjax.report`.
"""

__version__ = "0.1.0"
