"""Tables of the runs that the protocol governs, from made-up records."""

import json

import pytest

from experiments import intervals
from experiments.runs import judged, planned, record
from experiments.tables import judged as tables


@pytest.fixture
def add(tmp_path, monkeypatch):
  """Returns a function that writes what the tables read of a record."""
  monkeypatch.setattr(record, 'RECORDS', tmp_path)

  def write(
    name,
    seed,
    validation,
    test=None,
    train_s=100.0,
    cpu='a',
    resumed=False,
    **fields,
  ):
    folder = tmp_path / f'{name}-seed{seed}'
    folder.mkdir(parents=True)
    entry = {
      'commit': 'abcdef0',
      'package_tree': 'tree',
      'resumed': resumed,
      'cpu_seconds': 2 * train_s,
      'cache': {'state': 'warm'},
      **fields,
      'summary': {
        'top1': validation,
        'train_s': train_s - 1,
        'compile_wait_s': 1.0,
        'environment': {'device': 'cpu', 'cpu': cpu},
      },
    }
    (folder / 'record.json').write_text(json.dumps(entry))
    (folder / 'plan.json').write_text(json.dumps({'total_gmacs': train_s}))
    if test is not None:
      (folder / 'test.json').write_text(json.dumps({'top1': test}))

  return write


def _front(add, both, none=97.0):
  """A front of equal seeds; `both`: validation and seconds of each point."""
  for seed in range(judged.FRONT_SEEDS):
    for run in judged.FRONT:
      if run.grid == 'none':
        add(run.name, seed, none, 99.0, 400.0)
      else:
        validation, seconds = both[run.name.split('-')[1]]
        # Test would choose the other way round.
        add(run.name, seed, validation, 100 - validation, seconds)


def test_the_cheapest_point_that_is_as_accurate_on_validation_is_chosen(add):
  points = {
    '0.75': (96.9, 50.0),
    '1': (97.0, 70.0),
    '1.5': (98.0, 80.0),
    '2': (99.0, 200.0),
    '3': (99.5, 300.0),
  }
  _front(add, points)
  assert tables.chosen(judged.FRONT, 3).name == 'front/both-1'


def test_the_most_accurate_point_is_chosen_where_none_reaches_the_baseline(add):
  points = {
    '0.75': (80.0, 50.0),
    '1': (85.0, 90.0),
    '1.5': (90.0, 120.0),
    '2': (96.0, 200.0),
    '3': (95.0, 300.0),
  }
  _front(add, points)
  assert tables.chosen(judged.FRONT, 3).name == 'front/both-2'


def test_nothing_is_chosen_before_the_front_is_complete(add):
  _front(add, dict.fromkeys(('0.75', '1', '1.5', '2', '3'), (98.0, 50.0)))
  assert tables.chosen(judged.FRONT, 3)
  assert tables.chosen(judged.FRONT, 4) is None


@pytest.mark.parametrize(
  ('accuracies', 'taken'),
  [
    ((96.0, 97.0, 97.9), 0.05),  # Better by less than a point.
    ((96.0, 97.0, 98.1), 0.1),
    ((98.2, 97.0, 97.6), 0.025),
  ],
)
def test_another_rate_is_taken_where_it_is_a_point_better(
  add, accuracies, taken
):
  for run in judged.TUNING:
    value = accuracies[judged.TUNING.index(run) % 3]
    assert tables.rate(run.grid) is None
    add(run.name, run.first_seed, value)
  assert tables.rate('none') == tables.rate('both') == taken
  rows = tables.tuning_table().rows
  assert [row[0] for row in rows if row[3] == 'taken'] == [
    f'{arm}, optim.base_lr={taken}' for arm in judged.ARMS
  ]


