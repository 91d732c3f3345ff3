"""Grouped batch norm against PySlowFast's and a plain NumPy computation."""

import json
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgjax.models import norm, statistics

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'ops'


def reference(x, groups, scale, bias, eps=1e-5):
  """Normalises consecutive clips together. Works on NumPy and JAX."""
  y = x.reshape(groups, -1, *x.shape[1:])
  axes = (1, 2, 3, 4)
  mean = y.mean(axes, keepdims=True)
  var = ((y - mean) ** 2).mean(axes, keepdims=True)
  y = (y - mean) / (var + eps) ** 0.5
  return y.reshape(x.shape) * scale + bias


def random_input(dtype, shape=(12, 2, 3, 5, 4)):
  rng = np.random.default_rng(0)
  x = rng.normal(size=shape) * rng.uniform(0.5, 3, (shape[0], 1, 1, 1, 4))
  x += 2 * rng.normal(size=(shape[0], 1, 1, 1, 4))  # Clips differ.
  scale, bias, weights = rng.normal(size=4), rng.normal(size=4), x[::-1].copy()
  return [a.astype(dtype) for a in (x, scale, bias, weights)]


def apply(
  x, scale, bias, same_group, module=None, mean=None, var=None, mutable=()
):
  module = module or norm.BatchNorm(dtype=x.dtype)
  c = x.shape[-1]
  stats = {
    'mean': np.zeros(c, scale.dtype) if mean is None else mean,
    'var': np.ones(c, scale.dtype) if var is None else var,
  }
  variables = {'params': {'scale': scale, 'bias': bias}, 'batch_stats': stats}
  return module.apply(
    variables, jnp.asarray(x), same_group, mutable=list(mutable)
  )


@pytest.mark.parametrize('size', [1, 2, 3, 4, 5, 6, 7, 12])
def test_grouped_normalisation_and_gradients_equal_numpy(size):
  """Groups of any size, with a number of them that is traced."""
  clips = size if size == 12 else 2 * size
  groups = clips // size
  x, scale, bias, weights = random_input(np.float64, (clips, 2, 3, 5, 4))
  with jax.enable_x64(True):
    run = jax.jit(
      lambda x, s, b, n: apply(x, s, b, norm.group_matrix(clips, n))[0]
    )
    grouped = lambda *args: run(*args, jnp.int32(groups))
    plain = lambda x, s, b: reference(x, groups, s, b)
    np.testing.assert_allclose(
      grouped(x, scale, bias), plain(x, scale, bias), rtol=0, atol=1e-13
    )
    loss = lambda f: lambda *args: (f(*args) * weights).sum()
    actual = jax.grad(loss(grouped), (0, 1, 2))(x, scale, bias)
    expected = jax.grad(loss(plain), (0, 1, 2))(x, scale, bias)
    for a, e in zip(actual, expected, strict=True):
      np.testing.assert_allclose(a, e, rtol=0, atol=1e-12 * np.abs(e).max())


def test_the_number_of_groups_may_be_traced():
  x, scale, bias, _ = random_input(np.float32)

  @jax.jit
  def run(groups):
    return apply(x, scale, bias, norm.group_matrix(12, groups))[0]

  for groups in (1, 2, 4, 6):
    # float32 rounding of values up to 10.
    np.testing.assert_allclose(
      run(jnp.int32(groups)), reference(x, groups, scale, bias), atol=2e-5
    )
  assert run._cache_size() == 1


@pytest.mark.parametrize('mean', [0.0, 300.0, 1e6])
def test_moments_in_float64_are_those_of_numpy(mean):
  x, *_ = random_input(np.float64)
  x = x + mean
  with jax.enable_x64(True):
    found = norm.clip_moments(jnp.asarray(x))
  np.testing.assert_allclose(
    found[0], x.mean((1, 2, 3)), rtol=1e-14, atol=1e-14
  )
  # 1e6 has ten digits left.
  np.testing.assert_allclose(found[1], x.var((1, 2, 3)), rtol=1e-9)


@pytest.mark.parametrize('mean,spread', [(0, 1), (300, 1), (300, 0.01), (1, 0)])
def test_large_means_do_not_spoil_float32_variances(mean, spread):
  rng = np.random.default_rng(0)
  x = (mean + spread * rng.normal(size=(2, 8, 20, 20, 4))).astype(np.float32)
  found = norm.clip_moments(jnp.asarray(x))
  want = x.astype(np.float64)
  np.testing.assert_allclose(
    found[0], want.mean((1, 2, 3)), rtol=1e-6, atol=1e-6
  )
  # A mean of squares less a squared mean would lose all digits of the third.
  np.testing.assert_allclose(found[1], want.var((1, 2, 3)), rtol=1e-4)


def test_groups_must_divide_the_batch():
  with pytest.raises(ValueError, match='3 batch-norm groups do not divide a'):
    norm.group_matrix(8, 3)


