"""What a run will do, computed from its config: grids, costs, memory."""

import math
import sys
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import ml_collections

from mgjax.cli import ConfigError
from mgjax.grids import cycles
from mgjax.grids.schedule import Grid, GridSchedule, Phase
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
  # Ours: the defaults of data/digits.py.
  'moving_digits/motion': 4_000,
  'moving_digits/motion_tiny': 240,
  'moving_digits/digit_motion': 4_000,
}

_LR_EVERY_EPOCHS = 0.25


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
  if found := data_setup.describe(config):
    source = data_setup.builder_dir(config) / 'dataset_info.json'
    if 'train' in found.splits:
      return found.splits['train'], str(source)
  if data.name in PUBLISHED_SIZES:
    return PUBLISHED_SIZES[data.name], f'published size of {data.name}'
  folder = data_setup.data_dir(config)
  raise ConfigError(
    f'data.name={data.name!r} is not prepared in {folder}, so its size is '
    'unknown; prepare it, or give --config.data.num_train=VIDEOS.'
  )


def make_plan(
  config: ml_collections.ConfigDict,
  schedule: GridSchedule,
  *,
  size_source: str = 'data set',
  num_devices: int = 1,
) -> dict[str, Any]:
  """Returns all that is known about a run before its launch, as JSON data.

  Args:
    config: See mgjax/config/fields.py.
    schedule: Its schedule.
    size_source: Where the number of training videos is known from.
    num_devices: Devices that share each batch.

  Raises:
    ConfigError: If the model cannot be built, or a grid is too small for it.
  """
  full = cycles.full_grid(config)
  gmacs = gmacs_per_clip(config, {full, *schedule.grids}, schedule.phases)
  phases = [
    {
      'lr_stage': phase.lr_stage,
      'base': phase.base._asdict(),
      'cycle': [grid._asdict() for grid in phase.cycle],
      'end_epoch': phase.end_epoch,
      'end_step': phase.end_step,
      'lr_scale': phase.lr_scale,
      'stride_frames': list(phase.stride_frames),
      'jitter_px': [list(jitter) for jitter in phase.jitter_px],
      'bn_groups': phase.bn_groups[-1],
      'bn_groups_cycle': list(phase.bn_groups),
      'steps': num_steps,
      'clips': sum(clips for _, clips in used),
      'gmacs': math.fsum(gmacs[grid] * clips for grid, clips in used),
    }
    for phase, num_steps, used in uses(schedule)
  ]
  clips = schedule.total_clips
  total_gmacs = math.fsum(phase['gmacs'] for phase in phases)

  # The baseline: the full grid for the epochs that it takes.
  epochs = config.optim.total_epochs
  if config.grid.mode == 'ladder':
    epochs = sum(rung[1] for rung in config.grid.ladder)
  base_steps = math.ceil(epochs * schedule.num_train / full.batch)
  base_clips = base_steps * full.batch
  full_gmacs = gmacs[full]

  frames = sum(n * grid.T for *_, used in uses(schedule) for grid, n in used)
  costs = [gmacs[grid] for grid in schedule.grids]
  clips_per_step = clips / schedule.total_steps
  max_batch = max(grid.batch for grid in schedule.grids)
  return {
    'mode': config.grid.mode,
    'model': config.model.name,
    'data': config.data.name,
    'dataset_size': schedule.num_train,
    'dataset_size_source': size_source,
    'total_epochs': schedule.total_epochs,
    'total_steps': schedule.total_steps,
    'total_clips': clips,
    'total_gmacs': total_gmacs,
    'grids': [grid._asdict() for grid in schedule.grids],
    'gmacs_per_clip': costs,  # Of each of the grids.
    'num_train_programs': len(schedule.grids),
    # Bytes on each device, for each of the grids; an estimate.
    'memory': {
      'num_devices': num_devices,
      'device_bytes': int(config.train.device_memory_gib * 2**30),
      'grids': [
        {**found._asdict(), 'total': found.total}
        for found in _memory(config, schedule, num_devices).values()
      ],
    },
    'phases': phases,
    'lr': {
      'every_epochs': _LR_EVERY_EPOCHS,
      'values': [
        schedule.lr_at_epoch(k * _LR_EVERY_EPOCHS)
        for k in range(int(schedule.total_epochs / _LR_EVERY_EPOCHS) + 1)
      ],
    },
    'baseline': {
      'grid': full._asdict(),
      'epochs': epochs,
      'steps': base_steps,
      'clips': base_clips,
      'gmacs': base_clips * full_gmacs,
    },
    'speedup': {
      'steps': base_steps / schedule.total_steps,
      'macs': base_clips * full_gmacs / total_gmacs,
    },
    'io': {
      'clips_per_gmac_ratio_mean': clips / total_gmacs * full_gmacs,
      'clips_per_gmac_ratio_peak': full_gmacs / min(costs),
      'frames_per_gmac_ratio_mean': frames / total_gmacs * full_gmacs / full.T,
      'clips_per_step_mean': clips_per_step,
      'clips_per_step_peak': max_batch,
      'clips_per_step_ratio_mean': clips_per_step / full.batch,
      'clips_per_step_ratio_peak': max_batch / full.batch,
      'clips_ratio': clips / base_clips,
      'frames_ratio': frames / (base_clips * full.T),
    },
  }


