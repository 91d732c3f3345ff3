"""configs/schedules: every table against the numbers of its source.

What a method's authors have (sides, batches, steps, rates) is written down here
from their code or paper, or their rule is applied step by step; nothing comes
from the tables' own formulas.
"""

import collections
import json
import pathlib
import random
import subprocess
import sys

import pytest

from mgjax.config import schedule_files
from mgjax.errors import ConfigError
from mgjax.grids import MODES, Grid, make_schedule
from tests.config.test_configs import NAMES, get_config, schedule_of

ROOT = pathlib.Path(__file__).parents[2]
TABLES = sorted(schedule_files.schedules())


def make(table, full, *, epochs=100, num_train=10_000, **numbers):
  """The schedule of a shipped table, for a full grid of any numbers."""
  full = Grid(*full)
  return make_schedule(
    **dict(zip(('frames', 'height', 'width', 'batch'), full, strict=True)),
    epochs=epochs,
    num_train=num_train,
    mode='table',
    table=schedule_files.rows((table,), full=full, epochs=epochs),
    **{'lr_schedule': 'constant', **numbers},
  )


def grids_of(schedule):
  """The grids of each phase."""
  return [list(phase.cycle) for phase in schedule.phases]


def drawn(schedule):
  """How many steps have each grid, counted one by one."""
  return collections.Counter(map(schedule, range(schedule.total_steps)))


def chi_square(counts, probabilities):
  """Pearson's statistic of counts, by key, against probabilities."""
  assert set(counts) <= set(probabilities)
  total = sum(counts.values())
  return sum(
    (counts[key] - total * p) ** 2 / (total * p)
    for key, p in probabilities.items()
  )


# What chi_square exceeds once in a thousand times, by degrees of freedom.
RARE = {3: 16.27, 4: 18.47, 6: 22.46, 34: 65.25}


def test_fastdinov2_has_the_steps_of_imagenet_100():
  # 50,000 images, 40 a step: the checkpoint that the second part starts from is
  # model_0187499, after 150 of 200 epochs.
  s = make('fastdinov2', (1, 224, 224, 40), epochs=200, num_train=50_000)
  assert grids_of(s) == [[(1, 112, 112, 40)], [(1, 224, 224, 40)]]
  assert s.num_steps == (187_500, 62_500)


def test_fastdinov2_has_the_rates_of_its_authors():
  s = make('fastdinov2', (1, 224, 224, 40), epochs=200, num_train=50_000)
  # 0.004 x sqrt(40 / 1024), after ten epochs; half a cosine over 190, cut after
  # 140 of them; then ten and forty epochs.
  for epoch, rate in (
    (0, 0.0),
    (5, 3.952847e-4),
    (10, 7.905694e-4),
    (105, 3.957847e-4),
    (149, 1.332432e-4),
    (150, 0.0),
    (160, 7.905694e-4),
    (180, 3.957847e-4),
  ):
    assert s.lr(epoch * 1250) == pytest.approx(rate, rel=1e-4, abs=1e-9)
  assert s.lr(s.total_steps - 1) == pytest.approx(1e-6, rel=1e-3)


def test_fastdinov2_can_halve_the_batch_with_the_root_of_its_rate():
  s = make(
    'fastdinov2:first_batch=2',
    (1, 224, 224, 512),
    epochs=200,
    num_train=1_280_000,
  )
  assert [phase.base.batch for phase in s.phases] == [1024, 512]
  assert s.num_steps == (187_500, 125_000)
  assert s.lr(12_500) == pytest.approx(0.004)
  assert s.lr(187_500 + 25_000) == pytest.approx(0.0028284, rel=1e-4)


@pytest.mark.parametrize('table', ['fastdinov2', 'vjepa2'])
def test_a_table_can_leave_the_learning_rate_to_the_config(table):
  s = make(f'{table}:rates=run', (64, 384, 384, 8), learning_rate=0.3)
  assert {s.lr(step) for step in range(0, s.total_steps, 1000)} == {0.3}


VJEPA2 = (64, 384, 384, 3072)


