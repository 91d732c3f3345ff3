"""A run of a video transformer: trained, resumed and evaluated."""

import pytest

from configs import moving_digits
from mgjax import cli
from mgjax import evaluate as evaluate_flags
from mgjax.evaluation import command as evaluation
from mgjax.run import launch
from tests.run_state import final_state


@pytest.fixture(scope='module')
def config(data_dir):
  """Two blocks of rotary positions and a probe, on three grids."""
  config = moving_digits.get_config('size=tiny,model=vit,grid=short')
  config.data.dir = str(data_dir)
  config.model.update(
    {
      'positions': 'rope',
      'pool': 'probe',
      'probe_blocks': 0,
      'drop_path': 0.2,
      'depth': 1,
      'patch_px': 16,
    }
  )
  config.grid.side_multiple = 16
  config.data.num_frames = 4
  config.optim.total_epochs, config.optim.lr_steps = 1, ()
  config.optim.schedule = 'cosine'
  config.optim.warmup_epochs = 0.0
  config.optim.ema_decay = 0.9
  config.train.micro_batches = 2
  config.eval.every = 0.0
  return config


@pytest.fixture(scope='module')
def run(config, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('transformer') / 'run'
  return workdir, launch.train(config, workdir)


def test_it_has_no_statistics(run):
  workdir, _ = run
  state = final_state(workdir)
  assert state['batch_stats'] == {}
  assert state['ema'].keys() == state['params'].keys()


def test_its_evaluation_gives_the_accuracy_of_the_run(run, capsys):
  workdir, _ = run
  capsys.readouterr()
  argv = ['evaluate', f'--workdir={workdir}']
  code = cli.run(
    evaluation.main,
    evaluate_flags.define_flags,
    argv,
    find_config=evaluate_flags.find_config,
  )
  assert code == 0
  out = capsys.readouterr().out
  assert 'top-1' in out and '64 of 64 videos' in out
