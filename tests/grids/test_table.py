"""Tables: rows in numbers, random grids, lengths, rates and batches by hand."""

import itertools
import json
import math

import numpy as np
import pytest

from mgjax.errors import ConfigError
from mgjax.grids import MODES, Grid, make_schedule, schedule

NUMBERS = {
  'frames': 16,
  'height': 64,
  'width': 64,
  'batch': 8,
  'epochs': 10,
  'num_train': 1000,
  'mode': 'table',
  'stride_frames': 2,
  'jitter_px': (64, 80),
  'lr_schedule': 'constant',
  'lr_steps': (4,),
}


def make(*rows, **changes):
  return make_schedule(**{**NUMBERS, **changes, 'table': rows})


RANDOM = {
  'steps': 20_000,
  'random': [
    {'side_factor': 0.5, 'batch': 32},
    {'frames_factor': 0.5, 'batch': 16, 'weight': 2},
    {'weight': 5},
  ],
}


# Random grids.


def test_a_step_draws_by_itself_what_it_draws_in_a_run():
  weights = (0.125, 0.25, 0.625)
  whole = schedule.draws(3, 0, 5000, weights)
  for step in (0, 1, 2, 3, 777, 4999):
    assert schedule.draws(3, step, 1, weights)[0] == whole[step]
  np.testing.assert_array_equal(
    schedule.draws(3, 1234, 100, weights), whole[1234:1334]
  )


def test_draws_have_the_chances_of_the_weights():
  s = make(RANDOM)
  counts = s.phases[0].steps_of(20_000)
  expected = [20_000 / 8, 20_000 / 4, 20_000 * 5 / 8]
  chi2 = sum((n - e) ** 2 / e for n, e in zip(counts, expected, strict=True))
  assert chi2 < 13.8  # 0.1 % of such draws are further off.
  # One does not follow from the other, either.
  places = [s.cycle_index(step) for step in range(20_000)]
  pairs = np.zeros((3, 3))
  np.add.at(pairs, (places[:-1], places[1:]), 1)
  want = np.outer(expected, expected) / 20_000
  assert ((pairs - want) ** 2 / want).sum() < 26.1  # Likewise, 8 degrees.


def test_another_seed_draws_other_grids():
  one, other = (make(RANDOM, seed=seed) for seed in (0, 1))
  same = sum(one(step) == other(step) for step in range(20_000))
  # 1/64 + 1/16 + 25/64 of them by chance.
  assert same / 20_000 == pytest.approx(30 / 64, abs=0.02)


def test_the_draws_of_a_step_are_the_same_after_more_steps_before():
  """They depend on the step, not on where the phase begins."""
  first = make({'steps': 10}, {**RANDOM, 'steps': 50})
  whole = make({**RANDOM, 'steps': 60})
  assert [first(s) for s in range(10, 60)] == [whole(s) for s in range(10, 60)]


def test_clips_of_random_grids_are_counted_exactly():
  s = make({'steps': 7, 'batch': 3}, {**RANDOM, 'steps': 500}, {'epochs': 2})
  sums = itertools.accumulate(
    (s(step).batch for step in range(s.total_steps)), initial=0
  )
  assert [s.clips_before(i) for i in range(s.total_steps + 1)] == list(sums)


def test_a_random_phase_ends_where_its_epochs_are_used():
  s = make({'epochs': 3, 'random': RANDOM['random']})
  last = s(s.total_steps - 1).batch
  assert 3000 <= s.total_clips < 3000 + last


def test_first_uses_of_random_grids_are_those_of_a_search():
  s = make({'steps': 40, 'batch': 16}, {**RANDOM, 'steps': 200})
  for first_step in (0, 39, 41, 120, 239):
    want = {}
    for step in range(first_step, s.total_steps):
      want.setdefault(s(step), step)
    assert s.first_uses(first_step) == want


# Lengths.


def test_steps_epochs_and_ends_follow_each_other():
  s = make(
    {'steps': 100, 'batch': 10},  # 1000 clips: one epoch.
    {'epochs': 2, 'batch': 20},
    {'end_epoch': 3.5, 'batch': 5},
    {'steps': 7},
  )
  assert s.num_steps == (100, 100, 100, 7)
  assert [p.end_epoch for p in s.phases] == [1.0, 3.0, 3.5, 3.556]
  assert s.total_epochs == s.total_clips / 1000


