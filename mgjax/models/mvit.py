"""Multiscale video transformer: MViTv2.

Queries are pooled where a stage begins, so that tokens become fewer and wider;
keys and values are pooled in every block. All pools are strided convolutions
with a kernel per feature, which take any number of tokens, and positions are
relative: one tree of parameters serves every grid whose frames and sides divide
into tubelets and patches.
"""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mgjax.config import transformer_options
from mgjax.models import conv, head, positions, resnet3d
from mgjax.models.attention import (
  MLP,
  MLP_RATIO,
  attend,
  dense,
  init_weights,
  layer_norm,
  query_key_value,
)
from mgjax.models.dropout import Dropout
from mgjax.models.head import ClipIndex
from mgjax.models.positions import Sizes
from mgjax.models.video_transformer import VideoTransformer

_EPS = 1e-6  # Of all LayerNorms.
_Q_STRIDE = 2  # Where a stage begins, but the first.
_WIDER = 2  # A stage's features, over those of the one before; heads likewise.

# torch's default for convolutions.
_conv_init = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')

_pooled = lambda size, stride: (
  size[0],
  -(-size[1] // stride),
  -(-size[2] // stride),
)


class Pool(nn.Module):
  """Pools the features of every head by one convolution, then normalises.

  The class token is normalised only.

  Attributes:
    heads: They share the kernel.
    size: Tokens in time, height and width.
    kernel: Taps of the same.
    stride: Of height and width.
    dtype: Compute type.
  """

  heads: int
  size: Sizes
  kernel: Sizes
  stride: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B tokens D']
  ) -> Float[Array, 'B pooled heads d']:
    batch, _, width = x.shape
    of_heads = lambda x: x.reshape(batch, -1, self.heads, width // self.heads)
    y = conv.DepthwiseConv(
      width // self.heads,
      self.kernel,
      (1, self.stride, self.stride),
      dtype=self.dtype,
      kernel_init=_conv_init,
      name='conv',
    )(x[:, 1:].reshape(batch, *self.size, width))
    y = jnp.concatenate([of_heads(x[:, :1]), of_heads(y)], 1)
    return layer_norm(_EPS, self.dtype, 'norm')(y)


class PoolingAttention(nn.Module):
  """Attention of pooled queries to pooled keys, by relative positions.

  Affinities are (query / sqrt(d)) @ key + query @ (h + w + t): a table per axis
  has a vector for each distance between places. Pooled queries are added to
  what they find. The class token has neither positions nor this residual.

  Attributes:
    width: Of all heads, at the end.
    heads: Number of heads.
    size: Tokens in time, height and width.
    base: The same of the grid that the tables are made for.
    kernel: Taps of the pools.
    q_stride, kv_stride: Of the pools of queries, and of keys and values, in
      height and width.
    dtype: Compute type.
  """

  width: int
  heads: int
  size: Sizes
  base: Sizes
  kernel: Sizes
  q_stride: int
  kv_stride: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B tokens _']
  ) -> Float[Array, 'B pooled D']:
    pool = functools.partial(
      Pool, self.heads, self.size, self.kernel, dtype=self.dtype
    )
    parts = query_key_value(self, x, self.width, 'qkv')
    query, key, value = (
      pool(stride, name=f'pool_{name}')(part)
      for name, stride, part in zip(
        'qkv',
        (self.q_stride, self.kv_stride, self.kv_stride),
        parts,
        strict=True,
      )
    )
    y = attend(query, key, value, bias=self._relative(query))
    residual = query.reshape(y.shape).at[:, 0].set(0)
    return dense(self.width, self.dtype, 'proj')(y + residual)

  def _relative(
    self, query: Float[Array, 'B queries heads d']
  ) -> Float[Array, 'B heads queries keys']:
    """What relative positions add to the affinities."""
    q_size = _pooled(self.size, self.q_stride)
    k_size = _pooled(self.size, self.kv_stride)
    batch, _, heads, width = query.shape
    of_places = query[:, 1:].reshape(batch, *q_size, heads, width)
    exact = jnp.promote_types(self.dtype, jnp.float32)
    total = jnp.zeros((1,) * 8, exact)
    for axis, name in enumerate('thw'):
      vectors = self._vectors(axis, q_size[axis], k_size[axis])
      part = jnp.einsum(
        f'bthwnd,{name}kd->bnthwk',
        of_places,
        vectors.astype(self.dtype),
        preferred_element_type=exact,
      )
      others = [i for i in (5, 6, 7) if i != 5 + axis]
      total = total + jnp.expand_dims(part, others)
    total = total.reshape(batch, heads, query.shape[1] - 1, -1)
    return jnp.pad(total, ((0, 0), (0, 0), (1, 0), (1, 0)))

  def _vectors(
    self, axis: int, num_queries: int, num_keys: int
  ) -> Float[Array, 'q k d']:
    """Of an axis, the vector of each query and key."""
    if axis == 0:
      base = self.base[0]
    else:
      # Rows and columns have tables of one size, of the longer side.
      side = max(self.base[1:])
      base = max(side // self.q_stride, side // self.kv_stride, 1)
    table = self.param(
      f'rel_pos_{"thw"[axis]}',
      init_weights,
      (2 * base - 1, self.width // self.heads),
    )
    rows = 2 * max(num_queries, num_keys) - 1
    if rows != len(table):
      place = positions.centred(len(table), rows)
      matrix = positions.interpolation(len(table), place, positions.LINEAR)
      table = jnp.matmul(
        jnp.asarray(matrix, table.dtype), table, precision='highest'
      )
    return table[positions.distances(num_queries, num_keys)]


class Block(nn.Module):
  """Pooling attention and an MLP, each behind a LayerNorm.

  Attributes:
    width, heads, size, base, kernel, q_stride, kv_stride: As those of
      `PoolingAttention`.
    drop_path: Share of the clips that skip a branch, in training.
    deterministic: Whether none does.
    dtype: Compute type.
  """

  width: int
  heads: int
  size: Sizes
  base: Sizes
  kernel: Sizes
  q_stride: int
  kv_stride: int
  drop_path: float
  deterministic: bool
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B tokens _'], clip_index: ClipIndex = None
  ) -> Float[Array, 'B pooled D']:
    drop = functools.partial(
      Dropout(self.drop_path, whole=True),
      clip_index=clip_index,
      deterministic=self.deterministic,
    )
    y = layer_norm(_EPS, self.dtype, 'norm1')(x)
    if x.shape[-1] != self.width:
      # The shortcut is of what is normalised.
      x = dense(self.width, self.dtype, 'shortcut')(y)
    if self.q_stride > 1:
      x = self._pool(x)
    y = PoolingAttention(
      self.width,
      self.heads,
      self.size,
      self.base,
      self.kernel,
      self.q_stride,
      self.kv_stride,
      self.dtype,
      name='attention',
    )(y)
    x = conv.join(x, drop(y), relu_after=False)
    y = layer_norm(_EPS, self.dtype, 'norm2')(x)
    y = MLP(MLP_RATIO * self.width, self.dtype, name='mlp')(y)
    return conv.join(x, drop(y), relu_after=False)

  def _pool(self, x: Float[Array, 'B tokens D']) -> Float[Array, 'B pooled D']:
    batch, _, width = x.shape
    y = conv.max_pool_spatial(x[:, 1:].reshape(batch, *self.size, width))
    return jnp.concatenate([x[:, :1], y.reshape(batch, -1, width)], 1)


class MViT(VideoTransformer, transformer_options.MViT):
  """Transformer whose tokens become fewer and wider from stage to stage.

  A grid decides how many tokens there are, and how many distances: tables of
  relative positions are those of `position_grid`, and are resized for another
  grid. Linearly, not antialiased, along their 2 n - 1 distances, n being the
  larger number of queries and keys of the axis. Distances are counted in
  tokens of the grid, not in pixels: the ends of a resized table are the largest
  distances of either grid.

  Source: torchvision 0.29.1, models/video/mvit.py, with the switches of
    mvit_v2_s; Li et al. 2022 (arXiv:2112.01526).
  Differs: There the clip's size is fixed when the network is made, and tables
    are resized only where rows and columns are not equally many, or pools do
    not divide. The bias of the first convolution begins at zero.
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
    base = self._tokens(self.position_grid, 'position_grid has')
    x = conv.Conv(
      self.width,
      self.patch_kernel,
      self._tubelet,
      use_bias=True,
      dtype=self.dtype,
      kernel_init=_conv_init,
      name='embed',
    )(video)
    x = x.reshape(x.shape[0], -1, self.width)
    token = self.param('class_token', init_weights, (self.width,))
    token = jnp.broadcast_to(
      token.astype(self.dtype), (x.shape[0], 1, *token.shape)
    )
    x = jnp.concatenate([token, x], 1)
    stages = [i for i, count in enumerate(self.blocks) for _ in range(count)]
    for i, stage in enumerate(stages):
      begins = i > 0 and stage > stages[i - 1]
      q_stride = _Q_STRIDE if begins else 1
      x = resnet3d.maybe_remat(Block, self.remat)(
        self.width * _WIDER**stage,
        self.heads * _WIDER**stage,
        size,
        base,
        self.pool_kernel,
        q_stride,
        max(self.kv_stride // _Q_STRIDE**stage, 1),
        # From 0 at the first block to the full rate at the last one.
        self.drop_path * i / max(len(stages) - 1, 1),
        deterministic,
        self.dtype,
        name=f'block{i}',
      )(x, clip_index)
      size = _pooled(size, q_stride)
      # Cut off, as there: tables of weights have these sizes.
      base = base[0], base[1] // q_stride, base[2] // q_stride
    x = layer_norm(_EPS, self.dtype, 'norm')(x[:, 0])
    return head.classify(
      self,
      [x[:, None, None, None]],
      in_training=in_training,
      deterministic=deterministic,
      clip_index=clip_index,
    )
