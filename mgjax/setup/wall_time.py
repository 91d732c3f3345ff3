"""From the settings to the wall time of a run, and to what is kept of it.

Functions import JAX when they are called: a plan that is refused does not wait
for it.
"""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import ml_collections
from etils import epath

import mgjax
from mgjax import files
from mgjax.config import saved
from mgjax.errors import ConfigError
from mgjax.grids import Grid, GridSchedule
from mgjax.planning import measured, wall_time
from mgjax.setup import clip_costs, grids
from mgjax.setup import data as data_setup

if TYPE_CHECKING:
  import jax

  from mgjax.step.step_cache import StepCache

# Modes that a run of one of them is compared with.
MODES = ('none', 'short', 'long', 'both')

# Fields that change what a program costs, and those that change it at all:
# with others in the latter, the cache on disk does not have it.
_COSTLY = (
  *('model', 'augment', 'norm.frozen', 'optim.name', 'optim.loss'),
  *('optim.train', 'train.micro_batches', 'train.remat', 'eval.head'),
)
_COMPILED = (
  *('norm.momentum', 'norm.eps', 'optim.momentum', 'optim.nesterov'),
  *('optim.b1', 'optim.b2', 'optim.eps', 'optim.trust_coefficient'),
  *('optim.weight_decay', 'optim.clip_norm', 'optim.label_smoothing'),
  *('optim.decay_on', 'optim.layer_decay', 'optim.frozen_dropout'),
  'optim.reduce_dtype',
  *(
    'optim.class_balance',
    'optim.ema_decay',
    'data.mean',
    'data.std',
    'data.num_frames',
  ),
  *('data.crop_px', 'data.crop_width_px', 'data.samples_per_video'),
  # Of several devices: which share a group.
  *('norm.group_clips', 'norm.group_by'),
)


def settings_hash(
  config: ml_collections.ConfigDict, schedule: GridSchedule
) -> str:
  """Hash of the settings that change how long a program of a grid takes.

  Args:
    config: The settings.
    schedule: Its phases may have strengths of augmentation of their own.
  """
  settings = _of(config, _COSTLY)
  settings |= {
    'clips_gradients': config.optim.clip_norm > 0,
    'averages': config.optim.ema_decay > 0,
    'strengths': list(schedule.strengths),
  }
  return measured.hash_of(settings)


def programs_hash(
  config: ml_collections.ConfigDict, schedule: GridSchedule
) -> str:
  """Hash of all that a program of a grid is compiled from."""
  settings = _of(config, (*_COSTLY, *_COMPILED))
  return measured.hash_of(
    [settings, list(schedule.strengths), mgjax.__version__]
  )


def _of(
  config: ml_collections.ConfigDict, names: tuple[str, ...]
) -> dict[str, Any]:
  """Sections and fields of a config by dotted name, as JSON data."""
  settings = saved.as_json(config)
  found = {}
  for name in names:
    section, _, field = name.partition('.')
    found[name] = settings[section][field] if field else settings[section]
  return found


def where(
  config: ml_collections.ConfigDict,
  schedule: GridSchedule,
  mesh: jax.sharding.Mesh,
) -> measured.Where:
  """What the seconds of a training on these devices depend on."""
  return measured.Where(
    settings_hash(config, schedule),
    importlib.metadata.version('jax'),
    mesh.devices.flat[0].device_kind,
    mesh.size,
  )


def remember(
  config: ml_collections.ConfigDict,
  schedule: GridSchedule,
  mesh: jax.sharding.Mesh,
  collected: measured.Collected,
  programs: StepCache,
) -> None:
  """Adds what a launch has measured to what is known of this machine.

  Args:
    config: Its settings.
    schedule: Its schedule.
    mesh: Its devices.
    collected: What its programs took.
    programs: Those that it has compiled or loaded.
  """
  built_as = programs_hash(config, schedule)
  found = collected.programs()
  for key, seconds in [*programs.compile_s.items()]:
    name = 'load_s' if key in programs.from_disk else 'compile_s'
    found[key] = found.get(key, measured.Seconds()).updated(
      measured.Seconds(**{name: seconds}, built_as=built_as)
    )
  if found:
    measured.add(
      _file(),
      measured.Network(
        where(config, schedule, mesh),
        found,
        collected.checkpoint_s,
        measured.now(),
      ),
    )


def _file():
  """The file of what this machine has measured."""
  from mgjax.step import step_cache

  return measured.path(step_cache.programs_folder())


