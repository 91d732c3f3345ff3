"""The READMEs' tables are what schedules and records say."""

import json

import pytest

from experiments import epoch_factors, measured, record, tables
from experiments.measured import Run


@pytest.fixture
def add_record(tmp_path, monkeypatch):
  """Returns a function that writes what the tables read of a record."""
  monkeypatch.setattr(record, 'RECORDS', tmp_path)

  def add(name, *, top1, train_s, gmacs=30.0, cpu='a processor'):
    folder = tmp_path / name
    folder.mkdir(parents=True)
    summary = {
      'top1': top1,
      'steps': 1000,
      'clips': 8000,
      'train_s': train_s,
      'compile_s': 5.0,
      'eval_s': 1.0,
      'environment': {'device': 'cpu', 'num_devices': 1, 'cpu': cpu},
    }
    (folder / 'record.json').write_text(json.dumps({'summary': summary}))
    (folder / 'plan.json').write_text(json.dumps({'total_gmacs': gmacs}))

  return add


RUNS = [Run('digits/none', 'baseline', ''), Run('digits/both', 'multigrid', '')]


def test_a_table_shows_mean_deviation_and_speedup_by_hand(add_record):
  add_record('digits/both-seed0', top1=80.0, train_s=20.0, gmacs=10.0)
  add_record('digits/both-seed1', top1=82.0, train_s=30.0, gmacs=10.0)
  add_record('digits/none-seed0', top1=70.0, train_s=100.0)
  add_record('digits/none-seed1', top1=74.0, train_s=100.0)
  none, both = measured.table('t', RUNS, baseline='digits/none').rows
  assert none[:4] == ('baseline', '72.0 ± 2.8', '2', '1,000')
  assert none[-3:] == ('1.00', '1.00', 'digits/none-seed*')
  assert both[:2] == ('multigrid', '81.0 ± 1.4')
  assert both[-3:] == ('4.00', '3.00', 'digits/both-seed*')


def test_runs_without_records_have_no_row(add_record):
  assert not measured.table('t', RUNS, baseline='digits/none').rows
  add_record('digits/both-seed0', top1=80.0, train_s=20.0)
  ((_, accuracy, *_, speedup, macs, _),) = measured.table(
    't', RUNS, baseline='digits/none'
  ).rows
  assert (accuracy, speedup, macs) == ('80.0', '', '')


def test_times_of_one_seed_or_of_two_machines_are_not_compared(add_record):
  speedups = lambda: [
    row[-3] for row in measured.table('t', RUNS, baseline='digits/none').rows
  ]
  add_record('digits/none-seed0', top1=70.0, train_s=100.0)
  add_record('digits/both-seed0', top1=80.0, train_s=20.0)
  assert speedups() == ['', '']
  add_record('digits/none-seed1', top1=70.0, train_s=100.0)
  add_record('digits/both-seed1', top1=80.0, train_s=20.0)
  assert speedups() == ['1.00', '5.00']
  add_record('digits/both-seed2', top1=80.0, train_s=20.0, cpu='another')
  assert speedups() == ['1.00', '']


def test_speedups_at_equal_accuracy_by_hand():
  result = lambda top1, train_s, machine='this': measured.Result(
    (top1, top1), train_s, 0.0, 0.0, 1, 1, 1.0, frozenset([machine])
  )
  baselines = [result(90.0, 400.0), result(60.0, 100.0), result(80.0, 200.0)]
  speedup = lambda top1: epoch_factors.speedup_at_equal_accuracy(
    result(top1, 100.0), baselines
  )
  assert speedup(80.0) == '2.00'
  # Half of the way from 60 to 80, at the geometric mean of their times.
  assert speedup(70.0) == '1.41'
  assert speedup(95.0) == '> 4.00'
  assert speedup(50.0) == ''
  assert speedup(60.0) == '1.00'
  other = result(80.0, 100.0, 'other')
  assert epoch_factors.speedup_at_equal_accuracy(other, baselines) == ''


def test_the_readmes_are_current():
  for path in tables.READMES:
    text = path.read_text()
    assert tables.with_tables(text) == text
