"""What a schedule may be made from, and what it may come to.

Each message says what is wrong, where, and what would be accepted. Names of
arguments stand between backticks, so that a caller with names of its own for
them can put those in their place (mgjax/setup/grids.py does).
"""

import dataclasses
import itertools
import math
import numbers
import types
from collections.abc import Sequence
from typing import Any

from mgjax.errors import ConfigError
from mgjax.grids.learning_rate import Real
from mgjax.grids.schedule import Grid, GridSchedule, Phase, describe

# The arguments of `make_schedule` by their names, and with them `full`, the
# baseline's grid, and `rate`, its learning rate.
Arguments = types.SimpleNamespace

# Five halvings leave one pixel of 16; below, the deep layers see padding only.
MIN_CROP_PX = 16


def require(condition: Any, message: str) -> None:
  """Raises a ConfigError with the message where the condition does not hold."""
  if not condition:
    raise ConfigError(message)


# What each argument may be.


# What a number must be, in the words of the error.
_ACCEPTED = {
  'at least 1, a whole number': lambda v: (
    isinstance(v, numbers.Integral) and v >= 1
  ),
  'positive': lambda v: is_number(v) and v > 0,
  '0 or more': lambda v: is_number(v) and v >= 0,
}


def check_numbers(s: Arguments, accepted: str, *names: str) -> None:
  """Refuses those of the named arguments that are not `accepted`."""
  for name in names:
    value = getattr(s, name)
    require(
      _ACCEPTED[accepted](value),
      f'`{name}` is {value!r}; it must be {accepted}.',
    )


def check_choice(s: Arguments, name: str, accepted: Sequence[str]) -> None:
  """Refuses an argument, given by its name, that is not one of some words."""
  value = getattr(s, name)
  require(
    value in accepted,
    f'`{name}` is {value!r}; use one of {", ".join(accepted)}.',
  )


def check_jitter(jitter_px: Sequence[Any], full: Grid) -> None:
  """Refuses resized short sides that a crop of the full grid does not fit."""
  side = min(full.H, full.W)
  require(
    len(jitter_px) == 2
    and all(map(is_number, jitter_px))
    and side <= jitter_px[0] <= jitter_px[1],
    f'`jitter_px` is {tuple(jitter_px)}; it must be (least, greatest) short '
    f'side, the least no smaller than the crop of {side}.',
  )


def check_lr_steps(steps: Sequence[Any], total_epochs: Real) -> None:
  """Refuses decays that are not in order, or not inside the schedule."""
  edges = (0, *steps, total_epochs)
  require(
    all(map(is_number, steps))
    and all(a < b for a, b in itertools.pairwise(edges)),
    f'`lr_steps` is {tuple(steps)}; it must be increasing epochs, all after 0 '
    f'and before the end of the schedule at {total_epochs:g}.',
  )


def check_short_factors(factors: Sequence[Any]) -> None:
  """Refuses side factors of a short cycle that are none."""
  require(
    len(factors) > 0 and all(map(_is_factor, factors)),
    f'`short_factors` is {tuple(factors)}; it must be side factors in (0, 1], '
    'at least one.',
  )


def check_long_cycle(s: Arguments) -> None:
  """Refuses a long cycle that has no shapes, or nothing to be aligned with."""
  long_factors = s.long_factors
  require(
    len(long_factors) > 0
    and all(
      is_row(row, 2) and all(map(_is_factor, row)) for row in long_factors
    ),
    f'`long_factors` is {_plain(long_factors)}; it must be (frames factor, '
    'side factor) pairs, each factor in (0, 1].',
  )
  require(
    tuple(long_factors[-1]) == (1, 1),
    f'`long_factors` ends with {_plain(long_factors[-1])}; it must end with '
    '(1, 1), the full grid that the model is fine-tuned on.',
  )
  if s.lr_schedule != 'steps':
    check_numbers(s, 'at least 1, a whole number', 'num_long_cycles')
    return
  require(
    len(s.lr_steps) > 0,
    '`lr_steps` is empty, so long cycles have no decays to align with; name '
    "some, or use `lr_schedule='constant'` with `num_long_cycles`.",
  )


