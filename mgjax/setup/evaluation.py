"""From settings to an evaluation: the head, the weights, the program."""

import hashlib
import inspect
import json
from typing import Any

import flax.linen as nn
import jax
import ml_collections
import optax
from etils import epath

from mgjax import models
from mgjax.config import fields
from mgjax.data import sources
from mgjax.errors import ConfigError
from mgjax.hosts import parallel
from mgjax.run import checkpoint
from mgjax.setup import data as data_setup
from mgjax.setup import grids, network
from mgjax.step import eval_step, programs, train_state
from mgjax.step.train_state import TrainState


def head_window(
  config: ml_collections.ConfigDict, model: nn.Module
) -> tuple[int, int, int] | None:
  """The window of `eval_step.make_eval_step` that `config.eval.head` means.

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


def scorer_options(
  config: ml_collections.ConfigDict, model: nn.Module
) -> dict[str, Any]:
  """The options of `eval_step.make_scorer` that the settings mean.

  Args:
    config: The configuration.
    model: Its network.

  Raises:
    ConfigError: As `head_window`.
  """
  return {
    'mean': config.data.mean,
    'std': config.data.std,
    'window': head_window(config, model),
    'loss': config.optim.loss,
  }


def load(
  config: ml_collections.ConfigDict,
  mesh: jax.sharding.Mesh,
  path: epath.Path,
  *,
  instead: str,
) -> tuple[nn.Module, TrainState]:
  """Reads the network of a checkpoint.

  Args:
    config: The configuration.
    mesh: Devices, each of which gets all of the state.
    path: Folder of the checkpoint.
    instead: How the user asks for another one: see
      `checkpoint.load_variables`.

  Returns:
    The network; its state, with the variables of the checkpoint and no
    optimizer.

  Raises:
    ConfigError: The checkpoint is of another network.
    checkpoint.DamagedError: It is damaged.
  """
  model = network.model(config)
  abstract = train_state.abstract_state(
    lambda: train_state.create_state(
      model,
      optax.identity(),
      jax.random.key(0),
      models.example_video(model, config.data.num_frames),
    ),
    parallel.replicated(mesh),
  )
  wanted = {name: getattr(abstract, name) for name in checkpoint.VARIABLES}
  variables = checkpoint.load_variables(path, wanted, instead=instead)
  return model, abstract.replace(**variables)


def lower_eval_step(
  config: ml_collections.ConfigDict,
  model: nn.Module,
  mesh: jax.sharding.Mesh,
  state: TrainState,
) -> jax.stages.Lowered:
  """Lowers the evaluation program (params, batch_stats, video) -> scores.

  Args:
    config: The configuration.
    model: Its network.
    mesh: Devices, among which a batch is shared.
    state: Its state, abstract or not.

  Raises:
    ConfigError: As `head_window`.
  """
  step = eval_step.make_eval_step(model, **scorer_options(config, model))
  batch = programs.batch_spec(grids.eval_grid(config), mesh)
  return jax.jit(step, out_shardings=parallel.sharded(mesh)).lower(
    state.eval_params, state.batch_stats, batch['video']
  )


def partial_key(
  config: ml_collections.ConfigDict,
  state: TrainState,
  source: sources.Source,
) -> str:
  """What an evaluation depends on, as one hash: views, weights, videos.

  Args:
    config: Its settings. Those that only say how the machine works do not
      count.
    state: Its step, parameters and statistics count.
    source: Its name, size and manifest count.
  """
  parts = {
    name: config[name].to_dict() for name in ('model', 'data', 'norm', 'eval')
  }
  for name in fields.MACHINE_DATA_FIELDS:
    del parts['data'][name]
  weights = checkpoint.checksum((state.eval_params, state.batch_stats))
  parts |= {
    'loss': config.optim.loss,
    'videos': [source.name, source.split, len(source), source.manifest_sha256],
    'weights': [int(state.step), weights],
  }
  text = json.dumps(parts, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()
