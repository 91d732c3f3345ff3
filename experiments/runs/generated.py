"""The runs on generated videos: what this project has trained itself."""

from experiments.runs.run import Run

# Small networks, which costs.csv does not have.
FILE = 'moving_digits'

MODES = ('none', 'short', 'long', 'both')
FACTORS = (0.5, 1.0, 1.5)  # Of the baseline's epochs.
FRAMES = (2, 4, 8, 16)
MODELS = {
  'tsn': 'TSN',
  'tsm': 'TSM',
  'tam': 'TAM',
  'blvnet_tam': 'bLVNet-TAM',
  'slowfast': 'SlowFast',
}


def run_of(
  name: str,
  row: str,
  *,
  grid: str,
  size: str,
  model: str = 'slowfast',
  frames: int = 0,
  labels: str = '',
  overrides: tuple[str, ...] = (),
  baseline: str = '',
) -> Run:
  """Makes a run; `size`, `labels` are arguments of configs/moving_digits.py."""
  arguments = (
    f'size={size}',
    *([f'frames={frames}'] if frames else []),
    *([f'labels={labels}'] if labels else []),
  )
  return Run(
    *(name, row, FILE, grid, model, frames, arguments, overrides, baseline)
  )


# The demo's network, with and without multigrid.

MOVING_DIGITS = [
  run_of(
    f'moving_digits/{name}',
    row,
    grid=grid,
    size='demo',
    overrides=overrides,
    baseline='moving_digits/none',
  )
  for name, row, grid, overrides in (
    ('none', 'none', 'none', ()),
    ('both-1.5', "both, 1.5 x the epochs (the paper's)", 'both', ()),
    (
      *('both-2', 'both, 2 x the epochs', 'both'),
      ('--config.grid.epoch_factor=2.0',),
    ),
  )
]

# Each mode at several numbers of epochs.

# The config's, that the baseline's epochs are multiples of.
_EPOCHS, _LR_STEPS = 8, (6,)


def of_epochs(mode: str, factor: float) -> tuple[str, ...]:
  """Overrides for a multiple of the baseline's epochs, at sizes of eight."""
  if mode != 'none':
    return (f'--config.grid.epoch_factor={factor}',)
  # The baseline has no epoch factor: its own epochs change.
  steps = ','.join(f'{factor * step:g},' for step in _LR_STEPS)
  return (
    f'--config.optim.total_epochs={factor * _EPOCHS:g}',
    f'--config.optim.lr_steps=({steps})',
  )


EPOCH_FACTORS = [
  run_of(
    f'epoch_factors/{mode}-{factor:g}',
    f'{mode}, {factor:g} x the epochs',
    grid=mode,
    size='medium',
    overrides=of_epochs(mode, factor),
    baseline='epoch_factors/none-1',
  )
  for factor in FACTORS
  for mode in MODES
]

# Networks at several numbers of frames.

FRAMES_ACCURACY = [
  run_of(
    f'frames_accuracy/{model}-{frames}',
    title,
    grid='none',
    size='small',
    model=model,
    frames=frames,
  )
  for model, title in MODELS.items()
  for frames in FRAMES
]

# What small pictures cost: the same clips, in fewer pixels.


def in_pixels(pixels: int) -> tuple[str, ...]:
  """Overrides for clips of another height and width."""
  return (
    f'--config.data.crop_px={pixels}',
    f'--config.data.jitter_px={pixels},{5 * pixels // 4}',
    f'--config.eval.crop_px={pixels}',
    f'--config.eval.short_side_px={pixels}',
  )


RESOLUTIONS = [
  run_of(
    f'frames_accuracy/tam-8-{pixels}px',
    f'TAM, {pixels} x {pixels} pixels',
    grid='none',
    size='small',
    model='tam',
    overrides=in_pixels(pixels),
  )
  for pixels in (16, 24, 34)
]

# Few frames first, then more.


def _rungs(name: str, row: str, grid: str, frames: int) -> Run:
  cosine = (
    '--config.optim.schedule=cosine',
    # As many epochs as the ladder's rungs have together.
    '--config.optim.total_epochs=9',
  )
  return run_of(
    f'frames_ladder/{name}',
    row,
    grid=grid,
    size='small',
    model='blvnet_tam',
    frames=frames,
    overrides=() if grid == 'ladder' else cosine,
    baseline='frames_ladder/32',
  )


