"""Networks as `Model(init, apply, ...)`; the only package that imports flax."""

from fairjax.models.channels import Channels as Channels
from fairjax.models.channels import Slot as Slot
from fairjax.models.compiling import compiler_options as compiler_options
from fairjax.models.efficientnet import EfficientNetConfig as EfficientNetConfig
from fairjax.models.export import load_inference as load_inference
from fairjax.models.export import save_inference as save_inference
from fairjax.models.factory import find_weights as find_weights
from fairjax.models.factory import fresh_head as fresh_head
from fairjax.models.factory import image_model as image_model
from fairjax.models.factory import kernel_gate as kernel_gate
from fairjax.models.factory import load_pretrained as load_pretrained
from fairjax.models.factory import reconfigure as reconfigure
from fairjax.models.layers import gate_kernels as gate_kernels
from fairjax.models.mlp import logistic_regression as logistic_regression
from fairjax.models.mlp import mlp as mlp
from fairjax.models.model import Model as Model
from fairjax.models.own import OwnConfig as OwnConfig
from fairjax.models.preprocess import image_preprocess as image_preprocess
from fairjax.models.resnet import ResNetConfig as ResNetConfig
from fairjax.models.vgg import VGGConfig as VGGConfig
from fairjax.models.vit import ViTConfig as ViTConfig
from fairjax.models.weights import Weights as Weights
from fairjax.models.weights import load_weights as load_weights
from fairjax.models.weights import save_weights as save_weights
from fairjax.models.wrap import wrap_linen as wrap_linen
from fairjax.models.wrap import wrap_nnx as wrap_nnx
