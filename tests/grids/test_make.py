"""make.py: schedules against PySlowFast's own, by hand, and what is refused.

tests/golden/schedule/schedule_*.json were made by running PySlowFast 287ec00
epoch by epoch. Long-only schedules are those of the reference with the index
that crashes there ([2], of a short cycle that is off) read as [-1].
"""

import itertools
import json
import math
import pathlib
import subprocess
import sys

import pytest

from mgjax.errors import ConfigError
from mgjax.grids import MODES, Grid, make_schedule, modes

GOLDENS = sorted(
  (pathlib.Path(__file__).parents[1] / 'golden' / 'schedule').glob('schedule_*')
)


def read(path):
  return json.loads(path.read_text())


# SlowFast 8x8 on Kinetics-400.
KINETICS = {
  'frames': 32,
  'height': 224,
  'width': 224,
  'batch': 64,
  'epochs': 239,
  'num_train': 240_000,
  'lr_steps': (94, 154, 196),
  'warmup_epochs': 34.0,
  'warmup_lr': 0.01,
  'stride_frames': 2,
  'jitter_px': (256, 320),
  'group_clips': 8,
  'table': ({'share': 0.75, 'side_factor': 0.5}, {'share': 0.25}),
}


def make(mode, **changes):
  """The schedule of KINETICS with some other numbers."""
  return make_schedule(**{**KINETICS, 'mode': mode, **changes})


def full(**changes):
  numbers = {**KINETICS, **changes}
  return Grid(*(numbers[n] for n in ('frames', 'height', 'width', 'batch')))


def numbers_of(golden):
  """What a reference config says."""
  given = golden['input']
  return {
    'mode': {
      (False, False): 'none',
      (False, True): 'short',
      (True, False): 'long',
      (True, True): 'both',
    }[given['long_cycle'], given['short_cycle']],
    'num_train': given['n_train_videos'],
    'long_factors': given['long_cycle_factors'],
    'short_factors': given['short_cycle_factors'],
    'epoch_factor': given['epoch_factor'],
    'frames': given['num_frames'],
    'stride_frames': given['sampling_rate'],
    'height': given['train_crop_size'],
    'width': given['train_crop_size'],
    'jitter_px': given['train_jitter_scales'],
    'batch': given['batch_size'],
    'learning_rate': given['base_lr'],
    'lr_gamma': given['gamma'],
    'lr_steps': given['steps'][1:],
    'epochs': given['max_epoch'],
    'warmup_epochs': given['warmup_epochs'],
    'warmup_lr': given['warmup_start_lr'],
    'group_clips': given['bn_base_size'],
  }


def golden_groups(stage, num_devices):
  """Batch-norm groups over all devices."""
  if stage['bn_norm_type'] == 'sub_batchnorm':
    return stage['bn_num_splits'] * num_devices
  return num_devices // (stage['bn_num_sync_devices'] or 1)


def settings(phase):
  """Everything that the loader and the model see of a phase."""
  return (
    phase.cycle,
    phase.stride_frames,
    phase.jitter_px,
    phase.bn_groups[-1],
  )


@pytest.fixture(params=GOLDENS, ids=lambda path: path.stem[9:])
def golden(request):
  return read(request.param)


def test_the_golden_schedules_are_there():
  assert len(GOLDENS) == 11


def test_phases_equal_the_reference(golden):
  given, want = golden['input'], golden['output']
  s = make_schedule(**numbers_of(golden), num_devices=8)
  # The reference notices a new phase only by a new shape, so neighbours of
  # one shape (the last long-cycle phase and fine-tuning) are one to it.
  got = [
    (list(phases)[-1].end_epoch, key)
    for key, phases in itertools.groupby(s.phases, key=settings)
  ]
  assert got == [
    (
      stage['end_epoch'],
      (
        tuple(
          Grid(x['num_frames'], x['crop'], x['crop'], x['global_batch'])
          for x in stage['short_cycle']['shapes']
        ),
        tuple(stage['sampling_rate_range']),
        tuple(
          (x['jitter_min'], x['jitter_max'])
          for x in stage['short_cycle']['shapes']
        ),
        golden_groups(stage, given['num_gpus']),
      ),
    )
    for stage in want['stages']
  ]


