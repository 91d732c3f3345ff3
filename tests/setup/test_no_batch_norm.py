"""Networks without batch norm: nothing of it is asked of them."""

import jax
import jax.numpy as jnp
import pytest

from configs import moving_digits
from mgjax import cli
from mgjax import plan as plan_flags
from mgjax.cli import ConfigError
from mgjax.hosts import parallel
from mgjax.planning import command, plan_text
from mgjax.setup import grids, network, planning, programs, run_checks
from mgjax.step import train_state
from mgjax.step.programs import batch_spec

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


@pytest.mark.parametrize(
  'name,options',
  [
    pytest.param(
      'mvit',
      {'blocks': (1, 1), 'width': 8, 'patch_px': 8, 'kv_stride': 2},
      marks=pytest.mark.slow,
    ),
    ('timesformer', {'depth': 1, 'width': 12, 'heads': 2, 'patch_px': 8}),
  ],
)
def test_one_state_takes_steps_at_all_grids_of_a_table(config, name, options):
  config.model.choose(name)
  config.model.update(options | {'position_grid': (8, 32, 32)})
  config.model.drop_path = config.model.dropout = 0.2
  config.data.num_frames, config.data.batch_size = 4, 2
  config.grid.mode = 'short'
  schedule = grids.schedule(config, 240)
  assert len(schedule.grids) > 1
  mesh = parallel.make_mesh()
  made = network.compose(config, mesh)
  state = train_state.first_state(made.make_state, 0, {}, mesh)
  assert not state.batch_stats
  step = jax.jit(programs.make_train_step(config, made, schedule))
  for grid in schedule.grids:
    before = state.params
    batch = {
      field: jnp.ones(spec.shape, spec.dtype)
      for field, spec in batch_spec(grid, mesh).items()
    }
    state, metrics = step(
      state, batch, jnp.float32(1e-3), grid.batch, jax.random.key(0)
    )
    assert jnp.isfinite(metrics['loss']) and metrics['grad_norm'] > 0
    changed = jax.tree.map(lambda x, y: (x != y).any(), before, state.params)
    assert changed['head']['classifier']['kernel']
    assert changed['embed']['kernel']


def test_a_plan_of_them_shows_no_groups(config):
  made = planning.make_plan(config, grids.schedule(config, 240))
  assert made['has_batch_norm'] is False
  rows = plan_text.table(made).splitlines()
  names = next(row for row in rows if 'BN groups' in row)
  place = names.index('BN groups') + len('BN groups') - 1
  assert [row[place] for row in rows[rows.index(names) + 1 :]] == ['-'] * len(
    made['phases']
  )
