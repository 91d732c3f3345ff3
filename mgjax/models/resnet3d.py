"""3-D bottleneck residual networks of one pathway: Slow, C2D, I3D.

The parts (stem, stages) are also those of SlowFast.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mgjax.config import network_options
from mgjax.config.setting import is_window
from mgjax.models import conv, head, norm
from mgjax.models.head import ClipIndex, Window
from mgjax.models.nonlocal_block import NonLocalBlock

_NORM_OPTIONS = [
  field.name for field in dataclasses.fields(network_options.NormOptions)
]

SameGroup = norm.SameGroup

# Temporal kernels of the first convolution of each block, per stage; the
# pattern of a stage repeats over its blocks. Source: PySlowFast 287ec00,
# models/video_model_builder.py, _TEMPORAL_KERNEL_BASIS.
TEMPORAL_KERNELS = {
  'c2d': ((1,), (1,), (1,), (1,)),
  'i3d': ((3,), (3, 1), (3, 1), (1, 3)),
  'slow': ((1,), (1,), (3,), (3,)),
  'fast': ((3,), (3,), (3,), (3,)),
}
STEM_KERNELS = {'c2d': 1, 'i3d': 5, 'slow': 1, 'fast': 5}


def stage_blocks(
  depth: int,
  blocks: Sequence[int],
  known: Mapping[int, tuple[int, ...]] = network_options.PATHWAY_BLOCKS,
) -> tuple[int, ...]:
  """Blocks of each stage: `blocks`, or those `known` for `depth`."""
  if not blocks and depth in known:
    return known[depth]
  if not 1 <= len(blocks) <= 4 or min(blocks) < 1:
    raise ValueError(
      f'No network of depth {depth} and blocks {tuple(blocks)}; use a depth of '
      f'{sorted(known)}, or the blocks of one to four stages, such as '
      '(1, 1, 1, 1).'
    )
  return tuple(blocks)


def check_num_temporal(num_temporal: tuple, blocks: tuple) -> None:
  """Raises ValueError where `num_temporal` has not an entry per stage."""
  if num_temporal and len(num_temporal) != len(blocks):
    raise ValueError(
      f'num_temporal {num_temporal} needs one entry for each of the '
      f'{len(blocks)} stages, or must be ().'
    )


def maybe_remat(block: type[nn.Module], remat: bool) -> type[nn.Module]:
  """The class of a block, whose inside the backward pass may compute again.

  Parameters and results stay the same; only the block's inputs are kept for
  the backward pass.
  """
  return nn.remat(block) if remat else block


def layer_options(network: nn.Module) -> dict[str, Any]:
  """What all layers of a network take from its attributes."""
  return {name: getattr(network, name) for name in (*_NORM_OPTIONS, 'dtype')}


class Layer(nn.Module, network_options.NormOptions):
  """Convolution, batch norm and, where asked, ReLU."""

  features: int
  kernel_size: tuple[int, int, int]
  strides: tuple[int, int, int] = (1, 1, 1)
  depthwise: bool = False  # See `conv.Conv`.
  relu: bool = True
  zero_init: bool = False  # Of the batch norm's scale.
  beside: int = 1  # See `conv.Conv`.
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B T H W C'], same_group: SameGroup
  ) -> Float[Array, 'B t h w D']:
    x = conv.Conv(
      self.features,
      self.kernel_size,
      self.strides,
      self.depthwise,
      beside=self.beside,
      dtype=self.dtype,
      name='conv',
    )(x)
    x = norm.BatchNorm(
      momentum=self.norm_momentum,
      eps=self.norm_eps,
      frozen=self.norm_frozen,
      zero_init=self.zero_init,
      beside=max(self.beside // self.strides[0], 1),
      dtype=self.dtype,
      name='norm',
    )(x, same_group)
    return conv.relu(x) if self.relu else x


class Stem(nn.Module):
  """kt x 7 x 7 layer of stride 2, then the spatial max-pool of stride 2."""

  features: int
  temporal_kernel: int
  layer: Callable[..., Layer]  # `Layer` with the network's options.

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B T H W C'], same_group: SameGroup
  ) -> Float[Array, 'B T h w D']:
    x = self.layer(
      self.features, (self.temporal_kernel, 7, 7), (1, 2, 2), name='layer'
    )(x, same_group)
    return conv.max_pool_spatial(x)


class Block(nn.Module):
  """Bottleneck: kt x 1 x 1, 1 x 3 x 3 (strided), 1 x 1 x 1, plus shortcut.

  Source: PySlowFast 287ec00, models/resnet_helper.py, BottleneckTransform.
  """

  features: int
  inner: int
  temporal_kernel: int
  stride: int  # Of H and W.
  layer: Callable[..., Layer]
  beside: int = 1  # See `conv.Conv`.

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B T H W C'], same_group: SameGroup
  ) -> Float[Array, 'B T h w D']:
    strides = (1, self.stride, self.stride)
    shortcut = x
    layer = functools.partial(self.layer, beside=self.beside)
    if x.shape[-1] != self.features * self.beside or self.stride != 1:
      shortcut = layer(
        self.features, (1, 1, 1), strides, relu=False, name='shortcut'
      )(x, same_group)
    x = layer(self.inner, (self.temporal_kernel, 1, 1), name='a')(x, same_group)
    x = layer(self.inner, (1, 3, 3), strides, name='b')(x, same_group)
    x = layer(self.features, (1, 1, 1), relu=False, zero_init=True, name='c')(
      x, same_group
    )
    return conv.join(x, shortcut)


class Stage(nn.Module):
  """Blocks of one width; the first one strides.

  Attributes:
    features: Output channels; blocks are a quarter as wide inside.
    num_blocks: Blocks.
    temporal_kernels: Pattern of the blocks' temporal kernels, repeated.
    num_temporal: Blocks from the first one that follow the pattern, the
      others have temporal kernels of 1; None: all.
    stride: Of H and W.
    layer: `Layer` with the network's options.
    nonlocal_after: Indices of the blocks that a non-local block follows.
    nonlocal_block: `NonLocalBlock` with the options of network and stage.
    remat: Whether the backward pass computes the blocks again.
    beside: Frames that lie side by side, see `conv.Conv`; 1 where there are
      non-local blocks.
  """

  features: int
  num_blocks: int
  temporal_kernels: tuple[int, ...]
  stride: int
  layer: Callable[..., Layer]
  num_temporal: int | None = None
  nonlocal_after: tuple[int, ...] = ()
  nonlocal_block: Callable[..., NonLocalBlock] | None = None
  remat: bool = False
  beside: int = 1

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B T H W C'], same_group: SameGroup
  ) -> Float[Array, 'B T h w D']:
    for i in range(self.num_blocks):
      kernel = self.temporal_kernels[i % len(self.temporal_kernels)]
      if self.num_temporal is not None and i >= self.num_temporal:
        kernel = 1
      x = maybe_remat(Block, self.remat)(
        self.features,
        self.features // 4,
        kernel,
        self.stride if i == 0 else 1,
        self.layer,
        self.beside,
        name=f'block{i}',
      )(x, same_group)
      if i in self.nonlocal_after:
        x = self.nonlocal_block(name=f'nonlocal{i}')(x, same_group)
    return x


def nonlocal_options(
  stage: int,
  blocks: Sequence[int],
  *,
  after: Sequence[Sequence[int]],
  groups: Sequence[int],
  pool: Sequence[Any],
  block: Callable[..., NonLocalBlock],
) -> dict[str, Any]:
  """Returns the attributes of a `Stage` that place its non-local blocks.

  Args:
    stage: Index of the stage.
    blocks: Blocks of every stage.
    after: Per stage, indices of the blocks that one follows; () for none.
    groups: Per stage, groups of frames; () for 1.
    pool: Window of the max-pool, or one per stage.
    block: `NonLocalBlock` with the network's options.

  Raises:
    ValueError: If a block or its stage does not exist, a group number is not
      positive, or the windows are not one per stage.
  """
  windows = [pool] * len(blocks) if is_window(pool) else list(pool)
  if len(windows) != len(blocks) or not all(map(is_window, windows)):
    raise ValueError(
      f'non-local pools {tuple(pool)} must be one window of frames, rows and '
      f'columns, such as (1, 2, 2), or one for each of the {len(blocks)} '
      'stages.'
    )
  if not after:
    return {}
  if len(after) != len(blocks) or len(groups) not in (0, len(blocks)):
    raise ValueError(
      f'non-local blocks {tuple(after)} in groups {tuple(groups)} need one '
      f'entry for each of the {len(blocks)} stages, such as '
      f'{((),) * (len(blocks) - 1) + ((0,),)}.'
    )
  wrong = [i for i in after[stage] if not 0 <= i < blocks[stage]]
  if wrong or min(groups, default=1) < 1:
    raise ValueError(
      f'non-local blocks {tuple(after)} in groups {tuple(groups)}: res'
      f'{stage + 2} has blocks 0 to {blocks[stage] - 1}, and groups are 1 or '
      'more.'
    )
  return {
    'nonlocal_after': tuple(after[stage]),
    'nonlocal_block': functools.partial(
      block,
      groups=groups[stage] if groups else 1,
      pool_window=tuple(windows[stage]),
    ),
  }


class ResNet3D(head.VideoNetwork, network_options.OnePathway):
  """Network of one pathway.

  Attributes:
    arch: 'slow', 'c2d' or 'i3d': temporal kernels and pooling.
  """

  arch: str

  def _stage(
    self, i: int, blocks: tuple[int, ...], layer: Callable[..., Layer]
  ) -> Stage:
    nonlocal_block = functools.partial(
      maybe_remat(NonLocalBlock, self.remat),
      mode=self.nonlocal_mode,
      **layer_options(self),
    )
    return Stage(
      4 * self.width * 2**i,
      blocks[i],
      TEMPORAL_KERNELS[self.arch][i],
      stride=1 if i == 0 else 2,
      layer=layer,
      num_temporal=self.num_temporal[i] if self.num_temporal else None,
      remat=self.remat,
      **nonlocal_options(
        i,
        blocks,
        after=self.nonlocal_blocks,
        groups=self.nonlocal_groups,
        pool=self.nonlocal_pool,
        block=nonlocal_block,
      ),
      name=f'res{i + 2}',
    )

  @nn.compact
  def __call__(
    self,
    video: Float[Array, 'B T H W 3'],
    same_group: SameGroup = None,
    *,
    deterministic: bool | None = None,
    clip_index: ClipIndex = None,
    window: Window | None = None,
  ) -> Float[Array, 'B *positions K']:
    """Returns logits: [B, K], or [B, t, h, w, K] with `window`.

    Args:
      video: Normalised clips.
      same_group: Batch-norm groups (`norm.group_matrix`) in training; None in
        evaluation, which uses running statistics.
      deterministic: Whether dropout is off; by default in evaluation.
      clip_index: Their numbers in the batch, for `Dropout`; None: 0, 1, 2, ...
      window: Frames, height and width of the training clip: the head slides a
        window of that size over the features of a larger clip.
    """
    layer = functools.partial(Layer, **layer_options(self))
    blocks = stage_blocks(self.depth, self.blocks)
    check_num_temporal(self.num_temporal, blocks)
    pools_time = self.arch in ('c2d', 'i3d')
    x = video.astype(self.dtype)
    x = Stem(self.width, STEM_KERNELS[self.arch], layer, name='stem')(
      x, same_group
    )
    for i in range(len(blocks)):
      x = self._stage(i, blocks, layer)(x, same_group)
      if i == 0 and pools_time:
        x = conv.max_pool_temporal(x)
    windows = None
    if window is not None:
      frames = 2 if pools_time else 1
      windows = [head.features_window(window, len(blocks), frames)]
    return head.classify(
      self,
      [x],
      in_training=same_group is not None,
      deterministic=deterministic,
      clip_index=clip_index,
      windows=windows,
    )
