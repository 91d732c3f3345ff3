"""From a config to its hash and its schedule."""

import copy
import hashlib
import json
from typing import Any

import ml_collections

from mgjax.config import rules
from mgjax.grids.schedule import GridSchedule
from mgjax.setup import grids


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


def without_unused(config: dict[str, Any]) -> dict[str, Any]:
  """A config whose options that its network lacks have their defaults.

  Records of earlier versions have others, which did nothing.
  """
  config = copy.deepcopy(config)
  rules.reset_unused_options(config['model'])
  return config


def schedule(config: ml_collections.ConfigDict) -> GridSchedule:
  """The schedule of a config on the published size of its data set."""
  num_train = config.data.num_train
  if num_train is None:
    num_train = grids.PUBLISHED_SIZES[config.data.name]
  return grids.schedule(config, num_train)
