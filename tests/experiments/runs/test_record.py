"""Records can be trusted."""

import concurrent.futures
import datetime
import json
import os
import shlex
import subprocess

import pytest

from experiments.runs import record, settings, starts
from mgjax import cli, files
from mgjax.cli import ConfigError
from mgjax.config import saved
from mgjax.setup import data as data_setup

DIGITS = 'configs/moving_digits.py:grid=none,seed=0'


@pytest.fixture
def data_folder(tmp_path):
  """What a fingerprint is made from."""
  folder = tmp_path / 'data'
  folder.mkdir()
  split = '{"name": "train", "shardLengths": ["4", "6"], "numBytes": "900"}'
  test = '{"name": "test", "shardLengths": ["2"], "numBytes": "200"}'
  splits = f'{split}, {test}'
  for name, text in (
    ('dataset_info.json', f'{{"splits": [{splits}], "description": "x"}}'),
    ('label.labels.txt', 'up\nleft\n'),
    ('manifest.jsonl', '{"file": "a.mp4"}\n'),
  ):
    (folder / name).write_text(text)
  return folder


def test_a_record_of_a_known_config_and_data_set_is_trusted(records):
  records('digits/a', DIGITS)
  assert record.problems() == []


def test_a_run_keeps_the_rows_of_its_table(commands, workdir):
  """And its record the name of the table's file."""
  table = 'configs/schedules/fastdinov2.py:rates=run'
  commands.config = DIGITS.replace('grid=none', 'grid=table')
  commands.overrides = [f'--config.grid.table={table}']
  arguments = {'workdir': workdir, 'overrides': commands.overrides}
  record.run('digits/a', commands.config, **arguments)
  stored = files.read_json(workdir / 'config.json')
  assert [row['lr_scale'] for row in stored['grid']['table']] == ['none'] * 2
  assert record.problems() == []
  stored['grid']['table'][0]['batch'] += 1
  kept = record.RECORDS / 'digits/a/config.json'
  kept.write_text(json.dumps(stored))
  (problem,) = record.problems()
  assert 'digits/a: its config' in problem


OVERRIDES = ['--config.optim.lr_steps=(4, 6)']  # A shell would split it.
VERSION = {
  'commit': 'abc',
  'changed_files': '',
  'package_tree': 'p',
  'configs_tree': 'c',
}


class Commands:
  """Stands for the commands of a run.

  Attributes:
    config, overrides: What a training trains.
    ran: Their arguments.
    killed: The next one that is killed before its end; '': none.
  """

  def __init__(self, workdir):
    self._workdir = workdir
    self.config, self.overrides = DIGITS, OVERRIDES
    self.ran = []
    self.killed = ''

  def __call__(self, command, log=None, environ=None):
    self.ran.append(command)
    self.environ = environ
    if command[1] == self.killed:
      self.killed = ''
      return starts.Call(-9, 1.0, 0.5)
    if command[1] == 'mgjax.train':
      config = settings.kept(cli.read_config(self.config, self.overrides))
      for name in ('plan.json', 'metrics.jsonl'):
        (self._workdir / name).write_text('{}')
      (self._workdir / 'config.json').write_text(json.dumps(config))
      (self._workdir / 'eval.json').write_text('{"top1": 50.0, "step": 7}')
      (self._workdir / 'events.out.tfevents.1').write_text('')
      programs = {'compiled': 3, 'from_disk': 0}
      summary = {'top1': 50.0, 'steps': 7, 'programs': programs}
      (self._workdir / 'summary.json').write_text(json.dumps(summary))
    else:
      split = command[-1].split('=')[1]
      result = {'top1': 40.0, 'step': 7, 'config_eval': {}}
      result['overrides'] = {'eval.split': split}
      (self._workdir / 'eval.json').write_text(json.dumps(result))
    return starts.Call(0, 100.0, 150.0)


@pytest.fixture
def workdir(tmp_path):
  return tmp_path / 'run'


@pytest.fixture
def commands(monkeypatch, tmp_path, data_folder, workdir):
  """Commands that take no time, on a data set that is known."""
  monkeypatch.setattr(record, 'code_version', lambda: VERSION)
  monkeypatch.setattr(record, 'RECORDS', tmp_path / 'records')
  monkeypatch.setattr(data_setup, 'builder_dir', lambda config: data_folder)
  data_sets = tmp_path / 'data_sets.csv'
  monkeypatch.setattr(record, 'DATA_SETS', data_sets)
  data_sets.write_text(
    'name,fingerprint,what\n'
    f'moving_digits/motion,{record.data_fingerprint(data_folder)},made up\n'
  )
  made = Commands(workdir)
  monkeypatch.setattr(starts, 'call', made)
  return made


