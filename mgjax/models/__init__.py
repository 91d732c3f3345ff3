"""Video models. All take any number of frames and any crop, in one tree.

model = models.build('slowfast', num_classes=400, dropout=0.5, dtype='float32')
variables = model.init(rng, video)                          # evaluation
logits = model.apply(variables, video)
logits = model.apply(variables, video, window=(32, 224, 224))  # [B, t, h, w, K]
logits, new = model.apply(                                  # training
  variables, video, same_group=group_matrix(batch, groups),
  rngs={'dropout': rng}, mutable=['batch_stats'])
_, new = model.apply(                                       # precise stats
  variables, video, same_group=group_matrix(batch, 1), deterministic=True,
  mutable=['batch_moments'])
"""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mgjax.config import network_options, own
from mgjax.models import own_network
from mgjax.models.blvnet import BLVNet
from mgjax.models.head import HEAD, VideoNetwork
from mgjax.models.ibm_resnet3d import I3DResNet, S3DResNet
from mgjax.models.mvit import MViT
from mgjax.models.norm import group_matrix
from mgjax.models.resnet2d import TAM, TSM, TSN
from mgjax.models.resnet3d import ResNet3D
from mgjax.models.slowfast import SlowFast
from mgjax.models.statistics import combine as combine_statistics
from mgjax.models.timesformer import TimeSformer
from mgjax.models.videoprism import VideoPrism
from mgjax.models.vit import ViT

__all__ = [
  'HEAD',
  'MODELS',
  'build',
  'combine_statistics',
  'example_video',
  'group_matrix',
]

MODELS = {
  'slowfast': SlowFast,
  'slow': functools.partial(ResNet3D, arch='slow'),
  'c2d': functools.partial(ResNet3D, arch='c2d'),
  'i3d': functools.partial(ResNet3D, arch='i3d'),
  'tsn': TSN,
  'tsm': TSM,
  'tam': TAM,
  'blresnet': functools.partial(BLVNet, pairs=False, tam_frames=0),
  'blvnet_tam': functools.partial(BLVNet, pairs=True),
  'i3d_resnet': I3DResNet,
  's3d_resnet': S3DResNet,
  'vit': ViT,
  'videoprism': VideoPrism,
  'mvit': MViT,
  'timesformer': TimeSformer,
}


def build(
  name: str, *, num_classes: int, dtype: Any = 'float32', **options: Any
) -> nn.Module:
  """Makes a model.

  Args:
    name: One of `MODELS`, or 'package.module:Name', a class of your own.
    num_classes: K, the number of logits.
    dtype: Compute type, such as 'float32' or 'bfloat16'. Parameters,
      statistics and logits are float32.
    **options: What else the class has: config/network_options.py lists it.

  Raises:
    ValueError: If the name, an option or its value is unknown.
  """
  fields = network_options.fields(name)
  known = {*fields.section, *fields.options, *network_options.GIVEN}
  unknown = set(options) - known
  if unknown:
    raise ValueError(
      f'Model {name!r} has no option {", ".join(sorted(unknown))}; accepted '
      f'are {", ".join(sorted({*fields.section, *fields.options}))}.'
    )
  options |= {'num_classes': num_classes, 'dtype': jnp.dtype(dtype)}
  if own.is_own(name):
    return own_network.build(name, options)
  return MODELS[name](**options)


def example_video(
  model: VideoNetwork, num_frames: int
) -> Float[Array, '1 T H W 3']:
  """A clip that is enough to initialise a model: parameters ignore its shape.

  Args:
    model: The network.
    num_frames: Of the training clips: enough for the ratio of the frame rates
      of SlowFast's pathways.
  """
  return jnp.zeros((1, *model.example_clip(num_frames), 3))
