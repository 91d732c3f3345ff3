"""MViT: grids, relative positions, options. See test_reference_vit.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgjax import models
from mgjax.models import mvit, norm, positions
from tests.models.test_reference_vit import jit

# Pools of queries and of keys, twice as wide from the second stage on.
SMALL = {'blocks': (1, 1), 'width': 8, 'kv_stride': 4, 'dropout': 0.0}


def small(**options):
  options = SMALL | {'position_grid': (4, 32, 48)} | options
  return models.build('mvit', num_classes=5, **options)


def clips(*shape):
  return jax.random.normal(jax.random.key(1), (*shape, 3))


@functools.cache
def small_variables():
  model = small()
  variables = jit(model.init)(jax.random.key(0), models.example_video(model, 8))
  return jax.tree.map(
    lambda x: x + 0.2 * jax.random.normal(jax.random.key(x.size), x.shape),
    variables,
  )


@pytest.mark.parametrize(
  'grid',
  [(1, 2, 4, 4), (2, 4, 32, 48), (1, 6, 28, 12), (1, 10, 20, 44)],
)
def test_one_tree_serves_every_grid(grid):
  """Also those whose tokens no stride of a pool divides."""
  model = small()
  found = jax.eval_shape(model.init, jax.random.key(0), clips(*grid))
  assert jax.tree.map(jnp.shape, found) == jax.tree.map(
    jnp.shape, small_variables()
  )
  logits = jit(model.apply)(small_variables(), clips(*grid))
  assert logits.shape == (grid[0], 5) and jnp.isfinite(logits).all()


def relative(num_queries, num_keys):
  """Of an axis, distances as the reference counts them, one by one."""
  found = np.zeros((num_queries, num_keys), int)
  for i in range(num_queries):
    for j in range(num_keys):
      spread = max(num_keys / num_queries, 1.0)
      of_query = i * spread
      of_key = (j + 1 - num_keys) * max(num_queries / num_keys, 1.0)
      found[i, j] = int(np.float32(of_query) - np.float32(of_key))
  return found


def resized(table, rows):
  """Linearly, by the centres of elements; the ends are held."""
  where = (np.arange(rows) + 0.5) * len(table) / rows - 0.5
  return np.stack(
    [np.interp(where, np.arange(len(table)), column) for column in table.T], -1
  )


@pytest.mark.parametrize(
  'size,q_stride,kv_stride',
  [
    ((2, 4, 6), 1, 2),
    ((3, 5, 7), 1, 4),  # Keys: 2 x 2, of 5 x 7 queries.
    ((1, 5, 9), 2, 2),
    ((2, 6, 3), 2, 1),  # More keys than queries.
  ],
)
def test_attention_is_what_a_loop_over_queries_finds(size, q_stride, kv_stride):
  """Tables of a base of 4 x 8 x 8 tokens, in float64."""
  heads, width = 2, 12
  with jax.enable_x64(True):
    module = mvit.PoolingAttention(
      width, heads, size, (4, 8, 8), (3, 3, 3), q_stride, kv_stride, jnp.float64
    )
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 1 + np.prod(size), 6))
    params = jax.tree.map(
      lambda leaf: rng.normal(size=leaf.shape),
      jax.eval_shape(module.init, jax.random.key(0), x)['params'],
    )
    found = jit(module.apply)({'params': params}, x)

    def pool(name, part, stride):
      pool = mvit.Pool(heads, size, (3, 3, 3), stride, jnp.float64)
      y = pool.apply({'params': params[f'pool_{name}']}, jnp.asarray(part))
      count = [size[0], *(-(-n // stride) for n in size[1:])]
      assert y.shape == (2, 1 + np.prod(count), heads, width // heads)
      return np.asarray(y), count

    mixed = x @ params['qkv']['kernel']
    mixed += np.concatenate([params[f'{n}_bias'] for n in 'qkv'])
    q, k, v = np.split(mixed, 3, -1)
    q, q_size = pool('q', q, q_stride)
    k, k_size = pool('k', k, kv_stride)
    v, _ = pool('v', v, kv_stride)

  tables, distances = [], []
  for axis, name in enumerate('thw'):
    table = params[f'rel_pos_{name}']
    larger = max(q_size[axis], k_size[axis])
    tables.append(resized(table, 2 * larger - 1))
    distances.append(relative(q_size[axis], k_size[axis]))
  expected = np.zeros((2, q.shape[1], heads, width // heads))
  for clip, i, head in np.ndindex(2, q.shape[1], heads):
    query = q[clip, i, head]
    logits = k[clip, :, head] @ query / np.sqrt(width // heads)
    if i:
      for j in range(1, k.shape[1]):
        places = zip(
          np.unravel_index(i - 1, q_size),
          np.unravel_index(j - 1, k_size),
          strict=True,
        )
        for axis, (a, b) in enumerate(places):
          logits[j] += query @ tables[axis][distances[axis][a, b]]
    weights = np.exp(logits - logits.max())
    expected[clip, i, head] = weights / weights.sum() @ v[clip, :, head]
    expected[clip, i, head] += query * (i > 0)
  expected = expected.reshape(2, -1, width) @ params['proj']['kernel']
  expected += params['proj']['bias']
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize('queries,keys', [(5, 5), (8, 4), (7, 3), (3, 8)])
def test_distances_fill_their_table(queries, keys):
  found = positions.distances(queries, keys)
  np.testing.assert_array_equal(found, relative(queries, keys))
  assert found.min() >= 0 and found.max() <= 2 * max(queries, keys) - 2
  assert found[0, -1] == 0  # The farthest to the right comes first.


@pytest.mark.parametrize('h,w', [(5, 8), (4, 3)])
def test_a_shortcut_is_pooled_like_the_queries(h, w):
  block = mvit.Block(
    8, 2, (2, h, w), (2, 8, 8), (3, 3, 3), 2, 1, 0.0, deterministic=True
  )
  x = clips(1, 1, 1, 1 + 2 * h * w)[..., :1] * jnp.ones(8)
  shape = jax.eval_shape(block.init_with_output, jax.random.key(0), x[0, 0])[0]
  assert shape.shape == (1, 1 + 2 * -(-h // 2) * -(-w // 2), 8)


def test_tables_have_the_size_of_their_stage():
  """Those of the longer side, in tokens; halves are cut off."""
  model = small(position_grid=(6, 20, 44))
  params = jax.eval_shape(
    model.init, jax.random.key(0), models.example_video(model, 8)
  )['params']
  # 3 x 5 x 11 tokens, 2 x 5 a frame in the second stage, which halves 11.
  for block, rows in (('block0', 21), ('block1', 9)):
    attention = params[block]['attention']
    assert attention['rel_pos_t'].shape[0] == 5
    assert attention['rel_pos_h'].shape[0] == rows
    assert attention['rel_pos_w'].shape[0] == rows


def test_bfloat16_gives_float32_logits_that_are_near():
  video = clips(2, 4, 32, 48)
  exact = jit(small().apply)(small_variables(), video)
  found = jit(small(dtype='bfloat16').apply)(small_variables(), video)
  assert found.dtype == jnp.float32
  assert jnp.abs(found - exact).max() < 0.1 * jnp.std(exact)


@pytest.mark.parametrize(
  'grid,words',
  [
    ((7, 32, 32), 'clips have 7 frames; .*grid.frames_multiple=2 makes'),
    ((8, 30, 32), 'clips have 30 rows; .* of 4 .grid.side_multiple=4 mak'),
    ((8, 32, 158), 'clips have 158 columns; with patch_px=4 it must be a mul'),
  ],
)
def test_a_grid_that_tubelets_do_not_divide_is_refused(grid, words):
  with pytest.raises(ValueError, match=words):
    jax.eval_shape(small().init, jax.random.key(0), clips(1, *grid))


@pytest.mark.parametrize(
  'options,words',
  [
    ({'heads': 3}, 'heads is 3; it must divide the width of 8'),
    ({'position_grid': (8, 30, 48)}, 'position_grid has 30 rows; .* of 4'),
    ({'blocks': (1, 0)}, r'blocks is \(1, 0\); it must be positive integers'),
    ({'blocks': ()}, 'it must be positive integers'),
    ({'patch_kernel': (3, 7, 6)}, 'patch_kernel .* three odd positive int'),
    ({'drop_path': 1.0}, r'drop_path is 1.0; it must be in \[0, 1\)'),
    ({'patch': 1}, "'mvit' has no option patch"),
  ],
)
def test_options_that_cannot_be_are_refused(options, words):
  with pytest.raises(ValueError, match=words):
    small(**options)


def test_drop_path_grows_from_the_first_block_to_the_last(monkeypatch):
  rates = []
  call = mvit.Block.__call__
  monkeypatch.setattr(
    mvit.Block,
    '__call__',
    lambda self, *args: rates.append(self.drop_path) or call(self, *args),
  )
  jax.eval_shape(
    small(drop_path=0.2, blocks=(1, 2)).init,
    jax.random.key(0),
    clips(1, 2, 8, 8),
  )
  assert rates == pytest.approx([0, 0.1, 0.2])


def test_nothing_is_dropped_in_evaluation():
  video = clips(4, 2, 8, 8)
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
