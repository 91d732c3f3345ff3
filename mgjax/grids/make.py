"""Makes a schedule from numbers."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from mgjax.grids import checks, modes, schedule, table
from mgjax.grids import learning_rate as learning_rates
from mgjax.grids.learning_rate import LearningRate, Real
from mgjax.grids.rows import BATCH_RULES, resolve
from mgjax.grids.schedule import Grid, GridSchedule

MODES = tuple(modes.TABLES)


# Longer than other functions: it is the table of all that a schedule can be
# made from.
def make_schedule(
  *,
  frames: int,
  height: int,
  width: int,
  batch: int,
  epochs: Real,
  num_train: int,
  mode: str = 'both',
  learning_rate: Real = 0.1,
  lr_steps: Sequence[Any] = (),
  lr_gamma: Real = 0.1,
  lr_schedule: str = 'steps',
  end_lr: Real = 0.0,
  warmup_epochs: Real = 0.0,
  warmup_lr: Real = 0.0,
  base_batch: int = 0,
  epoch_factor: Real = 1.5,
  long_factors: Sequence[Any] = modes.LONG_FACTORS,
  short_factors: Sequence[Any] = modes.SHORT_FACTORS,
  num_long_cycles: int = 3,
  fine_tune: bool = True,
  scale_lr: bool = True,
  batch_rule: str = 'linear',
  ladder: Sequence[Any] = modes.LADDER,
  progressive: Sequence[Any] = modes.PROGRESSIVE,
  table: Any = (),
  clip_cost: Callable[[int, int, int], float] | None = None,
  frames_multiple: int = 1,
  side_multiple: int = 1,
  seed: int = 0,
  stride_frames: int = 1,
  sampling: str = 'dense',
  jitter_px: Sequence[Any] | None = None,
  group_clips: int = 0,
  group_by: str = 'phase',
  num_devices: int = 1,
  micro_batches: int = 1,
) -> GridSchedule:
  """Returns the schedule of a training: grid and learning rate of every step.

  The first six say what the training on one grid, the baseline, looks like;
  the others how multigrid varies it. A call that needs no more than these:

    make_schedule(frames=16, height=112, width=112, batch=32, epochs=100,
                  num_train=9537, learning_rate=0.1, lr_steps=(40, 80))

  Args:
    frames: Frames of a clip of the full grid.
    height: Its height in pixels.
    width: Its width in pixels.
    batch: Clips per step of the full grid, over all devices.
    epochs: Length of the baseline, positive.
    num_train: Clips (videos) in an epoch.
    mode: One of `MODES`: 'none' (the baseline), 'short', 'long' or 'both'
      cycles of the multigrid paper, 'ladder', 'progressive' or 'table'.
    learning_rate: Rate of the full grid's batch, before decays.
    lr_steps: Epochs of the baseline at which the rate decays, increasing. With
      `lr_schedule='steps'`, each interval between them is one long cycle.
    lr_gamma: Factor of each decay, positive.
    lr_schedule: 'steps', 'cosine' or 'constant'; or a call of an optax
      schedule whose count is baseline epochs, such as
      'optax.linear_schedule(init_value=0.1, end_value=0.0,
      transition_steps=100)'.
    end_lr: Rate at the end of 'cosine'.
    warmup_epochs: Length of the linear warm-up, in epochs of the run itself:
      no epoch factor stretches it; 0: there is none.
    warmup_lr: Rate at its start.
    base_batch: Clips per step that the rates (also `warmup_lr`, `end_lr` and
      those of `ladder`) are meant for: they are multiplied by `batch /
      base_batch`; 0: by nothing.
    epoch_factor: Epochs of the run per epoch of the baseline, positive; 'none',
      'ladder' and rows of a table that say epochs or steps do not use it.
    long_factors: 'long', 'both': (frames factor, side factor) of each shape of
      a long cycle, coarse to fine; factors of the full grid in (0, 1], the
      last (1, 1).
    short_factors: 'short', 'both': side factors of the full grid in (0, 1];
      the phase's own grid comes after them.
    num_long_cycles: 'long', 'both': long cycles before the fine-tuning phase,
      where `lr_schedule` is not 'steps'.
    fine_tune: 'long', 'both': whether the last interval is the fine-tuning
      phase, on the full grid; else it is one more long cycle.
    scale_lr: 'long', 'both', 'progressive', 'table': whether the rate follows
      the batch of the phase; rows of a table can say otherwise.
    batch_rule: How it does: 'linear' in the batch, with its square root
      ('sqrt'), or not at all ('none').
    ladder: (frames factor in (0, 1], epochs, learning rate, schedule) of each
      rung; its schedule is written as `lr_schedule` and starts with the rung.
    progressive: (share of the epochs, frames factor, side factor) of each
      phase, in (0, 1].
    table: 'table': a row for each phase, see mgjax/grids/rows.py. Another
      schedule's `GridSchedule.table` is one.
    clip_cost: 'table': from (T, H, W) to the cost of one clip, for rows whose
      batch is 'equal_cost'.
    frames_multiple: Frames of all grids are a multiple of it (of a tubelet).
    side_multiple: Heights and widths are a multiple of it (of a patch).
    seed: 'table': of random grids, in [0, 2^32).
    stride_frames: Frames of the video from one frame of a clip to the next.
    sampling: 'dense': clips of fewer frames may have a larger stride, up to
      the same time as those of the full grid; 'segments': frames are drawn
      from equal segments of the video, so that there is no stride. It changes
      what the rungs of a ladder say of their stride.
    jitter_px: Least and greatest short side to which a video of the full grid
      is resized before it is cropped, no smaller than the crop; None: the
      crop's own short side.
    group_clips: Clips behind one batch-norm statistic at the base grid of a
      phase; 0: the whole batch.
    group_by: 'phase': groups grow with the batch inside a short cycle, as in
      the paper; 'step': every group has `group_clips` clips.
    num_devices: Devices that share every batch equally. It is checked only.
    micro_batches: Parts of whole batch-norm groups in which every batch is
      computed. It is checked only.

  Raises:
    ConfigError: The numbers do not make a schedule that can be trained. The
      message has the arguments' names between backticks, or names the phase.
  """
  # What follows reads the arguments by their names: thirty of them, handed on
  # one by one, would be the length of this list again in every function.
  return _make(checks.Arguments(**locals()))


def _make(s: checks.Arguments) -> GridSchedule:
  """See `make_schedule`, whose arguments `s` holds.

  Args:
    s: The arguments. It gets `full`, the grid of the baseline, and `rate`, its
      learning rate; `jitter_px` gets its default.
  """
  s.full = Grid(s.frames, s.height, s.width, s.batch)
  if s.jitter_px is None:
    s.jitter_px = (min(s.height, s.width),) * 2
  _check(s)
  s.rate = LearningRate(
    s.learning_rate, s.lr_schedule, s.lr_steps, s.lr_gamma, s.end_lr
  )
  rows = resolve(modes.TABLES[s.mode](s), s)
  if s.mode == 'table' and s.lr_schedule == 'steps':
    if table.reads_run_lr(rows):
      checks.check_lr_steps(s.lr_steps, s.epochs)
  filled = schedule.fill(table.phases(rows, s), rows, s.num_train)
  ends = [phase.end_epoch for phase in filled]
  total_epochs = ends[-1]
  policy = table.lr_at_epoch(rows, ends, s)
  # Rounding leaves some phases no epoch (Something-Something V2 has one): they
  # are not part of the run, so they need not be sound either.
  starts = (0, *ends)
  checks.check_ends(ends, s)
  kept = [
    (i, phase)
    for i, (start, phase) in enumerate(zip(starts, filled, strict=False), 1)
    if phase.end_epoch > start
  ]
  checks.require(
    kept,
    f'`mode={s.mode!r}` with `epochs={s.epochs}` and `epoch_factor='
    f'{s.epoch_factor}` leaves no epoch to train; raise one.',
  )
  checks.require(
    s.warmup_epochs <= total_epochs,
    f'`warmup_epochs` is {s.warmup_epochs:g}, longer than the run of '
    f'{total_epochs:g} epochs; use at most that.',
  )
  name = 'phase {} of {}' if s.mode != 'table' else '`table` row {2}'
  phases = [
    checks.checked_phase(
      dataclasses.replace(phase, name=name.format(i, len(kept), row)),
      rows[row - 1].get('group_clips', s.group_clips),
      s,
    )
    for i, (row, phase) in enumerate(kept, start=1)
  ]
  policy = learning_rates.with_warmup(
    policy, warmup_epochs=s.warmup_epochs, warmup_lr=s.warmup_lr
  )
  made = GridSchedule(
    schedule.without_empty(phases),
    num_train=s.num_train,
    lr_at_epoch=learning_rates.for_batch(policy, s.batch, s.base_batch),
    table=rows,
    baseline_epochs=table.baseline_epochs(rows, total_epochs, s),
  )
  checks.check_rates(
    made, table.lr_argument(rows, s), table.schedule_texts(rows, s)
  )
  return made


def _check(s: checks.Arguments) -> None:
  """Refuses arguments that are wrong whatever the phases."""
  checks.check_numbers(
    s,
    'at least 1, a whole number',
    *('num_train', 'frames', 'stride_frames', 'height', 'width', 'batch'),
    *('num_devices', 'micro_batches', 'frames_multiple', 'side_multiple'),
  )
  checks.check_choice(s, 'mode', MODES)
  checks.check_choice(s, 'batch_rule', BATCH_RULES)
  checks.check_choice(s, 'sampling', ('dense', 'segments'))
  checks.check_choice(s, 'group_by', ('phase', 'step'))
  checks.check_jitter(s.jitter_px, s.full)
  checks.check_numbers(s, 'positive', 'epochs', 'lr_gamma')
  checks.check_numbers(
    s,
    '0 or more',
    *('learning_rate', 'end_lr', 'warmup_epochs', 'warmup_lr'),
    *('base_batch', 'group_clips'),
  )
  # A field of another mode may have any value: it does nothing.
  if s.mode == 'ladder':
    checks.check_ladder(s.ladder, s.lr_steps)
  elif s.mode != 'table' and s.lr_schedule == 'steps':
    checks.check_lr_steps(s.lr_steps, s.epochs)
  if s.mode in ('short', 'long', 'both', 'progressive', 'table'):
    checks.check_numbers(s, 'positive', 'epoch_factor')
  if s.mode in ('short', 'both'):
    checks.check_short_factors(s.short_factors)
  if s.mode in ('long', 'both'):
    checks.check_long_cycle(s)
  if s.mode == 'progressive':
    checks.check_progressive(s.progressive)
  checks.check_multiples(s)
