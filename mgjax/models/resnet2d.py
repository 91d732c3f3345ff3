"""2-D residual networks on sampled frames: TSN, TSM, TAM.

Each frame goes through a ResNet, the logits are averaged over frames. TSN
looks at every frame by itself; TSM and TAM mix neighbouring frames at the
input of residual blocks. The parts are also those of the 3-D networks of
IBM's benchmark (ibm_resnet3d.py).
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
from jaxtyping import Array, Float

from mgjax.config import network_options
from mgjax.models import conv, head, resnet3d, temporal
from mgjax.models.head import ClipIndex


class LayerShape(NamedTuple):
  """One layer of a residual branch."""

  name: str
  features: int
  kernel_size: tuple[int, int, int]
  strides: tuple[int, int, int] = (1, 1, 1)
  depthwise: bool = False


class Block(nn.Module):
  """Residual block: the layers of its branch, plus a shortcut.

  Attributes:
    branch: The layers, all but the last one with ReLU.
    strides: Of the whole block: T, H and W.
    layer: `resnet3d.Layer` with the network's options.
    temporal: Makes the module in front of the branch, if there is one.
    temporal_shortcut: Whether the shortcut starts behind that module too.

  Source: torchvision's ResNet (strides in the 3 x 3 layer); the modules' place
    as in IBM/action-recognition-pytorch 67cc96f, models/twod_models/resnet.py.
  """

  branch: tuple[LayerShape, ...]
  strides: tuple[int, int, int]
  layer: Callable[..., resnet3d.Layer]
  temporal: Callable[..., nn.Module] | None = None
  temporal_shortcut: bool = False

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B T H W C'], same_group: resnet3d.SameGroup
  ) -> Float[Array, 'B t h w D']:
    shortcut = x
    if self.temporal is not None:
      x = self.temporal(name='temporal')(x)
      if self.temporal_shortcut:
        shortcut = x
    features = self.branch[-1].features
    if x.shape[-1] != features or self.strides != (1, 1, 1):
      shortcut = self.layer(
        features, (1, 1, 1), self.strides, relu=False, name='shortcut'
      )(shortcut, same_group)
    for shape in self.branch:
      x = self.layer(
        shape.features,
        shape.kernel_size,
        shape.strides,
        depthwise=shape.depthwise,
        relu=shape is not self.branch[-1],
        name=shape.name,
      )(x, same_group)
    return conv.join(x, shortcut)


class Stage(nn.Module):
  """Blocks, one after the other: block0, block1, ..."""

  blocks: tuple[Callable[..., nn.Module], ...]

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B T H W C'], same_group: resnet3d.SameGroup
  ) -> Float[Array, 'B t h w D']:
    for i, block in enumerate(self.blocks):
      x = block(name=f'block{i}')(x, same_group)
    return x


class ResNet(head.VideoNetwork, network_options.OnFrames):
  """ResNet-18 to -152; subclasses say what happens in time.

  Source: IBM/action-recognition-pytorch 67cc96f, whose `without_t_stride=False`
    is temporal_strides = (1, 2, 2, 2).
  """

  stem_kernel = 1  # Temporal size of the first layer.

  def __post_init__(self):
    super().__post_init__()
    blocks = resnet3d.stage_blocks(
      self.depth, self.blocks, network_options.FRAME_BLOCKS
    )
    strides = self.temporal_strides
    if strides and len(strides) != len(blocks):
      raise ValueError(
        f'temporal_strides is {tuple(strides)}; it must be a 1 or 2 for each '
        f'of the {len(blocks)} stages, or ().'
      )

  def spatial_layers(
    self, name: str, features: int, strides: tuple[int, int, int]
  ) -> tuple[LayerShape, ...]:
    """What stands for a 3 x 3 layer of the ResNet."""
    return (LayerShape(name, features, (1, 3, 3), strides),)

  def temporal_options(self, blocks: tuple[int, ...], block: int) -> dict:
    """Options of `Block` for the temporal module of a stage's `block`."""
    return {}

  def enter_stage(
    self, x: Float[Array, 'B T H W C'], stride: int
  ) -> tuple[Float[Array, 'B t H W C'], int]:
    """What strides time in front of a stage; returns the stride left to it."""
    return x, stride

  def _branch(self, inner, strides):
    if self.depth < 50:
      return (
        *self.spatial_layers('a', inner, strides),
        *self.spatial_layers('b', inner, (1, 1, 1)),
      )
    return (
      LayerShape('a', inner, (1, 1, 1)),
      *self.spatial_layers('b', inner, strides),
      LayerShape('c', 4 * inner, (1, 1, 1)),
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
    blocks = resnet3d.stage_blocks(
      self.depth, self.blocks, network_options.FRAME_BLOCKS
    )
    x = video.astype(self.dtype)
    x = resnet3d.Stem(self.width, self.stem_kernel, layer, name='stem')(
      x, same_group
    )
    for i, stride in enumerate(self.temporal_strides or (1,) * len(blocks)):
      x, stride = self.enter_stage(x, stride)
      first = (stride, 1, 1) if i == 0 else (stride, 2, 2)
      stage = []
      for j in range(blocks[i]):
        strides = first if j == 0 else (1, 1, 1)
        stage.append(
          functools.partial(
            resnet3d.maybe_remat(Block, self.remat),
            self._branch(self.width * 2**i, strides),
            strides,
            layer,
            **self.temporal_options(blocks, j),
          )
        )
      x = Stage(tuple(stage), name=f'res{i + 2}')(x, same_group)
    return head.classify(
      self,
      [x],
      in_training=same_group is not None,
      deterministic=deterministic,
      clip_index=clip_index,
      per_frame=True,
    )


_TEMPORAL_POOLS = {
  'max': conv.max_pool_temporal_overlapping,
  'avg': conv.avg_pool_temporal_overlapping,
}


class FrameResNet(ResNet, network_options.TSN):
  """ResNet on every frame, with pools of three frames as temporal strides."""

  def enter_stage(
    self, x: Float[Array, 'B T H W C'], stride: int
  ) -> tuple[Float[Array, 'B t H W C'], int]:
    return _TEMPORAL_POOLS[self.temporal_pool](x) if stride == 2 else x, 1


class TSN(FrameResNet):
  """Temporal segment network: frames meet in the average of their logits.

  Source: Wang et al. 2016 (arXiv:1608.00859).
  """


class TSM(FrameResNet, network_options.TSM):
  """TSN with temporal shifts.

  Source: Lin et al. 2019 (arXiv:1811.08383); mit-han-lab/temporal-shift-module,
    ops/temporal_shift.py, make_temporal_shift.
  """

  def temporal_options(self, blocks: tuple[int, ...], block: int) -> dict:
    in_place = self.shift_place == 'block'
    every = 2 if not in_place and len(blocks) > 2 and blocks[2] >= 23 else 1
    if block % every:
      return {}
    return {
      'temporal': functools.partial(
        temporal.TemporalShift, shift_div=self.shift_div
      ),
      'temporal_shortcut': in_place,
    }


class TAM(FrameResNet, network_options.TAM):
  """TSN with temporal aggregation in front of every residual branch.

  Source: Chen et al. 2021 (arXiv:2010.11757); IBM/action-recognition-pytorch
    67cc96f, models/twod_models/temporal_modeling.py.
  """

  def temporal_options(self, blocks: tuple[int, ...], block: int) -> dict:
    if not self.tam_frames:
      return {}
    return {
      'temporal': functools.partial(
        temporal.TemporalAggregation,
        self.tam_frames,
        self.tam_blend,
        self.tam_depthwise,
        dtype=self.dtype,
      )
    }
