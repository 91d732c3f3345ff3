"""cycles.py: schedules against PySlowFast's own, by hand, and their errors.

tests/golden/schedule/schedule_*.json were made by running PySlowFast 287ec00
epoch by epoch. Long-only schedules are those of the reference with the index
that crashes there ([2], of a short cycle that is off) read as [-1].
"""

import itertools
import json
import math
import pathlib

import pytest

from mgjax.cli import ConfigError
from mgjax.config import fields
from mgjax.grids import cycles
from mgjax.grids.schedule import Grid

GOLDENS = sorted(
  (pathlib.Path(__file__).parents[1] / 'golden' / 'schedule').glob('schedule_*')
)


def read(path):
  return json.loads(path.read_text())


def config_of(golden):
  """The mgjax config that says what a reference config says."""
  given = golden['input']
  config = fields.base()
  config.grid.mode = {
    (False, False): 'none',
    (False, True): 'short',
    (True, False): 'long',
    (True, True): 'both',
  }[given['long_cycle'], given['short_cycle']]
  config.grid.long_factors = tuple(map(tuple, given['long_cycle_factors']))
  config.grid.short_factors = tuple(given['short_cycle_factors'])
  config.grid.epoch_factor = given['epoch_factor']
  config.data.num_frames = given['num_frames']
  config.data.stride_frames = given['sampling_rate']
  config.data.crop_px = given['train_crop_size']
  config.data.jitter_px = tuple(given['train_jitter_scales'])
  config.data.batch_size = given['batch_size']
  config.optim.base_lr = given['base_lr']
  config.optim.gamma = given['gamma']
  config.optim.lr_steps = tuple(given['steps'][1:])
  config.optim.total_epochs = given['max_epoch']
  config.optim.warmup_epochs = given['warmup_epochs']
  config.optim.warmup_lr = given['warmup_start_lr']
  config.norm.group_clips = given['bn_base_size']
  return config


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
  config = config_of(golden)
  given, want = golden['input'], golden['output']
  s = cycles.make_schedule(config, given['n_train_videos'], num_devices=8)
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
  config = config_of(golden)
  s = cycles.make_schedule(config, golden['input']['n_train_videos'])
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
  s = cycles.make_schedule(config_of(golden), golden['input']['n_train_videos'])
  want = golden['output']['lr_at_epoch']
  got = [s.lr_at_epoch(k * want['grid']) for k in range(len(want['lr']))]
  assert got == pytest.approx(want['lr'], rel=1e-12, abs=0)


def test_every_clip_of_every_epoch_is_used(golden):
  num_train = golden['input']['n_train_videos']
  s = cycles.make_schedule(config_of(golden), num_train)
  last = s(s.total_steps - 1)
  overshoot = s.total_clips - golden['output']['max_epoch'] * num_train
  assert 0 <= overshoot < last.batch


@pytest.mark.parametrize('num_train', [1, 100, 5000])
@pytest.mark.parametrize('mode', cycles.MODES)
def test_tiny_data_sets_have_schedules_too(mode, num_train):
  config = fields.base()
  config.grid.mode = mode
  s = cycles.make_schedule(config, num_train)
  assert s.total_clips >= s.total_epochs * num_train


@pytest.mark.parametrize('mode', ['short', 'long', 'both', 'progressive'])
def test_every_grid_costs_what_the_full_grid_costs(mode):
  config = fields.base()
  config.grid.mode = mode
  full = math.prod(cycles.full_grid(config))
  for grid in cycles.make_schedule(config, 240_000).grids:
    assert math.prod(grid) == pytest.approx(full, rel=0.01)


@pytest.mark.parametrize('mode', cycles.MODES)
def test_the_last_phase_has_the_full_grid(mode):
  config = fields.base()
  config.grid.mode = mode
  s = cycles.make_schedule(config, 240_000)
  assert s.phases[-1].base == cycles.full_grid(config)


# Rectangular crops.


def rectangular(mode):
  config = fields.base()
  config.grid.mode = mode
  config.data.crop_px, config.data.crop_width_px = 128, 224
  config.data.jitter_px = (128, 160)
  return config


