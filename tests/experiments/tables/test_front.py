"""Accuracy over time, from made-up records."""

from experiments import intervals
from experiments.runs import judged
from experiments.tables import front


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
    for row in front.table_of('front', judged.FRONT).rows
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
  _, row = front.table_of('front', judged.FRONT).rows
  assert row[7:9] == ('cold, warm', '4.00 [4.00, 4.00]')
  assert row[9] == '8.00'  # The plan of the first seed.


def test_what_cold_programs_add_is_compared_seed_by_seed(add):
  assert [run.name for run in judged.FRONT_COLD] == [
    'front_cold/none-0.25',
    'front_cold/both-0.75',
  ]
  for seed in range(3):
    add(
      *('front/both-0.75', seed, 90.0, 97.0, 100.0 + seed),
      wall_seconds=110.0,
    )
    add(
      *('front_cold/both-0.75', seed, 90.0, 97.0, 150.0 + 2 * seed),
      cache={'state': 'cold'},
      wall_seconds=200.0,
    )
  (row,) = front.cold_table().rows
  low, high = intervals.of_mean([50.0, 51.0, 52.0])[1:]
  assert row[1] == '3' and row[4] == f'51 [{low:.0f}, {high:.0f}]'
  assert row[5] == '90 [90, 90]'
  assert row[7] == 'cold'


def test_points_are_compared_with_those_of_the_baseline(add):
  for seed in range(3):
    add('front/none-1.5', seed, 90.0, 98.0, 300.0)
    add('front/both-3', seed, 90.0, 98.1 + 0.1 * seed, 150.0)
  (row,) = front.pairs_table().rows
  low, high = intervals.of_mean([0.1, 0.2, 0.3])[1:]
  assert row == (
    *('both, 3 x the epochs', 'none, 1.5 x the epochs'),
    *(f'0.20 [{low:.2f}, {high:.2f}]', '2.00 [2.00, 2.00]', '', 'abcdef0'),
  )


def test_a_run_whose_seconds_nobody_knows_stands_in_the_table(add, tmp_path):
  add('front/none-1', 0, 90.0, 97.0, cpu_seconds=None)
  add('front/none-1', 1, 90.0, 97.0)
  add('front/both-1', 0, 90.0, 96.0, resumed=True)
  none, both = front.table_of('front', judged.FRONT).rows
  assert (none[5][:4], none[6]) == ('100 ', '200')
  assert both[5:7] == ('', '')
  front.picture(tmp_path / 'a.png')


def test_the_baseline_after_the_same_seconds_lies_between_its_lengths(add):
  for seed in range(3):
    add('front/none-0.25', seed, 0.0, 60.0 + seed, 100.0)
    add('front/none-1', seed, 0.0, 90.0 + seed, 400.0)
    # The root of the product: half way.
    add('front/both-1', seed, 0.0, 85.0 + seed, 200.0)
    add('front/both-0.75', seed, 0.0, 85.0, 99.0)  # Shorter than all.
  (row,) = front.same_seconds_table().rows
  assert row[:3] == ('both, 1 x the epochs', '10.0 [10.0, 10.0]', '')
  for seed in range(3):
    add('front_cold/none-0.25', seed, 0.0, 60.0, 100.0)
    add('front_cold/both-0.75', seed, 0.0, 85.0, 299.0)
  pairs = {row[:2]: row[4] for row in front.pairs_table().rows}
  # 400 s warm and cold, over 200 and 400.
  equal = ('both, 1 x the epochs', 'none, 1 x the epochs')
  assert pairs[equal] == '1.00 [1.00, 1.00]'
  # 200 s more of `both`, at the length of the full baseline.
  first, second = front.same_seconds_table().rows
  assert first[:3] == ('both, 0.75 x the epochs', '', first[2])
  assert second[2] == '-5.0 [-5.0, -5.0]'
