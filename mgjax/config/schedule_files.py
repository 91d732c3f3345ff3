"""Reads the tables of schedules that grid.table names.

A table is rows (mgjax/grids/rows.py). A file of one is JSON, such as what
`plan --format=json` prints; or a Python program, as a config is, whose
`get_table(full, epochs)` returns the rows for the full grid and the epochs of
the baseline. What comes after a colon, as after that of a config, is its third
argument.
"""

import contextlib
import inspect
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from mgjax import files
from mgjax.config import config_file
from mgjax.errors import ConfigError
from mgjax.grids import Grid


def schedules() -> dict[str, pathlib.Path]:
  """The tables that come with mgjax, by name, such as 'vjepa2'."""
  return config_file.programs('schedules')


def rows(
  table: Sequence[Any], *, full: Grid, epochs: int | float
) -> Sequence[Any]:
  """The rows of a table.

  Args:
    table: config.grid.table: rows, or the name of a table or of its file.
    full: The full grid.
    epochs: Of the baseline.

  Raises:
    ConfigError: There is no such file, or it has no table.
  """
  if not table:
    raise ConfigError(
      "grid.mode is 'table', and grid.table is empty; give rows, a file, or "
      f'one of {", ".join(schedules())}.'
    )
  if len(table) != 1 or not isinstance(table[0], str):
    return table
  name, *arguments = table[0].split(':', 1)
  path = _find(name)
  if path.suffix == '.json':
    if arguments:
      raise ConfigError(f'grid.table={table[0]}: a JSON file has no arguments.')
    return _read_json(path)
  return _run(path, table[0], full, epochs, arguments)


def _find(name: str) -> pathlib.Path:
  known = schedules()
  path = pathlib.Path(name)
  with contextlib.suppress(OSError):  # Of a name that is too long, say.
    if name in known and not path.exists():
      return known[name]
    if path.suffix in ('.json', '.py') and path.is_file():
      return path
  raise ConfigError(
    f'grid.table={name}: there is neither a table of that name nor a .json or '
    f'.py file.{config_file.did_you_mean(name, known)} The tables are '
    f'{", ".join(known)}.'
  )


def _read_json(path: pathlib.Path) -> list[Any]:
  found = files.read_json(path, dict | list)
  if isinstance(found, Mapping):
    found = found.get('table')
  if not isinstance(found, list):
    raise ConfigError(
      f'grid.table={path}: it has no table; it must be a list of rows, or an '
      "object with such a list as 'table', as plan --format=json prints it."
    )
  return found


def _run(
  path: pathlib.Path,
  text: str,
  full: Grid,
  epochs: int | float,
  arguments: list[str],
) -> Sequence[Any]:
  """The rows that a Python program returns."""
  program = config_file.load_program(str(path))
  get_table = getattr(program, 'get_table', None)
  if not callable(get_table):
    raise ConfigError(
      f'{path}: there is no function get_table(full, epochs), which returns '
      'the rows.'
    )
  try:
    inspect.signature(get_table).bind(full, epochs, *arguments)
  except TypeError as error:
    raise ConfigError(f'grid.table={text}: get_table: {error}.') from error
  with config_file.explained(str(path)):
    found = get_table(full, epochs, *arguments)
  if not isinstance(found, list | tuple):
    raise ConfigError(
      f'{path}: get_table() returns a {type(found).__name__}; it must return '
      'rows.'
    )
  return found
