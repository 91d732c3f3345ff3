"""Non-local blocks against loops in NumPy, and at every size."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgjax import models
from mgjax.models.head import Head
from mgjax.models.nonlocal_block import NonLocalBlock, max_pool_windows


def random(*shape):
  return jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)


def run(block, variables, x):
  return jax.jit(functools.partial(block.apply, same_group=None))(variables, x)


def block_and_variables(channels=4, **options):
  """A block whose output layer counts: it starts as the identity."""
  block = NonLocalBlock(**options)
  variables = jax.jit(functools.partial(block.init, same_group=None))(
    jax.random.key(0), jnp.zeros((1, 1, 2, 2, channels))
  )
  leaves, tree = jax.tree.flatten(variables)
  generator = np.random.default_rng(0)
  leaves = [
    leaf + generator.uniform(0.1, 0.5, leaf.shape).astype(np.float32)
    for leaf in leaves
  ]
  return block, jax.tree.unflatten(tree, leaves)


def numpy_block(variables, x, mode, pool_window):
  """One clip [T, H, W, C], one group of frames."""
  params, stats = variables['params'], variables['batch_stats']['norm']
  kt, kh, kw = pool_window
  t, h, w, c = x.shape
  pooled = np.stack(
    [
      x[i : i + kt, j : j + kh, k : k + kw].max((0, 1, 2))
      for i in range(0, t - kt + 1, kt)
      for j in range(0, h - kh + 1, kh)
      for k in range(0, w - kw + 1, kw)
    ]
  )

  def project(name, v):
    kernel = np.asarray(params[name]['conv']['kernel'])[0, 0, 0]
    return v @ kernel + np.asarray(params[name]['bias'])

  theta = project('theta', x.reshape(-1, c))
  phi, g = project('phi', pooled), project('g', pooled)
  y = np.zeros_like(theta)
  for n, query in enumerate(theta):
    affinity = phi @ query
    if mode == 'softmax':
      exp = np.exp(affinity / np.sqrt(c // 2))
      weights = exp / exp.sum()
    else:
      weights = affinity / len(pooled)
    y[n] = weights @ g
  y = project('out', y)
  y = (y - stats['mean']) / np.sqrt(stats['var'] + 1e-5)
  y = y * params['norm']['scale'] + params['norm']['bias']
  return x + y.reshape(x.shape)


@pytest.mark.parametrize('mode', ['softmax', 'dot_product'])
def test_a_block_equals_a_loop_over_positions(mode):
  block, variables = block_and_variables(mode=mode)
  x = random(2, 3, 5, 4, 4)  # An odd height.
  got = run(block, variables, x)
  for clip, result in zip(np.asarray(x), got, strict=True):
    want = numpy_block(variables, clip, mode, (1, 2, 2))
    # float32 against float64 sums of a few dozen terms.
    np.testing.assert_allclose(result, want, rtol=2e-4, atol=2e-4)


def test_groups_of_frames_attend_among_themselves():
  block, variables = block_and_variables(mode='softmax', groups=2)
  x = random(2, 4, 4, 4, 4)
  alone = NonLocalBlock(mode='softmax')
  halves = [run(alone, variables, x[:, i : i + 2]) for i in (0, 2)]
  got = run(block, variables, x)
  np.testing.assert_allclose(
    got, np.concatenate(halves, 1), rtol=1e-5, atol=1e-5
  )
  together = run(alone, variables, x)
  assert np.abs(got - together).max() > 1e-2


@pytest.mark.parametrize('frames,groups', [(3, 1), (2, 2), (6, 2)])
def test_groups_that_do_not_divide_the_frames_are_fewer(frames, groups):
  four, variables = block_and_variables(mode='softmax', groups=4)
  x = random(1, frames, 2, 2, 4)
  np.testing.assert_array_equal(
    run(four, variables, x),
    run(NonLocalBlock(mode='softmax', groups=groups), variables, x),
  )


def test_batch_norm_of_a_grouped_block_is_over_whole_clips():
  block, variables = block_and_variables(mode='softmax', groups=2)
  x = random(4, 4, 2, 2, 4)

  @jax.jit
  def train(x, groups):
    pool = models.group_matrix(x.shape[0], groups)
    return block.apply(variables, x, pool)

  # Clips 0 and 1 share a batch-norm group, and those alone.
  np.testing.assert_allclose(
    train(x, 2)[:2], train(x[:2], 1), rtol=1e-5, atol=1e-5
  )


def test_max_pool_drops_a_remainder():
  x = jnp.arange(5.0).reshape(1, 1, 5, 1, 1)
  pooled = max_pool_windows(x, (1, 2, 2))
  assert pooled.ravel().tolist() == [1.0, 3.0]


def test_max_pool_takes_a_map_smaller_than_its_window_whole():
  x = random(1, 1, 1, 3, 2)
  pooled = max_pool_windows(x, (2, 2, 2))
  assert pooled.shape == (1, 1, 1, 1, 2)
  np.testing.assert_array_equal(pooled[0, 0, 0, 0], x[0, 0, 0, :2].max(0))


def test_a_new_block_is_the_identity():
  block = NonLocalBlock(mode='softmax')
  x = random(1, 2, 3, 3, 4)
  variables = jax.jit(functools.partial(block.init, same_group=None))(
    jax.random.key(0), x
  )
  np.testing.assert_array_equal(run(block, variables, x), x)


def test_an_unknown_mode_lists_the_accepted_ones():
  with pytest.raises(ValueError, match="'gauss'; accepted are softmax, dot_p"):
    block_and_variables(mode='gauss')


def test_affinities_are_float32_in_bfloat16():
  block, variables = block_and_variables(mode='softmax', dtype=jnp.bfloat16)
  x = random(1, 2, 4, 4, 4).astype(jnp.bfloat16)
  jaxpr = jax.make_jaxpr(functools.partial(block.apply, same_group=None))(
    variables, x
  )
  exponentials = [line for line in str(jaxpr).splitlines() if '= exp ' in line]
  assert len(exponentials) == 1
  assert 'f32[' in exponentials[0]
  assert jaxpr.out_avals[0].dtype == jnp.bfloat16


# Networks with blocks.

SMALL = dict(num_classes=5, dropout=0.0, dtype='float32', width=8)


def shapes(model, video_shape, **kwargs):
  video = jax.ShapeDtypeStruct((1, 4, 32, 32, 3), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), video)
  apply = lambda v, x: model.apply(v, x, **kwargs)
  video = jax.ShapeDtypeStruct(video_shape, jnp.float32)
  return variables, jax.eval_shape(apply, variables, video)


@pytest.mark.parametrize(
  'grid', [(1, 4, 32, 32), (1, 8, 79, 113), (2, 10, 45, 64)]
)
def test_one_tree_with_non_local_blocks_serves_every_grid(grid):
  model = models.build(
    'slowfast',
    blocks=(1, 2, 1),
    beta_inv=4,
    nonlocal_blocks=((), (0, 1), (0,)),
    nonlocal_blocks_fast=((0,), (), ()),
    nonlocal_groups=(1, 2, 1),
    **SMALL,
  )
  variables, logits = shapes(model, (*grid, 3))
  assert logits.shape == (grid[0], 5)
  found = {
    f'{stage}/{block}'
    for stage, blocks in variables['params'].items()
    for block in blocks
    if block.startswith('nonlocal')
  }
  assert found == {
    'slow_res3/nonlocal0',
    'slow_res3/nonlocal1',
    'slow_res4/nonlocal0',
    'fast_res2/nonlocal0',
  }


@pytest.mark.parametrize(
  'options',
  [
    {'nonlocal_blocks': ((0,),)},
    {'nonlocal_blocks': ((0,), (1,))},
    {'nonlocal_blocks': ((0,), ()), 'nonlocal_groups': (2,)},
    {'nonlocal_blocks': ((0,), ()), 'nonlocal_groups': (0, 1)},
    {'nonlocal_blocks': ((0,), ()), 'nonlocal_pool': ((1, 2, 2),)},
    {'nonlocal_pool': ((1, 2, 2), (1, 0, 2))},
    {'nonlocal_pool': ()},
    {'nonlocal_pool': (1, 2)},
  ],
)
def test_a_non_local_block_without_a_place_is_an_error(options):
  words = 'non-local (blocks|pools)|nonlocal_pool is .*; it must be three'
  with pytest.raises(ValueError, match=words):
    model = models.build('slow', blocks=(1, 1), **SMALL, **options)
    shapes(model, (1, 4, 32, 32, 3))


def windows_of_blocks(**options):
  """Windows of a SlowFast network's non-local blocks, by place."""
  model = models.build(
    'slowfast',
    blocks=(1, 1),
    beta_inv=4,
    nonlocal_blocks=((0,), (0,)),
    nonlocal_blocks_fast=((0,), (0,)),
    **SMALL,
    **options,
  )
  found = {}

  def note(next_fun, args, kwargs, context):
    if isinstance(context.module, NonLocalBlock):
      found[context.module.path[0]] = context.module.pool_window
    return next_fun(*args, **kwargs)

  with nn.intercept_methods(note):
    shapes(model, (1, 4, 32, 32, 3))
  return found


