r"""A small SlowFast learns motions from generated videos, on a laptop.

python -m mgjax.data.moving_digits --config=motion --out=data
python -m mgjax.train --config=configs/moving_digits.py:grid=both \
  --workdir=runs/digits

Arguments after the colon:
  grid    none, short, long, both, ladder or progressive
  seed    an integer
  model   slowfast, slow, tsn, tsm, tam, blvnet_tam or vit
  frames  of a clip, over the same span: 2, 4, 8, 16 or 32; 0: those of the size
  labels  motion, or digit_motion: appearance matters too
  size    demo: 16 x 64 x 64, 8 epochs, minutes on 2 cores; medium: 16 x 56 x
          56, and small: 8 x 48 x 48, 6 epochs, for many runs; tiny: seconds,
          learns nothing, to try things
"""

import ml_collections

from mgjax.config import arguments, fields
from mgjax.errors import ConfigError

_MODELS = ('slowfast', 'slow', 'tsn', 'tsm', 'tam', 'blvnet_tam', 'vit')
_FRAMES = (2, 4, 8, 16, 32)
_NUM_CLASSES = {'motion': 16, 'digit_motion': 40}
_SIZES = {'demo': 16, 'medium': 16, 'small': 8, 'tiny': 8}  # And their frames.


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  args = arguments.parse_args(
    arg,
    grid='both',
    seed=0,
    model='slowfast',
    frames=0,
    labels='motion',
    size='demo',
  )
  if args.size not in _SIZES:
    raise ConfigError(f'size={args.size!r}; accepted are {tuple(_SIZES)}')
  if args.labels not in _NUM_CLASSES:
    raise ConfigError(
      f'labels={args.labels!r}; accepted are {tuple(_NUM_CLASSES)}'
    )
  if args.size == 'tiny' and args.labels != 'motion':
    raise ConfigError(f'size=tiny has labels=motion only, not {args.labels!r}')
  frames = args.frames or _SIZES[args.size]
  if args.model not in _MODELS:
    raise ConfigError(f'model={args.model!r}; accepted are {_MODELS}')
  if frames not in _FRAMES:
    raise ConfigError(f'frames={args.frames}; accepted are 0, {_FRAMES}')
  config = fields.base()
  config.seed = args.seed
  config.grid.mode = args.grid

  model = config.model
  model.name = args.model
  model.num_classes = _NUM_CLASSES[args.labels]
  if args.model != 'vit':
    model.blocks = (1, 1, 1)
    model.width = 16
    model.dropout = 0.2
  if args.model == 'slowfast':
    model.beta_inv = 4
    if args.size in ('small', 'tiny'):
      model.alpha = 2  # A quarter of the frames is one for the slow pathway.
  if args.model in ('tsn', 'tsm', 'tam'):
    model.depth = 18  # Basic blocks.

  data = config.data
  data.name = f'moving_digits/{args.labels}'
  data.num_frames = frames
  data.stride_frames = 32 // frames
  data.target_fps = 0.0  # Strides count frames; all videos have one rate.
  data.crop_px = 64
  data.jitter_px = (64, 80)
  data.flip = False  # A mirrored motion has another label.
  data.batch_size = 8
  data.num_workers = 2

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

  if args.size == 'medium':
    data.crop_px = config.eval.crop_px = config.eval.short_side_px = 56
    data.jitter_px = (56, 70)
  elif args.size == 'small':
    data.crop_px = config.eval.crop_px = config.eval.short_side_px = 48
    data.jitter_px = (48, 60)
    optim.lr_steps = (4,)
    optim.total_epochs = 6
    config.grid.ladder = ((0.5, 6, 0.05, 'cosine'), (1, 3, 0.05, 'cosine'))
  elif args.size == 'tiny':
    data.name = 'moving_digits/motion_tiny'
    if args.model != 'vit':
      model.blocks = (1, 1)
      model.width = 8
    data.crop_px = config.eval.crop_px = config.eval.short_side_px = 32
    data.jitter_px = (32, 40)
    optim.lr_steps = (2, 3)
    optim.total_epochs = 4
    config.grid.ladder = ((0.5, 2, 0.05, 'cosine'), (1, 1, 0.05, 'cosine'))
    config.norm.precise_batches = 2
    config.eval.every = 3.0
    config.eval.batch_size = 20
    config.train.log_every_steps = 1
  if args.model == 'vit':
    _set_transformer(config, args.grid, tiny=args.size == 'tiny')
  return config


def _set_transformer(
  config: ml_collections.ConfigDict, grid: str, *, tiny: bool
) -> None:
  """Sets a small transformer, and what its tokens ask of the grids."""
  model, data = config.model, config.data
  model.depth, model.width, model.heads = (2, 24, 2) if tiny else (4, 96, 3)
  model.patch_px, model.tubelet_frames = 8, 2
  model.position_grid = (data.num_frames, data.crop_px, data.crop_px)
  config.grid.side_multiple = model.patch_px
  config.grid.frames_multiple = model.tubelet_frames
  config.optim.name = 'adamw'
  config.optim.weight_decay = 0.05
  config.optim.base_lr, config.optim.warmup_lr = 5e-4, 1e-4
  config.optim.batch_rule = 'sqrt'
  if not tiny:
    data.batch_size = 16
    config.optim.total_epochs, config.optim.lr_steps = 12, (9,)
    # Each the better of two (experiments/pages/transformers.md): the full grid
    # does not learn at a constant rate, and a cosine leaves the last phases
    # none.
    if grid not in ('short', 'long', 'both'):
      config.optim.schedule = 'cosine'
  config.grid.ladder = tuple(
    (factor, epochs, config.optim.base_lr, schedule)
    for factor, epochs, _, schedule in config.grid.ladder
  )
