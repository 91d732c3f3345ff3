"""mgjax's side of step_time.py: a training step, with its state and clips."""

import time
import types
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from mgjax import models
from mgjax.config import fields
from mgjax.planning import macs, made_up
from mgjax.recipes import transformers
from mgjax.setup import network
from mgjax.step import compilation, train_state, train_step


def random_variables(model: nn.Module, video: Any) -> dict:
  """Weights for which no layer is idle: no scale starts at zero.

  Args:
    model: Of `mgjax.models`.
    video: The shape of a clip: an array or a jax.ShapeDtypeStruct.

  Returns:
    'params' and 'batch_stats' of NumPy arrays: see `made_up.variables`.
  """
  return made_up.variables(jax.eval_shape(model.init, jax.random.key(0), video))


def by_name(variables: dict) -> dict[str, np.ndarray]:
  """Joins the names of nested variables by dots, without the collection's."""
  return {
    '.'.join(key.key for key in path[1:]): np.asarray(leaf)
    for path, leaf in jax.tree.leaves_with_path(variables)
  }


def network_of(
  name: str, clip: tuple[int, int, int], **options: Any
) -> nn.Module:
  """Makes a network of the benchmark, without dropout.

  Args:
    name: One of step_time.MODELS.
    clip: Frames, height and width: Hugging Face's transformers make their table
      of positions for the clips that they are built for.
    **options: As those of models.build.
  """
  if name in transformers.NETWORKS:
    options = {
      **transformers.NETWORKS[name],
      'position_grid': clip,
      'head_norm_eps': 1e-5,
      **options,
    }
    name = 'vit'
  return models.build(name, dropout=0.0, **options)


class JaxSide:
  """mgjax's training step, compiled, with its state and its clips."""

  def __init__(
    self,
    name: str,
    args: flags.FlagValues,
    *,
    frames: int,
    num_classes: int,
    learning_rate: float,
    options: Mapping[str, Any] = types.MappingProxyType({}),
  ):
    config = fields.base()
    self.optim = config.optim
    self.frames = frames
    self.model = network_of(
      name,
      (frames, args.crop_px, args.crop_px),
      num_classes=num_classes,
      dtype=args.dtype,
      **options,
    )
    rng = np.random.default_rng(0)
    shape = (args.batch, self.frames, args.crop_px, args.crop_px, 3)
    video = rng.integers(0, 256, shape, np.uint8)
    label = rng.integers(0, num_classes, args.batch)
    mean, std = config.data.mean, config.data.std
    self.variables = random_variables(
      self.model, jax.ShapeDtypeStruct(shape, jnp.float32)
    )
    self.clips = {
      'video': np.asarray(train_step.normalize(video, mean, std)),
      'label': label.astype(np.int64),
    }
    self.macs = macs.forward_macs(
      self.model, T=self.frames, H=args.crop_px, W=args.crop_px
    )
    tx = network.optimizer(config)
    params, batch_stats = jax.device_put(
      (self.variables['params'], self.variables.get('batch_stats', {}))
    )
    self.state = train_state.TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      batch_stats=batch_stats,
      opt_state=tx.init(params),
    )
    self.inputs = jax.device_put(
      (
        {
          'video': video,
          'label': label.astype(np.int32),
          'flip': np.zeros(args.batch, bool),
        },
        np.float32(learning_rate),
        np.int32(1),
        jax.random.key(0),
      )
    )
    step = train_step.make_train_step(self.model, tx, mean=mean, std=std)
    start, cpu = time.perf_counter(), time.process_time()
    self.step = compilation.compile_program(
      jax.jit(step, donate_argnums=0).lower(self.state, *self.inputs),
      jax.devices()[0].platform,
    )
    self.compile_s = time.perf_counter() - start
    self.compile_cpu_s = time.process_time() - cpu

  @property
  def peak_bytes(self) -> int:
    """What the step takes of the device, by the compiler's own plan."""
    plan = self.step.memory_analysis()
    # The new state lies where the old one was (alias).
    return (
      plan.argument_size_in_bytes
      + plan.output_size_in_bytes
      + plan.temp_size_in_bytes
      - plan.alias_size_in_bytes
    )

  def run(self, steps: int) -> dict:
    """Takes a step, then `steps` that are timed together."""
    losses = []
    for i in range(steps + 1):
      if i == 1:
        jax.block_until_ready(self.state)
        wall, cpu = time.perf_counter(), time.process_time()
      self.state, metrics = self.step(self.state, *self.inputs)
      losses.append(metrics['loss'])
    jax.block_until_ready(self.state)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
      'wall_s': wall,
      'cpu_s': cpu,
      'losses': [float(loss) for loss in losses],
      'peak_bytes': self.peak_bytes,
    }
