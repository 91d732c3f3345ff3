"""grids.py: the schedule that settings describe, and errors that name them."""

import math

import pytest

from mgjax.config import fields
from mgjax.errors import ConfigError
from mgjax.grids import Grid, make, modes
from mgjax.setup import grids


def test_every_setting_of_a_schedule_reaches_it():
  """Each of them changes it, or the message of an error has its name."""

  def changed(mode, schedule='steps', **settings):
    config = fields.base()
    config.update_from_flattened_dict(
      {
        'grid.mode': mode,
        'optim.schedule': schedule,
        'optim.warmup_epochs': 10.0,
        'norm.group_clips': 4,
      }
    )
    config.update_from_flattened_dict(settings)
    s = grids.schedule(config, 4000)
    epochs = range(int(s.total_epochs))
    return s.phases, [s.lr_at_epoch(epoch) for epoch in epochs]

  for mode, schedule, field, value in (
    ('both', 'steps', 'data.num_frames', 16),
    ('both', 'steps', 'data.crop_px', 192),
    ('both', 'steps', 'data.crop_width_px', 256),
    ('both', 'steps', 'data.batch_size', 32),
    ('both', 'steps', 'data.stride_frames', 3),
    ('ladder', 'steps', 'data.sampling', 'segments'),
    ('both', 'steps', 'data.jitter_px', (256, 300)),
    ('both', 'steps', 'optim.total_epochs', 200),
    ('both', 'steps', 'optim.base_lr', 0.2),
    ('both', 'steps', 'optim.lr_steps', (100,)),
    ('both', 'steps', 'optim.gamma', 0.5),
    ('both', 'steps', 'optim.schedule', 'constant'),
    ('both', 'cosine', 'optim.end_lr', 0.01),
    ('both', 'steps', 'optim.warmup_epochs', 20.0),
    ('both', 'steps', 'optim.warmup_lr', 0.02),
    ('both', 'steps', 'optim.base_batch', 128),
    ('both', 'steps', 'grid.mode', 'long'),
    ('both', 'steps', 'grid.epoch_factor', 1.0),
    ('both', 'steps', 'grid.long_factors', ((0.5, 1), (1, 1))),
    ('both', 'steps', 'grid.short_factors', (0.5,)),
    ('both', 'cosine', 'grid.num_long_cycles', 2),
    ('both', 'steps', 'grid.fine_tune', False),
    ('both', 'steps', 'grid.scale_lr', False),
    ('ladder', 'steps', 'grid.ladder', ((1, 20, 0.1, 'constant'),)),
    ('progressive', 'steps', 'grid.progressive', ((1, 1, 1),)),
    ('both', 'steps', 'norm.group_clips', 8),
    ('both', 'steps', 'norm.group_by', 'step'),
  ):
    assert changed(mode, schedule, **{field: value}) != changed(mode, schedule)


def test_the_papers_defaults_are_those_of_the_settings():
  grid = fields.base().grid
  assert grid.mode in make.MODES
  assert (
    grid.long_factors,
    grid.short_factors,
    grid.ladder,
    grid.progressive,
  ) == (
    modes.LONG_FACTORS,
    modes.SHORT_FACTORS,
    modes.LADDER,
    modes.PROGRESSIVE,
  )


def test_evaluation_has_all_frames_of_its_own_crop():
  config = fields.base()
  assert grids.eval_grid(config) == Grid(32, 256, 256, 64)
  config.eval.crop_width_px = 320
  assert grids.eval_grid(config) == Grid(32, 256, 320, 64)
  assert grids.full_grid(config) == Grid(32, 224, 224, 64)
  config.data.crop_width_px = 256
  assert grids.full_grid(config) == Grid(32, 224, 256, 64)


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
      r'^phase 1: the factors \(0.01, 1\) of grid.long_factors leave 0 '
      r'frames of 224x224',
    ),
    (
      {
        'grid.mode': 'both',
        'grid.long_factors': ((0.25, 1), (0.5, 0.001), (1, 1)),
      },
      r'^phase 2: the factors \(0.5, 0.001\) of grid.long_factors leave 16 '
      r'frames of 0x0',
    ),
    (
      {'grid.mode': 'short', 'grid.short_factors': (0.001,)},
      r'^phase 1: the factors \(1, 0.001\) of grid.short_factors leave 32 '
      r'frames of 0x0',
    ),
    (
      {'grid.mode': 'ladder', 'grid.ladder': ((0.01, 1, 0.1, 'cosine'),)},
      r'^phase 1: the factors \(0.01, 1\) of grid.ladder leave 0 frames',
    ),
    (
      {
        'grid.mode': 'progressive',
        'grid.progressive': ((0.5, 1, 0.001), (0.5, 1, 1)),
      },
      r'^phase 1: the factors \(1, 0.001\) of grid.progressive leave 32 '
      r'frames of 0x0',
    ),
    (
      {'data.batch_size': 12},
      r'phase 1 of 1 \(1B x 32 x 224²\): a batch of 12 clips does not divide '
      r'into groups of norm\.group_clips=8; .* such as 4, or 0',
    ),
    (
      {'norm.group_by': 'clip'},
      r"norm\.group_by is 'clip'; use one of phase, step",
    ),
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
    ({'data.crop_width_px': 0}, r'data\.crop_width_px is 0'),
    (
      {'optim.schedule': 'optax.constant_schedule(-0.1)'},
      r'^optim\.schedule: the learning rate is -.* at epoch',
    ),
    ({'optim.schedule': 'cosin'}, r"^optim\.schedule is 'cosin'; use 'steps'"),
    (
      {'train.micro_batches': 3},
      r'the 8 batch-norm groups of .* do not divide into '
      r'train\.micro_batches=3 equal parts; use 1, 2, 4 or 8 micro-batches, or '
      r'another norm\.group_clips',
    ),
    ({'data.crop_px': 300}, r'data\.jitter_px is \(256, 320\)'),
    ({'data.jitter_px': (320, 256)}, r'data\.jitter_px'),
    ({'data.jitter_px': ('256', '320')}, r'data\.jitter_px'),
    ({'grid.mode': 'short', 'grid.epoch_factor': math.inf}, 'epoch_factor'),
    (
      {'data.sampling': 'random'},
      r"data\.sampling is 'random'; use one of dense, segments",
    ),
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
    grids.schedule(config, 240_000)


def test_frames_need_not_be_a_multiple_of_alpha():
  config = fields.base()
  config.data.num_frames = 30
  assert grids.schedule(config, 100).phases[0].base.T == 30


def test_a_batch_that_devices_cannot_share_is_refused():
  config = fields.base()
  config.grid.mode = 'both'
  with pytest.raises(
    ConfigError,
    match=r'phase 3 of 13 \(2B x 16 x 224²\): a batch of 128 .* 256 devices',
  ):
    grids.schedule(config, 240_000, num_devices=256)


def test_an_epoch_without_videos_is_refused():
  with pytest.raises(ConfigError, match=r'data\.num_train is 0'):
    grids.schedule(fields.base(), 0)
