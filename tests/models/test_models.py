"""Models as a whole: names, options, sizes, both modes."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgjax import models
from mgjax.config import fields, network_options
from mgjax.models import norm, slowfast
from mgjax.models.head import Head
from mgjax.setup import network
from tests.data.test_sampling import GOLDEN
from tests.models import test_norm

SMALL = dict(
  num_classes=5, dropout=0.5, dtype='float32', blocks=(1, 1, 1, 1), width=8
)

SLOW_FRAMES = GOLDEN['slow_pathway_index']


def small(name='slowfast', **options):
  if name == 'slowfast':
    options = {'beta_inv': 4} | options
  return models.build(name, **(SMALL | options))


@functools.cache
def small_variables(name):
  video = jnp.zeros((1, 4, 32, 32, 3))
  return jax.jit(small(name).init)(jax.random.key(0), video)


def clips(shape, seed=0):
  return jax.random.normal(jax.random.key(seed), (*shape, 3))


def test_an_unknown_model_lists_the_accepted_ones():
  with pytest.raises(ValueError, match='slowfast, slow, c2d, i3d.* your own'):
    models.build('slowfat', num_classes=2, dropout=0.0, dtype='float32')


def test_an_unknown_option_lists_the_accepted_ones():
  with pytest.raises(ValueError, match="no option alpha; accepted.*'?width"):
    models.build('slow', num_classes=2, dropout=0.0, dtype='float32', alpha=4)


def test_a_bad_depth_or_block_count_is_an_error():
  for options, words in (
    ({'depth': 34}, 'depth is 34; it must be 50 or 101'),
    ({'blocks': (1, 0)}, 'depth of .50, 101., or the blocks of'),
  ):
    with pytest.raises(ValueError, match=words):
      jax.eval_shape(
        small(**options).init, jax.random.key(0), clips((1, 4, 32, 32))
      )


@pytest.mark.parametrize('name', sorted(models.MODELS))
def test_every_model_is_made_from_the_default_config(name):
  config = fields.base()
  config.model.name = name
  config.model.num_classes = 400
  config.norm.momentum = 0.75
  model = network.model(config)
  assert model.num_classes == 400
  assert model.norm_momentum == 0.75
  assert model.dtype == jnp.float32


@pytest.mark.parametrize(
  'grid',
  [
    *((1, 4, 32, 32), (1, 8, 79, 79), (2, 32, 113, 64), (1, 10, 45, 45)),
    *((1, 1, 32, 32), (1, 2, 32, 32), (2, 3, 79, 113)),
  ],
)
@pytest.mark.parametrize('name', ['slowfast', 'slow', 'c2d', 'i3d'])
def test_one_tree_serves_every_grid(name, grid):
  video = jax.ShapeDtypeStruct((1, 4, 32, 32, 3), jnp.float32)
  variables = jax.eval_shape(small(name).init, jax.random.key(0), video)
  logits = jax.eval_shape(
    small(name).apply,
    variables,
    jax.ShapeDtypeStruct((*grid, 3), jnp.float32),
  )
  assert logits.shape == (grid[0], 5)


def test_fewer_frames_than_alpha_leave_the_slow_pathway_the_first():
  model, variables = small(), small_variables('slowfast')
  # Make all branches count: some start at zero.
  variables = jax.tree.map(lambda v: v + 0.1, variables)
  logits = jax.jit(model.apply)(variables, clips((2, 3, 32, 32)))
  assert slowfast.slow_frames(3, 4).tolist() == [0]
  assert logits.shape == (2, 5) and jnp.isfinite(logits).all()


@pytest.mark.parametrize('name', SLOW_FRAMES)
def test_slow_frames_are_those_of_pyslowfast(name):
  t, alpha = map(int, re.findall(r'\d+', name))
  assert slowfast.slow_frames(t, alpha).tolist() == SLOW_FRAMES[name]


def test_groups_of_a_batch_equal_separate_batches():
  model, variables = small('slow'), small_variables('slow')
  # Make the residual branches count: they start at zero.
  variables = jax.tree.map(lambda v: v + 0.1, variables)
  video = clips((4, 4, 32, 32))

  @jax.jit
  def run(video, groups):
    same_group = models.group_matrix(video.shape[0], groups)
    return model.apply(
      variables, video, same_group=same_group, deterministic=True
    )

  together = run(video, 2)
  for group in (slice(0, 2), slice(2, 4)):
    # float32, the reductions run in another order.
    np.testing.assert_allclose(
      together[group], run(video[group], 1), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
  'name,shape,groups,blocks',
  [
    ('tsm', (3, 5, 32, 32), 1, (1, 1)),
    pytest.param('slowfast', (6, 4, 79, 79), 2, (1, 1), marks=pytest.mark.slow),
    pytest.param('tsm', (3, 5, 64, 64), 1, (), marks=pytest.mark.slow),
    pytest.param('slowfast', (6, 8, 79, 79), 2, (), marks=pytest.mark.slow),
  ],
)
def test_gradients_with_groups_of_three_are_those_of_plain_batch_norm(
  name, shape, groups, blocks
):
  """In float64, where a rounded third would show; blocks (): a ResNet-50."""
  width = 8 if blocks else 64
  model = small(name, dtype='float64', blocks=blocks, width=width)

  def plain(call, args, kwargs, context):
    module = context.module
    if not isinstance(module, norm.BatchNorm):
      return call(*args, **kwargs)
    params = module.variables['params']
    return test_norm.reference(
      args[0], groups, params['scale'], params['bias'], module.eps
    )

  @functools.partial(
    jax.jit,
    compiler_options={
      'xla_backend_optimization_level': 0,
      'xla_llvm_disable_expensive_passes': True,
    },
  )
  @jax.grad
  def gradients(params, stats, video):
    logits = model.apply(
      {'params': params, 'batch_stats': stats},
      video,
      same_group=models.group_matrix(shape[0], groups),
      deterministic=True,
    )
    return (jax.nn.log_softmax(logits) * jnp.arange(5)).sum()

  rng = np.random.default_rng(0)
  with jax.enable_x64(True):
    video = jnp.asarray(rng.normal(size=(*shape, 3)))
    # At random: some scales start at zero, and their branches would not count.
    variables = jax.tree.map(
      lambda v: rng.normal(size=v.shape) / np.prod(v.shape[:-1]) ** 0.5,
      jax.eval_shape(model.init, jax.random.key(0), video),
    )
    params, stats = variables['params'], variables['batch_stats']
    found = gradients(params, stats, video)
    gradients.clear_cache()
    with nn.intercept_methods(plain):
      wanted = gradients(params, stats, video)
  for (path, a), b in zip(
    jax.tree.leaves_with_path(found), jax.tree.leaves(wanted), strict=True
  ):
    np.testing.assert_allclose(
      a, b, rtol=0, atol=1e-9 * np.abs(b).max(), err_msg=str(path)
    )


def test_training_updates_statistics_and_evaluation_does_not():
  model, variables = small('slow'), small_variables('slow')

  @jax.jit
  def updated(video, same_group=None):
    _, new = model.apply(
      variables,
      video,
      same_group=same_group,
      rngs={'dropout': jax.random.key(1)},
      mutable=['batch_stats'],
    )
    return new['batch_stats']

  old = variables['batch_stats']
  video = clips((4, 4, 32, 32))
  trained = updated(video, models.group_matrix(4, 2))
  assert jax.tree.structure(trained) == jax.tree.structure(old)
  moved = jax.tree.map(lambda a, b: bool((a != b).any()), trained, old)
  assert all(jax.tree.leaves(moved))
  evaluated = updated(video)
  kept = jax.tree.map(lambda a, b: bool((a == b).all()), evaluated, old)
  assert all(jax.tree.leaves(kept))


def test_dropout_is_on_in_training_only():
  head = Head(5, dropout=0.5)
  x = [clips((2, 4, 2, 2))]
  variables = head.init(jax.random.key(0), x, deterministic=True)
  run = lambda seed: head.apply(
    variables, x, deterministic=False, rngs={'dropout': jax.random.key(seed)}
  )
  assert (run(0) != run(3)).any()
  head.apply(variables, x, deterministic=True)  # Needs no dropout key.


def test_residual_branches_start_at_zero():
  for path, leaf in jax.tree.leaves_with_path(
    small_variables('slow')['params']
  ):
    names = [key.key for key in path]
    if names[-1] == 'scale':
      assert (leaf == (0 if names[-3] == 'c' else 1)).all(), names


def test_bfloat16_keeps_float32_parameters_statistics_and_logits():
  model = small(dtype='bfloat16')
  video = jax.ShapeDtypeStruct((2, 4, 32, 32, 3), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), video)
  logits, new = jax.eval_shape(
    lambda v, x: model.apply(
      v,
      x,
      same_group=models.group_matrix(2, 1),
      deterministic=True,
      mutable=['batch_stats'],
    ),
    variables,
    video,
  )
  for leaf in jax.tree.leaves((variables, logits, new)):
    assert leaf.dtype == jnp.float32


def test_temporal_kernels_follow_the_architecture():
  def kernels(name):
    model = models.build(name, num_classes=2, dropout=0.0, dtype='float32')
    video = jax.ShapeDtypeStruct((1, 4, 32, 32, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), video)['params']
    return [
      [
        params[f'res{stage}'][f'block{i}']['a']['conv']['kernel'].shape[0]
        for i in range(network_options.PATHWAY_BLOCKS[50][stage - 2])
      ]
      for stage in (2, 3, 4, 5)
    ]

  i3d = [[3, 3, 3], [3, 1, 3, 1], [3, 1, 3, 1, 3, 1], [1, 3, 1]]
  assert kernels('i3d') == i3d
  assert kernels('slow') == [[1] * 3, [1] * 4, [3] * 6, [3] * 3]
