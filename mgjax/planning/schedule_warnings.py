"""Says where a schedule can be trained and is not likely to work.

Nothing is refused for it: each warning is one line, with the remedy.
"""

from collections.abc import Iterator

from mgjax.grids import Grid, GridSchedule

# Fewer steps than this teach nothing, and end before the statistics settle.
_MIN_STEPS = 20
# A step of more clips than this part of an epoch leaves too few steps.
_MAX_EPOCH_SHARE = 0.25
# The highest learning rate that is known to train, by optimizer, and its batch.
# Sources: sgd: Goyal et al. 2017 (arXiv:1706.02677), 3.2 at 8,192 images;
# adamw: Dosovitskiy et al. 2021 (arXiv:2010.11929), table 3, 3e-3 at 4,096.
_MAX_LR = {'sgd': (3.2, 8192), 'adamw': (3e-3, 4096)}
# With SGD, the highest rate per clip of a step that the records of this
# repository have: 0.05 at 8 clips, 0.4 at 64 (experiments/records).
_MAX_SGD_LR_PER_CLIP = 0.05 / 8
# The records learn with crops of 32 pixels, and lose 3.7 points with 28
# (moving_digits at 64 and at 56 pixels).
_MIN_LEARNING_CROP_PX = 32


def find(schedule: GridSchedule, full: Grid, *, optimizer: str) -> list[str]:
  """Returns a line for each reason why a schedule may not work.

  Args:
    schedule: The run's schedule.
    full: The full grid.
    optimizer: config.optim.name.
  """
  return [
    f'warning: {text}'
    for text in (
      *_few_steps(schedule),
      *_large_steps(schedule),
      *_high_rates(schedule, optimizer),
      *_small_crops(schedule, full),
    )
  ]


def _few_steps(schedule: GridSchedule) -> Iterator[str]:
  total = schedule.total_steps
  if total < _MIN_STEPS:
    yield (
      f'the run has {total} step(s); fewer than {_MIN_STEPS} teach little. Use '
      'more epochs or a smaller data.batch_size'
    )
    return
  short = [
    (i, count)
    for i, count in enumerate(schedule.num_steps, start=1)
    if count < _MIN_STEPS
  ]
  if short:
    number, count = short[0]
    batch = max(grid.batch for grid in schedule.phases[number - 1].cycle)
    others = f', {len(short) - 1} more phase(s) likewise' if short[1:] else ''
    yield (
      f'phase {number} of {len(schedule.phases)} has {count} step(s) of up to '
      f'{batch:,} clips{others}; fewer than {_MIN_STEPS} teach little. Use '
      'more epochs, a smaller data.batch_size or fewer phases, such as '
      "grid.mode='short'"
    )


def _large_steps(schedule: GridSchedule) -> Iterator[str]:
  grid = max(schedule.grids, key=lambda g: g.batch)
  share = grid.batch / schedule.num_train
  if share > _MAX_EPOCH_SHARE:
    most = int(schedule.num_train * _MAX_EPOCH_SHARE)
    yield (
      f'a step of the grid {grid} has {share:.2g} epochs of the '
      f'{schedule.num_train:,} training videos; at most {most:,} clips '
      f'({_MAX_EPOCH_SHARE:g} of an epoch) leave enough steps. Use a smaller '
      'data.batch_size, or finer grids'
    )


def _high_rates(schedule: GridSchedule, optimizer: str) -> Iterator[str]:
  if optimizer not in _MAX_LR:
    return  # No rate is known to be the highest.
  highest, batch = _MAX_LR[optimizer]
  for i, phase in enumerate(schedule.phases, start=1):
    start, end = schedule.start_step(i - 1), phase.end_step
    # A warm-up rises, everything else falls, but for schedules of one's own.
    points = {start + (end - 1 - start) * k // 16 for k in range(17)}
    step = max(points, key=schedule.lr)
    rate, clips = schedule.lr(step), phase.base.batch
    limit = highest
    if optimizer == 'sgd':
      limit = min(limit, _MAX_SGD_LR_PER_CLIP * clips)
    if rate > limit * (1 + 1e-9):
      yield (
        f'phase {i} of {len(schedule.phases)} trains with a learning rate of '
        f'{rate:.3g} for a batch of {clips:,}; the highest that is known to '
        f'work is {limit:.3g} ({optimizer}, at most {highest:g} at {batch:,} '
        'clips). Use a lower optim.base_lr, or grid.scale_lr=False'
      )
      return


def _small_crops(schedule: GridSchedule, full: Grid) -> Iterator[str]:
  # The full grid is the user's choice, whatever its size.
  coarse = [g for g in schedule.grids if g.H < full.H or g.W < full.W]
  if not coarse:
    return
  grid = min(coarse, key=lambda g: min(g.H, g.W))
  side = min(grid.H, grid.W)
  if side < _MIN_LEARNING_CROP_PX:
    yield (
      f'the grid {grid} has a side of {side} pixels; the smallest with which '
      'the recorded runs on generated digits learn as well is '
      f'{_MIN_LEARNING_CROP_PX} (28 pixels lost 3.7 points). Use a larger '
      'data.crop_px, or larger side factors'
    )
