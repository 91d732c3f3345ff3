"""Temporal modules of 2-D networks: aggregation (TAM) and shift (TSM).

Both weigh each channel over neighbouring frames, so the one is the other with
fixed weights: `TemporalAggregation` learns its weights, `TemporalShift` has
ones and zeros. (Dense aggregation, which mixes channels, is an option.)
"""

import operator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mgjax.models import conv


def aggregation_init(
  key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32
) -> Float[Array, '*shape']:
  """N(0, sqrt(2 / C)): the reference's He initialisation.

  C is the last axis. PyTorch counts all channels as the fan-out of a depthwise
  convolution, so it is the same for a dense one.

  Source: IBM/bLVNet-TAM feadcd3, core/models/blvnet_tam_backbone.py.
  """
  return jax.random.normal(key, shape, dtype) * (2 / shape[-1]) ** 0.5


# How the weighted frames of an aggregation become one.
BLENDS = {'sum': operator.add, 'max': jnp.maximum}


class TemporalAggregation(nn.Module):
  """ReLU of a learned sum over r frames; the parameter is 'kernel'.

  kernel[i] weighs frame t + i - r // 2; frames outside the clip are zeros.

  Attributes:
    num_frames: r, odd.
    blend: 'sum', or 'max' for the largest of the weighted frames.
    depthwise: Whether every channel is weighed by itself (kernel [r, C]) or
      all are mixed (kernel [r, C, C]).
    dtype: Compute type; the parameter is created in float32.

  Source: Fan et al. 2019 (arXiv:1912.00869), section 3.2; IBM/bLVNet-TAM
    feadcd3, core/models/blvnet_tam_backbone.py, TAM. Maximum and dense kernels:
    IBM/action-recognition-pytorch 67cc96f, models/twod_models/
    temporal_modeling.py (blending_method, dw_conv).
  """

  num_frames: int
  blend: str = 'sum'
  depthwise: bool = True
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'B T H W C']) -> Float[Array, 'B T H W C']:
    if self.num_frames < 1 or self.num_frames % 2 == 0:
      raise ValueError(
        f'tam_frames is {self.num_frames}; use an odd number of frames.'
      )
    channels = x.shape[-1]
    shape = (channels,) if self.depthwise else (channels, channels)
    kernel = self.param('kernel', aggregation_init, (self.num_frames, *shape))
    aggregate = (
      conv.depthwise_temporal if self.depthwise else conv.dense_temporal
    )
    kernel = kernel.astype(self.dtype)
    return conv.relu(aggregate(x, kernel, blend=BLENDS[self.blend]))


def shift_weights(num_channels: int, shift_div: int) -> np.ndarray:
  """Weights of frames t - 1, t, t + 1 that make a temporal shift.

  The first C // shift_div channels come from the next frame, as many more from
  the frame before, the others stay.

  Returns:
    float32 [3, C] of zeros and ones.

  Source: mit-han-lab/temporal-shift-module, ops/temporal_shift.py.
  """
  fold = num_channels // shift_div
  weights = np.zeros((3, num_channels), np.float32)
  weights[2, :fold] = 1
  weights[0, fold : 2 * fold] = 1
  weights[1, 2 * fold :] = 1
  return weights


class TemporalShift(nn.Module):
  """Moves some channels a frame back, some a frame on; no parameters.

  Attributes:
    shift_div: 1 / shift_div of the channels move in each direction.

  Source: Lin et al. 2019 (arXiv:1811.08383), section 3.
  """

  shift_div: int = 8

  @nn.compact
  def __call__(self, x: Float[Array, 'B T H W C']) -> Float[Array, 'B T H W C']:
    weights = shift_weights(x.shape[-1], self.shift_div)
    return conv.depthwise_temporal(x, jnp.asarray(weights, x.dtype))
