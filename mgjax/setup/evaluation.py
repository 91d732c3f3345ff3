"""From settings to an evaluation: the head, the weights, the program."""

import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
from etils import epath

from mgjax import models
from mgjax.config import fields
from mgjax.data import sources
from mgjax.errors import ConfigError
from mgjax.evaluation import scoring
from mgjax.hosts import parallel
from mgjax.run import checkpoint
from mgjax.setup import data as data_setup
from mgjax.setup import grids
from mgjax.step import train_state
from mgjax.step.train_state import TrainState


def head_window(
  config: ml_collections.ConfigDict, model: nn.Module
) -> tuple[int, int, int] | None:
  """The window of `train_step.make_eval_step` that `config.eval.head` means.

  Args:
    config: The configuration.
    model: Its network.

  Returns:
    Frames, height and width of the training clip; None for the global average.

  Raises:
    ConfigError: The model has no fully convolutional head, or evaluates
      smaller clips than it is trained on.
  """
  if config.eval.head == 'global':
    return None
  if 'window' not in inspect.signature(type(model).__call__).parameters:
    raise ConfigError(
      f"eval.head='fully_conv', but model.name={config.model.name!r} has no "
      "such head; use 'global'"
    )
  crop, train_crop = (
    data_setup.crop_hw(config.eval),
    data_setup.crop_hw(config.data),
  )
  if crop[0] < train_crop[0] or crop[1] < train_crop[1]:
    raise ConfigError(
      f"eval.head='fully_conv', but eval.crop_px (height and width {crop}) is "
      f"smaller than data.crop_px ({train_crop}); use 'global'"
    )
  return config.data.num_frames, *train_crop


def load_state(
  config: ml_collections.ConfigDict,
  model: nn.Module,
  mesh: jax.sharding.Mesh,
  path: epath.PathLike,
  *,
  instead: str = '{path}',
) -> TrainState:
  """Reads what evaluation needs of a checkpoint; nothing else is in the state.

  Args:
    config: The configuration.
    model: Its network.
    mesh: Devices, each of which gets all of it.
    path: Folder of the checkpoint.
    instead: How the user asks for another one: see
      `checkpoint.load_variables`.

  Raises:
    ConfigError: The checkpoint is of another network.
    checkpoint.DamagedError: It is damaged.
  """

  def make_state() -> TrainState:
    video = models.example_video(config.data.num_frames)
    variables = model.init(jax.random.key(0), video)
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=variables['params'],
      batch_stats=variables['batch_stats'],
      opt_state=(),
    )

  abstract = train_state.abstract_state(make_state, parallel.replicated(mesh))
  variables = checkpoint.load_variables(
    path,
    {name: getattr(abstract, name) for name in checkpoint.VARIABLES},
    instead=instead,
  )
  return abstract.replace(**variables)


def lower_eval_step(
  config: ml_collections.ConfigDict,
  model: nn.Module,
  mesh: jax.sharding.Mesh,
  state: TrainState,
) -> jax.stages.Lowered:
  """Lowers the evaluation program of a state, abstract or not.

  Raises:
    ConfigError: As `head_window`.
  """
  return scoring.lower_step(
    model,
    state,
    grids.eval_grid(config),
    mesh,
    mean=config.data.mean,
    std=config.data.std,
    window=head_window(config, model),
    loss=config.optim.loss,
  )


def partial_key(
  config: ml_collections.ConfigDict,
  state: TrainState,
  source: sources.Source,
) -> str:
  """What an evaluation depends on, as one hash: see `scoring.partial_key`.

  Settings that only say how the machine works do not count.
  """
  settings = {
    name: config[name].to_dict() for name in ('model', 'data', 'norm', 'eval')
  }
  for name in fields.MACHINE_DATA_FIELDS:
    del settings['data'][name]
  settings['loss'] = config.optim.loss
  return scoring.partial_key(settings, state, source)
