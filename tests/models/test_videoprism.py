"""VideoPrism: grids, options, drop path. See test_reference_vit.py."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgjax import models
from mgjax.config import fields
from mgjax.models import attention, norm, videoprism
from mgjax.planning import macs
from mgjax.recipes import transformers
from mgjax.setup import network

# Most of the time goes into compiling; the programs run once.
jit = functools.partial(
  jax.jit,
  compiler_options={
    'xla_backend_optimization_level': 0,
    'xla_llvm_disable_expensive_passes': True,
  },
)


def small(**options):
  options = {
    'patch_px': 8,
    'width': 24,
    'heads': 2,
    'spatial_depth': 2,
    'temporal_depth': 1,
    'position_grid': (4, 32, 24),
  } | options
  return models.build('videoprism', num_classes=5, **options)


def clips(*shape):
  return jax.random.normal(jax.random.key(1), (*shape, 3))


@functools.cache
def small_variables():
  model = small()
  variables = jit(model.init)(jax.random.key(0), models.example_video(model, 4))
  # Make all branches count, and no two features be equal.
  leaves, tree = jax.tree.flatten(variables)
  keys = jax.random.split(jax.random.key(2), len(leaves))
  return jax.tree.unflatten(
    tree,
    [
      x + 0.2 * jax.random.normal(key, x.shape)
      for x, key in zip(leaves, keys, strict=True)
    ],
  )


@pytest.mark.parametrize(
  'grid', [(1, 1, 8, 8), (2, 4, 32, 24), (1, 7, 16, 56), (1, 6, 40, 8)]
)
def test_one_tree_serves_every_grid(grid):
  model = small()
  found = jax.eval_shape(model.init, jax.random.key(0), clips(*grid))
  assert jax.tree.map(jnp.shape, found) == jax.tree.map(
    jnp.shape, small_variables()
  )
  logits = jax.eval_shape(model.apply, small_variables(), clips(*grid))
  assert logits.shape == (grid[0], 5)


def test_rows_and_columns_of_a_clip_may_differ():
  """A clip on its side is seen by a network on its side, to equal logits."""
  video, variables = clips(2, 3, 40, 16), small_variables()
  params = dict(variables['params'])
  kernel = params['embed']['kernel'].swapaxes(1, 2)
  table = params['spatial']['position_table'].reshape(4, 3, -1).swapaxes(0, 1)
  params['embed'] = params['embed'] | {'kernel': kernel}
  params['spatial'] = params['spatial'] | {
    'position_table': table.reshape(12, -1)
  }
  on_its_side = small(position_grid=(4, 24, 32))
  np.testing.assert_allclose(
    jit(on_its_side.apply)({'params': params}, video.swapaxes(2, 3)),
    jit(small().apply)(variables, video),
    rtol=1e-4,
    atol=1e-5,
  )


def test_positions_tell_frames_rows_and_columns_apart():
  """The same patches in another order give other logits."""
  video = clips(1, 4, 16, 16)
  apply = functools.partial(jit(small().apply), small_variables())
  plain = apply(video)
  patches = video.reshape(1, 4, 2, 8, 2, 8, 3)
  for axis in (1, 2, 4):
    other = jnp.flip(patches, axis).reshape(video.shape)
    assert jnp.abs(apply(other) - plain).max() > 1e-3 * jnp.std(plain)


def test_bfloat16_gives_float32_logits_that_are_near():
  video, variables = clips(2, 4, 32, 48), small_variables()
  exact = jit(small().apply)(variables, video)
  found = jit(small(dtype='bfloat16').apply)(variables, video)
  assert found.dtype == jnp.float32
  assert jnp.abs(found - exact).max() < 0.1 * jnp.std(exact)


def test_norms_start_as_the_identity_of_what_is_normalised():
  x = 3 + 2 * jax.random.normal(jax.random.key(0), (5, 24))
  layer = videoprism.LayerNorm(1e-6)
  y, variables = layer.init_with_output(jax.random.key(0), x)
  assert not variables['params']['scale'].any()
  np.testing.assert_allclose(y.mean(-1), 0, atol=1e-5)
  np.testing.assert_allclose(y.std(-1), 1, rtol=1e-4)


def test_capped_affinities_stay_below_the_cap():
  query, key, value = 9 * jax.random.normal(jax.random.key(0), (3, 1, 4, 2, 8))
  found = jit(attention.attend, static_argnums=3)(query, key, value, 5.0)
  affinities = np.einsum('bqhd,bkhd->bhqk', query, key) / np.sqrt(8)
  assert np.abs(affinities).max() > 100
  weights = np.exp(5 * np.tanh(affinities / 5))
  weights /= weights.sum(-1, keepdims=True)
  expected = np.einsum('bhqk,bkhd->bqhd', weights, value).reshape(1, 4, 16)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
  'grid,words',
  [
    (
      (4, 36, 32),
      r'clips have 36 rows; .* multiple of 8 \(grid.side_multiple=8',
    ),
    (
      (4, 32, 23),
      'clips have 23 columns; with patch_px=8 it must be a multiple',
    ),
    ((0, 32, 32), 'clips have 0 frames'),
  ],
)
def test_a_grid_that_patches_do_not_divide_is_refused(grid, words):
  with pytest.raises(ValueError, match=words):
    jax.eval_shape(small().init, jax.random.key(0), clips(1, *grid))


@pytest.mark.parametrize(
  'options,words',
  [
    ({'heads': 5}, 'heads is 5; it must divide the width of 24'),
    ({'position_grid': (4, 36, 24)}, 'position_grid has 36 rows; .* of 8'),
    ({'position_grid': (4, 32)}, 'position_grid is .* three positive integers'),
    ({'logit_cap': -1.0}, 'logit_cap is -1.0; it must be 0 or more'),
    ({'temporal_depth': 0}, 'temporal_depth is 0; it must be 1 or more'),
    ({'tubelet_frames': 2}, "'videoprism' has no option tubelet_frames"),
  ],
)
def test_options_that_cannot_be_are_refused(options, words):
  with pytest.raises(ValueError, match=words):
    small(**options)


# Drop path.


def in_training(model, video, clip_index=None, variables=None):
  """Logits, and the tokens of each encoder."""
  kept, variables = [], variables or small_variables()

  def keep(call, args, kwargs, context):
    result = call(*args, **kwargs)
    if isinstance(context.module, videoprism.Encoder):
      kept.append(result)
    return result

  @jit
  def run(video, clip_index):
    with nn.intercept_methods(keep):
      logits = model.apply(
        variables,
        video,
        same_group=norm.group_matrix(len(video), 1),
        clip_index=clip_index,
        rngs={'dropout': jax.random.key(3)},
      )
    return logits, *kept

  return run(video, clip_index)


def test_a_branch_is_dropped_for_all_frames_and_places_of_a_clip():
  video = jnp.repeat(clips(6, 1, 8, 8), 3, axis=1)
  _, spatial, _ = in_training(small(drop_path=0.8), video)
  frames = spatial.reshape(6, 3, -1)
  np.testing.assert_array_equal(frames[:, 1:], frames[:, :1].repeat(2, 1))
  # All places are the same where their patches and positions are.
  video = jnp.tile(clips(6, 3, 8, 8), (1, 1, 2, 2, 1))
  table = small_variables()['params']['spatial']
  model = small(drop_path=0.8)
  table = table | {'position_table': jnp.zeros((12, 24))}
  params = small_variables()['params'] | {'spatial': table}
  _, _, temporal = in_training(model, video, variables={'params': params})
  places = temporal.reshape(6, 4, -1)
  np.testing.assert_allclose(
    places[:, 1:], places[:, :1].repeat(3, 1), rtol=1e-5, atol=1e-5
  )


def test_what_is_dropped_belongs_to_the_clips():
  """A part of a batch drops what its clips drop in the whole."""
  model, video = small(drop_path=0.6, dropout=0.5), clips(8, 2, 16, 16)
  whole, *_ = in_training(model, video)
  part, *_ = in_training(model, video[1::2], jnp.arange(1, 8, 2))
  np.testing.assert_allclose(part, whole[1::2], rtol=1e-4, atol=1e-5)
  plain = jit(small().apply)(small_variables(), video)
  assert jnp.abs(whole - plain).max() > 0.1
  np.testing.assert_array_equal(
    jit(model.apply)(small_variables(), video), plain
  )


def test_drop_path_grows_from_the_first_block_to_the_last(monkeypatch):
  rates = []
  call = attention.Block.__call__

  def spy(self, *args):
    rates.append(self.drop_path)
    return call(self, *args)

  monkeypatch.setattr(attention.Block, '__call__', spy)
  model = small(drop_path=0.3)
  jax.eval_shape(model.init, jax.random.key(0), clips(1, 2, 8, 8))
  assert rates == pytest.approx([0, 0.15, 0.3])


# Published sizes: parameters of the reference's classifier and encoder.


@pytest.mark.parametrize(
  'name,classifier,encoder',
  [
    ('videoprism_b', 117_037_520, 114_365_184),
    ('videoprism_l', 358_576_592, 353_965_056),
  ],
)
def test_it_has_the_size_of_its_reference(name, classifier, encoder):
  config = fields.base()
  transformers.set_network(config, name)
  assert (config.grid.frames_multiple, config.grid.side_multiple) == (1, 18)
  config.model.num_classes = 400
  model = network.model(config)
  t, h, w = model.position_grid
  params = jax.eval_shape(
    model.init, jax.random.key(0), models.example_video(model, t)
  )['params']
  count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  assert count(params) == classifier
  assert classifier - count([params['probe'], params['head']]) == encoder
  # Multiply-adds, by hand.
  n, d = h // 18 * (w // 18), model.width
  block = lambda tokens: 12 * d * d * tokens + 2 * d * tokens**2
  assert macs.forward_macs(model, T=t, H=h, W=w) == (
    t * n * 18 * 18 * 3 * d
    + t * model.spatial_depth * block(n)
    + n * model.temporal_depth * block(t)
    + 2 * d * d * t * n  # The pooler's keys and values,
    + 2 * d * t * n  # its attention,
    + 2 * d * d  # its query and projection.
    + 400 * d
  )
