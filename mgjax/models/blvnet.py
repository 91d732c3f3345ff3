"""Big-little networks: bLResNet for images, bLVNet-TAM for video.

A stage has two branches: a big one (deep, wide) at half the resolution and a
little one (shallow, narrow) at the full one; their sum goes through one more
block. bLResNet shows both branches every frame. bLVNet-TAM takes frames in
pairs: the first of a pair goes to the little branch, the second to the big
one, and both get the sum back.

Source: Chen et al. 2019 (arXiv:1807.03848), IBM/BigLittleNet dff4654; Fan et
al. 2019 (arXiv:1912.00869), IBM/bLVNet-TAM feadcd3.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mgjax.config import network_options
from mgjax.models import conv, head, resnet2d, resnet3d, temporal
from mgjax.models.head import ClipIndex

# Of H and W, in the block that follows the sum of the branches.
_FUSION_STRIDES = (2, 2, 1)

Aggregation = Callable[..., temporal.TemporalAggregation] | None


class Block(nn.Module):
  """Bottleneck whose shortcut strides by average pooling.

  Attributes:
    features: Output channels; a quarter of them inside.
    layer: `resnet3d.Layer` with the network's options.
    stride: Of H and W, 1 or 2.
    relu: Whether the sum goes through a ReLU.
    aggregation: Makes the temporal aggregation in front, if there is one. An
      identity shortcut starts before it, any other one behind it.

  Source: IBM/bLVNet-TAM feadcd3, core/models/blvnet_tam_backbone.py.
  """

  features: int
  layer: Callable[..., resnet3d.Layer]
  stride: int = 1
  relu: bool = True
  aggregation: Aggregation = None

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B T H W C'], same_group: resnet3d.SameGroup
  ) -> Float[Array, 'B T h w D']:
    shortcut = x
    if self.aggregation is not None:
      x = self.aggregation(name='temporal')(x)
    projected = x.shape[-1] != self.features
    if self.stride == 2 or projected:
      shortcut = conv.avg_pool_spatial(x) if self.stride == 2 else x
    if projected:
      shortcut = self.layer(
        self.features, (1, 1, 1), relu=False, name='shortcut'
      )(shortcut, same_group)
    inner = self.features // 4
    strides = (1, self.stride, self.stride)
    x = self.layer(inner, (1, 1, 1), name='a')(x, same_group)
    x = self.layer(inner, (1, 3, 3), strides, name='b')(x, same_group)
    x = self.layer(
      self.features, (1, 1, 1), relu=False, zero_init=True, name='c'
    )(x, same_group)
    return conv.join(x, shortcut, relu_after=self.relu)


def _split(x, pairs):
  """Frames of the big and the little branch."""
  return (x[:, 1::2], x[:, ::2]) if pairs else (x, x)


def _distribute(x, pairs):
  """Undoes `_split`: both frames of a pair get what came of it."""
  return jnp.repeat(x, 2, axis=1) if pairs else x


class Stem(nn.Module):
  """7 x 7 layer on every frame, then a first pair of branches."""

  features: int
  alpha: int
  pairs: bool
  layer: Callable[..., resnet3d.Layer]
  aggregation: Aggregation

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B T H W C'], same_group: resnet3d.SameGroup
  ) -> Float[Array, 'B T h w D']:
    narrow = self.features // self.alpha
    halved = (1, 2, 2)
    x = self.layer(self.features, (1, 7, 7), halved, name='layer')(
      x, same_group
    )
    if self.aggregation is not None:
      x = self.aggregation(name='temporal')(x)
    big, little = _split(x, self.pairs)
    big = self.layer(self.features, (1, 3, 3), halved, relu=False, name='big')(
      big, same_group
    )
    little = self.layer(narrow, (1, 3, 3), name='little0')(little, same_group)
    little = self.layer(narrow, (1, 3, 3), halved, name='little1')(
      little, same_group
    )
    little = self.layer(self.features, (1, 1, 1), relu=False, name='little2')(
      little, same_group
    )
    x = conv.join(big, little)
    x = self.layer(self.features, (1, 1, 1), name='merge')(x, same_group)
    return _distribute(x, self.pairs)


class BigLittleStage(nn.Module):
  """Big and little branch, their sum, and a fusion block.

  Attributes:
    features: Output channels.
    num_blocks: Blocks of the stage: the big branch has one less, the little
      one num_blocks // beta - 1, both at least 1.
    alpha: Big channels per little channel, rounded down.
    beta: See num_blocks.
    stride: Of the fusion block in H and W.
    pairs: Whether the branches take different frames of a pair.
    layer: `resnet3d.Layer` with the network's options.
    aggregation: Makes the temporal aggregation in front, if there is one.
    remat: Whether the backward pass computes the blocks again.
  """

  features: int
  num_blocks: int
  alpha: int
  beta: int
  stride: int
  pairs: bool
  layer: Callable[..., resnet3d.Layer]
  aggregation: Aggregation
  remat: bool

  def _branch(self, features, num_blocks, stride, last_relu):
    # As in the reference, a branch of one block keeps its last ReLU.
    return resnet2d.Stage(
      tuple(
        functools.partial(
          resnet3d.maybe_remat(Block, self.remat),
          features,
          self.layer,
          stride if i == 0 else 1,
          relu=last_relu or i == 0 or i < num_blocks - 1,
        )
        for i in range(num_blocks)
      ),
      name='little' if stride == 1 else 'big',
    )

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B T H W C'], same_group: resnet3d.SameGroup
  ) -> Float[Array, 'B T h w D']:
    if self.aggregation is not None:
      x = self.aggregation(name='temporal')(x)
    big, little = _split(x, self.pairs)
    num_big = max(1, self.num_blocks - 1)
    num_little = max(1, self.num_blocks // self.beta - 1)
    big = self._branch(self.features, num_big, 2, False)(big, same_group)
    little = self._branch(self.features // self.alpha, num_little, 1, True)(
      little, same_group
    )
    little = self.layer(self.features, (1, 1, 1), relu=False, name='expand')(
      little, same_group
    )
    _, _, height, width, _ = little.shape
    big = conv.upsample_spatial(big, height=height, width=width)
    x = conv.join(big, little)
    block = resnet3d.maybe_remat(Block, self.remat)
    x = block(self.features, self.layer, self.stride, name='fusion')(
      x, same_group
    )
    return _distribute(x, self.pairs)


class BLVNet(head.VideoNetwork, network_options.BLVNetTAM):
  """Big-little network on frames or on pairs of frames.

  With pairs, a clip of an odd number of frames is completed by its last frame,
  so that every grid of a multigrid schedule has whole pairs.

  Attributes:
    pairs: Whether frames are taken in pairs (bLVNet) or one by one (bLResNet).

  Differs: The references have a fixed, even number of frames.
  """

  pairs: bool

  def __post_init__(self):
    super().__post_init__()
    resnet3d.stage_blocks(
      self.depth, self.blocks, network_options.BIG_LITTLE_BLOCKS
    )
    if self.width < self.bl_alpha:
      raise ValueError(
        f'bl_alpha {self.bl_alpha} leaves no channels of width {self.width}.'
      )

  def _last_stage(
    self,
    blocks: tuple[int, ...],
    layer: Callable[..., resnet3d.Layer],
    aggregation: Aggregation,
  ) -> resnet2d.Stage:
    features = 4 * self.width * 2 ** (len(blocks) - 1)
    return resnet2d.Stage(
      tuple(
        functools.partial(
          resnet3d.maybe_remat(Block, self.remat),
          features,
          layer,
          2 if i == 0 else 1,
          aggregation=aggregation,
        )
        for i in range(blocks[-1])
      ),
      name=f'res{len(blocks) + 1}',
    )

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
      same_group: Batch-norm groups (`norm.group_matrix`) in training; None in
        evaluation, which uses running statistics.
      deterministic: Whether dropout is off; by default in evaluation.
      clip_index: Their numbers in the batch, for `Dropout`; None: 0, 1, 2, ...
    """
    layer = functools.partial(resnet3d.Layer, **resnet3d.layer_options(self))
    aggregation = None
    if self.tam_frames:
      aggregation = functools.partial(
        temporal.TemporalAggregation, self.tam_frames, dtype=self.dtype
      )
    blocks = resnet3d.stage_blocks(
      self.depth, self.blocks, network_options.BIG_LITTLE_BLOCKS
    )
    x = video.astype(self.dtype)
    if self.pairs and x.shape[1] % 2:
      x = jnp.concatenate([x, x[:, -1:]], axis=1)
    x = Stem(
      self.width, self.bl_alpha, self.pairs, layer, aggregation, name='stem'
    )(x, same_group)
    for i, num_blocks in enumerate(blocks[:-1]):
      x = BigLittleStage(
        4 * self.width * 2**i,
        num_blocks,
        self.bl_alpha,
        self.bl_beta,
        _FUSION_STRIDES[i],
        self.pairs,
        layer,
        aggregation,
        self.remat,
        name=f'res{i + 2}',
      )(x, same_group)
    # The last stage is an ordinary one. The two frames of a pair are equal by
    # now: it takes one.
    x, _ = _split(x, self.pairs)
    x = self._last_stage(blocks, layer, aggregation)(x, same_group)
    return head.classify(
      self,
      [x],
      in_training=same_group is not None,
      deterministic=deterministic,
      clip_index=clip_index,
      per_frame=True,
    )