def test_many_steps_stay_exact():
  """The end of a row by steps is no rounded epoch."""
  s = make(
    {'steps': 3_000_001, 'batch': 8192}, {'steps': 1}, num_train=1_281_167
  )
  assert s.num_steps == (3_000_001, 1)


def test_shares_are_of_the_epochs_of_the_run():
  s = make({'share': 0.3}, {'share': 0.7}, epoch_factor=2.0)
  assert [p.end_epoch for p in s.phases] == [6.0, 20.0]


# Batches.


def test_batches_by_voxels_cost_and_constant():
  cost = lambda t, h, w: (t * h * w) ** 1.5
  grids = [
    {'side_factor': 0.5},
    {'side_factor': 0.5, 'batch': 'equal_cost'},
    {'side_factor': 0.5, 'batch': 'constant'},
    {'side_factor': 0.5, 'batch': 24},
  ]
  s = make({'epochs': 1, 'cycle': grids}, clip_cost=cost)
  assert [g.batch for g in s.phases[0].cycle] == [32, 64, 8, 24]


@pytest.mark.parametrize(
  'numbers,divisor',
  [
    ({}, 1),
    ({'num_devices': 4}, 4),
    ({'group_clips': 6, 'batch': 12}, 6),
    ({'num_devices': 4, 'group_clips': 6, 'batch': 12}, 12),
    ({'num_devices': 2, 'micro_batches': 2, 'group_clips': 4}, 8),
  ],
)
def test_batches_by_cost_divide_among_devices_and_groups(numbers, divisor):
  """The nearest such number of clips, at least one."""
  cost = lambda t, h, w: (t * h * w) ** 0.9
  row = {'epochs': 1, 'side_factor': 0.6, 'batch': 'equal_cost'}
  s = make(row, **{'clip_cost': cost, **numbers})
  exact = numbers.get('batch', 8) * cost(16, 64, 64) / cost(16, 38, 38)
  got = s.phases[0].base.batch
  assert got % divisor == 0 and abs(got - exact) <= divisor / 2


def test_sides_and_frames_keep_their_multiples():
  rows = [
    {'epochs': 1, 'frames_factor': f, 'side_factor': side}
    for f in (0.3, 0.6, 1)
    for side in (0.4, 0.55, 0.8)
  ]
  s = make(*rows, frames_multiple=2, side_multiple=16)
  for row, phase in zip(rows, s.phases, strict=True):
    grid = phase.base
    assert grid.T % 2 == grid.H % 16 == grid.W % 16 == 0
    assert abs(grid.T - 16 * row['frames_factor']) <= 1
    assert abs(grid.H - 64 * row['side_factor']) <= 8


@pytest.mark.parametrize('mode', ['short', 'long', 'both', 'progressive'])
def test_multiples_hold_in_every_mode(mode):
  s = make_schedule(
    **{**NUMBERS, 'mode': mode, 'side_multiple': 16, 'frames_multiple': 4}
  )
  for grid in s.grids:
    assert grid.T % 4 == grid.H % 16 == grid.W % 16 == 0


# Learning rates.


def test_rates_of_rows_by_hand():
  s = make(
    {'epochs': 2, 'lr': 0.5, 'lr_scale': 'none'},
    {'epochs': 2, 'lr': [[0, 0.0], [0.5, 1.0], [1, 0.4]], 'lr_scale': 'none'},
    {
      'epochs': 2,
      'lr': {'rates': [1.0, 0.1], 'lr_steps': [0.5]},
      'lr_scale': 3,
    },
    {'epochs': 2, 'lr': {'schedule': 'cosine', 'base_lr': 1.0}},
    {'epochs': 2, 'batch': 32, 'lr_scale': 'sqrt'},
    {'epochs': 2, 'batch': 32},
    learning_rate=0.2,
  )
  want = {
    **{0: 0.5, 1.9: 0.5, 2: 0.0, 2.5: 0.5, 3: 1.0, 3.5: 0.7, 3.999: 0.4006},
    **{4: 3.0, 4.4: 3.0, 4.5: 0.3, 5.9: 0.3, 6: 1.0, 7: 0.5, 8: 0.4, 10: 0.8},
  }
  for epoch, rate in want.items():
    assert s.lr_at_epoch(epoch) == pytest.approx(rate, abs=1e-12)


