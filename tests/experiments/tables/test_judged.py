"""Tables of the runs that the protocol governs, from made-up records."""

import pytest

from experiments import intervals
from experiments.runs import generated, judged, planned
from experiments.tables import judged as tables


def _pairs():
  """Accuracies of the headline's first eight seeds: of `both` and of `none`."""
  none = {10 + i: 96.0 + 0.1 * i for i in range(8)}
  return {s: none[s] - (0.4, 0.3)[s % 2] for s in none}, none


def test_the_headline_has_seeds_that_chose_nothing(add):
  runs = judged.headline(1.5)
  assert [run.name for run in runs] == [
    *('headline/none-1', 'headline/none-1.5', 'headline/both-1.5')
  ]
  both, none = _pairs()
  assert tables.headline_table([]).rows == []
  for name, values, seconds in (
    ('none-1', none, 300.0),
    ('both-1.5', both, 100.0),
  ):
    assert tables.headline_table(runs).rows == []
    for seed, value in values.items():
      add(f'headline/{name}', seed, 0.0, value, seconds)
  (row,) = tables.headline_table(runs).rows
  assert row[:3] == ('both, 1.5 x the epochs', 'none, 1 x the epochs', '8')
  low, high = intervals.of_mean([-0.4, -0.3] * 4, 0.975)[1:]
  assert row[6] == f'-0.35 [{low:.2f}, {high:.2f}] (8 pairs)'
  assert row[7:9] == ('holds', '3.00 [3.00, 3.00]')
  # The longer baseline is a question of its own.
  for seed, value in none.items():
    add('headline/none-1.5', seed, 0.0, value + 1.0, 450.0)
  first, second = tables.headline_table(runs).rows
  assert first == row
  assert second[1] == 'none, 1.5 x the epochs'
  assert second[7:9] == ('fails', '4.50 [4.50, 4.50]')


def test_a_pair_of_two_machines_is_none(add):
  runs = judged.headline(1.5)
  both, none = _pairs()
  for seed in both:
    add('headline/none-1', seed, 0.0, none[seed])
    cpu = 'b' if seed == 12 else 'a'
    add('headline/both-1.5', seed, 0.0, both[seed], cpu=cpu)
  (row,) = tables.headline_table(runs).rows
  assert row[2] == '7' and row[6:8] == ('', '')


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


def test_older_rows_keep_their_settings_and_are_judged_on_test(add):
  runs = {run.name: run for run in judged.CLAIMS}
  assert len(runs) == 13
  for run in runs.values():
    kind, _, name = run.name.removeprefix('claims/').partition('-')
    table = {
      'frames': 'frames_accuracy',
      'ladder': 'frames_ladder',
      'choices': 'multigrid_choices',
    }[kind]
    older = next(
      r for r in generated.RUNS[table] if r.name == f'{table}/{name}'
    )
    assert (run.config, run.overrides) == (older.config, older.overrides)
    assert run.test_split == 'test'
    assert not run.baseline or run.baseline in runs
  for seed, top1 in enumerate((90.0, 92.0)):
    add('claims/ladder-32', seed, 0.0, top1)
    add('claims/ladder-16-32', seed, 0.0, top1 + 1)
  full, ladder = tables.claimed_table().rows
  assert (full[0], full[4]) == ('bLVNet-TAM, 16x2 frames', '')
  assert ladder[0] == 'bLVNet-TAM, 8x2, then 16x2 frames'
  assert ladder[4] == '1.00 [1.00, 1.00]'
