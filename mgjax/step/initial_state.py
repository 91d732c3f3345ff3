"""The state of a run before its first step: random weights or given ones."""

import jax
import jax.numpy as jnp
import ml_collections

from mgjax import models
from mgjax.cli import ConfigError
from mgjax.hosts import parallel
from mgjax.run import checkpoint
from mgjax.step import train_step
from mgjax.weights import checks


def initial_variables(
  config: ml_collections.ConfigDict, abstract: train_step.TrainState
) -> dict:
  """Reads the weights of config.init_from.

  Args:
    config: The run's configuration.
    abstract: Shapes and shardings of the run's state.

  Returns:
    {'params', 'batch_stats'}; without the classifier where config.init_head
    is 'new'.

  Raises:
    ConfigError: There are none, or of another network.
    checkpoint.DamagedError: They are damaged.
  """
  path = checkpoint.find(config.init_from, 'init_from')
  wanted = {name: getattr(abstract, name) for name in checkpoint.VARIABLES}
  try:
    variables = checkpoint.load_variables(
      path,
      wanted,
      head=config.init_head == 'load',
      instead='--config.init_from={path}',
    )
    checks.check_numbers(variables, path)
    return variables
  except ConfigError as error:
    hint = ''
    if f'/{models.HEAD}/' in str(error):
      hint = "; init_head='new' starts with a new classifier"
    raise ConfigError(f'init_from: {error}{hint}') from error


def state_maker(config: ml_collections.ConfigDict, model, tx):
  """Returns a function without arguments that makes the initial state."""

  def make_state():
    return train_step.create_state(
      model,
      tx,
      jax.random.key(config.seed),
      models.example_video(config.data.num_frames),
      average=config.optim.ema_decay > 0,
    )

  return make_state


def first_state(make_state, initial: dict, mesh) -> train_step.TrainState:
  """Makes the state before the first step.

  Args:
    make_state: Of `state_maker`.
    initial: Of `initial_variables`; {} for random weights.
    mesh: Devices.
  """
  state = jax.jit(make_state, out_shardings=parallel.replicated(mesh))()
  if not initial:
    return state
  params = state.params | initial['params']
  return state.replace(
    params=params,
    batch_stats=initial['batch_stats'],
    # A copy: the step donates both.
    ema=jax.tree.map(jnp.copy, params) if state.ema else {},
  )
