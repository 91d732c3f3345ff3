"""Network, optimizer and state of a run, from its settings.

Nothing here needs the data set, or anything that reads files: planning uses it
too. What trains, replays or times a step takes all of it from `compose`.
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import ml_collections
import numpy as np
import optax

from mgjax import models
from mgjax.config import rules
from mgjax.errors import ConfigError
from mgjax.hosts import parallel
from mgjax.models.head import VideoNetwork
from mgjax.step import optim, parameters, train_state
from mgjax.step.train_state import TrainState


@dataclasses.dataclass(frozen=True)
class Trainable:
  """A network with its optimizer, and the state of the two.

  Attributes:
    model: The network.
    tx: The optimizer.
    make_state: Makes the state with random weights: see `state_maker`.
    abstract: Its shapes and shardings: every device has all of it.
  """

  model: nn.Module
  tx: optax.GradientTransformation
  make_state: Callable[..., TrainState]
  abstract: TrainState


def compose(
  config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh
) -> Trainable:
  """Makes the network, the optimizer and the shapes of the state of a run.

  Args:
    config: The settings.
    mesh: Its devices.

  Raises:
    ConfigError: The network's name or an option of it is unknown.
  """
  module = model(config).on(parallel.platform(mesh))
  tx = optimizer(config, module)
  make_state = state_maker(config, module, tx)
  return Trainable(
    model=module,
    tx=tx,
    make_state=make_state,
    abstract=train_state.abstract_state(make_state, parallel.replicated(mesh)),
  )


def model(config: ml_collections.ConfigDict) -> nn.Module:
  """Makes the network of the sections model, norm and train (remat).

  Raises:
    ConfigError: The name or an option is unknown, or a value cannot work.
  """
  if config.model.num_classes is None:
    raise ConfigError('model.num_classes is not set; set it')
  options = config.model.to_dict()
  options |= options.pop('options', {})
  try:
    return models.build(
      **{name: rules.as_tuples(value) for name, value in options.items()},
      norm_momentum=config.norm.momentum,
      norm_eps=config.norm.eps,
      norm_frozen=config.norm.frozen,
      remat=config.train.remat == 'block',
    )
  except ValueError as error:
    raise ConfigError(f'model: {error}') from error


def optimizer(
  config: ml_collections.ConfigDict, model: VideoNetwork | None = None
) -> optax.GradientTransformation:
  """Makes the optimizer that the settings describe.

  Args:
    config: The settings.
    model: The network, which says what its parameters are; None: all are
      trained at one rate, and none are positions or tokens.
  """
  options = config.optim
  return optim.make_optimizer(
    options.name,
    weight_decay=options.weight_decay,
    momentum=options.momentum,
    nesterov=options.nesterov,
    b1=options.b1,
    b2=options.b2,
    eps=options.eps,
    trust_coefficient=options.trust_coefficient,
    clip_norm=options.clip_norm,
    frozen=config.norm.frozen,
    decay_on=options.decay_on,
    additions=(model or VideoNetwork).additions,
    layer_decay=options.layer_decay if model else 1.0,
    layer_of=model.layer_of if model else None,
    trained=trained(config, model),
  )


def trained(
  config: ml_collections.ConfigDict, model: VideoNetwork | None = None
) -> Callable[[dict], parameters.Marks]:
  """From all parameters to marks of those that are trained.

  Args:
    config: The settings.
    model: See `optimizer`.
  """
  if model is None:
    return lambda params: None
  return functools.partial(
    parameters.trained, which=config.optim.train, head=model.head_modules
  )


def check_parameters(
  config: ml_collections.ConfigDict, model: VideoNetwork
) -> None:
  """Refuses settings of parameters that the network does not have.

  Args:
    config: The settings.
    model: The network.

  Raises:
    ConfigError: Names the field.
  """
  if config.optim.train == 'all' and config.optim.layer_decay == 1:
    return  # Tracing takes seconds.
  video = models.example_video(model, config.data.num_frames)
  params = jax.eval_shape(model.init, jax.random.key(0), video)['params']
  try:
    trained(config, model)(params)
    if config.optim.layer_decay != 1:
      parameters.layers(params, model.layer_of)
  except ValueError as error:
    raise ConfigError(f'optim.{error}') from error


def state_maker(
  config: ml_collections.ConfigDict,
  model: nn.Module,
  tx: optax.GradientTransformation,
) -> Callable[..., TrainState]:
  """Returns a function of a seed, uint32 [], that makes the initial state.

  Args:
    config: The settings; the average of the weights, and the seed that counts
      where the function is given none.
    model: The network.
    tx: The optimizer.
  """

  seed = np.uint32(config.seed)

  # An argument: another seed is no other program to compile.
  def make_state(seed=seed):
    return train_state.create_state(
      model,
      tx,
      jax.random.key(seed),
      models.example_video(model, config.data.num_frames),
      average=config.optim.ema_decay > 0,
    )

  return make_state
