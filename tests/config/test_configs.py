"""configs: complete, comparable, and every grid of theirs fits its model."""

import functools
import importlib
import json
import pathlib

import jax
import jax.numpy as jnp
import pytest

from mgjax import models
from mgjax.cli import ConfigError
from mgjax.config import arguments, config_file, network_options, rules
from mgjax.config import fields as default
from mgjax.grids import MODES
from mgjax.recipes import segments
from mgjax.setup import augmentation, grids, network

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'schedule'
NAMES = sorted(config_file.recipes())
# Models on sampled frames, of mgjax/recipes/segments.py.
SEGMENT_ARGS = [
  (name, f'model={model}')
  for name in ('kinetics400', 'ssv2')
  for model in (*segments.FAMILIES, 'blvnet_tam_101')
]


def get_config(name, arg=''):
  return importlib.import_module(f'configs.{name}').get_config(arg)


def schedule_of(config):
  num_train, _ = grids.dataset_size(config)
  return grids.schedule(config, num_train)


def flat(config):
  """Dotted names of all fields, with their values."""
  fields = {}
  for key, value in config.items():
    if hasattr(value, 'items'):
      fields |= {f'{key}.{k}': v for k, v in flat(value).items()}
    else:
      fields[key] = value
  return fields


@pytest.mark.parametrize('name', NAMES)
def test_every_config_has_exactly_the_fields_of_the_default(name):
  config, defaults = get_config(name), default.base()
  defaults.model.name = config.model.name
  assert set(flat(config)) == set(flat(defaults))


@pytest.mark.parametrize(
  'name,arg', [(name, '') for name in NAMES] + SEGMENT_ARGS
)
def test_a_baseline_and_its_multigrid_run_differ_in_the_grid_only(name, arg):
  one, other = (
    flat(get_config(name, f'{arg},grid={mode}')) for mode in ('none', 'both')
  )
  different = {key for key in one if one[key] != other[key]}
  assert different == {'grid.mode'}


@pytest.mark.parametrize('name', NAMES)
def test_every_config_is_valid(name):
  rules.validate(get_config(name))


@pytest.mark.parametrize('name', NAMES)
def test_a_misspelt_field_is_refused(name):
  with pytest.raises(AttributeError):
    get_config(name).optim.base_lrr = 1.0


def with_table(name, arg):
  """A config that has a table where its mode reads one."""
  config = get_config(name, arg)
  if config.grid.mode == 'table':
    config.grid.table = ('fastdinov2',)
  return config


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('name', NAMES)
def test_every_mode_of_every_config_has_a_schedule(name, mode):
  assert schedule_of(with_table(name, f'grid={mode}')).total_steps > 0


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('name,arg', SEGMENT_ARGS)
def test_every_mode_of_models_on_segments_has_a_schedule(name, arg, mode):
  config = with_table(name, f'{arg},grid={mode}')
  assert schedule_of(config).total_steps > 0