FRAMES_LADDER = [
  _rungs('32', '16x2 frames', 'none', 32),
  _rungs('16-32', '8x2, then 16x2 frames', 'ladder', 32),
  _rungs('16', '8x2 frames', 'none', 16),
]

# Classes of which some have a hundred times the videos of others.


def _class_balance(name: str, row: str, rate: float, *overrides: str) -> Run:
  """A run; 0.05 is the config's rate, at which a run can stop to learn."""
  changes = () if rate == 0.05 else (f'--config.optim.base_lr={rate}',)
  suffix = '' if rate == 0.05 else f'-{rate}'
  return run_of(
    f'class_balance/{name}{suffix}',
    f'{row}; rate {rate}',
    grid='none',
    size='small',
    model='tam',
    overrides=(
      '--config.data.name=moving_digits/motion_long_tail',
      *in_pixels(24),
      # Half the epochs of the config.
      '--config.optim.total_epochs=3',
      '--config.optim.lr_steps=(2,)',
      *overrides,
      *changes,
    ),
    baseline=f'class_balance/none{suffix}',
  )


CLASS_BALANCE = [
  _class_balance(name, row, rate, *overrides)
  for rate in (0.05, 0.02, 0.01)
  for name, row, overrides in (
    ('none', 'as they are', ()),
    ('order-1', 'data.class_balance=1', ('--config.data.class_balance=1.0',)),
    (
      *('loss-0.5', 'optim.class_balance=0.5'),
      ('--config.optim.class_balance=0.5',),
    ),
    ('loss-1', 'optim.class_balance=1', ('--config.optim.class_balance=1.0',)),
  )
]
# A network that learns from the start, in all epochs of the config.
CLASS_BALANCE += [
  run_of(
    f'class_balance/slowfast-{name}',
    f'SlowFast, {row}',
    grid='none',
    size='small',
    overrides=(
      '--config.data.name=moving_digits/motion_long_tail',
      *in_pixels(32),
      *overrides,
    ),
    baseline='class_balance/slowfast-none',
  )
  for name, row, overrides in (
    ('none', 'as they are', ()),
    ('order-1', 'data.class_balance=1', ('--config.data.class_balance=1.0',)),
  )
]

# One part of multigrid changed at a time.

# Runs of another table are not repeated.
_NONE, _BOTH = (
  next(r for r in EPOCH_FACTORS if r.name == name)._replace(row=row)
  for name, row in (
    ('epoch_factors/none-1', 'none'),
    ('epoch_factors/both-1.5', 'both'),
  )
)


def _choice(
  name: str,
  row: str,
  grid: str,
  *overrides: str,
  model: str = 'slowfast',
  baseline: str = _NONE.name,
  size: str = 'medium',
) -> Run:
  return run_of(
    f'multigrid_choices/{name}',
    row,
    grid=grid,
    size=size,
    model=model,
    overrides=overrides,
    baseline=baseline,
  )


_COSINE = '--config.optim.schedule=cosine'
_SEGMENTS = '--config.data.sampling=segments'
_COSINE_NONE = 'multigrid_choices/cosine-none'
_TAM_NONE = 'multigrid_choices/tam-none'
_TAM_8_NONE = 'multigrid_choices/tam-8-none'

MULTIGRID_CHOICES = [
  _NONE,
  _BOTH,
  _choice(
    'no-groups',
    'both, batch norm over whole batches',
    'both',
    '--config.norm.group_clips=0',
  ),
  _choice(
    'no-fine-tuning',
    'both, a long cycle instead of fine-tuning',
    'both',
    '--config.grid.fine_tune=False',
  ),
  _choice(
    'constant-rate',
    "both, the baseline's learning rate for every batch",
    'both',
    '--config.grid.scale_lr=False',
  ),
  _choice(
    *('cosine-none', 'none, cosine', 'none', _COSINE), baseline=_COSINE_NONE
  ),
  _choice(
    *('cosine-both', 'both, cosine', 'both', _COSINE),
    '--config.grid.num_long_cycles=1',  # As step decay has it here.
    baseline=_COSINE_NONE,
  ),
  # The mode's own number.
  _choice(
    'cosine-both-two-cycles',
    'both, cosine, two long cycles',
    'both',
    _COSINE,
    baseline=_COSINE_NONE,
  ),
  _choice(
    *('tam-none', 'TAM on 16 segments, none', 'none', _SEGMENTS),
    model='tam',
    baseline=_TAM_NONE,
  ),
  _choice(
    *('tam-both', 'TAM on 16 segments, both', 'both', _SEGMENTS),
    model='tam',
    baseline=_TAM_NONE,
  ),
  *(
    _choice(
      f'tam-8-{grid}',
      f'TAM on 8 segments of 48 x 48 pixels, {grid}',
      grid,
      _SEGMENTS,
      model='tam',
      baseline=_TAM_8_NONE,
      size='small',
    )
    for grid in ('none', 'both')
  ),
]

