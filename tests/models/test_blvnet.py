"""bLResNet and bLVNet-TAM: sizes, pairs of frames, grids."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgjax import models
from mgjax.models import blvnet, resnet3d
from mgjax.planning import macs
from tests.models import reference_2d

SMALL = dict(num_classes=5, dropout=0.5, dtype='float32', width=8)


def small(name, **options):
  return models.build(name, **(SMALL | {'blocks': (2, 2, 1, 2)} | options))


def full(name, **options):
  return models.build(
    name, **(dict(num_classes=174, dropout=0.5, dtype='float32') | options)
  )


# The references' own code counted by fvcore: 224 x 224, 16 frames or an image.
@pytest.mark.parametrize(
  'name,options,frames,parameters,multiply_adds',
  [
    ('blvnet_tam', {}, 16, 25_020_142, 23_851_302_912),
    ('blvnet_tam', {'num_classes': 400}, 16, 25_483_216, 23_855_005_696),
    ('blresnet', {'num_classes': 1000}, 1, 26_694_568, 2_856_058_880),
  ],
)
def test_sizes_are_those_of_the_references(
  name, options, frames, parameters, multiply_adds
):
  model = full(name, **options)
  assert reference_2d.num_parameters(model) == parameters
  assert macs.forward_macs(model, T=frames, H=224, W=224) == multiply_adds


@pytest.mark.parametrize(
  'options,frames,crop,gmacs',
  [
    # IBM/bLVNet-TAM, Something-Something. 128.6 is published for 101, 32 x 2.
    ({'depth': 101}, 64, 224, 128.60),
    ({}, 48, 224, 71.55),
    ({}, 48, 256, 93.5),  # Published as 0.84 T for 9 views.
    ({'tam_frames': 0}, 16, 224, 23.78),
  ],
)
def test_multiply_adds_are_the_published_ones(options, frames, crop, gmacs):
  count = macs.forward_macs(
    full('blvnet_tam', **options), T=frames, H=crop, W=crop
  )
  digits = 1 if gmacs == 93.5 else 2
  assert round(count / 1e9, digits) == gmacs


def test_deeper_networks_have_the_published_sizes():
  millions = lambda model: round(reference_2d.num_parameters(model) / 1e6, 2)
  assert millions(full('blvnet_tam', depth=101)) == 40.18
  assert millions(full('blvnet_tam', tam_frames=0)) == 25.00
  # IBM/BigLittleNet: 3.89 GFLOPs.
  model = full('blresnet', depth=101, num_classes=1000)
  assert round(macs.forward_macs(model, T=1, H=224, W=224) / 1e9, 2) == 3.89


def test_each_further_pair_of_aggregated_frames_adds_two_weights_per_channel():
  # Stem and first stage: 8 channels. Blocks of the last stage: 32 and 64.
  size = lambda r: reference_2d.num_parameters(
    small('blvnet_tam', blocks=(2, 2), tam_frames=r)
  )
  assert size(5) - size(3) == size(7) - size(5) == 2 * (8 + 8 + 32 + 64)
  assert size(3) - size(0) == 3 * (8 + 8 + 32 + 64)


def test_alpha_and_beta_set_width_and_depth_of_the_little_branch():
  params = reference_2d.shapes_of(
    small('blresnet', blocks=(8, 2), bl_alpha=4, bl_beta=2)
  )
  stage = params['params']['res2']
  assert sorted(stage['little']) == ['block0', 'block1', 'block2']  # 8 / 2 - 1
  assert sorted(stage['big']) == [f'block{i}' for i in range(7)]  # 8 - 1
  assert stage['little']['block0']['c']['conv']['kernel'].shape[-1] == 8  # 32/4
  assert params['params']['stem']['little0']['conv']['kernel'].shape[-1] == 2


@pytest.mark.parametrize('name', ['blresnet', 'blvnet_tam'])
def test_one_tree_serves_every_grid_in_training(name):
  model = small(name, blocks=(2, 1))
  variables = reference_2d.shapes_of(model)
  assert reference_2d.shapes_of(model, (1, 5, 45, 79, 3)) == variables
  grids = [(1, 79, 79), (3, 113, 64), (8, 112, 112)]
  for grid in grids:
    logits, new = jax.eval_shape(
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
    assert logits.shape == (2, 5)
    assert new['batch_stats'] == variables['batch_stats']


@functools.cache
def logits_function(**options):
  """Logits of a video, with random weights and statistics."""
  model = small('blvnet_tam', blocks=(1, 1), width=4, **options)
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda leaf: jnp.asarray(rng.uniform(0.1, 0.5, leaf.shape), jnp.float32),
    reference_2d.shapes_of(model),
  )
  return jax.jit(functools.partial(model.apply, variables))


def test_the_last_frame_completes_an_odd_number():
  video = jax.random.normal(jax.random.key(0), (1, 3, 9, 8, 3))
  completed = jnp.concatenate([video, video[:, -1:]], axis=1)
  run = logits_function()
  np.testing.assert_allclose(run(video), run(completed), rtol=1e-6)


def test_without_aggregation_pairs_are_independent_but_not_their_frames():
  run = logits_function(tam_frames=0)
  video = jax.random.normal(jax.random.key(0), (1, 4, 8, 8, 3))
  pairs_swapped = video[:, jnp.array([2, 3, 0, 1])]
  frames_swapped = video[:, jnp.array([1, 0, 3, 2])]
  # float32 sums in another order.
  np.testing.assert_allclose(run(pairs_swapped), run(video), rtol=1e-5)
  difference = np.abs(run(frames_swapped) - run(video)).max()
  assert difference > 1e-3 * np.abs(run(video)).max()


def test_a_residual_branch_starts_at_zero():
  block = blvnet.Block(8, resnet3d.Layer, stride=2)
  init = lambda key: block.init(key, jnp.zeros((1, 1, 3, 3, 4)), None)
  params = jax.jit(init)(jax.random.key(0))['params']
  scales = {name: layer['norm']['scale'] for name, layer in params.items()}
  assert not scales.pop('c').any()
  assert sorted(scales) == ['a', 'b', 'shortcut']
  assert all((scale == 1).all() for scale in scales.values())


@pytest.mark.parametrize(
  'options,message',
  [
    ({'depth': 34}, 'depth is 34; it must be 50, 101 or 152'),
    ({'width': 4, 'bl_alpha': 8}, 'bl_alpha 8 leaves no channels of width 4'),
  ],
)
def test_options_that_cannot_work_are_refused_at_once(options, message):
  with pytest.raises(ValueError, match=message):
    full('blvnet_tam', **options)
