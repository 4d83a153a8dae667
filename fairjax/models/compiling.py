"""How a network's programs are compiled, where XLA's defaults are slow for it."""

import importlib.metadata

import jax

from fairjax.models.model import Model
from fairjax.trees import flatten_named

# jaxlib versions that are known to have the option; others refuse a program that names it.
_KNOWN = ((0, 10, 2), (0, 11, 1))
_FUSIONS = "xla_cpu_experimental_ynn_fusion_type"


def compiler_options(model: Model) -> dict[str, str] | None:
    """Options for `jax.jit(..., compiler_options=)` of programs that train or apply a network.

    On CPU XLA hands groups of elementwise operations to YNNPACK, which costs networks of
    convolutions a fifth to a third of a training step and others nothing: of such networks only
    single products go there. The sums that `fairjax` guards against stay with XLA.

    Args:
      model: any network; of convolutions are those with several kernels of rank 4.

    Returns:
      The options, or None where defaults are best, or not known to be worse: no CPU, another
      jaxlib than 0.10.2 to 0.11.0.

    >>> from fairjax.models import image_model
    >>> compiler_options(image_model("vit_micro", 2)) is None
    True
    """
    release = importlib.metadata.version("jaxlib").split(".")[:3]
    known = _KNOWN[0] <= tuple(int(part) for part in release if part.isdecimal()) < _KNOWN[1]
    if not known or jax.default_backend() != "cpu":
        return None
    params = jax.eval_shape(model.init, jax.random.key(0))[0]
    leaves = flatten_named(params)
    kernels = [name for name, leaf in leaves.items() if name.endswith("kernel") and leaf.ndim == 4]
    return {_FUSIONS: "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"} if len(kernels) > 1 else None