def test_both_sides_of_a_rectangle_are_scaled_alike():
  s = cycles.make_schedule(rectangular('both'), 240_000)
  assert s.phases[0].cycle == (
    Grid(8, 64, 112, 1024),
    Grid(8, 91, 158, 512),
    Grid(8, 91, 158, 512),
  )


def test_the_jitter_of_a_rectangle_follows_its_short_side():
  s = cycles.make_schedule(rectangular('both'), 240_000)
  assert s.phases[0].jitter_px == ((64, 160), (91, 160), (91, 160))


def test_a_rectangle_gets_the_epochs_of_a_square():
  config = fields.base()
  config.grid.mode = 'both'
  square = cycles.make_schedule(config, 240_000)
  rectangle = cycles.make_schedule(rectangular('both'), 240_000)
  assert [p.end_epoch for p in rectangle.phases] == [
    p.end_epoch for p in square.phases
  ]


# Batch norm.


def test_groups_grow_inside_a_short_cycle_by_default():
  config = fields.base()
  config.grid.mode = 'both'
  first = cycles.make_schedule(config, 240_000).phases[0]
  assert first.bn_groups == (64, 64, 64)


def test_groups_keep_their_size_where_they_follow_the_step():
  config = fields.base()
  config.grid.mode = 'both'
  config.norm.group_by = 'step'
  phases = cycles.make_schedule(config, 240_000).phases
  assert phases[0].bn_groups == (128, 64, 64)
  assert phases[-1].bn_groups == (32, 16, 8)


def test_no_group_size_means_one_group():
  config = fields.base()
  config.norm.group_clips = 0
  assert cycles.make_schedule(config, 100).phases[0].bn_groups == (1,)


# Schedules other than steps.


def smooth(schedule, mode='both'):
  config = fields.base()
  config.grid.mode = mode
  config.optim.schedule = schedule
  config.optim.warmup_epochs = 0.0
  return config


def test_smooth_schedules_get_equal_long_cycles_and_a_fine_tuning_phase():
  s = cycles.make_schedule(smooth('cosine'), 240_000)
  assert len(s.phases) == 3 * 4 + 1
  ends = [0.0, *(s.phases[i].end_epoch for i in (3, 7, 11))]
  lengths = [b - a for a, b in itertools.pairwise(ends)]
  assert lengths == pytest.approx([lengths[0]] * 3)
  assert s.total_epochs == 239 * 1.5


def test_all_phases_of_a_smooth_long_cycle_have_as_many_steps():
  s = cycles.make_schedule(smooth('constant'), 240_000)
  starts = [0, *(p.end_step for p in s.phases)]
  steps = [b - a for a, b in itertools.pairwise(starts)][:-1]
  # The short sizes that the average counts are not rounded to whole pixels.
  assert steps == pytest.approx([steps[0]] * 12, abs=5)


def test_a_cosine_is_a_function_of_progress_times_the_linear_scale():
  config = smooth('cosine')
  config.optim.end_lr = 0.01
  s = cycles.make_schedule(config, 240_000)
  total = s.total_epochs
  for p, start in zip(
    s.phases, [0, *(p.end_epoch for p in s.phases)], strict=False
  ):
    wave = 0.01 + 0.5 * 0.09 * (1 + math.cos(math.pi * start / total))
    assert s.lr_at_epoch(start) == pytest.approx(wave * p.lr_scale, rel=1e-12)
  assert s.lr_at_epoch(total) == pytest.approx(0.01)


def test_the_baseline_cosine_is_the_reference_formula():
  s = cycles.make_schedule(smooth('cosine', 'none'), 240_000)
  want = [0.05 * (1 + math.cos(math.pi * e / 239)) for e in range(240)]
  assert [s.lr_at_epoch(e) for e in range(240)] == pytest.approx(want)