def check_ladder(rungs: Sequence[Any], lr_steps: Sequence[Any]) -> None:
  """Refuses rungs that are none, or lose frames."""
  require(
    len(rungs) > 0,
    '`ladder` is empty; it needs a rung or more, each (frames factor, epochs, '
    'learning rate, schedule).',
  )
  for i, rung in enumerate(rungs):
    require(
      is_row(rung, 4)
      and _is_factor(rung[0])
      and is_number(rung[1])
      and rung[1] > 0
      and is_number(rung[2])
      and rung[2] >= 0
      and isinstance(rung[3], str),
      f'`ladder[{i}]` is {_plain(rung)}; it must be (frames factor in (0, 1], '
      'epochs > 0, learning rate, schedule).',
    )
    if rung[3] == 'steps':
      check_lr_steps(lr_steps, rung[1])
  factors = [rung[0] for rung in rungs]
  require(
    factors == sorted(factors),
    f'`ladder` has frames factors {factors}; rungs must not lose frames.',
  )


def check_progressive(rows: Sequence[Any]) -> None:
  """Refuses rows that are none, shrink, or do not share the whole run."""
  require(
    len(rows) > 0
    and all(is_row(row, 3) and all(map(_is_factor, row)) for row in rows),
    f'`progressive` is {_plain(rows)}; it must be (share of the epochs, frames '
    'factor, side factor) rows, each number in (0, 1].',
  )
  total = math.fsum(row[0] for row in rows)
  require(
    math.isclose(total, 1.0, abs_tol=1e-6),
    f'`progressive` has shares that sum to {total:g}; they must sum to 1.',
  )
  volumes = [t * side * side for _, t, side in rows]
  require(
    volumes == sorted(volumes),
    f'`progressive` is {_plain(rows)}; its grids must not shrink, so sort the '
    'rows from coarse to fine.',
  )


def check_multiples(s: Arguments) -> None:
  """Refuses a full grid that is none of the multiples that all grids are."""
  for names, multiple in (
    (('frames',), 'frames_multiple'),
    (('height', 'width'), 'side_multiple'),
  ):
    for name in names:
      value, divisor = getattr(s, name), getattr(s, multiple)
      require(
        value % divisor == 0,
        f'`{name}` is {value}; it must be a multiple of '
        f'`{multiple}={divisor}`.',
      )


# What the phases may be.


def checked_phase(phase: Phase, group_clips: int, s: Arguments) -> Phase:
  """Returns the phase with its batch-norm groups.

  Args:
    phase: A phase of one group, all clips.
    group_clips: Clips of a group at the base grid; 0: all.
    s: The arguments of `make_schedule`, and `full`. With group_by='phase' all
      steps have as many groups, so that a group is larger where the short
      cycle enlarges the batch; with 'step' every group has `group_clips`.

  Raises:
    ConfigError: A grid cannot be trained; says in which phase and why.

  Source: section 3.4 of the paper: statistics are those of a fixed number of
    clips with respect to the long cycle, and grow inside the short cycle.
  """
  where = f'{phase.name} ({describe(phase.base, s.full)})'
  if group_clips:
    groups = _bn_groups(phase, group_clips, where, s)
    phase = dataclasses.replace(phase, bn_groups=groups)
  for grid, groups in zip(phase.cycle, phase.bn_groups, strict=True):
    _check_grid(grid, groups, phase.base, where, s)
  return phase


def _bn_groups(
  phase: Phase, group_clips: int, where: str, s: Arguments
) -> tuple[int, ...]:
  """Batch-norm groups of each grid of a phase."""
  found = []
  for grid in phase.cycle:
    batch = grid.batch if s.group_by == 'step' else phase.base.batch
    require(
      batch % group_clips == 0,
      f'{where}: a batch of {batch} clips does not divide into groups of '
      f'`group_clips={group_clips}`; change `batch`, or use a group size '
      f'such as {math.gcd(batch, group_clips)}, or 0 for the whole batch.',
    )
    groups = batch // group_clips
    # Cycles of the papers are multiples of the base; a table's need not be.
    require(
      not groups or grid.batch % groups == 0,
      f'{where}: a batch of {grid.batch} clips does not divide into the '
      f'{groups} batch-norm groups of the phase; change it, or use '
      "`group_by='step'`.",
    )
    found.append(groups)
  return tuple(found)


