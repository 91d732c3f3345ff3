"""Seconds of a training step of each grid, from what the user knows.

  --workdir=DIR      a run (of any length) or a record of the same network: its
                     step times; or the file of a record of
                     experiments/bench/grid_step_times.py
  --step_ms=MS       a step of the full grid
  --gmacs_per_s=N    1e9 multiply-adds per second in training

All but --workdir give one rate of multiply-adds, which is taken for every
grid; a backward pass counts as two forward passes.
"""

import functools
import math
import pathlib
import statistics
from collections.abc import Mapping
from typing import Any

from absl import flags

from mgjax import cli, files
from mgjax.errors import ConfigError
from mgjax.grids import Grid
from mgjax.run import run_folder

FLAGS = ('workdir', 'step_ms', 'gmacs_per_s')
NAMES = '--workdir, --step_ms or --gmacs_per_s'
# Fields of a network that do not change how long its steps take.
_CHEAP = ('num_classes', 'dropout')


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags that say how long steps take."""
  flag = functools.partial(cli.define_flag, values)
  text = 'Folder of a run or of a record, or file of recorded step times.'
  flag('workdir', str, None, text)
  text = 'Milliseconds of a step of the full grid.'
  flag('step_ms', float, None, text, least=1e-9)
  text = '1e9 multiply-adds per second in training.'
  flag('gmacs_per_s', float, None, text, least=1e-9)


def step_seconds(
  values: flags.FlagValues,
  gmacs_per_clip: Mapping[Grid, float],
  full: Grid,
  settings: dict[str, Any],
) -> dict[Grid, float] | None:
  """Returns the seconds of a training step of each grid.

  Args:
    values: Has the flags of `define_flags`.
    gmacs_per_clip: 1e9 multiply-adds of a forward pass, for each grid.
    full: The full grid, one of them.
    settings: Those that are planned, as config.json has them.

  Returns:
    Seconds by grid; None where none of the flags is given.

  Raises:
    ConfigError: More than one flag is given, or the run has no step times or
      those of another network, or of another way to train it.
  """
  given = [name for name in FLAGS if values[name].value is not None]
  if len(given) > 1:
    raise ConfigError(f'give one of {NAMES}')
  if not given:
    return None
  gmacs = {g: 3 * g.batch * cost for g, cost in gmacs_per_clip.items()}
  known = {}
  if values.workdir is not None:
    theirs, known = _recorded(pathlib.Path(values.workdir))
    for section, name in _costly(settings):
      there = theirs.get(section)
      if not isinstance(there, dict) or name not in there:
        continue  # Older files have fewer fields.
      if there[name] != settings[section][name]:
        raise ConfigError(
          f'--workdir={values.workdir} has the step times of {section}.{name}='
          f'{there[name]!r}, not of {settings[section][name]!r}'
        )
    rates = [gmacs[g] / s for g, s in known.items() if g in gmacs]
    if not rates:
      raise ConfigError(
        f'--workdir={values.workdir} has no step of a grid of this schedule; '
        'use a run of the same config'
      )
    gmacs_per_s = statistics.median(rates)
  elif values.step_ms is not None:
    gmacs_per_s = gmacs[full] / (values.step_ms / 1e3)
  else:
    gmacs_per_s = values.gmacs_per_s
  return {g: known.get(g, cost / gmacs_per_s) for g, cost in gmacs.items()}


def _costly(settings: dict[str, Any]) -> list[tuple[str, str]]:
  """Fields that change how long a step of a grid takes, the name first."""
  model = [name for name in settings['model'] if name not in ('name', *_CHEAP)]
  return [
    ('model', 'name'),
    *(('model', name) for name in model),
    *(('train', name) for name in ('micro_batches', 'remat')),
    *(('optim', name) for name in ('name', 'train')),
  ]


def _recorded(workdir: pathlib.Path) -> tuple[dict, dict[Grid, float]]:
  """Reads step times.

  Args:
    workdir: Folder of a run, or file of step times.

  Returns:
    The settings, {} where they are not told, and the median step time of each
    grid [s].

  Raises:
    ConfigError: It is neither of the two, or a line has no grid or no time.
  """
  settings = None
  if workdir.is_file():
    content = _read_times(workdir)
    settings, lines, key = content.get('settings'), content['grids'], 'wall_s'
  elif (workdir / run_folder.METRICS).is_file():
    if (workdir / run_folder.CONFIG).exists():
      settings = files.read_json(workdir / run_folder.CONFIG)
    lines = run_folder.read_metrics(workdir)
    lines, key = [line for line in lines if 'step_s' in line], 'step_s'
  else:
    raise ConfigError(
      f'--workdir={workdir} holds no metrics.jsonl of a run, and is no file of '
      'recorded step times'
    )
  times: dict[Grid, list[float]] = {}
  for number, line in enumerate(lines, 1):
    where = f'--workdir={workdir}, step time {number}'
    times.setdefault(_grid(line, where), []).extend(_seconds(line, key, where))
  return (
    settings if isinstance(settings, dict) else {},
    {g: statistics.median(found) for g, found in times.items()},
  )


def _grid(line: Any, where: str) -> Grid:
  """Returns the grid of a line; raises ConfigError where it has none."""
  try:
    grid = Grid(*(line[name] for name in Grid._fields))
  except (KeyError, TypeError) as error:
    raise ConfigError(f'{where}: there is no grid {Grid._fields}') from error
  if not all(type(n) is int and n > 0 for n in grid):
    raise ConfigError(f'{where}: {tuple(grid)} is no grid')
  return grid


def _seconds(line: dict[str, Any], key: str, where: str) -> list[float]:
  """Returns the seconds of a line, which has one number or several."""
  found = line.get(key)
  seconds = found if isinstance(found, list) else [found]
  if not seconds or not all(
    isinstance(s, int | float) and 0 < s < math.inf for s in seconds
  ):
    raise ConfigError(f'{where}: {key} is {found!r}, no time of a step')
  return seconds


def _read_times(path: pathlib.Path) -> dict[str, Any]:
  """Reads a record of experiments/bench/grid_step_times.py."""
  try:
    content = files.read_json(path)
    if not isinstance(content.get('grids'), list):
      raise ConfigError('it has no list of grids')
  except ConfigError as error:
    raise ConfigError(
      f"--workdir={path} is no record of the repository's "
      f'experiments/bench/grid_step_times.py: {error}'
    ) from error
  return content
