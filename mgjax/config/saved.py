"""Reads the config that a run has kept in its folder."""

from typing import Any

import ml_collections
from etils import epath

from mgjax import files
from mgjax.config.fields import base
from mgjax.config.rules import as_tuples, reset_unused_options
from mgjax.errors import ConfigError


def read_saved(workdir: epath.PathLike) -> ml_collections.ConfigDict:
  """Reads workdir/config.json, the config that a run or an import used.

  Fields that are younger than the file have their defaults, and so have the
  options that its network lacks.

  Raises:
    ConfigError: There is no such file, or it is not one of this program.
  """
  saved = read_settings(workdir)
  config = base()
  try:
    _update(config, saved)
    reset_unused_options(config.model)
  except (ValueError, AttributeError, KeyError, TypeError) as error:
    raise ConfigError(
      f'{epath.Path(workdir) / "config.json"} is not the config of a run: '
      f'{error}.'
    ) from error
  return config


def read_settings(workdir: epath.PathLike) -> dict[str, Any]:
  """Reads workdir/config.json as it is.

  Raises:
    ConfigError: There is no such file, or it is not that of a run.
  """
  path = epath.Path(workdir) / 'config.json'
  saved = files.read_json(path)
  # Those that every version of this program has written.
  for section in ('model', 'data', 'optim', 'grid', 'norm', 'eval'):
    if not isinstance(saved.get(section), dict):
      raise ConfigError(
        f'{path} is not the config of a run: it has no section {section!r}.'
      )
  if not isinstance(saved['model'].get('name'), str):
    raise ConfigError(f'{path} is not the config of a run: no model.name.')
  return saved


def _update(config: ml_collections.ConfigDict, saved: dict) -> None:
  for name, value in saved.items():
    if isinstance(value, dict):
      _update(config[name], value)
    else:
      config[name] = as_tuples(value)