def test_a_run_leaves_a_record_that_is_trusted(commands, workdir):
  """All but the training itself, which the fake stands for."""
  arguments = {'workdir': workdir, 'overrides': OVERRIDES}
  record.run('digits/a', DIGITS, **arguments)
  (train,) = commands.ran
  assert list(train) == [
    *('-m', 'mgjax.train', f'--config={DIGITS}', *OVERRIDES),
    f'--workdir={workdir}',
  ]
  assert record.problems() == []
  (entry,) = record.load('digits')
  assert entry['summary']['top1'] == 50.0
  assert {name: entry[name] for name in VERSION} == VERSION
  assert len(entry['load_average']) == len(entry['load_average_after']) == 3
  assert entry['affinity'] == sorted(os.sched_getaffinity(0))
  assert (entry['wall_seconds'], entry['cpu_seconds']) == (100.0, 150.0)
  assert entry['resumed'] is False
  assert entry['cache'] == {'compiled': 3, 'from_disk': 0, 'state': 'cold'}
  date = datetime.datetime.fromisoformat(entry['date'])
  assert date.utcoffset() == datetime.timedelta(0)
  age = datetime.datetime.now(datetime.UTC) - date
  assert datetime.timedelta(0) <= age < datetime.timedelta(minutes=1)
  assert record.test_of(entry) is None
  # The line can be pasted into a shell.
  assert shlex.split(entry['command'])[1:] == list(train)
  # And only once.
  record.run('digits/a', DIGITS, **arguments)
  assert len(commands.ran) == 1


def test_a_cold_run_has_a_cache_of_its_own(commands, workdir):
  record.run('digits/a', DIGITS, workdir=workdir, overrides=OVERRIDES)
  assert not commands.environ
  cold = workdir.with_name('cold')
  commands._workdir = cold
  record.run(
    'digits/b', DIGITS, workdir=cold, overrides=OVERRIDES, is_cold=True
  )
  folder = {'JAX_COMPILATION_CACHE_DIR': str(cold / 'programs')}
  assert commands.environ == folder
  (entry,) = record.load('digits/b')
  assert entry['command'].startswith(f'JAX_COMPILATION_CACHE_DIR={cold}/progr')


def test_a_run_is_judged_on_a_split_that_its_training_does_not_see(
  commands, workdir
):
  arguments = {'workdir': workdir, 'overrides': OVERRIDES, 'test_split': 'test'}
  record.run('digits/a', DIGITS, **arguments)
  assert list(commands.ran[1]) == [
    *('-m', 'mgjax.evaluate', f'--workdir={workdir}'),
    '--config.eval.split=test',
  ]
  (entry,) = record.load('digits')
  assert record.eval_of(entry) == {'top1': 50.0, 'step': 7}
  assert record.test_of(entry)['top1'] == 40.0
  # Its seconds are not the training's.
  assert entry['cpu_seconds'] == 150.0


def test_a_run_killed_before_its_test_goes_on_with_the_test(
  commands, workdir, monkeypatch
):
  arguments = {'workdir': workdir, 'overrides': OVERRIDES, 'test_split': 'test'}
  commands.killed = 'mgjax.evaluate'
  with pytest.raises(subprocess.CalledProcessError):
    record.run('digits/a', DIGITS, **arguments)
  assert not record.exists('digits/a')
  # What the code is by then has not trained it.
  monkeypatch.setattr(
    record, 'code_version', lambda: {**VERSION, 'commit': 'new'}
  )
  record.run('digits/a', DIGITS, **arguments)
  assert [command[1] for command in commands.ran] == [
    *('mgjax.train', 'mgjax.evaluate', 'mgjax.evaluate')
  ]
  (entry,) = record.load('digits')
  assert (entry['commit'], entry['cpu_seconds']) == ('abc', 150.0)
  assert record.eval_of(entry) == {'top1': 50.0, 'step': 7}


@pytest.mark.parametrize('writes', range(3))
def test_a_kill_while_a_test_is_kept_loses_neither_evaluation(
  commands, workdir, monkeypatch, writes
):
  arguments = {'workdir': workdir, 'overrides': OVERRIDES, 'test_split': 'test'}
  left = [writes]

  def write_bytes(path, content):
    if left and not left[0]:
      left.clear()
      raise KeyboardInterrupt
    if left:
      left[0] -= 1
    path.write_bytes(content)

  monkeypatch.setattr(files, 'write_bytes', write_bytes)
  # The list of starts is written so, too.
  monkeypatch.setattr(files, 'write_text', lambda path, t: path.write_text(t))
  with pytest.raises(KeyboardInterrupt):
    record.run('digits/a', DIGITS, **arguments)
  record.run('digits/a', DIGITS, **arguments)
  (entry,) = record.load('digits')
  assert record.eval_of(entry) == {'top1': 50.0, 'step': 7}
  assert record.test_of(entry)['top1'] == 40.0
  assert [c[1] for c in commands.ran] == ['mgjax.train', 'mgjax.evaluate']


