r"""A small SlowFast learns motions from generated videos, on a laptop.

python -m mgjax.data.moving_digits --config=motion --out=data
python -m mgjax.train --config=configs/moving_digits.py:grid=both \
  --workdir=runs/digits

Arguments after the colon:
  grid    none, short, long, both, ladder or progressive
  seed    an integer
  model   slowfast, tsn, tsm, tam or blvnet_tam
  frames  of a clip, over the same span: 2, 4, 8, 16 or 32 (slowfast: 4 or more)
  size    demo: 64 pixels, minutes on 2 cores; small: 48 pixels; tiny: seconds,
          learns nothing, for trying out
"""

import ml_collections

from configs import default
from mgjax.cli import ConfigError

_MODELS = ('slowfast', 'tsn', 'tsm', 'tam', 'blvnet_tam')
_FRAMES = (2, 4, 8, 16, 32)


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  args = default.parse_args(
    arg, grid='both', seed=0, model='slowfast', frames=16, size='demo'
  )
  if args.model not in _MODELS:
    raise ConfigError(f'model={args.model!r}; accepted are {_MODELS}')
  if args.frames not in _FRAMES:
    raise ConfigError(f'frames={args.frames}; accepted are {_FRAMES}')
  config = default.base()
  config.seed = args.seed
  config.grid.mode = args.grid

  model = config.model
  model.name = args.model
  model.num_classes = 16
  model.blocks = (1, 1, 1)
  model.width = 16
  model.beta_inv = 4
  model.dropout = 0.2
  if args.model in ('tsn', 'tsm', 'tam'):
    model.depth = 18  # Basic blocks.

  data = config.data
  data.name = 'moving_digits/motion'
  data.num_frames = args.frames
  data.stride_frames = 32 // args.frames
  data.target_fps = 0.0  # Strides count frames; all videos have one rate.
  data.crop_px = 64
  data.jitter_px = (64, 80)
  data.flip = False  # A mirrored motion has another label.
  data.batch_size = 8

  optim = config.optim
  optim.base_lr = 0.05
  # One decay, so one long cycle: a second one of so few epochs would be coarse
  # grids only, at a rate that no longer makes up for them.
  optim.lr_steps = (6,)
  optim.total_epochs = 8
  optim.warmup_epochs = 1.0
  optim.warmup_lr = 0.01

  config.grid.num_long_cycles = 2
  config.grid.ladder = ((0.5, 8, 0.05, 'cosine'), (1, 4, 0.05, 'cosine'))

  config.norm.precise_batches = 20

  config.eval.every = 0.0
  config.eval.num_views = 1
  config.eval.num_crops = 1
  config.eval.crop_px = 64
  config.eval.short_side_px = 64
  config.eval.batch_size = 50

  config.train.checkpoint_every_s = 60.0

  if args.size == 'small':
    data.crop_px = config.eval.crop_px = config.eval.short_side_px = 48
    data.jitter_px = (48, 60)
  elif args.size == 'tiny':
    data.name = 'moving_digits/motion_tiny'
    model.blocks = (1, 1)
    model.width = 8
    model.alpha = 2
    data.num_frames = 8
    data.stride_frames = 4
    data.crop_px = config.eval.crop_px = config.eval.short_side_px = 32
    data.jitter_px = (32, 40)
    optim.lr_steps = (2, 3)
    optim.total_epochs = 4
    config.grid.ladder = ((0.5, 2, 0.05, 'cosine'), (1, 1, 0.05, 'cosine'))
    config.norm.precise_batches = 2
    config.eval.every = 3.0
    config.eval.batch_size = 20
    config.train.log_every_steps = 1
  elif args.size != 'demo':
    raise ConfigError(f'size={args.size!r}; accepted are demo, small, tiny')
  return config