def test_the_cosine_recipe_of_dense_clips_is_the_published_one():
  config = get_config('kinetics400', 'model=i3d,recipe=cosine,grid=none')
  schedule = schedule_of(config)
  # Halfway between the end of the warm-up and that of the training.
  assert (schedule.total_epochs, config.optim.base_lr) == (196, 0.1)
  steps = schedule.total_steps
  assert schedule.lr(steps // 2) == pytest.approx(0.05, rel=1e-3)
  assert schedule.lr(steps - 1) < 1e-6
  for arg in ('model=tsm_r50,recipe=cosine', 'recipe=linear'):
    with pytest.raises(ConfigError, match='recipe='):
      get_config('kinetics400', arg)


def test_the_ladder_of_blvnet_tam_is_the_published_recipe():
  config = get_config('kinetics400', 'model=blvnet_tam_50,grid=ladder')
  s = grids.schedule(config, 240_000)
  assert [phase.base[:] for phase in s.phases] == [
    (16, 224, 224, 64),
    (32, 224, 224, 64),
  ]
  assert [phase.end_epoch for phase in s.phases] == [50, 75]
  # Cosine from 0.01, half-way at epoch 25; then 0.005, a tenth every 10 epochs.
  lr = [s.lr_at_epoch(epoch) for epoch in (0, 25, 50, 59.9, 60, 70, 74.9)]
  want = [0.01, 0.005, 0.005, 0.005, 5e-4, 5e-5, 5e-5]
  assert lr == pytest.approx(want, rel=1e-9)
  # Something-Something starts the second rung at 0.01.
  config = get_config('ssv2', 'model=blvnet_tam_50,grid=ladder')
  assert grids.schedule(config, 169_000).lr_at_epoch(50) == 0.01


@pytest.mark.parametrize('name', ['kinetics400', 'ssv2'])
def test_tsm_trains_as_published(name):
  s = schedule_of(get_config(name, 'model=tsm_r50,grid=none'))
  base_lr = {'kinetics400': 0.02, 'ssv2': 0.01}[name]
  lr = [s.lr_at_epoch(epoch) for epoch in (0, 19.9, 20, 40, 49.9)]
  want = [base_lr * factor for factor in (1, 1, 0.1, 0.01, 0.01)]
  assert lr == pytest.approx(want, rel=1e-9)


@functools.cache
def variables(model):
  video = jnp.zeros((1, 32, 32, 32, 3))
  return jax.eval_shape(model.init, jax.random.key(0), video)


@functools.cache
def logits_shape(model, *video_shape):
  video = jax.ShapeDtypeStruct(video_shape, jnp.float32)
  return jax.eval_shape(model.apply, variables(model), video).shape


@pytest.mark.parametrize('name', NAMES)
def test_every_grid_of_every_config_fits_its_model(name):
  config = get_config(name, 'grid=both')
  # Two configs that differ only in classes share what is traced.
  config.model.num_classes, config.model.dropout = 5, 0.5
  model = network.model(config)
  for t, h, w in sorted({grid[:3] for grid in schedule_of(config).grids}):
    assert logits_shape(model, 2, t, h, w, 3) == (2, 5)


@pytest.mark.parametrize(
  'name,golden,num_train',
  [
    ('kinetics400', 'kinetics_slowfast8x8', 240_000),
    ('ssv2', 'ssv2_slowfast16x8', 168_913),
    ('charades', 'charades_slowfast16x8', 7_985),
  ],
)
@pytest.mark.parametrize(
  'mode,suffix', [('none', 'baseline'), ('both', 'multigrid')]
)
def test_the_paper_configs_train_like_the_reference(
  name, golden, num_train, mode, suffix
):
  path = GOLDEN / f'schedule_{golden}_{suffix}.json'
  want = json.loads(path.read_text())['output']
  s = grids.schedule(get_config(name, f'grid={mode}'), num_train)
  assert s.total_epochs == want['max_epoch']
  lr = [s.lr_at_epoch(0.25 * k) for k in range(len(want['lr_at_epoch']['lr']))]
  assert lr == pytest.approx(want['lr_at_epoch']['lr'], rel=1e-12)
  stages = {stage['end_epoch']: stage for stage in want['stages']}
  for phase in s.phases:
    if phase.end_epoch in stages:
      stage = stages[phase.end_epoch]
      assert phase.base.batch == stage['batch_size']
      assert phase.base.T == stage['num_frames']
      assert list(phase.stride_frames) == stage['sampling_rate_range']


@pytest.mark.parametrize(
  'arg,want',
  [
    ('', (1, 'both', 0.5, False)),
    ('seed=3', (3, 'both', 0.5, False)),
    ('grid=none, rate=2, fast=true', (1, 'none', 2.0, True)),
  ],
)
def test_arguments_after_the_colon_get_the_type_of_their_default(arg, want):
  args = arguments.parse_args(arg, seed=1, grid='both', rate=0.5, fast=False)
  got = (args.seed, args.grid, args.rate, args.fast)
  assert got == want
  assert list(map(type, got)) == list(map(type, want))


@pytest.mark.parametrize(
  'arg,message',
  [
    ('gird=none', "'gird=none' is unknown; accepted .* seed=..., grid=..."),
    ('none', "'none' is unknown"),
    ('seed=1.5', "seed='1.5' is not of type int"),
    ('seed=1,seed=2', "'seed' is given twice"),
  ],
)
def test_other_arguments_are_refused(arg, message):
  with pytest.raises(ConfigError, match=message):
    arguments.parse_args(arg, seed=1, grid='both')


@pytest.mark.parametrize(
  'model', ['resnet', 'slow_r34', 'slowfast_4x8', 'slowfast_r50_50_50']
)
def test_a_model_that_a_config_has_no_recipe_for_is_refused(model):
  with pytest.raises(ConfigError, match=f"model='{model}' is unknown here"):
    get_config('kinetics400', f'model={model}')


@pytest.mark.parametrize(
  'model',
  [n for n in models.MODELS if network_options.options_of(n).has_batch_norm],
)
def test_every_convolutional_network_has_a_config(model):
  config = get_config('kinetics400', f'model={model}')
  assert config.model.name == model and config.model.depth == 50


def test_networks_on_segments_are_named_with_their_depth():
  found = {
    name: (config.model.name, config.model.depth, config.data.num_frames)
    for name in segments.MODELS
    for config in [get_config('ssv2', f'model={name}')]
    if network.model(config)
  }
  assert len(found) == 38
  for name, want in {
    'tsn_r18': ('tsn', 18, 8),
    'i3d_resnet_r101': ('i3d_resnet', 101, 8),
    'blresnet_101': ('blresnet', 101, 8),
    'blvnet_tam_101': ('blvnet_tam', 101, 32),
  }.items():
    assert found[name] == want


@pytest.mark.parametrize('name', ['ucf101', 'hmdb51', 'ssv1', 'mit'])
def test_a_model_without_a_recipe_for_segments_is_refused(name):
  with pytest.raises(ConfigError, match='model=.* is unknown here'):
    get_config(name, 'model=slowfast')


@pytest.mark.parametrize('name', ['ucf101', 'hmdb51'])
def test_fine_tuning_on_small_sets_is_tsms(name):
  config = get_config(name)
  assert (config.model.dropout, config.init_head) == (0.8, 'new')
  lr = [schedule_of(config).lr_at_epoch(e) for e in (0, 9.9, 10, 20, 24.9)]
  want = [0.001 * factor for factor in (1, 1, 0.1, 0.01, 0.01)]
  assert lr == pytest.approx(want, rel=1e-9)
  with pytest.raises(ConfigError, match='blvnet_tam_50'):
    get_config(name, 'model=blvnet_tam_50')


@pytest.mark.parametrize(
  'model,frames,different',
  [
    ('slowfast_r50_8x8', (32, 2), {}),
    (
      'slowfast_r50_4x16',
      (32, 2),
      {'model.alpha': 8, 'model.fusion_kernel': 5},
    ),
    ('slowfast_r50_16x8', (64, 2), {}),
    (
      'slowfast_r101_8x8_101_101',
      (32, 2),
      {'model.depth': 101, 'model.fusion_kernel': 5},
    ),
    (
      'slowfast_r101_16x8_50_50',
      (64, 2),
      {
        'model.depth': 101,
        'model.fusion_kernel': 5,
        'model.num_temporal': (3, 4, 6, 3),
      },
    ),
    (
      'slowfast_nln',
      (32, 2),
      {
        'model.fusion_kernel': 5,
        'model.nonlocal_blocks': ((), (1, 3), (1, 3, 5), ()),
        'model.nonlocal_mode': 'dot_product',
      },
    ),
    ('slow_r50_4x16', (4, 16), {'model.name': 'slow'}),
    ('slow', (8, 8), {'model.name': 'slow'}),
    (
      'c2d_nln_r50_8x8',
      (8, 8),
      {
        'model.name': 'c2d',
        'model.nonlocal_blocks': ((), (1, 3), (1, 3, 5), ()),
      },
    ),
  ],
)
def test_a_model_name_sets_its_network_and_frames_only(
  model, frames, different
):
  base, config = (
    flat(get_config('kinetics400', f'model={name}'))
    for name in ('slowfast', model)
  )
  assert (config['data.num_frames'], config['data.stride_frames']) == frames
  changed = {key: config[key] for key in config if config[key] != base[key]}
  changed = {k: v for k, v in changed.items() if not k.startswith('data.')}
  assert changed == different


def test_a_model_without_frames_in_its_name_has_those_of_the_recipe():
  assert get_config('ssv2', 'model=slow').data.num_frames == 16
  assert get_config('charades').data.num_frames == 64


@pytest.mark.parametrize(
  'field,value',
  [
    ('model.dropout', 1.0),
    ('model.dtype', 'float16'),
    ('data.std', (0.2, 0.2)),
    ('optim.gamma', 0.0),
    ('eval.num_crops', 2),
    ('eval.head', 'local'),
    ('model.fusion_kernel', 4),
    ('model.nonlocal_mode', 'gaussian'),
    ('model.nonlocal_pool', (2, 2)),
    ('model.nonlocal_pool', ()),
    ('model.nonlocal_pool', ((1, 2, 2), (0, 2, 2))),
    ('model.nonlocal_pool_fast', (1, 2)),
    ('data.mean', ()),
    ('data.mean', ('a', 1, 2)),
    ('data.std', (1.0, float('inf'), 1.0)),
    ('data.std', (True, 1, 1)),
    ('model.blocks', (True, 1)),
    ('optim.base_lr', float('inf')),
    ('optim.base_lr', float('nan')),
    ('seed', -1),
  ],
)
def test_values_that_cannot_work_are_refused_by_field_name(field, value):
  config = default.base()
  config.update_from_flattened_dict({field: value})
  with pytest.raises(ConfigError, match=f'^{field} is .*; it must be'):
    rules.validate(config)


@pytest.mark.parametrize(
  'field,value',
  [
    ('optim.warmup_epochs', float('nan')),
    ('optim.lr_steps', (1, float('inf'))),
    ('grid.ladder', ((1.0, float('nan'), 0.1, 'cosine'),)),
  ],
)
def test_numbers_are_finite_also_where_other_fields_decide(field, value):
  config = default.base()
  config.update_from_flattened_dict({field: value})
  with pytest.raises(ConfigError, match=f'^{field} is .* must be finite'):
    rules.validate(config)


@pytest.mark.parametrize('name', ['ssv1', 'ssv2', 'moving_digits'])
def test_clips_are_not_mirrored_where_labels_have_a_direction(name):
  assert not get_config(name).data.flip


def test_charades_has_any_number_of_labels_and_the_published_protocol():
  config = get_config('charades')
  assert config.optim.loss == 'sigmoid'
  evaluation = config.eval
  assert (evaluation.num_views, evaluation.num_crops) == (10, 3)
  assert evaluation.ensemble == 'max'


def test_augmentation_is_off_in_every_config_of_convolutions():
  for name in set(NAMES) - {'finetune'}:
    assert augmentation.augment(get_config(name)) is None
