"""The options of every network: the fields that config.model has.

Those of transformers are in transformer_options.py. The classes in mgjax/models
inherit them, so that an option is declared there only. Nothing here imports
JAX, which takes seconds: a misspelt option is refused before.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from mgjax.config import own, transformer_options
from mgjax.config.common_options import NetworkOptions
from mgjax.config.setting import (
  INTEGERS,
  INTEGERS_OF_STAGES,
  POSITIVE,
  Accepted,
  accepted,
  at_least,
  declare,
  is_number,
  is_window,
  one_of,
  setting,
  within,
)
from mgjax.errors import FieldError

# Blocks of each stage, by depth. PySlowFast's networks of one and two pathways:
PATHWAY_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
# ResNets on frames, and the 3-D ones of IBM's benchmark: torchvision's.
FRAME_BLOCKS = {
  18: (2, 2, 2, 2),
  34: (3, 4, 6, 3),
  50: (3, 4, 6, 3),
  101: (3, 4, 23, 3),
  152: (3, 8, 36, 3),
}
# Big-little networks: of depth 101, stages 2 and 3 differ from a plain ResNet's
# 4 and 23.
BIG_LITTLE_BLOCKS = {
  50: (3, 4, 6, 3),
  101: (4, 8, 18, 3),
  152: (5, 12, 30, 3),
}


def _depths(blocks: Mapping[int, tuple[int, ...]]) -> Accepted:
  text = one_of(*blocks).text
  return Accepted(
    f'{text} (`blocks` replaces the number of the blocks, not the kind of '
    'block that a depth has)',
    lambda v: v in blocks,
  )


@dataclasses.dataclass(kw_only=True)
class ResNet(NetworkOptions):
  """Of all residual networks."""

  depth: int = setting(50, _depths(PATHWAY_BLOCKS))
  # Blocks of each of one to four stages, such as (1, 1, 1, 1); (): those of
  # `depth`.
  blocks: tuple[int, ...] = setting((), INTEGERS)
  # Channels after the stem (of SlowFast: of the slow pathway's). The stages
  # have 4, 8, 16 and 32 times as many.
  width: int = setting(64, at_least(1))


@dataclasses.dataclass(kw_only=True)
class OnePathway(ResNet):
  """Slow, C2D and I3D."""

  # Per stage, how many blocks from the first have temporal kernels (those of
  # the architecture; the others have 1); (): all of them.
  num_temporal: tuple[int, ...] = setting((), INTEGERS)
  # Per stage, indices of the blocks that a non-local block follows, such as
  # ((), (1, 3), (1, 3, 5), ()); (): none. SlowFast: of the slow pathway.
  nonlocal_blocks: tuple[tuple[int, ...], ...] = setting((), INTEGERS_OF_STAGES)
  # Weights of the positions: 'softmax', or 'dot_product' over their number.
  nonlocal_mode: str = setting('softmax', one_of('softmax', 'dot_product'))
  # Frames, rows and columns of the max-pool in front of phi and g; or one such
  # window per stage. SlowFast: of the slow pathway.
  nonlocal_pool: tuple[Any, ...] = setting(
    (1, 2, 2),
    Accepted(
      'three positive integers, or such a tuple per stage',
      lambda v: is_window(v) or (v and all(map(is_window, v))),
    ),
  )
  # Per stage, groups of consecutive frames within which non-local blocks act;
  # (): 1, all frames together. SlowFast: of the slow pathway.
  nonlocal_groups: tuple[int, ...] = setting((), INTEGERS)


@dataclasses.dataclass(kw_only=True)
class SlowFast(OnePathway):
  """Two pathways."""

  alpha: int = setting(4, at_least(1))  # Fast frames per slow frame.
  beta_inv: int = setting(8, at_least(1))  # Slow channels per fast channel.
  # Temporal size of the lateral kernels.
  fusion_kernel: int = setting(
    7, Accepted('odd and positive', lambda v: v >= 1 and v % 2 == 1)
  )
  fusion_ratio: int = setting(2, at_least(1))  # Lateral channels per fast one.
  # Non-local blocks of the fast pathway.
  nonlocal_blocks_fast: tuple[tuple[int, ...], ...] = setting(
    (), INTEGERS_OF_STAGES
  )
  # Their max-pool; (): that of the slow pathway.
  nonlocal_pool_fast: tuple[Any, ...] = setting(
    (),
    Accepted(
      'three positive integers, such a tuple per stage, or ()',
      lambda v: is_window(v) or all(map(is_window, v)),
    ),
  )
  nonlocal_groups_fast: tuple[int, ...] = setting((), INTEGERS)


_TAM_FRAMES = Accepted(
  'an odd number of frames, or 0', lambda v: v == 0 or (v > 0 and v % 2 == 1)
)


@dataclasses.dataclass(kw_only=True)
class OnFrames(ResNet):
  """ResNets on sampled frames, and those of IBM's benchmark."""

  # Those below 50 have basic blocks.
  depth: int = setting(50, _depths(FRAME_BLOCKS))
  # Temporal stride, 1 or 2, at the entrance of every stage, such as
  # (1, 2, 2, 2); (): no stride. In I3D-ResNet and S3D-ResNet it is the stride
  # of a convolution, else a pool.
  temporal_strides: tuple[int, ...] = setting(
    (),
    Accepted(
      'strides of 1 or 2, one per stage, or ()',
      lambda v: INTEGERS.test(v) and set(v) <= {1, 2},
    ),
  )


