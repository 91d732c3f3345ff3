"""Wall time, from schedules and seconds: cases that were worked out by hand."""

import dataclasses
import pathlib

import pytest

from mgjax.grids import Grid, GridSchedule, Phase
from mgjax.planning import wall_time, wall_time_text
from mgjax.planning.measured import Network, Seconds, Where
from mgjax.planning.wall_time import Costs, Work

SMALL, FULL = Grid(4, 32, 32, 16), Grid(8, 64, 64, 4)
A, B = ('train', SMALL), ('train', FULL)
STATS, EVAL = ('stats', FULL), ('eval', FULL)
WHERE = Where('a', '0.12.0', 'cpu', 1)


def phase(cycle, start, end, **options):
  return Phase(
    cycle=tuple(cycle),
    start_step=start,
    end_step=end,
    end_epoch=end,
    lr_stage=0,
    lr_scale=1.0,
    stride_frames=(1, 1),
    jitter_px=((64, 64),) * len(cycle),
    bn_groups=(1,) * len(cycle),
    **options,
  )


def schedule(*phases):
  return GridSchedule(phases, num_train=4, lr_at_epoch=lambda _: 0.0)


# Ten steps that take turns, then six of the full grid.
TEN_AND_SIX = schedule(phase([SMALL, FULL], 0, 10), phase([FULL], 10, 16))


def work(**changes):
  values = {
    'schedule': TEN_AND_SIX,
    'programs': [A, B, STATS, EVAL],
    'eval_steps': {10, 16},
    'eval_grid': FULL,
    'statistics_batches': 2,
    'evaluation_batches': 3,
    'checkpoint_every_steps': 0,
    'checkpoint_every_s': 1e9,
  }
  return Work(**(values | changes))


def costs(**changes):
  values = {
    'run_s': {A: 1.0, B: 2.0, STATS: 0.5, EVAL: 0.25},
    'compile_s': {A: 5.0, B: 7.0, STATS: 30.0, EVAL: 1.0},
    'cold_s': {A: 5.0, B: 7.0, STATS: 30.0, EVAL: 1.0},
    'checkpoint_s': 0.125,
    'inferred': frozenset(),
    'inferred_compile': frozenset(),
    'on_disk': frozenset(),
  }
  return Costs(**(values | changes))


def test_on_a_cpu_compilation_and_steps_add_up():
  assert wall_time.breakdown(work(), costs(), overlaps=False) == {
    'steps_s': 5 * 1.0 + 11 * 2.0,
    'compilation_s': 43.0,
    'statistics_s': 2 * 2 * 0.5,
    'evaluation_s': 2 * 3 * 0.25,
    'checkpoints_s': 2 * 0.125,
    'total_s': 27.0 + 43.0 + 2.0 + 1.5 + 0.25,
  }


def test_beside_steps_only_what_is_waited_for_counts():
  # A is there at 5, and its first step ends at 6; B is there at 12: 6 more. The
  # first ten steps (15 s) end at 26; the statistics' program is there at 42: 16
  # more. Then 2 batches and a checkpoint take 1.125; the evaluation's is there
  # at 43, before that.
  found = wall_time.breakdown(work(), costs(), overlaps=True)
  assert found['compilation_s'] == 5 + 6 + 16
  assert found['total_s'] == 27.0 + 27.0 + 2.0 + 1.5 + 0.25


def test_with_an_empty_cache_all_is_compiled():
  some = costs(compile_s=dict.fromkeys([A, B, STATS, EVAL], 0.5))
  for overlaps in (False, True):
    warm, cold = (
      wall_time.breakdown(work(), some, overlaps=overlaps, cold=cold)
      for cold in (False, True)
    )
    want = wall_time.breakdown(work(), costs(), overlaps=overlaps)
    assert cold == want
    assert warm['compilation_s'] == (0.5 if overlaps else 2.0)


@pytest.mark.parametrize(
  'changes,saves',
  [
    ({}, 2),
    ({'eval_steps': {16}}, 1),
    # Steps 3, 6, 9, 12, 15, and the evaluations after 10 and 16.
    ({'checkpoint_every_steps': 3}, 7),
    # Those after 10 and 15 and 16: 10 is an evaluation's, too.
    ({'checkpoint_every_steps': 5}, 4),
    # 15 s until the first evaluation and 12 s until the second.
    ({'checkpoint_every_s': 4.0}, 3 + 1 + 3 + 1),
    ({'checkpoint_every_s': 12.5}, 1 + 1 + 0 + 1),
  ],
)
def test_checkpoints_are_those_of_evaluations_and_of_the_cadence(
  changes, saves
):
  for overlaps in (False, True):
    found = wall_time.breakdown(work(**changes), costs(), overlaps=overlaps)
    assert found['checkpoints_s'] == saves * 0.125


def test_an_evaluation_of_unknown_size_and_no_statistics_take_no_time():
  some = work(programs=[A, B, EVAL], statistics_batches=0, evaluation_batches=0)
  found = wall_time.breakdown(some, costs(), overlaps=False)
  assert found['statistics_s'] == found['evaluation_s'] == 0
  assert found['compilation_s'] == 13