@pytest.mark.parametrize('schedule', ['steps', 'cosine'])
def test_without_fine_tuning_the_last_interval_is_a_long_cycle(schedule):
  config = smooth(schedule)
  with_it = cycles.make_schedule(config, 240_000)
  config.grid.fine_tune = False
  s = cycles.make_schedule(config, 240_000)
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
  config = smooth('constant', mode)
  assert {p.lr_scale for p in cycles.make_schedule(config, 9000).phases} != {1}
  config.grid.scale_lr = False
  s = cycles.make_schedule(config, 9000)
  assert {p.lr_scale for p in s.phases} == {1}
  assert {s.lr(step) for step in range(s.total_steps)} == {0.1}


def test_warm_up_ends_at_the_schedule_own_rate():
  config = smooth('cosine')
  config.optim.warmup_epochs, config.optim.warmup_lr = 10.0, 0.5
  warm = cycles.make_schedule(config, 240_000).lr_at_epoch
  plain = cycles.make_schedule(smooth('cosine'), 240_000).lr_at_epoch
  assert warm(0) == 0.5
  assert warm(5) == pytest.approx((0.5 + plain(10)) / 2)
  assert warm(10.5) == plain(10.5)


def test_any_schedule_of_optax_can_be_called():
  text = (
    'optax.linear_schedule(init_value=0.2, end_value=0.0, transition_steps=239)'
  )
  s = cycles.make_schedule(smooth(text, 'none'), 240_000)
  assert s.lr_at_epoch(0) == pytest.approx(0.2)
  assert s.lr_at_epoch(119.5) == pytest.approx(0.1)


def half_cosine(epoch, start, length):
  return 0.5 * (1 + math.cos(math.pi * min((epoch - start) / length, 1)))


# Calls, and the same as a formula of the baseline's epochs.
NESTED = {
  'optax.join_schedules([optax.linear_schedule(0.0, 0.2, 100), '
  'optax.cosine_decay_schedule(0.2, decay_steps=139)], [100])': lambda e: (
    0.002 * e if e < 100 else 0.2 * half_cosine(e, 100, 139)
  ),
  "optax.sgdr_schedule([{'init_value': 0.0, 'peak_value': 0.2, "
  "'warmup_steps': 0, 'decay_steps': 100}, {'init_value': 0.0, "
  "'peak_value': 0.1, 'warmup_steps': 0, 'decay_steps': 139}])": lambda e: (
    0.2 * half_cosine(e, 0, 100) if e < 100 else 0.1 * half_cosine(e, 100, 139)
  ),
  'optax.piecewise_constant_schedule(0.1, {100: 0.5, 200: 0.1})': lambda e: (
    0.1 * (0.5 if e > 100 else 1) * (0.1 if e > 200 else 1)
  ),
  'optax.linear_schedule(0.2, -0.0, 239)': lambda e: 0.2 * (1 - e / 239),
}


@pytest.mark.parametrize('mode', ['none', 'both'])
@pytest.mark.parametrize('text', NESTED)
def test_schedules_of_optax_can_be_nested(text, mode):
  s = cycles.make_schedule(smooth(text, mode), 240_000)
  starts = [0, *(p.end_epoch for p in s.phases)]
  for phase, start, end in zip(s.phases, starts, starts[1:], strict=False):
    for epoch in (start + 0.01, (start + end) / 2, end - 0.01):
      baseline = NESTED[text](epoch / s.total_epochs * 239)
      # optax computes in float32.
      assert s.lr_at_epoch(epoch) == pytest.approx(
        baseline * phase.lr_scale, rel=1e-4, abs=1e-6
      )