def golden():
  """Of PySlowFast, whose split i has the clips i, i + num_splits, ...; here
  these come one after the other."""
  stored = json.loads((GOLDEN / 'subbn_numeric.json').read_text())
  shape = stored['x_shape']

  def video(name):
    x = np.asarray(stored[name], np.float32).reshape(shape)
    x = x.reshape(-1, stored['num_splits'], *shape[1:]).swapaxes(0, 1)
    return np.moveaxis(x.reshape(shape), 1, -1)

  vector = lambda name: np.asarray(stored[name], np.float32)
  return stored, video, vector


def test_training_output_equals_sub_batch_norm_of_pyslowfast():
  stored, video, vector = golden()
  same_group = norm.group_matrix(stored['x_shape'][0], stored['num_splits'])
  y, new = apply(
    video('x'),
    vector('weight'),
    vector('bias'),
    same_group,
    mutable=['batch_stats'],
  )
  # Both are float32.
  np.testing.assert_allclose(y, video('y_train'), atol=5e-6)
  stats = new['batch_stats']
  np.testing.assert_allclose(
    stats['mean'], vector('aggregated_mean'), atol=1e-6
  )
  # The variance differs by design: PySlowFast averages the splits' running
  # variances, where the spread between split means enters damped by the
  # momentum squared; here it is the unbiased variance of the whole batch.
  x = video('x').astype(np.float64)
  expected = 0.9 + 0.1 * x.var((0, 1, 2, 3), ddof=1)
  np.testing.assert_allclose(stats['var'], expected, rtol=1e-6)


def test_evaluation_output_equals_sub_batch_norm_of_pyslowfast():
  _, video, vector = golden()
  y, _ = apply(
    video('x'),
    vector('weight'),
    vector('bias'),
    None,
    mean=vector('aggregated_mean'),
    var=vector('aggregated_var'),
  )
  np.testing.assert_allclose(y, video('y_eval'), atol=5e-6)


def test_statistics_are_not_touched_where_they_are_immutable():
  x, scale, bias, _ = random_input(np.float32)
  _, new = apply(x, scale, bias, norm.group_matrix(12, 2))
  assert not new


def test_combined_statistics_are_those_of_all_clips_together():
  x, scale, bias, _ = random_input(np.float32, (12, 2, 3, 5, 4))
  moments = [
    apply(part, scale, bias, norm.group_matrix(4, 2), mutable=['batch_moments'])
    for part in np.split(x, 3)
  ]
  combined = statistics.combine([m['batch_moments'] for _, m in moments])
  x = x.astype(np.float64)
  np.testing.assert_allclose(combined['mean'], x.mean((0, 1, 2, 3)), atol=1e-5)
  np.testing.assert_allclose(combined['var'], x.var((0, 1, 2, 3)), rtol=1e-5)


def test_combining_keeps_the_tree_of_batch_stats():
  class Two(nn.Module):
    @nn.compact
    def __call__(self, x, same_group=None):
      x = norm.BatchNorm(name='mean')(
        x, same_group
      )  # A confusing name on purpose.
      return norm.BatchNorm(name='var')(x, same_group)

  x = jnp.asarray(random_input(np.float32)[0])
  variables = Two().init(jax.random.key(0), x)
  assert set(variables) == {'params', 'batch_stats'}
  _, new = Two().apply(
    variables, x, norm.group_matrix(12, 1), mutable=['batch_moments']
  )
  combined = statistics.combine([new['batch_moments']])
  assert jax.tree.structure(combined) == jax.tree.structure(
    variables['batch_stats']
  )


def test_no_statistics_to_combine_is_an_error():
  with pytest.raises(ValueError, match='at least one batch'):
    statistics.combine([])


def test_bfloat16_keeps_float32_statistics():
  x, scale, bias, _ = random_input(np.float32)
  x16 = jnp.asarray(x, jnp.bfloat16)
  same_group = norm.group_matrix(12, 3)
  y, new = apply(x16, scale, bias, same_group, mutable=['batch_stats'])
  assert y.dtype == jnp.bfloat16
  assert new['batch_stats']['var'].dtype == jnp.float32
  expected = reference(np.asarray(x16, np.float64), 3, scale, bias)
  # One rounding to bfloat16 (2**-9) of the result.
  np.testing.assert_allclose(
    np.asarray(y, np.float32), expected, rtol=2**-8, atol=1e-3
  )


def test_precise_statistics_equal_the_reference():
  """Pooled over batches; the reference pools batches, then splits: the same."""
  stored, _, _ = golden()
  clips, channels, *thw = stored['x_shape']
  moments = []
  for flat in stored['precise_bn_inputs']:
    x = np.array(flat).reshape(clips, channels, *thw).transpose(0, 2, 3, 4, 1)
    x = jnp.asarray(x, jnp.float32)
    variables = norm.BatchNorm().init(jax.random.key(0), x)
    _, updates = norm.BatchNorm().apply(
      variables,
      x,
      norm.group_matrix(clips, stored['num_splits']),
      mutable=['batch_moments'],
    )
    moments.append(updates['batch_moments'])
  precise = statistics.combine(moments)
  # float32 sums of 64 numbers of size 1 in both.
  np.testing.assert_allclose(
    precise['mean'], stored['precise_bn_mean'], rtol=1e-6
  )
  np.testing.assert_allclose(
    precise['var'], stored['precise_bn_var'], rtol=1e-6
  )


