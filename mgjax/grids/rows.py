"""Rows of a table: what they may say, and what they come to in numbers.

A table is a schedule as plain rows, one for each phase. A row is a dict of
values as JSON has them, so that a table can be written in a config, kept in a
file, printed by a plan and read again. Every mode of modes.py writes such rows.

Fields of a row; what is left out has the value in brackets:

  share, epochs,    How long: a share of the run (all rows have one, and they
  steps, end_epoch  sum to 1), epochs, steps, or until an epoch of the run. One
                    of them.
  T, H, W           Frames, height and width [the full grid's].
  frames_factor,    Instead of them, factors of the full grid in (0, 1].
  side_factor
  batch             Clips per step: a number; 'equal_voxels': T x H x W x batch
                    stays that of the full grid, as in the papers;
                    'equal_cost': the network's multiply-adds do; 'constant':
                    the full grid's batch ['equal_voxels'].
  cycle             Grids that the steps take turns with, the last of which is
                    the row's base grid: rows of T, H, W, batch and so on. What
                    they leave out is the row's.
  random            Instead of cycle, grids of which each step draws one, with
                    `weight` in proportion to its probability [1]. The draw is
                    a function of (seed, step).
  lr                Learning rate of the row's own [that of the run, stretched
                    over its epochs]: a number; [[share, rate], ...], straight
                    lines between shares of the row; {'rates', 'lr_steps'},
                    rates and the epochs of the row at which the next one
                    starts; or {'schedule', 'base_lr', ...}, written as the
                    run's, which starts with the row.
  lr_scale          What multiplies it: a number; 'linear' or 'sqrt': (the root
                    of) the base grid's batch / the full grid's; 'none' [the
                    rule of the schedule].
  stride_frames     Frames from one frame of a clip to the next: [least,
                    greatest], of which a clip draws one; a number; 'fixed':
                    the full grid's; 'same_span': as many times more as there
                    are fewer frames; 'between': anything from one to the other
                    ['between'].
  jitter_px         [least, greatest] short side to which videos are resized
                    before the crop [the least is scaled with the crop].
  group_clips       Clips behind one batch-norm statistic [the run's].
  augment           Strengths of augmentation, such as {'mixup_alpha': 0.2};
                    what it leaves out is the run's.
  lr_stage          Number of the row's stage in plans and pictures [its place].
  baseline_epochs   Epochs of the full grid that the row stands for. Their sum
                    is the length of the baseline that a plan compares with.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from mgjax.errors import ConfigError
from mgjax.grids import checks, sizes
from mgjax.grids.checks import Arguments
from mgjax.grids.learning_rate import Real
from mgjax.grids.schedule import Grid

_LENGTHS = ('share', 'epochs', 'steps', 'end_epoch')
_GRID_FIELDS = (
  *('T', 'H', 'W', 'frames_factor', 'side_factor', 'batch', 'jitter_px'),
)
FIELDS = (
  *_LENGTHS,
  *_GRID_FIELDS,
  *('cycle', 'random', 'lr', 'lr_scale', 'lr_stage', 'stride_frames'),
  *('group_clips', 'augment', 'baseline_epochs'),
)
_BATCHES = ('equal_voxels', 'equal_cost', 'constant')
BATCH_RULES = ('linear', 'sqrt', 'none')
_STRIDES = ('fixed', 'same_span', 'between')
# The step counter of a training has 32 bits.
_MOST_STEPS = 2**31 - 1
# More are a slip, and overflow at some point.
_MOST_EPOCHS = 1_000_000
_MOST_WEIGHT, _MOST_RATE = 1_000_000_000, 1e30

# What a row may say of `lr` in a dict, by the field that tells its form.
_LR_FIELDS = {
  'rates': {'rates', 'lr_steps'},
  'schedule': {'schedule', 'base_lr', 'lr_steps', 'gamma', 'end_lr'},
}

# Strengths that augmentation can have by row; they are numbers, so a program
# takes them as arguments. Whether there is an operation at all is the run's.
STRENGTHS = {
  'randaugment_magnitude': 10.0,
  'brightness': math.inf,
  'contrast': math.inf,
  'saturation': math.inf,
  'hue': 0.5,
  'erase_probability': 1.0,
  'mixup_alpha': math.inf,
  'cutmix_alpha': math.inf,
}


def resolve(table: Any, s: Arguments) -> tuple[dict, ...]:
  """Returns the rows with every size, batch, stride and scale as numbers.

  Resolved rows resolve to themselves.

  Args:
    table: Rows; see the module.
    s: The arguments of `make_schedule`, and `full`, the full grid.

  Raises:
    ConfigError: A row cannot be; the message names it and the field.
  """
  checks.require(
    isinstance(table, Sequence) and not isinstance(table, str) and table,
    f'`table` is {table!r}; it must be rows, at least one, each of the fields '
    f'{", ".join(FIELDS)}.',
  )
  rows = [
    _Reader(row, f'`table` row {i}', s).resolved(i)
    for i, row in enumerate(table, start=1)
  ]
  return _without_shares(rows, s)


def _without_shares(rows: list[dict], s: Arguments) -> tuple[dict, ...]:
  """Rows that end at an epoch where they had a share of the run."""
  having = ['share' in row for row in rows]
  if not any(having):
    return tuple(rows)
  lacking = [i for i, has in enumerate(having, start=1) if not has]
  checks.require(
    not lacking,
    f'`table` row {(lacking or [0])[0]}: share is missing; where one row has a '
    'share of the run, all have.',
  )
  total = math.fsum(row['share'] for row in rows)
  checks.require(
    math.isclose(total, 1.0, abs_tol=1e-6),
    f'`table`: the share fields of its {len(rows)} rows sum to {total:g}; they '
    'must sum to 1.',
  )
  run_epochs, done, changed = s.epochs * s.epoch_factor, 0.0, []
  for i, row in enumerate(rows, start=1):
    done += row['share']
    # The sum of the shares has a rounding error.
    end = run_epochs if i == len(rows) else done * run_epochs
    rest = {name: value for name, value in row.items() if name != 'share'}
    changed.append({'end_epoch': end, **rest})
  return tuple(changed)


class _Reader:
  """Reads one row; every error names the row and the field."""

  def __init__(self, row: Any, where: str, s: Arguments):
    self._where = where
    self._s = s
    self._row = row
    self._check_names(row, FIELDS, where)

  def resolved(self, number: int) -> dict[str, Any]:
    """The row in numbers; `number` is its place in the table, from 1."""
    row = self._row
    name = self._length()
    kind, grids = self._grids()
    base = grids[-1]
    found = {
      name: row[name],
      kind: grids,
      'lr_stage': self._number('lr_stage', number - 1, least=0, whole=True),
      'lr_scale': self._lr_scale(base['batch']),
      'stride_frames': self._strides(base['T']),
    }
    if 'lr' in row:
      found['lr'] = self._lr()
    if 'group_clips' in row:
      found['group_clips'] = self._number('group_clips', 0, least=0, whole=True)
    if 'augment' in row:
      found['augment'] = self._augment()
    if 'baseline_epochs' in row:
      found['baseline_epochs'] = self._number('baseline_epochs', 0, least=0)
    return found

  def _fail(self, text: str, where: str = '') -> NoReturn:
    raise ConfigError(f'{where or self._where}: {text}')

  def _check_names(self, row: Any, accepted: Sequence[str], where: str) -> None:
    if not isinstance(row, Mapping):
      self._fail(
        f'it is {row!r}; a row is a dict of {", ".join(accepted)}', where
      )
    for name in row:
      if name not in accepted:
        self._fail(
          f'there is no field {name!r}; accepted are {", ".join(accepted)}',
          where,
        )

  def _number(
    self,
    name: str,
    default: Real,
    *,
    least: Real = 0,
    most: Real = math.inf,
    whole: bool = False,
    row: Mapping | None = None,
    where: str = '',
    positive: bool = False,
  ) -> Any:
    """A number of the row, or of a grid in it; refuses any other value."""
    value = (self._row if row is None else row).get(name, default)
    good = checks.is_number(value) and least <= value <= most
    good = good and not (positive and value <= 0)
    if whole and good:
      good = value == int(value)
      value = int(value) if good else value
    if not good:
      what = 'a whole number' if whole else 'a number'
      above = f'above {least}' if positive else f'of {least} or more'
      limit = '' if most == math.inf else f', at most {most:,}'
      self._fail(
        f'{name} is {value!r}; it must be {what} {above}{limit}', where
      )
    return value

  def _length(self) -> str:
    given = [name for name in _LENGTHS if name in self._row]
    if len(given) != 1:
      self._fail(
        f'it has {" and ".join(given) or "no length"}; give one of '
        f'{", ".join(_LENGTHS)}'
      )
    name = given[0]
    if name == 'steps':
      self._number(name, 0, least=1, most=_MOST_STEPS, whole=True)
    elif name == 'share':
      self._number(name, 0, most=1, positive=True)
    else:  # Rounding leaves rows of some modes no epoch.
      self._number(name, 0, most=_MOST_EPOCHS, positive=name == 'epochs')
    return name

  def _grids(self) -> tuple[str, list[dict]]:
    """'cycle' or 'random', and its grids in numbers."""
    kinds = [name for name in ('cycle', 'random') if name in self._row]
    if len(kinds) > 1:
      self._fail('it has cycle and random; give one of them')
    kind = kinds[0] if kinds else 'cycle'
    own = {k: v for k, v in self._row.items() if k in _GRID_FIELDS}
    if not kinds:
      return kind, [self._grid(own, self._where)]
    grids = self._row[kind]
    if not isinstance(grids, Sequence) or isinstance(grids, str) or not grids:
      self._fail(f'{kind} is {grids!r}; it must be grids, at least one')
    weighted = ('weight',) if kind == 'random' else ()
    found = []
    for i, grid in enumerate(grids, start=1):
      where = f'{self._where}, {kind} {i}'
      self._check_names(grid, (*_GRID_FIELDS, *weighted), where)
      found.append(self._grid(_inherited(own, grid), where))
      if weighted:
        found[-1]['weight'] = self._number(
          'weight', 1, most=_MOST_WEIGHT, positive=True, row=grid, where=where
        )
    return kind, found

  def _grid(self, row: Mapping, where: str) -> dict[str, Any]:
    """T, H, W, batch and jitter_px of a grid in numbers."""
    full, s = self._s.full, self._s
    size = {
      'T': self._size(row, 'T', 'frames_factor', s.frames_multiple, where),
      'H': self._size(row, 'H', 'side_factor', s.side_multiple, where),
      'W': self._size(row, 'W', 'side_factor', s.side_multiple, where),
    }
    grid = Grid(size['T'], size['H'], size['W'], full.batch)
    batch = self._batch(row, grid, where)
    jitter, crop = row.get('jitter_px'), min(grid.H, grid.W)
    if jitter is None:
      jitter = sizes.jitter_range(s, size['H'], size['W'])
    elif (
      not checks.is_row(jitter, 2)
      or not all(map(checks.is_number, jitter))
      or not crop <= jitter[0] <= jitter[1]
    ):
      self._fail(
        f'jitter_px is {jitter!r}; it must be [least, greatest] short side, '
        f'the least no smaller than the crop of {crop}',
        where,
      )
    return {**size, 'batch': batch, 'jitter_px': list(jitter)}

  def _size(
    self, row: Mapping, name: str, factor: str, multiple: int, where: str
  ) -> int:
    most = getattr(self._s.full, name)
    if name not in row:
      share = self._number(
        factor, 1, most=1, positive=True, row=row, where=where
      )
      size = sizes.scaled(most, share, multiple)
      if size < 1:
        self._fail(
          f"{factor}={share:g} leaves nothing of the full grid's {most} "
          f'({name}); use a larger factor',
          where,
        )
      return size
    if factor in row:
      self._fail(f'it has {name} and {factor}; give one of them', where)
    size = self._number(
      name, most, least=1, most=most, whole=True, row=row, where=where
    )
    if size % multiple:
      self._fail(
        f'{name} is {size}; it must be a multiple of {multiple}', where
      )
    return size

  def _batch(self, row: Mapping, grid: Grid, where: str) -> int:
    """Clips per step of a grid, whose own `batch` is the full grid's."""
    value, s = row.get('batch', 'equal_voxels'), self._s
    if value == 'constant':
      return s.full.batch
    if value == 'equal_voxels':
      return s.full.batch * sizes.batch_factor(s.full, *grid[:3])
    if value == 'equal_cost':
      if s.clip_cost is None:
        self._fail(
          "batch is 'equal_cost', but the cost of a clip is not known here; "
          'give `clip_cost`, or batches as numbers',
          where,
        )
      ratio = s.clip_cost(*s.full[:3]) / s.clip_cost(*grid[:3])
      return sizes.multiple_near(s.full.batch * ratio, self._divisor())
    if isinstance(value, str):
      self._fail(
        f'batch is {value!r}; it must be a number of clips, or one of '
        f'{", ".join(_BATCHES)}',
        where,
      )
    # What modes write is checked with its phase.
    least = int(s.mode == 'table')
    return self._number(
      'batch', 0, least=least, whole=True, row=row, where=where
    )

  def _divisor(self) -> int:
    """What must divide a batch: devices, parts, and batch-norm groups."""
    s = self._s
    clips = self._row.get('group_clips', s.group_clips) or 1
    return math.lcm(s.num_devices * s.micro_batches, clips * s.micro_batches)

  def _lr_scale(self, batch: int) -> float:
    default = self._s.batch_rule if self._s.scale_lr else 'none'
    value = self._row.get('lr_scale', default)
    ratio = batch / self._s.full.batch
    if isinstance(value, str):
      if value not in BATCH_RULES:
        self._fail(
          f'lr_scale is {value!r}; it must be a number, or one of '
          f'{", ".join(BATCH_RULES)}'
        )
      return {'linear': ratio, 'sqrt': ratio**0.5, 'none': 1.0}[value]
    return float(self._number('lr_scale', 1.0, most=_MOST_RATE))

  def _strides(self, num_frames: int) -> list[int]:
    value, s = self._row.get('stride_frames', 'between'), self._s
    least, greatest = s.stride_frames, s.stride_frames * s.full.T // num_frames
    if s.sampling == 'segments' and isinstance(value, str):
      greatest = least  # Nothing reads it there.
    known = {
      'fixed': [least, least],
      'same_span': [greatest, greatest],
      # From a shorter span of the video to the same one. The greatest is a
      # multiple of the least, as in the reference.
      'between': [least, max(least * (s.full.T // num_frames), least)],
    }
    if isinstance(value, str) and value in known:
      return known[value]
    pair = [value, value] if checks.is_number(value) else value
    good = (
      checks.is_row(pair, 2)
      and all(checks.is_number(v) and v == int(v) for v in pair)
      and 1 <= pair[0] <= pair[1]
    )
    if not good:
      self._fail(
        f'stride_frames is {value!r}; it must be a whole number, [least, '
        f'greatest], or one of {", ".join(_STRIDES)}'
      )
    return [int(v) for v in pair]

  def _lr(self) -> Any:
    """Refuses a learning rate of the row's own that is none."""
    lr = self._row['lr']
    accepted = (
      'a number, [[share, rate], ...] from share 0 to share 1, {rates, '
      'lr_steps} or {schedule, base_lr}'
    )
    refuse = lambda: self._fail(f'lr is {lr!r}; it must be {accepted}')
    if isinstance(lr, Mapping):
      form = next((name for name in _LR_FIELDS if name in lr), None)
      if form is None:
        refuse()
      self._check_names(lr, sorted(_LR_FIELDS[form]), f'{self._where}, lr')
      if form == 'rates' and not _are_rates(lr):
        refuse()
      if form == 'schedule':
        lr = {'base_lr': self._s.learning_rate, **lr}
        self._check_schedule(lr)
      return _as_lists(lr)
    if isinstance(lr, Sequence) and not isinstance(lr, str):
      if not _are_points(lr):
        refuse()
      return _as_lists(lr)
    if not _is_rate(lr):
      refuse()
    return lr

  def _check_schedule(self, lr: Mapping) -> None:
    """Refuses a schedule of the row's own whose numbers are none."""
    where = f'{self._where}, lr'
    for name in ('base_lr', 'end_lr'):
      self._number(name, 0, row=lr, where=where)
    self._number('gamma', 1, positive=True, row=lr, where=where)
    schedule, steps = lr['schedule'], lr.get('lr_steps', ())
    if not isinstance(schedule, str):
      self._fail(
        f"schedule is {schedule!r}; it must be written as the run's, such as "
        "'cosine'",
        where,
      )
    if schedule == 'steps' and not _are_decays(steps):
      self._fail(f'lr_steps is {steps!r}; they are epochs that increase', where)

  def _augment(self) -> dict[str, float]:
    given, where = self._row['augment'], f'{self._where}, augment'
    self._check_names(given, sorted(STRENGTHS), where)
    return {
      name: float(
        self._number(name, 0, most=STRENGTHS[name], row=given, where=where)
      )
      for name in sorted(given)
    }


def _inherited(own: Mapping, grid: Mapping) -> dict[str, Any]:
  """A grid of a cycle, with what it leaves out from its row."""
  merged = dict(own)
  # A size of the grid's own replaces the row's, however that is written.
  for group in (('T', 'frames_factor'), ('H', 'W', 'side_factor')):
    if any(name in grid for name in group):
      for name in group:
        merged.pop(name, None)
  return merged | {k: v for k, v in grid.items() if k != 'weight'}


def _is_rate(value: Any) -> bool:
  return checks.is_number(value) and 0 <= value <= _MOST_RATE


def _are_points(value: Sequence) -> bool:
  """Whether a value is [share, rate] rows from share 0 to share 1."""
  if len(value) < 2 or not all(checks.is_row(p, 2) for p in value):
    return False
  shares = [p[0] for p in value]
  return (
    all(map(checks.is_number, shares))
    and all(_is_rate(p[1]) for p in value)
    and shares == sorted(shares)
    and (shares[0], shares[-1]) == (0, 1)
  )


def _are_rates(lr: Mapping) -> bool:
  """Whether 'rates' has one more than 'lr_steps', which do not decrease."""
  rates, steps = lr['rates'], lr.get('lr_steps', ())
  if not all(isinstance(v, list | tuple) for v in (rates, steps)):
    return False
  return (
    len(rates) == len(steps) + 1
    and all(map(_is_rate, rates))
    and _are_decays(steps)
  )


def _are_decays(steps: Any) -> bool:
  """Whether a value is epochs of a row, which do not decrease."""
  return (
    isinstance(steps, list | tuple)
    and all(checks.is_number(e) and e >= 0 for e in steps)
    and list(steps) == sorted(steps)
  )


def _as_lists(value: Any) -> Any:
  """Nested tuples as lists, as JSON has them."""
  if isinstance(value, Mapping):
    return {k: _as_lists(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [_as_lists(v) for v in value]
  return value
