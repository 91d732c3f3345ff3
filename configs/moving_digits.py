r"""A small SlowFast learns motions from generated videos, on a laptop.

python -m mgjax.data.moving_digits --config=motion --out=data
python -m mgjax.train --config=configs/moving_digits.py:grid=both \
  --workdir=runs/digits

Arguments after the colon:
  grid  none, short, long, both, ladder or progressive
  seed  an integer
  size  demo: minutes on 2 cores; tiny: seconds, learns nothing, for trying out
"""

from configs import default
from mgjax.cli import ConfigError


def get_config(arg: str = ''):
  args = default.parse_args(arg, grid='both', seed=0, size='demo')
  config = default.base()
  config.seed = args.seed
  config.grid.mode = args.grid

  model = config.model
  model.name = 'slowfast'
  model.num_classes = 16
  model.blocks = (1, 1, 1)
  model.width = 16
  model.beta_inv = 4
  model.dropout = 0.2

  data = config.data
  data.name = 'moving_digits/motion'
  data.num_frames = 16
  data.stride_frames = 2
  data.target_fps = 0.0  # Strides count frames; all videos have one rate.
  data.crop_px = 64
  data.jitter_px = (64, 80)
  data.flip = False  # A mirrored motion has another label.
  data.batch_size = 8

  optim = config.optim
  optim.base_lr = 0.05
  optim.lr_steps = (5, 7)
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

  if args.size == 'tiny':
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
    raise ConfigError(f'size={args.size!r}; accepted are demo, tiny')
  return config