def test_the_rate_of_the_run_is_stretched_over_the_rows():
  s = make({'epochs': 30}, {'epochs': 10}, lr_schedule='cosine')
  for epoch in (0, 10, 20, 30, 39.5):
    want = 0.05 * (1 + math.cos(math.pi * epoch / 40))
    assert s.lr_at_epoch(epoch) == pytest.approx(want, rel=1e-12)


# What else a row says.


@pytest.mark.parametrize(
  'given,want',
  [
    (None, (2, 8)),
    ('between', (2, 8)),
    ('fixed', (2, 2)),
    ('same_span', (8, 8)),
    (3, (3, 3)),
    ([1, 5], (1, 5)),
  ],
)
def test_strides_of_a_quarter_of_the_frames(given, want):
  row = {'epochs': 1, 'frames_factor': 0.25}
  if given is not None:
    row['stride_frames'] = given
  assert make(row).phases[0].stride_frames == want


def test_a_row_has_batch_norm_groups_and_ranges_of_its_own():
  s = make(
    {'epochs': 1, 'side_factor': 0.5, 'jitter_px': [40, 50]},
    {'epochs': 1, 'group_clips': 2},
    group_clips=8,
  )
  assert [p.bn_groups for p in s.phases] == [(4,), (4,)]
  assert [p.jitter_px for p in s.phases] == [((40, 50),), ((64, 80),)]


def test_a_grid_of_a_cycle_takes_from_its_row_what_it_leaves_out():
  s = make(
    {
      'epochs': 1,
      'side_factor': 0.5,
      'batch': 24,
      'cycle': [{'H': 48, 'W': 32}, {'T': 8}, {}],
    }
  )
  assert s.phases[0].cycle == (
    Grid(16, 48, 32, 24),
    Grid(8, 32, 32, 24),
    Grid(16, 32, 32, 24),
  )


def test_decays_of_the_run_that_a_row_would_not_reach_are_refused():
  table = [{'epochs': 3, 'lr': {'schedule': 'steps'}}] * 2
  with pytest.raises(ConfigError, match='before the end of the schedule at 3'):
    make_schedule(**{**NUMBERS, 'lr_steps': (4,), 'table': table})
  s = make_schedule(**{**NUMBERS, 'lr_steps': (2,), 'table': table})
  assert s.lr(s.total_steps - 1) < s.lr(s.phases[0].end_step)


def test_a_baseline_of_no_epochs_is_refused():
  table = [{'epochs': 3, 'baseline_epochs': 0}]
  with pytest.raises(ConfigError, match='`baseline_epochs` .* add up to 0'):
    make_schedule(**{**NUMBERS, 'table': table})


@pytest.mark.parametrize('mode', [m for m in MODES if m != 'table'])
@pytest.mark.parametrize('lr', ['steps', 'cosine'])
def test_the_table_of_a_mode_is_its_schedule(mode, lr):
  numbers = {**NUMBERS, 'lr_schedule': lr, 'warmup_epochs': 0.5}
  s = make_schedule(**{**numbers, 'mode': mode, 'table': ()})
  table = json.loads(json.dumps(s.table))
  again = make_schedule(**{**numbers, 'table': table})
  assert again == s
  assert again.table == s.table and again.baseline_epochs == s.baseline_epochs
  for step in range(0, s.total_steps, 7):
    assert again.lr(step) == s.lr(step)


