"""Settings that do nothing, or cannot work with the data set, are refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from etils import epath

import mgjax
from configs import moving_digits
from mgjax import cli, evaluate, models, train
from mgjax import plan as plan_flags
from mgjax.cli import ConfigError
from mgjax.config import fields as default
from mgjax.config import network_options, rules, saved
from mgjax.data import description
from mgjax.evaluation import command as evaluation
from mgjax.hosts.peers import Peers
from mgjax.planning import command
from mgjax.run import launch
from mgjax.run.checkpoint_manager import Checkpoints, Keep
from mgjax.setup import data as data_setup
from mgjax.setup import job, network, run_checks, run_settings
from mgjax.step import train_state
from tests.run_state import of_classes

DIGITS = 'configs/moving_digits.py:size=tiny'


# Options of networks.


@pytest.mark.parametrize('name', models.MODELS)
def test_a_config_has_the_options_of_the_chosen_network_only(name):
  maker = models.MODELS[name]
  module, fixed = getattr(maker, 'func', maker), getattr(maker, 'keywords', {})
  fields = {field.name for field in dataclasses.fields(module)}
  # What every module has, what other sections of the config say, and what the
  # devices decide.
  norm = ('norm_momentum', 'norm_eps', 'norm_frozen')
  fields -= {'parent', 'name', 'remat', 'num_lanes', *norm, *fixed}
  config = default.base()
  config.model.name = name
  assert set(config.model) == {'name', *fields}
  assert set(network_options.NETWORKS) == set(models.MODELS)


def test_another_network_keeps_what_it_shares_and_refuses_what_it_lacks():
  config = default.base()
  config.model.width = 16
  config.model.name = 'tsm'
  config.model.shift_div = 4
  assert config.model.width == 16 and 'alpha' not in config.model
  config.model.name = 'tsm'  # Nothing changes.
  assert config.model.shift_div == 4
  copy = config.copy_and_resolve_references()
  with pytest.raises(ConfigError, match="shift_div is 4, but.*'slow'.*: tsm"):
    copy.model.name = 'slow'
  copy.model.shift_div = 8
  copy.model.name = 'slow'
  assert config.model.name == 'tsm'


@pytest.mark.parametrize(
  'argument,overrides,match',
  [
    (
      'model=slow',
      ['alpha=8'],
      "model.alpha: .*'slow' has no such option; that is one of 'slowfast'",
    ),
    ('model=slowfast', ['shift_div=4'], 'model.shift_div: .*tsm'),
    ('model=tam', ['shift_place=block'], 'shift_place: .*tsm'),
    ('model=slowfast', ['depth=42'], 'model.depth is 42.* 50 or 101'),
    ('model=tam', ['depth=42'], 'model.depth is 42.* 101 or 152'),
    ('model=tam', ['name=resnet'], "model.name is 'resnet'.*slowfast"),
  ],
)
def test_an_option_that_does_nothing_is_refused(argument, overrides, match):
  flags = [f'--config.model.{override}' for override in overrides]
  with pytest.raises(ConfigError, match=match):
    cli.read_config(f'{DIGITS},{argument}', flags)


def test_a_run_of_an_earlier_version_keeps_options_that_did_nothing(tmp_path):
  tmp_path = epath.Path(tmp_path)
  config = moving_digits.get_config('model=slow,size=tiny')
  old = saved.as_json(config)
  old['model'] |= {'alpha': 2, 'nonlocal_pool_fast': [1, 2, 2]}
  del old['norm']['frozen']  # A younger field.
  (tmp_path / 'config.json').write_text(json.dumps(old))
  found = saved.read_saved(tmp_path)
  assert found.to_dict() == config.to_dict()
  rules.validate(found)
  # The same command goes on with the run.
  again = moving_digits.get_config('model=slow,size=tiny')
  assert run_settings.check(again, tmp_path, False, of_classes([])) == []
  again.model.width = 9
  with pytest.raises(ConfigError, match='model.width: 8 -> 9'):
    run_settings.check(again, tmp_path, False, of_classes([]))


@pytest.mark.parametrize('name', [None, 3])
@pytest.mark.parametrize('section', ['model', 'data'])
def test_what_is_no_config_of_a_run_is_refused(tmp_path, section, name):
  tmp_path = epath.Path(tmp_path)
  config = moving_digits.get_config('size=tiny')
  settings = saved.as_json(config)
  settings[section]['name'] = name
  if name is None:
    del settings[section]['name']
  (tmp_path / 'config.json').write_text(json.dumps(settings))
  words = f'is not the config of a run: {section}.name'
  with pytest.raises(ConfigError, match=words):
    saved.read_saved(tmp_path)
  with pytest.raises(ConfigError, match=words):
    run_settings.check(config, tmp_path, False, of_classes([]))


# What plan, train and evaluate refuse alike.


def test_a_data_set_describes_itself_as_it_is_read(tiny_config):
  found = data_setup.describe(tiny_config)
  source = data_setup.source(tiny_config, 'train')
  assert found.splits == {
    'train': len(source),
    'validation': 64,
    'test': 64,
  }
  assert found.num_classes == len(source.label_names)
  assert not found.has_actions


def test_a_damaged_description_is_one_line(tiny_config, tmp_path):
  folder = tmp_path / 'moving_digits/motion_tiny/2.0.0'
  folder.mkdir(parents=True)
  (folder / 'dataset_info.json').write_text('{"splits": [')
  tiny_config.data.dir = str(tmp_path)
  with pytest.raises(ConfigError, match='2.0.0/dataset_info.json is not JSON'):
    data_setup.describe(tiny_config)


WRONG = [
  ('model.num_classes=17', 'model.num_classes=17, but .* has 16 classes'),
  (
    'data.name=moving_digits/motion_tiny:1.0.0',
    'no data set at .*/motion_tiny/1.0.0; there is version 2.0.0',
  ),
  ('data.num_train=99', 'data.num_train=99, but .* has 240 training videos'),
  (
    'eval.split=other',
    r"'other'; it has train \(240\), validation \(64\), test \(64\)",
  ),
  ('eval.num_crops=10', 'eval.num_crops=10 mirrors half of the crops'),
  (
    'optim.loss=sigmoid --config.optim.label_smoothing=0.1',
    'optim.label_smoothing=0.1 spreads one label',
  ),
  ('norm.frozen=all', "norm.frozen is 'all', but there are no weights"),
  (
    'optim.ema_decay=0.9 --config.norm.precise_batches=0',
    'optim.ema_decay is 0.9, but norm.precise_batches is 0',
  ),
  (
    'eval.head=fully_conv --config.eval.crop_px=16',
    "eval.head='fully_conv', but eval.crop_px",
  ),
]


@pytest.mark.parametrize('override,match', WRONG)
def test_plan_refuses_what_train_refuses(
  override, match, data_dir, tmp_path, capsys
):
  arguments = [
    f'--config={DIGITS},model=slowfast',
    f'--config.data.dir={data_dir}',
    *f'--config.{override}'.split(),
  ]
  errors = []
  workdir = f'--workdir={tmp_path / "run"}'
  for main, define_flags, more in (
    (command.main, plan_flags.define_flags, []),
    (launch.main, train.define_flags, [workdir]),
  ):
    assert cli.run(main, define_flags, ['', *arguments, *more]) == 2
    errors.append(capsys.readouterr().err)
  assert errors[0] == errors[1]
  assert errors[0].count('\n') == 1
  with pytest.raises(ConfigError, match=match):
    raise ConfigError(errors[0])
  assert not (tmp_path / 'run').exists()


def test_evaluation_batches_are_shared_by_the_devices_of_a_plan(tiny_config):
  data = data_setup.describe(tiny_config)
  run_checks.check(tiny_config, data, 4)
  with pytest.raises(ConfigError, match='eval.batch_size=20 .* 8 devices'):
    run_checks.check(tiny_config, data, 8)


# Evaluation with the settings of the run.


@pytest.fixture
def run(tiny_config, tmp_path):
  """The folder of a run that has not learnt anything."""
  tmp_path = epath.Path(tmp_path)
  model = network.model(tiny_config)
  state = train_state.create_state(
    model,
    network.optimizer(tiny_config),
    jax.random.key(0),
    models.example_video(model, tiny_config.data.num_frames),
  )
  names = data_setup.source(tiny_config, 'validation').label_names
  run_settings.prepare(tiny_config, tmp_path, names)
  with Checkpoints(tmp_path, Keep(newest=3, best=1)) as checkpoints:
    checkpoints.save(state, 7, {})
  return tmp_path


def evaluate_run(workdir, *flags) -> int:
  return cli.run(
    evaluation.main,
    evaluate.define_flags,
    ['', f'--workdir={workdir}', *flags],
    find_config=evaluate.find_config,
  )


def test_evaluate_takes_the_settings_of_the_run_and_says_what_was_overridden(
  run, data_dir
):
  assert evaluate_run(run) == 0
  result = json.loads((run / 'eval.json').read_text())
  assert result['overrides'] == {}
  assert result['config_eval']['num_views'] == 1
  views = '--config.eval.num_views=2'
  workers = '--config.data.num_workers=1'
  assert evaluate_run(run, views, workers) == 0
  result = json.loads((run / 'eval.json').read_text())
  assert result['num_views'] == 2
  assert result['overrides'] == {'eval.num_views': 2, 'data.num_workers': 1}
  assert result['config_eval']['split'] == 'validation'
  assert evaluate_run(run, '--config.eval.split=test') == 0
  result = json.loads((run / 'eval.json').read_text())
  assert result['overrides'] == {'eval.split': 'test'}
  assert result['config_eval']['split'] == 'test'
  # The config of the run may be given, too.
  config = f'--config={DIGITS},grid=both'
  assert evaluate_run(run, config, f'--config.data.dir={data_dir}') == 0


def test_settings_of_another_run_do_not_overwrite_its_result(
  run, data_dir, capsys
):
  (run / 'eval.json').write_text('{}')
  other = (
    f'--config={DIGITS},grid=none',
    f'--config.data.dir={data_dir}',
    '--config.data.num_frames=4',
  )
  for flags in (other, ('--config.data.num_frames=4',)):
    assert evaluate_run(run, *flags) == 2
    error = capsys.readouterr().err
    assert error.count('\n') == 1
    assert 'data.num_frames: 8 -> 4' in error and '--allow_config' in error
    assert (run / 'eval.json').read_text() == '{}'
  assert 'grid.mode' not in error
  assert evaluate_run(run, *other, '--allow_config_change') == 0
  result = json.loads((run / 'eval.json').read_text())
  assert result['overrides'] == {'data.num_frames': 4, 'grid.mode': 'none'}


def test_evaluate_without_a_run_says_what_is_missing(tmp_path, capsys):
  assert evaluate_run(tmp_path / 'none') == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and 'config.json' in error


def test_smoothing_is_refused_with_the_sigmoid_loss(tiny_config):
  tiny_config.optim.update({'loss': 'sigmoid', 'label_smoothing': 0.1})
  with pytest.raises(ConfigError, match='optim.label_smoothing=0.1'):
    run_checks.check(tiny_config, None, 1)


def test_the_softmax_loss_is_refused_for_videos_with_actions(tiny_config):
  config = tiny_config
  data = description.Description(
    name='charades',
    splits={'train': 1, config.eval.split: 1},
    num_classes=config.model.num_classes,
    has_actions=True,
  )
  with pytest.raises(ConfigError, match="optim.loss='softmax'.*'sigmoid'"):
    run_checks.check_evaluation(config, data, 1)


@pytest.mark.parametrize(
  'section,name,value',
  [
    ('train', 'log_every_steps', 0),
    ('optim', 'momentum', 1.5),
    ('optim', 'name', 'adam'),
    ('eval', 'short_side_px', -5),
  ],
)
def test_settings_from_python_are_checked_as_those_of_a_command(
  section, name, value, tmp_path
):
  config = moving_digits.get_config('model=slow,size=tiny')
  config[section][name] = value
  with pytest.raises(ConfigError, match=f'{section}.{name} is'):
    mgjax.run_training(config, tmp_path / 'run')
  with pytest.raises(ConfigError, match=f'{section}.{name} is'):
    mgjax.evaluate_checkpoint(config, tmp_path / 'run', None)
  assert not (tmp_path / 'run').exists()


class Two(Peers):
  """Process 0 of two, of which the other answers with other files."""

  def __init__(self, **other):
    super().__init__()
    self.count, self._other = 2, other

  def exchange(self, value):
    return [value, value | self._other]


@pytest.mark.parametrize(
  'what', ['training videos', 'schedule', 'weights to start from']
)
def test_processes_need_the_same_files(what):
  plan, weights = {'videos': {'videos': 3}}, {'params': {'w': np.ones(2)}}
  job._check_same(Two(), plan, weights)  # All is the same.
  with pytest.raises(ConfigError, match=f'process 1 has other {what} than'):
    job._check_same(Two(**{what: 0}), plan, weights)


def test_what_processes_compare_tells_their_files_apart():
  sent = []
  peers = Two()
  peers.exchange = lambda value: sent.append(value) or [value, value]
  for videos, gmacs, weight in ((3, 1, 1), (4, 1, 1), (3, 2, 1), (3, 1, 2)):
    plan = {'videos': {'videos': videos}, 'total_gmacs': gmacs}
    job._check_same(peers, plan, {'w': np.full(2, weight, np.float32)})
  first, *others = sent
  for other, what in zip(others, first, strict=True):
    assert other[what] != first[what]
