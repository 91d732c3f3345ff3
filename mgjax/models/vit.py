"""Plain video transformers: settings of one network.

VideoMAE, V-JEPA 2 and ViViT (its first model, of joint attention) are such.
Tubelets of pixels become tokens, and blocks of attention and an MLP follow.
Grids differ in the number of tokens only, so one tree of parameters serves all
whose frames and sides divide into tubelets and patches.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mgjax.config import transformer_options
from mgjax.models import head, positions, resnet3d
from mgjax.models.attention import (
  MLP,
  MLP_RATIO,
  Block,
  TubeletEmbedding,
  attend,
  dense,
  init_weights,
  layer_norm,
)
from mgjax.models.head import ClipIndex
from mgjax.models.positions import Rotation
from mgjax.models.video_transformer import VideoTransformer

# Letters of frames, rows and columns in `position_scale`, and what the
# references scale.
_AXES = 'thw'
_SCALED = {'sincos': 'thw', 'learned': 'thw', 'rope': 'none'}


def _init_scale(block: int) -> float:
  """Factor on initial weights that V-JEPA 2 has in a block, from 0 on.

  Source: facebookresearch/vjepa2 c2963a4, _rescale_blocks of
    src/models/vision_transformer.py and attentive_pooler.py.
  """
  return (2 * (block + 1)) ** -0.5


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
    query = self.param('query', init_weights, (width,)).astype(self.dtype)
    query = jnp.broadcast_to(query, (batch, 1, width))
    in_heads = lambda y: y.reshape(*y.shape[:2], self.heads, -1)
    x = layer_norm(self.eps, self.dtype, 'norm1')(x)
    key, value = jnp.split(dense(2 * width, self.dtype, 'kv')(x), 2, -1)
    x = query + attend(
      in_heads(dense(width, self.dtype, 'q')(query)),
      in_heads(key),
      in_heads(value),
    )
    y = layer_norm(self.eps, self.dtype, 'norm2')(x)
    # As the last block's in front of it.
    scale = _init_scale(max(self.num_blocks - 1, 0))
    mlp = MLP(MLP_RATIO * width, self.dtype, init_scale=scale, name='mlp')
    x = x + mlp(y)
    return x[:, 0]


class ViT(VideoTransformer, transformer_options.ViT):
  """Video transformer whose tokens all attend to each other.

  Source: VideoMAE: MCG-NJU/VideoMAE 14ef8d8, modeling_finetune.py, and
    transformers 5.24.0, models/videomae. V-JEPA 2: facebookresearch/vjepa2
    c2963a4, src/models/vision_transformer.py, and transformers, models/vjepa2.
    ViViT: transformers, models/vivit.
  Differs: V-JEPA 2 repeats a clip that is shorter than a tubelet; here it is
    refused. ViViT's positions at other grids: see `positions.resized`. Initial
    weights are normal; VideoMAE has torch's default in the tubelet embedding,
    V-JEPA 2 in the classifier.
  """

  def __post_init__(self):
    super().__post_init__()
    if self.probe_heads:
      self._check_heads('probe_heads')
    if self.positions == 'rope' and self.width // self.heads < 6:
      raise ValueError(
        f'width is {self.width} with {self.heads} heads; with '
        "positions='rope' every head must have 6 or more of it."
      )

  @property
  def _scaled_axes(self) -> str:
    return self.position_scale or _SCALED[self.positions]

  @property
  def _has_position_grid(self) -> bool:
    return self.positions != 'rope' or self._scaled_axes != 'none'

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
    x, rotation = self._place(x.reshape(x.shape[0], -1, self.width), size)
    block = functools.partial(
      resnet3d.maybe_remat(Block, self.remat),
      deterministic=deterministic,
      dtype=self.dtype,
      gelu=self.gelu,
    )
    x = self._encode(x, block, rotation, clip_index)
    return head.classify(
      self,
      # One position: what is pooled already.
      [self._pool(x, block)[:, None, None, None]],
      in_training=in_training,
      deterministic=deterministic,
      clip_index=clip_index,
      std=self.head_std,
    )

  def _place(
    self, x: Float[Array, 'B tokens D'], size: positions.Sizes
  ) -> tuple[Float[Array, 'B _ D'], Rotation | None]:
    """Gives tokens their positions, and the class token where there is one.

    Returns:
      Tokens, the class token first; what turns queries and keys.
    """
    class_tokens = int(self.pool == 'class')
    if class_tokens:
      token = self.param('class_token', nn.initializers.zeros, (self.width,))
      # Not len(x): in an export the number of clips is a symbol.
      shape = (x.shape[0], 1, self.width)
      token = jnp.broadcast_to(token.astype(x.dtype), shape)
      x = jnp.concatenate([token, x], axis=1)
    base = size
    if self._has_position_grid:
      base = self._tokens(self.position_grid, 'position_grid has')
    scaled = [axis in self._scaled_axes for axis in _AXES]
    place = tuple(
      positions.centred(base[i], n) if scaled[i] else np.arange(float(n))
      for i, n in enumerate(size)
    )
    if self.positions == 'rope':
      rotation = positions.rope(place, self.width // self.heads, self.dtype)
      return x, (positions.beside(rotation) if class_tokens else rotation)
    for i, n in enumerate(size):
      if not scaled[i] and n > base[i]:
        raise ValueError(
          f'clips have {n} tokens along {_AXES[i]}, and the table of '
          f'model.position_grid={self.position_grid} has {base[i]}; make it of '
          'the largest clips, or scale positions (model.position_scale).'
        )
    if self.positions == 'sincos':
      table = positions.sincos(place, base, self.width)
      # The class token is nowhere.
      table = np.pad(table, ((class_tokens, 0), (0, 0)))
      return x + jnp.asarray(table, self.dtype), None
    table = self.param(
      'position_table',
      init_weights,
      (class_tokens + math.prod(base), self.width),
    )
    table = jnp.concatenate(
      [
        table[:class_tokens],
        positions.resized(table[class_tokens:], base, place),
      ]
    )
    return x + table.astype(self.dtype), None

  def _encode(
    self,
    x: Float[Array, 'B tokens D'],
    block: functools.partial[nn.Module],
    rotation: Rotation | None,
    clip_index: ClipIndex,
  ) -> Float[Array, 'B tokens D']:
    """All blocks of the encoder, one after the other.

    As a loop (`scan_blocks`) they are one program that runs `depth` times; the
    parameters have the same names, and are stacked inside the program. The
    masks of drop path are other ones.
    """
    options = (
      self.heads,
      self.mlp_width or MLP_RATIO * self.width,
      self.qkv_bias,
      self.layer_norm_eps,
    )
    # From 0 at the first block to the full rate at the last one.
    rates = self.drop_path * np.arange(self.depth) / max(self.depth - 1, 1)
    if self.is_initializing() or not self.scan_blocks:
      for i, rate in enumerate(rates.tolist()):
        scale = _init_scale(i) if self.rescaled_init else 1.0
        module = block(*options, rate, init_scale=scale, name=f'block{i}')
        x = module(x, rotation, clip_index)
      return x
    params = self.variables['params']
    blocks = [params[f'block{i}'] for i in range(self.depth)]
    draws = self.drop_path and not block.keywords['deterministic']
    inputs = (
      jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks),
      jnp.asarray(rates, jnp.float32) if draws else None,
      jax.random.split(self.make_rng('dropout'), self.depth) if draws else None,
    )

    def step(x, inputs):
      params, rate, key = inputs
      module = block(*options, rate if draws else 0.0, parent=None)
      rngs = {'dropout': key} if draws else {}
      return module.apply(
        {'params': params}, x, rotation, clip_index, rngs=rngs
      ), None

    return jax.lax.scan(step, x, inputs)[0]

  def _pool(self, x: Float[Array, 'B tokens D'], block) -> Float[Array, 'B D']:
    """The features that are classified."""
    if self.pool == 'mean':
      return layer_norm(self.head_norm_eps, self.dtype, 'pool_norm')(x.mean(1))
    x = layer_norm(self.layer_norm_eps, self.dtype, 'norm')(x)
    if self.pool in ('first', 'class'):
      return x[:, 0]
    heads = self.probe_heads or self.heads
    return AttentiveProbe(
      functools.partial(
        block,
        heads,
        MLP_RATIO * self.width,
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
