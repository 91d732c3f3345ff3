"""Network, optimizer and state of a run, from its settings.

Nothing here needs the data set, or anything that reads files: planning uses it
too. What trains, replays or times a step takes all of it from `compose`.
"""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import ml_collections
import optax

from mgjax import models
from mgjax.config import rules
from mgjax.errors import ConfigError
from mgjax.hosts import parallel
from mgjax.step import optim, train_state
from mgjax.step.train_state import TrainState


@dataclasses.dataclass(frozen=True)
class Trainable:
  """A network with its optimizer, and the state of the two.

  Attributes:
    model: The network.
    tx: The optimizer.
    make_state: Makes the state with random weights.
    abstract: Its shapes and shardings: every device has all of it.
  """

  model: nn.Module
  tx: optax.GradientTransformation
  make_state: Callable[[], TrainState]
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
  module, tx = model(config), optimizer(config)
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
  config: ml_collections.ConfigDict,
) -> optax.GradientTransformation:
  """Makes the optimizer that the settings describe."""
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
  )


def state_maker(
  config: ml_collections.ConfigDict,
  model: nn.Module,
  tx: optax.GradientTransformation,
) -> Callable[[], TrainState]:
  """Returns a function without arguments that makes the initial state.

  Args:
    config: The settings; the seed and the average of the weights are read.
    model: The network.
    tx: The optimizer.
  """

  def make_state():
    return train_state.create_state(
      model,
      tx,
      jax.random.key(config.seed),
      models.example_video(model, config.data.num_frames),
      average=config.optim.ema_decay > 0,
    )

  return make_state
