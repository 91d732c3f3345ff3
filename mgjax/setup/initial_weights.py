"""The weights that a run starts from instead of random ones."""

import ml_collections

from mgjax import models
from mgjax.errors import ConfigError
from mgjax.run import checkpoint
from mgjax.step.train_state import TrainState


def initial_variables(
  config: ml_collections.ConfigDict, abstract: TrainState
) -> dict:
  """Reads the weights of config.init_from.

  Args:
    config: The run's settings.
    abstract: Shapes and shardings of the run's state.

  Returns:
    {'params', 'batch_stats'}; without the classifier where config.init_head
    is 'new'; {} where config.init_from is empty.

  Raises:
    ConfigError: There are none, or of another network.
    checkpoint.DamagedError: They are damaged.
  """
  if not config.init_from:
    return {}
  path = checkpoint.find(config.init_from, 'init_from')
  wanted = {name: getattr(abstract, name) for name in checkpoint.VARIABLES}
  try:
    return checkpoint.load_variables(
      path,
      wanted,
      head=config.init_head == 'load',
      instead='--config.init_from={path}',
    )
  except ConfigError as error:
    hint = ''
    if f'/{models.HEAD}/' in str(error):
      hint = "; init_head='new' starts with a new classifier"
    raise ConfigError(f'init_from: {error}{hint}') from error
