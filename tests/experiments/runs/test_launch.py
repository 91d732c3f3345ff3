"""launch lists, starts and submits runs."""

import concurrent.futures
import os
import re
import shlex
import subprocess
import threading

import pytest

from experiments.runs import (
  catalogue,
  generated,
  launch,
  planned,
  record,
  settings,
)
from mgjax import cli
from mgjax.cli import ConfigError
from mgjax.planning import macs
from mgjax.setup import grids, network


def launched(argv):
  """The exit code of the command."""
  return cli.run(
    launch.main, launch.define_flags, ['launch', *argv], takes_config=False
  )


DIGITS = 'configs/moving_digits.py:grid=none,seed=0'


def test_launch_lists_runs_without_record_and_their_hours(
  records, capsys, no_counting
):
  table = 'moving_digits'
  for name in ('both-1.5', 'both-2'):
    records(
      f'{table}/{name}-seed0', 'configs/moving_digits.py:grid=both,seed=0'
    )
  argv = [f'--table={table}', '--gmacs_per_s=1000', '--device=1 x H100']
  assert launched(argv) == 0
  header, _, line, _, total = capsys.readouterr().out.splitlines()
  assert 'hours on 1 x H100' in header
  assert (
    'configs/moving_digits.py:model=slowfast,grid=none,size=demo,seed=0' in line
  )
  (item,) = planned.runs_to_make(table, 1)
  hours = item.gmacs / 1000 / 3600
  assert line.endswith(f'| {item.gmacs / 1e6:,.3g} | {hours:.2f} |')
  assert total.startswith('all 1: ')
  assert total.endswith(f' {hours:.2f} hours on 1 x H100')


@pytest.mark.parametrize(
  'table,part,whole', [('mini_ssv2', 87, 174), ('mini_kinetics', 200, 400)]
)
def test_launch_lists_parts_of_sets_that_are_not_there(
  table, part, whole, no_counting, capsys
):
  assert launched([f'--table={table}']) == 0
  assert 'all 4: ' in capsys.readouterr().out
  item = planned.runs_to_make(table, 1)[0]
  size = grids.PUBLISHED_SIZES[cli.read_config(item.config).data.name]
  config = cli.read_config(item.config, item.run.overrides)
  steps = settings.schedule(config).total_steps
  epochs = config.optim.total_epochs
  assert steps == pytest.approx(epochs * size * part / whole / 72, rel=1e-3)


def test_three_times_the_plans_multiply_adds_are_trained(records):
  item, *_ = planned.runs_to_make('moving_digits', 1)
  model = network.model(cli.read_config(item.config))
  of_clip = macs.forward_macs(model, T=16, H=64, W=64)
  # Eight epochs of 4000 clips.
  assert item.gmacs == pytest.approx(3e-9 * 8 * 4000 * of_clip)


def test_a_records_speed_predicts_hours(records):
  records('digits/a', DIGITS, train_s=100.0)
  assert planned.rate_of('digits/a') == (12.0, '1 x cpu')


def test_launch_prints_commands_for_clusters(records, capsys, no_counting):
  argv = ['--table=ssv2_accuracy', '--gmacs_per_s=100000', '--run=slurm']
  assert launched(argv) == 0
  first = capsys.readouterr().out.splitlines()[0]
  assert first.startswith('sbatch --job-name=ssv2_accuracy-slowfast-none-seed0')
  assert re.search(r'--time=\d+', first)
  assert '--gpus=8 --cpus-per-task=64 --requeue' in first
  assert '--only=slowfast-none-seed0' in first and '--run=local' in first
  argv = ['--table=ssv2_accuracy', '--run=tpu', '--workdir=gs://b/runs']
  assert launched([*argv, '--tpu=v4', '--zone=z', '--init_from=w']) == 0
  printed = capsys.readouterr().out
  assert 'tpu-vm ssh v4 --zone=z --worker=all' in printed
  assert '--init_from=w' in printed
  # A bucket's name stays whole, through two shells.
  assert launched(argv) == 0
  line = capsys.readouterr().out.splitlines()[0]
  remote = shlex.split(line)[-1].removeprefix('--command=cd mgjax && ')
  assert shlex.split(remote) == [
    *('.venv/bin/python', '-m', 'experiments.runs.launch', '--run=local'),
    *('--table=ssv2_accuracy', '--seeds=1', '--only=slowfast-none-seed0'),
    '--workdir=gs://b/runs',
  ]


