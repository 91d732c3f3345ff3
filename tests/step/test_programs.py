"""Which programs a schedule needs, when first, and what they are given."""

import jax
import numpy as np
import pytest

from configs import moving_digits
from mgjax.grids.schedule import Grid
from mgjax.hosts import parallel
from mgjax.setup import grids
from mgjax.step import programs
from mgjax.step.step_cache import Program
from tests import speck

EVAL_GRID = Grid(2, 48, 48, 64)


def uses(first_step=0, eval_steps=None, **options):
  schedule = grids.schedule(speck.get_config('grid=both'), 240)
  found = programs.first_uses(
    schedule,
    first_step,
    {schedule.total_steps} if eval_steps is None else eval_steps,
    eval_grid=EVAL_GRID,
    **{'takes_statistics': True, **options},
  )
  return schedule, found


TENTHS = [0.6 * i for i in range(1, 11)]


@pytest.mark.parametrize(
  'every,epochs', [(0.0, [6]), (2.0, [2, 4, 6]), (None, TENTHS)]
)
def test_evaluations_fall_on_the_first_step_after_the_epoch(every, epochs):
  schedule = grids.schedule(moving_digits.get_config('size=tiny'), 240)
  steps = sorted(programs.evaluation_steps(schedule, every))
  for step, epoch in zip(steps, epochs, strict=True):
    assert schedule.epoch(step - 1) < epoch <= schedule.epoch(step)


@pytest.mark.parametrize('first_step', [0, 1, 7])
def test_programs_come_in_the_order_of_their_first_use(first_step):
  schedule, found = uses(first_step)
  steps = [schedule(i) for i in range(first_step, schedule.total_steps)]
  grids = [program.grid for program in found if program.kind == 'train']
  assert grids == list(dict.fromkeys(steps))
  # The evaluation is after the last step; its statistics come with it.
  assert {program.kind for program in found[len(grids) :]} == {'eval', 'stats'}


def test_an_evaluation_needs_its_program_before_the_step_of_its_number():
  schedule, _ = uses()
  at = next(i for i in range(99) if schedule(i) not in map(schedule, range(i)))
  later = next(
    i
    for i in range(at + 1, schedule.total_steps)
    if schedule(i) not in map(schedule, range(i))
  )
  _, found = uses(eval_steps={later}, takes_statistics=False)
  evaluates = Program('eval', EVAL_GRID)
  trains = Program('train', schedule(later))
  assert found.index(evaluates) == found.index(trains) - 1


def test_statistics_are_needed_again_only_where_they_are_due():
  schedule, _ = uses()
  for due in (False, True):
    _, found = uses(schedule.total_steps, statistics_due=due)
    kinds = {program.kind for program in found}
    assert kinds == ({'eval', 'stats'} if due else {'eval'})


@pytest.mark.parametrize('classes', [0, 5])
def test_a_batch_on_the_devices_is_what_its_program_was_compiled_for(classes):
  mesh, grid = parallel.make_mesh(), Grid(2, 6, 8, 4)
  label = np.eye(5, dtype=np.float32)[:4] if classes else np.arange(4)
  batch = {
    'video': np.zeros((4, 2, 6, 8, 3), np.uint8),
    'label': label if classes else label.astype(np.int32),
    'flip': np.zeros(4, bool),
    'ids': ['a', 'b', 'c', 'd'],
    'skipped': [],
  }
  put = programs.put_batch(mesh, batch)
  spec = programs.batch_spec(grid, mesh, weighted_classes=classes)
  describe = lambda x: (x.shape, x.dtype, x.sharding)
  assert jax.tree.map(describe, put) == jax.tree.map(describe, spec)