@pytest.mark.parametrize(
  'row,message',
  [
    ({'epochs': 1, 'sides': 3}, r"`table` row 2: there is no field 'sides'"),
    ({'epochs': 1, 'steps': 3}, 'row 2: it has epochs and steps; give one'),
    ({}, 'row 2: it has no length'),
    ({'share': 0.5}, 'row 1: share is missing'),
    ({'epochs': 0}, 'row 2: epochs is 0; it must be a number above 0'),
    ({'steps': 1.5}, 'row 2: steps is 1.5; it must be a whole number'),
    ({'epochs': math.nan}, 'row 2: epochs is nan'),
    ({'epochs': 1, 'H': 128}, r'row 2: H is 128; .* at most 64'),
    ({'epochs': 1, 'H': 32, 'side_factor': 0.5}, 'H and side_factor'),
    ({'epochs': 1, 'side_factor': 2}, 'row 2: side_factor is 2'),
    ({'epochs': 1, 'side_factor': 1e-3}, 'leaves nothing of'),
    ({'epochs': 1, 'batch': 'equal'}, "row 2: batch is 'equal'"),
    ({'epochs': 1, 'batch': 0}, 'row 2: batch is 0'),
    ({'epochs': 1, 'batch': 'equal_cost'}, 'cost of a clip is not known'),
    ({'epochs': 1, 'batch': 9}, r'row 2 .*do not divide|9 clips does not'),
    ({'epochs': 1, 'random': []}, r'row 2: random is \[\]'),
    (
      {'epochs': 1, 'random': [{}, {'weight': 0}]},
      'row 2, random 2: weight is 0; it must be a number above 0',
    ),
    ({'epochs': 1, 'cycle': [{'weight': 1}]}, 'cycle 1: there is no field'),
    ({'epochs': 1, 'cycle': [3]}, 'cycle 1: it is 3; a row is a dict'),
    ({'epochs': 1, 'cycle': [{}], 'random': [{}]}, 'cycle and random'),
    ({'epochs': 1, 'lr': -1}, 'row 2: lr is -1; it must be'),
    ({'epochs': 1, 'lr': 1e308}, 'row 2: lr is 1e.308; it must be'),
    ({'epochs': 1, 'lr_scale': 1e308}, 'row 2: lr_scale is 1e.308; it must'),
    ({'epochs': 1, 'lr': [[0, 1], [0.5, 1]]}, 'row 2: lr is'),
    ({'epochs': 1, 'lr': {'base_lr': 1}}, 'row 2: lr is'),
    (
      {'epochs': 1, 'lr': {'schedule': 'cosines'}},
      r'`table row 2, lr: schedule` is',
    ),
    ({'epochs': 1, 'lr': {'rates': [1], 'gamma': 2}}, "no field 'gamma'"),
    ({'epochs': 1, 'lr_scale': 'cubic'}, "row 2: lr_scale is 'cubic'"),
    ({'epochs': 1, 'stride_frames': [3, 2]}, 'row 2: stride_frames is'),
    ({'epochs': 1, 'jitter_px': [10, 20]}, 'row 2: jitter_px is'),
    (
      {'epochs': 1, 'augment': {'blur': 1}},
      "augment: there is no field 'blur'",
    ),
    (
      {'epochs': 1, 'augment': {'hue': 0.7}},
      'augment: hue is 0.7.*at most 0.5',
    ),
    ({'epochs': 1, 'group_clips': -1}, 'row 2: group_clips is -1'),
    ({'epochs': 1, 'T': True}, 'row 2: T is True'),
    ('row', "row 2: it is 'row'; a row is a dict"),
  ],
)
def test_a_bad_row_is_named_with_its_field(row, message):
  with pytest.raises(ConfigError, match=message):
    make({'epochs': 1}, row, num_devices=2)


def test_sizes_that_are_no_multiples_are_named():
  with pytest.raises(ConfigError, match='row 1: H is 40; .* multiple of 16'):
    make({'epochs': 1, 'H': 40, 'W': 48}, side_multiple=16)
  with pytest.raises(ConfigError, match='`width` is 72; .*`side_multiple=16`'):
    make({'epochs': 1}, width=72, side_multiple=16)


@pytest.mark.parametrize('table', [(), 'rows', None, {'share': 1}])
def test_what_is_no_table_is_refused(table):
  with pytest.raises(ConfigError, match='`table` is '):
    make_schedule(**{**NUMBERS, 'table': table})


def test_groups_that_a_drawn_batch_has_not_are_refused():
  row = {'epochs': 1, 'random': [{'batch': 12}, {'batch': 16}]}
  with pytest.raises(ConfigError, match='row 1 .*12 clips does not divide'):
    make(row, group_clips=2)
  by_step = make(row, group_clips=2, group_by='step')
  assert by_step.phases[0].bn_groups == (6, 8)