def test_pools_of_non_local_blocks_may_differ_by_stage_and_pathway():
  small, large, none = (1, 2, 2), (2, 2, 2), (1, 1, 1)
  assert set(windows_of_blocks(nonlocal_pool=large).values()) == {large}
  assert windows_of_blocks(
    nonlocal_pool=(small, large), nonlocal_pool_fast=none
  ) == {
    'slow_res2': small,
    'slow_res3': large,
    'fast_res2': none,
    'fast_res3': none,
  }


# The fully convolutional head.


def test_the_sliding_head_averages_windows():
  head = Head(3, dropout=0.0)
  x = random(2, 2, 4, 3, 6)
  dense = {'kernel': random(6, 3), 'bias': random(3)}
  variables = {'params': {'classifier': dense}}
  got = head.apply(variables, [x], deterministic=True, windows=[(2, 3, 2)])
  assert got.shape == (2, 1, 2, 2, 3)
  for i in range(2):
    for j in range(2):
      features = x[:, :, i : i + 3, j : j + 2].mean((1, 2, 3))
      want = features @ dense['kernel'] + dense['bias']
      np.testing.assert_allclose(got[:, 0, i, j], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  'name,video_shape,window,positions',
  [
    ('i3d', (1, 6, 64, 64), (4, 32, 64), (2, 2, 1)),
    ('slowfast', (1, 8, 96, 64), (8, 64, 64), (1, 2, 1)),
  ],
)
def test_the_window_is_a_training_clip(name, video_shape, window, positions):
  # Blocks of four stages: 32 pixels are one position.
  model = models.build(name, blocks=(1, 1, 1, 1), **SMALL)
  _, logits = shapes(model, (*video_shape, 3), window=window)
  assert logits.shape == (1, *positions, 5)


@pytest.mark.parametrize(
  'name,window', [('slow', (4, 128, 64)), ('slowfast', (4, 64, 64))]
)
def test_a_window_that_does_not_fit_is_an_error(name, window):
  model = models.build(name, blocks=(1, 1, 1, 1), **SMALL)
  with pytest.raises(ValueError, match='do not fit'):
    shapes(model, (1, 8, 64, 64, 3), window=window)