def uses(
  schedule: GridSchedule,
) -> Iterator[tuple[Phase, int, list[tuple[Grid, int]]]]:
  """Yields each phase, its steps, and the clips that each of its grids use."""
  for i, phase in enumerate(schedule.phases):
    num_steps = phase.end_step - schedule.start_step(i)
    cycles_done, rest = divmod(num_steps, len(phase.cycle))
    used = [
      (grid, grid.batch * (cycles_done + (position < rest)))
      # A phase of one or two steps never reaches the end of its cycle.
      for position, grid in enumerate(phase.cycle[:num_steps])
    ]
    yield phase, num_steps, used


def total_gmacs(
  config: ml_collections.ConfigDict, schedule: GridSchedule
) -> float:
  """Returns 1e9 multiply-adds of all forward passes of a run."""
  gmacs = gmacs_per_clip(config, schedule.grids, schedule.phases)
  return math.fsum(
    gmacs[grid] * clips for *_, used in uses(schedule) for grid, clips in used
  )


def training_hours(schedule: GridSchedule, step_s: dict[Grid, float]) -> float:
  """Hours of all training steps, given the seconds of one of each grid."""
  return math.fsum(phase_hours(schedule, step_s))


def phase_hours(
  schedule: GridSchedule, step_s: dict[Grid, float]
) -> list[float]:
  """Hours of the training steps of each phase, likewise."""
  return [
    math.fsum(step_s[grid] * clips / grid.batch for grid, clips in used) / 3600
    for *_, used in uses(schedule)
  ]


def training_time(
  config: ml_collections.ConfigDict,
  schedule: GridSchedule,
  plan: dict[str, Any],
  step_s: dict[Grid, float],
) -> dict[str, Any]:
  """Returns what a plan says about time, given the seconds of steps."""
  hours = phase_hours(schedule, step_s)
  full_s = step_s[cycles.full_grid(config)]
  return {
    'step_s': [step_s[grid] for grid in schedule.grids],
    'hours': math.fsum(hours),
    'phase_hours': hours,
    'baseline_hours': plan['baseline']['steps'] * full_s / 3600,
  }


def gmacs_per_clip(
  config: ml_collections.ConfigDict,
  grids: Collection[Grid],
  phases: Sequence[Phase] = (),
) -> dict[Grid, float]:
  """Returns 1e9 multiply-adds of one clip's forward pass for each grid.

  Args:
    config: See mgjax/config/fields.py; only the model is read.
    grids: Any.
    phases: Where the grids come from, for the message of an error.

  Raises:
    ConfigError: If the model cannot be built, or a grid is too small for it.
      The message names the first phase that has the grid.
  """
  # JAX takes most of a second to import, and bad flags need none of it.
  from mgjax.planning import macs
  from mgjax.setup import network

  model = network.model(config)
  found = {}
  for size in sorted({grid[:3] for grid in grids}):
    t, h, w = size
    try:
      found[size] = macs.forward_macs(model, T=t, H=h, W=w) / 1e9
    # Options that do not fit each other, or a grid too small for the model.
    except (ValueError, ZeroDivisionError) as error:
      where = _find_phase(size, phases) or f'grid {t}x{h}x{w}'
      raise ConfigError(f'{where}: model: {error}') from error
  return {grid: found[grid[:3]] for grid in grids}


def check_network(
  config: ml_collections.ConfigDict,
  grids: Collection[Grid],
  phases: Sequence[Phase] = (),
) -> None:
  """Refuses a network that cannot be built, or grids too small for it.

  For every command, before it opens any data.

  Args:
    config: See mgjax/config/fields.py; only the model is read.
    grids: What the network is to take.
    phases: Where the grids come from, for the message of an error.

  Raises:
    ConfigError: Says what is wrong with the network, and names the grid.
  """
  gmacs_per_clip(config, grids, phases)


