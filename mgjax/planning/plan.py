"""What a run will do, computed from its schedule: grids, costs, hours."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mgjax.grids import Grid, GridSchedule, Phase

_LR_EVERY_EPOCHS = 0.25


def make_plan(
  schedule: GridSchedule,
  gmacs_per_clip: Mapping[Grid, float],
  *,
  full: Grid,
  baseline_epochs: int | float,
  names: Mapping[str, str],
  memory: Mapping[str, Any],
  size_source: str = 'data set',
  samples_per_video: int = 1,
  has_batch_norm: bool = True,
) -> dict[str, Any]:
  """Returns all that is known about a run before its launch, as JSON data.

  Args:
    schedule: The run's schedule.
    gmacs_per_clip: 1e9 multiply-adds of one clip's forward pass, for each grid
      of the schedule and the full one.
    full: The full grid, that of the baseline.
    baseline_epochs: Epochs of the baseline, which the run is compared with.
    names: 'mode', 'model' and 'data' of the run.
    memory: Of `memory`.
    size_source: Where the number of training videos is known from.
    samples_per_video: Clips of a video in an epoch.
    has_batch_norm: Whether the network has some; else its groups are nothing.
  """
  phases = [
    {
      **_phase_row(phase, num_steps, used, gmacs_per_clip),
      'lr': [schedule.lr(step) for step in _ends(phase, num_steps)],
    }
    for phase, num_steps, used in uses(schedule)
  ]
  total_gmacs = math.fsum(phase['gmacs'] for phase in phases)
  base_steps = math.ceil(baseline_epochs * schedule.num_train / full.batch)
  base_clips = base_steps * full.batch
  baseline = {
    'grid': full._asdict(),
    'epochs': baseline_epochs,
    'steps': base_steps,
    'clips': base_clips,
    'gmacs': base_clips * gmacs_per_clip[full],
  }
  return {
    'mode': names['mode'],
    'model': names['model'],
    'data': names['data'],
    'has_batch_norm': has_batch_norm,
    'dataset_size': schedule.num_train // samples_per_video,
    'samples_per_video': samples_per_video,
    'dataset_size_source': size_source,
    'total_epochs': schedule.total_epochs,
    'total_steps': schedule.total_steps,
    'total_clips': schedule.total_clips,
    'total_gmacs': total_gmacs,
    'grids': [grid._asdict() for grid in schedule.grids],
    # Of each of the grids.
    'gmacs_per_clip': [gmacs_per_clip[grid] for grid in schedule.grids],
    'num_train_programs': len(schedule.grids),
    'memory': dict(memory),
    'phases': phases,
    'table': list(schedule.table),
    'lr': _learning_rates(schedule),
    'baseline': baseline,
    'speedup': {
      'steps': base_steps / schedule.total_steps,
      'macs': baseline['gmacs'] / total_gmacs,
    },
    'io': _loader(schedule, gmacs_per_clip, full, base_clips, total_gmacs),
  }


def _ends(phase: Phase, num_steps: int) -> tuple[int, int]:
  """The first and the last step of a phase, from 0."""
  last = phase.end_step - 1
  return min(phase.end_step - num_steps, last), last


def _phase_row(
  phase: Phase,
  num_steps: int,
  used: list[tuple[Grid, int]],
  gmacs_per_clip: Mapping[Grid, float],
) -> dict[str, Any]:
  """Returns what a plan says of a phase; see `uses` for the arguments."""
  return {
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
    **_draws(phase, num_steps, gmacs_per_clip),
    'augment': dict(phase.augment),
    'steps': num_steps,
    'clips': sum(clips for _, clips in used),
    'gmacs': math.fsum(gmacs_per_clip[grid] * clips for grid, clips in used),
  }


def _draws(
  phase: Phase, num_steps: int, gmacs_per_clip: Mapping[Grid, float]
) -> dict[str, Any]:
  """What is known of random grids: their draws, and what is expected of them.

  The draws are a function of the step, so that what they come to is exact.
  """
  if not phase.weights:
    return {}
  pairs = list(zip(phase.cycle, phase.weights, strict=True))
  # A grid that is never drawn has no program, and no cost that is asked for.
  known = all(grid in gmacs_per_clip for grid in phase.cycle)
  expected = {
    'clips': num_steps * math.fsum(w * grid.batch for grid, w in pairs),
    'gmacs': num_steps
    * math.fsum(w * grid.batch * gmacs_per_clip[grid] for grid, w in pairs)
    if known
    else None,
  }
  return {
    'weights': list(phase.weights),
    'steps_cycle': phase.steps_of(num_steps),
    'expected': expected,
  }


def _learning_rates(schedule: GridSchedule) -> dict[str, Any]:
  """Returns the learning rate of every so many epochs, from the first on."""
  return {
    'every_epochs': _LR_EVERY_EPOCHS,
    'values': [
      schedule.lr_at_epoch(k * _LR_EVERY_EPOCHS)
      for k in range(int(schedule.total_epochs / _LR_EVERY_EPOCHS) + 1)
    ],
  }


def _loader(
  schedule: GridSchedule,
  gmacs_per_clip: Mapping[Grid, float],
  full: Grid,
  base_clips: int,
  total_gmacs: float,
) -> dict[str, float]:
  """Returns what the loader must deliver; ratios are to the baseline."""
  clips, full_gmacs = schedule.total_clips, gmacs_per_clip[full]
  frames = sum(n * grid.T for *_, used in uses(schedule) for grid, n in used)
  least_gmacs = min(gmacs_per_clip[grid] for grid in schedule.grids)
  clips_per_step = clips / schedule.total_steps
  max_batch = max(grid.batch for grid in schedule.grids)
  return {
    'clips_per_gmac_ratio_mean': clips / total_gmacs * full_gmacs,
    'clips_per_gmac_ratio_peak': full_gmacs / least_gmacs,
    'frames_per_gmac_ratio_mean': frames / total_gmacs * full_gmacs / full.T,
    'clips_per_step_mean': clips_per_step,
    'clips_per_step_peak': max_batch,
    'clips_per_step_ratio_mean': clips_per_step / full.batch,
    'clips_per_step_ratio_peak': max_batch / full.batch,
    'clips_ratio': clips / base_clips,
    'frames_ratio': frames / (base_clips * full.T),
  }


def uses(
  schedule: GridSchedule,
) -> Iterator[tuple[Phase, int, list[tuple[Grid, int]]]]:
  """Yields each phase, its steps, and the clips that each of its grids use."""
  for phase, num_steps in zip(schedule.phases, schedule.num_steps, strict=True):
    used = [
      (grid, grid.batch * count)
      # A phase of one or two steps never reaches the end of its cycle.
      for grid, count in zip(
        phase.cycle, phase.steps_of(num_steps), strict=True
      )
      if count
    ]
    yield phase, num_steps, used


def total_gmacs(
  schedule: GridSchedule, gmacs_per_clip: Mapping[Grid, float]
) -> float:
  """Returns 1e9 multiply-adds of all forward passes of a run."""
  return math.fsum(
    gmacs_per_clip[grid] * clips
    for *_, used in uses(schedule)
    for grid, clips in used
  )


def training_hours(
  schedule: GridSchedule, step_s: Mapping[Grid, float]
) -> float:
  """Returns the hours of all training steps, given the seconds of each grid's.

  Waits for data, compilation, evaluation and checkpoints are not in it.
  """
  return math.fsum(phase_hours(schedule, step_s))


def phase_hours(
  schedule: GridSchedule, step_s: Mapping[Grid, float]
) -> list[float]:
  """Returns the hours of the training steps of each phase, likewise."""
  return [
    math.fsum(step_s[grid] * clips / grid.batch for grid, clips in used) / 3600
    for *_, used in uses(schedule)
  ]


def memory(
  grids: Sequence[Grid],
  num_devices: int,
  device_bytes: int,
  compiled: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
  """Returns what a plan has of memory, as JSON data.

  Args:
    grids: Those of the schedule.
    num_devices: Devices that share each batch.
    device_bytes: Memory of each; 0: unknown.
    compiled: What the compiler says of the programs: see
      `compiler_facts.describe`. There is no other way to know what they take.
      An estimate from the network was tried: it is far too low for SlowFast
      on TPUs, whose layouts pad 8 channels to 128.

  Returns:
    'num_devices', 'device_bytes', and where the step of every grid was compiled
    'compiled_bytes' of each, and as 'grids' the same once more.
  """
  found: dict[str, Any] = {
    'num_devices': num_devices,
    'device_bytes': device_bytes,
  }
  sizes = {
    Grid(*(row[name] for name in Grid._fields)): row['peak_bytes']
    for row in compiled
    if row['kind'] == 'train'
  }
  if sizes.keys() >= {*grids}:
    found['compiled_bytes'] = [sizes[grid] for grid in grids]
    found['grids'] = [{'total': sizes[grid]} for grid in grids]
  return found


def training_time(
  schedule: GridSchedule, plan: dict[str, Any], step_s: Mapping[Grid, float]
) -> dict[str, Any]:
  """Returns what a plan says about time, given the seconds of steps.

  Args:
    schedule: The run's schedule.
    plan: Its plan.
    step_s: Seconds of a step of each of its grids, and of the full one.
  """
  hours = phase_hours(schedule, step_s)
  base = plan['baseline']
  return {
    'step_s': [step_s[grid] for grid in schedule.grids],
    'hours': math.fsum(hours),
    'phase_hours': hours,
    'baseline_hours': base['steps'] * step_s[Grid(**base['grid'])] / 3600,
  }