def test_launch_gives_all_runs_the_weights_they_start_from(no_counting):
  overrides = ('--config.init_from=w', '--config.init_head=new')
  for item in planned.runs_to_make('ssv2_accuracy', 1, overrides):
    config = cli.read_config(item.config, item.run.overrides)
    assert (config.init_from, config.init_head) == ('w', 'new')


def test_launch_starts_the_runs_that_have_no_record(
  records, monkeypatch, tmp_path
):
  started = []
  monkeypatch.setattr(
    record,
    'run',
    lambda name, config, *, workdir, overrides, **kwargs: started.append(
      (name, config, workdir, overrides)
    ),
  )
  records('moving_digits/both-2-seed0', 'configs/moving_digits.py:seed=0')
  argv = ['--table=moving_digits', '--seeds=2', '--run=local']
  assert launched([*argv, f'--workdir={tmp_path}']) == 0
  assert [name.split('/')[1] for name, *_ in started] == [
    *('none-seed0', 'both-1.5-seed0'),
    *('none-seed1', 'both-1.5-seed1', 'both-2-seed1'),
  ]
  assert started[0] == (
    'moving_digits/none-seed0',
    'configs/moving_digits.py:model=slowfast,grid=none,size=demo,seed=0',
    tmp_path / 'moving_digits/none-seed0',
    (),
  )


def test_seeds_are_counted_from_the_runs_first(records, monkeypatch, capsys):
  monkeypatch.setattr(planned, 'training_gmacs', lambda run: 1.0)
  items = planned.runs_to_make('tuning', 2)
  assert [item.seed for item in items] == [100] * 6 + [101] * 6
  for item in items:
    assert item.record == f'{item.run.name}-seed{item.seed}'
    assert cli.read_config(item.config, item.run.overrides).seed == item.seed
  argv = ['--table=tuning', '--seeds=2', '--run=slurm', '--records=fresh']
  assert launched([*argv, '--only=both-0.1-seed101']) == 0
  (line,) = capsys.readouterr().out.splitlines()
  assert '--only=both-0.1-seed101' in line and '--records=fresh' in line
  assert launched([*argv, '--only=both-0.1-seed1']) == 2


def test_launch_has_a_run_judged_on_its_test_split(
  records, monkeypatch, tmp_path, no_counting
):
  runs = [r._replace(test_split='test') for r in generated.MOVING_DIGITS[:1]]
  monkeypatch.setitem(catalogue.RUNS, 'moving_digits', runs)
  splits = []
  monkeypatch.setattr(
    record, 'run', lambda *_, test_split, **kwargs: splits.append(test_split)
  )
  argv = ['--table=moving_digits', '--run=local', f'--workdir={tmp_path}']
  assert launched(argv) == 0
  assert splits == ['test']


def test_launch_makes_records_anew_in_another_folder(
  records, monkeypatch, tmp_path, no_counting
):
  made = []
  monkeypatch.setattr(
    record,
    'run',
    lambda name, *_, records, **kwargs: made.append((name, records)),
  )
  config = 'configs/moving_digits.py:grid=none,seed=0'
  records('moving_digits/none-seed0', config)
  fresh = tmp_path / 'fresh'
  records('fresh/moving_digits/both-2-seed0', config)
  argv = ['--table=moving_digits', '--run=local', f'--records={fresh}']
  assert launched([*argv, f'--workdir={tmp_path}']) == 0
  assert made == [
    ('moving_digits/none-seed0', fresh),
    ('moving_digits/both-1.5-seed0', fresh),
  ]


def test_a_folder_of_records_that_cannot_be_is_refused_before_a_run(
  records, monkeypatch, tmp_path, no_counting, capsys
):
  monkeypatch.setattr(record, 'run', None)
  (tmp_path / 'file').write_text('')
  argv = ['--table=moving_digits', '--run=local', f'--workdir={tmp_path}']
  assert launched([*argv, f'--records={tmp_path / "file"}']) == 2
  assert 'file cannot be written: File exists' in capsys.readouterr().err


