"""schedule.py: what a step is, from integers alone."""

import dataclasses

import pytest

from mgjax.grids.schedule import Grid, Phase, lay_out

A, B, C = Grid(8, 112, 112, 16), Grid(8, 158, 158, 8), Grid(16, 224, 224, 4)


def phase(*cycle, end_epoch, lr_stage=0, lr_scale=1.0):
  return Phase(
    cycle=cycle,
    end_step=0,
    end_epoch=end_epoch,
    lr_stage=lr_stage,
    lr_scale=lr_scale,
    stride_frames=(2, 2),
    jitter_px=((256, 320),) * len(cycle),
    bn_groups=(1,) * len(cycle),
  )


def schedule(num_train=100):
  """3 epochs of A, B, C in turn (28 clips a cycle), then 1 epoch of C."""
  return lay_out(
    [phase(A, B, C, end_epoch=3), phase(C, end_epoch=4, lr_stage=1)],
    num_train=num_train,
    lr_at_epoch=lambda epoch: 10.0 - epoch,
  )


def clips_by_counting(s, step):
  return sum(s(i).batch for i in range(step))


@pytest.mark.parametrize(
  'step,want', [(0, A), (1, B), (2, C), (3, A), (31, B), (32, C), (33, C)]
)
def test_steps_of_a_phase_take_turns_with_the_grids_of_its_cycle(step, want):
  assert schedule()(step) == want


def test_a_phase_ends_at_the_first_step_that_reaches_its_last_epoch():
  s = schedule()
  end = s.phases[0].end_step
  # 10 cycles are 280 clips; A and B make 304, the first sum of 300 or more.
  assert end == 32
  assert s.clips_before(end - 1) < 300 <= s.clips_before(end)


def test_the_next_phase_starts_at_the_real_position():
  s = schedule()
  # 304 clips are used; 96 more reach epoch 4 in 24 steps of 4.
  assert s.total_steps == 32 + 24
  assert s.total_clips == 400


@pytest.mark.parametrize('num_train', [1, 2, 7, 28, 97, 100, 1000])
def test_clips_before_a_step_is_the_sum_of_all_earlier_batches(num_train):
  s = schedule(num_train)
  for step in range(s.total_steps + 1):
    assert s.clips_before(step) == clips_by_counting(s, step)


@pytest.mark.parametrize('num_train', [1, 2, 7, 28, 97, 100, 1000])
def test_every_phase_overshoots_by_less_than_one_batch(num_train):
  s = schedule(num_train)
  for p in s.phases:
    used = s.clips_before(p.end_step)
    assert 0 <= used - p.end_epoch * num_train < s(p.end_step - 1).batch


def test_each_phase_restarts_its_cycle():
  s = lay_out(
    [phase(A, B, end_epoch=1), phase(A, B, end_epoch=2)],
    num_train=40,
    lr_at_epoch=lambda _: 1.0,
  )
  assert s.phases[0].end_step == 3  # 16 + 8 + 16
  assert [s.cycle_index(i) for i in range(5)] == [0, 1, 0, 0, 1]


def test_a_phase_without_a_step_does_not_appear():
  s = lay_out(
    [phase(A, end_epoch=1), phase(B, end_epoch=1), phase(C, end_epoch=2)],
    num_train=16,
    lr_at_epoch=lambda _: 1.0,
  )
  assert [p.base for p in s.phases] == [A, C]


def test_a_schedule_without_a_step_is_refused():
  with pytest.raises(ValueError, match='no steps'):
    lay_out([], num_train=5, lr_at_epoch=lambda _: 1.0)


@pytest.mark.parametrize('step', [-1, 56, 10**9])
@pytest.mark.parametrize('method', ['__call__', 'phase', 'cycle_index'])
def test_a_step_outside_the_schedule_is_refused(method, step):
  with pytest.raises(ValueError, match=r'its steps are 0 to 55'):
    getattr(schedule(), method)(step)


def test_clips_before_is_known_at_the_end_but_not_beyond():
  s = schedule()
  assert s.clips_before(s.total_steps) == s.total_clips
  with pytest.raises(ValueError, match='outside'):
    s.clips_before(s.total_steps + 1)


def test_grids_are_distinct_and_in_the_order_of_first_use():
  assert schedule().grids == (A, B, C)


def test_grids_that_no_step_reaches_are_left_out():
  s = lay_out(
    [phase(A, B, C, end_epoch=1)], num_train=20, lr_at_epoch=lambda _: 1.0
  )
  assert s.total_steps == 2
  assert s.grids == (A, B)


@pytest.mark.parametrize('done', range(57))
def test_the_grids_still_needed_are_those_of_the_steps_to_come(done):
  s = schedule()
  uses = {}
  for step in range(done, s.total_steps):
    uses.setdefault(s(step), step)
  assert list(s.first_uses(done).items()) == list(uses.items())


def test_a_grid_that_stands_twice_in_a_cycle_is_needed_at_the_next_of_both():
  s = lay_out(
    [phase(A, B, A, end_epoch=2)], num_train=100, lr_at_epoch=lambda _: 1.0
  )
  assert s.first_uses(2) == {A: 2, B: 4}


def test_the_learning_rate_is_that_of_the_epoch():
  s = schedule()
  assert s.epoch(1) == 0.16
  assert s.lr(1) == 10.0 - 0.16


def test_a_billion_steps_take_no_longer_than_ten():
  s = lay_out(
    [phase(A, B, C, end_epoch=10)],
    num_train=10**12,
    lr_at_epoch=lambda _: 1.0,
  )
  assert (
    s.clips_before(s.total_steps - 1)
    == s.total_clips - s(s.total_steps - 1).batch
  )


def test_schedules_compare_by_what_they_do_and_not_by_their_functions():
  assert schedule() == schedule()
  assert schedule() != schedule(101)


def test_a_schedule_cannot_be_changed():
  with pytest.raises(dataclasses.FrozenInstanceError):
    schedule().num_train = 3  # type: ignore[misc]


def test_a_grid_is_written_in_short():
  assert str(Grid(8, 112, 112, 128)) == '8x112x112 b128'


def test_sums_of_epochs_with_rounding_errors_cost_no_extra_step():
  third = 0.1 + 0.2  # 0.30000000000000004
  s = lay_out(
    [phase(C, end_epoch=third)], num_train=40, lr_at_epoch=lambda _: 1.0
  )
  assert s.total_steps == 3