@pytest.mark.parametrize(
  'path',
  [path for path in GOLDENS if read(path)['output']['schedule']],
  ids=lambda path: path.stem[9:],
)
def test_the_long_cycle_equals_the_reference(path):
  golden = read(path)
  s = make_schedule(**numbers_of(golden))
  entries = golden['output']['schedule']
  starts = [0] + [entry['cum_epoch'] for entry in entries]
  assert [
    (p.lr_stage, p.lr_scale, p.base.T, p.base.H, p.end_epoch) for p in s.phases
  ] == [
    (
      entry['step_index'],
      entry['shape']['batch_factor'],
      entry['shape']['num_frames'],
      entry['shape']['crop'],
      entry['cum_epoch'],
    )
    for start, entry in zip(starts, entries, strict=False)
    if entry['cum_epoch'] > start
  ]


def test_the_learning_rate_equals_the_reference(golden):
  s = make_schedule(**numbers_of(golden))
  want = golden['output']['lr_at_epoch']
  got = [s.lr_at_epoch(k * want['grid']) for k in range(len(want['lr']))]
  assert got == pytest.approx(want['lr'], rel=1e-12, abs=0)


def test_every_clip_of_every_epoch_is_used(golden):
  num_train = golden['input']['n_train_videos']
  s = make_schedule(**numbers_of(golden))
  last = s(s.total_steps - 1)
  overshoot = s.total_clips - golden['output']['max_epoch'] * num_train
  assert 0 <= overshoot < last.batch


@pytest.mark.parametrize('num_train', [1, 100, 5000])
@pytest.mark.parametrize('mode', MODES)
def test_tiny_data_sets_have_schedules_too(mode, num_train):
  s = make(mode, num_train=num_train)
  assert s.total_clips >= s.total_epochs * num_train


@pytest.mark.parametrize('mode', ['short', 'long', 'both', 'progressive'])
def test_every_grid_costs_what_the_full_grid_costs(mode):
  for grid in make(mode).grids:
    assert math.prod(grid) == pytest.approx(math.prod(full()), rel=0.01)


@pytest.mark.parametrize('mode', MODES)
def test_the_last_phase_has_the_full_grid(mode):
  assert make(mode).phases[-1].base == full()


# Rectangular crops.


RECTANGLE = {'height': 128, 'width': 224, 'jitter_px': (128, 160)}


def test_both_sides_of_a_rectangle_are_scaled_alike():
  s = make('both', **RECTANGLE)
  assert s.phases[0].cycle == (
    Grid(8, 64, 112, 1024),
    Grid(8, 91, 158, 512),
    Grid(8, 91, 158, 512),
  )


def test_the_jitter_of_a_rectangle_follows_its_short_side():
  s = make('both', **RECTANGLE)
  assert s.phases[0].jitter_px == ((64, 160), (91, 160), (91, 160))


def test_a_rectangle_gets_the_epochs_of_a_square():
  square = make('both')
  rectangle = make('both', **RECTANGLE)
  assert [p.end_epoch for p in rectangle.phases] == [
    p.end_epoch for p in square.phases
  ]


# Batch norm.


def test_groups_grow_inside_a_short_cycle_by_default():
  first = make('both').phases[0]
  assert first.bn_groups == (64, 64, 64)


def test_groups_keep_their_size_where_they_follow_the_step():
  phases = make('both', group_by='step').phases
  assert phases[0].bn_groups == (128, 64, 64)
  assert phases[-1].bn_groups == (32, 16, 8)


def test_no_group_size_means_one_group():
  assert make('none', group_clips=0).phases[0].bn_groups == (1,)


# Schedules other than steps.


def smooth(schedule, mode='both', **changes):
  """A schedule without warm-up."""
  return make(mode, lr_schedule=schedule, **{'warmup_epochs': 0.0, **changes})


