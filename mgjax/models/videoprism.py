"""VideoPrism: attention within each frame, then within each place over time.

A block costs the square of a frame's patches or of a clip's frames, not of both
together. Blocks and tubelets are those of the plain transformer (vit.py).
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mgjax.config import transformer_options
from mgjax.models import head, resnet3d
from mgjax.models.attention import (
  MLP_RATIO,
  Block,
  TubeletEmbedding,
  attend,
  init_weights,
)
from mgjax.models.head import ClipIndex
from mgjax.models.video_transformer import VideoTransformer


class LayerNorm(nn.Module):
  """LayerNorm that multiplies by 1 + scale; scale starts at zero.

  Attributes:
    eps: Added to the variance.
    dtype: Of the result; the arithmetic is in float32 at least.

  Source: google-deepmind/videoprism d481d91, videoprism/layers.py, LayerNorm.
  """

  eps: float
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, '*B D']) -> Float[Array, '*B D']:
    zeros, shape = nn.initializers.zeros, x.shape[-1:]
    scale = self.param('scale', zeros, shape)
    bias = self.param('bias', zeros, shape)
    x = nn.LayerNorm(
      epsilon=self.eps,
      dtype=jnp.promote_types(self.dtype, jnp.float32),
      use_bias=False,
      use_scale=False,
      use_fast_variance=False,
    )(x)
    return (x * (1 + scale) + bias).astype(self.dtype)


def _norm(eps: float, dtype: Any, name: str) -> nn.Module:
  return LayerNorm(eps, dtype, name=name)


class Encoder(nn.Module):
  """Adds learned positions to tokens; blocks and a norm follow.

  Attributes:
    base: Lengths of the axes that the table of positions is of.
    block: Makes a block of a drop path's rate and a name.
    drop_path: That rate of each block.
    eps: Of the norm.
    dtype: Compute type.
  """

  base: tuple[int, ...]
  block: Any
  drop_path: Sequence[float]
  eps: float
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B *size D'], clip_index: ClipIndex
  ) -> Float[Array, 'B tokens D']:
    """Returns tokens that have attended to those of the same row of x.

    Args:
      x: Tokens; the axes between the first and the last are those of `base`.
      clip_index: The clip that each row is of.
    """
    batch, *size, width = x.shape
    table = self.param(
      'position_table', init_weights, (math.prod(self.base), width)
    )
    # As the reference does, with antialiasing where it shrinks.
    table = jax.image.resize(
      table.reshape(*self.base, width), (*size, width), 'bilinear'
    )
    x = (x + table.astype(self.dtype)).reshape(batch, -1, width)
    for i, rate in enumerate(self.drop_path):
      x = self.block(rate, name=f'block{i}')(x, None, clip_index)
    return _norm(self.eps, self.dtype, 'norm')(x)


class AttentionPooler(nn.Module):
  """Pools tokens by the attention of one learned query, and normalises.

  Attributes:
    heads: Of the attention.
    eps: Of the LayerNorm.
    dtype: Compute type.

  Source: google-deepmind/videoprism d481d91, videoprism/layers.py,
    AttenTokenPoolingLayer, PerDimScale: no shortcut, no MLP, no capped logits.
  """

  heads: int
  eps: float
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'B tokens D']) -> Float[Array, 'B D']:
    batch, _, width = x.shape
    # The initial weights are Flax's default, as the reference's.
    dense = functools.partial(nn.Dense, width, dtype=self.dtype)
    in_heads = lambda y: y.reshape(*y.shape[:2], self.heads, -1)
    # The variance of the reference's: 1 / the number of queries, which is one.
    query = self.param('query', nn.initializers.normal(1.0), (width,))
    query = jnp.broadcast_to(query.astype(self.dtype), (batch, 1, width))
    query = in_heads(dense(name='q')(query))
    scale = self.param(
      'per_dim_scale', nn.initializers.zeros, (width // self.heads,)
    )
    # 1 at first. The number is the reference's 1 / softplus(0), in 10 digits.
    scale = 1.442695041 * jax.nn.softplus(scale)
    x = attend(
      query * scale.astype(self.dtype),
      in_heads(dense(name='k')(x)),
      in_heads(dense(name='v')(x)),
    )
    return _norm(self.eps, self.dtype, 'norm')(dense(name='proj')(x))[:, 0]


class VideoPrism(VideoTransformer, transformer_options.VideoPrism):
  """Factorised video transformer with an attention pooler and a classifier.

  Released weights are of clips whose pixels are in [0, 1]: data.mean=(0, 0, 0),
  data.std=(1, 1, 1).

  Source: google-deepmind/videoprism d481d91, videoprism/encoders.py,
    FactorizedVideoClassifier.
  Differs: There clips must be square; here any multiple of the patch is taken,
    and the table of positions is resized to its rows and columns. The encoder's
    initial weights are those of `vit.ViT`. In float64 programs the softmax is
    in float64, there in float32 always.
  """

  def layer_of(self, path: tuple[str, ...]) -> int | None:
    """See `VideoNetwork`: temporal blocks follow the spatial ones.

    An encoder's positions are of the layer in front of its blocks, its norm is
    of its last block.
    """
    if path[0] not in ('spatial', 'temporal'):
      return super().layer_of(path)
    is_spatial = path[0] == 'spatial'
    before = 0 if is_spatial else self.spatial_depth
    if path[1] == 'norm':
      return before + (
        self.spatial_depth if is_spatial else self.temporal_depth
      )
    found = super().layer_of(path[1:])
    return None if found is None else before + found

  @nn.compact
  def __call__(
    self,
    video: Float[Array, 'B T H W 3'],
    same_group: resnet3d.SameGroup = None,
    *,
    deterministic: bool | None = None,
    clip_index: ClipIndex = None,
  ) -> Float[Array, 'B K']:
    """Returns logits.

    Args:
      video: Normalised clips.
      same_group: Given in training, None in evaluation; it has no other
        meaning, as there is no batch norm.
      deterministic: Whether dropout is off; by default in evaluation.
      clip_index: Their numbers in the batch, for `Dropout`; None: 0, 1, 2, ...

    Raises:
      ValueError: If the sides of the clips do not divide into patches.
    """
    in_training = same_group is not None
    if deterministic is None:
      deterministic = not in_training
    if clip_index is None:
      clip_index = jnp.arange(video.shape[0])
    t, h, w = self._tokens(video.shape[1:4], 'clips have')
    x = TubeletEmbedding(self.width, self._tubelet, self.dtype, name='embed')(
      video.astype(self.dtype)
    )
    # A branch is dropped for all frames and all places of a clip together.
    x = self._encoder('spatial', deterministic)(
      x.reshape(-1, h, w, self.width), jnp.repeat(clip_index, t)
    )
    x = _exchange(x, t, h * w)
    x = self._encoder('temporal', deterministic)(
      x, jnp.repeat(clip_index, h * w)
    )
    x = _exchange(x, h * w, t).reshape(video.shape[0], -1, self.width)
    x = AttentionPooler(
      self.heads, self.layer_norm_eps, self.dtype, name='probe'
    )(x)
    return head.classify(
      self,
      # One position: what is pooled already.
      [x[:, None, None, None]],
      in_training=in_training,
      deterministic=deterministic,
      clip_index=clip_index,
    )

  def _encoder(self, name: str, deterministic: bool) -> Encoder:
    """The encoder 'spatial' or 'temporal'."""
    depths = self.spatial_depth, self.temporal_depth
    # From 0 at the first block to the full rate at the last one.
    rates = [self.drop_path * i / (sum(depths) - 1) for i in range(sum(depths))]
    frames, *sides = self._tokens(self.position_grid, 'position_grid has')
    spatial = name == 'spatial'
    return Encoder(
      base=tuple(sides) if spatial else (frames,),
      block=functools.partial(
        resnet3d.maybe_remat(Block, self.remat),
        self.heads,
        self.mlp_width or MLP_RATIO * self.width,
        'qkv',
        self.layer_norm_eps,
        deterministic=deterministic,
        dtype=self.dtype,
        logit_cap=self.logit_cap,
        norm=_norm,
      ),
      drop_path=rates[: depths[0]] if spatial else rates[depths[0] :],
      eps=self.layer_norm_eps,
      dtype=self.dtype,
      name=name,
    )


def _exchange(
  x: Float[Array, 'rows tokens D'], outer: int, inner: int
) -> Float[Array, 'rows2 outer D']:
  """[B * outer, inner, D] becomes [B * inner, outer, D]."""
  x = x.reshape(-1, outer, inner, x.shape[-1]).swapaxes(1, 2)
  return x.reshape(-1, outer, x.shape[-1])
