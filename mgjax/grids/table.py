"""From the rows of a table to phases, their steps and their learning rate."""

import bisect
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from mgjax.grids import checks, learning_rate
from mgjax.grids.checks import Arguments
from mgjax.grids.learning_rate import LearningRate, LrFunction, Real
from mgjax.grids.schedule import Grid, Phase

# A row in numbers, see rows.py.
Row = Mapping[str, Any]
# Sums of epochs carry rounding errors. Less than this part of a clip adds no
# step (`schedule.fill`), so it may not keep back a rate either.
_CLIP_ERROR = 5e-7


def phases(rows: Sequence[Row], s: Arguments) -> list[Phase]:
  """Returns the phase of each row, without its steps and batch-norm groups.

  Args:
    rows: Resolved.
    s: The arguments of `make_schedule`.
  """
  return [_phase(row, s) for row in rows]


def _phase(row: Row, s: Arguments) -> Phase:
  grids = row.get('random') or row['cycle']
  weights = [grid['weight'] for grid in row.get('random', ())]
  total = math.fsum(weights)
  return Phase(
    cycle=tuple(Grid(*(g[n] for n in Grid._fields)) for g in grids),
    end_step=0,
    end_epoch=row.get('end_epoch', 0),
    lr_stage=row['lr_stage'],
    lr_scale=row['lr_scale'],
    stride_frames=tuple(row['stride_frames']),
    jitter_px=tuple(tuple(grid['jitter_px']) for grid in grids),
    bn_groups=(1,) * len(grids),
    weights=tuple(weight / total for weight in weights),
    seed=s.seed if weights else 0,
    augment=tuple(sorted(row.get('augment', {}).items())),
  )


def reads_run_lr(rows: Sequence[Row]) -> bool:
  """Whether a row has the run's learning rate, and none of its own."""
  return any('lr' not in row for row in rows)


def lr_at_epoch(
  rows: Sequence[Row], ends: Sequence[Real], s: Arguments
) -> LrFunction:
  """Returns the learning rate of the rows as a function of the run's epochs.

  Args:
    rows: Resolved.
    ends: Epochs of the run at which they end.
    s: The arguments of `make_schedule`, and `rate`, the run's own.
  """
  of_run = None
  if reads_run_lr(rows):
    of_run = s.rate.over(s.epochs)
    # The same number, divided and multiplied, may be another one.
    if ends[-1] != s.epochs:
      of_run = learning_rate.stretched(of_run, s.epochs, ends[-1])
  starts = [0, *ends[:-1]]
  policies = [
    _own_lr(row, row.get('epochs', end - start), _name(i, s), s)
    if 'lr' in row
    else None
    for i, (row, start, end) in enumerate(
      zip(rows, starts, ends, strict=True), start=1
    )
  ]
  return _RatesOfRows(
    tuple(starts),
    _CLIP_ERROR / s.num_train,
    tuple(of_run if own is None else own for own in policies),
    # A row's own rate starts with it, that of the run with the run.
    tuple(
      0 if own is None else start
      for own, start in zip(policies, starts, strict=True)
    ),
    tuple(row['lr_scale'] for row in rows),
  )


@dataclasses.dataclass(frozen=True)
class _RatesOfRows:
  """The learning rate of rows, by the epoch of the run.

  Attributes:
    starts: Epochs at which the rows start.
    margin: Epochs, far less than a clip: a start that a step lies before by no
      more has begun.
    policies: The rate of each, before it is scaled.
    origins: Epochs of the run at which the policies' own epochs are 0.
    scales: What multiplies them.
  """

  starts: tuple[Real, ...]
  margin: float
  policies: tuple[LrFunction, ...]
  origins: tuple[Real, ...]
  scales: tuple[float, ...]

  def __call__(self, epoch: Real) -> float:
    # Of rows that start together, all but the last have no epoch.
    i = max(bisect.bisect_right(self.starts, epoch + self.margin) - 1, 0)
    since = max(epoch - self.origins[i], 0)
    return self.policies[i](since) * self.scales[i]


def _name(number: int, s: Arguments) -> str:
  """What an error calls the learning rate of a row."""
  return (
    f'ladder[{number - 1}]'
    if s.mode == 'ladder'
    else f'table row {number}, lr: schedule'
  )


def _own_lr(row: Row, epochs: Real, name: str, s: Arguments) -> LrFunction:
  """A row's own rate as a function of the epochs since it started."""
  lr = row['lr']
  if isinstance(lr, Mapping):
    if 'rates' in lr:
      rates, steps = lr['rates'], lr.get('lr_steps', ())
      return lambda e: rates[bisect.bisect_right(steps, e)]
    if lr['schedule'] == 'steps' and 'lr_steps' not in lr:
      # Those of the run, in epochs of the row: beyond its end none would come.
      checks.check_lr_steps(s.lr_steps, epochs)
    return LearningRate(
      lr['base_lr'],
      lr['schedule'],
      lr.get('lr_steps', s.lr_steps),
      lr.get('gamma', s.lr_gamma),
      lr.get('end_lr', s.end_lr),
      name=name,
    ).over(epochs)
  if isinstance(lr, Sequence):
    return learning_rate.straight_lines(
      [(share * epochs, rate) for share, rate in lr]
    )
  return lambda _: lr


def schedule_texts(rows: Sequence[Row], s: Arguments) -> str:
  """All schedules that rows name, for `checks.check_rates`."""
  texts = [
    row['lr']['schedule']
    for row in rows
    if isinstance(row.get('lr'), Mapping) and 'schedule' in row['lr']
  ]
  if reads_run_lr(rows):
    texts.append(s.lr_schedule)
  return ' '.join(texts)


def baseline_epochs(
  rows: Sequence[Row], total_epochs: Real, s: Arguments
) -> Real:
  """Epochs of the full grid alone that a table is compared with.

  Args:
    rows: In numbers.
    total_epochs: Of the run.
    s: The arguments of `make_schedule`.
  """
  said = [r['baseline_epochs'] for r in rows if 'baseline_epochs' in r]
  if said:
    checks.require(
      sum(said) > 0,
      'the `baseline_epochs` of the rows of `table` add up to 0; a run is '
      'compared with a baseline of more, so leave them out, or give some.',
    )
    return sum(said)
  # Rates of the run are those of its baseline; else there is none but the run.
  return s.epochs if reads_run_lr(rows) else total_epochs


def lr_argument(rows: Sequence[Row], s: Arguments) -> str:
  """The argument that has the schedules of `schedule_texts`."""
  if s.mode in ('ladder', 'table') and any('lr' in row for row in rows):
    return s.mode
  return 'lr_schedule'
