"""The installed wheel, away from the repository: every room, its data files, and FairBatch."""

import importlib
import pkgutil
from pathlib import Path

import jax
import jax.numpy as jnp

import fairjax

if "site-packages" not in Path(fairjax.__file__).parts:
    raise SystemExit(f"this is not the installed fairjax: {fairjax.__file__}")
for module in pkgutil.walk_packages(fairjax.__path__, "fairjax."):
    importlib.import_module(module.name)

train = fairjax.data.load_adult("sex").examples("train")
sampler = fairjax.fairbatch(
    labels=train.labels, group=train.group, num_classes=2, num_groups=2, batch_size=100
)
indices, weights = sampler.sample_epoch(jax.random.key(0), sampler.init())
if indices.shape != weights.shape or indices.shape[1] != 100:
    raise SystemExit(f"an epoch of odd shape: {indices.shape}")
for name in ("vit_micro", "vgg_micro"):
    model, (params, batch_stats, _) = fairjax.load_pretrained(name, 2, jax.random.key(0))
    logits = model.apply(params, batch_stats, jnp.zeros((1, 64, 64, 3)))[0]
    if logits.shape != (1, 2):
        raise SystemExit(f"{name} gave logits of shape {logits.shape}")
print(f"fairjax {fairjax.__version__} from the wheel: rooms, data, FairBatch and networks work")