@pytest.mark.parametrize('mode', ['none', 'both'])
@pytest.mark.parametrize(
  'text,message',
  [
    ('cosin', 'use .steps., .cosine., .constant. or a call'),
    ('', 'use .steps.'),
    ('0.1', 'use .steps.'),
    ('[optax.constant_schedule(0.1)]', 'use .steps.'),
    ('linear_schedule(init_value=1.0)', 'use .steps.'),
    ('os.system("true")', 'use .steps.'),
    ('optax.linear_schedule(init_value=open("x"))', 'use .steps.'),
    ('optax.linear_schedule(**{})', 'use .steps.'),
    ('optax.linear_schedule(*[0.1, 0.0, 20])', 'use .steps.'),
    ('optax.linear_schedule(0.1, 0.0, 10**10)', 'use .steps.'),
    ('optax.sgdr_schedule([{**{}}])', 'use .steps.'),
    ('optax.join_schedules([optax.x for x in y], [1])', 'use .steps.'),
    ('__import__("os").linear_schedule()', 'use .steps.'),
    ('optax.adam(learning_rate=0.1)', "no schedule 'adam'; it has constant_"),
    ('optax.inject_hyperparams(optax.sgd)', "schedule 'inject_hyperparams'"),
    ('optax.no_such_schedule(init=3)', "no schedule 'no_such_schedule'"),
    ('optax.join_schedules([optax.adam(0.1)], [])', "no schedule 'adam'"),
    ('optax.linear_schedule(init=3)', 'fails: TypeError'),
    ('optax.join_schedules([0.1, 0.2], [100])', 'fails: TypeError'),
    ("optax.sgdr_schedule([{'init_value': 0.1}])", 'fails: TypeError'),
    ('optax.constant_schedule(1e999)', 'starts at inf'),
    pytest.param(
      'optax.constant_schedule(' + '-' * 100_000 + '1)',
      'use .steps.',
      id='signs in a call',
    ),
    pytest.param('-' * 100_000 + '1', 'use .steps.', id='signs'),
    pytest.param('(' * 100_000, 'use .steps.', id='brackets'),
    ('optax.constant_schedule(-0.1)', 'the learning rate is -0.*at epoch 0'),
    (
      'optax.linear_schedule(0.1, -0.1, 239)',
      r'the learning rate is -[0-9.e-]+ at epoch 1\d\d.*; it must be a finite',
    ),
    (
      'optax.join_schedules([optax.constant_schedule(0.2), '
      'optax.constant_schedule(-0.2), optax.constant_schedule(0.2)], '
      '[100, 110])',
      'the learning rate is -[0-9.]+ at epoch 1',
    ),
  ],
)
def test_a_schedule_that_is_not_a_call_of_optax_is_refused(text, message, mode):
  with pytest.raises(ConfigError, match=rf'^optim\.schedule.*{message}'):
    cycles.make_schedule(smooth(text, mode), 240_000)


# The other modes.


def test_a_ladder_restarts_the_learning_rate_at_every_rung():
  config = fields.base()
  config.grid.mode = 'ladder'
  config.optim.warmup_epochs = 0.0
  config.optim.lr_steps = (10, 20)
  config.grid.ladder = (
    (0.25, 50, 0.01, 'cosine'),
    (0.5, 25, 0.005, 'steps'),
    (1, 5, 0.02, 'constant'),
  )
  s = cycles.make_schedule(config, 1000)
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
  config = fields.base()
  config.grid.mode = 'ladder'
  s = cycles.make_schedule(config, 1000)
  assert [p.stride_frames for p in s.phases] == [(4, 4), (2, 2)]


def test_a_rung_of_segments_has_no_stride_to_change():
  config = fields.base()
  config.grid.mode = 'ladder'
  config.data.sampling = 'segments'
  s = cycles.make_schedule(config, 1000)
  assert [p.stride_frames for p in s.phases] == [(2, 2), (2, 2)]


def test_progressive_grids_share_the_epochs_and_scale_the_rate():
  config = smooth('constant', 'progressive')
  config.grid.progressive = ((0.5, 0.5, 0.5), (0.3, 1, 0.5), (0.2, 1, 1))
  config.grid.epoch_factor = 1.0
  s = cycles.make_schedule(config, 240_000)
  assert [p.base for p in s.phases] == [
    Grid(16, 112, 112, 512),
    Grid(32, 112, 112, 256),
    Grid(32, 224, 224, 64),
  ]
  assert [p.end_epoch for p in s.phases] == pytest.approx([119.5, 191.2, 239])
  assert s.lr_at_epoch(0) == pytest.approx(0.8)
  assert s.lr_at_epoch(239) == pytest.approx(0.1)


