"""A whole run on a tiny data set: what is written, compiled and refused."""

import collections
import json
import os
import pathlib
import re
import sys

import jax
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from configs import moving_digits as config_file
from mgjax import cli, train
from mgjax.cli import ConfigError, RunError
from mgjax.evaluation import command as evaluation
from mgjax.evaluation import results
from mgjax.run import launch, run_folder, writers
from mgjax.run.run_summary import tell
from mgjax.setup import data as data_setup
from mgjax.setup import grids
from mgjax.step import programs
from tests.data.fake_sources import Acted

GRIDS = 8


@pytest.fixture(scope='module')
def run(data_dir, tmp_path_factory):
  """A finished run: its folder, summary and the functions XLA compiled.

  Of each function, the steps that had been done whenever it was compiled.
  """
  workdir = tmp_path_factory.mktemp('run')
  config = config_file.get_config('grid=both,size=tiny')
  config.data.dir = str(data_dir)
  compiled = collections.defaultdict(list)

  def count(event, duration, fun_name='', **unused):
    if event == '/jax/core/compile/backend_compile_duration':
      compiled[fun_name].append(len(lines(workdir, 'loss')))

  jax.monitoring.register_event_duration_secs_listener(count)
  summary = launch.train(config, workdir)
  jax.monitoring.unregister_event_duration_listener(count)
  return workdir, summary, compiled


def lines(workdir: pathlib.Path, kind: str) -> list[dict]:
  return [m for m in run_folder.read_metrics(workdir) if kind in m]


def test_every_field_of_the_metrics_has_its_meaning_and_unit(run):
  listed = set(re.findall(r'\w+', writers.__doc__))
  fields = {name for line in run_folder.read_metrics(run[0]) for name in line}
  assert {'loss', 'eval_top1', 'step_s', 'T'} <= fields <= listed


def test_each_grid_is_compiled_exactly_once(run):
  _, summary, compiled = run
  assert summary['num_grids'] == summary['num_compiled'] == GRIDS
  assert len(compiled['jit(gradients)']) == GRIDS
  assert len(compiled['jit(update)']) == 1  # All grids share it.
  assert len(compiled['jit(eval_step)']) == 1


def test_nothing_is_compiled_after_the_first_use_of_the_last_grid(run):
  _, summary, compiled = run
  config = config_file.get_config('size=tiny')
  schedule = grids.schedule(config, 240)
  steps = [schedule(step) for step in range(summary['steps'])]
  last_first_use = max(steps.index(grid) for grid in set(steps))
  assert max(compiled['jit(gradients)']) <= last_first_use
  # The statistics of an evaluation are taken at the base grid of its phase.
  evaluated = programs.evaluation_steps(schedule, config.eval.every)
  bases = {schedule.phase(step - 1).base for step in evaluated}
  assert len(compiled['jit(stats_step)']) == len(bases)


def test_every_step_has_a_metrics_line_with_its_place_and_its_grid(run):
  workdir, summary, _ = run
  steps = lines(workdir, 'loss')
  assert [m['step'] for m in steps] == list(range(1, summary['steps'] + 1))
  for field in 'epoch clips train_s wait_fraction T H W batch lr'.split():
    assert all(field in m for m in steps), field
  schedule = grids.schedule(config_file.get_config('size=tiny'), 240)
  for m in steps:
    assert tuple(m[k] for k in 'THW') == schedule(m['step'] - 1)[:3]
    assert m['lr'] == schedule.lr(m['step'] - 1)
    assert m['clips'] == schedule.clips_before(m['step'])


def test_times_add_up_and_never_run_backwards(run):
  workdir, summary, _ = run
  seconds = [m['train_s'] for m in lines(workdir, 'loss')]
  assert seconds == sorted(seconds)
  parts = summary['step_s'] + summary['data_s'] + summary['other_s']
  assert summary['train_s'] == pytest.approx(parts)
  assert 0 <= summary['wait_fraction'] <= 1


def test_evaluation_scores_every_video_and_is_written(run):
  workdir, summary, _ = run
  result = json.loads((workdir / 'eval.json').read_text())
  assert result['num_scored'] == result['num_videos'] == 64
  assert result['top1'] == summary['top1']
  assert 100 * results.correct_videos(result).sum() / 64 == result['top1']
  assert np.sum(result['confusion']) == 64
  evaluations = lines(workdir, 'eval_top1')
  assert len(evaluations) == 2  # At epoch 3 of 6 and at the end.
  assert evaluations[-1]['step'] == summary['steps']


def test_the_whole_run_is_on_disk(run):
  workdir, summary, _ = run
  assert json.loads((workdir / 'config.json').read_text())['seed'] == 0
  plan = json.loads((workdir / 'plan.json').read_text())
  assert plan['total_steps'] == summary['steps']
  assert (workdir / 'report.png').read_bytes().startswith(b'\x89PNG')
  assert (workdir / 'checkpoints' / str(summary['steps'])).is_dir()