def plan(
  config: ml_collections.ConfigDict,
  schedule: GridSchedule,
  *,
  num_devices: int,
  device: str | None = None,
  step_s: Mapping[Grid, float] | None = None,
) -> dict[str, Any] | None:
  """Returns what is known of a run's wall time, as JSON data.

  Args:
    config: Its settings.
    schedule: Its schedule.
    num_devices: Devices that share each batch.
    device: Their kind; None: that of the newest measurement.
    step_s: Seconds of a training step by grid, in place of those measured.

  Returns:
    The breakdowns; None where nothing is known of its network here.
  """
  networks = measured.read(_file())
  found = measured.find(
    networks,
    settings_hash(config, schedule),
    importlib.metadata.version('jax'),
    num_devices,
    device,
  )
  if found is None:
    return None
  works = _works(config, schedule, num_devices)
  costs = wall_time.costs(
    found,
    {key for work in works.values() for key in work.programs},
    lambda wanted: clip_costs.gmacs_per_clip(config, wanted),
    built_as=programs_hash(config, schedule),
    other_load_share=measured.load_share(networks),
    step_s=step_s,
  )
  if costs is None:
    return None
  return wall_time.as_json(
    works,
    costs,
    mode=config.grid.mode,
    measured=found,
  )


def _works(
  config: ml_collections.ConfigDict, schedule: GridSchedule, num_devices: int
) -> dict[str, wall_time.Work]:
  """What the run, its baseline ('run', 'baseline') and other modes do."""
  full = grids.full_grid(config)
  epochs = schedule.baseline_epochs
  base = wall_time.baseline(
    full,
    steps=math.ceil(epochs * schedule.num_train / full.batch),
    epochs=epochs,
    num_train=schedule.num_train,
  )
  num_batches = _evaluation_batches(config)
  works = {
    'run': _work(config, schedule, num_batches),
    'baseline': _work(config, base, num_batches),
  }
  mode = config.grid.mode
  num_videos = schedule.num_train // config.data.samples_per_video
  for other in MODES if mode in MODES else ():
    if other == mode:
      works[other] = works['run']
      continue
    changed = config.copy_and_resolve_references()
    changed.grid.mode = other
    try:
      works[other] = _work(
        changed,
        grids.schedule(changed, num_videos, num_devices=num_devices),
        num_batches,
      )
    except ConfigError:
      pass  # Too short for the warm-up of this mode, for instance.
  return works


def _evaluation_batches(config: ml_collections.ConfigDict) -> int:
  """Batches of an evaluation; 0 where the data set is not here to say."""
  data = data_setup.describe(config)
  num_videos = data.splits.get(config.eval.split, 0) if data else 0
  num_views = config.eval.num_views * config.eval.num_crops
  return math.ceil(num_videos * num_views / config.eval.batch_size)


def _work(
  config: ml_collections.ConfigDict,
  schedule: GridSchedule,
  evaluation_batches: int,
) -> wall_time.Work:
  """What a run with this schedule does."""
  from mgjax.setup import programs as programs_setup
  from mgjax.step import programs

  eval_grid = grids.eval_grid(config)
  eval_steps = programs.evaluation_steps(schedule, config.eval.every)
  num_statistics = programs_setup.statistics_batches(config)
  return wall_time.Work(
    schedule=schedule,
    programs=programs.first_uses(
      schedule,
      0,
      eval_steps,
      eval_grid=eval_grid,
      takes_statistics=num_statistics > 0,
    ),
    eval_steps=eval_steps,
    eval_grid=eval_grid,
    statistics_batches=num_statistics,
    evaluation_batches=evaluation_batches,
    checkpoint_every_steps=config.train.checkpoint_every_steps,
    checkpoint_every_s=config.train.checkpoint_every_s,
  )


def foresee(
  config: ml_collections.ConfigDict,
  schedule: GridSchedule,
  mesh: jax.sharding.Mesh,
  workdir: epath.Path,
  *,
  goes_on: bool,
) -> dict[str, Any]:
  """How long a new run will take, where that is known.

  Args:
    config: Its settings.
    schedule: Its schedule.
    mesh: Its devices.
    workdir: Its folder.
    goes_on: Whether there is a checkpoint of it.

  Returns:
    What its plan.json has of it: {'wall_time': ...}, as before the first step
    where the run goes on; {} where it is not known.
  """
  if goes_on:
    try:
      known = files.read_json(workdir / 'plan.json').get('wall_time')
    except ConfigError:
      known = None  # A run's folder without its plan still goes on.
    return {'wall_time': known} if known else {}
  found = plan(
    config,
    schedule,
    num_devices=mesh.size,
    device=mesh.devices.flat[0].device_kind,
  )
  return {} if found is None else {'wall_time': found}
