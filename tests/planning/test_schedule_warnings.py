"""schedule_warnings.py: what trains and is not likely to work."""

import pytest

from configs import kinetics400, moving_digits
from mgjax.planning import schedule_warnings
from mgjax.setup import grids


def warnings(config, num_train):
  schedule = grids.schedule(config, num_train)
  return schedule_warnings.find(
    schedule, grids.full_grid(config), optimizer=config.optim.name
  )


def table(*rows, **settings):
  config = moving_digits.get_config('grid=table')
  config.update_from_flattened_dict(settings)
  config.grid.table = rows
  return config


@pytest.mark.parametrize('mode', ['none', 'short', 'long', 'both', 'ladder'])
def test_the_published_recipes_are_warned_of_nothing(mode):
  assert not warnings(kinetics400.get_config(f'grid={mode}'), 240_436)


def test_the_recorded_runs_are_warned_of_nothing():
  for mode in ('none', 'short', 'both'):
    assert not warnings(moving_digits.get_config(f'grid={mode}'), 4000)


def test_few_videos_are_told_that_coarse_phases_have_few_steps():
  config = kinetics400.get_config('grid=both')
  found = warnings(config, 83)
  assert len(found) == 2
  assert 'phase 1 of 13 has 9 step(s) of up to 1,024 clips' in found[0]
  assert "grid.mode='short'" in found[0]
  assert (
    'a step of the grid 8x112x112 b1024 has 12 epochs of the 83' in found[1]
  )
  assert 'at most 20 clips' in found[1]


def test_a_run_of_a_few_steps_is_told():
  no_warmup = {'optim.warmup_epochs': 0.0}
  (line,) = warnings(table({'steps': 19}, **no_warmup), 4000)
  assert 'the run has 19 step(s); fewer than 20' in line
  assert not warnings(table({'steps': 20}, **no_warmup), 4000)


def test_a_step_of_more_than_a_quarter_of_an_epoch_is_told():
  (line,) = warnings(table({'steps': 40, 'batch': 32}), 127)
  assert 'at most 31 clips' in line
  assert not warnings(table({'steps': 40, 'batch': 32}), 128)


def test_a_rate_that_no_run_had_is_told_with_its_phase():
  rows = {'steps': 30}, {'steps': 30, 'lr': 0.11, 'lr_scale': 2}
  settings = {'optim.warmup_epochs': 0.0}
  (line,) = warnings(table(*rows, **settings), 4000)
  assert 'phase 2 of 2 trains with a learning rate of 0.22 for a batch' in line
  assert 'known to work is 0.05' in line
  settings |= {'optim.name': 'adamw', 'optim.base_lr': 1e-3}
  (line,) = warnings(table(*rows, **settings), 4000)
  assert 'known to work is 0.003 (adamw' in line
  # Nobody knows of these.
  assert not warnings(table(*rows, **settings | {'optim.name': 'lamb'}), 4000)


def test_a_coarse_crop_with_which_no_record_learns_is_told():
  config = moving_digits.get_config('grid=both,size=medium')
  (line,) = warnings(config, 4000)
  assert 'a side of 28 pixels' in line and 'data.crop_px' in line
  # The full grid is the user's own choice.
  config.grid.mode = 'none'
  assert not warnings(config, 4000)
