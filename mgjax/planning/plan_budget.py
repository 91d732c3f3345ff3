"""Which schedule has the most epochs in some hours."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from mgjax.errors import ConfigError
from mgjax.grids import Grid, GridSchedule
from mgjax.planning import columns, plan

MODES = ('none', 'short', 'long', 'both')

# Epoch factors that are tried, in hundredths, and those that are always shown.
_LEAST, _MOST = 5, 1000
_USUAL = (50, 100, 150)

# (mode, epoch factor, videos in an epoch) -> a schedule. It raises a
# ConfigError where there is none: too short for its warm-up, for instance.
ScheduleOf = Callable[[str, float, int], GridSchedule]


class Candidate(NamedTuple):
  """A schedule and how long it trains.

  Attributes:
    mode: As in `config.grid.mode`.
    factor: Epochs of the run per epoch of the config's baseline.
    epochs: Of the run.
    steps: Of the run.
    hours: Of its training steps; nothing else is in it.
    lr_steps: For 'none', the epochs at which the learning rate decays; the
      other modes stretch the config's by themselves.
  """

  mode: str
  factor: float
  epochs: float
  steps: int
  hours: float
  lr_steps: tuple[int, ...] = ()


def scaled_epochs(epochs: int | float, factor: float) -> int:
  """Returns a factor of some epochs as a whole number, 1 or more."""
  return max(1, round(epochs * factor))


def modes_and_grids(
  schedule_of: ScheduleOf, num_train: int, *, own: str = 'none'
) -> tuple[list[str], set[Grid]]:
  """Returns the modes that there are, and all grids that they can have.

  Args:
    schedule_of: Makes the schedules.
    num_train: Videos in an epoch.
    own: The mode of the config; a table or progressive grids compete, too.

  Raises:
    ConfigError: There is no mode; it says why the last one cannot be.
  """
  modes, grids, reason = [], set(), None
  competing = (own,) if own in ('progressive', 'table') else ()
  for mode in (*MODES, *competing):
    try:
      # With the most epochs and many videos, no phase is empty.
      longest = schedule_of(mode, _MOST / 100, max(num_train, 100_000))
    except ConfigError as error:
      reason = error
    else:
      modes.append(mode)
      grids |= set(longest.grids)
  if not modes and reason:
    raise reason
  return modes, grids


def search(
  schedule_of: ScheduleOf,
  modes: Sequence[str],
  step_s: Mapping[Grid, float],
  *,
  num_train: int,
  budget_hours: float,
  lr_steps: Sequence[int | float] = (),
  has_factor: Callable[[str], bool] = lambda mode: True,
) -> list[Candidate]:
  """Finds what each mode can do in some hours.

  Args:
    schedule_of: Makes the schedules that are tried.
    modes: Modes that it knows.
    step_s: Seconds of a step of each grid that they can have.
    num_train: Videos in an epoch.
    budget_hours: Hours of training steps.
    lr_steps: Epochs at which the baseline's learning rate decays, if it does.
    has_factor: Whether a mode has epoch factors; else it has one length only.

  Returns:
    For each mode the schedule with the most epochs that fits, if there is one,
    and the usual epoch factors, by hours.

  Raises:
    ConfigError: Nothing fits.
  """

  reason = None

  def candidate(mode: str, percent: int) -> Candidate | None:
    nonlocal reason
    factor = percent / 100
    try:
      schedule = schedule_of(mode, factor, num_train)
    except ConfigError as error:
      # Too short for its warm-up or its learning-rate steps.
      reason = error
      return None
    return Candidate(
      mode,
      factor,
      schedule.total_epochs,
      schedule.total_steps,
      plan.training_hours(schedule, step_s),
      tuple(scaled_epochs(e, factor) for e in lr_steps if mode == 'none'),
    )

  found = set()
  for mode in modes:
    if not has_factor(mode):
      found.add(candidate(mode, 100))
      continue
    low, high = _LEAST, _MOST + 1  # The answer is in [low, high).
    while high - low > 1:
      middle = (low + high) // 2
      tried = candidate(mode, middle)
      if tried is None or tried.hours <= budget_hours:
        low = middle
      else:
        high = middle
    found |= {candidate(mode, percent) for percent in (low, *_USUAL)}
  candidates = sorted(found - {None}, key=lambda c: c.hours)
  if not candidates:
    raise ConfigError(
      f'--budget_hours={budget_hours:g}: no schedule is that short; of those '
      f'that were tried, the last cannot be: {reason}'
    )
  if all(c.hours > budget_hours for c in candidates):
    raise ConfigError(
      f'--budget_hours={budget_hours:g}: no schedule is that short; the '
      f'shortest takes {candidates[0].hours:.3g}'
    )
  return candidates


def best(candidates: Sequence[Candidate], budget_hours: float) -> Candidate:
  """Returns the most epochs that fit; of equals that with the fewest hours."""
  fit = [c for c in candidates if c.hours <= budget_hours]
  return max(fit, key=lambda c: (c.epochs, -c.hours))


def table(
  candidates: Sequence[Candidate],
  budget_hours: float,
  *,
  has_table: bool = False,
) -> str:
  """Returns the candidates as text, and the flags of the best one.

  Args:
    candidates: What `search` has found.
    budget_hours: Hours of training steps.
    has_table: Whether the config has a table of grids, which another mode must
      take away.
  """
  chosen = best(candidates, budget_hours)
  rows = [('', 'mode', 'epoch factor', 'epochs', 'steps', 'hours', 'fits')]
  rows += [
    (
      '>' if c == chosen else '',
      c.mode,
      f'{c.factor:g}',
      f'{c.epochs:g}',
      f'{c.steps:,}',
      f'{c.hours:.3g}',
      'yes' if c.hours <= budget_hours else 'no',
    )
    for c in candidates
  ]
  return '\n'.join(
    [
      *(line.rstrip() for line in columns.aligned(rows, left=(0, 1))),
      '',
      f'>  the most epochs in {budget_hours:g} hours: '
      + _flags(chosen, has_table),
      'Hours are those of training steps; waits for data, compilation and '
      'evaluation add to them.',
    ]
  )


def _flags(chosen: Candidate, has_table: bool) -> str:
  """Returns the flags that make a config's schedule the chosen one."""
  changed = {'grid.mode': f"'{chosen.mode}'"}
  if chosen.mode == 'none':
    changed['optim.total_epochs'] = f'{chosen.epochs:g}'
    if chosen.lr_steps:
      # A comma after the last one makes a tuple of a single one, too.
      steps = ''.join(f'{epoch},' for epoch in chosen.lr_steps)
      changed['optim.lr_steps'] = steps
  else:
    changed['grid.epoch_factor'] = f'{chosen.factor:g}'
  text = ' '.join(f'--config.{k}={v}' for k, v in changed.items())
  # No flag takes away what another flag has set.
  is_table_gone = has_table and chosen.mode != 'table'
  return f'{text}, without grid.table' if is_table_gone else text
