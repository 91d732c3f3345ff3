"""From a config to its hash and its schedule."""

import hashlib
import json
from typing import Any

import ml_collections

from mgjax.config import saved
from mgjax.grids.schedule import GridSchedule
from mgjax.setup import grids


def kept(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """A config as the config.json of its run has it.

  Raises:
    ConfigError: Its schedule is a table that cannot be read.
  """
  # A run keeps the rows of its table, not the name of their file.
  return saved.as_json(grids.with_table(config))


def config_hash(config: dict[str, Any]) -> str:
  """Sixteen hexadecimal digits that differ where configs do.

  Where the data lies does not count.

  Args:
    config: Contents of a config.json.
  """
  config = {**config, 'data': {**config['data'], 'dir': ''}}
  text = json.dumps(config, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


# Parts of published sets, by name: the whole set, and the share of its classes.
# No source at hand counts their videos.
_PARTS = {
  'something_something_v2_mini_ssv2': ('something_something_v2', 87 / 174),
  'kinetics400_mini_kinetics': ('kinetics400', 200 / 400),
}


def schedule(config: ml_collections.ConfigDict) -> GridSchedule:
  """The schedule of a config on the published size of its data set.

  A part of a set has the same share of its videos as of its classes.
  """
  num_train = config.data.num_train
  if num_train is None:
    whole, share = _PARTS.get(config.data.name, (config.data.name, 1))
    num_train = round(share * grids.PUBLISHED_SIZES[whole])
  return grids.schedule(config, num_train)
