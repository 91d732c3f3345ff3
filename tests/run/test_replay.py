"""A step that is not finite stops the run and can be run again."""

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mgjax import cli, replay
from mgjax.cli import RunError
from mgjax.config import saved
from mgjax.run import launch, replaying
from mgjax.step import train_state


@pytest.fixture
def failed(tiny_config, tmp_path):
  """A run whose learning rate becomes absurd at step 15."""
  config = tiny_config
  config.grid.mode = 'none'
  config.optim.schedule = (
    'optax.piecewise_constant_schedule(init_value=0.01, '
    'boundaries_and_scales={0.5: 1e25})'
  )
  config.optim.warmup_epochs = 0.0
  config.norm.precise_batches = 0
  config.eval.every = 0.0
  config.train.checkpoint_every_steps = 5
  with pytest.raises(RunError) as error:
    launch.train(config, tmp_path / 'run')
  return config, tmp_path / 'run', str(error.value)


def run(argv):
  return cli.run(
    replaying.main,
    replay.define_flags,
    argv,
    find_config=replay.find_config,
  )


def test_a_failed_run_keeps_good_checkpoints_and_replays_its_last_step(
  failed, capsys
):
  config, workdir, message = failed
  # With weights of 1e22 or so, the order of summation decides which of loss and
  # gradient is the first to overflow.
  assert 'of step 16 is not finite (grid 8x32x32 b8' in message
  assert 'newest checkpoint is of step 15' in message
  for path in (workdir / 'checkpoints').iterdir():
    with ocp.StandardCheckpointer() as checkpointer:
      state = checkpointer.restore((path / 'state').absolute())
    for leaf in jax.tree.leaves(state):
      assert np.isfinite(leaf).all(), path
  bundle = workdir / 'failure-16'
  assert f'--bundle={bundle} ' in message
  assert [p.name for p in (bundle / 'checkpoints').iterdir()] == ['15']
  same = saved.read_saved(bundle)
  assert same.to_dict() == config.to_dict()

  result = replaying.replay(same, bundle)
  assert [line['step'] for line in result['steps']] == [15, 16]
  first, last = result['steps']
  assert np.isfinite(first['grad_norm'])
  assert not np.isfinite(last['grad_norm'])
  assert result['same_clips']
  assert not result['bad_before'] and result['bad_after']

  # With a learning rate that is no use but harmless, it does not fail.
  argv = ['replay', f'--bundle={bundle}']
  argv += ['--config.optim.schedule=constant', '--config.optim.base_lr=0.0']
  assert run(argv) == 0
  text = capsys.readouterr().out
  assert text.count('not finite') == 2
  assert text.count('the last step: nothing') == 2


def test_a_bundle_that_is_none_is_refused(capsys):
  argv = ['replay', '--bundle=configs']
  assert run(argv) == 2
  assert 'holds no failure.json' in capsys.readouterr().err


@pytest.mark.parametrize('part', ['params', 'opt_state', 'batch_stats', 'ema'])
def test_a_state_is_not_finite_if_any_part_is_not(part):
  good = train_state.TrainState(
    step=jnp.int32(1),
    **{
      name: {'a': jnp.ones(3)}
      for name in ('params', 'opt_state', 'batch_stats', 'ema')
    },
  )
  bad = good.replace(**{part: {'a': jnp.array([1.0, jnp.inf, 1.0])}})
  assert train_state.is_finite(good) and not train_state.is_finite(bad)