def test_pairs_are_compared_within_a_machine_and_interrupted_runs_have_no_time(
  add,
):
  for seed, (test, seconds) in enumerate(
    [(97.0, 100.0), (98.0, 110.0), (96.0, 120.0), (99.0, 1000.0)]
  ):
    add('front/none-1', seed, 90.0, test, 4 * seconds)
    add(
      'front/both-1.5',
      seed,
      90.0,
      test - (0.5, 0.7, 0.6, 0.4)[seed],
      seconds,
      cpu='b' if seed == 1 else 'a',
      resumed=seed == 3,
    )
  (row,) = [
    row
    for row in tables.front_table('front', judged.FRONT).rows
    if row[0].startswith('both')
  ]
  low, high = intervals.of_mean([-0.5, -0.7, -0.6, -0.4])[1:]
  assert row[4] == f'-0.55 [{low:.2f}, {high:.2f}]'
  # Seeds 0 and 2 alone, whose ratio is 4.
  assert row[8] == '4.00 [4.00, 4.00]'
  assert row[5].startswith('110 ')  # Seconds of seeds 0, 1 and 2.


def test_seconds_of_other_code_are_not_compared(add):
  for seed in range(3):
    add('front/none-1', seed, 90.0, 97.0, 400.0)
    more = {'package_tree': 'other', 'cache': {'state': 'cold'}}
    first = seed == 0
    seconds = 50.0 if first else 100.0
    add('front/both-1', seed, 90.0, 96.0, seconds, **(more if first else {}))
  _, row = tables.front_table('front', judged.FRONT).rows
  assert row[7:9] == ('cold, warm', '4.00 [4.00, 4.00]')
  assert row[9] == '8.00'  # The plan of the first seed.


def test_a_run_whose_seconds_nobody_knows_stands_in_the_table(add, tmp_path):
  add('front/none-1', 0, 90.0, 97.0, cpu_seconds=None)
  add('front/none-1', 1, 90.0, 97.0)
  add('front/both-1', 0, 90.0, 96.0, resumed=True)
  none, both = tables.front_table('front', judged.FRONT).rows
  assert (none[5][:4], none[6]) == ('100 ', '200')
  assert both[5:7] == ('', '')
  tables.picture(tmp_path / 'a.png')


def test_nothing_is_chosen_while_a_point_has_no_seconds(add):
  for run in judged.FRONT:
    for seed in range(judged.FRONT_SEEDS):
      add(run.name, seed, 97.0, resumed=run.name == 'front/both-2')
  assert tables.chosen(judged.FRONT, 3) is None


def test_the_rates_are_those_that_tuning_took():
  for arm in judged.ARMS:
    assert tables.rate(arm) in (None, judged.RATE[arm])


def test_the_cliff_compares_equal_epochs_at_each_size(add):
  assert [run.name for run in judged.CLIFF] == [
    'cliff/none-56px',
    'cliff/both-56px',
    'front/none-1',
    'front/both-1',
    'front_80/none-1',
    'front_80/both-1',
    'cliff/none-96px',
    'cliff/both-96px',
  ]
  for seed in (0, 1):
    add('cliff/none-56px', seed, 0.0, 97.0 + seed)
    add('cliff/both-56px', seed, 0.0, 90.0 + seed)
  (row,) = tables.cliff_table().rows
  assert row[:3] == ('56 x 56', '28', '2')
  assert row[5] == '-7.00 [-7.00, -7.00]'


def test_tuning_and_judging_share_no_seed_and_tuning_sees_no_test_split():
  tuned = {run.first_seed + n for run in judged.TUNING for n in range(2)}
  assert all(run.test_split == '' for run in judged.TUNING)
  for run in (*judged.FRONT, *judged.FRONT_80, *judged.CLIFF):
    assert run.test_split == 'test'
    assert run.first_seed not in tuned


@pytest.mark.parametrize('runs', [judged.SCHEDULES, judged.SCHEDULES_VIT])
def test_schedules_are_compared_at_equal_multiply_adds(runs):
  first, *others = (planned.training_gmacs(run) for run in runs)
  assert len(others) == 4
  for gmacs in others:
    assert gmacs == pytest.approx(first, rel=0.05)
