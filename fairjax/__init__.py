"""Fair classifiers, fast: published fairness methods as pure JAX functions on one engine.

What most programs need is here; everything else is in its room: `fairjax.metrics`, `fairjax.data`,
`fairjax.models`, `fairjax.losses`, `fairjax.train`, `fairjax.fairtune`, `fairjax.pruning`, ...
`fairjax.fairbatch` is the function; its module is reached by `from fairjax.fairbatch import ...`.

Import fairjax before JAX computes anything: affected CPU compilers are then told not to hand sums
to a library that gets them wrong.
"""

import os
import sys
import warnings
from importlib.metadata import version

from fairjax import fusions

__version__ = "0.1.0"


def _guard_sums(jaxlib: str) -> None:
    """Switch the faulty fusion of sums off, or warn where it is too late to."""
    flags = os.environ.get("XLA_FLAGS", "")
    if not fusions.affected(jaxlib) or fusions.FLAG in flags:
        return  # sums are right, or the user has decided
    bridge = sys.modules.get("jax._src.xla_bridge")  # JAX's public functions start the backend
    started = getattr(bridge, "backends_are_initialized", lambda: False)()
    if not started:
        os.environ["XLA_FLAGS"] = f"{flags} --{fusions.FLAG}=-reduce".strip()
    elif sys.modules["jax"].default_backend() == "cpu":
        warnings.warn(
            f"jaxlib {jaxlib} may compute wrong sums on CPU and JAX has started already: "
            f"import fairjax before using JAX, or set XLA_FLAGS=--{fusions.FLAG}=-reduce",
            RuntimeWarning,
            stacklevel=3,
        )


_guard_sums(version("jaxlib"))

# The guard comes before every import that could start JAX.
from fairjax.audit import audit as audit
from fairjax.data import load_csv as load_csv
from fairjax.data import load_image_table as load_image_table
from fairjax.fairbatch import fairbatch as fairbatch
from fairjax.metrics import fairness_metrics as fairness_metrics
from fairjax.models import load_pretrained as load_pretrained
from fairjax.table_model import load_model as load_model