def test_smooth_schedules_get_equal_long_cycles_and_a_fine_tuning_phase():
  s = smooth('cosine')
  assert len(s.phases) == 3 * 4 + 1
  ends = [0.0, *(s.phases[i].end_epoch for i in (3, 7, 11))]
  lengths = [b - a for a, b in itertools.pairwise(ends)]
  assert lengths == pytest.approx([lengths[0]] * 3)
  assert s.total_epochs == 239 * 1.5


def test_all_phases_of_a_smooth_long_cycle_have_as_many_steps():
  s = smooth('constant')
  starts = [0, *(p.end_step for p in s.phases)]
  steps = [b - a for a, b in itertools.pairwise(starts)][:-1]
  # The short sizes that the average counts are not rounded to whole pixels.
  assert steps == pytest.approx([steps[0]] * 12, abs=5)


def test_a_cosine_is_a_function_of_progress_times_the_linear_scale():
  s = smooth('cosine', end_lr=0.01)
  total = s.total_epochs
  for p, start in zip(
    s.phases, [0, *(p.end_epoch for p in s.phases)], strict=False
  ):
    wave = 0.01 + 0.5 * 0.09 * (1 + math.cos(math.pi * start / total))
    assert s.lr_at_epoch(start) == pytest.approx(wave * p.lr_scale, rel=1e-12)
  assert s.lr_at_epoch(total) == pytest.approx(0.01)


def test_the_baseline_cosine_is_the_reference_formula():
  s = smooth('cosine', 'none')
  want = [0.05 * (1 + math.cos(math.pi * e / 239)) for e in range(240)]
  assert [s.lr_at_epoch(e) for e in range(240)] == pytest.approx(want)


@pytest.mark.parametrize('schedule', ['steps', 'cosine'])
def test_without_fine_tuning_the_last_interval_is_a_long_cycle(schedule):
  with_it = smooth(schedule)
  s = smooth(schedule, fine_tune=False)
  assert len(with_it.phases) == 3 * 4 + 1
  assert len(s.phases) == 4 * 4
  assert s.total_epochs == pytest.approx(with_it.total_epochs, abs=1)
  assert [p.cycle for p in s.phases[12:]] == [p.cycle for p in s.phases[:4]]
  assert [p.lr_stage for p in s.phases[12:]] == [3] * 4
  if schedule == 'steps':
    want = [0.1 * 0.1**3 * p.lr_scale for p in s.phases[12:]]
    starts = [p.end_epoch for p in s.phases[11:15]]
    assert [s.lr_at_epoch(e) for e in starts] == pytest.approx(want)


@pytest.mark.parametrize('mode', ['long', 'both', 'progressive'])
def test_the_rate_need_not_follow_the_batch(mode):
  s = smooth('constant', mode)
  assert {p.lr_scale for p in s.phases} != {1}
  s = smooth('constant', mode, scale_lr=False, num_train=9000)
  assert {p.lr_scale for p in s.phases} == {1}
  assert {s.lr(step) for step in range(s.total_steps)} == {0.1}


@pytest.mark.parametrize('schedule', ['steps', 'cosine'])
@pytest.mark.parametrize('mode', ['long', 'both', 'progressive'])
def test_the_rate_follows_the_batch_by_a_rule(mode, schedule):
  linear, root, none = (
    smooth(schedule, mode, batch_rule=rule)
    for rule in ('linear', 'sqrt', 'none')
  )
  assert smooth(schedule, mode).lr_at_epoch(7) == linear.lr_at_epoch(7)
  starts = [0, *(p.end_epoch for p in linear.phases)]
  for phase, start in zip(linear.phases, starts, strict=False):
    epoch = start + 0.1
    ratio = phase.base.batch / 64
    rate = none.lr_at_epoch(epoch)
    assert linear.lr_at_epoch(epoch) == pytest.approx(rate * ratio, rel=1e-12)
    assert root.lr_at_epoch(epoch) == pytest.approx(
      rate * math.sqrt(ratio), rel=1e-12
    )
  assert {p.lr_scale for p in none.phases} == {1}
  # Nothing else does.
  assert [p.cycle for p in root.phases] == [p.cycle for p in linear.phases]


