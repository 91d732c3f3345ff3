"""The READMEs' tables are what schedules and records say."""

import json
import math

import pytest

from experiments.runs import catalogue, generated, record
from experiments.runs.run import Run
from experiments.tables import (
  epoch_factors,
  measured,
  multigrid_choices,
)
from mgjax import cli
from mgjax.setup import run_settings


@pytest.fixture
def add_record(tmp_path, monkeypatch):
  """Returns a function that writes what the tables read of a record."""
  monkeypatch.setattr(record, 'RECORDS', tmp_path)

  def add(name, *, top1, train_s, gmacs=30.0, commit='abc', **environment):
    folder = tmp_path / name
    folder.mkdir(parents=True)
    summary = {
      'top1': top1,
      'steps': 1000,
      'clips': 8000,
      'train_s': train_s,
      'compile_s': 5.0,
      'eval_s': 1.0,
      'environment': {
        'device': 'cpu',
        'num_devices': 1,
        'cpu': 'a processor',
        **environment,
      },
    }
    (folder / 'record.json').write_text(
      json.dumps({'summary': summary, 'commit': commit})
    )
    baseline = {'grid': {'T': 16}, 'gmacs': 30.0, 'clips': 1000}
    (folder / 'plan.json').write_text(
      json.dumps({'total_gmacs': gmacs, 'baseline': baseline})
    )

  return add


RUNS = [
  Run(f'digits/{grid}', row, '', grid, '', baseline='digits/none')
  for grid, row in (('none', 'baseline'), ('both', 'multigrid'))
]


def test_a_table_shows_mean_deviation_and_speedup_by_hand(add_record):
  add_record('digits/both-seed0', top1=80.0, train_s=20.0, gmacs=10.0)
  add_record('digits/both-seed1', top1=82.0, train_s=30.0, gmacs=10.0)
  add_record('digits/none-seed0', top1=70.0, train_s=98.0)
  add_record('digits/none-seed1', top1=74.0, train_s=102.0)
  none, both = measured.table('t', RUNS).rows
  assert none[:4] == ('baseline', '72.0 ± 2.8', '2', '1,000')
  assert none[5:8] == ('100 ± 3', '5 ± 0', '1 ± 0')
  assert none[-4:] == ('1.00', '1.00', 'abc', 'digits/none-seed*')
  assert both[:2] == ('multigrid', '81.0 ± 1.4')
  assert both[5] == '25 ± 7'
  # Log ratios of the pairs, and Student's 12.71 standard errors.
  logs = [math.log(98 / 20), math.log(102 / 30)]
  half = 12.706 * abs(logs[0] - logs[1]) / 2
  ends = (math.exp(sum(logs) / 2 + sign * half) for sign in (0, -1, 1))
  found = '{:.2f} [{:.2f}, {:.2f}]'.format(*ends)
  assert both[-4:] == (found, '3.00', 'abc', 'digits/both-seed*')


def test_every_run_is_compared_to_the_baseline_of_its_own_kind(add_record):
  kinds = {'demo': 100.0, 'tam': 40.0}
  runs = [
    Run(f'x/{kind}-{mode}', mode, '', mode, kind, baseline=f'x/{kind}-none')
    for kind in kinds
    for mode in ('none', 'both')
  ]
  for kind, none_s in kinds.items():
    for seed in range(2):
      add_record(f'x/{kind}-none-seed{seed}', top1=1.0, train_s=none_s)
      add_record(f'x/{kind}-both-seed{seed}', top1=1.0, train_s=20.0)
  rows = measured.table('t', runs).rows
  assert [row[-4] for row in rows] == [
    *('1.00', '5.00 [5.00, 5.00]', '1.00', '2.00 [2.00, 2.00]')
  ]


def test_a_baseline_is_a_run_of_its_table():
  compared = 0
  for table, runs in catalogue.RUNS.items():
    baselines = {run.baseline for run in runs if run.baseline}
    assert baselines <= {run.name for run in runs}, table
    compared += bool(baselines)
  assert compared == 15


def test_decay_and_network_of_a_choice_are_those_of_its_baseline():
  baselines = {
    run.name.split('/')[1]: run.baseline.split('/')[1]
    for run in generated.MULTIGRID_CHOICES
  }
  assert baselines == {
    **dict.fromkeys(['none-1', 'both-1.5', 'no-groups'], 'none-1'),
    **dict.fromkeys(['no-fine-tuning', 'constant-rate'], 'none-1'),
    **dict.fromkeys(['cosine-none', 'cosine-both'], 'cosine-none'),
    'cosine-both-two-cycles': 'cosine-none',
    **dict.fromkeys(['tam-none', 'tam-both'], 'tam-none'),
    **dict.fromkeys(['tam-8-none', 'tam-8-both'], 'tam-8-none'),
  }


def test_a_choice_differs_from_both_in_one_thing():
  runs = {run.name.split('/')[1]: run for run in generated.MULTIGRID_CHOICES}
  config = lambda name: cli.read_config(
    runs[name].config, runs[name].overrides
  ).to_dict()
  fields = lambda a, b: set(run_settings.differences(config(a), config(b)))
  for name, field in (
    ('no-groups', 'norm.group_clips'),
    ('no-fine-tuning', 'grid.fine_tune'),
    ('constant-rate', 'grid.scale_lr'),
  ):
    assert fields('both-1.5', name) == {field}
  assert fields('tam-none', 'tam-both') == {'grid.mode'}
  assert fields('tam-8-none', 'tam-8-both') == {'grid.mode'}
  assert fields('cosine-none', 'cosine-both-two-cycles') == {'grid.mode'}
  # The baseline has no cycles to count.
  cycles = {'grid.num_long_cycles'}
  assert fields('cosine-none', 'cosine-both') == {'grid.mode', *cycles}
  assert fields('both-1.5', 'cosine-both') == {'optim.schedule', *cycles}


