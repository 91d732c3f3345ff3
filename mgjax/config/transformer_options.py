"""The options of transformers: see network_options.py."""

import dataclasses
from typing import Any, ClassVar

from mgjax.config.common_options import NetworkOptions
from mgjax.config.setting import (
  INTEGERS,
  POSITIVE,
  Accepted,
  at_least,
  is_window,
  one_of,
  setting,
  within,
)


@dataclasses.dataclass(kw_only=True)
class Transformer(NetworkOptions):
  """Of the transformers whose tokens are patches of one size throughout."""

  has_batch_norm: ClassVar[bool] = False
  has_class_maps: ClassVar[bool] = False

  # Rate of the dropout before the classifier, in training.
  dropout: float = setting(0.0, within('[0, 1)'))
  width: int = setting(768, at_least(1))  # Features of a token.
  heads: int = setting(12, at_least(1))  # They divide the width.
  # Hidden features of the blocks' MLPs; 0: four times the width.
  mlp_width: int = setting(0, at_least(0))
  # Height and width of a patch (of a tubelet), of which all clips have a
  # multiple.
  patch_px: int = setting(16, at_least(1))
  # Added to the variances of the encoder's LayerNorms.
  layer_norm_eps: float = setting(1e-6, POSITIVE)
  # Share of the clips that skip a branch of the last block in training; at the
  # first block it is 0, between them it grows evenly.
  drop_path: float = setting(0.0, within('[0, 1)'))


_POSITION_GRID = Accepted('three positive integers', is_window)


@dataclasses.dataclass(kw_only=True)
class ViT(Transformer):
  """Plain video transformer: VideoMAE, V-JEPA 2, ViViT are settings of it."""

  depth: int = setting(12, at_least(1))  # Blocks.
  # Frames of a tubelet, of which all clips have a multiple.
  tubelet_frames: int = setting(2, at_least(1))
  # 'sincos': a fixed table is added to the tokens (VideoMAE). 'rope': queries
  # and keys turn with frame, row and column (V-JEPA 2). 'learned': a table of
  # parameters is added (ViViT).
  positions: str = setting('sincos', one_of('sincos', 'rope', 'learned'))
  # Frames, height and width in pixels of the clips whose tokens have the
  # positions 0, 1, 2, ...: of those that a table is made for.
  position_grid: tuple[int, ...] = setting((16, 224, 224), _POSITION_GRID)
  # Along which axes clips of other sizes cover what those of `position_grid`
  # do, so that their positions are scaled to it: time (t), height and width
  # (hw), or 'none': tokens of every clip are counted 0, 1, 2, ... '': as the
  # references do, 'none' with 'rope' and 'thw' else.
  position_scale: str = setting('', one_of('', 'none', 't', 'hw', 'thw'))
  # Whether the encoder's blocks are one loop, whose parameters are stacked at
  # every step. experiments/bench/blocks_loop measures what that is worth.
  scan_blocks: bool = setting(False)
  # Which of query, key and value have a bias: 'qkv' (V-JEPA 2, ViViT), 'qv'
  # (VideoMAE) or '', none.
  qkv_bias: str = setting('qv', one_of('qkv', 'qv', ''))
  # Of the blocks' MLPs: 'exact', or an approximation by 'tanh' (ViViT).
  gelu: str = setting('exact', one_of('exact', 'tanh'))
  # What is classified. 'mean': the average of the tokens, normalised
  # (VideoMAE); 'first': the first token, after the norm of all; 'class': a
  # token beside those of the clip, after the norm of all (ViViT); 'probe': what
  # a learned query finds by attention (V-JEPA 2).
  pool: str = setting('mean', one_of('mean', 'first', 'class', 'probe'))
  # Added to the variances of the LayerNorms behind the encoder: that of
  # pool='mean', or those of the probe.
  head_norm_eps: float = setting(1e-6, POSITIVE)
  # 'probe': blocks in front of the query's attention.
  probe_blocks: int = setting(3, at_least(0))
  # 'probe': its heads; 0: as many as those of the encoder.
  probe_heads: int = setting(0, at_least(0))
  # Whether the initial weights of the last layers of attention and MLP in block
  # number i (from 1) are divided by the root of 2 i (V-JEPA 2).
  rescaled_init: bool = setting(False)
  # Standard deviation of the classifier's initial weights.
  head_std: float = setting(0.01, POSITIVE)


@dataclasses.dataclass(kw_only=True)
class VideoPrism(Transformer):
  """Each frame's patches attend to each other; then each place's frames do."""

  patch_px: int = setting(18, at_least(1))
  spatial_depth: int = setting(12, at_least(1))  # Blocks over each frame.
  temporal_depth: int = setting(4, at_least(1))  # Blocks over each place.
  # Frames, height and width in pixels of the clips that the learned tables of
  # positions are made for; for others they are interpolated.
  position_grid: tuple[int, ...] = setting((16, 288, 288), _POSITION_GRID)
  # What the affinities of the blocks' attention stay below in magnitude; 0: no
  # bound.
  logit_cap: float = setting(50.0, at_least(0))


def _are_positive(value: Any) -> bool:
  return bool(value) and INTEGERS.test(value) and min(value) >= 1


_ODD_WINDOW = Accepted(
  'three odd positive integers',
  lambda v: is_window(v) and all(n % 2 for n in v),
)


@dataclasses.dataclass(kw_only=True)
class MViT(NetworkOptions):
  """Multiscale video transformer, MViTv2."""

  has_batch_norm: ClassVar[bool] = False
  has_class_maps: ClassVar[bool] = False

  # Blocks of each stage. A stage has half the rows and columns of tokens of the
  # one before.
  blocks: tuple[int, ...] = setting(
    (1, 2, 11, 2),
    Accepted('positive integers', _are_positive),
  )
  # Features of a token in the first stage; each stage has twice as many as the
  # one before.
  width: int = setting(96, at_least(1))
  # In the first stage, where they divide the width; then they double, too.
  heads: int = setting(1, at_least(1))
  # Frames from one token to the next, of which all clips have a multiple.
  tubelet_frames: int = setting(2, at_least(1))
  # Rows and columns from one token to the next, of which all clips have a
  # multiple.
  patch_px: int = setting(4, at_least(1))
  # Frames, rows and columns that a token sees.
  patch_kernel: tuple[int, ...] = setting((3, 7, 7), _ODD_WINDOW)
  # Frames, rows and columns of tokens that a pooled one sees.
  pool_kernel: tuple[int, ...] = setting((3, 3, 3), _ODD_WINDOW)
  # Rows and columns from one key to the next, in tokens of the first stage; a
  # stage has half of the one before, 1 at least.
  kv_stride: int = setting(8, at_least(1))
  # Frames, height and width in pixels of the clips that the tables of relative
  # positions are made for; for others they are interpolated.
  position_grid: tuple[int, ...] = setting((16, 224, 224), _POSITION_GRID)
  # Share of the clips that skip a branch of the last block in training; at the
  # first block it is 0, between them it grows evenly.
  drop_path: float = setting(0.0, within('[0, 1)'))


@dataclasses.dataclass(kw_only=True)
class TimeSformer(Transformer):
  """Video transformer with attention over time, then over space."""

  depth: int = setting(12, at_least(1))  # Blocks.
  # Frames, height and width in pixels of the clips that the tables of learned
  # positions are made for; for others, the nearest of each axis is taken.
  position_grid: tuple[int, ...] = setting((8, 224, 224), _POSITION_GRID)