@pytest.mark.parametrize('mode', ['short', 'ladder'])
def test_a_rule_says_nothing_where_rates_do_not_follow_the_batch(mode):
  assert (
    len(
      {
        make(mode, batch_rule=rule).lr_at_epoch(5)
        for rule in ('linear', 'sqrt', 'none')
      }
    )
    == 1
  )


def test_a_row_may_have_a_rule_of_its_own():
  rows = [
    {'epochs': 1, 'side_factor': 0.5, 'lr_scale': rule}
    for rule in ('linear', 'sqrt', 'none')
  ]
  rows.append({'epochs': 1, 'side_factor': 0.5})
  s = smooth('constant', 'table', table=rows, batch_rule='sqrt')
  assert [p.lr_scale for p in s.phases] == [4, 2, 1, 2]


def test_a_run_on_a_smaller_batch_keeps_the_rule_of_its_grids():
  s = smooth('constant', batch=64, base_batch=256, batch_rule='sqrt')
  assert s.lr_at_epoch(0.1) == pytest.approx(
    0.1 * 64 / 256 * math.sqrt(s.phases[0].base.batch / 64)
  )


def test_warm_up_ends_at_the_schedule_own_rate():
  warm = smooth('cosine', warmup_epochs=10.0, warmup_lr=0.5).lr_at_epoch
  plain = smooth('cosine').lr_at_epoch
  assert warm(0) == 0.5
  assert warm(5) == pytest.approx((0.5 + plain(10)) / 2)
  assert warm(10.5) == plain(10.5)


# The other modes.


def test_a_ladder_restarts_the_learning_rate_at_every_rung():
  rungs = (
    (0.25, 50, 0.01, 'cosine'),
    (0.5, 25, 0.005, 'steps'),
    (1, 5, 0.02, 'constant'),
  )
  s = make('ladder', warmup_epochs=0.0, lr_steps=(10, 20), ladder=rungs)
  assert [p.base for p in s.phases] == [
    Grid(8, 224, 224, 64),
    Grid(16, 224, 224, 64),
    Grid(32, 224, 224, 64),
  ]
  assert [p.end_epoch for p in s.phases] == [50, 75, 80]
  assert [
    s.lr_at_epoch(e) for e in (0, 25, 50, 60, 70, 75, 79)
  ] == pytest.approx([0.01, 0.005, 0.005, 0.0005, 0.00005, 0.02, 0.02])


def test_a_rung_with_fewer_frames_covers_the_same_time():
  s = make('ladder')
  assert [p.stride_frames for p in s.phases] == [(4, 4), (2, 2)]


def test_a_rung_of_segments_has_no_stride_to_change():
  s = make('ladder', sampling='segments')
  assert [p.stride_frames for p in s.phases] == [(2, 2), (2, 2)]


def test_progressive_grids_share_the_epochs_and_scale_the_rate():
  rows = ((0.5, 0.5, 0.5), (0.3, 1, 0.5), (0.2, 1, 1))
  s = smooth('constant', 'progressive', progressive=rows, epoch_factor=1.0)
  assert [p.base for p in s.phases] == [
    Grid(16, 112, 112, 512),
    Grid(32, 112, 112, 256),
    Grid(32, 224, 224, 64),
  ]
  assert [p.end_epoch for p in s.phases] == pytest.approx([119.5, 191.2, 239])
  assert s.lr_at_epoch(0) == pytest.approx(0.8)
  assert s.lr_at_epoch(239) == pytest.approx(0.1)


