"""What the configs of published recipes share: networks and fine-tuning.

Source: PySlowFast 287ec00, configs/Kinetics, SSv2 and Charades.
"""

import re

import ml_collections

from mgjax.config import arguments, fields
from mgjax.errors import ConfigError
from mgjax.recipes import segments, transformers

ARCHITECTURES = ('slowfast', 'slow', 'i3d', 'c2d')

# Frames of the slow (or only) pathway x frames from one to the next.
_FRAMES = {'4x16': (4, 16), '8x8': (8, 8), '16x8': (16, 8)}


def set_network(
  config: ml_collections.ConfigDict, name: str, *, frames: str
) -> None:
  """Sets config.model, data.num_frames and data.stride_frames by a name.

  Args:
    config: Changed in place.
    name: ARCHITECTURE[_nln][_r50|_r101][_4x16|_8x8|_16x8][_50_50|_101_101]:
      with non-local blocks; depth; frames; and at depth 101 which blocks of
      res4 have temporal kernels: as many as ResNet-50 has, or all. What is
      left out is r50, `frames` and 101_101.
    frames: Such as '8x8'.

  Raises:
    ConfigError: If there is no such network.

  Source: SLOWFAST_4x16_R50.yaml, c2/SLOWFAST_16x8_R101_50_50.yaml,
    I3D_NLN_8x8_R101.yaml and their neighbours; other combinations by the
    same rules.
  """
  match = re.fullmatch(
    f'(?P<arch>{"|".join(ARCHITECTURES)})(?P<nln>_nln)?(_r(?P<depth>50|101))?'
    f'(_(?P<frames>{"|".join(_FRAMES)}))?'
    '(_(?P<temporal>50_50|101_101))?',
    name,
  )
  if not match or (match['temporal'] and match['depth'] != '101'):
    raise ConfigError(
      f'config argument model={name!r} is unknown here; accepted are '
      f'{", ".join(ARCHITECTURES)}, and longer names such as slow_nln_r50_8x8, '
      'slowfast_r101_16x8 or slowfast_r101_16x8_50_50; where a config has '
      f'models on segments, {segments.ACCEPTED}; where it has transformers, '
      f'{", ".join(transformers.NETWORKS)}.'
    )
  arch, deep = match['arch'], match['depth'] == '101'
  num_frames, stride = _FRAMES[match['frames'] or frames]

  model = config.model
  model.name = arch
  model.depth = 101 if deep else 50
  if match['temporal'] == '50_50':
    model.num_temporal = (3, 4, 6, 3)
  if match['nln']:
    model.nonlocal_blocks = ((), (1, 3), (1, 3, 5), ())
    model.nonlocal_mode = 'softmax' if arch in ('i3d', 'c2d') else 'dot_product'
  if arch == 'slowfast':
    # The fast pathway sees every second frame, whatever the slow one.
    model.alpha = stride // 2
    num_frames, stride = num_frames * model.alpha, 2
    wide = not deep and not match['nln'] and model.alpha == 4
    model.fusion_kernel = 7 if wide else 5
  config.data.num_frames, config.data.stride_frames = num_frames, stride


def from_args(arg: str, *, frames: str) -> ml_collections.ConfigDict:
  """Returns the default config with the arguments grid, model and seed set.

  Args:
    arg: What follows the colon of --config, such as 'grid=none,model=slow'.
    frames: Of a model whose name does not say, such as '8x8'.

  Raises:
    ConfigError: If an argument is unknown.
  """
  args = arguments.parse_args(arg, grid='both', model='slowfast', seed=0)
  config = fields.base()
  config.seed = args.seed
  config.grid.mode = args.grid
  set_network(config, args.model, frames=frames)
  return config


def set_fine_tuning(config: ml_collections.ConfigDict) -> None:
  """Sets what SSv2 and Charades share: small batches, no long warm-up."""
  config.data.crop_px = 224
  config.data.jitter_inverse = True
  config.data.batch_size = 16
  config.optim.warmup_lr = 1e-4
  config.eval.crop_px = 256
  config.eval.batch_size = 16
