"""From a config to its hash and its schedule."""

import hashlib
import json
from typing import Any

import ml_collections

from mgjax.grids.schedule import GridSchedule
from mgjax.setup import grids


def config_hash(config: dict[str, Any]) -> str:
  """Sixteen hexadecimal digits that differ where configs do.

  Where the data lies does not count.

  Args:
    config: Contents of a config.json.
  """
  config = {**config, 'data': {**config['data'], 'dir': ''}}
  text = json.dumps(config, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def schedule(config: ml_collections.ConfigDict) -> GridSchedule:
  """The schedule of a config on the published size of its data set."""
  num_train = config.data.num_train
  if num_train is None:
    num_train = grids.PUBLISHED_SIZES[config.data.name]
  return grids.schedule(config, num_train)