def test_tensorboard_can_read_the_events(run):
  workdir, summary, _ = run
  (path,) = workdir.glob('events.out.tfevents.*')
  data = path.read_bytes()
  tags, at = set(), 0
  while at < len(data):
    length = int.from_bytes(data[at : at + 8], 'little')
    event = event_pb2.Event.FromString(data[at + 12 : at + 12 + length])
    tags.update(value.tag for value in event.summary.value)
    at += length + 16
  assert {'train/loss', 'schedule/lr', 'eval/top1', 'speed/gflops'} <= tags
  assert {'schedule', 'confusion', 'report'} <= tags
  assert any('hparams' in tag for tag in tags)


def test_a_checkpoint_evaluates_to_what_the_run_reported(run, data_dir):
  workdir, summary, _ = run
  config = config_file.get_config('size=tiny')
  config.data.dir = str(data_dir)
  config.eval.batch_size = 6  # Any other batch size gives the same.
  result = evaluation.evaluate_checkpoint(config, workdir, None)
  assert result['top1'] == summary['top1']
  assert result['step'] == summary['steps']


def test_a_finished_run_is_not_trained_again(run, data_dir):
  workdir, summary, _ = run
  config = config_file.get_config('grid=both,size=tiny')
  config.data.dir = str(data_dir)
  again = launch.train(config, workdir)
  assert again['top1'] == summary['top1']
  assert again['num_compiled'] == summary['num_compiled']


def test_settings_of_no_step_are_not_written_over_those_of_the_run(
  run, data_dir, capsys
):
  workdir, summary, _ = run
  files = [workdir / name for name in ('config.json', 'plan.json')]
  before = [path.read_bytes() for path in files]
  config = config_file.get_config('grid=both,size=tiny')
  config.data.dir = str(data_dir)
  config.optim.base_lr = 0.3
  again = launch.train(config, workdir, allow_config_change=True)
  assert again['top1'] == summary['top1']
  said = capsys.readouterr().err
  assert 'has finished already with other settings (optim.base_lr: ' in said
  assert [path.read_bytes() for path in files] == before
  # Neither are those that no checkpoint fits, or that end before it.
  for changes, words in (
    (
      {'model.width': 12, 'grid.epoch_factor': 3.0},
      'use another --workdir',
    ),
    ({'grid.epoch_factor': 0.5}, 'but with these settings the run ends at'),
  ):
    config = config_file.get_config('grid=both,size=tiny')
    config.data.dir = str(data_dir)
    config.update_from_flattened_dict(changes)
    with pytest.raises(ConfigError, match=words):
      launch.train(config, workdir, allow_config_change=True)
    assert [path.read_bytes() for path in files] == before


def test_the_closing_words_name_what_was_measured_and_where_it_lies(run):
  workdir, summary, _ = run
  text = tell(summary, workdir, 'configs/moving_digits.py:size=tiny')
  assert f'{GRIDS} distinct grids, {GRIDS} compilations' in text
  assert '64 of 64 videos scored' in text
  for name in ('checkpoints/', 'metrics.jsonl', 'report.png', 'events.out'):
    assert f'{workdir}/{name}' in text
  assert text.count('python -m mgjax.') == 3


def test_the_next_commands_are_those_of_the_users_shell(run, monkeypatch):
  _, summary, _ = run
  name = 'configs/moving_digits.py:size=tiny'
  monkeypatch.delenv('VIRTUAL_ENV', raising=False)
  monkeypatch.setattr(sys, 'executable', f'{os.getcwd()}/.venv/bin/python')
  given = {'grid.epoch_factor': 0.75, 'optim.lr_steps': (1, 2)}
  predict, evaluation, other = tell(
    summary, 'runs/a', name, given
  ).splitlines()[-3:]
  flags = "--config.grid.epoch_factor=0.75 '--config.optim.lr_steps=(1, 2)'"
  here = '  .venv/bin/python -m mgjax'
  assert predict == f'{here}.predict --workdir=runs/a VIDEO.mp4'
  # The settings are those of the run's folder.
  assert evaluation == (
    f'{here}.evaluate --workdir=runs/a --config.eval.num_views=3'
  )
  assert (
    f':size=tiny --config.grid.mode=none --workdir=runs/a-none {flags}' in other
  )
  for file, more, words in (
    ('configs/a.py:grid=table,size=tiny', {}, 'a.py:grid=none,size=tiny '),
    ('own.py', {}, '--config=own.py --config.grid.mode=none '),
    (
      'a.py:grid=table',
      {'grid.table': 'naflex', 'grid.mode': 'table', 'seed': 1},
      '--config=a.py:grid=none --workdir=runs/a-none --config.seed=1',
    ),
  ):
    assert words in tell(summary, 'runs/a', file, more).splitlines()[-1] + ' '
  monkeypatch.setenv('VIRTUAL_ENV', f'{os.getcwd()}/.venv')
  assert '\n  python -m mgjax.predict ' in tell(summary, 'runs/a', name)
  monkeypatch.delenv('VIRTUAL_ENV')
  monkeypatch.setattr(sys, 'executable', '/usr/bin/python3')
  assert '\n  python -m mgjax.predict ' in tell(summary, 'runs/a', name)


