"""Which schedule has the most epochs in some hours."""

from collections.abc import Sequence
from typing import NamedTuple

import ml_collections
from absl import flags

from mgjax.cli import ConfigError
from mgjax.grids import cycles
from mgjax.planning import plan, plan_text, step_seconds

MODES = ('none', 'short', 'long', 'both')

# Epoch factors that are tried, in hundredths, and those that are always shown.
_LEAST, _MOST = 5, 1000
_USUAL = (50, 100, 150)


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


def with_factor(
  config: ml_collections.ConfigDict, mode: str, factor: float
) -> ml_collections.ConfigDict:
  """The config with another mode and number of epochs.

  The baseline has no epoch factor: its own epochs, and those at which its
  learning rate decays, are multiplied and rounded.
  """
  config = config.copy_and_resolve_references()
  config.grid.mode = mode
  if mode == 'none':
    scaled = lambda epochs: max(1, round(epochs * factor))
    config.optim.total_epochs = scaled(config.optim.total_epochs)
    config.optim.lr_steps = tuple(map(scaled, config.optim.lr_steps))
  else:
    config.grid.epoch_factor = factor
  return config


def search(
  config: ml_collections.ConfigDict, num_train: int, values: flags.FlagValues
) -> list[Candidate]:
  """Finds what each mode can do in --budget_hours.

  Args:
    config: Its mode and epoch factor are varied.
    num_train: Videos in an epoch.
    values: Flags: budget_hours, num_devices and those of `step_seconds`.

  Returns:
    For each mode the schedule with the most epochs that fits, and the usual
    epoch factors, by hours. A mode that the config cannot have, or which has
    no schedule that short, has no such entry.

  Raises:
    ConfigError: Nothing tells how long steps take, or nothing fits.
  """
  schedule_of = lambda mode, percent, videos=num_train: cycles.make_schedule(
    with_factor(config, mode, percent / 100),
    videos,
    num_devices=values.num_devices,
  )
  grids = {cycles.full_grid(config)}
  modes, reason = [], None
  for mode in MODES:
    try:
      # As many grids as the mode can have: none of its phases is empty.
      grids |= set(schedule_of(mode, _MOST, max(num_train, 100_000)).grids)
      modes.append(mode)
    except ConfigError as error:
      reason = error
  if not modes and reason:
    raise reason
  step_s = step_seconds.step_seconds(
    values,
    plan.gmacs_per_clip(config, grids),
    cycles.full_grid(config),
    config.model.name,
  )
  if step_s is None:
    raise ConfigError(
      f'--budget_hours={values.budget_hours:g}: how long steps take must be '
      f'known; give {step_seconds.NAMES}'
    )

  def candidate(mode: str, percent: int) -> Candidate | None:
    try:
      schedule = schedule_of(mode, percent)
    except ConfigError:
      return None  # Too short for its warm-up or its learning-rate steps.
    lr_steps = ()
    if mode == 'none' and config.optim.schedule == 'steps':
      lr_steps = with_factor(config, mode, percent / 100).optim.lr_steps
    return Candidate(
      mode,
      percent / 100,
      schedule.total_epochs,
      schedule.total_steps,
      plan.training_hours(schedule, step_s),
      lr_steps,
    )

  found = set()
  for mode in modes:
    low, high = _LEAST, _MOST + 1  # The answer is in [low, high).
    while high - low > 1:
      middle = (low + high) // 2
      tried = candidate(mode, middle)
      if tried is None or tried.hours <= values.budget_hours:
        low = middle
      else:
        high = middle
    found |= {candidate(mode, percent) for percent in (low, *_USUAL)}
  candidates = sorted(found - {None}, key=lambda c: c.hours)
  if all(c.hours > values.budget_hours for c in candidates):
    raise ConfigError(
      f'--budget_hours={values.budget_hours:g}: no schedule is that short; the '
      f'shortest takes {candidates[0].hours:.3g}'
    )
  return candidates


def best(candidates: Sequence[Candidate], budget_hours: float) -> Candidate:
  """The most epochs that fit; of equals the one with the fewest hours."""
  fit = [c for c in candidates if c.hours <= budget_hours]
  return max(fit, key=lambda c: (c.epochs, -c.hours))


def frontier(candidates: Sequence[Candidate]) -> set[Candidate]:
  """Those to which no other gives as many epochs in fewer hours."""
  return {
    c
    for c in candidates
    if not any(
      other != c and other.epochs >= c.epochs and other.hours <= c.hours
      for other in candidates
    )
  }


def table(candidates: Sequence[Candidate], budget_hours: float) -> str:
  """The candidates for people, and the flags of the best one."""
  chosen = best(candidates, budget_hours)
  on_frontier = frontier(candidates)
  rows = [('', 'mode', 'epoch factor', 'epochs', 'steps', 'hours', 'fits')]
  rows += [
    (
      '>' if c == chosen else '*' if c in on_frontier else '',
      c.mode,
      f'{c.factor:g}',
      f'{c.epochs:g}',
      f'{c.steps:,}',
      f'{c.hours:.3g}',
      'yes' if c.hours <= budget_hours else 'no',
    )
    for c in candidates
  ]
  changed = {'grid.mode': f"'{chosen.mode}'"}
  if chosen.mode == 'none':
    changed['optim.total_epochs'] = f'{chosen.epochs:g}'
    if chosen.lr_steps:
      # A comma after the last one makes a tuple of a single one, too.
      steps = ''.join(f'{epoch},' for epoch in chosen.lr_steps)
      changed['optim.lr_steps'] = steps
  else:
    changed['grid.epoch_factor'] = f'{chosen.factor:g}'
  flags_text = ' '.join(f'--config.{k}={v}' for k, v in changed.items())
  return '\n'.join(
    [
      *(line.rstrip() for line in plan_text.aligned(rows, left=(0, 1))),
      '',
      f'>  the most epochs in {budget_hours:g} hours: {flags_text}',
      '*  nothing else here has as many epochs in fewer hours',
      'Hours are those of training steps; waits for data, compilation and '
      'evaluation add to them.',
    ]
  )
