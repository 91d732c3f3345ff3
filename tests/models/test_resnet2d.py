"""TSN, TSM, TAM and IBM's 3-D networks: sizes, places of modules, grids."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgjax import models
from mgjax.cli import ConfigError
from mgjax.config import fields, network_options, rules
from mgjax.models.head import Head
from mgjax.planning import macs
from mgjax.setup import grids
from tests.models import reference_2d

NAMES = ('tsn', 'tsm', 'tam', 'i3d_resnet', 's3d_resnet')
SMALL = dict(num_classes=5, dropout=0.5, dtype='float32', width=4)


def small(name, **options):
  return models.build(name, **(SMALL | {'blocks': (1, 1, 1, 1)} | options))


# Parameters with 174 classes, and multiply-adds of 8 frames of 224 x 224: the
# references' own code counted by fvcore.
@pytest.mark.parametrize(
  'name,parameters,multiply_adds',
  [
    ('tsn', 23_864_558, 32_699_940_864),
    ('tsm', 23_864_558, 32_699_940_864),
    ('tam', 23_903_918, 32_834_813_952),
    ('i3d_resnet', 46_517_870, 64_183_173_120),
    ('s3d_resnet', 27_663_342, 39_520_665_600),
  ],
)
def test_sizes_are_those_of_the_references(name, parameters, multiply_adds):
  model = models.build(name, num_classes=174, dropout=0.5, dtype='float32')
  assert reference_2d.num_parameters(model) == parameters
  assert macs.forward_macs(model, T=8, H=224, W=224) == multiply_adds


def test_other_depths_have_the_sizes_of_torchvision():
  build = functools.partial(
    models.build, 'tsn', num_classes=1000, dropout=0.5, dtype='float32'
  )
  # torchvision's documented numbers of parameters and (rounded) GFLOPs.
  assert reference_2d.num_parameters(build(depth=34)) == 21_797_672
  assert reference_2d.num_parameters(build(depth=101)) == 44_549_160
  model = build(depth=18)
  assert reference_2d.num_parameters(model) == 11_689_512
  assert round(macs.forward_macs(model, T=1, H=224, W=224) / 1e9, 3) == 1.814


# Of ResNet-50 at 224 x 224: blocks, inner channels and side of each stage.
_STAGES = ((3, 64, 56), (4, 128, 28), (6, 256, 14), (3, 512, 7))
# Channels and side in front of every block.
_INPUTS = [(64, 56)]
for _blocks, _inner, _side in _STAGES:
  _INPUTS += [(4 * _inner, _side)] * _blocks
_INPUTS.pop()  # What the last block gives.


def full(name, **options):
  return models.build(
    name, num_classes=174, dropout=0.5, dtype='float32', **options
  )


def test_a_dense_aggregation_has_weights_for_all_pairs_of_channels():
  dense = full('tam', tam_depthwise=False)
  assert reference_2d.num_parameters(dense) == 23_864_558 + sum(
    3 * c * c for c, _ in _INPUTS
  )
  assert macs.forward_macs(dense, T=8, H=224, W=224) == 32_699_940_864 + sum(
    8 * 3 * c * c * side**2 for c, side in _INPUTS
  )


def test_depthwise_temporal_layers_have_a_kernel_per_channel():
  saved = [blocks * 3 * (c * c - c) for blocks, c, _ in _STAGES]
  depthwise = full('s3d_resnet', depthwise_temporal=True)
  assert reference_2d.num_parameters(depthwise) == 27_663_342 - sum(saved)
  for strides, frames in [((), (8, 8, 8, 8)), ((1, 2, 2, 2), (8, 4, 2, 1))]:
    dense, depthwise = (
      macs.forward_macs(
        full('s3d_resnet', depthwise_temporal=d, temporal_strides=strides),
        T=8,
        H=224,
        W=224,
      )
      for d in (False, True)
    )
    assert dense - depthwise == sum(
      t * macs_saved * side**2
      for t, macs_saved, (_, _, side) in zip(
        frames, saved, _STAGES, strict=True
      )
    )


def logits_and_statistics(model, variables, grid):
  return jax.eval_shape(
    lambda v, x: model.apply(
      v,
      x,
      same_group=models.group_matrix(2, 1),
      deterministic=True,
      mutable=['batch_stats'],
    ),
    variables,
    jax.ShapeDtypeStruct((2, *grid, 3), jnp.float32),
  )


@pytest.mark.parametrize('name', NAMES)
def test_one_tree_serves_odd_crops_and_few_frames(name):
  options = dict(depth=18, blocks=(1, 1), temporal_strides=(1, 2))
  model = small(name, **options)
  variables = reference_2d.shapes_of(model)
  assert reference_2d.shapes_of(model, (1, 5, 45, 79, 3)) == variables
  for grid in [(1, 79, 79), (3, 113, 64)]:
    logits, new = logits_and_statistics(model, variables, grid)
    assert logits.shape == (2, 5)
    assert new['batch_stats'] == variables['batch_stats']


def test_one_tree_serves_every_grid_of_a_multigrid_schedule():
  config = fields.base()
  config.model.name = 'tam'
  config.grid.mode = 'both'
  config.data.num_frames = 8
  config.data.sampling = 'segments'
  schedule = grids.schedule(config, 1000)
  assert {grid.T for grid in schedule.grids} == {2, 4, 8}
  model = small('tam', blocks=(1, 1))
  variables = reference_2d.shapes_of(model)
  for grid in schedule.grids:
    logits, _ = logits_and_statistics(model, variables, grid[:3])
    assert logits.shape == (2, 5)


def frames_of_stages(name, options):
  model = small(name, depth=18, temporal_strides=(1, 2, 2, 2), **options)
  _, captured = jax.eval_shape(
    lambda v, x: model.apply(
      v,
      x,
      capture_intermediates=lambda module, _: (module.name or '')[:3] == 'res',
      mutable=['intermediates'],
    ),
    reference_2d.shapes_of(model),
    jax.ShapeDtypeStruct((1, 9, 32, 32, 3), jnp.float32),
  )
  captured = captured['intermediates']
  return [captured[f'res{i}']['__call__'][0].shape[1] for i in range(2, 6)]


@pytest.mark.parametrize(
  'name,options',
  [
    ('tsn', {}),
    ('tsm', {'temporal_pool': 'avg'}),
    ('i3d_resnet', {}),
    ('s3d_resnet', {}),
    ('s3d_resnet', {'depthwise_temporal': True}),
  ],
)
def test_temporal_strides_halve_the_frames_upwards(name, options):
  assert frames_of_stages(name, options) == [9, 5, 3, 2]


@pytest.mark.parametrize(
  'pool,values', [('max', [1, 3, 4]), ('avg', [1 / 3, 2, 7 / 3])]
)
def test_temporal_strides_pool_three_frames(pool, values):
  model = small('tsn', temporal_pool=pool)
  x = jnp.arange(5.0).reshape(1, 5, 1, 1, 1)
  pooled, stride = model.enter_stage(x, 2)
  assert stride == 1
  np.testing.assert_allclose(pooled.ravel(), values, rtol=1e-6)
  assert model.enter_stage(x, 1) == (x, 1)


def shifted_blocks(model, blocks):
  return [
    [bool(model.temporal_options(blocks, j)) for j in range(n)] for n in blocks
  ]


def test_tsm_101_shifts_every_second_block_unless_in_place():
  blocks = (3, 4, 23, 3)
  every = [[True] * n for n in blocks]
  second = [[j % 2 == 0 for j in range(n)] for n in blocks]
  build = functools.partial(small, 'tsm', blocks=())
  assert shifted_blocks(build(depth=101), blocks) == second
  assert shifted_blocks(build(depth=101, shift_place='block'), blocks) == every
  assert shifted_blocks(build(depth=50), (3, 4, 6, 3)) == [
    [True] * n for n in (3, 4, 6, 3)
  ]


def run(model, video, seed=0):
  """Logits with random weights and statistics."""
  rng = np.random.default_rng(seed)
  shapes = jax.tree.map(
    lambda leaf: jnp.asarray(rng.uniform(0.1, 0.5, leaf.shape), jnp.float32),
    reference_2d.shapes_of(model),
  )
  return jax.jit(model.apply)(shapes, video)


def test_a_shift_in_place_acts_on_the_shortcut_too():
  # One frame, all channels shifted: nothing is left of it in the whole block.
  options = dict(depth=18, blocks=(1,), shift_div=2)
  video = jax.random.normal(jax.random.key(0), (2, 1, 8, 8, 3))
  first, second = run(small('tsm', shift_place='block', **options), video)
  np.testing.assert_array_equal(first, second)
  first, second = run(small('tsm', **options), video)
  assert np.abs(first - second).max() > 1e-3 * np.abs(first).max()


def test_tsn_averages_the_logits_of_its_frames():
  model = small('tsn', depth=18, blocks=(1,))
  video = jax.random.normal(jax.random.key(0), (1, 3, 8, 8, 3))
  # The frames of one clip, as clips of one frame.
  frames = run(model, video[0][:, None])
  # float32 logits of order 1.
  np.testing.assert_allclose(
    run(model, video)[0], frames.mean(0), rtol=1e-5, atol=1e-5
  )


def test_every_frame_has_its_own_dropout_mask():
  head = Head(5, dropout=0.5, per_frame=True)
  x = jnp.ones((1, 2, 1, 1, 64))
  variables = head.init(jax.random.key(0), [x], deterministic=True)
  apply = lambda x: head.apply(
    variables,
    [x],
    deterministic=False,
    rngs={'dropout': jax.random.key(1)},
  )
  # With one mask for both frames, frames that cancel would give the bias, 0.
  assert np.abs(apply(x * jnp.array([1, -1]).reshape(1, 2, 1, 1, 1))).max() > 0


@pytest.mark.parametrize(
  'name,options,message',
  [
    ('tsn', {'depth': 20}, 'depth is 20; it must be 18, 34, 50'),
    ('tam', {'temporal_strides': (1, 2)}, 'for each of the 4 stages'),
    ('i3d_resnet', {'temporal_strides': (1, 3, 1, 1)}, 'strides of 1 or 2'),
    ('tsm', {'shift_place': 'inplace'}, "must be 'blockres' or 'block'"),
    ('tsn', {'temporal_pool': 'mean'}, "must be 'max' or 'avg'"),
    ('tam', {'tam_blend': 'mean'}, "must be 'sum' or 'max'"),
    ('i3d_resnet', {'temporal_pool': 'avg'}, 'no option temporal_pool'),
  ],
)
def test_options_that_cannot_work_are_refused_at_once(name, options, message):
  with pytest.raises(ValueError, match=message):
    models.build(name, num_classes=2, dropout=0.0, dtype='float32', **options)


@pytest.mark.parametrize(
  'field,value',
  [
    ('model.temporal_strides', (1, 3)),
    ('model.temporal_pool', 'mean'),
    ('model.tam_frames', 4),
    ('model.tam_blend', 'mean'),
    ('model.shift_div', 1),
    ('model.shift_place', 'inplace'),
    ('model.bl_alpha', 0),
    ('model.bl_beta', 0),
  ],
)
def test_fields_that_cannot_work_are_refused_by_name(field, value):
  config = fields.base()
  option = field.removeprefix('model.')
  config.model.name = network_options.networks_with(option)[0]
  config.model[option] = value
  with pytest.raises(ConfigError, match=f'^{field} is .*; it must be'):
    rules.validate(config)


@pytest.mark.parametrize('name', ['tam', 's3d_resnet'])
def test_bfloat16_keeps_float32_parameters_statistics_and_logits(name):
  model = small(name, blocks=(1,), dtype='bfloat16')
  variables = reference_2d.shapes_of(model)
  video = jax.ShapeDtypeStruct((1, 2, 32, 32, 3), jnp.float32)
  logits = jax.eval_shape(model.apply, variables, video)
  for leaf in jax.tree.leaves((variables, logits)):
    assert leaf.dtype == jnp.float32
