"""From settings to the network."""

from typing import Any

import flax.linen as nn
import ml_collections

from mgjax import models
from mgjax.errors import ConfigError


def model(config: ml_collections.ConfigDict) -> nn.Module:
  """Makes the network of the sections model, norm and train (remat).

  Fields of `config.model` that this network does not have are left out (a Slow
  network has no alpha).

  Raises:
    ConfigError: The name or an option is unknown, or a value cannot work.
  """
  name = config.model.name
  try:
    known = models.option_names(name)
    return models.build(
      name,
      **{k: _as_tuple(v) for k, v in config.model.items() if k in known},
      norm_momentum=config.norm.momentum,
      norm_eps=config.norm.eps,
      norm_frozen=config.norm.frozen,
      remat=config.train.remat == 'block',
    )
  except ValueError as error:
    raise ConfigError(f'model: {error}') from error


def _as_tuple(value: Any) -> Any:
  """Turns lists, also nested ones, into tuples: modules must be hashable."""
  if isinstance(value, (list, tuple)):
    return tuple(map(_as_tuple, value))
  return value
