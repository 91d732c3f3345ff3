r"""Kinetics-400 by the stepwise recipe, with and without multigrid training.

python -m mgjax.train --config=configs/kinetics400.py:grid=both,seed=0 \
  --workdir=runs/k400

Arguments after the colon: grid=none|short|long|both|ladder|progressive,
model=slowfast|slow|i3d|c2d, seed=N. grid=none is the baseline; nothing else
changes with it.

Source: PySlowFast 287ec00, configs/Kinetics/SLOWFAST_8x8_R50_stepwise.yaml;
  frames of the other models from C2D_8x8_R50.yaml and its neighbours.
Differs: PySlowFast tests its multigrid models at 224 pixels and its baselines
  at 256; here both are tested at 256.
"""

import ml_collections

from configs import default
from mgjax.cli import ConfigError

# (T, frames from one to the next). SlowFast's slow pathway sees 8 x 8 of them.
_FRAMES = {'slowfast': (32, 2), 'slow': (8, 8), 'i3d': (8, 8), 'c2d': (8, 8)}


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  args = default.parse_args(arg, grid='both', model='slowfast', seed=0)
  if args.model not in _FRAMES:
    raise ConfigError(
      f'config argument model={args.model!r} is unknown here; accepted are '
      f'{", ".join(_FRAMES)}.'
    )
  config = default.base()
  config.seed = args.seed
  config.grid.mode = args.grid

  config.model.name = args.model
  config.model.num_classes = 400

  config.data.name = 'kinetics400'
  config.data.num_frames, config.data.stride_frames = _FRAMES[args.model]
  config.data.crop_px = 224
  config.data.jitter_px = (256, 320)
  config.data.batch_size = 64

  config.optim.base_lr = 0.1
  config.optim.lr_steps = (94, 154, 196)
  config.optim.total_epochs = 239
  config.optim.warmup_epochs = 34.0
  config.optim.warmup_lr = 0.01
  config.optim.weight_decay = 1e-4

  config.eval.every = 10.0
  config.eval.num_views = 10
  config.eval.num_crops = 3
  config.eval.crop_px = 256
  return default.validate(config)
