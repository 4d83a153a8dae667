"""Networks as `Model(init, apply)`; the only package that imports flax."""

from fairjax.models.mlp import logistic_regression, mlp
from fairjax.models.model import Model

__all__ = ["Model", "logistic_regression", "mlp"]