@pytest.mark.skipif(
  len(os.sched_getaffinity(0)) < 2, reason='runs of one CPU each need two'
)
def test_runs_at_a_time_have_cpus_and_logs_of_their_own(
  records, monkeypatch, tmp_path
):
  together = threading.Barrier(2, timeout=20)
  seen = []

  def run(name, config, *, log, **kwargs):
    together.wait()  # Two run at once.
    seen.append(frozenset(os.sched_getaffinity(0)))
    print(name, file=log)

  monkeypatch.setattr(record, 'run', run)
  mine = os.sched_getaffinity(0)
  argv = ['--table=moving_digits', '--seeds=2', '--run=local', '--jobs=2']
  assert launched([*argv, f'--workdir={tmp_path}']) == 0
  first, second = sorted(set(seen), key=min)
  assert first | second == mine and not first & second
  assert (len(seen), os.sched_getaffinity(0)) == (6, mine)
  logs = sorted(tmp_path.glob('moving_digits/*.log'))
  assert [path.read_text() for path in logs] == [
    f'moving_digits/{path.stem}\n' for path in logs
  ]
  assert len(logs) == 6


def test_where_no_cpus_can_be_set_runs_share_them_all(
  records, monkeypatch, tmp_path
):
  for name in ('sched_getaffinity', 'sched_setaffinity'):  # As on macOS.
    monkeypatch.delattr(os, name)
  monkeypatch.setattr(os, 'cpu_count', lambda: 2)
  names = []
  monkeypatch.setattr(record, 'run', lambda name, *_, **__: names.append(name))
  argv = ['--table=moving_digits', '--run=local', '--jobs=2']
  assert launched([*argv, f'--workdir={tmp_path}']) == 0
  assert len(names) == 3
  assert record._pinning() == ''


def test_a_run_that_fails_ends_launch_with_its_code(
  records, monkeypatch, capsys
):
  def run(*args, **kwargs):
    raise subprocess.CalledProcessError(75, 'python')

  monkeypatch.setattr(record, 'run', run)
  argv = ['--table=frames_ladder', '--run=local']
  with pytest.raises(SystemExit) as ended:
    launched(argv)
  assert ended.value.code == 75
  assert (
    'error: frames_ladder/32-seed0 ended with 75' in capsys.readouterr().err
  )


@pytest.mark.parametrize(
  'error,code',
  [
    (ConfigError('no data'), 2),
    (KeyboardInterrupt(), 130),
    (OSError(28, 'full'), 1),
  ],
)
def test_whatever_ends_a_run_no_further_one_starts(
  records, monkeypatch, error, code
):
  started = []

  def run(name, *args, **kwargs):
    started.append(name)
    raise error

  def hears_late(futures):
    concurrent.futures.wait(futures)
    return as_completed(futures)

  as_completed = concurrent.futures.as_completed
  monkeypatch.setattr(concurrent.futures, 'as_completed', hears_late)
  monkeypatch.setattr(record, 'run', run)
  assert launched(['--table=frames_ladder', '--run=local']) == code
  assert started == ['frames_ladder/32-seed0']


@pytest.mark.parametrize(
  'argv,message',
  [
    ([], '--table'),
    (['--table=nothing'], '--table=nothing'),
    (['--table=ssv2_accuracy', 'ssv2'], "unexpected argument 'ssv2'"),
    (['--table=ssv2_accuracy', '--gmacs_per_s=1', '--record=y'], 'give one of'),
    (['--table=ssv2_accuracy', '--device=8 x H100'], 'give its speed too'),
    (['--table=ssv2_accuracy', '--device=x', '--record=y'], 'leave --device'),
    (['--table=ssv2_accuracy', '--seeds=0'], '--seeds=0'),
    (['--table=ssv2_accuracy', '--jobs=0'], '--jobs=0: it must be from 1'),
    (['--table=ssv2_accuracy', '--gmacs_per_s=-1'], '--gmacs_per_s=-1'),
    (['--table=ssv2_accuracy', '--record=none/such'], 'none yet'),
    (['--table=ssv2_accuracy', '--only=x'], 'slowfast-none-seed0'),
    (['--table=ssv2_accuracy', '--run=tpu'], 'give a bucket, gs://'),
  ],
)
def test_bad_arguments_of_launch_end_with_code_2(
  records, argv, message, capsys
):
  assert launched(argv) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert message in line