def test_where_multigrid_loses_stays_in_the_table():
  (table,) = multigrid_choices.make()
  top1 = {row[0]: row[1:3] for row in table.rows}
  assert top1['both, cosine, two long cycles'] == ('60.5 ± 2.8', '2')
  tam = 'TAM on 8 segments of 48 x 48 pixels'
  assert top1[f'{tam}, none'] == ('78.5 ± 14.4', '2')
  assert top1[f'{tam}, both'] == ('19.1 ± 10.1', '2')


def test_a_table_of_accuracies_has_no_times(add_record):
  add_record('digits/both-seed0', top1=80.0, train_s=20.0)
  table = measured.accuracy_table('t', RUNS)
  assert not any(' s ' in c or 'speed-up' in c for c in table.columns)
  assert table.rows == [
    ('multigrid', '16', '80.0', '1', '1,000', '8,000', '30.0')
    + ('abc', 'digits/both-seed*')
  ]


def test_runs_without_records_have_no_row(add_record):
  assert not measured.table('t', RUNS).rows
  add_record('digits/both-seed0', top1=80.0, train_s=20.0)
  ((_, accuracy, *_, speedup, macs, _, _),) = measured.table('t', RUNS).rows
  assert (accuracy, speedup, macs) == ('80.0', '', '')


@pytest.mark.parametrize('other', [{'cpu': 'another'}, {'commit': 'def'}])
def test_times_of_one_seed_of_two_machines_or_of_two_commits_are_not_compared(
  add_record, other
):
  speedups = lambda: [row[-4] for row in measured.table('t', RUNS).rows]
  add_record('digits/none-seed0', top1=70.0, train_s=100.0)
  add_record('digits/both-seed0', top1=80.0, train_s=20.0)
  assert speedups() == ['', '']
  add_record('digits/none-seed1', top1=70.0, train_s=100.0)
  add_record('digits/both-seed1', top1=80.0, train_s=20.0)
  assert speedups() == ['1.00', '5.00 [5.00, 5.00]']
  add_record('digits/both-seed2', top1=80.0, train_s=20.0, **other)
  assert speedups() == ['1.00', '']


@pytest.mark.parametrize(
  'other', [{'cpu': 'known'}, {'num_cpus': 1}, {'jax': '0.9.0'}]
)
def test_records_without_a_processor_compare_where_all_else_agrees(
  add_record, other
):
  old = {'cpu': None, 'num_cpus': 2, 'jax': '0.10.2'}
  for name in ('none-seed0', 'none-seed1', 'both-seed0', 'both-seed1'):
    add_record(f'digits/{name}', top1=1.0, train_s=20.0, **old)
  assert measured.table('t', RUNS).rows[1][-4] == '1.00 [1.00, 1.00]'
  add_record('digits/both-seed2', top1=1.0, train_s=20.0, **{**old, **other})
  assert measured.table('t', RUNS).rows[1][-4] == ''


def test_speedups_at_equal_accuracy_by_hand():
  result = lambda top1, train_s, machine='this': measured.Result(
    top1=(top1, top1),
    train_s=(train_s - 1, train_s + 1),
    compile_s=(0.0, 0.0),
    eval_s=(0.0, 0.0),
    steps=1,
    clips=1,
    gmacs=1.0,
    frames=16,
    clip_gmacs=1.0,
    conditions=frozenset([machine]),
    code='abc',
  )
  baselines = [result(90.0, 400.0), result(60.0, 100.0), result(80.0, 200.0)]
  speedup = lambda top1: epoch_factors.speedup_at_equal_accuracy(
    result(top1, 100.0), baselines
  )
  # Standard errors: 1 of the run's 100 seconds, 1 of the baseline's 200.
  assert speedup(80.0) == '2.00 ± 0.02'
  # Half of the way from 60 to 80, at the geometric mean of their times.
  assert speedup(70.0) == '1.41 ± 0.02'
  assert speedup(95.0) == '> 4.00'
  assert speedup(50.0) == ''
  assert speedup(60.0) == '1.00 ± 0.01'
  # Seeds of 60 and 80: 100 of 100 seconds, and 200.
  uneven = result(70.0, 100.0)._replace(top1=(60.0, 80.0), train_s=(100.0,) * 2)
  found = epoch_factors.speedup_at_equal_accuracy(uneven, baselines)
  assert found == '1.50 ± 0.50'
  # A longer run that is no better is not what an accuracy takes.
  falling = [*baselines, result(89.0, 800.0)]
  assert (
    epoch_factors.speedup_at_equal_accuracy(result(90.0, 100.0), falling)
    == '4.00 ± 0.04'
  )
  assert (
    epoch_factors.speedup_at_equal_accuracy(result(95.0, 100.0), falling)
    == '> 4.00'
  )
  # Seeds of the baseline at 60 ± 10: half as long at 70 is as likely.
  unsure = [
    b if b.mean > 60 else b._replace(top1=(50.0, 70.0)) for b in baselines
  ]
  found = epoch_factors.speedup_at_equal_accuracy(result(70.0, 100.0), unsure)
  assert found == '1.41 ± 0.41'
  other = result(80.0, 100.0, 'other')
  assert epoch_factors.speedup_at_equal_accuracy(other, baselines) == ''
