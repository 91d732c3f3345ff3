"""TimeSformer: grids, positions, options. See test_reference_vit.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgjax import models
from mgjax.models import norm, timesformer
from tests.models.test_reference_vit import jit

SMALL = {'depth': 2, 'width': 12, 'heads': 2, 'patch_px': 8}


def small(**options):
  options = SMALL | {'position_grid': (4, 16, 24)} | options
  return models.build('timesformer', num_classes=5, **options)


def clips(*shape):
  return jax.random.normal(jax.random.key(1), (*shape, 3))


@functools.cache
def small_variables():
  model = small()
  variables = jit(model.init)(jax.random.key(0), models.example_video(model, 8))
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
  'grid', [(1, 1, 8, 8), (2, 4, 16, 24), (1, 7, 40, 8), (1, 3, 8, 56)]
)
def test_one_tree_serves_every_grid(grid):
  model = small()
  found = jax.eval_shape(model.init, jax.random.key(0), clips(*grid))
  assert jax.tree.map(jnp.shape, found) == jax.tree.map(
    jnp.shape, small_variables()
  )
  logits = jit(model.apply)(small_variables(), clips(*grid))
  assert logits.shape == (grid[0], 5) and jnp.isfinite(logits).all()


@pytest.mark.parametrize(
  'size,new_size,expected',
  [
    (4, 4, [0, 1, 2, 3]),
    (4, 2, [0, 2]),
    (3, 5, [0, 0, 1, 1, 2]),
    (8, 3, [0, 2, 5]),
    (1, 3, [0, 0, 0]),
  ],
)
def test_the_start_of_an_element_finds_the_nearest(size, new_size, expected):
  """The numbers of torch.nn.functional.interpolate(mode='nearest')."""
  assert timesformer.nearest(size, new_size).tolist() == expected


def test_a_finer_grid_repeats_positions():
  """Twice the frames, rows and columns: each position, eight times."""
  tables = (
    jax.random.normal(jax.random.key(0), (7, 4)),
    jax.random.normal(jax.random.key(1), (2, 4)),
  )
  of_token, of_places, of_frames = timesformer.at_nearest(
    *tables, (2, 2, 3), (2, 2, 3)
  )
  np.testing.assert_array_equal(of_places, tables[0][1:])
  np.testing.assert_array_equal(of_frames[:, 0], tables[1])
  finer_token, finer_places, finer_frames = timesformer.at_nearest(
    *tables, (2, 2, 3), (4, 4, 6)
  )
  np.testing.assert_array_equal(finer_token, of_token)
  np.testing.assert_array_equal(
    finer_places,
    of_places.reshape(2, 3, -1).repeat(2, 0).repeat(2, 1).reshape(24, -1),
  )
  np.testing.assert_array_equal(finer_frames, of_frames.repeat(2, 0))


def test_positions_tell_frames_rows_and_columns_apart():
  video = clips(1, 4, 16, 24)
  apply = functools.partial(jit(small().apply), small_variables())
  plain = apply(video)
  patches = video.reshape(1, 4, 2, 8, 3, 8, 3)
  for axis in (1, 2, 4):
    other = jnp.flip(patches, axis).reshape(video.shape)
    assert jnp.abs(apply(other) - plain).max() > 1e-3 * jnp.std(plain)


def test_blocks_but_the_first_begin_without_attention_over_time():
  model = small()
  params = jit(model.init)(jax.random.key(0), models.example_video(model, 8))[
    'params'
  ]
  assert params['block0']['time_proj']['kernel'].any()
  assert not params['block1']['time_proj']['kernel'].any()


def test_bfloat16_gives_float32_logits_that_are_near():
  video = clips(2, 4, 16, 24)
  exact = jit(small().apply)(small_variables(), video)
  found = jit(small(dtype='bfloat16').apply)(small_variables(), video)
  assert found.dtype == jnp.float32
  assert jnp.abs(found - exact).max() < 0.1 * jnp.std(exact)


def test_a_grid_that_patches_do_not_divide_is_refused():
  words = 'clips have 20 rows; with patch_px=8 .*grid.side_multiple=8 makes'
  with pytest.raises(ValueError, match=words):
    jax.eval_shape(small().init, jax.random.key(0), clips(1, 3, 20, 24))


@pytest.mark.parametrize(
  'options,words',
  [
    ({'heads': 5}, 'heads is 5; it must divide the width of 12'),
    ({'position_grid': (4, 16, 20)}, 'position_grid has 20 columns; .* of 8'),
    ({'tubelet_frames': 2}, "'timesformer' has no option tubelet_frames"),
  ],
)
def test_options_that_cannot_be_are_refused(options, words):
  with pytest.raises(ValueError, match=words):
    small(**options)


def test_drop_path_grows_from_the_first_block_to_the_last(monkeypatch):
  rates = []
  call = timesformer.Block.__call__
  monkeypatch.setattr(
    timesformer.Block,
    '__call__',
    lambda self, *args: rates.append(self.drop_path) or call(self, *args),
  )
  model = small(depth=3, drop_path=0.2)
  jax.eval_shape(model.init, jax.random.key(0), clips(1, 2, 8, 8))
  assert rates == pytest.approx([0, 0.1, 0.2])


def test_nothing_is_dropped_in_evaluation():
  video = clips(4, 2, 16, 16)
  expected = jit(small().apply)(small_variables(), video)
  model = small(drop_path=0.5, dropout=0.5)
  np.testing.assert_array_equal(
    jit(model.apply)(small_variables(), video), expected
  )
  trained = jit(model.apply)(
    small_variables(),
    video,
    same_group=norm.group_matrix(4, 1),
    rngs={'dropout': jax.random.key(0)},
  )
  assert jnp.abs(trained - expected).max() > 0.1