@dataclasses.dataclass(kw_only=True)
class S3DResNet(OnFrames):
  """ResNet with separate spatial and temporal convolutions."""

  # Whether the 3 x 1 x 1 layers are depthwise (the source's `dw_t_conv`).
  depthwise_temporal: bool = setting(False)


@dataclasses.dataclass(kw_only=True)
class TSN(OnFrames):
  """ResNet on every frame."""

  # What a temporal stride is: a pool of three frames.
  temporal_pool: str = setting('max', one_of('max', 'avg'))


@dataclasses.dataclass(kw_only=True)
class TSM(TSN):
  """With temporal shifts."""

  # 1 / shift_div of the channels come from the next frame, as many from the
  # frame before.
  shift_div: int = setting(8, at_least(2))
  # 'blockres' shifts the input of residual branches (where a third stage has
  # 23 blocks or more: of every second one); 'block' that of whole blocks,
  # shortcut included.
  shift_place: str = setting('blockres', one_of('blockres', 'block'))


@dataclasses.dataclass(kw_only=True)
class TAM(TSN):
  """With temporal aggregation."""

  # Frames that are aggregated, odd; 0: no aggregation, a TSN.
  tam_frames: int = setting(3, _TAM_FRAMES)
  # 'sum' of the weighted frames, or their 'max'.
  tam_blend: str = setting('sum', one_of('sum', 'max'))
  # Whether every channel is weighed by itself; else a frame's weights mix all.
  tam_depthwise: bool = setting(True)


@dataclasses.dataclass(kw_only=True)
class BLResNet(ResNet):
  """Big-little network."""

  depth: int = setting(50, _depths(BIG_LITTLE_BLOCKS))
  # Channels of the big branch per channel of the little one.
  bl_alpha: int = setting(2, at_least(1))
  # Blocks of a stage per block of its little branch, about.
  bl_beta: int = setting(4, at_least(1))


@dataclasses.dataclass(kw_only=True)
class BLVNetTAM(BLResNet):
  """On pairs of frames, with temporal aggregation."""

  # Frames that are aggregated, odd; 0: no aggregation.
  tam_frames: int = setting(3, _TAM_FRAMES)