# A small video transformer, from scratch and from other labels.


def _transformer(
  name: str,
  row: str,
  grid: str,
  *overrides: str,
  labels: str = '',
  baseline: str = '',
) -> Run:
  return run_of(
    name,
    row,
    grid=grid,
    size='small',
    model='vit',
    labels=labels,
    overrides=overrides,
    baseline=baseline,
  )


def _transformers(table: str, *overrides: str) -> list[Run]:
  """The runs of a table: each kind of grids."""
  return [
    _transformer(
      f'{table}/{name}', row, grid, *overrides, baseline=f'{table}/none'
    )
    for name, row, grid in (
      ('none', 'none', 'none'),
      ('both-1.5', 'both, 1.5 x the epochs', 'both'),
      ('progressive-1.5', 'progressive, 1.5 x the epochs', 'progressive'),
    )
  ]


_SCRATCH = 'transformer_scratch'
TRANSFORMER_SCRATCH = _transformers(_SCRATCH)
TRANSFORMER_SCRATCH += [
  _transformer(
    f'{_SCRATCH}/{name}', row, grid, override, baseline=f'{_SCRATCH}/none'
  )
  for name, row, grid, override in (
    (
      *('both-3', 'both, 3 x the epochs', 'both'),
      '--config.grid.epoch_factor=3.0',
    ),
    (
      *('none-third', 'none, a third of the epochs', 'none'),
      '--config.optim.total_epochs=4',
    ),
    # Not the better schedule of the learning rate.
    (
      *('none-steps', 'none, step decay', 'none'),
      '--config.optim.schedule=steps',
    ),
    (
      *('both-cosine', 'both, 1.5 x the epochs, cosine', 'both'),
      '--config.optim.schedule=cosine',
    ),
  )
]
# With --init_from, a run of this:
TRANSFORMER_PRETRAINING = [
  _transformer(
    'transformer_pretraining/none',
    'pre-training on digit_motion',
    'none',
    labels='digit_motion',
  )
]
# From its weights, in a third of the epochs.
TRANSFORMER_FINE_TUNING = _transformers(
  'transformer_fine_tuning',
  '--config.optim.total_epochs=4',
  '--config.optim.lr_steps=(3,)',
)

_SCRATCH_BOTH = TRANSFORMER_SCRATCH[1]
TRANSFORMER_CHOICES = [
  TRANSFORMER_SCRATCH[0],
  _SCRATCH_BOTH._replace(row='both; positions scaled; root of the batch'),
  *(
    _transformer(
      f'transformer_choices/{name}',
      row,
      'both',
      override,
      baseline=TRANSFORMER_SCRATCH[0].name,
    )
    for name, row, override in (
      (
        'positions-hw',
        'positions scaled in height and width only',
        '--config.model.position_scale=hw',
      ),
      (
        'positions-none',
        'positions counted from 0',
        '--config.model.position_scale=none',
      ),
      (
        'linear',
        'learning rate with the batch',
        '--config.optim.batch_rule=linear',
      ),
    )
  ),
]

RUNS = {
  'moving_digits': MOVING_DIGITS,
  'epoch_factors': EPOCH_FACTORS,
  'frames_accuracy': [*FRAMES_ACCURACY, *RESOLUTIONS],
  'frames_ladder': FRAMES_LADDER,
  'multigrid_choices': MULTIGRID_CHOICES,
  'transformer_scratch': TRANSFORMER_SCRATCH,
  'transformer_pretraining': TRANSFORMER_PRETRAINING,
  'transformer_fine_tuning': TRANSFORMER_FINE_TUNING,
  'transformer_choices': TRANSFORMER_CHOICES,
  'class_balance': CLASS_BALANCE,
}
