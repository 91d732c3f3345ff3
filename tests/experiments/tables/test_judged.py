"""Tables of the runs that the protocol governs, from made-up records."""

import pytest

from experiments import intervals
from experiments.runs import judged, planned
from experiments.tables import judged as tables


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


def test_the_headline_is_of_the_point_that_validation_chooses():
  run = tables.chosen(judged.FRONT, judged.FRONT_SEEDS)
  if run is None:
    assert judged.HEADLINE_LENGTH is None
  else:
    assert run.name == f'front/both-{judged.HEADLINE_LENGTH:g}'


def _pairs(differences):
  none = {10 + i: 96.0 + 0.1 * i for i in range(len(differences))}
  both = {s: none[s] + d for s, d in zip(none, differences, strict=True)}
  return both, none


WIDE = [1.0, -1.0] * 4


@pytest.mark.parametrize(
  ('differences', 'said'),
  [
    ([0.0] * 7, None),
    ([-0.4, -0.3] * 4, 'holds'),
    ([-0.7, -0.6] * 4, 'fails'),
    (WIDE, 'open'),
    # The second look comes after sixteen, and only where the first is open.
    (WIDE + [0.5] * 7, 'open'),
    (WIDE + [0.5] * 8, 'holds'),
    (WIDE + [-4.0, -4.4] * 4, 'fails'),
    ([-0.7, -0.6] * 4 + [9.0] * 8, 'fails'),
    # There is no third one.
    (WIDE * 2 + [0.5] * 80, 'open'),
  ],
)
def test_the_verdict_falls_at_two_looks(differences, said):
  found = tables.look(*_pairs(differences))
  assert (found and found.verdict) == said


def test_a_look_is_of_the_seeds_that_the_protocol_names():
  both, none = _pairs([-0.4, -0.3] * 4)
  assert tables.look(both, none).pairs == 8
  assert tables.look({s: v for s, v in both.items() if s > 10}, none) is None
  later = [{s + 8: v for s, v in values.items()} for values in (both, none)]
  assert tables.look(*later) is None
  # Pairs that come after the decision change nothing.
  more = [{**values, 18: 0.0} for values in (both, none)]
  assert tables.look(*more) == tables.look(both, none)


def test_the_looks_use_an_interval_of_975_percent():
  differences = [
    -0.25 + x for x in (0.4, -0.4, 0.3, -0.3, 0.1, -0.1, 0.2, -0.2)
  ]
  found = intervals.of_mean(differences)
  wider = intervals.of_mean(differences, 0.975)
  assert wider.low < found.low
  margin = judged.MARGIN
  shifted = [d - margin - (found.low + wider.low) / 2 for d in differences]
  found = tables.look(*_pairs(shifted))
  assert found.verdict == 'open'
  assert found.interval == pytest.approx(intervals.of_mean(shifted, 0.975))
  assert intervals.of_mean(shifted).low > -margin


def test_the_headline_has_seeds_that_chose_nothing(add):
  runs = judged.headline(1.5)
  assert [run.name for run in runs] == ['headline/none-1', 'headline/both-1.5']
  both, none = _pairs([-0.4, -0.3] * 4)
  assert tables.headline_table([]).rows == []
  for name, values, seconds in (
    ('none-1', none, 300.0),
    ('both-1.5', both, 100.0),
  ):
    assert tables.headline_table(runs).rows == []
    for seed, value in values.items():
      add(f'headline/{name}', seed, 0.0, value, seconds)
  (row,) = tables.headline_table(runs).rows
  assert row[:2] == ('both, 1.5 x the epochs', '8')
  low, high = intervals.of_mean([-0.4, -0.3] * 4, 0.975)[1:]
  assert row[5] == f'-0.35 [{low:.2f}, {high:.2f}] (8 pairs)'
  assert row[6:8] == ('holds', '3.00 [3.00, 3.00]')


def test_a_pair_of_two_machines_is_none(add):
  runs = judged.headline(1.5)
  both, none = _pairs([-0.4, -0.3] * 4)
  for seed in both:
    add('headline/none-1', seed, 0.0, none[seed])
    cpu = 'b' if seed == 12 else 'a'
    add('headline/both-1.5', seed, 0.0, both[seed], cpu=cpu)
  (row,) = tables.headline_table(runs).rows
  assert row[1] == '7' and row[5:7] == ('', '')


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
  chose = {run.first_seed + n for run in judged.FRONT for n in range(3)}
  headline = judged.headline(1.5)
  for run in (*judged.FRONT, *judged.FRONT_80, *judged.CLIFF, *headline):
    assert run.test_split == 'test'
    assert run.first_seed not in tuned
  for run in headline:
    seeds = {run.first_seed + n for n in range(judged.HEADLINE_LOOKS[-1])}
    assert not seeds & (tuned | chose)


@pytest.mark.parametrize('runs', [judged.SCHEDULES, judged.SCHEDULES_VIT])
def test_schedules_are_compared_at_equal_multiply_adds(runs):
  first, *others = (planned.training_gmacs(run) for run in runs)
  assert len(others) == 4
  for gmacs in others:
    assert gmacs == pytest.approx(first, rel=0.05)


def test_every_two_schedules_are_compared_seed_by_seed(add):
  none, both = judged.SCHEDULES[:2]
  for seed, top1 in enumerate((90.0, 92.0, 97.0)):
    add(none.name, seed, 0.0, top1)
    add(both.name, seed, 0.0, top1 - (1.0, 1.5, 2.0)[seed])
  table = tables.pairs_table('pairs', judged.SCHEDULES)
  assert table.columns[1:] == (
    'minus none [measured]',
    'minus multigrid (both) [measured]',
  )
  low, high = intervals.of_mean([1.0, 1.5, 2.0])[1:]
  assert table.rows == [
    ('none', '', f'1.50 [{low:.2f}, {high:.2f}]'),
    ('multigrid (both)', f'-1.50 [{-high:.2f}, {-low:.2f}]', ''),
  ]
