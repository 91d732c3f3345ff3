"""Which programs a schedule needs, when first, and what they are called with.

A program is one compiled function for one grid: a training step, a step that
takes batch-norm statistics, or an evaluation step.
"""

import bisect
import math
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np

from mgjax.grids.schedule import Grid, GridSchedule
from mgjax.hosts import parallel
from mgjax.step.step_cache import Program

# What a program takes of a batch; the rest, such as ids, stays on the host.
_INPUTS = ('video', 'label', 'flip')


def batch_spec(
  grid: Grid, mesh: jax.sharding.Mesh, *, weighted_classes: int = 0
) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes, dtypes and shardings of a batch, as `put_batch` makes it.

  Args:
    grid: Clips B, frames T, height H and width W of the batch.
    mesh: Devices that share its clips.
    weighted_classes: K where a label is a weight for each of K classes; 0:
      where it is the number of a class.

  Returns:
    'video' uint8 [B, T, H, W, 3], 'label' int32 [B] or float32 [B, K], 'flip'
    bool [B].
  """
  sharding = parallel.sharded(mesh)
  spec = lambda shape, dtype: jax.ShapeDtypeStruct(
    (grid.batch, *shape), dtype, sharding=sharding
  )
  label = spec((), np.int32)
  if weighted_classes:
    label = spec((weighted_classes,), np.float32)
  return {
    'video': spec((grid.T, grid.H, grid.W, 3), np.uint8),
    'label': label,
    'flip': spec((), np.bool_),
  }


def put_batch(
  mesh: jax.sharding.Mesh, batch: Mapping[str, Any]
) -> dict[str, jax.Array]:
  """Moves to the devices what a program takes of this host's share of a batch.

  Args:
    mesh: Devices that share the batch.
    batch: What `TrainStream.batch` returns; ids and the like stay.

  Returns:
    Global arrays, see `batch_spec`.
  """
  return parallel.put_batch(mesh, {name: batch[name] for name in _INPUTS})


def put_scalars(
  mesh: jax.sharding.Mesh, lr: float, groups: int
) -> tuple[jax.Array, jax.Array]:
  """Moves the learning rate (float32) and batch-norm groups (int32)."""
  return parallel.put_replicated(mesh, (np.float32(lr), np.int32(groups)))


def evaluation_steps(schedule: GridSchedule, every: float | None) -> set[int]:
  """Steps after which the model is evaluated: every so many epochs, and last.

  Args:
    schedule: The run's schedule.
    every: Epochs; 0: only after the last step; None: a tenth of the run's.

  Returns:
    Numbers of steps done, from 1 to schedule.total_steps.
  """
  steps = {schedule.total_steps}
  if every is None:
    every = schedule.total_epochs / 10
  if every:
    for i in range(1, math.ceil(schedule.total_epochs / every)):
      steps.add(
        bisect.bisect_left(
          range(schedule.total_steps),
          i * every * schedule.num_train,
          key=schedule.clips_before,
        )
      )
  return steps - {0}


def first_uses(
  schedule: GridSchedule,
  first_step: int,
  eval_steps: Collection[int],
  *,
  eval_grid: Grid,
  takes_statistics: bool,
  statistics_due: bool = False,
) -> list[Program]:
  """Programs still needed, in order of first use.

  Args:
    schedule: Grids of the steps.
    first_step: Steps done.
    eval_steps: Of the evaluations: the steps done by then.
    eval_grid: Grid of the evaluation.
    takes_statistics: Whether batch-norm statistics are taken afresh before
      each evaluation.
    statistics_due: Whether they are still to be taken for the evaluation after
      `first_step`, if there is one.
  """
  # First step of use by program, not in that order.
  needed: dict[Program, float] = {
    Program('train', grid): step
    for grid, step in schedule.first_uses(first_step).items()
  }
  for step in sorted(eval_steps):
    if step >= first_step:
      # Half a step early: an evaluation comes before the step of its number.
      needed.setdefault(Program('eval', eval_grid), step - 0.5)
      if takes_statistics and (step > first_step or statistics_due):
        base = schedule.phase(step - 1).base
        needed.setdefault(Program('stats', base), step - 0.5)
  return sorted(needed, key=needed.get)
