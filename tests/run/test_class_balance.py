"""Runs with class weights and balanced sampling: exact resumption, reports."""

import json
import shutil

import pytest

from mgjax.cli import ConfigError
from mgjax.run import launch, run_folder
from tests import speck
from tests.run import test_resume


@pytest.fixture(scope='module')
def config(data_dir):
  config = speck.get_config('grid=none')
  config.data.dir = str(data_dir)
  config.data.class_balance = 0.5
  config.optim.class_balance = 0.5
  config.optim.total_epochs = 1
  config.optim.lr_steps = ()
  config.optim.warmup_epochs = 0.0
  config.train.checkpoint_every_steps = 10
  config.train.keep_checkpoints = 10
  config.train.log_every_steps = 1
  return config


@pytest.fixture(scope='module')
def run(config, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('balance') / 'run'
  return workdir, launch.train(config, workdir)


def test_a_run_goes_on_exactly(config, run, tmp_path):
  whole, _ = run
  other = tmp_path / 'other'
  shutil.copytree(whole, other)
  for path in (other / 'checkpoints').glob('[0-9]*'):
    if int(path.name) > 10:
      shutil.rmtree(path)
  launch.train(config, other)
  assert len(test_resume.losses_and_clips(whole)) == 30
  test_resume.assert_same_run(whole, other)


def test_every_report_has_the_mean_class_accuracy(run):
  workdir, summary = run
  line = run_folder.read_metrics(workdir)[-1]
  result = json.loads((workdir / 'eval.json').read_text())
  assert summary['mean_class'] == result['mean_class']
  assert line['eval_mean_class'] == result['mean_class']


@pytest.mark.parametrize('section', ['data', 'optim'])
def test_videos_of_several_labels_have_no_class_balance(
  section, config, tmp_path
):
  config = config.copy_and_resolve_references()
  config.optim.loss = 'sigmoid'
  for name in ('data', 'optim'):
    config[name].class_balance = 0.5 * (name == section)
  with pytest.raises(ConfigError, match=rf'{section}.class_balance=0.5 needs'):
    launch.train(config, tmp_path)