def test_a_kill_before_the_record_is_written_has_no_second_test(
  commands, workdir
):
  arguments = {'workdir': workdir, 'overrides': OVERRIDES, 'test_split': 'test'}

  def killed(*arguments):
    raise KeyboardInterrupt

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(record, '_write', killed)
    with pytest.raises(KeyboardInterrupt):
      record.run('digits/a', DIGITS, **arguments)
  record.run('digits/a', DIGITS, **arguments)
  assert [c[1] for c in commands.ran] == ['mgjax.train', 'mgjax.evaluate']


def test_an_evaluation_by_hand_is_taken_for_no_other(commands, workdir):
  arguments = {'workdir': workdir, 'overrides': OVERRIDES}
  judged = {**arguments, 'test_split': 'test'}
  by_hand = {'top1': 30.0, 'config_eval': {}, 'overrides': {}}
  # While a test is still to be made, the training's is kept.
  commands.killed = 'mgjax.evaluate'
  with pytest.raises(subprocess.CalledProcessError):
    record.run('digits/a', DIGITS, **judged)
  (workdir / 'eval.json').write_text(json.dumps(by_hand))
  record.run('digits/a', DIGITS, **judged)
  (entry,) = record.load('digits')
  assert record.eval_of(entry) == {'top1': 50.0, 'step': 7}
  assert record.test_of(entry)['top1'] == 40.0
  # Else it is lost.
  (workdir / 'eval-of-training.json').unlink()
  (workdir / 'eval.json').write_text(json.dumps(by_hand))
  for more in (arguments, judged):
    with pytest.raises(ConfigError, match="the training's is lost"):
      record.run('digits/b', DIGITS, **more)
  assert not record.exists('digits/b')


def test_a_network_is_not_judged_by_other_code_than_trained_it(
  commands, workdir, monkeypatch
):
  arguments = {'workdir': workdir, 'overrides': OVERRIDES, 'test_split': 'test'}
  commands.killed = 'mgjax.evaluate'
  with pytest.raises(subprocess.CalledProcessError):
    record.run('digits/a', DIGITS, **arguments)
  other = {**VERSION, 'package_tree': 'other'}
  monkeypatch.setattr(record, 'code_version', lambda: other)
  with pytest.raises(ConfigError, match='mgjax has changed since'):
    record.run('digits/a', DIGITS, **arguments)
  assert len(commands.ran) == 2


def test_a_split_that_is_not_there_is_told_before_the_training(
  commands, workdir
):
  arguments = {'workdir': workdir, 'overrides': OVERRIDES}
  with pytest.raises(ConfigError, match="no split 'other' .* has train, test"):
    record.run('digits/a', DIGITS, test_split='other', **arguments)
  assert not commands.ran


def test_a_finished_run_of_unknown_code_becomes_no_record(commands, workdir):
  workdir.mkdir()
  (workdir / 'summary.json').write_text('{}')
  with pytest.raises(ConfigError, match='nothing says what code has made it'):
    record.run('digits/a', DIGITS, workdir=workdir, overrides=OVERRIDES)


def test_a_finished_run_of_another_config_becomes_no_record(commands, workdir):
  record.run('digits/a', DIGITS, workdir=workdir, overrides=OVERRIDES)
  with pytest.raises(ConfigError, match='its config .* is not that of'):
    record.run('digits/b', DIGITS, workdir=workdir)
  assert not record.exists('digits/b')


@pytest.mark.parametrize(
  'compiled,from_disk,state',
  [(8, 0, 'cold'), (0, 8, 'warm'), (1, 7, 'mixed'), (0, 0, 'warm')],
)
def test_a_cache_is_cold_warm_or_mixed(compiled, from_disk, state):
  found = record._cache_state({'compiled': compiled, 'from_disk': from_disk})
  assert found['state'] == state