# Errors: what is wrong, where, and what would do.


@pytest.mark.parametrize(
  'overrides,message',
  [
    ({'grid.mode': 'bath'}, r"grid\.mode is 'bath'; use one of none, short"),
    (
      {'grid.mode': 'both', 'grid.short_factors': (0.9,)},
      r'phase 1 of 13 \(8B x 8 x 158²\): the short cycle has a crop of '
      r'202x202, larger than the phase.s 158x158',
    ),
    (
      {'grid.mode': 'both', 'grid.long_factors': ((0.25, 0.4), (1, 1))},
      r'phase 1 of 7 \(25B x 8 x 90²\): the short cycle has a crop of 112x112',
    ),
    ({'grid.mode': 'short', 'grid.short_factors': ()}, 'at least one'),
    ({'grid.mode': 'short', 'grid.short_factors': (1.5,)}, r'in \(0, 1\]'),
    ({'grid.mode': 'short', 'grid.short_factors': ('x',)}, r'in \(0, 1\]'),
    (
      {'grid.mode': 'short', 'grid.short_factors': (0.05,)},
      r'a crop of 11x11 is too small; sides of 16',
    ),
    (
      {'grid.mode': 'long', 'grid.long_factors': ((0, 1), (1, 1))},
      r'factor in \(0, 1\]',
    ),
    ({'grid.mode': 'long', 'grid.long_factors': (0.5, 1)}, 'pairs'),
    ({'grid.mode': 'long', 'grid.long_factors': ((0.5, 1),)}, 'end with'),
    (
      {'grid.mode': 'long', 'grid.long_factors': ((0.01, 1), (1, 1))},
      r'^phase 1: the factors \(0.01, 1\) in grid leave 0 frames of 224x224',
    ),
    (
      {
        'grid.mode': 'both',
        'grid.long_factors': ((0.25, 1), (0.5, 0.001), (1, 1)),
      },
      r'^phase 2: the factors \(0.5, 0.001\) in grid leave 16 frames of 0x0',
    ),
    (
      {'grid.mode': 'short', 'grid.short_factors': (0.001,)},
      r'^phase 1: the factors \(1, 0.001\) in grid leave 32 frames of 0x0',
    ),
    (
      {'grid.mode': 'ladder', 'grid.ladder': ((0.01, 1, 0.1, 'cosine'),)},
      r'^phase 1: the factors \(0.01, 1\) in grid leave 0 frames',
    ),
    (
      {
        'grid.mode': 'progressive',
        'grid.progressive': ((0.5, 1, 0.001), (0.5, 1, 1)),
      },
      r'^phase 1: the factors \(1, 0.001\) in grid leave 32 frames of 0x0',
    ),
    (
      {'data.batch_size': 12},
      r'phase 1 of 1 \(1B x 32 x 224²\): a batch of 12 clips does not divide '
      r'into groups of norm\.group_clips=8; .* such as 4, or 0',
    ),
    ({'norm.group_by': 'clip'}, "use 'phase' or 'step'"),
    ({'norm.group_clips': -1}, r'norm\.group_clips is -1'),
    ({'optim.lr_steps': (94, 94)}, r'optim\.lr_steps is .* increasing'),
    ({'optim.lr_steps': (94, 239)}, r'before the end of the schedule at 239'),
    ({'optim.lr_steps': (0, 94)}, r'after 0'),
    ({'optim.lr_steps': ('94',)}, r'optim\.lr_steps'),
    ({'grid.mode': 'both', 'optim.lr_steps': ()}, 'is empty'),
    ({'optim.total_epochs': 0}, r'optim\.total_epochs is 0'),
    ({'optim.warmup_epochs': 300.0}, 'longer than the run of 239 epochs'),
    ({'optim.warmup_epochs': -1.0}, r'optim\.warmup_epochs is -1'),
    ({'grid.mode': 'both', 'grid.epoch_factor': 0.0}, 'must be positive'),
    ({'grid.mode': 'short', 'grid.epoch_factor': 1e-3}, 'leaves no epoch'),
    (
      {
        'grid.mode': 'both',
        'optim.schedule': 'cosine',
        'grid.num_long_cycles': 0,
      },
      r'grid\.num_long_cycles is 0',
    ),
    ({'data.crop_px': 0}, r'data\.crop_px is 0'),
    ({'data.crop_px': 300}, r'data\.jitter_px is \(256, 320\)'),
    ({'data.jitter_px': (320, 256)}, r'data\.jitter_px'),
    ({'data.jitter_px': ('256', '320')}, r'data\.jitter_px'),
    ({'grid.mode': 'short', 'grid.epoch_factor': math.inf}, 'epoch_factor'),
    ({'data.sampling': 'random'}, "use 'dense' or 'segments'"),
    ({'data.batch_size': 0}, r'data\.batch_size is 0'),
    ({'grid.mode': 'ladder', 'grid.ladder': ()}, r'grid\.ladder is empty'),
    ({'grid.mode': 'ladder', 'grid.ladder': ((1, 2),)}, r'grid\.ladder\[0\]'),
    (
      {
        'grid.mode': 'ladder',
        'grid.ladder': ((1, 2, 0.1, 'cosine'), (0.5, 2, 0.1, 'cosine')),
      },
      'must not lose frames',
    ),
    (
      {'grid.mode': 'ladder', 'grid.ladder': ((1, 2, 0.1, 'cosines'),)},
      r"grid\.ladder\[0\] .*'cosines'",
    ),
    (
      {'grid.mode': 'progressive', 'grid.progressive': ((0.5, 1, 1),)},
      'sum to 0.5; they must sum to 1',
    ),
    (
      {
        'grid.mode': 'progressive',
        'grid.progressive': ((0.5, 1, 1), (0.5, 1, 0.5)),
      },
      'from coarse to fine',
    ),
    (
      {'grid.mode': 'progressive', 'grid.progressive': ((1, 2, 1),)},
      r'in \(0, 1\]',
    ),
  ],
)
def test_what_cannot_be_trained_is_refused(overrides, message):
  config = fields.base()
  # Tuples keep their type on the command line but not their items'.
  config.update_from_flattened_dict(overrides)
  with pytest.raises(ConfigError, match=message):
    cycles.make_schedule(config, 240_000)