def test_the_closing_words_of_a_resumed_run_count_its_launch_only(run):
  workdir, summary, _ = run
  text = tell(summary | {'num_compiled': 6}, workdir, 'configs/a.py')
  assert f'{GRIDS} distinct grids, 6 of them compiled by this launch' in text


def refused(config, workdir, match):
  with pytest.raises(ConfigError, match=match):
    launch.train(config, workdir)


def test_another_config_in_the_same_folder_is_refused(run, tiny_config):
  tiny_config.optim.base_lr = 0.3
  refused(tiny_config, run[0], 'optim.base_lr: 0.05 -> 0.3')


def test_a_wrong_number_of_classes_is_refused(tiny_config, tmp_path):
  tiny_config.model.num_classes = 12
  refused(tiny_config, tmp_path, 'num_classes=12, but .* has 16 classes')
  assert not list(tmp_path.iterdir())


def test_a_missing_data_set_is_refused_with_the_command_that_makes_it(
  tiny_config, tmp_path
):
  tiny_config.data.dir = str(tmp_path / 'nowhere')
  refused(tiny_config, tmp_path, 'python -m mgjax.data.moving_digits')


def test_a_batch_that_devices_cannot_share_is_refused_before_data_is_opened(
  tiny_config, tmp_path
):
  tiny_config.data.dir = str(tmp_path / 'nowhere')
  tiny_config.eval.batch_size = 7
  match = 'eval.batch_size=7 is not a multiple of the 2'
  refused(tiny_config, tmp_path, match)
  with pytest.raises(ConfigError, match=match):
    evaluation.evaluate_checkpoint(
      tiny_config, tmp_path, None, allow_config_change=True
    )
  tiny_config.grid.mode = 'none'
  tiny_config.data.batch_size = 9
  tiny_config.norm.group_clips = 3
  refused(tiny_config, tmp_path, 'phase 1 of 1 .* divide among 2 devices')
  assert not list(tmp_path.iterdir())


def test_a_loss_that_is_not_finite_stops_the_run(tiny_config, tmp_path):
  tiny_config.optim.base_lr = 1e18
  tiny_config.optim.warmup_epochs = 0.0
  with pytest.raises(RunError, match='of step .* is not finite'):
    launch.train(tiny_config, tmp_path)


def test_bad_flags_end_in_one_line_and_code_2(capsys):
  argv = ['train', '--config=configs/moving_digits.py:size=tiny']
  for extra, words in (
    ([], '--workdir is missing'),
    (['--config.optim.lr=1'], 'lr'),
    (['--config.seed=x'], 'seed'),
    (['--nonsense'], 'nonsense'),
  ):
    assert cli.run(launch.main, train.define_flags, argv + extra) == 2
    captured = capsys.readouterr().err
    assert captured.startswith('error: ') and captured.count('\n') == 1
    assert words in captured


@pytest.mark.slow
def test_videos_with_actions_are_trained_augmented_and_scored_by_map(
  tiny_config, monkeypatch, tmp_path
):
  original = data_setup.source

  def with_actions(config, split):
    source = original(config, split)
    acted = Acted(source)
    acted.name, acted.split = source.name, source.split
    return acted

  monkeypatch.setattr(data_setup, 'source', with_actions)
  tiny_config.grid.mode = 'long'
  tiny_config.optim.loss = 'sigmoid'
  tiny_config.optim.total_epochs = 3
  tiny_config.optim.lr_steps = (1, 2)
  tiny_config.augment.update({'randaugment_ops': 1, 'mixup_alpha': 0.8})
  tiny_config.eval.every = 0.0
  summary = launch.train(tiny_config, tmp_path)
  assert summary['num_compiled'] == summary['num_grids'] > 1
  # Every video has class 0, so its average precision is 1.
  result = json.loads((tmp_path / 'eval.json').read_text())
  assert list(result['per_class'].values())[0] == pytest.approx(100)
  assert summary['map'] == result['map'] > 100 / 16
  (line,) = lines(tmp_path, 'eval_map')
  assert line['eval_map'] == result['map']
  losses = [m['loss'] for m in lines(tmp_path, 'loss')]
  assert np.mean(losses[-5:]) < losses[0] < 1.0
  assert 'mAP' in tell(summary, tmp_path, 'configs/charades.py')
  assert not (tmp_path / 'eval.partial.npz').exists()