def _check_grid(
  grid: Grid, groups: int, base: Grid, where: str, s: Arguments
) -> None:
  """Refuses a grid that cannot be trained; see `checked_phase`."""
  crop = f'{grid.H}x{grid.W}'
  # Of a table, any grid may be the last one of its row.
  require(
    s.mode == 'table' or (grid.H <= base.H and grid.W <= base.W),
    f'{where}: the short cycle has a crop of {crop}, larger than the '
    f"phase's {base.H}x{base.W}; use smaller `short_factors` or larger side "
    'factors in `long_factors`.',
  )
  require(
    min(grid.H, grid.W) >= MIN_CROP_PX,
    f'{where}: a crop of {crop} is too small; sides of {MIN_CROP_PX} pixels '
    'or more are accepted. Use a larger `height` and `width`, or larger '
    'factors.',
  )
  require(
    grid.batch >= 1,
    f'{where}: the grid {crop} gets a batch of 0 clips; change `batch` or '
    'the factors.',
  )
  require(
    grid.batch % s.num_devices == 0,
    f'{where}: a batch of {grid.batch} clips does not divide among '
    f'{s.num_devices} devices; use a `batch` that is a multiple of '
    f'{s.num_devices}.',
  )
  # A part has whole groups, or else its statistics would be other ones.
  require(
    groups % s.micro_batches == 0,
    f'{where}: the {groups} batch-norm groups of the grid {grid} do not '
    f'divide into `micro_batches={s.micro_batches}` equal parts; use '
    f'{_divisors(groups)} micro-batches, or another `group_clips`.',
  )
  require(
    grid.batch % (s.micro_batches * s.num_devices) == 0,
    f'{where}: the {grid.batch // s.micro_batches} clips of a micro-batch of '
    f'the grid {grid} do not divide among {s.num_devices} devices; use fewer '
    f'`micro_batches` than {s.micro_batches}.',
  )


def check_ends(ends: Sequence[Real], s: Arguments) -> None:
  """Refuses rows of a table that end before those that come before them."""
  for i, (start, end) in enumerate(itertools.pairwise(ends), start=2):
    require(
      s.mode != 'table' or end >= start,
      f'`table` row {i}: end_epoch is {end:g}, before row {i - 1} ends at '
      f'epoch {start:g}; it must be no less than that.',
    )


def check_rates(schedule: GridSchedule, name: str, text: str) -> None:
  """Refuses learning rates that are negative or not finite.

  Only a text of the user's can make them. It is asked at every thousandth of
  the run and where phases begin: what is shorter than that may escape.

  Args:
    schedule: The schedule.
    name: The argument that has the text.
    text: The learning rate's schedules.
  """
  if 'optax.' not in text:
    return
  end = schedule.total_epochs
  starts = [phase.end_epoch for phase in schedule.phases[:-1]]
  for epoch in sorted({*(end * k / 1000 for k in range(1001)), *starts}):
    rate = schedule.lr_at_epoch(epoch)
    require(
      math.isfinite(rate) and rate >= 0,
      f'`{name}`: the learning rate is {rate:g} at epoch {epoch:g}; it must be '
      'a finite number, 0 or more, from the first epoch to the last.',
    )


def _divisors(number: int) -> str:
  """Lists the divisors, but for very large ones: '1, 2 or 4'."""
  found = [str(d) for d in range(1, min(number, 1000) + 1) if number % d == 0]
  return ' or '.join(filter(None, (', '.join(found[:-1]), found[-1])))


def is_number(value: Any) -> bool:
  """Whether a value is a finite number; a truth value is none."""
  return (
    isinstance(value, numbers.Real)
    and not isinstance(value, bool)
    and math.isfinite(value)
  )


def _is_factor(value: Any) -> bool:
  return is_number(value) and 0 < value <= 1


def is_row(value: Any, length: int) -> bool:
  """Whether a value is a tuple or list of so many items."""
  return isinstance(value, (tuple, list)) and len(value) == length


def _plain(value: Any) -> Any:
  """Returns nested lists as tuples, as they are usually written."""
  if isinstance(value, (tuple, list)):
    return tuple(_plain(item) for item in value)
  return value