def test_a_short_phase_costs_the_steps_it_has():
  one = schedule(phase([SMALL, FULL], 0, 1))
  some = work(schedule=one, programs=[A, STATS, EVAL], eval_steps={1})
  found = wall_time.breakdown(
    dataclasses.replace(some, statistics_batches=0),
    costs(run_s={A: 1.0, EVAL: 0.25}),
    overlaps=False,
  )
  assert found['steps_s'] == 1.0


def test_random_grids_cost_the_steps_that_they_draw():
  drawn = schedule(phase([SMALL, FULL], 0, 100, weights=(0.25, 0.75), seed=3))
  few = sum(drawn(step) == SMALL for step in range(100))
  found = wall_time.breakdown(
    work(schedule=drawn, eval_steps={40, 100}), costs(), overlaps=False
  )
  assert found['steps_s'] == few * 1.0 + (100 - few) * 2.0


# What is not measured.


def measured(programs, **options):
  return Network(WHERE, programs, **options)


def gmacs(grids):
  """1 for a frame of 32 x 32."""
  return {g: g.T * g.H * g.W / 1024 for g in grids}


def complete(network, wanted, **options):
  return wall_time.costs(network, wanted, gmacs, built_as='now', **options)


def test_what_was_measured_is_taken_as_it_is():
  network = measured(
    {A: Seconds(1.0, False, 5.0), B: Seconds(2.0, False, 7.0, 0.5, 'now')},
    checkpoint_s=0.125,
  )
  found = complete(network, [A, B])
  assert found.run_s == {A: 1.0, B: 2.0}
  assert found.compile_s == {A: 5.0, B: 0.5}
  assert found.cold_s == {A: 5.0, B: 7.0}
  assert found.on_disk == {B}
  assert not found.inferred and not found.inferred_compile
  assert found.checkpoint_s == 0.125 and found.unknown == ()


def test_grids_that_were_not_measured_are_inferred_from_multiply_adds():
  # 3 x 16 x 4 = 192 in 2 s: 96 a second. A full step has 3 x 4 x 32 = 384, its
  # statistics a third; at the rate of evaluation, which was measured (128 in
  # 1 s), another evaluation of twice the batch has 256.
  twice = ('eval', FULL._replace(batch=8))
  network = measured({A: Seconds(2.0, False, 6.0), EVAL: Seconds(1.0)})
  found = complete(network, [A, B, STATS, EVAL, twice])
  assert found.run_s[B] == 4.0 and found.run_s[twice] == 2.0
  # The median of 96 and 128.
  assert found.run_s[STATS] == pytest.approx(128 / 112)
  assert found.inferred == {B, STATS, twice}
  assert found.compile_s == dict.fromkeys([A, B, STATS, EVAL, twice], 6.0)
  assert found.inferred_compile == {B, STATS, EVAL, twice}
  assert found.unknown == ('checkpoints',)


def test_a_program_on_disk_that_was_never_read_takes_the_share_of_others():
  network = measured(
    {
      A: Seconds(1.0, False, 10.0, 2.0, 'now'),
      B: Seconds(2.0, False, 20.0, None, 'now'),
      STATS: Seconds(1.0, False, 30.0, 3.0, 'other settings'),
    }
  )
  found = complete(network, [A, B, STATS])
  # The median of 0.2 and 0.1.
  assert found.compile_s == {A: 2.0, B: pytest.approx(3.0), STATS: 30.0}
  assert found.inferred_compile == {B}
  never = measured({B: Seconds(2.0, False, 20.0, None, 'now')})
  assert complete(never, [B]).compile_s == {B: 20.0}
  others = complete(never, [B], other_load_share=0.25)
  assert others.compile_s == {B: 5.0}


def test_compilation_that_was_never_seen_is_called_unknown():
  network = measured({A: Seconds(1.0, False, None, 2.0, 'now')})
  found = complete(network, [A, B])
  assert found.unknown == ('compilation', 'checkpoints')
  assert found.compile_s[A] == 2.0


def test_nothing_is_made_of_nothing():
  assert complete(measured({A: Seconds(compile_s=5.0)}), [A]) is None


def test_the_users_seconds_of_steps_win():
  network = measured({A: Seconds(1.0), B: Seconds(2.0)})
  found = complete(network, [A, B], step_s={SMALL: 8.0})
  assert found.run_s == {A: 8.0, B: 2.0}


# What is said.


def by_mode(**totals):
  return {
    mode: {'total_s': total, 'compilation_s': compiling}
    for mode, (total, compiling) in totals.items()
  }


def test_a_set_of_83_videos_is_told_to_use_fewer_grids():
  modes = by_mode(
    none=(550.0, 60.0),
    short=(700.0, 200.0),
    long=(1150.0, 500.0),
    both=(1205.0, 662.0),
  )
  assert wall_time.advice('both', modes) == (
    'grid=none: 9:10, grid=both: 20:05 (11:02 of it compiling): '
    'use none or short'
  )
  # 'long' is not a tenth faster.
  assert 'long' not in wall_time.advice('both', modes)
  assert wall_time.advice('none', modes) == ''
  assert wall_time.advice('ladder', modes) == ''


