"""What XLA:CPU fuses: the flag that some versions of jaxlib need, and functions compiled apart."""

from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.xla_metadata import set_xla_metadata

FLAG = "xla_cpu_experimental_ynn_fusion_type"
"""Which operations XLA hands to the library YNNPACK."""

# First jaxlib whose CPU compiler gives sums to YNNPACK by default, and the first one built after
# the mends: 0.10.2 computes wrong sums (jax#39103), 0.10.2 and 0.11.0 crash or hang at rank 7 and
# more (jax#39257). An unknown flag aborts the process: widen this only for versions that know it.
_FIRST, _MENDED = (0, 10, 2), (0, 11, 1)


def affected(jaxlib: str) -> bool:
    """Whether a version of jaxlib is one of those, which know the flag.

    >>> affected("0.10.2"), affected("0.11.1"), affected("0.10.2.dev20260101")
    (True, False, True)
    """
    release = tuple(int(part) for part in jaxlib.split(".")[:3] if part.isdecimal())
    return _FIRST <= release < _MENDED


def compiled_apart(fn: Callable[..., Any], **attributes: str) -> Callable[..., Any]:
    """`fn(*arrays)` with nothing before or after it in its kernels; elsewhere than on CPU `fn`.

    The attributes, of XLA itself, go to all that `fn` calls: functions that JAX jits, such as
    `jnp.where`, are then compiled apart too.
    """

    def marked(*args):
        with set_xla_metadata(inlineable="false", **attributes):
            return jax.jit(fn)(*args)

    return lambda *args: jax.lax.platform_dependent(*args, cpu=marked, default=fn)