def _find_phase(size: tuple[int, ...], phases: Sequence[Phase]) -> str:
  """Names the first phase that has a grid of T x H x W; '' if none has."""
  for i, phase in enumerate(phases, start=1):
    for grid in phase.cycle:
      if grid[:3] == size:
        return f'phase {i} of {len(phases)} (grid {grid})'
  return ''


def _memory(
  config: ml_collections.ConfigDict, schedule: GridSchedule, num_devices: int
) -> dict[Grid, Any]:
  """Returns the estimated `memory.Memory` of every grid."""
  from mgjax.planning import memory
  from mgjax.setup import network

  model = network.model(config)
  return {
    grid: memory.estimate(config, model, grid, num_devices=num_devices)
    for grid in schedule.grids
  }


def check_memory(
  config: ml_collections.ConfigDict,
  schedule: GridSchedule,
  *,
  num_devices: int,
  device_bytes: int,
) -> None:
  """Refuses a run that does not fit the memory of its devices.

  Args:
    config: See mgjax/config/fields.py.
    schedule: Its schedule.
    num_devices: Devices that share each batch.
    device_bytes: Memory of each; 0: unknown, nothing is refused.

  Raises:
    ConfigError: Names the phase, the bytes that it lacks, and what helps.
  """
  if not device_bytes:
    return
  from mgjax.planning.memory import size_text

  found = _memory(config, schedule, num_devices)
  for i, phase in enumerate(schedule.phases, start=1):
    grid = max(set(phase.cycle) & set(found), key=lambda g: found[g].total)
    over = found[grid].total - device_bytes
    if over > 0:
      raise ConfigError(
        f'phase {i} of {len(schedule.phases)} (grid {grid}) needs about '
        f'{size_text(found[grid].total)} on each of {num_devices} device(s), '
        f'{size_text(over)} more than the {size_text(device_bytes)} there are. '
        'What helps: '
        f'{"; ".join(_remedies(config, schedule, num_devices, device_bytes))}. '
        '(This is an estimate: a greater train.device_memory_gib tries it.)'
      )


def _remedies(
  config: ml_collections.ConfigDict,
  schedule: GridSchedule,
  num_devices: int,
  device_bytes: int,
) -> list[str]:
  """Names the changes that make every grid fit, the exact ones first."""
  groups = math.gcd(*(g for phase in schedule.phases for g in phase.bn_groups))
  parts = [
    m
    for m in range(1, groups + 1)
    if groups % m == 0
    and all(grid.batch % (m * num_devices) == 0 for grid in schedule.grids)
  ]
  remedies = []
  for remat in dict.fromkeys([config.train.remat, 'block']):
    for m in parts:
      changed = config.copy_and_resolve_references()
      changed.train.remat, changed.train.micro_batches = remat, m
      found = _memory(changed, schedule, num_devices)
      if all(f.total <= device_bytes for f in found.values()):
        fields = [f'train.micro_batches={m}'] if m > 1 else []
        fields += ["train.remat='block'"] if remat else []
        remedies.append(' with '.join(fields))
        break
  return [*remedies, 'a smaller data.batch_size', 'more devices']


def compiled_bytes(
  config: ml_collections.ConfigDict,
  schedule: GridSchedule,
  *,
  num_devices: int,
) -> dict[Grid, int]:
  """Compiles the step of every grid; returns the bytes that XLA gives it.

  These are bytes per device of this machine's kind: of the state, one batch
  and everything in between.

  Raises:
    ConfigError: There are fewer devices than asked for.
  """
  import jax

  from mgjax.cpu import compilation
  from mgjax.hosts import parallel
  from mgjax.run import checkpoint
  from mgjax.setup import network
  from mgjax.step import initial_state, optim, programs

  if num_devices > jax.device_count():
    raise ConfigError(
      f'--num_devices={num_devices}, but --compile finds '
      f'{jax.device_count()}; use at most that.'
    )
  mesh = parallel.make_mesh(num_devices)
  model, tx = (
    network.model(config),
    optim.make_optimizer(config.optim, config.norm.frozen),
  )
  abstract = checkpoint.abstract_state(
    initial_state.state_maker(config, model, tx), parallel.replicated(mesh)
  )
  lowered = programs.lower_programs(
    config, schedule, model, tx, mesh, abstract, 0, set()
  )
  sizes = {}
  for program, lower in lowered.items():
    print(f'compiling {program}', file=sys.stderr)
    found = compilation.compile_program(lower()).memory_analysis()
    sizes[program.grid] = (
      found.argument_size_in_bytes
      + found.output_size_in_bytes
      + found.temp_size_in_bytes
      - found.alias_size_in_bytes
    )
  return sizes