def test_a_tree_is_that_of_the_commit_until_a_file_is_changed(
  monkeypatch, tmp_path
):
  def git(*arguments):
    return subprocess.run(
      ['git', '-c', 'user.name=a', '-c', 'user.email=a@b', *arguments],
      cwd=tmp_path,
      capture_output=True,
      text=True,
      check=True,
    ).stdout.strip()

  monkeypatch.setattr(record, '_ROOT', tmp_path)
  for folder in ('mgjax', 'configs'):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / 'a.py').write_text('a = 1\n')
  git('init', '--quiet')
  git('add', '.')
  git('commit', '--quiet', '--message=first')
  version = record.code_version()
  assert version['package_tree'] == git('rev-parse', 'HEAD:mgjax')
  assert version['configs_tree'] == git('rev-parse', 'HEAD:configs')
  (tmp_path / 'mgjax' / 'b.py').write_text('b = 1\n')
  changed = record.code_version()
  assert changed['package_tree'] != version['package_tree']
  assert changed['configs_tree'] == version['configs_tree']
  assert (version['changed_files'], changed['changed_files']) == (
    *('', '?? mgjax/b.py'),
  )
  # The index, in which the user's next commit is made, is as it was.
  assert git('status', '--porcelain') == '?? mgjax/b.py'
  git('add', '.')
  git('commit', '--quiet', '--message=second')
  assert git('rev-parse', 'HEAD:mgjax') == changed['package_tree']
  (tmp_path / 'mgjax' / 'b.py').unlink()
  assert record.code_version()['package_tree'] == version['package_tree']
  (tmp_path / 'configs' / 'a.py').write_text('a = 2\n')
  assert record.code_version()['changed_files'].split('\n') == [
    *('M configs/a.py', ' D mgjax/b.py'),
  ]


def test_without_git_there_is_no_version_and_one_line_says_why(
  monkeypatch, tmp_path
):
  monkeypatch.setattr(record, '_ROOT', tmp_path)  # No repository.
  monkeypatch.setenv('GIT_CEILING_DIRECTORIES', str(tmp_path.parent))
  with pytest.raises(ConfigError, match='not a git repository.*in a clone'):
    record.code_version()
  monkeypatch.setenv('PATH', '')
  with pytest.raises(ConfigError, match="No such file.*'git'.*in a clone"):
    record.code_version()


def test_the_command_of_a_pinned_run_says_so():
  mine = sorted(os.sched_getaffinity(0))
  assert record._pinning() == ''
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    pool.submit(os.sched_setaffinity, 0, mine[:1]).result()
    found = pool.submit(record._pinning).result()
  assert found == (f'taskset -c {mine[0]} ' if len(mine) > 1 else '')


def test_a_record_stays_known_when_a_field_is_added(records):
  def lacks_a_field(entry, stored):
    del stored['train']['keep_checkpoints']
    entry['config_hash'] = settings.config_hash(stored)

  records('digits/a', DIGITS, change=lacks_a_field)
  assert record.problems() == []


def test_where_the_data_lies_does_not_change_the_hash():
  config = saved.as_json(cli.read_config(DIGITS))
  moved = {**config, 'data': {**config['data'], 'dir': '/elsewhere'}}
  other = {**config, 'seed': 1}
  assert settings.config_hash(moved) == settings.config_hash(config)
  assert settings.config_hash(other) != settings.config_hash(config)


@pytest.mark.parametrize(
  'file,change',
  [
    ('dataset_info.json', ('"numBytes": "900"', '"numBytes": "901"')),
    ('dataset_info.json', ('"4", "6"', '"4", "7"')),
    ('label.labels.txt', ('up', 'down')),
    ('manifest.jsonl', ('a.mp4', 'b.mp4')),
  ],
)
def test_a_data_set_with_other_videos_has_another_fingerprint(
  data_folder, file, change
):
  before = record.data_fingerprint(data_folder)
  assert record.data_fingerprint(data_folder) == before
  text = (data_folder / file).read_text()
  assert change[0] in text
  (data_folder / file).write_text(text.replace(*change))
  assert record.data_fingerprint(data_folder) != before


def test_an_evaluation_is_that_of_its_training(records):
  name, config = 'digits/none-seed0', 'configs/moving_digits.py'

  def change(entry, stored):
    del stored
    entry['summary'] |= {'top1': 75.0, 'steps': 7}

  records(name, config, change=change)
  folder = record.RECORDS / name
  right = {'step': 7, 'top1': 75.0, 'correct': 'b0'}
  right |= {'num_videos': 4, 'num_scored': 4}
  # On test another number is right, as are videos of another split not.
  test = {**right, 'top1': 25.0, 'correct': '20'}
  test['overrides'] = {'eval.split': 'test'}

  def problems(evaluation, judged):
    (folder / 'eval.json').write_text(json.dumps(evaluation))
    (folder / 'test.json').write_text(json.dumps(judged))
    return record.problems()

  assert problems(right, test) == []
  for changes, words in (
    ({'top1': 50.0}, 'test.json: top1 is 50.0, not 25.0'),
    ({'step': 6}, 'test.json: step is 6, not 7'),
    ({'overrides': {}}, 'test.json: its split is None'),
  ):
    (problem,) = problems(right, {**test, **changes})
    assert problem == f'{name}/{words}'
  (problem,) = problems({**right, 'step': 8}, test)
  assert problem == f'{name}/eval.json: step is 8, not 7'
  assert len(problems({**right, 'top1': 50.0}, test)) == 1
