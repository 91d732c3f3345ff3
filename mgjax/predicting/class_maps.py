"""What a network saw: the features it classifies, and where they came from.

Every head averages features over all positions and applies a linear
classifier, so that each position's share of a logit is known exactly: the
class activation map. For such networks Grad-CAM gives the same map, but for a
constant factor.

Source: Zhou et al. 2016 (arXiv:1512.04150), section 2; Selvaraju et al. 2017
  (arXiv:1610.02391), section 3.1.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from mgjax import models
from mgjax.step import train_step


class Features(NamedTuple):
  """Of each clip of a batch.

  Attributes:
    pooled: float32 [B, D], the input of the classifier; those of all pathways
      in one row.
    heat: float32 [B, t, h, w], how much each position adds to the logit of a
      class: its mean is the logit without the bias.
  """

  pooled: Float[Array, 'B D']
  heat: Float[Array, 'B t h w']


def make_feature_step(
  model: nn.Module, *, mean: Sequence[float], std: Sequence[float]
) -> Callable[..., Features]:
  """Returns feature_step(params, batch_stats, video, label) -> Features.

  Its arguments, after the variables:
    video: uint8 [B, T, H, W, 3].
    label: int32 [B], the class whose logit is explained.
  """

  def feature_step(
    params,
    batch_stats,
    video: UInt8[Array, 'B T H W 3'],
    label: Int[Array, ' B'],
  ) -> Features:
    pathways = []

    def keep_input(call, args, kwargs, context):
      if context.module.path == (models.HEAD,):
        (x,) = args
        pathways.extend(x if isinstance(x, (list, tuple)) else [x])
      return call(*args, **kwargs)

    with nn.intercept_methods(keep_input):
      model.apply(
        {'params': params, 'batch_stats': batch_stats},
        train_step.normalize(video, mean, std, model.dtype),
        same_group=None,
      )
    kernel = params[models.HEAD]['classifier']['kernel']
    return explain(
      [x.astype(jnp.float32) for x in pathways], kernel[:, label].T
    )

  return feature_step


def explain(
  pathways: Sequence[Float[Array, 'B _ _ _ _']], weights: Float[Array, 'B D']
) -> Features:
  """Pools features and says what each position adds to a logit.

  Args:
    pathways: Features [B, t, h, w, C] of each pathway; they can differ in
      their frames, of which the most are a multiple of the others, and the
      heat of fewer frames is repeated.
    weights: The classifier's, of the class to explain.
  """
  frames = max(x.shape[1] for x in pathways)
  height, width = pathways[0].shape[2:4]
  heat = 0
  first = 0
  for x in pathways:
    channels = x.shape[-1]
    part = jnp.einsum('bthwc,bc->bthw', x, weights[:, first : first + channels])
    heat += jax.image.resize(
      part, (part.shape[0], frames, height, width), 'nearest'
    )
    first += channels
  pooled = jnp.concatenate([x.mean((1, 2, 3)) for x in pathways], axis=-1)
  return Features(pooled, heat)