def test_vjepa2_has_the_steps_and_tokens_of_its_settings():
  s = make('vjepa2', VJEPA2, frames_multiple=2, side_multiple=16)
  assert grids_of(s) == [[(16, 256, 256, 3072)], [(64, 384, 384, 3072)]]
  assert s.num_steps == (240_000, 12_000)
  assert [
    (grid.T // 2) * (grid.H // 16) * (grid.W // 16) for grid in s.grids
  ] == [2048, 18_432]
  assert [phase.stride_frames for phase in s.phases] == [(1, 1), (1, 1)]


def test_vjepa2_has_the_rates_of_its_settings():
  s = make('vjepa2', VJEPA2)
  for step, rate in (
    (0, 1e-4),
    (6_000, 3.125e-4),
    (12_000, 5.25e-4),
    (120_000, 5.25e-4),
    (239_999, 5.25e-4),
    (240_000, 5.25e-4),
    (246_000, 2.63e-4),
    (251_999, 1.0436667e-6),
  ):
    assert s.lr(step) == pytest.approx(rate, rel=1e-6)


def test_vjepa2_as_released_ends_before_its_fall_does():
  s = make('vjepa2:ipe_scale=1.25', VJEPA2)
  # 12,000 of 15,000 steps.
  assert s.lr(246_000) == pytest.approx(3.154e-4, rel=1e-6)
  assert s.lr(251_999) == pytest.approx(1.0583493e-4, rel=1e-6)


def test_efficientnetv2_s_has_the_sides_of_its_stages():
  s = make('efficientnetv2', (1, 300, 300, 4096), epochs=350)
  assert [grid.H for grid in s.grids] == [171, 214, 257, 300]
  assert {grid.batch for grid in s.grids} == {4096}
  assert [phase.end_epoch for phase in s.phases] == [87, 175, 262, 350]


def test_efficientnetv2_has_the_augmentation_of_each_stage():
  s = make('efficientnetv2', (1, 300, 300, 8))
  magnitudes = [dict(p.augment)['randaugment_magnitude'] for p in s.phases]
  assert magnitudes == pytest.approx([5, 6.666667, 8.333333, 10])
  # M, but for the magnitude.
  s = make('efficientnetv2:mixup=0.2,cutmix=0.2', (1, 384, 384, 8))
  assert [grid.H for grid in s.grids] == [192, 256, 320, 384]
  for name in ('mixup_alpha', 'cutmix_alpha'):
    alphas = [dict(phase.augment)[name] for phase in s.phases]
    assert alphas == pytest.approx([0, 0.0666667, 0.1333333, 0.2])


def test_efficientnetv2_starts_from_half_of_a_small_side():
  s = make('efficientnetv2', (1, 128, 128, 8))
  assert [grid.H for grid in s.grids] == [80, 96, 112, 128]


def test_efficientnetv2_names_a_magnitude_that_is_too_large():
  with pytest.raises(
    ConfigError, match='row 3, augment: randaugment_magnitude is 11.6'
  ):
    make('efficientnetv2:ram=15', (1, 384, 384, 8))


def composer_width(p, width, inc):
  """The rule of the reference, for a share of training done."""
  r = 0.0 if p < 0.5 else min((p - 0.5) / (1 - 0.2 - 0.5), 1)
  return round(width * (0.5 + 0.5 * r) / inc) * inc


@pytest.mark.parametrize('width', [224, 96])
@pytest.mark.parametrize('inc', [4, 16, 32])
def test_progressive_resizing_has_the_reference_s_width_at_every_step(
  inc, width
):
  # A prime number: no step lies where the width changes.
  s = make(
    f'progressive_resizing:inc={inc}',
    (4, width, width, 1),
    epochs=1,
    num_train=9973,
  )
  assert s.total_steps == 9973
  for step in range(s.total_steps):
    assert s(step).W == composer_width(step / 9973, width, inc)


def test_progressive_resizing_has_29_grids_at_224_pixels():
  s = make('progressive_resizing', (4, 224, 224, 10))
  assert [grid.W for grid in s.grids] == list(range(112, 228, 4))
  assert {grid.batch for grid in s.grids} == {10}
  steps = s.total_steps
  assert [s(int(p * steps)).W for p in (0, 0.5, 0.65, 0.8)] == [
    *(112, 112, 168, 224),
  ]
  assert s(steps - 1).W == 224


def test_progressive_resizing_has_fewer_grids_with_larger_steps():
  widths = {
    inc: [
      grid.W
      for grid in make(
        f'progressive_resizing:inc={inc}', (4, 224, 224, 10)
      ).grids
    ]
    for inc in (16, 32)
  }
  assert widths == {
    16: [112, 128, 144, 160, 176, 192, 208, 224],
    32: [128, 160, 192, 224],
  }


def test_naflex_has_the_batches_and_probabilities_of_timm():
  s = make('naflex', (2, 512, 512, 16), seed=3)
  # 128, 256, 576, 784 and 1,024 tokens; 128 have room for 11 x 11.
  sides = {176: 128, 256: 64, 384: 24, 448: 16, 512: 16}
  assert grids_of(s) == [[(2, n, n, batch) for n, batch in sides.items()]]
  counts = collections.Counter(
    {grid.H: n for grid, n in drawn(s).items()},
  )
  assert counts.total() == s.total_steps > 15_000
  assert chi_square(counts, dict.fromkeys(sides, 1 / 5)) < RARE[4]


# Of a GPU: 64 images at 224 pixels.
MIX_AND_MATCH = {
  224: {
    **{128: (2 / 15, 196), 160: (2 / 15, 125), 192: (2 / 15, 87)},
    **{224: (1 / 5, 64), 256: (2 / 15, 49), 288: (2 / 15, 39)},
    320: (2 / 15, 31),
  },
  144: {96: (0.2, 348), 128: (0.6, 196), 224: (0.1, 64), 256: (0.1, 49)},
}


@pytest.mark.parametrize('regime', MIX_AND_MATCH)
def test_mix_and_match_has_the_sizes_and_batches_of_its_authors(regime):
  want = MIX_AND_MATCH[regime]
  side = max(want)
  table = f'mix_and_match:regime={regime},base=64'
  s = make(table, (1, side, side, 31), num_train=30_000)
  assert grids_of(s) == [[(1, n, n, batch) for n, (_, batch) in want.items()]]
  # The shares are those of the images, of which a step takes a batch.
  per_step = {n: share / batch for n, (share, batch) in want.items()}
  counts = collections.Counter({grid.H: n for grid, n in drawn(s).items()})
  assert counts.total() > 18_000
  probabilities = {n: p / sum(per_step.values()) for n, p in per_step.items()}
  assert chi_square(counts, probabilities) < RARE[len(want) - 1]
  for n, (share, batch) in want.items():
    assert counts[n] * batch / s.total_clips == pytest.approx(share, rel=0.05)


def test_mix_and_match_rounds_batches_to_a_multiple():
  s = make('mix_and_match:multiple=8', (8, 224, 224, 64), group_clips=8)
  assert [grid.batch for grid in s.phases[0].cycle] == [
    *(400, 256, 176, 128, 96, 80, 64),
  ]


# {(side, frames): images or videos of a GPU}.
OPEN_SORA = {
  (1024, 1): 7,
  (768, 1): 13,
  (256, 1): 45,
  **{(256, t): 12 for t in (5, 9, 13, 17, 21, 25, 29, 33)},
  **{(256, t): 6 for t in (37, 41, 45, 49, 53, 57, 61, 65)},
  **{(256, t): 4 for t in (69, 73, 77, 81, 85, 89, 93, 97)},
  **{(256, t): 3 for t in (101, 105, 109, 113, 117, 121, 125, 129)},
}


def test_open_sora_has_the_buckets_of_its_settings():
  s = make('open_sora', (129, 1024, 1024, 3))
  (cycle,) = grids_of(s)
  assert {(grid.H, grid.T): grid.batch for grid in cycle} == OPEN_SORA
  assert len(cycle) == 35
  # Eight GPUs.
  s = make('open_sora', (129, 1024, 1024, 24))
  assert {(g.H, g.T): g.batch for g in s.phases[0].cycle} == {
    bucket: 8 * batch for bucket, batch in OPEN_SORA.items()
  }


def test_open_sora_draws_buckets_as_lengths_of_equal_frequency_fill_them():
  s = make('open_sora', (129, 1024, 1024, 3), num_train=2500)
  # An image is kept at 1024 pixels one time in two, else at 768 likewise.
  shares = {bucket: 1 / 33 for bucket in OPEN_SORA} | {
    (1024, 1): 1 / 33 / 2,
    (768, 1): 1 / 33 / 4,
    (256, 1): 1 / 33 / 4,
  }
  assert sum(shares.values()) == pytest.approx(1)
  per_step = {bucket: p / OPEN_SORA[bucket] for bucket, p in shares.items()}
  total = sum(per_step.values())
  probabilities = {bucket: p / total for bucket, p in per_step.items()}
  counts = collections.Counter(
    {(grid.H, grid.T): n for grid, n in drawn(s).items()}
  )
  assert counts.total() > 25_000
  assert chi_square(counts, probabilities) < RARE[34]


def test_open_sora_without_images_has_the_videos_only():
  s = make('open_sora:images=0', (129, 1024, 1024, 3))
  assert sorted((grid.H, grid.T) for grid in s.phases[0].cycle) == [
    (256, t) for t in range(5, 130, 4)
  ]


def test_open_sora_has_a_frame_at_least_of_a_short_full_grid():
  s = make('open_sora', (16, 224, 224, 8))
  assert {grid.T for grid in s.phases[0].cycle} == set(range(1, 17))


def test_tpt_grows_the_frames_and_trains_on_half_of_them():
  s = make('tpt', (16, 224, 224, 10), epochs=800)
  assert grids_of(s) == [[(t, 224, 224, 10)] for t in (4, 8, 16)]
  assert [phase.end_epoch for phase in s.phases] == [400, 600, 800]
  frames = sum(
    steps * phase.base.T
    for steps, phase in zip(s.num_steps, s.phases, strict=True)
  )
  assert frames / (s.total_steps * 16) == 0.5


def test_tpt_can_leave_a_stage_out():
  s = make('tpt:quarter=0.0,half=0.6', (16, 224, 224, 10))
  assert [(phase.base.T, phase.end_epoch) for phase in s.phases] == [
    *((8, 60), (16, 100)),
  ]


def assert_same(one, other):
  """Asserts that two schedules do the same, rates to the last bit."""
  assert one.phases == other.phases
  assert one.grids == other.grids
  assert one.baseline_epochs == other.baseline_epochs
  steps = [*range(0, one.total_steps, one.total_steps // 500 + 1)]
  steps += [phase.end_step - 1 for phase in one.phases]
  assert [one.lr(step) for step in steps] == [other.lr(step) for step in steps]
  for step in steps:
    assert one.clips_before(step) == other.clips_before(step)


def tabled(config, table):
  """The config with a table instead of its mode."""
  config = config.copy_and_resolve_references()
  config.grid.mode = 'table'
  config.grid.table = table
  return config


@pytest.mark.parametrize('arg', ['lr=0.005,schedule=steps', ''])
def test_blvnet_tam_is_the_table_of_the_mode_ladder(arg):
  config = get_config('kinetics400', 'grid=ladder,model=blvnet_tam_50')
  if not arg:
    config.grid.ladder = ((0.5, 50, 0.01, 'cosine'), (1, 25, 0.01, 'cosine'))
  table = f'blvnet_tam:{arg}' if arg else 'blvnet_tam'
  assert_same(schedule_of(config), schedule_of(tabled(config, (table,))))


def test_blvnet_tam_has_the_epochs_of_the_paper():
  s = make('blvnet_tam', (48, 224, 224, 64))
  assert grids_of(s) == [[(t, 224, 224, 64)] for t in (16, 32, 48)]
  assert [phase.end_epoch for phase in s.phases] == [50, 75, 100]
  for i in range(3):
    assert s.lr(s.start_step(i)) == pytest.approx(0.01)
    assert s.lr(s.start_step(i) + s.num_steps[i] - 1) < 1e-6


@pytest.mark.parametrize('mode', ['none', 'short', 'long', 'both'])
@pytest.mark.parametrize(
  'name,decays', [('kinetics400', '94-154-196'), ('ssv2', '14-18')]
)
def test_multigrid_is_the_table_of_its_modes(name, decays, mode):
  config = get_config(name, f'grid={mode}')
  lr = config.optim.base_lr
  table = f'multigrid:mode={mode},decays={decays},lr={lr}'
  assert_same(schedule_of(config), schedule_of(tabled(config, (table,))))


def test_multigrid_has_the_decays_of_kinetics_if_none_are_given():
  config = get_config('kinetics400', 'grid=both')
  assert_same(schedule_of(config), schedule_of(tabled(config, ('multigrid',))))


# Of every shipped table: full grid and arguments that it works with.
WORKING = {
  'blvnet_tam': ('', (32, 224, 224, 64)),
  'mix_and_match': (':multiple=8', (8, 224, 224, 64)),
  'vjepa2': (':steps=3000,cooldown=600', (64, 384, 384, 64)),
}


def shipped(name, **numbers):
  arg, full = WORKING.get(name, ('', (16, 224, 224, 64)))
  return make(name + arg, full, **{'num_train': 1500, **numbers})


def step_of(schedule, step):
  """All that a step is."""
  return (
    schedule(step),
    schedule.clips_before(step),
    schedule.lr(step),
    schedule.place(step),
    schedule.bn_groups(step),
  )


@pytest.mark.parametrize('name', TABLES)
def test_a_step_by_itself_is_that_of_the_whole_schedule(name):
  s = shipped(name)
  # One after the other, clips counted by hand.
  clips, sequential = 0, []
  for step in range(s.total_steps):
    assert s.clips_before(step) == clips
    clips += s(step).batch
    if step < 500:
      sequential.append(step_of(s, step))
  assert s.clips_before(s.total_steps) == s.total_clips == clips
  # In any order, each the first that its schedule is asked for.
  generator = random.Random(0)
  for step in generator.sample(range(500), 5):
    assert step_of(shipped(name), step) == sequential[step]


@pytest.mark.parametrize('name', TABLES)
def test_a_run_that_resumes_has_the_steps_that_it_would_have_had(name):
  before, after = shipped(name), shipped(name)
  middle = before.total_steps // 2
  to_come = range(middle, before.total_steps)
  first_uses = {}
  for step in range(before.total_steps):
    grid = before(step)
    if step in to_come:
      first_uses.setdefault(grid, step)
  assert list(after.first_uses(middle).items()) == list(first_uses.items())
  for step in to_come[:50]:
    assert step_of(after, step) == step_of(before, step)


def some_steps():
  schedules = map(shipped, TABLES)
  return [[step_of(s, i) for i in range(0, 300, 7)] for s in schedules]


def test_every_process_has_the_same_steps():
  script = (
    f'import sys; sys.path.insert(0, {str(ROOT)!r})\n'
    'from tests.config import test_schedules as t; print(t.some_steps())'
  )
  other = subprocess.run(
    [sys.executable, '-c', script],
    env={'PYTHONHASHSEED': '1', 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    check=True,
  )
  assert other.stdout.strip() == str(some_steps())


@pytest.mark.parametrize('name', ['naflex', 'mix_and_match', 'open_sora'])
def test_another_seed_draws_other_grids(name):
  one, other = shipped(name, seed=1), shipped(name, seed=2)
  assert one.grids != other.grids or drawn(one) != drawn(other)
  steps = range(500)
  assert [one(s)[:3] for s in steps] != [other(s)[:3] for s in steps]


# What a plan prints, read again.


@pytest.fixture
def read_again(tmp_path):
  def read(config, schedule):
    """The schedule of the JSON file with a schedule's table."""
    path = tmp_path / 'plan.json'
    # A plan is an object, `table` among others.
    path.write_text(json.dumps({'mode': '', 'table': list(schedule.table)}))
    return schedule_of(tabled(config, (str(path),)))

  return read


@pytest.mark.parametrize('mode', [mode for mode in MODES if mode != 'table'])
@pytest.mark.parametrize('name', NAMES)
def test_the_table_of_every_mode_read_again_is_the_same_schedule(
  name, mode, read_again
):
  config = get_config(name, f'grid={mode}')
  schedule = schedule_of(config)
  assert_same(schedule, read_again(config, schedule))


@pytest.mark.parametrize('mode', ['short', 'both', 'progressive'])
@pytest.mark.parametrize('policy', ['cosine', 'constant'])
def test_tables_of_other_learning_rates_read_again_are_the_same(
  policy, mode, read_again
):
  config = get_config('kinetics400', f'grid={mode}')
  config.optim.schedule = policy
  config.optim.base_batch = 32
  schedule = schedule_of(config)
  assert_same(schedule, read_again(config, schedule))


@pytest.mark.parametrize('name', TABLES)
def test_every_shipped_table_read_again_is_the_same_schedule(name, read_again):
  recipe = 'grid=none,model=blvnet_tam_50' if name == 'blvnet_tam' else ''
  config = get_config('kinetics400', recipe)
  config.norm.group_clips = 0
  # Rows may have rates of their own, and the run is then short.
  config.optim.warmup_epochs = 0.0
  config.augment.randaugment_ops = 2
  config = tabled(config, (name,))
  schedule = schedule_of(config)
  assert schedule.total_steps > 100
  assert_same(schedule, read_again(config, schedule))


@pytest.mark.parametrize('name', TABLES)
def test_every_shipped_table_works_for_a_small_full_grid(name):
  frames = 32 if name == 'blvnet_tam' else 16
  try:
    s = make(name, (frames, 64, 64, 16), epochs=8, num_train=1000)
  except ConfigError as error:
    # One of the grids has sides of a quarter, or less.
    assert name == 'open_sora' or 'too small' in str(error)
  else:
    assert s.total_steps > 0


@pytest.mark.parametrize('name', TABLES)
def test_an_argument_that_a_table_has_not_is_refused_in_a_line(name):
  with pytest.raises(ConfigError, match="'colour=red' is unknown") as error:
    make(f'{name}:colour=red', (32, 224, 224, 64))
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  'table,words',
  [
    ('vjepa2:rates=mine', 'rates is published or run'),
    ('vjepa2:ipe_scale=0.5', 'ipe_scale is 1 or more'),
    ('efficientnetv2:stages=0', 'stages is 1 or more'),
    ('progressive_resizing:delay=0.9', 'at most 1 together'),
    ('progressive_resizing:s0=0.0', 's0 is in'),
    ('fastdinov2:first_batch=0', 'first_batch is 1 or more'),
    ('naflex:divisor=0', 'divisor is 1 or more'),
    ('mix_and_match:regime=100', 'regime is 224 or 144'),
    ('open_sora:images=1.5', 'images is in'),
    ('tpt:quarter=0.9', 'at most 1 together'),
    ('multigrid:mode=all', 'none, short, long, both'),
    ('multigrid:decays=a-b', 'decays are epochs'),
    ('vjepa2:steps=many', "steps='many' is not of type int"),
    ('vjepa2:ipe_scale=nan', 'ipe_scale is 1 or more'),
  ],
)
def test_a_wrong_argument_of_a_table_is_named(table, words):
  with pytest.raises(ConfigError, match=words):
    make(table, (32, 224, 224, 64))


@pytest.mark.parametrize('name', TABLES)
def test_every_table_says_its_source_and_how_it_is_planned(name):
  text = schedule_files.schedules()[name].read_text().split('"""')[1]
  for words in ('Reported: ', 'Source: ', 'Differs: ', 'mgjax.plan'):
    assert f'\n{words}' in text or f'-m {words}' in text