def test_the_first_step_of_a_phase_has_its_own_rate():
  # Phase 2 ends at (0.1 + 0.2) * 30 = 9.000000000000002 epochs, and the 28,800
  # clips until 9 are whole steps: phase 3 begins before that end.
  s = smooth(
    'constant',
    'progressive',
    progressive=((0.1, 0.5, 0.5), (0.2, 0.5, 0.5), (0.7, 1, 1)),
    epochs=20,
    epoch_factor=1.5,
    num_train=3200,
    batch=8,
  )
  start = s.phases[1].end_step
  assert s.phases[1].end_epoch > s.epoch(start) == 9
  assert s.lr(start - 1) == pytest.approx(8 * s.lr(start))
  assert s.lr(start) == s.lr(s.total_steps - 1)


def test_lists_are_as_good_as_tuples():
  lists = [list(row) for row in modes.LONG_FACTORS]
  assert make('both', long_factors=lists, lr_steps=[94, 154, 196]) == make(
    'both'
  )


def test_the_number_of_devices_changes_no_schedule():
  assert make('both', num_devices=8) == make('both')


def test_phases_of_zero_epochs_do_not_appear():
  # Rounding leaves the last phase of ssv2's second long cycle none: 30 to 30.
  path = next(path for path in GOLDENS if 'ssv2' in path.name)
  numbers = {**numbers_of(read(path)), 'mode': 'both', 'num_train': 168_913}
  ends = [p.end_epoch for p in make_schedule(**numbers).phases]
  assert ends == [11, 16, 21, 24, 27, 28, 30, 33]


# What a library's user needs.


def test_a_schedule_needs_no_more_than_the_size_of_the_training():
  s = make_schedule(
    frames=16,
    height=112,
    width=112,
    batch=32,
    epochs=100,
    num_train=9537,
    lr_steps=(40, 80),
  )
  assert s.grids[0] == Grid(4, 56, 56, 512)
  assert s.phases[-1].base == Grid(16, 112, 112, 32)
  assert s.total_epochs == 150
  # Nothing is resized but to the crop; all clips are one group.
  assert s.phases[-1].jitter_px[-1] == (112, 112)
  assert {g for phase in s.phases for g in phase.bn_groups} == {1}


def test_schedules_are_made_without_jax_and_without_settings():
  code = (
    'import sys; from mgjax import grids; grids.make_schedule(frames=8, '
    'height=64, width=64, batch=8, epochs=9, num_train=90, lr_steps=(6,)); '
    "assert not {'jax', 'ml_collections', 'absl', 'mgjax.cli', 'mgjax.config'}"
    '& set(sys.modules)'
  )
  subprocess.run([sys.executable, '-c', code], check=True)


@pytest.mark.parametrize(
  'changes,message',
  [
    ({'mode': 'bath'}, "^`mode` is 'bath'; use one of none, short, long"),
    ({'frames': 0}, '^`frames` is 0; it must be at least 1'),
    ({'width': 0}, '^`width` is 0'),
    ({'num_train': 0}, '^`num_train` is 0'),
    (
      {'batch_rule': 'root'},
      "^`batch_rule` is 'root'; use one of linear, sqrt",
    ),
    ({'num_devices': 0}, '^`num_devices` is 0'),
    ({'micro_batches': 0}, '^`micro_batches` is 0'),
    ({'lr_steps': ()}, "^`lr_steps` is empty.*use `lr_schedule='constant'`"),
    ({'lr_steps': ('94',)}, '^`lr_steps` is'),
    ({'learning_rate': -0.1}, '^`learning_rate` is -0.1; .* 0 or more'),
    ({'learning_rate': math.nan}, '^`learning_rate` is nan'),
    ({'lr_gamma': 0.0}, '^`lr_gamma` is 0.0; it must be positive'),
    ({'jitter_px': (100, 120)}, '^`jitter_px` is .* the crop of 224'),
    ({'group_clips': 48}, 'of `group_clips=48`; change `batch`'),
    (
      {'num_devices': 256},
      r'^phase 3 of 13 \(2B x 16 x 224²\): a batch of 128',
    ),
  ],
)
def test_what_cannot_be_is_refused_by_the_arguments_name(changes, message):
  with pytest.raises(ConfigError, match=message):
    make_schedule(**{**KINETICS, **changes})
