"""From the name of a config to the config, its hash and its schedule."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from configs import default
from mgjax import cycles, plan
from mgjax.schedule import GridSchedule


def read(
  config: str, overrides: Sequence[str] = ()
) -> ml_collections.ConfigDict:
  """Reads a config as the commands do.

  Args:
    config: Value of --config: 'configs/FILE.py:ARGUMENTS'.
    overrides: Such as '--config.grid.epoch_factor=1.0'.

  Raises:
    ConfigError: A value cannot work.
    flags.Error: The file cannot be read, or there is no such field.
  """
  argv = ['', f'--config={config}', *overrides]
  values = flags.FlagValues()
  config_flags.DEFINE_config_file(
    'config', None, lock_config=True, flag_values=values, sys_argv=argv
  )
  values(argv)
  return default.validate(values['config'].value)


def as_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The config as it is read back from a run's config.json."""
  return json.loads(config.to_json_best_effort())


def config_hash(config: dict[str, Any]) -> str:
  """Sixteen hexadecimal digits that differ where configs do.

  Where the data lies does not count.

  Args:
    config: Contents of a config.json.
  """
  config = {**config, 'data': {**config['data'], 'dir': ''}}
  text = json.dumps(config, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def with_fields_of(
  config: dict[str, Any], other: dict[str, Any]
) -> dict[str, Any]:
  """A config without the fields that another one does not have."""
  return {
    key: with_fields_of(value, other[key])
    if isinstance(value, dict) and isinstance(other[key], dict)
    else value
    for key, value in config.items()
    if key in other
  }


def schedule(config: ml_collections.ConfigDict) -> GridSchedule:
  """The schedule of a config on the published size of its data set."""
  num_train = config.data.num_train
  if num_train is None:
    num_train = plan.PUBLISHED_SIZES[config.data.name]
  return cycles.make_schedule(config, num_train)
