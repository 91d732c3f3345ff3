"""Records can be trusted."""

import concurrent.futures
import json
import os
import shlex
import subprocess
import sys

import pytest

from experiments.runs import record, settings
from mgjax import cli
from mgjax.config import saved
from mgjax.setup import data as data_setup

DIGITS = 'configs/moving_digits.py:grid=none,seed=0'


@pytest.fixture
def data_folder(tmp_path):
  """What a fingerprint is made from."""
  folder = tmp_path / 'data'
  folder.mkdir()
  split = '{"name": "train", "shardLengths": ["4", "6"], "numBytes": "900"}'
  for name, text in (
    ('dataset_info.json', f'{{"splits": [{split}], "description": "x"}}'),
    ('label.labels.txt', 'up\nleft\n'),
    ('manifest.jsonl', '{"file": "a.mp4"}\n'),
  ):
    (folder / name).write_text(text)
  return folder


def test_a_record_of_a_known_config_and_data_set_is_trusted(records):
  records('digits/a', DIGITS)
  assert record.problems() == []


def test_a_run_leaves_a_record_that_is_trusted(
  monkeypatch, tmp_path, data_folder
):
  """All but the training itself, which the fake stands for."""
  workdir = tmp_path / 'run'
  overrides = ['--config.optim.lr_steps=(4, 6)']  # A shell would split it.
  commands = []

  def run(command, **kwargs):
    commands.append(command)
    if command[0] == sys.executable:
      workdir.mkdir()
      config = saved.as_json(cli.read_config(DIGITS, overrides))
      for name in ('plan.json', 'metrics.jsonl', 'eval.json'):
        (workdir / name).write_text('{}')
      (workdir / 'config.json').write_text(json.dumps(config))
      (workdir / 'summary.json').write_text('{"top1": 50.0}')
    return subprocess.CompletedProcess(command, 0, stdout='abc\n')

  monkeypatch.setattr(subprocess, 'run', run)
  monkeypatch.setattr(record, 'RECORDS', tmp_path / 'records')
  monkeypatch.setattr(data_setup, 'builder_dir', lambda config: data_folder)
  data_sets = tmp_path / 'data_sets.csv'
  monkeypatch.setattr(record, 'DATA_SETS', data_sets)
  data_sets.write_text(
    'name,fingerprint,what\n'
    f'moving_digits/motion,{record.data_fingerprint(data_folder)},made up\n'
  )
  arguments = {'workdir': workdir, 'overrides': overrides}
  record.run('digits/a', DIGITS, **arguments)
  # The commit is asked for before: what comes in meanwhile is not measured.
  train = [command[0] for command in commands].index(sys.executable)
  assert [command[:2] for command in commands[:train]] == [
    *(['git', 'rev-parse'], ['git', 'status'])
  ]
  assert commands[train][1:] == [
    *('-m', 'mgjax.train', f'--config={DIGITS}', *overrides),
    f'--workdir={workdir}',
  ]
  assert record.problems() == []
  (entry,) = record.load('digits')
  assert entry['summary'] == {'top1': 50.0} and entry['commit'] == 'abc'
  assert len(entry['load_average']) == 3
  # The line can be pasted into a shell.
  assert shlex.split(entry['command'])[1:] == commands[train][1:]
  # And only once.
  del commands[:]
  record.run('digits/a', DIGITS, **arguments)
  assert commands == []


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
