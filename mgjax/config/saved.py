"""Reads the config that a run has kept in its folder."""

import json
from typing import Any

import ml_collections
from etils import epath

from mgjax import files
from mgjax.config import fields, network_options, rules
from mgjax.errors import ConfigError


def read_saved(workdir: epath.PathLike) -> ml_collections.ConfigDict:
  """Reads workdir/config.json, the config that a run or an import used.

  Fields that are younger than the file have their defaults.

  Raises:
    ConfigError: There is no such file, or it is not one of this program.
  """
  settings = current_form(read_settings(workdir))
  config = fields.base()
  try:
    _choose(config, settings)
    _update(config, settings)
  except (ValueError, AttributeError, KeyError, TypeError) as error:
    raise ConfigError(
      f'{epath.Path(workdir) / "config.json"} is not the config of a run: '
      f'{str(error).rstrip(".")}.'
    ) from error
  return config


def current_form(settings: dict[str, Any]) -> dict[str, Any]:
  """Settings of an earlier version as this one would write them.

  Until version 0.1 every config had the options of all networks, and those of
  the others did nothing, whatever they were set to. Younger fields are added
  with their defaults.

  Args:
    settings: Contents of a config.json.

  Raises:
    ConfigError: The network that they name is not there.
  """
  model = settings['model']
  known = network_options.fields(model['name']).section
  model = {k: v for k, v in model.items() if _is_field(k, known)}
  config = fields.base()
  _choose(config, settings)
  return _completed({**settings, 'model': model}, as_json(config))


def _choose(config: ml_collections.ConfigDict, settings: dict) -> None:
  """Sets the names that decide which other fields there are."""
  config.model.name = settings['model']['name']
  config.data.name = settings['data']['name']


def _is_field(name: str, known: dict[str, Any]) -> bool:
  """Whether a network has an option, or no network ever had it: a mistake."""
  if name in ('name', 'options') or name in known:
    return True
  return not network_options.networks_with(name)


def _completed(settings: dict, defaults: dict) -> dict:
  """Settings, with the defaults of what they do not have."""
  return defaults | {
    name: _completed(value, defaults.get(name, {}))
    if isinstance(value, dict)
    else value
    for name, value in settings.items()
  }


def as_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The settings as config.json has them: tuples are lists."""
  return json.loads(config.to_json_best_effort())


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
  for section in ('model', 'data'):
    if not isinstance(saved[section].get('name'), str):
      raise ConfigError(
        f'{path} is not the config of a run: {section}.name is not a text.'
      )
  return saved


def _update(config: ml_collections.ConfigDict, settings: dict) -> None:
  for name, value in settings.items():
    if isinstance(value, dict):
      _update(config[name], value)
    else:
      config[name] = rules.as_tuples(value)
