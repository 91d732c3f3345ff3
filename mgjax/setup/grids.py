"""From the settings to grids and schedules. No JAX."""

import dataclasses
import re

import ml_collections

from mgjax import grids
from mgjax.config import network_options, own, schedule_files
from mgjax.data import description
from mgjax.errors import ConfigError
from mgjax.grids import Grid, GridSchedule
from mgjax.setup import clip_costs
from mgjax.setup import data as data_setup

# Videos in the training set where the data is not at hand.
PUBLISHED_SIZES = {
  'kinetics400': 240_436,
  'something_something_v2': 168_913,
  'something_something_v1': 86_017,
  'charades': 7_985,
  'moments_in_time': 802_264,
  # Split 1 of three.
  'ucf101': 9_537,
  'hmdb51': 3_570,
  # Ours: the defaults of data/moving_digits.py.
  'moving_digits/motion': 4_000,
  'moving_digits/motion_demo': 4_000,
  'moving_digits/motion_tiny': 240,
  'moving_digits/digit_motion': 4_000,
  'moving_digits/motion_long_tail': 4_000,
  'moving_digits/motion_100px': 4_000,
  'moving_digits/motion_120px': 4_000,
}

# The field that has each argument of `make_schedule`. Its errors name the
# arguments; whoever has written a config knows the fields.
_FIELDS = {
  'frames': 'data.num_frames',
  'height': 'data.crop_px',
  'width': 'data.crop_width_px',
  'batch': 'data.batch_size',
  'stride_frames': 'data.stride_frames',
  'sampling': 'data.sampling',
  'jitter_px': 'data.jitter_px',
  'num_train': 'data.num_train',
  'epochs': 'optim.total_epochs',
  'learning_rate': 'optim.base_lr',
  'lr_steps': 'optim.lr_steps',
  'lr_gamma': 'optim.gamma',
  'lr_schedule': 'optim.schedule',
  'end_lr': 'optim.end_lr',
  'warmup_epochs': 'optim.warmup_epochs',
  'warmup_lr': 'optim.warmup_lr',
  'base_batch': 'optim.base_batch',
  'batch_rule': 'optim.batch_rule',
  'mode': 'grid.mode',
  'epoch_factor': 'grid.epoch_factor',
  'long_factors': 'grid.long_factors',
  'short_factors': 'grid.short_factors',
  'num_long_cycles': 'grid.num_long_cycles',
  'fine_tune': 'grid.fine_tune',
  'scale_lr': 'grid.scale_lr',
  'ladder': 'grid.ladder',
  'progressive': 'grid.progressive',
  'table': 'grid.table',
  'frames_multiple': 'grid.frames_multiple',
  'side_multiple': 'grid.side_multiple',
  'group_clips': 'norm.group_clips',
  'group_by': 'norm.group_by',
  'micro_batches': 'train.micro_batches',
}


def schedule(
  config: ml_collections.ConfigDict, num_train: int, *, num_devices: int = 1
) -> GridSchedule:
  """Returns the schedule of a training run.

  Args:
    config: See mgjax/config/fields.py; `data`, `optim`, `grid`, `norm` and
      `train.micro_batches` are read.
    num_train: Videos in an epoch.
    num_devices: Devices of all hosts, which share every batch equally.

  Raises:
    ConfigError: If the settings do not make a schedule that can be trained.
      The message names the phase or the field.
  """
  config = with_table(config)
  values = {}
  for argument, field in _FIELDS.items():
    section, name = field.split('.')
    values[argument] = config[section][name]
  values['width'] = full_grid(config).W
  # An epoch reads every video once, and has so many clips of it.
  values['num_train'] = num_train * config.data.samples_per_video
  if not network_options.options_of(config.model.name).has_batch_norm:
    # Every clip is normalised by itself: any batch divides, into any parts.
    values['group_clips'], values['group_by'] = 1, 'step'

  def clip_cost(T: int, H: int, W: int) -> float:
    grid = Grid(T, H, W, 1)
    return clip_costs.gmacs_per_clip(config, [grid])[grid]

  try:
    made = grids.make_schedule(
      **values,
      seed=config.seed,
      clip_cost=clip_cost,
      num_devices=num_devices,
    )
  except ConfigError as error:
    raise ConfigError(_with_fields(str(error))) from error
  if 'randaugment_magnitude' in made.strengths:
    _check_randaugment(config)
  # As the user knows them, for what is found out about them later.
  phases = tuple(
    dataclasses.replace(phase, name=_with_fields(phase.name))
    for phase in made.phases
  )
  return dataclasses.replace(made, phases=phases)


def _check_randaugment(config: ml_collections.ConfigDict) -> None:
  """Refuses the strength of operations that there are none of."""
  if not config.augment.randaugment_ops:
    raise ConfigError(
      'grid.table: augment has randaugment_magnitude, which does nothing with '
      'augment.randaugment_ops=0; set --config.augment.randaugment_ops=2, or '
      'leave it out.'
    )


def with_table(
  config: ml_collections.ConfigDict,
) -> ml_collections.ConfigDict:
  """The config with the rows of its table, where it names a file.

  So a run keeps in its folder what it trained, not where it was read.

  Args:
    config: Not modified.

  Raises:
    ConfigError: There is no such table.
  """
  grid = config.grid
  if grid.mode != 'table':
    return config
  rows = schedule_files.rows(
    grid.table, full=full_grid(config), epochs=config.optim.total_epochs
  )
  config = config.copy_and_resolve_references()
  config.grid.table = tuple(rows)
  return config


def full_grid(config: ml_collections.ConfigDict) -> Grid:
  """Returns the grid of the baseline."""
  data = config.data
  width = data.crop_px if data.crop_width_px is None else data.crop_width_px
  return Grid(data.num_frames, data.crop_px, width, data.batch_size)


def eval_grid(config: ml_collections.ConfigDict) -> Grid:
  """Returns the one grid of evaluation: all frames, the evaluation crop."""
  return Grid(
    config.data.num_frames,
    *data_setup.crop_hw(config.eval),
    config.eval.batch_size,
  )


def dataset_size(config: ml_collections.ConfigDict) -> tuple[int, str]:
  """Returns the number of training videos, and where it is known from.

  `config.data.num_train`, or else the description of the prepared data set,
  or else the published size.

  Raises:
    ConfigError: If none of them says.
  """
  data = config.data
  if data.num_train is not None:
    return data.num_train, 'data.num_train'
  if (found := data_setup.describe(config)) and 'train' in found.splits:
    source = data.name
    if not own.is_own(data.name):
      source = data_setup.builder_dir(config) / 'dataset_info.json'
    return found.splits['train'], str(source)
  if data.name in PUBLISHED_SIZES:
    return PUBLISHED_SIZES[data.name], f'published size of {data.name}'
  folder = data_setup.data_dir(config)
  if description.folder_of(folder, data.name.partition(':')[0]):
    data_setup.builder_dir(config)  # Says which versions there are.
  raise ConfigError(
    f'data.name={data.name!r} is not prepared in {folder}, so its size is '
    'unknown; prepare it, or give --config.data.num_train=VIDEOS.'
  )


def _with_fields(message: str) -> str:
  """Puts fields in the place of arguments, which are between backticks.

  '`mode` is ...' becomes 'grid.mode is ...'; what follows the name stays.
  """
  return re.sub(
    r'`(\w+)([^`]*)`',
    lambda found: (
      _FIELDS[found[1]] + found[2] if found[1] in _FIELDS else found[0]
    ),
    message,
  )
