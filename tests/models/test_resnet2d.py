"""TSN, TSM, TAM and IBM's 3-D networks: sizes, places of modules, grids."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from mgjax import cycles, macs, models
from mgjax.cli import ConfigError
from mgjax.models import resnet2d

NAMES = ('tsn', 'tsm', 'tam', 'i3d_resnet', 's3d_resnet')
SMALL = dict(num_classes=5, dropout=0.5, dtype='float32', width=4)


def small(name, **options):
  return models.build(name, **(SMALL | {'blocks': (1, 1, 1, 1)} | options))


def shapes_of(model, video=(1, 2, 32, 32, 3)):
  video = jax.ShapeDtypeStruct(video, jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), video)


def num_parameters(model):
  return sum(p.size for p in jax.tree.leaves(shapes_of(model)['params']))


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
  assert num_parameters(model) == parameters
  assert macs.forward_macs(model, T=8, H=224, W=224) == multiply_adds


def test_tsn_101_and_18_have_the_sizes_of_torchvision():
  build = functools.partial(
    models.build, 'tsn', num_classes=1000, dropout=0.5, dtype='float32'
  )
  # torchvision's documented numbers of parameters and (rounded) GFLOPs.
  assert num_parameters(build(depth=18)) == 11_689_512
  assert num_parameters(build(depth=34)) == 21_797_672
  assert num_parameters(build(depth=101)) == 44_549_160
  gmacs = macs.forward_macs(build(depth=18), T=1, H=224, W=224) / 1e9
  assert round(gmacs, 3) == 1.814


@functools.cache
def kinetics_grids():
  """(T, H, W) of multigrid training with 8 segments, and odd rectangles."""
  config = default.base()
  config.grid.mode = 'both'
  config.data.num_frames = 8
  config.data.sampling = 'segments'
  schedule = cycles.make_schedule(config, 1000)
  grids = {grid[:3] for grid in schedule.grids}
  return sorted(grids | {(1, 79, 79), (3, 113, 64)})


@pytest.mark.parametrize('name', NAMES)
def test_one_tree_serves_every_grid_in_training(name):
  model = small(name, depth=18, temporal_strides=(1, 2, 1, 2))
  variables = shapes_of(model)
  assert shapes_of(model, (1, 5, 45, 79, 3)) == variables
  for grid in kinetics_grids():
    logits, new = jax.eval_shape(
      lambda v, x: model.apply(
        v,
        x,
        pool=models.group_matrix(2, 1),
        deterministic=True,
        mutable=['batch_stats'],
      ),
      variables,
      jax.ShapeDtypeStruct((2, *grid, 3), jnp.float32),
    )
    assert logits.shape == (2, 5)
    assert new['batch_stats'] == variables['batch_stats']


def frames_of_stages(name):
  model = small(name, temporal_strides=(1, 2, 2, 2))
  _, captured = jax.eval_shape(
    lambda v, x: model.apply(
      v,
      x,
      capture_intermediates=lambda module, _: (module.name or '')[:3] == 'res',
      mutable=['intermediates'],
    ),
    shapes_of(model),
    jax.ShapeDtypeStruct((1, 9, 32, 32, 3), jnp.float32),
  )
  captured = captured['intermediates']
  return [captured[f'res{i}']['__call__'][0].shape[1] for i in range(2, 6)]


@pytest.mark.parametrize('name', ['tam', 'i3d_resnet', 's3d_resnet'])
def test_temporal_strides_halve_the_frames_upwards(name):
  assert frames_of_stages(name) == [9, 5, 3, 2]


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
    shapes_of(model),
  )
  return jax.jit(model.apply)(shapes, video)


def test_the_place_of_the_shift_decides_about_the_shortcut():
  # One block with an identity shortcut behind one with a projection.
  options = dict(depth=18, blocks=(2,), shift_div=2)
  video = jax.random.normal(jax.random.key(0), (1, 2, 16, 16, 3))
  branch = run(small('tsm', **options), video)
  whole = run(small('tsm', shift_place='block', **options), video)
  assert np.abs(branch - whole).max() > 1e-3 * np.abs(branch).max()
  # On one frame all shifted channels are zeros: in the whole block, nothing
  # of a frame is left with shift_div=2.
  still = run(small('tsm', shift_place='block', **options), video[:, :1])
  other = run(small('tsm', shift_place='block', **options), 2 * video[:, :1])
  np.testing.assert_array_equal(still, other)


def test_tsn_averages_the_logits_of_its_frames():
  model = small('tsn', depth=18, blocks=(1,))
  video = jax.random.normal(jax.random.key(0), (1, 3, 16, 16, 3))
  # The frames of one clip, as clips of one frame.
  frames = run(model, video[0][:, None])
  # float32 logits of order 1.
  np.testing.assert_allclose(
    run(model, video)[0], frames.mean(0), rtol=1e-5, atol=1e-5
  )


def test_every_frame_has_its_own_dropout_mask():
  head = resnet2d.FrameHead(5, dropout=0.5)
  x = jnp.ones((1, 2, 1, 1, 64))
  variables = head.init(jax.random.key(0), x, deterministic=True)
  apply = lambda x: head.apply(
    variables,
    x,
    deterministic=False,
    rngs={'dropout': jax.random.key(1)},
  )
  # With one mask for both frames, frames that cancel would give the bias, 0.
  assert np.abs(apply(x * jnp.array([1, -1]).reshape(1, 2, 1, 1, 1))).max() > 0


@pytest.mark.parametrize(
  'name,options,message',
  [
    ('tsn', {'depth': 20}, 'depth of .18, 34, 50, 101, 152'),
    ('tam', {'temporal_strides': (1, 2)}, 'for each of the 4 stages'),
    ('i3d_resnet', {'temporal_strides': (1, 3, 1, 1)}, 'a 1 or 2'),
    ('tsm', {'shift_place': 'inplace'}, "use 'blockres' or 'block'"),
  ],
)
def test_options_that_cannot_work_are_refused_at_once(name, options, message):
  with pytest.raises(ValueError, match=message):
    models.build(name, num_classes=2, dropout=0.0, dtype='float32', **options)


@pytest.mark.parametrize(
  'field,value',
  [
    ('model.temporal_strides', (1, 3)),
    ('model.tam_frames', 4),
    ('model.shift_div', 1),
    ('model.shift_place', 'inplace'),
    ('model.bl_alpha', 0),
    ('model.bl_beta', 0),
  ],
)
def test_fields_that_cannot_work_are_refused_by_name(field, value):
  config = default.base()
  config.update_from_flattened_dict({field: value})
  with pytest.raises(ConfigError, match=f'^{field} is .*; it must be'):
    default.validate(config)


def test_bfloat16_keeps_float32_parameters_statistics_and_logits():
  for name in NAMES:
    model = small(name, dtype='bfloat16')
    variables = shapes_of(model)
    logits = jax.eval_shape(
      model.apply, variables, jax.ShapeDtypeStruct((1, 2, 32, 32, 3), 'float32')
    )
    for leaf in jax.tree.leaves((variables, logits)):
      assert leaf.dtype == jnp.float32
