"""How a network's programs are compiled, where XLA's defaults are slow for it."""

import importlib.metadata

import jax

from fairjax.fusions import FLAG, affected
from fairjax.models.model import Model
from fairjax.trees import flatten_named


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
    # other versions refuse a program that names the option
    if not affected(importlib.metadata.version("jaxlib")) or jax.default_backend() != "cpu":
        return None
    params = jax.eval_shape(model.init, jax.random.key(0))[0]
    leaves = flatten_named(params)
    kernels = [name for name, leaf in leaves.items() if name.endswith("kernel") and leaf.ndim == 4]
    return {FLAG: "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"} if len(kernels) > 1 else None
