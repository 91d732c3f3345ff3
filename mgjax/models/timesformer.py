"""TimeSformer: attention over time, then over space, in every block.

A token attends to those of its place in all frames, then to those of its frame.
A class token takes part in the second, in each frame by itself.
"""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mgjax.config import transformer_options
from mgjax.models import conv, head, resnet3d
from mgjax.models.attention import (
  MLP,
  MLP_RATIO,
  SelfAttention,
  TubeletEmbedding,
  init_weights,
  layer_norm,
)
from mgjax.models.dropout import Dropout
from mgjax.models.head import ClipIndex
from mgjax.models.positions import Sizes
from mgjax.models.video_transformer import VideoTransformer


def nearest(size: int, new_size: int) -> np.ndarray:
  """Which element of an axis each element of the resized axis is.

  That is torch.nn.functional.interpolate with mode 'nearest', in float32: the
  start of an element decides. (jax.image.resize takes its centre.)
  """
  scale = np.float32(size / new_size)
  place = np.arange(new_size, dtype=np.float32) * scale
  return np.minimum(place.astype(int), size - 1)


def at_nearest(
  of_places: Float[Array, 'base_tokens D'],
  of_frames: Float[Array, 'base_frames D'],
  base: Sizes,
  size: Sizes,
) -> tuple[Float[Array, ' D'], Float[Array, 'hw D'], Float[Array, 'T 1 D']]:
  """Positions of a grid: of the class token, of places and of frames.

  Args:
    of_places: Of the class token and of the places of the base, by rows.
    of_frames: Of the frames of the base.
    base: Tokens of that grid in time, height and width.
    size: Tokens of the grid.
  """
  frames, rows, columns = map(nearest, base, size)
  places = of_places[1:].reshape(*base[1:], -1)[rows][:, columns]
  return (
    of_places[0],
    places.reshape(-1, places.shape[-1]),
    of_frames[frames][:, None],
  )


class Block(nn.Module):
  """Attention over time, attention over space, and an MLP.

  Attributes:
    heads: Of both attentions.
    mlp_width: Hidden features of the MLP.
    eps: Of the LayerNorms.
    time_init: Of the last layer behind the attention over time.
    drop_path: Share of the clips that skip a branch, in training.
    deterministic: Whether none does.
    dtype: Compute type.
  """

  heads: int
  mlp_width: int
  eps: float
  time_init: Any
  drop_path: float
  deterministic: bool
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    token: Float[Array, 'B D'],
    x: Float[Array, 'B T places D'],
    clip_index: ClipIndex = None,
  ) -> tuple[Float[Array, 'B D'], Float[Array, 'B T places D']]:
    """Returns the class token and the others."""
    drop = functools.partial(
      Dropout(self.drop_path, whole=True),
      clip_index=clip_index,
      deterministic=self.deterministic,
    )
    batch, frames, places, width = x.shape
    attention = functools.partial(SelfAttention, self.heads, 'qkv', self.dtype)

    y = layer_norm(self.eps, self.dtype, 'time_norm')(x)
    y = y.swapaxes(1, 2).reshape(-1, frames, width)
    y = attention(name='time_attention')(y)
    y = drop(y.reshape(batch, places, frames, width).swapaxes(1, 2))
    y = nn.Dense(
      width, dtype=self.dtype, kernel_init=self.time_init, name='time_proj'
    )(y)
    x = conv.join(x, y, relu_after=False)

    of_frames = jnp.broadcast_to(
      token[:, None, None], (batch, frames, 1, width)
    )
    y = jnp.concatenate([of_frames, x], 2)
    y = layer_norm(self.eps, self.dtype, 'norm1')(y)
    y = attention(name='attention')(y.reshape(-1, 1 + places, width))
    y = drop(y.reshape(batch, frames, 1 + places, width))
    token = token + y[:, :, 0].mean(1)
    x = conv.join(x, y[:, :, 1:], relu_after=False)

    y = jnp.concatenate([token[:, None], x.reshape(batch, -1, width)], 1)
    z = layer_norm(self.eps, self.dtype, 'norm2')(y)
    z = drop(MLP(self.mlp_width, self.dtype, name='mlp')(z))
    y = conv.join(y, z, relu_after=False)
    return y[:, 0], y[:, 1:].reshape(x.shape)


class TimeSformer(VideoTransformer, transformer_options.TimeSformer):
  """Video transformer with divided attention.

  Learned positions of places and of frames are those of `position_grid`; at
  another grid, each takes that of the nearest of its axis, as the reference
  does (`nearest`).

  Source: transformers 5.24.0, models/timesformer (divided_space_time);
    Bertasius et al. 2021 (arXiv:2102.05095). Initial layers: facebookresearch/
    TimeSformer, timesformer/models/vit.py.
  Differs: There only square tables are resized, and attention still has the
    number of frames and columns of the configuration. Drop path there leaves
    out places and frames one by one, here whole clips.
  """

  @nn.compact
  def __call__(
    self,
    video: Float[Array, 'B T H W 3'],
    same_group: resnet3d.SameGroup = None,
    *,
    deterministic: bool | None = None,
    clip_index: ClipIndex = None,
  ) -> Float[Array, 'B K']:
    """Returns logits; arguments are those of `vit.ViT`."""
    in_training = same_group is not None
    if deterministic is None:
      deterministic = not in_training
    size = self._tokens(video.shape[1:4], 'clips have')
    x = TubeletEmbedding(self.width, self._tubelet, self.dtype, name='embed')(
      video.astype(self.dtype)
    )
    of_token, of_places, of_frames = self._positions(size)
    token = self.param('class_token', init_weights, (self.width,)) + of_token
    token = jnp.broadcast_to(token.astype(self.dtype), (x.shape[0], self.width))
    x = x.reshape(*x.shape[:2], -1, self.width)
    x = x + of_places.astype(self.dtype) + of_frames.astype(self.dtype)
    for i in range(self.depth):
      token, x = resnet3d.maybe_remat(Block, self.remat)(
        self.heads,
        self.mlp_width or MLP_RATIO * self.width,
        self.layer_norm_eps,
        # Blocks but the first begin without attention over time.
        nn.initializers.zeros if i else init_weights,
        # From 0 at the first block to the full rate at the last one.
        self.drop_path * i / max(self.depth - 1, 1),
        deterministic,
        self.dtype,
        name=f'block{i}',
      )(token, x, clip_index)
    token = layer_norm(self.layer_norm_eps, self.dtype, 'norm')(token)
    return head.classify(
      self,
      [token[:, None, None, None]],
      in_training=in_training,
      deterministic=deterministic,
      clip_index=clip_index,
    )

  def _positions(self, size: Sizes):
    """Those of `at_nearest`."""
    base = self._tokens(self.position_grid, 'position_grid has')
    places = self.param(
      'position_table', init_weights, (1 + base[1] * base[2], self.width)
    )
    frames = self.param(
      'time_table', nn.initializers.zeros, (base[0], self.width)
    )
    return at_nearest(places, frames, base, size)
