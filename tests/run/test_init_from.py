"""Training that starts from other weights."""

import shutil

import jax
import numpy as np
import pytest

from mgjax.cli import ConfigError
from mgjax.evaluation import command as evaluation
from mgjax.run import checkpoint, launch
from mgjax.run.checkpoint_manager import Checkpoints, Keep
from mgjax.setup import evaluation as evaluation_setup
from mgjax.setup import initial_weights
from mgjax.step import train_state
from tests.models import test_frozen_norm as frozen
from tests.weights import test_import_weights as weights


@pytest.fixture
def config(tiny_config):
  """One epoch whose learning rate is nothing: parameters stay as they are."""
  tiny_config.model.choose('slow')
  tiny_config.model.blocks = (1, 1)
  tiny_config.model.width = 4
  tiny_config.data.num_frames = 2
  tiny_config.data.crop_px = 16
  tiny_config.grid.mode = 'none'
  tiny_config.optim.total_epochs = 1
  tiny_config.optim.schedule = 'constant'
  tiny_config.optim.warmup_epochs = 0.0
  tiny_config.optim.base_lr = 1e-30
  tiny_config.norm.precise_batches = 0
  return tiny_config


def initialised(config, folder):
  """Imports weights for the config's model and sets init_from."""
  variables = weights.import_state(config, weights.state_of(config), folder)
  config.init_from = str(folder / 'out')
  return variables


def final_variables(config, workdir):
  return checkpoint.load_variables(
    checkpoint.find(workdir, 'workdir'), weights.shapes_of(config)
  )


def test_a_run_starts_from_the_weights_and_resumes_without_them(
  config, tmp_path
):
  variables = initialised(config, tmp_path)
  summary = launch.train(config, tmp_path / 'run')
  final = final_variables(config, tmp_path / 'run')
  jax.tree.map(
    np.testing.assert_array_equal, final['params'], variables['params']
  )
  shutil.rmtree(tmp_path / 'out')
  assert launch.train(config, tmp_path / 'run')['top1'] == summary['top1']


def test_a_run_that_was_killed_in_its_first_checkpoint_starts_from_them(
  config, tmp_path
):
  variables = initialised(config, tmp_path)
  # What a kill leaves of a checkpoint that is being written.
  half = tmp_path / 'run/checkpoints/2.orbax-checkpoint-tmp'
  half.mkdir(parents=True)
  (half / 'part').write_text('of it')
  launch.train(config, tmp_path / 'run')
  final = final_variables(config, tmp_path / 'run')
  jax.tree.map(
    np.testing.assert_array_equal, final['params'], variables['params']
  )


def test_imported_weights_can_be_evaluated(config, tmp_path):
  initialised(config, tmp_path)
  config.init_from = ''  # As in the folder of the weights.
  result = evaluation.evaluate_checkpoint(config, tmp_path / 'out', None)
  assert result['num_scored'] == result['num_videos'] == 64
  assert result['step'] == 0


def abstract(config):
  shapes = weights.shapes_of(config)
  state = train_state.TrainState(
    step=None, opt_state=None, **{k: shapes[k] for k in checkpoint.VARIABLES}
  )
  return state


def test_the_head_may_be_new_on_request(config, tmp_path):
  variables = initialised(config, tmp_path)
  config.model.num_classes = 5
  with pytest.raises(ConfigError, match="init_from: .*init_head='new'"):
    initial_weights.initial_variables(config, abstract(config))
  config.init_head = 'new'
  loaded = initial_weights.initial_variables(config, abstract(config))
  assert 'head' not in loaded['params']
  np.testing.assert_array_equal(
    loaded['params']['stem']['layer']['conv']['kernel'],
    variables['params']['stem']['layer']['conv']['kernel'],
  )
  jax.tree.map(
    np.testing.assert_array_equal,
    loaded['batch_stats'],
    variables['batch_stats'],
  )


@pytest.mark.parametrize(
  'field,value,words',
  [
    ('width', 16, r'of \d+ variables differ .*batch_stats'),
    ('blocks', (1, 2), 'block1/.*: none, but the model has'),
    ('blocks', (1,), 'differ .*: .*, but the model has none'),
  ],
)
def test_weights_of_another_network_are_refused(
  config, tmp_path, field, value, words
):
  initialised(config, tmp_path)
  config.model[field] = value
  with pytest.raises(ConfigError, match=words):
    initial_weights.initial_variables(config, abstract(config))


def test_a_wrong_folder_is_refused_before_anything_is_written(config, tmp_path):
  config.init_from = str(tmp_path / 'nowhere')
  with pytest.raises(ConfigError, match='init_from=.*nowhere holds no check'):
    launch.train(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_a_run_does_not_start_in_the_folder_of_the_weights(config, tmp_path):
  initialised(config, tmp_path)
  config.init_from = ''
  with pytest.raises(ConfigError, match='holds imported weights, not a run'):
    launch.train(config, tmp_path / 'out')


def test_fine_tuning_keeps_the_statistics_that_it_started_from(
  config, tmp_path
):
  """Also where those of the other layers are estimated before evaluations."""
  config.norm.precise_batches = 1
  config.norm.frozen = 'but_first'
  config.optim.base_lr = 1e-3
  before = initialised(config, tmp_path)
  launch.train(config, tmp_path / 'run')
  after = final_variables(config, tmp_path / 'run')
  moved = set()
  for leaf in ('scale', 'bias', 'mean', 'var'):
    collection = 'params' if leaf in ('scale', 'bias') else 'batch_stats'
    old = frozen.layers(before[collection], leaf)
    new = frozen.layers(after[collection], leaf)
    moved |= {path for path in old if (old[path] != new[path]).any()}
  assert moved == {frozen.FIRST}


@pytest.mark.parametrize(
  'path,number,words',
  [
    ('batch_stats/res3/block0/b/norm/var', -1e-3, 'some are negative'),
    ('params/res3/block0/b/conv/kernel', np.nan, 'holds NaN or infinite'),
    ('params/res3/block0/c/norm/scale', 3e38, 'features: those of res3/block0'),
  ],
)
def test_features_that_are_not_finite_are_refused_before_scoring_is_compiled(
  config, tmp_path, monkeypatch, path, number, words
):
  variables = initialised(config, tmp_path)
  node = variables = jax.tree.map(np.array, variables)
  for key in path.split('/')[:-1]:
    node = node[key]
  node[path.split('/')[-1]][..., :1] = number
  folder = tmp_path / 'changed'
  checkpoints = Checkpoints(folder, Keep(newest=3, best=1))
  state = train_state.TrainState(
    step=np.zeros((), np.int32), opt_state=(), **variables
  )
  checkpoints.save(state, 0, {'times': {}, 'bad_videos': {}})
  checkpoints.close()
  monkeypatch.delattr(evaluation_setup, 'lower_eval_step')
  with pytest.raises(ConfigError, match=words):
    evaluation.evaluate_checkpoint(
      config, folder, None, allow_config_change=True
    )
  assert not (folder / 'eval.json').exists()