def test_83_videos_compile_longer_than_they_train():
  # 17 short cycles of three small grids in the run, 66 full steps in the
  # baseline, 8 and 3 programs of 80 s each.
  coarse = [Grid(4, 32, 32, 4 * n) for n in range(3, 0, -1)]
  both = schedule(phase(coarse, 0, 51), phase([FULL], 51, 60))
  grids = [('train', grid) for grid in both.grids]
  run_s = dict.fromkeys([*grids, STATS, EVAL], 8.0)
  some = costs(
    run_s=run_s,
    compile_s=dict.fromkeys(run_s, 80.0),
    cold_s=dict.fromkeys(run_s, 80.0),
  )
  none = wall_time.baseline(FULL, steps=66, epochs=4, num_train=83)
  works = {
    name: work(
      schedule=s,
      programs=programs,
      eval_steps={s.total_steps},
      statistics_batches=1,
      evaluation_batches=1,
    )
    for name, s, programs in (
      ('run', both, [*grids, STATS, EVAL]),
      ('baseline', none, [B, STATS, EVAL]),
      ('both', both, [*grids, STATS, EVAL]),
      ('none', none, [B, STATS, EVAL]),
    )
  }
  found = wall_time.as_json(
    works, some, mode='both', measured=measured({}, date='2026-01-01')
  )
  # 60 x 8 + 6 x 80 + 16, and 66 x 8 + 3 x 80 + 16, and a checkpoint.
  assert found['advice'] == (
    'grid=none: 13:04, grid=both: 16:16 (8:00 of it compiling): use none'
  )
  assert found['baseline']['total_s'] == 784.125
  assert found['unknown'] == []
  (line,) = wall_time_text.line(found).splitlines()
  assert line.startswith(found['advice'])
  lines = wall_time_text.block({'wall_time': found})
  rows = [line.split() for line in lines if line.startswith(('base', 'this'))]
  assert rows == [
    ['baseline', '8:48', '4:00', '0:08', '0:08', '0:00', '13:04'],
    ['this', 'run', '8:00', '8:00', '0:08', '0:08', '0:00', '16:16'],
  ]
  assert lines[-1] == found['advice']


def test_the_plan_says_what_is_measured_and_what_inferred():
  network = measured(
    {A: Seconds(2.0, False, 6.0, 1.0, 'now')}, date='2026-05-06'
  )
  works = {
    name: work(programs=[A, B, STATS, EVAL], evaluation_batches=0)
    for name in ('run', 'baseline')
  }
  found = wall_time.as_json(
    works,
    complete(network, [A, B, STATS, EVAL]),
    mode='table',
    measured=network,
  )
  by_name = {(p['kind'], p['batch']): p for p in found['programs']}
  assert by_name['train', 16]['run_is_measured']
  assert not by_name['train', 4]['run_is_measured']
  text = '\n'.join(wall_time_text.block({'wall_time': found}))
  assert 'without waits for data' in text and '2026-05-06' in text
  assert (
    'runs of 1 of 4 programs; inferred: train 8x64x64 b4, stats 8x64x64 b4'
  ) in text
  assert 'compiled already: 1' in text
  assert 'not known, and not in it: checkpoints, evaluation' in text
  assert found['advice'] == '' and found['modes'] == {}
  assert 'the baseline' in wall_time_text.line(found)


def test_the_page_on_plans_shows_what_they_say():
  def of(*seconds):
    parts = dict(zip(wall_time.PARTS, seconds, strict=True))
    found = {f'{name}_s': float(s) for name, s in parts.items()}
    return {**found, 'total_s': float(sum(seconds)), 'cold_compilation_s': 0.0}

  both, none = of(514, 662, 5, 22, 2), of(440, 81, 5, 22, 2)
  modes = {'both': both, 'none': none, 'short': of(440, 200, 5, 22, 2)}
  program = {
    'run_is_measured': True,
    'compile_is_measured': True,
    'on_disk': False,
  }
  found = {
    'device': 'cpu',
    'num_devices': 1,
    'measured': '2026-11-30T12:00:00+00:00',
    'run': both,
    'baseline': none,
    'advice': wall_time.advice('both', modes),
    'unknown': [],
    'programs': 10 * [program],
  }
  lines = wall_time_text.block({'wall_time': found})
  page = pathlib.Path(__file__).parents[2] / 'docs/planning.md'
  assert '\n'.join(['```text', *lines[1:], '```']) in page.read_text()


def test_an_unknown_network_is_told_what_to_run():
  assert wall_time_text.block({}) == []
  unknown = {'wall_time': None, 'memory': {'num_devices': 3}}
  (line,) = wall_time_text.block(unknown)
  assert 'on 3 device(s)' in line and 'plan --compile' in line
  # What the user knows is enough.
  assert wall_time_text.block({**unknown, 'time': {}}) == []