def grouped(x, scale, bias, same_group, running=(0.0, 1.0), **options):
  c = len(scale)
  running = tuple(jnp.broadcast_to(jnp.asarray(r, 'f'), c) for r in running)
  return norm.grouped_batch_norm(
    jnp.asarray(x),
    same_group,
    running,
    scale=jnp.asarray(scale),
    bias=jnp.asarray(bias),
    **options,
  )


def per_example(x, *args, **options):
  """The same of a network that is written for one example."""
  return jax.vmap(
    lambda example: grouped(example, *args, axis_name='batch', **options),
    axis_name='batch',
    out_axes=(0, None),
  )(jnp.asarray(x))


@pytest.mark.parametrize('run', [grouped, per_example])
@pytest.mark.parametrize('groups', [1, 3, 12])
def test_the_function_is_the_layer(run, groups):
  """Results, running statistics and gradients, for a batch or an example."""
  x, scale, bias, weights = random_input(np.float32)
  mean, var = np.float32([1, 2, 3, 4]), np.float32([4, 3, 2, 1])
  same_group = norm.group_matrix(12, groups)
  layer = lambda x, s, b: apply(
    x, s, b, same_group, mean=mean, var=var, mutable=['batch_stats']
  )
  y, new = layer(x, scale, bias)
  z, running = run(x, scale, bias, same_group, (mean, var))
  np.testing.assert_allclose(z, y, rtol=0, atol=1e-6)
  for name in ('mean', 'var'):
    np.testing.assert_allclose(
      getattr(running, name), new['batch_stats'][name], rtol=1e-6
    )
  wanted = jax.grad(lambda *a: (layer(*a)[0] * weights).sum(), (0, 1, 2))
  found = jax.grad(
    lambda *a: (run(*a, same_group)[0] * weights).sum(), (0, 1, 2)
  )
  for a, b in zip(found(x, scale, bias), wanted(x, scale, bias), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('run', [grouped, per_example])
@pytest.mark.parametrize('shape', [(12, 4), (12, 7, 4), (12, 2, 3, 5, 4)])
def test_the_function_takes_any_rank_and_channels_first(run, shape):
  rng = np.random.default_rng(0)
  x, scale, bias, _ = random_input(np.float32)
  x = rng.normal(size=shape).astype(np.float32)
  same_group = norm.group_matrix(12, 2)
  wanted = reference(x.reshape(12, -1, 1, 1, 4), 2, scale, bias).reshape(shape)
  y, running = run(x, scale, bias, same_group, momentum=0.0)
  np.testing.assert_allclose(y, wanted, rtol=0, atol=1e-5)
  rows = x.reshape(-1, 4)
  np.testing.assert_allclose(running.mean, rows.mean(0), atol=1e-6)
  np.testing.assert_allclose(running.var, rows.var(0, ddof=1), rtol=1e-5)
  axis = 0 if run is per_example else 1
  first, again = run(
    np.moveaxis(x, -1, 1),
    scale,
    bias,
    same_group,
    momentum=0.0,
    channel_axis=axis,
  )
  np.testing.assert_array_equal(np.moveaxis(first, 1, -1), y)
  np.testing.assert_array_equal(again.var, running.var)


def test_the_function_without_groups_uses_and_keeps_the_running_statistics():
  x, scale, bias, _ = random_input(np.float32)
  mean, var = np.float32([1, 2, 3, 4]), np.float32([4, 3, 2, 1])
  wanted = (x - mean) / np.sqrt(var + 1e-5) * scale + bias
  for run in (grouped, per_example):
    y, running = run(x, scale, bias, None, (mean, var))
    np.testing.assert_allclose(y, wanted, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(running.mean, mean)
    np.testing.assert_array_equal(running.var, var)


@pytest.mark.parametrize('run', [grouped, per_example])
def test_a_matrix_for_another_batch_is_refused(run):
  x, scale, bias, _ = random_input(np.float32)
  with pytest.raises(ValueError, match='batch of 6, x is one of 12'):
    run(x, scale, bias, norm.group_matrix(6, 2))


def test_the_result_has_the_type_of_the_input():
  x, scale, bias, _ = random_input(np.float32)
  same_group = norm.group_matrix(12, 2)
  y, running = grouped(x.astype(jnp.bfloat16), scale, bias, same_group)
  assert y.dtype == jnp.bfloat16
  assert running.mean.dtype == jnp.float32