# By config.model.name.
NETWORKS: dict[str, type[NetworkOptions]] = {
  'slowfast': SlowFast,
  'slow': OnePathway,
  'c2d': OnePathway,
  'i3d': OnePathway,
  'tsn': TSN,
  'tsm': TSM,
  'tam': TAM,
  'blresnet': BLResNet,
  'blvnet_tam': BLVNetTAM,
  'i3d_resnet': OnFrames,
  's3d_resnet': S3DResNet,
  'vit': transformer_options.ViT,
  'videoprism': transformer_options.VideoPrism,
  'mvit': transformer_options.MViT,
  'timesformer': transformer_options.TimeSformer,
}


@dataclasses.dataclass(kw_only=True)
class NormOptions:
  """What config.norm says of every batch norm."""

  # Share of the running statistics that a step keeps.
  norm_momentum: float = setting(0.9, within('[0, 1]'))
  # Added to variances.
  norm_eps: float = setting(1e-5, POSITIVE)
  # Batch norms that are the same in training as in evaluation: 'all',
  # 'but_first' (all but the first of each pathway) or '', none.
  norm_frozen: str = setting('', one_of('', 'all', 'but_first'))


@dataclasses.dataclass(kw_only=True)
class Given(NormOptions):
  """What the trainer gives every network besides its options.

  One of the user's own gets it only where its class has an argument of the
  name. All other arguments of such a class are options: config.model.options.
  """

  # Whether the backward pass computes the inside of residual blocks again.
  remat: bool = setting(False)


GIVEN = {field.name: field for field in dataclasses.fields(Given)}


class Fields(NamedTuple):
  """Fields by name, of a section whose `name` decides which it has.

  Attributes:
    section: Of the section itself, but `name` and `options`.
    options: Of its `options`, which an object of the user's own has.
  """

  section: dict[str, dataclasses.Field]
  options: dict[str, dataclasses.Field]


def fields(name: Any) -> Fields:
  """The fields that a network has.

  Args:
    name: config.model.name: one of `NETWORKS`, or 'package.module:Name'.

  Raises:
    FieldError: There is no such network.
  """
  if own.is_own(name):
    return _own_fields(name)
  if name not in NETWORKS:
    raise FieldError(
      f'model.name is {name!r}; it must be one of {", ".join(NETWORKS)}, or '
      "one of your own, 'package.module:Name'."
    )
  return Fields({f.name: f for f in dataclasses.fields(NETWORKS[name])}, {})


def options_of(name: str) -> type[NetworkOptions]:
  """The class of a network's options; of one's own, what all have.

  Such a network may have batch norms: what it has is known once it is traced.
  """
  return NETWORKS.get(name, NetworkOptions)


def _own_fields(name: str) -> Fields:
  common = {f.name: f for f in dataclasses.fields(NetworkOptions)}
  made = own.load('model.name', name)
  takes = own.parameters(made)
  options = own.options(made)
  # Linen gives every module the arguments `parent` and `name`.
  not_options = {*common, *GIVEN, 'parent', 'name'}
  return Fields(
    {'num_classes': common['num_classes']}
    | {
      argument: _with_default(common[argument], parameter.default)
      for argument, parameter in takes.items()
      if argument in common
    },
    {
      argument: field
      for argument, field in options.items()
      if argument not in not_options
    },
  )


def _with_default(common: dataclasses.Field, default: Any) -> dataclasses.Field:
  """A field of all networks, with the default that a class has of its own."""
  if common.name == 'dropout' and is_number(default):
    default = float(default)
  elif common.name == 'dtype':
    # Of types such as jnp.bfloat16, their name, as a config has it.
    if not isinstance(default, str):
      default = getattr(default, 'name', getattr(default, '__name__', None))
    if default is None:
      return common
  else:
    return common  # The classes are those of the data set.
  return declare(common.name, common.type, default, accepted(common))


def networks_with(option: str) -> list[str]:
  """The networks that have an option."""
  return [name for name in NETWORKS if option in fields(name).section]
