"""Networks without batch norm: nothing of it is asked of them."""

import pytest

from configs import moving_digits
from mgjax import cli
from mgjax import plan as plan_flags
from mgjax.cli import ConfigError
from mgjax.planning import command
from mgjax.setup import grids, programs, run_checks

TINY = 'configs/moving_digits.py:size=tiny,model=vit'


@pytest.fixture
def config():
  return moving_digits.get_config('size=tiny,model=vit')


def test_their_batches_need_not_divide_into_groups(config):
  config.data.batch_size = 6
  config.norm.group_clips = 4
  config.train.micro_batches = 2
  schedule = grids.schedule(config, 240)
  for phase in schedule.phases:
    assert phase.bn_groups == tuple(grid.batch for grid in phase.cycle)
  config.model.choose('slow')
  with pytest.raises(ConfigError, match='into groups of norm.group_clips=4'):
    grids.schedule(config, 240)


def test_no_statistics_of_them_are_taken(config):
  assert config.norm.precise_batches == 2
  assert programs.statistics_batches(config) == 0


def test_their_weights_are_averaged_without_statistics(config):
  config.optim.ema_decay = 0.9
  config.norm.precise_batches = 0
  run_checks.check_norm(config)


@pytest.mark.parametrize(
  'name,value', [('momentum', 0.5), ('eps', 1e-3), ('frozen', 'all')]
)
def test_what_would_do_nothing_is_refused(config, name, value):
  config.norm[name] = value
  with pytest.raises(
    ConfigError, match=f"norm.{name} is .*'vit' has no batch norm; leave it at"
  ):
    run_checks.check_norm(config)


@pytest.mark.parametrize(
  'overrides,words',
  [
    (
      ['grid.side_multiple=1'],
      'model: clips have 23 rows; with patch_px=8 it must be a multiple of 8 '
      '(grid.side_multiple=8 makes',
    ),
    (
      ['data.num_frames=7', 'grid.frames_multiple=1'],
      'frames; with tubelet_frames=2 it must be a multiple of 2 (grid.frames_m',
    ),
    (
      ['data.num_frames=7'],
      'data.num_frames is 7; it must be a multiple of grid.frames_multiple=2',
    ),
    (['eval.crop_px=36'], 'clips have 36 rows; with patch_px=8'),
    (['eval.head=fully_conv'], "model.name='vit' has no such head"),
  ],
)
def test_a_grid_that_a_transformer_cannot_take_is_refused_in_a_line(
  overrides, words, capsys
):
  argv = ['plan', f'--config={TINY}', '--config.data.num_train=240']
  argv += [f'--config.{override}' for override in overrides]
  assert cli.run(command.main, plan_flags.define_flags, argv) == 2
  *_, line = capsys.readouterr().err.strip().splitlines()
  assert words in line
