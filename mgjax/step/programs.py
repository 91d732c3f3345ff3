"""The programs of a run: which it needs, when first, and their arguments."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from mgjax.grids.schedule import Grid, GridSchedule
from mgjax.hosts import parallel
from mgjax.setup import augmentation, evaluation, grids
from mgjax.step import train_step
from mgjax.step.step_cache import Program


def lower_programs(
  config: ml_collections.ConfigDict,
  schedule: GridSchedule,
  model: nn.Module,
  tx: optax.GradientTransformation,
  mesh: jax.sharding.Mesh,
  abstract: train_step.TrainState,
  first_step: int,
  eval_steps: set[int],
  *,
  statistics_due: bool = False,
) -> dict[Program, Callable[[], jax.stages.Lowered]]:
  """Functions that lower each program still needed, in order of first use.

  Args:
    config: The run's settings.
    schedule: Its grids.
    model: Its network.
    tx: Its optimizer.
    mesh: Its devices.
    abstract: Shapes and shardings of its state.
    first_step: Steps done.
    eval_steps: Of the evaluations: the steps done by then.
    statistics_due: Whether the evaluation after `first_step`, if there is one,
      still needs batch-norm statistics.
  """
  data = config.data
  replicated, sharded = parallel.replicated(mesh), parallel.sharded(mesh)
  pixels = {'mean': data.mean, 'std': data.std}
  run_train_step = jax.jit(
    train_step.make_train_step(
      model,
      tx,
      **pixels,
      label_smoothing=config.optim.label_smoothing,
      ema_decay=config.optim.ema_decay,
      micro_batches=config.train.micro_batches,
      loss=config.optim.loss,
      augment=augmentation.augment(config),
    ),
    donate_argnums=0,
    out_shardings=replicated,
  )
  run_stats_step = jax.jit(
    train_step.make_stats_step(model, **pixels), out_shardings=replicated
  )
  scalar = lambda dtype: jax.ShapeDtypeStruct((), dtype, sharding=replicated)
  key = scalar(jax.random.key(0).dtype)

  def batch_spec(grid: Grid) -> dict:
    spec = lambda shape, dtype: jax.ShapeDtypeStruct(
      (grid.batch, *shape), dtype, sharding=sharded
    )
    label = spec((), np.int32)
    if config.optim.loss == 'sigmoid':
      label = spec((config.model.num_classes,), np.float32)
    return {
      'video': spec((grid.T, grid.H, grid.W, 3), np.uint8),
      'label': label,
      'flip': spec((), np.bool_),
    }

  def lower(program: Program):
    batch = batch_spec(program.grid)
    if program.kind == 'train':
      return run_train_step.lower(
        abstract, batch, scalar(jnp.float32), scalar(jnp.int32), key
      )
    if program.kind == 'stats':
      return run_stats_step.lower(abstract, batch, scalar(jnp.int32), key)
    return evaluation.lower_eval_step(config, model, mesh, abstract)

  return {
    program: lambda program=program: lower(program)
    for program in first_uses(
      config, schedule, first_step, eval_steps, statistics_due
    )
  }


def first_uses(
  config: ml_collections.ConfigDict,
  schedule: GridSchedule,
  first_step: int,
  eval_steps: set[int],
  statistics_due: bool,
) -> list[Program]:
  """Programs still needed, in order of first use; see `lower_programs`."""
  # First step of use by program, not in that order.
  needed: dict[Program, float] = {
    Program('train', grid): step
    for grid, step in schedule.first_uses(first_step).items()
  }
  for step in sorted(eval_steps):
    if step >= first_step:
      needed.setdefault(Program('eval', grids.eval_grid(config)), step - 0.5)
      needs_statistics = step > first_step or statistics_due
      if statistics_batches(config) and needs_statistics:
        base = schedule.phase(step - 1).base
        needed.setdefault(Program('stats', base), step - 0.5)
  return sorted(needed, key=needed.get)


def statistics_batches(config: ml_collections.ConfigDict) -> int:
  """Batches from which statistics are estimated before an evaluation.

  None where all layers keep the statistics that they have.
  """
  if config.norm.frozen == 'all':
    return 0
  return config.norm.precise_batches


def on_device(batch: dict) -> dict:
  """The part of a batch that a program takes."""
  return {name: batch[name] for name in ('video', 'label', 'flip')}


def put_scalars(mesh, lr: float, groups: int) -> tuple[jax.Array, jax.Array]:
  """Moves the learning rate (float32) and batch-norm groups (int32)."""
  return parallel.put_replicated(mesh, (np.float32(lr), np.int32(groups)))