def test_frames_need_not_be_a_multiple_of_alpha():
  config = fields.base()
  config.data.num_frames = 30
  assert cycles.make_schedule(config, 100).phases[0].base.T == 30


def test_a_batch_that_devices_cannot_share_is_refused():
  config = fields.base()
  config.grid.mode = 'both'
  with pytest.raises(
    ConfigError,
    match=r'phase 3 of 13 \(2B x 16 x 224²\): a batch of 128 .* 256 devices',
  ):
    cycles.make_schedule(config, 240_000, num_devices=256)


def test_an_epoch_without_videos_is_refused():
  with pytest.raises(ConfigError, match=r'data\.num_train is 0'):
    cycles.make_schedule(fields.base(), 0)


def test_lists_are_as_good_as_tuples():
  config = fields.base()
  config.grid.mode = 'both'
  want = cycles.make_schedule(config, 240_000)
  config.grid.long_factors = tuple(map(list, config.grid.long_factors))
  assert cycles.make_schedule(config, 240_000) == want


def test_the_number_of_devices_changes_no_schedule():
  config = fields.base()
  config.grid.mode = 'both'
  one, eight = (
    cycles.make_schedule(config, 240_000, num_devices=n) for n in (1, 8)
  )
  assert one == eight


def test_phases_of_zero_epochs_do_not_appear():
  # Rounding leaves the last phase of ssv2's second long cycle none: 30 to 30.
  path = next(path for path in GOLDENS if 'ssv2' in path.name)
  config = config_of(read(path))
  config.grid.mode = 'both'
  ends = [p.end_epoch for p in cycles.make_schedule(config, 168_913).phases]
  assert ends == [11, 16, 21, 24, 27, 28, 30, 33]
