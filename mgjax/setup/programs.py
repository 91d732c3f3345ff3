"""The programs of a run, from its settings, ready to be compiled."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from mgjax.config import network_options
from mgjax.grids.schedule import GridSchedule
from mgjax.hosts import parallel
from mgjax.setup import augmentation, evaluation, grids
from mgjax.setup import network as network_setup
from mgjax.setup.network import Trainable
from mgjax.step import on_devices, programs, split_step, train_step
from mgjax.step.step_cache import Program


def lower_programs(
  config: ml_collections.ConfigDict,
  schedule: GridSchedule,
  network: Trainable,
  mesh: jax.sharding.Mesh,
  first_step: int,
  eval_steps: Collection[int],
  *,
  statistics_due: bool = False,
  class_weights: Sequence[float] | None = None,
) -> dict[Program, Callable[[], jax.stages.Lowered]]:
  """Functions that lower each program still needed, in order of first use.

  Args:
    config: The run's settings.
    schedule: Its grids.
    network: Its network, optimizer and state.
    mesh: Its devices.
    first_step: Steps done.
    eval_steps: Of the evaluations: the steps done by then.
    statistics_due: Whether the evaluation after `first_step`, if there is one,
      still needs batch-norm statistics.
    class_weights: See `train_step.make_parts`.
  """
  replicated = parallel.replicated(mesh)
  # One function for all grids: it is traced once for each.
  run_train_step = _to_lower(
    _step_parts(config, network, schedule, mesh, class_weights), mesh
  )
  pixels = {'mean': config.data.mean, 'std': config.data.std}
  stats_step = train_step.make_stats_step(
    network.model, **pixels, layout=_layout(mesh, schedule)
  )
  run_stats_step = jax.jit(stats_step, out_shardings=replicated)
  scalar = lambda dtype: jax.ShapeDtypeStruct((), dtype, sharding=replicated)
  key = scalar(jax.random.key(0).dtype)
  is_weighted = config.optim.loss == 'sigmoid'
  num_weights = config.model.num_classes if is_weighted else 0

  def lower(program: Program):
    batch = programs.batch_spec(
      program.grid, mesh, weighted_classes=num_weights
    )
    if program.kind == 'train':
      strengths = {name: scalar(jnp.float32) for name in schedule.strengths}
      return run_train_step.lower(
        *(network.abstract, batch, scalar(jnp.float32), scalar(jnp.int32)),
        *(key, strengths),
      )
    if program.kind == 'stats':
      return run_stats_step.lower(
        network.abstract, batch, scalar(jnp.int32), key
      )
    return evaluation.lower_eval_step(
      config, network.model, mesh, network.abstract
    )

  # Lowered in the thread that compiles: tracing takes seconds per grid.
  return {
    program: lambda program=program: lower(program)
    for program in programs.first_uses(
      schedule,
      first_step,
      eval_steps,
      eval_grid=grids.eval_grid(config),
      takes_statistics=statistics_batches(config) > 0,
      statistics_due=statistics_due,
    )
  }


def _to_lower(parts: train_step.Parts, mesh: jax.sharding.Mesh) -> Any:
  """The training step as something that can be lowered."""
  replicated = parallel.replicated(mesh)
  if parallel.platform(mesh) == 'cpu':
    return split_step.SplitStep(parts, replicated)
  return in_one_program(parts, replicated)


def in_one_program(
  parts: train_step.Parts, sharding: jax.sharding.Sharding
) -> Any:
  """The step as jax.jit returns it; its results have the sharding."""
  return jax.jit(
    train_step.whole(parts),
    # The old state's memory is the new one's: two would not fit large networks.
    donate_argnums=0,
    out_shardings=sharding,
  )


def make_train_step(
  config: ml_collections.ConfigDict,
  network: Trainable,
  schedule: GridSchedule | None = None,
  mesh: jax.sharding.Mesh | None = None,
  class_weights: Sequence[float] | None = None,
) -> Callable:
  """The training step that the settings describe, not compiled.

  Args:
    config: The settings.
    network: The network, its optimizer and state.
    schedule: See `augmentation.augment`.
    mesh: Devices that share the batches; None: one CPU.
    class_weights: See `train_step.make_parts`.
  """
  return train_step.whole(
    _step_parts(config, network, schedule, mesh, class_weights)
  )


def _step_parts(
  config: ml_collections.ConfigDict,
  network: Trainable,
  schedule: GridSchedule | None,
  mesh: jax.sharding.Mesh | None,
  class_weights: Sequence[float] | None,
) -> train_step.Parts:
  return train_step.make_parts(
    network.model,
    network.tx,
    mean=config.data.mean,
    std=config.data.std,
    label_smoothing=config.optim.label_smoothing,
    class_weights=class_weights,
    ema_decay=config.optim.ema_decay,
    micro_batches=config.train.micro_batches,
    loss=config.optim.loss,
    augment=augmentation.augment(config, schedule),
    trained=network_setup.trained(config, network.model),
    frozen_dropout=config.optim.frozen_dropout,
    unroll=mesh is None or parallel.platform(mesh) == 'cpu',
    layout=_layout(mesh, schedule) if mesh and schedule else None,
    reduce_dtype=config.optim.reduce_dtype,
  )


def _layout(
  mesh: jax.sharding.Mesh, schedule: GridSchedule
) -> on_devices.Layout | None:
  # One device has nobody to share with.
  if mesh.size == 1:
    return None
  return on_devices.Layout(mesh, schedule.group_clips)


def statistics_batches(config: ml_collections.ConfigDict) -> int:
  """Batches from which statistics are estimated before an evaluation.

  None where all layers keep the statistics that they have, and where there are
  no batch norms.
  """
  has_batch_norm = network_options.options_of(config.model.name).has_batch_norm
  if config.norm.frozen == 'all' or not has_batch_norm:
    return 0
  return config.norm.precise_batches
