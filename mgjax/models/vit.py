"""Plain video transformers: VideoMAE and V-JEPA 2 are settings of one network.

Tubelets of pixels become tokens, and blocks of attention and an MLP follow.
Grids differ in the number of tokens only, so one tree of parameters serves all
whose frames and sides divide into tubelets and patches.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mgjax.config import network_options
from mgjax.models import head, positions, resnet3d
from mgjax.models.dropout import Dropout
from mgjax.models.head import ClipIndex
from mgjax.models.positions import Rotation

_MLP_RATIO = 4  # Of the encoder by default, of the probe always.

# Source: timm's and both references' trunc_normal_(std=0.02), which cuts off at
# 2, a hundred standard deviations away.
_STD = 0.02
_init = nn.initializers.normal(_STD)


def _norm(eps: float, dtype: Any, name: str) -> nn.Module:
  # The variance of differences, as torch has it: E[x^2] - E[x]^2 cancels.
  return nn.LayerNorm(
    epsilon=eps, dtype=dtype, use_fast_variance=False, name=name
  )


def _dense(
  features: int, dtype: Any, name: str, bias: bool = True, scale: float = 1.0
):
  return nn.Dense(
    features,
    use_bias=bias,
    dtype=dtype,
    kernel_init=nn.initializers.normal(_STD * scale),
    name=name,
  )


def _init_scale(block: int) -> float:
  """Factor on initial weights that V-JEPA 2 has in a block, from 0 on.

  Source: facebookresearch/vjepa2 c2963a4, _rescale_blocks of
    src/models/vision_transformer.py and attentive_pooler.py.
  """
  return (2 * (block + 1)) ** -0.5


class TubeletEmbedding(nn.Module):
  """Cuts clips into tubelets and makes a token of each: a strided convolution.

  Attributes:
    width: D, of a token.
    size: Frames, height and width of a tubelet, in pixels.
    dtype: Compute type.
  """

  width: int
  size: tuple[int, int, int]
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, video: Float[Array, 'B T H W C']
  ) -> Float[Array, 'B t h w D']:
    batch, *lengths, channels = video.shape
    cuts = [
      part
      for length, size in zip(lengths, self.size, strict=True)
      for part in (length // size, size)
    ]
    kernel = self.param('kernel', _init, (*self.size, channels, self.width))
    bias = self.param('bias', nn.initializers.zeros, (self.width,))
    # As a matrix product: tubelets do not overlap, and that is fast everywhere.
    x = video.reshape(batch, *cuts, channels).transpose(0, 1, 3, 5, 2, 4, 6, 7)
    x = x.reshape(*x.shape[:4], -1).astype(self.dtype)
    kernel = kernel.reshape(-1, self.width).astype(self.dtype)
    return x @ kernel + bias.astype(self.dtype)


def attend(
  query: Float[Array, 'B q heads d'],
  key: Float[Array, 'B k heads d'],
  value: Float[Array, 'B k heads d'],
) -> Float[Array, 'B q D']:
  """Scaled dot-product attention; heads are joined.

  The softmax is in float32 at least. (jax.nn.dot_product_attention takes it in
  float32 always, which costs a float64 program its digits.)
  """
  exact = jnp.promote_types(query.dtype, jnp.float32)
  affinities = jnp.einsum(
    'bqhd,bkhd->bhqk',
    query * query.shape[-1] ** -0.5,
    key,
    preferred_element_type=exact,
  )
  weights = jax.nn.softmax(affinities, axis=-1).astype(value.dtype)
  x = jnp.einsum('bhqk,bkhd->bqhd', weights, value)
  return x.reshape(*x.shape[:2], -1)


class SelfAttention(nn.Module):
  """Attention of tokens among themselves.

  Attributes:
    heads: Number of heads.
    bias: Which of query, key and value have a bias: 'qkv', 'qv' or ''.
    dtype: Compute type.
    init_scale: Factor on the initial weights of the last layer.

  Source: MCG-NJU/VideoMAE 14ef8d8, modeling_finetune.py, Attention (query, key
    and value from one matrix; q_bias, v_bias).
  """

  heads: int
  bias: str = 'qkv'
  dtype: Any = jnp.float32
  init_scale: float = 1.0

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B tokens D'], rotation: Rotation | None = None
  ) -> Float[Array, 'B tokens D']:
    width = x.shape[-1]
    parts = jnp.split(
      _dense(3 * width, self.dtype, 'qkv', bias=False)(x), 3, -1
    )
    for i, name in enumerate('qkv'):
      if name in self.bias:
        bias = self.param(f'{name}_bias', nn.initializers.zeros, (width,))
        parts[i] = parts[i] + bias.astype(self.dtype)
    query, key, value = (
      part.reshape(*x.shape[:2], self.heads, -1) for part in parts
    )
    if rotation is not None:
      query = positions.rotate(query, rotation)
      key = positions.rotate(key, rotation)
    return _dense(width, self.dtype, 'proj', scale=self.init_scale)(
      attend(query, key, value)
    )


class MLP(nn.Module):
  """Two layers with an exact GELU between them.

  Attributes:
    hidden: Features between them.
    dtype: Compute type.
    init_scale: Factor on the initial weights of the last layer.
  """

  hidden: int
  dtype: Any = jnp.float32
  init_scale: float = 1.0

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B tokens D']
  ) -> Float[Array, 'B tokens D']:
    y = _dense(self.hidden, self.dtype, 'fc1')(x)
    y = jax.nn.gelu(y, approximate=False)
    return _dense(x.shape[-1], self.dtype, 'fc2', scale=self.init_scale)(y)


class Block(nn.Module):
  """Attention and an MLP, each behind a LayerNorm and beside a shortcut.

  Attributes:
    heads: Of the attention.
    mlp_width: Hidden features of the MLP.
    bias: See `SelfAttention`.
    eps: Of the LayerNorms.
    drop_path: Share of the clips that skip a branch, in training.
    deterministic: Whether none does.
    dtype: Compute type.
    init_scale: Factor on the initial weights of the branches' last layers.
  """

  heads: int
  mlp_width: int
  bias: str
  eps: float
  drop_path: float
  deterministic: bool
  dtype: Any = jnp.float32
  init_scale: float = 1.0

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'B tokens D'],
    rotation: Rotation | None = None,
    clip_index: ClipIndex = None,
  ) -> Float[Array, 'B tokens D']:
    drop = functools.partial(
      Dropout(self.drop_path, whole=True),
      clip_index=clip_index,
      deterministic=self.deterministic,
    )
    y = _norm(self.eps, self.dtype, 'norm1')(x)
    y = SelfAttention(
      self.heads, self.bias, self.dtype, self.init_scale, name='attention'
    )(y, rotation)
    x = x + drop(y)
    y = _norm(self.eps, self.dtype, 'norm2')(x)
    mlp = MLP(self.mlp_width, self.dtype, self.init_scale, name='mlp')
    return x + drop(mlp(y))


class AttentiveProbe(nn.Module):
  """Pools tokens by attention: blocks, then a learned query that asks them.

  Attributes:
    block: Makes a block by its name.
    num_blocks: Blocks in front of the cross attention.
    heads: Of the cross attention.
    eps: Of the LayerNorms.
    dtype: Compute type.

  Source: facebookresearch/vjepa2 c2963a4, src/models/attentive_pooler.py. The
    cross attention has no output projection and no norm of the query.
  """

  block: Any
  num_blocks: int
  heads: int
  eps: float
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'B tokens D']) -> Float[Array, 'B D']:
    for i in range(self.num_blocks):
      x = self.block(init_scale=_init_scale(i), name=f'block{i}')(x)
    batch, _, width = x.shape
    query = self.param('query', _init, (width,)).astype(self.dtype)
    query = jnp.broadcast_to(query, (batch, 1, width))
    in_heads = lambda y: y.reshape(*y.shape[:2], self.heads, -1)
    x = _norm(self.eps, self.dtype, 'norm1')(x)
    key, value = jnp.split(_dense(2 * width, self.dtype, 'kv')(x), 2, -1)
    x = query + attend(
      in_heads(_dense(width, self.dtype, 'q')(query)),
      in_heads(key),
      in_heads(value),
    )
    y = _norm(self.eps, self.dtype, 'norm2')(x)
    # As the last block's in front of it.
    scale = _init_scale(max(self.num_blocks - 1, 0))
    x = x + MLP(_MLP_RATIO * width, self.dtype, scale, name='mlp')(y)
    return x[:, 0]


class ViT(head.VideoNetwork, network_options.ViT):
  """Video transformer whose tokens all attend to each other.

  Source: VideoMAE: MCG-NJU/VideoMAE 14ef8d8, modeling_finetune.py, and
    transformers 5.24.0, models/videomae. V-JEPA 2: facebookresearch/vjepa2
    c2963a4, src/models/vision_transformer.py, and transformers, models/vjepa2.
  Differs: V-JEPA 2 repeats a clip that is shorter than a tubelet; here it is
    refused. Initial weights are normal; VideoMAE has torch's default in the
    tubelet embedding, V-JEPA 2 in the classifier.
  """

  def __post_init__(self):
    super().__post_init__()
    for field in ('heads', 'probe_heads'):
      heads = getattr(self, field)
      if heads and self.width % heads:
        raise ValueError(
          f'{field} is {heads}; it must divide the width of {self.width}.'
        )
    if self.positions == 'rope' and self.width // self.heads < 6:
      raise ValueError(
        f'width is {self.width} with {self.heads} heads; with '
        "positions='rope' every head must have 6 or more of it."
      )
    if self.positions == 'sincos':
      self._tokens(self.position_grid, 'position_grid has')

  @property
  def _tubelet(self) -> tuple[int, int, int]:
    return self.tubelet_frames, self.patch_px, self.patch_px

  def _tokens(self, clip: tuple[int, int, int], what: str) -> tuple[int, ...]:
    """How many tokens a clip has in time, height and width.

    Raises:
      ValueError: It does not divide into tubelets.
    """
    for length, size, words in zip(
      clip,
      self._tubelet,
      (
        ('frames', 'tubelet_frames', 'grid.frames_multiple'),
        ('rows', 'patch_px', 'grid.side_multiple'),
        ('columns', 'patch_px', 'grid.side_multiple'),
      ),
      strict=True,
    ):
      unit, option, field = words
      if not length or length % size:
        raise ValueError(
          f'{what} {length} {unit}; with {option}={size} it must be a multiple '
          f'of {size} ({field}={size} makes all grids of a schedule so).'
        )
    return tuple(n // m for n, m in zip(clip, self._tubelet, strict=True))

  def example_clip(self, num_frames: int) -> tuple[int, int, int]:
    return self._tubelet

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
      ValueError: If the clips do not divide into tubelets.
    """
    in_training = same_group is not None
    if deterministic is None:
      deterministic = not in_training
    size = self._tokens(video.shape[1:4], 'clips have')
    x = TubeletEmbedding(self.width, self._tubelet, self.dtype, name='embed')(
      video.astype(self.dtype)
    )
    x = x.reshape(x.shape[0], -1, self.width)
    rotation = None
    if self.positions == 'rope':
      rotation = positions.rope(size, self.width // self.heads, self.dtype)
    else:
      base = self._tokens(self.position_grid, 'position_grid has')
      table = positions.sincos(size, base, self.width)
      x = x + jnp.asarray(table, self.dtype)
    block = functools.partial(
      resnet3d.maybe_remat(Block, self.remat),
      deterministic=deterministic,
      dtype=self.dtype,
    )
    for i in range(self.depth):
      x = block(
        self.heads,
        self.mlp_width or _MLP_RATIO * self.width,
        self.qkv_bias,
        self.layer_norm_eps,
        # From 0 at the first block to the full rate at the last one.
        self.drop_path * i / max(self.depth - 1, 1),
        init_scale=_init_scale(i) if self.rescaled_init else 1.0,
        name=f'block{i}',
      )(x, rotation, clip_index)
    return head.classify(
      self,
      # One position: what is pooled already.
      [self._pool(x, block)[:, None, None, None]],
      in_training=in_training,
      deterministic=deterministic,
      clip_index=clip_index,
      std=self.head_std,
    )

  def _pool(self, x: Float[Array, 'B tokens D'], block) -> Float[Array, 'B D']:
    """The features that are classified."""
    if self.pool == 'mean':
      return _norm(self.head_norm_eps, self.dtype, 'pool_norm')(x.mean(1))
    x = _norm(self.layer_norm_eps, self.dtype, 'norm')(x)
    if self.pool == 'first':
      return x[:, 0]
    heads = self.probe_heads or self.heads
    return AttentiveProbe(
      functools.partial(
        block,
        heads,
        _MLP_RATIO * self.width,
        'qkv',
        self.head_norm_eps,
        0.0,
      ),
      self.probe_blocks,
      heads,
      self.head_norm_eps,
      self.dtype,
      name='probe',
    )(x)
