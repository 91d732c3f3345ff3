"""Seven ways to vary the grid over a training: functions that write a table.

None, short, long and both are those of the multigrid paper; ladder is
bLVNet-TAM's recipe; progressive is any list of growing grids; table is one of
the user's own. Each writes the rows of a table (rows.py), and nothing else.

Source: Wu et al. 2020 (arXiv:1912.00998), section 3 and figure 2; the exact
arithmetic is that of PySlowFast 287ec00 (slowfast/utils/multigrid.py,
slowfast/datasets/multigrid_helper.py, slowfast/utils/lr_policy.py). Rounding
is Python's, half to even, of float64 expressions in the reference's order:
two of the published schedules depend on it.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from mgjax.errors import ConfigError
from mgjax.grids import sizes
from mgjax.grids.checks import Arguments
from mgjax.grids.learning_rate import Real
from mgjax.grids.schedule import Grid

Row = dict[str, Any]

# The defaults of the papers.
LONG_FACTORS = ((0.25, 0.5**0.5), (0.5, 0.5**0.5), (0.5, 1), (1, 1))
SHORT_FACTORS = (0.5, 0.5**0.5)
LADDER = ((0.5, 50, 0.01, 'cosine'), (1, 25, 0.01, 'cosine'))
PROGRESSIVE = ((0.75, 1, 0.5), (0.25, 1, 1))


def constant(s: Arguments) -> list[Row]:
  """The baseline itself: one grid from the first step to the last."""
  return [
    {
      'end_epoch': s.epochs,
      **_grid(s.full),
      'stride_frames': 'fixed',
      'baseline_epochs': s.epochs,
    }
  ]


def short(s: Arguments) -> list[Row]:
  """The short cycle alone: one row, learning rate not scaled.

  The decay epochs and the length are stretched and cut to whole epochs.
  """
  row = {
    'end_epoch': int(s.epochs * s.epoch_factor),
    'cycle': _short_cycle(s, s.full),
    'lr_scale': 'none',
    'stride_frames': 'fixed',
    'baseline_epochs': s.epochs,
  }
  if s.rate.schedule == 'steps':
    row['lr'] = {
      'rates': [
        s.learning_rate * s.lr_gamma**k for k in range(len(s.lr_steps) + 1)
      ],
      'lr_steps': [int(epoch * s.epoch_factor) for epoch in s.lr_steps],
    }
  return [row]


class _Stretch(NamedTuple):
  """A part of a long cycle before its epochs are stretched."""

  lr_stage: int
  base: Grid
  epochs: Real


def long(s: Arguments) -> list[Row]:
  """The long cycle, with or without the short one.

  One long cycle fills each interval between decays of the learning rate, and
  the last interval is the fine-tuning phase on the full grid. Without
  `fine_tune`, the last interval is one more long cycle.

  Source: section 3.2 of the paper; PySlowFast multigrid.py, lines 110-193.
  Differs: the reference cannot run the long cycle alone (it indexes a short
    cycle that is not there), nor any schedule but steps.
  """
  parts = _long_cycle_parts(s, _intervals(s))
  by_steps = s.rate.schedule == 'steps'
  run_epochs = s.epochs * s.epoch_factor
  stretch = run_epochs / _sum(part.epochs for part in parts)
  ends: list[Real] = list(
    itertools.accumulate(part.epochs * stretch for part in parts)
  )
  if by_steps:
    ends = [round(end) for end in ends]  # The reference has whole epochs.
  else:
    ends[-1] = run_epochs  # The sum of the parts has a rounding error.
  rows = [
    {
      'end_epoch': end,
      'cycle': _short_cycle(s, part.base),
      'lr_stage': part.lr_stage,
    }
    for part, end in zip(parts, ends, strict=True)
  ]
  rows[0]['baseline_epochs'] = s.epochs
  if by_steps:
    _decay_with_cycles(s, rows)
  return rows


def ladder(s: Arguments) -> list[Row]:
  """Ever more frames, the learning rate restarted with each rung.

  Dense clips of fewer frames cover as much time as clips of the full grid:
  their frames lie further apart. The length of the baseline does not count.

  Source: Fan et al. 2019 (arXiv:1912.00869), section 4.1: 50 epochs at 8x2
    frames, then 25 epochs from those weights at 16x2, and so on.
  """
  return [
    {
      'epochs': epochs,
      **_grid(_resized(s, t_factor, 1, f'phase {i}', 'ladder')),
      'stride_frames': 'same_span',
      'lr': {
        'schedule': schedule,
        'base_lr': lr,
        'lr_steps': list(s.lr_steps),
        'gamma': s.lr_gamma,
        'end_lr': s.end_lr,
      },
      'lr_scale': 'none',
      'baseline_epochs': epochs,
    }
    for i, (t_factor, epochs, lr, schedule) in enumerate(s.ladder, start=1)
  ]


def progressive(s: Arguments) -> list[Row]:
  """Grids that grow over training, learning rate linear in the batch."""
  rows = []
  for i, (share, t_factor, side) in enumerate(s.progressive, start=1):
    grid = _resized(s, t_factor, side, f'phase {i}', 'progressive')
    factor = sizes.batch_factor(s.full, *grid[:3])
    rows.append(
      {'share': share, **_grid(grid._replace(batch=factor * s.batch))}
    )
  rows[0]['baseline_epochs'] = s.epochs
  return rows


def table(s: Arguments) -> Any:
  """The rows that the user gives."""
  return s.table


# By name; each gets the arguments of `make_schedule`, and `full` and `rate`.
TABLES: dict[str, Callable[[Arguments], Sequence[Row]]] = {
  'none': constant,
  'short': short,
  'long': long,
  'both': long,
  'ladder': ladder,
  'progressive': progressive,
  'table': table,
}


# Parts of the long cycle.


def _intervals(s: Arguments) -> list[Real]:
  """Returns the baseline epochs at which long cycles start and end.

  The fine-tuning phase, where there is one, follows the last of them.
  """
  if s.rate.schedule == 'steps':
    edges = [0, *s.lr_steps]
  else:
    cycles = s.num_long_cycles
    edges = [s.epochs * i / (cycles + 1) for i in range(cycles + 1)]
  return edges if s.fine_tune else [*edges, s.epochs]


def _long_cycle_parts(s: Arguments, edges: Sequence[Real]) -> list[_Stretch]:
  """Returns the phases of all long cycles, with epochs of any common unit.

  Every shape of a long cycle gets the same number of steps, and so the epochs
  of its mean batch. The fine-tuning phase saves as large a part of its steps
  as the long cycles do of theirs.
  """
  full = s.full
  short_factors = s.short_factors if s.mode == 'both' else ()
  shapes = []  # Base grid and the batch factor of a mean step.
  for i, (t_factor, side) in enumerate(s.long_factors, start=1):
    t, h, w, _ = _resized(s, t_factor, side, f'phase {i}', 'long_factors')
    # Not rounded: the reference rounds these only when it cuts the crops.
    crops = [(full.H * f, full.W * f) for f in short_factors] + [(h, w)]
    factors = [sizes.batch_factor(full, t, *crop) for crop in crops]
    grid = Grid(t, h, w, factors[-1] * full.batch)
    shapes.append((grid, sum(factors) / len(factors)))

  all_means = _sum(mean for _, mean in shapes)
  parts, iterations = [], []
  for k, (start, end) in enumerate(itertools.pairwise(edges)):
    for grid, mean in shapes:
      epochs = (end - start) * mean / all_means
      iterations.append(epochs / mean)
      parts.append(_Stretch(k, grid, epochs))
  if s.fine_tune:
    saving = edges[-1] / _sum(iterations)
    grid, mean = shapes[-1]
    epochs = (s.epochs - edges[-1]) / saving * mean
    parts.append(_Stretch(len(edges) - 1, grid, epochs))
  return parts


def _decay_with_cycles(s: Arguments, rows: list[Row]) -> None:
  """Gives the rows of long cycles the rates of 'steps', one for each cycle."""
  rates = [s.learning_rate * s.lr_gamma ** row['lr_stage'] for row in rows]
  for row, rate in zip(rows, rates, strict=True):
    row['lr'] = rate
  if s.fine_tune:
    # As in the reference, the fine-tuning phase keeps the rate of the phase
    # before it for its first half.
    start, end = rows[-2]['end_epoch'], rows[-1]['end_epoch']
    half = (start + end) // 2 - start
    rows[-1]['lr'] = {'rates': rates[-2:], 'lr_steps': [half]}


def _sum(values: Iterable[Real]) -> Real:
  """Adds from left to right; `sum` compensates errors from Python 3.12 on."""
  *_, total = itertools.accumulate(values)
  return total


# Grids.


def _grid(grid: Grid) -> Row:
  """The fields of a row that say its grid."""
  return grid._asdict()


def _resized(
  s: Arguments, t_factor: Real, side_factor: Real, where: str, name: str
) -> Grid:
  """Returns the full grid with fewer frames and shorter sides, same batch.

  Raises:
    ConfigError: If nothing is left of it. `where` is the phase and `name` the
      argument that has the factors.
  """
  full = s.full
  t = sizes.scaled(full.T, t_factor, s.frames_multiple)
  h = sizes.scaled(full.H, side_factor, s.side_multiple)
  w = sizes.scaled(full.W, side_factor, s.side_multiple)
  if min(t, h, w) < 1:
    raise ConfigError(
      f'{where}: the factors ({t_factor:g}, {side_factor:g}) of `{name}` leave '
      f'{t} frames of {h}x{w} pixels of the full {full.T} of '
      f'{full.H}x{full.W}; use larger factors.'
    )
  return Grid(t, h, w, full.batch)


def _short_cycle(s: Arguments, base: Grid) -> list[Row]:
  """Returns the grids that the steps of a row take turns with.

  The crops are parts of the full grid's, not of the phase's: at 158 pixels
  of 224, half a side is 112 pixels and the next crop is the phase's own.

  Args:
    s: The arguments; with mode='long' there is no short cycle.
    base: Grid of the phase, which comes last.

  Source: figure 2d of the paper; PySlowFast multigrid_helper.py.
  """
  cycle = []
  for factor in s.short_factors if s.mode != 'long' else ():
    # The batch follows from the crop before it is rounded.
    ratio = (base.H / (factor * s.full.H)) * (base.W / (factor * s.full.W))
    # The crop is the same in every phase, so the first is the one to name.
    _, h, w, _ = _resized(s, 1, factor, 'phase 1', 'short_factors')
    cycle.append(Grid(base.T, h, w, base.batch * round(ratio)))
  return [_grid(grid) for grid in (*cycle, base)]
